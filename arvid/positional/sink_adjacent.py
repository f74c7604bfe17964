from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .base import TIME, TimeMap


@TIME.register("sink_adjacent")
@dataclass(frozen=True)
class SinkAdjacent(TimeMap):
    """Sinks move forward to lie `gap` frames before the rest, in their order; every other frame keeps its own time.

    A sink never moves back, so until frames are evicted all times are absolute. Rolling Forcing's anchor (arXiv
    2509.25161) and Deep Forcing's deep sink (arXiv 2512.05081), whose released code has a gap of 3. Raises `ValueError`
    for a gap that is no whole number of frames, at least 0.
    """

    absolute_at_first: ClassVar[bool] = True

    gap: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.gap, bool) or not isinstance(self.gap, int) or self.gap < 0:
            raise ValueError(f"gap={self.gap!r}: give a whole number of latent frames between the sinks and the rest, "
                             "at least 0")

    def times(self, refs: Sequence[Any], new: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        times = [float(ref.at) for ref in refs]
        first = min((float(ref.at) for ref in refs if ref.role != "sink"), default=float(new.frames[0]))
        sinks = sorted((i for i, ref in enumerate(refs) if ref.role == "sink"), key=times.__getitem__)
        for i, sink in enumerate(sinks):
            times[sink] = max(times[sink], first - self.gap - len(sinks) + i)
        return tuple(times), tuple(float(frame) for frame in new.frames)
