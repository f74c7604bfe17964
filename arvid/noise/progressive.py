from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from numpy.typing import ArrayLike

from .ans import ANS
from .base import NOISE, ChunkLike, Floats, Key, NoisePrior, Recipe, Scope, check_scope
from .mixed import check_strength


@NOISE.register("progressive")
@dataclass(frozen=True)
class Progressive(NoisePrior):
    """PYoCo's progressive noise: each frame is a / sqrt(1 + a^2) of the one before and own noise of variance
    1 / (1 + a^2) (Preserve Your Own Correlation, arXiv 2305.10474): `ans` with rho = a / sqrt(1 + a^2), in [0, 1).

    It runs through the whole video, as in the paper, where a frame far in costs as many draws as there are frames
    before it, or, with scope `chunk`, starts anew in every chunk. Raises `ValueError` for an `a` that is negative or
    not finite.
    """

    unit_variance: ClassVar[bool] = True
    a: float = 2.0
    scope: Scope = "stream"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strength(self.a)
        check_scope(self.scope)

    @property
    def recursion(self) -> ANS:
        """The same recursion in terms of rho."""
        return ANS(self.a / math.hypot(1, self.a), self.scope)

    @property
    def random_access(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.recursion.random_access

    def recipe(self, frame: int, chunk: ChunkLike, key: Key) -> Recipe:
        """As `ANS.recipe`."""
        return self.recursion.recipe(frame, chunk, key)

    def spectrum(self, omega: ArrayLike) -> Floats:
        return self.recursion.spectrum(omega)
