from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from .base import CACHE, CachePolicy, Kind, Pass, Ref


def whole_or_none(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"{name}={value!r}: give a whole number of latent frames, or None for the card's")


@dataclass(frozen=True)
class Windowed(CachePolicy):
    """The window rule: `window` latent frames = sinks + recent + in flight, so recent = window - sinks - in flight.

    None is the card's. Base of `window` and `sink`.
    """

    static: ClassVar[bool] = True
    fits_like_full: ClassVar[bool] = True
    window: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_or_none(window=self.window)
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window}: a window has at least 1 latent frame")

    def seen(self, held: Sequence[Ref], new: Pass, sinks: int) -> Sequence[Ref]:
        """The first `sinks` frames of the history, and as many of the last as then fit into the window."""
        self.check(len(new.frames))
        first = new.frames.start - (self.given("window") - sinks - len(new.frames))
        near = [ref for ref in held[sinks:] if ref.frame >= first]
        return [*(replace(ref, role="sink") for ref in held[:sinks]), *near]

    def given(self, name: str) -> int:
        """A field that must have a value by now. Raises `ValueError` where it is None."""
        if (value := getattr(self, name)) is None:
            where = f"{type(self).__name__}.{name}"
            raise ValueError(f"{where} is None, which means the card's, and there is no card: give it a number")
        return value

    def check(self, in_flight: int) -> None:
        if self.window is not None and self.sinks + in_flight > self.window:
            fewer = f" or sink <= {self.window - in_flight}" if 0 <= self.window - in_flight < self.sinks else ""
            raise ValueError(
                f"sink={self.sinks} + {in_flight} frames in flight do not fit window={self.window}: "
                f"use window >= {self.sinks + in_flight}{fewer}"
            )

    def capacity(self, chunk: int, in_flight: int) -> int | None:
        return None if self.window is None else self.window - chunk + in_flight

    def select(self, held: Sequence[Ref], new: Pass) -> Sequence[Ref]:
        return self.seen(held, new, self.sinks)


@CACHE.register("window")
@dataclass(frozen=True)
class Window(Windowed):
    """The last `window` frames, those in flight included: Self Forcing's local attention (arXiv 2506.08009, 3.4)."""


@CACHE.register("sink")
@dataclass(frozen=True)
class Sink(Windowed):
    """The first `sink` frames for ever, then the most recent ones, within `window`.

    StreamingLLM's attention sink (arXiv 2309.17453) in frames: LongLive's frame sink (arXiv 2509.22622), FLEX's
    inference-only sink (arXiv 2602.14027). With `sink_on_commit` False only denoising passes see it, as in Rolling
    Forcing (arXiv 2509.25161), and a commit sees more recent frames instead.
    """

    sink: int | None = None
    sink_on_commit: bool = True

    @property
    def sinks(self) -> int:
        return self.given("sink")

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_or_none(sink=self.sink)
        if self.sink is not None and self.sink < 0:
            raise ValueError(f"sink={self.sink}: the number of sink frames cannot be negative")
        if None not in (self.window, self.sink):
            self.check(1)

    def capacity(self, chunk: int, in_flight: int) -> int | None:
        bound = super().capacity(chunk, in_flight)
        return bound if bound is None or self.sink_on_commit else bound + self.sinks

    def select(self, held: Sequence[Ref], new: Pass) -> Sequence[Ref]:
        shown = self.sink_on_commit or new.kind is Kind.DENOISE
        return self.seen(held, new, self.sinks if shown else 0)
