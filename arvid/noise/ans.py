from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from .base import NOISE, ChunkLike, Domain, Floats, Key, NoisePrior, Recipe, Scope, check_real, check_scope


@NOISE.register("ans")
@dataclass(frozen=True)
class ANS(NoisePrior):
    """Antiphase noise sampling: z_0 white, z_u = rho z_{u-1} + sqrt(1 - rho^2) e_u, of unit variance, with covariance
    rho^|u-v| (FLEX, arXiv 2602.14027, eq. 10-11).

    rho -1, FLEX's choice, gives z, -z, z exactly; 0 is `iid` bit for bit; 1 repeats one frame. The recursion starts
    anew in every chunk, or, with scope `stream`, which is not FLEX, runs through the video; there a frame far in costs
    as many draws as there are frames before it, unless rho is 1 or -1. Raises `ValueError` for rho outside [-1, 1].
    """

    unit_variance: ClassVar[bool] = True
    rho: float = -1.0
    scope: Scope = "chunk"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_real("rho", self.rho)
        if not -1 <= self.rho <= 1:
            raise ValueError(f"rho={self.rho}: the correlation of neighbouring frames lies in [-1, 1]")
        check_scope(self.scope)

    @property
    def random_access(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.scope == "chunk" or self.rho in (-1, 0, 1)

    def recipe(self, frame: int, chunk: ChunkLike, key: Key) -> Recipe:
        """rho^(u - v) sqrt(1 - rho^2) of the white frame v, without the root for the first; e_u has `iid`'s numbers."""
        first = chunk.start if self.scope == "chunk" else 0
        if abs(self.rho) == 1:
            return {(Domain.BASE, first): self.rho ** (frame - first)}
        rest = (1 - self.rho**2) ** 0.5
        later = {(Domain.BASE, v): self.rho ** (frame - v) * rest for v in range(first + 1, frame + 1)}
        return {(Domain.BASE, first): self.rho ** (frame - first), **later}

    def spectrum(self, omega: ArrayLike) -> Floats:
        """(1 - rho^2) / (1 + rho^2 - 2 rho cos omega) (FLEX, eq. 15); for rho 1 and -1 all power lies at one frequency,
        0 or pi, and there is no density: raises `ValueError`."""
        if abs(self.rho) == 1:
            where = "0" if self.rho > 0 else "pi"
            raise ValueError(f"{self}: all power lies at omega = {where}, which has no density; "
                             "use periodogram(omega, frames), or |rho| < 1")
        half = np.asarray(omega, float) / 2
        # 1 + rho^2 - 2 rho cos omega without the difference of nearly equal numbers that rho near 1 or -1 makes of it.
        near = (1 - abs(self.rho)) ** 2 + 4 * abs(self.rho) * (np.sin(half) if self.rho > 0 else np.cos(half)) ** 2
        return (1 - self.rho) * (1 + self.rho) / near
