"""Temporal position: ROTARY decides the frequencies of the temporal planes, TIME the time of every visible frame."""

from .absolute import Absolute
from .base import BASE, ROTARY, TIME, Rotary, RotaryContext, TimeMap
from .rope import Rope

__all__ = ["BASE", "ROTARY", "TIME", "Absolute", "Rope", "Rotary", "RotaryContext", "TimeMap"]
