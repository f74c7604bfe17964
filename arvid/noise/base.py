"""Keyed Gaussian noise, and the base class of priors that say how the noise of frames depends on each other.

Every value is a function of (seed, domain, kind, step, index) alone: the order of calls, the batch and the device never
matter. A prior writes each frame as a weighted sum of independent white frames, its recipe; draws and exact covariances
both follow from that. Frames are latent frames, counted from the start of the video.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import reduce
from numbers import Real
from typing import Any, ClassVar, Literal, Protocol, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..registry import Registry

__all__ = [
    "APPLY_TO", "NOISE", "ChunkLike", "Domain", "Floats", "Key", "Kind", "NoisePrior", "Recipe", "Scope", "Source",
    "Span", "check_real", "check_scope", "gaussian", "seeds",
]

APPLY_TO = ("initial", "renoise", "all")

Floats = NDArray[np.float64]

Scope = Literal["chunk", "stream"]
"""What a correlation reaches through: a chunk, or the whole video."""

Source = tuple[int, int]
"""A white frame: (domain, index)."""

Recipe = Mapping[Source, float]
"""The weight of each white frame in a frame of noise; squares sum to 1 when the noise has unit variance."""

_WORD = 1 << 32
_SEED = (1 << 64) - 1


class Kind(IntEnum):
    """What a draw is for."""

    INITIAL = 0
    RENOISE = 1
    CONTEXT = 2


class Domain(IntEnum):
    """Families of random numbers that never meet. BASE, indexed by frame, is what `iid` draws."""

    BASE = 0
    SHARED = 1
    PERM = 2
    INNOV = 3
    BORDER = 4


class ChunkLike(Protocol):
    """What a prior reads of a chunk: its first frame and its number of frames."""

    @property
    def start(self) -> int: ...
    @property
    def n(self) -> int: ...


@dataclass(frozen=True)
class Span:
    """The smallest `ChunkLike`: `n` frames from `start`."""

    start: int
    n: int


def check_scope(scope: object) -> None:
    """Raise `ValueError` for what is no scope."""
    if scope not in get_args(Scope):
        raise ValueError(f"scope={scope!r}; allowed: {', '.join(map(repr, get_args(Scope)))}")


def _is_source(source: object) -> bool:
    return isinstance(source, tuple) and len(source) == 2 and all(
        isinstance(n, int | np.integer) and not isinstance(n, bool) and 0 <= n < _WORD for n in source)


def check_real(name: str, value: Any) -> None:
    """Raise `TypeError` for what is no number, `ValueError` for one that no float holds."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r} must be a number, got {type(value).__name__}")
    try:
        float(value)
    except OverflowError:
        raise ValueError(f"{name} is a number of more than 308 digits: give a smaller one") from None


def _integer(name: str, value: object, low: int, high: int) -> int:
    """`value` as an int in [low, high); a bool or a float, even 1.0, is refused."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}={value!r} must be an int, got {type(value).__name__}")
    if not low <= value < high:
        raise ValueError(f"{name}={value} is outside [{low}, {high})")
    return int(value)


def _seed(value: object) -> int:
    return _integer("seed", value, -(1 << 63), 1 << 64) & _SEED


def _philox(seed: int, domain: int, kind: int, step: int, index: int) -> np.random.Philox:
    """The bit stream of a key. numpy splits a larger spawn element into words, where it would meet another key's."""
    elements = {"domain": domain, "kind": kind, "step": step, "index": index}
    spawn = tuple(_integer(name, value, 0, _WORD) for name, value in elements.items())
    return np.random.Philox(np.random.SeedSequence(_seed(seed), spawn_key=spawn))


def gaussian(
    seed: int, kind: int, frame: int, step: int, shape: Sequence[int], domain: int = Domain.BASE
) -> NDArray[np.float32]:
    """White standard normals of `shape`, float32, a function of the arguments alone.

    `seed` is any int of 64 bits, signed or not (-1 is 2^64 - 1); `kind`, `frame`, `step` and `domain` lie in [0, 2^32).
    Another `shape` is another draw, not a piece of the same one.
    Raises `TypeError` for a bool or a float, `ValueError` for an int out of range or a shape without elements.
    """
    sizes = tuple(_integer("shape", size, 1, _WORD) for size in shape)
    return np.random.Generator(_philox(seed, domain, kind, step, frame)).standard_normal(sizes, dtype=np.float32)


def seeds(seed: int | Sequence[int], batch: int) -> tuple[int, ...]:
    """One seed for each of `batch` rows, in [0, 2^64): an int for every row (the same noise), or one int a row.

    Raises `ValueError` when a list has another length than the batch, `TypeError` for a bool, a float or a string.
    """
    batch = _integer("batch", batch, 1, _WORD)
    if isinstance(seed, Sequence) and not isinstance(seed, str | bytes):
        if len(seed) != batch:
            raise ValueError(f"{len(seed)} seeds for {batch} rows; pass one int for all rows, or one seed a row")
        return tuple(map(_seed, seed))
    return (_seed(seed),) * batch


@dataclass(frozen=True)
class Key:
    """Names one stream of keyed numbers: the seed of a row, what the draw is for, and the step of a re-noising."""

    seed: int
    kind: int = Kind.INITIAL
    step: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", _seed(self.seed))
        _integer("step", self.step, 0, _WORD)
        if _integer("kind", self.kind, 0, _WORD) not in tuple(Kind):
            raise ValueError(f"kind={self.kind}; allowed: {', '.join(f'{kind} ({kind.name})' for kind in Kind)}")

    def white(self, source: Source, shape: Sequence[int]) -> NDArray[np.float32]:
        """The white frame a recipe calls `source`, float32."""
        domain, index = source
        return gaussian(self.seed, self.kind, index, self.step, shape, domain)

    def permutation(self, index: int, n: int) -> tuple[int, ...]:
        """A uniform permutation of range(n), keyed by `index` (Fisher-Yates on raw bits, whose stream numpy keeps)."""
        order = list(range(_integer("n", n, 1, _WORD)))
        raw = _philox(self.seed, Domain.PERM, self.kind, self.step, index).random_raw(n)
        for last in range(n - 1, 0, -1):
            other = int(raw[last]) % (last + 1)  # 64 bits: uneven by less than n / 2^64
            order[last], order[other] = order[other], order[last]
        return tuple(order)


@dataclass(frozen=True)
class NoisePrior:
    """How the Gaussian draws of a video's frames depend on each other. Subclasses write `recipe`.

    `apply_to` says which draws follow the recipe: "initial" noise, the "renoise" draws between steps, or "all"; the
    other kinds are independent, with the numbers of `iid`. A subclass that overrides `draw` overrides `covariance` too.

    `arvid.testing.check_noise` holds a prior to what it declares: `unit_variance`, every frame alone is standard white
    noise; `random_access`, a frame's recipe is no longer a million frames on than at the start.
    """

    unit_variance: ClassVar[bool] = False
    random_access: ClassVar[bool] = False

    apply_to: str = field(default="initial", kw_only=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "draw" in vars(cls) and "covariance" not in vars(cls):
            raise TypeError(f"{cls.__name__} overrides draw but not covariance; override both, or only recipe")

    def __post_init__(self) -> None:
        if self.apply_to not in APPLY_TO:
            raise ValueError(f"apply_to={self.apply_to!r}; allowed: {', '.join(map(repr, APPLY_TO))}")

    def recipe(self, frame: int, chunk: ChunkLike, key: Key) -> Recipe:
        """The white frames that make up `frame` of `chunk`, with their weights; unit variance needs sum(w^2) = 1.

        A pure function of the arguments. `key` offers keyed integers (`permutation`) to priors that shuffle.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a recipe(frame, chunk, key)")

    def recipe_of(self, frame: int, chunk: ChunkLike, key: Key) -> Recipe:
        """The recipe in force: the prior's where `apply_to` covers the key's kind, else that of `iid`.

        Raises `ValueError` for a frame outside the chunk, and for a recipe that is empty or not finite.
        """
        if not chunk.start <= frame < chunk.start + chunk.n:
            raise ValueError(f"frame {frame} is not in the chunk of frames {chunk.start}..{chunk.start + chunk.n - 1}")
        if self.apply_to != "all" and self.apply_to != Kind(key.kind).name.lower():
            return {(Domain.BASE, frame): 1.0}
        recipe = self.recipe(frame, chunk, key)
        if not isinstance(recipe, Mapping) or not all(map(_is_source, recipe)):
            raise ValueError(f"{self} gives frame {frame} the recipe {recipe!r}; it is a dict of weights by white "
                             "frame, (domain, index), whole numbers in [0, 2^32)")
        if not all(isinstance(weight, Real) and math.isfinite(weight) for weight in recipe.values()):
            raise ValueError(f"{self} gives frame {frame} the recipe {recipe}; it needs finite weights")
        if not (mixed := {source: weight for source, weight in recipe.items() if weight != 0}):
            raise ValueError(f"{self} gives frame {frame} the recipe {recipe}; it needs weights that are not all 0")
        return mixed

    def draw(self, key: Key, frames: Sequence[int], chunk: ChunkLike, shape: Sequence[int]) -> NDArray[np.float32]:
        """Noise of `frames`, all in `chunk`: float32 [len(frames), *shape], mixed in float32.

        A weight of 1 or -1 alone gives the white frame or its negation bit for bit. Raises as `recipe_of`, and
        `ValueError` for no frames.
        """
        recipes = [self.recipe_of(frame, chunk, key) for frame in frames]
        if not recipes:
            raise ValueError("no frames to draw; pass at least one")
        white = {source: key.white(source, shape) for source in _sources(recipes)}
        return np.stack([reduce(np.add, (np.float32(w) * white[s] for s, w in recipe.items())) for recipe in recipes])

    def batch(
        self, seeds: Sequence[int], kind: int, step: int, chunk: ChunkLike, shape: Sequence[int]
    ) -> NDArray[np.float32]:
        """Noise of a whole chunk for rows of these seeds: float32 [B, n, *shape]. Equal seeds get equal rows."""
        frames = range(chunk.start, chunk.start + chunk.n)
        rows = {seed: self.draw(Key(seed, kind, step), frames, chunk, shape) for seed in dict.fromkeys(seeds)}
        return np.stack([rows[seed] for seed in seeds])

    def covariance(
        self, frames: Sequence[int], chunks: Sequence[ChunkLike] | None = None, seed: int = 0, kind: int = Kind.INITIAL,
        step: int = 0,
    ) -> Floats:
        """Exact covariance [f, f] of the noise of `frames`, from their recipes.

        `chunks` are the chunks the frames lie in; None is one chunk of all frames from 0. `seed` and `step` matter to
        priors that shuffle. Raises `ValueError` for no frames, and for a frame in no chunk or in several.
        """
        frames = [operator.index(frame) for frame in frames]
        if not frames:
            raise ValueError("no frames given; pass at least one")
        key = Key(seed, kind, step)
        chunks = [Span(0, max(frames) + 1)] if chunks is None else chunks
        recipes = [self.recipe_of(frame, _chunk_of(frame, chunks), key) for frame in frames]
        sources = _sources(recipes)
        weights_FS = np.array([[recipe.get(source, 0.0) for source in sources] for recipe in recipes], float)
        return weights_FS @ weights_FS.T

    def energy(
        self, f: int, d: int = 1, chunks: Sequence[ChunkLike] | None = None, seed: int = 0, kind: int = Kind.INITIAL
    ) -> float:
        """Expected energy of motion of the first `f` frames of `d` numbers, E sum_u |z_u - z_{u-1}|^2, from the
        covariance (FLEX, arXiv 2602.14027, eq. 14: 2 (f - 1)(1 - rho) d for a chunk of `ans`).

        `chunks` are the chunks they lie in; None is one. Raises as `covariance`.
        """
        chunks = [Span(0, _integer("f", f, 1, _WORD))] if chunks is None else chunks
        pairs = (self.covariance((u - 1, u), chunks, seed, kind) for u in range(1, _integer("f", f, 1, _WORD)))
        return _integer("d", d, 1, _WORD) * float(sum(c[0, 0] + c[1, 1] - 2 * c[0, 1] for c in pairs))

    def periodogram(
        self, omega: ArrayLike, frames: Sequence[int], chunks: Sequence[ChunkLike] | None = None, seed: int = 0,
        kind: int = Kind.INITIAL,
    ) -> Floats:
        """Expected power E |sum_u z_u exp(-i omega u)|^2 / f of `frames` at frequencies in radians a frame, any shape;
        1 everywhere for `iid`. From the covariance, and raises as it."""
        wave = np.exp(1j * np.asarray(omega, float)[..., None] * np.asarray(frames))
        c = self.covariance(frames, chunks, seed, kind)
        return np.einsum("...u,uv,...v->...", wave, c, wave.conj()).real / len(frames)

    def spectrum(self, omega: ArrayLike) -> Floats:
        """Power spectral density at frequencies in radians a frame, any shape, of a recursion that never starts anew;
        its mean over a whole turn is the variance.

        Raises `ValueError` where there is no closed form, or no density.
        """
        raise ValueError(f"{self} has no closed form of its spectrum; periodogram(omega, frames) works for all")


NOISE: Registry[NoisePrior] = Registry("noise", NoisePrior)


def _sources(recipes: Sequence[Recipe]) -> list[Source]:
    return list(dict.fromkeys(source for recipe in recipes for source in recipe))


def _chunk_of(frame: int, chunks: Sequence[ChunkLike]) -> ChunkLike:
    holding = [chunk for chunk in chunks if chunk.start <= frame < chunk.start + chunk.n]
    if len(holding) != 1:
        raise ValueError(f"frame {frame} lies in {len(holding)} of the chunks; it must lie in exactly one")
    return holding[0]
