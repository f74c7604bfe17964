"""Strategies by name: building, specs, errors and plugins."""

import tomllib
import types
import warnings
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arvid import registry as registry_module
from arvid.registry import Registry, UnknownField, UnknownName, summary

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


class Gesture:
    """What strategies of another kind may hold."""


GESTURE: Registry[Gesture] = Registry("gesture", Gesture)


@GESTURE.register("wave")
@dataclass(frozen=True)
class Wave(Gesture):
    """A gesture of fields. Another sentence."""

    n: int
    speed: float = 1.0

    def __post_init__(self):
        if self.n < 0:
            raise ValueError(f"n={self.n} is negative")


@GESTURE.register("bow")
@dataclass(frozen=True)
class Bow(Gesture):
    """A gesture of gestures, see eq. 15 (e.g. this one), whose first sentence
    takes two lines.

    More.
    """

    then: Gesture | None = None


@dataclass(frozen=True)
class Opened:
    static: ClassVar[bool] = True
    then: Gesture | None = field(default=None, kw_only=True)


@KIND.register("host")
@dataclass(frozen=True)
class Host(Opened):
    """A strategy that holds those of another registry."""

    window: int = 3
    _: KW_ONLY
    first: Gesture = Wave(1, 2.0)
    only: Wave | None = None
    all: tuple[Gesture, ...] = ()


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
waves = st.builds(Wave, st.integers(0, 9), floats)
gestures = st.recursive(waves | st.just(Bow()), lambda inner: st.builds(Bow, inner), max_leaves=3)
hosts = st.builds(Host, ints, then=st.none() | gestures, first=gestures, only=st.none() | waves,
                  all=st.lists(gestures, max_size=2).map(tuple))


def is_plain(value):
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    return all(map(is_plain, value)) if isinstance(value, list) else type(value) in (bool, int, float, str, type(None))


@settings(max_examples=40)
@given(nesteds | hosts)
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


# Strategies that hold strategies of other kinds


def test_a_field_of_another_registry_takes_a_name_a_dict_or_an_instance():
    assert KIND.build({"name": "host", "then": "bow"}) == Host(then=Bow())
    assert KIND.build({"name": "host", "then": {"name": "wave", "n": 2}}) == Host(then=Wave(2))
    assert KIND.build({"name": "host", "then": Wave(2), "all": ["bow", Bow(Wave(0))]}) == Host(
        then=Wave(2), all=(Bow(), Bow(Wave(0))))
    assert KIND.spec(Host(then=Bow(Wave(2)), only=Wave(0, -0.0))) == {
        "name": "host", "then": {"name": "bow", "then": {"name": "wave", "n": 2}},
        "only": {"name": "wave", "n": 0, "speed": -0.0}}


@pytest.mark.parametrize(("fields", "message"), [
    ({"then": "wav"}, r"^kind 'host', field then: no gesture strategy is called 'wav'; did you mean 'wave'\?"),
    ({"then": {"name": "wave", "sped": 2}}, "^kind 'host', field then: gesture 'wave' has no field 'sped'; did you"),
    ({"then": {"name": "wave", "n": -1}}, "^kind 'host', field then: n=-1 is negative"),
    ({"then": {"name": "bow", "then": "wave"}},
     "^kind 'host', field then: gesture 'bow', field then: gesture 'wave' needs a value for n"),
    ({"then": {"n": 1}}, "^kind 'host', field then: this gesture spec needs a name"),
    ({"then": 3}, "^kind 'host', field then wants Gesture, got 3"),
    ({"then": {"name": "plain"}}, "^kind 'host', field then: no gesture strategy is called 'plain'"),
    ({"only": "bow"}, "^kind 'host', field only wants Wave, got 'bow'"),
    ({"all": ["bow", "wav"]}, "^kind 'host', field all: no gesture strategy"),
])
def test_what_is_wrong_inside_a_field_names_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        KIND.build({"name": "host", **fields})


def test_spec_refuses_an_unregistered_strategy_of_another_kind():
    @dataclass(frozen=True)
    class Stray(Gesture):
        """Not registered."""

    with pytest.raises(ValueError, match=r"^field then: .*Stray\(\) is no registered gesture strategy"):
        KIND.spec(Host(then=Stray()))


def test_a_registry_with_a_base_registers_nothing_else():
    with pytest.raises(ValueError, match=r"as gesture 'plain': the class must inherit from Gesture"):
        GESTURE.register("plain")(Plain)
    assert GESTURE.names() == ["bow", "wave"]


def test_change_reaches_into_what_is_there_and_replaces_what_has_a_name():
    host = Host(5, then=Bow(Wave(1)))
    assert KIND.change(host, {"window": 7}) == Host(7, then=Bow(Wave(1)))
    assert KIND.change(host, {"then": {"then": {"n": 2}}}) == Host(5, then=Bow(Wave(2)))
    assert KIND.change(host, {"first": {"n": 4}}) == Host(5, first=Wave(4, 2.0), then=Bow(Wave(1)))
    assert KIND.change(host, {"then": {"name": "wave", "n": 3}}) == Host(5, then=Wave(3))
    assert KIND.change(host, {"then": "bow"}) == Host(5, then=Bow())
    assert KIND.change(host, {"name": "plain", "window": 2}) == Plain(2)
    assert KIND.change(Nested(corner=Corner(y=2.0)), {"corner": {"x": 1}}) == Nested(corner=Corner(1, 2.0))
    with pytest.raises(ValueError, match="field only: this gesture spec needs a name"):
        KIND.change(host, {"only": {"n": 1}})
    with pytest.raises(UnknownField, match="did you mean 'window'"):
        KIND.change(host, {"windw": {"n": 1}})


def test_a_summary_is_the_first_sentence():
    assert [summary(cls) for cls in (Plain, Wave)] == ["A strategy of scalars.", "A gesture of fields."]
    assert summary(Bow) == "A gesture of gestures, see eq. 15 (e.g. this one), whose first sentence takes two lines."


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
    assert "host, needy, nested, plain" in str(error.value)
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
    ({"name": "plain", "horizon": "far"}, "field horizon wants int, got 'far'$"),
    ({"name": "nested", "pair": [1, 2, 3]}, r"field pair wants tuple\[int, float\], got \[1, 2, 3\]"),
    ({"name": "needy"}, "'needy' needs a value for size"),
    ({"window": 3}, "needs a name"),
    (Corner(), "no registered kind strategy"),
    (Plain, r"is a class: give an instance, Plain\(...\)"),
    (None, "no registered kind strategy"),
    ({"name": "plain", "horizon": {"name": "plain"}}, "field horizon wants int, got {'name': 'plain'}"),
    ({"name": "nested", "inner": {"name": "needy", "size": 1}}, "field inner wants Plain, got"),
    ({"name": "nested", "inner": {"name": "plain", "windw": 1}}, "field inner: kind 'plain' has no field 'windw'"),
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
    assert KIND.names() == ["host", "needy", "nested", "plain"]


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

    def load_exit():
        raise SystemExit(3)

    plugins = [types.SimpleNamespace(name="broken", value="pkg:broken", load=load_broken),
               types.SimpleNamespace(name="exit", value="pkg:exit", load=load_exit),
               types.SimpleNamespace(name="good", value="pkg:good", load=load_good)]
    groups = {"arvid.local": plugins}
    monkeypatch.setattr(registry_module, "entry_points", lambda group: groups[group])
    assert loads == []
    with (pytest.warns(RuntimeWarning, match=r"plugin 'broken' .* ImportError: .* flux_capacitor"),
          pytest.warns(RuntimeWarning, match=r"plugin 'exit' .* failed to load: SystemExit: 3")):
        assert local.names() == ["good"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert local.build("good").x == 0
    with pytest.raises(UnknownName, match=r"plugin 'broken' failed to load: ImportError: .* flux_capacitor") as error:
        local.get("broken")
    assert isinstance(error.value.__cause__, ImportError)
    assert loads == ["broken", "good"]
