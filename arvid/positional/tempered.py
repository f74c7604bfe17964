from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Literal, get_args

from .base import UNSCALED, LogitScale, RotaryContext
from .scaled import Stretched

Scope = Literal["whole", "time", "none"]


@dataclass(frozen=True)
class Tempered(Stretched):
    """Base of the rules that sharpen attention as S grows. Their papers multiply all rotated channels, which in a
    language model is the whole head; of a video model's, time has a part. `scope` says what is multiplied: `whole`, the
    logits; `time`, the part of the temporal channels; `none`, nothing."""

    scope: Scope = field(default="whole", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope not in get_args(Scope):
            raise ValueError(f"scope={self.scope!r}; allowed: {', '.join(map(repr, get_args(Scope)))}")

    @abstractmethod
    def sharpness(self, by: float, context: RotaryContext) -> float:
        """What queries and keys are multiplied by, each, where S is `by`."""

    def logit_scale(self, context: RotaryContext) -> LogitScale:
        if self.scope == "none":
            return UNSCALED
        return UNSCALED._replace(**{self.scope: self.sharpness(self.factor(context), context) ** 2})
