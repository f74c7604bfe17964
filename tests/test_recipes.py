"""Recipes: what cannot be carried out is refused by its place, before anything is written; and `arvid train`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from command import ran
from toy_recipes import FLOW, TOY, same, saved, toy

from arvid.training.recipe import STAGE, read_recipe, recipe_of

ROOT = Path(__file__).parents[1]
Plain = dict[str, Any]


def put(*path: Any) -> Callable[[Plain], None]:
    """Set the value at a path, the last argument, or remove it where that is None."""
    *tables, key, value = path

    def change(plain: Any) -> None:
        for table in tables:
            plain = plain[table]
        if value is None:
            del plain[key]
        else:
            plain[key] = value

    return change


def stages(*given: Plain) -> Callable[[Plain], None]:
    return put("stages", list(given))


def both(first: Callable[[Plain], None], second: Callable[[Plain], None]) -> Callable[[Plain], None]:
    def change(plain: Plain) -> None:
        first(plain)
        second(plain)

    return change


SELF = {"name": "self_forcing", "steps": 1}
BAD: dict[str, tuple[Callable[[Plain], None], str]] = {
    "unknown key": (put("stage", 1), r"no key 'stage'; did you mean 'stages'\? \(keys: data, model, stages\)"),
    "no data": (put("data", None), r"data missing: a recipe has \[data\], \[model\] and \[\[stages\]\]"),
    "stages no list": (put("stages", FLOW), r"write \[\[stages\]\]"),
    "no stage": (stages(), r"at least one of \[\[stages\]\]: .*flow.*self_forcing"),
    "data no table": (put("data", "gaussian"), r"\[data\]: a table of fields is wanted, got 'gaussian'"),
    "model no table": (put("model", 3), r"\[model\]: a table of fields is wanted, got 3"),
    "unknown data": (put("data", "name", "gausian"), r"\[data\]: .*did you mean 'gaussian'\?"),
    "unknown field of data": (put("data", "coutn", 3), r"\[data\]: .*'coutn'; did you mean 'count'\?"),
    "no clips": (put("data", "count", 0), r"\[data\]: count=0"),
    "spread": (put("data", "spread", float("nan")), r"\[data\]: spread=nan"),
    "unknown stage": (put("stages", 0, "name", "flwo"), r"\[\[stages\]\] number 1: .*did you mean 'flow'\?"),
    "unknown field": (put("stages", 0, "rat", 1), r"\[\[stages\]\] number 1: .*'rat'; did you mean .*'rate'"),
    "no steps": (put("stages", 0, "steps", None), r"number 1: stage 'flow' needs a value for steps"),
    "steps 0": (put("stages", 0, "steps", 0), r"number 1: steps=0: give a whole number of at least 1"),
    "steps text": (put("stages", 0, "steps", "many"), r"number 1: .*field steps wants int, got 'many'"),
    "rate nan": (put("stages", 0, "rate", float("nan")), r"number 1: rate=nan must be positive and finite"),
    "rate true": (put("stages", 0, "rate", True), r"number 1: .*field rate wants float, got True"),
    "view": (put("stages", 0, "view", "clear"), r"number 1: .*'clean', 'noisy', 'joint', got 'clear'"),
    "copies": (put("stages", 0, "copies", 0), r"number 1: copies=0"),
    "frames": (put("stages", 0, "frames", 0), r"number 1: frames=0: at least 1, or leave it out"),
    "frames of longer clips": (put("stages", 0, "frames", 9), r"stage 'flow': frames=9: a clip has 8"),
    "first chunks": (put("stages", 0, "first_chunks", -1), r"number 1: first_chunks=-1: at least 0"),
    "first chunks of a joint view": (
        stages({"name": "flow", "steps": 1, "view": "joint", "copies": 1, "first_chunks": 2}),
        r"first_chunks=2: 0 with view='joint', which knows no chunks"),
    "first chunks of a student": (
        stages(FLOW, {"name": "consistency", "steps": 1, "first_chunks": -1}), r"number 2: first_chunks=-1"),
    "dropout": (put("stages", 0, "dropout", 1.0), r"number 1: dropout=1.0"),
    "label": (put("stages", 0, "label", "../flow"), r"a stage is called '../flow': files are named after it"),
    "taken label": (put("stages", 0, "label", "clips"), r"a stage is called 'clips'.*not clips or code or sheets"),
    "twice": (stages(FLOW, FLOW), r"two stages are called 'flow': give one a label"),
    "no start": (stages(SELF), r"'self_forcing' begins with a network, and no stage before it makes one"),
    "ratio": (stages(FLOW, SELF | {"ratio": 0}), r"number 2: ratio=0"),
    "critic": (stages(FLOW, SELF | {"critic_rate": float("inf")}), r"number 2: critic_rate=inf"),
    "guidance": (stages(FLOW, SELF | {"guidance": float("nan")}), r"number 2: guidance=nan"),
    "teacher later": (stages(SELF | {"teacher": "flow"}, FLOW), r"teacher='flow' is no network .*are: none\)"),
    "no such start": (stages(FLOW, SELF | {"start": "flo"}), r"start='flo' is no network stage .*there are: flow\)"),
    "pairs": (stages(FLOW, {"name": "ode_pairs", "steps": 1, "pairs": 0}), r"number 2: pairs=0"),
    "points": (stages(FLOW, {"name": "consistency", "steps": 1, "points": 0}), r"number 2: points=0"),
    "solver": (stages(FLOW, {"name": "resampling", "steps": 1, "solver_steps": 0}), r"number 2: solver_steps=0"),
    "joint teacher": (stages(FLOW | {"view": "joint", "copies": 1}, {"name": "consistency", "steps": 1}),
                      r"'consistency': its teacher was taught with view='joint'"),
    "vae of latents": (stages({"name": "vae", "steps": 1}), r"stage 'vae': Gaussian\(.*has no pixels"),
    "sampler": (both(put("model", "sampler", "hierarchical"), stages(FLOW, SELF)),
                r"'self_forcing' rolls out with the sampler few_step.*sampler='hierarchical'"),
    "first steps": (both(put("model", "first_steps", [[1000]]), stages(FLOW, SELF)),
                    r"'self_forcing' rolls out .*the same steps for every chunk"),
    "model lacks": (put("model", "chunk", None), r"\[model\]: a card misses chunk"),
    "model unknown": (put("model", "windwo", 3), r"\[model\]: a card has no field windwo"),
    "model type": (put("model", "shift", "high"), r"\[model\]: a card has shift='high': give a finite number"),
    "grammar": (put("model", "grammar", "a"), r"\[model\]: grammar: leave it out"),
    "size": (put("model", "size", [4, 5]), r"model: width=5 must be a positive multiple of 2: use 4 or 6"),
    "heads": (put("model", "dit", "num_heads", 3), r"\[model\]: dim=16 must be num_heads=3 times"),
    "channels": (put("model", "dit", "in_channels", 3), r"model: dit.in_channels=3 must be vae.z_dim=2"),
    "latents": (put("model", "vae", "z_dim", 3), r"\[model\]: vae.z_dim=3 must be dit.out_channels=2"),
    "text": (put("model", "text", "dim", 5), r"\[model\]: text.dim=5 must be dit.text_dim=8"),
    "text heads": (put("model", "text", "num_heads", 3), r"\[model\]: attention_dim=16 must be a multiple of num_h"),
    "chunk": (put("model", "chunk", 7), r"model: chunk=7: at most window=6"),
    "sink": (put("model", "sink", 6), r"model: .*sink"),
    "card steps": (put("model", "steps", [500, 1000]), r"model: .*steps.*falling"),
    "captions too long": (put("model", "dit", "text_length", 4), r"dit.text_length=4: the caption .* has 5 tokens"),
    "words": (put("model", "text", "vocab_size", 8), r"text.vocab_size=8: the captions need 9"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_a_bad_recipe_names_file_and_place(tmp_path: Path, change: Callable[[Plain], None], message: str) -> None:
    plain, path = toy(), tmp_path / "bad.toml"
    change(plain)
    path.write_text(tomli_w.dumps(plain))
    with pytest.raises(ValueError, match=rf"bad\.toml: .*{message}"):
        read_recipe(path)


@pytest.mark.parametrize(("name", "field", "value", "says"), [
    ("clips", "train_horizon", 20, "the clips have 21"), ("clips", "size", [32, 32], r"\(64, 64\)"),
])  # fmt: skip
def test_clips_want_their_own_sizes(name: str, field: str, value: Any, says: str) -> None:
    plain = toy(data={"name": name}, **{"train_horizon": 21, "size": [64, 64], field: value})
    with pytest.raises(ValueError, match=f"model.{field}=.*{says}"):
        recipe_of(plain)


def test_captions_of_two_objects_must_fit() -> None:
    """They are the longest, and no held-out prompt that is looked at has two."""
    plain = toy(data={"name": "clips"}, train_horizon=21, size=[64, 64], dit={"text_length": 14})
    plain["model"]["text"]["vocab_size"] = 35
    plain["model"]["vae"] |= {"dim_mult": [1], "patch": 8, "layout": "wan22"}
    with pytest.raises(ValueError, match=r"dit.text_length=14: the caption '.* and .*' has 20 tokens"):
        recipe_of(plain)


@pytest.mark.parametrize(("name", "stages"), [
    ("toy", ["flow", "consistency", "self_forcing"]), ("tiny", ["vae", "chunk", "flow", "whole", "consistency"]),
])  # fmt: skip
def test_the_recipes_that_come_with_arvid_can_be_carried_out(name: str, stages: list[str]) -> None:
    recipe = read_recipe(TOY.with_name(f"{name}.toml"))
    assert [stage.called for stage in recipe.stages] == stages
    assert recipe.card.name == name


@pytest.mark.parametrize(("content", "says"), [
    (b"[data\n", r"bad\.toml is no TOML: .*line 1"), (b"\xff\xfe", r"bad\.toml is no TOML"), (None, "there is no file"),
])  # fmt: skip
def test_what_is_no_recipe_is_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        read_recipe(tmp_path / "bad.toml")
    with pytest.raises(ValueError, match="is a folder"):
        read_recipe(tmp_path)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(tomli_w.dumps(toy(FLOW, SELF | {"steps": 2, "batch": 4, "ratio": 1})))
    return path


def test_the_command_trains_logs_and_says_where(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recipe.parent)
    monkeypatch.setattr("arvid.training.workshop.LOOKS", 4)
    done = ran(capsys, "train", "small.toml", "--look", "2")
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "stage flow"
    assert lines[-1] == "runs/small"
    looks = [line.split(": ")[0] for line in lines if "distance" in line]
    assert looks == ["flow 2", "flow 3", "self_forcing 2"]
    log = [json.loads(line) for line in (recipe.parent / "runs/small/log.jsonl").read_text().splitlines()]
    told = {(line["stage"], line["step"]): line for line in log if "loss" in line}
    assert set(told) == {("flow", 3), ("self_forcing", 2)}
    assert {"loss", "critic", "student", "seconds a step"} <= told["self_forcing", 2].keys()
    again = ran(capsys, "train", "small.toml")
    assert again.out.splitlines() == ["stage flow", "making clips", "stage self_forcing", "runs/small"]


@pytest.mark.parametrize(("argv", "says"), [
    (("--device", "cuda:99"), "device 'cuda:99' cannot be used here"),
    (("--use", "broken.py"), "--use broken.py, line 2: ZeroDivisionError"),
    (("--use", "none.py"), "--use none.py: No such file"),
    (("-o", "small.toml/x"), "cannot write to small.toml/x: "),
    (("--look", "0"), "'0' is not a whole number, at least 1"),
])  # fmt: skip
def test_a_command_that_cannot_be_carried_out_writes_nothing(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(recipe.parent)
    (recipe.parent / "broken.py").write_text("a = 1\na / 0\n")
    done = ran(capsys, "train", "small.toml", *argv)
    assert done.status == 2
    assert says in done.err
    assert not (recipe.parent / "runs").exists()


def test_killed_and_interrupted_processes_lose_nothing(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is killed outright, one that is interrupted, and one that ends, in the same folder."""
    long = tomli_w.dumps(toy(FLOW | {"steps": 150, "ema": 0.9}))  # many, so that no signal meets the end
    recipe.write_text(long)
    code = "import sys, arvid.training.loop as l; l.SAVE_EVERY = -1.0; from arvid.cli import main; sys.exit(main())"

    def start(folder: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, "train", str(recipe), "-o", folder, "--threads", "1"], cwd=recipe.parent,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def step() -> int:
        return saved(recipe.parent / "out", "flow")["step"] if (recipe.parent / "out/flow.pt").exists() else -1

    for number, least in ((signal.SIGKILL, 2), (signal.SIGINT, 5)):
        process = start("out")
        while process.poll() is None and step() < least:
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate()
        if number == signal.SIGINT and process.returncode != 0:  # 0: it was done
            assert (process.returncode, err) == (130, "arvid: interrupted\n")
            assert "stopped: the same command goes on from the last checkpoint in out" in out
    for folder in ("out", "whole"):
        assert ran(capsys, "train", str(recipe), "-o", str(recipe.parent / folder)).status == 0
    assert same(saved(recipe.parent / "out", "flow"), saved(recipe.parent / "whole", "flow"))


def test_stages_and_data_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    out = ran(capsys, "list", "stage").out
    assert out.startswith("stage\n  consistency: Pull x0 at level k ")
    assert "steps (required), rate=0.0001, " in out
    assert "\n  gaussian: Latents of a known law" in ran(capsys, "list", "data").out


PAGE = (ROOT / "docs" / "training.md").read_text()


def test_the_example_of_the_page_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "ramps.py").write_text(code)
    plain = toy({"name": "soft_flow", "steps": 2, "batch": 4}, data={"name": "ramps", "slope": 0.2})
    (tmp_path / "my.toml").write_text(tomli_w.dumps(plain))
    done = ran(capsys, "train", "my.toml", "--use", "ramps.py", "-o", "out")
    assert (done.status, done.err) == (0, "")
    assert "soft_flow 2: slope " in done.out
    latents = recipe_of(plain).data.clips(recipe_of(plain).card, tmp_path).latents
    assert latents.diff(dim=1).mean((1, 2, 3, 4)).tolist() == pytest.approx([0.2, -0.2], abs=1e-3)


def test_the_stages_of_the_page_are_stages() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert recipe_of({**toy(), "stages": tomllib.loads(block)["stages"]}).stages[1].needs() == {
        "teacher": "teacher", "start": "teacher"
    }  # fmt: skip
    rows = set(re.findall(r"^\| `(\w+)` \| ", PAGE, re.MULTILINE))
    built_in = {name for name in STAGE.names() if STAGE.get(name).__module__.startswith("arvid.")}
    assert rows == {"clean", "noisy", "joint", *built_in}
