"""A model and random numbers that a sampler may play with: what they may be asked, and a record of what they were."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arvid.cache import Chunk
from arvid.samplers import Emit, Sampler

from .engine import require

WRONG = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What code that is asked for what it cannot do may raise."""

SEED = 5
SHAPE = (2, 2, 3)  # of a frame
PAST = 2  # commits that a prediction depends on

Event = tuple[str, tuple[Chunk, ...], int]  # as in a trace


class Key(NamedTuple):
    """What tells one noise from another."""

    kind: str
    start: int
    step: int = 0

    def __str__(self) -> str:
        return f"{self.kind} noise{f' {self.step}' * (self.kind == 'renoise')} of the chunk from frame {self.start} on"


@dataclass(frozen=True)
class Held:
    """A chunk as it was committed."""

    chunk: Chunk
    x_BFCHW: Tensor


@dataclass(frozen=True)
class Given:
    """A chunk's latents in a pass, as they were then."""

    kind: str
    chunk: Chunk
    x_BFCHW: Tensor


@dataclass(frozen=True)
class History:
    """What lanes hold, and where they end."""

    held: Mapping[int, tuple[Held, ...]]
    ends: Mapping[int, int]


Draw = Callable[[Key, Chunk], Tensor]
Answer = Callable[[Tensor, Sequence[Chunk], Sequence[Held]], Tensor]


def drawn(rows: slice = slice(2), dtype: torch.dtype = torch.float64, seed: int = SEED) -> Draw:
    """Gaussian noise, a function of the key: [B, n, *SHAPE]."""

    def draw(key: Key, chunk: Chunk) -> Tensor:
        return torch.from_numpy(_numbers(key, chunk.n, seed)[rows].copy()).to(dtype)

    return draw


@lru_cache(1024)  # every run asks for the same
def _numbers(key: Key, n: int, seed: int) -> NDArray[np.float64]:
    kind = ("initial", "renoise", "context").index(key.kind)
    return np.random.default_rng((seed, kind, key.start, key.step)).standard_normal((2, n, *SHAPE))


def honest(x_BFCHW: Tensor, chunks: Sequence[Chunk], past: Sequence[Held]) -> Tensor:
    """A prediction that depends on all a model's does: latents, levels, chunks in flight, the lane's history."""
    seen = 0.3 * x_BFCHW.mean(1, keepdim=True)
    for held in past:
        weight = (1 - held.chunk.sigma / 2) / (1 + chunks[0].start - held.chunk.start)
        seen = seen + weight * held.x_BFCHW.to(x_BFCHW).mean(1, keepdim=True)
    pieces = x_BFCHW.split([chunk.n for chunk in chunks], 1)
    return torch.cat([(1 - chunk.sigma / 2) * x + seen / (1 + seen * seen)
                      for x, chunk in zip(pieces, chunks, strict=True)], 1)  # fmt: skip


class Stage:
    """A denoiser and a noise source for one video: `draw` makes the noise, `answer` the predictions.

    A lane's history begins where the video does, or is `history`. With `keep` False no tensor is remembered but the
    history's. Raises `AssertionError` for what neither a model nor a noise source can be asked.
    """

    def __init__(
        self, sampler: Sampler, video: Sequence[Chunk], answer: Answer = honest, draw: Draw | None = None,
        history: History | None = None, keep: bool = True,
    ) -> None:  # fmt: skip
        self.video, self.lanes, self.keep = {chunk.start: chunk for chunk in video}, sampler.lanes, keep
        self.answer, self.draw, self.begins = answer, draw or drawn(), video[0].start
        like = self.draw(Key("initial", video[0].start), video[0])
        self.dtype, self.rows, self.frame = like.dtype, len(like), tuple(like.shape[2:])
        self.events: list[Event] = []
        self.given: list[Given] = []
        self.noises: dict[Key, Tensor] = {}
        self.watched: list[tuple[str, Tensor, Tensor]] = []
        self.levels = Counter[int]()  # DENOISE passes of a chunk so far
        self.lowest: dict[tuple[int, int], float] = {}  # level of a chunk's last DENOISE in a lane
        self.final: set[int] = set()  # chunks that were emitted
        self._held, self._ends = (dict(history.held), dict(history.ends)) if history else ({}, {})

    def __call__(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        x0 = self._pass("denoise", x_BFCHW, chunks, lane)
        self.levels.update(chunk.start for chunk in chunks)
        return x0

    def commit(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        x0 = self._pass("commit", x_BFCHW, chunks, lane)
        pieces = x_BFCHW.split([chunk.n for chunk in chunks], 1)
        now = tuple(Held(chunk, x.clone()) for chunk, x in zip(chunks, pieces, strict=True))
        self._held[lane] = (*self._held.get(lane, ()), *now)[-PAST:]
        self._ends[lane] = chunks[-1].end
        return x0

    def initial(self, chunk: Chunk) -> Tensor:
        return self._noise(Key("initial", chunk.start), chunk)

    def renoise(self, chunk: Chunk, step: int) -> Tensor:
        return self._noise(Key("renoise", chunk.start, step), chunk)

    def context(self, chunk: Chunk) -> Tensor:
        return self._noise(Key("context", chunk.start), chunk)

    def shape(self, chunks: Sequence[Chunk]) -> tuple[int, ...]:
        """Of the latents of chunks."""
        return (self.rows, sum(chunk.n for chunk in chunks), *self.frame)

    def history(self) -> History:
        """What is held now."""
        return History(dict(self._held), dict(self._ends))

    def untouched(self) -> None:
        """Require what was given and taken to be as it was."""
        for what, now, then in self.watched:
            require(torch.equal(now, then), "tensors stay as they were given", None, f"the sampler wrote over {what}")

    def watch(self, what: str, x: Tensor) -> None:
        """Remember a tensor that nothing may change."""
        if self.keep:
            self.watched.append((what, x, x.clone()))

    def _pass(self, kind: str, x: Tensor, chunks: Sequence[Chunk], lane: int) -> Tensor:
        chunks = tuple(chunks)
        what = f"the {kind.upper()} of {brief(chunks)} in lane {lane}"
        self._fits(what, kind, chunks, lane)
        late = [chunk.index for chunk in chunks if chunk.start in self.final]
        require(not late, "no pass is over a chunk that was emitted", None, f"chunks {late} were before {what}")
        self._in_turn(what, kind, chunks[0].start, lane)
        self._falls(what, kind, chunks, lane)
        shape = self.shape(chunks)
        right = isinstance(x, Tensor) and x.shape == shape and x.is_floating_point()
        require(right, "a pass has latents for all its frames", None,
                f"{what} is given {tuple(getattr(x, 'shape', ()))}, expected {shape}")  # fmt: skip
        require(torch.isfinite(x).all(), "latents are finite", None, f"{what} is given NaN or infinity")
        self.events.append((kind, chunks, lane))
        self.watch(f"the latents of {what}", x)
        if self.keep:
            pieces = x.split([chunk.n for chunk in chunks], 1)
            self.given += (Given(kind, chunk, piece.clone()) for chunk, piece in zip(chunks, pieces, strict=True))
        return self.answer(x, chunks, self._held.get(lane, ()))

    def _fits(self, what: str, kind: str, chunks: Sequence[Chunk], lane: int) -> None:
        """Require chunks of the video, one after the other, at levels, and a lane."""
        own = [self.video.get(getattr(chunk, "start", -1)) for chunk in chunks]
        right = chunks and all(mine and replace(chunk, sigma=mine.sigma) == mine and mine.start == end for
                               chunk, mine, end in zip(chunks, own, [chunks[0].start, *(c.end for c in chunks)],
                                                       strict=False))  # fmt: skip
        require(right, "a pass is over chunks of the video, in a row", None, f"{what}: {chunks}")
        for chunk in chunks:
            sigma = chunk.sigma
            level = isinstance(sigma, (int, float)) and 0 <= sigma <= 1 and (sigma or kind == "commit")
            require(level, "a noise level is a number in (0, 1], of a COMMIT in [0, 1]", None, f"{what}: {sigma!r}")
        require(lane in range(self.lanes), "lanes are numbers below `lanes`", None,
                f"{what}, expected a lane below {self.lanes}")  # fmt: skip

    def _in_turn(self, what: str, kind: str, start: int, lane: int) -> None:
        """Require a lane to hold all before the pass, and nothing from there on."""
        end = self._ends.get(lane, self.begins)
        claim = "a chunk is committed once in a lane" if kind == "commit" else (
            "a DENOISE reads nothing final of its own chunks or of later ones")  # fmt: skip
        require(start >= end, claim, None, f"before {what} the lane holds frames up to {end - 1}")
        require(start == end, "what comes before a pass is committed in its lane", None,
                f"before {what} the lane ends at frame {end}, expected {start}")  # fmt: skip

    def _falls(self, what: str, kind: str, chunks: Sequence[Chunk], lane: int) -> None:
        """Require levels to fall from pass to pass, and not from chunk to chunk."""
        levels = [chunk.sigma for chunk in chunks]
        require(all(a <= b for a, b in pairwise(levels)), "in a pass no chunk is cleaner than the one before it", None,
                f"levels {levels} in {what}")  # fmt: skip
        for chunk in chunks if kind == "denoise" else ():
            before = self.lowest.get((chunk.start, lane), float("inf"))
            require(chunk.sigma < before, "a chunk's levels fall within a lane", None,
                    f"{chunk.sigma:g} after {before:g} in {what}")  # fmt: skip
            self.lowest[chunk.start, lane] = chunk.sigma

    def _noise(self, key: Key, chunk: Chunk) -> Tensor:
        own, step = self.video.get(key.start), key.step
        known = own is not None and own.n == chunk.n and isinstance(step, int) and step >= 0
        require(known, "noise is asked for by a chunk of the video, and a step", None, f"{key}, {chunk.n} frames")
        most = {"initial": 0, "renoise": step + 1, "context": self.levels[key.start]}[key.kind]
        require(self.levels[key.start] <= most, "a noise has one use", None, f"{key} is asked for after denoise "
                f"{self.levels[key.start] - 1}, expected before denoise {most}: it is for another level")  # fmt: skip
        if not self.keep:
            return self.draw(key, chunk)
        if key not in self.noises:
            self.noises[key] = self.draw(key, chunk)
            self.watch(f"the {key}", self.noises[key])
        return self.noises[key]


def play(sampler: Sampler, stage: Stage, chunks: Sequence[Chunk], state: Any = None, first: int = 0) -> Iterator[Emit]:
    """A rollout whose emissions, from the `first` chunk on, are proved to be those of the chunks, in order."""
    due, what = iter([*chunks[first:]]), f"for {sizes(chunks)}"
    with answering(what):
        for emit in sampler.rollout(stage, stage, chunks, state):
            _proved(emit, next(due, None), stage)
            stage.events.append(("emit", (emit.chunk,), 0))
            stage.final.add(emit.chunk.start)
            stage.watch(f"the x0 emitted for {brief((emit.chunk,))}", emit.x0)
            yield emit
    left = [chunk.index for chunk in due]
    require(not left, "every chunk is emitted once, in order", None, f"chunks {left} never were, {what}")


def _proved(emit: Emit, chunk: Chunk | None, stage: Stage) -> None:
    kind = type(emit).__name__
    require(isinstance(emit, Emit), "a rollout gives emissions", None, f"it gave a {kind}, expected an Emit")
    seen = brief((emit.chunk,))
    due = chunk is not None and replace(emit.chunk, sigma=chunk.sigma) == chunk
    require(due, "every chunk is emitted once, in order", None,
            f"{emit.chunk}, expected {brief((chunk,)) if chunk else 'none'}")  # fmt: skip
    done = any(kind == "commit" and emit.chunk in flying for kind, flying, _ in stage.events)
    require(done, "a chunk is committed before it is emitted, at the level that the emission names", None,
            f"{seen} has no COMMIT at level {emit.chunk.sigma:g}")  # fmt: skip
    expected = stage.dtype, stage.shape((emit.chunk,))
    found = getattr(emit.x0, "dtype", None), tuple(getattr(emit.x0, "shape", ()))
    require(found == expected, "an emission has x0 as noise is, in dtype and shape", None,
            f"{seen} has {found}, expected {expected}")  # fmt: skip


@contextmanager
def answering(what: str) -> Iterator[None]:
    """Require what is done inside to raise nothing of its own."""
    try:
        yield
    except WRONG as error:
        raise AssertionError(f"a sampler serves every video: not so: {error!r} {what}") from error


def brief(chunks: Sequence[Chunk]) -> str:
    """Chunks in words."""
    return f"chunk {', '.join(str(getattr(chunk, 'index', chunk)) for chunk in chunks)}"


def sizes(chunks: Sequence[Chunk]) -> str:
    """A video in words."""
    shown = [str(chunk.n) for chunk in chunks[:12]] + ["..."] * (len(chunks) > 12)
    return f"chunks of {', '.join(shown)} frames from frame {chunks[0].start} on"


class Counted(Tensor):
    """A tensor that is counted, as is all that is made of it."""

    made: list[weakref.ref[Tensor]] = []  # noqa: RUF012 (one count)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs or {})
        for part in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(part, Counted):
                cls.made.append(weakref.ref(part))
        return found

    @classmethod
    def of(cls, x: Tensor) -> Tensor:
        """The same, counted."""
        counted = x.as_subclass(cls)
        cls.made.append(weakref.ref(counted))
        return counted

    @classmethod
    def alive(cls) -> int:
        """Bytes of all that there still are."""
        found = [x for ref in cls.made if (x := ref()) is not None]
        cls.made[:] = map(weakref.ref, found)
        with torch._C.DisableTorchFunctionSubclass():
            storages = [x.untyped_storage() for x in found]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
