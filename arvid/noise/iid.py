"""Independent noise."""

from __future__ import annotations

from dataclasses import dataclass

from .base import NOISE, ChunkLike, Domain, Key, NoisePrior, Recipe

__all__ = ["IID"]


@NOISE.register("iid")
@dataclass(frozen=True)
class IID(NoisePrior):
    """Every frame independent of every other: what models are trained on, and the default."""

    def recipe(self, frame: int, chunk: ChunkLike, key: Key) -> Recipe:
        """Frame `frame`'s own white frame."""
        return {(Domain.BASE, frame): 1.0}
