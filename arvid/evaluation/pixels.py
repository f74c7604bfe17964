"""What the reader sees in single frames: the background under everything, and the mask of the object on it.

Colours are in 0..255. P counts the pixels of a frame, T pixel frames.
"""

import numpy as np
from numpy.typing import NDArray

from arvid.training.clips import LANDMARK_MARGIN, LANDMARK_SIDE, LANDMARKS, SIZE, landmark_colour, stripes

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

CORNERS = LANDMARKS[1:]
NOT_BACKGROUND = (55.0, 45.0, 40.0)  # distance in RGB at which a pixel is left out of the fit, round by round
LEAST_DISTANCE, MOST_DISTANCE = 60.0, 100.0  # bounds of the distance in RGB at which a pixel is object
ON_THE_LINE = 45.0  # how far in RGB from a mixture of background and landmark a pixel still counts as landmark


def checked_video(video_THWC: NDArray) -> NDArray[np.float32]:
    """Check a video [T, H, W, 3], uint8 or float in 0..1, and return it as float32 in 0..255.

    Raises TypeError for another dtype, ValueError for another shape, range, or values that are not finite.
    """
    if not isinstance(video_THWC, np.ndarray) or not (
        video_THWC.dtype == np.uint8 or np.issubdtype(video_THWC.dtype, np.floating)
    ):
        got = getattr(video_THWC, "dtype", type(video_THWC).__name__)
        raise TypeError(f"the video is {got}; give a numpy array of uint8 in 0..255 or of floats in 0..1")
    if video_THWC.ndim != 4 or video_THWC.shape[-1] != 3 or not video_THWC.size or min(video_THWC.shape[1:3]) < 16:
        raise ValueError(f"the video has shape {video_THWC.shape}; give [T, H, W, 3] with H and W at least 16")
    if video_THWC.dtype == np.uint8:
        return video_THWC.astype(np.float32)
    if not np.isfinite(video_THWC).all():
        raise ValueError("the video has values that are not finite")
    if video_THWC.min() < -0.01 or video_THWC.max() > 1.01:
        raise ValueError(
            f"the video has floats in {video_THWC.min():.3g} .. {video_THWC.max():.3g}; scale them to 0..1 first"
        )
    return (video_THWC * 255).astype(np.float32)


def axes(height: int, width: int) -> tuple[Floats, Floats]:
    """Pixel centres along y [H, 1] and x [1, W], in 0..1."""
    y, x = ((np.arange(n, dtype=np.float32) + 0.5) / n for n in (height, width))
    return y[:, None], x[None, :]


def _length(vectors_TCP: Floats) -> Floats:
    return np.sqrt(np.einsum("tcp,tcp->tp", vectors_TCP, vectors_TCP))


def fit_background(video_THWC: Floats) -> tuple[Floats, Floats]:
    """Fit each frame's background by a constant, a gradient and stripes, leaving out what is not background.

    Returns the coefficients [T, 5, 3] (constant, that is the mean colour; gradient right; gradient down; stripes
    across; stripes down) and what is left of each pixel without it [T, H, W, 3].
    """
    T, H, W, _ = video_THWC.shape
    y, x = axes(H, W)
    waves = (np.ones((1, 1), np.float32), 2 * x - 1, 2 * y - 1, stripes(SIZE * x), stripes(SIZE * y))
    basis_KP = np.stack([np.broadcast_to(wave, (H, W)).reshape(-1) for wave in waves])
    products_PKK = (basis_KP[:, None] * basis_KP).reshape(-1, H * W).T
    ridge_KK = np.diag([1e-6] + [1e-3 * H * W] * 4)  # a frame with little background to see has no texture
    video_TCP = np.ascontiguousarray(video_THWC.reshape(T, H * W, 3).transpose(0, 2, 1))
    coefficients_TCK = np.zeros((T, 3, 5), np.float32)
    away_TCP = video_TCP - np.median(video_TCP, axis=-1, keepdims=True)
    for limit in NOT_BACKGROUND:
        keep_TP = (_length(away_TCP) < limit).astype(np.float32)
        left_TKK = (keep_TP @ products_PKK).reshape(T, 5, 5) + ridge_KK
        right_TCK = (video_TCP * keep_TP[:, None]) @ basis_KP.T
        coefficients_TCK = np.linalg.solve(left_TKK[:, None], right_TCK[..., None])[..., 0].astype(np.float32)
        away_TCP = video_TCP - coefficients_TCK @ basis_KP
    return coefficients_TCK.transpose(0, 2, 1), away_TCP.transpose(0, 2, 1).reshape(T, H, W, 3)


def corner_boxes(height: int, width: int, grow: float = 0.0) -> Bools:
    """Where a landmark of each corner lies, [4, H, W]; `grow` widens it, in pixels of a 64-pixel frame."""
    y, x = axes(height, width)
    near, far = LANDMARK_MARGIN - grow, LANDMARK_MARGIN + LANDMARK_SIDE + grow
    inside = {
        "top": (y * SIZE > near) & (y * SIZE < far),
        "bottom": ((1 - y) * SIZE > near) & ((1 - y) * SIZE < far),
        "left": (x * SIZE > near) & (x * SIZE < far),
        "right": ((1 - x) * SIZE > near) & ((1 - x) * SIZE < far),
    }
    return np.stack([inside[row] & inside[column] for row, column in (corner.split() for corner in CORNERS)])


def towards_landmark(away_THWC: Floats, mean_TC: Floats, names: NDArray[np.str_]) -> tuple[Floats, Floats]:
    """How far each pixel lies on the way from the background to its landmark's tone (0 to 1), and how far off.

    Both [T, H, W]; the second in RGB, from the nearest mixture of the two. `away_THWC` is without the background.
    """
    way_TC = np.stack([landmark_colour(name) for name in names]) - mean_TC
    share_THW = np.einsum("thwc,tc->thw", away_THWC, way_TC / (way_TC**2).sum(-1, keepdims=True).clip(1))
    off_THWC = away_THWC - share_THW.clip(0, 1)[..., None] * way_TC[:, None, None]
    return share_THW, np.sqrt(np.einsum("thwc,thwc->thw", off_THWC, off_THWC))


def find_object(away_THWC: Floats, landmark_off_THW: Floats) -> tuple[Bools, Floats]:
    """The largest connected part of each frame that is neither background nor landmark, without holes.

    Returns its mask [T, H, W] and its share [T] of all such pixels (0 where there are none).
    """
    distance_THW = np.sqrt(np.einsum("thwc,thwc->thw", away_THWC, away_THWC))
    T, H, W = distance_THW.shape
    in_corner_HW = corner_boxes(H, W, grow=2).any(0)
    distance_THW = np.where(in_corner_HW & (landmark_off_THW < ON_THE_LINE), 0, distance_THW)
    level_T = 0.4 * np.quantile(distance_THW.reshape(T, -1), 0.97, axis=-1)  # an object covers 5 % and more
    found_THW = distance_THW > level_T.clip(LEAST_DISTANCE, MOST_DISTANCE)[:, None, None]
    largest_THW = largest_component(found_THW)
    share_T = largest_THW.sum((1, 2)) / found_THW.sum((1, 2)).clip(1)
    return fill_holes(largest_THW), share_T


def components(mask_THW: Bools) -> NDArray[np.int64]:
    """Label the 4-connected parts of each frame: [T, H, W], 0 outside the mask, labels unique over all frames."""
    labels = np.where(mask_THW, np.arange(1, mask_THW.size + 1).reshape(mask_THW.shape), 0)
    turned = mask_THW.transpose(0, 2, 1)
    rows, columns = _Runs(mask_THW), _Runs(turned)
    while True:
        spread = columns.spread(rows.spread(labels).transpose(0, 2, 1)).transpose(0, 2, 1)
        if np.array_equal(spread, labels):
            return labels
        labels = spread


class _Runs:
    """The unbroken runs of a mask along its last axis."""

    def __init__(self, mask_THW: Bools) -> None:
        starts = np.ones(mask_THW.shape, bool)
        starts[..., 1:] = mask_THW[..., 1:] != mask_THW[..., :-1]
        self.starts = np.flatnonzero(starts)
        self.lengths = np.diff(self.starts, append=mask_THW.size)

    def spread(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give each pixel the largest label of its run."""
        largest = np.maximum.reduceat(labels.reshape(-1), self.starts)
        return np.repeat(largest, self.lengths).reshape(labels.shape)


def largest_component(mask_THW: Bools) -> Bools:
    """The largest 4-connected part of each frame; of equal ones, the one further down."""
    labels_TP = components(mask_THW).reshape(len(mask_THW), -1)
    labels, sizes = np.unique(labels_TP[labels_TP > 0], return_counts=True)
    frame = (labels - 1) // labels_TP.shape[1]
    best_T = np.full(len(mask_THW), -1, np.int64)
    order = np.argsort(sizes, kind="stable")
    best_T[frame[order]] = labels[order]  # the last one written is the largest
    return (labels_TP == best_T[:, None]).reshape(mask_THW.shape)


def fill_holes(mask_THW: Bools) -> Bools:
    """The mask with everything it encloses."""
    outside_THW = components(np.pad(~mask_THW, ((0, 0), (1, 1), (1, 1)), constant_values=True))
    return (outside_THW != outside_THW[:, -1:, -1:])[:, 1:-1, 1:-1]
