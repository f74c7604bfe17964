"""The linter: how far planes turn equals a count over all pairs, and a finding is there exactly where it should be."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from command import Ran, ran
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import CARD as SMALL

import arvid
from arvid import PipelineConfig
from arvid.cache import CACHE, Chunk, Full, Kind, Pass, Ref, Rolling, Sink, Window, after_commit, make_plan
from arvid.lint import Lint, lint
from arvid.models.specs import Card, card
from arvid.positional import (
    PI,
    TIME,
    Absolute,
    Clamped,
    Flex,
    FlexRope,
    Lol,
    LongRope,
    Relative,
    Riflex,
    Rope,
    Rotary,
    RotaryContext,
    SinkAdjacent,
)
from arvid.positional.base import ROTARY
from arvid.samplers import Emit, Sampler

CARD = card("self_forcing")
SINK = PipelineConfig(cache=Sink(12, 3))


def brute(config: PipelineConfig, own: Card, frames: int) -> dict[tuple[str, int, int], float]:
    """The largest |phase| in turns by (role, query frame, plane), from every pair of every chunk's two passes."""
    config = config.resolve(own)
    assert config.cache and config.time and config.rotary and config.chunk
    found: dict[tuple[str, int, int], float] = defaultdict(float)
    committed: dict[int, Any] = {}
    held: tuple[Ref, ...] = ()
    for index, start in enumerate(range(0, frames, config.chunk)):
        chunk = Chunk(start, min(config.chunk, frames - start), index=index)
        context = RotaryContext(own.dit.axes[0], own.dit.num_heads, own.train_horizon, frames, chunk.end)
        freq = np.atleast_2d(config.rotary.inv_freq(context))
        for kind in Kind:
            (group,) = make_plan(config.cache, config.time, held, Pass(kind, (chunk,))).groups
            keys = [(ref.role, time, committed[ref.frame] if config.rotary.stale else freq)
                    for ref, time in zip(group.refs, group.ref_times, strict=True)]  # fmt: skip
            keys += [("in flight", time, freq) for time in group.times]
            for (i, time), (role, key, turned) in product(enumerate(group.times), keys):
                phases = abs(time * freq - key * turned).max(0) / (2 * np.pi)
                for plane, phase in enumerate(phases):
                    found[role, start + i, plane] = max(found[role, start + i, plane], phase)
        held = after_commit(config.cache, held, Pass(Kind.COMMIT, (chunk,)))
        committed |= dict.fromkeys(range(start, chunk.end), freq)
    return found


@settings(max_examples=15)
@given(
    st.sampled_from([Window(7), Sink(7, 2), Sink(7, 2, sink_on_commit=False), Full(), Rolling(7)]),
    st.sampled_from([Absolute(), Relative(), SinkAdjacent(), Clamped()]),
    st.sampled_from([Rope(), Rope(base=50.0), PI(), PI(scale="current"), Flex(), Lol(), Riflex(k=2)]),
    st.integers(1, 3), st.integers(1, 25),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_turns_are_those_of_the_farthest_pair(cache: Any, time: Any, rotary: Rotary, chunk: int, frames: int) -> None:
    config = PipelineConfig(rotary=rotary, time=time, cache=cache, chunk=chunk)
    found, expected = lint(config, SMALL, frames=frames), brute(config, SMALL, frames)
    assert {role for role, *_ in expected} == {*found.turns}
    for role, turns in found.turns.items():
        for (frame, plane), value in np.ndenumerate(turns):
            assert value == pytest.approx(expected.get((role, frame, plane), np.nan), abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("cache", [Window(7), Sink(7, 2), Full()])
def test_stale_keys_turn_as_their_own_pass_turned_them(cache: Any) -> None:
    config = PipelineConfig(rotary=PI(scale="stale"), cache=cache)
    found, expected = lint(config, SMALL, frames=24), brute(config, SMALL, 24)
    for role, turns in found.turns.items():
        for (frame, plane), value in np.ndenumerate(turns):
            assert value == pytest.approx(expected.get((role, frame, plane), np.nan), abs=1e-12, nan_ok=True)
    (stale,) = (finding for finding in found.warnings if "leaves keys" in finding.text)
    assert stale.text.endswith("S grows to 4")
    assert "scale='current'" in stale.advice


def leaving(found: Lint, role: str) -> tuple[list[int], int]:
    """The planes that leave in a role, and the first frame."""
    outside = found.outside(role)
    return np.flatnonzero(outside.any(0)).tolist(), int(outside.any(1).argmax())


def test_sinks_at_their_own_times_leave_what_training_showed() -> None:
    found = lint(SINK, CARD, seconds=60)
    assert found.reach == 21
    assert leaving(found, "sink") == ([*range(3, 22)], 21)
    assert not found.outside("recent").any()
    assert not found.outside("in flight").any()
    (finding,) = found.findings
    turns = (239 - 21) * 10000 ** (-6 / 44) / (2 * np.pi)
    assert finding.text == (
        "sink -> query: planes 3-21 turn further than in training from frame 21 (5.25 s) on, up to "
        f"{turns:.3g} turns further (plane 3), with keys up to 239 frames away"
    )
    assert finding.level == "warning"
    assert "sink_adjacent" in finding.advice
    assert "flex" in finding.advice


@pytest.mark.parametrize("time", [SinkAdjacent(), Relative(), Clamped()])
def test_sinks_that_follow_stay(time: Any) -> None:
    assert lint(SINK.replace(time=time), CARD, seconds=60).findings == ()


def test_a_history_that_is_too_long_leaves_as_soon_as_it_is() -> None:
    for cache, first in ((Full(), 21), (Window(40), 21), (Window(22), 21)):
        found = lint(PipelineConfig(cache=cache, chunk=1), CARD, frames=60)
        assert leaving(found, "recent") == ([*range(3, 22)], first)
        assert "see at most 21 frames" in found.findings[0].advice
    assert lint(PipelineConfig(cache=Window(21), chunk=1), CARD, frames=60).findings == ()


@pytest.mark.parametrize(("window", "sink", "reach"), [(21, 0, 21), (9, 0, 9), (40, 0, 21), (9, 3, 21), (12, 1, 21)])
def test_training_reached_as_far_as_its_window_or_sink(window: int, sink: int, reach: int) -> None:
    found = lint(SINK, replace(CARD, window=window, sink=sink), frames=60)
    plain = 10000 ** (-np.arange(22) / 22)
    assert found.reach == reach
    np.testing.assert_allclose(found.trained, reach * plain / (2 * np.pi), rtol=1e-12)
    assert leaving(found, "sink") == (np.flatnonzero(reach * plain < 2 * np.pi).tolist(), reach)


@pytest.mark.parametrize("frames", [22, 120, 960, 3000])
@pytest.mark.parametrize("scale", ["total", "current"])
def test_interpolation_stays_however_long_the_video(frames: int, scale: str) -> None:
    config = SINK.replace(rotary={"name": "pi", "scale": scale})
    assert not lint(config, CARD, frames=frames).warnings


def test_flex_keeps_the_planes_that_it_divides_within_and_lets_the_blended_leave() -> None:
    found = lint(SINK.replace(rotary="flex"), CARD, seconds=60)
    assert leaving(found, "sink") == ([*range(3, 9)], 52)
    rope = lint(SINK, CARD, seconds=60)
    assert (found.turns["sink"][3:] <= rope.turns["sink"][3:]).all()


def test_a_rule_that_turns_faster_leaves_within_the_trained_distance() -> None:
    found = lint(SINK.replace(rotary=Lol(), time="relative"), CARD, frames=60)
    assert found.distance["recent"][-1] < 21
    by_role = {finding.text.split(":")[0]: finding for finding in found.warnings}
    assert "use rotary='rope'" in by_role["sink -> query"].advice


def texts(found: Lint, level: str) -> list[str]:
    return [finding.text for finding in found.findings if finding.level == level]


@pytest.mark.parametrize(("rotary", "frames", "text"), [
    ("flex", 21, "Flex is plain rope in every pass: S is 1 in a video of 21 frames"),
    ("yarn", 9, "Yarn is plain rope in every pass: S is 1 in a video of 9 frames"),
    ({"name": "riflex", "k": 22}, 60, "Riflex is plain rope in every pass"),  # too slow to be slowed
    ({"name": "lol", "sigma": 0.0}, 60, "Lol is plain rope in every pass"),
    ({"name": "flexrope", "slope": 0.0}, 60, "FlexRope is plain rope in every pass"),
])  # fmt: skip
def test_a_rule_that_does_nothing_is_named(rotary: Any, frames: int, text: str) -> None:
    assert texts(lint(SINK.replace(rotary=rotary), CARD, frames=frames), "info") == [text]


@pytest.mark.parametrize("rotary", [Rope(), FlexRope(slope=0.1), Lol(), Flex(), LongRope(factors=(1.0,) * 22)])
def test_a_rule_that_does_something_is_not(rotary: Rotary) -> None:
    assert texts(lint(SINK.replace(rotary=rotary), CARD, frames=60), "info") == []


def test_a_scale_that_grows_says_from_where_on() -> None:
    found = lint(SINK.replace(rotary=PI(scale="current")), CARD, seconds=60)
    assert texts(found, "info") == [
        "PI does nothing before frame 21 (5.25 s), where S exceeds 1, and S is 11.43 in the end"
    ]  # fmt: skip


@pytest.mark.parametrize("changes", [
    {"rotary": "flex", "cache": Window(21)}, {"rotary": "flex", "time": "relative"},
    {"rotary": "yarn", "time": "sink_adjacent"},
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*keeps times as near")
def test_a_rule_without_a_use_is_named(changes: dict[str, Any]) -> None:
    config = SINK.replace(**changes)
    (text,) = texts(lint(config, CARD, seconds=60), "warning")
    assert "takes frequencies down to 0.0875 of those of training, though times lie at most" in text
    assert texts(lint(config, CARD, frames=21), "warning") == []
    assert texts(lint(config.replace(rotary="rope"), CARD, seconds=60), "warning") == []


def test_where_a_table_would_have_ended() -> None:
    config = SINK.replace(time="sink_adjacent", cache=Sink(6, 1), chunk=1)
    assert lint(config, CARD, frames=1024).findings == ()
    (end,) = lint(config, CARD, frames=1025).findings
    assert end.level == "info"
    assert end.text == "times reach 1024 at frame 1024 (256 s), where code with Wan's table of 1024 times raises"
    assert len(lint(config, CARD, frames=1029).findings) == 1
    _, move = lint(config, CARD, frames=1030).findings  # frame f sees four before it, and the sink right before them
    assert move.text.startswith("keys are moved by 1024 frames or more from frame 1029 (257.2 s) on")


@dataclass(frozen=True)
class Joint(Sampler):
    """One pass over eight chunks."""

    lanes: ClassVar[int] = 2

    def in_flight(self, chunk: int) -> int:
        return 8 * chunk

    def rollout(self, denoiser: Any, noise: Any, chunks: Any, state: Any = None) -> Any:
        import torch

        for i, chunk in enumerate(chunks):
            flying = tuple(chunks[i : i + 8])
            denoiser(torch.cat([noise.initial(each) for each in flying], 1), flying)
            denoiser.commit(noise.initial(chunk), (chunk,), lane=1)
            yield Emit(chunk, denoiser.commit(noise.initial(chunk), (chunk,)), None)


def test_frames_in_flight_count_too() -> None:
    found = lint(PipelineConfig(cache=Window(24), sampler=Joint()), CARD, frames=30)
    assert leaving(found, "in flight") == ([*range(3, 22)], 0)
    (advice,) = (f.advice for f in found.warnings if f.text.startswith("in flight"))
    assert advice.startswith("have at most 21 frames in flight")


def test_memory_is_a_role_of_its_own() -> None:
    found = lint(PipelineConfig(cache=Rolling(21)), CARD, seconds=30)
    assert {*found.turns} == {"memory", "recent", "in flight"}
    assert found.findings == ()


def test_the_table_says_what_the_arrays_say() -> None:
    found = lint(SINK.replace(rotary="flex"), CARD, seconds=60)
    lines = str(found).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("plane"))
    assert lines[start].split() == ["plane", "period", "training", "sink", "recent", "in", "flight"]
    assert lines[start + 1].split() == ["frames", "20", "239", "8", "2"]
    for plane, line in enumerate(lines[start + 2 : start + 24]):
        cells = line.replace(" @", "@").split()
        assert (int(cells[0]), float(cells[2])) == (plane, pytest.approx(found.trained[plane], rel=5e-3))
        for cell, role in zip(cells[3:], found.turns, strict=True):
            turns, _, first = cell.partition("@")
            assert float(turns) == pytest.approx(np.nanmax(found.turns[role][:, plane]), rel=5e-3)
            outside = found.outside(role)[:, plane]
            assert (int(first) if first else None) == (outside.argmax() if outside.any() else None)
    assert "card 'self_forcing', 240 latent frames (60 s)" in lines[0]
    assert lines[-2].startswith("warning: sink -> query: planes 3-8")
    assert lines[-1].startswith("  To do: ")
    assert str(lint(SINK, CARD, frames=9)).splitlines()[-1] == "nothing found"


def test_a_picture_has_a_field_for_each_role(tmp_path: Path) -> None:
    found = lint(SINK, CARD, seconds=30)
    drawing = found.figure()
    fields = drawing.axes[: len(found.turns)]
    assert [axes.get_title() for axes in fields] == ["sink -> query", "recent -> query", "in flight"]
    for axes, role in zip(fields, found.turns, strict=True):
        known, beyond = (np.ma.asarray(mesh.get_array()) for mesh in axes.collections)
        assert known.shape == beyond.shape == (22, 120)
        np.testing.assert_array_equal(~np.ma.getmaskarray(beyond), found.outside(role).T)
    drawing.savefig(tmp_path / "a.png")
    found = lint(SINK.replace(rotary=Lol()), CARD, seconds=240)  # in one of three frames slow planes leave
    beyond = np.ma.asarray(found.figure().axes[1].collections[1].get_array())
    assert beyond.shape == (22, 138)
    assert found.outside("recent")[9:, 17].mean() == pytest.approx(1 / 3)
    assert not np.ma.getmaskarray(beyond)[17, 2:].any()
    lint(PipelineConfig(), CARD, frames=1).figure().savefig(tmp_path / "b.png")  # nothing beyond


@pytest.mark.parametrize(("config", "own", "length", "error", "message"), [
    (SINK, CARD, {}, ValueError, "seconds=None, frames=None: give the length of the video as one of them"),
    (SINK, CARD, {"seconds": 3, "frames": 3}, ValueError, "as one of them"),
    (SINK, CARD, {"frames": 0}, ValueError, "frames=0 must be a whole number"),
    (SINK, CARD, {"seconds": -1}, ValueError, "seconds=-1"),
    ("flex", CARD, {"frames": 3}, TypeError, "config='flex': give a PipelineConfig"),
    (SINK, "self_forcing", {"frames": 3}, TypeError, "card='self_forcing': give a Card"),
    (PipelineConfig(cache=Sink(4, 3)), CARD, {"frames": 3}, ValueError, "do not fit each other"),
    (PipelineConfig(rotary=Riflex(k=23)), CARD, {"frames": 60}, ValueError, "k=23"),
])  # fmt: skip
def test_mistakes_are_named(config: Any, own: Any, length: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lint(config, own, **length)


@pytest.mark.parametrize("first", ["arvid.lint", "import arvid.lint", "from arvid.lint import Lint"])
def test_arvid_lint_can_be_called_whatever_was_imported_first(first: str) -> None:
    code = f"""
import sys, arvid
{first}
from arvid.lint import lint as function
import arvid.lint
from arvid import lint
for call in (arvid.lint, lint, function, arvid.lint.lint):
    try:
        call("flex", None, frames=3)
    except TypeError as error:
        assert "config='flex': give a PipelineConfig" in str(error)
    else:
        raise AssertionError(call)
assert not {{"torch", "matplotlib"}} & set(sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_every_rule_and_time_can_be_linted() -> None:
    needed: dict[str, Any] = {
        "flexrope": {"slope": 0.1}, "longrope": {"factors": [1.0] * 22}, "ntk_by_parts": {"alpha": 1.0, "beta": 15.0},
        "riflex": {"k": 6}, "shot_offset": {"phi": 8.0},
    }  # fmt: skip
    for key, registry in (("rotary", ROTARY), ("time", TIME), ("cache", CACHE)):
        for name in registry.names():
            config = SINK.replace(**{key: {"name": name, **needed.get(name, {})}})
            assert arvid.lint(config, CARD, frames=60).turns


# The command


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`arvid lint`, in a folder with a configuration."""
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text('[cache]\nname = "sink"\nwindow = 9\nsink = 3\n')

    def call(*argv: str) -> Ran:
        return ran(capsys, "lint", *argv)

    return call


def test_the_command_prints_what_lint_finds(run: Any, tmp_path: Path) -> None:
    from arvid.models.weights import BUNDLED, load_card

    own, config = load_card(BUNDLED), PipelineConfig(cache=Sink(9, 3))
    lengths: dict[tuple[str, ...], dict[str, Any]] = {
        (): {"seconds": 30}, ("--seconds", "10"): {"seconds": 10}, ("--frames", "7"): {"frames": 7}
    }  # fmt: skip
    for argv, length in lengths.items():
        done = run("my.toml", *argv)
        assert (done.status, done.out, done.err) == (0, f"{lint(config, own, **length)}\n", "")
    done = run("my.toml", "--frames", "30", "-o", "a.png")
    assert done.out == f"{lint(config, own, frames=30)}\n\na.png\n"
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_strict_fails_where_there_is_a_warning(run: Any) -> None:
    assert run("my.toml", "--strict").status == 1
    assert run("my.toml", "--strict", "--set", "time=relative").status == 0
    assert run("my.toml", "--strict", "--frames", "9").status == 0
    assert run("my.toml", "--strict", "--frames", "9", "--set", "rotary=pi").status == 0  # an info only


def test_a_rule_without_a_use_is_a_warning_shown_once_too(run: Any) -> None:
    done = run("my.toml", "--set", "time=relative", "--set", "rotary=flex")
    assert [line.split(" keeps ")[0] for line in done.err.splitlines()] == ["arvid: warning: Relative"]
    assert "Flex takes frequencies down" in done.out


@pytest.mark.parametrize(("argv", "message"), [
    (("my.toml", "-o", "a.pdf"), "arvid: cannot save 'a.pdf': the name must end in .png\n"),
    (("none.toml",), "arvid: there is no file none.toml\n"),
    (("my.toml", "--seconds", "0"), "'0' is not a positive number of seconds"),
    (("my.toml", "--frames", "3", "--seconds", "3"), "not allowed with argument"),
    (("my.toml", "--set", "cache.window=4"), "do not fit each other"),
])  # fmt: skip
def test_mistakes_on_the_command_line_have_status_2(run: Any, argv: tuple[str, ...], message: str) -> None:
    done = run(*argv, "--strict")
    assert (done.status, done.out) == (2, "")
    assert message in done.err
