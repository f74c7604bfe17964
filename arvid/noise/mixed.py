from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .base import NOISE, ChunkLike, Domain, Key, NoisePrior, Recipe, Scope, check_real, check_scope


@NOISE.register("mixed")
@dataclass(frozen=True)
class Mixed(NoisePrior):
    """PYoCo's mixed noise: a shared part of variance a^2 / (1 + a^2) and an own part of variance 1 / (1 + a^2)
    (Preserve Your Own Correlation, arXiv 2305.10474), so any two frames have covariance a^2 / (1 + a^2).

    The part is shared by the whole video, as in the paper, or, with scope `chunk`, by the frames of a chunk. Raises
    `ValueError` for an `a` that is negative or not finite.
    """

    unit_variance: ClassVar[bool] = True
    random_access: ClassVar[bool] = True
    a: float = 1.0
    scope: Scope = "stream"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strength(self.a)
        check_scope(self.scope)

    def recipe(self, frame: int, chunk: ChunkLike, key: Key) -> Recipe:
        """The shared white frame, and the frame's own, which is `iid`'s."""
        shared = chunk.start if self.scope == "chunk" else 0
        length = math.hypot(1, self.a)
        return {(Domain.SHARED, shared): self.a / length, (Domain.BASE, frame): 1 / length}


def check_strength(a: float) -> None:
    """Raise `ValueError` for a PYoCo `a` that is negative or not finite."""
    check_real("a", a)
    if not 0 <= a < math.inf:
        raise ValueError(f"a={a}: what frames share over what they do not is at least 0, and finite")
