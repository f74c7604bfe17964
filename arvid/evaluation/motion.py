"""Which of the grammar's motions a track is."""

import numpy as np
from numpy.typing import NDArray

from arvid.training.clips import MOTIONS

STILL, UNCLEAR = "still", "unclear"
LEAST_FRAMES = 8  # with fewer frames nothing is said
LEAST_TRAVEL = 0.08  # of a frame's side
LEAST_GROWTH = 1.25
STRAIGHT = 0.25  # travel across over travel along, below which a motion is along one axis
ROUND = 0.12  # spread of the distance from a circle's centre, over its radius


def classify(centre_T2: NDArray[np.floating], area_T: NDArray[np.floating]) -> str:
    """Name the motion of a track: one of the five motions, or "still", or "unclear".

    `centre_T2` is x, y and `area_T` a share of the frame, both with the frame's side as 1 and NaN where there is
    nothing to see. "unclear" is a track of fewer than 8 frames. A bounce and a circle need about half a period to be
    told apart: of the training clips, two to five seconds.
    """
    seen = np.isfinite(area_T) & np.isfinite(centre_T2).all(-1)
    if seen.sum() < LEAST_FRAMES:
        return UNCLEAR
    centre_T2, size_T = centre_T2[seen], np.sqrt(area_T[seen])
    bounce, horizontal, vertical, circle, grow = MOTIONS
    low, high = np.quantile(centre_T2, [0.03, 0.97], axis=0)
    x, y = high - low
    smallest, largest = np.quantile(size_T, [0.05, 0.95])
    if largest > LEAST_GROWTH * smallest and max(x, y) < 2 * LEAST_TRAVEL:
        return grow
    if max(x, y) < LEAST_TRAVEL:
        return STILL
    if min(x, y) < STRAIGHT * max(x, y):
        return horizontal if x > y else vertical
    return circle if _roundness(centre_T2) < ROUND else bounce


def _roundness(points_N2: NDArray[np.floating]) -> float:
    """RMS distance from the circle that fits best (least squares in its equation), over its radius."""
    equation = np.column_stack([2 * points_N2, np.ones(len(points_N2))])
    x, y, rest = np.linalg.lstsq(equation, (points_N2**2).sum(-1), rcond=None)[0]
    distance = np.hypot(points_N2[:, 0] - x, points_N2[:, 1] - y)
    radius = np.sqrt(max(rest + x * x + y * y, 1e-12))
    return float(np.sqrt(np.mean((distance - radius) ** 2)) / radius) if radius < 0.5 else float("inf")
