"""A finished video: pixel frames and their rate, and files made of them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np

from arvid.video_files import Encoder, Remux

if TYPE_CHECKING:
    import torch

__all__ = ["Video", "VideoWriter", "check_output", "check_place", "parts_of"]

VISIBLE_SIDE = 256
"""`Video.save` enlarges a video whose shorter side, in pixels, is less than this."""


@dataclass(frozen=True, eq=False, repr=False)
class Video:
    """Pixel frames, uint8 [T, H, W, 3], shown at `fps` frames a second.

    Raises `TypeError` for anything but a uint8 array and `ValueError` for another shape or a rate that is not positive.
    """

    frames: np.ndarray
    fps: float

    def __post_init__(self) -> None:
        if not isinstance(self.frames, np.ndarray) or self.frames.dtype != np.uint8:
            kind = getattr(self.frames, "dtype", type(self.frames).__name__)
            raise TypeError(f"frames must be a numpy uint8 array, got {kind}; "
                            "tensors in [-1, 1] go through Video.from_tensor")
        if self.frames.ndim != 4 or self.frames.shape[3] != 3 or 0 in self.frames.shape:
            raise ValueError(f"frames must be [T, H, W, 3] with nothing empty, got shape {self.frames.shape}")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps={self.fps} must be positive and finite")

    @classmethod
    def from_tensor(cls, video_BCTHW: torch.Tensor, fps: float) -> Video:
        """From a float tensor in [-1, 1], [1, 3, T, H, W] or [3, T, H, W]; values outside are clamped.

        Raises `ValueError` for other shapes, more than one row, or values that are not finite.
        """
        rows = video_BCTHW[None] if video_BCTHW.ndim == 4 else video_BCTHW
        if rows.ndim != 5 or rows.shape[1] != 3 or not rows.is_floating_point():
            raise ValueError("a video tensor is float, [1, 3, T, H, W] or [3, T, H, W]; "
                             f"got {video_BCTHW.dtype} {list(video_BCTHW.shape)}")
        if rows.shape[0] != 1:
            raise ValueError(f"one Video holds one row, got {rows.shape[0]}: make one for each, "
                             "[Video.from_tensor(row, fps) for row in video_BCTHW]")
        video_CTHW = rows[0].detach().float()
        if not video_CTHW.isfinite().all():
            raise ValueError("the video has values that are not finite (NaN or infinity)")
        frames_THWC = ((video_CTHW.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0)
        return cls(np.ascontiguousarray(frames_THWC.cpu().numpy()), fps)

    @classmethod
    def concat(cls, videos: Iterable[Video]) -> Video:
        """One after the other; raises `ValueError` for none, or for different sizes or rates."""
        videos = list(videos)
        formats = sorted({(*video.frames.shape[1:3], video.fps) for video in videos})
        if len(formats) != 1:
            listed = ", ".join(f"{height}x{width} at {fps:g} fps" for height, width, fps in formats) or "none"
            raise ValueError(f"videos to join must share one size and rate, got {listed}")
        return cls(np.concatenate([video.frames for video in videos]), videos[0].fps)

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        height, width = self.frames.shape[1:3]
        return f"Video({len(self)} frames of {height}x{width}, {self.fps:g} fps, {self.seconds:g} s)"

    @property
    def seconds(self) -> float:
        """How long it plays."""
        return len(self) / self.fps

    def sheet(self, columns: int = 8, rows: int = 2) -> np.ndarray:
        """A contact sheet, uint8 [H', W', 3]: at most columns * rows frames, evenly spaced from the first to the last.

        Raises `ValueError` for fewer than one column or row.
        """
        if columns < 1 or rows < 1:
            raise ValueError(f"columns={columns}, rows={rows}: use at least 1")
        count = min(len(self), columns * rows)
        columns, rows = min(columns, count), math.ceil(count / columns)
        _, height, width, channels = self.frames.shape
        cells = np.zeros((rows * columns, height, width, channels), np.uint8)
        cells[:count] = self.frames[np.linspace(0, len(self) - 1, count).round().astype(int)]
        cells = cells.reshape(rows, columns, height, width, channels)
        return cells.swapaxes(1, 2).reshape(rows * height, columns * width, channels)

    def save(self, path: str | os.PathLike[str], scale: int | None = None) -> Path:
        """Write an .mp4 (H.264), a .gif, or a .png contact sheet, and return its path.

        Pixels are enlarged by the whole factor `scale`; None takes the smallest that brings the shorter side to 256
        pixels (and, for .mp4, both sides to even numbers, which H.264 requires). The file appears when it is complete:
        on failure nothing new is left, and an older file of that name stays.
        Raises `ValueError` for a scale that cannot be, `RuntimeError` when encoding fails, and as `check_output`.
        """
        path = check_output(path)
        factor = self._factor(path, scale)
        unfinished = _beside(path)
        try:
            _WRITERS[path.suffix.lower()](self, unfinished, factor)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        return path

    def _factor(self, path: Path, scale: int | None) -> int:
        """The factor that `save` enlarges by. Raises `ValueError` as it."""
        even, (height, width) = path.suffix.lower() == ".mp4", self.frames.shape[1:3]
        if scale is None:
            factor = math.ceil(VISIBLE_SIDE / min(height, width))
            return factor + 1 if even and factor % 2 and (height % 2 or width % 2) else factor
        _check_scale(scale)
        if even and (height * scale % 2 or width * scale % 2):
            raise ValueError(f"H.264 needs even sides, and scale={scale} makes {height * scale}x{width * scale}: "
                             f"use scale={2 * scale} or None")
        return scale


class VideoWriter:
    """A video into a file piece by piece, for videos that are longer than memory.

    >>> with VideoWriter("hour.mp4") as writer:
    ...     for piece in pipe.stream(prompt, seconds=3600):
    ...         writer.add(piece)

    An .mp4 is written as pieces come, to NAME.part.mp4, which plays at any time, also when the program is killed; a
    .gif or .png keeps the pieces until the end. `finish`, which the end of the `with` calls, gives the file its name,
    where it takes the place of an older one. `close`, which an exception in the `with` calls, ends it under the name of
    the part, with all pieces so far; a later writer to the same path begins that one anew.

    `scale` is as in `Video.save`. Raises as `check_output`, and `ValueError` for a scale that cannot be.
    """

    def __init__(self, path: str | os.PathLike[str], scale: int | None = None) -> None:
        self.path = check_output(path)
        if scale is not None:
            _check_scale(scale)
        self.scale, self.count, self.fps = scale, 0, 0.0
        self.part = self.path.with_suffix(f".part{self.path.suffix}")
        self._pieces: list[Video] = []
        self._encoder: Encoder | None = None
        self._format: tuple[int, ...] = ()
        self._open = True

    @property
    def seconds(self) -> float:
        """How long the pieces so far play."""
        return self.count / self.fps if self.count else 0.0

    def add(self, piece: Video) -> None:
        """Append a piece. Raises `TypeError` for what is no `Video`, `ValueError` for another size or rate than the
        first one's, or a file that is ended, and `RuntimeError` when encoding fails."""
        self._check_open()
        if not isinstance(piece, Video):
            raise TypeError(f"a piece is a Video, got {type(piece).__name__}; a batch needs a writer for each row")
        if self.count and (*piece.frames.shape[1:], piece.fps) != (*self._format, self.fps):
            raise ValueError(f"the video is {self._format[0]}x{self._format[1]} at {self.fps:g} fps; this piece is "
                             f"{piece!r}")
        self._format, self.fps = piece.frames.shape[1:], piece.fps
        if self.path.suffix.lower() != ".mp4":
            self._pieces.append(piece)
        else:
            factor = piece._factor(self.path, self.scale)
            if not self._encoder:
                height, width = (side * factor for side in self._format[:2])
                # Whole seconds go to the file as they are done, each readable by itself.
                self._encoder = Encoder(self.part, (height, width), piece.fps, "-g", str(math.ceil(piece.fps)),
                                         "-movflags", "+frag_keyframe+empty_moov+default_base_moof",
                                         "-flush_packets", "1")  # fmt: skip
            try:
                self._encoder.write(_enlarged(piece, factor))
            except RuntimeError:
                self._open = False
                raise
        self.count += len(piece)

    def finish(self) -> Path:
        """End the file and give it its name. Raises `ValueError` for a video without frames, `RuntimeError` when
        encoding fails; what there is then stays, under the name of the part."""
        if not self.count:
            raise ValueError(f"no pieces were added to {str(self.path)!r}: a video has at least one frame")
        self._end(self.path)
        if self._encoder:
            unfinished = _beside(self.path)
            try:
                Remux(self.part, unfinished).finish()
                os.replace(unfinished, self.path)
                self.part.unlink()
                self._encoder = None
            finally:
                unfinished.unlink(missing_ok=True)
        return self.path

    def close(self) -> None:
        """End the file under the name of the part, where it was not finished; nothing is left of a video without
        frames."""
        self._end(self.part)

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError(f"{str(self.path)!r} is ended: make another writer")

    def _end(self, path: Path) -> None:
        ending, self._open = self._open, False
        if ending and self._encoder:
            self._encoder.finish()
        elif ending and self._pieces:
            Video.concat(self._pieces).save(path, self.scale)
            self._pieces = []

    def __enter__(self) -> VideoWriter:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
            return
        with suppress(RuntimeError):  # the first error is the one to be told
            self.close()


def check_output(path: str | os.PathLike[str]) -> Path:
    """The path, once a video can be saved there; call it before hours of generation rather than after.

    Raises `ValueError` for an unknown extension, and as `check_place`.
    """
    if isinstance(path, str | os.PathLike) and Path(path).suffix.lower() not in _WRITERS:
        raise ValueError(f"cannot save {str(path)!r}: the name must end in {', '.join(_WRITERS)}")
    return check_place(path)


def parts_of(path: str | os.PathLike[str]) -> Path:
    """The folder in which an .mp4 is made part by part. Raises `ValueError` for a file of another kind."""
    if Path(path).suffix.lower() != ".mp4":
        raise ValueError(f"{str(path)!r}: only an .mp4 is made in several runs; name one, or make it in one run")
    return Path(path).with_name(Path(path).name + ".parts")


def check_place(path: str | os.PathLike[str]) -> Path:
    """The path, once a file can be saved there.

    Raises `TypeError` for what is no path, `FileNotFoundError` or `NotADirectoryError` for a missing folder,
    `IsADirectoryError` when the path is a folder, `PermissionError` when its folder cannot be written.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"cannot save {path!r}: give the path of a file")
    path = Path(path)
    if not path.parent.exists():
        raise FileNotFoundError(f"cannot save {str(path)!r}: there is no folder {str(path.parent)!r}; create it first")
    if not path.parent.is_dir():
        raise NotADirectoryError(f"cannot save {str(path)!r}: {str(path.parent)!r} is not a folder")
    if path.is_dir():
        raise IsADirectoryError(f"cannot save {str(path)!r}: it is a folder; name a file in it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot save {str(path)!r}: the folder {str(path.parent)!r} cannot be written")
    return path


def _beside(path: Path) -> Path:
    """A new name in the same folder, so that a replacement is atomic; the suffix tells encoders the format."""
    return path.parent / f".arvid-{uuid4().hex}{path.suffix.lower()}"


def _check_scale(scale: object) -> None:
    if isinstance(scale, bool) or not isinstance(scale, int) or scale < 1:
        raise ValueError(f"scale={scale!r} must be a whole number, at least 1, or None")


def _enlarge(image_HWC: np.ndarray, factor: int) -> np.ndarray:
    return image_HWC.repeat(factor, axis=0).repeat(factor, axis=1)


def _enlarged(video: Video, factor: int) -> Iterator[np.ndarray]:
    """Frame by frame, for an enlarged long video may not fit in memory."""
    return (_enlarge(frame, factor) for frame in video.frames)


def _write_mp4(video: Video, path: Path, factor: int) -> None:
    height, width = (side * factor for side in video.frames.shape[1:3])
    encoder = Encoder(path, (height, width), video.fps, "-movflags", "+faststart")
    try:
        encoder.write(_enlarged(video, factor))
        encoder.finish()
    except BaseException:
        encoder.stop()
        raise


def _write_gif(video: Video, path: Path, factor: int) -> None:
    import imageio.v3 as iio

    # A gif counts hundredths of a second: round the times of the frames rather than one duration, so nothing drifts.
    ticks = np.round(np.arange(len(video) + 1) * 100 / video.fps)
    milliseconds = (10 * np.diff(ticks)).astype(int).tolist()
    duration = milliseconds if len(video) > 1 else milliseconds[0]  # Pillow takes no list for a single frame
    iio.imwrite(path, list(_enlarged(video, factor)), duration=duration, loop=0)


def _write_png(video: Video, path: Path, factor: int) -> None:
    import imageio.v3 as iio

    iio.imwrite(path, _enlarge(video.sheet(), factor))


_WRITERS: dict[str, Callable[[Video, Path, int], None]] = {".mp4": _write_mp4, ".gif": _write_gif, ".png": _write_png}
