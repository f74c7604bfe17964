"""The training stages: resumable bit by bit, causal by plan, and one command from nothing to a model that loads."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from arvid import Pipeline
from arvid.training import bundled
from arvid.training.blocks import fit_blocks, to_blocks
from arvid.training.data import Clips, moments, training_clips
from arvid.training.diffusion import Batch, Network, Trainer
from arvid.training.loop import Recipe, train
from arvid.training.vae import clip_batch

RED, BLUE = ("a red ball bounces around on a navy background", "a blue ball bounces around on a navy background")


def noisy_regression(step: int, rng: np.random.Generator, module: nn.Module, stop: int | None) -> dict:
    if step == stop:
        raise KeyboardInterrupt
    x = torch.from_numpy(rng.standard_normal((8, 4)).astype(np.float32))
    return {"loss": (module(x) + torch.randn(8, 4) - 2 * x).square().mean()}


def fit(folder, recipe: Recipe, stop: int | None = None) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(3)
    module, average = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)
    with contextlib.suppress(KeyboardInterrupt):
        train("toy", module, recipe, lambda s, r, _: noisy_regression(s, r, module, stop), folder,
              average=average, save_every=0)  # fmt: skip
    return module, average


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    recipe = Recipe(steps=9, rate=0.1, batch=8, warmup=2)
    whole = fit(tmp_path / "whole", recipe)
    fit(tmp_path / "parts", recipe, stop=4)
    resumed = fit(tmp_path / "parts", recipe)
    for a, b in zip(whole, resumed, strict=True):
        assert torch.equal(a.weight, b.weight)  # pyright: ignore[reportArgumentType]
        assert torch.equal(a.bias, b.bias)  # pyright: ignore[reportArgumentType]


def test_a_changed_recipe_is_refused_and_a_longer_one_is_not(tmp_path):
    recipe = Recipe(steps=2, rate=0.1, batch=8)
    fit(tmp_path, recipe)
    with pytest.raises(ValueError, match="differs in rate"):
        fit(tmp_path, replace(recipe, rate=0.2))
    fit(tmp_path, replace(recipe, steps=3))
    assert torch.load(tmp_path / "toy.pt", weights_only=True)["step"] == 3


def test_a_loss_that_is_not_finite_stops_and_names_the_step(tmp_path):
    module = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="at step 0"):
        train("bad", module, Recipe(2, 0.1, 1), lambda *_: {"loss": module.weight.sum() * torch.nan}, tmp_path,
              average=nn.Linear(1, 1))  # fmt: skip


def test_the_rate_warms_up_holds_and_falls_to_zero():
    recipe = Recipe(steps=100, rate=1.0, batch=1, warmup=10, decay=0.5)
    scales = [recipe.scale(step) for step in range(101)]
    assert scales[0] == 0.1
    assert scales[9] == scales[50] == 1.0
    assert scales[75] == pytest.approx(0.5)
    assert scales[100] == 0.0


def test_crops_hold_the_object():
    video = clip_batch(np.random.default_rng(0), 8, 5, crop=8)
    assert video.shape == (8, 3, 5, 32, 32)
    assert bool((video.flatten(2).amax(2) - video.flatten(2).amin(2)).amax(1).gt(0.4).all())  # none is flat background


def some_clips(count: int = 12) -> torch.Tensor:
    return torch.stack([video for *_, video in training_clips(count, seed=1)])


def test_block_latents_are_white_over_the_clips_they_were_fitted_to():
    video = some_clips()
    latents = fit_blocks(video, channels=8, time=4, space=8).encode(video)
    assert latents.shape == (12, 21, 8, 8, 8)
    rows = latents.movedim(2, -1).flatten(0, 3)
    torch.testing.assert_close(rows.T @ rows / len(rows), torch.eye(8), atol=1e-3, rtol=0)


def test_block_latents_are_the_best_linear_code_of_their_size():
    video = some_clips()
    blocks = to_blocks(video, 4, 8)
    total = (blocks - blocks.flatten(0, 3).mean(0)).square().sum()
    left = []
    for channels in (2, 8, 32):
        code = fit_blocks(video, channels, 4, 8)
        back = code.encode(video).movedim(2, -1) @ torch.linalg.pinv(code.components).T + code.mean
        left.append(float((back - blocks).square().sum() / total))
    singular = torch.linalg.svdvals((blocks - blocks.flatten(0, 3).mean(0)).flatten(0, 3).double()).square()
    best = [float(singular[n:].sum() / singular.sum()) for n in (2, 8, 32)]
    assert left == pytest.approx(best, rel=1e-3)


def test_a_latent_frame_is_its_own_pixel_frames_and_the_first_stands_alone():
    video = some_clips(2)
    code = fit_blocks(video, 8, 4, 8)
    whole = code.encode(video)
    torch.testing.assert_close(code.encode(video[:, :, :41]), whole[:, :11])
    touched = video.clone()
    touched[:, :, 5:9] += 0.5  # latent frame 2
    moved = (code.encode(touched) - whole).abs().amax((0, 2, 3, 4)) > 1e-4
    assert moved.tolist() == [i == 2 for i in range(21)]


@pytest.fixture(scope="module")
def network() -> Network:
    net = bundled.new_network().eval()
    torch.manual_seed(0)
    nn.init.normal_(net.dit.head.head.weight, std=0.1)
    return net


def trainer_and_batch(alone: bool, change: int = 21) -> tuple[Trainer, Batch]:
    latents = torch.randn(2, 21, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    captions = [(RED, RED, 21), (RED, BLUE, change)]
    clips = Clips(latents, captions, np.array([alone, alone]), np.array([False, change < 21]))
    mean, std = moments(latents)
    t = Trainer(clips, mean, std, chunk=3, window=9, shift=3.0)
    of = torch.tensor([i for i, c in enumerate(t.chunks(alone)) for _ in range(c.n)])
    return t, Batch(latents, of, clips.captions, alone)


@pytest.mark.parametrize("alone", [False, True])
def test_teacher_forcing_sees_its_own_noisy_chunk_and_earlier_clean_ones_only(network, alone):
    trainer, batch = trainer_and_batch(alone)
    noisy = torch.randn(2, 21, 8, 4, 4)
    sigma = torch.rand(2, int(batch.chunk_of[-1]) + 1)[:, batch.chunk_of]
    with torch.no_grad():
        text = trainer.text(network, batch, 2)
        base = trainer.velocity(network, batch, noisy, sigma, text)

        def moved(batch: Batch, noisy: torch.Tensor) -> torch.Tensor:
            change = trainer.velocity(network, batch, noisy, sigma, text) - base
            return change.abs().amax((0, 2, 3, 4)) > 1e-6

        for chunk in (0, 2, 4):
            inside = batch.chunk_of == chunk
            touched = noisy.clone()
            touched[:, inside] += 1
            assert torch.equal(moved(batch, touched), inside)
            clean = batch.clean.clone()
            clean[:, inside] += 1
            seen = moved(replace(batch, clean=clean), noisy)
            assert not seen[batch.chunk_of <= chunk].any()
            assert seen[batch.chunk_of == chunk + 1].all()


def test_the_later_caption_does_not_reach_frames_before_the_change(network):
    trainer, batch = trainer_and_batch(False, change=9)
    other = replace(batch, captions=[batch.captions[0], (RED, RED, 9)])
    noisy, sigma = torch.randn(2, 21, 8, 4, 4), torch.full((2, 21), 0.7)
    with torch.no_grad():
        a, b = (trainer.velocity(network, one, noisy, sigma, trainer.text(network, one, 2)) for one in (batch, other))
        plain = replace(batch, captions=[(RED, RED, 21)] * 2)
        c = trainer.velocity(network, plain, noisy, sigma, trainer.text(network, plain, 2))
    torch.testing.assert_close(a[:, :9], b[:, :9])
    assert bool(((a - b)[1, 9:].abs().amax((1, 2, 3)) > 1e-6).all())
    torch.testing.assert_close(b, c, atol=1e-5, rtol=1e-5)  # the same caption twice is that caption


def test_batches_only_mix_clips_that_fit_the_layout():
    captions = [(RED, RED, 21), (RED, BLUE, 9), (RED, BLUE, 10)]
    clips = Clips(torch.zeros(3, 21, 8, 4, 4), captions, np.array([True, False, True]), np.array([False, True, True]))
    rng = np.random.default_rng(0)
    assert set(clips.pick(rng, 50, alone=False)) == {0, 1}
    assert set(clips.pick(rng, 50, alone=True)) == {0, 2}


def test_one_command_makes_a_model_that_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "VAE_RECIPE", Recipe(steps=4, rate=1e-3, batch=4))
    monkeypatch.setattr(bundled, "CODE_CLIPS", 3)
    monkeypatch.setattr(bundled, "FLOW_RECIPE", Recipe(steps=2, rate=1e-3, batch=2))
    monkeypatch.setattr(bundled, "CONSISTENCY_RECIPE", Recipe(steps=1, rate=1e-3, batch=2))
    monkeypatch.setattr(bundled, "CLIPS", 30)
    card = bundled.run(tmp_path / "work", tmp_path / "model")
    assert json.loads((tmp_path / "model" / "card.json").read_text())["name"] == "tiny"
    pipe = Pipeline.load(model=tmp_path / "model")
    assert pipe.card == card
    assert len(pipe(RED, frames=3)) == 9  # pyright: ignore[reportArgumentType]
