"""Metrics of videos made so that the answer is known."""

from __future__ import annotations

import colorsys
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arvid.evaluation.metrics import METRIC, Clip, ObjectSpeed, default_metrics, measure
from arvid.evaluation.metrics.consistency import features
from arvid.evaluation.reader import read, score
from arvid.training.clips import MOTIONS, Scene, parse, render, scene_for, trajectory

FPS = 16.0
CAPTION = "a red ball bounces around on a navy background"
SCENE = Scene(parse(CAPTION), radius=11.0)


def value(name: str, frames: np.ndarray, fps: float = FPS, **settings) -> float:
    return METRIC.build({"name": name, **settings}).measure(Clip(frames, fps, CAPTION))


def grey(luma_THW: np.ndarray) -> np.ndarray:
    return np.repeat(luma_THW[..., None], 3, axis=-1).round().clip(0, 255).astype(np.uint8)


def halves(**changes) -> Clip:
    """Six seconds of the scene, changed from the middle on."""
    said = {name: changes.pop(name) for name in ("colour", "shape", "background") if name in changes}
    changed = replace(SCENE, said=replace(SCENE.said, **said), **changes)
    return Clip(np.concatenate([render(SCENE, range(48)), render(changed, range(48, 96))]), FPS, CAPTION)


def segments(name: str, clip: Clip) -> list[float]:
    return measure(clip, [0, len(clip) // 2, len(clip)], {name: METRIC.build(name)})[1][name]


def textures(frames: int, pixels: float, size: int = 64) -> np.ndarray:
    """A smooth texture that moves right by so many pixels a frame."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    shift = pixels / size * np.arange(frames)[:, None, None]
    luma_THW = np.full((frames, size, size), 128.0)
    for k in range(1, 16):
        luma_THW += 20 * math.sin(5 * k) * np.cos(2 * np.pi * ((x - shift) * (k % 4 + 1) + y * (k // 4 + 1)) + k)
    return grey(luma_THW)


# Captions and unnamed traits


@pytest.mark.parametrize("said", [CAPTION, "a green square moves in a circle on a black background"])
def test_caption_metrics_are_the_readers_score(said):
    frames = render(SCENE, range(40))
    expected = score(read(frames), said)
    for name in ("background", "colour", "shape", "motion", "presence", "good"):
        assert METRIC.build(name).measure(Clip(frames, FPS, said)) == getattr(expected, name), name


def test_too_few_frames_have_no_motion():
    assert math.isnan(value("motion", render(SCENE, range(7))))
    assert not math.isnan(value("motion", render(SCENE, range(8))))


@pytest.mark.parametrize(("name", "change", "after"), [
    ("colour", {"colour": "orange"}, 0), ("background", {"background": "brown"}, 0), ("presence", {"radius": 1e-3}, 0),
    ("good", {"colour": "cyan"}, 0), ("shape", {"shape": "square"}, 0),
    ("texture_kept", {"texture": "stripes down"}, 0), ("landmark_kept", {"landmark": "top right"}, 0),
    ("marking_kept", {"marking": "band"}, 0), ("size_kept", {"radius": 14.0}, 11 / 14),
])  # fmt: skip
def test_a_change_shows_in_its_segment(name, change, after):
    assert segments(name, halves(**change)) == pytest.approx([1, after], abs=0.05)


@pytest.mark.parametrize("trait", [{"texture": "gradient up"}, {"landmark": "top left"}, {"marking": "dot"}])
def test_a_part_is_held_against_the_opening_of_the_whole(trait):
    (name,) = trait
    late = halves(**trait).frames[48:]
    assert value(f"{name}_kept", late) == pytest.approx(1, abs=0.05)
    assert segments(f"{name}_kept", halves(**trait))[1] < 0.3


def test_the_opening_itself_is_not_counted_as_kept():
    assert math.isnan(value("texture_kept", render(SCENE, range(9))))
    one_later = np.concatenate([render(SCENE, range(9)), render(replace(SCENE, texture="stripes across"), [9])])
    assert value("texture_kept", one_later) == pytest.approx(0, abs=0.05)


def test_a_vanished_object_has_nothing_to_keep_or_to_move():
    vanished = halves(radius=1e-3)
    for name in ("marking_kept", "size_kept", "object_speed"):
        before, after = segments(name, vanished)
        assert before > 0.1 and math.isnan(after), name


# Motion


@pytest.mark.parametrize("motion", MOTIONS)
def test_object_speed_is_that_of_the_trajectory(motion):
    scene = replace(SCENE, said=replace(SCENE.said, motion=motion))
    track = trajectory(scene, range(81))[:, :2] / 64
    expected = np.linalg.norm(np.diff(track, axis=0), axis=-1).mean() * FPS
    assert value("object_speed", render(scene, range(81))) == pytest.approx(expected, rel=0.03, abs=0.02)


def test_jumps_and_broken_objects_are_not_speed():
    frames = render(SCENE, range(64))
    true = value("object_speed", frames)
    jumping = render(SCENE, [t + 24 * (t // 8 % 2) for t in range(64)])  # half a period, every half second
    assert value("object_speed", jumping) == pytest.approx(true, rel=0.1)
    assert value("object_speed", jumping, fastest=100.0) > true * 1.3
    broken = frames.copy()
    broken[::3, :, :32] = broken[0, 0, 0]  # in every third frame, the left half is not drawn
    assert value("object_speed", broken) < true * 1.1
    assert value("flow", broken) > value("flow", frames) * 1.2
    assert math.isnan(value("object_speed", broken, pairs=60))


@pytest.mark.parametrize("pixels", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("fps", [8.0, 16.0, 24.0])
def test_flow_is_the_speed_of_a_moving_texture(pixels, fps):
    assert value("flow", textures(13, pixels), fps) == pytest.approx(pixels * fps / 64, rel=0.1)


@pytest.mark.parametrize("fps", [4.0, 8.0, 16.0])
def test_dynamic_degree_has_vbenchs_threshold(fps):
    """6 of 256 pixels of the shorter side between frames 1/8 s apart; twice that at 4 frames a second."""
    frames_between = max(1, round(fps / 8))
    limit = 64 * 6 / 256 * max(1, 8 / fps) / frames_between
    assert value("dynamic_degree", textures(17, limit * 1.25), fps) == 1
    assert value("dynamic_degree", textures(17, limit * 0.75), fps) == 0


def test_dynamic_degree_asks_for_a_quarter_of_the_pairs():
    still, moving = np.repeat(textures(1, 0), 24, axis=0), textures(9, 3.0)
    frames = np.concatenate([still, moving[1:]])  # 32 frames, 8 pairs that move
    assert value("dynamic_degree", frames, 8.0) == 1
    assert value("dynamic_degree", np.concatenate([still[:8], frames]), 8.0) == 0


def test_a_piece_without_a_pair_has_no_flow():
    for name in ("flow", "dynamic_degree"):
        assert math.isnan(value(name, textures(2, 1.0)))
        assert value(name, textures(3, 0.0)) == pytest.approx(0, abs=1e-3)


# Flicker and consistency


@pytest.mark.parametrize("amplitude", [1, 10, 50])
def test_flicker_of_known_amplitude(amplitude):
    frames = np.full((11, 20, 20, 3), 100, np.uint8)
    frames[::2] += np.uint8(amplitude)
    assert value("flicker", frames) == pytest.approx(1 - amplitude / 255)
    frames[:, :10] = 100  # half of the picture
    assert value("flicker", frames) == pytest.approx(1 - amplitude / 255 / 2)


def test_flicker_against_its_formula():
    frames = np.random.default_rng(0).integers(0, 256, (7, 20, 24, 3), dtype=np.uint8)
    expected = 1 - abs(np.diff(frames.astype(int), axis=0)).mean() / 255
    assert value("flicker", frames) == pytest.approx(expected)
    assert math.isnan(value("flicker", frames[:1]))


@pytest.mark.parametrize("region", [0, 1])
def test_consistency_against_its_formula(region):
    """Frame by frame, with the cosine written out."""
    name = ("subject_consistency", "background_consistency")[region]
    clip = halves(colour="cyan", background="brown")

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return max(0.0, float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))

    f = features(clip)[:, region]
    for first, stop in ((0, 96), (0, 50), (40, 96)):
        expected = np.mean([(cosine(f[t], f[0]) + cosine(f[t], f[t - 1])) / 2 for t in range(first + 1, stop)])
        assert METRIC.build(name).measure(clip.part(first, stop)) == pytest.approx(expected, rel=1e-5)


def test_flat_backgrounds_are_as_alike_as_their_smoothed_colours():
    """Two Gaussians of width 24 at a and b overlap by exp(-(a - b)^2 / (8 24^2)); flat frames have the same edges."""
    for a, b in ((90, 100), (90, 130), (90, 170)):
        frames = grey(np.array([a, b])[:, None, None] * np.ones((2, 20, 20)))
        overlap = math.exp(-((a - b) ** 2) / (8 * 24**2))
        assert value("background_consistency", frames) == pytest.approx((1 + overlap) / 2, abs=2e-3)


def test_edges_of_another_direction_are_inconsistent():
    stripes = 128 + 25 * np.sign(np.sin(np.arange(48) * np.pi / 4 + 0.1)) * np.ones((48, 1))  # none of it is subject
    across, down, turned = grey(np.stack([stripes, stripes])), grey(np.stack([stripes.T] * 2)), grey(
        np.stack([stripes, stripes.T]))  # fmt: skip
    assert value("background_consistency", across) == value("background_consistency", down) == pytest.approx(1)
    assert value("background_consistency", turned) < 0.75


def test_motion_alone_is_consistent():
    frames = render(SCENE, range(64))
    assert value("subject_consistency", frames) > 0.995
    assert value("background_consistency", frames) > 0.995


@pytest.mark.parametrize(("change", "subject", "background"), [
    ({"colour": "cyan"}, (0.5, 0.9), (0.98, 1)), ({"background": "white"}, (0.95, 1), (0.5, 0.9)),
    ({"shape": "square"}, (0.9, 0.985), (0.98, 1)), ({"radius": 1e-3}, (0, 0), (0.98, 1)),
])  # fmt: skip
def test_what_changes_is_inconsistent_and_nothing_else(change, subject, background):
    for name, (low, high) in (("subject_consistency", subject), ("background_consistency", background)):
        before, after = segments(name, halves(**change))
        assert before > 0.99
        assert low <= after <= high + 1e-6, name


def test_the_figures_of_the_page():
    """Red to cyan, navy to white, a lost object, ball to square."""
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    (said,) = re.findall(r"red to cyan: (\S+) instead of 1.00\).*navy to white: (\S+)\).*lost subject \((\S+)\)"
                         r".*ball to square:\s(\S+)\)", page, re.DOTALL)  # fmt: skip
    changes = ("subject", {"colour": "cyan"}), ("background", {"background": "white"}), ("subject", {"radius": 1e-3}), (
        "subject", {"shape": "square"})  # fmt: skip
    found = [segments(f"{region}_consistency", halves(**change))[1] for region, change in changes]
    assert [float(figure) for figure in said] == pytest.approx(found, abs=0.01)


def test_no_subject_at_first_is_no_number():
    empty = np.full((10, 32, 32, 3), 60, np.uint8)
    assert math.isnan(value("subject_consistency", empty))
    assert value("background_consistency", empty) == pytest.approx(1)
    assert math.isnan(value("background_consistency", empty[:1]))
    speck, dot = empty.copy(), empty.copy()
    speck[:, 14:16, 14:16], dot[:, 14:18, 14:18] = 250, 250
    assert math.isnan(value("subject_consistency", speck))
    assert value("subject_consistency", dot) == pytest.approx(1)


# Imaging


@pytest.mark.parametrize("k", [1, 7, 24, 47])
@pytest.mark.parametrize("axis", [1, 2])
def test_sharpness_of_a_cosine(k, axis):
    """A cosine of k half waves keeps (1 + cos(pi k / 48)) / 2 of itself in the blur 1 2 1 / 4, edges included."""
    wave = np.cos(np.pi * k * (np.arange(48) + 0.5) / 48)
    luma = 128 + 120 * wave.reshape((1, 48, 1) if axis == 1 else (1, 1, 48)) * np.ones((2, 48, 48))
    assert value("sharpness", grey(luma)) == pytest.approx((1 - math.cos(math.pi * k / 48)) / 2, abs=5e-3)


def test_blur_and_noise_move_sharpness():
    frames = render(SCENE, range(3)).astype(float)
    blurred = (frames + np.roll(frames, 1, 1) + np.roll(frames, 1, 2) + np.roll(frames, (1, 1), (1, 2))) / 4
    noisy = frames + np.random.default_rng(0).normal(0, 10, frames.shape)
    plain, soft, rough = (value("sharpness", v.clip(0, 255).astype(np.uint8)) for v in (frames, blurred, noisy))
    assert soft < 0.8 * plain < plain < 0.9 * rough


def test_contrast_and_saturation_against_independent_formulas():
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    luma = frames @ np.array([0.299, 0.587, 0.114])
    assert value("contrast", frames) == pytest.approx(2 * luma.std((1, 2)).mean() / 255, rel=1e-3)
    hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in frames.reshape(-1, 3) / 255]
    assert value("saturation", frames) == pytest.approx(np.mean([s * v for _, s, v in hsv]))


def test_ends_of_the_ranges():
    black, half = np.zeros((3, 16, 16, 3), np.uint8), np.zeros((3, 16, 16, 3), np.uint8)
    half[:, ::2] = 255
    red = black + np.array([255, 0, 0], np.uint8)
    assert (value("contrast", black), value("contrast", half)) == (0, 1)
    assert (value("saturation", half), value("saturation", red)) == (0, 1)
    nearly_flat = black.copy()
    nearly_flat[:, 5, 5] += np.uint8(1)
    for flat in (black, red, nearly_flat):
        assert math.isnan(value("sharpness", flat))


def test_a_fading_video_loses_contrast_and_saturation():
    faded = (render(SCENE, range(40)) * np.linspace(1, 0.3, 40)[:, None, None, None]).astype(np.uint8)
    for name in ("contrast", "saturation"):
        first, last = segments(name, Clip(faded, FPS))
        assert last < 0.8 * first, name


# Nothing to see


def test_a_frozen_video_is_seen_to_be_frozen_and_not_to_be_good():
    """Consistency and flicker alone would prefer it."""
    frozen = np.repeat(render(SCENE, [5]), 48, axis=0)
    best = {"flicker": 1, "subject_consistency": 1, "background_consistency": 1, "presence": 1}
    told = {"freeze": 1, "object_speed": 0, "flow": 0, "dynamic_degree": 0, "motion": 0, "loop": 0}
    for name, expected in (best | told).items():
        assert value(name, frozen) == pytest.approx(expected, abs=1e-3), name
    assert ObjectSpeed().measure(Clip(frozen, FPS)) == 0


def test_a_black_video_is_nothing():
    black = np.zeros((48, 64, 64, 3), np.uint8)
    for name in ("colour", "shape", "presence", "good", "contrast", "saturation", "flow", "loop"):
        assert value(name, black) == 0, name
    for name in ("object_speed", "subject_consistency", "sharpness", "size_kept", "marking_kept"):
        assert math.isnan(value(name, black)), name


def test_two_objects_have_the_metrics_that_can_be_said_of_them():
    caption = "a red ball moves up and down and a cyan square bounces around on a navy background"
    names = set(default_metrics([caption]))
    declined = {"shape", "motion", "marking_kept", "size_kept", "object_speed"}
    assert not names & declined
    assert {"good", "presence", "colour", "background", "texture_kept", "landmark_kept"} <= names
    assert declined <= set(default_metrics([CAPTION]))
    clip = Clip(render(scene_for(caption, np.random.default_rng(0)), range(30)), FPS, caption)
    assert all(math.isnan(METRIC.build(name).measure(clip)) for name in declined)
    assert all(METRIC.build(name).measure(clip) > 0.9 for name in ("good", "presence", "colour", "texture_kept"))
