"""Configurations on the command line: CONFIG, `--set`, `--use`, `arvid show`, `arvid list`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from command import Ran, ran
from random_model import CARD, RED

import arvid
from arvid import CACHE, PipelineConfig, preset
from arvid.cache import Full, Sink, Window
from arvid.models.specs import CARDS
from arvid.noise import IID
from arvid.presets import METHODS, STUDENTS
from arvid.registry import BY_BASE
from arvid.samplers import FewStep

STRATEGIES = """\
from __future__ import annotations
from dataclasses import dataclass
from arvid import CACHE
from arvid.cache import Full
from arvid.registry import Registry

class Mark: "What stands in the field of a strategy."
MARK = Registry("mark", Mark)

@MARK.register("dot")
@dataclass(frozen=True)
class Dot(Mark):
    "A mark inside. It has a size."
    n: int
    wide: bool = False

@CACHE.register("marked")
@dataclass(frozen=True)
class Marked(Full):
    "Everything, with a mark."
    mark: Mark | None = None
    chunk: int | None = None
"""


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """As they were, after the test."""
    with patch.dict(CACHE._classes), patch.dict(BY_BASE):
        yield


@pytest.fixture
def run(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)

    def call(command: str, *argv: str) -> Ran:
        return ran(capsys, command, *argv, *(() if command == "list" else ("--model", str(weights))))

    return call


def shown(what: Ran) -> PipelineConfig:
    """What `arvid show` wrote, read as the file shown.toml."""
    assert (what.status, what.err) == (0, "")
    Path("shown.toml").write_text(what.out)
    return PipelineConfig.load("shown.toml")


OWN = PipelineConfig().resolve(CARD)


@pytest.mark.parametrize(("sets", "expected"), [
    ("", OWN),
    ("cache.window=5", OWN.replace(cache=Window(5))),
    ("cache=full", OWN.replace(cache=Full())),
    ("cache.name=full", OWN.replace(cache=Full())),
    ("cache.window=3 cache=full", OWN.replace(cache=Full())),
    ("cache=sink cache.sink=1", OWN.replace(cache=Sink(6, 1))),
    ("cache.sink=4 cache.window=9 cache.name=sink", OWN.replace(cache=Sink(9, 4))),
    ("cache={name=\"sink\",sink=1} cache.window=9", OWN.replace(cache=Sink(9, 1))),
    ("chunk=3", OWN.replace(chunk=3)),
    ("noise.apply_to=all", OWN.replace(noise=IID(apply_to="all"))),
    ("noise.apply_to='all'", OWN.replace(noise=IID(apply_to="all"))),
    ("sampler.steps=[900,100] sampler.context_renoise=true", OWN.replace(
        sampler=FewStep((900, 100), 3.0, 0.0, context_renoise=True))),
    ("sampler.shift=-0.0 sampler.shift=1.5", OWN.replace(sampler=FewStep((1000, 500), 1.5, 0.0))),
])  # fmt: skip
def test_set_changes_what_the_card_means(run: Any, sets: str, expected: PipelineConfig) -> None:
    done = run("show", *(part for text in sets.split() for part in ("--set", text)))
    assert shown(done) == expected
    again = run("show", "shown.toml")
    assert shown(again) == expected
    assert "From the card" not in again.out


def test_show_says_what_came_from_the_card_and_what_strategies_are(run: Any) -> None:
    lines = run("show", "--set", "sampler.shift=2").out.splitlines()
    assert "# The card is that of 'random'." in lines
    assert lines[lines.index("[cache]") - 1] == "# From the card: name, window."
    assert lines[lines.index("[sampler]") - 1] == "# From the card: steps, context_noise."
    assert lines[lines.index("[rotary]") - 1].startswith("# Plain rotary embedding: ")


def test_a_file_and_its_preset(run: Any) -> None:
    Path("my.toml").write_text('preset = "self_forcing"\ncache = "full"\n')
    done = run("show", "my.toml", "--set", "chunk=7")
    assert done.status == 0
    assert done.err.startswith("arvid: warning: preset 'self_forcing' belongs to other weights than 'random'")
    assert done.out.startswith("# self_forcing: all settings of its card: Self Forcing, arXiv")
    Path("again.toml").write_text(done.out)
    assert PipelineConfig.load("again.toml") == preset("self_forcing").replace(cache=Full(), chunk=7)


def test_used_files_reach_every_command(run: Any, weights: Path) -> None:
    Path("mine.py").write_text(STRATEGIES)
    use = ("--use", "mine.py", "--use", "./mine.py")
    sets = ("--set", "cache=marked", "--set", "cache.mark.n=2", "--set", "cache.mark.name=dot", "--set", "chunk=3")
    done = run("show", *use, *sets)
    config = shown(done)
    assert "# Everything, with a mark.\n# mark: A mark inside.\n[cache]\n" in done.out
    assert config.to_dict()["cache"] == {"name": "marked", "mark": {"name": "dot", "n": 2}, "chunk": 3}
    wide = shown(run("show", "shown.toml", *use, "--set", "cache.mark.wide=true"))
    assert wide.to_dict()["cache"] == {"name": "marked", "mark": {"name": "dot", "n": 2, "wide": True}, "chunk": 3}
    listed = run("list", *use).out
    assert "  marked: Everything, with a mark.\n" in listed
    assert "\nmark\n  dot: A mark inside.\n      n (required), wide=False\n" in listed
    assert run("list", "mark", *use).out == "mark\n  dot: A mark inside.\n      n (required), wide=False\n"
    assert run("generate", RED, "-o", "a.gif", "--frames", "4", "--preset", "shown.toml", *use).status == 0
    arvid.Pipeline.load(PipelineConfig(cache="full", chunk=3), model=weights)(RED, frames=4).save("b.gif")
    assert Path("a.gif").read_bytes() == Path("b.gif").read_bytes()


def test_used_files_run_once_each_and_may_have_one_name(run: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Path(name, "mine.py").write_text(f"""\
from dataclasses import dataclass
from arvid import CACHE
from arvid.cache import Full
open("log", "a").write("{name}")

@CACHE.register("{name}")
@dataclass(frozen=True)
class Own(Full):
    "Of {name}."
    x: str = __file__
""")
    for _ in range(2):
        out = run("list", "cache", "--use", "a/mine.py", "--use", "b/mine.py", "--use", str(tmp_path / "a/mine.py")).out
        for name in ("a", "b"):
            assert f"  {name}: Of {name}.\n" in out
            assert f"x='{tmp_path / name / 'mine.py'}'" in out
    assert Path("log").read_text() == "ab"


@pytest.mark.parametrize(("argv", "message"), [
    (("--set", "cache.windw=3"), "cache 'window' has no field 'windw'; did you mean 'window'?"),
    (("--set", "cash.window=3"), "a configuration has no key 'cash'; did you mean 'cache'?"),
    (("--set", "cache=windw"), "no cache strategy is called 'windw'; did you mean 'window'?"),
    (("--set", "cache.window=wide"), "cache 'window', field window wants int, got 'wide'"),
    (("--set", "cache.window="), "cache 'window', field window wants int, got ''"),
    (("--set", "cache.window=1"), "with chunk=2 do not fit each other"),
    (("--set", "cache.sink=1"), "cache 'window' has no field 'sink'"),
    (("--set", "cache.window"), "--set cache.window: give KEY=VALUE, such as cache.window=12"),
    (("--set", "cache..window=3"), "--set cache..window=3: give KEY=VALUE"),
    (("--set", "=3"), "--set =3: give KEY=VALUE"),
    (("--set", "sampler.steps=[900, 100"), "--set sampler.steps=[900, 100: [900, 100 is no TOML: "),
    (("--set", "cache=3"), "3 is no registered cache strategy"),
    (("--set", "chunk=3", "--set", "chunk.size=3"), "--set chunk.size=3: chunk is 3 by an earlier --set, and has no"),
    (("--set", "chunk.size=3"), "chunk={'size': 3}: a chunk is a whole number"),
    (("self_forcng",), "no preset is called 'self_forcng'; did you mean 'self_forcing'?"),
    (("my_file",), "; a file's name ends in .toml"),
    (("none.toml",), "there is no file none.toml"),
    (("broken.toml",), "broken.toml is no TOML: "),
    (("--use", "none.py"), "--use none.py: No such file or directory"),
    (("--use", "."), "--use .: Is a directory"),
    (("--use", "syntax.py"), "--use syntax.py, line 2: SyntaxError: "),
    (("--use", "raises.py"), "--use raises.py, line 3: ZeroDivisionError: division by zero"),
    (("--use", "exits.py"), "--use exits.py, line 1: SystemExit: 0"),
    (("--use", "clash.py"), "clash.py): the name is taken by Full of module arvid.cache.full"),
])  # fmt: skip
def test_mistakes_in_a_configuration_are_one_line(run: Any, tmp_path: Path, argv: Any, message: str) -> None:
    files = {
        "broken.toml": "chunk = \n", "syntax.py": "x = 1\ny = = 2\n", "exits.py": "raise SystemExit(0)\n",
        "raises.py": "def divide():\n    # by zero\n    return 1 / 0\ndivide()\n",
        "clash.py": STRATEGIES.replace('"marked"', '"full"'),
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    before = CACHE.names()
    for command in (("show", *argv), ("generate", RED, *(() if argv[0][:2] == "--" else ("--preset",)), *argv)):
        done = run(*command)
        (line,) = done.err.splitlines()
        assert (done.status, done.out) == (2, "")
        assert line.startswith("arvid: ")
        assert message in line
    assert CACHE.names() == before


def test_a_preset_that_is_changed_still_warns_on_other_weights(run: Any) -> None:
    Path("my.toml").write_text('preset = "self_forcing"\n')
    for config in ("self_forcing", "my.toml"):
        done = run("generate", RED, "-o", "a.png", "--frames", "1", "--preset", config, "--set", "cache.window=6")
        assert done.status == 0
        assert done.err.startswith("arvid: warning: preset 'self_forcing' belongs to other weights than 'random'; ")
        assert done.err.count("\n") == 1


# What there is


def test_list_names_strategies_presets_and_cards(run: Any) -> None:
    done = run("list")
    assert (done.status, done.err) == (0, "")
    for name in [*CACHE.names(), "rope", "absolute", "iid", "few_step", *STUDENTS, *METHODS, *CARDS, "tiny"]:
        assert f"\n  {name}: " in done.out
    sink = "  sink: The first `sink` frames for ever, then the most recent ones, within `window`.\n      "
    assert sink in done.out
    assert "sink=None" in done.out.partition(sink)[2].partition("\n")[0]
    assert "\n  self_forcing: student, all settings of its card: " in run("list", "presets").out
    assert run("list", "cards").out.startswith("cards\n  tiny: bundled, ")


def test_list_of_one_kind(run: Any) -> None:
    out = run("list", "time").out
    assert out.startswith("time\n  absolute: Every frame keeps its own time")
    assert "\n\n" not in out
    done = run("list", "cach")
    assert (done.status, done.out) == (2, "")
    assert "nothing to list is called 'cach'; did you mean 'cache'? (kinds: rotary, time, noise, cache" in done.err


@pytest.fixture
def plugins(tmp_path: Path) -> dict[str, str]:
    """The environment of a process in which a good and a broken package are installed."""
    for name, code in (("good", STRATEGIES), ("broken", "import flux_capacitor\n")):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[arvid.cache]\n{name} = {name}_plugin\n")
        (tmp_path / f"{name}_plugin.py").write_text(code)
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def test_a_broken_plugin_warns_once_and_spoils_nothing(plugins: dict[str, str]) -> None:
    code = "import sys; from arvid.cli import main; status = main(['list', 'cache']) or main(['list', 'cache'])\n"
    code += "sys.exit(9 if 'torch' in sys.modules else status)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=plugins,
                         cwd=Path(arvid.__file__).parents[1])  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    (line,) = ran.stderr.splitlines()
    assert line == ("arvid: warning: cache plugin 'broken' (broken_plugin) failed to load: ModuleNotFoundError: No "
                    "module named 'flux_capacitor'")
    first, second = ran.stdout.split("cache\n")[1:]
    assert first == second
    for name in ("full", "marked", "sink", "window"):
        assert f"  {name}: " in first
