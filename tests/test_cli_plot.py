"""`arvid plot`, run in this process."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from command import Ran, ran

from arvid import PipelineConfig
from arvid.cache import Sink
from arvid.models.specs import card
from arvid.plots.cache import table

CARD = card("self_forcing")
SINK = PipelineConfig(cache=Sink(12, 3))

@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`arvid plot`, in a folder with a configuration."""
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text('chunk = 3\n[cache]\nname = "sink"\nwindow = 12\nsink = 3\n')

    def call(*argv: str) -> Ran:
        return ran(capsys, "plot", *argv)

    return call


def test_a_table_on_the_command_line(run: Any) -> None:
    done = run("cache", "my.toml", "--seconds", "30")
    assert (done.status, done.err) == (0, "")
    assert done.out == table(SINK, 120, CARD) + "\n"
    assert run("cache", "--seconds", "30", "my.toml").out == done.out == run("cache", "my.toml").out
    assert run("cache", "my.toml", "--frames", "7").out == table(SINK, 7, CARD) + "\n"
    assert run("cache", "my.toml", "--all").out == table(SINK, 120, CARD, every=True) + "\n"
    changed = PipelineConfig(cache=Sink(9, 3), time="sink_adjacent")
    sets = ("--set", "cache.window=9", "--set", "time=sink_adjacent")
    assert run("cache", "my.toml", "--frames", "30", *sets).out == table(changed, 30, CARD) + "\n"
    assert [path.name for path in Path().iterdir()] == ["my.toml"]


def test_a_picture_on_the_command_line(run: Any, tmp_path: Path) -> None:
    Path("a.png").write_text("an older file")
    done = run("cache", "my.toml", "-o", "a.png")
    assert (done.status, done.out, done.err) == (0, "a.png\n", "")
    pixels = iio.imread("a.png")
    assert 600 < pixels.shape[0] < pixels.shape[1] < 4000
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "my.toml"]


def test_a_preset_of_other_weights_warns(run: Any) -> None:
    done = run("cache", "self_forcing")
    assert done.status == 0
    assert done.err.startswith("arvid: warning: preset 'self_forcing' belongs to other weights")


@pytest.mark.parametrize(("argv", "message"), [
    (("cache", "my.toml", "-o", "a.pdf"), "arvid: cannot save 'a.pdf': the name must end in .png\n"),
    (("cache", "my.toml", "-o", ""), "arvid: cannot save '': the name must end in .png\n"),
    (("cache", "my.toml", "-o", "none/a.png"), "there is no folder 'none'; create it first"),
    (("cache", "my.toml", "-o", "."), "arvid: cannot save '.'"),
    (("cache", "none.toml", "-o", "a.pdf"), "cannot save 'a.pdf'"),  # refused before anything is read
    (("cache", "none.toml"), "arvid: there is no file none.toml\n"),
    (("cache", "self_forcng"), "did you mean 'self_forcing'?"),
    (("cache", "my.toml", "--seconds", "0"), "'0' is not a positive number of seconds"),
    (("cache", "my.toml", "--frames", "0"), "'0' is not a whole number, at least 1"),
    (("cache", "my.toml", "--frames", "3", "--seconds", "3"), "not allowed with argument"),
    (("cache", "my.toml", "--set", "cache.window=4"), "do not fit each other"),
    (("cache", "my.toml", "--model", "nowhere"), "nowhere is not a folder of arvid weights"),
    (("cach", "my.toml"), "invalid choice: 'cach'"),
    ((), "the following arguments are required: KIND"),
])  # fmt: skip
def test_mistakes_are_one_message_and_exit_status_2(run: Any, argv: tuple[str, ...], message: str) -> None:
    done = run(*argv)
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert [path.name for path in Path().iterdir()] == ["my.toml"]


def test_without_matplotlib_tables_remain(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = run("cache", "my.toml", "-o", "a.png")
    assert (done.status, done.out) == (2, "")
    assert re.fullmatch(r"arvid: pictures need matplotlib \(.*\): pip install 'arvid\[plots\]'\n", done.err)
    assert not Path("a.png").exists()
    assert run("cache", "my.toml").status == 0
