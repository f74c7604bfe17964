"""Every stage: killed at any step and run again it is what it would have been, and another recipe is refused."""

from __future__ import annotations

import fcntl
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from toy_recipes import FLOW, same, saved, toy, workshop

from arvid import Pipeline
from arvid.models.specs import Card
from arvid.training import datasets, loop
from arvid.training.datasets import Gaussian
from arvid.training.recipe import Flow, TrainingRecipe, recipe_of
from arvid.training.workshop import Workshop

EVERY = [
    FLOW | {"muon": 0.01},
    FLOW | {"label": "joint", "view": "joint", "copies": 1},
    FLOW | {"label": "noisy", "view": "noisy", "copies": 1},
    {"name": "consistency", "steps": 3, "batch": 4, "teacher": "flow"},
    {"name": "ode_pairs", "steps": 3, "batch": 4, "pairs": 6, "solver_steps": 4, "teacher": "joint"},
    {"name": "resampling", "steps": 3, "batch": 4, "start": "flow"},
    {"name": "self_forcing", "steps": 3, "batch": 4, "ratio": 2, "teacher": "flow", "start": "consistency"},
]
LABELS = [stage.get("label", stage["name"]) for stage in EVERY]


class Killed(BaseException):
    """Nothing catches it."""


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Where to die: before step `at` of `stage`. Checkpoints are written after every step."""
    place = SimpleNamespace(stage="", at=-1)
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)
    rng_for = loop.rng_for

    def dying(seed: int, stage: str, step: int) -> np.random.Generator:
        if (stage, step) == (place.stage, place.at):
            raise Killed
        return rng_for(seed, stage, step)

    monkeypatch.setattr(loop, "rng_for", dying)
    return place


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every stage that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    workshop(folder, *EVERY).run()
    return folder


def test_every_stage_killed_and_resumed_is_the_uninterrupted_run(
    whole: Path, tmp_path: Path, kill: SimpleNamespace
) -> None:
    """Weights, averages and optimisers, bit for bit, though no run does more than two steps of a stage."""
    for kill.stage in LABELS:
        for kill.at in (1, 2):
            with pytest.raises(Killed):
                workshop(tmp_path, *EVERY).run()
            assert saved(tmp_path, kill.stage)["step"] == kill.at
    kill.stage = ""
    workshop(tmp_path, *EVERY).run()
    for label in LABELS:
        assert same(saved(tmp_path, label), saved(whole, label)), label


def test_another_seed_makes_other_weights(whole: Path, tmp_path: Path) -> None:
    workshop(tmp_path, EVERY[0], EVERY[3] | {"seed": 1}).run()
    assert same(saved(tmp_path, "flow")["module"], saved(whole, "flow")["module"])
    assert not same(saved(tmp_path, "consistency")["module"], saved(whole, "consistency")["module"])
    workshop(tmp_path / "other", EVERY[0] | {"seed": 1, "steps": 1}).run()
    workshop(tmp_path / "this", EVERY[0] | {"steps": 1, "rate": 1e-30}).run()  # nearly as it was made
    a, b = (saved(tmp_path / name, "flow")["module"]["dit.blocks.0.ffn.0.weight"] for name in ("other", "this"))
    assert (a - b).abs().max() > 0.1


def changed(index: int, **fields: Any) -> list[dict[str, Any]]:
    return [stage | fields if i == index else stage for i, stage in enumerate(EVERY)]


@pytest.mark.parametrize(("stages", "changes", "where"), [
    (changed(0, rate=2e-3), {}, r"flow\.pt was made by another recipe \(differs in rate\)"),
    (changed(3, points=8), {}, r"consistency\.pt was made by another recipe \(differs in points\)"),
    (changed(6, last_only=True), {}, r"self_forcing\.pt was made by another recipe \(differs in last_only\)"),
    (changed(0, steps=4), {}, r"joint\.pt was made by another recipe \(differs in stages before\)"),
    (EVERY, {"data": {"name": "gaussian", "count": 25}}, r"flow\.pt .*differs in data\)"),
    (EVERY, {"window": 8}, r"flow\.pt .*differs in model\)"),
    (changed(6, steps=2), {}, r"self_forcing\.pt is after 3 steps, and the recipe has 2"),
], ids=["own field", "a later stage", "the last", "an earlier stage", "data", "model", "fewer steps"])  # fmt: skip
def test_a_changed_recipe_is_refused_before_anything_is_trained(
    whole: Path, stages: list[dict[str, Any]], changes: dict[str, Any], where: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    with pytest.raises(ValueError, match=where):
        workshop(whole, *stages, **changes)
    assert before == {path: path.stat().st_mtime_ns for path in whole.iterdir()}


def test_the_last_stage_may_go_on_for_longer(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    workshop(folder, *changed(6, steps=5)).run()
    assert saved(folder, "self_forcing")["step"] == 5
    assert same(saved(folder, "resampling"), saved(whole, "resampling"))


def test_a_damaged_checkpoint_of_any_stage_is_found_first(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    path = folder / "self_forcing.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"self_forcing\.pt is no checkpoint of arvid train .*delete it"):
        workshop(folder, *EVERY)
    path.unlink()
    workshop(folder, *EVERY).run()
    assert same(saved(folder, "self_forcing"), saved(whole, "self_forcing"))


def test_what_a_killed_write_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "flow.pt.part").write_bytes(b"half")
    workshop(tmp_path).run()
    assert not list(tmp_path.glob("*.part"))


def test_a_folder_without_room_is_refused_and_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"0\.0 GB free, and checkpoints may take .* give another folder with -o"):
        workshop(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_takes_no_more_room_than_was_asked_for(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(TrainingRecipe, "check_room", lambda self, folder, parameters: asked.append(parameters))
    recipe = workshop(whole, *EVERY).recipe
    monkeypatch.undo()
    largest = max((whole / f"{label}.pt").stat().st_size for label in LABELS)
    files = sum((whole / f"{label}.pt").stat().st_size for label in LABELS)
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=files + largest))
    with pytest.raises(OSError, match="GB free"):
        recipe.check_room(whole, asked[0])


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write to .*file/run: .*give another folder with -o"):
        workshop(tmp_path / "file" / "run")
    (tmp_path / ".lock").mkdir()  # which cannot be opened
    with pytest.raises(OSError, match=r"cannot write to .*: Is a directory; name another folder"):
        workshop(tmp_path).run()


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    with (tmp_path / ".lock").open("w") as lock:
        lock.write("4711\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"process 4711 is training in .*: wait for it"):
            shop.run()
        assert not (tmp_path / "flow.pt").exists()
    shop.run()
    assert saved(tmp_path, "flow")["step"] == 3


def test_data_of_other_sizes_than_the_models_are_refused(tmp_path: Path) -> None:
    recipe = recipe_of(toy())

    class Short(Gaussian):
        def clips(self, card: Card, folder: Path) -> Any:
            clips = super().clips(card, folder)
            return replace(clips, latents=clips.latents[:, 1:])

    shop = Workshop(TrainingRecipe(Short(count=4), recipe.card, (Flow(1),)), tmp_path)
    with pytest.raises(ValueError, match=r"gave latents of shape \(4, 7, 2, 4, 4\); the model needs \[8, 2, 4, 4\]"):
        shop.run()


VAE = {"dim": 4, "z_dim": 4, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "temporal_downsample": [True, True],
       "layout": "wan22", "patch": 2}  # fmt: skip


def test_clips_give_folders_that_load_and_a_resumed_vae_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: SimpleNamespace
) -> None:
    monkeypatch.setattr(datasets, "CODE_CLIPS", 3)
    monkeypatch.setattr("arvid.training.workshop.LOOKS", 2)
    stages = {"name": "vae", "steps": 4, "batch": 2}, FLOW | {"steps": 1}
    model = {"size": [64, 64], "train_horizon": 21, "vae": VAE, "chunk": 3, "window": 9}
    plain = toy(*stages, data={"name": "clips", "count": 6}, **model,
                dit={"in_channels": 4, "out_channels": 4, "text_length": 20})  # fmt: skip
    plain["model"]["text"]["vocab_size"] = 35
    kill.stage = "vae"
    for kill.at in (2, 3):
        with pytest.raises(Killed):
            Workshop(recipe_of(plain), tmp_path / "parts").run()
    kill.stage = ""
    for name, look_every in (("parts", 0), ("whole", 1)):  # looks leave no trace in the weights
        Workshop(recipe_of(plain), tmp_path / name, look_every=look_every).run()
    assert same(saved(tmp_path / "parts", "vae"), saved(tmp_path / "whole", "vae"))
    assert same(saved(tmp_path / "parts", "flow"), saved(tmp_path / "whole", "flow"))
    pipe = Pipeline.load(model=tmp_path / "whole" / "flow")
    assert pipe.card == recipe_of(plain).card
    assert len(pipe("a red ball bounces around on a navy background", frames=3)) == 9  # pyright: ignore[reportArgumentType]
    assert (tmp_path / "whole" / "sheets" / "flow-000001.png").is_file()
    clips = torch.load(tmp_path / "whole" / "clips.pt", weights_only=True)
    assert clips["latents"].shape == (6, 21, 4, 8, 8)
