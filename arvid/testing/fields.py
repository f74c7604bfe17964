"""Whether a strategy's fields do something: the strategy with one field changed, and what that changes."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any, Literal, TypeVar

from .engine import require

T = TypeVar("T")


def every_field_counts(strategy: T, effect: Callable[[T], object], on: str) -> None:
    """Require each field to have an effect with the others as they are or, since one may idle another, one changed.

    `effect` is all that tells a strategy from another, and `on` is that in words. Fields of types unknown here pass.
    """
    names = [field.name for field in fields(strategy) if field.init]  # pyright: ignore[reportArgumentType]
    for name in names:
        tried = [getattr(other, name) for other in variants(strategy, name)]
        around = (strategy, *(one for other in names if other != name for one in variants(strategy, other)))
        counts = any(before != effect(other) for one in around for before in (effect(one),)
                     for other in variants(one, name))  # fmt: skip
        require(counts or not tried, "every field has an effect", None,
                f"{name} has none on {on}: {getattr(strategy, name)!r} gives what {tried} give")  # fmt: skip


def variants(strategy: T, name: str) -> Iterator[T]:
    """The strategy with other values of a field, where it takes them."""
    try:
        hint = typing.get_type_hints(type(strategy)).get(name)
    except NameError:  # of a class made in a function
        hint = None
    for value in _others(getattr(strategy, name), hint):
        try:
            yield replace(strategy, **{name: value})  # pyright: ignore[reportArgumentType]
        except (TypeError, ValueError):
            continue


def _others(value: Any, hint: Any) -> list[Any]:
    """Other values of a field, some of which it may not take."""
    parts = (hint, *typing.get_args(hint))
    chosen = [c for part in parts if typing.get_origin(part) is Literal for c in typing.get_args(part)]
    if chosen:
        return [choice for choice in chosen if choice != value]
    if isinstance(value, bool):
        return [not value]
    if value is None:
        return [*((1, 7, 1000) if int in parts else ()), *((0.1, 2.5) if float in parts else ())]
    if isinstance(value, int) and float not in parts:
        others = (value + 1, value - 1, 2 * value, 1, 2 * value + 2, 16 * value + 16)
        return [other for other in dict.fromkeys(others) if other != value]
    if isinstance(value, (int, float)):
        return [value + 0.01, value - 0.01, value + 1, *((value * by for by in (0.5, 2, 16, 1 / 16)) if value else ())]
    if isinstance(value, tuple) and value:
        return [(other, *value[1:]) for other in _others(value[0], None)]
    return []
