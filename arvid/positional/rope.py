from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import BASE, ROTARY, Rotary, RotaryContext


@dataclass(frozen=True)
class Ladder(Rotary):
    """Base of the rules that start from rope's frequencies. Raises `ValueError` for a base that is not above 1."""

    base: float = field(default=BASE, kw_only=True)

    def __post_init__(self) -> None:
        if not 1 < self.base < float("inf"):
            raise ValueError(f"base={self.base}: a rotary ladder needs a finite base above 1 (Wan: {BASE:g})")

    def ladder(self, context: RotaryContext) -> NDArray[np.float64]:
        """Plain rope's frequencies, radians a frame, [planes]."""
        return powers(self.base, context.dim)


@ROTARY.register("rope")
@dataclass(frozen=True)
class Rope(Ladder):
    """Plain rotary embedding: plane m turns by base^(-2m / dim) a frame (RoFormer, arXiv 2104.09864, eq. 15)."""

    identity_within_train: ClassVar[bool] = True
    monotone: ClassVar[bool] = True
    base: float = BASE

    def inv_freq(self, context: RotaryContext) -> NDArray[np.float64]:
        return self.ladder(context)


def powers(base: float, dim: int) -> NDArray[np.float64]:
    """base^(-2m / dim) for each of the dim / 2 planes m."""
    return base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
