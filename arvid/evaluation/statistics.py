"""Means over prompts with 95 % intervals: a studentised bootstrap, never narrower than Student's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from arvid.evaluation.results import Curve, Interval, Line, Measured, Row

__all__ = ["LEAST", "intervals", "over_seeds", "summarise"]

Floats = NDArray[np.float64]

LEAST = 4
"""With fewer prompts there is no interval: it would hold the truth in fewer than 85 of 100 cases."""
RESAMPLES = 4999
SEED = 0
LEVELS = (0.025, 0.975)
FLOOR = 0.1
"""Least variance of a resample, over that of the data: in a resample of a few prompts all may be alike."""


def over_seeds(values_PSK: Floats) -> Floats:
    """The mean over the seeds of each prompt, [P, K], of those that could be measured (not NaN)."""
    seen = ~np.isnan(values_PSK)
    count = seen.sum(1)
    return np.where(count > 0, np.where(seen, values_PSK, 0).sum(1) / count.clip(1), np.nan)


def intervals(values_PK: Floats, low: float = -math.inf, high: float = math.inf) -> list[Interval]:
    """The mean of each of K quantities over the prompts that have it (not NaN), with its 95 % interval.

    The interval is the smallest that holds two: Student's, and a bootstrap-t (Efron and Tibshirani 1993, chapter 12.5):
    prompts are drawn with replacement `RESAMPLES` times, always the same draws; t* = (mean* - mean) / se* has quantiles
    q, and the interval is [mean - q(0.975) se, mean - q(0.025) se]. The bootstrap follows skew, which Student's does
    not; Student's holds where most values are alike, such as differences of 0 between methods that rarely differ, of
    which resamples know too little. Then it is cut to `low` .. `high`, the values that a mean can have. Prompts must be
    independent: average the seeds of a prompt first.

    Of 100 intervals 92 to 98 hold the truth, for normal and bounded values and for differences from 8 prompts on, for
    skewed ones from 16, and 90 to 100 for differences that are mostly 0 from 16; about 85 to 97 from `LEAST` on. Fewer
    where nearly all prompts have one value (n p or n (1 - p) below about 3), and where all do, an interval is a point.
    NaN where prompts are fewer than `LEAST`.
    Raises `ValueError` for values that are not [P, K] or infinite.
    """
    values_PK = np.asarray(values_PK, np.float64)
    if values_PK.ndim != 2 or np.isinf(values_PK).any():
        raise ValueError(f"values have shape {values_PK.shape}: give [prompts, quantities], finite or NaN")
    seen_PK = ~np.isnan(values_PK)
    found: dict[int, Interval] = {}
    masks, group_K = np.unique(seen_PK, axis=1, return_inverse=True)
    for group, seen_P in enumerate(masks.T):
        columns = np.flatnonzero(group_K.reshape(-1) == group)
        found |= zip(columns.tolist(), _complete(values_PK[seen_P][:, columns], low, high), strict=True)
    return [found[k] for k in range(values_PK.shape[1])]


def summarise(
    rows: Sequence[Row], methods: Sequence[str], prompts: Sequence[str], seeds: Sequence[int],
    metrics: Sequence[Measured],
) -> tuple[list[Line], list[Curve]]:  # fmt: skip
    """Lines and curves of every metric and method. Drift is the last segment minus the first, NaN where there is one
    segment only; differences are paired: of the same prompt and seed, from the first method.

    Raises `ValueError` for rows that are not one each of every method, prompt and seed.
    """
    by_key = {(row.method, row.prompt, row.seed): row for row in rows}
    keys = {(method, prompt, seed) for method in methods for prompt in prompts for seed in seeds}
    if len(by_key) != len(rows) or by_key.keys() != keys:
        raise ValueError(f"{len(rows)} rows, of which {len(keys & by_key.keys())} are the {len(keys)} of every method, "
                         "prompt and seed: give one for each")
    lines, curves = list[Line](), list[Curve]()
    for metric in metrics:
        ends, gap = (metric.low, metric.high), metric.high - metric.low
        first_PSK: Floats | None = None
        for method in methods:
            values_PSK = np.array([[_values(by_key[method, prompt, seed], metric.name) for seed in seeds]
                                   for prompt in prompts])  # fmt: skip
            whole, *segments = intervals(over_seeds(np.delete(values_PSK, 1, axis=2)), *ends)
            drift = _interval(values_PSK[..., 1], gap)
            away = away_drift = None
            if first_PSK is None:
                first_PSK = values_PSK
            else:
                away = _interval(values_PSK[..., 0] - first_PSK[..., 0], gap)
                away_drift = _interval(values_PSK[..., 1] - first_PSK[..., 1], 2 * gap)
            lines.append(Line(metric.name, method, whole, drift, away, away_drift))
            curves.append(Curve(metric.name, method, segments))
    return lines, curves


def _interval(values_PS: Floats, most: float) -> Interval:
    return intervals(over_seeds(values_PS[..., None]), -most, most)[0]


def _values(row: Row, metric: str) -> list[float]:
    """Over the whole, drift, and each segment."""
    segments = [math.nan if x is None else x for x in row.segments[metric]]
    whole = row.whole[metric]
    drift = segments[-1] - segments[0] if len(segments) > 1 else math.nan
    return [math.nan if whole is None else whole, drift, *segments]


def _complete(values_PK: Floats, low: float, high: float) -> list[Interval]:
    """`intervals` of values without NaN."""
    n, count = values_PK.shape
    mean_K = values_PK.mean(0) if n else np.full(count, np.nan)
    if n < LEAST:
        return [Interval(mean, math.nan, math.nan, n) for mean in mean_K.tolist()]
    alike_K = (values_PK == values_PK[0]).all(0)
    away_PK = np.where(alike_K, 0, values_PK - mean_K)
    variance_K = np.where(alike_K, 1, (away_PK**2).mean(0))  # the factors that make it a standard error cancel in t*
    weights_RP = _weights(n)
    shift_RK = weights_RP @ away_PK
    variance_RK = weights_RP @ away_PK**2 - shift_RK**2
    t_RK = shift_RK / np.sqrt(np.maximum(variance_RK, FLOOR * variance_K))
    student = _student(n - 1) / math.sqrt(n - 1)  # se is np.std / sqrt(n - 1)
    below_K, above_K = np.quantile(t_RK, LEVELS, axis=0)
    below_K = np.minimum(below_K, -student) * np.where(alike_K, 0, np.sqrt(variance_K))
    above_K = np.maximum(above_K, student) * np.where(alike_K, 0, np.sqrt(variance_K))
    low_K, high_K = np.clip([mean_K - above_K, mean_K - below_K], low, high)
    return [Interval(float(mean_K[k]), float(low_K[k]), float(high_K[k]), n) for k in range(count)]


def _student(freedom: int) -> float:
    """The 0.975 quantile of Student's t, from the normal one (Abramowitz and Stegun 26.7.5): for 3 degrees of freedom
    and more within 1 %."""
    z, n = 1.959963985, freedom
    return (z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
            + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3))  # fmt: skip


@lru_cache(maxsize=8)
def _weights(n: int) -> Floats:
    """How often each prompt is in each resample, over n: [RESAMPLES, n]."""
    return np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), RESAMPLES) / n
