from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import ROTARY, RotaryContext
from .scaled import Stretched


@ROTARY.register("riflex")
@dataclass(frozen=True)
class Riflex(Stretched):
    """Plane `k`, counted from 1, is slowed to `margin` of a turn over the whole video, so that it does not repeat.

    RIFLEx (arXiv 2502.15894). k is the plane whose period is nearest to the distance at which a model's videos repeat;
    for Wan none is published. The paper has margin 1, its code 0.9. A plane that is slower already stays as it is.
    Raises `ValueError` for a k that is no plane and a margin outside (0, 1].
    """

    monotone: ClassVar[bool] = True
    k: int
    margin: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"k={self.k!r}: planes are counted from 1 (the fastest) to the number of temporal planes")
        if not 0 < self.margin <= 1:
            raise ValueError(f"margin={self.margin}: give a part of a turn, above 0 and at most 1")

    def stretch(self, theta: NDArray[np.float64], by: float, context: RotaryContext) -> NDArray[np.float64]:
        if self.k > len(theta):
            raise ValueError(f"k={self.k}: this model has temporal planes 1 to {len(theta)}")
        length = by * self.trained(context)
        slowed = theta.copy()
        slowed[self.k - 1] = min(theta[self.k - 1], self.margin * 2 * np.pi / length)
        return slowed
