"""`arvid convert`: the same tensors as safetensors, under the names asked for, with a header, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Ran, ran
from random_model import RED
from safetensors import safe_open
from safetensors.torch import load_file
from small_published import (
    lora_of,
    model_,
    other,
    renamed,
    states,
    write_checkpoint,
    write_diffusers,
    write_official,
    write_shards,
)

import arvid
from arvid import Pipeline
from arvid.models import writing
from arvid.models.names import to_diffusers
from arvid.models.specs import CARDS
from arvid.models.weights import Parts

pytestmark = [pytest.mark.usefixtures("small_cards"),
              pytest.mark.filterwarnings("ignore:.*the weights are of no student")]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)

    def call(*argv: object) -> Ran:
        return ran(capsys, "convert", *map(str, argv))

    return call


def header(path: str) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(x.dtype == two[n].dtype and x.equal(two[n]) for n, x in one.items())


@pytest.mark.parametrize("style", ["ema", "fsdp", "bf16", "compiled", "bare", "diffusers"])
def test_a_student_in_every_style(run: Any, parts: Parts, style: str) -> None:
    dit = states(parts)["dit"]
    file = write_checkpoint(Path("small_student.pt"), dit, style)
    key = () if style in ("bare", "diffusers") else ("--key", "generator_ema")
    done = run(file, "-o", "out.safetensors", *key, "--card", "small_student")
    assert (done.status, done.err) == (0, "")
    expected = {name: value.bfloat16() for name, value in dit.items()} if style == "bf16" else dit
    assert equal(load_file("out.safetensors"), expected)
    assert header("out.safetensors") == {
        "format": "pt", "source": "small_student.pt", "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "card": "small_student", "arvid": arvid.__version__, **({"key": "generator_ema"} if key else {}),
    }  # fmt: skip
    assert {path.name for path in Path().iterdir()} == {"small_student.pt", "out.safetensors"}
    assert run("out.safetensors", "-o", "theirs.safetensors", "--to", "diffusers").status == 0
    names = to_diffusers("dit", dit)
    assert equal(load_file("theirs.safetensors"), renamed(expected, names.__getitem__))
    assert run("theirs.safetensors", "-o", "back.safetensors").status == 0
    assert equal(load_file("back.safetensors"), expected)


def test_what_was_converted_loads_with_the_card_of_its_header(run: Any, parts: Parts) -> None:
    folder = write_official(Path("Wan"), parts)
    file = write_checkpoint(Path("any_name.pt"), states(parts)["dit"], "ema")
    assert run(file, "-o", "any_name.safetensors", "--card", "small_student").status == 0  # the key is the card's
    pipe = Pipeline.load(model=folder, checkpoint="any_name.safetensors")
    assert pipe.card == CARDS["small_student"]
    assert pipe.latents(prompt=RED, frames=2).equal(
        Pipeline.load(model=folder, checkpoint=file, card="small_student").latents(prompt=RED, frames=2))


@pytest.mark.parametrize("part", ["vae", "text", "dit"])
def test_every_part_and_shards(run: Any, parts: Parts, part: str) -> None:
    state = states(parts)[part]
    write_diffusers(Path("theirs"), parts)
    home = {"vae": "vae", "text": "text_encoder", "dit": "transformer"}[part]
    assert run(Path("theirs") / home, "-o", "out.safetensors").status == 0
    found = load_file("out.safetensors")
    assert equal(found, {name: value.to(found[name].dtype) for name, value in state.items()})
    torch.save(state, "official.pth")
    assert run("official.pth", "-o", "two.safetensors").status == 0
    assert equal(load_file("two.safetensors"), state)
    Path("shards").mkdir()
    write_shards(state, Path("shards"), "model", torch.float32)
    assert run("shards", "-o", "three.safetensors").status == 0
    assert equal(load_file("three.safetensors"), {name: value.float() for name, value in state.items()})
    said = json.loads(header("three.safetensors")["sha256"])
    assert said == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                    for path in Path("shards").glob("*.safetensors")}  # fmt: skip


def test_a_converted_folder_is_a_folder(run: Any, parts: Parts) -> None:
    folder = write_official(Path("Wan"), parts)
    before = Pipeline.load(model=folder).latents(prompt=RED, frames=2)
    for name in ("Wan2.1_VAE", "models_t5_umt5-xxl-enc-bf16"):
        assert run(folder / f"{name}.pth", "-o", folder / f"{name}.safetensors").status == 0
        (folder / f"{name}.pth").unlink()
    assert Pipeline.load(model=folder).latents(prompt=RED, frames=2).equal(before)


def test_a_lora_is_merged(run: Any, parts: Parts) -> None:
    folder, dit = write_official(Path("Wan"), parts), states(parts)["dit"]
    torch.save({"generator": renamed(dit, model_)}, "small_base.pt")
    torch.save(lora_of(dit, 3), "lora.pt")
    done = run("small_base.pt", "-o", "merged.safetensors", "--lora", "lora.pt", "--card", "small_tuned")
    assert (done.status, done.err) == (0, "")
    loaded = Pipeline.load(model=folder, checkpoint="small_base.pt", lora="lora.pt")
    assert equal(load_file("merged.safetensors"), dict(loaded.dit.state_dict()))
    assert header("merged.safetensors")["lora"] == "lora.pt"
    merged = Pipeline.load(model=folder, checkpoint="merged.safetensors")
    assert merged.card == CARDS["small_tuned"]
    assert merged.latents(prompt=RED, frames=2).equal(loaded.latents(prompt=RED, frames=2))
    for card in ((), ("--card", "small")):
        done = run("small_base.pt", "-o", "no.safetensors", "--lora", "lora.pt", *card)
        assert (done.status, done.out) == (2, "")
        assert "a LoRA needs the card of a DiT that gives its rank and alpha: longlive, small_tuned" in done.err
    assert run("merged.safetensors", "-o", "theirs.safetensors", "--to", "diffusers").status == 0
    for again in ("merged.safetensors", "theirs.safetensors"):  # what is merged is known, and not merged twice
        assert header(again)["lora_sha256"] == hashlib.sha256(Path("lora.pt").read_bytes()).hexdigest()
        done = run(again, "-o", "no.safetensors", "--lora", "lora.pt", "--card", "small_tuned")
        assert (done.status, f"{again} has a LoRA in it already, lora.pt: leave lora.pt out" in done.err) == (2, True)
    theirs = Pipeline.load(model=folder, checkpoint="theirs.safetensors")
    assert theirs.latents(prompt=RED, frames=2).equal(loaded.latents(prompt=RED, frames=2))
    torch.save({f"base_model.model.blocks.7.{name}": torch.zeros(3, 3) for name in
                ("ffn.0.lora_A.weight", "ffn.0.lora_B.weight")}, "lora.pt")  # fmt: skip
    done = run("small_base.pt", "-o", "no.safetensors", "--lora", "lora.pt", "--card", "small_tuned")
    assert "lora.pt changes blocks.7.ffn.0.weight, which the weights lack" in done.err
    assert not Path("no.safetensors").exists()


def test_an_older_file_is_not_replaced_without_force(run: Any, parts: Parts) -> None:
    write_checkpoint(Path("a.pt"), states(parts)["dit"], "bare")
    Path("out.safetensors").write_bytes(b"older")
    done = run("a.pt", "-o", "out.safetensors")
    assert (done.status, done.out) == (2, "")
    assert "out.safetensors exists; give another name, or --force" in done.err
    assert Path("out.safetensors").read_bytes() == b"older"
    assert run("a.pt", "-o", "out.safetensors", "--force").status == 0
    assert equal(load_file("out.safetensors"), states(parts)["dit"])
    done = run("out.safetensors", "-o", "out.safetensors", "--force")
    assert "out.safetensors is the source itself" in done.err
    assert equal(load_file("out.safetensors"), states(parts)["dit"])


def test_what_fails_on_the_way_leaves_the_older_file(run: Any, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    dit = states(parts)["dit"]
    Path("out.safetensors").write_bytes(b"older")
    dit[max(dit)].view(-1)[-1] = torch.nan
    torch.save(dit, "nan.pt")
    done = run("nan.pt", "-o", "out.safetensors", "--force")
    assert f"nan.pt: {max(dit)} has values that are not finite; get it again" in done.err
    torch.save(states(parts)["dit"], "a.pt")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", full)
    done = run("a.pt", "-o", "out.safetensors", "--force")
    assert (done.status, "cannot write out.safetensors: No space left" in done.err) == (2, True)
    assert Path("out.safetensors").read_bytes() == b"older"
    assert not list(Path().glob("*.part"))


@pytest.mark.parametrize(("content", "argv", "message"), [
    ({"a": torch.zeros(2)}, (), "is not DiT, VAE or text encoder of a Wan model: no names"),
    ("two", (), "several tables of tensors; choose one with key, by `arvid convert --key`"),
    ("two", ("--key", "critic"), "no table of tensors called 'critic'"),
    ("two", ("--card", "nobody"), "no card is called 'nobody'"),
    ("two", ("-o", "a.pt"), "name the output .safetensors"),
    ("two", ("-o", "no/a.safetensors"), "there is no folder"),
    (None, (), "no weights at a.pt"),
    ("bare", ("--card", "large"), "a.pt does not fit its card: blocks.2.cross_attn.k.bias, "),
    ("int8", (), "a.pt: patch_embedding.weight (torch.int8), "),
    ("fp8", ("--card", "small"), "(torch.float8_e4m3fn) and 59 more not floating point of 16 bits or more"),
])  # fmt: skip
def test_bad_input(run: Any, parts: Parts, content: Any, argv: tuple[str, ...], message: str) -> None:
    if content == "two":
        dit = states(parts)["dit"]
        content = {"generator_ema": dit, "generator": other(dit)}
    if content in ("bare", "int8", "fp8"):
        dtype = {"bare": torch.float32, "int8": torch.int8, "fp8": torch.float8_e4m3fn}[content]
        content = {name: value.to(dtype) for name, value in states(parts)["dit"].items()}
    if content is not None:
        torch.save(content, "a.pt")
    done = run("a.pt", "-o", "out.safetensors", *argv)
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert {path.name for path in Path().iterdir()} <= {"a.pt"}
