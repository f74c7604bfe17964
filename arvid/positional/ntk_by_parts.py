from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import ROTARY, RotaryContext
from .scaled import Stretched


@ROTARY.register("ntk_by_parts")
@dataclass(frozen=True)
class NTKByParts(Stretched):
    """Planes that made fewer than `alpha` turns in training are divided by S, those of more than `beta` kept, and those
    between blended in proportion to their turns.

    NTK-by-parts (YaRN, arXiv 2309.00071, section 3.2), transformers' `llama3`. Language models use 1 and 32, which no
    plane reaches in 21 frames: hence no defaults. Raises `ValueError` unless 0 <= alpha < beta.
    """

    monotone: ClassVar[bool] = True
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < self.beta < float("inf"):
            raise ValueError(f"alpha={self.alpha}, beta={self.beta}: give 0 <= alpha < beta, finite, in turns that a "
                             "plane makes over train_horizon frames")

    def stretch(self, theta: NDArray[np.float64], by: float, context: RotaryContext) -> NDArray[np.float64]:
        turns = self.trained(context) * theta / (2 * np.pi)
        kept = np.clip((turns - self.alpha) / (self.beta - self.alpha), 0, 1)
        return (1 - kept) * theta / by + kept * theta
