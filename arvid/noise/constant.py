from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import NOISE, ChunkLike, Domain, Key, NoisePrior, Recipe


@NOISE.register("constant")
@dataclass(frozen=True)
class Constant(NoisePrior):
    """One frame of noise for the whole video: the limit that the other priors are read against (correlation 1)."""

    unit_variance: ClassVar[bool] = True
    random_access: ClassVar[bool] = True

    def recipe(self, frame: int, chunk: ChunkLike, key: Key) -> Recipe:
        """The white frame 0."""
        return {(Domain.BASE, 0): 1.0}
