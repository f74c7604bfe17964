"""Named configurations: a student preset is all of its card's settings, a method preset what the method changes."""

from __future__ import annotations

import difflib
import warnings

from arvid.config import PipelineConfig
from arvid.models.specs import SETTINGS, Card, card

__all__ = ["METHODS", "STUDENTS", "preset", "warn_if_foreign"]

STUDENTS = ("self_forcing",)
METHODS: dict[str, PipelineConfig] = {}


def preset(name: str) -> PipelineConfig:
    """A configuration by name. Raises `ValueError` with the closest names, `TypeError` for what is no string."""
    if not isinstance(name, str):
        raise TypeError(f"a preset is given by its name, got {name!r}")
    if name in STUDENTS:
        return PipelineConfig().resolve(card(name))
    if name in METHODS:
        return METHODS[name]
    names = sorted((*STUDENTS, *METHODS))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"no preset is called {name!r}{hint} (presets: {', '.join(names)})")


def warn_if_foreign(name: str, weights: Card) -> None:
    """Warn when a student preset runs on other weights than its own, naming the settings that differ."""
    if name not in STUDENTS:
        return
    pairs = {key: (getattr(card(name), key), getattr(weights, key)) for key in SETTINGS}
    differing = [f"{key} {own} (the weights': {other})" for key, (own, other) in pairs.items() if own != other]
    if differing:
        warnings.warn(
            f"preset {name!r} belongs to other weights than {weights.name!r}; differing: {', '.join(differing)}",
            stacklevel=4,
        )
