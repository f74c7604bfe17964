"""Strategies by name: one generic registry for every kind of choice.

A strategy is a frozen dataclass whose fields are its configuration, so its *spec*, a plain dict of a name and the
fields that differ from their defaults, says all there is to say about it and survives a trip through TOML.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

__all__ = ["BY_BASE", "Registry", "UnknownField", "UnknownName", "brief", "describe_field", "summary"]

BY_BASE: dict[type, Registry] = {}
"""The registry of the classes that inherit from a base, for registries that were made with one."""

_REQUIRED = object()

T = TypeVar("T")
C = TypeVar("C", bound=type)


class UnknownName(ValueError, LookupError):
    """A name that no strategy of this kind has."""


class UnknownField(ValueError):
    """A field that this strategy does not have."""


class Registry(Generic[T]):
    """Frozen dataclasses of one kind (`"cache"`, `"noise"`, ...) by name.

    With a `base`, which all its classes then inherit from, strategies of other registries may have fields of that type:
    they hold a strategy of this registry, given as a name, a dict with a name, or an instance.

    Plugins are entry points of the group `arvid.<kind>`: on the first lookup each is loaded, and registers its classes
    with the decorator. One that fails warns, spoils no other, and is named when an unknown name is asked for.
    All errors derive from `ValueError`.
    """

    def __init__(self, kind: str, base: type[T] | None = None) -> None:
        self.kind, self.base = kind, base
        self._classes: dict[str, type[T]] = {}
        self._broken: dict[str, BaseException] = {}
        self._plugins_loaded = False
        if base is not None:
            BY_BASE[base] = self

    def __repr__(self) -> str:
        return f"Registry({self.kind!r}: {', '.join(sorted(self._classes))})"

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator, written above `@dataclass(frozen=True)`.

        Registering a class of the same module and name again (a reloaded module, a cell run twice) replaces it.
        Raises `ValueError` for a class that is not a documented frozen dataclass and for a name or class already taken.
        """

        if not isinstance(name, str) or not name:
            raise ValueError(f"a {self.kind} strategy needs a name: @{self.kind.upper()}.register(\"name\"), "
                             f"got {name!r}")

        def add(cls: C) -> C:
            self._check_class(name, cls)
            self._classes[name] = typing.cast(type[T], cls)
            return cls

        return add

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load_plugins()
        return sorted(self._classes)

    def get(self, name: str) -> type[T]:
        """The class registered as `name`; raises `UnknownName` with the closest names."""
        self._load_plugins()
        if name in self._classes:
            return self._classes[name]
        broken = "".join(f"\n  plugin {plugin!r} failed to load: {type(error).__name__}: {error}"
                         for plugin, error in self._broken.items())
        allowed = f"registered: {', '.join(sorted(self._classes)) or 'nothing yet'}"
        raise UnknownName(f"no {self.kind} strategy is called {name!r}{_did_you_mean(name, self._classes)} ({allowed})"
                          f"{broken}") from self._broken.get(name)

    def build(self, spec: str | Mapping[str, Any] | T) -> T:
        """An instance from a name, a dict {"name": ..., field: value, ...}, or an instance, returned as it is.

        Values may be plain (lists for tuples, dicts for nested dataclasses). Raises `UnknownName`, `UnknownField`, or
        `ValueError` for a value of the wrong type, a missing field, or an instance of no registered class.
        """
        if isinstance(spec, str):
            spec = {"name": spec}
        if not isinstance(spec, Mapping):
            self._name_of(spec)
            return spec
        fields = dict(spec)
        name = fields.pop("name", None)
        if not isinstance(name, str):
            raise ValueError(f"this {self.kind} spec needs a name, like {{'name': 'x', ...}}; got {dict(spec)!r}")
        return self._make(self.get(name), fields, f"{self.kind} {name!r}")

    def spec(self, instance: T) -> dict[str, Any]:
        """{"name": ..., and the fields that differ from their defaults}, in plain values: `build(spec(s)) == s`."""
        return {"name": self._name_of(instance), **self._fields_to_plain(instance)}

    def change(self, instance: T, changes: Mapping[str, Any]) -> T:
        """A copy with other values of fields. Raises as `build`.

        A dict without a name changes fields of the value that is there, at any depth; one with a name replaces it.
        """
        return self.build(self._changed(instance, changes))

    def _changed(self, value: Any, changes: Mapping[str, Any]) -> Mapping[str, Any]:
        if not dataclasses.is_dataclass(value) or "name" in changes:
            return changes
        plain = self._to_plain(value, type(value).__name__)
        for name, change in changes.items():
            current = getattr(value, name, None)
            plain[name] = self._changed(current, change) if isinstance(change, Mapping) else change
        return plain

    def _name_of(self, instance: object) -> str:
        for name, cls in self._classes.items():
            if type(instance) is cls:
                return name
        if isinstance(instance, type):
            raise ValueError(f"{instance.__name__} is a class: give an instance, {instance.__name__}(...)")
        raise ValueError(f"{instance!r} is no registered {self.kind} strategy: give a name, a dict with a name, or an "
                         f"instance of a class decorated with @{self.kind.upper()}.register(...)")

    def _check_class(self, name: str, cls: type) -> None:
        where = f"cannot register {cls!r} as {self.kind} {name!r}"
        params = vars(cls).get("__dataclass_params__") if isinstance(cls, type) else None
        if params is None or not params.frozen:
            raise ValueError(f"{where}: put @dataclass(frozen=True) on the class, below the register decorator")
        # A dataclass without a docstring is given its own signature as one.
        if not cls.__doc__ or cls.__doc__.startswith(f"{cls.__name__}("):
            raise ValueError(f"{where}: give the class a docstring that says what it does")
        if "name" in cls.__dataclass_fields__:
            raise ValueError(f"{where}: a field cannot be called 'name', which is the strategy's name in a spec")
        if self.base is not None and not issubclass(cls, self.base):
            raise ValueError(f"{where}: the class must inherit from {self.base.__name__}")
        for other_name, other in self._classes.items():
            reloaded = (other.__module__, other.__qualname__) == (cls.__module__, cls.__qualname__)
            if other_name == name and not reloaded:
                raise ValueError(f"{where} (module {cls.__module__}): the name is taken by {other.__qualname__} of "
                                 f"module {other.__module__}; choose another")
            if other_name != name and other is cls:
                raise ValueError(f"{where}: the class is already registered as {other_name!r}")

    def _load_plugins(self) -> None:
        if self._plugins_loaded:
            return
        self._plugins_loaded = True
        for plugin in entry_points(group=f"arvid.{self.kind}"):
            try:
                plugin.load()
            except (Exception, SystemExit) as error:
                self._broken[plugin.name] = error
                warnings.warn(f"{self.kind} plugin {plugin.name!r} ({plugin.value}) failed to load: "
                              f"{type(error).__name__}: {error}", RuntimeWarning, stacklevel=3)

    # Plain values and back

    def _fields_to_plain(self, value: Any) -> dict[str, Any]:
        plain = {}
        for field in dataclasses.fields(value):
            current = getattr(value, field.name)
            default = _default(field)
            # == takes -0.0 for 0.0 and True for 1
            if field.init and (current != default or repr(current) != repr(default)):
                plain[field.name] = self._to_plain(current, field.name)
        return plain

    def _to_plain(self, value: Any, field: str) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (tuple, list)):
            return [self._to_plain(item, field) for item in value]
        if registry := self if type(value) in self._classes.values() else _registry_of(type(value)):
            with _naming(f"field {field}"):
                return registry.spec(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._fields_to_plain(value)
        raise ValueError(f"field {field}: {value!r} has no plain form; use numbers, strings, tuples and dataclasses")

    def _make(self, cls: type, plain: Mapping[str, Any], where: str) -> Any:
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
        for name in plain:
            if name not in fields:
                allowed = ", ".join(map(describe_field, fields.values())) or "none"
                raise UnknownField(f"{where} has no field {name!r}{_did_you_mean(name, fields)} (fields: {allowed})")
        missing = [name for name, field in fields.items() if name not in plain and _default(field) is _REQUIRED]
        if missing:
            raise ValueError(f"{where} needs a value for {', '.join(missing)}")
        hints = _hints(cls)
        return cls(**{name: self._from_plain(value, hints[name], f"{where}, field {name}")
                      for name, value in plain.items()})

    def _from_plain(self, value: Any, hint: Any, where: str) -> Any:
        """`value` as the type `hint` wants it; raises `ValueError` where it does not fit."""
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            return self._first_fit(value, args, where)
        if origin in (tuple, Sequence) and isinstance(value, (list, tuple)):
            alike = origin is Sequence or args[1:] == (Ellipsis,)
            hints = [args[0]] * len(value) if alike else args
            if len(hints) == len(value):
                return tuple(self._from_plain(item, item_hint, where)
                             for item, item_hint in zip(value, hints, strict=True))
        elif origin is list and isinstance(value, (list, tuple)):
            return [self._from_plain(item, args[0], where) for item in value]
        elif isinstance(value, (str, Mapping)) and (registry := _registry_of(hint)):
            with _naming(where):
                built = registry.build(value)
            if isinstance(built, hint):  # which may be narrower than the registry's base
                return built
        elif isinstance(value, Mapping) and "name" in value and self._may_hold(hint):
            with _naming(where):
                built = self.build(value)
            if hint is Any or isinstance(built, hint):
                return built
        elif isinstance(value, Mapping) and isinstance(hint, type) and dataclasses.is_dataclass(hint):
            return self._make(hint, value, where)
        elif hint is Any or (hint is tuple and isinstance(value, (list, tuple))):
            return _tuples(value)
        elif _fits(value, hint, origin, args):
            return value
        wants = getattr(hint, "__name__", hint) if not args else hint
        if origin is typing.Literal:
            wants = f"one of {', '.join(map(repr, args))}"
        raise ValueError(f"{where} wants {wants}, got {value!r}")

    def _may_hold(self, hint: Any) -> bool:
        """Whether a field of this type may hold some strategy of this registry."""
        return hint is Any or any(hint in cls.__mro__ for cls in self._classes.values())

    def _first_fit(self, value: Any, hints: Iterable[Any], where: str) -> Any:
        problems = []
        for hint in hints if value is None else (hint for hint in hints if hint is not types.NoneType):
            try:
                return self._from_plain(value, hint, where)
            except ValueError as problem:
                problems.append(problem)
        raise ValueError("; or ".join(dict.fromkeys(map(str, problems))))


def _registry_of(cls: Any) -> Registry | None:
    """The registry whose base `cls` is or inherits from."""
    bases = cls.__mro__ if isinstance(cls, type) else ()
    return next((BY_BASE[base] for base in bases if base in BY_BASE), None)


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Put the field at fault before the message of a `ValueError`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _fits(value: Any, hint: Any, origin: Any, args: tuple[Any, ...]) -> bool:
    if origin is typing.Literal:
        return value in args
    wanted = origin or hint
    if not isinstance(wanted, type) or getattr(wanted, "_is_protocol", False):
        return True  # a type variable, a callable, a protocol: nothing to hold the value to
    if wanted in (int, float):
        return isinstance(value, (int, wanted)) and not isinstance(value, bool)
    return isinstance(value, wanted)


def _hints(cls: type) -> Mapping[str, Any]:
    """Types of the fields; `Any` for all where one cannot be resolved (a class made in a function, say)."""
    try:
        return typing.get_type_hints(cls)
    except NameError:
        return {field.name: Any for field in dataclasses.fields(cls)}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return _REQUIRED if field.default_factory is dataclasses.MISSING else field.default_factory()


def describe_field(field: dataclasses.Field) -> str:
    """`name=default`, for people."""
    default = _default(field)
    return f"{field.name} (required)" if default is _REQUIRED else f"{field.name}={default!r}"


def brief(strategy: Any) -> str:
    """As `repr`, but with the fields it has by its own class first, and of the keyword-only ones those that differ from
    their defaults."""
    given = sorted((f for f in dataclasses.fields(strategy) if not f.kw_only or getattr(strategy, f.name) != f.default),
                   key=lambda f: f.kw_only is True)  # fmt: skip
    return f"{type(strategy).__name__}({', '.join(f'{f.name}={getattr(strategy, f.name)!r}' for f in given)})"


def summary(cls: type) -> str:
    """The first sentence of a class's docstring, on one line."""
    paragraph = " ".join((cls.__doc__ or "").strip().partition("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) (?=[A-Z])", paragraph, maxsplit=1)[0]


def _did_you_mean(name: str, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(allowed), n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
