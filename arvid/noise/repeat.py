from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import NOISE, ChunkLike, Domain, Key, NoisePrior, Recipe


@NOISE.register("repeat")
@dataclass(frozen=True)
class Repeat(NoisePrior):
    """Every chunk has the first chunk's independent noise again (Rolling Sink, arXiv 2602.07775, its released code)."""

    unit_variance: ClassVar[bool] = True
    random_access: ClassVar[bool] = True

    def recipe(self, frame: int, chunk: ChunkLike, key: Key) -> Recipe:
        """The white frame of the place within the chunk; a shorter chunk has the first of them."""
        return {(Domain.BASE, frame - chunk.start): 1.0}
