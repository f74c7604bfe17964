"""Configurations: plain values and back, what a card fills in, what does not fit, presets."""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import CARD, random_parts

from arvid import Pipeline, PipelineConfig, preset
from arvid.cache import CACHE, CachePolicy, Full, Pass, Ref, Sink, Window
from arvid.config import REGISTRIES
from arvid.models.specs import card
from arvid.noise import IID, NOISE, NoisePrior
from arvid.noise.base import APPLY_TO
from arvid.positional import Absolute, Rope
from arvid.presets import METHODS, STUDENTS, Method, describe, warn_if_foreign
from arvid.registry import Registry
from arvid.samplers import FewStep

STEPS = st.lists(st.integers(1, 1000), min_size=1, max_size=5, unique=True).map(lambda s: tuple(sorted(s)[::-1]))
MAYBE = {
    "rotary": st.builds(Rope, base=st.floats(1.5, 1e6)),
    "time": st.builds(Absolute),
    "noise": st.builds(IID, apply_to=st.sampled_from(APPLY_TO)),
    "cache": st.one_of(
        st.builds(Full),
        st.builds(Window, window=st.none() | st.integers(50, 99)),
        st.builds(
            Sink, window=st.none() | st.integers(50, 99), sink=st.none() | st.integers(0, 9),
            sink_on_commit=st.booleans(),
        ),
    ),
    "sampler": st.builds(
        FewStep, steps=st.none() | STEPS, shift=st.none() | st.floats(0.1, 20),
        context_noise=st.none() | st.floats(0, 1000), context_renoise=st.booleans(),
    ),
    "chunk": st.integers(1, 30),
}  # fmt: skip
CONFIGS = st.fixed_dictionaries({}, optional=MAYBE).map(lambda given: PipelineConfig(**given))


class Mood:
    """A kind of its own, which noise may have a strategy of."""


MOOD: Registry[Mood] = Registry("mood", Mood)


@MOOD.register("calm")
@dataclass(frozen=True)
class Calm(Mood):
    """A strategy inside a strategy."""

    depth: float = 0.0
    then: Mood | None = None


@dataclass(frozen=True)
class Odd(NoisePrior):
    """Values of every kind; registered by tests that need it."""

    x: float = 0.0
    texts: tuple[str, ...] = ()
    table: tuple[tuple[float, ...], ...] = ((1.0,), ())
    mood: Mood | None = None
    moods: tuple[Mood, ...] = ()
    limit: int | None = 3
    limits: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class Chunked(CachePolicy):
    """Has a chunk of its own; registered by tests that need it."""

    chunk: int | None = None
    window: int | None = None

    def select(self, held: Sequence[Ref], new: Pass) -> Sequence[Ref]:
        return held


FLOATS = st.floats(allow_nan=False)
MOODS = st.recursive(st.builds(Calm, FLOATS), lambda inner: st.builds(Calm, FLOATS, inner), max_leaves=3)
ODDS = st.builds(
    Odd, x=FLOATS, texts=st.lists(st.text(), max_size=3).map(tuple),
    table=st.lists(st.lists(FLOATS, max_size=2).map(tuple), max_size=2).map(tuple), mood=st.none() | MOODS,
    moods=st.lists(MOODS, max_size=2).map(tuple), limit=st.integers(), limits=st.lists(st.integers()).map(tuple),
)  # fmt: skip


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    return all(map(is_plain, value)) if isinstance(value, list) else isinstance(value, (bool, int, float, str))


@given(CONFIGS)
def test_plain_values_and_back(config: PipelineConfig) -> None:
    plain = config.to_dict()
    again = PipelineConfig.from_dict(plain)
    assert is_plain(plain)
    assert again == config
    assert hash(again) == hash(config)
    assert again.to_dict() == plain


REQUIRED: dict[str, dict[str, Any]] = {
    "flexrope": {"slope": 0.1}, "longrope": {"factors": [1.0, 2.0]}, "ntk_by_parts": {"alpha": 1.0, "beta": 15.0},
    "riflex": {"k": 6}, "shot_offset": {"phi": 8.0},
}  # fmt: skip


@pytest.mark.parametrize("key", REGISTRIES)
def test_every_registered_strategy_makes_the_round_trip_by_its_name(key: str) -> None:
    for name in REGISTRIES[key].names():
        if not REGISTRIES[key].get(name).__module__.startswith("arvid."):
            continue  # of another test
        plain = {key: {"name": name, **REQUIRED.get(name, {})}}
        config = PipelineConfig.from_dict(plain)
        assert config.to_dict() == plain
        assert PipelineConfig.from_dict(config.to_dict()) == config


# TOML


@settings(max_examples=15)
@given(CONFIGS, st.none() | ODDS)
def test_toml_and_back(config: PipelineConfig, odd: Odd | None) -> None:
    with patch.dict(NOISE._classes, {"odd": Odd}):
        config = config if odd is None else config.replace(noise=odd)
        again = PipelineConfig.from_dict(tomllib.loads(config.to_toml()))
        assert again == config
        assert repr(again) == repr(config)  # == alone would take 1 for 1.0, and -0.0 for 0.0
        assert again.to_toml() == config.to_toml()


@pytest.mark.parametrize(("odd", "field"), [(Odd(limit=None), "noise.limit"), (Odd(limits=(1, None)), "noise.limits")])
def test_toml_has_no_none(odd: Odd, field: str) -> None:
    with patch.dict(NOISE._classes, {"odd": Odd}):
        with pytest.raises(ValueError, match=f"^{field}: None is not the default here"):
            PipelineConfig(noise=odd).to_toml()
        assert PipelineConfig.from_dict(PipelineConfig(noise=odd).to_dict()).noise == odd


def test_a_file_is_read_on_top_of_its_preset(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('chunk = 2\ncache = "full"\n[noise]\nname = "iid"\napply_to = "all"\n')
    assert PipelineConfig.load(file) == PipelineConfig(chunk=2, cache=Full(), noise=IID(apply_to="all"))
    file.write_text('preset = "self_forcing"\nchunk = 2\n[cache]\nname = "sink"\nsink = 4\n')
    assert PipelineConfig.load(str(file)) == preset("self_forcing").replace(chunk=2, cache=Sink(sink=4))
    file.write_text("")
    assert PipelineConfig.load(file) == PipelineConfig()
    file.write_bytes(preset("self_forcing").to_toml().replace("\n", "\r\n").encode())
    assert PipelineConfig.load(file) == preset("self_forcing")


@pytest.mark.parametrize(("content", "message"), [
    (b"chunk = 3\ncache == 'full'\n", r"is no TOML: .*line 2"),
    (b"chunk = 3\nchunk = 4\n", r"is no TOML: .*line 2"),
    (b"# caf\xe9\nchunk = 3\n", "is no TOML, which is UTF-8 text: .*0xe9"),
    (b"cash = 'full'\n", r": a configuration has no key 'cash'; did you mean 'cache'\?"),
    (b"prest = 'x'\n", r": a configuration has no key 'prest'; did you mean 'preset'\?"),
    (b"preset = 'self_forcng'\n", r": no preset is called 'self_forcng'; did you mean 'self_forcing'\?"),
    (b"preset = 3\n", ": preset = 3: a preset is given by its name"),
    (b"preset = ''\n", ": no preset is called ''"),
    (b"chunk = 2020-01-01\n", r": chunk=datetime.date\(2020, 1, 1\)"),
    (b"cache = 3\n", ": 3 is no registered cache strategy"),
    (b"[cache]\nwindow = 3\n", ": this cache spec needs a name"),
    (b"[cache]\nname = 'window'\nwindow = 'wide'\n", ": cache 'window', field window wants int, got 'wide'"),
    (b"preset = 'self_forcing'\nchunk = 22\n", ": .* with chunk=22 do not fit each other"),
])  # fmt: skip
def test_what_is_wrong_in_a_file_is_named_with_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "my.toml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{file}.*{message}"):
        PipelineConfig.load(file)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"there is no file {tmp_path}/none.toml"):
        PipelineConfig.load(tmp_path / "none.toml")
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder: give a TOML file"):
        PipelineConfig.load(tmp_path)


# What a card fills in


@given(CONFIGS)
def test_resolving_fills_everything_and_once_is_enough(config: PipelineConfig) -> None:
    full = config.resolve(replace(CARD, window=90, sink=5))
    assert full.resolve() == full.resolve(CARD) == full
    for key in MAYBE:
        assert getattr(full, key) is not None
        if getattr(config, key) is not None:
            assert type(getattr(full, key)) is type(getattr(config, key))


def test_replace_takes_a_name_a_dict_or_an_instance() -> None:
    config = PipelineConfig(chunk=3)
    spec = {"name": "sink", "window": 12, "sink": 3}
    assert config.replace(cache=spec) == config.replace(cache=Sink(12, 3)) == PipelineConfig(cache=Sink(12, 3), chunk=3)
    assert config.replace(cache="full").cache == Full()
    assert config.replace(cache="full").replace(cache=None) == config
    assert config == PipelineConfig(chunk=3)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: PipelineConfig().replace(cash="full"), r"no key 'cash'; did you mean 'cache'\? \(keys: rotary, time"),
    (lambda: PipelineConfig.from_dict({"sampeler": "few_step"}), "did you mean 'sampler'"),
    (lambda: PipelineConfig.from_dict({3: "few_step"}), "no key 3"),  # pyright: ignore[reportArgumentType]
    (lambda: PipelineConfig(cache="windw"), "no cache strategy is called 'windw'; did you mean 'window'"),
    (lambda: PipelineConfig(cache={"name": "window", "windows": 3}), "no field 'windows'; did you mean 'window'"),
    (lambda: PipelineConfig(cache={"window": 3}), "needs a name"),
    (lambda: PipelineConfig(cache={"name": "window", "window": "3"}), "wants .*int.* got '3'"),
    (lambda: PipelineConfig(cache={"name": "window", "window": 0}), "window=0"),
    (lambda: PipelineConfig(cache=Window), "Window is a class: give an instance"),  # pyright: ignore[reportArgumentType]
    (lambda: PipelineConfig(cache=Rope()), "no registered cache strategy"),  # pyright: ignore[reportArgumentType]
    (lambda: PipelineConfig(chunk=0), "chunk=0"),
    (lambda: PipelineConfig(chunk=True), "chunk=True"),
    (lambda: PipelineConfig(chunk=3.0), "chunk=3.0"),  # pyright: ignore[reportArgumentType]
    (lambda: preset("self_forcng"), r"no preset is called 'self_forcng'; did you mean 'self_forcing'\? \(presets: "),
])  # fmt: skip
def test_mistakes_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_card_fills_in_its_settings() -> None:
    sampler = FewStep((1000, 500), 3.0, 0.0)
    assert PipelineConfig().resolve(CARD) == PipelineConfig(Rope(), Absolute(), IID(), Window(6), sampler, 2)
    with_sink = PipelineConfig().resolve(replace(CARD, sink=2))
    assert with_sink.cache == Sink(6, 2)
    mixed = PipelineConfig(cache=Sink(sink=1), sampler=FewStep(steps=(900,)), chunk=4).resolve(CARD)
    assert (mixed.cache, mixed.sampler, mixed.chunk) == (Sink(6, 1), FewStep((900,), 3.0, 0.0), 4)


def test_without_a_card_all_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"cache, sampler, chunk: .* there is no card"):
        PipelineConfig().resolve()
    with pytest.raises(ValueError, match=r"chunk, cache\.window, sampler\.shift, sampler\.context_noise: "):
        PipelineConfig(cache=Window(), sampler=FewStep((500,))).resolve()
    given_all = PipelineConfig(cache=Window(6), sampler=FewStep((500,), 1.0, 0.0), chunk=1).resolve()
    assert (given_all.rotary, given_all.time, given_all.noise) == (Rope(), Absolute(), IID())


@pytest.mark.parametrize("chunk", [None, 4])
def test_a_chunk_in_a_strategy_is_the_configurations(chunk: int | None) -> None:
    with patch.dict(CACHE._classes, {"chunked": Chunked}):
        config = PipelineConfig(cache="chunked", chunk=chunk)
        resolved = config.resolve(CARD)
        assert resolved.cache == Chunked(chunk=resolved.chunk, window=6)
        assert resolved.chunk == (chunk or 2)
        with pytest.raises(ValueError, match=r"another chunk than the configuration's, \d: leave it out"):
            config.replace(cache=Chunked(chunk=1, window=5)).resolve(CARD)

        bare = config.replace(cache=Chunked(window=5), sampler=FewStep((500,), 1.0, 0.0))
        if chunk:
            assert bare.resolve().cache == Chunked(chunk, 5)
        else:
            with pytest.raises(ValueError, match=r"^chunk, cache\.chunk: None"):
                bare.resolve()


def test_choosing_names_strategies_and_leaves_their_fields_to_the_card() -> None:
    assert PipelineConfig().choose(CARD) == PipelineConfig(Rope(), Absolute(), IID(), Window(), FewStep())
    assert PipelineConfig(cache=Full(), chunk=1).choose() == PipelineConfig(Rope(), Absolute(), IID(), Full(), chunk=1)
    assert PipelineConfig().choose(replace(CARD, sink=1)).cache == Sink()


# What does not fit


@given(st.integers(1, 12), st.integers(0, 11), st.integers(1, 6))
def test_a_window_too_small_for_its_sink_and_chunk_raises_when_built(window: int, sink: int, chunk: int) -> None:
    def build() -> PipelineConfig:
        return PipelineConfig(cache={"name": "sink", "window": window, "sink": sink}, sampler=FewStep((500,), 1.0, 0.0),
                              chunk=chunk)  # fmt: skip

    if sink + chunk <= window:
        assert build().resolve() == build().resolve(CARD)
    else:
        with pytest.raises(ValueError, match=f"sink={sink} .*window={window}: use window >="):
            build()


def test_what_only_a_card_makes_impossible_raises_when_resolved() -> None:
    config = PipelineConfig(cache=Sink(sink=5))
    with pytest.raises(ValueError, match=r"Sink\(.*FewStep\(.*chunk=2 do not fit each other: .*window=6"):
        config.resolve(CARD)
    assert config.resolve(replace(CARD, window=7))


# Presets


def test_self_forcing_is_what_its_paper_and_card_say_and_leaves_nothing_open() -> None:
    config, own = preset("self_forcing"), card("self_forcing")
    sampler = FewStep((1000, 750, 500, 250), shift=5.0, context_noise=0.0)
    assert config == PipelineConfig(Rope(), Absolute(), IID(), Window(21), sampler, 3)
    assert config == PipelineConfig().resolve(own)
    assert config.resolve(CARD) == config.resolve() == config


def test_a_student_preset_on_other_weights_names_what_differs() -> None:
    with pytest.warns(UserWarning, match="'self_forcing' belongs to other weights than 'random'") as caught:
        pipe = Pipeline.from_parts(random_parts().dit, "self_forcing", card=CARD)
    (warning,) = caught
    assert warning.filename == __file__
    for part in ("chunk 3 (the weights': 2)", "window 21 (the weights': 6)", "shift 5.0 (the weights': 3.0)"):
        assert part in str(warning.message)
    assert "sink" not in str(warning.message)
    assert pipe.config == preset("self_forcing")


def test_no_warning_where_nothing_differs() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for own in ("self_forcing", "wan2.1-t2v-1.3b", "wan2.1-t2v-14b"):
            warn_if_foreign("self_forcing", card(own))
        Pipeline.from_parts(random_parts().dit, preset("self_forcing"), card=CARD)


@pytest.mark.parametrize("name", [3, None, ["self_forcing"]])
@pytest.mark.parametrize("ask", [preset, describe])
def test_a_preset_is_given_by_name(ask, name):
    with pytest.raises(TypeError, match="a preset is given by its name"):
        ask(name)


@pytest.mark.parametrize("name", [*STUDENTS, *METHODS])
def test_every_preset_can_be_built_and_says_its_source_in_one_line(name: str) -> None:
    assert preset(name) == PipelineConfig.from_dict(preset(name).to_dict())
    assert "arXiv" in describe(name)
    assert describe(name).isprintable()


def test_a_method_is_built_when_it_is_asked_for() -> None:
    whole = Method({"cache": {"name": "sink", "sink": 1}, "chunk": 2}, "Keeps the first frame (arXiv 2309.17453).")
    broken = Method({"cache": "not_there_yet"}, "Its strategy comes from a plugin.")
    with patch.dict(METHODS, {"whole": whole, "broken": broken}):
        assert preset("whole") == PipelineConfig(cache=Sink(sink=1), chunk=2)
        assert describe("whole") == whole.description
        with pytest.raises(ValueError, match="no cache strategy is called 'not_there_yet'"):
            preset("broken")
        with pytest.raises(ValueError, match=r"did you mean 'whole'\? \(presets: broken, .*self_forcing"):
            describe("whol")


def test_a_training_horizon_of_other_weights_warns() -> None:
    with pytest.warns(UserWarning, match=r"Flex\(.*train_horizon is not that of the weights \('self_forcing': 21\)"):
        PipelineConfig(rotary={"name": "flex", "train_horizon": 240}).resolve(card("self_forcing"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolved = PipelineConfig(rotary="flex").resolve(card("self_forcing"))
        assert resolved.resolve(card("self_forcing")) == resolved
    assert PipelineConfig.from_dict(resolved.to_dict()) == resolved


# What a frequency rule does not go with


@pytest.mark.parametrize("changes", [{"time": "relative"}, {"time": "sink_adjacent"}, {"time": "clamped"},
                                     {"cache": "rolling"}, {"cache": "participative"}])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*keeps times as near")
def test_keys_that_are_moved_cannot_be_left_as_they_were_rotated(changes: dict[str, str]) -> None:
    stale = {"name": "pi", "scale": "stale"}
    with pytest.raises(ValueError, match=r"^PI\(.*'stale'.*, but \w+\(.*\) moves keys .*: use scale='current'"):
        PipelineConfig(rotary=stale, **changes)  # pyright: ignore[reportArgumentType]
    assert PipelineConfig(**changes).replace(rotary={"name": "pi", "scale": "current"})  # pyright: ignore
    with pytest.raises(ValueError, match="moves keys"):
        PipelineConfig(**changes).replace(rotary=stale)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("cache", ["window", "sink", "full"])
def test_keys_that_stay_can_be_left_as_they_were_rotated(cache: str) -> None:
    for time in (None, "absolute", {"name": "shot_offset", "phi": 8.0}):
        config = PipelineConfig(rotary={"name": "pi", "scale": "stale"}, time=time, cache=cache)
        assert config.resolve(card("self_forcing"))
    with pytest.raises(ValueError, match=r"codec='int8'.* stores keys before they are rotated: use .*codec=None"):
        config.replace(cache={"name": cache, "codec": "int8"})


def test_a_bias_by_frame_does_not_reach_chosen_tokens() -> None:
    bias = {"name": "flexrope", "slope": 0.1}
    with pytest.raises(ValueError, match=r"FlexRope\(.* adds a bias .* Participative\(.* chooses: use another cache"):
        PipelineConfig(rotary=bias, cache="participative")
    for config in (PipelineConfig(rotary=bias, cache="sink"), PipelineConfig(rotary="rope", cache="participative")):
        assert config.resolve(card("self_forcing"))


@pytest.mark.parametrize("time", ["relative", "clamped"])
@pytest.mark.parametrize("rotary", ["pi", "flex", "yarn"])
def test_a_rule_for_long_videos_over_times_that_stay_near_warns(rotary: str, time: str) -> None:
    with pytest.warns(UserWarning, match=f"(?i)^{time} keeps times as near .* {rotary} compresses .* rotary='rope'"):
        PipelineConfig(rotary=rotary, time=time)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        PipelineConfig(time=time).replace(rotary=rotary).resolve(card("self_forcing"))
    assert len(caught) == 1  # though the configuration was built several times


def test_rules_and_times_that_go_together_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rotary in ("rope", "lol", {"name": "flexrope", "slope": 0.1}):
            PipelineConfig(rotary=rotary, time="relative").resolve(card("self_forcing"))
        for time in ("absolute", "sink_adjacent"):
            PipelineConfig(rotary="flex", time=time).resolve(card("self_forcing"))
        for name in (*STUDENTS, *METHODS):
            preset(name).resolve(card("self_forcing"))
