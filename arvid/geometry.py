"""Arithmetic between seconds, pixel frames, latent frames and chunks, and between pixel and latent sizes.

Pure Python and free of any model's numbers: fps, strides, chunk and patch come from the card of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["Layout", "check_size", "chunk_layout", "latent_frames", "pixel_frames"]

Layout = tuple[tuple[int, int], ...]
"""Chunks as (first latent frame, number of latent frames), in order and without gaps."""


def latent_frames(seconds: float, fps: float, time_stride: int, chunk: int) -> int:
    """Latent frames of a video of about `seconds`: whole chunks, at least one; ties go to an even number of chunks.

    `fps` is pixel frames a second, `time_stride` pixel frames a latent frame, `chunk` latent frames a chunk.
    Raises `ValueError` for a length, rate or size that is not positive and finite.
    """
    _require_positive(time_stride=time_stride, chunk=chunk)
    if not (seconds > 0 and fps > 0 and math.isfinite(seconds * fps)):
        raise ValueError(f"seconds={seconds}, fps={fps}: both must be positive and finite")
    return chunk * max(1, round(seconds * fps / (time_stride * chunk)))


def pixel_frames(latent: int, time_stride: int) -> int:
    """Pixel frames that a causal VAE decodes from `latent` frames: one for the first, `time_stride` for each other."""
    _require_positive(latent=latent, time_stride=time_stride)
    return 1 + time_stride * (latent - 1)


def chunk_layout(frames: int, chunk: int, given: int = 0, first_alone: bool = False) -> tuple[Layout, Layout]:
    """Split `given` latent frames and the `frames` new ones after them into chunks; returns (given, new).

    New frames are exact: the last chunk may be shorter. Given frames are m * chunk, or 1 + m * chunk with the first a
    chunk of its own. With `first_alone` the very first frame, given or new, is always a chunk of its own, for models
    trained that way. Raises `ValueError` for other counts of given frames (naming the nearest valid ones) and for
    sizes that are not positive.
    """
    _require_positive(frames=frames, chunk=chunk)
    if isinstance(given, bool) or not isinstance(given, int) or given < 0:
        raise ValueError(f"given={given!r} must be a whole number, at least 0")
    alone = min(1, given) if first_alone else int(given % chunk == 1)
    if (given - alone) % chunk:
        below = given - (given - 1) % chunk
        above = below + chunk - (not first_alone)
        kinds = f"1 + m * {chunk}" if first_alone else f"m * {chunk} or 1 + m * {chunk}"
        raise ValueError(f"{given} given frames do not fill chunks of {chunk}: "
                         f"give {kinds} frames, such as {below} or {above}")
    new_alone = int(first_alone and not given)
    return _split(0, given, alone, chunk), _split(given, given + frames, new_alone, chunk)


def check_size(height: int, width: int, space_stride: int, patch: Sequence[int]) -> tuple[int, int]:
    """Latent (height, width) of a video of `height` x `width` pixels.

    `space_stride` is pixels a latent pixel; `patch`, in latent pixels, ends in (height, width), so a network's
    (time, height, width) patch serves as it is. Raises `ValueError`, naming the multiple and the nearest valid sizes,
    for a side that does not divide into whole patches.
    """
    patch_height, patch_width = patch[-2:]
    _require_positive(space_stride=space_stride, patch_height=patch_height, patch_width=patch_width)
    problems = [problem for name, side, multiple in (("height", height, space_stride * patch_height),
                                                     ("width", width, space_stride * patch_width))
                if (problem := _side_problem(name, side, multiple))]
    if problems:
        raise ValueError("; ".join(problems))
    return height // space_stride, width // space_stride


def _split(start: int, stop: int, alone: int, chunk: int) -> Layout:
    head = ((start, 1),) if alone else ()
    return head + tuple((at, min(chunk, stop - at)) for at in range(start + alone, stop, chunk))


def _side_problem(name: str, side: int, multiple: int) -> str | None:
    if side > 0 and side % multiple == 0:
        return None
    below, above = side // multiple * multiple, (side // multiple + 1) * multiple
    nearest = f"{below} or {above}" if below > 0 else f"{multiple}"
    return f"{name}={side} must be a positive multiple of {multiple}: use {nearest}"


def _require_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}={size!r} must be a whole number, at least 1")
