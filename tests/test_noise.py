"""Keyed noise: the stream itself, seeds, recipes, and draws and covariances that follow from them."""

from __future__ import annotations

import itertools
import math
from dataclasses import FrozenInstanceError, dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arvid.cache import Chunk
from arvid.noise import (
    ANS,
    IID,
    ChunkLike,
    Domain,
    FreeNoise,
    Grouped,
    Key,
    Kind,
    Mixed,
    NoisePrior,
    Recipe,
    Repeat,
    Span,
    gaussian,
    seeds,
)
from arvid.pipeline import KeyedNoise

SHAPE = (4, 32, 32)
N = math.prod(SHAPE)
SIGMAS = 6
SEEDS = st.integers(-(1 << 63), (1 << 64) - 1)
WORDS = st.integers(0, (1 << 32) - 1)


@dataclass(frozen=True)
class Mix(NoisePrior):
    """A toy prior: the same weights of white frames for every frame of a chunk, counted from the frame itself."""

    weights: tuple[float, ...] = (1.0,)

    def recipe(self, frame: int, chunk: ChunkLike, key: Key) -> Recipe:
        return {(Domain.INNOV, frame + i): weight for i, weight in enumerate(self.weights)}


# The stream


@pytest.mark.parametrize(("arguments", "values"), [
    ((0, 0, 0, 0), (0.52898723, -0.41540122, 0.76802558, -0.74643576)),
    ((-1, 0, 0, 0), (-1.2983284, -1.37181604, -0.4987815, -0.58897078)),
    ((123456789012345, 2, 1000, 3), (0.41799831, 1.41249704, 0.93141097, -1.11132503)),
    ((7, 1, 5, 2), (-0.56553882, 0.49849409, -0.16060227, -0.00227073)),
])
def test_golden_values(arguments: tuple[int, int, int, int], values: tuple[float, ...]) -> None:
    drawn = gaussian(*arguments, (4,))
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn, values, rtol=0, atol=5e-8)


def test_key_order_is_domain_kind_step_frame() -> None:
    bits = np.random.Philox(np.random.SeedSequence(5, spawn_key=(3, 1, 4, 9)))
    expected = np.random.Generator(bits).standard_normal(SHAPE, dtype=np.float32)
    assert np.array_equal(gaussian(5, kind=1, frame=9, step=4, shape=SHAPE, domain=Domain.INNOV), expected)
    assert np.array_equal(Key(5, 1, 4).white((3, 9), SHAPE), expected)


def test_moments_are_gaussian() -> None:
    x = np.concatenate([gaussian(11, 0, frame, 0, SHAPE).ravel() for frame in range(4)]).astype(np.float64)
    n = x.size
    assert abs(x.mean()) <= SIGMAS / math.sqrt(n)
    assert abs(x.var() - 1) <= SIGMAS * math.sqrt(2 / n)
    assert abs((x**3).mean()) <= SIGMAS * math.sqrt(15 / n)
    assert abs((x**4).mean() - 3) <= SIGMAS * math.sqrt(96 / n)
    normal = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in np.sort(x)])
    steps = np.arange(n + 1) / n
    distance = max((normal - steps[:-1]).max(), (steps[1:] - normal).max())
    assert distance <= math.sqrt(math.log(2 / 1e-9) / (2 * n))  # Dvoretzky-Kiefer-Wolfowitz at p = 1e-9


def test_keys_do_not_collide_and_are_uncorrelated() -> None:
    keys = [(0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (1 << 32, 0, 0, 0, 0), (1 << 63, 0, 0, 0, 0), (0, 1, 0, 0, 0),
            (0, 0, 1, 0, 0), (0, 0, 0, 1, 0), (0, 0, 0, 0, 1), (0, 0, (1 << 32) - 1, 0, 0), (0, 2, 0, 0, 0)]
    draws = [gaussian(seed, kind, frame, step, SHAPE, domain).ravel() for seed, kind, frame, step, domain in keys]
    for a, b in itertools.combinations(draws, 2):
        assert abs((a * b).mean()) <= SIGMAS / math.sqrt(N)


@settings(max_examples=50)
@given(st.lists(st.tuples(SEEDS, st.sampled_from(Kind), WORDS, WORDS), min_size=2, max_size=2))
def test_two_keys_give_one_draw_only_when_equal(keys: list[tuple[int, Kind, int, int]]) -> None:
    (seed_a, *rest_a), (seed_b, *rest_b) = keys
    same = seed_a % (1 << 64) == seed_b % (1 << 64) and rest_a == rest_b
    assert np.array_equal(gaussian(*keys[0], (8,)), gaussian(*keys[1], (8,))) == same


@pytest.mark.parametrize("name", ["seed", "kind", "frame", "step", "domain"])
@pytest.mark.parametrize("value", [True, 1.0, np.float32(1), "1", None])
def test_gaussian_takes_ints_only(name: str, value: object) -> None:
    arguments = {"seed": 0, "kind": 0, "frame": 0, "step": 0, "domain": 0, "shape": (2,)} | {name: value}
    with pytest.raises(TypeError, match="must be an int"):
        gaussian(**arguments)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["kind", "frame", "step", "domain"])
@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_gaussian_refuses_what_numpy_would_make_collide(name: str, value: int) -> None:
    arguments = {"seed": 0, "kind": 0, "frame": 0, "step": 0, "domain": 0, "shape": (2,)} | {name: value}
    with pytest.raises(ValueError, match="outside"):
        gaussian(**arguments)  # pyright: ignore[reportArgumentType]


def test_gaussian_refuses_other_bad_values() -> None:
    for seed in (1 << 64, -(1 << 63) - 1):
        with pytest.raises(ValueError, match=r"seed=.* outside"):
            gaussian(seed, 0, 0, 0, (2,))
    with pytest.raises(ValueError, match="shape=0"):
        gaussian(0, 0, 0, 0, (2, 0))
    with pytest.raises(ValueError, match="kind=3; allowed: 0 \\(INITIAL\\)"):
        Key(0, kind=3)
    with pytest.raises(TypeError, match="step=True"):
        Key(0, step=True)
    with pytest.raises(FrozenInstanceError):
        Key(0).seed = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_numpy_ints_and_signed_seeds_name_the_same_key() -> None:
    assert Key(-1) == Key((1 << 64) - 1)
    assert hash(Key(3, Kind.RENOISE, 2)) == hash(Key(3, 1, 2))
    assert np.array_equal(gaussian(np.int64(-5), 0, np.int32(2), 0, (4,)), gaussian(-5, 0, 2, 0, (4,)))  # pyright: ignore


# Seeds of a batch


def test_seeds() -> None:
    assert seeds(3, 2) == (3, 3)
    assert seeds([3, -1], 2) == (3, (1 << 64) - 1)
    assert seeds((7,), 1) == (7,)
    for wrong in ([1], [1, 2, 3], []):
        with pytest.raises(ValueError, match=f"{len(wrong)} seeds for 2 rows"):
            seeds(wrong, 2)
    for bad in (True, 1.0, "12", None, [1, True], [1.0, 2]):
        with pytest.raises(TypeError, match="must be an int"):
            seeds(bad, 2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="batch=0"):
        seeds(1, 0)


# Permutations


def test_permutations_are_uniform() -> None:
    counts = dict.fromkeys(itertools.permutations(range(3)), 0)
    for index in range(6000):
        counts[Key(0).permutation(index, 3)] += 1  # pyright: ignore[reportArgumentType]
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) <= 50.69  # chi2, 5 degrees, p = 1e-9


def test_permutations_are_keyed() -> None:
    assert [Key(0).permutation(i, 6) for i in range(3)] == [(3, 0, 1, 2, 5, 4), (2, 3, 4, 1, 5, 0), (1, 5, 0, 3, 2, 4)]
    assert Key(0).permutation(0, 1) == (0,)
    different = {key.permutation(0, 12) for key in (Key(0), Key(1), Key(0, Kind.RENOISE), Key(0, Kind.RENOISE, 1))}
    assert len(different) == 4


# Priors


@settings(max_examples=20)
@given(st.lists(st.floats(-2, 2).filter(lambda w: abs(w) > 1e-3), min_size=1, max_size=4), st.integers(0, 9))
def test_a_draw_is_the_weighted_sum_of_white_frames(weights: list[float], start: int) -> None:
    z = Mix(tuple(weights), apply_to="all").draw(Key(4, Kind.RENOISE, 2), [start + 1], Span(start, 2), SHAPE)
    assert z.dtype == np.float32
    assert z.shape == (1, *SHAPE)
    white = [gaussian(4, Kind.RENOISE, start + 1 + i, 2, SHAPE, Domain.INNOV) for i in range(len(weights))]
    np.testing.assert_allclose(z[0], np.tensordot(weights, np.array(white, float), 1), rtol=0, atol=1e-5)


def test_single_weights_are_exact() -> None:
    white = gaussian(4, 0, 3, 0, SHAPE, Domain.INNOV)
    for weights, expected in (((1.0,), white), ((-1.0,), -white), ((1.0, 0.0), white), ((1.0, -0.0), white)):
        assert np.array_equal(Mix(weights).draw(Key(4), [3], Span(3, 3), SHAPE)[0], expected)


@settings(max_examples=20)
@given(st.lists(st.floats(-2, 2).filter(lambda w: abs(w) > 1e-3), min_size=1, max_size=4), st.integers(2, 6))
def test_energy_and_periodogram_follow_from_the_weights(weights: list[float], f: int) -> None:
    """Weights as a filter: covariance is their correlation, and both measures are sums over it."""
    correlation = np.correlate(weights, weights, "full")[len(weights) - 1 :]
    lag = np.pad(correlation, (0, f + 4))
    expected = lag[np.abs(np.subtract.outer(np.arange(f), np.arange(f)))]
    prior = Mix(tuple(weights))
    assert np.abs(prior.covariance(range(f)) - expected).max() < 1e-12
    assert abs(prior.energy(f, 5) - 5 * (f - 1) * 2 * (lag[0] - lag[1])) < 1e-10
    omega = np.linspace(-4, 4, 6).reshape(2, 3)
    power = sum((1 - abs(k) / f) * lag[abs(k)] * np.cos(k * omega) for k in range(1 - f, f))
    assert np.abs(prior.periodogram(omega, range(f)) - power).max() < 1e-12


@pytest.mark.parametrize(("apply_to", "kinds"), [
    ("initial", {Kind.INITIAL}), ("renoise", {Kind.RENOISE}), ("all", set(Kind)),
])
def test_apply_to_leaves_other_kinds_bitwise_iid(apply_to: str, kinds: set[Kind]) -> None:
    prior, chunk = Mix((0.6, 0.8), apply_to=apply_to), Span(0, 3)
    for kind in Kind:
        same = np.array_equal(prior.draw(Key(2, kind, 1), range(3), chunk, (64,)),
                              IID().draw(Key(2, kind, 1), range(3), chunk, (64,)))
        identity = np.array_equal(prior.covariance(range(3), kind=kind), np.eye(3))
        assert same == identity == (kind not in kinds)


def test_batches_and_the_cast_of_a_pipeline_keep_the_numbers() -> None:
    """bfloat16 noise is float32 noise, rounded: a pass in another type starts from the same picture."""
    chunk, white = Chunk(3, 2), [[gaussian(seed, 0, frame, 0, (2, 2, 2)) for frame in (3, 4)] for seed in (7, 8, 7)]
    assert np.array_equal(IID().batch((7, 8, 7), Kind.INITIAL, 0, chunk, (2, 2, 2)), white)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        drawn = KeyedNoise(IID(), (7, 8, 7), (2, 2, 2), torch.empty(0, dtype=dtype)).initial(chunk)
        assert torch.equal(drawn, torch.from_numpy(np.array(white)).to(dtype))


def test_priors_refuse_bad_input() -> None:
    with pytest.raises(ValueError, match="apply_to='init'; allowed: 'initial', 'renoise', 'all'"):
        IID(apply_to="init")
    with pytest.raises(ValueError, match=r"frame 3 is not in the chunk of frames 0\.\.2"):
        IID().draw(Key(0), [2, 3], Span(0, 3), SHAPE)
    for call in (lambda: IID().draw(Key(0), [], Span(0, 3), SHAPE), lambda: IID().covariance([])):
        with pytest.raises(ValueError, match="no frames"):
            call()
    with pytest.raises(ValueError, match="lies in 0 of the chunks"):
        IID().covariance([3], [Span(0, 3)])
    with pytest.raises(ValueError, match="lies in 2 of the chunks"):
        IID().covariance([2], [Span(0, 3), Span(2, 3)])
    with pytest.raises(NotImplementedError, match="NoisePrior needs a recipe"):
        NoisePrior().draw(Key(0), [0], Span(0, 1), SHAPE)
    with pytest.raises(ValueError, match="has no closed form of its spectrum; periodogram"):
        Mix().spectrum(0.0)
    for f, d in ((0, 1), (3, 0)):
        with pytest.raises(ValueError, match="=0 is outside"):
            IID().energy(f, d)
    with pytest.raises(TypeError, match="f=True must be an int"):
        IID().energy(True)


@pytest.mark.parametrize("weights", [{}, {(0, 0): 0.0}, {(0, 0): math.nan}, {(0, 0): math.inf}], ids=repr)
def test_a_recipe_without_usable_weights_is_refused(weights: dict[tuple[int, int], float]) -> None:
    @dataclass(frozen=True)
    class Broken(NoisePrior):
        weights: dict[tuple[int, int], float] = field(default_factory=dict)

        def recipe(self, frame: int, chunk: ChunkLike, key: Key) -> Recipe:
            return self.weights

    for call in (lambda prior: prior.draw(Key(0), [0], Span(0, 1), SHAPE), lambda prior: prior.covariance([0])):
        with pytest.raises(ValueError, match=r"needs (finite )?weights"):
            call(Broken(weights=weights))


def test_overriding_draw_alone_is_refused() -> None:
    with pytest.raises(TypeError, match="Lopsided overrides draw but not covariance"):
        class Lopsided(NoisePrior):  # pyright: ignore[reportUnusedClass]
            def draw(self, key, frames, chunk, shape): ...


@pytest.mark.parametrize("recipe", [None, 3, [(0, 1)], {0: 1.0}, {(0, -1): 1.0}, {(0, 1 << 32): 1.0}, {(0, 0.5): 1.0}])
def test_what_is_no_recipe_is_refused_with_the_frame(recipe: Any) -> None:
    class Broken(IID):
        def recipe(self, *_: Any) -> Any:
            return recipe

    for call in (lambda: Broken().covariance(range(5)), lambda: Broken().draw(Key(0), [4], Span(3, 3), SHAPE)):
        with pytest.raises(ValueError, match=r"gives frame \d the recipe .*; it is a dict of weights by white frame"):
            call()


@pytest.mark.parametrize(("make", "error"), [
    (lambda: ANS(None), TypeError), (lambda: ANS("all"), TypeError), (lambda: Mixed("1"), TypeError),  # pyright: ignore[reportArgumentType]
    (lambda: Mixed(True), TypeError), (lambda: Grouped(weight="0.5"), TypeError), (lambda: Mixed(10**400), ValueError),  # pyright: ignore[reportArgumentType]
])  # fmt: skip
def test_fields_are_numbers(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^(rho|a|weight)"):
        make()


def test_frames_may_come_from_numpy() -> None:
    assert np.array_equal(ANS(-0.5).covariance(np.arange(4)), ANS(-0.5).covariance(range(4)))  # pyright: ignore[reportArgumentType]


def test_energy_across_chunks_is_that_of_their_covariance() -> None:
    chunks = [Span(3 * i, 3) for i in range(4)]
    for prior in (ANS(-0.6), Repeat(), FreeNoise(6, 3), Grouped(2, 0.3)):
        c = prior.covariance(range(12), chunks, seed=4)
        energy = sum(c[u, u] + c[u - 1, u - 1] - 2 * c[u, u - 1] for u in range(1, 12))
        assert prior.energy(12, 5, chunks, seed=4) == pytest.approx(5 * energy, rel=1e-12)
