"""What noise priors do to motion and to frequencies, as a table and as a picture (FLEX, arXiv 2602.14027, figure 2).

Power is the expected periodogram of exact covariances, and its motion energy density 2 (1 - cos omega) x power: that of
a difference of neighbouring frames, with zeros before the first and after the last. Frequencies are in radians a frame.
Nothing is drawn at random, but a prior that shuffles has the orders of a seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from arvid.geometry import chunk_layout
from arvid.models.specs import Card
from arvid.noise import Floats, Kind, NoisePrior, Span

from . import blank, length

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Stream", "figure", "table"]

OMEGA = np.linspace(0, np.pi, 721)  # has 2 pi / 2 to 2 pi / 6, where chunks of so many frames may have lines
FLOOR = 1e-2
"""Where the power of many frames, which has zeros, is cut off."""
ROW, WIDTH = 4, 40
"""Matrices beside each other, and letters that one is wide."""
STYLES: dict[str, dict[str, Any]] = {
    "closed": {"linewidth": 0.8, "linestyle": "--", "zorder": 3}, "point": {"linewidth": 1.5, "linestyle": ":"}
}  # fmt: skip
EXTRA = {"closed": "closed form, of a recursion that never starts anew", "point": "all power at this frequency"}
HEADER = ("configuration", "motion within", "motion across", "power at 0", "power at pi", "r within", "r across",
          "r chunk before", "applies to", "random access")  # fmt: skip
LEGEND = """\
motion: expected (z_u - z_(u-1))^2 of a number of the noise, its mean within chunks and across their borders; iid: 2.
power: expected periodogram of the first chunk at omega = 0 (stands still) and pi (alternates); iid: 1.
r: correlation with the frame before, within and across, and with the same place in the chunk before; a to b: it varies.
applies to: the draws that follow the prior, the others are as iid's. -: there is none."""


class Stream(NamedTuple):
    """A prior, what to call it, the latent frames of a chunk and of the video it is used for, and the video's seed."""

    label: str
    noise: NoisePrior
    chunk: int
    frames: int
    seed: int = 0

    @property
    def title(self) -> str:
        """The kind of prior and its fields, without an `apply_to` that is the default."""
        values = [(f, getattr(self.noise, f.name)) for f in fields(self.noise) if f.repr]
        given = ", ".join(f"{f.name}={value!r}" for f, value in values if (f.name, value) != ("apply_to", f.default))
        return type(self.noise).__name__ + (f"({given})" if given else "")

    @property
    def kind(self) -> Kind:
        """Of draws that follow the prior."""
        return Kind.RENOISE if self.noise.apply_to == "renoise" else Kind.INITIAL

    def chunks(self, card: Card) -> list[Span]:
        """The first chunks: two horizons of training, to show what comes again, and at least two chunks; of a shorter
        video all."""
        shown = self.chunk * max(2, -(-2 * card.train_horizon // self.chunk))
        return [Span(*each) for each in chunk_layout(min(self.frames, shown), self.chunk)[1]]

    def covariance(self, chunks: Sequence[Span]) -> Floats:
        """Exact covariance of the frames of `chunks`, [f, f]."""
        return self.noise.covariance(_frames(chunks), chunks, self.seed, self.kind)

    def power(self, chunks: Sequence[Span], omega: Floats = OMEGA) -> Floats:
        """The periodogram of the frames of `chunks`, [omega]."""
        return self.noise.periodogram(omega, _frames(chunks), chunks, self.seed, self.kind)

    def closed(self, chunks: Sequence[Span]) -> Floats | None:
        """The closed form of the spectrum, [omega]; None where there is none, or where it is no density: all power lies
        at one frequency."""
        if any(_point(self.covariance(part)) is not None for part in (chunks[:1], chunks)):
            return None
        try:
            return self.noise.spectrum(OMEGA)
        except ValueError:
            return None

    def facts(self, card: Card) -> str:
        """One line of what the table and the pictures are of."""
        chunks = self.chunks(card)
        shown = "" if (last := _frames(chunks).stop) == self.frames else f", here the first {last}"
        return f"{self.noise}, chunk={self.chunk}, {length(self.frames, card)}{shown}, seed {self.seed}"


def _frames(chunks: Sequence[Span]) -> range:
    return range(chunks[0].start, chunks[-1].start + chunks[-1].n)


def _correlation(c: Floats) -> Floats:
    spread = np.sqrt(c.diagonal())
    return c / np.outer(spread, spread)


def _point(c: Floats) -> float | None:
    """The frequency that all power lies at where each frame is the one before (0) or minus it (pi); else None."""
    r = _correlation(c).diagonal(1)
    near = {omega for omega, sign in ((0.0, 1), (np.pi, -1)) if r.size and np.abs(r - sign).max() < 1e-12}
    return near.pop() if near else None


def table(streams: Sequence[Stream], card: Card) -> str:
    """A line for each prior, after lines that say what it is and what the columns mean. Raises as a prior."""
    lines = [HEADER, *((stream.label, *_cells(stream, card)) for stream in streams)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    points = [f"{stream.label}: {point}" for stream in streams for point in _points(stream, card)]
    return "\n".join([*(f"{stream.label}: {stream.facts(card)}" for stream in streams), LEGEND, *points, "", *rows])


def _cells(stream: Stream, card: Card) -> Iterator[str]:
    chunks = stream.chunks(card)
    c = stream.covariance(chunks)
    r, each = _correlation(c), c.diagonal()
    motion = each[1:] + each[:-1] - 2 * c.diagonal(1)
    chunk_of = np.repeat(np.arange(len(chunks)), [chunk.n for chunk in chunks])
    within = chunk_of[1:] == chunk_of[:-1]
    for part in (within, ~within):
        yield _number(motion[part].mean()) if part.any() else "-"
    yield from map(_number, stream.power(chunks[:1], np.array([0, np.pi])))
    for values in (r.diagonal(1)[within], r.diagonal(1)[~within], r.diagonal(stream.chunk)):
        yield " to ".join(dict.fromkeys(_number(end) for end in (values.min(), values.max()))) if values.size else "-"
    yield stream.noise.apply_to
    yield "yes" if stream.noise.random_access else "no"


def _number(value: float) -> str:
    return f"{round(value, 9) + 0.0:.3g}"  # neither rounding errors nor -0


def _points(stream: Stream, card: Card) -> Iterator[str]:
    """Where all power lies at one frequency, in words."""
    chunks = stream.chunks(card)
    for where, part in (("", chunks), ("within a chunk ", chunks[:1])):
        point = _point(stream.covariance(part))
        if point is not None:
            other, omega = ("minus the one before", "pi") if point else ("the one before", "0")
            yield f"{where}each frame is {other}: all power lies at omega = {omega}, which has no density"
            return


def figure(streams: Sequence[Stream], card: Card) -> Figure:
    """Power and motion energy density over frequency, of a chunk and of the first chunks, and a covariance matrix each.

    Raises as a prior, and `RuntimeError` without matplotlib.
    """
    rows, columns = -(-len(streams) // ROW), min(ROW, len(streams))
    drawing = blank(13, 4.8 + 3.7 * rows)
    above, below = drawing.add_gridspec(2, 1, height_ratios=(1, rows))
    panels = above.subgridspec(1, 4).subplots(squeeze=False)[0]
    fields = below.subgridspec(rows, columns).subplots(squeeze=False).ravel()
    _curves(panels, streams, card)
    for axes, stream in zip(fields, streams, strict=False):
        _matrix(axes, stream, stream.chunks(card))
    for axes in fields[len(streams) :]:
        axes.set_visible(False)
    beyond = any(np.abs(axes.images[0].get_array()).max() > 1 + 1e-9 for axes in fields[: len(streams)])
    drawing.colorbar(fields[0].images[0], ax=list(fields), label="covariance", shrink=1 / rows,
                     extend="both" if beyond else "neither")  # fmt: skip
    _explain(drawing, streams, panels)
    lengths = ", ".join(dict.fromkeys(length(stream.frames, card) for stream in streams))
    seeds = ", ".join(dict.fromkeys(f"seed {stream.seed}" for stream in streams))
    trained = f"card {card.name!r}, trained on {length(card.train_horizon, card)}"
    drawing.suptitle(f"{trained}; videos of {lengths}; {seeds}", parse_math=False)
    return drawing


def _curves(panels: Sequence[Axes], streams: Sequence[Stream], card: Card) -> None:
    """Power of a chunk and of the first chunks, then motion of the same, with the closed forms as thin lines."""
    parts = [(chunks[:1], chunks) for chunks in (stream.chunks(card) for stream in streams)]
    for i, (stream, both) in enumerate(zip(streams, parts, strict=True)):
        colour, density = f"C{i % 10}", stream.closed(both[1])
        width = 1.2 + 2 * (1 - i / len(streams))  # so that a line shows below others
        for part, pair in zip(both, (panels[::2], panels[1::2]), strict=True):
            power, point = stream.power(part), _point(stream.covariance(part))
            for axes, factor in zip(pair, (np.ones_like(OMEGA), 2 * (1 - np.cos(OMEGA))), strict=True):
                axes.plot(OMEGA, factor * power, color=colour, linewidth=width, gid="power")
                if density is not None:
                    axes.plot(OMEGA, factor * density, color=colour, gid="closed", **STYLES["closed"])
            if point is not None:
                pair[0].axvline(point, color=colour, gid="point", **STYLES["point"])
    counts = dict.fromkeys(str(_frames(chunks).stop) for _, chunks in parts)
    names = ("a chunk", f"first {', '.join(counts)} frames")
    for axes, title in zip(panels, [f"{what}, {name}" for what in ("power", "motion") for name in names], strict=True):
        axes.set_title(title, fontsize="medium")
    panels[0].set_ylabel("expected power")
    panels[2].set_ylabel("2 (1 - cos omega) x power")
    _scale(panels)


def _scale(panels: Sequence[Axes]) -> None:
    """Axes by the periodograms: a closed form may be far higher, and then leaves the panel."""
    from matplotlib.ticker import FuncFormatter

    for axes, scale in zip(panels, ("linear", "log") * 2, strict=True):
        top = 1.1 * max(np.max(line.get_ydata()) for line in axes.lines if line.get_gid() == "power")
        axes.set(yscale=scale, ylim=(0, top) if scale == "linear" else (FLOOR, max(top, 10)))
        axes.set(xlabel="omega, radians a frame", xticks=(0, np.pi / 2, np.pi), xticklabels=("0", "π/2", "π"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.spines[["top", "right"]].set_visible(False)


def _matrix(axes: Axes, stream: Stream, chunks: Sequence[Span]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.imshow(stream.covariance(chunks), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    for chunk in chunks[1:]:
        for line in (axes.axhline, axes.axvline):
            line(chunk.start - 0.5, color="0.45", linewidth=0.4)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.set_xlabel("latent frame")
    title = "\n".join(line for text in (stream.label, stream.title) for line in wrap(text, WIDTH))
    axes.set_title(title, fontsize="small", parse_math=False)


def _explain(drawing: Figure, streams: Sequence[Stream], panels: Sequence[Axes]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=f"C{i % 10}", linewidth=2) for i in range(len(streams))]
    labels = [f"{stream.label}: {stream.title}" for stream in streams]
    drawn = {line.get_gid() for axes in panels for line in axes.lines}
    for gid, label in EXTRA.items():
        if gid in drawn:
            handles.append(Line2D([], [], color="0.3", **STYLES[gid]))
            labels.append(label)
    ncols = max(1, min(3, len(handles), 130 // max(map(len, labels))))
    legend = drawing.legend(handles, labels, loc="outside lower center", ncols=ncols, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
