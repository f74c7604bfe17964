"""Where tokens meet: `attend`, the one function that mixes them, and the two ways of finding what to attend to.

A network hands unrotated, normed q and k of each layer to `mix`; which keys they meet is the plan's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from arvid.cache.base import Group, Plan
from arvid.cache.store import Store
from arvid.positional.base import UNSCALED, LogitScale
from arvid.positional.rotation import Phase, phase, rotate, scale, space_angles, time_angles, token_angles


def attend(q_BNhd: Tensor, segments: Sequence[tuple[Tensor, Tensor]], bias: Tensor | None = None) -> Tensor:
    """Softmax attention of q [B, N, h, d] over the keys and values of all segments, each [B, K, h, d], scaled by
    1 / sqrt(d). `bias`, broadcastable to [B, h, N, K], is added to the logits. Returns [B, N, h, d]."""
    k, v = segments[0] if len(segments) == 1 else (torch.cat(parts, 1) for parts in zip(*segments, strict=True))
    return F.scaled_dot_product_attention(
        q_BNhd.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias
    ).transpose(1, 2)


Bias = Callable[[np.ndarray, np.ndarray], np.ndarray | None]


class Mixer(Protocol):
    """Self-attention of one pass, layer by layer."""

    def mix(self, layer: int, q_BNhd: Tensor, k_BNhd: Tensor, v_BNhd: Tensor) -> Tensor:
        """Attention output [B, N, h, d] for the pass's tokens; q and k normed and not rotated."""
        ...


class CachedAttention:
    """Attends to the store's frames and the pass's own, as `store.begin` was told."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def mix(self, layer: int, q_BNhd: Tensor, k_BNhd: Tensor, v_BNhd: Tensor) -> Tensor:
        segment, store = self.store.exchange(layer, k_BNhd, v_BNhd, q_BNhd), self.store
        q, bias = scale(rotate(q_BNhd, store.phase), store.scale, store.shape.axes[0]), store.bias
        if bias is None or bias.shape[2] == 1:
            return attend(q, [segment], bias)
        by_frame = zip(q.chunk(bias.shape[2], 1), bias.split(1, 2), strict=True)
        return torch.cat([attend(frame, [segment], own) for frame, own in by_frame], 1)


class Recommitting:
    """Attention of another mixer that also hands each layer's keys and values to `write`, as `Store.rewriter` gives."""

    def __init__(self, mixer: Mixer, write: Callable[[int, Tensor, Tensor], None]) -> None:
        self.mixer, self.write = mixer, write

    def mix(self, layer: int, q_BNhd: Tensor, k_BNhd: Tensor, v_BNhd: Tensor) -> Tensor:
        self.write(layer, k_BNhd, v_BNhd)
        return self.mixer.mix(layer, q_BNhd, k_BNhd, v_BNhd)


class PlannedAttention:
    """Whole-sequence attention by an `inside` plan, without a store: bidirectional, block-causal, teacher forcing.

    Groups of equal sizes run as one batch, so work follows what is visible and no mask is needed. `scale` and `bias`,
    of times of queries [Q] and keys [K], are those of a frequency rule.
    """

    def __init__(
        self, plan: Plan, inv_freq: np.ndarray, grid: tuple[int, int], axes: tuple[int, int, int],
        dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", scale: LogitScale = UNSCALED,
        bias: Bias | None = None,
    ) -> None:  # fmt: skip
        if not plan.inside:
            raise ValueError("this plan's refs are frames of a store; PlannedAttention needs one over the pass itself")
        self.tokens, self.axes, self.scale, self.bias = grid[0] * grid[1], axes, scale, bias
        query_time = {slot: t for g in plan.groups for slot, t in zip(g.queries, g.times, strict=True)}
        slots = sorted(query_time)
        # Each (slot, time) is rotated once, however many groups see it.
        keys = sorted({(slot, t) for g in plan.groups for slot, t in self._keys(g)})
        row = {key: i for i, key in enumerate(keys)}
        space = space_angles(grid, axes)

        def to_phase(times: list[float]) -> Phase:
            made = phase(token_angles(time_angles(tuple(times), inv_freq), space), dtype)
            return Phase(made.cos.to(device), made.sin.to(device))

        self.query_phase = to_phase([query_time[slot] for slot in slots])
        self.same_keys = [slot for slot, _ in keys] == slots
        self.key_phase = self.query_phase if self.same_keys else to_phase([t for _, t in keys])
        self.key_slots = torch.tensor([slot for slot, _ in keys], device=device)
        alike: dict[tuple[int, int], list[Group]] = {}
        for g in plan.groups:
            alike.setdefault((len(g.queries), len(g.refs)), []).append(g)
        self.classes = [
            (
                torch.tensor([g.queries for g in groups], device=device),
                torch.tensor([[row[key] for key in self._keys(g)] for g in groups], device=device),
                torch.tensor([[slot for slot, _ in self._keys(g)] for g in groups], device=device),
                self._bias(groups, dtype, device),
            )
            for groups in alike.values()
        ]
        order = torch.cat([queries.flatten() for queries, *_ in self.classes])
        if sorted(order.tolist()) != list(range(len(slots))):
            raise ValueError("every frame of the pass must be a query of exactly one group of the plan")
        whole = len(plan.groups) == 1 and not plan.groups[0].refs and order.tolist() == slots
        self.single = whole and self.classes[0][-1] is None
        self.back = torch.argsort(order)

    @staticmethod
    def _keys(group: Group) -> list[tuple[int, float]]:
        return [*((ref.frame, t) for ref, t in zip(group.refs, group.ref_times, strict=True)),
                *zip(group.queries, group.times, strict=True)]  # fmt: skip

    def _bias(self, groups: list[Group], dtype: torch.dtype, device: torch.device | str) -> Tensor | None:
        """[groups, 1, 1 or tokens of the queries, tokens of the keys], or None where all are 0."""
        rows = np.array([[[ref.bias for ref in g.refs] + [0.0] * len(g.queries)] for g in groups])
        if self.bias:
            own = [self.bias(np.array(g.times), np.array([t for _, t in self._keys(g)])) for g in groups]
            given = [matrix for matrix in own if matrix is not None]
            rows = rows + np.stack(given).repeat(self.tokens, 1) if given else rows
        per_key = torch.from_numpy(rows).to(device, dtype).repeat_interleave(self.tokens, 2)
        return per_key[:, None] if rows.any() else None

    def mix(self, layer: int, q_BNhd: Tensor, k_BNhd: Tensor, v_BNhd: Tensor) -> Tensor:
        frames = (-1, self.tokens)
        q = scale(rotate(q_BNhd, self.query_phase), self.scale, self.axes[0]).unflatten(1, frames)
        k, v = k_BNhd.unflatten(1, frames), v_BNhd.unflatten(1, frames)
        k = rotate((k if self.same_keys else k[:, self.key_slots]).flatten(1, 2), self.key_phase).unflatten(1, frames)
        if self.single:
            return attend(q.flatten(1, 2), [(k.flatten(1, 2), v.flatten(1, 2))])
        out = []
        for queries, rows, slots, bias in self.classes:
            # [B, groups, frames, tokens, h, d] -> [B * groups, tokens of all frames, h, d]
            qs, ks, vs = (x[:, index].flatten(2, 3).flatten(0, 1) for x, index in ((q, queries), (k, rows), (v, slots)))
            bias = None if bias is None else bias.repeat(len(q), 1, 1, 1)
            seen = attend(qs, [(ks, vs)], bias)
            out.append(seen.unflatten(0, (len(q), -1)).unflatten(2, frames).flatten(1, 2))
        return torch.cat(out, 1)[:, self.back].flatten(1, 2)
