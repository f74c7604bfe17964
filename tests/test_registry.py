"""Strategies by name: building, specs, errors and plugins."""

import tomllib
import types
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arvid import registry as registry_module
from arvid.registry import Registry, UnknownField, UnknownName

KIND: Registry[Any] = Registry("kind")


@dataclass(frozen=True)
class Corner:
    x: int = 0
    y: float = 0.5


@KIND.register("plain")
@dataclass(frozen=True)
class Plain:
    """A strategy of scalars."""

    window: int = 21
    rho: float = 0.0
    mode: Literal["a", "b"] = "a"
    horizon: int | None = None
    flag: bool = False


@KIND.register("nested")
@dataclass(frozen=True)
class Nested:
    """A strategy of everything else."""

    parts: tuple[Any, ...] = ()
    corner: Corner = Corner()
    corners: tuple[Corner, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    levels: tuple[tuple[int, ...], ...] = ((1,), (2, 3))
    inner: Plain | None = None
    names: list[str] = field(default_factory=list)


@KIND.register("needy")
@dataclass(frozen=True)
class Needy:
    """A strategy with a field that must be given."""

    size: int


ints, floats = st.integers(-99, 99), st.floats(allow_nan=False)
corners = st.builds(Corner, ints, floats)
plains = st.builds(Plain, ints, floats, st.sampled_from("ab"), st.none() | ints, st.booleans())
nesteds = st.recursive(
    plains | st.builds(Needy, ints),
    lambda inner: st.builds(
        Nested, st.lists(inner, max_size=2).map(tuple), corners, st.lists(corners, max_size=2).map(tuple),
        st.tuples(ints, floats), st.lists(st.lists(ints, max_size=2).map(tuple), max_size=2).map(tuple),
        st.none() | plains, st.lists(st.text(max_size=3), max_size=2)),
    max_leaves=4)


def is_plain(value):
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    return all(map(is_plain, value)) if isinstance(value, list) else type(value) in (bool, int, float, str, type(None))


@settings(max_examples=40)
@given(nesteds)
def test_build_inverts_spec_through_plain_values(strategy):
    spec = KIND.spec(strategy)
    assert is_plain(spec)
    rebuilt = KIND.build(spec)
    assert rebuilt == strategy
    assert repr(rebuilt) == repr(strategy)  # == alone would take 1 for 1.0 and True


def test_spec_holds_only_what_differs_from_the_defaults():
    assert KIND.spec(Plain()) == {"name": "plain"}
    assert KIND.spec(Nested(corner=Corner(y=2.0), inner=Plain(window=3))) == {
        "name": "nested", "corner": {"y": 2.0}, "inner": {"name": "plain", "window": 3}}


def test_build_reads_toml_tables_names_and_instances():
    table = tomllib.loads('name = "nested"\npair = [3, 4]\nlevels = [[5], []]\ninner = {name = "plain", rho = 1}\n')
    assert KIND.build(table) == Nested(pair=(3, 4), levels=((5,), ()), inner=Plain(rho=1))
    assert KIND.build("plain") == Plain()
    same = Plain(window=5)
    assert KIND.build(same) is same


def test_a_list_becomes_a_tuple_even_where_annotations_cannot_be_resolved():
    local: Registry[Any] = Registry("local")

    @local.register("odd")
    @dataclass(frozen=True)
    class Odd:
        """Its annotation names nothing."""

        levels: "tuple[Nowhere, ...]" = (1,)  # type: ignore[name-defined]  # noqa: F821

    assert local.build({"name": "odd", "levels": [2, [3]]}) == Odd(levels=(2, (3,)))


def test_unknown_names_and_fields_say_what_is_meant_and_what_is_allowed():
    with pytest.raises(UnknownName, match=r"no kind strategy is called 'plian'; did you mean 'plain'\?") as error:
        KIND.build("plian")
    assert "needy, nested, plain" in str(error.value)
    with pytest.raises(UnknownField, match=r"'plain' has no field 'windw'; did you mean 'window'\?") as error:
        KIND.build({"name": "plain", "windw": 3})
    assert "window=21, rho=0.0, mode='a'" in str(error.value)
    with pytest.raises(UnknownField, match=r"field corner has no field 'z'.*x=0, y=0.5"):
        KIND.build({"name": "nested", "corner": {"z": 1}})


@pytest.mark.parametrize(("spec", "message"), [
    ({"name": "plain", "window": "wide"}, "field window wants int, got 'wide'"),
    ({"name": "plain", "window": 1.5}, "field window wants int, got 1.5"),
    ({"name": "plain", "window": True}, "field window wants int, got True"),
    ({"name": "plain", "mode": "c"}, r"field mode wants .*'a', 'b'.*, got 'c'"),
    ({"name": "plain", "horizon": "far"}, "wants int, got 'far'; or .* wants NoneType"),
    ({"name": "nested", "pair": [1, 2, 3]}, r"field pair wants tuple\[int, float\], got \[1, 2, 3\]"),
    ({"name": "needy"}, "'needy' needs a value for size"),
    ({"window": 3}, "needs a name"),
    (Corner(), "no registered kind strategy"),
    (Plain, r"is a class: give an instance, Plain\(...\)"),
    (None, "no registered kind strategy"),
])
def test_build_rejects(spec, message):
    with pytest.raises(ValueError, match=message):
        KIND.build(spec)


def test_spec_rejects_values_without_a_plain_form():
    with pytest.raises(ValueError, match=r"field parts: .* has no plain form"):
        KIND.spec(Nested(parts=(object(),)))


def test_register_rejects_what_is_not_a_documented_frozen_dataclass():
    class Bare:
        """Documented, but no dataclass."""

    @dataclass
    class Thawed:
        """Mutable."""

    @dataclass(frozen=True)
    class Silent:
        window: int = 1

    @dataclass(frozen=True)
    class Named:
        """Its field is the spec's key."""

        name: str = ""

    class Undecorated(Plain):
        """Inherits a dataclass without being one."""

    for cls, message in [(Bare, "frozen=True"), (Thawed, "frozen=True"), (Undecorated, "frozen=True"),
                         (Silent, "docstring"), (Named, "called 'name'")]:
        with pytest.raises(ValueError, match=message):
            KIND.register("new")(cls)
    with pytest.raises(ValueError, match="needs a name"):
        KIND.register(Plain)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="already registered as 'plain'"):
        KIND.register("plain_too")(Plain)
    assert KIND.names() == ["needy", "nested", "plain"]


def make_strategy(module: str, value: int = 0) -> type:
    cls = type("Same", (), {"__doc__": "A strategy.", "__module__": module, "__annotations__": {"x": int}, "x": value})
    return dataclass(frozen=True)(cls)


def test_a_clash_names_both_modules_and_a_reload_replaces():
    local: Registry[Any] = Registry("local")
    local.register("same")(make_strategy("first"))
    with pytest.raises(ValueError, match=r"\(module second\): the name is taken by Same of module first"):
        local.register("same")(make_strategy("second"))
    local.register("same")(make_strategy("first", value=7))
    assert local.build("same").x == 7


def test_plugins_load_once_and_a_broken_one_is_named_only_when_missed(monkeypatch):
    local: Registry[Any] = Registry("local")
    loads = []

    def load_good():
        loads.append("good")
        local.register("good")(make_strategy("plugin"))

    def load_broken():
        loads.append("broken")
        raise ImportError("no module named flux_capacitor")

    plugins = [types.SimpleNamespace(name="broken", value="pkg:broken", load=load_broken),
               types.SimpleNamespace(name="good", value="pkg:good", load=load_good)]
    groups = {"arvid.local": plugins}
    monkeypatch.setattr(registry_module, "entry_points", lambda group: groups[group])
    assert loads == []
    with pytest.warns(RuntimeWarning, match=r"plugin 'broken' .* flux_capacitor"):
        assert local.names() == ["good"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert local.build("good").x == 0
    with pytest.raises(UnknownName, match=r"plugin 'broken' failed to load: ImportError: .* flux_capacitor") as error:
        local.get("broken")
    assert isinstance(error.value.__cause__, ImportError)
    assert loads == ["broken", "good"]
