"""A method as a value: five choices and the chunk, checked against each other when it is resolved for weights."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from arvid.cache import CACHE, CachePolicy
from arvid.models.specs import Card
from arvid.noise import NOISE, NoisePrior
from arvid.positional import ROTARY, TIME, Rotary, TimeMap
from arvid.registry import Registry
from arvid.samplers import SAMPLER, Sampler

REGISTRIES: dict[str, tuple[Registry, type]] = {
    "rotary": (ROTARY, Rotary),
    "time": (TIME, TimeMap),
    "noise": (NOISE, NoisePrior),
    "cache": (CACHE, CachePolicy),
    "sampler": (SAMPLER, Sampler),
}
PLAIN = {"rotary": "rope", "time": "absolute", "noise": "iid"}  # what None means where there is no card


@dataclass(frozen=True)
class PipelineConfig:
    """How a video is made: a strategy of each kind, and the latent frames of a chunk. None is the card's.

    Each strategy is given as a name, a dict {"name": ..., field: value} or an instance, and kept as an instance.
    Raises `ValueError` for unknown names, fields and values.
    """

    rotary: Rotary | None = None
    time: TimeMap | None = None
    noise: NoisePrior | None = None
    cache: CachePolicy | None = None
    sampler: Sampler | None = None
    chunk: int | None = None

    def __post_init__(self) -> None:
        for key, (registry, base) in REGISTRIES.items():
            value = getattr(self, key)
            if value is not None and not isinstance(value, base):
                object.__setattr__(self, key, registry.build(value))
        if self.chunk is not None and (isinstance(self.chunk, bool) or not isinstance(self.chunk, int) or self.chunk < 1):
            raise ValueError(f"chunk={self.chunk!r}: a chunk is a whole number of latent frames, at least 1")

    def replace(self, **changes: Any) -> PipelineConfig:
        """A copy with other choices. Raises `ValueError` for a key that is none of the six."""
        return dataclasses.replace(self, **_known(changes))

    def to_dict(self) -> dict[str, Any]:
        """Plain values without the Nones: `from_dict(c.to_dict()) == c`."""
        given = {key: registry.spec(value) for key, (registry, _) in REGISTRIES.items() if (value := getattr(self, key)) is not None}
        return given if self.chunk is None else {**given, "chunk": self.chunk}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> PipelineConfig:
        """The inverse of `to_dict`."""
        return cls(**_known(plain))

    def resolve(self, card: Card | None = None) -> PipelineConfig:
        """The same method with every None filled in from the card, checked to fit together.

        Without a card None means rope, absolute times and iid noise, and everything else must be given.
        Raises `ValueError` naming what is missing, or the choices that exclude each other and what to do.
        """
        names = PLAIN | ({"cache": "sink" if card.sink else "window", "sampler": card.sampler} if card else {})
        given = {key: getattr(self, key) or _default(key, names) for key in REGISTRIES}
        given = {key: _fill(value, card, key) for key, value in given.items()}
        chunk = self.chunk or (card.chunk if card else None)
        if chunk is None:
            raise ValueError("chunk is None, which means the card's, and there is no card: give the latent frames of a chunk")
        full = PipelineConfig(**given, chunk=chunk)
        full._check()
        return full

    def _check(self) -> None:
        assert self.cache and self.sampler and self.chunk
        try:
            self.cache.check(self.sampler.in_flight(self.chunk))
        except ValueError as error:
            raise ValueError(f"{type(self.cache).__name__} and {type(self.sampler).__name__} with chunk={self.chunk} do not fit: {error}") from None


def _known(given: Mapping[str, Any]) -> dict[str, Any]:
    allowed = [f.name for f in fields(PipelineConfig)]
    for key in given:
        if key not in allowed:
            close = difflib.get_close_matches(key, allowed, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"a configuration has no key {key!r}{hint} (keys: {', '.join(allowed)})")
    return dict(given)


def _default(key: str, names: Mapping[str, str]) -> Any:
    if key not in names:
        raise ValueError(f"{key} is None, which means the card's, and there is no card: give one of {', '.join(REGISTRIES[key][0].names())}")
    return REGISTRIES[key][0].build(names[key])


def _fill(strategy: Any, card: Card | None, key: str) -> Any:
    """The strategy with each None field that the card knows by name filled in."""
    empty = [f.name for f in fields(strategy) if f.init and getattr(strategy, f.name) is None]
    if card is None and empty:
        raise ValueError(f"{key}: {type(strategy).__name__} leaves {', '.join(empty)} to the card, and there is no card: give a value")
    return dataclasses.replace(strategy, **{name: getattr(card, name) for name in empty if hasattr(card, name)})
