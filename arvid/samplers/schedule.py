"""Noise levels: sigma in [0, 1], timesteps 1000 sigma, and the shift that warps steps (arXiv 2403.03206, eq. 23)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Level = TypeVar("Level", float, "Tensor")

TIMESTEPS = 1000  # the unit of timesteps and of nominal steps: 1000 is pure noise


def shift_sigma(sigma: Level, shift: float) -> Level:
    """s sigma / (1 + (s - 1) sigma): keeps 0 and 1; shifts of a and b compose to ab."""
    return shift * sigma / (shift * sigma + (1 - sigma))  # written so that it is exactly 1 at 1


def unshift_sigma(sigma: float, shift: float) -> float:
    """The inverse of `shift_sigma`."""
    return sigma / (shift - (shift - 1) * sigma)


def warp(steps: Sequence[float], shift: float) -> tuple[float, ...]:
    """Noise levels of nominal steps: (1000, 750, 500, 250) at shift 5 is (1, .9375, .8333, .625)."""
    return tuple(shift_sigma(step / TIMESTEPS, shift) for step in steps)


def check_steps(name: str, steps: Sequence[float]) -> tuple[float, ...]:
    """Nominal steps as a tuple. Raises `ValueError` for none, and for steps that do not fall in (0, 1000]."""
    falling = all(a > b for a, b in pairwise(steps))
    if not steps or not falling or not all(0 < step <= TIMESTEPS for step in steps):
        raise ValueError(f"{name}={tuple(steps)}: give at least one, falling, each in (0, {TIMESTEPS}], "
                         "such as (1000, 750, 500, 250)")
    return tuple(steps)


def check_shift(shift: float | None) -> None:
    """Raise `ValueError` for a shift that is not positive and finite; None passes."""
    if shift is not None and not 0 < shift < float("inf"):
        raise ValueError(f"shift={shift} must be positive and finite; 1 leaves the steps as they are")


def check_timestep(name: str, value: float | None) -> None:
    """Raise `ValueError` for a timestep outside 0..1000; None passes."""
    if value is not None and not 0 <= value <= TIMESTEPS:
        raise ValueError(f"{name}={value} is a timestep and lies in 0..{TIMESTEPS}; 0 is clean")


def check_count(name: str, value: int, least: int = 0) -> None:
    """Raise `ValueError` for what is no whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}: give a whole number, at least {least}")
