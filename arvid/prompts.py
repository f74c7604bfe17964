"""What a request may give as its prompt: one, one for each video of a batch, or several in turn for one video."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any

__all__ = ["Prompts", "Schedule", "parse"]

Schedule = Sequence[tuple[float, str]]
"""Prompts of one video with the seconds at which each begins, the first at 0."""


@dataclass(frozen=True)
class Prompts:
    """The prompt of each row at first, and for a single video those that begin later, at so many seconds."""

    first: list[str]
    later: list[tuple[float, str]]
    batch: bool


def parse(prompt: str | Sequence[str] | Schedule) -> Prompts:
    """Raises `TypeError` for what is neither a string, nor strings, nor pairs of seconds and a string, and `ValueError`
    for none, or times that do not begin at 0 and rise."""
    if isinstance(prompt, str):
        return Prompts([prompt], [], batch=False)
    if not isinstance(prompt, Sequence):
        raise TypeError("prompt must be a string, a list of strings (a batch), or a list of (seconds, string) (one "
                        f"video), got {prompt!r}")
    if not prompt:
        raise ValueError("the list of prompts is empty; give at least one")
    texts = [entry for entry in prompt if isinstance(entry, str)]
    if len(texts) == len(prompt):
        return Prompts(texts, [], batch=True)
    pairs = [_pair(entry) for entry in prompt]
    times = [seconds for seconds, _ in pairs]
    if times[0] != 0 or any(not a < b < math.inf for a, b in pairwise(times)):
        raise ValueError(f"prompts begin at {times} s: the first begins at 0, each later one after the one before")
    return Prompts([pairs[0][1]], pairs[1:], batch=False)


def _pair(entry: Any) -> tuple[float, str]:
    if isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) == 2:
        seconds, text = entry
        if isinstance(seconds, Real) and not isinstance(seconds, bool) and isinstance(text, str):
            return float(seconds), text
    raise TypeError(f"prompt must be a string, a list of strings (a batch), or a list of (seconds, string) (one video);"
                    f" {entry!r} in a list is neither")
