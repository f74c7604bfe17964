from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from .base import CACHE, CachePolicy, Pass, Ref


@CACHE.register("full")
@dataclass(frozen=True)
class Full(CachePolicy):
    """Everything, for ever: memory and work grow with the video. The reference the other policies approximate."""

    static: ClassVar[bool] = True
    fits_like_full: ClassVar[bool] = True

    def select(self, held: Sequence[Ref], new: Pass) -> Sequence[Ref]:
        return held
