from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .base import TIME, TimeMap


@TIME.register("absolute")
@dataclass(frozen=True)
class Absolute(TimeMap):
    """Every frame keeps its own time: the slot it stands for, counted from the video's first frame."""

    static: ClassVar[bool] = True
    absolute_at_first: ClassVar[bool] = True

    def times(self, refs: Sequence[Any], new: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return tuple(float(ref.at) for ref in refs), tuple(float(frame) for frame in new.frames)
