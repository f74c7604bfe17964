"""The store: pages of keys and values, one frame each; the only file that moves them.

Keys come in after qk-norm, unrotated. They are kept with height and width rotated and time not, and the temporal
rotation is applied at read, once per chunk and layer; where times and frequencies are static, fully rotated keys are
kept and no second copy. A rotated key is never rotated again: in bf16 the error would grow with every chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from arvid.positional.rotation import Phase, phase, rotate, space_angles, time_angles, token_angles

from .base import CachePolicy, Group, Kind, Pass, Plan, Ref, after_commit

Index = slice | Tensor


class StoreShape(NamedTuple):
    """Sizes of what is stored: network layers, rows of the batch, (rows, columns) of tokens of a frame, heads, and the
    channels of a head rotated by (time, height, width)."""

    layers: int
    batch: int
    grid: tuple[int, int]
    heads: int
    axes: tuple[int, int, int]


class _Place(NamedTuple):
    """Where a held frame is, and the time it was committed at."""

    page: int
    time: float


@dataclass(frozen=True)
class _Book:
    """What is held, sorted in time, and where. `end` is the first frame that was never committed."""

    held: tuple[Ref, ...] = ()
    places: dict[int, _Place] = field(default_factory=dict)
    end: int = 0


@dataclass
class _History:
    """One (lane, branch). Keys and values of a layer are [B, pages, tokens, h, d]."""

    keys: list[Tensor]
    values: list[Tensor]
    book: _Book = field(default_factory=_Book)
    undo: tuple[range, _Book] | None = None  # the last commit, while nothing came after it: its frames, what it found
    read: list[Tensor] = field(default_factory=list)  # keys as a pass sees them, [B, visible, tokens, h, d]
    read_of: tuple | None = None  # the view that `read` holds,
    read_layers: set[int] = field(default_factory=set)  # in these layers


@dataclass(frozen=True)
class _Current:
    """The pass in progress. `scratch` are the pages of its frames; the rest indexes pages or visible frames."""

    new: Pass
    history: _History
    scratch: list[int]
    times: tuple[float, ...]
    visible: int
    scratch_pages: Index
    view_pages: Index
    new_at: Index
    old_at: Index
    old_pages: Index
    phase: Phase
    old_phase: Phase
    bias: Tensor | None


class Store:
    """Keys and values of held frames, by (lane, branch).

    `begin(pass, plan, inv_freq)`, then `exchange(layer, k, v)` once a layer, then, for a COMMIT, `end()`.
    `rotated` keeps fully rotated keys, right only where times and frequencies are static. `pages` is how many frames
    to allocate at first; a store that needs more grows.
    """

    def __init__(
        self, shape: StoreShape, policy: CachePolicy, *, rotated: bool, pages: int = 0,
        dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.shape, self.policy, self.rotated, self.first_pages = shape, policy, rotated, pages
        self.dtype, self.device = dtype, torch.device(device)
        self._space = space_angles(shape.grid, shape.axes)
        self.reset()

    def reset(self) -> None:
        """Forget everything and free the pages."""
        self._histories: dict[tuple[int, int], _History] = {}
        self._buffers: dict[str, Tensor] = {}
        self._pass: _Current | None = None
        self._static_freq: np.ndarray | None = None
        self._last_phase: tuple[tuple, Phase] | None = None
        self._space_phase = self._put_phase("space", self._space[:, None])

    @property
    def live_bytes(self) -> int:
        """Bytes of all pages and read buffers."""
        every = [t for h in self._histories.values() for t in (*h.keys, *h.values, *h.read)]
        return sum(t.numel() * t.element_size() for t in every)

    @property
    def phase(self) -> Phase:
        """The rotation of the pass's own tokens, for its queries."""
        return self._current.phase

    @property
    def bias(self) -> Tensor | None:
        """Additive logits of the visible tokens, [1, 1, 1, visible tokens]; None where all are 0."""
        return self._current.bias

    def pages(self, lane: int = 0, branch: int = 0) -> int:
        """How many frames fit without growing."""
        history = self._histories.get((lane, branch))
        return history.keys[0].shape[1] if history else 0

    def held(self, lane: int = 0, branch: int = 0) -> tuple[Ref, ...]:
        """The frames held, sorted in time."""
        history = self._histories.get((lane, branch))
        return history.book.held if history else ()

    def page(self, frame: int, layer: int, lane: int = 0, branch: int = 0) -> tuple[Tensor, Tensor]:
        """A held frame's stored keys and values, each [B, tokens, h, d] (views; for tests and inspection)."""
        history = self._histories[lane, branch]
        page = history.book.places[frame].page
        return history.keys[layer][:, page], history.values[layer][:, page]

    def before(self, new: Pass) -> tuple[Ref, ...]:
        """The history `new` is planned against: the frames held, or for a chunk that is committed once more, those held
        before it was. Raises `ValueError` for frames that are not next in time and were not the last committed."""
        return self._found(self._history(new), new).held

    def begin(self, new: Pass, plan: Plan, inv_freq: np.ndarray) -> None:
        """Put a pass's indices, angles and biases into device buffers. `inv_freq`: [planes] or [heads, planes].

        Raises `ValueError` as `before`, for a plan over whole sequences, and where rotated keys would have to turn.
        """
        if plan.inside or len(plan.groups) != 1:
            raise ValueError("a store runs plans of one group over held frames, as make_plan makes them; "
                             "run whole-sequence plans with PlannedAttention")
        (group,) = plan.groups
        history = self._history(new)
        book = self._found(history, new)
        if self.rotated:
            self._check_static(book, group, inv_freq)
        history.book, history.undo = book, None
        scratch = self._scratch(history, len(new.frames))
        shown = [
            (book.places[ref.frame].page, time, ref.bias)
            for ref, time in zip(group.refs, group.ref_times, strict=True)
        ]
        own = [(page, time, 0.0) for page, time in zip(scratch, group.times, strict=True)]
        # Order does not matter to attention, and sorted pages are one slice once the window is full.
        view = sorted(shown + own)
        pages, times, bias = zip(*view, strict=True)
        old = [i for i, page in enumerate(pages) if page not in scratch]
        if history.read_of != (read_of := (tuple(view[i][:2] for i in old), len(view), inv_freq.tobytes())):
            history.read_of = read_of
            history.read_layers.clear()
        self._pass = _Current(
            new, history, scratch, group.times, len(view),
            scratch_pages=self._index("scratch", scratch),
            view_pages=self._index("view", pages),
            new_at=self._index("new", [pages.index(page) for page in scratch]),
            old_at=self._index("old", old),
            old_pages=self._index("old pages", [pages[i] for i in old]),
            phase=self._token_phase(group.times, inv_freq),
            old_phase=self._put_phase("time", time_angles(tuple(times[i] for i in old), inv_freq).unsqueeze(1)),
            bias=self._put_bias(bias),
        )  # fmt: skip

    def exchange(self, layer: int, k_BNhd: Tensor, v_BNhd: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values that the pass sees in a layer, [B, visible tokens, h, d], its own included.

        Takes the pass's own, [B, tokens in flight, h, d], keys after qk-norm and unrotated.
        """
        now = self._current
        keys, values = now.history.keys[layer], now.history.values[layer]
        own = self._by_frame(rotate(k_BNhd, now.phase))
        values[:, now.scratch_pages] = self._by_frame(v_BNhd)
        seen_values = values[:, now.view_pages].flatten(1, 2)
        if self.rotated:
            keys[:, now.scratch_pages] = own
            return keys[:, now.view_pages].flatten(1, 2), seen_values
        if now.new.kind is Kind.COMMIT:
            raw, time = self._by_frame(k_BNhd), self.shape.axes[0]
            keys[:, now.scratch_pages, ..., :time] = raw[..., :time]
            keys[:, now.scratch_pages, ..., time:] = rotate(raw[..., time:], self._space_phase)
        read = self._read(now, layer)
        read[:, now.new_at] = own
        return read.flatten(1, 2), seen_values

    def end(self) -> None:
        """Finish a COMMIT: its frames are held from now on, and those the policy does not keep are not."""
        now = self._current
        if now.new.kind is not Kind.COMMIT:
            raise ValueError("end() finishes a COMMIT; a DENOISE has nothing to finish")
        history, found = now.history, now.history.book
        held = after_commit(self.policy, found.held, now.new)
        places = found.places | dict(zip(now.new.frames, map(_Place, now.scratch, now.times), strict=True))
        history.book = _Book(held, {ref.frame: places[ref.frame] for ref in held}, now.new.frames.stop)
        history.undo = now.new.frames, found
        history.read_of = self._pass = None

    @property
    def _current(self) -> _Current:
        if self._pass is None:
            raise RuntimeError("no pass is in progress: call begin() first")
        return self._pass

    def _history(self, new: Pass) -> _History:
        key = new.lane, new.branch
        if key not in self._histories:
            keys, values = ([self._new_pages(self.first_pages) for _ in range(self.shape.layers)] for _ in range(2))
            self._histories[key] = _History(keys, values)
        return self._histories[key]

    @staticmethod
    def _found(history: _History, new: Pass) -> _Book:
        """The book that `new` finds: the history's, or for a repeated COMMIT the one before it."""
        if new.frames.start >= history.book.end:
            return history.book
        if new.kind is Kind.COMMIT and history.undo and history.undo[0] == new.frames:
            return history.undo[1]
        raise ValueError(
            f"{new.kind.value} of frames {new.frames.start}..{new.frames.stop - 1}: frames up to "
            f"{history.book.end - 1} are committed; a pass continues after them, or commits the last ones again before "
            "any other pass"
        )

    def _check_static(self, book: _Book, group: Group, inv_freq: np.ndarray) -> None:
        for ref, time in zip(group.refs, group.ref_times, strict=True):
            if time != (then := book.places[ref.frame].time):
                raise ValueError(
                    f"frame {ref.frame} was committed at time {then:g} and is now seen at {time:g}, but its key is "
                    "stored rotated: set `static = False` on the cache policy or time map that moves it"
                )
        if self._static_freq is None:
            self._static_freq = inv_freq.copy()
        elif not np.array_equal(self._static_freq, inv_freq):
            raise ValueError("the frequencies changed between passes, but keys are stored rotated: "
                             "set `static = False` on the frequency rule")

    def _new_pages(self, count: int) -> Tensor:
        s = self.shape
        size = s.batch, count, s.grid[0] * s.grid[1], s.heads, sum(s.axes)
        return torch.zeros(size, dtype=self.dtype, device=self.device)

    def _scratch(self, history: _History, count: int) -> list[int]:
        """Free pages for the frames in flight, lowest first; adds pages where there are too few."""
        used = {place.page for place in history.book.places.values()}
        pages = history.keys[0].shape[1]
        if (more := len(used) + count - pages) > 0:
            more = max(more, pages // 2)  # in proportion, so that a history that grows for ever is copied rarely
            for tensors in (history.keys, history.values):
                for layer, old in enumerate(tensors):
                    tensors[layer] = torch.cat((old, self._new_pages(more)), 1)
        return [page for page in range(pages + max(more, 0)) if page not in used][:count]

    def _read(self, now: _Current, layer: int) -> Tensor:
        """The layer's read buffer, with the keys of held frames rotated to their times in this pass."""
        history, time = now.history, self.shape.axes[0]
        if not history.read:
            history.read = [self._new_pages(0) for _ in range(self.shape.layers)]
        if history.read[layer].shape[1] != now.visible:
            history.read[layer] = self._new_pages(now.visible)
        read = history.read[layer]
        if layer not in history.read_layers:
            old = history.keys[layer][:, now.old_pages]
            read[:, now.old_at, ..., :time] = rotate(old[..., :time], now.old_phase)
            read[:, now.old_at, ..., time:] = old[..., time:]
            history.read_layers.add(layer)
        return read

    def _by_frame(self, x_BNhd: Tensor) -> Tensor:
        return x_BNhd.unflatten(1, (-1, len(self._space))).to(self.dtype)

    def _index(self, name: str, indices: Sequence[int]) -> Index:
        """A slice where the indices are a run (its view is no copy), else an index tensor."""
        first = indices[0] if indices else 0
        if list(indices) == list(range(first, first + len(indices))):
            return slice(first, first + len(indices))
        return self._put(name, torch.tensor(indices))

    def _token_phase(self, times: tuple[float, ...], inv_freq: np.ndarray) -> Phase:
        """Of the frames in flight; made once for all passes of a chunk, for angles of all its tokens take a while."""
        key = times, inv_freq.tobytes()
        if self._last_phase is None or self._last_phase[0] != key:
            angles = token_angles(time_angles(times, inv_freq), self._space)
            self._last_phase = key, self._put_phase("token", angles)
        return self._last_phase[1]

    def _put_phase(self, name: str, angles: Tensor) -> Phase:
        value = phase(angles, self.dtype)
        return Phase(self._put(f"{name} cos", value.cos), self._put(f"{name} sin", value.sin))

    def _put_bias(self, bias: Sequence[float]) -> Tensor | None:
        if not any(bias):
            return None
        per_token = torch.tensor(bias, dtype=self.dtype).repeat_interleave(len(self._space))
        return self._put("bias", per_token[None, None, None])

    def _put(self, name: str, value: Tensor) -> Tensor:
        """`value` on the device, at the address a value of this name and shape had before."""
        held = self._buffers.get(name)
        if held is None or held.shape != value.shape or held.dtype != value.dtype:
            held = self._buffers[name] = torch.empty_like(value, device=self.device)
        return held.copy_(value, non_blocking=True)
