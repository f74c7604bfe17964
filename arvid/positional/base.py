"""What a frequency rule and a time map are. A temporal angle is time * inv_freq, both float64."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from arvid.registry import Registry

# Of Wan's rotary ladders, on all three axes (arXiv 2503.20314); `rope(base=...)` changes the temporal one.
BASE = 10000.0


@dataclass(frozen=True)
class RotaryContext:
    """What a frequency rule may know of a pass: the channels of a head rotated by time (`dim`, two a plane), the heads,
    the frames the model was trained on, the frames to generate (None: not known), and the frames that exist once the
    pass's chunks are final."""

    dim: int
    heads: int
    train_horizon: int | None = None
    horizon: int | None = None
    end: int = 0


class Rotary(ABC):
    """The frequency of each temporal plane. `static`: the same in every pass, so rotated keys may be stored."""

    static: ClassVar[bool] = True

    @abstractmethod
    def inv_freq(self, context: RotaryContext) -> NDArray[np.float64]:
        """Radians a frame, [planes] or [heads, planes], float64."""


class TimeMap(ABC):
    """The time of every visible frame. `static`: a frame's time never changes, so rotated keys may be stored."""

    static: ClassVar[bool] = False

    @abstractmethod
    def times(self, refs: Sequence[Any], new: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(one time for each ref, one for each in-flight frame of the pass `new`).

        Reads only a ref's `at`, `role` and `shot`, and the pass's `chunks`, `frames` and `shot`.
        """


ROTARY: Registry[Rotary] = Registry("rotary", Rotary)
TIME: Registry[TimeMap] = Registry("time", TimeMap)
