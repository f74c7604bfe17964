"""What every pass of a rollout sees of its history, as a table and as a picture, from a configuration alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from arvid.cache.base import CachePolicy
from arvid.positional.base import TimeMap
from arvid.samplers.base import Sampler
from arvid.simulate import FLYING, ROLES, Seen, Slot, views

from . import blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from arvid.config import PipelineConfig
    from arvid.models.specs import Card

__all__ = ["figure", "ranges", "table"]

CHOSEN = "tokens chosen from these"
COLOURS = {"sink": "#0072b2", "memory": None, CHOSEN: "#cc79a7", "recent": "#7fc4a8", FLYING: "#3c3c3c"}
MEMORY = ("#fbd3a8", "#e07b1a", "#7f2d00")  # by frame, to show the order of frames that stand in for others
LINES, BARS = 24, 64
"""Steps that a table lists, and a picture draws, without leaving any out."""


class _Method(NamedTuple):
    """What of a resolved configuration decides who sees whom."""

    cache: CachePolicy
    time: TimeMap
    sampler: Sampler
    chunk: int

    def title(self, frames: int, lane: int) -> str:
        lanes = f", lane {lane} of {self.sampler.lanes}" if self.sampler.lanes > 1 else ""
        return (f"{self.cache}, {self.time}, {type(self.sampler).__name__}, chunk={self.chunk}, "
                f"{frames} latent frames{lanes}")


def _method(config: PipelineConfig, card: Card | None) -> _Method:
    config = config.resolve(card)
    assert config.cache and config.time and config.sampler and config.chunk
    return _Method(config.cache, config.time, config.sampler, config.chunk)


def _steps(config: PipelineConfig, frames: int, card: Card | None, lane: int) -> list[list[Seen]]:
    """The views of one lane, a list for each step."""
    lanes = _method(config, card).sampler.lanes
    if lane not in range(lanes):
        raise ValueError(f"lane={lane!r}: the sampler has lanes 0 to {lanes - 1}")
    own = (seen for seen in views(config, frames, card) if seen.lane == lane)
    return [list(step) for _, step in groupby(own, lambda seen: seen.step)]


def ranges(slots: Iterable[Slot]) -> str:
    """Frames in the order given, as "0-2, 17-15@18-20": falling where they fall, @ their times where those differ."""
    runs: list[list[Slot]] = []
    for slot in slots:
        run = runs[-1] if runs else []
        if run and (step := _step(run[-1], slot)) and (len(run) == 1 or step == _step(*run[-2:])):
            run.append(slot)
        else:
            runs.append([slot])
    return ", ".join(map(_range, runs))


def _step(one: Slot, other: Slot) -> tuple[int, float] | None:
    """How two neighbours of one range differ; None where they cannot be such."""
    step = other[0] - one[0], round(other[1] - one[1], 6)
    return step if abs(step[0]) == 1 and 0 <= step[1] <= 1 else None


def _range(run: Sequence[Slot]) -> str:
    frames, times = ("-".join(dict.fromkeys(map(_number, (side[0], side[-1])))) for side in zip(*run, strict=True))
    return frames if all(frame == time for frame, time in run) else f"{frames}@{times}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.6g}"


def table(
    config: PipelineConfig, frames: int, card: Card | None = None, *, every: bool = False, lane: int = 0
) -> str:
    """A line for each of the `views` of a lane, after lines that explain it, and then what they come to.

    Of a long video it has the steps until the window is full and the next, then some at equal distances, unless `every`
    is set. Raises as `views`.
    """
    method, steps = _method(config, card), _steps(config, frames, card, lane)
    shown = range(len(steps)) if every else _listed([max(seen.visible for seen in step) for step in steps])
    used = [role for role in ROLES if any(seen.slots(role) for step in steps for seen in step)]
    lines = [("chunk", "pass", "sees", *used)]
    for before, i in zip((-1, *shown), shown, strict=False):
        lines += [("...",)] * (i > before + 1)
        lines += [(_chunks(seen), seen.kind, str(seen.visible), *(_cell(seen, role) for role in used))
                  for seen in steps[i]]  # fmt: skip
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(len(lines[0]))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip() for line in lines]
    return "\n".join([method.title(frames, lane), *_legend(method), "", *rows, "", _sums(method, steps)])


def _listed(visible: Sequence[int]) -> list[int]:
    """The steps of a table, by the most frames that each sees."""
    if len(visible) <= LINES:
        return list(range(len(visible)))
    full = visible.index(max(visible))
    head = 3 + (full if full < len(visible) // 2 else 0)  # a history that never stops growing fills no window
    stride = max(1, (len(visible) - head) // 10) | 1  # odd, as in `figure`
    return sorted({*range(head), *range(head + stride - 1, len(visible), stride), len(visible) - 1})


def _chunks(seen: Seen) -> str:
    return "-".join(dict.fromkeys(str(chunk.index) for chunk in (seen.chunks[0], seen.chunks[-1])))


def _cell(seen: Seen, role: str) -> str:
    slots, routed = seen.slots(role), seen.group.routed
    if role != "memory" or routed is None:
        return ranges(slots)
    return f"{routed} frames' worth of tokens chosen from frames {ranges((frame, frame) for frame, _ in slots)}"


def _legend(method: _Method) -> Iterator[str]:
    yield "0-2: latent frames 0, 1, 2. 17-15: 17, 16, 15. @18-20: seen at times 18, 19, 20; without @, at their own."
    yield "sees: frames seen, those in flight included. both: a commit sees what the passes before it see."
    if method.cache.compacts:
        yield "Each layer chooses tokens for itself; what a commit keeps of them goes by the last frames chosen from."


def _sums(method: _Method, steps: list[list[Seen]]) -> str:
    seen = [seen for step in steps for seen in step]
    capacity = method.cache.capacity(method.chunk, method.sampler.in_flight(method.chunk))
    return (f"frames visible: at most {max(each.visible for each in seen)}, held: at most "
            f"{max(each.held for each in seen)}, capacity: "
            f"{'grows with the video' if capacity is None else f'{capacity} (held and in flight)'}")


def figure(config: PipelineConfig, frames: int, card: Card | None = None, *, lane: int = 0) -> Figure:
    """The `views` of a lane, a row for each: how far away in time the frames seen lie, and which frames they are.

    Of a long video it has some steps at equal distances. Raises as `views`, and `RuntimeError` without matplotlib.
    """
    drawing = blank(13, 7.5)
    from matplotlib.ticker import MaxNLocator

    method, steps = _method(config, card), _steps(config, frames, card, lane)
    stride = -(-len(steps) // BARS) | 1  # odd, to show both of two steps that alternate
    drawn = [seen for step in steps[::stride] for seen in step]
    left, right = drawing.subplots(1, 2, sharey=True)
    _draw(left, right, steps[::stride], stride)
    _scale(left, drawn)
    left.set_ylim(len(steps) - 0.5, -0.5)
    left.yaxis.set_major_locator(MaxNLocator(12, integer=True))
    what = "chunk" if all(len(seen.chunks) == 1 for seen in drawn) else "step"
    halves = "; denoise above, commit below" if len(drawn) > len(steps[::stride]) else ""
    left.set_ylabel(f"{what}{f', one in {stride}' if stride > 1 else ''}{halves}")
    right.set_xlim(-0.02 * frames - 1, 1.01 * frames)
    right.set_xlabel("latent frame of the video")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    drawing.suptitle(method.title(frames, lane))
    _explain(drawing, {_label(seen, role) for seen in drawn for role in ROLES if seen.slots(role)})
    return drawing


def _label(seen: Seen, role: str) -> str:
    return CHOSEN if role == "memory" and seen.group.routed is not None else role


def _draw(left: Axes, right: Axes, steps: Sequence[Sequence[Seen]], stride: int) -> None:
    """A box for every frame seen: on the left where it stands in time, on the right where in the video."""
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import LinearSegmentedColormap

    shade = LinearSegmentedColormap.from_list("memory", MEMORY)
    last = max((frame for step in steps for seen in step for frame, _ in seen.slots("memory")), default=0)
    times, places, colours = [], [], []
    for row, step in enumerate(steps):
        height = 0.8 * stride / len(step)
        for i, seen in enumerate(step):
            top, origin = row * stride - 0.5 + i * height, seen.group.times[0]
            for role in ROLES:
                colour = COLOURS[_label(seen, role)]
                for frame, time in seen.slots(role):
                    colours.append(colour or shade(frame / max(1, last)))
                    times.append(_box(time - origin, top, height))
                    places.append(_box(frame, top, height))
    for axes, boxes in ((left, times), (right, places)):
        axes.add_collection(PolyCollection(boxes, facecolors=colours, edgecolors="face", linewidths=0.7))


def _box(x: float, y: float, height: float) -> list[tuple[float, float]]:
    return [(x - 0.5, y), (x + 0.5, y), (x + 0.5, y + height), (x - 0.5, y + height)]


def _scale(axes: Axes, drawn: Sequence[Seen]) -> None:
    """Distances in time: linear over a window's length, logarithmic where far sinks would make it a hairline."""
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    distances = [time - seen.group.times[0] for seen in drawn for role in ROLES for _, time in seen.slots(role)]
    near, far = max(seen.visible for seen in drawn), -min(distances)
    label = "time, counted from the first frame in flight"
    if far <= 3 * near:
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    else:
        label += f"; logarithmic before -{near}"
        axes.set_xscale("symlog", linthresh=near, linscale=2)
        linear = MaxNLocator(4, integer=True).tick_values(-near, 0)
        axes.set_xticks([*(tick for tick in linear if -near < tick <= 0), *_decades(2 * near, far)])
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xticks([], minor=True)
        axes.axvline(-near, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xlim(-1.05 * far - 1, max(distances) + 1)
    axes.set_xlabel(label)


def _decades(low: float, high: float) -> list[int]:
    return [-digit * 10**power for power in range(7) for digit in (1, 2, 5) if low <= digit * 10**power <= high]


def _explain(drawing: Figure, labels: Set[str]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=colour or MEMORY[1], label=label + (" (darker: a later frame)" if colour is None else ""))
               for label, colour in COLOURS.items() if label in labels]  # fmt: skip
    drawing.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
