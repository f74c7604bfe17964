"""Values from JSON compared with the annotations of the dataclass they are for."""

from __future__ import annotations

import math
from types import UnionType
from typing import Any, get_args, get_origin

__all__ = ["wanted"]

_PLAIN = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}


def wanted(hint: Any, value: Any) -> str:
    """What should be given instead of `value` for an annotation; "" where it fits, or where the annotation is another.

    Annotations are int, float, str, bool, tuples of them, for which JSON has lists, and None besides.
    """
    return "" if _fits(hint, value) else _words(hint)


def _fits(hint: Any, value: Any) -> bool:
    inner = get_args(hint)
    if isinstance(hint, UnionType):
        return any(_fits(each, value) for each in inner)
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            return False
        hints = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(hints) == len(value) and all(map(_fits, hints, value))
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return hint not in _PLAIN or (isinstance(value, hint) and (hint is bool or not isinstance(value, bool)))


def _words(hint: Any) -> str:
    inner = get_args(hint)
    if isinstance(hint, UnionType):
        return " or ".join(map(_words, inner))
    if get_origin(hint) is tuple:
        hints = inner[:1] if inner[-1] is ... else inner
        return f"a list{', each' if inner[-1] is ... else f' of {len(inner)}:'} " + ", ".join(map(_words, hints))
    return "null" if hint is type(None) else _PLAIN[hint]
