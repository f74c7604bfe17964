"""Files of video: ffmpeg, which writes them, and what reads them."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

__all__ = ["Encoder", "Joined", "Remux", "count_frames", "read_frames"]


class Encoder:
    """ffmpeg, which reads frames of one size, [H, W, 3], and writes an .mp4 of H.264."""

    def __init__(self, path: Path, size: tuple[int, int], fps: float, *options: str) -> None:
        height, width = size
        self._start("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-",
                    "-c:v", "libx264", "-crf", "16", "-pix_fmt", "yuv420p", *options, str(path.absolute()))

    def _start(self, *arguments: str, folder: Path | None = None) -> None:
        from imageio_ffmpeg import get_ffmpeg_exe

        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `finish` and `stop`)
        # In a session of its own: an interruption from the keyboard is ours to handle, and the file is ended properly.
        self._process = subprocess.Popen(
            [get_ffmpeg_exe(), "-y", "-loglevel", "error", *arguments], stdin=subprocess.PIPE, stdout=self._log,
            stderr=self._log, start_new_session=True, cwd=folder,
        )  # fmt: skip

    def write(self, frames: Iterable[np.ndarray]) -> None:
        """Raises `RuntimeError` when the encoder has given up."""
        assert self._process.stdin
        try:
            for frame in frames:
                self._process.stdin.write(frame.tobytes())
            self._process.stdin.flush()
        except BrokenPipeError:
            self.finish()  # its exit status and log say why

    def finish(self) -> None:
        """End the file. Raises `RuntimeError` when that fails."""
        assert self._process.stdin
        with self._log as log:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            if status := self._process.wait():
                log.seek(0)
                reason = log.read().decode(errors="replace").strip() or "no message"
                raise RuntimeError(f"encoding the video failed (ffmpeg exit status {status}): {reason}")

    def stop(self) -> None:
        """Kill it, whatever becomes of the file."""
        self._process.kill()
        self._process.wait()
        self._log.close()


class Remux(Encoder):
    """ffmpeg, which copies an .mp4 into one whose index comes first, so that players can seek."""

    def __init__(self, source: Path, path: Path) -> None:
        self._start("-i", str(source.absolute()), "-c", "copy", "-movflags", "+faststart", str(path.absolute()))


class Joined(Encoder):
    """ffmpeg, which copies .mp4 files of one format, in one folder, into another of it, one after another."""

    def __init__(self, folder: Path, names: Sequence[str], name: str) -> None:
        (folder / "names").write_text("".join(f"file {each}\n" for each in names))
        # Run in the folder: a list of files is read as addresses, in which a path may mean something else.
        self._start("-f", "concat", "-i", "names", "-c", "copy", "-movflags", "+faststart", name, folder=folder)


def count_frames(path: Path, decode: bool = True) -> int:
    """Pixel frames of an .mp4, those that can be decoded or those that it says it has; 0 for what is none."""
    from imageio_ffmpeg import get_ffmpeg_exe

    ran = subprocess.run(
        [get_ffmpeg_exe(), "-loglevel", "error", "-progress", "-", "-i", str(path.absolute()), "-map", "0:v:0",
         *([] if decode else ["-c", "copy"]), "-f", "null", "-"], stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    lines = ran.stdout.split()
    return max((int(line.removeprefix("frame=")) for line in lines if line.startswith("frame=")), default=0)


def read_frames(path: str | os.PathLike[str]) -> tuple[np.ndarray, float | None]:
    """Pixel frames of a file, uint8 [T, H, W, 3], and their rate: of an .mp4 or .gif all of them, of an image one,
    which has no rate (None).

    Raises `FileNotFoundError`, and `ValueError` for a file that is neither, or has not three channels of 8 bits.
    """
    import imageio.v3 as iio

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    kind = path.suffix.lower()
    try:
        if kind == ".gif":
            frames = iio.imread(path, index=None, mode="RGB")
            milliseconds = sum(iio.immeta(path, index=i)["duration"] for i in range(len(frames)))
            return frames, 1000 * len(frames) / milliseconds
        frames = iio.imread(path)
        rate = float(iio.immeta(path)["fps"]) if frames.ndim == 4 else None
    except Exception as error:  # decoders raise what they like
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{str(path)!r} cannot be read as an image or a video: {reason}") from error
    if frames.dtype != np.uint8 or frames.shape[-1] != 3 or frames.ndim not in (3, 4):
        raise ValueError(f"{str(path)!r} holds {frames.dtype} {frames.shape}: save it with three channels, red, green "
                         "and blue, of 8 bits")
    return (frames, rate) if frames.ndim == 4 else (frames[None], None)
