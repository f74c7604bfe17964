"""Flow matching, pairs, resampling and the data of a known law, against closed forms."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_recipes import FAST, random_network, same, saved, some_batch, toy, workshop

from arvid.samplers.schedule import warp
from arvid.training.datasets import Gaussian, wasserstein
from arvid.training.loop import Said
from arvid.training.network import Batch, Network, Passes, View, mix, per_frame
from arvid.training.ode import OdePairs, trajectory
from arvid.training.recipe import recipe_of
from arvid.training.resampling import resample
from arvid.training.workshop import Workshop

LEVELS = warp((1000, 750, 500, 250), 3.0)


def losses_of(folder: Path, monkeypatch: pytest.MonkeyPatch, stage: dict[str, Any], **changes: Any) -> list[float]:
    """The loss of every step of one stage."""
    from arvid.training import loop

    monkeypatch.setattr(loop, "SAY_EVERY", -1.0)
    said: list[Said] = []
    shop = Workshop(recipe_of(toy(stage, **changes)), folder, say=said.append)
    shop.run()
    return [each.losses["loss"] for each in said]


@pytest.mark.parametrize("view", ["clean", "noisy", "joint"])
def test_the_first_loss_is_the_mean_square_of_noise_less_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: View
) -> None:
    """The head begins at 0, so it is E|noise - x0|^2 = 1 + mean^2 + spread^2 = 1.5."""
    stage = {"name": "flow", "steps": 1, "batch": 256, "view": view, "copies": 1}
    (loss,) = losses_of(tmp_path, monkeypatch, stage, data={"name": "gaussian"})
    assert loss == pytest.approx(1.5, rel=0.02)


@pytest.mark.parametrize("view", ["clean", "noisy"])
def test_first_chunks_add_their_own_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: View) -> None:
    """Twice the loss of the test above."""
    stage = {"name": "flow", "steps": 1, "batch": 256, "view": view, "copies": 1, "first_chunks": 256}
    (loss,) = losses_of(tmp_path, monkeypatch, stage, data={"name": "gaussian"})
    assert loss == pytest.approx(3, rel=0.02)


def test_teacher_forcing_learns_one_clip_by_heart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = {"name": "flow", "steps": 200, "batch": 8, "rate": 5e-3, "copies": 4}
    losses = losses_of(tmp_path, monkeypatch, stage, data={"name": "gaussian", "count": 1}, size=[2, 2], dit=FAST)
    assert np.mean(losses[-20:]) < losses[0] / 5


def test_a_stage_of_first_frames_never_looks_at_later_ones(tmp_path: Path) -> None:
    stage = {"name": "flow", "steps": 2, "batch": 4, "frames": 3}
    weights = []
    for folder, later in (("as they are", None), ("not finite", torch.nan)):
        shop = workshop(tmp_path / folder, stage)
        if later is not None:
            shop.clips.latents[:, 3:] = later
        shop.run()
        weights.append(saved(tmp_path / folder, "flow")["module"])
    assert same(*weights)


def linear(passes: Passes, net: Network, batch: Batch, x: Tensor, sigma: Tensor, *rest: Any) -> Tensor:
    """Velocities of a teacher whose data are normal in every latent value, of mean 0.3 and spread 0.5."""
    s = per_frame(sigma)
    gain = (1 - s) * 0.25 / ((1 - s) ** 2 * 0.25 + s**2)
    return (x - 0.3 - gain * (x - (1 - s) * 0.3)) / s


def test_trajectories_are_euler_steps_of_the_teachers_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A linear teacher keeps x = a + b noise; a and b follow the recursion of Euler steps in closed form."""
    shop = workshop(tmp_path)
    monkeypatch.setattr(Passes, "guided", linear)
    batch, noise = some_batch(shop.passes), torch.randn(2, 8, 2, 4, 4)
    levels = [1.0, 0.8, 0.5, 0.2, 0.0]
    states = trajectory(shop, random_network(shop), batch, noise, 1.0, "clean", levels)
    a, b = 0.0, 1.0
    for i, (sigma, lower) in enumerate(pairwise(levels), start=1):
        gain = (1 - sigma) * 0.25 / ((1 - sigma) ** 2 * 0.25 + sigma**2)
        slope = (1 - gain) / sigma  # of the velocity in x; its constant is (gain (1 - sigma) - 1) mean / sigma
        constant = (gain * (1 - sigma) - 1) * 0.3 / sigma
        a, b = a + (lower - sigma) * (constant + slope * a), b + (lower - sigma) * slope * b
        torch.testing.assert_close(states[:, i], a + b * noise, atol=1e-5, rtol=1e-5)
    assert torch.equal(states[:, 0], noise)


PAIRS = {"name": "ode_pairs", "steps": 2, "batch": 4, "pairs": 6, "solver_steps": 16}


def pairs(shop: Workshop, view: View = "clean") -> dict[str, Any]:
    stage = shop.recipe.stages[1]
    assert isinstance(stage, OdePairs)
    return stage._pairs(shop, view)


def test_pairs_are_states_at_the_cards_steps_and_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many Euler steps they are on the law's exact flow, (1 - s) mean + root(((1 - s) spread)^2 + s^2) z."""
    shop = workshop(tmp_path, {"name": "flow", "steps": 1, "batch": 2}, PAIRS | {"solver_steps": 500})
    monkeypatch.setattr(Passes, "guided", linear)
    shop.made["flow"] = random_network(shop)
    made = pairs(shop)
    states = made["states"].float()
    assert states.shape == (6, 5, 8, 2, 4, 4)
    for i, sigma in enumerate((*LEVELS, 0.0)):
        exact = (1 - sigma) * 0.3 + ((1 - sigma) ** 2 * 0.25 + sigma**2) ** 0.5 * states[:, 0]
        torch.testing.assert_close(states[:, i], exact, atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("view", ["clean", "joint"])
def test_pairs_are_kept_and_made_again_for_another_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: View
) -> None:
    calls: list[int] = []
    monkeypatch.setattr("arvid.training.ode.trajectory", lambda *args: calls.append(1) or trajectory(*args))
    flow = {"name": "flow", "steps": 1, "batch": 2, "view": view, "copies": 1}

    def made(**changes: Any) -> dict[str, Any]:
        shop = workshop(tmp_path, flow, PAIRS | changes)
        shop.made["flow"] = random_network(shop)
        return pairs(shop, view)

    first, again, longer = made(), made(), made(steps=5)
    assert len(calls) == 2  # batches of 4 and 2
    assert torch.equal(first["states"], again["states"])
    assert torch.equal(first["states"], longer["states"])
    assert not torch.equal(first["states"], made(guidance=3.0)["states"])
    assert len(calls) == 4
    (tmp_path / "ode_pairs-pairs.pt").write_bytes(b"damaged")
    assert torch.equal(first["states"], made()["states"])


@pytest.mark.parametrize(("view", "students"), [("clean", "clean"), ("joint", "noisy")])
def test_the_student_of_pairs_sees_what_its_teacher_lets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: View, students: View
) -> None:
    shop = workshop(tmp_path, {"name": "flow", "steps": 1, "batch": 2, "view": view, "copies": 1}, PAIRS)
    shop.made["flow"] = random_network(shop)
    pairs(shop, view)
    seen: list[str] = []
    velocity = Passes.velocity
    monkeypatch.setattr(Passes, "velocity", lambda *args: seen.append(args[-1]) or velocity(*args))
    shop.recipe.stages[1].run(shop)
    assert seen == [students] * 2


def test_resampling_degrades_history_as_much_as_is_asked(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    passes, net = shop.passes, random_network(shop)
    batch, noise = some_batch(passes, alone=True), torch.randn(2, 8, 2, 4, 4)
    errors = []
    for sigma in (1e-6, 0.01, 0.3, 0.9):
        noised = mix(batch.clean, noise, torch.full((2, 8), sigma))
        errors.append(float((resample(passes, net, batch, noised, sigma, 4) - batch.clean).square().mean()))
    assert errors[0] < 1e-9
    assert errors == sorted(errors)
    assert errors[-1] > 0.1


def test_resampling_is_causal_and_runs_on_its_own_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = workshop(tmp_path)
    passes, net = shop.passes, random_network(shop)
    batch = some_batch(passes)
    noised = mix(batch.clean, torch.randn(2, 8, 2, 4, 4), torch.full((2, 8), 0.5))
    base = resample(passes, net, batch, noised, 0.5, 2)
    touched = noised.clone()
    touched[:, 2:4] += 1
    moved = (resample(passes, net, batch, touched, 0.5, 2) - base).abs().amax((0, 2, 3, 4)) > 1e-6
    assert moved.tolist() == [False] * 2 + [True] * 6
    other = replace(batch, clean=batch.clean + 1)  # the truth is not looked at
    assert torch.equal(resample(passes, net, other, noised, 0.5, 2), base)


def test_the_wasserstein_distance_of_normal_laws() -> None:
    """Of laws with commuting covariances: |m - m2|^2 and the squares of differences of standard deviations."""
    rng = np.random.default_rng(0)
    mean, mean2, spread, spread2 = rng.normal(size=(2, 5)).tolist() + rng.uniform(0.1, 2, size=(2, 5)).tolist()
    basis, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    laws = [(basis @ np.array(m), basis @ np.diag(np.square(s)) @ basis.T)
            for m, s in ((mean, spread), (mean2, spread2))]  # fmt: skip
    exact = (np.square(np.subtract(mean, mean2)) + np.square(np.subtract(spread, spread2))).sum() ** 0.5
    assert wasserstein(*laws[0], *laws[1]) == pytest.approx(exact, rel=1e-9)
    a, b = (m @ m.T for m in rng.normal(size=(2, 5, 5)))  # which do not commute
    zero = np.zeros(5)
    assert wasserstein(zero, a, zero, b) == pytest.approx(wasserstein(zero, b, zero, a), rel=1e-9)
    assert wasserstein(zero, a, zero, a) == pytest.approx(0, abs=1e-6)


def test_gaussian_data_have_their_law(tmp_path: Path) -> None:
    """Means and covariances over frames within six standard errors."""
    data, card = Gaussian(count=400, spread=0.7), recipe_of(toy(size=[8, 8])).card
    clips = data.clips(card, tmp_path)
    for i, prompt in enumerate(data.prompts(4)):
        assert clips.captions[i] == (prompt, prompt, 8)
        rows = clips.latents[i::4].double().movedim(1, -1).flatten(0, 3).numpy()  # [pixels, F]
        mean, covariance = data.law(prompt, 8)
        assert np.diag(covariance) == pytest.approx(0.49)
        variances = np.diag(covariance)
        assert (abs(rows.mean(0) - mean) < 6 * (variances / len(rows)) ** 0.5).all()
        errors = ((np.outer(variances, variances) + covariance**2) / len(rows)) ** 0.5  # of a normal law's covariance
        assert (abs(np.cov(rows.T) - covariance) < 6 * errors).all()
    assert torch.equal(clips.latents, data.clips(card, tmp_path).latents)
    assert not torch.equal(clips.latents, replace(data, seed=1).clips(card, tmp_path).latents)
