"""Temporal position: ROTARY decides the frequencies of the temporal planes, TIME the time of every visible frame."""

from .absolute import Absolute
from .base import BASE, ROTARY, TIME, Rotary, RotaryContext, TimeMap
from .clamped import Clamped
from .flex import Flex
from .flexrope import FlexRope
from .lol import Lol
from .longrope import LongRope
from .ntk import NTK, DynamicNTK
from .ntk_by_parts import NTKByParts
from .pi import PI
from .relative import Relative
from .riflex import Riflex
from .rope import Rope
from .shot_offset import ShotOffset
from .sink_adjacent import SinkAdjacent
from .yarn import Yarn

__all__ = [
    "BASE", "NTK", "PI", "ROTARY", "TIME", "Absolute", "Clamped", "DynamicNTK", "Flex", "FlexRope", "Lol", "LongRope",
    "NTKByParts", "Relative", "Riflex", "Rope", "Rotary", "RotaryContext", "ShotOffset", "SinkAdjacent", "TimeMap",
    "Yarn",
]  # fmt: skip
