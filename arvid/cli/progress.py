"""Progress on one line of a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["progress_line"]

T = TypeVar("T")


@contextmanager
def progress_line(quiet: bool, say: Callable[[T], str]) -> Iterator[Callable[[T], None] | None]:
    """What shows how far a command is on one line of stderr, as `say` puts it; the line ends with the context, whatever
    ends that. None if `quiet` or where stderr is no terminal."""
    shown = False

    def show(at: T) -> None:
        nonlocal shown
        shown = True
        print(f"\r{say(at):<60}", end="", file=sys.stderr, flush=True)

    try:
        yield None if quiet or not sys.stderr.isatty() else show
    finally:
        if shown:
            print(file=sys.stderr)
