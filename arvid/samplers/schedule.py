"""Noise levels: sigma in [0, 1], timesteps 1000 sigma, and the shift that warps steps (arXiv 2403.03206, eq. 23)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Level = TypeVar("Level", float, "Tensor")

TIMESTEPS = 1000  # the unit of timesteps and of nominal steps: 1000 is pure noise


def shift_sigma(sigma: Level, shift: float) -> Level:
    """s sigma / (1 + (s - 1) sigma): keeps 0 and 1; shifts of a and b compose to ab."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def unshift_sigma(sigma: float, shift: float) -> float:
    """The inverse of `shift_sigma`."""
    return sigma / (shift - (shift - 1) * sigma)


def warp(steps: Sequence[float], shift: float) -> tuple[float, ...]:
    """Noise levels of nominal steps: (1000, 750, 500, 250) at shift 5 is (1, .9375, .8333, .625)."""
    return tuple(shift_sigma(step / TIMESTEPS, shift) for step in steps)
