"""`check_noise` passes what is right, and names what is wrong: priors that break a promise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arvid.noise import (
    ANS,
    IID,
    NOISE,
    Constant,
    Domain,
    FreeNoise,
    Grouped,
    Key,
    Kind,
    Mixed,
    NoisePrior,
    Progressive,
    Repeat,
    Span,
    gaussian,
)
from arvid.testing import RecordedNoise, check_noise
from arvid.testing.noise import SEED


@dataclass(frozen=True)
class Loud(NoisePrior):
    """A prior as a plugin may have it: of variance `by`^2, of which it declares nothing."""

    by: float = 3.0

    def recipe(self, frame, chunk, key):
        return {(Domain.INNOV, frame): self.by}


@dataclass(frozen=True)
class Blend(NoisePrior):
    """Fields that it does not check: some of their values end in a ZeroDivisionError or in complex numbers."""

    unit_variance: ClassVar[bool] = True
    random_access: ClassVar[bool] = True
    share: float = 0.5
    period: int = 4

    def recipe(self, frame, chunk, key):
        return {(Domain.SHARED, frame // self.period): self.share**0.5, (Domain.BASE, frame): (1 - self.share) ** 0.5}


@dataclass(frozen=True)
class Weighed(NoisePrior):
    """A prior without recipes: every frame is its own, and `share` of the first of the chunk, in numbers of its own."""

    unit_variance: ClassVar[bool] = True
    random_access: ClassVar[bool] = True
    share: float = 0.6

    def draw(self, key, frames, chunk, shape):
        if self.apply_to not in ("all", Kind(key.kind).name.lower()):
            return IID().draw(key, frames, chunk, shape)
        first, own = (gaussian(key.seed, key.kind, chunk.start, key.step, shape, domain=7), np.float32(self.share))
        rest = np.float32(math.sqrt(1 - self.share**2))
        return np.stack([own * first + rest * key.white((8, frame), shape) for frame in frames])

    def covariance(self, frames, chunks=None, seed=0, kind=Kind.INITIAL, step=0):
        if self.apply_to not in ("all", Kind(kind).name.lower()):
            return np.eye(len(frames))
        chunks = [Span(0, max(frames) + 1)] if chunks is None else chunks
        home = np.array([[chunk.start for chunk in chunks if chunk.start <= f < chunk.start + chunk.n] for f in frames])
        return np.where(np.eye(len(frames)) == 1, 1.0, self.share**2 * (home == home.T))


RIGHT = [
    IID(), IID(apply_to="all"), ANS(), ANS(-1), ANS(0), ANS(-0.0), ANS(-0.7, apply_to="renoise"), ANS(1.0, "stream"),
    Repeat(), Constant(), Grouped(), Grouped(5, 1.0), Grouped(1, 0.25), Grouped(2, 0), Mixed(), Mixed(0),
    Mixed(7, "chunk"), Progressive(1.0, "chunk"), FreeNoise(), FreeNoise(24, 4), FreeNoise(apply_to="all"), Loud(),
    Weighed(), Blend(),
]  # fmt: skip


@pytest.mark.parametrize("prior", RIGHT, ids=str)
def test_what_is_right_passes(prior: NoisePrior) -> None:
    check_noise(prior)


@pytest.mark.parametrize("prior", [ANS(0.5, "stream"), Progressive()], ids=str)
def test_recursions_through_a_whole_video_pass(prior: NoisePrior) -> None:
    assert not prior.random_access
    check_noise(prior, train_horizon=9)


@settings(max_examples=6)
@given(st.integers(1, 5), st.integers(1, 4), st.floats(-1, 1), st.floats(0, 10), st.data())
def test_priors_with_any_fields_pass(chunk: int, turns: int, rho: float, a: float, data: st.DataObject) -> None:
    own = FreeNoise(chunk=data.draw(st.sampled_from([None, chunk])))
    priors = (ANS(rho), Grouped(chunk, abs(rho)), Mixed(a), Progressive(a, "chunk"), own)
    check_noise(data.draw(st.sampled_from(priors)), chunk=chunk, train_horizon=turns * chunk)


def test_every_registered_prior_has_its_declarations_right() -> None:
    """Those of arvid are of unit variance, and all but recursions through a video reach any frame at once."""
    for name in NOISE.names():
        prior = NOISE.build(name)
        if type(prior).__module__.startswith("arvid."):
            assert type(prior) in map(type, RIGHT)
            assert prior.unit_variance
            assert prior.random_access == (name != "progressive")
    for prior, reaches in ((ANS(-1, "stream"), True), (ANS(0, "stream"), True), (ANS(0.5, "stream"), False),
                           (Progressive(1, "chunk"), True), (Progressive(0), True)):  # fmt: skip
        assert prior.random_access == reaches


def broken(base: type[NoisePrior] = Grouped, **changed: Any) -> NoisePrior:
    """`base` with other declarations, and with methods that are given what the right one gives first."""

    def wrap(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: NoisePrior, *given: Any) -> Any:
            return change(getattr(base, name)(self, *given), *given)

        return method

    members = {name: wrap(name, value) if callable(value) else value for name, value in changed.items()}
    if "draw" in members:
        members.setdefault("covariance", base.covariance)
    return type("Broken", (base,), members)()


def counted(change: Callable[[Any, int], Any]) -> Callable[..., Any]:
    calls = []

    def changing(found: Any, *given: Any) -> Any:
        calls.append(1)
        return change(found, len(calls))

    return changing


def remembered() -> Callable[..., Any]:
    """What was drawn is given out again: the array itself."""
    memory: dict[Any, Any] = {}
    return lambda z, key, frames, chunk, shape: memory.setdefault((key, *frames, chunk.start, tuple(shape)), z)


def of_the_last() -> Callable[..., Any]:
    """Some frames are those of the chunk that was asked for before this one."""
    memory: dict[Key, tuple[int, int]] = {}

    def recipe(found: Any, frame: int, chunk: Any, key: Key) -> Any:
        before, now = memory.get(key, (0, 0))
        memory[key] = before, now = (before, now) if now == chunk.start else (now, chunk.start)
        return found if frame % 7 else {(Domain.INNOV, before): 1.0}

    return recipe


def recent(found: Any, frame: int, *given: Any) -> Any:
    """More and more of the frames before."""
    n = max(1, frame.bit_length())
    return {(Domain.BASE, frame - i): n**-0.5 for i in range(n)}


def flickering(only: Callable[[int, Key], bool]) -> Callable[..., Any]:
    """Some recipes have another sign every time."""
    calls = itertools.count()

    def recipe(found: Any, frame: int, chunk: Any, key: Key) -> Any:
        return scaled((-1.0) ** next(calls))(found) if only(frame, key) else found

    return recipe


def scribbled(found: Any, frame: int, chunk: Any, key: Any) -> Any:
    object.__setattr__(chunk, "n", 100)
    return found


def shuffled(z: Any, key: Any, frames: list[int], chunk: Any, shape: Any) -> Any:
    frames.sort(reverse=True)
    return z


def smooth(z: Any, *given: Any) -> Any:
    return (z + np.roll(z, 1, -1)) / np.float32(2**0.5)


def uniform(z: Any, *given: Any) -> Any:
    return np.float32(12**0.5) * (np.vectorize(math.erf)(z / 2**0.5).astype(np.float32) / 2)


def by_row(z: Any, seeds: Any, *given: Any) -> Any:
    return z * np.where(np.arange(len(seeds)) == 3, -1, 1).astype(np.float32).reshape(-1, 1, 1, 1)


def all_as_the_first(z: Any, seeds: Any, *given: Any) -> Any:
    return np.repeat(z[:1], len(seeds), 0)


@dataclass(frozen=True)
class Idle(Grouped):
    """A field that nothing reads."""

    gamma: float = 0.5


@dataclass(frozen=True)
class Everywhere(ANS):
    """Takes no notice of `apply_to`."""

    def recipe_of(self, frame, chunk, key):
        return {source: weight for source, weight in self.recipe(frame, chunk, key).items() if weight}


@dataclass(frozen=True)
class OfTheSetting(ANS):
    """Re-noises otherwise when only that is asked of it."""

    def recipe(self, frame, chunk, key):
        sign = -1 if self.apply_to == "renoise" else 1
        return {source: sign * weight for source, weight in super().recipe(frame, chunk, key).items()}


@NOISE.register("doubling_of_the_noise_check")
@dataclass(frozen=True)
class Doubling(Grouped):
    """Changes what it was given."""

    size: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", 2 * self.size)


def scaled(by: float) -> Callable[..., Any]:
    return lambda found, *given: {source: by * weight for source, weight in found.items()}


def other(change: Callable[[int, Any, Key], Any]) -> Callable[..., Any]:
    """A recipe of nothing but `change(frame, chunk, key)`, with weight 1."""
    return lambda found, frame, chunk, key: {change(frame, chunk, key): 1.0}


@pytest.mark.parametrize(
    ("prior", "match"),
    [
        # draws
        (broken(draw=lambda z, *_: z.astype(float)), r"draw gives a float32 array.*: ndarray of float64, \(3, 2"),
        (broken(draw=lambda z, *_: z[:, :1]), r"draw gives a float32 array.*\(3, 1, 3\) .*expected \(3, 2, 3\)"),
        (broken(draw=lambda z, *_: z.tolist()), "draw gives a float32 array.*: list of None"),
        (broken(draw=lambda z, *_: z * np.float32("nan")), "draw is finite: not so: 18 NaN, or infinite, for"),
        (broken(draw=shuffled), r"draw leaves its arguments as they are: not so: .*\[2, 1, 0\]"),
        (broken(draw=counted(lambda z, n: z * np.float32(1 + n / 1e3))), r"draw is pure: not so: \[.*expected \["),
        (broken(draw=remembered()), r"a draw is its caller's own: not so: \[0\. 0\. 0\.\]"),
        (broken(draw=lambda z, *_: np.broadcast_to(z, z.shape)), "a draw is its caller's own: .*cannot be written to"),
        (broken(draw=lambda z, k, f, chunk, s: z + chunk.index), "reads only a chunk's start and n: .*'index'"),
        (broken(draw=lambda z, key, frames, chunk, s: z[::-1].copy() if len(frames) == 3 else z),
         "neither order, company nor a restart changes a frame: not so: .*frame .* alone"),
        (broken(recipe=of_the_last()), "neither order, company nor a restart changes a frame"),
        (broken(draw=lambda z, key, f, c, shape: np.flip(z, 1).copy() if len(f) == 1 else z),
         "neither order, company nor a restart changes a frame: .*frame .* alone"),
        (broken(draw=lambda z, key, frames, *_: z[np.argsort(frames)]),
         r"neither order, company nor a restart changes a frame: .*frames \[\d+, \d+, \d+\]"),
        (broken(batch=lambda z, *_: z.astype(np.float16)), "batch gives a float32 array.*float16"),
        (broken(batch=by_row), r"a row of a batch is its seed alone: not so: .*seed 11 for a batch of the seeds \(11"),
        (broken(batch=all_as_the_first), "a row of a batch is its seed alone: not so: .*seed 12 for"),
        # statistics
        (broken(draw=lambda z, *_: -z[::-1].copy() * np.float32(1.2)), "the covariance that is stated: not so: 1.4"),
        (broken(Weighed, covariance=lambda c, *_: np.eye(len(c))),
         r"the covariance that is stated: not so: 0\.3\d+ at \d+, \d+, expected 0\.0000 \+- 0\.09"),
        (broken(Weighed, draw=lambda z, *_: z + np.float32(0.2)), r"draws have mean 0: not so: 0\.2"),
        (broken(IID, draw=smooth), r"a frame is white: not so: 0\.5.*neighbours on axis 3"),
        (broken(IID, draw=uniform), r"draws are Gaussian: not so: 1\.[78]\d* at \d+, expected 3\.0"),
        # recipes and covariance
        (broken(recipe=counted(lambda r, n: {(0, n): 1.0})), "draw is pure"),
        (broken(recipe=flickering(lambda frame, key: key.kind == Kind.CONTEXT)), "recipe is pure: not so: first"),
        (broken(Weighed, draw=lambda z, key, frames, *_: z if frames[0] < 900 else z[::-1] * np.float32(len(frames))),
         "a frame far in may be asked first: not so: .*frame 1000 asked after"),
        (broken(recipe=scribbled), "draw leaves its arguments as they are: not so: .*n=100"),
        (broken(recipe=other(lambda f, c, k: (0, f - c.start - 1))),
         r"a prior has noise for every chunk: not so: ValueError.*the recipe {\(0, -1\): 1.0}; it is a dict"),
        (broken(recipe=other(lambda f, c, k: (0, f / 2))), r"chunk: not so: ValueError.*{\(0, 0.0\): 1.0}; it is a"),
        (broken(recipe=lambda r, *_: {}), "has noise for every chunk: not so: .*needs weights that are not all 0"),
        (broken(recipe=other(lambda f, c, k: (0, [0, 1, 2][f]))), "has noise for every chunk: not so: IndexError"),
        (broken(recipe=other(lambda f, c, k: (Domain.PERM, f))), "a source's domain is not PERM"),
        (broken(recipe=other(lambda f, c, k: (0, 5000 * f)), random_access=True),
         r"frame 1000000 the recipe {\(0, 5000000000\): 1.0}; it is a dict"),
        (broken(covariance=lambda c, *_: c + 1e-11 * (c == 0)), "is that of the recipes: .*1e-11, expected at"),
        (broken(covariance=lambda c, *_: c.astype(np.float32)), "covariance is finite float64.*: not so: float32"),
        (broken(covariance=lambda c, *_: np.triu(c)), "the covariance is symmetric: not so: off by up to 0.5"),
        (broken(covariance=lambda c, *_: c - 0.4 * (c == 0)), "positive semidefinite: not so: smallest eigenvalue -"),
        (broken(covariance=lambda c, *_: c[1:]), r"covariance is finite float64, \[frames, frames\]: .*\(20, 21\)"),
        # declared
        (broken(recipe=scaled(1 + 1e-9)), "unit_variance: every variance is 1: not so: off by up to 2e-09"),
        (broken(recipe=lambda r, f, c, key: {s: w * (1 + (key.step == 2)) for s, w in r.items()}),
         "unit_variance: every variance is 1: not so: off by up to 3 for renoise noise, step 2"),
        (broken(Loud, unit_variance=True), "unit_variance: every variance is 1: not so: off by up to 8"),
        (broken(ANS, random_access=True, recipe=recent),
         "random_access: recipes grow no longer: not so: 20 white frames make frame 1000000, at most 10 one of"),
        # streams
        (broken(draw=lambda z, key, *given: Grouped(apply_to="all").draw(replace(key, seed=1), *given)),
         "seeds, kinds and steps have nothing in common: not so: .*seed=12"),
        (broken(Weighed, draw=lambda z, key, *given: Weighed().draw(Key(key.seed), *given)),
         r"seeds, kinds and steps have nothing in common: not so: 1\.\d* .* between Key.*and Key"),
        (broken(draw=lambda z, key, *given: Grouped(apply_to="all").draw(Key(key.seed, key.kind), *given)),
         "seeds, kinds and steps have nothing in common: .* between Key.*step=2"),
        (broken(draw=lambda z, key, *given: Grouped(apply_to="all").draw(replace(key, seed=key.seed % 2**32), *given)),
         f"have nothing in common: .* between .*{SEED + 2**32}"),
        (Everywhere(-0.5), "with apply_to='initial' renoise noise is that of iid: not so: "),
        (OfTheSetting(-0.5), "with apply_to='renoise' renoise noise is that of 'all': not so: "),
        (broken(Weighed, covariance=lambda c, f, chunks, *_: replace(Weighed(), apply_to="all").covariance(f, chunks)),
         "with apply_to='initial' renoise noise is that of iid: not so: the covariance is off"),
        (Idle(), r"every field has an effect: not so: gamma has none on draws: 0\.5 gives what \[0\.51, "),
        (Doubling(), r"a prior comes back from its spec: not so: Doubling\(.*size=8.*expected Doubling\(.*size=4"),
    ],
)  # fmt: skip
def test_a_broken_promise_is_named(prior: NoisePrior, match: str) -> None:
    with pytest.raises(AssertionError, match=match):
        check_noise(prior, train_horizon=6)


def test_declarations_are_what_is_held_against_a_prior() -> None:
    """What declares nothing may do as it likes."""
    check_noise(broken(recipe=scaled(2.0), unit_variance=False))


class Remembering(Grouped):
    """Grouped, with a list of all it was asked."""

    asked: ClassVar[set[tuple[int, int, int]]] = set()

    def recipe(self, frame, chunk, key):
        self.asked.add((frame, chunk.start, chunk.n))
        return super().recipe(frame, chunk, key)


def test_chunks_of_every_size_and_far_ones_are_asked_about() -> None:
    check_noise(Remembering(), chunk=4, train_horizon=8)
    chunks = {(start, n) for _, start, n in Remembering.asked}
    assert {(0, 4), (4, 4), (0, 1), (1, 4), (0, 3), (3, 4), (1000, 4), (1_000_000, 4), (5, 1)} <= chunks
    ends = {start + n: n for start, n in chunks if start < 900}
    assert ends[max(ends)] == 3


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ((lambda: check_noise("iid")), "'iid' is no noise prior: give an instance of a frozen dataclass"),  # pyright: ignore[reportArgumentType]
        ((lambda: check_noise(IID)), "is no noise prior"),  # pyright: ignore[reportArgumentType]
        ((lambda: check_noise(NoisePrior())), "has a recipe, or both draw and covariance"),
        ((lambda: check_noise(RecordedNoise(*map(np.zeros, (1, 1))))), "is no noise prior"),  # pyright: ignore[reportArgumentType]
        ((lambda: check_noise(IID(), chunk=0)), "chunk=0: give a whole number of latent frames, at least 1"),
        ((lambda: check_noise(IID(), chunk=True)), "chunk=True"),
        ((lambda: check_noise(IID(), train_horizon=21.0)), r"train_horizon=21\.0"),  # pyright: ignore[reportArgumentType]
        ((lambda: check_noise(FreeNoise(), chunk=4)), "train_horizon=21 is no multiple of chunk=4"),
    ],
)
def test_what_cannot_be_asked_is_refused(given, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        given()
