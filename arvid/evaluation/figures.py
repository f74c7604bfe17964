"""Numbers, verdicts and curves of a comparison as its report shows them: an SVG panel a metric, and one picture of all.

All of it comes from the `Interval`s of a `Comparison`, as the tables of the report do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from arvid.evaluation.results import Comparison, Curve, Interval, Line, Measured
from arvid.plots import blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scale = Callable[[float], float]

__all__ = ["COLOURS", "KEYS", "excludes_zero", "key", "numbers", "panel", "span", "summary", "verdict"]

COLOURS = ("#0072b2", "#c25100", "#00805c", "#a8447f", "#6b6b00", "#5a4fcf", "#8a5a2b", "#4d4d4d")
"""By method, on white; report.css has their like on black."""
MARKERS = "os^Dv><h"
CORNERS = ((24, 0), (4, 45), (3, 90), (4, 0), (3, -90), (3, 0), (3, 180), (6, 0))
"""The same markers for SVG: corners, and where the first lies, in degrees."""
DASHES = ("", "6 3", "2 3")
LINES = ("-", "--", ":")
"""By round of colours, for more methods than there are."""
KEYS = len(COLOURS)
PANELS = 6
"""Metrics that the picture has room for."""
ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}

WIDTH, HEIGHT, RIGHT, TOP, BOTTOM = 340, 190, 10, 10, 34
"""Of an SVG panel, and the margins around its field, in its own pixels."""


def excludes_zero(interval: Interval | None) -> bool:
    """Whether there is an interval and zero lies outside."""
    return interval is not None and (interval.low > 0 or interval.high < 0)


def verdict(metric: Measured, difference: Interval | None) -> str:
    """What a difference from the first method says: "better", "worse", "differs" where no direction is better, or ""
    where its interval has zero in it or is none."""
    if difference is None or not excludes_zero(difference):
        return ""
    if not metric.better:
        return "differs"
    return "better" if (difference.low > 0) == (metric.better == "higher") else "worse"


def numbers(interval: Interval, sign: bool = False) -> tuple[str, str, str]:
    """Mean, low and high for people: to two digits of the interval's half width, or three of a mean without one, and
    an end that is not zero never as zero. NaN is "–", and `sign` puts + before what is above 0."""
    values = (interval.mean, interval.low, interval.high)
    half = (interval.high - interval.low) / 2
    digits = _decimals(half, 2) if half > 0 else _decimals(interval.mean, 3)
    if excludes_zero(interval):
        shown = [max(digits, _decimals(value, 1)) for value in values]
    else:
        shown = [digits] * 3
    mean, low, high = (_number(value, decimals, sign) for value, decimals in zip(values, shown, strict=True))
    return mean, low, high


def _decimals(value: float, digits: int) -> int:
    """Decimals that show so many digits of a value; those of 1 for 0 and what is not finite."""
    size = abs(value) if math.isfinite(value) and value else 1.0
    return digits - 1 - math.floor(math.log10(size))


def _number(value: float, decimals: int, sign: bool = False) -> str:
    if math.isnan(value):
        return "–"
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞"
    if -7 < decimals < 7:
        text = f"{value:.{max(0, decimals)}f}"
    else:
        text = f"{value:.{max(0, decimals - _decimals(value, 1))}e}" if value else "0"
    if float(text) == 0:
        text = text.removeprefix("-")
    elif sign and value > 0:
        text = f"+{text}"
    return text.replace("-", "−")


def span(metric: Measured) -> str:
    """The range of a metric, as "0 to 1"."""
    return f"{metric.low:g} to {metric.high:g}".replace("-", "−").replace("inf", "∞")


def _middles(comparison: Comparison) -> list[float]:
    """The middle of each segment, in seconds."""
    return [(start + stop) / 2 / comparison.fps for start, stop in pairwise(comparison.edges)]


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from low to high, at most so many and at least two."""
    unit = 10.0 ** math.floor(math.log10((high - low) / most))
    steps = (unit, 2 * unit, 5 * unit, 10 * unit)
    step = next(step for step in steps if math.floor(high / step) - math.ceil(low / step) < most)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """A range around finite values, wider than a point."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room


def _finite(segments: Sequence[Interval]) -> list[float]:
    return [value for at in segments for value in (at.mean, at.low, at.high) if math.isfinite(value)]


def _runs(segments: Sequence[Interval], field: str) -> Iterator[list[int]]:
    """Neighbouring segments in which a field of the interval is a number."""
    run: list[int] = []
    for i, at in enumerate(segments):
        if math.isfinite(getattr(at, field)):
            run.append(i)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in points)


def _marker(method: int, x: float, y: float, radius: float = 3.4) -> str:
    corners, turn = CORNERS[method % KEYS]
    angles = (math.radians(turn) + 2 * math.pi * i / corners for i in range(corners))
    return _path([(x + radius * math.cos(angle), y - radius * math.sin(angle)) for angle in angles])


def key(method: int) -> str:
    """The line and marker of a method, as a small SVG for a legend."""
    return (f'<svg class="key c{method % KEYS}" viewBox="0 0 30 12" width="30" height="12" aria-hidden="true">'
            f'<polyline class="line" points="1,6 29,6"{_dash(method)}></polyline>'
            f'<polygon class="marker" points="{_marker(method, 15, 6, 4)}"></polygon></svg>')


def _dash(method: int) -> str:
    dash = DASHES[method // KEYS % len(DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def panel(comparison: Comparison, curves: Sequence[Curve]) -> str:
    """The curves of a metric over seconds, as SVG coloured by report.css: a line and a band for each, in the order of
    methods, gaps where nothing could be measured, numbers on hovering. It holds no text of the comparison."""
    times = _middles(comparison)
    low, high = _limits([value for curve in curves for value in _finite(curve.segments)])
    end = comparison.edges[-1] / comparison.fps
    up = _ticks(low, high)
    names = [_number(tick, _decimals(up[1] - up[0], 1)) for tick in up]
    left = 14 + 6.2 * max(map(len, names))

    def x(seconds: float) -> float:
        return left + seconds / end * (WIDTH - left - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [_axes(_ticks(0, end), dict(zip(names, up, strict=True)), x, y)]
    for i, curve in enumerate(curves):
        parts.append(f'<g class="c{i % KEYS}">')
        for run in _runs(curve.segments, "low"):
            upper = [(x(times[j]), y(curve.segments[j].high)) for j in run]
            lower = [(x(times[j]), y(curve.segments[j].low)) for j in reversed(run)]
            parts.append(f'<polygon class="band" points="{_path(upper + lower)}"></polygon>')
        for run in _runs(curve.segments, "mean"):
            points = [(x(times[j]), y(curve.segments[j].mean)) for j in run]
            parts.append(f'<polyline class="line" points="{_path(points)}"{_dash(i)}></polyline>')
            for j, point in zip(run, points, strict=True):
                mean, below, above = numbers(curve.segments[j])
                parts.append(f'<polygon class="marker" points="{_marker(i, *point)}"><title>{i + 1}, '
                             f"{times[j]:.1f} s: {mean} [{below}, {above}]</title></polygon>")
        parts.append("</g>")
    return f'<svg class="panel" viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">{"".join(parts)}</svg>'


def _axes(across: Sequence[float], up: Mapping[str, float], x: Scale, y: Scale) -> str:
    left, bottom, right = x(0), HEIGHT - BOTTOM, WIDTH - RIGHT
    lines = [f'<line class="grid" x1="{left:.2f}" x2="{right}" y1="{y(tick):.2f}" y2="{y(tick):.2f}"></line>'
             f'<text class="y" x="{left - 6:.2f}" y="{y(tick):.2f}">{name}</text>' for name, tick in up.items()]
    lines += [f'<text class="x" x="{x(tick):.2f}" y="{bottom + 14}">{tick:g}</text>' for tick in across]
    lines.append(f'<line class="axis" x1="{left:.2f}" x2="{right}" y1="{bottom}" y2="{bottom}"></line>'
                 f'<text class="x" x="{(left + right) / 2:.2f}" y="{HEIGHT - 5}">seconds</text>')
    return "".join(lines)


def summary(comparison: Comparison) -> Figure:
    """A picture 1200 pixels wide at 150 a inch: of the first metrics, the curve of each method and below it the
    differences from the first. Raises `RuntimeError` without matplotlib."""
    metrics, labels = comparison.metrics[:PANELS], [method.label for method in comparison.methods]
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    forest = 0.35 + 0.22 * (len(labels) - 1) if len(labels) > 1 else 0
    wide = max(map(len, map(_short, labels)))
    keys = max(1, min(len(labels), 100 // (wide + 8)))
    drawing = blank(8, 0.9 + rows * (2.1 + forest) + 0.22 * -(-len(labels) // keys))
    outer = drawing.add_gridspec(rows, columns)
    for i, metric in enumerate(metrics):
        cell = outer[divmod(i, columns)]
        heights = (1.7, forest) if forest else (1,)
        fields = cell.subgridspec(len(heights), 1, height_ratios=heights).subplots(squeeze=False)[:, 0]
        _curves(fields[0], comparison, metric)
        if forest:
            _forest(fields[1], [line for line in comparison.lines if line.metric == metric.name], labels)
    drawing.suptitle(_caption(comparison), fontsize=9)
    handles, _ = drawing.axes[0].get_legend_handles_labels()
    legend = drawing.legend(handles, [f"{i}  {_short(label)}" for i, label in enumerate(labels, 1)],
                            loc="outside lower center", ncols=keys, frameon=False, fontsize=9)  # fmt: skip
    for text in (*legend.get_texts(), *(axes.title for axes in drawing.axes)):
        text.set_parse_math(False)
    return drawing


def _short(label: str, most: int = 44) -> str:
    label = " ".join(label.split())
    return label if len(label) <= most else f"{label[: most - 1]}…"


def _caption(comparison: Comparison) -> str:
    prompts, shown, every = len(comparison.prompts), min(PANELS, len(comparison.metrics)), len(comparison.metrics)
    metrics = f"{shown} of {every} metrics" if shown < every else f"{every} metric{'s' * (every > 1)}"
    lines = [f"{metrics}, {prompts} prompt{'s' * (prompts > 1)}, {comparison.edges[-1] / comparison.fps:.1f} s; mean "
             "over prompts and 95 % interval; ↑ higher is better, ↓ lower"]  # fmt: skip
    if len(comparison.methods) > 1:
        lines.append("Below each: paired difference from 1, over whole videos; filled where the interval excludes zero")
    return "\n".join(lines)


def _style(method: int) -> dict[str, Any]:
    return {"color": COLOURS[method % KEYS], "marker": MARKERS[method % KEYS], "markersize": 4}


def _curves(axes: Axes, comparison: Comparison, metric: Measured) -> None:
    """A line and a band for each method over seconds; where there is one segment, dots and bars side by side."""
    times, many = _middles(comparison), len(comparison.methods)
    by_method = {curve.method: curve for curve in comparison.curves if curve.metric == metric.name}
    for i, method in enumerate(comparison.methods):
        segments = by_method[method.label].segments
        mean, low, high = ([getattr(at, field) for at in segments] for field in ("mean", "low", "high"))
        where, colour = times if len(times) > 1 else [i + 1], COLOURS[i % KEYS]
        axes.plot(where, mean, linestyle=LINES[i // KEYS % len(LINES)], linewidth=1.4, label=f"{i + 1}", **_style(i))
        if len(times) > 1:
            axes.fill_between(where, low, high, color=colour, alpha=0.16, linewidth=0)
        else:
            axes.vlines(where, low, high, color=colour, linewidth=1.4)
    if len(times) > 1:
        axes.set(xlim=(0, comparison.edges[-1] / comparison.fps))
        axes.set_xlabel("seconds", fontsize=8)
    else:
        axes.set(xlim=(0.5, many + 0.5))
        axes.set_xlabel("method", fontsize=8)
    axes.set_ylim(*_limits([value for curve in by_method.values() for value in _finite(curve.segments)]))
    axes.ticklabel_format(axis="y", scilimits=(-3, 5))
    unit = f" [{metric.unit}]" if metric.unit else ""
    axes.set_title(_short(metric.name + ARROWS[metric.better] + unit, 40), fontsize=9)
    _tidy(axes)


def _forest(axes: Axes, lines: Sequence[Line], labels: Sequence[str]) -> None:
    """A dot and its interval for each method but the first, from top to bottom."""
    by_method = {line.method: line.whole_difference for line in lines}
    axes.axvline(0, color="0.4", linewidth=0.8)
    values = [0.0]
    for i, label in enumerate(labels[1:], 1):
        difference = by_method[label]
        assert difference is not None
        if not math.isfinite(difference.mean):
            axes.text(0.08, i, "– could not be measured", va="center", fontsize=8, in_layout=False,
                      backgroundcolor="white", transform=axes.get_yaxis_transform())  # fmt: skip
        fill = COLOURS[i % KEYS] if excludes_zero(difference) else "white"
        axes.plot([difference.low, difference.high], [i, i], color=COLOURS[i % KEYS], linewidth=1.6)
        axes.plot([difference.mean], [i], markerfacecolor=fill, **_style(i))
        values += _finite([difference])
    axes.set(xlim=_limits(values), ylim=(len(labels) - 0.4, 0.4), yticks=range(1, len(labels)))
    axes.set_yticklabels([str(i) for i in range(2, len(labels) + 1)])
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    whole = axes.get_xlabel() == "method"
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=whole))
    axes.ticklabel_format(axis="x", scilimits=(-3, 5))
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_offset_text().set_fontsize(8)
