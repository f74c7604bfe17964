"""The one rotation. Angles are float64, their cosines and sines float32 (float64 for float64 models); no tables.

Channels of a head are [time | height | width], neighbours (2m, 2m + 1) forming plane m, as in Wan2.1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .base import BASE, UNSCALED, LogitScale


class Phase(NamedTuple):
    """Cosines and sines of a set of tokens, each [N, 1 or heads, planes]."""

    cos: Tensor
    sin: Tensor


def phase(angles: Tensor, dtype: torch.dtype) -> Phase:
    """Cosine and sine of float64 angles, rounded once to float32, or kept where activations are float64."""
    wide = torch.promote_types(dtype, torch.float32)
    return Phase(angles.cos().to(wide), angles.sin().to(wide))


def space_angles(grid: tuple[int, int], axes: tuple[int, int, int]) -> Tensor:
    """Angles of one frame's tokens, row by row over a `grid` of (rows, columns): float64 [tokens, planes of both]."""
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in grid)
    h, w = (BASE ** (-torch.arange(0, d, 2, dtype=torch.float64) / d) for d in axes[1:])
    by_row, by_column = rows[:, None, None] * h, columns[None, :, None] * w
    return torch.cat((by_row.expand(*grid, -1), by_column.expand(*grid, -1)), -1).flatten(0, 1)


def time_angles(times: tuple[float, ...], inv_freq: np.ndarray) -> Tensor:
    """Angles of frames: float64 [F, 1 or heads, planes]."""
    freq = torch.from_numpy(np.array(inv_freq, dtype=np.float64, ndmin=2))
    return torch.tensor(times, dtype=torch.float64)[:, None, None] * freq


def token_angles(time_FHP: Tensor, space_NP: Tensor) -> Tensor:
    """All three axes for F frames of n tokens: float64 [F * n, 1 or heads, planes of the whole head]."""
    frames, heads = time_FHP.shape[:2]
    time = time_FHP[:, None].expand(-1, len(space_NP), -1, -1)
    space = space_NP[None, :, None].expand(frames, -1, heads, -1)
    return torch.cat((time, space), -1).flatten(0, 1)


def rotate(x_BNhd: Tensor, by: Phase) -> Tensor:
    """Turn every plane of `x_BNhd` by its token's phase; computed in the phase's precision, returned in x's."""
    even, odd = x_BNhd.unflatten(-1, (-1, 2)).to(by.cos.dtype).unbind(-1)
    turned = torch.stack((even * by.cos - odd * by.sin, even * by.sin + odd * by.cos), -1)
    return turned.flatten(-2).to(x_BNhd.dtype)


def scale(q_BNhd: Tensor, by: LogitScale, time: int) -> Tensor:
    """Queries whose logits are scaled; the first `time` channels of a head are the temporal ones."""
    if by == UNSCALED:
        return q_BNhd
    return torch.cat((q_BNhd[..., :time] * (by.whole * by.time), q_BNhd[..., time:] * by.whole), -1)
