from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .base import BASE, ROTARY, Rotary, RotaryContext


@ROTARY.register("rope")
@dataclass(frozen=True)
class Rope(Rotary):
    """Plain rotary embedding: plane m turns by base^(-2m / dim) a frame (RoFormer, arXiv 2104.09864, eq. 15)."""

    base: float = BASE

    def __post_init__(self) -> None:
        if not 1 < self.base < float("inf"):
            raise ValueError(f"base={self.base}: a rotary ladder needs a finite base above 1 (Wan: {BASE:g})")

    def inv_freq(self, context: RotaryContext) -> NDArray[np.float64]:
        return self.base ** (-np.arange(0, context.dim, 2, dtype=np.float64) / context.dim)
