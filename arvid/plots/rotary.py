"""How far frequency rules let planes turn, as a table and as a picture, from rules and a card alone.

A plane's exposure is the turns it makes over the frames of training (FLEX, arXiv 2602.14027, eq. 6 to 9) or of a video:
below one turn there are phases that were never seen. All is as in the video's last pass, where a scale that grows is
largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from arvid.models.specs import Card
from arvid.positional import Rope, Rotary, RotaryContext

from . import blank, length

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Rule", "figure", "table"]

Array = NDArray[np.float64]

TRAINED = "0.85"


class Rule(NamedTuple):
    """A frequency rule, what to call it, and the latent frames of the video it is used for."""

    label: str
    rotary: Rotary
    frames: int

    @property
    def title(self) -> str:
        """The label and the kind of rule, once where they are one."""
        kind = type(self.rotary).__name__
        return self.label if self.label.lower() == kind.lower() else f"{self.label}: {kind}"

    def freq(self, card: Card) -> Array:
        """Radians a frame, [heads or 1, planes]."""
        context = RotaryContext(card.dit.axes[0], card.dit.num_heads, card.train_horizon, self.frames, self.frames)
        return np.atleast_2d(self.rotary.inv_freq(context))

    def turns(self, card: Card) -> Array:
        """Turns over the video, [heads or 1, planes]."""
        return self.frames * self.freq(card) / (2 * np.pi)

    def ratio(self, card: Card) -> Array:
        """Frequencies over plain rope's, [heads or 1, planes]."""
        return self.freq(card) / _plain(card)


def _plain(card: Card) -> Array:
    return Rope().inv_freq(RotaryContext(card.dit.axes[0], card.dit.num_heads))


def _trained(card: Card) -> Array:
    """Turns over the frames of training, [planes]."""
    return card.train_horizon * _plain(card) / (2 * np.pi)


def table(rules: Sequence[Rule], card: Card) -> str:
    """A line for each plane: its turns in training, and by each rule its turns and its frequency. Raises as a rule."""
    header = ["plane", "period", "training", *(cell for rule in rules for cell in (rule.label, "x rope"))]
    columns = [(rule.turns(card), rule.ratio(card)) for rule in rules]
    lines = [header]
    for plane, (theta, trained) in enumerate(zip(_plain(card), _trained(card), strict=True)):
        cells = (_span(values[:, plane]) for pair in columns for values in pair)
        lines.append([f"{plane}", f"{2 * np.pi / theta:.4g}", f"{trained:.3g}", *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([
        *(f"{rule.label}: {rule.rotary}, {length(rule.frames, card)}" for rule in rules),
        f"Turns of a plane over the video, and frequency as a multiple of rope's; card {card.name!r}, trained on "
        f"{length(card.train_horizon, card)}.",
        "Below one turn in training there are phases that were never seen; a-b: from head to head.", "", *rows,
    ])  # fmt: skip


def _span(values: Array) -> str:
    return "-".join(dict.fromkeys(f"{value:.3g}" for value in (values.min(), values.max())))


def figure(rules: Sequence[Rule], card: Card) -> Figure:
    """Exposure and frequency by plane, and the turns of some planes over distance; a band spans the heads of a rule.

    Raises as a rule, and `RuntimeError` without matplotlib.
    """
    drawing = blank(13, 8)
    trained, planes = _trained(card), np.arange(len(_trained(card)))
    picked = sorted({0, *(int((trained < turns).argmax()) for turns in (1, 0.1)), len(planes) - 1})
    above, below = drawing.add_gridspec(2, 1, height_ratios=(1.15, 1))
    exposure, ratio = above.subgridspec(1, 2).subplots(squeeze=False)[0]
    panels = below.subgridspec(1, len(picked)).subplots(squeeze=False)[0]
    exposure.fill_between(planes, trained, 1e-9, color=TRAINED, label="training", zorder=0)
    exposure.axhline(1, color="0.4", linewidth=0.8, linestyle=":")
    for i, rule in enumerate(rules):
        width = 1.2 + 2.5 * (1 - i / len(rules))  # so that a line shows below others
        style = {"color": f"C{i % 10}", "linewidth": width}
        distance = np.arange(1, rule.frames + 1)
        _line(exposure, planes, rule.turns(card), style, rule.title)
        _line(ratio, planes, rule.ratio(card), style)
        for axes, plane in zip(panels, picked, strict=True):
            _line(axes, distance, rule.freq(card)[:, plane, None] * distance / (2 * np.pi), style)
    exposure.set(title="exposure", ylabel="turns over all frames; dotted: one", yscale="log")
    exposure.set_ylim(trained[-1] / 2, None)
    ratio.set(title="frequency", ylabel="multiple of rope's", yscale="log")
    for axes in (exposure, ratio):
        axes.set(xlabel="temporal plane", xlim=(-0.5, len(planes) - 0.5))
    for axes, plane in zip(panels, picked, strict=True):
        _over_distance(axes, plane, trained[plane])
    panels[0].set_ylabel("turns between query and key")
    _finish(drawing, (exposure, ratio, *panels))
    lengths = ", ".join(dict.fromkeys(length(rule.frames, card) for rule in rules))
    drawing.suptitle(f"card {card.name!r}, trained on {length(card.train_horizon, card)}; videos of {lengths}")
    return drawing


def _line(axes: Axes, x: NDArray[np.int_], values: Array, style: dict[str, Any], label: str = "") -> None:
    """A line, or for values [heads, x] that differ a band between the smallest and the largest."""
    low, high = values.min(0), values.max(0)
    if np.array_equal(low, high):
        axes.plot(x, low, label=label, **style)
    else:
        axes.fill_between(x, low, high, label=label, alpha=0.35, color=style["color"])


def _over_distance(axes: Axes, plane: int, trained: float) -> None:
    axes.set(xscale="log", yscale="log", xlabel="distance in frames", title=f"plane {plane}")
    bottom, top = axes.get_ylim()
    axes.axhspan(bottom / 1e3, trained if trained < 1 else top * 1e3, color=TRAINED, zorder=0)
    axes.set_ylim(bottom, max(top, 1.3 * trained))


def _finish(drawing: Figure, fields: Sequence[Axes]) -> None:
    """Ticks, frames and the legend, which the first field has the names of."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    for axes in fields:
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if axes.get_xscale() == "log":
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    fields[1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    fields[1].yaxis.set_minor_formatter(NullFormatter())
    handles, _ = fields[0].get_legend_handles_labels()
    drawing.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False)
