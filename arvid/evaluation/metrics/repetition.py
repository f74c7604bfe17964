"""Long videos that stand still, and that return to where they were. Neither is in VBench.

Both compare frames of 16 x 16 blocks, each the mean of what it covers, in 0..1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from .base import METRIC, Clip, Floats, Metric, in_pieces, shrunk

BLOCKS = 16
RATE = 4.0  # of a second's frames, those from which a return is looked for
AT_ONCE = 256  # such frames at a time: their distances from all frames are held
ALIKE = 0.02  # of two returns that differ by less in strength, the one of the shorter lag is named


def blocks(clip: Clip) -> Floats:
    """[T, 16 * 16 * 3], 0..1."""
    thumbnails = in_pieces(clip.small, lambda frames_THWC: shrunk(frames_THWC, BLOCKS, BLOCKS) / 255)
    return thumbnails.reshape(len(clip), -1)


@METRIC.register("freeze")
@dataclass(frozen=True)
class Freeze(Metric):
    """Share of frames in which the video stands still.

    A frame counts where it lies in a stretch of `seconds` in none of whose frames any of 16 x 16 blocks differs from
    the stretch's first by more than `least` (0.02 is 5 of 255, above what H.264 adds). 0 to 1; NaN for a piece that is
    no longer than `seconds`.
    """

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0
    better: ClassVar[str] = "lower"
    blind: ClassVar[str] = "Motion too small to change a block's mean, and stops of less than a second."

    seconds: float = 1.0
    least: float = 0.02

    def __post_init__(self) -> None:
        if not (0 < self.seconds < math.inf and self.least > 0):
            raise ValueError(f"seconds={self.seconds}, least={self.least}: both must be above 0, and seconds finite")

    def measure(self, clip: Clip) -> float:
        length = max(1, round(self.seconds * clip.fps))
        if len(clip) <= length:
            return math.nan
        frozen_T = np.zeros(len(clip), bool)
        for start in np.flatnonzero(clip.shared(furthest, length)[:-length] <= self.least):
            frozen_T[start : start + length + 1] = True
        return float(frozen_T.mean())


def furthest(clip: Clip, length: int) -> Floats:
    """The largest difference of any block from any of the next `length` frames, [T]; of as many as there are."""
    blocks_TN = clip.shared(blocks)
    largest_TN = np.zeros_like(blocks_TN)
    for later in range(1, min(length, len(clip) - 1) + 1):
        difference = abs(blocks_TN[later:] - blocks_TN[:-later])
        np.maximum(largest_TN[:-later], difference, out=largest_TN[:-later])
    return largest_TN.max(-1)


class Return(NamedTuple):
    """How near a clip comes to earlier content after leaving it (0 .. 1), and after how many seconds (NaN for none)."""

    strength: float
    lag: float


@METRIC.register("loop")
@dataclass(frozen=True)
class Loop(Metric):
    """The strongest return to earlier content after having left it: 0 for none, 1 for an exact repeat.

    With d(s, t) the root mean square difference of the stretches of `seconds` that begin at s and at t, the largest of
    1 - d(s, t) / max d(s, u), s < u < t, over all s < t for which that maximum is at least `left`: what does not change
    never leaves, and cannot return. `strongest` also gives the lag t - s. NaN for a piece shorter than two stretches.
    """

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0
    better: ClassVar[str] = ""
    blind: ClassVar[str] = "Periodic motion is a loop too, wanted or not; in a segment only returns within it are seen."

    seconds: float = 1.0
    left: float = 0.02

    def __post_init__(self) -> None:
        if not (0 < self.seconds < math.inf and self.left > 0):
            raise ValueError(f"seconds={self.seconds}, left={self.left}: both must be above 0, and seconds finite")

    def measure(self, clip: Clip) -> float:
        return self.strongest(clip).strength

    def strongest(self, clip: Clip) -> Return:
        """The return, with its lag: the shortest of those about as strong."""
        stride = max(1, round(clip.fps / RATE))
        count = max(1, round(self.seconds * clip.fps / stride))  # frames compared in a stretch
        if len(clip) < 2 * count * stride:
            return Return(math.nan, math.nan)
        blocks_TN = clip.shared(blocks)
        blocks_TN = blocks_TN - blocks_TN.mean(0)  # so that squares are small, and their differences exact
        by_lag_T = np.zeros(len(clip))
        for first in range(0, len(clip), AT_ONCE * stride):
            starts = range(first, min(first + AT_ONCE * stride, len(clip) - (count - 1) * stride), stride)
            for start, distance_T in zip(starts, stretches(blocks_TN, starts, count), strict=True):
                furthest_T = np.maximum.accumulate(distance_T[start:])
                near_T = np.where(furthest_T < self.left, 1, distance_T[start:] / furthest_T.clip(self.left))
                by_lag_T[: len(near_T)] = np.maximum(by_lag_T[: len(near_T)], 1 - near_T)
        strength = float(by_lag_T.max())
        lag = int(np.argmax(by_lag_T > strength - ALIKE))
        return Return(strength, lag / clip.fps if strength > 0 else math.nan)


def stretches(blocks_TN: Floats, starts: range, count: int) -> Floats:
    """Root mean square difference of the stretch at each start from those at all frames, [starts, frames].

    A stretch is `count` frames as far apart as the starts.
    """
    rows = blocks_TN[starts.start : starts.stop + (count - 1) * starts.step : starts.step]
    squares = (blocks_TN**2).sum(-1)
    square_ST = (rows**2).sum(-1)[:, None] + squares - 2 * rows @ blocks_TN.T
    S, T = len(starts), len(blocks_TN) - (count - 1) * starts.step
    diagonal_ST = sum(square_ST[i : S + i, i * starts.step : T + i * starts.step] for i in range(count))
    return np.sqrt(np.maximum(diagonal_ST, 0) / (count * blocks_TN.shape[1]))
