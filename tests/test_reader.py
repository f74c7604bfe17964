"""The pixel reader against rendered truth, against degraded truth, and against clips that are wrong in one way."""

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arvid.evaluation.motion import classify
from arvid.evaluation.pixels import components, fill_holes, largest_component
from arvid.evaluation.reader import Reading, persistence, read, score
from arvid.training.clips import (
    BACKGROUNDS,
    MOTIONS,
    Caption,
    Scene,
    all_captions,
    held_out_pairs,
    parse,
    render,
    sample_scene,
    scene_for,
    training_pairs,
    trajectory,
)

FRAMES = range(0, 81, 3)  # five seconds; every third frame, to be quick


def blurred(video_THWC: np.ndarray) -> np.ndarray:
    """A 3x3 box filter."""
    padded = np.pad(video_THWC, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2)).mean((-1, -2))


def degraded(video_THWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    video_THWC = blurred(video_THWC / 255)
    return (video_THWC + rng.normal(0, 8 / 255, video_THWC.shape)).clip(0, 1)


def shares(readings: list[tuple[Caption, Reading]]) -> dict[str, float]:
    return {
        "background": float(np.mean([reading.background == said.background for said, reading in readings])),
        "colour": float(np.mean([reading.colour == said.colour for said, reading in readings])),
        "shape": float(np.mean([reading.shape == said.shape for said, reading in readings])),
        "presence": float(np.mean([reading.present for _, reading in readings])),
        "motion": float(np.mean([reading.motion == said.motion for said, reading in readings])),
    }


def some_scene(seed: int = 0, motion: str = "bounces around", **traits) -> Scene:
    scene = scene_for(f"a red ball {motion} on a navy background", np.random.default_rng(seed))
    return replace(scene, **{"radius": 11.0, "texture": "plain", "marking": "none", "landmark": "none"} | traits)


def test_truth_is_read_right():
    rng = np.random.default_rng(1)
    scenes = [sample_scene(rng) for _ in range(100)]
    found = shares([(scene.said, read(render(scene, FRAMES))) for scene in scenes])
    least = {"background": 0.99, "colour": 0.98, "presence": 0.99, "shape": 0.9, "motion": 0.9}
    assert all(found[name] >= share for name, share in least.items()), found


def test_noisy_and_blurred_truth_is_read_right():
    rng = np.random.default_rng(2)
    scenes = [sample_scene(rng) for _ in range(50)]
    found = shares([(scene.said, read(degraded(render(scene, FRAMES), rng))) for scene in scenes])
    least = {"background": 0.98, "colour": 0.95, "presence": 0.95, "shape": 0.9, "motion": 0.9}
    assert all(found[name] >= share for name, share in least.items()), found


def test_tracks_follow_the_object():
    """Against the truth of the renderer: centre within half a pixel, area of a disc within 4 %."""
    for motion in MOTIONS:
        scene = some_scene(3, motion)
        reading = read(render(scene, FRAMES))
        x, y, radius = trajectory(scene, np.array(FRAMES)).T
        np.testing.assert_allclose(reading.centre * 64, np.stack([x, y], -1), atol=0.5)
        np.testing.assert_allclose(reading.area * 64 * 64, np.pi * radius**2, rtol=0.04)


def test_score_is_right_in_all_parts_only_for_the_right_caption():
    scene = some_scene()
    reading = read(render(scene, FRAMES))
    right = score(reading, scene.caption())
    assert (right.background, right.colour, right.shape, right.motion) == (True, True, True, True)
    assert right.presence == right.good == 1
    for part, word in (
        ("background", "black"),
        ("colour", "orange"),
        ("shape", "square"),
        ("motion", "moves in a circle"),
    ):
        wrong = score(reading, str(replace(scene.said, **{part: word})))
        assert {name for name in ("background", "colour", "shape", "motion") if not getattr(wrong, name)} == {part}
        assert wrong.good == (0 if part in ("background", "colour") else 1)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_without_an_object_nothing_is_present(background):
    for texture, landmark in (("plain", "none"), ("stripes down", "top left"), ("gradient right", "bottom right")):
        said = Caption("red", "ball", "moves up and down", background)
        empty = render(Scene(said, radius=1e-3, texture=texture, landmark=landmark), FRAMES[:6])
        for video_THWC in (empty, degraded(empty, np.random.default_rng(0))):
            reading = read(video_THWC)
            assert not reading.present.any()
            assert set(reading.background) == {background}
            assert set(reading.colour) == set(reading.shape) == {""}
            assert np.isnan(reading.area).all()
            assert score(reading, str(said)).presence == 0
            assert reading.motion == "unclear"
            assert np.isnan(persistence(reading, 3).size).all()


def test_noise_and_two_objects_are_not_an_object():
    noise = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    assert not read(noise).present.any()
    one = render(Scene(Caption("red", "ball", "grows and shrinks", "navy"), radius=10.0), [0])[0]
    two = np.where(one == one[0, 0], np.roll(one, 30, axis=1), one)
    assert not read(two[None]).present.any()
    assert read(one[None]).present.all()


def soft(video_THWC: np.ndarray) -> np.ndarray:
    """As a decoder may give it: colours at half the resolution, everything blurred; about 27 dB."""
    halves = video_THWC.reshape(len(video_THWC), 32, 2, 32, 2, 3).mean((2, 4)).repeat(2, axis=1).repeat(2, axis=2)
    luma, luma_of_halves = (video @ np.array([0.299, 0.587, 0.114]) for video in (video_THWC, halves))
    video_THWC = halves + (luma - luma_of_halves)[..., None]
    return blurred(video_THWC / 255).clip(0, 1)


@given(st.sampled_from(all_captions() + held_out_pairs() + training_pairs()[::50]), st.integers(0, 2**32 - 1))
@settings(max_examples=25, derandomize=True)
def test_truth_of_any_caption_scores_in_full_sharp_or_blurred(caption, seed):
    scene = scene_for(caption, np.random.default_rng(seed))
    video_THWC = render(scene, range(0, 81, 5))
    two = scene.said.second is not None
    for shown in (video_THWC, soft(video_THWC)):
        reading = read(shown)
        result = score(reading, caption)
        assert result.background
        assert result.colour
        assert result.shape is None if two else result.shape
        assert result.motion is None if two else result.motion
        assert min(result.presence, result.good) >= (0.7 if two else 0.9)  # one may hide the other for a while
        kept = persistence(reading)
        assert np.nanmean(kept.texture) > 0.9
        assert np.isnan(kept.landmark).all() or np.nanmean(kept.landmark) > 0.8


@pytest.mark.parametrize("degrade", [lambda video: video, soft])
def test_truth_of_two_objects_is_read_right_on_average(degrade):
    rng = np.random.default_rng(3)
    captions = held_out_pairs()
    scores = [score(read(degrade(render(scene_for(text, rng), FRAMES[::2]))), text) for text in captions]
    assert all(each.colour and each.background for each in scores)
    assert np.mean([each.good for each in scores]) > 0.97
    assert np.mean([each.presence for each in scores]) > 0.97


def test_two_objects_are_only_right_with_both_colours_and_the_background():
    scene = scene_for("a red ball moves up and down and a cyan square bounces around on a navy background",
                      np.random.default_rng(1))  # fmt: skip
    reading = read(render(scene, FRAMES))
    assert score(reading, scene.caption()).good > 0.9
    for wrong in ("a pink ball moves up and down and a cyan square bounces around on a navy background",
                  "a red ball moves up and down and a yellow square bounces around on a navy background"):  # fmt: skip
        assert not score(reading, wrong).colour
        assert score(reading, wrong).good == 0
    elsewhere = score(reading, scene.caption().replace("navy", "black"))
    assert elsewhere.colour
    assert not elsewhere.background
    assert elsewhere.good == 0


def test_one_object_whatever_its_marking_is_not_two():
    rng = np.random.default_rng(5)
    videos = [render(scene_for(caption, rng), [0, 30]) for caption in all_captions()[::6]]
    assert not any(((read(video).pieces > 0).sum(-1) > 1).any() for video in videos)
    blurred_edges = [((read(soft(video)).pieces > 0).sum(-1) > 1).mean() for video in videos]
    assert np.mean(blurred_edges) < 0.08


def test_a_frozen_clip_is_still():
    frozen = np.repeat(render(some_scene(), [12]), 27, axis=0)
    reading = read(degraded(frozen, np.random.default_rng(0)))
    assert reading.motion == "still"
    assert reading.present.all()
    assert not any(score(reading, f"a red ball {motion} on a navy background").motion for motion in MOTIONS)


@pytest.mark.parametrize(
    ("trait", "before", "after"),
    [
        ("texture", "gradient right", "gradient left"),
        ("texture", "plain", "stripes across"),
        ("texture", "stripes down", "gradient up"),
        ("landmark", "top left", "bottom right"),
        ("landmark", "none", "top right"),
        ("landmark", "bottom left", "none"),
        ("marking", "none", "dot"),
        ("marking", "dot", "band"),
        ("marking", "band", "none"),
        ("radius", 10.0, 14.0),
    ],
)
def test_a_change_of_an_unnamed_trait_is_seen_and_no_other(trait, before, after):
    scene = replace(some_scene(4), **{trait: before})
    frames = range(0, 80, 2)
    same = render(scene, frames)
    video_THWC = np.concatenate([same[:20], render(replace(scene, **{trait: after}), frames[20:])])
    for degrade in (lambda video: video, lambda video: degraded(video, np.random.default_rng(0))):
        kept = persistence(read(degrade(video_THWC)))
        for name in ("texture", "landmark", "marking", "size"):
            values = getattr(kept, name)
            assert np.nanmean(values[:20]) > 0.9, name
            changed = name == ("size" if trait == "radius" else trait)
            if changed:  # 10 over 14 is 0.71
                assert np.nanmean(values[20:]) < (0.8 if trait == "radius" else 0.5)
            else:
                assert np.nanmean(values[20:]) > 0.9, name


def test_what_grows_keeps_its_size_until_it_outgrows_it():
    scene = some_scene(5, "grows and shrinks", radius=10.0)
    larger = replace(scene, radius=14.0)
    kept = persistence(read(np.concatenate([render(scene, range(0, 162, 2)), render(larger, range(162, 243, 2))])))
    assert kept.size[:81].min() > 0.95
    assert kept.size[81:].min() < 0.75


def test_a_hidden_landmark_is_unknown_not_lost():
    said = Caption("cyan", "square", "moves left and right", "navy")
    scene = Scene(said, radius=14.0, landmark="top left", phase_x=0.5, phase_y=0.0, period_x=40.0)
    video_THWC = render(scene, range(40))
    reading = read(video_THWC)
    assert reading.landmark[0, 0] > 0.9
    assert np.isnan(reading.landmark[20]).tolist() == [True, False, False, False]
    assert np.nanmin(persistence(reading).landmark) > 0.95


def test_a_change_of_colour_is_seen_at_its_frame():
    rng = np.random.default_rng(7)
    changes = [scene for scene in (sample_scene(rng, change=True) for _ in range(30)) if scene.new_colour][:8]
    for scene in changes:
        (_, before), (frame, after) = scene.captions()
        start = 4 * frame - 3
        reading = read(render(scene, range(start - 5, start + 5)))
        assert reading.colour.tolist() == [parse(before).colour] * 5 + [parse(after).colour] * 5
        assert score(reading.part(0, 5), before).good == score(reading.part(5), after).good == 1
        assert score(reading.part(5), before).good == 0


def test_bytes_floats_and_other_sizes_read_the_same():
    scene = some_scene(landmark="top right", marking="band", texture="gradient up")
    video_THWC = render(scene, FRAMES)
    one, other = read(video_THWC), read(video_THWC / 255)
    large = read(render(scene, FRAMES, size=96))
    for reading in (other, large):
        assert reading.present.all()
        assert reading.motion == one.motion
        assert (reading.shape == one.shape).all()
        np.testing.assert_allclose(reading.centre, one.centre, atol=0.01)
        np.testing.assert_allclose(reading.landmark, one.landmark, atol=0.1)
        np.testing.assert_allclose(reading.texture, one.texture, atol=0.05)


def test_frames_are_read_one_by_one():
    scene = some_scene(landmark="top right")
    video_THWC = render(scene, range(140))
    whole, alone = read(video_THWC), read(video_THWC[130:134])
    np.testing.assert_allclose(whole.part(130, 134).centre, alone.centre, atol=1e-6)
    np.testing.assert_allclose(whole.part(130, 134).texture, alone.texture, atol=1e-4)
    assert len(whole) == 140


@pytest.mark.parametrize(
    ("video", "error", "part"),
    [
        (np.zeros((2, 64, 64, 3), np.int64), TypeError, "the video is int64; give a numpy array of uint8"),
        ([[0]], TypeError, "the video is list"),
        (np.zeros((64, 64, 3), np.uint8), ValueError, r"shape \(64, 64, 3\); give \[T, H, W, 3\]"),
        (np.zeros((2, 3, 64, 64), np.uint8), ValueError, r"give \[T, H, W, 3\]"),
        (np.zeros((0, 64, 64, 3), np.uint8), ValueError, r"give \[T, H, W, 3\]"),
        (np.full((1, 64, 64, 3), -1.0), ValueError, r"floats in -1 \.\. -1; scale them to 0\.\.1"),
        (np.full((1, 64, 64, 3), 255.0), ValueError, r"scale them to 0\.\.1"),
        (np.full((1, 64, 64, 3), np.nan), ValueError, "not finite"),
    ],
)
def test_what_is_no_video_raises(video, error, part):
    with pytest.raises(error, match=part):
        read(video)


def test_bad_requests_of_a_reading_raise():
    reading = read(render(some_scene(), range(4)))
    with pytest.raises(ValueError, match="unknown words: fox"):
        score(reading, "a fox moves in a circle on a navy background")
    with pytest.raises(ValueError, match=r"reference is 5; the reading has 4 frames: choose 1 \.\. 4"):
        persistence(reading, reference=5)
    with pytest.raises(ValueError, match="no frames"):
        score(reading.part(4), "a red ball moves in a circle on a navy background")


def test_motion_of_gaps_and_short_tracks():
    turns = np.linspace(0, 2, 60)
    circle = 0.5 + 0.25 * np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], -1)
    area = np.full(60, 0.1)
    assert classify(circle, area) == "moves in a circle"
    assert classify(np.where(np.arange(60)[:, None] % 3 == 1, np.nan, circle), area) == "moves in a circle"
    assert classify(circle * [1, 0] + [0, 0.5], area) == "moves left and right"
    assert classify(circle[:7], area[:7]) == "unclear"


def test_components_and_holes_agree_with_a_flood_fill():
    rng = np.random.default_rng(0)
    mask_THW = rng.random((12, 13, 11)) < np.linspace(0.2, 0.9, 12)[:, None, None]
    labels_THW, largest_THW = components(mask_THW), largest_component(mask_THW)
    for mask, labels, largest in zip(mask_THW, labels_THW, largest_THW, strict=True):
        parts = flood(mask)
        assert {frozenset(map(tuple, np.argwhere(labels == label))) for label in set(labels[mask])} == set(parts)
        assert largest.sum() == max(map(len, parts), default=0)
    for mask, filled in zip(mask_THW, fill_holes(mask_THW), strict=True):
        border = np.pad(~mask, 1, constant_values=True)
        (outside,) = [part for part in flood(border) if (0, 0) in part]
        expected = np.ones_like(border)
        expected[tuple(np.array(list(outside)).T)] = False
        np.testing.assert_array_equal(filled, expected[1:-1, 1:-1])


def flood(mask: np.ndarray) -> list[frozenset[tuple[int, int]]]:
    """The 4-connected parts of a mask, by search."""
    left = set(map(tuple, np.argwhere(mask).tolist()))
    parts = []
    while left:
        part, queue = set(), deque([left.pop()])
        while queue:
            y, x = queue.popleft()
            part.add((y, x))
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= near
            queue.extend(near)
        parts.append(frozenset(part))
    return parts
