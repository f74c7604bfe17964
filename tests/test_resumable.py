"""Videos that are made in as many runs as it takes: nothing that was done is done again, or lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from command import ran
from random_model import BLUE, RED

from arvid import Pipeline, resumable

ASK: dict[str, Any] = {"prompt": [(0, RED), (1, BLUE)], "frames": 8, "seed": 3}


def stopping(after: int) -> Any:
    """A report of progress that is interrupted as the user would do it, before piece number `after` is out."""
    calls = iter(range(1, 100))

    def progress(at: Any) -> None:
        if next(calls) == after:
            raise KeyboardInterrupt

    return progress


@pytest.fixture(scope="module")
def whole(pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The frames of one run, as they are read from a file."""
    return iio.imread(pipe(**ASK, into=tmp_path_factory.mktemp("whole") / "a.mp4"))


def close_to(path: Path, whole: np.ndarray) -> bool:
    """Whether a file has these frames, up to what H.264 loses, which differs where parts begin."""
    frames = iio.imread(path)
    return frames.shape == whole.shape and np.abs(frames.astype(int) - whole).mean() < 3


@pytest.mark.parametrize("every", [0.0, 1e9])
def test_in_one_run_it_is_the_video(pipe: Pipeline, tmp_path: Path, whole: np.ndarray, every: float) -> None:
    assert resumable(pipe, tmp_path / "a.mp4", **ASK, every=every) == (29, 8)
    assert close_to(tmp_path / "a.mp4", whole)
    assert iio.immeta(tmp_path / "a.mp4")["fps"] == 8
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_run_that_was_stopped_is_gone_on_with(
    pipe: Pipeline, tmp_path: Path, whole: np.ndarray, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, said = tmp_path / "a.mp4", []
    with pytest.raises(KeyboardInterrupt):
        resumable(pipe, path, **ASK, every=0, progress=stopping(stop))
    parts = sorted((tmp_path / "a.mp4.parts").glob("??????.mp4"))
    assert len(parts) == stop - 1
    assert not path.exists()
    before = [file.stat().st_mtime_ns for file in parts]
    with pytest.raises(KeyboardInterrupt):  # and again, before anything new is done
        resumable(pipe, path, **ASK, every=0, progress=stopping(1))
    assert [file.stat().st_mtime_ns for file in parts] == before
    resumable(pipe, path, **ASK, every=0, note=said.append)
    assert len(said) == (stop > 1)
    assert all(f"from {2 * (stop - 1)} of 8 latent frames" in text for text in said)
    assert close_to(path, whole)


def test_a_live_prompt_goes_on(pipe: Pipeline, tmp_path: Path, whole: np.ndarray) -> None:
    ask = {**ASK, "prompt": lambda seconds: RED if seconds < 1 else BLUE}
    with pytest.raises(KeyboardInterrupt):
        resumable(pipe, tmp_path / "a.mp4", **ask, every=0, progress=stopping(3))
    resumable(pipe, tmp_path / "a.mp4", **ask, every=0)
    assert close_to(tmp_path / "a.mp4", whole)


def test_what_a_killed_process_left_behind_is_no_matter(pipe: Pipeline, tmp_path: Path, whole: np.ndarray) -> None:
    """A part without its state, the beginning of one, and a state half written."""
    with pytest.raises(KeyboardInterrupt):
        resumable(pipe, tmp_path / "a.mp4", **ASK, every=0, progress=stopping(3))
    folder = tmp_path / "a.mp4.parts"
    for name in ("000002.mp4", "000002.part.mp4", "000007.mp4", ".arvid-1234", "joined.mp4"):
        (folder / name).write_bytes(b"half")
    resumable(pipe, tmp_path / "a.mp4", **ASK, every=0)
    assert close_to(tmp_path / "a.mp4", whole)


@pytest.mark.parametrize(("name", "other"), [
    ("prompt", {"prompt": RED}), ("prompt", {"prompt": [(0, RED), (2, BLUE)]}), ("length", {"frames": 10}),
    ("seed", {"seed": 4}), ("scale", {"scale": 2}), ("size", {"height": 32}), ("on_change", {"on_change": "reset"}),
    ("length, start", {"start": np.zeros((16, 32, 3), np.uint8)}),
], ids=str)  # fmt: skip
def test_another_request_is_refused_and_nothing_is_lost(
    pipe: Pipeline, tmp_path: Path, name: str, other: dict[str, Any]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        resumable(pipe, tmp_path / "a.mp4", **ASK, every=0, progress=stopping(2))
    before = {file.name: file.read_bytes() for file in (tmp_path / "a.mp4.parts").iterdir()}
    with pytest.raises(ValueError, match=rf"a\.mp4\.parts' is of another request, which differs in {name}: .* delete"):
        resumable(pipe, tmp_path / "a.mp4", **{**ASK, **other}, every=0)
    assert {file.name: file.read_bytes() for file in (tmp_path / "a.mp4.parts").iterdir()} == before


def test_a_start_of_other_pixels_is_another_request(pipe: Pipeline, tmp_path: Path) -> None:
    black, white = (np.full((16, 32, 3), value, np.uint8) for value in (0, 255))
    with pytest.raises(KeyboardInterrupt):
        resumable(pipe, tmp_path / "a.mp4", **ASK, start=black, every=0, progress=stopping(2))
    with pytest.raises(ValueError, match="differs in start:"):
        resumable(pipe, tmp_path / "a.mp4", **ASK, start=white, every=0)
    resumable(pipe, tmp_path / "a.mp4", **ASK, start=black, every=0)
    assert iio.imread(tmp_path / "a.mp4")[0].max() < 30


def test_what_cannot_be_made_leaves_nothing(pipe: Pipeline, tmp_path: Path) -> None:
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("a.gif", {}, "only an .mp4 is made in several runs"),
        ("a.mp4", {"scale": 0}, "scale=0"),
        ("a.mp4", {"frames": 0}, "frames=0"),
        ("a.mp4", {"prompt": "a red dragon"}, "dragon"),
        ("a.mp4", {"prompt": [RED, BLUE]}, "one video: give one prompt"),
    )
    for name, more, says in cases:
        with pytest.raises(ValueError, match=says):
            resumable(pipe, tmp_path / name, **{**ASK, **more})
        assert not [*tmp_path.iterdir()]


def test_a_folder_of_something_else_is_left_alone(pipe: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "a.mp4.parts").mkdir()
    (tmp_path / "a.mp4.parts" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"a\.mp4\.parts' holds other files \(thesis\.txt\)"):
        resumable(pipe, tmp_path / "a.mp4", **ASK)
    assert (tmp_path / "a.mp4.parts" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("content", ["{}", "[]", "null", "5", "", '{"prompt": "mine"}'])
def test_a_request_of_something_else_is_left_alone(pipe: Pipeline, tmp_path: Path, content: str) -> None:
    folder = tmp_path / "a.mp4.parts"
    folder.mkdir()
    for name, text in (("request.json", content), ("000000.mp4", "mine"), ("notes", "mine")):
        (folder / name).write_text(text)
    with pytest.raises(ValueError, match=r"another request|damaged, or not of arvid"):
        resumable(pipe, tmp_path / "a.mp4", **ASK, every=0)
    assert (folder / "request.json").read_text() == content
    assert (folder / "000000.mp4").read_text() == (folder / "notes").read_text() == "mine"


def test_files_that_are_not_arvids_stay(pipe: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        resumable(pipe, tmp_path / "a.mp4", **ASK, every=0, progress=stopping(2))
    (tmp_path / "a.mp4.parts" / "notes").write_text("mine")
    resumable(pipe, tmp_path / "a.mp4", **ASK, every=0)
    assert [file.name for file in (tmp_path / "a.mp4.parts").iterdir()] == ["notes"]


def test_a_folder_may_be_a_link_and_no_file(pipe: Pipeline, tmp_path: Path, whole: np.ndarray) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.mp4.parts").symlink_to(tmp_path / "elsewhere")
    resumable(pipe, tmp_path / "a.mp4", **ASK, every=0)
    assert close_to(tmp_path / "a.mp4", whole)
    assert not [*(tmp_path / "elsewhere").iterdir()]
    (tmp_path / "b.mp4.parts").write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"there is such a file"):
        resumable(pipe, tmp_path / "b.mp4", **ASK, every=0)


@pytest.mark.parametrize("name", ["what?.mp4", "a#b %41 'c'.mp4", "A.MP4"])
def test_names_that_mean_something_to_others(pipe: Pipeline, tmp_path: Path, whole: np.ndarray, name: str) -> None:
    (tmp_path / "000000.mp4").write_bytes(b"mine")
    resumable(pipe, tmp_path / name, **ASK, every=0)
    assert close_to(tmp_path / name, whole)


@pytest.mark.parametrize("spoil", [
    lambda part: part.unlink(), lambda part: part.write_bytes(b""),
    lambda part: part.write_bytes(part.read_bytes()[: part.stat().st_size * 2 // 3]),
], ids=["missing", "empty", "cut"])  # fmt: skip
def test_a_damaged_part_is_found_before_more_is_made(pipe: Pipeline, tmp_path: Path, spoil: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        resumable(pipe, tmp_path / "a.mp4", **ASK, every=0, progress=stopping(4))
    folder = tmp_path / "a.mp4.parts"
    spoil(folder / "000001.mp4")
    with pytest.raises(ValueError, match=r"pixel frames in place of 21, so one is missing or damaged .*000001\.mp4 \d"):
        resumable(pipe, tmp_path / "a.mp4", **ASK, every=0, progress=stopping(1))
    assert (folder / "000002.mp4").exists()


def test_a_part_that_does_not_play_does_not_become_the_video(pipe: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        resumable(pipe, tmp_path / "a.mp4", **ASK, every=0, progress=stopping(4))
    part = tmp_path / "a.mp4.parts" / "000001.mp4"
    content = part.read_bytes()
    part.write_bytes(content[: -len(content) // 2] + bytes(len(content) - len(content[: -len(content) // 2])))
    with pytest.raises(ValueError, match=r"pixel frames in place of 29|one is missing or damaged"):
        resumable(pipe, tmp_path / "a.mp4", **ASK, every=0)
    assert not (tmp_path / "a.mp4").exists()
    assert (tmp_path / "a.mp4.parts" / "000000.mp4").exists()


@pytest.mark.parametrize("left", [0, 1, 3])
def test_an_end_that_was_interrupted_is_an_end(
    pipe: Pipeline, tmp_path: Path, whole: np.ndarray, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """Killed while the folder is removed: the video stays whole, and the next run is a new one."""
    unlink, count = Path.unlink, iter(range(100))

    def stopped(file: Path, missing_ok: bool = False) -> None:
        if file.parent.name == "a.mp4.parts" and (tmp_path / "a.mp4").exists() and next(count) >= left:
            raise KeyboardInterrupt
        unlink(file, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", stopped)
        with pytest.raises(KeyboardInterrupt):
            resumable(pipe, tmp_path / "a.mp4", **ASK, every=0)
    assert close_to(tmp_path / "a.mp4", whole)
    resumable(pipe, tmp_path / "a.mp4", **{**ASK, "seed": 5}, every=0)
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
    assert not close_to(tmp_path / "a.mp4", whole)


@pytest.mark.parametrize(("every", "error"), [
    (-1, ValueError), (float("nan"), ValueError), ("x", TypeError), (None, TypeError), (True, TypeError),
])  # fmt: skip
def test_times_that_cannot_be(pipe: Pipeline, tmp_path: Path, every: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="every="):
        resumable(pipe, tmp_path / "a.mp4", **ASK, every=every)
    assert not [*tmp_path.iterdir()]


def test_the_state_before_a_damaged_one_serves(pipe: Pipeline, tmp_path: Path, whole: np.ndarray) -> None:
    with pytest.raises(KeyboardInterrupt):
        resumable(pipe, tmp_path / "a.mp4", **ASK, every=0, progress=stopping(3))
    state = tmp_path / "a.mp4.parts" / "state.2"
    state.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"state\.2' is no state .*; delete this file, to go on from the state before"):
        resumable(pipe, tmp_path / "a.mp4", **ASK, every=0)
    state.unlink()
    resumable(pipe, tmp_path / "a.mp4", **ASK, every=0)
    assert close_to(tmp_path / "a.mp4", whole)


def test_a_killed_process_is_gone_on_with_by_the_command(
    weights: Path, tmp_path: Path, whole: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    code = f"""
import arvid
def progress(at):
    print(at.done, flush=True)
arvid.resumable(arvid.Pipeline.load(model={str(weights)!r}), "a.mp4", {ASK["prompt"]!r}, frames=8, seed=3, every=0,
                progress=progress)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        while process.stdout.readline() not in ("13\n", ""):
            pass
        process.kill()
    assert (tmp_path / "a.mp4.parts").exists()
    again = ("generate", RED, "--then", "1", BLUE, "--frames", "8", "--seed", "3", "--model", str(weights),
             "-o", str(tmp_path / "a.mp4"))  # fmt: skip
    ended = ran(capsys, *again, "--resumable")
    assert (ended.status, ended.out) == (0, f"{tmp_path}/a.mp4: 29 pixel frames, 3.625 s\n")
    assert "going on from" in ended.err
    assert close_to(tmp_path / "a.mp4", whole)
    ended = ran(capsys, *again, "--seed", "4", "-o", str(tmp_path / "a.gif"), "--resumable")
    assert (ended.status, ended.out) == (2, "")
    assert "only an .mp4" in ended.err
