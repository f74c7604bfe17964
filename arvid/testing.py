"""Tools for tests, of arvid and of strategies written elsewhere: recorded noise, traces, and the masked oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from arvid.cache import Chunk, Plan
from arvid.noise import Kind, NoisePrior
from arvid.positional.rotation import phase, rotate, space_angles, time_angles, token_angles
from arvid.samplers import Sampler

__all__ = ["MaskedAttention", "RecordedNoise", "trace"]


@dataclass(frozen=True, eq=False)
class RecordedNoise(NoisePrior):
    """Replays tensors in place of random numbers: `initial` [B, F, C, H, W] and `renoise` [chunk, draw, B, f, C, H, W].

    Draw d takes x0 to level d + 1. Not registered, hence not serialisable. Raises `ValueError` for what was not recorded.
    """

    initial: Tensor = None  # pyright: ignore[reportAssignmentType]
    renoise: Tensor = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, initial: Tensor, renoise: Tensor) -> None:
        object.__setattr__(self, "initial", initial)
        object.__setattr__(self, "renoise", renoise)

    def batch(self, seeds: Sequence[int], kind: int, step: int, chunk: Chunk, shape: Sequence[int]) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        found: Any = None
        if kind == Kind.INITIAL and chunk.end <= self.initial.shape[1]:
            found = self.initial[:, chunk.start : chunk.end]
        elif kind == Kind.RENOISE and chunk.index < len(self.renoise) and step < self.renoise.shape[1]:
            found = self.renoise[chunk.index, step][:, : chunk.n]
        wanted = (len(seeds), chunk.n, *shape)
        if found is None or tuple(found.shape) != wanted:
            have = "nothing" if found is None else f"shape {tuple(found.shape)}"
            raise ValueError(f"recorded noise has {have} for {Kind(kind).name.lower()} noise of chunk {chunk.index}, step {step}; asked for {wanted}")
        return found.numpy()


def trace(sampler: Sampler, chunks: Sequence[Chunk]) -> list[tuple[str, tuple[Chunk, ...], int]]:
    """What a sampler does with `chunks`: ("denoise" | "commit" | "emit", chunks with their levels, lane), in order."""
    events: list[tuple[str, tuple[Chunk, ...], int]] = []

    class Recorder:
        def __call__(self, x: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
            events.append(("denoise", tuple(chunks), lane))
            return torch.zeros_like(x)

        def commit(self, x: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
            events.append(("commit", tuple(chunks), lane))
            return torch.zeros_like(x)

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


class MaskedAttention:
    """The oracle: dense masked attention over whole sequences, written for clarity. A `Mixer` for an `inside` plan whose
    slots each have one time."""

    def __init__(self, plan: Plan, inv_freq: np.ndarray, grid: tuple[int, int], axes: tuple[int, int, int], dtype: torch.dtype) -> None:
        times = {slot: t for g in plan.groups for slot, t in zip(g.queries, g.times, strict=True)}
        tokens = grid[0] * grid[1]
        seen = torch.tensor(plan.mask(len(times)))
        self.mask = seen.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
        self.phase = phase(token_angles(time_angles(tuple(times[s] for s in sorted(times)), inv_freq), space_angles(grid, axes)), dtype)

    def mix(self, layer: int, q_BNhd: Tensor, k_BNhd: Tensor, v_BNhd: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (rotate(q_BNhd, self.phase), rotate(k_BNhd, self.phase), v_BNhd))
        logits = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(~self.mask, -torch.inf)
        return (F.softmax(logits, -1) @ v).transpose(1, 2)
