"""Named configurations: a student preset is all of its card's settings, a method preset what the method changes."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arvid.config import PipelineConfig, read
from arvid.models.specs import CARDS, SETTINGS, Card, card
from arvid.samplers import SAMPLER

__all__ = [
    "METHODS", "STUDENTS", "Method", "check_built", "describe", "named", "preset", "resolved", "warn_if_foreign",
    "with_own",
]


@dataclass(frozen=True)
class Method:
    """What a method changes, as `PipelineConfig.from_dict` takes it, and one line on what it is and where from."""

    changes: Mapping[str, Any]
    description: str


STUDENTS = (
    "causal_forcing", "causal_forcing_framewise", "causal_forcing_framewise_1step", "causal_forcing_framewise_2step",
    "causvid", "diagonal", "hiar", "longlive", "rolling_forcing", "self_forcing",
)  # fmt: skip
"""Cards that are presets: students with weights of their own."""

METHODS = {
    "flex": Method(
        {"rotary": "flex", "time": "absolute", "noise": "ans", "cache": {"name": "sink", "window": 9, "sink": 3}},
        "Frequency-aware RoPE, antiphase noise and an attention sink (FLEX, arXiv 2602.14027).",
    ),
    "flex_longlive": Method(
        {"rotary": {"name": "flex", "alpha": 1.0, "beta": 15.0}, "time": "absolute", "noise": "ans"},
        "FLEX's thresholds for LongLive, which was trained on a minute and brings its own sinks (arXiv 2602.14027).",
    ),
    "rolling_sink": Method(
        {"cache": "rolling", "noise": "repeat"},
        "The first frames stand for all older ones, all chunks have the same noise (Rolling Sink, arXiv 2602.07775).",
    ),
    "deep_sink": Method(
        {"cache": {"name": "sink", "window": 21, "sink": 12}, "time": "sink_adjacent"},
        "Over half of the window are sinks, re-timed to lie right before the rest (Deep Forcing, arXiv 2512.05081).",
    ),
    "deep_forcing": Method(
        {"cache": {"name": "participative", "window": 21, "sink": 10, "recent": 4, "budget": 16},
         "time": "sink_adjacent"},
        "Deep sinks, and the tokens in between that recent queries score highest (Deep Forcing, arXiv 2512.05081).",
    ),
    "infinity_rope": Method(
        {"cache": {"name": "sink", "window": 6, "sink": 1, "on_change": {"name": "flush", "n": 2}},
         "time": {"name": "relative", "cut": 42}},
        "Times count within a window of 6, and a new shot's first chunk jumps ahead (Infinity-RoPE, arXiv 2511.20649).",
    ),
}  # fmt: skip

_OWN: dict[str, Mapping[str, Any]] = {
    "diagonal": {"sampler": {"name": "few_step", "commit": "last"}},
    "infinity_rope": METHODS["infinity_rope"].changes,
    "longlive": {"cache": {"name": "sink", "on_change": "recommit"}},
    "rolling_forcing": {"cache": {"name": "sink", "sink_on_commit": False}, "time": "sink_adjacent"},
}
"""What cards mean where a configuration has None, besides their numbers."""


def with_own(config: PipelineConfig, weights: Card) -> PipelineConfig:
    """`config` with the strategies the card's model has of its own, where it has None."""
    own = dict(_OWN.get(weights.name, {}))
    if weights.first_steps:
        own["sampler"] = {"name": weights.sampler, **own.get("sampler", {}), "first_steps": weights.first_steps}
    return config.replace(**{key: value for key, value in own.items() if getattr(config, key) is None})


def resolved(config: PipelineConfig, weights: Card) -> PipelineConfig:
    """`config` with everything filled in for these weights. Raises as `check_built` and `PipelineConfig.resolve`."""
    check_built(config, weights)
    return with_own(config, weights).resolve(weights)


def check_built(config: PipelineConfig, weights: Card) -> None:
    """Raise `ValueError` where the weights' own sampler is wanted and there is none of that name."""
    if config.sampler is None and weights.sampler not in SAMPLER.names():
        raise ValueError(f"the weights of {weights.name!r} are made for the sampler {weights.sampler!r}, which is not "
                         f"there (samplers: {', '.join(SAMPLER.names())}); load the plugin that has it, or give a "
                         "sampler to run them otherwise")


def preset(name: str) -> PipelineConfig:
    """A configuration by name. Raises `ValueError` with the closest names, `TypeError` for what is no string."""
    _check(name)
    if name in METHODS:
        return PipelineConfig.from_dict(METHODS[name].changes)
    return resolved(PipelineConfig(), card(name))


def named(config: str) -> tuple[PipelineConfig, str | None]:
    """The configuration of a preset's name or of a .toml file, and the preset it is or starts from. Raises as `preset`
    and `PipelineConfig.load`."""
    if config.endswith(".toml"):
        return read(config)
    try:
        return preset(config), config
    except ValueError as error:
        raise ValueError(f"{error}; a file's name ends in .toml") from error


def describe(name: str) -> str:
    """One line on a preset: what it is, and its source. Raises as `preset`."""
    _check(name)
    return f"all settings of its card: {card(name).source}" if name in STUDENTS else METHODS[name].description


def _check(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"a preset is given by its name, got {name!r}")
    names = sorted((*STUDENTS, *METHODS))
    if name not in names:
        if name in CARDS:
            check_built(PipelineConfig(), card(name))
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no preset is called {name!r}{hint} (presets: {', '.join(names)})")


def warn_if_foreign(name: str, weights: Card) -> None:
    """Warn when a student preset runs on other weights than its own, naming the settings that differ."""
    if name not in STUDENTS:
        return
    pairs = {key: (getattr(card(name), key), getattr(weights, key)) for key in ("sampler", *SETTINGS)}
    differing = [f"{key} {own} (the weights': {other})" for key, (own, other) in pairs.items() if own != other]
    if differing:
        warnings.warn(
            f"preset {name!r} belongs to other weights than {weights.name!r}; differing: {', '.join(differing)}",
            stacklevel=4,
        )
