"""Loops and stops of videos made so that they are known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from test_metrics_known import FPS, SCENE, grey, value

from arvid.evaluation.metrics import Clip, Freeze, Loop
from arvid.training.clips import render


def blobs(frames: int, seed: int = 0) -> np.ndarray:
    """Frames that have nothing in common: smooth random colours, [T, 48, 48, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (frames, 6, 6, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


@pytest.mark.parametrize("period", [20, 33, 48])
@pytest.mark.parametrize("fps", [8.0, 16.0])
def test_a_loop_of_known_period(period, fps):
    found = Loop().strongest(Clip(np.tile(blobs(period), (4, 1, 1, 1))[:130], fps))
    assert found.strength == pytest.approx(1, abs=0.01)
    assert found.lag == period / fps


def test_one_return_after_something_else():
    there, elsewhere = blobs(24, 1), blobs(60, 2)
    found = Loop().strongest(Clip(np.concatenate([there, elsewhere, there]), FPS))
    assert found.strength > 0.98
    assert found.lag == 84 / FPS
    assert value("loop", np.concatenate([there, elsewhere])) < 0.3
    assert value("loop", np.concatenate([there, elsewhere, there[:13]])) > 0.98  # four frames, every fourth
    assert value("loop", np.concatenate([there, elsewhere, there[:8]])) < 0.9


def test_what_stands_still_or_only_moves_on_does_not_return():
    still = np.repeat(render(SCENE, [5]), 80, axis=0)
    noisy = (still + np.random.default_rng(0).integers(-2, 3, still.shape)).clip(0, 255).astype(np.uint8)
    fading = grey(np.linspace(20, 220, 80)[:, None, None] * np.ones((80, 32, 32)))
    for frames in (still, noisy, fading):
        found = Loop().strongest(Clip(frames, FPS))
        assert found.strength < 0.01
    assert math.isnan(Loop().strongest(Clip(still, FPS)).lag)
    noise = np.random.default_rng(0).integers(0, 256, (80, 64, 64, 3), dtype=np.uint8)
    assert value("loop", noise) < 0.2


def test_periodic_motion_is_a_loop_and_drift_makes_it_weaker():
    scene = replace(SCENE, said=replace(SCENE.said, motion="moves in a circle"), period_x=40.0)
    frames = render(scene, range(120))
    assert Loop().strongest(Clip(frames, FPS)) == pytest.approx((1, 40 / FPS), abs=0.02)
    drifting = (frames * np.linspace(1, 0.2, 120)[:, None, None, None]).astype(np.uint8)
    assert 0.2 < value("loop", drifting) < 0.9


def test_the_blocks_of_a_long_clip_agree_with_the_whole(monkeypatch):
    clip = Clip(np.concatenate([blobs(50, 1), blobs(40, 2), blobs(50, 1)]), FPS)
    at_once = Loop().strongest(clip)
    monkeypatch.setattr("arvid.evaluation.metrics.repetition.AT_ONCE", 3)
    assert Loop().strongest(clip) == pytest.approx(at_once, abs=1e-4)


def test_a_clip_of_less_than_two_stretches_cannot_be_said_to_loop():
    assert math.isnan(value("loop", blobs(31)))
    assert not math.isnan(value("loop", blobs(32)))


def test_freeze_is_the_share_of_frames_that_stand_still():
    moving = render(SCENE, range(60))
    still = np.repeat(moving[-1:], 40, axis=0)
    assert value("freeze", moving) == 0
    assert value("freeze", still) == 1
    assert value("freeze", np.concatenate([moving, still])) == pytest.approx(41 / 100)
    assert value("freeze", np.concatenate([moving, still[:14], moving[::-1]])) == 0  # 16 frames: not yet a second
    assert value("freeze", np.concatenate([moving, still[:15], moving[::-1]])) == pytest.approx(17 / 135)
    assert Freeze(seconds=0.5).measure(Clip(np.concatenate([moving, still[:7], moving[::-1]]), FPS)) > 0


def test_noise_of_a_codec_is_frozen_and_a_slow_change_is_not():
    still = np.repeat(render(SCENE, [5]), 64, axis=0)
    noisy = (still + np.random.default_rng(0).integers(-2, 3, still.shape)).clip(0, 255).astype(np.uint8)
    assert value("freeze", noisy) == 1
    slow = np.concatenate([np.roll(still[:1], t // 4, axis=2) for t in range(64)])  # a quarter of a pixel a frame
    assert value("freeze", slow) == 0
    assert math.isnan(value("freeze", still[:16]))
