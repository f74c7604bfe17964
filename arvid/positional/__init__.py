"""Temporal position: ROTARY decides the frequencies of the temporal planes, TIME the time of every visible frame."""

from .absolute import Absolute
from .base import BASE, ROTARY, TIME, Rotary, RotaryContext, TimeMap
from .clamped import Clamped
from .relative import Relative
from .rope import Rope
from .shot_offset import ShotOffset
from .sink_adjacent import SinkAdjacent

__all__ = [
    "BASE", "ROTARY", "TIME", "Absolute", "Clamped", "Relative", "Rope", "Rotary", "RotaryContext", "ShotOffset",
    "SinkAdjacent", "TimeMap",
]  # fmt: skip
