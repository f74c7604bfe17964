from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import ROTARY, RotaryContext
from .rope import Ladder


@ROTARY.register("flexrope")
@dataclass(frozen=True)
class FlexRope(Ladder):
    """Plain rope, and logits lower by `slope` for each frame that a key lies before the query.

    FAR's FlexRoPE (arXiv 2503.19325v1): ALiBi with one slope for all heads. None is published. Raises `ValueError` for
    one that is negative or not finite.
    """

    monotone: ClassVar[bool] = True
    slope: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.slope < float("inf"):
            raise ValueError(f"slope={self.slope}: give what logits lose a latent frame, at least 0 and finite")

    def inv_freq(self, context: RotaryContext) -> NDArray[np.float64]:
        return self.ladder(context)

    def bias(self, queries: NDArray[np.float64], keys: NDArray[np.float64]) -> NDArray[np.float64] | None:
        return -self.slope * np.maximum(0, queries[:, None] - keys) if self.slope else None
