from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import NOISE, ChunkLike, Domain, Key, NoisePrior, Recipe, check_real


@NOISE.register("grouped")
@dataclass(frozen=True)
class Grouped(NoisePrior):
    """Each run of `size` frames of the video shares a part: z = sqrt(weight) c + sqrt(1 - weight) e, with covariance
    `weight` within a group and 0 between groups.

    Our own definition of the group-based sampling that FLEX (arXiv 2602.14027) compares with: it names AnimateDiff,
    whose code samples independent noise. Raises `ValueError` for a size below 1 and a weight outside [0, 1].
    """

    unit_variance: ClassVar[bool] = True
    random_access: ClassVar[bool] = True
    size: int = 3
    weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise ValueError(f"size={self.size!r}: a group is a whole number of frames, at least 1")
        check_real("weight", self.weight)
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight={self.weight}: the share of what a group has in common lies in [0, 1]")

    def recipe(self, frame: int, chunk: ChunkLike, key: Key) -> Recipe:
        """The group's white frame, and the frame's own, which is `iid`'s."""
        return {(Domain.SHARED, frame // self.size): self.weight**0.5, (Domain.BASE, frame): (1 - self.weight) ** 0.5}
