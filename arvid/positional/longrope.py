from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .base import ROTARY, RotaryContext
from .tempered import Tempered


@ROTARY.register("longrope")
@dataclass(frozen=True)
class LongRope(Tempered):
    """Each plane divided by a factor of its own wherever S is above 1, and attention sharpened.

    LongRoPE (arXiv 2402.13753, section 3). The paper searches `factors`; none are published for video models. Queries
    and keys are multiplied by sqrt(1 + ln S / ln train_horizon), as in transformers, where `scope` says. The rule for
    the first tokens, which keep plain frequencies, is left out, as it is there: with it scores would no longer depend
    on differences of times only.
    Raises `ValueError` for factors that are not positive, or not one for each plane.
    """

    factors: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.factors, tuple) or not self.factors:
            raise ValueError(f"factors={self.factors!r}: give a tuple of numbers, one for each temporal plane")
        if wrong := [factor for factor in self.factors if not 0 < factor < float("inf")]:
            raise ValueError(f"factors={self.factors}: {wrong[0]} is not finite and above 0")

    def stretch(self, theta: NDArray[np.float64], by: float, context: RotaryContext) -> NDArray[np.float64]:
        if len(self.factors) != len(theta):
            raise ValueError(f"{len(self.factors)} factors for {len(theta)} temporal planes: give one for each")
        return theta / np.array(self.factors, dtype=np.float64)

    def sharpness(self, by: float, context: RotaryContext) -> float:
        if (trained := self.trained(context)) < 2:
            raise ValueError(f"train_horizon={trained}: ln S / ln train_horizon needs at least 2 frames; or use "
                             "scope='none'")
        return math.sqrt(1 + math.log(by) / math.log(trained))
