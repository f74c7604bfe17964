"""The loop that every stage runs in, and the latents of the bundled model."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy_recipes import TOY, same, saved

from arvid.training import datasets, loop
from arvid.training.blocks import fit_blocks, to_blocks
from arvid.training.data import training_clips
from arvid.training.datasets import ProceduralClips
from arvid.training.loop import Optimisation, follow, optimisers, rng_for, save_atomically, train
from arvid.training.recipe import read_recipe
from arvid.training.vae import clip_batch

HOW = Optimisation(steps=9, rate=0.1, batch=8, warmup=2)


@pytest.fixture(autouse=True)
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)


def fit(folder: Path, how: Optimisation = HOW, stop: int | None = None, **given: Any) -> tuple[nn.Module, nn.Module]:
    """Noisy linear regression, interrupted before step `stop`."""
    torch.manual_seed(3)
    module, average = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)

    def step_loss(step: int, rng: np.random.Generator, _: nn.Module) -> dict[str, Tensor]:
        if step == stop:
            raise KeyboardInterrupt
        x = torch.from_numpy(rng.standard_normal((8, 4)).astype(np.float32))
        return {"loss": (module(x) + torch.randn(8, 4) - 2 * x).square().mean()}

    with contextlib.suppress(KeyboardInterrupt):
        train("linear", module, how, step_loss, folder / "linear.pt", average=average, **given)
    return module, average


@pytest.mark.parametrize("stop", [0, 1, 4, 8])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, stop: int) -> None:
    whole = fit(tmp_path / "whole")
    fit(tmp_path / "parts", stop=stop)
    resumed = fit(tmp_path / "parts")
    assert same(saved(tmp_path / "whole", "linear"), saved(tmp_path / "parts", "linear"))
    for a, b in zip(whole, resumed, strict=True):
        assert same(a.state_dict(), b.state_dict())


def test_a_run_goes_on_from_its_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(tmp_path / "whole")
    fit(tmp_path / "parts", stop=3)
    monkeypatch.setattr(loop, "SAVE_EVERY", 1e9)
    fit(tmp_path / "parts", stop=6)
    assert saved(tmp_path / "parts", "linear")["step"] == 3
    assert same(whole[1].state_dict(), fit(tmp_path / "parts")[1].state_dict())


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    a, b = (fit(tmp_path / str(seed), replace(HOW, seed=seed))[0].weight for seed in (0, 1))
    assert not torch.equal(a, b)  # pyright: ignore[reportArgumentType]
    assert len({rng_for(*key).random() for key in ((0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1))}) == 4


def test_a_changed_recipe_is_refused_and_a_longer_one_is_not(tmp_path: Path) -> None:
    fit(tmp_path, identity={"rate": 0.1, "steps": 9})
    for other in ({"rate": 0.2, "steps": 9}, {"steps": 9}, {"rate": 0.1, "steps": 9, "muon": None, "view": "clean"}):
        with pytest.raises(ValueError, match=r"another recipe \(differs in (rate|view)\)"):
            fit(tmp_path, identity=other)
    fit(tmp_path, replace(HOW, steps=11), identity={"rate": 0.1, "steps": 11})
    assert saved(tmp_path, "linear")["step"] == 11
    with pytest.raises(ValueError, match="after 11 steps, and the recipe has 9"):
        fit(tmp_path, identity={"rate": 0.1, "steps": 9})


@pytest.mark.parametrize("spoil", [lambda whole: b"", lambda whole: whole[: len(whole) // 2], lambda whole: b"none"])
def test_a_damaged_checkpoint_is_refused_by_its_name(tmp_path: Path, spoil: Any) -> None:
    fit(tmp_path)
    path = tmp_path / "linear.pt"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=r"linear\.pt is no checkpoint of arvid train"):
        fit(tmp_path)
    torch.save({"weights": 1}, path)
    with pytest.raises(ValueError, match=r"linear\.pt is no checkpoint of arvid train \('identity'\)"):
        fit(tmp_path)


def test_a_checkpoint_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that breaks off leaves the one before, and nothing else."""
    path = tmp_path / "x.pt"
    save_atomically({"step": 1}, path)

    def broken(value: Any, place: Path) -> None:
        Path(place).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="No space"):
        save_atomically({"step": 2}, path)
    assert torch.load(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_found_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        fit(tmp_path / "file", stop=0)


@pytest.mark.parametrize(("slope", "what"), [(math.nan, "loss"), (math.inf, "loss"), (None, "gradient")])
def test_what_is_not_finite_stops_before_it_reaches_the_weights(
    tmp_path: Path, slope: float | None, what: str
) -> None:
    module, average = nn.Linear(1, 1), nn.Linear(1, 1)

    def step_loss(step: int, *_: Any) -> dict[str, Tensor]:
        weight = module.weight.sum()
        bad = (weight * 0).sqrt() if slope is None else weight * slope  # whose slope at 0 is not finite
        return {"loss": bad if step == 2 else weight}

    with pytest.raises(FloatingPointError, match=f"bad: the {what} is .* at step 2: lower the rate"):
        train("bad", module, HOW, step_loss, tmp_path / "bad.pt", average=average)
    assert saved(tmp_path, "bad")["step"] == 2
    assert all(value.isfinite().all() for value in module.state_dict().values())


def test_the_rate_warms_up_holds_and_falls_to_zero() -> None:
    how = Optimisation(steps=100, rate=1.0, batch=1, warmup=10, decay=0.5)
    scales = [how.scale(step) for step in range(101)]
    assert scales[0] == 0.1
    assert scales[9] == scales[50] == 1.0
    assert scales[75] == pytest.approx(0.5)
    assert scales[100] == 0.0


@pytest.mark.parametrize("changes", [
    {"steps": 0}, {"steps": True}, {"steps": 2.5}, {"batch": 0}, {"warmup": -1}, {"seed": -1}, {"rate": 0.0},
    {"rate": math.nan}, {"rate": -1.0}, {"rate": math.inf}, {"clip": 0.0}, {"muon": math.nan}, {"decay": 1.1},
    {"decay": math.nan}, {"ema": -0.1}, {"ema": math.nan},
], ids=str)  # fmt: skip
def test_numbers_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(changes))}="):
        replace(HOW, **changes)


def test_the_average_follows_the_weights_that_moved() -> None:
    module, average = nn.Linear(3, 2), nn.Linear(3, 2).requires_grad_(False)
    before = average.weight.clone()
    follow(average, module, 0.0)
    assert torch.equal(average.weight, before)  # no gradient, no step
    module(torch.ones(3)).sum().backward()
    follow(average, module, 1.0)
    assert torch.equal(average.weight, before)
    follow(average, module, 0.75)
    torch.testing.assert_close(average.weight, 0.75 * before + 0.25 * module.weight.detach())
    follow(average, module, 0.0)
    assert torch.equal(average.weight, module.weight)


def test_an_average_without_decay_is_the_weights_and_one_with_it_lags(tmp_path: Path) -> None:
    module, average = fit(tmp_path / "copy", replace(HOW, ema=0.0))
    assert same(module.state_dict(), average.state_dict())
    module, average = fit(tmp_path / "lag", replace(HOW, ema=0.9))
    assert not same(module.state_dict(), average.state_dict())


def test_muon_takes_the_matrices_inside_blocks_and_adam_the_rest() -> None:
    module = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(4, 4)]), "head": nn.Linear(4, 4)})
    module["fixed"] = nn.Linear(1, 1).requires_grad_(False)
    muon, adam = optimisers(module.named_parameters(), 0.1, 0.2)
    assert (type(muon), type(adam)) == (torch.optim.Muon, torch.optim.AdamW)
    ((matrix,), rest) = muon.param_groups[0]["params"], adam.param_groups[0]["params"]
    assert matrix is module["blocks"][0].weight  # pyright: ignore[reportIndexIssue]
    assert [id(p) for p in rest] == [id(p) for p in (module["blocks"][0].bias, *module["head"].parameters())]  # pyright: ignore[reportIndexIssue]
    assert (muon.param_groups[0]["lr"], adam.param_groups[0]["lr"]) == (0.2, 0.1)


def test_crops_hold_the_object() -> None:
    video = clip_batch(np.random.default_rng(0), 8, 5, crop=8)
    assert video.shape == (8, 3, 5, 32, 32)
    assert bool((video.flatten(2).amax(2) - video.flatten(2).amin(2)).amax(1).gt(0.4).all())  # none is flat background


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return torch.stack([video for *_, video in training_clips(6, seed=1)])


def test_block_latents_are_uncorrelated_with_spreads_by_fourth_roots(clips: Tensor) -> None:
    code = fit_blocks(clips, channels=8, time=4, space=8)
    latents = code.encode(clips)
    assert latents.shape == (6, 21, 8, 8, 8)
    rows = latents.movedim(2, -1).flatten(0, 3)
    torch.testing.assert_close(rows.T @ rows / len(rows), torch.diag(code.std**2), atol=2e-3, rtol=0)
    assert float(code.std.square().mean()) == pytest.approx(1, rel=1e-5)
    blocks = to_blocks(clips, 4, 8).flatten(0, 3)
    explained = torch.linalg.svdvals((blocks - blocks.mean(0)).double())[:8].square()
    torch.testing.assert_close((code.std**4 / code.std[0] ** 4).double(), explained / explained[0], atol=0, rtol=1e-3)


def test_block_latents_are_the_best_linear_code_of_their_size(clips: Tensor) -> None:
    blocks = to_blocks(clips, 4, 8)
    centred = blocks - blocks.flatten(0, 3).mean(0)
    singular = torch.linalg.svdvals(centred.flatten(0, 3).double()).square()
    for channels in (2, 8, 32):
        code = fit_blocks(clips, channels, 4, 8)
        back = code.encode(clips).movedim(2, -1) @ torch.linalg.pinv(code.components).T + code.mean
        left = float((back - blocks).square().sum() / centred.square().sum())
        assert left == pytest.approx(float(singular[channels:].sum() / singular.sum()), rel=1e-3)


def test_one_folder_has_one_code_for_its_vae_and_its_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card, data = read_recipe(TOY.with_name("tiny.toml")).card, ProceduralClips(count=2)
    monkeypatch.setattr(datasets, "CODE_CLIPS", 6)
    code = data.code(card, tmp_path)
    monkeypatch.setattr(datasets, "CODE_CLIPS", 8)  # another fit, as after another rounding
    other = tmp_path / "other"
    other.mkdir()
    assert not torch.equal(data.code(card, other).components, code.components)
    latents = data.clips(card, tmp_path).latents
    for (*_, video), own in zip(training_clips(2, data.seed), latents, strict=True):
        assert torch.equal(code.encode(video[None])[0].half(), own)


def test_a_latent_frame_is_its_own_pixel_frames_and_the_first_stands_alone(clips: Tensor) -> None:
    code = fit_blocks(clips[:2], 8, 4, 8)
    whole = code.encode(clips[:2])
    torch.testing.assert_close(code.encode(clips[:2, :, :41]), whole[:, :11])
    touched = clips[:2].clone()
    touched[:, :, 5:9] += 0.5  # latent frame 2
    moved = (code.encode(touched) - whole).abs().amax((0, 2, 3, 4)) > 1e-4
    assert moved.tolist() == [i == 2 for i in range(21)]
