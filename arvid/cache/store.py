"""The store: pages of keys and values, one frame each; the only file that moves them.

Keys come in after qk-norm, unrotated. They are kept with height and width rotated and time not, and the temporal rotation
is applied at read, once per chunk and layer; where times and frequencies are static, fully rotated keys are kept and no
second copy. A rotated key is never rotated again: in bf16 the error would grow with every chunk.
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


class StoreShape(NamedTuple):
    """Sizes of what is stored: network layers, rows of the batch, (rows, columns) of tokens of a frame, heads, and the
    channels of a head rotated by (time, height, width)."""

    layers: int
    batch: int
    grid: tuple[int, int]
    heads: int
    axes: tuple[int, int, int]


@dataclass
class _History:
    """One (lane, branch): pages of every layer, and which frame is on which page."""

    keys: list[Tensor]  # a layer: [B, pages, tokens, h, d]
    values: list[Tensor]
    held: tuple[Ref, ...] = ()
    page: dict[int, int] = field(default_factory=dict)
    time: dict[int, float] = field(default_factory=dict)  # of each frame, when it was committed
    read: list[Tensor] = field(default_factory=list)  # keys as the pass sees them, [B, visible, tokens, h, d]
    read_key: tuple | None = None  # the view that `read` holds
    read_layers: set[int] = field(default_factory=set)
    undo: tuple[range, tuple[Ref, ...], dict[int, int], dict[int, float]] | None = None  # last commit: frames, what it found

    @property
    def pages(self) -> int:
        return self.keys[0].shape[1]


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
        self._histories: dict[tuple[int, int], _History] = {}
        self._space = space_angles(shape.grid, shape.axes)
        self._buffers: dict[str, Tensor] = {}
        self._pass: Pass | None = None

    @property
    def live_bytes(self) -> int:
        """Bytes of all pages and read buffers."""
        every = [t for h in self._histories.values() for t in (*h.keys, *h.values, *h.read)]
        return sum(t.numel() * t.element_size() for t in every)

    def held(self, lane: int = 0, branch: int = 0) -> tuple[Ref, ...]:
        """The frames held, sorted in time."""
        history = self._histories.get((lane, branch))
        return history.held if history else ()

    def page(self, frame: int, layer: int, lane: int = 0, branch: int = 0) -> tuple[Tensor, Tensor]:
        """A held frame's stored keys and values, each [B, tokens, h, d] (views; for tests and inspection)."""
        history = self._histories[lane, branch]
        return history.keys[layer][:, history.page[frame]], history.values[layer][:, history.page[frame]]

    def reset(self) -> None:
        """Forget everything and free the pages."""
        self._histories.clear()
        self._buffers.clear()
        self._pass = None

    def before(self, new: Pass) -> tuple[Ref, ...]:
        """The history `new` is planned against: the frames held, or for a chunk that is committed once more, those held
        before it was. Raises `ValueError` for frames that are not next in time and were not the last committed."""
        history = self._history(new)
        if not history.held or new.frames.start > history.held[-1].frame:
            return history.held
        if new.kind is Kind.COMMIT and history.undo and history.undo[0] == new.frames:
            return history.undo[1]
        raise ValueError(f"{new.kind.value} of frames {new.frames.start}..{new.frames.stop - 1}: frames up to {history.held[-1].frame} are "
                         "committed; a pass continues after them, or commits the last ones again before any other pass")

    def begin(self, new: Pass, plan: Plan, inv_freq: np.ndarray) -> None:
        """Put a pass's indices, angles and biases into device buffers. `inv_freq`: [planes] or [heads, planes]."""
        (group,) = plan.groups
        history = self._history(new)
        self.before(new)
        if history.undo and history.undo[0] == new.frames:
            _, history.held, history.page, history.time = history.undo
        history.undo = None
        scratch = self._scratch(history, len(new.frames))
        if self.rotated:
            self._check_static(history, group)
        pages = [history.page[ref.frame] for ref in group.refs]
        times, bias = list(group.ref_times), [ref.bias for ref in group.refs]
        view = [*zip(pages, times, bias, strict=True), *((p, t, 0.0) for p, t in zip(scratch, group.times, strict=True))]
        if len(set(pages)) == len(pages):
            view.sort()  # order does not matter to attention, and sorted pages are one slice once the window is full
        order = [p for p, _, _ in view]
        self._scratch_pages, self._view = self._span("scratch", scratch), self._span("view", order)
        self._new_at = self._span("new", [order.index(p) for p in scratch])
        old = [i for i, p in enumerate(order) if p not in scratch]
        self._old_at, self._old_pages = self._span("old", old), self._span("pages", [order[i] for i in old])
        self._phase = self._put_phase("token", token_angles(time_angles(group.times, inv_freq), self._space))
        if not self.rotated:
            self._space_phase = self._put_phase("space", self._space[:, None])
            angles = time_angles(tuple(view[i][1] for i in old), inv_freq)
            self._old_phase = self._put_phase("old time", angles.unsqueeze(1))
            key = (tuple(view[i][:2] for i in old), len(view), inv_freq.tobytes())
            if history.read_key != key:
                history.read_key = key
                history.read_layers.clear()
        self._bias = None
        if any(bias):
            per_token = torch.tensor([b for _, _, b in view]).repeat_interleave(len(self._space))
            self._bias = self._put("bias", per_token.to(self.dtype))
        self._pass, self._current, self._scratch_list, self._times = new, history, scratch, group.times

    def exchange(self, layer: int, k_BNhd: Tensor, v_BNhd: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values that the pass sees in a layer, [B, visible tokens, h, d], its own included.

        Takes the pass's own, [B, tokens in flight, h, d], keys after qk-norm and unrotated.
        """
        h = self._current
        frames = (-1, len(self._space))
        keys, values = h.keys[layer], h.values[layer]
        turned = rotate(k_BNhd, self._phase).unflatten(1, frames)
        values[:, self._scratch_pages] = v_BNhd.unflatten(1, frames).to(self.dtype)
        if self.rotated:
            keys[:, self._scratch_pages] = turned.to(self.dtype)
            return keys[:, self._view].flatten(1, 2), values[:, self._view].flatten(1, 2)
        time = self.shape.axes[0]
        if self._pass is not None and self._pass.kind is Kind.COMMIT:
            raw = k_BNhd.unflatten(1, frames)
            keys[:, self._scratch_pages, ..., :time] = raw[..., :time].to(self.dtype)
            keys[:, self._scratch_pages, ..., time:] = rotate(raw[..., time:], self._space_phase).to(self.dtype)
        read = self._read_buffer(h, layer)
        if layer not in h.read_layers:
            old = keys[:, self._old_pages]
            read[:, self._old_at, ..., time:] = old[..., time:]
            read[:, self._old_at, ..., :time] = rotate(old[..., :time], self._old_phase)
            h.read_layers.add(layer)
        read[:, self._new_at] = turned.to(self.dtype)
        return read.flatten(1, 2), values[:, self._view].flatten(1, 2)

    @property
    def phase(self) -> Phase:
        """The rotation of the pass's own tokens, for its queries."""
        return self._phase

    @property
    def bias(self) -> Tensor | None:
        """Additive logits of the visible tokens, [visible tokens]; None where all are 0."""
        return self._bias

    def end(self) -> None:
        """Finish a COMMIT: its frames are held from now on, and those the policy does not keep are not."""
        new, h = self._pass, self._current
        if new is None or new.kind is not Kind.COMMIT:
            raise ValueError("end() finishes a COMMIT; a DENOISE has nothing to finish")
        found = h.held, dict(h.page), dict(h.time)
        h.page.update(zip(new.frames, self._scratch_list, strict=True))
        h.time.update(zip(new.frames, self._times, strict=True))
        h.held = after_commit(self.policy, h.held, new)
        h.page = {ref.frame: h.page[ref.frame] for ref in h.held}
        h.time = {ref.frame: h.time[ref.frame] for ref in h.held}
        h.undo = (new.frames, *found)
        h.read_key = self._pass = None

    @staticmethod
    def _check_static(h: _History, group: Group) -> None:
        for ref, time in zip(group.refs, group.ref_times, strict=True):
            if time != h.time[ref.frame]:
                raise ValueError(
                    f"frame {ref.frame} was committed at time {h.time[ref.frame]:g} and is now seen at {time:g}, but its key is stored "
                    "rotated: set `static = False` on the cache policy or time map that moves it"
                )

    def _history(self, new: Pass) -> _History:
        key = new.lane, new.branch
        if key not in self._histories:
            self._histories[key] = _History(*([self._pages(self.first_pages) for _ in range(self.shape.layers)] for _ in range(2)))
        return self._histories[key]

    def _pages(self, count: int) -> Tensor:
        s = self.shape
        return torch.zeros(s.batch, count, s.grid[0] * s.grid[1], s.heads, sum(s.axes), dtype=self.dtype, device=self.device)

    def _scratch(self, h: _History, count: int) -> list[int]:
        """Free pages for the frames in flight, lowest first; adds pages where there are too few."""
        used = set(h.page.values())
        if (more := len(used) + count - h.pages) > 0:
            more = max(more, h.pages // 2)  # in proportion, so that a history that grows for ever is copied rarely
            for tensors in (h.keys, h.values):
                for layer, old in enumerate(tensors):
                    tensors[layer] = torch.cat((old, self._pages(more)), 1)
        return [p for p in range(h.pages) if p not in used][:count]

    def _read_buffer(self, h: _History, layer: int) -> Tensor:
        if not h.read:
            h.read = [self._pages(0) for _ in range(self.shape.layers)]
        visible = h.read_key[1] if h.read_key else 0
        if h.read[layer].shape[1] != visible:
            h.read[layer] = self._pages(visible)
        return h.read[layer]

    def _span(self, name: str, indices: Sequence[int]) -> slice | Tensor:
        """A slice where the indices are a run (its view is no copy), else an index tensor."""
        first = indices[0] if indices else 0
        if list(indices) == list(range(first, first + len(indices))):
            return slice(first, first + len(indices))
        return self._put(name, torch.tensor(indices))

    def _put_phase(self, name: str, angles: Tensor) -> Phase:
        value = phase(angles, self.dtype)
        return Phase(self._put(f"{name} cos", value.cos), self._put(f"{name} sin", value.sin))

    def _put(self, name: str, value: Tensor) -> Tensor:
        """`value` on the device, at the address a value of this name and shape had before."""
        held = self._buffers.get(name)
        if held is None or held.shape != value.shape or held.dtype != value.dtype:
            held = self._buffers[name] = torch.empty_like(value, device=self.device)
        return held.copy_(value, non_blocking=True)
