"""Antiphase noise sampling against FLEX's equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arvid.noise import ANS, IID, Key, Span

RHO = st.floats(-1, 1) | st.sampled_from([-1.0, 0.0, 1.0])
SHAPE = (4, 6, 8)


@settings(max_examples=50)
@given(RHO, st.integers(1, 7), st.integers(0, 50))
def test_covariance_within_a_chunk_and_none_across(rho: float, n: int, start: int) -> None:
    chunks = [Span(start, n), Span(start + n, n)]
    found = ANS(rho).covariance(range(start, start + 2 * n), chunks)
    one = np.array([[rho ** abs(u - v) for v in range(n)] for u in range(n)])
    assert np.abs(found - np.block([[one, np.zeros((n, n))], [np.zeros((n, n)), one]])).max() < 1e-12


@settings(max_examples=20)
@given(RHO, st.integers(1, 12), st.integers(1, 4))
def test_a_stream_is_correlated_across_chunks(rho: float, n: int, size: int) -> None:
    chunks = [Span(start, min(size, n - start)) for start in range(0, n, size)]
    expected = [[rho ** abs(u - v) for v in range(n)] for u in range(n)]
    assert np.abs(ANS(rho, "stream").covariance(range(n), chunks) - expected).max() < 1e-12


@settings(max_examples=30)
@given(RHO, RHO, st.integers(2, 6), st.integers(1, 9), st.sampled_from(["chunk", "stream"]))
def test_energy_of_motion_is_equation_14_and_falls_with_rho(rho: float, other: float, f: int, d: int, scope) -> None:
    """E sum_u |z_u - z_{u-1}|^2 = 2 (f - 1) (1 - rho) d."""
    energy = ANS(rho, scope).energy(f, d)
    assert abs(energy - 2 * (f - 1) * (1 - rho) * d) < 1e-11
    if other > rho + 1e-9:
        assert ANS(other, scope).energy(f, d) < energy
    assert ANS(rho, scope).energy(1, d) == 0


@pytest.mark.parametrize("rho", [-1.0, -0.7, 0.0, 0.4, 1.0])
@pytest.mark.parametrize("f", [2, 3, 5])
def test_drawn_energy_is_within_six_standard_errors(rho: float, f: int) -> None:
    """Its variance is 2 d tr((A C)^2), of the quadratic form A = D^T D of differences D."""
    shape, frames = (4, 32, 32), range(6, 6 + f)
    z = ANS(rho).draw(Key(5), frames, Span(6, f), shape).astype(float)
    d, difference = math.prod(shape), np.diff(np.eye(f), axis=0)
    a, c = difference.T @ difference, ANS(rho).covariance(range(f))
    spread = math.sqrt(2 * d * np.trace(a @ c @ a @ c))
    assert abs((np.diff(z, axis=0) ** 2).sum() - ANS(rho).energy(f, d)) <= 6 * spread + 1e-9 * d


OMEGA = np.linspace(0, 2 * np.pi, 4096, endpoint=False)  # the trapezoid rule over a turn is the mean of these


@settings(max_examples=30)
@given(st.floats(-0.98, 0.98))
def test_the_spectrum_is_equation_15(rho: float) -> None:
    """Its mean is the variance, 1; with 2 (1 - cos omega), the power of a difference, that of the energy (Parseval)."""
    spectrum = ANS(rho).spectrum(OMEGA)
    assert spectrum.shape == OMEGA.shape
    assert abs(spectrum.mean() - 1) < 1e-12
    assert abs((2 * (1 - np.cos(OMEGA)) * spectrum).mean() - ANS(rho).energy(2)) < 1e-12
    for lag in (1, 2, 5):
        assert abs((np.cos(lag * OMEGA) * spectrum).mean() - rho**lag) < 1e-12
    np.testing.assert_allclose(ANS(rho).spectrum([0, np.pi]), [(1 + rho) / (1 - rho), (1 - rho) / (1 + rho)])


@pytest.mark.parametrize(("rho", "where"), [(1.0, "0"), (-1.0, "pi")])
def test_where_all_power_is_at_one_frequency_there_is_no_density(rho: float, where: str) -> None:
    with pytest.raises(ValueError, match=f"all power lies at omega = {where}, which has no density; use periodogram"):
        ANS(rho).spectrum(OMEGA)
    power = ANS(rho, "stream").periodogram([0, np.pi], range(64))
    np.testing.assert_allclose(power, [64, 0] if rho > 0 else [0, 64], atol=1e-9)


def test_three_antiphase_frames_keep_a_third_at_frequency_0() -> None:
    """z, -z, z add up to z: an odd chunk has some power at 0."""
    np.testing.assert_allclose(ANS(-1).periodogram([0, np.pi], range(3)), [1 / 3, 3], atol=1e-12)


@pytest.mark.parametrize("rho", [-0.8, -0.3, 0.0, 0.5])
@pytest.mark.parametrize("f", [16, 128])
def test_the_periodogram_of_a_long_stream_tends_to_the_spectrum(rho: float, f: int) -> None:
    """They differ by the lags k < f, weighed by k / f, and by the lags beyond."""
    seen = ANS(rho, "stream").periodogram(OMEGA[::64], range(f))
    r = abs(rho)
    bound = 2 * sum(r**k * min(1, k / f) for k in range(1, 20 * f))
    assert np.abs(seen - ANS(rho).spectrum(OMEGA[::64])).max() <= bound + 1e-9
    assert bound < 45 / f


@pytest.mark.parametrize("scope", ["chunk", "stream"])
@pytest.mark.parametrize("start", [0, 6])
def test_the_special_values_are_exact(scope, start: int) -> None:
    chunk, frames = Span(start, 4), range(start, start + 4)
    z, same, white = (prior.draw(Key(3), frames, chunk, SHAPE) for prior in (ANS(-1, scope), ANS(1, scope), IID()))
    assert np.array_equal(z[1], -z[0])
    assert np.array_equal(z[2], z[0])
    assert np.array_equal(z[3], z[1])
    assert all(np.array_equal(frame, same[0]) for frame in same)
    for zero in (0, 0.0, -0.0):
        assert np.array_equal(ANS(zero, scope).draw(Key(3), frames, chunk, SHAPE), white)
    first = white[0] if scope == "chunk" else IID().draw(Key(3), [0], Span(0, 1), SHAPE)[0]
    assert np.array_equal(same[0], first)


@pytest.mark.parametrize("rho", [-0.6, 0.8])
@pytest.mark.parametrize("scope", ["chunk", "stream"])
def test_draws_follow_the_recursion(rho: float, scope) -> None:
    key, chunk = Key(9), Span(3, 5)
    white = IID().draw(key, range(8), Span(0, 8), SHAPE).astype(float)[3 if scope == "chunk" else 0 :]
    z = [white[0]]
    for e in white[1:]:
        z.append(rho * z[-1] + math.sqrt(1 - rho**2) * e)
    assert np.abs(ANS(rho, scope).draw(key, range(3, 8), chunk, SHAPE) - np.array(z[-5:])).max() < 1e-5


@pytest.mark.parametrize("bad", [{"rho": 1.01}, {"rho": -1.01}, {"rho": math.nan}, {"rho": math.inf},
                                 {"scope": "video"}, {"scope": None}])
def test_bad_values_raise_with_what_is_allowed(bad: dict) -> None:
    with pytest.raises(ValueError, match=r"lies in \[-1, 1\]|allowed: 'chunk', 'stream'"):
        ANS(**bad)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("away", [1e-3, 1e-6, 1e-9, 1e-12])
def test_the_spectrum_keeps_its_digits_near_one(sign: int, away: float) -> None:
    rho = sign * (1 - away)
    away = 1 - abs(rho)  # as rounded
    peak, trough = (0.0, math.pi) if sign > 0 else (math.pi, 0.0)
    assert ANS(rho).spectrum(peak) == pytest.approx((2 - away) / away, rel=1e-7)  # math.pi is not pi
    assert ANS(rho).spectrum(trough) == pytest.approx(away / (2 - away), rel=1e-7)
