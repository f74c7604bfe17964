"""A store that runs on drawn numbers, and comparisons of what it gives and holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arvid.cache import CachePolicy, Chunk, Kind, Pass, make_plan
from arvid.cache.store import Store, StoreShape
from arvid.models.attention import CachedAttention
from arvid.positional import TimeMap

Array = NDArray[np.float64]
T = TypeVar("T")

SHAPE = StoreShape(layers=2, batch=2, grid=(2, 2), heads=2, axes=(4, 2, 2))
FREQ = np.array([[1.0, 0.1], [0.7, 0.03]])  # [heads, planes]
CLOSE, TIGHT = 1e-10, 1e-12


def lay(sizes: Iterable[int]) -> list[Chunk]:
    """Chunks of these sizes from frame 0 on."""
    chunks: list[Chunk] = []
    for index, n in enumerate(sizes):
        chunks.append(Chunk(chunks[-1].end if chunks else 0, n, index=index))
    return chunks


def passes(chunk: Chunk, lane: int = 0, branch: int = 0, shot: int = 0) -> list[Pass]:
    """Two levels of a DENOISE, and the COMMIT."""
    kinds = (Kind.DENOISE, 1.0), (Kind.DENOISE, 0.5), (Kind.COMMIT, 0.0)
    return [Pass(kind, (replace(chunk, sigma=sigma),), lane, branch, shot=shot) for kind, sigma in kinds]


@lru_cache(256)  # a store and the reference ask for the same
def drawn(new: Pass, layer: int, x: int, seed: int) -> Array:
    """q, k, v of a pass, [3, B, N, h, d]: a function of the pass and of `x`, which stands for its latents."""
    levels = [round(1000 * chunk.sigma) for chunk in new.chunks]
    rng = np.random.default_rng((seed, new.frames.start, len(new.frames), new.lane, new.branch, layer, x, *levels))
    return rng.standard_normal((3, SHAPE.batch, len(new.frames) * SHAPE.tokens, SHAPE.heads, sum(SHAPE.axes)))


class Engine:
    """A store, run on drawn numbers."""

    def __init__(
        self, policy: CachePolicy, time: TimeMap, seed: int, rotated: bool = False, pages: int = 0,
        rows: slice = slice(SHAPE.batch),
    ) -> None:  # fmt: skip
        self.time, self.seed, self.rows = time, seed, rows
        shape = SHAPE._replace(batch=len(range(*rows.indices(SHAPE.batch))))
        self.store = Store(shape, policy, rotated=rotated, pages=pages, dtype=torch.float64)

    def run(self, new: Pass, x: int = 0) -> Tensor:
        """The attention output of every layer of a whole pass, [layers, B, N, h, d]."""
        self.store.begin(new, make_plan(self.store.policy, self.time, self.store.before(new), new), FREQ)
        mixer = CachedAttention(self.store)
        out = [mixer.mix(layer, *torch.from_numpy(drawn(new, layer, x, self.seed)[:, self.rows]))
               for layer in range(SHAPE.layers)]  # fmt: skip
        if new.kind is Kind.COMMIT:
            self.store.end()
        return torch.stack(out)

    def contents(self, lane: int = 0, branch: int = 0) -> dict[tuple[int, int], Tensor]:
        """Keys and values of every page, [2, B, tokens, h, d], by frame and layer."""
        return {(ref.frame, layer): torch.stack(self.store.page(ref.frame, layer, lane, branch))
                for ref in self.store.held(lane, branch) for layer in range(SHAPE.layers)}  # fmt: skip


def require(holds: object, claim: str, at: Pass | None, saw: str) -> None:
    """Raise `AssertionError` with the claim, the pass at which it fails, and what was expected and seen."""
    if not holds:
        raise AssertionError(f"{claim}: not so{f' at {named(at)}' if at else ''}: {saw}")


def named(new: Pass) -> str:
    """A pass in words."""
    return f"the {new.kind.name} of chunk {new.chunks[0].index}, frames {new.frames.start}..{new.frames.stop - 1}"


def equal(claim: str, new: Pass, found: Tensor, expected: Tensor) -> None:
    """Require every bit to be the same."""
    require(torch.equal(found, expected), claim, new, f"outputs differ by {_off(found, expected):.2g}, expected 0")


def close(claim: str, new: Pass, found: Tensor | Array, expected: Tensor | Array, to: float) -> None:
    """Require numbers to differ by less than `to`."""
    off = _off(torch.as_tensor(found), torch.as_tensor(expected))
    require(off < to, claim, new, f"outputs differ by {off:.2g}, expected less than {to:g}")


def same(claim: str, new: Pass, found: dict[T, Tensor], expected: dict[T, Tensor]) -> None:
    """Require pages to hold the same, bit by bit."""
    require(found.keys() == expected.keys(), claim, new, f"(frame, layer) held: {[*found]}, expected {[*expected]}")
    changed = [key for key in expected if not torch.equal(found[key], expected[key])]
    require(not changed, claim, new, f"other keys and values in (frame, layer) {changed}")


def _off(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return (found - expected).abs().max().item()
