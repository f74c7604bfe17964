"""`arvid compare`: paired videos, a folder that survives anything, errors before the work; on random weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from command import Ran, ran
from random_model import BLUE, CARD, RED

import arvid
from arvid import Pipeline, PipelineConfig
from arvid.evaluation import workers
from arvid.evaluation.metrics import METRIC, Clip, measure
from arvid.evaluation.results import from_json
from arvid.evaluation.store import Folder, digest
from arvid.evaluation.task import noise_seed
from arvid.video import Video

GREEN = "a green triangle grows and shrinks on a beige background"
ARGUMENTS = ("own=", "full=full.toml", "--prompts", "prompts.txt", "--frames", "5", "--batch", "2", "--quiet",
             "--metrics", "flicker,presence", "-o", "out")  # fmt: skip


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """One test draws the report, which takes as long as the videos do."""
    if "videos_are_those" not in request.node.name:
        monkeypatch.setattr("arvid.evaluation.html.write", lambda *_: None)


@pytest.fixture
def run(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text(f"# of the bench\n{RED}\n\n{BLUE}\n  {GREEN}\n")
    Path("full.toml").write_text('cache = "full"\n')

    def call(*argv: str) -> Ran:
        return ran(capsys, "compare", *(argv or ARGUMENTS), "--model", str(weights))

    return call


def result(folder: str = "out") -> dict[str, Any]:
    """report.json without what differs between runs."""
    plain = json.loads(Path(folder, "report.json").read_text())
    del plain["command"], plain["facts"]["date"]
    return plain


def rows(folder: str = "out") -> dict[str, tuple[bytes, int]]:
    """Content and inode of each row file: a file written again has another inode."""
    return {path.name: (path.read_bytes(), path.stat().st_ino) for path in Path(folder, "rows").iterdir()}


def test_videos_are_those_of_the_pipeline_from_the_same_noise(run: Any, weights: Path) -> None:
    done = run(*ARGUMENTS, "--seeds", "2", "--videos")
    assert done.status == 0, done.err
    found = from_json(Path("out/report.json").read_text())
    assert [method.label for method in found.methods] == ["own", "full"]
    assert found.prompts == [RED, BLUE, GREEN]
    assert (found.frames, found.edges, found.seeds) == (5, [0, 17], [0, 1])
    assert len(found.rows) == len({row.strip for row in found.rows}) == 12
    for method, config in (("own", PipelineConfig()), ("full", PipelineConfig(cache="full"))):
        assert PipelineConfig.from_dict(exact(found, method)) == config.resolve(CARD)
        pipe = Pipeline.load(config, model=weights)
        for batch in ([0, 1], [2]):
            videos = pipe([found.prompts[i] for i in batch], frames=5, seed=[1_000_000 + i for i in batch])
            for i, video in zip(batch, videos, strict=True):
                (row,) = (r for r in found.rows if (r.method, r.prompt, r.seed) == (method, found.prompts[i], 1))
                assert row.noise_seed == noise_seed(i, 1) == 1_000_000 + i
                strip = iio.imread(Path("out", row.strip)).astype(int)
                assert abs(strip - video.sheet(8, 1)).mean() < 1e-3
                metrics = {name: METRIC.build(name) for name in ("flicker", "presence")}
                whole, curves = measure(Clip(video.frames, video.fps, row.prompt), found.edges, metrics)
                # Threads round otherwise: about one pixel value in ten thousand, by one level.
                assert row.whole == pytest.approx(whole, rel=1e-4)
                assert row.segments.keys() == curves.keys()
                assert all(row.segments[name] == pytest.approx(curves[name], rel=1e-4) for name in curves)
                assert row.video
                assert Path("out", row.video).is_file()
    assert {"own", "full", "flicker", "presence"} <= set(done.out.split())
    assert "95 % intervals need at least 4" in done.err
    assert Path("out/report.html").is_file()
    assert Path("out/report.png").is_file()


def exact(found: Any, label: str) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(next(method.toml for method in found.methods if method.label == label))


def test_a_second_run_makes_nothing(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    before, report = rows(), result()
    monkeypatch.setattr(workers, "Maker", lambda *_: pytest.fail("it makes videos again"))
    renamed = ("model=", "all=full.toml", *ARGUMENTS[2:], "--batch", "8")
    assert run(*renamed).status == 0
    assert rows() == before
    assert [method["label"] for method in result()["methods"]] == ["model", "all"]
    assert run().status == 0
    assert result() == report


@pytest.mark.parametrize("at", [1, 2, 4])
def test_an_interrupted_run_goes_on(run: Any, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    finish, done = Folder.finish, []

    def interrupted(self: Folder, key: str, *rest: Any) -> None:
        if len(done) == at:
            raise KeyboardInterrupt
        finish(self, key, *rest)
        done.append(key)

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "finish", interrupted)
        assert run().status == 130
    before = rows()
    assert len(before) == at
    assert not Path("out/report.json").exists()
    assert run().status == 0
    after = rows()
    assert len(after) == 6
    assert {name: after[name] for name in before} == before
    Path("out").rename("first")
    run()
    assert result() == result("first")


def test_a_folder_of_other_things_and_damage(run: Any) -> None:
    run()
    kept, report = rows(), result()
    names = sorted(kept)
    Path("out/rows", names[0]).write_bytes(kept[names[0]][0][:100])
    Path("out/rows", names[1]).write_bytes(kept[names[1]][0].replace(b"0.", b"1.", 1))
    Path("out/strips", names[2].replace(".json", ".png")).unlink()
    shutil.copy(Path("out/rows", names[4]), Path("out/rows", names[3]))
    others = [Path("out/notes.txt"), Path("out/rows/mine.json"), Path("out/strips/mine.png")]
    for path in others:
        path.write_text("mine")
    Path("out/rows/.arvid-0123").write_text("half")
    assert run().status == 0
    assert result() == report
    after = rows()
    assert {name: after[name][0] for name in names} == {name: kept[name][0] for name in names}
    assert [after[name] == kept[name] for name in names] == [False, False, False, False, True, True]
    assert [path.read_text() for path in others] == ["mine"] * 3
    assert not Path("out/rows/.arvid-0123").exists()


MARKED = """\
from dataclasses import dataclass
from typing import ClassVar
from arvid import CACHE
from arvid.cache import Full
from arvid.evaluation.metrics import METRIC, Metric

@CACHE.register("own_cache")
@dataclass(frozen=True)
class Own(Full):
    "Everything."

@METRIC.register("own_metric")
@dataclass(frozen=True)
class OwnMetric(Metric):
    "Frames of the clip, over a thousand."
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0
    better: ClassVar[str] = ""
    blind: ClassVar[str] = "everything"

    def measure(self, clip):
        if clip.prompt and clip.prompt.endswith("FAIL"):
            raise ValueError("no number")
        return len(clip) / 1000
"""


@pytest.fixture
def own() -> Any:
    """What the file registers is gone after the test."""
    with patch.dict(METRIC._classes), patch.dict(arvid.CACHE._classes), patch.dict(sys.modules):
        yield


@pytest.mark.parametrize(("change", "made"), [
    (("--seeds", "2"), 6), (("--frames", "4"), 6), (("--metrics", "flicker"), 6), (("--set", "chunk=1"), 6),
    (("--size", "16x16"), 6), (("--limit", "2"), 0), (("--batch", "1"), 0), (("--seconds", "0.5"), 6),
])  # fmt: skip
def test_what_decides_a_video_and_what_does_not(run: Any, change: tuple[str, ...], made: int) -> None:
    run()
    before = rows()
    given = [*ARGUMENTS, *change]
    if change[0] == "--seconds":
        del given[given.index("--frames") : given.index("--frames") + 2]
    assert run(*given).status == 0
    after = rows()
    assert len(after) == len(before) + made
    assert {name: after[name] for name in before} == before


def test_another_prompt_or_other_weights_or_code_is_another_video(run: Any, weights: Path, own: None) -> None:
    arguments = (*ARGUMENTS[2:], "--set", "cache=own_cache", "--use", "mine.py", "--limit", "1")
    Path("mine.py").write_text(MARKED)
    run(*arguments)
    assert len(rows()) == 1
    Path("mine.py").write_text(f"{MARKED}\n")
    run(*arguments)
    assert len(rows()) == 2
    Path("prompts.txt").write_text(BLUE)
    run(*arguments)
    assert len(rows()) == 3
    shutil.copytree(weights, "other")
    content = (weights / "card.json").read_text()
    assert '"shift": 3.0' in content
    Path("other/card.json").write_text(content.replace('"shift": 3.0', '"shift": 2.0'))
    run(*arguments, "--model", "other")
    assert len(rows()) == 3  # the command's own --model comes last
    from arvid.cli import main

    assert main(["compare", *arguments, "--model", "other"]) == 0
    assert len(rows()) == 4


def test_two_processes_of_a_file_of_strategies(run: Any, own: None) -> None:
    Path("mine.py").write_text(MARKED)
    arguments = ("a=", "own_cache.toml", *ARGUMENTS[2:], "--use", "mine.py", "--metrics", "own_metric,flicker")
    Path("own_cache.toml").write_text('cache = "own_cache"\n')
    done = run(*arguments, "--jobs", "2")
    assert done.status == 0, done.err
    two = result()
    assert {row["whole"]["own_metric"] for row in two["rows"]} == {0.017}
    for path in Path("out").rglob("*.json"):
        path.unlink()
    run(*arguments)
    for one, other in zip(two["rows"], result()["rows"], strict=True):
        assert one["whole"]["flicker"] == pytest.approx(other["whole"]["flicker"], abs=1e-3)


@pytest.mark.slow  # as the test before, on the other way out
def test_a_failure_in_a_process_ends_all(run: Any, own: None) -> None:
    Path("mine.py").write_text(MARKED.replace("FAIL", GREEN))
    failed = run("a=", *ARGUMENTS[2:], "--use", "mine.py", "--metrics", "own_metric", "--jobs", "2")
    assert failed.status == 2
    assert f"arvid: a, prompt {GREEN!r}, seed 0: ValueError: no number (mine.py, line 23)" in failed.err


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(TypeError) as raised:
        raise TypeError("a bug")
    reason = workers._reason(raised.value)
    assert reason.startswith("Traceback (most recent call last)")
    assert reason.endswith("TypeError: a bug")


def test_killed_outright_it_lets_go_and_goes_on(run: Any, weights: Path) -> None:
    command = [sys.executable, "-m", "arvid", "compare", *ARGUMENTS, "--model", str(weights), "--seeds", "100"]
    environment = {**os.environ, "PYTHONPATH": str(Path(arvid.__file__).parents[1])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while len([*Path("out/rows").glob("*.json")]) < 3 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        assert process.poll() is None
        busy = run()
        assert busy.status == 2
        assert f"process {process.pid} is writing to 'out': wait for it, or name another folder" in busy.err
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = rows()
    assert len(before) < 600
    assert run().status == 0
    after = rows()
    assert {name: after[name] for name in before} == before


def test_errors_come_before_anything_is_made(run: Any, tmp_path: Path) -> None:
    Path("file").write_text("")
    Path("words.txt").write_text(f"{RED}\n\na red cube bounces around on a navy background\n")
    Path("none.txt").write_text("# nothing\n\n")
    Path("small.toml").write_text('[cache]\nname = "window"\nwindow = 1\n')
    rest = ARGUMENTS[2:]
    for argv, messages in {
        ("own=", *rest[:-1], "file"): ["cannot write to 'file'", "is a file; name a folder"],
        ("own=", *rest[:-1], "file/x"): ["cannot write to 'file/x'"],
        ("own=", "own=full.toml", *rest): ["two methods are called 'own'"],
        ("own=", "=full.toml", *rest): ["'=full.toml' names no method"],
        ("own=", "flx", "small.toml", "full.toml", *rest): [
            "2 of 4 configurations cannot run:\n  flx: no preset is called 'flx'", "\n  small: ",
            "do not fit each other"],
        ("own=", "full.toml", "again=full.toml", *rest): ["again: it is the configuration of full again"],
        ("own=", *rest, "--prompts", "words.txt"): ["words.txt, line 3: this model does not know the words 'cube'"],
        ("own=", *rest, "--prompts", "none.txt"): ["none.txt has no prompts"],
        ("own=", *rest, "--prompts", "missing.txt"): ["there is no file missing.txt"],
        ("own=", *rest, "--metrics", "flikker"): ["did you mean 'flicker'"],
        ("own=", *rest, "--size", "15x16"): ["width=15 must be a positive multiple of"],
        ("own=", *rest, "--device", "cuda:99"): ["device 'cuda:99' cannot be used here"],
        ("own=", *rest, "--jobs", "0"): ["'0' is not a whole number, at least 1"],
        ("own=", *rest, "--seeds", "0"): ["'0' is not a whole number, at least 1"],
        ("own=", "--seconds", "-3"): ["'-3' is not a positive number of seconds"],
    }.items():  # fmt: skip
        done = run(*argv)
        assert (done.status, done.out) == (2, "")
        for message in messages:
            assert message in done.err
    assert not Path("out").exists()


def test_a_folder_that_cannot_be_written(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    done = run()
    assert (done.status, done.out) == (2, "")
    assert "cannot write to 'out': no permission in" in done.err


@pytest.mark.parametrize(("error", "message"), [
    (MemoryError(), "out of memory, lower --batch or --jobs"),
    (torch.OutOfMemoryError("CUDA out of memory"), "out of memory, lower --batch or --jobs: CUDA"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory, lower --batch or --jobs"),
    (FloatingPointError("the latents of chunk 1"), "FloatingPointError: the latents of chunk 1 (test_compare.py, line"),
])  # fmt: skip
def test_a_failure_names_what_failed_and_keeps_what_is_done(
    run: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    stream = Pipeline.stream

    def failing(self: Pipeline, prompt: Any, *rest: Any, **given: Any) -> Any:
        if prompt == [GREEN]:
            raise error
        return stream(self, prompt, *rest, **given)

    monkeypatch.setattr(Pipeline, "stream", failing)
    done = run()
    assert done.status == 2
    assert f"arvid: own, prompt {GREEN!r}, seed 0: {message}" in done.err
    assert len(rows()) == 4


def test_progress_is_one_line_that_ends(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    loud = [part for part in ARGUMENTS if part != "--quiet"]
    lines = run(*loud).err.split("\r")[1:]
    counts = [int(line.partition("/6 videos")[0]) for line in lines]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 6)
    assert lines[-1].rstrip().endswith("videos/min, 0:00 left")
    assert lines[-1].count("\n") == 1


def test_checksums_see_every_value() -> None:
    plain = {"a": [1, None, 0.5], "b": {"c": "x"}}
    assert digest(plain) == digest(dict(reversed(plain.items())))
    assert len({digest(x) for x in (plain, {**plain, "a": [1, None, 0.25]}, {**plain, "b": {"c": "y"}}, {})}) == 4


def test_rows_are_not_taken_for_those_of_another_key(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with folder.locked():
        folder.finish("a" * 32, Video(np.zeros((3, 16, 16, 3), np.uint8), 8), {"whole": {}}, False)
        assert folder.row("a" * 32) is not None
        for kind, suffix in (("rows", "json"), ("strips", "png")):
            (tmp_path / kind / f"{'a' * 32}.{suffix}").rename(tmp_path / kind / f"{'b' * 32}.{suffix}")
        assert folder.row("b" * 32) is None
