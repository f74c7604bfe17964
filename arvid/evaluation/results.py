"""What a comparison found, as plain values: the one source of the numbers in report.html, .png and .json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["Comparison", "Curve", "Interval", "Line", "Measured", "Method", "Row", "from_json", "to_json"]


@dataclass(frozen=True)
class Interval:
    """A mean over prompts and its 95 % interval; `n` prompts could be measured. NaN where there are too few."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Measured:
    """A metric: its range, which direction is better ("higher", "lower" or ""), and what it cannot see."""

    name: str
    low: float
    high: float
    better: str
    unit: str
    about: str
    blind: str


@dataclass(frozen=True)
class Method:
    """A configuration that took part, exactly: `toml` makes it again."""

    label: str
    toml: str
    summary: str


@dataclass(frozen=True)
class Line:
    """A metric of a method: over whole videos, as last segment minus first (`drift`), and both as paired differences
    from the first method (None for that itself)."""

    metric: str
    method: str
    whole: Interval
    drift: Interval
    whole_difference: Interval | None
    drift_difference: Interval | None


@dataclass(frozen=True)
class Curve:
    """A metric of a method, segment by segment."""

    metric: str
    method: str
    segments: list[Interval]


@dataclass(frozen=True)
class Row:
    """One video: metrics over all of it and segment by segment (None: not to be seen there), and its contact strip, a
    PNG file beside the report. `noise_seed` makes its noise again (`arvid generate --seed`); `video` is its .mp4 file,
    if it was kept."""

    method: str
    prompt: str
    seed: int
    whole: dict[str, float | None]
    segments: dict[str, list[float | None]]
    strip: str
    noise_seed: int = 0
    video: str | None = None


@dataclass(frozen=True)
class Comparison:
    """All of it. `edges` are the pixel frames at which segments begin, and the end; `facts` say what was run, where
    and with which versions, by name."""

    command: str
    frames: int
    fps: float
    edges: list[int]
    prompts: list[str]
    seeds: list[int]
    methods: list[Method]
    metrics: list[Measured]
    lines: list[Line]
    curves: list[Curve]
    rows: list[Row]
    facts: dict[str, str]


def to_json(comparison: Comparison) -> str:
    """All of it as JSON, where null is NaN: `from_json(to_json(c))` is `c` again. Raises `ValueError` for infinities,
    but for those of a metric's range, which are written as "inf" and "-inf"."""
    plain = asdict(comparison)
    for metric in plain["metrics"]:
        metric |= {end: str(metric[end]) for end in ("low", "high") if math.isinf(metric[end])}
    return json.dumps(_without_nan(plain), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str) -> Comparison:
    """The inverse of `to_json`. Raises `ValueError` for text that is no comparison."""
    try:
        plain = json.loads(text)
        parts: dict[str, Any] = {
            "methods": [Method(**each) for each in plain["methods"]],
            "metrics": [Measured(**{**each, "low": float(each["low"]), "high": float(each["high"])})
                        for each in plain["metrics"]],
            "lines": [Line(**{**each, **{key: _interval(each[key]) for key in _INTERVALS}}) for each in plain["lines"]],
            "curves": [Curve(**{**each, "segments": list(map(_interval, each["segments"]))})
                       for each in plain["curves"]],
            "rows": [Row(**each) for each in plain["rows"]],
        }  # fmt: skip
        return Comparison(**{**plain, **parts})
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"this is no comparison in JSON: {type(error).__name__}: {error}") from error


_INTERVALS = [f.name for f in fields(Line) if f.name not in ("metric", "method")]


def _interval(plain: Mapping[str, Any] | None) -> Any:
    return None if plain is None else Interval(**{**plain, **{key: math.nan for key, x in plain.items() if x is None}})


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list) else value
