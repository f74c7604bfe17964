from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .base import TIME, TimeMap


@TIME.register("relative")
@dataclass(frozen=True)
class Relative(TimeMap):
    """Times 0, 1, ... of the view: refs by rank of `at`, equal ones at the same time, then the frames in flight.

    StreamingLLM's positions within the cache (arXiv 2309.17453, section 3.2) in frames: Infinity-RoPE (arXiv
    2511.20649) as released.
    """

    def times(self, refs: Sequence[Any], new: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        ranks = {at: float(rank) for rank, at in enumerate(sorted({ref.at for ref in refs}))}
        return tuple(ranks[ref.at] for ref in refs), tuple(float(len(ranks) + i) for i in range(len(new.frames)))
