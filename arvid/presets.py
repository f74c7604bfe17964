"""Named configurations. A student preset is its card's settings, all of them; a method preset only what the method changes."""

from __future__ import annotations

import difflib
import warnings

from arvid.cache import Window
from arvid.config import PipelineConfig
from arvid.models.specs import Card, card
from arvid.noise import IID
from arvid.positional import Absolute, Rope
from arvid.samplers import FewStep


def _student(name: str) -> PipelineConfig:
    c = card(name)
    return PipelineConfig(
        rotary=Rope(), time=Absolute(), noise=IID(), cache=Window(c.window),
        sampler=FewStep(c.steps, c.shift, c.context_noise), chunk=c.chunk,
    )  # fmt: skip


STUDENTS = {"self_forcing": _student("self_forcing")}
METHODS: dict[str, PipelineConfig] = {}
PRESETS = STUDENTS | METHODS


def preset(name: str) -> PipelineConfig:
    """A configuration by name. Raises `ValueError` with the closest names."""
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no preset is called {name!r}{hint} (presets: {', '.join(sorted(PRESETS))})")
    return PRESETS[name]


def warn_if_foreign(name: str, weights: Card) -> None:
    """Warn when a student preset runs on other weights than its own, naming the settings that differ."""
    if name not in STUDENTS or weights.name == name:
        return
    own = card(name)
    keys = ("chunk", "window", "sink", "steps", "shift", "context_noise", "train_horizon")
    if differing := [f"{k} {getattr(own, k)} (weights: {getattr(weights, k)})" for k in keys if getattr(own, k) != getattr(weights, k)]:
        warnings.warn(f"preset {name!r} is for other weights than {weights.name!r}; it sets {', '.join(differing)}", stacklevel=3)
