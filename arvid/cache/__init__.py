"""What a pass sees and what survives a commit."""

from .base import (
    CACHE,
    CachePolicy,
    Chunk,
    Group,
    Kind,
    Pass,
    Plan,
    Ref,
    Scene,
    after_commit,
    joint_plan,
    make_plan,
    recommit_plan,
    reduced,
    view,
    whole_plan,
)
from .events import EVENT, Cut, Event, Flush, Recommit, Reset
from .full import Full
from .participative import Participative
from .rolling import Rolling
from .window import Sink, Window

__all__ = [
    "CACHE", "EVENT", "CachePolicy", "Chunk", "Cut", "Event", "Flush", "Full", "Group", "Kind", "Participative", "Pass",
    "Plan", "Recommit", "Ref", "Reset", "Rolling", "Scene", "Sink", "Window", "after_commit", "joint_plan",
    "make_plan", "recommit_plan", "reduced", "view", "whole_plan",
]  # fmt: skip
