"""Whether subject and background stay what they were: VBench's formula, with features that need no network.

A frame's features are those of a region: the smoothed histograms of its colours, channel by channel, and one of its
edges by direction. They do not say where in the frame something is, so motion alone changes little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import LUMA, METRIC, Clip, Floats, Share, in_pieces

BORDER = 1 / 8  # of each side
UNLIKE = 60.0  # sum over R, G, B of the difference from the border's colour, of 765, from which a pixel is subject
SPREADS = 2.0  # ... and how many times the border's own median difference, where that is more
LEAST_REGION = 0.005  # of the frame; less is no subject, or no background
COLOUR_BINS, COLOUR_BLUR = 16, 24.0  # levels of 255
DIRECTIONS = 8
LEAST_EDGE = 8.0  # levels a pixel; less is no edge


class Consistency(Share):
    """Mean over frames t >= 1 of (cos(f_t, f_first) + cos(f_t, f_(t-1))) / 2, each at least 0."""

    region: ClassVar[int]  # in what `features` gives

    def measure(self, clip: Clip) -> float:
        features_TF = clip.shared(features)[:, self.region]
        first_F = clip.whole.shared(features)[0, self.region]
        if len(clip) < 2 or not first_F.any():
            return math.nan
        to_first = features_TF[1:] @ first_F
        to_previous = np.einsum("tf,tf->t", features_TF[1:], features_TF[:-1])
        return float(np.mean(to_first + to_previous) / 2)  # no feature is negative


@METRIC.register("subject_consistency")
@dataclass(frozen=True)
class SubjectConsistency(Consistency):
    """How far the subject looks as at first, and as just before: colours and edges of what is unlike the border.

    Mean over frames t >= 1 of (cos(f_t, f_first) + cos(f_t, f_(t-1))) / 2; 0 to 1. VBench (arXiv 2311.17982)
    takes f from the network DINO, of the whole frame, and the first frame of the clip itself; here f is histograms
    (see the module), and f_first the first frame of the whole video, also for a part. A frame without a subject counts
    0; NaN for a video that opens without one, and a single frame.
    """

    region: ClassVar[int] = 0
    blind: ClassVar[str] = "What kind of thing it is, where, and how its parts are arranged; a frozen video is best."


@METRIC.register("background_consistency")
@dataclass(frozen=True)
class BackgroundConsistency(Consistency):
    """How far the background looks as at first, and as just before: colours and edges of what is like the border.

    Mean over frames t >= 1 of (cos(f_t, f_first) + cos(f_t, f_(t-1))) / 2; 0 to 1. VBench (arXiv 2311.17982)
    takes f from the network CLIP, of the whole frame, and the first frame of the clip itself; here f is histograms
    (see the module), and f_first the first frame of the whole video, also for a part. NaN for a single frame.
    """

    region: ClassVar[int] = 1
    blind: ClassVar[str] = "Where things are: a background whose parts change places stays; a frozen video is best."


def features(clip: Clip) -> Floats:
    """Of every frame, of subject and background: [T, 2, F], each of length 1 or, where there is no such region, 0."""
    return in_pieces(clip.small, _features)


def _features(frames_THWC: NDArray) -> Floats:
    T = len(frames_THWC)
    subject_TP = _subject(frames_THWC).reshape(T, -1)
    region_2TP = np.stack([subject_TP, 1 - subject_TP])
    colours = [_colours(frames_THWC[..., channel].reshape(T, -1), region_2TP) for channel in range(3)]
    edges = _edges(frames_THWC, region_2TP)
    parts = [*(colour / math.sqrt(6) for colour in colours), edges / math.sqrt(2)]  # half of the cosine each
    there_2T = region_2TP.mean(-1) > LEAST_REGION
    return (np.concatenate(parts, axis=-1) * there_2T[..., None]).swapaxes(0, 1)


def _subject(frames_THWC: NDArray) -> Floats:
    """How much each pixel is unlike the border's middle colour, 0..1 [T, H, W]."""
    _, H, W, _ = frames_THWC.shape
    border_HW = np.ones((H, W), bool)
    high, wide = max(1, round(BORDER * H)), max(1, round(BORDER * W))
    border_HW[high:-high, wide:-wide] = False
    colour_TC = np.median(frames_THWC[:, border_HW], axis=1).astype(np.int16)
    away_THW = np.zeros(frames_THWC.shape[:3], np.int16)
    for channel in range(3):
        away_THW += abs(frames_THWC[..., channel] - colour_TC[:, channel, None, None])
    level_T = (SPREADS * np.median(away_THW[:, border_HW], axis=1)).clip(UNLIKE)[:, None, None]
    return ((away_THW - level_T) / level_T).clip(0, 1).astype(np.float32)


def _colours(values_TP: NDArray, region_2TP: Floats) -> Floats:
    """Roots of the shares of a region's levels, smoothed: [2, T, bins], each of length 1 where there is a region."""
    T = len(values_TP)
    level_N = (values_TP + 256 * np.arange(T)[:, None]).reshape(-1)
    counts_2TL = np.stack([np.bincount(level_N, region_TP.reshape(-1), 256 * T).reshape(T, 256)
                           for region_TP in region_2TP])  # fmt: skip
    centres = np.linspace(0, 255, COLOUR_BINS)
    blur_LB = np.exp(-(((np.arange(256)[:, None] - centres) / COLOUR_BLUR) ** 2) / 2)
    return _roots(counts_2TL @ blur_LB)


def _edges(frames_THWC: NDArray, region_2TP: Floats) -> Floats:
    """Roots of the shares of a region's edges, by direction, and of its area without: [2, T, directions + 1]."""
    T = len(frames_THWC)
    luma_THW = frames_THWC @ np.array(LUMA, np.float32)
    right_N, down_N = (np.gradient(luma_THW, axis=axis).reshape(-1) for axis in (2, 1))
    strength_N = np.hypot(right_N, down_N)
    edge_M = np.flatnonzero(strength_N > LEAST_EDGE)  # few: the rest costs nothing
    bin_M = np.arctan2(down_N[edge_M], right_N[edge_M]) / math.pi * DIRECTIONS % DIRECTIONS
    near_M = np.floor(bin_M)
    frame_M = edge_M // region_2TP.shape[-1]
    shares = []
    for region_N in region_2TP.reshape(2, -1):
        weight_M = strength_N[edge_M] * region_N[edge_M]
        total = np.zeros(T * DIRECTIONS)
        for at, weight in ((near_M, 1 - (bin_M - near_M)), (near_M + 1, bin_M - near_M)):
            place_M = frame_M * DIRECTIONS + at.astype(np.int64) % DIRECTIONS
            total += np.bincount(place_M, weight_M * weight, T * DIRECTIONS)
        flat_T = LEAST_EDGE * region_N.reshape(T, -1).sum(-1)
        shares.append(np.concatenate([total.reshape(T, -1), flat_T[:, None]], axis=-1))
    return _roots(np.stack(shares))


def _roots(counts: NDArray) -> Floats:
    """Roots of shares: vectors of length 1, whose cosine is how far two distributions overlap (Bhattacharyya, 1943)."""
    return np.sqrt(counts / counts.sum(-1, keepdims=True).clip(1e-9))
