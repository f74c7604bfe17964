"""What a frequency rule and a time map are. A temporal angle is time * inv_freq, both float64."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from arvid.registry import Registry, brief

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


class LogitScale(NamedTuple):
    """What the logits q . k / sqrt(d) are multiplied by: all of them, and the part that the temporal channels add."""

    whole: float = 1.0
    time: float = 1.0


UNSCALED = LogitScale()


class Rotary(ABC):
    """The frequency of each temporal plane, and, for a few methods, a scale or a bias of the logits.

    Declarations, which `arvid.testing.check_rotary` holds a rule to: `identity_within_train`, plain rope of the same
    base, neither scaled nor biased, in a video no longer than the model was trained on; `monotone`, a longer video
    raises no frequency.
    """

    identity_within_train: ClassVar[bool] = False
    monotone: ClassVar[bool] = False

    @property
    def stale(self) -> bool:
        """Whether keys keep the frequencies of the pass that committed them, though later ones have others."""
        return False

    @abstractmethod
    def inv_freq(self, context: RotaryContext) -> NDArray[np.float64]:
        """Radians a frame, [planes] or [heads, planes], float64."""

    def is_static(self, horizon: int | None) -> bool:
        """Whether frequencies and scale are the same in every pass of a video of `horizon` frames (None: not known), so
        that rotated keys may be stored."""
        return True

    def logit_scale(self, context: RotaryContext) -> LogitScale:
        """What the logits of a pass are multiplied by."""
        return UNSCALED

    def bias(self, queries: NDArray[np.float64], keys: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """What is added to the logits of queries [Q] and keys [K] at these times: [Q, K], or None for nothing."""
        return None

    def __str__(self) -> str:
        return brief(self) if is_dataclass(self) else repr(self)


class TimeMap(ABC):
    """The time of every visible frame. Declarations, which `arvid.testing.check_time` holds a map to: `static`, a
    frame's time never changes, so rotated keys may be stored; `bounded`, times stay below a bound however long the
    video, as long as the view does; `absolute_at_first`, they are absolute up to one constant while all frames so far
    are seen in their own slots, all of one shot, and no more than `train_horizon` where there is such a field."""

    static: ClassVar[bool] = False
    bounded: ClassVar[bool] = False
    absolute_at_first: ClassVar[bool] = False

    @abstractmethod
    def times(self, refs: Sequence[Any], new: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(one time for each ref, one for each in-flight frame of the pass `new`).

        Reads only a ref's `at`, `role` and `shot`, and the pass's `chunks`, `frames` and `shot`.
        """


ROTARY: Registry[Rotary] = Registry("rotary", Rotary)
TIME: Registry[TimeMap] = Registry("time", TimeMap)
