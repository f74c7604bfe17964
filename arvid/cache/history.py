"""One history: pages of keys and values, which frames are in them, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Chunk, Ref
from .codecs import Codec, Pages

Index = slice | Tensor
Half = list[list[Pages]]  # keys, or values, by pool and layer
Spot = tuple[int, int]  # a pool and a page of it
Where = list[tuple[int, Index, Index]]  # a pool, pages of it, and which of some frames they are of


class StoreShape(NamedTuple):
    """Sizes of what is stored: network layers, rows of the batch, (rows, columns) of tokens of a frame, heads, and the
    channels of a head rotated by (time, height, width)."""

    layers: int
    batch: int
    grid: tuple[int, int]
    heads: int
    axes: tuple[int, int, int]

    @property
    def tokens(self) -> int:
        """Tokens of a frame."""
        return self.grid[0] * self.grid[1]


class Place(NamedTuple):
    """Where a held frame is: its pool (0, or 1 for sinks with a codec of their own) and page; the time it was committed
    at, and in which chunk."""

    pool: int
    page: int
    time: float
    chunk: Chunk


@dataclass(frozen=True)
class Book:
    """What is held, sorted in time, and where; the latents [B, C, H, W] of the frames held, where they were given; and
    the queries a policy asks for, each layer's [B, frames, h, d]. `end` is the first frame never committed."""

    held: tuple[Ref, ...] = ()
    places: Mapping[int, Place] = field(default_factory=dict)
    end: int = 0
    latents: Mapping[int, Tensor] = field(default_factory=dict)
    queries: tuple[Tensor, ...] = ()


class History:
    """The pages of one (lane, branch), and the book that says what is in them.

    Pool 0 has `counts[0]` pages at first, pool 1, if `codecs` has two pairs, `counts[1]`. With `packs` the frame that
    every token of pool 0 came from is kept, in `sources`: [B, pages, tokens] a layer.
    """

    def __init__(
        self, shape: StoreShape, codecs: Sequence[tuple[Codec, Codec]], counts: Sequence[int], packs: bool,
        device: torch.device,
    ) -> None:  # fmt: skip
        size = shape.batch, shape.tokens, shape.heads, sum(shape.axes)
        self.keys, self.values = (
            [[Pages(pair[half], *size, count, device) for _ in range(shape.layers)]
             for pair, count in zip(codecs, counts, strict=True)]
            for half in range(2)
        )  # fmt: skip
        layers = range(shape.layers if packs else 0)
        self.sources = [torch.zeros(shape.batch, counts[0], shape.tokens, dtype=torch.float64, device=device)
                        for _ in layers]  # fmt: skip
        self.book = Book()
        self.undo: tuple[range, Book] | None = None  # the last commit, while nothing came after it, and what it found
        self.read: list[Tensor] = []  # keys as a pass sees them, [B, visible, tokens, h, d] a layer,
        self.read_of: tuple | None = None  # of this view,
        self.read_layers: set[int] = set()  # in these layers
        self.routes: dict[int, Tensor] = {}  # the tokens each layer has chosen,
        self.routed: tuple[range, float] | None = None  # for the pass over these frames, at this noise level

    @property
    def nbytes(self) -> int:
        """Bytes of pages, read buffers, latents and queries."""
        pages = sum(layer.nbytes for half in (self.keys, self.values) for pool in half for layer in pool)
        return pages + sum(x.nbytes for x in (
            *self.sources, *self.read, *self.book.latents.values(), *self.book.queries))  # fmt: skip

    def turn_to(self, book: Book) -> None:
        """Take another book; what a pass was shown of the old one no longer holds."""
        self.book, self.undo, self.read_of = book, None, None

    def used(self, pool: int) -> list[int]:
        """Pages in use, sorted."""
        return sorted(place.page for place in self.book.places.values() if place.pool == pool)

    def free(self, pools: Sequence[int]) -> list[Spot]:
        """A free page in each of these pools, lowest first; adds pages where there are too few."""
        spare = []
        for pool, layers in enumerate(self.keys):
            used = set(self.used(pool))
            self.grow(pool, len(used) + pools.count(pool))
            spare.append(iter(sorted(set(range(layers[0].count)) - used)))
        return [(pool, next(spare[pool])) for pool in pools]

    def grow(self, pool: int, pages: int) -> None:
        """Have at least so many pages."""
        have = self.keys[pool][0].count
        if pages <= have:
            return
        more = max(pages - have, have // 2)  # in proportion, so that a history that grows for ever is copied rarely
        for layer in (*self.keys[pool], *self.values[pool]):
            layer.grow(more)
        if pool == 0:
            self.sources = [torch.cat((x, x.new_zeros(len(x), more, x.shape[2])), 1) for x in self.sources]

    def write(self, where: Where, layer: int, k_BFNhd: Tensor, v_BFNhd: Tensor) -> None:
        """Keys and values of frames into pages."""
        for pool, pages, at in where:
            self.keys[pool][layer].write(pages, k_BFNhd[:, at])
            self.values[pool][layer].write(pages, v_BFNhd[:, at])
