"""What a configuration does to temporal position that training never did: found from it and the card, without weights.

`arvid.lint` is this module, which is called as its function `lint`: importing a module of a package makes it an
attribute of the package, so that a function of the same name would be there or not by the order of imports.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from arvid.cache.base import Kind
from arvid.config import PipelineConfig
from arvid.geometry import latent_frames
from arvid.models.specs import Card
from arvid.positional import Rope, Rotary, RotaryContext
from arvid.positional.base import UNSCALED
from arvid.positional.scaled import Scaled
from arvid.presets import resolved
from arvid.simulate import FLYING, ROLES, Seen, views

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

__all__ = ["Finding", "Lint", "lint"]

Array = NDArray[np.float64]

TABLE = 1024
"""Times in the rotary table of Wan2.1's released code, and of the code made from it."""
ROUNDING = 1e-9
"""Part of a phase that its rounding may take; one frame, even of a million, turns a plane by a larger part."""
COLUMNS = 150
"""Most columns of a picture."""
INSIDE, WHOLE = "#dce8f0", "#b4cfdf"


@dataclass(frozen=True)
class Finding:
    """What was found, in one sentence with numbers, and what to do."""

    level: Literal["info", "warning"]
    text: str
    advice: str

    def __str__(self) -> str:
        return f"{self.level}: {self.text}.\n  To do: {self.advice}."


@dataclass(frozen=True, eq=False)
class Lint:
    """How far planes turn between queries and keys, and what was found. Printed as a table.

    In training a query met keys up to `reach` - 1 frames away: as many frames as a clip has, or as the card's window
    has where that is shorter and no sink reaches back to the clip's first frame. `trained` [planes] is `reach` times
    plain rope's frequency, in turns, FLEX's exposure (arXiv 2602.14027): phases below it were seen, and from a full
    turn on every phase. For each role that keys are seen in, `distance` [frames] is how far in time the farthest lies
    from each query frame, and `turns` [frames, planes] how far a plane turns between them at most, over all passes and
    heads, NaN where there is none. `rate` is latent frames a second.
    """

    title: str
    rate: float
    reach: int
    trained: Array
    distance: Mapping[str, Array]
    turns: Mapping[str, Array]
    findings: tuple[Finding, ...]

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that ask for a change."""
        return tuple(finding for finding in self.findings if finding.level == "warning")

    def outside(self, role: str) -> NDArray[np.bool_]:
        """Where a plane turns further than training showed, [frames, planes]."""
        return _outside(self.turns[role], self.trained)

    def __str__(self) -> str:
        lines = [("plane", "period", "training", *self.turns),
                 ("frames", "", f"{self.reach - 1}", *(f"{np.nanmax(far):.6g}" for far in self.distance.values()))]
        for plane, trained in enumerate(self.trained):
            cells = (self._cell(role, plane) for role in self.turns)
            lines.append((f"{plane}", f"{self.reach / trained:.4g}", f"{trained:.3g}", *cells))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                for line in lines]  # fmt: skip
        return "\n".join([
            self.title,
            "Turns between a query and a key, at most, by the role the key is seen in; period and distance in frames.",
            "@21: more than in training from frame 21 on. A plane that made a whole turn in training has seen all.",
            "", *rows, "", *(map(str, self.findings) if self.findings else ["nothing found"]),
        ])  # fmt: skip

    def _cell(self, role: str, plane: int) -> str:
        outside = self.outside(role)[:, plane]
        return f"{np.nanmax(self.turns[role][:, plane]):.3g}" + (f" @{outside.argmax()}" if outside.any() else "")

    def figure(self) -> Figure:
        """Planes over frames, one field for each role: how far beyond training they turn, of a long video at most in
        several frames. Raises `RuntimeError` without matplotlib."""
        from arvid.plots import blank

        drawing = blank(3.5 + 3 * len(self.turns), 6.5)
        from matplotlib.colors import LogNorm
        from matplotlib.patches import Patch

        beyond = (turns - self.trained for turns in self.turns.values())
        most = max(float(np.nanmax(each[:, self.trained < 1], initial=0)) for each in beyond)
        fields = drawing.subplots(1, len(self.turns), sharey=True, squeeze=False)[0]
        for axes, role in zip(fields, self.turns, strict=True):
            self._draw(axes, role, LogNorm(1e-3, max(1e-2, most)))
        names = [f"{plane:2} {turns:<7.2g}" for plane, turns in enumerate(self.trained)]
        fields[0].set_yticks(range(len(names)), names, family="monospace")
        fields[0].set_ylabel("plane, and its turns in training")
        drawing.colorbar(fields[0].collections[-1], ax=list(fields), label="turns beyond training", extend="min")
        drawing.suptitle(self.title, fontsize="medium", wrap=True)
        drawing.legend(handles=[Patch(color=INSIDE, label="within training"),
                                Patch(color=WHOLE, label="saw every phase in training")],
                       loc="outside lower center", ncols=2, frameon=False)  # fmt: skip
        return drawing

    def _draw(self, axes: Axes, role: str, norm: LogNorm) -> None:
        from matplotlib.colors import ListedColormap
        from matplotlib.ticker import MaxNLocator

        frames, planes = self.turns[role].shape
        starts = np.arange(0, frames, -(-frames // COLUMNS))
        turns = np.fmax.reduceat(self.turns[role], starts)  # a column narrower than a pixel would be drawn or not
        excess = np.where(_outside(turns, self.trained), turns - self.trained, np.nan)
        known = np.where(np.isnan(turns), np.nan, self.trained >= 1)
        edges = np.append(starts, frames) - 0.5, np.arange(planes + 1) - 0.5
        axes.pcolormesh(*edges, known.T, cmap=ListedColormap([INSIDE, WHOLE]), vmin=0, vmax=1)
        axes.pcolormesh(*edges, excess.T, cmap="YlOrRd", norm=norm)
        axes.set_ylim(planes - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel(f"latent frame of the query; {self.rate:g} a second")
        axes.set_title(_pair(role), fontsize="medium")


def lint(
    config: PipelineConfig, card: Card, *, seconds: float | None = None, frames: int | None = None
) -> Lint:
    """What leaves the phases seen in training, in a video of `seconds`, rounded to whole chunks, or `frames` latent
    frames; what has no effect or no use there; and where code with a table of angles would fail.

    The passes are those of `arvid.simulate.views`: one prompt, hence no jump at a cut. Raises `TypeError` for what is
    no configuration or card, and `ValueError` unless exactly one length is given, for lengths that cannot be, and for
    what does not fit the card.
    """
    if not isinstance(config, PipelineConfig):
        raise TypeError(f"config={config!r}: give a PipelineConfig, such as arvid.preset('self_forcing')")
    if not isinstance(card, Card):
        raise TypeError(f"card={card!r}: give a Card, such as arvid.models.specs.card('self_forcing')")
    if (seconds is None) == (frames is None):
        raise ValueError(f"seconds={seconds}, frames={frames}: give the length of the video as one of them")
    config = resolved(config, card)
    assert config.chunk and config.rotary and config.cache and config.time and config.sampler
    rate = card.fps / card.vae.time_stride
    if frames is None:
        assert seconds is not None
        frames = latent_frames(seconds, card.fps, card.vae.time_stride, config.chunk)
    rollout = _Rollout(config.rotary, card, frames, views(config, frames))
    distance, turns = rollout.measure()
    title = (f"{config.rotary}, {config.time}, {config.cache}, {type(config.sampler).__name__}, chunk={config.chunk}, "
             f"card {card.name!r}, {frames} latent frames ({frames / rate:.4g} s)")
    findings = (*rollout.leaving(distance, turns), *rollout.rule(distance), *rollout.table())
    return Lint(title, rate, rollout.reach, rollout.trained, distance, turns, findings)


@dataclass(frozen=True)
class _Rollout:
    """The passes of a video, and the frequencies of each."""

    rotary: Rotary
    card: Card
    frames: int
    seen: Sequence[Seen]

    @property
    def reach(self) -> int:
        horizon = self.card.train_horizon
        return horizon if self.card.sink else min(horizon, self.card.window)

    @property
    def plain(self) -> Array:
        """Plain rope's frequencies, which the model was trained with, [planes]."""
        return Rope().inv_freq(self.context(0))

    @property
    def trained(self) -> Array:
        return self.reach * self.plain / (2 * np.pi)

    def context(self, end: int) -> RotaryContext:
        spec = self.card.dit
        return RotaryContext(spec.axes[0], spec.num_heads, self.card.train_horizon, self.frames, end)

    def measure(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """`Lint.distance` and `Lint.turns`."""
        distance: dict[str, Array] = {}
        turns: dict[str, Array] = {}
        committed: dict[tuple[int, int], Array] = {}
        for seen in self.seen:
            own = np.atleast_2d(self.rotary.inv_freq(self.context(seen.frames.stop)))
            times, rows = np.array(seen.group.times), slice(seen.frames.start, seen.frames.stop)
            for role in filter(seen.slots, ROLES):
                slots = seen.slots(role)
                keys = np.array([time for _, time in slots])
                stale = self.rotary.stale and role != FLYING
                turned = np.stack([committed[seen.lane, frame] for frame, _ in slots]) if stale else own
                phases = _farthest(times[:, None, None] * own, keys[:, None, None] * turned)
                _raise(distance, role, rows, _farthest(times, keys), self.frames)
                _raise(turns, role, rows, phases.max(1) / (2 * np.pi), self.frames)
            if seen.kind != Kind.DENOISE.value:
                committed |= {(seen.lane, frame): own for frame in seen.frames}
        roles = [role for role in ROLES if role in turns]
        return {role: distance[role] for role in roles}, {role: turns[role] for role in roles}

    def at(self, frame: int) -> str:
        return f"frame {frame} ({frame * self.card.vae.time_stride / self.card.fps:.4g} s)"

    def leaving(self, distance: Mapping[str, Array], turns: Mapping[str, Array]) -> Iterator[Finding]:
        """What turns further than in training, by role."""
        from arvid.plots.cache import ranges

        for role, found in turns.items():
            outside = _outside(found, self.trained)
            if not outside.any():
                continue
            planes = ranges((int(plane), int(plane)) for plane in np.flatnonzero(outside.any(0)))
            beyond = np.where(outside, found - self.trained, 0).max(0)
            worst = int(beyond.argmax())
            yield Finding(
                "warning", f"{_pair(role)}: planes {planes} turn further than in training from "
                f"{self.at(int(outside.any(1).argmax()))} on, up to {beyond[worst]:.3g} turns further (plane {worst}), "
                f"with keys up to {np.nanmax(distance[role]):g} frames away",
                self._advice(role, float(np.nanmax(distance[role]))),
            )  # fmt: skip

    def _advice(self, role: str, far: float) -> str:
        if far < self.reach:  # as in training: it is the rule that turns faster
            return "use rotary='rope', which stays within"
        near = max(seen.visible for seen in self.seen) <= self.reach
        if role == "sink" and near:
            how = "keep sinks near with time='sink_adjacent' or 'relative'"
        elif role == "memory" and near:
            how = "keep memory near with time='relative'"
        elif role == FLYING:
            how = f"have at most {self.reach} frames in flight"
        else:
            how = f"see at most {self.reach} frames"
        return how if isinstance(self.rotary, Scaled) else f"{how}, or slow these planes with rotary='flex' or 'pi'"

    def rule(self, distance: Mapping[str, Array]) -> Iterator[Finding]:
        """Where the frequency rule does nothing, or nothing of use."""
        rotary, contexts = self.rotary, [self.context(seen.frames.stop) for seen in self.seen]
        name, far = type(rotary).__name__, max(float(np.nanmax(each)) for each in distance.values())
        scales = [rotary.factor(context) for context in contexts] if isinstance(rotary, Scaled) else [1.0]
        lowest, highest = self._slowest_and_fastest(contexts)
        if lowest == highest == 1 and self._logits_are_plain(contexts):
            if rotary != Rope():
                inert = isinstance(rotary, Scaled) and scales[-1] == 1
                why = f": S is 1 in a video of {self.frames} frames" if inert else ""
                yield Finding("info", f"{name} is plain rope in every pass{why}",
                              "use rotary='rope', which does the same")  # fmt: skip
            return
        if scales[0] == 1 < scales[-1]:
            first = next(seen for seen, by in zip(self.seen, scales, strict=True) if by > 1)
            yield Finding("info", f"{name} does nothing before {self.at(first.frames.start)}, where S exceeds 1, and S "
                          f"is {scales[-1]:.4g} in the end", "use scale='total' for one S in all passes")  # fmt: skip
        if rotary.stale:
            yield Finding("warning", f"{name} leaves keys as their own pass rotated them while S grows to "
                          f"{scales[-1]:.4g}", "use scale='current'; 'stale' is an ablation")  # fmt: skip
        if isinstance(rotary, Scaled) and far < self.reach:
            yield Finding("warning", f"{name} takes frequencies down to {lowest:.3g} of those of training, though "
                          f"times lie at most {far:g} frames apart, as in training", "use rotary='rope'")  # fmt: skip

    def _slowest_and_fastest(self, contexts: Sequence[RotaryContext]) -> tuple[float, float]:
        """The smallest and the largest of the frequencies' ratios to those of training."""
        ratios = [self.rotary.inv_freq(context) / self.plain for context in contexts]
        return float(np.min(ratios)), float(np.max(ratios))

    def _logits_are_plain(self, contexts: Sequence[RotaryContext]) -> bool:
        times = np.arange(self.frames, dtype=np.float64)
        bias = self.rotary.bias(times[-1:], times)
        return (bias is None or not bias.any()) and all(self.rotary.logit_scale(c) == UNSCALED for c in contexts)

    def table(self) -> Iterator[Finding]:
        """Where code that looks angles up in a table fails."""
        late = (frame for seen in self.seen for frame, time in seen.slots(FLYING) if time >= TABLE)
        moved = (seen.frames.start for seen in self.seen
                 for ref, time in zip(seen.group.refs, seen.group.ref_times, strict=True)
                 if ref.at is not None and abs(time - ref.at) >= TABLE)  # fmt: skip
        if (first := next(late, None)) is not None:
            yield Finding("info", f"times reach {TABLE} at {self.at(first)}, where code with Wan's table of {TABLE} "
                          "times raises", "nothing, angles are computed here; other code needs a longer table")
        if (first := next(moved, None)) is not None:
            yield Finding("info", f"keys are moved by {TABLE} frames or more from {self.at(first)} on, where code that "
                          f"turns rotated keys by Wan's table of {TABLE} times clamps the move",
                          "nothing, keys are rotated at read here")  # fmt: skip


def _farthest(queries: Array, keys: Array) -> Array:
    """The largest |query - key| over all keys, for each query."""
    return np.maximum(queries - keys.min(0), keys.max(0) - queries)


def _raise(arrays: dict[str, Array], role: str, rows: slice, values: Array, frames: int) -> None:
    """Let `arrays[role]`, all NaN at first, be no smaller than `values` in `rows`."""
    into = arrays.setdefault(role, np.full((frames, *values.shape[1:]), np.nan))
    into[rows] = np.fmax(into[rows], values)


def _outside(turns: Array, trained: Array) -> NDArray[np.bool_]:
    return (turns >= trained * (1 - ROUNDING)) & (trained < 1)


def _pair(role: str) -> str:
    return role if role == FLYING else f"{role} -> query"


class _Callable(ModuleType):
    __call__ = staticmethod(lint)


sys.modules[__name__].__class__ = _Callable
