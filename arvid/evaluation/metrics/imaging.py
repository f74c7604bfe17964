"""Statistics of single frames. Their last segment minus their first says how far a long video fades, blurs or burns.

FLEX (arXiv 2602.14027) measures that drift with VBench's imaging quality, the network MUSIQ, which scores distortions
as people do. These need no network, and say what changed instead of how bad it looks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import METRIC, Clip, Floats, Metric, in_pieces, mean

LEAST_SPREAD = 1.0  # of 255; a frame of less is flat


class OfFrames(Metric):
    """Mean over frames of a number in 0..1; neither more nor less is better, a change over time is worse."""

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0
    better: ClassVar[str] = ""


@METRIC.register("sharpness")
@dataclass(frozen=True)
class Sharpness(OfFrames):
    """How much of a frame's contrast a small blur removes.

    Mean over frames of sd(Y - b(Y)) / sd(Y), Y the luma and b the blur 1 2 1 / 4 along both axes with mirrored edges;
    0 to 1, and unchanged by brightness and contrast. NaN where every frame is flat (sd below 1 of 255).
    """

    blind: ClassVar[str] = "It takes noise and blocks for detail."

    def measure(self, clip: Clip) -> float:
        return mean(clip.shared(sharpness))


@METRIC.register("contrast")
@dataclass(frozen=True)
class Contrast(OfFrames):
    """How far apart light and dark are: mean over frames of 2 sd(Y) / 255, Y the luma.

    0 for flat frames to 1 for frames half black and half white.
    """

    blind: ClassVar[str] = "It does not see colour, and content changes it as fading does."

    def measure(self, clip: Clip) -> float:
        return mean(clip.shared(contrast))


@METRIC.register("saturation")
@dataclass(frozen=True)
class Saturation(OfFrames):
    """How far from grey colours are: mean over frames and pixels of (largest - smallest of R, G, B) / 255.

    0 for grey to 1 for pure colours at full brightness. It is HSV's chroma: HSV's own saturation divides by the
    largest, and is noise where a frame is dark.
    """

    blind: ClassVar[str] = "It does not see which colour it is, and darkness lowers it."

    def measure(self, clip: Clip) -> float:
        return mean(clip.shared(saturation))


def sharpness(clip: Clip) -> Floats:
    """[T], NaN for flat frames."""
    return in_pieces(clip.grey, _sharpness)


def _sharpness(grey_THW: NDArray) -> Floats:
    luma_THW = grey_THW.astype(np.float32)
    luma_THW -= luma_THW.mean((1, 2), keepdims=True)
    rest_THW = luma_THW - _blurred(_blurred(luma_THW, 1), 2)
    spread_T = _rms(luma_THW)
    return np.divide(_rms(rest_THW), spread_T, out=np.full(len(spread_T), np.nan), where=spread_T >= LEAST_SPREAD)


def _blurred(values: Floats, axis: int) -> Floats:
    padding = [(0, 0)] * values.ndim
    padding[axis] = (1, 1)
    # Mirrored about its edges, a signal is a sum of cosines, which this filter multiplies by 0 .. 1: the rest is less.
    wide = np.moveaxis(np.pad(values, padding, mode="symmetric"), axis, 0)
    return np.moveaxis((wide[:-2] + 2 * wide[1:-1] + wide[2:]) / 4, 0, axis)


def _rms(values_THW: Floats) -> Floats:
    return np.sqrt(np.einsum("thw,thw->t", values_THW, values_THW, dtype=np.float64) / values_THW[0].size)


def contrast(clip: Clip) -> Floats:
    """[T]"""
    return in_pieces(clip.grey, lambda grey_THW: 2 * grey_THW.std((1, 2)) / 255)


def saturation(clip: Clip) -> Floats:
    """[T]"""
    return in_pieces(clip.frames, _saturation)


def _saturation(frames_THWC: NDArray) -> Floats:
    red, green, blue = np.moveaxis(frames_THWC, -1, 0)  # a maximum over an axis of 3 is many times slower
    largest = np.maximum(np.maximum(red, green), blue)
    return (largest - np.minimum(np.minimum(red, green), blue)).mean((1, 2)) / 255
