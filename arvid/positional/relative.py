from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .base import TIME, TimeMap


def check_cut(cut: int) -> None:
    """Raise `ValueError` for a `cut` that is no whole number of frames, at least 0."""
    if isinstance(cut, bool) or not isinstance(cut, int) or cut < 0:
        raise ValueError(f"cut={cut!r}: give a whole number of latent frames by which a shot's first chunk jumps "
                         "ahead, at least 0")


def jump(cut: int, refs: Sequence[Any], new: Any) -> int:
    """How far ahead the frames in flight stand: `cut` while refs are seen but none of the pass's shot, else 0."""
    return cut if refs and all(ref.shot != new.shot for ref in refs) else 0


@TIME.register("relative")
@dataclass(frozen=True)
class Relative(TimeMap):
    """Times 0, 1, ... of the view: refs by rank of `at`, equal ones at the same time, then the frames in flight.

    StreamingLLM's positions within the cache (arXiv 2309.17453, section 3.2) in frames: Infinity-RoPE (arXiv
    2511.20649) as released. `cut` is its RoPE cut: a chunk that sees frames but none of its shot, as a shot's first
    does, stands `cut` frames further ahead in all its passes. 42 with a window of 6 is the released code, which moves
    the whole chunk; the paper leaves the chunk's first frame in place. Raises `ValueError` for a cut that is no whole
    number of frames, at least 0.
    """

    bounded: ClassVar[bool] = True
    absolute_at_first: ClassVar[bool] = True

    cut: int = 0

    def __post_init__(self) -> None:
        check_cut(self.cut)

    def times(self, refs: Sequence[Any], new: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        ranks = {at: float(rank) for rank, at in enumerate(sorted({ref.at for ref in refs}))}
        first = len(ranks) + jump(self.cut, refs, new)
        return tuple(ranks[ref.at] for ref in refs), tuple(float(first + i) for i in range(len(new.frames)))
