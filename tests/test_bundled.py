"""The model inside the package: it loads, it is small, and its videos show what their prompts say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import arvid
from arvid.evaluation.metrics import METRIC, Clip
from arvid.models.specs import Card
from arvid.models.weights import BUNDLED, FILES
from arvid.training.clips import held_out_captions
from arvid.training.grammar import parse

HELD_OUT = held_out_captions()
FLOORS = {"background": 0.98, "colour": 0.95, "presence": 0.95, "shape": 0.7}


@pytest.fixture(scope="module")
def pipe() -> arvid.Pipeline:
    return arvid.Pipeline.load()


def check(pipe: arvid.Pipeline, prompts: list[str]) -> None:
    videos = pipe(prompts, frames=21, seed=list(range(len(prompts))))
    clips = [Clip(video.frames, video.fps, prompt) for video, prompt in zip(videos, prompts, strict=True)]
    shares = {name: float(np.mean([METRIC.build(name).measure(clip) for clip in clips])) for name in FLOORS}
    assert all(shares[name] >= floor for name, floor in FLOORS.items()), f"{shares}, floors {FLOORS}"


def test_the_folder_is_complete_small_and_has_a_model_card():
    sizes = {name: (BUNDLED / name).stat().st_size for name in (*FILES, "MODEL_CARD.md")}
    assert sum(sizes.values()) < 20e6, sizes


def test_its_card_says_how_it_was_trained(pipe):
    told = json.loads((BUNDLED / "card.json").read_text())
    assert pipe.card.to_dict() == Card.from_dict(told).to_dict()
    config = pipe.config
    assert (config.chunk, config.cache.window, config.sampler.steps) == (3, 9, (1000, 750, 500, 250))


def test_five_seconds_are_81_frames_and_the_same_seed_the_same_bytes(pipe):
    prompt = "a red ball bounces around on a navy background"
    a, b, c = (pipe(prompt, seconds=5, seed=seed) for seed in (0, 0, 1))
    assert a.frames.shape == (81, 64, 64, 3)
    assert a.fps == 16
    assert np.array_equal(a.frames, b.frames)
    assert not np.array_equal(a.frames, c.frames)


def test_its_tokenizer_and_grammar_agree_with_the_clips(pipe):
    for caption in held_out_captions():
        ids, mask = pipe.text.tokenize([caption])
        assert pipe.text.tokenizer.unk_id() not in ids[mask.bool()].tolist()
        assert str(parse(caption)) == caption
    with pytest.raises(ValueError, match="'dragon'"):
        pipe("a red dragon bounces around on a navy background", seconds=1)


def test_what_it_makes_is_what_its_vae_writes(pipe):
    """Latents that the decoder reads otherwise than the encoder would have written them are those of another VAE."""
    latents = pipe.latents(prompt=HELD_OUT[:4], seed=[0, 1, 2, 3])
    with torch.no_grad():
        again = torch.cat([pipe.vae.encode(pipe.vae.decode(row[None])) for row in latents])
    assert (again - latents).square().mean() < 0.1 * latents.square().mean()


def test_held_out_prompts_are_shown(pipe):
    check(pipe, HELD_OUT[:12])


@pytest.mark.slow
def test_all_held_out_prompts_are_shown(pipe):
    check(pipe, HELD_OUT)
