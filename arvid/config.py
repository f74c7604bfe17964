"""A method as a value: five choices and the chunk, checked to fit each other as soon as all is known."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arvid.cache import CACHE, CachePolicy
from arvid.models.specs import SETTINGS, Card
from arvid.noise import NOISE, NoisePrior
from arvid.positional import ROTARY, TIME, Rotary, TimeMap
from arvid.positional.scaled import Scaled
from arvid.registry import Registry
from arvid.samplers import SAMPLER, Sampler

__all__ = ["PLAIN", "REGISTRIES", "PipelineConfig", "open_fields", "read"]

REGISTRIES: dict[str, Registry] = {
    "rotary": ROTARY, "time": TIME, "noise": NOISE, "cache": CACHE, "sampler": SAMPLER
}  # fmt: skip
Spec = str | Mapping[str, Any] | None
"""A strategy by name, or by name and fields; None is the card's."""

PLAIN = {"rotary": "rope", "time": "absolute", "noise": "iid"}  # what None means, with or without a card


@dataclass(frozen=True)
class PipelineConfig:
    """How a video is made: a strategy of each kind, and the latent frames of a chunk. None is the card's.

    Each strategy is given as a name, a dict {"name": ..., field: value} or an instance, and kept as an instance.
    Raises `ValueError` for unknown names, fields and values, and for choices that exclude each other; warns of a rule
    for long videos over times that do not grow.
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
        for key, registry in REGISTRIES.items():
            value, base = getattr(self, key), registry.base
            if value is not None and not (base and isinstance(value, base)):
                object.__setattr__(self, key, registry.build(value))
        chunk = self.chunk
        if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
            raise ValueError(f"chunk={chunk!r}: a chunk is a whole number of latent frames, at least 1")
        if chunk is not None:
            _check_chunk(chunk, [getattr(self, key) for key in REGISTRIES])
        if self.cache and self.sampler and chunk and not open_fields(self.cache) and not open_fields(self.sampler):
            _check_fit(self.cache, self.sampler, chunk)
        if self.rotary:
            _check_rotary(self.rotary, self.time, self.cache)

    def replace(self, **changes: Any) -> PipelineConfig:
        """A copy with other choices. Raises `ValueError` for a key that is none of the six."""
        return dataclasses.replace(self, **_known(changes))

    def to_dict(self) -> dict[str, Any]:
        """Plain values without the Nones: `from_dict(c.to_dict()) == c`."""
        given = {key: value for key in _KEYS if (value := getattr(self, key)) is not None}
        return {key: REGISTRIES[key].spec(value) if key in REGISTRIES else value for key, value in given.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> PipelineConfig:
        """The inverse of `to_dict`."""
        return cls(**_known(plain))

    @classmethod
    def load(cls, path: str | Path) -> PipelineConfig:
        """The configuration of a TOML file with the keys of `to_dict`; with `preset = "name"` it has the preset's
        values where the file has none.

        Raises `FileNotFoundError`, and `ValueError` naming the file, and the line where it is no TOML.
        """
        return read(path)[0]

    def to_toml(self) -> str:
        """What `load` reads, in TOML. Raises `ValueError` naming a field that is None where its default is not."""
        import tomli_w  # only who writes needs it

        plain = self.to_dict()
        _require_no_none("", plain)
        return tomli_w.dumps(plain)

    def choose(self, card: Card | None = None) -> PipelineConfig:
        """The same method with a strategy for every one that is None: what None means, its fields left to the card."""
        names = PLAIN | ({"cache": "sink" if card.sink else "window", "sampler": card.sampler} if card else {})
        return self.replace(**{key: name for key, name in names.items() if getattr(self, key) is None})

    def resolve(self, card: Card | None = None) -> PipelineConfig:
        """The same method with every None filled in from the card; a strategy's `chunk` is the configuration's.

        Without a card None means rope, absolute times and iid noise, and everything else must be given.
        Raises `ValueError` naming all that is missing, or the choices that exclude each other and what to do.
        """
        config = self.choose(card)
        chunk = card.chunk if config.chunk is None and card else config.chunk
        settings = (vars(card) if card else {}) | ({} if chunk is None else {"chunk": chunk})
        given: dict[str, Any] = {key: getattr(config, key) for key in REGISTRIES} | {"chunk": chunk}
        for key in REGISTRIES:
            fill = {name: settings[name] for name in open_fields(given[key]) if name in settings}
            given[key] = dataclasses.replace(given[key], **fill) if fill else given[key]
        _require(given)
        rotary = given["rotary"]
        if card and isinstance(rotary, Scaled) and rotary.train_horizon != card.train_horizon:
            warnings.warn(f"{rotary}: train_horizon is not that of the weights ({card.name!r}: {card.train_horizon})",
                          stacklevel=3)  # fmt: skip
        return PipelineConfig(**given)


_KEYS = tuple(f.name for f in fields(PipelineConfig))


def read(path: str | Path) -> tuple[PipelineConfig, str | None]:
    """The configuration of a TOML file, and its preset's name. Raises as `PipelineConfig.load`."""
    from arvid.presets import preset  # which needs this module

    plain = _parse(Path(path))
    try:
        _known(plain, (*_KEYS, "preset"))
        name = plain.pop("preset", None)
        if name is not None and not isinstance(name, str):
            raise ValueError(f"preset = {name!r}: a preset is given by its name")
        return (PipelineConfig() if name is None else preset(name)).replace(**plain), name
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _parse(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a TOML file")
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no TOML, which is UTF-8 text: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no TOML: {error}") from error


def _require_no_none(field: str, value: Any) -> None:
    if value is None:
        raise ValueError(f"{field}: None is not the default here, and TOML has no word for it: give a value")
    items: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        items = ((f"{field}.{key}".lstrip("."), item) for key, item in value.items())
    elif isinstance(value, list):
        items = ((field, item) for item in value)
    for name, item in items:
        _require_no_none(name, item)


def _known(given: Mapping[str, Any], keys: Iterable[str] = _KEYS) -> dict[str, Any]:
    for key in given:
        if key not in keys:
            close = difflib.get_close_matches(str(key), keys, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"a configuration has no key {key!r}{hint} (keys: {', '.join(keys)})")
    return dict(given)


def open_fields(strategy: Any) -> list[str]:
    """Fields of a strategy that are left to the card, or, for `chunk`, to the configuration. None has none."""
    if strategy is None:
        return []
    return [f.name for f in fields(strategy) if f.init and f.name in SETTINGS and getattr(strategy, f.name) is None]


def _require(given: Mapping[str, Any]) -> None:
    """Raise `ValueError` naming every choice and field that only a card could fill."""
    missing = [key for key, value in given.items() if value is None]
    missing += [f"{key}.{name}" for key in REGISTRIES for name in open_fields(given[key])]
    if missing:
        raise ValueError(f"{', '.join(missing)}: None, which means the card's, and there is no card: give values")


def _check_chunk(chunk: int, strategies: Iterable[Any]) -> None:
    for strategy in strategies:
        if getattr(strategy, "chunk", None) not in (None, chunk):
            raise ValueError(f"{strategy} has another chunk than the configuration's, {chunk}: leave it out, and it is "
                             "the same")


def _check_fit(cache: CachePolicy, sampler: Sampler, chunk: int) -> None:
    try:
        cache.check(sampler.in_flight(chunk))
    except ValueError as error:
        raise ValueError(f"{cache} and {sampler} with chunk={chunk} do not fit each other: {error}") from None


def _check_rotary(rotary: Rotary, time: TimeMap | None, cache: CachePolicy | None) -> None:
    moving = [each for each in (time, cache) if each and not each.static]
    if rotary.stale and moving:
        raise ValueError(f"{rotary} leaves keys as the pass that committed them rotated them, but {moving[0]} moves "
                         "keys to other times: use scale='current', or absolute times and a window, sink or full cache")
    if rotary.stale and cache and cache.codec:
        raise ValueError(f"{rotary} leaves keys as the pass that committed them rotated them, but {cache} stores keys "
                         "before they are rotated: use scale='current', or codec=None")
    if cache and cache.chooses and type(rotary).bias is not Rotary.bias:
        raise ValueError(f"{rotary} adds a bias by frame to the logits, which does not reach the tokens that {cache} "
                         "chooses: use another cache policy, or a frequency rule without a bias")
    if time and time.bounded and isinstance(rotary, Scaled):
        # One place and one text: Python then shows it once, though every copy of a configuration is built anew.
        warnings.warn(f"{type(time).__name__} keeps times as near to each other as the view is long: unless that is "
                      f"longer than the training clips, {type(rotary).__name__} compresses what training showed "
                      "already; use rotary='rope', or time='absolute'", stacklevel=2)  # fmt: skip
