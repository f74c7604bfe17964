"""Keyed noise: the stream itself, seeds, recipes, and draws and covariances that follow from them."""

from __future__ import annotations

import itertools
import math
from dataclasses import FrozenInstanceError, dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arvid.noise import IID, NOISE, Domain, Key, Kind, NoisePrior, Recipe, Span, gaussian, seeds
from arvid.noise.base import ChunkLike

SHAPE = (4, 32, 32)
N = math.prod(SHAPE)
SIGMAS = 6
SEEDS = st.integers(-(1 << 63), (1 << 64) - 1)
WORDS = st.integers(0, (1 << 32) - 1)


@dataclass(frozen=True)
class AR1(NoisePrior):
    """A toy prior: correlation rho ** |u - v| within a chunk, chunks independent."""

    rho: float = 0.0

    def recipe(self, frame: int, chunk: ChunkLike, key: Key) -> Recipe:
        u = frame - chunk.start
        innovation = math.sqrt(1 - self.rho**2)
        return {(Domain.BASE, chunk.start + v): self.rho ** (u - v) * (innovation if v else 1.0) for v in range(u + 1)}


@dataclass(frozen=True)
class Shuffled(NoisePrior):
    """A toy prior: every chunk is a keyed permutation of the first chunk's noise."""

    def recipe(self, frame: int, chunk: ChunkLike, key: Key) -> Recipe:
        return {(Domain.BASE, key.permutation(chunk.start, chunk.n)[frame - chunk.start]): 1.0}


def chunks_of(size: int, count: int) -> list[Span]:
    return [Span(size * i, size) for i in range(count)]


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


@pytest.mark.parametrize("prior", [IID(), AR1(rho=-0.7), Shuffled()], ids=repr)
@pytest.mark.parametrize("kind", Kind)
def test_draws_do_not_depend_on_order_or_company(prior: NoisePrior, kind: Kind) -> None:
    key, chunks = Key(42, kind, 1), chunks_of(3, 20)
    whole = np.concatenate([prior.draw(key, range(c.start, c.start + c.n), c, SHAPE) for c in chunks])
    assert whole.dtype == np.float32
    assert whole.shape == (60, *SHAPE)
    for frame in np.random.Generator(np.random.PCG64(0)).permutation(60).tolist():
        alone = prior.draw(key, [frame], chunks[frame // 3], SHAPE)
        assert np.array_equal(alone[0], whole[frame])
    backwards = prior.draw(key, [59, 57], chunks[-1], SHAPE)
    assert np.array_equal(backwards, whole[[59, 57]])


def test_iid_draws_the_stream_itself() -> None:
    cold = IID().draw(Key(9), [1000], Span(999, 3), SHAPE)
    assert np.array_equal(cold[0], gaussian(9, Kind.INITIAL, 1000, 0, SHAPE))
    for size in (1, 3, 7):
        drawn = [IID().draw(Key(9), range(c.start, c.start + c.n), c, (8,)) for c in chunks_of(size, 21 // size)]
        assert np.array_equal(np.concatenate(drawn), [gaussian(9, 0, frame, 0, (8,)) for frame in range(21)])


@given(st.integers(0, 40), st.integers(1, 8))
def test_iid_covariance_is_the_identity(start: int, n: int) -> None:
    covariance = IID().covariance(range(start, start + n))
    assert covariance.dtype == np.float64
    assert np.array_equal(covariance, np.eye(n))


@given(st.floats(-1, 1), st.integers(1, 8))
def test_covariance_of_ar1_is_the_formula(rho: float, n: int) -> None:
    covariance = AR1(rho=rho).covariance(range(n))
    u = np.arange(n)
    np.testing.assert_allclose(covariance, np.power(float(rho), np.abs(u[:, None] - u)), rtol=0, atol=1e-12)
    assert np.linalg.eigvalsh(covariance).min() >= -1e-12


def test_covariance_restarts_at_each_chunk() -> None:
    covariance = AR1(rho=0.5).covariance(range(5), [Span(0, 3), Span(3, 2)])
    within = np.array([[1, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 1]])
    np.testing.assert_allclose(covariance, np.block([[within, np.zeros((3, 2))], [np.zeros((2, 3)), within[:2, :2]]]))


@pytest.mark.parametrize("rho", [-1.0, -0.5, 0.0, 0.8, 1.0])
def test_draws_follow_the_recursion_and_the_covariance(rho: float) -> None:
    prior, chunk = AR1(rho=rho), Span(6, 4)
    frames = range(6, 10)
    z = prior.draw(Key(1), frames, chunk, SHAPE)
    expected = gaussian(1, 0, 6, 0, SHAPE).astype(np.float64)
    for u, frame in enumerate(frames):
        if u:
            expected = rho * expected + math.sqrt(1 - rho**2) * gaussian(1, 0, frame, 0, SHAPE)
        np.testing.assert_allclose(z[u], expected, rtol=0, atol=2e-6)
    measured = z.reshape(4, -1).astype(np.float64) @ z.reshape(4, -1).T / N
    exact = prior.covariance(frames, [chunk])
    deviation = np.sqrt((np.outer(exact.diagonal(), exact.diagonal()) + exact**2) / N)
    assert (np.abs(measured - exact) <= SIGMAS * deviation).all()


def test_single_weights_are_exact() -> None:
    chunk = Span(3, 3)
    white = gaussian(4, 0, 3, 0, SHAPE)
    assert np.array_equal(AR1(rho=1.0).draw(Key(4), range(3, 6), chunk, SHAPE), [white, white, white])
    assert np.array_equal(AR1(rho=-1.0).draw(Key(4), range(3, 6), chunk, SHAPE), [white, -white, white])
    iid = IID().draw(Key(4), range(3, 6), chunk, SHAPE)
    for zero in (0.0, -0.0):
        assert np.array_equal(AR1(rho=zero).draw(Key(4), range(3, 6), chunk, SHAPE), iid)


def test_shuffled_frames_keep_their_ancestor_and_the_covariance_says_so() -> None:
    prior, chunks = Shuffled(), chunks_of(3, 4)
    frames = range(12)
    z = np.concatenate([prior.draw(Key(5), range(c.start, c.start + 3), c, SHAPE) for c in chunks])
    equal = [[float(np.array_equal(z[u], z[v])) for v in frames] for u in frames]
    assert np.array_equal(prior.covariance(frames, chunks, seed=5), equal)
    assert not np.array_equal(prior.covariance(frames, chunks, seed=6), equal)


@pytest.mark.parametrize(("apply_to", "kinds"), [
    ("initial", {Kind.INITIAL}), ("renoise", {Kind.RENOISE}), ("all", set(Kind)),
])
def test_apply_to_leaves_other_kinds_bitwise_iid(apply_to: str, kinds: set[Kind]) -> None:
    prior, chunk = AR1(apply_to=apply_to, rho=-0.5), Span(0, 3)
    for kind in Kind:
        same = np.array_equal(prior.draw(Key(2, kind, 1), range(3), chunk, (64,)),
                              IID().draw(Key(2, kind, 1), range(3), chunk, (64,)))
        identity = np.array_equal(prior.covariance(range(3), kind=kind), np.eye(3))
        assert same == identity == (kind not in kinds)


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


@pytest.mark.parametrize("weights", [{}, {(0, 0): 0.0}, {(0, 0): math.nan}, {(0, 0): math.inf}], ids=repr)
def test_a_recipe_without_usable_weights_is_refused(weights: dict[tuple[int, int], float]) -> None:
    @dataclass(frozen=True)
    class Broken(NoisePrior):
        weights: dict[tuple[int, int], float] = field(default_factory=dict)

        def recipe(self, frame: int, chunk: ChunkLike, key: Key) -> Recipe:
            return self.weights

    for call in (lambda prior: prior.draw(Key(0), [0], Span(0, 1), SHAPE), lambda prior: prior.covariance([0])):
        with pytest.raises(ValueError, match="finite weights, not all 0"):
            call(Broken(weights=weights))


def test_overriding_draw_alone_is_refused() -> None:
    with pytest.raises(TypeError, match="Lopsided overrides draw but not covariance"):
        class Lopsided(NoisePrior):  # pyright: ignore[reportUnusedClass]
            def draw(self, key, frames, chunk, shape): ...


def test_iid_is_registered() -> None:
    assert NOISE.build("iid") == IID()
    assert NOISE.spec(IID()) == {"name": "iid"}
    assert NOISE.build({"name": "iid", "apply_to": "all"}) == IID(apply_to="all")
