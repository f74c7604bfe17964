"""Independent noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from .base import NOISE, ChunkLike, Domain, Floats, Key, NoisePrior, Recipe

__all__ = ["IID"]


@NOISE.register("iid")
@dataclass(frozen=True)
class IID(NoisePrior):
    """Every frame independent of every other: what models are trained on, and the default."""

    unit_variance: ClassVar[bool] = True
    random_access: ClassVar[bool] = True

    def recipe(self, frame: int, chunk: ChunkLike, key: Key) -> Recipe:
        """Frame `frame`'s own white frame."""
        return {(Domain.BASE, frame): 1.0}

    def spectrum(self, omega: ArrayLike) -> Floats:
        """1 at every frequency."""
        return np.ones_like(np.asarray(omega, float))
