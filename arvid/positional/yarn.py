from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import ROTARY, RotaryContext
from .tempered import Tempered


@ROTARY.register("yarn")
@dataclass(frozen=True)
class Yarn(Tempered):
    """Planes that made more than `beta_fast` turns in training are kept, those of fewer than `beta_slow` divided by S,
    those between blended evenly from plane to plane, and attention sharpened.

    YaRN (arXiv 2309.00071, section 3.4) as its authors released it; the paper blends in proportion to turns, which is
    `ntk_by_parts`. `truncate` widens the blend to whole planes; the first plane is kept however few its turns. Queries
    and keys are multiplied by 0.1 ln S + 1, where `scope` says. Raises `ValueError` unless 0 < beta_slow < beta_fast.
    """

    monotone: ClassVar[bool] = True
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta_slow < self.beta_fast < float("inf"):
            raise ValueError(f"beta_fast={self.beta_fast}, beta_slow={self.beta_slow}: give 0 < beta_slow < beta_fast, "
                             "finite, in turns that a plane makes over train_horizon frames")

    def stretch(self, theta: NDArray[np.float64], by: float, context: RotaryContext) -> NDArray[np.float64]:
        first, last = self._plane(self.beta_fast, context), self._plane(self.beta_slow, context)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = np.clip((first, last), 0, context.dim - 1)
        divided = np.clip((np.arange(len(theta)) - first) / (last - first or 0.001), 0, 1)
        return divided * theta / by + (1 - divided) * theta

    def _plane(self, turns: float, context: RotaryContext) -> float:
        """The plane, counted from 0 and not whole, that makes so many turns over the frames of training."""
        period = self.trained(context) / turns
        return context.dim * math.log(period / (2 * math.pi)) / (2 * math.log(self.base))

    def sharpness(self, by: float, context: RotaryContext) -> float:
        return 0.1 * math.log(by) + 1
