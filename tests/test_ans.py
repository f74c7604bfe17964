"""Antiphase noise sampling against FLEX's equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arvid.noise import ANS, IID, NOISE, Key, Kind, Span

RHO = st.floats(-1, 1) | st.sampled_from([-1.0, 0.0, 1.0])
SHAPE = (4, 6, 8)


@settings(max_examples=50, deadline=None)
@given(RHO, st.integers(1, 7), st.integers(0, 50))
def test_covariance_within_a_chunk_and_none_across(rho: float, n: int, start: int) -> None:
    chunks = [Span(start, n), Span(start + n, n)]
    found = ANS(rho).covariance(range(start, start + 2 * n), chunks)
    one = np.array([[rho ** abs(u - v) for v in range(n)] for u in range(n)])
    assert np.abs(found - np.block([[one, np.zeros((n, n))], [np.zeros((n, n)), one]])).max() < 1e-12


@settings(max_examples=20, deadline=None)
@given(RHO, st.integers(1, 12), st.integers(1, 4))
def test_a_stream_is_correlated_across_chunks(rho: float, n: int, size: int) -> None:
    chunks = [Span(start, min(size, n - start)) for start in range(0, n, size)]
    expected = [[rho ** abs(u - v) for v in range(n)] for u in range(n)]
    assert np.abs(ANS(rho, "stream").covariance(range(n), chunks) - expected).max() < 1e-12


@settings(max_examples=20, deadline=None)
@given(RHO, st.integers(2, 6))
def test_the_energy_of_motion_is_equation_14(rho: float, n: int) -> None:
    """E sum_u |z_u - z_{u-1}|^2 = 2 (f - 1) (1 - rho) d, here for d = 1."""
    c = ANS(rho).covariance(range(n))
    energy = sum(c[u, u] + c[u - 1, u - 1] - 2 * c[u, u - 1] for u in range(1, n))
    assert abs(energy - 2 * (n - 1) * (1 - rho)) < 1e-12


@pytest.mark.parametrize("rho", [-1.0, -0.7, 0.0, 0.4, 1.0])
def test_drawn_energy_is_within_six_standard_errors(rho: float) -> None:
    key, chunk, shape = Key(5), Span(6, 3), (16, 60, 104)
    z = ANS(rho).draw(key, range(6, 9), chunk, shape).astype(float)
    d = math.prod(shape)
    difference = np.array([[-1, 1, 0], [0, -1, 1]])
    c = difference @ ANS(rho).covariance(range(3)) @ difference.T
    spread = math.sqrt(2 * (c**2).sum() * d)  # of a sum of squares of Gaussians with covariance c
    assert abs(((z[1:] - z[:-1]) ** 2).sum() - 4 * (1 - rho) * d) <= 6 * spread + 1e-9 * d


@pytest.mark.parametrize("scope", ["chunk", "stream"])
@pytest.mark.parametrize("start", [0, 6])
def test_the_special_values_are_exact(scope, start: int) -> None:
    chunk, frames = Span(start, 4), range(start, start + 4)
    z, same, white = (prior.draw(Key(3), frames, chunk, SHAPE) for prior in (ANS(-1, scope), ANS(1, scope), IID()))
    assert np.array_equal(z[1], -z[0])
    assert np.array_equal(z[2], z[0])
    assert np.array_equal(z[3], z[1])
    assert all(np.array_equal(frame, same[0]) for frame in same)
    assert np.array_equal(ANS(0, scope).draw(Key(3), frames, chunk, SHAPE), white)
    first = white[0] if scope == "chunk" else IID().draw(Key(3), [0], Span(0, 1), SHAPE)[0]
    assert np.array_equal(same[0], first)


def test_draws_follow_the_recursion() -> None:
    rho, key, chunk = -0.6, Key(9), Span(3, 5)
    white = IID().draw(key, range(3, 8), chunk, SHAPE).astype(float)
    z = [white[0]]
    for e in white[1:]:
        z.append(rho * z[-1] + math.sqrt(1 - rho**2) * e)
    assert np.abs(ANS(rho).draw(key, range(3, 8), chunk, SHAPE) - np.array(z)).max() < 1e-5


def test_only_the_initial_noise_follows_it_unless_asked() -> None:
    chunk, frames = Span(0, 3), range(3)
    for apply_to, kinds in (("initial", {Kind.INITIAL}), ("renoise", {Kind.RENOISE}), ("all", set(Kind))):
        for kind in Kind:
            key = Key(1, kind, 2)
            same = np.array_equal(ANS(-1, apply_to=apply_to).draw(key, frames, chunk, SHAPE),
                                  IID().draw(key, frames, chunk, SHAPE))  # fmt: skip
            assert same == (kind not in kinds)


@pytest.mark.parametrize("bad", [{"rho": 1.01}, {"rho": -1.01}, {"rho": math.nan}, {"scope": "video"}])
def test_bad_values_raise_with_what_is_allowed(bad: dict) -> None:
    with pytest.raises(ValueError, match=r"lies in \[-1, 1\]|allowed: 'chunk', 'stream'"):
        ANS(**bad)


def test_it_round_trips() -> None:
    for prior in (ANS(), ANS(rho=-0.5, scope="stream", apply_to="all")):
        assert NOISE.build(NOISE.spec(prior)) == prior
