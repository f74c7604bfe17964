"""What a video costs, counted before any weights are there: operations, memory, and the speed that arithmetic allows.

Networks and store are the real ones on PyTorch's meta device, which works out shapes and nothing else. One block stands
for all, and a pass for all that see as much.

`arvid.plan` is this module, which is called as its function `plan`, for the reason that `arvid.lint` gives.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from numbers import Real
from types import ModuleType
from typing import Any

import torch

from arvid.cache.base import Chunk
from arvid.config import PipelineConfig
from arvid.costs import Decoding, Flops, Memory, Networks, memory, text_flops
from arvid.geometry import check_size, chunk_layout, latent_frames, pixel_frames
from arvid.models.specs import Card
from arvid.pipeline import MOST_FRAMES
from arvid.presets import resolved
from arvid.simulate import Seen, views
from arvid.testing import trace

__all__ = ["DTYPES", "TFLOPS", "ChunkCost", "Flops", "Memory", "PassCost", "Plan", "plan"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TFLOPS = 790.0
"""TFLOP/s, about 80 % of the 989 that NVIDIA's data sheets give an H100 SXM or an H200 for dense bfloat16 matrices."""


@dataclass(frozen=True)
class PassCost:
    """A pass, "denoise" or "commit": latent frames in flight, frames seen (those in flight included), and its cost.
    Under guidance there are two of each, one a branch."""

    kind: str
    in_flight: int
    visible: int
    flops: Flops


@dataclass(frozen=True)
class ChunkCost:
    """The passes since the chunk before was final, and the decoding of this one: `frames` latent frames."""

    frames: int
    pixel_frames: int
    passes: tuple[PassCost, ...]
    flops: Flops


@dataclass(frozen=True)
class Plan:
    """What a video costs. `size` is (height, width) in pixels, `rate` pixel frames a second of the finished video.

    `tokens` are those of a latent frame. `first`, `last` and `largest` are chunks; `last` is the last one of full
    length that costs as much as the one before, and where there is none, `steady` False, the last. `video` is the sum
    of all chunks. `text_encoder` and `text_kv` are operations spent once a prompt, on its embeddings and on their keys
    and values.
    Everything is of all `batch` rows together.
    """

    card: str
    config: PipelineConfig
    size: tuple[int, int]
    batch: int
    dtype: str
    rate: float
    frames: int
    pixel_frames: int
    tokens: int
    chunks: int
    passes: int
    first: ChunkCost
    last: ChunkCost
    largest: ChunkCost
    steady: bool
    video: Flops
    text_encoder: int
    text_kv: int
    memory: Memory

    def fps(self, tflops: float = TFLOPS, *, decode: bool = True, video: bool = False) -> float:
        """Pixel frames a second of all rows, were arithmetic at `tflops` TFLOP/s all that takes time: a ceiling.

        Of the chunk `last`, or of the whole `video`, text encoder left out; without `decode` of the DiT alone.
        Raises `ValueError` for a rate that is not positive and finite.
        """
        if not 0 < tflops < math.inf:
            raise ValueError(f"tflops={tflops}: give a positive, finite number of TFLOP/s")
        flops = self.video if video else self.last.flops
        made = self.pixel_frames if video else self.last.pixel_frames
        return self.batch * made * tflops * 1e12 / (flops.total if decode else flops.dit)

    def to_dict(self, tflops: float = TFLOPS) -> dict[str, Any]:
        """Plain values for JSON, sums and ceilings included; operations and bytes are whole numbers."""
        plain = {**asdict(replace(self, config=None)), "config": self.config.to_dict()}  # pyright: ignore[reportArgumentType]
        plain["memory"]["peak"] = self.memory.peak
        plain["video"] |= {"dit": self.video.dit, "total": self.video.total}
        ceiling = {f"{of}_{what}": self.fps(tflops, decode=what == "all", video=of == "video")
                   for of in ("chunk", "video") for what in ("dit", "all")}  # fmt: skip
        return plain | {"tflops": tflops, "fps": ceiling}

    def text(self, tflops: float = TFLOPS) -> str:
        """Everything as tables. Raises as `fps`."""
        of = " of all rows" if self.batch > 1 else ""
        return "\n".join([
            *self._title(), "",
            "Operations, two a multiply-add, of matrix products, convolutions and attention; T: 10^12, P: 10^15",
            *_aligned([*self._chunk_rows(), self._row("video", self.passes, "", self.video)]), "",
            f"once a prompt: text encoder {_flop(self.text_encoder)}, keys and values {_flop(self.text_kv)}", "",
            "Memory; activations are estimates: operation by operation, fused attention, no workspaces of kernels",
            *_aligned(self._memory_rows()), "",
            f"Pixel frames a second{of}, were arithmetic at {tflops:g} TFLOP/s the only limit; the video plays at "
            f"{self.rate:g}",
            *_aligned(self._speed_rows(tflops)),
        ])  # fmt: skip

    def __str__(self) -> str:
        return self.text()

    def _title(self) -> Iterator[str]:
        c, (height, width) = self.config, self.size
        rows = f", {self.batch} rows" if self.batch > 1 else ""
        yield f"{self.card}, {width}x{height}, {self.dtype}{rows}"
        yield f"{c.cache}, {c.time}, {c.rotary}, {type(c.sampler).__name__}, chunk={c.chunk}"
        yield (f"{self.frames} latent frames of {self.tokens} tokens in {self.chunks} chunks: {self.pixel_frames} "
               f"pixel frames, {self.pixel_frames / self.rate:.4g} s")

    def _chunk_rows(self) -> Iterator[Sequence[str]]:
        yield "", "passes", "sees", "linear", "self-attention", "cross-attention", "decoding", "all"
        labels: dict[ChunkCost, list[str]] = {}
        for label, chunk in (("first", self.first), (self._label, self.last), ("largest", self.largest)):
            labels.setdefault(chunk, []).append(label)
        for chunk, names in labels.items():
            for cost in dict.fromkeys(chunk.passes):
                yield self._row(f"  {cost.kind}", chunk.passes.count(cost), str(cost.visible), cost.flops)
            yield self._row(f"{', '.join(names)} chunk", len(chunk.passes), "", chunk.flops)

    @staticmethod
    def _row(name: str, passes: int, visible: str, flops: Flops) -> Sequence[str]:
        parts = (_flop(part) if part else "" for part in vars(flops).values())
        return name, str(passes), visible, *parts, _flop(flops.total)

    def _speed_rows(self, tflops: float) -> Iterator[Sequence[str]]:
        yield "", "DiT", "with decoding"
        for name, video in ((f"{self._label} chunk", False), ("video", True)):
            yield name, *(f"{self.fps(tflops, decode=decode, video=video):.4g}" for decode in (False, True))

    @property
    def _label(self) -> str:
        return "steady" if self.steady else "last whole"

    def _memory_rows(self) -> Iterator[Sequence[str]]:
        m = self.memory
        for name, size in (
            ("weights: DiT", m.dit), ("weights: VAE", m.vae), ("weights: text encoder", m.text_encoder),
            (f"keys and values, pages of {m.kv_pages} frames", m.kv), ("keys and values of the prompt", m.text_kv),
            ("latents", m.latents), ("activations of the largest pass", m.activations),
            ("decoding: carried from chunk to chunk", m.vae_cache), ("decoding: activations", m.vae_activations),
            ("peak, with the larger of the activations", m.peak),
            ("peak without the text encoder", m.peak - m.text_encoder),
        ):  # fmt: skip
            yield name, _bytes(size)


def plan(
    config: PipelineConfig | None, card: Card, *, seconds: float | None = None, frames: int | None = None,
    size: tuple[int, int] | None = None, batch: int = 1, dtype: str = "bf16",
) -> Plan:  # fmt: skip
    """What a video of `seconds`, rounded to whole chunks, or `frames` latent frames costs under one prompt a row.

    `config` None is the card's settings, `size` (height, width) in pixels (None: the card's); all networks are in
    `dtype`. The passes are those of `arvid.simulate.views`, the operations those that PyTorch's `FlopCounterMode`
    counts in the networks. Raises `TypeError` for what is no configuration or card, and `ValueError` unless exactly one
    length is given, for lengths, sizes, rows and dtypes that cannot be, and for what does not fit the card.
    """
    if config is not None and not isinstance(config, PipelineConfig):
        raise TypeError(f"config={config!r}: give a PipelineConfig, such as arvid.preset('self_forcing'), or None")
    if not isinstance(card, Card):
        raise TypeError(f"card={card!r}: give a Card, such as arvid.models.specs.card('self_forcing')")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: allowed are {', '.join(DTYPES)}")
    _whole(batch=batch)
    height, width = _sides(card.size if size is None else size)
    latent = check_size(height, width, card.vae.space_stride, card.dit.patch)
    config = resolved(config or PipelineConfig(), card)
    assert config.chunk
    frames = _length(seconds, frames, card, config.chunk)
    networks = Networks(card, latent, batch, DTYPES[dtype])
    rollout = views(config, frames)
    decoding = networks.decoding(min(config.chunk, frames))
    chunks = list(_chunks(networks, decoding, config, frames, rollout))
    whole = [chunk for chunk in chunks if chunk.frames == config.chunk] or chunks
    steady = [after for before, after in pairwise(whole) if before == after]
    first, last, largest = chunks[0], (steady or whole)[-1], max(chunks, key=lambda chunk: chunk.flops.total)
    return Plan(
        card.name, config, (height, width), batch, dtype, card.fps, frames,
        pixel_frames(frames, card.vae.time_stride), networks.tokens, len(chunks),
        sum(len(chunk.passes) for chunk in chunks), first, last, largest, bool(steady),
        sum((chunk.flops for chunk in chunks), Flops()), batch * text_flops(card.text, card.dit.text_length),
        networks.prompt_flops(), memory(networks, config, frames, rollout, decoding),
    )  # fmt: skip


def _length(seconds: float | None, frames: int | None, card: Card, chunk: int) -> int:
    """Latent frames, from exactly one of the two."""
    if (seconds is None) == (frames is None):
        raise ValueError(f"seconds={seconds}, frames={frames}: give the length of the video as one of them")
    if frames is None:
        if isinstance(seconds, bool) or not isinstance(seconds, Real):
            raise TypeError(f"seconds={seconds!r} must be a number, got {type(seconds).__name__}")
        frames = latent_frames(float(seconds), card.fps, card.vae.time_stride, chunk)
    _whole(frames=frames)
    if frames > MOST_FRAMES:
        raise ValueError(f"{frames} latent frames: a video has at most {MOST_FRAMES}")
    return frames


def _sides(size: Sequence[int]) -> Sequence[int]:
    if not isinstance(size, Sequence) or len(size) != 2:
        raise ValueError(f"size={size!r}: give (height, width) in pixels")
    _whole(height=size[0], width=size[1])
    return size


def _whole(**numbers: int) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: give a whole number, at least 1")


def _chunks(
    networks: Networks, decoding: Decoding, config: PipelineConfig, frames: int, rollout: Sequence[Seen]
) -> Iterator[ChunkCost]:
    """What each chunk costs, in the order in which the sampler emits them."""
    assert config.chunk and config.sampler
    layout = chunk_layout(frames, config.chunk)[1]
    ahead: dict[int, deque[Seen]] = defaultdict(deque)
    for seen in rollout:
        ahead[seen.lane].append(seen)
    passes: list[PassCost] = []
    for kind, chunks, lane in trace(config.sampler, [Chunk(start, n, index=i) for i, (start, n) in enumerate(layout)]):
        if kind == "emit":
            (chunk,) = chunks
            pixels = pixel_frames(chunk.end, networks.card.vae.time_stride)
            before = pixel_frames(chunk.start, networks.card.vae.time_stride) if chunk.start else 0
            flops = sum((p.flops for p in passes), decoding.flops(chunk.start, chunk.n))
            yield ChunkCost(chunk.n, pixels - before, tuple(passes), flops)
            passes = []
            continue
        # A view stands for several passes, and has the chunks, with their noise levels, of the first of them.
        following = ahead[lane][1] if len(ahead[lane]) > 1 else None
        if following and following.chunks == chunks and following.kind in (kind, "both"):
            ahead[lane].popleft()
        seen = ahead[lane][0]
        flying = len(seen.frames)
        cost = PassCost(kind, flying, seen.visible, networks.pass_flops(flying, seen.visible))
        passes += [cost] * config.sampler.branches


def _flop(count: float) -> str:
    """Operations with four digits: 16.18 T."""
    power = max(power for power in range(7) if power == 0 or count >= 1000**power)
    return f"{count / 1000**power:.4g} {' kMGTPE'[power]}".strip()


def _bytes(count: int) -> str:
    """Bytes with four digits: 2.643 GiB."""
    power = max(power for power in range(4) if power == 0 or count >= 1024**power)
    return f"{count / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def _aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows of a table, the first column to the left, numbers to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            .rstrip() for row in rows]  # fmt: skip


class _Callable(ModuleType):
    __call__ = staticmethod(plan)


sys.modules[__name__].__class__ = _Callable
