from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import NOISE, ChunkLike, Domain, Key, NoisePrior, Recipe


@NOISE.register("freenoise")
@dataclass(frozen=True)
class FreeNoise(NoisePrior):
    """The first `train_horizon` frames are independent; then the same frames of noise come again and again, shuffled
    within each chunk (FreeNoise, arXiv 2310.15169, its local noise shuffling with a stride of one chunk).

    FreeNoise shuffles what lies `train_horizon` frames back; here a chunk shuffles the first of its line instead, which
    has the same law (a product of independent uniform permutations is one) and reaches any chunk at once. Covariance
    is 1 where two frames have the same white frame, else 0. A shorter first chunk stands outside; a shorter last one
    has the first of a whole chunk's order. With 3 frames a chunk there are 6 orders.

    None: `train_horizon` is the card's, `chunk` the configuration's. Raises `ValueError` unless the first is a multiple
    of the second.
    """

    unit_variance: ClassVar[bool] = True
    random_access: ClassVar[bool] = True
    train_horizon: int | None = None
    chunk: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train_horizon", "chunk"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r}: give a whole number of frames, at least 1, or None")
        if self.train_horizon and self.chunk and self.train_horizon % self.chunk:
            below = self.train_horizon // self.chunk * self.chunk
            near = " or ".join(str(n) for n in (below, below + self.chunk) if n)
            raise ValueError(f"train_horizon={self.train_horizon} is no multiple of chunk={self.chunk}: the noise of "
                             f"whole chunks comes again, so use noise train_horizon={near}")

    def recipe(self, frame: int, chunk: ChunkLike, key: Key) -> Recipe:
        """One white frame, that of a place in the first chunk of the same line."""
        if self.train_horizon is None or self.chunk is None:
            raise ValueError(f"{self}: None means the card's train_horizon and the configuration's chunk: give values")
        if chunk.n > self.chunk:
            raise ValueError(f"{self} got a chunk of {chunk.n} frames: give chunks of at most {self.chunk}")
        index, first = divmod(chunk.start, self.chunk)  # `first`: frames of a shorter first chunk
        turn, line = divmod(index, self.train_horizon // self.chunk)
        if turn == 0:
            return {(Domain.BASE, frame): 1.0}
        place = key.permutation(index, self.chunk)[frame - chunk.start]
        return {(Domain.BASE, first + line * self.chunk + place): 1.0}
