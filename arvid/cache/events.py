"""Events: what may happen to a history between two chunks. Each is a value; the denoiser runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from arvid.registry import Registry

Keep = Literal["all", "sink", "none"]
Mode = Literal["joint", "causal", "per_chunk"]
Sinks = Literal["keep", "renew"]


def _one_of(name: str, value: object, allowed: object) -> None:
    if value not in get_args(allowed):
        raise ValueError(f"{name}={value!r}; allowed: {', '.join(map(repr, get_args(allowed)))}")


@dataclass(frozen=True)
class Event(ABC):
    """`new_shot`: the next chunk starts another shot. `rewrites`: held frames are committed again."""

    new_shot: ClassVar[bool] = False
    rewrites: ClassVar[bool] = False

    @abstractmethod
    def survivors(self, frames: Sequence[int], sinks: int) -> set[int]:
        """Those of the held `frames`, sorted, that stay; the first `sinks` of them are the sinks."""


EVENT: Registry[Event] = Registry("event", Event)


@EVENT.register("flush")
@dataclass(frozen=True)
class Flush(Event):
    """Keep the sinks and the last `n` frames, or what there is of them (KV flush of Infinity-RoPE, arXiv 2511.20649;
    n = 1 in the paper, 2 in its code)."""

    n: int

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 0:
            raise ValueError(f"flush keeps n={self.n!r} frames besides the sinks: give a whole number, at least 0")

    def survivors(self, frames: Sequence[int], sinks: int) -> set[int]:
        return {*frames[:sinks], *frames[max(0, len(frames) - self.n) :]}


@EVENT.register("cut")
@dataclass(frozen=True)
class Cut(Event):
    """The next chunk starts a new shot, which time maps may know of; keeps all frames, the sinks, or none. With none
    the new shot's first frames become the sinks."""

    new_shot: ClassVar[bool] = True
    keep: Keep = "all"

    def __post_init__(self) -> None:
        _one_of("keep", self.keep, Keep)

    def survivors(self, frames: Sequence[int], sinks: int) -> set[int]:
        return set(frames[: {"all": len(frames), "sink": sinks, "none": 0}[self.keep]])


@EVENT.register("reset")
@dataclass(frozen=True)
class Reset(Event):
    """Forget every frame; time goes on."""

    def survivors(self, frames: Sequence[int], sinks: int) -> set[int]:
        return set()


@EVENT.register("recommit")
@dataclass(frozen=True)
class Recommit(Event):
    """Run the held frames once more, under the prompt that is now in force, and replace their keys: LongLive's
    KV-recache (arXiv 2509.22622, section 3.2).

    `mode` says what a frame sees in that pass. `joint`: all held frames see each other, as in LongLive, whose pass has
    the last 12 frames where this one has [sinks | held frames]. `causal`: a chunk sees all held frames before it.
    `per_chunk`: a chunk sees what the policy shows a commit of it. `sinks`: `renew` replaces their keys as well; `keep`
    leaves them as they were, though the pass has them.
    """

    rewrites: ClassVar[bool] = True
    mode: Mode = "joint"
    sinks: Sinks = "keep"

    def __post_init__(self) -> None:
        _one_of("mode", self.mode, Mode)
        _one_of("sinks", self.sinks, Sinks)

    def survivors(self, frames: Sequence[int], sinks: int) -> set[int]:
        return set(frames)
