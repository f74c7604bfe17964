"""Prompts that change while a video runs, and pieces that go to a file as they are made."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from command import ran
from random_model import BLUE, CARD, RED

import arvid.pipeline
from arvid import Pipeline, PipelineConfig, Video
from arvid.models.denoiser import CachedDenoiser
from arvid.models.dit import CausalDiT
from arvid.samplers import DiffusionForcing, FewStep, Hierarchical, RollingForcing
from arvid.video import VideoWriter

GREEN = "a green triangle moves in a circle on a beige background"
EVENTS = (None, "recommit", "reset", {"name": "flush", "n": 1}, {"name": "cut", "keep": "none"})


def switch(*prompts: tuple[float, str]) -> Any:
    """A live prompt that does what a schedule says."""
    return lambda seconds: [prompt for begins, prompt in prompts if begins <= seconds][-1]


def with_(pipe: Pipeline, **choices: Any) -> Pipeline:
    config = PipelineConfig(**{"cache": {"name": "window", "window": 8}, **choices})
    return Pipeline.from_parts(pipe.dit, config, pipe.vae, pipe.text, CARD)


# Prompts


@pytest.mark.parametrize("on_change", EVENTS, ids=str)
@pytest.mark.parametrize("sampler", [
    FewStep((1000, 500), 3.0, 0.0), RollingForcing((1000, 500), 3.0, 0.0), Hierarchical((1000, 500), 3.0, 0.0),
    DiffusionForcing("euler", 4, 3.0, 1.0, 0.0, ar_step=2),
], ids=lambda sampler: type(sampler).__name__)  # fmt: skip
def test_a_live_prompt_is_the_schedule_of_its_answers(pipe: Pipeline, sampler: Any, on_change: Any) -> None:
    own, changes = with_(pipe, sampler=sampler), ((0, RED), (1, BLUE), (2, GREEN))
    live = own(switch(*changes), frames=8, on_change=on_change)
    assert np.array_equal(live.frames, own(list(changes), frames=8, on_change=on_change).frames)


def test_a_live_prompt_is_asked_once_a_chunk_before_its_first_pass(pipe: Pipeline) -> None:
    asked: list[float] = []
    stream = pipe.stream(lambda seconds: asked.append(seconds) or RED, frames=7)
    assert asked == [0]
    for piece, _ in enumerate(stream, 1):
        assert asked == [float(chunk) for chunk in range(piece)]


def test_a_live_prompt_that_stays_changes_nothing(pipe: Pipeline) -> None:
    assert np.array_equal(pipe(lambda _: RED, frames=7, on_change="reset").frames, pipe(RED, frames=7).frames)


def test_given_frames_run_under_the_live_prompt_too(pipe: Pipeline) -> None:
    start = torch.randn(1, 3, 4, 2, 4, generator=torch.Generator().manual_seed(0))
    asked: list[float] = []
    list(pipe.stream(lambda seconds: asked.append(seconds) or RED, frames=3, start=start))
    assert asked == [0, 0.5, 1.5, 2.5]
    live = pipe(switch((0, RED), (1, BLUE)), frames=4, start=start, on_change="recommit")
    fixed = pipe([(0, RED), (1, BLUE)], frames=4, start=start, on_change="recommit")
    assert np.array_equal(live.frames, fixed.frames)


@pytest.mark.parametrize("on_change", EVENTS, ids=str)
def test_of_two_changes_in_one_chunk_the_last_wins(pipe: Pipeline, on_change: Any) -> None:
    both = pipe([(0, RED), (1.1, GREEN), (1.9, BLUE)], frames=7, on_change=on_change)
    last = pipe([(0, RED), (2, BLUE)], frames=7, on_change=on_change)
    assert np.array_equal(both.frames, last.frames)
    assert not np.array_equal(last.frames, pipe([(0, RED), (2, GREEN)], frames=7, on_change=on_change).frames)


@pytest.mark.parametrize("on_change", EVENTS, ids=str)
def test_what_is_out_before_a_change_stays(pipe: Pipeline, on_change: Any) -> None:
    plain, changed = (pipe(prompt, frames=8, on_change=on_change) for prompt in (RED, [(0, RED), (2, BLUE)]))
    assert np.array_equal(changed.frames[:13], plain.frames[:13])
    assert not np.array_equal(changed.frames[13:], plain.frames[13:])


@pytest.mark.parametrize(("sampler", "ahead"), [(FewStep((1000, 500), 3.0, 0.0), 0),
                                                (RollingForcing((1000, 500), 3.0, 0.0), 1)])  # fmt: skip
def test_a_live_stream_goes_on(pipe: Pipeline, sampler: Any, ahead: int) -> None:
    """Chunks in flight have been asked for, and are not asked for again."""
    own, live = with_(pipe, sampler=sampler), switch((0, RED), (1, BLUE), (3, GREEN))
    whole = own(live, frames=8, on_change="recommit")
    for stop in (1, 2, 3):
        stream = own.stream(live, frames=8, on_change="recommit")
        head = [next(stream) for _ in range(stop)]
        asked: list[float] = []
        rest = own.resume(stream.state(), lambda seconds: (asked.append(seconds), live(seconds))[1])  # noqa: B023
        assert np.array_equal(Video.concat([*head, *rest]).frames, whole.frames)
        assert asked == [float(chunk) for chunk in range(stop + ahead, 4)]
    with pytest.raises(ValueError, match=r"prompt was a function: give resume\(state, prompt\) one"):
        own.resume(stream.state())


@pytest.mark.parametrize("answer", [None, 3, b"a red ball", [RED]])
def test_a_live_prompt_returns_a_string(pipe: Pipeline, answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = pipe.stream(lambda seconds: RED if seconds < 2 else answer, frames=8)
    assert [len(next(pieces)), len(next(pieces))] == [5, 8]
    with pytest.raises(TypeError, match=r"prompt's function returned .* at 2 s; it returns a string"):
        next(pieces)
    monkeypatch.setattr(CausalDiT, "forward", lambda *_: pytest.fail("a network ran"))
    with pytest.raises(TypeError, match=r"returned .* at 0 s"):
        pipe.stream(lambda _: answer, frames=8)


def test_a_live_prompt_needs_chunks_one_after_the_other(pipe: Pipeline) -> None:
    @dataclass(frozen=True)
    class Whole(FewStep):
        needs_horizon = True

    own = with_(pipe, sampler=Whole((1000,), 3.0, 0.0))
    with pytest.raises(ValueError, match="denoises all of a video before its first chunk is final"):
        own.stream(lambda _: RED, frames=4)
    assert len(own([(0, RED), (1, BLUE)], frames=4)) == 13


def test_texts_are_prepared_when_they_are_needed_and_kept_while_they_are(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, prepared = CausalDiT.prepare_text, 0

    def counted(self: CausalDiT, *given: Any) -> Any:
        nonlocal prepared
        prepared += 1
        return prepare(self, *given)

    class Watched(CachedDenoiser):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    made: list[CachedDenoiser] = []
    monkeypatch.setattr(arvid.pipeline, "CachedDenoiser", Watched)
    monkeypatch.setattr(CausalDiT, "prepare_text", counted)
    counts = [prepared for _ in pipe.stream([(0, RED), (1, BLUE), (3, GREEN)], frames=8)]
    assert counts == [1, 2, 2, 3]
    assert [*made[0]._prepared] == [2]  # the third, which is in force


# Streams


@pytest.mark.parametrize("leave", ["close", "with", "error"])
def test_leaving_a_stream_frees_it(pipe: Pipeline, leave: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = []

    class Watched(CachedDenoiser):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            stores.append(weakref.ref(self.store))

    monkeypatch.setattr(arvid.pipeline, "CachedDenoiser", Watched)
    live = lambda seconds: RED if seconds < 1 else 3  # noqa: E731
    gc.disable()
    try:
        stream = pipe.stream(live if leave == "error" else RED, frames=8)  # pyright: ignore
        next(stream)
        assert stores[0]() is not None
        if leave == "close":
            stream.close()
        elif leave == "with":
            with stream:
                pass
        else:
            with pytest.raises(TypeError):
                next(stream)
        assert stores[0]() is None
        assert list(stream) == []
    finally:
        gc.enable()


# Files


def clip(frames: int, seed: int = 0) -> Video:
    smooth = np.linspace(0, 255, frames * 16 * 32).reshape(frames, 16, 32, 1) + np.array([0, 60 * seed, 120])
    return Video((smooth % 256).astype(np.uint8), 8)


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.png"])
def test_pieces_make_the_file_of_the_whole(tmp_path: Path, name: str) -> None:
    video = clip(25)
    with VideoWriter(tmp_path / name) as writer:
        for start in range(0, 25, 7):
            writer.add(Video(video.frames[start : start + 7], 8))
    assert os.listdir(tmp_path) == [name]
    assert (writer.count, writer.seconds, writer.path) == (25, 25 / 8, tmp_path / name)
    whole = video.save(tmp_path / f"whole{Path(name).suffix}")
    index: Any = {"index": None} if name.endswith("gif") else {}
    one, other = (iio.imread(path, **index).astype(int) for path in (writer.path, whole))
    assert one.shape == other.shape
    assert np.abs(one - other).mean() < 2  # keyframes are at other places
    if name.endswith("mp4"):
        assert writer.path.read_bytes().index(b"moov") < writer.path.read_bytes().index(b"mdat")


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_what_is_done_plays_when_the_rest_fails(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"older")

    def interrupted() -> None:
        with VideoWriter(tmp_path / name, scale=1) as writer:
            writer.add(clip(9))
            writer.add(clip(8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / name).read_bytes() == b"older"
    part = tmp_path / f"a.part{Path(name).suffix}"
    index: Any = {"index": None} if name.endswith("gif") else {}
    assert iio.imread(part, **index).shape == (17, 16, 32, 3)
    assert sorted(os.listdir(tmp_path)) == sorted([name, part.name])


def test_a_part_plays_while_it_is_written(tmp_path: Path) -> None:
    """As it must when everything is killed at once: a copy is what would be left."""
    writer = VideoWriter(tmp_path / "a.mp4", scale=1)
    for _ in range(40):
        writer.add(clip(8))
    for _ in range(200):
        (tmp_path / "copy.mp4").write_bytes(writer.part.read_bytes())
        try:
            seen = len(iio.imread(tmp_path / "copy.mp4"))
        except Exception:  # nothing is written yet
            seen = 0
        if seen >= 200:
            break
        time.sleep(0.1)
    assert 200 <= seen <= 320
    writer.close()
    assert len(iio.imread(writer.part)) == 320


def test_a_writer_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="create it first"):
        VideoWriter(tmp_path / "no" / "a.mp4")
    with pytest.raises(ValueError, match="scale=0"):
        VideoWriter(tmp_path / "a.mp4", scale=0)
    with VideoWriter(tmp_path / "a.gif") as writer:
        writer.add(clip(2))
        with pytest.raises(ValueError, match="16x32 at 8 fps; this piece is Video"):
            writer.add(Video(clip(2).frames, 9))
        with pytest.raises(TypeError, match="a piece is a Video, got list; a batch needs a writer for each row"):
            writer.add([clip(2)])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="is ended: make another writer"):
        writer.add(clip(2))
    with pytest.raises(ValueError, match="no pieces were added"), VideoWriter(tmp_path / "b.mp4"):
        pass
    writer = VideoWriter(tmp_path / "c.mp4")
    writer.close()
    script = tmp_path / "encoder"
    script.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('disk full')\n")
    script.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script))
    with pytest.raises(RuntimeError, match=r"exit status 1.*disk full"), VideoWriter(tmp_path / "d.mp4") as writer:
        writer.add(clip(4000))
    assert sorted(os.listdir(tmp_path)) == ["a.gif", "encoder"]


def test_a_video_goes_into_a_file(pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pipe(RED, frames=7, into=tmp_path / "a.png")
    assert path == tmp_path / "a.png"
    assert np.array_equal(iio.imread(path), iio.imread(pipe(RED, frames=7).save(tmp_path / "b.png")))
    writer = VideoWriter(tmp_path / "c.gif", scale=1)
    assert iio.imread(pipe(RED, frames=3, into=writer), index=None).shape == (9, 16, 32, 3)
    monkeypatch.setattr(CausalDiT, "forward", lambda *_: pytest.fail("a network ran"))
    batch: Any = [RED, BLUE]
    with pytest.raises(ValueError, match="file of one video, and this is a batch of 2"):
        pipe(batch, frames=3, into=tmp_path / "d.mp4")
    with pytest.raises(ValueError, match="must end in"):
        pipe(RED, frames=3, into=tmp_path / "d.avi")
    with pytest.raises(ValueError, match=r"c.gif' is ended: make another writer"):
        pipe(RED, frames=3, into=writer)
    with pytest.raises(TypeError, match="cannot save 5: give the path of a file"):
        pipe(RED, frames=3, into=5)  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_a_writer_may_be_finished_twice(pipe: Pipeline, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4") as writer:
        assert pipe(RED, frames=3, into=writer) == writer.path
    assert writer.finish() == writer.path
    writer.close()
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert len(iio.imread(writer.path)) == 9


def test_a_part_that_is_not_there_is_not_told_of(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Video, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    done = ran(capsys, "generate", RED, "--model", str(weights), "--frames", "2", "-o", "a.png")
    assert (done.status, done.out, done.err) == (2, "", "arvid: disk full\n")


# The command


def test_the_command_begins_with_a_file(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    clip(5).save("start.gif", scale=1)
    argv = ("generate", RED, "--model", str(weights), "--frames", "2", "--scale", "1", "-o", "a.gif", "--start")
    assert ran(capsys, *argv, "start.gif").out == "a.gif: 13 pixel frames, 1.625 s\n"
    found, first = (iio.imread(name, index=None) for name in ("a.gif", "start.gif"))
    assert np.abs(found[:5].astype(int) - first).mean() < 6  # a gif has 256 colours
    assert "there is no file 'none.png'" in ran(capsys, *argv, "none.png").err


def test_what_the_command_has_made_stays_when_it_fails(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    forward, passes = CausalDiT.forward, 0

    def failing(self: CausalDiT, *given: Any) -> torch.Tensor:
        nonlocal passes
        passes += 1
        if passes == 8:  # in the third chunk: two steps and a commit each
            raise KeyboardInterrupt
        return forward(self, *given)

    monkeypatch.setattr(CausalDiT, "forward", failing)
    done = ran(capsys, "generate", RED, "--model", str(weights), "--frames", "8", "--scale", "1")
    assert (done.status, done.out) == (130, "")
    assert done.err == "arvid: arvid.part.mp4 has the first 1.625 s\narvid: interrupted\n"
    assert len(iio.imread(tmp_path / "arvid.part.mp4")) == 13
    assert os.listdir(tmp_path) == ["arvid.part.mp4"]


def test_a_killed_command_leaves_what_it_has_made(weights: Path, tmp_path: Path) -> None:
    code = f"""
        import sys, time, arvid
        pipe = arvid.Pipeline.load(model={str(weights)!r})
        def slow(at):
            if at.done == 13:
                print("two pieces", flush=True)
                time.sleep(60)
        pipe({RED!r}, frames=8, into="a.mp4", progress=slow)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, stdout=subprocess.PIPE,
                               start_new_session=True)  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == b"two pieces\n"
    os.killpg(process.pid, signal.SIGKILL)  # its group, as a key does: the encoder is in none that we are in
    process.wait()
    process.stdout.close()
    for _ in range(100):  # the encoder ends the file once its input ends
        try:
            seen = len(iio.imread(tmp_path / "a.part.mp4"))
        except Exception:
            seen = 0
        if seen >= 5:
            break
        time.sleep(0.1)
    assert seen == 5  # the second piece was about to be written


# The page


def test_the_examples_of_the_page_run(
    pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "requests.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 6
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Pipeline, "load", lambda: pipe)
    iio.imwrite("first.png", clip(1).frames[0])
    clip(9).save("clip.mp4", scale=1)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "requests.md", "exec"), names)
    assert np.array_equal(names["video"].frames[:9], iio.imread("clip.mp4"))
    assert len(names["longer"]) == 21 + 24
    assert capsys.readouterr().out == "5 pixel frames\n" + 3 * "8 pixel frames\n"
    assert np.array_equal(names["whole"].frames, pipe(names["prompt"], seconds=4).frames)
    assert len(iio.imread("long.mp4")) == len(iio.imread("hours.mp4")) == 29
