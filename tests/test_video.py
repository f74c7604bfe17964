"""Videos in memory and in files."""

import os
import subprocess
import sys

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arvid.video import Video, check_output

COLORS = np.array([[250, 20, 20], [20, 20, 128], [240, 240, 240], [10, 200, 60]], np.uint8)


def clip(frames=9, height=32, width=48, fps=16.0) -> Video:
    """Each frame one colour on its left half and the next colour on its right half, so frames can be told apart."""
    pixels = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        pixels[t, :, : width // 2] = COLORS[t % 4]
        pixels[t, :, width // 2 :] = COLORS[(t + 1) % 4]
    return Video(pixels, fps)


def test_from_tensor_inverts_the_usual_normalisation_and_clamps():
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    video_CTHW = levels.reshape(1, 4, 8, 8).expand(3, 4, 8, 8)
    video = Video.from_tensor(video_CTHW, fps=16)
    assert np.array_equal(video.frames[..., 1].ravel(), np.arange(256))
    assert np.array_equal(Video.from_tensor(video_CTHW[None].float(), 16).frames, video.frames)
    extremes = torch.tensor([-7.0, 7.0]).reshape(1, 2, 1, 1).expand(3, 2, 4, 4)
    assert [frame.mean() for frame in Video.from_tensor(extremes, 16).frames] == [0, 255]


@pytest.mark.parametrize(("tensor", "message"), [
    (torch.zeros(2, 3, 4, 8, 8), "one Video holds one row, got 2"),
    (torch.zeros(1, 4, 3, 8, 8), r"\[1, 4, 3, 8, 8\]"),
    (torch.zeros(3, 4, 8, 8, dtype=torch.uint8), "float"),
    (torch.full((3, 1, 8, 8), torch.nan), "not finite"),
])
def test_from_tensor_rejects(tensor, message):
    with pytest.raises(ValueError, match=message):
        Video.from_tensor(tensor, fps=16)


def test_video_rejects_what_is_not_a_video():
    with pytest.raises(TypeError, match=r"got float64; tensors .* Video.from_tensor"):
        Video(np.zeros((2, 8, 8, 3)), 16)
    with pytest.raises(ValueError, match=r"\[T, H, W, 3\]"):
        Video(np.zeros((0, 8, 8, 3), np.uint8), 16)
    with pytest.raises(ValueError, match="fps=0"):
        Video(np.zeros((2, 8, 8, 3), np.uint8), 0)


def test_concat_joins_in_order_and_rejects_mixed_formats():
    video = clip()
    joined = Video.concat([Video(video.frames[:4], 16), Video(video.frames[4:], 16)])
    assert np.array_equal(joined.frames, video.frames)
    assert (len(joined), joined.seconds) == (9, 9 / 16)
    with pytest.raises(ValueError, match="32x48 at 8 fps, 32x48 at 16 fps"):
        Video.concat([video, Video(video.frames, 8)])
    with pytest.raises(ValueError, match="got none"):
        Video.concat([])


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4))
def test_sheet_spreads_frames_evenly_from_the_first_to_the_last(frames, columns, rows):
    marks = np.arange(1, frames + 1, dtype=np.uint8)
    sheet = Video(np.broadcast_to(marks[:, None, None, None], (frames, 2, 3, 3)).copy(), 16).sheet(columns, rows)
    shown = [int(mark) for mark in sheet[::2, ::3, 0].ravel() if mark]
    assert len(shown) == min(frames, columns * rows)
    assert shown[0] == 1
    if len(shown) > 1:
        assert shown[-1] == frames
        gaps = np.diff(shown)
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("fps", [16.0, 23.976])
def test_mp4_round_trip_keeps_every_frame_size_rate_and_color(tmp_path, fps):
    video = clip(frames=13, fps=fps)
    path = video.save(tmp_path / "clip.mp4")
    read = iio.imread(path)
    assert read.shape == (13, 256, 384, 3)  # 8 times 32 x 48
    inside = read[:, 64:192].astype(int)
    for t, frame in enumerate(inside):
        for region, color in ((frame[:, 32:160], COLORS[t % 4]), (frame[:, 224:352], COLORS[(t + 1) % 4])):
            assert np.abs(region - color.astype(int)).mean() < 4
    metadata = iio.immeta(path)
    assert metadata["fps"] == pytest.approx(fps, abs=0.02)
    assert metadata["codec"] == "h264"
    assert os.listdir(tmp_path) == ["clip.mp4"]


@pytest.mark.parametrize(("size", "scale", "expected"), [
    ((32, 48), None, (256, 384)), ((60, 100), None, (300, 500)), ((61, 90), None, (366, 540)),
    ((32, 48), 1, (32, 48)), ((256, 300), None, (256, 300)), ((257, 300), None, (514, 600))])
def test_scale_is_a_whole_factor_that_makes_small_videos_visible(tmp_path, size, scale, expected):
    path = clip(2, *size).save(tmp_path / "clip.mp4", scale=scale)
    assert iio.imread(path).shape[1:3] == expected


def test_gif_keeps_frames_and_does_not_drift(tmp_path):
    path = clip(frames=48).save(tmp_path / "clip.GIF", scale=1)
    assert iio.imread(path, extension=".gif", index=None).shape == (48, 32, 48, 3)
    durations = [iio.immeta(path, extension=".gif", index=t)["duration"] for t in range(48)]
    assert sum(durations) == 3000
    assert set(durations) == {60, 70}


def test_png_is_the_sheet_exactly(tmp_path):
    video = clip(frames=10)
    read = iio.imread(video.save(tmp_path / "clip.png", scale=2))
    assert np.array_equal(read[::2, ::2], video.sheet())


@pytest.mark.parametrize("scale", [0, -1, 1.5, True])
def test_save_rejects_scales_that_are_not_whole(tmp_path, scale):
    with pytest.raises(ValueError, match="scale="):
        clip().save(tmp_path / "clip.gif", scale=scale)


def test_save_says_how_to_avoid_odd_sides(tmp_path):
    with pytest.raises(ValueError, match=r"even sides, and scale=1 makes 33x48: use scale=2"):
        clip(height=33).save(tmp_path / "clip.mp4", scale=1)


def test_check_output_rejects_before_anything_is_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    for name, error, message in [("clip.avi", ValueError, r"\.mp4, \.gif, \.png"), ("clip", ValueError, "must end in"),
                                 ("no/clip.mp4", FileNotFoundError, "create it first"),
                                 ("file/clip.mp4", NotADirectoryError, "not a folder"),
                                 ("folder.mp4", IsADirectoryError, "is a folder")]:
        with pytest.raises(error, match=message):
            check_output(tmp_path / name)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="cannot be written"):
        check_output(tmp_path / "clip.mp4")
    monkeypatch.undo()
    assert check_output(str(tmp_path / "clip.MP4")) == tmp_path / "clip.MP4"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.mp4"]


def encoder(tmp_path, monkeypatch, code: str) -> None:
    """Stand in a Python script for ffmpeg."""
    script = tmp_path / "encoder"
    script.write_text(f"#!{sys.executable}\nimport sys\n{code}\n")
    script.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script))


@pytest.mark.parametrize("code", [
    "sys.exit('disk full')",  # before reading any frame: the pipe breaks
    "open(sys.argv[-1], 'wb').write(b'half'); sys.stdin.buffer.read(); sys.exit('disk full')"])
def test_a_failing_encoder_leaves_the_older_file_and_nothing_else(tmp_path, monkeypatch, code):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "clip.mp4").write_bytes(b"older")
    encoder(tmp_path, monkeypatch, code)
    with pytest.raises(RuntimeError, match=r"exit status 1.*disk full"):
        clip(frames=40).save(folder / "clip.mp4")
    assert os.listdir(folder) == ["clip.mp4"]
    assert (folder / "clip.mp4").read_bytes() == b"older"


def test_an_interrupt_stops_the_encoder_and_leaves_nothing(tmp_path, monkeypatch):
    started = []
    popen = subprocess.Popen

    def interrupted(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        started[0].stdin.write = lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        clip().save(tmp_path / "clip.mp4")
    assert started[0].returncode is not None
    assert os.listdir(tmp_path) == []


def test_gif_of_one_frame(tmp_path):
    assert iio.imread(clip(1).save(tmp_path / "one.gif", scale=1), index=None).shape == (1, 32, 48, 3)
