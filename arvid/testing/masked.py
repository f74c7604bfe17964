"""Attention over whole sequences by a dense mask."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from arvid.cache import Plan
from arvid.positional.rotation import phase, rotate, space_angles, time_angles, token_angles


class MaskedAttention:
    """The oracle: dense masked attention over whole sequences, written for clarity. A `Mixer` for an `inside` plan
    without biases whose slots each have one time, as query and as key; raises `ValueError` for another."""

    def __init__(
        self, plan: Plan, inv_freq: np.ndarray, grid: tuple[int, int], axes: tuple[int, int, int],
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        times = {slot: t for g in plan.groups for slot, t in zip(g.queries, g.times, strict=True)}
        shown = [(ref, t) for g in plan.groups for ref, t in zip(g.refs, g.ref_times, strict=True)]
        if not plan.inside or any(ref.bias or times[ref.frame] != t for ref, t in shown):
            raise ValueError("a mask says no more than who sees whom: MaskedAttention needs an inside plan without "
                             "biases, where each slot has one time")
        tokens = grid[0] * grid[1]
        self.mask = torch.tensor(plan.mask(len(times))).repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
        angles = time_angles(tuple(times[slot] for slot in sorted(times)), inv_freq)
        self.phase = phase(token_angles(angles, space_angles(grid, axes)), dtype)

    def mix(self, layer: int, q_BNhd: Tensor, k_BNhd: Tensor, v_BNhd: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (rotate(q_BNhd, self.phase), rotate(k_BNhd, self.phase), v_BNhd))
        logits = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(~self.mask, -torch.inf)
        return (F.softmax(logits, -1) @ v).transpose(1, 2)
