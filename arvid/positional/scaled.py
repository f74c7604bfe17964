from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .base import RotaryContext
from .rope import Ladder

Source = Literal["total", "current", "stale"]


@dataclass(frozen=True)
class Scaled(Ladder):
    """Base of the rules that use S = max(1, L / train_horizon), how far a video exceeds what the model was trained on.

    `scale` says what L is. `total`: the frames to generate, constant for a video. `current`: the frames that exist once
    the pass's chunks are final, so that S grows, all keys are rotated anew with the pass's S, and what is made does not
    depend on what will follow. None: total where the horizon is known, else current. `stale` is current with every key
    left as its own pass rotated it: what comes of editing the frequencies of code that caches rotated keys; an
    ablation, for it breaks attention. `train_horizon` None is the card's.
    """

    scale: Source | None = field(default=None, kw_only=True)
    train_horizon: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is not None and self.scale not in get_args(Source):
            raise ValueError(f"scale={self.scale!r}; allowed: {', '.join(map(repr, get_args(Source)))}, or None")
        whole = isinstance(self.train_horizon, int) and not isinstance(self.train_horizon, bool)
        if self.train_horizon is not None and not (whole and self.train_horizon >= 1):
            raise ValueError(f"train_horizon={self.train_horizon!r}: give a whole number of latent frames, at least 1, "
                             "or None for the card's")

    @property
    def stale(self) -> bool:
        """Whether keys keep the frequencies of the pass that committed them."""
        return self.scale == "stale"

    def is_static(self, horizon: int | None) -> bool:
        return self.scale == "total" or (self.scale is None and horizon is not None)

    def factor(self, context: RotaryContext) -> float:
        """S. Raises `ValueError` where the horizon it needs is not known."""
        trained, current = self.trained(context), not self.is_static(context.horizon)
        if not current and context.horizon is None:
            raise ValueError(f"{self}: scale='total' needs to know how many frames will be generated; use "
                             "scale='current' for a video without a set length")
        length = context.end if current else context.horizon
        assert length is not None
        return max(1.0, length / trained)

    def trained(self, context: RotaryContext) -> int:
        """Frames the model was trained on. Raises `ValueError` where neither the rule nor the card says."""
        given = self.train_horizon if self.train_horizon is not None else context.train_horizon
        if given is None:
            raise ValueError(f"{self}: train_horizon is None, which means the card's, and there is no card: give the "
                             "latent frames the model was trained on")
        return given


@dataclass(frozen=True)
class Stretched(Scaled):
    """Base of the rules that are plain rope while S is 1, and change its frequencies where S is more."""

    identity_within_train: ClassVar[bool] = True

    def inv_freq(self, context: RotaryContext) -> NDArray[np.float64]:
        theta, by = self.ladder(context), self.factor(context)
        stretched = self.stretch(theta, by, context)  # at S = 1 too: what does not fit the planes raises in any pass
        return stretched if by > 1 else theta

    @abstractmethod
    def stretch(self, theta: NDArray[np.float64], by: float, context: RotaryContext) -> NDArray[np.float64]:
        """The frequencies, [planes] or [heads, planes], in place of rope's `theta` [planes] where S is `by`."""
