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
    after_commit,
    joint_plan,
    make_plan,
    view,
    whole_plan,
)
from .full import Full
from .window import Sink, Window

__all__ = [
    "CACHE", "CachePolicy", "Chunk", "Full", "Group", "Kind", "Pass", "Plan", "Ref", "Sink", "Window",
    "after_commit", "joint_plan", "make_plan", "view", "whole_plan",
]  # fmt: skip
