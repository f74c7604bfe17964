"""The report on a pipeline: figures of videos whose truth is known, because a renderer stands in for the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from arvid.evaluation.report import evaluate, sheet
from arvid.training.clips import held_out_captions, render, scene_for
from arvid.video import Video


class Renderer:
    """A perfect model: it draws what the prompt says; `wrong` swaps the prompts, `forgetful` the unnamed traits."""

    def __init__(self, wrong: bool = False, forgetful: bool = False) -> None:
        self.wrong, self.forgetful = wrong, forgetful
        self.asked: list[tuple[str, int]] = []

    def __call__(self, prompts: list[str], frames: int, seed: list[int]) -> list[Video]:
        self.asked += zip(prompts, seed, strict=True)
        times = range(1 + 4 * (frames - 1))
        videos = []
        for prompt, row in zip(reversed(prompts) if self.wrong else prompts, seed, strict=True):
            rng = np.random.default_rng(row)
            scene = replace(scene_for(prompt, rng), landmark="top left", texture="stripes across")
            late = replace(scene, landmark="none", texture="plain") if self.forgetful else scene
            half = len(times) // 2
            videos.append(Video(np.concatenate([render(scene, times[:half]), render(late, times[half:])]), 16))
        return videos


def report(model: Any, count: int = 6):
    return evaluate(model, held_out_captions()[:count], frames=21, seed=5, batch=4)


def test_a_perfect_model_scores_one_everywhere_and_each_prompt_has_its_seed():
    model = Renderer()
    figures, videos = report(model)
    assert (figures.prompts, len(videos)) == (6, 6)
    for name in ("background", "colour", "shape", "motion", "presence", "good"):
        assert getattr(figures, name) == 1.0, name
    for name in ("texture_kept", "landmark_kept", "marking_kept", "size_kept"):
        assert getattr(figures, name) > 0.95, name
    assert model.asked == [(prompt, 5 + i) for i, prompt in enumerate(held_out_captions()[:6])]


def test_the_wrong_videos_do_not_score():
    figures, _ = report(Renderer(wrong=True), count=4)
    assert figures.presence == 1.0
    assert figures.good < 0.5


def test_forgetting_what_the_caption_does_not_name_shows_in_what_is_kept_alone():
    figures, _ = report(Renderer(forgetful=True))
    assert figures.good == 1.0
    assert figures.landmark_kept < 0.2
    assert figures.texture_kept < 0.2


def test_the_table_names_every_figure_and_the_sheet_has_a_row_a_video():
    figures, videos = report(Renderer(), count=3)
    assert all(name in figures.table() for name in ("background", "presence", "landmark_kept"))
    assert sheet(videos, columns=5, gap=2).shape == (3 * 66, 5 * 64, 3)
