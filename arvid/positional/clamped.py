from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .base import TIME, TimeMap
from .relative import check_cut, jump


@TIME.register("clamped")
@dataclass(frozen=True)
class Clamped(TimeMap):
    """Absolute times until the newest frame stands at `train_horizon` - 1, where it stays; older frames keep their
    distance to it, down to time 0, which all that are older still share.

    The block-relativistic RoPE of Infinity-RoPE as its paper has it (arXiv 2511.20649), whose onset is 21; its released
    code is `relative`. With `last` the last frame in flight: max(0, min(last, train_horizon - 1) - (last - at)).
    `train_horizon` None is the card's. `cut` is as in `relative`.

    Raises `ValueError` for a train_horizon that is no whole number of frames, at least 1, and for a cut as `relative`;
    `times` does for more frames in flight than train_horizon, which would collapse, and where it is None.
    """

    bounded: ClassVar[bool] = True
    absolute_at_first: ClassVar[bool] = True

    train_horizon: int | None = None
    cut: int = 0

    def __post_init__(self) -> None:
        trained = self.train_horizon
        if trained is not None and (isinstance(trained, bool) or not isinstance(trained, int) or trained < 1):
            raise ValueError(f"train_horizon={trained!r}: give a whole number of latent frames, at least 1, or None "
                             "for the card's")
        check_cut(self.cut)

    def times(self, refs: Sequence[Any], new: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self.train_horizon is None:
            raise ValueError(f"{self}: train_horizon is None, which means the card's, and there is no card: give the "
                             "latent frames the model was trained on")
        if len(new.frames) > self.train_horizon:
            raise ValueError(f"{self}: {len(new.frames)} frames in flight would share times: use train_horizon >= "
                             f"{len(new.frames)}")
        back = max(0, new.frames[-1] - (self.train_horizon - 1))
        ahead = jump(self.cut, refs, new) - back
        return tuple(max(0.0, float(ref.at - back)) for ref in refs), tuple(float(f + ahead) for f in new.frames)
