from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import ROTARY, RotaryContext
from .rope import Ladder, powers


@ROTARY.register("lol")
@dataclass(frozen=True)
class Lol(Ladder):
    """A base of its own for each head, so that heads do not all return to the sink at once.

    LoL's multi-head jitter (arXiv 2601.16914): base * (1 + sigma * e_h) for head h, e_h uniform on [-1, 1]. The paper
    leaves open when e_h is drawn; here it is a function of `jitter_seed` and h alone, the same in every layer and pass.
    The first plane turns alike in all heads. Raises `ValueError` for a sigma outside [0, 1), one that takes a base to 1
    or below, and a seed that is no whole number in [0, 2^64).
    """

    monotone: ClassVar[bool] = True
    sigma: float = 0.8
    jitter_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sigma < 1:
            raise ValueError(f"sigma={self.sigma}: give a number in [0, 1), 0 for plain rope")
        if (lowest := self.base * (1 - self.sigma)) <= 1:
            raise ValueError(f"sigma={self.sigma} takes base={self.base} down to {lowest:g}, where a ladder needs more "
                             f"than 1: use sigma < {1 - 1 / self.base:g}")
        seed = self.jitter_seed
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise ValueError(f"jitter_seed={seed!r}: give a whole number in [0, 2^64)")

    def inv_freq(self, context: RotaryContext) -> NDArray[np.float64]:
        bases = [self.base * (1 + self.sigma * self.jitter(head)) for head in range(context.heads)]
        return np.stack([powers(base, context.dim) for base in bases])

    def jitter(self, head: int) -> float:
        """e_h in [-1, 1], from raw bits, whose stream numpy keeps."""
        key = np.random.SeedSequence(self.jitter_seed, spawn_key=(head,))
        return float(np.random.Philox(key).random_raw()) / 2**63 - 1
