"""What a metric is, and the clip it is given: pixel frames with what was computed from them, shared by its parts."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from arvid.evaluation.reader import Reading, read
from arvid.registry import Registry, brief

Floats = NDArray[np.floating]
Bytes = NDArray[np.uint8]

LEAST_SIDE = 16  # pixels, as the reader's
SMALL = 64  # shorter side, in pixels, of the frames that what needs no detail is computed from
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
PIECE = 1 << 24  # values turned into floats at a time


class Clip:
    """Pixel frames, uint8 [T, H, W, 3], at `fps` frames a second, and the prompt they were made from (None: not known).

    What metrics compute is computed once for the whole clip, when first asked for, and cut for its parts. Do not change
    the frames afterwards. Raises `TypeError` for anything but a uint8 array, and `ValueError` for another shape,
    nothing in it, a side of less than 16 pixels, or a rate that is not positive.
    """

    def __init__(self, frames: Bytes, fps: float, prompt: str | None = None) -> None:
        if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
            kind = getattr(frames, "dtype", type(frames).__name__)
            raise TypeError(f"frames must be a numpy uint8 array in 0..255, got {kind}; Video.frames is one")
        if frames.ndim != 4 or frames.shape[3] != 3 or not len(frames) or min(frames.shape[1:3]) < LEAST_SIDE:
            raise ValueError(f"frames have shape {frames.shape}: give [T, H, W, 3] with T at least 1, H and W at least "
                             f"{LEAST_SIDE}")
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps={fps} must be positive and finite")
        if prompt is not None and not isinstance(prompt, str):
            raise TypeError(f"prompt must be a string or None, got {prompt!r}")
        self.frames, self.fps, self.prompt = frames, float(fps), prompt
        self.start = 0
        self._whole: Clip | None = None  # not itself: a cycle would keep the frames alive
        self._shared: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def whole(self) -> Clip:
        """The clip that this is a part of: itself, where it is no part."""
        return self._whole or self

    def part(self, start: int, stop: int) -> Clip:
        """Frames start .. stop - 1, counted from this clip's first. Raises `ValueError` for what is not within it."""
        start, stop = operator.index(start), operator.index(stop)
        if not 0 <= start < stop <= len(self):
            raise ValueError(f"part({start}, {stop}) of a clip of {len(self)} frames: "
                             f"give 0 <= start < stop <= {len(self)}")
        piece = Clip(self.frames[start:stop], self.fps, self.prompt)
        piece.start, piece._whole, piece._shared = self.start + start, self.whole, self._shared
        return piece

    def shared(self, compute: Callable[..., NDArray], *settings: Any) -> NDArray:
        """This clip's rows of compute(whole, *settings), [T, ...], one for each frame of the whole; computed once.

        `compute` is a function of a module, for what it gave is found again by it and its settings.
        """
        return self._once((compute, *settings), lambda: compute(self.whole, *settings))[self._rows]

    @property
    def reading(self) -> Reading:
        """What the pixel reader sees: `arvid.evaluation.reader.read`."""
        whole: Reading = self._once(read, lambda: read(self.whole.frames))
        return whole.part(self._rows.start, self._rows.stop)

    @property
    def grey(self) -> Bytes:
        """Luma (ITU-R BT.601), uint8 [T, H, W]."""
        return self.shared(_grey)

    @property
    def small(self) -> Bytes:
        """The frames, uint8 [T, h, w, 3], with a shorter side of at most 64 pixels: each the mean of what it covers."""
        return self.shared(_small)

    @property
    def flow(self) -> Floats:
        """How far the fastest 5 % of a frame's pixels moved, on average, in shorter sides of the frame; float64 [T].

        Between frames about 1/8 s apart: NaN for frames that are not compared. Raises `RuntimeError` without OpenCV.
        """
        from .flow import displacement  # which builds on this module

        return self.shared(displacement)

    @property
    def _rows(self) -> slice:
        return slice(self.start, self.start + len(self))

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]


def in_pieces(frames: NDArray, compute: Callable[[NDArray], NDArray]) -> NDArray:
    """compute(frames), some frames at a time: it makes floats of them, for which a long video may not have the room."""
    at_once = max(1, PIECE // frames[0].size)
    return np.concatenate([compute(frames[first : first + at_once]) for first in range(0, len(frames), at_once)])


def _grey(clip: Clip) -> Bytes:
    return in_pieces(clip.frames, lambda frames_THWC: (frames_THWC @ np.array(LUMA, np.float32) + 0.5).astype(np.uint8))


def _small(clip: Clip) -> Bytes:
    height, width = clip.frames.shape[1:3]
    scale = min(height, width) / SMALL
    if scale <= 1:
        return clip.frames
    size = round(height / scale), round(width / scale)
    return in_pieces(clip.frames, lambda frames_THWC: (shrunk(frames_THWC, *size) + 0.5).astype(np.uint8))


def shrunk(frames_THWC: NDArray, height: int, width: int) -> Floats:
    """Frames of no larger a size, [T, height, width, C]: each pixel the mean of what it covers."""
    T, H, W, C = frames_THWC.shape
    rows_ThX = _cover(H, height) @ frames_THWC.astype(np.float32).reshape(T, H, W * C)
    return _cover(W, width) @ rows_ThX.reshape(T, height, W, C)


def _cover(old: int, new: int) -> NDArray[np.float32]:
    """The share of each new pixel that each old one has, along one axis: [new, old]."""
    edges = np.linspace(0, old, new + 1)[:, None]
    pixels = np.arange(old)
    shared = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return (shared.clip(0) * new / old).astype(np.float32)


class Metric(ABC):
    """One number for a clip or a part of one.

    Subclasses are registered frozen dataclasses, whose fields are their settings. `low` and `high` bound the number,
    `better` is "higher", "lower", or "" where neither is, `blind` says in a sentence what it cannot see. `libraries`
    are the modules it needs that arvid itself does not; `default` says whether it is measured without being asked for.
    """

    low: ClassVar[float]
    high: ClassVar[float]
    better: ClassVar[str]
    unit: ClassVar[str] = ""
    blind: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]] = ()
    default: ClassVar[bool] = True

    def applies(self, prompt: str | None) -> bool:
        """Whether it says something of a video made from this prompt."""
        return True

    @abstractmethod
    def measure(self, clip: Clip) -> float:
        """The number; NaN where it cannot be said. Raises `RuntimeError` where a library is missing."""

    def __str__(self) -> str:
        return brief(self) if is_dataclass(self) else repr(self)


class Share(Metric):
    """A metric in 0..1 of which more is better."""

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0
    better: ClassVar[str] = "higher"


METRIC: Registry[Metric] = Registry("metric", Metric)


def mean(values: Floats) -> float:
    """The mean of what could be seen; NaN where nothing could."""
    seen = values[~np.isnan(values)]
    return float(seen.mean()) if len(seen) else math.nan
