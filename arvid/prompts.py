"""What a request may give as its prompt: one, one for each video of a batch, several in turn for one video, or a
function that is asked while the video runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any

from arvid.geometry import Layout

__all__ = ["Live", "Prompts", "Schedule", "ask", "parse", "placed"]

Schedule = Sequence[tuple[float, str]]
"""Prompts of one video with the seconds at which each begins, the first at 0."""

Live = Callable[[float], str]
"""The prompt of one video at so many seconds; asked before the first pass of each chunk."""

KINDS = ("a string, a list of strings (a batch), a list of (seconds, string) (one video), or a function of the seconds "
         "that returns a string (one video)")  # fmt: skip


@dataclass(frozen=True)
class Prompts:
    """The prompt of each row at first, and for a single video those that begin later, at so many seconds, or the
    function that is asked for them."""

    first: list[str]
    later: list[tuple[float, str]]
    batch: bool
    live: Live | None = None


def parse(prompt: str | Sequence[str] | Schedule | Live) -> Prompts:
    """Raises `TypeError` for what is none of these, and `ValueError` for no prompts, or times that do not begin at 0
    and rise. A function is asked for its first prompt."""
    if isinstance(prompt, str):
        return Prompts([prompt], [], batch=False)
    if callable(prompt):
        return Prompts([ask(prompt, 0.0)], [], batch=False, live=prompt)
    if not isinstance(prompt, Sequence):
        raise TypeError(f"prompt must be {KINDS}, got {prompt!r}")
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


def ask(live: Live, seconds: float) -> str:
    """The prompt at this time. Raises `TypeError` for an answer that is no string, and whatever the function raises."""
    answer: object = live(seconds)
    if not isinstance(answer, str):
        raise TypeError(f"the prompt's function returned {answer!r} at {seconds:g} s; it returns a string")
    return answer


def placed(later: Sequence[tuple[float, str]], layout: Layout, rate: float) -> list[tuple[int, str]]:
    """The latent frames that later prompts begin at, each the start of a chunk of the layout; there are `rate` frames a
    second. Raises `ValueError` for a prompt after the last start."""
    found = []
    for seconds, prompt in later:
        begins = next((start for start, _ in layout if start >= seconds * rate), None)
        if begins is None:
            raise ValueError(f"the prompt {prompt!r} begins at {seconds:g} s, and no chunk of this video of "
                             f"{sum(layout[-1])} latent frames begins then or later: give an earlier time or a longer "
                             "video")
        found.append((begins, prompt))
    return found


def _pair(entry: Any) -> tuple[float, str]:
    if isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) == 2:
        seconds, text = entry
        if isinstance(seconds, Real) and not isinstance(seconds, bool) and isinstance(text, str):
            return float(seconds), text
    raise TypeError(f"prompt must be {KINDS}; {entry!r} in a list is neither")
