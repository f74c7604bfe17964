from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .base import TIME, TimeMap


@TIME.register("shot_offset")
@dataclass(frozen=True)
class ShotOffset(TimeMap):
    """Every frame keeps its own time, and `phi` for each shot before its own: frame + shot * phi.

    `multi_shot_rope_offset` of LongLive 2 (arXiv 2605.18739), 8 in its released code. Raises `ValueError` for a phi
    that is no finite number of frames, at least 0: with a negative one a shot would lie before what it sees.
    """

    static: ClassVar[bool] = True
    absolute_at_first: ClassVar[bool] = True

    phi: float

    def __post_init__(self) -> None:
        if isinstance(self.phi, bool) or not isinstance(self.phi, int | float) or not 0 <= self.phi < float("inf"):
            raise ValueError(f"phi={self.phi!r}: give the latent frames between shots, a finite number, at least 0")

    def times(self, refs: Sequence[Any], new: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        ahead = new.shot * self.phi
        return tuple(float(ref.at + ref.shot * self.phi) for ref in refs), tuple(float(f + ahead) for f in new.frames)
