"""Metrics: the clip and its parts, the registry, ranges, invariances, and what bad input says."""

from __future__ import annotations

import gc
import math
import pickle
import re
import subprocess
import sys
import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from arvid.evaluation import reader
from arvid.evaluation.metrics import METRIC, Clip, Metric, ObjectSpeed, base, default_metrics, measure
from arvid.registry import summary
from arvid.training.clips import Scene, held_out_captions, parse, render

CAPTION = "a red ball bounces around on a navy background"
SCENE = Scene(parse(CAPTION), radius=11.0, texture="stripes down", marking="band", landmark="top left")
PAGE = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
OPENING = {"texture_kept", "landmark_kept", "marking_kept", "size_kept",
           "subject_consistency", "background_consistency"}  # fmt: skip
"""Metrics that hold a part against the opening of the whole."""


def noise(frames: int, height: int = 20, width: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def everything(clip: Clip) -> dict[str, float]:
    return measure(clip, [0, len(clip)], default_metrics([clip.prompt or ""]))[0]


# Clips and their parts


@pytest.mark.parametrize(("frames", "error", "says"), [
    ([[1]], TypeError, "uint8 array in 0..255, got list"),
    (noise(2) / 255, TypeError, "got float64"),
    (noise(2)[0], ValueError, r"shape \(20, 24, 3\): give \[T, H, W, 3\]"),
    (noise(2)[..., :1], ValueError, r"shape \(2, 20, 24, 1\)"),
    (noise(2)[:0], ValueError, r"shape \(0, 20, 24, 3\).*T at least 1"),
    (noise(2, 8), ValueError, "H and W at least 16"),
])  # fmt: skip
def test_what_is_no_clip_is_refused(frames, error, says):
    with pytest.raises(error, match=says):
        Clip(frames, 16.0)


@pytest.mark.parametrize("fps", [0, -1.0, math.nan, math.inf])
def test_a_rate_must_be_positive(fps):
    with pytest.raises(ValueError, match=r"fps=.* must be positive"):
        Clip(noise(2), fps)


def test_a_prompt_is_a_string():
    with pytest.raises(TypeError, match="prompt must be a string or None, got \\['a'\\]"):
        Clip(noise(2), 16.0, ["a"])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 6), (3, 3), (4, 2), (5, 6)])
def test_a_part_lies_within_its_clip(start, stop):
    with pytest.raises(ValueError, match=rf"part\({start}, {stop}\) of a clip of 5 frames: give 0 <= start"):
        Clip(noise(5), 16.0).part(start, stop)


def test_a_part_of_a_part():
    frames = noise(20)
    clip = Clip(frames, 16.0, "a prompt")
    part = clip.part(3, 15).part(2, 7)
    assert np.array_equal(part.frames, frames[5:10])
    assert np.array_equal(part.grey, clip.grey[5:10])
    assert (part.start, part.fps, part.prompt, part.whole) == (5, 16.0, "a prompt", clip)


def test_all_parts_share_one_reading(monkeypatch):
    read = []

    def counted(frames):
        read.append(len(frames))
        return reader.read(frames)

    monkeypatch.setattr(base, "read", counted)
    clip = Clip(render(SCENE, range(30)), 16.0, CAPTION)
    measure(clip, [0, 10, 20, 30], default_metrics([CAPTION]))
    assert read == [30]


def test_what_is_shared_is_told_apart_by_its_settings():
    clip = Clip(noise(6), 16.0)

    def numbered(whole: Clip, factor: int) -> np.ndarray:
        return factor * np.arange(len(whole))

    assert clip.part(2, 4).shared(numbered, 1).tolist() == [2, 3]
    assert clip.part(2, 4).shared(numbered, 10).tolist() == [20, 30]


def test_a_clip_goes_with_its_last_reference():
    gc.disable()
    try:
        clip = Clip(noise(20), 16.0)
        clip.part(2, 9).part(0, 3).grey.sum()
        gone = weakref.ref(clip)
        del clip
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("scene", [SCENE, replace(SCENE, change_frame=9, new_colour="orange")])
def test_a_part_is_measured_as_if_it_were_alone_but_for_the_opening(scene):
    frames = render(scene, range(72))
    metrics = default_metrics([CAPTION])
    _, curves = measure(Clip(frames, 16.0, CAPTION), [0, 24, 72], metrics)
    for index, piece in enumerate((frames[:24], frames[24:])):
        alone = everything(Clip(piece.copy(), 16.0, CAPTION))
        for name in metrics.keys() - (OPENING if index else set()):
            np.testing.assert_allclose(curves[name][index], alone[name], rtol=1e-6, atol=1e-6, err_msg=name)


def test_large_frames_in_pieces_are_as_at_once(monkeypatch):
    frames = np.repeat(np.repeat(render(SCENE, range(12)), 2, axis=1), 3, axis=2)
    at_once = everything(Clip(frames, 16.0, CAPTION))
    monkeypatch.setattr(base, "PIECE", 5 * frames[0].size)
    in_pieces = everything(Clip(frames, 16.0, CAPTION))
    assert at_once.keys() == in_pieces.keys()
    for name in at_once:
        np.testing.assert_allclose(in_pieces[name], at_once[name], rtol=1e-5, err_msg=name)


def test_shrinking_averages_what_a_pixel_covers():
    frames = noise(3, 32, 48).astype(np.float64)
    blocks = frames.reshape(3, 8, 4, 12, 4, 3).mean((2, 4))
    np.testing.assert_allclose(base.shrunk(frames, 8, 12), blocks, rtol=1e-5)
    np.testing.assert_allclose(base.shrunk(frames, 7, 9).mean((1, 2)), frames.mean((1, 2)), rtol=1e-5)


def test_large_frames_are_shrunk_to_64_pixels():
    assert Clip(noise(2, 128, 256), 16.0).small.shape == (2, 64, 128, 3)
    small = noise(2, 40, 64)
    assert np.array_equal(Clip(small, 16.0).small, small)


# measure


@pytest.mark.parametrize("edges", [[], [0], [0, 5, 5], [0, 9, 4], [-1, 5], [0, 11]])
def test_edges_rise_within_the_clip(edges):
    with pytest.raises(ValueError, match=r"edges=.* of a clip of 10 frames: give at least two, rising, within 0 .. 10"):
        measure(Clip(noise(10), 16.0), edges, {})


@dataclass(frozen=True)
class Given(Metric):
    """A given value."""

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 2.0
    better: ClassVar[str] = ""
    blind: ClassVar[str] = "Everything."
    value: float = 0.0

    def measure(self, clip: Clip) -> float:
        return self.value * clip.start


def test_a_metric_keeps_its_range():
    for metric, high in ((Given(-0.1), "2"), (Given(1.1), "2"), (Huge(), "inf")):
        with pytest.raises(ValueError, match=rf"metric 'mine' gave .* for frames 2 .. 4, and its range is 0 .. {high}"):
            measure(Clip(noise(5), 16.0), [0, 2, 5], {"mine": metric})


@dataclass(frozen=True)
class Huge(Given):
    """Infinite; no range allows that."""

    high: ClassVar[float] = math.inf

    def measure(self, clip: Clip) -> float:
        return math.inf if clip.start else 1.0


def test_measure_gives_whole_and_curves():
    whole, curves = measure(Clip(noise(5), 16.0), [0, 2, 5], {"a": Given(0.5), "b": Given(math.nan)})
    assert (whole["a"], curves["a"]) == (0.0, [0.0, 1.0])
    assert math.isnan(whole["b"]) and len(curves["b"]) == 2


# The registry


def test_metrics_are_complete_and_travel_to_other_processes():
    for name in METRIC.names():
        metric = METRIC.build(name)
        assert metric.low < metric.high and metric.better in ("higher", "lower", ""), name
        assert metric.blind.endswith(".") and summary(type(metric)).endswith((".", ".)")), name
        assert pickle.loads(pickle.dumps(metric)) == metric


def test_caption_metrics_are_for_captions():
    of_grammar = set(default_metrics(held_out_captions()))
    of_any = set(default_metrics([CAPTION, "a cat walks through the rain"]))
    assert of_any < of_grammar
    assert of_grammar - of_any == {
        "background", "colour", "shape", "motion", "presence", "good", "object_speed", "texture_kept", "landmark_kept",
        "marking_kept", "size_kept",
    }  # fmt: skip
    assert not any(name.startswith("vbench_") for name in of_grammar)


def test_a_metric_with_a_setting_that_must_be_given_is_not_a_default(monkeypatch):
    monkeypatch.setattr(METRIC, "_classes", dict(METRIC._classes))

    @METRIC.register("needs_a_value")
    @dataclass(frozen=True)
    class Needs(Given):
        """A value that must be given."""

        more: int = field(kw_only=True)

    assert "needs_a_value" not in default_metrics([CAPTION])
    assert METRIC.build({"name": "needs_a_value", "more": 2}) == Needs(more=2)


def test_prompts_are_a_list():
    with pytest.raises(TypeError, match="give \\['a cat'\\]"):
        default_metrics("a cat")
    with pytest.raises(ValueError, match="give at least one"):
        default_metrics([])


def test_a_caption_metric_asks_for_a_caption():
    clip = Clip(render(SCENE, range(3)), 16.0)
    with pytest.raises(ValueError, match="no prompt"):
        METRIC.build("colour").measure(clip)
    with pytest.raises(ValueError, match="cat"):
        METRIC.build("colour").measure(Clip(clip.frames, 16.0, "a cat"))


def test_without_opencv_there_is_no_flow(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    metrics = default_metrics([CAPTION])
    assert not {"flow", "dynamic_degree"} & metrics.keys()
    assert "flicker" in metrics
    for name in ("flow", "dynamic_degree"):
        with pytest.raises(RuntimeError, match=re.escape("pip install 'arvid[evaluation]'")):
            METRIC.build(name).measure(Clip(noise(5), 16.0))


def test_importing_metrics_loads_neither_opencv_nor_torch():
    program = "import sys, arvid.evaluation.metrics; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "arvid.evaluation.metrics.flow" in loaded
    assert not {"cv2", "torch", "vbench"} & set(loaded)


@pytest.mark.parametrize(("name", "settings"), [
    ("freeze", {"seconds": 0}), ("freeze", {"least": -0.1}), ("loop", {"seconds": -1.0}), ("loop", {"left": 0.0}),
    ("object_speed", {"fastest": 0.0}), ("object_speed", {"pairs": 0}), ("dynamic_degree", {"least": 0.0}),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(name, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        METRIC.build({"name": name, **settings})


# Ranges and invariances

videos = arrays(np.uint8, st.tuples(st.integers(1, 40), st.just(1), st.just(1), st.just(3))).flatmap(
    lambda levels: st.sampled_from([0, 40, 255]).map(
        lambda spread: (levels + noise(len(levels)).astype(int) * spread // 255).clip(0, 255).astype(np.uint8)
    )
)


@settings(max_examples=40)
@given(videos, st.sampled_from([3.0, 16.0, 24.0]))
def test_every_metric_keeps_its_range_on_any_video(frames, fps):
    clip = Clip(frames, fps, CAPTION)
    edges = sorted({0, len(clip) // 3, len(clip)})
    whole, curves = measure(clip, edges, default_metrics([CAPTION]))  # which raises for one that does not
    assert len(whole) == len(curves) == 21
    assert all(len(curve) == len(edges) - 1 for curve in curves.values())


@pytest.mark.parametrize("name", ["flicker", "contrast", "saturation", "sharpness", "presence", "good", "object_speed"])
@pytest.mark.parametrize("motion", ["bounces around", "grows and shrinks"])
def test_backwards_is_the_same(name, motion):
    frames = render(replace(SCENE, said=replace(SCENE.said, motion=motion)), range(30))
    forwards, backwards = (METRIC.build(name).measure(Clip(video, 16.0, CAPTION)) for video in (frames, frames[::-1]))
    assert forwards == pytest.approx(backwards, rel=1e-6)
    assert forwards > 0


def test_speed_is_in_seconds():
    frames = render(SCENE, range(30))
    at_16, at_8 = (ObjectSpeed().measure(Clip(frames, fps, CAPTION)) for fps in (16.0, 8.0))
    assert at_16 == pytest.approx(2 * at_8)


def test_brightness_and_contrast_do_not_change_sharpness():
    frames = render(SCENE, range(5)) // 2
    sharp = METRIC.build("sharpness").measure(Clip(frames, 16.0))
    assert METRIC.build("sharpness").measure(Clip(frames + np.uint8(90), 16.0)) == pytest.approx(sharp, rel=0.02)
    assert METRIC.build("sharpness").measure(Clip(frames * np.uint8(2), 16.0)) == pytest.approx(sharp, rel=0.02)


def test_brightness_does_not_change_flicker_contrast_and_flow():
    frames = render(SCENE, range(20)) // 2
    for name in ("flicker", "contrast", "flow", "saturation"):
        dark, bright = (METRIC.build(name).measure(Clip(video, 16.0)) for video in (frames, frames + np.uint8(90)))
        assert bright == pytest.approx(dark, rel=0.01), name


# The page


def test_the_table_of_the_page_is_the_registry():
    rows = re.findall(r"^\| `(\w+)` \| .*? \| (\S+) \.\. (\S+?)(?: (\S+))? \| (\S*) \|", PAGE, re.MULTILINE)
    listed = {name: (float(low), float(high), unit, better.strip("–")) for name, low, high, unit, better in rows}
    classes = {name: METRIC.get(name) for name in METRIC.names() if METRIC.get(name).__module__.startswith("arvid.")}
    assert listed == {name: (cls.low, cls.high, cls.unit, cls.better) for name, cls in classes.items()}


def test_the_metric_of_the_page_runs(monkeypatch):
    monkeypatch.setattr(METRIC, "_classes", dict(METRIC._classes))
    (code,) = re.findall(r"## Your own\n\n```python\n(.*?)```", PAGE, re.DOTALL)
    scope = {"__name__": __name__, "frames": render(SCENE, range(81))}
    exec(compile(code, "metrics.md", "exec"), scope)
    red = METRIC.build("redness").measure(Clip(scope["frames"], 16.0))
    pixels = scope["frames"].astype(float)
    assert red == pytest.approx((pixels[..., 0] / pixels.sum(-1).clip(1)).mean(), abs=1e-6)
    assert scope["curves"]["redness"][0] == pytest.approx(red, abs=0.05)
