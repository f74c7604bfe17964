"""One training pass over a clip is what a rollout computes: who sees whom, and the same numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dense import randomise
from torch import Tensor
from toy_recipes import random_network, some_batch, workshop

from arvid.models.denoiser import CachedDenoiser
from arvid.samplers.schedule import TIMESTEPS
from arvid.training.data import Clips
from arvid.training.network import Batch, Network, Passes, View, initialise, mix
from arvid.training.workshop import Workshop

LOW, HIGH = "a low brief wave", "a high long wave"


def moved(a: Tensor, b: Tensor) -> Tensor:
    """Which frames [F] differ in any row."""
    return (a - b).abs().amax((0, 2, 3, 4)) > 1e-6


def inputs(passes: Passes, batch: Batch) -> tuple[Tensor, Tensor]:
    """Noisy latents and a level for each chunk."""
    rng = np.random.default_rng(1)
    noise = torch.from_numpy(rng.standard_normal(batch.clean.shape, np.float32))
    sigma = passes.sigmas(rng, batch)
    return mix(batch.clean, noise, sigma), sigma


def seen_by(start: int, window: int, sink: int, chunk: int) -> set[int]:
    """The frames before `start` that `window` frames, the sinks and a whole chunk included, leave room for."""
    return {f for f in range(start) if f < sink or f >= start - (window - sink - chunk)}


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(("view", "sink"), [("clean", 0), ("clean", 2), ("noisy", 0), ("joint", 0)])
def test_a_chunk_sees_exactly_the_frames_of_its_view(tmp_path: Path, view: View, sink: int, alone: bool) -> None:
    """By perturbation of one frame at a time; one layer, so that nothing is seen through others."""
    shop = workshop(tmp_path, dit={"num_blocks": 1}, sink=sink)
    passes, net, card = shop.passes, random_network(shop), shop.card
    batch = some_batch(passes, alone)
    x, sigma = inputs(passes, batch)
    starts = [chunk.start for chunk in passes.chunks(alone)]
    assert starts == ([0, 1, 3, 5, 7] if alone else [0, 2, 4, 6])
    with torch.no_grad():
        text = passes.text(net, batch, passes.copies(1, view))
        base = passes.velocity(net, batch, x, sigma, text, view)
        for frame in range(passes.frames):
            own = int(batch.chunk_of[frame])
            touched = x.clone()
            touched[:, frame] += 1
            by_noisy = moved(base, passes.velocity(net, batch, touched, sigma, text, view))
            history = [frame in seen_by(starts[int(c)], card.window, sink, card.chunk) for c in batch.chunk_of]
            wanted = {"clean": batch.chunk_of == own, "joint": torch.ones_like(batch.chunk_of, dtype=torch.bool),
                      "noisy": (batch.chunk_of == own) | torch.tensor(history)}[view]  # fmt: skip
            assert torch.equal(by_noisy, wanted), f"noisy frame {frame}"
            clean = batch.clean.clone()
            clean[:, frame] += 1
            by_clean = moved(base, passes.velocity(net, replace(batch, clean=clean), x, sigma, text, view))
            assert by_clean.tolist() == [view == "clean" and see for see in history], f"clean frame {frame}"


@pytest.mark.parametrize(("alone", "sink", "context_noise"), [
    (False, 0, 0.0), (False, 2, 0.0), (True, 0, 0.0), (True, 2, 100.0),
])  # fmt: skip
def test_teacher_forcing_is_a_rollout_on_the_clean_frames(
    tmp_path: Path, alone: bool, sink: int, context_noise: float
) -> None:
    """One pass over [clean | noisy | noisy] and, chunk after chunk, a pass over the store and a commit of the truth."""
    shop = workshop(tmp_path, sink=sink, context_noise=context_noise)
    passes, net, config = shop.passes, random_network(shop), shop.passes.config
    batch = some_batch(passes, alone)
    (x, sigma), (x2, sigma2) = (inputs(passes, batch) for _ in range(2))
    with torch.no_grad():
        text = passes.text(net, batch, 3)
        whole = passes.velocity(net, batch, torch.cat((x2, x), 1), torch.cat((sigma2, sigma), 1), text)
        assert config.cache and config.time and config.rotary
        one = replace(batch, clean=batch.clean[:1])
        denoiser = CachedDenoiser(
            net.dit, net.dit.prepare_text(passes.encode(net, [c[0] for c in batch.captions[:1]])), policy=config.cache,
            time=config.time, rotary=config.rotary, batch=1, size=(4, 4), horizon=passes.frames,
        )  # fmt: skip
        for chunk in passes.chunks(alone):
            own = slice(chunk.start, chunk.end)
            level = float(sigma[0, chunk.start])
            x0 = denoiser(x[:1, own], (replace(chunk, sigma=level),))
            found = whole[:1, passes.frames :][:, own]
            torch.testing.assert_close((x[:1, own] - x0) / level, found, atol=1e-5, rtol=1e-4)
            denoiser.commit(one.clean[:, own], (replace(chunk, sigma=context_noise / TIMESTEPS),))


def test_copies_of_a_clip_do_not_see_each_other(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    passes, net = shop.passes, random_network(shop)
    batch = some_batch(passes)
    (x, sigma), text = inputs(passes, batch), passes.text(net, batch, 3)
    with torch.no_grad():
        both = passes.velocity(net, batch, torch.cat((x, x + 1), 1), sigma.repeat(1, 2), text)
        single = passes.velocity(net, batch, x, sigma, passes.text(net, batch, 2))
    torch.testing.assert_close(both[:, : passes.frames], single, atol=1e-5, rtol=1e-5)


def test_levels_are_those_of_the_schedule_one_a_chunk(tmp_path: Path) -> None:
    passes = workshop(tmp_path).passes
    batch = replace(some_batch(passes), clean=torch.zeros(4000, passes.frames, 2, 4, 4))
    sigma = passes.sigmas(np.random.default_rng(0), batch)
    assert torch.equal(sigma[:, 0::2], sigma[:, 1::2])
    assert not (sigma[:, 0] == sigma[:, 2]).any()
    uniform = sigma[:, 0] / (3 - 2 * sigma[:, 0])  # the shift of 3, undone
    grid = torch.linspace(0.05, 0.95, 19)
    steps = (uniform[:, None] < grid).float().mean(0)
    assert (steps - grid).abs().max() < 1.95 / 4000**0.5  # Kolmogorov and Smirnov, 0.1 %
    joint = passes.sigmas(np.random.default_rng(0), batch, view="joint")
    assert bool((joint == joint[:, :1]).all())


def changing(shop: Workshop) -> tuple[Passes, Network, Batch]:
    """Two clips, the second of which changes its caption at frame 4."""
    passes, net = shop.passes, random_network(shop)
    randomise(net.text, 3)  # as it is made, captions hardly differ
    batch = replace(some_batch(passes), captions=[(LOW, LOW, 8), (LOW, HIGH, 4)])
    return passes, net, batch


def test_the_later_caption_does_not_reach_frames_before_the_change(tmp_path: Path) -> None:
    passes, net, batch = changing(workshop(tmp_path))
    x, sigma = inputs(passes, batch)

    def velocity(captions: list[tuple[str, str, int]]) -> Tensor:
        said = replace(batch, captions=captions)
        return passes.velocity(net, said, x, sigma, passes.text(net, said, 2))

    with torch.no_grad():
        changed, again, plain = (velocity([(LOW, LOW, 8), second])
                                 for second in ((LOW, HIGH, 4), (LOW, LOW, 4), (LOW, LOW, 8)))  # fmt: skip
    torch.testing.assert_close(changed[:, :4], again[:, :4], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(changed[0], again[0], atol=1e-6, rtol=1e-5)
    assert moved(changed[1:], again[1:]).tolist() == [False] * 4 + [True] * 4
    torch.testing.assert_close(again, plain, atol=1e-5, rtol=1e-5)  # the same caption twice is that caption


def test_guidance_leads_from_no_text_to_the_text(tmp_path: Path) -> None:
    passes, net, batch = changing(workshop(tmp_path))
    batch = replace(batch, captions=[(LOW, LOW, 8), (HIGH, HIGH, 8)])
    x, sigma = inputs(passes, batch)
    with torch.no_grad():
        none, one, three = (passes.guided(net, batch, x, sigma, g, "clean") for g in (0.0, 1.0, 3.0))
        blank = net.dit.prepare_text(torch.zeros_like(passes.encode(net, [LOW, HIGH])))
        torch.testing.assert_close(none, passes.velocity(net, batch, x, sigma, blank), atol=1e-6, rtol=1e-5)
    assert (one - none).abs().max() > 1e-3
    torch.testing.assert_close(three, none + 3 * (one - none), atol=1e-5, rtol=1e-5)


def test_a_new_network_gives_no_velocity(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    net, batch = random_network(shop), some_batch(shop.passes)
    initialise(net.dit)
    x, sigma = inputs(shop.passes, batch)
    assert not shop.passes.velocity(net, batch, x, sigma, shop.passes.text(net, batch, 2)).any()


def test_batches_only_mix_clips_that_fit_the_layout() -> None:
    captions = [(LOW, LOW, 8), (LOW, HIGH, 4), (LOW, HIGH, 5)]
    clips = Clips(torch.zeros(3, 8, 2, 4, 4), captions, np.array([True, False, True]), np.array([False, True, True]))
    rng = np.random.default_rng(0)
    assert set(clips.pick(rng, 50, alone=False)) == {0, 1}
    assert set(clips.pick(rng, 50, alone=True)) == {0, 2}
    assert set(clips.pick(rng, 50, alone=True, whole_captions=True)) == {0}
    with pytest.raises(ValueError, match="give more clips"):
        replace(clips, changed=np.array([True] * 3)).pick(rng, 1, alone=True, whole_captions=True)
