"""The `arvid` command, run in-process on random weights."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import pytest
from command import Ran, ran
from random_model import BLUE, RED

import arvid
from arvid.cli import generate
from arvid.models.text import BUNDLED_GRAMMAR, sentences


@pytest.fixture
def run(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)

    def call(*argv: str, model: str | Path | None = weights) -> Ran:
        return ran(capsys, *argv, *(("--model", str(model)) if model is not None else ()))

    return call


@pytest.mark.parametrize(("name", "shape"), [
    ("a.mp4", (9, 256, 512, 3)),
    ("a.gif", (9, 256, 512, 3)),
    ("a.png", (512, 8 * 512, 3)),
])  # fmt: skip
def test_a_prompt_becomes_a_file(run: Any, tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    ran = run("generate", RED, "-o", name, "--frames", "3")
    assert (ran.status, ran.out, ran.err) == (0, f"{name}: 9 pixel frames, 1.125 s\n", "")
    index = {".png": {}, ".mp4": {}, ".gif": {"index": None}}[Path(name).suffix]
    assert iio.imread(tmp_path / name, **index).shape == shape
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_every_option_arrives(run: Any, tmp_path: Path, weights: Path) -> None:
    ran = run("generate", RED, "-o", "a.gif", "--seconds", "2", "--seed", "7", "--size", "32x16", "--scale", "1",
              "--device", "cpu", "--quiet")  # fmt: skip
    assert ran.status == 0
    video = arvid.Pipeline.load(model=weights)(RED, 2, height=16, width=32, seed=7)
    assert iio.imread(tmp_path / "a.gif", index=None).shape == video.frames.shape == (13, 16, 32, 3)
    run("generate", RED, "-o", "b.gif", "--seconds", "2", "--seed", "7", "--scale", "1")
    run("generate", RED, "-o", "c.gif", "--seconds", "2", "--seed", "8", "--scale", "1")
    same, other = (Path(name).read_bytes() == Path("a.gif").read_bytes() for name in ("b.gif", "c.gif"))
    assert same
    assert not other


def test_the_prompt_never_decides_the_path(run: Any, tmp_path: Path) -> None:
    assert run("generate", "a red ball", "--frames", "1").status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["arvid.mp4"]
    ran = run("generate", "../../x.mp4", "--frames", "1")
    assert (ran.status, ran.out) == (2, "")
    assert "does not know the words '../../x.mp4'" in ran.err


def test_progress_is_one_line_that_ends(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    err = run("generate", RED, "-o", "a.png", "--frames", "4").err
    first, last = err.split("\r")[1:]
    assert first.startswith("5/13 frames, ")
    assert last.startswith("13/13 frames, ")
    assert last.rstrip().endswith(", 0 s left")
    assert err.count("\n") == 1
    assert run("generate", RED, "-o", "a.png", "--frames", "4", "--quiet").err == ""


@pytest.mark.parametrize(("argv", "message"), [
    ((RED, "-o", "a.avi"), "cannot save 'a.avi': the name must end in .mp4, .gif, .png"),
    ((RED, "-o", "none/a.mp4"), "there is no folder 'none'; create it first"),
    ((RED, "-o", "."), "cannot save '.'"),
    ((RED, "--size", "16"), "'16' is not WIDTHxHEIGHT in pixels"),
    ((RED, "--size", "16x"), "'16x' is not WIDTHxHEIGHT"),
    ((RED, "--size", "16x-16"), "'16x-16' is not WIDTHxHEIGHT"),
    ((RED, "--size", "40x16"), "arvid: width=40 must be a positive multiple of 16: use 32 or 48"),
    ((RED, "--size", "0x0"), "arvid: height=0"),
    ((RED, "--frames", "0"), "'0' is not a whole number, at least 1"),
    ((RED, "--scale", "1.5"), "'1.5' is not a whole number"),
    ((RED, "--seconds", "nan"), "'nan' is not a positive number of seconds"),
    ((RED, "--seconds", "-3"), "'-3' is not a positive number of seconds"),
    ((RED, "--seconds", "3", "--frames", "3"), "not allowed with argument --seconds"),
    ((RED, "--seed", "x"), "invalid int value: 'x'"),
    ((RED, "--preset", "self_forcng"), "did you mean 'self_forcing'"),
    ((RED, "--device", "gpu"), "arvid: device 'gpu' cannot be used here"),
    (("",), "arvid: the prompt '' is empty"),
    (("a red zebra",), "does not know the words 'zebra'"),
    ((), "the following arguments are required: PROMPT"),
])  # fmt: skip
def test_mistakes_are_one_message_and_exit_status_2(run: Any, tmp_path: Path, argv: Any, message: str) -> None:
    ran = run("generate", *argv)
    assert (ran.status, ran.out) == (2, "")
    assert message in ran.err
    assert ran.err.rstrip().rpartition("\n")[2].startswith("arvid")
    assert list(tmp_path.iterdir()) == []


def test_missing_and_broken_weights(run: Any, tmp_path: Path) -> None:
    ran = run("generate", RED, model="nowhere")
    assert (ran.status, ran.out) == (2, "")
    assert "nowhere is not a folder of arvid weights" in ran.err
    assert ran.err.count("\n") == 1
    assert run("generate", RED, model="").status == 2


def test_a_path_is_refused_before_weights_are_touched(run: Any) -> None:
    assert "there is no folder" in run("generate", RED, "-o", "none/a.mp4", model="nowhere").err


def test_an_interruption_is_130(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(arvid.Pipeline, "__call__", interrupt)
    ran = run("generate", RED)
    assert (ran.status, ran.out, ran.err) == (130, "", "arvid: interrupted\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("error", "line"), [
    (FloatingPointError("the pixels of chunk 2 are not finite"), "arvid: the pixels of chunk 2 are not finite\n"),
    (RuntimeError("out of memory"), "arvid: out of memory\n"),
    (MemoryError(), "arvid: MemoryError\n"),
    (OSError(28, "No space left on device"), "arvid: [Errno 28] No space left on device\n"),
])  # fmt: skip
def test_failures_on_the_way_are_one_line(
    run: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(arvid.Pipeline, "__call__", fail)
    ran = run("generate", RED)
    assert (ran.status, ran.err) == (2, line)


def test_a_warning_is_one_line_without_source(run: Any) -> None:
    showwarning = warnings.showwarning
    ran = run("generate", RED, "-o", "a.png", "--frames", "1", "--preset", "self_forcing")
    assert ran.status == 0
    (line,) = ran.err.splitlines()
    assert line.startswith("arvid: warning: preset 'self_forcing' belongs to other weights than 'random'; differing: ")
    assert ".py" not in line
    assert warnings.showwarning is showwarning


def test_help_teaches(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run("generate", "--help", model=None)
    assert ran.status == 0
    for word in ("--seconds", "--frames", "--seed", "--size", "--scale", "--model", "--device", "--preset", "--set",
                 "--use", "--then", ".gif"):
        assert word in ran.out
    for command in ("generate", "list", "show"):
        assert command in run("--help", model=None).out
    assert run("--version", model=None).out == f"arvid {arvid.__version__}\n"
    assert run(model=None).status == 2
    assert run("generat", "x", model=None).status == 2


def test_a_prompt_changes_while_it_runs(run: Any, tmp_path: Path) -> None:
    argv = ("generate", RED, "-o", "a.png", "--frames", "6", "--then", "0.4", BLUE)
    assert run(*argv, "--set", "cache.on_change=recommit").status == 0
    changed = (tmp_path / "a.png").read_bytes()
    assert run(*argv, "--set", "cache.on_change=reset").status == 0
    assert (tmp_path / "a.png").read_bytes() != changed
    for bad, message in (("x", "--then: 'x' is not a positive number of seconds"), ("9", "at 9 s, and no chunk")):
        ran = run("generate", RED, "--frames", "6", "--then", bad, BLUE)
        assert (ran.status, ran.out) == (2, "")
        assert message in ran.err


def test_help_says_what_the_bundled_model_knows() -> None:
    assert BUNDLED_GRAMMAR.splitlines()[0] in " ".join(generate.HELP.split())
    prompts = [line.split('"')[1] for line in generate.EXAMPLES.splitlines() if '"' in line]
    assert len(prompts) == 6
    assert set(prompts) <= set(sentences(BUNDLED_GRAMMAR))


def test_python_m_arvid_helps_without_torch() -> None:
    code = "import runpy, sys; sys.argv = ['arvid', '--help']\ntry: runpy.run_module('arvid', run_name='__main__')\n"
    code += "except SystemExit as end: sys.exit(9 if 'torch' in sys.modules else end.code)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("usage: arvid ")
