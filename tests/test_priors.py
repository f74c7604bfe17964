"""Noise priors against their closed forms, each other and, for FreeNoise, diffusers; `test_ans` has those of ANS."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arvid.noise import (
    ANS,
    IID,
    NOISE,
    Constant,
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

SHAPE = (4, 32, 32)
SIGMAS = 6
A = st.floats(0, 10)
F = st.integers(1, 8)
WEIGHT = st.floats(0, 1) | st.sampled_from([0.0, 1.0])
ORDERS = [*itertools.permutations(range(3))]
FREE = FreeNoise(21, 3)
PRIORS = [IID(), ANS(), ANS(-0.5), ANS(0.5, "stream"), Repeat(), Constant(), Grouped(), Mixed(), Mixed(2.0, "chunk"),
          Progressive(), FreeNoise(6, 3)]  # fmt: skip
chi2_5, chi2_35 = 50.69, 110.31  # exceeded with p = 1e-9, for 5 and 35 degrees of freedom


def layout(frames: int, chunk: int, first: int = 0) -> list[Span]:
    """Chunks of a video, the first of `first` frames unless that is 0, and the last as short as it must be."""
    edges = sorted({0, *range(first, frames, chunk), frames})
    return [Span(a, b - a) for a, b in itertools.pairwise(edges)]


def draw(prior: NoisePrior, chunk: Span, shape: tuple[int, ...] = (6,), key: Key = Key(3)) -> np.ndarray:  # noqa: B008
    return prior.draw(key, range(chunk.start, chunk.start + chunk.n), chunk, shape)


def closed(shared: float, f: int) -> np.ndarray:
    """The covariance of frames of variance 1 of which any two share so much."""
    return shared + (1 - shared) * np.eye(f)


# Frames that come again


@pytest.mark.parametrize("chunk", [Span(0, 3), Span(1, 3), Span(30, 2), Span(999, 1)])
def test_repeat_and_constant_have_the_first_frames_again(chunk: Span) -> None:
    first = [gaussian(3, Kind.INITIAL, frame, 0, (6,)) for frame in range(chunk.n)]
    assert np.array_equal(draw(Repeat(), chunk), first)
    assert np.array_equal(draw(Constant(), chunk), [first[0]] * chunk.n)


def test_covariance_of_frames_that_come_again_is_1() -> None:
    chunks = layout(8, 3)
    u, v = np.indices((8, 8))
    assert np.array_equal(Repeat().covariance(range(8), chunks), u % 3 == v % 3)
    assert np.array_equal(Constant().covariance(range(8), chunks), np.ones((8, 8)))
    chunks, place = layout(8, 3, first=1), np.array([0, 0, 1, 2, 0, 1, 2, 0])
    assert np.array_equal(Repeat().covariance(range(8), chunks), place[:, None] == place)


@given(F, st.integers(0, 1000))
def test_iid_is_the_stream_of_white_frames_itself(f: int, start: int) -> None:
    found = draw(IID(), Span(start, f))
    assert np.array_equal(found, [gaussian(3, Kind.INITIAL, frame, 0, (6,)) for frame in range(start, start + f)])
    assert np.array_equal(IID().covariance(range(start, start + f)), np.eye(f))
    assert np.array_equal(IID().spectrum([0.0, 1.0]), [1, 1])


# Shared parts


@settings(max_examples=60)
@given(A, F, st.integers(1, 4))
def test_mixed_frames_share_a_squared_over_one_plus_a_squared(a: float, f: int, chunk: int) -> None:
    shared, chunks = a**2 / (1 + a**2), layout(f, chunk)
    assert np.abs(Mixed(a).covariance(range(f), chunks) - closed(shared, f)).max() < 1e-12
    place = np.arange(f) // chunk
    within = np.where(place[:, None] == place, closed(shared, f), 0)
    assert np.abs(Mixed(a, "chunk").covariance(range(f), chunks) - within).max() < 1e-12


@settings(max_examples=60)
@given(WEIGHT, st.integers(1, 5), F, st.integers(0, 20), st.integers(1, 4))
def test_groups_share_their_weight_whatever_the_chunks(w: float, size: int, f: int, start: int, chunk: int) -> None:
    chunks, frames = layout(start + f, chunk), range(start, start + f)
    group = np.array(frames) // size
    expected = np.where(group[:, None] == group, closed(w, f), 0)
    assert np.abs(Grouped(size, w).covariance(frames, chunks) - expected).max() < 1e-12


@settings(max_examples=60)
@given(A, F, st.integers(1, 4))
def test_progressive_frames_have_powers_of_a_over_the_root(a: float, f: int, chunk: int) -> None:
    rho, lag = a / math.sqrt(1 + a**2), np.abs(np.subtract.outer(np.arange(f), np.arange(f)))
    chunks = layout(f, chunk)
    assert np.abs(Progressive(a).covariance(range(f), chunks) - rho**lag).max() < 1e-12
    place = np.arange(f) // chunk
    within = np.where(place[:, None] == place, rho**lag, 0)
    assert np.abs(Progressive(a, "chunk").covariance(range(f), chunks) - within).max() < 1e-12


@settings(max_examples=30)
@given(A, st.sampled_from(["chunk", "stream"]), st.integers(0, 6))
def test_progressive_is_ans_of_its_rho(a: float, scope, start: int) -> None:
    prior, ans, chunk = Progressive(a, scope), ANS(a / math.hypot(1, a), scope), Span(start, 3)
    assert np.array_equal(draw(prior, chunk), draw(ans, chunk))
    omega = np.linspace(0, 3, 5)
    assert np.array_equal(prior.spectrum(omega), ans.spectrum(omega))
    assert prior.random_access == ans.random_access


@pytest.mark.parametrize("chunk", [Span(0, 3), Span(9, 3), Span(30, 2)])
@pytest.mark.parametrize("scope", ["chunk", "stream"])
@pytest.mark.parametrize("zero", [0, 0.0, -0.0])
def test_what_shares_nothing_is_iid_bit_for_bit(chunk: Span, scope, zero: float) -> None:
    for prior in (Mixed(zero, scope), Progressive(zero, scope), Grouped(3, zero)):
        assert np.array_equal(draw(prior, chunk), draw(IID(), chunk))


def test_groups_that_share_all_are_one_frame_each() -> None:
    z = draw(Grouped(3, 1.0), Span(0, 7))
    assert all(np.array_equal(z[frame], z[frame // 3 * 3]) for frame in range(7))
    assert not np.array_equal(z[0], z[3])


# FreeNoise


def ancestors(prior: FreeNoise, chunk: Span, seed: int = 0) -> list[int]:
    """The frame whose noise each frame of a chunk has."""
    found = [prior.recipe(frame, chunk, Key(seed)) for frame in range(chunk.start, chunk.start + chunk.n)]
    assert all(recipe == {(0, index): 1.0} for recipe in found for _, index in recipe)
    return [index for recipe in found for _, index in recipe]


@settings(max_examples=60)
@given(st.integers(1, 5), st.integers(1, 4), st.booleans(), st.integers(0, 99), st.data())
def test_any_window_of_the_horizon_has_each_base_frame_once(
    chunk: int, turns: int, alone: bool, seed: int, data: st.DataObject
) -> None:
    """Where the first frame is a chunk of its own, it stands outside."""
    first = int(alone and chunk > 1)
    horizon, prior = turns * chunk, FreeNoise(turns * chunk, chunk)
    begin = data.draw(st.integers(0, 5 * turns))
    window = [Span(first + chunk * (begin + i), chunk) for i in range(turns)]
    base = [index for part in window for index in ancestors(prior, part, seed)]
    assert sorted(base) == [*range(first, first + horizon)]
    if begin == 0:
        assert base == sorted(base)
        assert not first or ancestors(prior, Span(0, 1), seed) == [0]


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(0, 60), st.data())
def test_a_short_last_chunk_begins_as_the_whole_one(chunk: int, index: int, data: st.DataObject) -> None:
    n, prior = data.draw(st.integers(1, chunk)), FreeNoise(4 * chunk, chunk)
    whole = ancestors(prior, Span(index * chunk, chunk), 7)
    assert ancestors(prior, Span(index * chunk, n), 7) == whole[:n]


def test_frames_of_one_ancestor_are_bitwise_equal_and_the_covariance_says_so() -> None:
    chunks, prior = layout(32, 3, first=1), FreeNoise(9, 3)
    z = np.concatenate([draw(prior, chunk, key=Key(5)) for chunk in chunks])
    ancestor = np.array([index for chunk in chunks for index in ancestors(prior, chunk, 5)])
    assert np.array_equal(z, z[ancestor])
    equal = (z[:, None] == z).all(-1)
    assert np.array_equal(prior.covariance(range(32), chunks, seed=5), equal)
    assert not np.array_equal(prior.covariance(range(32), chunks, seed=6), equal)
    assert np.array_equal(draw(prior, Span(1, 3)), draw(IID(), Span(1, 3)))


@pytest.fixture(scope="module")
def orders() -> list[tuple[int, ...]]:
    """The orders of 6,000 chunks after the first turn."""
    return [tuple(i % 3 for i in ancestors(FREE, Span(3 * c, 3), 1)) for c in range(7, 6007)]


def test_orders_are_uniform(orders: list[tuple[int, ...]]) -> None:
    counts = Counter(orders)
    assert sum((counts[order] - 1000) ** 2 / 1000 for order in ORDERS) <= chi2_5


@pytest.mark.parametrize("apart", [1, 7], ids=["neighbours", "of a line"])
def test_orders_of_chunks_are_independent(orders: list[tuple[int, ...]], apart: int) -> None:
    pairs = [(orders[c], orders[c + apart]) for c in range(len(orders) - apart) if c // apart % 2 == 0]
    counts, each = Counter(pairs), len(pairs) / 36
    assert len(pairs) >= 2990
    assert sum((counts[pair] - each) ** 2 / each for pair in itertools.product(ORDERS, ORDERS)) <= chi2_35


def diffusers_ancestors(frames: int, seed: int) -> list[int]:
    """Ancestors of frames in diffusers' shuffling, by the values it copies; a stride of 3 and a context of 21."""
    utils = pytest.importorskip("diffusers.pipelines.free_noise_utils")
    mixin = utils.AnimateDiffFreeNoiseMixin()
    mixin.vae_scale_factor, mixin._free_noise_noise_type = 1, "shuffle_context"
    mixin._free_noise_context_length, mixin._free_noise_context_stride = 21, 3
    generator = torch.Generator().manual_seed(seed)
    z = mixin._prepare_latents_free_noise(1, 1, frames, 1, 1, torch.float64, torch.device("cpu"), generator)
    values = z.flatten().tolist()
    base = {value: frame for frame, value in enumerate(values[:21])}
    return [base[value] for value in values]


def test_chunks_have_the_ancestors_of_diffusers() -> None:
    theirs = diffusers_ancestors(65, 0)  # the last chunk has 2 frames
    for chunk in layout(65, 3):
        own, other = ancestors(FREE, chunk), theirs[chunk.start : chunk.start + chunk.n]
        whole = range(chunk.start % 21, chunk.start % 21 + 3)
        assert len(set(own)) == len(set(other)) == chunk.n
        assert {*own, *other} <= {*whole}
        assert chunk.n < 3 or sorted(own) == sorted(other) == [*whole]


def test_orders_have_the_law_of_diffusers(orders: list[tuple[int, ...]]) -> None:
    theirs = diffusers_ancestors(21 + 3 * len(orders), 0)[21:]
    a, b = Counter(tuple(i % 3 for i in part) for part in zip(*[iter(theirs)] * 3, strict=True)), Counter(orders)
    assert a.total() == b.total() == 6000
    assert sum((a[order] - b[order]) ** 2 / (a[order] + b[order]) for order in ORDERS) <= chi2_5


# All


@pytest.mark.parametrize(("prior", "energy"), [
    (IID(), 4.0), (Constant(), 0.0), (Repeat(), 4.0), (Grouped(3, 0.25), 3.0), (Grouped(2, 0.5), 3.0),
    (Mixed(1.0), 2.0), (Progressive(0.75), 1.6), (FreeNoise(6, 3), 4.0),
])  # fmt: skip
def test_energy_of_motion_in_three_frames(prior: NoisePrior, energy: float) -> None:
    """2 (1 - covariance) for each of the two steps: seen, too, within six standard errors."""
    d = math.prod(SHAPE)
    assert abs(prior.energy(3, d) - energy * d) < 1e-9 * d
    a = np.array([[1, -1, 0], [-1, 2, -1], [0, -1, 1]]) @ prior.covariance(range(3))
    seen = (np.diff(draw(prior, Span(0, 3), SHAPE).astype(float), axis=0) ** 2).sum()
    assert abs(seen - energy * d) <= SIGMAS * math.sqrt(2 * d * np.trace(a @ a)) + 1e-9 * d


GOLDEN = {  # of seed 2^40 + 7, frames 6..8, initial; and of seed 3, frames 9..11, re-noise 2
    "iid": ((-1.4577345, 1.780942, -0.7602667, -1.1070892, -0.9040141, -0.7100053),
            (-1.6675802, 0.7249727, -0.086036, -0.2700811, -0.4372624, -0.3556664)),
    "ans": ((-1.4577345, 1.780942, 1.4577345, -1.780942, -1.4577345, 1.780942),
            (-1.6675802, 0.7249727, 1.6675802, -0.7249727, -1.6675802, 0.7249727)),
    "ans -0.5": ((-1.4577345, 1.780942, 0.070457, -1.8492383, -0.8181276, 0.3097366),
                 (-1.6675802, 0.7249727, 0.7592807, -0.5963835, -0.7583207, -0.0098244)),
    "ans 0.5 stream": ((-1.3571174, 1.6364915, -1.3369689, -0.1405215, -1.4513836, -0.6851434),
                       (-0.8982947, 0.1760224, -0.5236567, -0.1458859, -0.6405087, -0.3809591)),
    "repeat": ((1.166329, 0.2986875, -0.2704852, -0.3531768, 0.5946401, 1.8017057),
               (-0.7875992, 0.7260199, 1.0467297, 0.7503028, -0.5321953, -1.6464279)),
    "constant": ((1.166329, 0.2986875, 1.166329, 0.2986875, 1.166329, 0.2986875),
                 (-0.7875992, 0.7260199, -0.7875992, 0.7260199, -0.7875992, 0.7260199)),
    "grouped": ((-1.086834, 2.2469392, -0.5936498, 0.2047927, -0.6952946, 0.4855734),
                (-0.72724, 0.1064853, 0.3910806, -0.597124, 0.142726, -0.657642)),
    "mixed": ((0.5222048, 1.2969943, 1.015389, -0.745152, 0.9137442, -0.4643713),
              (-1.7364507, 1.3490496, -0.6181301, 0.6454402, -0.8664846, 0.5849223)),
    "mixed 2 chunk": ((-1.5016515, 1.468608, -1.1897345, 0.1770412, -1.2540203, 0.3546225),
                      (-1.0696003, 0.70647, -0.3623123, 0.2614684, -0.5193855, 0.2231935)),
    "progressive": ((-0.1657734, 1.1699953, -0.488274, 0.5513703, -0.841013, 0.1756365),
                    (-0.2426776, 0.0109821, -0.255534, -0.1109613, -0.4241062, -0.2583056)),
    "freenoise": ((0.5946401, 1.8017057, 1.166329, 0.2986875, -0.2704852, -0.3531768),
                  (0.7821724, 0.9147831, -0.4925931, 0.4249617, -0.1575515, 0.2826188)),
}  # fmt: skip


@pytest.mark.parametrize(("prior", "golden"), zip(PRIORS, GOLDEN.values(), strict=True), ids=GOLDEN)
def test_draws_stay_what_they_are(prior: NoisePrior, golden: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    initial = draw(prior, Span(6, 3), (2,), Key((1 << 40) + 7))
    renoise = draw(replace(prior, apply_to="all"), Span(9, 3), (2,), Key(3, Kind.RENOISE, 2))
    for seen, expected in zip((initial, renoise), golden, strict=True):
        np.testing.assert_allclose(seen.ravel(), expected, rtol=0, atol=3e-7)


def test_orders_stay_what_they_are() -> None:
    found = [ancestors(FreeNoise(6, 3), Span(3 * c, 3), 5) for c in range(10)]
    assert found == [[0, 1, 2], [3, 4, 5], [2, 1, 0], [4, 3, 5], [0, 1, 2], [5, 4, 3], [1, 0, 2], [4, 3, 5], [2, 0, 1],
                     [5, 3, 4]]  # fmt: skip


@pytest.mark.parametrize("prior", [*PRIORS, Mixed(scope="chunk", apply_to="all"), FreeNoise()], ids=str)
def test_they_round_trip(prior: NoisePrior) -> None:
    spec = NOISE.spec(prior)
    assert NOISE.build(spec) == prior
    assert type(NOISE.build(spec["name"])) is type(prior)


@pytest.mark.slow
@pytest.mark.parametrize("prior", PRIORS, ids=str)
def test_draws_at_full_size_have_their_moments(prior: NoisePrior) -> None:
    """Two chunks of frames as large as a real model's, the second past FreeNoise's horizon."""
    shape, chunks, frames = (16, 60, 104), [Span(3, 3), Span(9, 3)], [3, 4, 5, 9, 10, 11]
    x = np.concatenate([draw(prior, chunk, shape, Key(8)) for chunk in chunks]).reshape(6, -1).astype(float)
    n, c = x.shape[1], prior.covariance(frames, chunks, seed=8)
    assert (np.abs(x @ x.T / n - c) <= SIGMAS * np.sqrt((np.outer(c.diagonal(), c.diagonal()) + c**2) / n)).all()
    for power, moment, variance in ((1, 0, 1), (3, 0, 15), (4, 3, 96)):
        assert (np.abs((x**power).mean(1) - moment) <= SIGMAS * math.sqrt(variance / n)).all()
    for row in np.sort(x, 1):
        normal, steps = torch.special.ndtr(torch.from_numpy(row)).numpy(), np.arange(n + 1) / n
        distance = max((normal - steps[:-1]).max(), (steps[1:] - normal).max())
        assert distance <= math.sqrt(math.log(2 / 1e-9) / (2 * n))  # Dvoretzky-Kiefer-Wolfowitz at p = 1e-9


# Bad values


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (Mixed, "is at least 0, and finite"), (Progressive, "is at least 0, and finite"),
        ((lambda bad: Grouped(weight=bad)), r"the share of what a group has in common lies in \[0, 1\]"),
    ],
    ids=["mixed", "progressive", "grouped"],
)  # fmt: skip
@pytest.mark.parametrize("bad", [-0.01, math.inf, -math.inf, math.nan])
def test_strengths_out_of_range_raise(make, match: str, bad: float) -> None:
    with pytest.raises(ValueError, match=match):
        make(bad)


@pytest.mark.parametrize("bad", [0, -3, True, 3.0, "3"])
def test_sizes_are_whole_numbers_from_1(bad) -> None:
    for make, match in ((Grouped, "size=.*a group is a whole number of frames, at least 1"),
                        (FreeNoise, "train_horizon=.*give a whole number of frames, at least 1, or None"),
                        (lambda n: FreeNoise(chunk=n), "chunk=.*give a whole number of frames")):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            make(bad)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        ((lambda: Grouped(weight=1.01)), r"weight=1\.01: .* \[0, 1\]"),
        ((lambda: Mixed(scope="video")), "scope='video'; allowed: 'chunk', 'stream'"),  # pyright: ignore[reportArgumentType]
        ((lambda: Progressive(scope="video")), "scope='video'; allowed"),  # pyright: ignore[reportArgumentType]
        ((lambda: FreeNoise(21, 4)), "21 is no multiple of chunk=4: .* use noise train_horizon=20 or 24"),
        ((lambda: FreeNoise(2, 3)), "use noise train_horizon=3$"),
        ((lambda: FreeNoise().covariance(range(3))), "None means the card's train_horizon"),
        ((lambda: FREE.covariance(range(4))), "got a chunk of 4 frames: give chunks of at most 3"),
        ((lambda: Constant().spectrum(0.0)), "Constant.* has no closed form of its spectrum"),
        ((lambda: FREE.energy(4)), "at most 3"),
        ((lambda: IID(apply_to="init")), "apply_to='init'; allowed"),
    ],
)  # fmt: skip
def test_other_bad_values_raise_with_what_is_allowed(make, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
