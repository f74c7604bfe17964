"""What a request asks for, checked before a network runs: its length, its noise, and the frames that it starts from."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from arvid.cache import Chunk, Event
from arvid.geometry import Layout, chunk_layout, latent_frames
from arvid.models.specs import Card, VAESpec
from arvid.noise import Kind, NoisePrior
from arvid.samplers import Sampler
from arvid.video import Video
from arvid.video_files import read_frames

__all__ = [
    "MOST_FRAMES", "Given", "KeyedNoise", "Negative", "Progress", "Report", "Request", "Start", "away_from",
    "embeddings", "given", "length", "sides_of", "usable",
]

MOST_FRAMES = 1_000_000
"""Latent frames of the longest video: days of it. The layout of its chunks is made beforehand."""

Negative = str | Sequence[str] | None

Start = Video | np.ndarray | Tensor | str | os.PathLike[str] | Sequence["Video | np.ndarray | str | os.PathLike[str]"]
"""What a video may start from: an image (uint8 [H, W, 3], or its path), a clip (a `Video`, or its path), for a batch
also a list of one for each row, or latents [B, F, C, H, W]."""

SAME_RATE = 0.02
"""Rates closer than this share are one: files round them."""


@dataclass(frozen=True)
class Progress:
    """How far a request is: pixel frames done and asked for, and the seconds since it began."""

    done: int
    total: int
    seconds: float

    @property
    def fps(self) -> float:
        """Pixel frames made a second."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def eta(self) -> float:
        """Seconds left at this rate."""
        return (self.total - self.done) / self.fps if self.fps else float("inf")


Report = Callable[[Progress], None]


class KeyedNoise:
    """A prior's draws as tensors for one request: what `samplers.NoiseSource` asks for."""

    def __init__(self, prior: NoisePrior, seeds: Sequence[int], shape: Sequence[int], like: Tensor) -> None:
        self.prior, self.seeds, self.shape, self.like = prior, tuple(seeds), tuple(shape), like

    def _draw(self, kind: Kind, step: int, chunk: Chunk) -> Tensor:
        return torch.from_numpy(self.prior.batch(self.seeds, kind, step, chunk, self.shape)).to(self.like)

    def initial(self, chunk: Chunk) -> Tensor:
        return self._draw(Kind.INITIAL, 0, chunk)

    def renoise(self, chunk: Chunk, step: int) -> Tensor:
        return self._draw(Kind.RENOISE, step, chunk)

    def context(self, chunk: Chunk) -> Tensor:
        return self._draw(Kind.CONTEXT, 0, chunk)


@dataclass(frozen=True, eq=False)
class Given:
    """The first frames of a video, `count` latent ones: pixels, uint8 [B, T, H, W, 3], or latents, [B, F, C, H, W]."""

    count: int
    pixels_BTHWC: Tensor | None = None
    latents_BFCHW: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Request:
    """A request, checked: embeddings of each row's prompt and of its negative one, seeds, latent (height, width), the
    layout of given and of new chunks; later prompts with the frames they begin at, and what happens to the cache then.
    """

    text_BLD: Tensor
    rows: tuple[int, ...]
    size: tuple[int, int]
    layout: tuple[Layout, Layout]
    negative_BLD: Tensor | None = None
    given: Given | None = None
    later: tuple[tuple[int, Tensor], ...] = ()
    on_change: Event | None = None
    batch: bool = False

    @property
    def total(self) -> int:
        """Latent frames, given and new."""
        return sum(self.layout[1][-1])

    @property
    def chunks(self) -> tuple[list[Chunk], list[Chunk]]:
        """Those given and those to be made, numbered through."""
        before, new = self.layout
        first = len(before)
        return ([Chunk(start, n, index=i) for i, (start, n) in enumerate(before)],
                [Chunk(start, n, index=first + i) for i, (start, n) in enumerate(new)])  # fmt: skip


def given(
    start: Start, rows: int, chunk: int, size: tuple[int, int], latent: tuple[int, int, int], fps: float | None,
    vae: VAESpec | None,
) -> Given:  # fmt: skip
    """Frames to start from, for `rows` rows: `size` is (height, width) in pixels, `latent` the channels, height and
    width of latents, `fps` and `vae` are the model's (None: there is none, and `start` must be latents).

    Raises `TypeError` and `ValueError` for anything that would have to be cut, resized, resampled or guessed, and as
    reading a file does.
    """
    if isinstance(start, Tensor):
        return _given_latents(start, rows, chunk, latent)
    if vae is None or fps is None:
        raise ValueError("start is made of pixels, which need a VAE and a card, and this pipeline lacks one: give "
                         "latents [B, F, C, H, W]")
    each = list(start) if isinstance(start, Sequence) and not isinstance(start, str | bytes) else [start] * rows
    if len(each) != rows:
        raise ValueError(f"start has {len(each)} clips for {rows} rows: give one, or one for each row")
    clips = [_pixels(one, size, fps) for one in each]
    if len(lengths := sorted({len(clip) for clip in clips})) > 1:
        raise ValueError(f"start has clips of {', '.join(map(str, lengths))} pixel frames: give clips of one length")
    stride, frames = vae.time_stride, lengths[0]

    def fits(frames: int) -> bool:
        return (frames - 1) % stride == 0 and _fits((frames - 1) // stride + 1, chunk)

    if not fits(frames):
        below = next(n for n in range(frames, 0, -1) if fits(n))
        above = next(n for n in range(frames, frames + stride * (chunk + 1)) if fits(n))
        nearest = f"{below} or {above}" if below > 1 else above
        raise ValueError(f"start has {frames} pixel frames, which do not fill latent frames of {stride} (the first of "
                         f"1) and chunks of {chunk} (the first may be 1): give {nearest}, or 1, an image")
    pixels = np.stack(clips)
    return Given((frames - 1) // stride + 1, pixels_BTHWC=torch.from_numpy(pixels))


def _fits(count: int, chunk: int) -> bool:
    return count % chunk in (0, 1)


def _given_latents(x: Tensor, rows: int, chunk: int, latent: tuple[int, int, int]) -> Given:
    if not x.is_floating_point():
        raise TypeError(f"start is a tensor of {x.dtype}, and tensors are latents, floating point [B, F, C, H, W]; "
                        "pixels are a uint8 numpy array [H, W, 3] or a Video")
    if x.ndim != 5 or 0 in x.shape or x.shape[2:] != latent:
        wanted = ", ".join(map(str, latent))
        raise ValueError(f"start has shape {tuple(x.shape)}; latents of this request are [B, F, {wanted}]")
    if len(x) not in (1, rows):
        raise ValueError(f"start has {len(x)} rows for a request of {rows}: give one row, or as many")
    if not x.isfinite().all():
        raise ValueError("start has values that are not finite")
    chunk_layout(1, chunk, given=x.shape[1])
    return Given(x.shape[1], latents_BFCHW=x.detach().expand(rows, -1, -1, -1, -1))


def _pixels(start: Video | np.ndarray | str | os.PathLike[str], size: tuple[int, int], fps: float) -> np.ndarray:
    """Pixel frames [T, H, W, 3] of an image or a clip of this size and rate."""
    name, rate = "start", None
    if isinstance(start, str | os.PathLike):
        name = str(Path(start))
        frames, rate = read_frames(start)
    elif isinstance(start, Video):
        frames, rate = start.frames, start.fps
    elif isinstance(start, np.ndarray):
        if start.dtype != np.uint8:
            raise TypeError(f"start is an array of {start.dtype}; an image is uint8 [H, W, 3]")
        if start.ndim != 3:
            raise ValueError(f"start has shape {start.shape}; an image is [H, W, 3], a clip is Video(frames, fps)")
        frames = start[None]
    elif isinstance(start, Tensor):
        raise TypeError("start has a tensor in a list: latents of several rows are one tensor [B, F, C, H, W], made "
                        "with torch.cat")
    else:
        raise TypeError(f"start={start!r}: give an image (uint8 [H, W, 3] or its path), a clip (a Video or its path), "
                        "or latents (a tensor [B, F, C, H, W])")
    if frames.shape[1:] != (*size, 3):
        found = "x".join(map(str, frames.shape[1:]))
        raise ValueError(f"{name} is {found} (height x width x channels) where {size[0]}x{size[1]}x3 is wanted: resize "
                         "it, or ask for its size with height and width; Video.save enlarges small videos unless "
                         "scale=1")
    if rate is not None and not math.isclose(rate, fps, rel_tol=SAME_RATE):
        raise ValueError(f"{name} is at {rate:g} frames a second and this model makes {fps:g}: resample it, or give "
                         f"Video(frames, {fps:g}) to take its frames as they are")
    return frames


def away_from(negative: Negative, rows: int, sampler: Sampler | None, card: Card | None) -> list[str]:
    """The negative prompt of each row; none without guidance. Raises `ValueError` and `TypeError`."""
    assert sampler
    if sampler.guidance == 1:
        if negative is not None:
            raise ValueError(f"negative={negative!r} is for guidance, and {sampler} has none: leave it out, or use "
                             "a sampler with guidance other than 1, such as multistep")
        return []
    if negative is None:
        negative = (card.negative if card else None) or ""
    away = [negative] * rows if isinstance(negative, str) else negative
    if not isinstance(away, Sequence) or not all(isinstance(prompt, str) for prompt in away):
        raise TypeError(f"negative={negative!r}: give a prompt, or a list of one for each row")
    if len(away) != rows:
        raise ValueError(f"{len(away)} negative prompts for {rows} rows: give one, or one for each row")
    return list(away)


def sides_of(card: Card | None, height: int | None, width: int | None, stride: int = 1) -> tuple[int, int]:
    """Height and width as given, or the card's pixels over `stride`. Raises `ValueError`."""
    own = [side // stride for side in card.size] if card else [None, None]
    sides = [side if side is not None else default for side, default in zip((height, width), own, strict=True)]
    if sides[0] is None or sides[1] is None:
        raise ValueError(f"height={height}, width={width}: None means the card's, and there is no card: give both")
    return _whole("height", sides[0]), _whole("width", sides[1])


def length(seconds: float | None, frames: int | None, chunk: int | None, card: Card | None) -> int:
    """Latent frames that a request asks for. Raises `ValueError` and `TypeError`."""
    if seconds is not None and frames is not None:
        raise ValueError(f"seconds={seconds!r} and frames={frames!r} both set the length: give one")
    if seconds is not None:
        if isinstance(seconds, bool) or not isinstance(seconds, Real):
            raise TypeError(f"seconds={seconds!r} must be a number, got {type(seconds).__name__}")
        assert card and chunk  # videos have a card, and what is resolved has a chunk
        frames = latent_frames(seconds, card.fps, card.vae.time_stride, chunk)
    elif frames is None:
        if card is None:
            raise ValueError("frames is None, which means the card's, and there is no card: give latent frames")
        frames = card.train_horizon
    frames = _whole("frames", frames)
    if frames > MOST_FRAMES:
        asked = f"{frames} latent frames" if seconds is None else f"seconds={seconds}"
        raise ValueError(f"{asked}: a video has at most {MOST_FRAMES} latent frames")
    return frames


def _whole(name: str, value: int) -> int:
    """The number, numpy's as well. Raises `ValueError` for what is no whole number, at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r}: give a whole number, at least 1")
    return int(value)


def embeddings(name: str, x: object) -> Tensor:
    """`x`, once it is a floating point tensor [B, L, D]. Raises `TypeError` and `ValueError`."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating point tensor [B, L, D], got {kind}")
    if x.ndim != 3 or 0 in x.shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it is [B, L, D], nothing empty")
    if not x.isfinite().all():
        raise ValueError(f"{name} has values that are not finite")
    return x


def usable(device: str | torch.device) -> torch.device:
    """The device, once a tensor was there and back. Raises `ValueError` with the reason where it cannot be used."""
    try:
        torch.zeros(1, device=device).cpu()
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:  # PyTorch built without CUDA raises AssertionError
        reason = str(error).split("\n")[0]
        raise ValueError(f"device {str(device)!r} cannot be used here, 'cpu' always can: {reason}") from error
