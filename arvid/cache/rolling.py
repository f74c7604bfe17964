from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from .base import CACHE, Kind, Pass, Ref
from .window import Windowed, whole_or_none


@CACHE.register("rolling")
@dataclass(frozen=True)
class Rolling(Windowed):
    """The first `window` - `chunk` frames stand, to and fro, for all that is older than the last chunk.

    Rolling Sink (arXiv 2602.07775), as its released code has it, in closed form: with W = window - chunk, history slot
    p shows frame tri(p) = p mod W where p div W is even, and W - 1 - p mod W where it is odd; only a DENOISE sees the
    last chunk's own frames. A view: nothing is copied. `chunk` None is the configuration's.
    """

    static: ClassVar[bool] = False
    chunk: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_or_none(chunk=self.chunk)
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk={self.chunk}: a chunk has at least 1 latent frame")
        if self.window is not None and self.chunk is not None and self.window <= self.chunk:
            raise ValueError(f"window={self.window} leaves no history beside a chunk={self.chunk}: use window >= "
                             f"{self.chunk + 1}")

    @property
    def sinks(self) -> int:
        return self.given("window") - self.given("chunk")

    def check(self, in_flight: int) -> None:
        if self.window is not None and in_flight > self.window:
            raise ValueError(f"{in_flight} frames in flight do not fit window={self.window}: use window >= {in_flight}")

    def capacity(self, chunk: int, in_flight: int) -> int | None:
        return None if self.window is None else self.window + in_flight

    def select(self, held: Sequence[Ref], new: Pass) -> Sequence[Ref]:
        self.check(len(new.frames))
        period, own, start = self.sinks, {ref.frame: ref for ref in held}, new.frames.start
        origin = held[0].frame if held else start
        room = min(period, self.given("window") - len(new.frames))
        refs = []
        for at in range(max(origin, start - room), start):
            turn, step = divmod(at - origin, period)
            content = origin + (step if turn % 2 == 0 else period - 1 - step)
            if new.kind is Kind.DENOISE and at in own:
                content = at
            if content in own:
                rolled = {} if content == at else {"at": float(at), "role": "memory"}
                refs.append(replace(own[content], **rolled))
        return refs

    def keep(self, held: Sequence[Ref], new: Pass) -> set[int]:
        first, last = held[: self.sinks], new.chunks[-1].start
        return {*(ref.frame for ref in first), *(ref.frame for ref in held if ref.frame >= last)}
