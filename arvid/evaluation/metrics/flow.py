"""Optical flow between frames about 1/8 s apart, as VBench samples them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .base import METRIC, Clip, Floats, Metric, Share, mean

RATE = 8.0  # frames compared in a second
FASTEST_SHARE = 0.05


def stride(fps: float) -> int:
    """How many frames lie from one compared frame to the next."""
    return max(1, round(fps / RATE))


def displacement(clip: Clip) -> Floats:
    """The values of `Clip.flow`, for a whole clip."""
    try:
        import cv2
    except ImportError as error:
        raise RuntimeError("flow and dynamic_degree need OpenCV: pip install 'arvid[evaluation]'") from error
    grey_THW = clip.grey
    T, H, W = grey_THW.shape
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    fastest = max(1, int(H * W * FASTEST_SHARE))
    moved_T = np.full(T, np.nan)
    step = stride(clip.fps)
    for t in range(step, T, step):
        flow_HW2 = estimator.calc(grey_THW[t - step], grey_THW[t], None)  # pyright: ignore[reportCallIssue, reportArgumentType]
        length_P = np.hypot(flow_HW2[..., 0], flow_HW2[..., 1]).reshape(-1)
        moved_T[t] = np.partition(length_P, -fastest)[-fastest:].mean() / min(H, W)
    return moved_T


def moved(clip: Clip) -> Floats:
    """The clip's values of `Clip.flow` that compare two of its own frames; may be none."""
    moved_T = clip.flow[stride(clip.fps) :]
    return moved_T[~np.isnan(moved_T)]


@METRIC.register("flow")
@dataclass(frozen=True)
class Flow(Metric):
    """How fast the fastest 5 % of the pixels move, in shorter frame sides per second.

    Mean over pairs of frames about 1/8 s apart of the mean length of the largest 5 % of optical flow vectors. VBench
    (arXiv 2311.17982) bases its dynamic_degree on this number, with flow from the network RAFT; here it is
    OpenCV's DIS (arXiv 1603.03590). NaN for a piece without such a pair.
    """

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = math.inf
    better: ClassVar[str] = ""
    unit: ClassVar[str] = "sides/s"
    blind: ClassVar[str] = "It takes a dissolving object, flicker and a cut for motion."
    libraries: ClassVar[tuple[str, ...]] = ("cv2",)

    def measure(self, clip: Clip) -> float:
        return mean(moved(clip)) * clip.fps / stride(clip.fps)


@METRIC.register("dynamic_degree")
@dataclass(frozen=True)
class DynamicDegree(Share):
    """Whether the video moves: 1 or 0.

    VBench's rule (arXiv 2311.17982; numbers as in its published code): of frames about 1/8 s apart, at
    least a quarter of as many pairs as there are frames move by more than `least` x the shorter side (6 of 256 pixels;
    more in videos of fewer than 8 frames a second, in proportion), where a pair's motion is the mean of its largest 5 %
    of flow vectors. Here at least one pair must, and the flow is OpenCV's DIS instead of the network RAFT's. NaN for a
    piece without such a pair.
    """

    blind: ClassVar[str] = "It takes a dissolving object, flicker and a cut for motion, and says nothing of how much."
    libraries: ClassVar[tuple[str, ...]] = ("cv2",)
    least: float = 6 / 256

    def __post_init__(self) -> None:
        if not self.least > 0:
            raise ValueError(f"least={self.least}: give a distance above 0, in shorter sides of the frame")

    def measure(self, clip: Clip) -> float:
        moved_N = moved(clip)
        if not len(moved_N):
            return math.nan
        wanted = max(1, round((len(moved_N) + 1) / 4))
        return float((moved_N > self.least * max(1.0, RATE / clip.fps)).sum() >= wanted)
