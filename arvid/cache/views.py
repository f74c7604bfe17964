"""What a pass is shown of its history, layer by layer: the keys, rotated to the times they have in it, and the values.

`Direct` views are slices of pages and buffers that are filled once a chunk. `Composed` views are put together anew in
every pass, one layer at a time: pages that a codec must decode, and tokens that a policy chooses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arvid.positional.base import LogitScale
from arvid.positional.rotation import Phase, phase, rotate, scale, space_angles, time_angles, token_angles

from .base import CachePolicy, Group, Kind, Pass, Ref, Scene
from .history import Half, History, Index, Spot, StoreShape, Where


class Entry(NamedTuple):
    """A frame as a pass sees it; `column` is its place in the plan, refs first."""

    spot: Spot
    time: float
    bias: float
    frame: int
    column: int


@dataclass(frozen=True)
class Current:
    """A pass in progress: its own frames, the held ones it sees, and those it chooses tokens from; for a COMMIT also
    where the surviving ones of these will have the packed tokens, and all that is held after it. `scale` and `bias`,
    [frames in flight, columns], are those of the logits."""

    new: Pass
    history: History
    group: Group
    inv_freq: np.ndarray
    own: list[Entry]
    shown: list[Entry]
    memory: list[Entry]
    packed: Mapping[int, Spot]
    after: tuple[Ref, ...]
    scale: LogitScale
    bias: NDArray[np.float64] | None


class Held(NamedTuple):
    """Held pages to read: pages by pool, their frames' times [F], the rotation by these, by how much these differ from
    the slots that the frames stand for [F], and on which of the pages tokens have times of their own (None: on none),
    which differ by as much from the frames they came from."""

    pages: Where
    times: Tensor
    phase: Phase
    shift: Tensor
    own_times: Tensor | None


class Buffers:
    """Values at addresses that stay, as compiled passes and CUDA graphs need them."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._held: dict[str, Tensor] = {}

    def put(self, name: str, value: Tensor) -> Tensor:
        """`value` on the device, at the address a value of this name and shape had before."""
        held = self._held.get(name)
        if held is None or held.shape != value.shape or held.dtype != value.dtype:
            held = self._held[name] = torch.empty_like(value, device=self.device)
        return held.copy_(value, non_blocking=True)

    def phase(self, name: str, angles: Tensor) -> Phase:
        """The rotation by `angles`."""
        value = phase(angles, self.dtype)
        return Phase(self.put(f"{name} cos", value.cos), self.put(f"{name} sin", value.sin))

    def index(self, name: str, indices: Sequence[int]) -> Index:
        """A slice where the indices are a run (its view is no copy), else an index tensor."""
        first = indices[0] if indices else 0
        if list(indices) == list(range(first, first + len(indices))):
            return slice(first, first + len(indices))
        return self.put(name, torch.tensor(indices))

    def where(self, name: str, spots: Sequence[Spot]) -> Where:
        """Spots by pool."""
        found: Where = []
        for pool in sorted({pool for pool, _ in spots}):
            at = [i for i, spot in enumerate(spots) if spot[0] == pool]
            pages = self.index(f"{name} pages {pool}", [spots[i][1] for i in at])
            found.append((pool, pages, self.index(f"{name} at {pool}", at)))
        return found


class Views(ABC):
    """The views of one store. `begin` a pass, then `exchange` for each layer."""

    def __init__(self, shape: StoreShape, policy: CachePolicy, device: torch.device, dtype: torch.dtype) -> None:
        self.shape, self.policy, self.dtype = shape, policy, dtype
        self.buffers = Buffers(device, dtype)
        self.space = space_angles(shape.grid, shape.axes)
        self._space_phase = self.buffers.phase("space", self.space[:, None])
        self._phase_of: tuple | None = None
        self.queries: list[Tensor] = []  # what the policy asks for of the last frames, once a COMMIT has run
        self.phase: Phase
        self.bias: Tensor | None = None

    @abstractmethod
    def begin(self, now: Current) -> None:
        """Put a pass's indices, angles and biases into buffers."""

    @abstractmethod
    def exchange(self, layer: int, k_BNhd: Tensor, v_BNhd: Tensor, q_BNhd: Tensor | None) -> tuple[Tensor, Tensor]:
        """What `Store.exchange` gives."""

    def _turn(self, now: Current) -> None:
        """The rotation of the pass's own tokens; made once for all passes of a chunk, for it takes a while."""
        of = now.group.times, now.inv_freq.tobytes()
        if self._phase_of != of:
            self.phase = self.buffers.phase("own", token_angles(time_angles(now.group.times, now.inv_freq), self.space))
            self._phase_of = of

    def _set_logits(self, now: Current, view: Sequence[Entry | None]) -> None:
        """Scale and additive logits of what is visible, in this order (None: chosen tokens), [1, 1, 1 or frames in
        flight, visible tokens]; no bias where all are 0."""
        self.scale = now.scale
        bias = np.array([[entry.bias if entry else 0.0 for entry in view]])
        if now.bias is not None:
            bias = bias + now.bias[:, [entry.column for entry in view if entry]]
        per_token = torch.from_numpy(bias).to(self.dtype).repeat_interleave(self.shape.tokens, 1)
        self.bias = self.buffers.put("bias", per_token[None, None]) if bias.any() else None

    def by_frame(self, x_BNhd: Tensor) -> Tensor:
        """[B, F, tokens, h, d], in the store's dtype."""
        return x_BNhd.unflatten(1, (-1, self.shape.tokens)).to(self.dtype)

    def untimed(self, x_BNhd: Tensor) -> Tensor:
        """By frame, rotated by height and width only: [B, F, tokens, h, d]."""
        x, time = self.by_frame(x_BNhd), self.shape.axes[0]
        return torch.cat((x[..., :time], rotate(x[..., time:], self._space_phase)), -1)


class Direct(Views):
    """Views without a copy once the window is full: of rotated pages, or of a buffer of rotated keys that the passes of
    a chunk share."""

    def __init__(
        self, shape: StoreShape, policy: CachePolicy, device: torch.device, dtype: torch.dtype, rotated: bool
    ) -> None:
        super().__init__(shape, policy, device, dtype)
        self.rotated = rotated

    def begin(self, now: Current) -> None:
        self._now = now
        # Order does not matter to attention, and sorted pages are one slice.
        view = sorted([*now.own, *now.shown])
        new = [view.index(entry) for entry in now.own]
        old = [i for i in range(len(view)) if i not in new]
        put = self.buffers
        self._own = put.index("own", [entry.spot[1] for entry in now.own])
        self._new, self._old = put.index("new", new), put.index("old", old)
        self._view = put.index("view", [entry.spot[1] for entry in view])
        self._set_logits(now, view)
        self._turn(now)
        if self.rotated:
            return
        times, self._visible = tuple(view[i].time for i in old), len(view)
        self._old_pages = put.index("old pages", [view[i].spot[1] for i in old])
        self._old_phase = put.phase("old", time_angles(times, now.inv_freq).unsqueeze(1))
        read_of = tuple(view[i].spot for i in old), times, len(view), now.inv_freq.tobytes()
        if now.history.read_of != read_of:
            now.history.read_of = read_of
            now.history.read_layers.clear()

    def exchange(self, layer: int, k_BNhd: Tensor, v_BNhd: Tensor, q_BNhd: Tensor | None) -> tuple[Tensor, Tensor]:
        history = self._now.history
        keys, values = history.keys[0][layer], history.values[0][layer]
        own = self.by_frame(rotate(k_BNhd, self.phase))
        values.write(self._own, self.by_frame(v_BNhd))
        if self.rotated:
            keys.write(self._own, own)
            seen = keys.read(self._view, self.dtype)
        else:
            if self._now.new.kind is Kind.COMMIT:
                keys.write(self._own, self.untimed(k_BNhd))
            seen = self._read(history, layer)
            seen[:, self._new] = own
        return seen.flatten(1, 2), values.read(self._view, self.dtype).flatten(1, 2)

    def _read(self, history: History, layer: int) -> Tensor:
        """The layer's buffer, with the keys of held frames rotated to their times in this pass."""
        s, time = self.shape, self.shape.axes[0]
        size = s.batch, self._visible, s.tokens, s.heads, sum(s.axes)
        if not history.read:
            history.read = [torch.empty(0, device=self.buffers.device)] * s.layers
        if history.read[layer].shape != size:
            history.read[layer] = torch.empty(size, dtype=self.dtype, device=self.buffers.device)
        read = history.read[layer]
        if layer not in history.read_layers:
            old = history.keys[0][layer].read(self._old_pages, self.dtype)
            read[:, self._old, ..., :time] = rotate(old[..., :time], self._old_phase)
            read[:, self._old, ..., time:] = old[..., time:]
            history.read_layers.add(layer)
        return read


class Composed(Views):
    """Views whose held part is decoded, rotated and chosen in every pass; nothing of it outlives the layer."""

    def begin(self, now: Current) -> None:
        self._now, put = now, self.buffers
        self._own = put.where("own", [entry.spot for entry in now.own])
        shown = sorted(now.shown)
        packed = {ref.frame for ref in now.history.book.held if ref.role == "memory"}
        self._held = self._some("held", now, shown, packed)
        memory = sorted(now.memory, key=lambda entry: entry.frame)
        moving = {entry.frame for entry in memory} if self.policy.compacts else set()
        self._memory = self._some("memory", now, memory, moving)
        self._packed = put.index("packed", [page for _, page in now.packed.values()])
        self._frames = put.put("frames", torch.tensor([float(f) for f in now.new.frames], dtype=torch.float64))
        routed = now.group.routed or 0
        self._set_logits(now, [*shown, *[None] * routed, *now.own])
        self._turn(now)
        self._frequencies = put.put("frequencies", torch.from_numpy(np.array(now.inv_freq, dtype=np.float64, ndmin=2)))
        book = now.history.book
        asked = book.queries[0].shape[1] if book.queries else 0
        shift = now.group.times[0] - now.new.frames.start  # for frames that are not seen
        seen = {ref.frame: time for ref, time in zip(now.group.refs, now.group.ref_times, strict=True)
                if ref.at == ref.frame}  # fmt: skip
        past = tuple(seen.get(frame, frame + shift) for frame in range(book.end - asked, book.end))
        self._past_phase = put.phase("past", time_angles(past, now.inv_freq))
        self.queries = []
        # A chunk's first pass chooses for all of them; the level rises only where the chunk is begun once more.
        level, history = max(chunk.sigma for chunk in now.new.chunks), now.history
        again = history.routed and history.routed[0] == now.new.frames
        if not (again and history.routed and (now.new.kind is Kind.COMMIT or level < history.routed[1])):
            history.routes, history.routed = {}, (now.new.frames, level)

    def exchange(self, layer: int, k_BNhd: Tensor, v_BNhd: Tensor, q_BNhd: Tensor | None) -> tuple[Tensor, Tensor]:
        now, history = self._now, self._now.history
        keys, values = [self._turned(layer, self._held)], [self._stored(history.values, layer, self._held)]
        commit = now.new.kind is Kind.COMMIT
        if now.memory:
            scene = self._scene(layer, q_BNhd)
            if layer not in history.routes:
                history.routes[layer] = self._checked(self.policy.route(layer, scene), now.group.routed or 0, "route")
            chosen = history.routes[layer]
            keys.append(self._pick(scene.k_BMhd, chosen))
            values.append(self._pick(scene.v_BMhd, chosen))
            if commit and now.packed:
                self._pack(layer, self._checked(self.policy.compact(layer, scene, chosen), len(now.packed), "compact"))
        if commit and self.policy.queries:
            self._ask(layer, q_BNhd)
        own_v = self.by_frame(v_BNhd)
        if commit:
            history.write(self._own, layer, self.untimed(k_BNhd), own_v)
            self._name_sources(layer)
        keys.append(self.by_frame(rotate(k_BNhd, self.phase)))
        values.append(own_v)
        return torch.cat(keys, 1).flatten(1, 2), torch.cat(values, 1).flatten(1, 2)

    def _some(self, name: str, now: Current, entries: Sequence[Entry], own_times: Set[int]) -> Held:
        times, here = tuple(entry.time for entry in entries), [entry.frame in own_times for entry in entries]
        slots = [now.group.refs[entry.column].at or 0.0 for entry in entries]
        shift = torch.tensor(times, dtype=torch.float64) - torch.tensor(slots, dtype=torch.float64)
        return Held(
            self.buffers.where(name, [entry.spot for entry in entries]),
            self.buffers.put(f"{name} times", torch.tensor(times, dtype=torch.float64)),
            self.buffers.phase(name, time_angles(times, now.inv_freq).unsqueeze(1)),
            self.buffers.put(f"{name} shift", shift),
            self.buffers.put(f"{name} own", torch.tensor(here)) if any(here) else None,
        )

    def _stored(self, half: Half, layer: int, held: Held) -> Tensor:
        """Keys or values of held pages as they are stored, decoded: [B, F, tokens, h, d]."""
        return torch.cat([half[pool][layer].read(pages, self.dtype) for pool, pages, _ in held.pages] or
                         [half[0][layer].read(slice(0), self.dtype)], 1)  # fmt: skip

    def _turned(self, layer: int, held: Held) -> Tensor:
        """Keys of held pages, rotated to their times: [B, F, tokens, h, d]."""
        history, by, time = self._now.history, held.phase, self.shape.axes[0]
        keys = self._stored(history.keys, layer, held)
        if held.own_times is not None:
            ((_, pages, _),) = held.pages
            own = history.sources[layer][:, pages] + held.shift[:, None]
            times = torch.where(held.own_times[:, None], own, held.times[:, None])
            by = phase(times[..., None, None] * self._frequencies, self.dtype)
        return torch.cat((rotate(keys[..., :time], by), keys[..., time:]), -1)

    def _scene(self, layer: int, q_BNhd: Tensor | None) -> Scene:
        if q_BNhd is None:
            raise ValueError(f"{type(self.policy).__name__} chooses tokens by queries: give exchange(layer, k, v, q)")
        history, time = self._now.history, self.shape.axes[0]
        past = self.by_frame(q_BNhd)[:, :0, 0]
        if history.book.queries:
            sums = history.book.queries[layer]
            past = torch.cat((rotate(sums[..., :time], self._past_phase), sums[..., time:]), -1)
        keys, values = self._turned(layer, self._memory), self._stored(history.values, layer, self._memory)
        q, past = (scale(x, self.scale, time) for x in (rotate(q_BNhd, self.phase), past))
        return Scene(self._now.new, q, past, keys.flatten(1, 2), values.flatten(1, 2))

    def _checked(self, chosen: Tensor, frames: int, hook: str) -> Tensor:
        expected = self.shape.batch, frames * self.shape.tokens
        if not isinstance(chosen, Tensor) or tuple(chosen.shape) != expected:
            got = tuple(chosen.shape) if isinstance(chosen, Tensor) else repr(chosen)
            raise ValueError(f"{type(self.policy).__name__}.{hook} gave {got}; it gives indices {expected} into the "
                             f"memory's tokens, {frames} frames' worth in each row")
        return chosen

    def _pick(self, x_BMhd: Tensor, chosen: Tensor) -> Tensor:
        """Tokens by index, as frames: [B, F, tokens, h, d]."""
        return self.by_frame(x_BMhd.take_along_dim(chosen[:, :, None, None], 1))

    def _pack(self, layer: int, chosen: Tensor) -> None:
        """The tokens that survive, as stored, into pages of their own, side by side with what they come from."""
        history, ((_, pages, _),) = self._now.history, self._memory.pages
        for half in (history.keys[0][layer], history.values[0][layer]):
            half.write(self._packed, self._pick(half.read(pages, self.dtype).flatten(1, 2), chosen))
        sources = history.sources[layer]
        sources[:, self._packed] = sources[:, pages].flatten(1).take_along_dim(chosen, 1).unflatten(
            1, (-1, self.shape.tokens))  # fmt: skip

    def _name_sources(self, layer: int) -> None:
        if self.policy.compacts:
            ((_, pages, _),) = self._own
            self._now.history.sources[layer][:, pages] = self._frames[:, None]

    def _ask(self, layer: int, q_BNhd: Tensor | None) -> None:
        """Keep the pass's queries, summed over the tokens of a frame: a sum turns in time as its terms do."""
        if q_BNhd is None:
            raise ValueError(f"{type(self.policy).__name__} asks for queries: give exchange(layer, k, v, q)")
        queries = self.untimed(q_BNhd).sum(2)
        if self._now.history.book.queries:
            queries = torch.cat((self._now.history.book.queries[layer], queries), 1)
        self.queries.append(queries[:, -self.policy.queries :])
