from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from .base import CACHE, CachePolicy, Pass, Ref, Scene

if TYPE_CHECKING:
    from torch import Tensor


@CACHE.register("participative")
@dataclass(frozen=True)
class Participative(CachePolicy):
    """Sinks, recent frames, and between them the tokens that recent queries attend to most.

    Participative compression of Deep Forcing (arXiv 2512.05081). All frames are seen until a chunk would overflow
    `window`; then `budget` frames' worth remain: the first `sink` frames, the last `recent` (those in flight included),
    and of all tokens between them, in each layer, the budget - sink - recent frames' worth with the highest score: the
    sum over heads and over the queries of the recent frames of q . k. What is kept may be kept again. Kept tokens keep
    their own times, as in the released code, whose step for moving them next to the recent ones never runs; time maps
    see them in the slots right before the recent frames.
    """

    fits_like_full: ClassVar[bool] = True
    compacts: ClassVar[bool] = True

    window: int = 21
    sink: int = 10
    recent: int = 4
    budget: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("window", "sink", "recent", "budget"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < (name == "recent"):
                raise ValueError(f"{name}={value!r}: give a whole number of latent frames, at least "
                                 f"{int(name == 'recent')}")
        if not self.sink + self.recent < self.budget <= self.window:
            raise ValueError(f"sink={self.sink} + recent={self.recent}, budget={self.budget}, window={self.window}: "
                             "sink + recent < budget <= window, so that there is room for tokens to keep")

    @property
    def sinks(self) -> int:
        return self.sink

    @property
    def queries(self) -> int:
        return self.recent

    @property
    def kept(self) -> int:
        """Frames' worth of tokens between the sinks and the recent frames."""
        return self.budget - self.sink - self.recent

    def check(self, in_flight: int) -> None:
        if in_flight > self.recent:
            raise ValueError(f"recent={self.recent} counts the frames in flight, which are {in_flight}: use recent >= "
                             f"{in_flight}")

    def capacity(self, chunk: int, in_flight: int) -> int | None:
        return self.window + in_flight + self.kept  # packed tokens are written beside the frames they come from

    def select(self, held: Sequence[Ref], new: Pass) -> Sequence[Ref]:
        self.check(len(new.frames))
        sinks, rest = [replace(ref, role="sink") for ref in held[: self.sink]], list(held[self.sink :])
        if len(held) + len(new.frames) > self.window:
            between = len(rest) - (self.recent - len(new.frames))
            # What is kept of them will stand in the slots right before the recent frames.
            first = float(rest[between - self.kept].frame)
            rest[:between] = [replace(ref, role="memory", at=max(first, ref.frame)) for ref in rest[:between]]
        return [*sinks, *rest]

    def keep(self, held: Sequence[Ref], new: Pass) -> set[int]:
        """All, or where they overflow the last `budget` - `sink` frames, the first of which hold packed tokens."""
        over = len(held) > self.window
        return {ref.frame for ref in (*held[: self.sink], *held[self.sink - self.budget if over else 0 :])}

    def routed(self, refs: Sequence[Ref], new: Pass) -> int | None:
        return self.kept if len(refs) + len(new.frames) > self.window else None

    def route(self, layer: int, scene: Scene) -> Tensor:
        past = scene.past_BFhd.flip(1)[:, : self.recent - len(scene.new.frames)]
        query = scene.q_BNhd.sum(1) + past.sum(1)
        score = (scene.k_BMhd * query[:, None]).sum((2, 3))
        tokens = scene.q_BNhd.shape[1] // len(scene.new.frames)
        best = score.sort(dim=1, descending=True, stable=True).indices[:, : self.kept * tokens]
        return best.sort(dim=1).values
