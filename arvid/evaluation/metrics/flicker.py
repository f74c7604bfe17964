from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from .base import METRIC, Clip, Floats, Share, mean


@METRIC.register("flicker")
@dataclass(frozen=True)
class Flicker(Share):
    """How little neighbouring frames differ: 1 minus their mean absolute difference, over 255.

    The mean goes over pixels, channels and pairs of neighbours; 0 to 1, 1 for a still picture. VBench's
    temporal_flickering (arXiv 2311.17982) is the same formula, but only of videos that show a still scene,
    which it picks beforehand. Here it is taken of all, so that motion lowers it as flicker does: compare it between
    methods together with a measure of motion. NaN for a single frame.
    """

    blind: ClassVar[str] = "It cannot tell flicker from motion, and a frozen video has none."

    def measure(self, clip: Clip) -> float:
        return 1 - mean(clip.shared(change)[1:])


def change(clip: Clip) -> Floats:
    """Mean absolute difference of each frame from the one before, 0..1 [T]; NaN for the first."""
    change_T = np.full(len(clip), np.nan)
    for t, (before, after) in enumerate(pairwise(clip.frames), start=1):
        change_T[t] = (np.maximum(before, after) - np.minimum(before, after)).mean() / 255
    return change_T
