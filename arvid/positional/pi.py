from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import ROTARY, RotaryContext
from .scaled import Stretched


@ROTARY.register("pi")
@dataclass(frozen=True)
class PI(Stretched):
    """Position interpolation: all frequencies over S, which is all times over S (arXiv 2306.15595, section 2.3)."""

    monotone: ClassVar[bool] = True

    def stretch(self, theta: NDArray[np.float64], by: float, context: RotaryContext) -> NDArray[np.float64]:
        return theta / by
