from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import ROTARY, RotaryContext
from .scaled import Stretched


@ROTARY.register("ntk")
@dataclass(frozen=True)
class NTK(Stretched):
    """NTK-aware scaling: a larger base, which keeps the first plane, divides the last by S, and the others by less.

    base * S^(d / (d - 2)), d the temporal channels of a head (YaRN, arXiv 2309.00071, section 3.1). Raises `ValueError`
    for d < 4.
    """

    monotone: ClassVar[bool] = True

    def stretch(self, theta: NDArray[np.float64], by: float, context: RotaryContext) -> NDArray[np.float64]:
        if context.dim < 4:
            raise ValueError(f"{self} needs at least 4 temporal channels a head, two planes, for its exponent "
                             f"d / (d - 2); this model has {context.dim}: use pi")
        return theta * by ** (-np.arange(0, context.dim, 2) / (context.dim - 2))


@ROTARY.register("dynamic_ntk")
@dataclass(frozen=True)
class DynamicNTK(NTK):
    """NTK-aware scaling by growth * S - (growth - 1) in place of S.

    Dynamic NTK (YaRN, arXiv 2309.00071, section 3.3) as in transformers' `dynamic`, which calls growth factor. Raises
    `ValueError` for a growth that is not positive and finite.
    """

    growth: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.growth < float("inf"):
            raise ValueError(f"growth={self.growth}: give a finite number above 0; 1 is ntk")

    def stretch(self, theta: NDArray[np.float64], by: float, context: RotaryContext) -> NDArray[np.float64]:
        return super().stretch(theta, self.growth * by - (self.growth - 1), context)
