"""What the tests of samplers share: runs of a small network, a denoiser without a history, stops after any chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import islice

import torch
from dense import SPEC, KeyedNoise, cached, layout, randn, tiny_dit
from torch import Tensor

from arvid.cache import CachePolicy, Chunk, Full
from arvid.models.denoiser import CachedDenoiser
from arvid.samplers import Denoiser, Emit, Sampler

LAYOUTS = {
    "whole chunks": layout(6, 2), "a shorter last one": layout(7, 2), "one": layout(2, 2),
    "the first alone": [Chunk(0, 1), Chunk(1, 2, index=1), Chunk(3, 2, index=2)],
}  # fmt: skip


small_dit = cache(tiny_dit)


def network(policy: CachePolicy | None = None, dtype: torch.dtype = torch.float32, batch: int = 1) -> CachedDenoiser:
    return cached(small_dit(dtype=dtype), randn(batch, 5, SPEC.text_dim, dtype=dtype), policy or Full())


def run(
    sampler: Sampler, chunks: Sequence[Chunk], denoiser: Denoiser | None = None, dtype: torch.dtype = torch.float32
) -> list[Emit]:
    return list(sampler.rollout(denoiser or network(dtype=dtype), KeyedNoise(dtype=dtype), chunks))


def same(a: Sequence[Emit], b: Sequence[Emit]) -> bool:
    """Whether two runs are the same to the last bit, with the levels of their commits."""
    return all(x.chunk == y.chunk and torch.equal(x.x0, y.x0) for x, y in zip(a, b, strict=True))


class Isolated:
    """A denoiser for which a chunk is alone: neither other chunks in flight nor the history matter, its frames do."""

    def __init__(self) -> None:
        self.passes: list[tuple[Chunk, ...]] = []

    def __call__(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        self.passes.append(tuple(chunks))
        parts = x_BFCHW.split([chunk.n for chunk in chunks], 1)
        x0 = [torch.tanh((1.1 - chunk.sigma) * x + 0.1 * x.mean() + 0.01 * chunk.start)
              for x, chunk in zip(parts, chunks, strict=True)]  # fmt: skip
        return torch.cat(x0, 1)

    def commit(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        return self(x_BFCHW, chunks)


def assert_it_continues(
    sampler: Sampler, chunks: Sequence[Chunk], make: Callable[[], CachedDenoiser] = network
) -> None:
    """After every emission a new denoiser with the history of then goes on as if nothing had been, twice."""
    whole = run(sampler, chunks, make())
    for stop in range(1, len(chunks) + 1):
        denoiser = make()
        head = list(islice(sampler.rollout(denoiser, KeyedNoise(dtype=torch.float32), chunks), stop))
        snapshot = denoiser.store.snapshot()
        for _ in range(2):
            other = make()
            other.store.restore(snapshot)
            tail = list(sampler.rollout(other, KeyedNoise(dtype=torch.float32), chunks, state=head[-1].state))
            assert same(head + tail, whole)
