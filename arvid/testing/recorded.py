"""Random numbers and denoisers replaced by what a test knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arvid.cache import Chunk
from arvid.noise import ChunkLike, Kind, NoisePrior
from arvid.samplers import Sampler


@dataclass(frozen=True, eq=False, init=False)
class RecordedNoise(NoisePrior):
    """Replays tensors in place of random numbers: `initial` [B, F, C, H, W], `renoise` [chunk, draw, B, f, C, H, W].

    Draw d takes x0 to level d + 1. Not registered, hence not serialisable. Raises `ValueError` for what was not
    recorded.
    """

    initial: Tensor
    renoise: Tensor

    def __init__(self, initial: Tensor, renoise: Tensor, apply_to: str = "initial") -> None:
        super().__init__(apply_to=apply_to)
        object.__setattr__(self, "initial", initial)
        object.__setattr__(self, "renoise", renoise)

    def batch(
        self, seeds: Sequence[int], kind: int, step: int, chunk: ChunkLike, shape: Sequence[int]
    ) -> np.ndarray:
        index, end, wanted = getattr(chunk, "index", 0), chunk.start + chunk.n, (len(seeds), chunk.n, *shape)
        found: Any = None
        if kind == Kind.INITIAL and end <= self.initial.shape[1]:
            found = self.initial[:, chunk.start : end]
        elif kind == Kind.RENOISE and index < len(self.renoise) and step < self.renoise.shape[1]:
            found = self.renoise[index, step][:, : chunk.n]
        if found is None or tuple(found.shape) != wanted:
            have = "nothing" if found is None else f"shape {tuple(found.shape)}"
            what = f"{Kind(kind).name.lower()} noise of chunk {index}, step {step}"
            raise ValueError(f"recorded noise has {have} for {what}; asked for {wanted}")
        return found.numpy()


def trace(sampler: Sampler, chunks: Sequence[Chunk]) -> list[tuple[str, tuple[Chunk, ...], int]]:
    """What a sampler does with `chunks`: ("denoise" | "commit" | "emit", chunks with their levels, lane), in order."""
    events: list[tuple[str, tuple[Chunk, ...], int]] = []

    class Recorder:
        def __call__(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
            events.append(("denoise", tuple(chunks), lane))
            return torch.zeros_like(x_BFCHW)

        def commit(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
            events.append(("commit", tuple(chunks), lane))
            return torch.zeros_like(x_BFCHW)

    class Silence:
        def initial(self, chunk: Chunk) -> Tensor:
            return torch.zeros(1, chunk.n, 1, 1, 1)

        def renoise(self, chunk: Chunk, step: int) -> Tensor:
            return self.initial(chunk)

        def context(self, chunk: Chunk) -> Tensor:
            return self.initial(chunk)

    for emit in sampler.rollout(Recorder(), Silence(), chunks):
        events.append(("emit", (emit.chunk,), 0))
    return events
