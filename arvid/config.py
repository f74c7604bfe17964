"""A method as a value: five choices and the chunk, checked to fit each other as soon as all is known."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from arvid.cache import CACHE, CachePolicy
from arvid.models.specs import SETTINGS, Card
from arvid.noise import NOISE, NoisePrior
from arvid.positional import ROTARY, TIME, Rotary, TimeMap
from arvid.registry import Registry
from arvid.samplers import SAMPLER, Sampler

__all__ = ["REGISTRIES", "PipelineConfig"]

REGISTRIES: dict[str, tuple[Registry, type]] = {
    "rotary": (ROTARY, Rotary),
    "time": (TIME, TimeMap),
    "noise": (NOISE, NoisePrior),
    "cache": (CACHE, CachePolicy),
    "sampler": (SAMPLER, Sampler),
}
Spec = str | Mapping[str, Any] | None
"""A strategy by name, or by name and fields; None is the card's."""

PLAIN = {"rotary": "rope", "time": "absolute", "noise": "iid"}  # what None means, with or without a card


@dataclass(frozen=True)
class PipelineConfig:
    """How a video is made: a strategy of each kind, and the latent frames of a chunk. None is the card's.

    Each strategy is given as a name, a dict {"name": ..., field: value} or an instance, and kept as an instance.
    Raises `ValueError` for unknown names, fields and values, and for choices that exclude each other.
    """

    rotary: Rotary | None = None
    time: TimeMap | None = None
    noise: NoisePrior | None = None
    cache: CachePolicy | None = None
    sampler: Sampler | None = None
    chunk: int | None = None

    if TYPE_CHECKING:  # what may be given is wider than what is kept

        def __init__(
            self, rotary: Rotary | Spec = None, time: TimeMap | Spec = None, noise: NoisePrior | Spec = None,
            cache: CachePolicy | Spec = None, sampler: Sampler | Spec = None, chunk: int | None = None,
        ) -> None: ...  # fmt: skip

    def __post_init__(self) -> None:
        for key, (registry, base) in REGISTRIES.items():
            value = getattr(self, key)
            if value is not None and not isinstance(value, base):
                object.__setattr__(self, key, registry.build(value))
        chunk = self.chunk
        if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
            raise ValueError(f"chunk={chunk!r}: a chunk is a whole number of latent frames, at least 1")
        if self.cache and self.sampler and chunk and not _open(self.cache) and not _open(self.sampler):
            _check_fit(self.cache, self.sampler, chunk)

    def replace(self, **changes: Any) -> PipelineConfig:
        """A copy with other choices. Raises `ValueError` for a key that is none of the six."""
        return dataclasses.replace(self, **_known(changes))

    def to_dict(self) -> dict[str, Any]:
        """Plain values without the Nones: `from_dict(c.to_dict()) == c`."""
        given = {key: value for key in _KEYS if (value := getattr(self, key)) is not None}
        return {key: REGISTRIES[key][0].spec(value) if key in REGISTRIES else value for key, value in given.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> PipelineConfig:
        """The inverse of `to_dict`."""
        return cls(**_known(plain))

    def resolve(self, card: Card | None = None) -> PipelineConfig:
        """The same method with every None filled in from the card.

        Without a card None means rope, absolute times and iid noise, and everything else must be given.
        Raises `ValueError` naming all that is missing, or the choices that exclude each other and what to do.
        """
        names = PLAIN | ({"cache": "sink" if card.sink else "window", "sampler": card.sampler} if card else {})
        given = {key: getattr(self, key) for key in _KEYS}
        for key in REGISTRIES:
            if given[key] is None and key in names:
                given[key] = REGISTRIES[key][0].build(names[key])
        if card is None:
            _require(given)
            return PipelineConfig(**given)
        for key in REGISTRIES:
            given[key] = dataclasses.replace(given[key], **{name: getattr(card, name) for name in _open(given[key])})
        if given["chunk"] is None:
            given["chunk"] = card.chunk
        return PipelineConfig(**given)


_KEYS = tuple(f.name for f in fields(PipelineConfig))


def _known(given: Mapping[str, Any]) -> dict[str, Any]:
    for key in given:
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"a configuration has no key {key!r}{hint} (keys: {', '.join(_KEYS)})")
    return dict(given)


def _open(strategy: Any) -> list[str]:
    """Fields of a strategy that are left to the card."""
    return [f.name for f in fields(strategy) if f.init and f.name in SETTINGS and getattr(strategy, f.name) is None]


def _require(given: Mapping[str, Any]) -> None:
    """Raise `ValueError` naming every choice and field that only a card could fill."""
    missing = [key for key, value in given.items() if value is None]
    missing += [f"{key}.{name}" for key, value in given.items() if key in REGISTRIES and value for name in _open(value)]
    if missing:
        raise ValueError(f"{', '.join(missing)}: None, which means the card's, and there is no card: give values")


def _check_fit(cache: CachePolicy, sampler: Sampler, chunk: int) -> None:
    try:
        cache.check(sampler.in_flight(chunk))
    except ValueError as error:
        raise ValueError(f"{cache} and {sampler} with chunk={chunk} do not fit each other: {error}") from None
