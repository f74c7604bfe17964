"""Intervals hold the truth as often as they say, and lines and curves are the means and differences they are called."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from arvid.evaluation.results import Measured, Row
from arvid.evaluation.statistics import LEAST, intervals, over_seeds, summarise

TRIALS = 600
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]

NORMAL: Draw = lambda rng, shape: rng.normal(0.3, 1, shape)  # noqa: E731
SKEWED: Draw = lambda rng, shape: rng.lognormal(0, 0.5, shape)  # noqa: E731
BOUNDED: Draw = lambda rng, shape: rng.beta(2, 1, shape)  # noqa: E731
COIN: Draw = lambda rng, shape: rng.binomial(1, 0.7, shape).astype(float)  # noqa: E731
SKEWED_PAIRS: Draw = lambda rng, shape: rng.gamma(2, 1, shape) - rng.gamma(1, 1, shape)  # noqa: E731
COIN_PAIRS: Draw = lambda rng, shape: (rng.binomial(1, 0.8, shape) - rng.binomial(1, 0.5, shape)).astype(float)  # noqa: E731


def rarely(up: float, down: float) -> Draw:
    """Differences of a 0/1 metric between methods that rarely differ."""
    return lambda rng, shape: rng.choice([1.0, 0.0, -1.0], shape, p=[up, 1 - up - down, down])


def covered(draw: Draw, truth: float, n: int) -> float:
    """How many of 100 intervals hold the truth."""
    found = intervals(draw(np.random.default_rng(n), (n, TRIALS)))
    return 100 * float(np.mean([each.low <= truth <= each.high for each in found]))


@pytest.mark.parametrize(("draw", "truth", "n"), [
    *((NORMAL, 0.3, n) for n in (8, 16, 64)),
    *((SKEWED, math.exp(0.125), n) for n in (16, 32, 64)),
    *((BOUNDED, 2 / 3, n) for n in (8, 16, 64)),
    *((SKEWED_PAIRS, 1.0, n) for n in (8, 16, 64)),
    *((COIN_PAIRS, 0.3, n) for n in (8, 16, 32, 64)),
    *((rarely(0.1, 0.1), 0.0, n) for n in (16, 32, 64)),
    *((rarely(0.05, 0.05), 0.0, n) for n in (32, 64)),
    *((rarely(0.15, 0.02), 0.13, n) for n in (32, 64)),
])  # fmt: skip
def test_intervals_hold_the_truth_92_to_98_times_in_100(draw: Draw, truth: float, n: int) -> None:
    assert 92 <= covered(draw, truth, n) <= 98


def test_where_they_do_not() -> None:
    assert covered(NORMAL, 0.3, LEAST) > 85
    assert all(covered(COIN, 0.7, n) >= 94 for n in (32, 64))
    rare: Draw = lambda rng, shape: rng.binomial(1, 0.05, shape).astype(float)  # noqa: E731
    assert covered(rare, 0.05, 8) < 50


def test_they_are_no_wider_than_student_where_student_is_right() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(16, TRIALS))
    width = np.median([each.high - each.low for each in intervals(values)])
    assert width == pytest.approx(np.median(2 * 2.131 * values.std(0, ddof=1) / 4), rel=0.08)


def test_a_few_differences_of_one_sign_are_no_finding() -> None:
    """Of 3 discordant prompts all fall on one side in one of 4 cases by chance."""
    (each,) = intervals(np.array([[-1.0]] * 3 + [[0.0]] * 29))
    assert each.low < 0 < each.high


def test_they_follow_skew() -> None:
    (each,) = intervals(np.random.default_rng(0).lognormal(0, 1, (40, 1)))
    assert each.high - each.mean > 1.3 * (each.mean - each.low)


@settings(max_examples=30)
@given(arrays(float, (7, 3), elements=st.floats(-5, 5).map(lambda x: round(x, 3))), st.floats(0.5, 3), st.floats(-2, 2))
def test_intervals_move_and_stretch_with_values(values: np.ndarray, scale: float, shift: float) -> None:
    for before, after in zip(intervals(values), intervals(scale * values + shift), strict=True):
        for end in ("mean", "low", "high"):
            assert getattr(after, end) == pytest.approx(scale * getattr(before, end) + shift, abs=1e-6)
        assert before.low <= before.mean + 1e-9
        assert before.mean <= before.high + 1e-9


def test_constant_values_are_a_point_and_too_few_have_none() -> None:
    (point,) = intervals(np.full((8, 1), 0.1))
    assert (point.mean, point.low, point.high, point.n) == (*[pytest.approx(0.1)] * 3, 8)
    few = np.array([[1.0], [2.0], [6.0]])
    for n in range(1, LEAST):
        (each,) = intervals(few[:n])
        assert each.mean == few[:n].mean()
        assert (math.isnan(each.low), math.isnan(each.high), each.n) == (True, True, n)
    (none,) = intervals(np.full((8, 1), np.nan))
    assert (math.isnan(none.mean), none.n) == (True, 0)


def test_nan_is_left_out_and_ends_stay_in_range() -> None:
    values = np.random.default_rng(1).binomial(1, 0.8, (12, 4)).astype(float)
    values[[0, 3], 1] = values[5, 2] = np.nan
    found = intervals(values, 0, 1)
    for k, each in enumerate(found):
        alone = values[~np.isnan(values[:, k]), k]
        assert each == intervals(alone[:, None], 0, 1)[0]
        assert (each.mean, each.n) == (pytest.approx(alone.mean()), len(alone))
    assert max(each.high for each in found) == 1
    assert max(each.high for each in intervals(values)) > 1


@pytest.mark.parametrize("values", [np.ones(5), np.array([[np.inf], [1.0]])])
def test_bad_values(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"give \[prompts, quantities\], finite or NaN"):
        intervals(values)


def test_seeds_of_a_prompt_are_averaged() -> None:
    values = np.array([[[1.0], [3.0]], [[np.nan], [5.0]], [[np.nan], [np.nan]]])
    np.testing.assert_array_equal(over_seeds(values), [[2.0], [5.0], [np.nan]])


PROMPTS = [f"p{i}" for i in range(6)]
METRIC = Measured("m", 0.0, 1.0, "higher", "", "about", "blind")


def rows() -> list[Row]:
    rng = np.random.default_rng(3)
    return [Row(method, prompt, seed, {"m": rng.uniform()}, {"m": rng.uniform(size=3).tolist()}, "")
            for method in "ab" for prompt in PROMPTS for seed in range(2)]  # fmt: skip


def of(all_rows: list[Row], method: str, value: Callable[[Row], float]) -> np.ndarray:
    """[P, S], row by row."""
    found = {(row.prompt, row.seed): value(row) for row in all_rows if row.method == method}
    return np.array([[found[prompt, seed] for seed in range(2)] for prompt in PROMPTS])


def whole(row: Row) -> float:
    value = row.whole["m"]
    return math.nan if value is None else value


def drift(row: Row) -> float:
    first, *_, last = row.segments["m"]
    return math.nan if first is None or last is None else last - first


def test_lines_and_curves_are_paired_means() -> None:
    made = rows()
    a, b = ({"whole": of(made, m, whole), "drift": of(made, m, drift)} for m in "ab")
    lines, curves = summarise(made[::-1], ["a", "b"], PROMPTS, [0, 1], [METRIC])
    assert [(line.metric, line.method) for line in lines] == [("m", "a"), ("m", "b")]
    assert lines[0].whole_difference is None
    assert lines[0].drift_difference is None
    for line, own in zip(lines, (a, b), strict=True):
        assert line.whole.mean == pytest.approx(own["whole"].mean())
        assert line.drift.mean == pytest.approx(own["drift"].mean())
        assert line.whole.n == len(PROMPTS)
    for found, key, most in ((lines[1].whole_difference, "whole", 1), (lines[1].drift_difference, "drift", 2)):
        away = (b[key] - a[key]).mean(1, keepdims=True)
        assert found == intervals(away, -most, most)[0]
    third = of(made, "b", lambda row: row.segments["m"][2] or 0.0)
    assert curves[1].segments[2].mean == pytest.approx(third.mean())
    assert [len(curve.segments) for curve in curves] == [3, 3]


def test_what_one_method_cannot_be_measured_in_is_in_no_pair() -> None:
    made = rows()
    made[0].whole["m"] = None  # a, p0, seed 0
    made[2].whole["m"] = made[3].whole["m"] = None  # a, p1, both
    line = summarise(made, ["a", "b"], PROMPTS, [0, 1], [METRIC])[0][1]
    away = of(made, "b", whole) - of(made, "a", whole)
    assert line.whole.n == 6
    assert line.whole_difference is not None
    assert line.whole_difference.n == 5
    assert line.whole_difference.mean == pytest.approx(np.mean([away[0, 1], *away[2:].mean(1)]))


def test_one_segment_has_no_drift() -> None:
    made = [Row(r.method, r.prompt, r.seed, r.whole, {"m": r.segments["m"][:1]}, "") for r in rows()]
    for line in summarise(made, ["a", "b"], PROMPTS, [0, 1], [METRIC])[0]:
        assert math.isnan(line.drift.mean)


@pytest.mark.parametrize("wrong", [lambda made: made[1:], lambda made: [*made, made[0]]])
def test_rows_are_complete(wrong: Callable[[list[Row]], list[Row]]) -> None:
    with pytest.raises(ValueError, match="the 24 of every method, prompt and seed"):
        summarise(wrong(rows()), ["a", "b"], PROMPTS, [0, 1], [METRIC])
