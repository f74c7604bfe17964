"""Embeddings of prompts, made once and used in place of the text encoder, and an encoder that is freed."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Ran, ran
from random_model import BLUE, RED
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_published import SMALL, states, write_diffusers, write_official

from arvid import Pipeline
from arvid.models.embeddings import Embeddings, FreedEncoder, encoder_hash
from arvid.models.text import TextEncoder
from arvid.models.weights import Parts

pytestmark = [pytest.mark.usefixtures("small_cards"),
              pytest.mark.filterwarnings("ignore:.*the weights are of no student")]  # fmt: skip


@pytest.fixture(scope="module")
def folder(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An official folder; not to be changed."""
    return write_official(tmp_path_factory.mktemp("official") / "Wan", parts)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)

    def call(*argv: object) -> Ran:
        return ran(capsys, *map(str, argv))

    return call


@pytest.fixture
def made(run: Any, folder: Path, tmp_path: Path) -> Path:
    """Embeddings of RED, of the encoder of `folder`."""
    assert run("encode", RED, "--model", folder, "-o", "red.safetensors").status == 0
    return tmp_path / "red.safetensors"


def test_embeddings_stand_in_for_the_encoder(folder: Path, made: Path, tmp_path: Path) -> None:
    kept, cached = Pipeline.load(model=folder), Pipeline.load(model=folder, text=made)
    assert isinstance(kept.text, TextEncoder)
    assert isinstance(cached.text, Embeddings)
    text = cached.text.encode([RED, RED])
    assert text.equal(kept.text.encode([RED]).expand(2, -1, -1))
    assert text.shape == (2, SMALL.dit.text_length, SMALL.dit.text_dim)
    assert (kept(RED, frames=2).frames == cached(f"  {RED.replace(' ', '   ')}\n", frames=2).frames).all()
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    (bare / "models_t5_umt5-xxl-enc-bf16.pth").unlink()
    shutil.rmtree(bare / "google")
    assert (Pipeline.load(model=bare, text=str(made))(RED, frames=2).frames == kept(RED, frames=2).frames).all()


def test_a_prompt_that_was_not_encoded_is_named(folder: Path, made: Path) -> None:
    pipe = Pipeline.load(model=folder, text=made)
    with pytest.raises(ValueError, match=rf"red\.safetensors has no embedding of '{BLUE}'; it has '{RED}'; add it"):
        pipe([(0, RED), (1, BLUE)], frames=9)


def test_prompts_are_added_to_a_file_of_the_same_encoder(run: Any, folder: Path, made: Path, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text(f"{BLUE}\n\n{RED}\n")
    done = run("encode", "--prompts", "more.txt", "--model", folder, "-o", made)
    assert done.status == 0
    assert done.out.startswith(f"{made}: 2 encoded, 2 prompts in all, encoder ")
    found = Embeddings.read(made)
    assert sorted(found.rows) == sorted([RED, BLUE])
    assert found.encode([BLUE]).dtype == torch.bfloat16


def test_the_hash_is_of_the_encoder_and_not_of_its_file(folder: Path, parts: Parts, tmp_path: Path) -> None:
    def hash_of(where: Path, text: str, tokenizer: str) -> str:
        return encoder_hash(where / text, where / tokenizer)

    official = ("models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/spiece.model")
    theirs = hash_of(write_diffusers(tmp_path / "d", parts), "text_encoder", "tokenizer/spiece.model")
    assert hash_of(folder, *official) == theirs
    state = states(parts)["text"]
    for name in ("token_embedding.weight", "blocks.1.norm2.weight", "blocks.0.pos_embedding.embedding.weight"):
        changed = Path(shutil.copytree(folder, tmp_path / name))
        torch.save({**state, name: state[name] * 1.5}, changed / official[0])
        assert hash_of(changed, *official) != theirs
    (changed / official[1]).write_bytes(b"another")  # pyright: ignore[reportPossiblyUnboundVariable]
    torch.save(state, changed / official[0])  # pyright: ignore[reportPossiblyUnboundVariable]
    assert hash_of(changed, *official) != theirs  # pyright: ignore[reportPossiblyUnboundVariable]


def test_embeddings_of_another_encoder_are_refused(
    run: Any, folder: Path, made: Path, parts: Parts, tmp_path: Path, weights: Path
) -> None:
    changed, state = Path(shutil.copytree(folder, tmp_path / "changed")), states(parts)["text"]
    state["norm.weight"] += 1
    torch.save(state, changed / "models_t5_umt5-xxl-enc-bf16.pth")
    before = made.read_bytes()
    with pytest.raises(ValueError, match=r"red\.safetensors was encoded with another text encoder"):
        Pipeline.load(model=changed, text=made)
    for model in (changed, weights):
        done = run("encode", BLUE, "--model", model, "-o", made)
        assert (done.status, done.out) == (2, "")
        assert "was encoded with another text encoder" in done.err
    assert made.read_bytes() == before
    with pytest.raises(ValueError, match="of another model"):
        Embeddings.read(made).check(None, SMALL.dit.text_length, 32)
    with pytest.raises(ValueError, match="of another model"):
        Embeddings.read(made).check(None, 12, SMALL.dit.text_dim)


def test_a_file_that_is_no_embeddings_or_is_damaged(folder: Path, made: Path, tmp_path: Path) -> None:
    def refused(path: Path, message: str) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            Pipeline.load(model=folder, text=path)
        assert str(path) in str(caught.value)

    refused(tmp_path / "none.safetensors", "no embeddings at .*; make them with `arvid encode")
    refused(folder / "diffusion_pytorch_model.safetensors", "holds no embeddings of prompts; make them with `arvid enc")
    refused(folder / "Wan2.1_VAE.pth", r"is no \.safetensors file")
    rows = load_file(made)
    with safe_open(made, framework="pt") as file:
        about = file.metadata()
    for change, wrong, message in (
        ({"0": rows["0"][:0]}, {}, "contradicts itself"), ({"1": rows["0"] + 1}, {}, "contradicts itself"),
        ({"0": rows["0"] * torch.nan}, {}, "values that are not finite"), ({}, {"prompts": "{"}, "contradicts itself"),
        ({}, {"prompts": "[]"}, "contradicts itself"), ({}, {"length": "2"}, "contradicts itself"),
        ({}, {"length": "null"}, "contradicts itself"), ({}, {"length": '"16"'}, "contradicts itself"),
        ({}, {"prompts": "[1]"}, "contradicts itself"), ({}, {"grammar": "3"}, "contradicts itself"),
        ({"0": rows["0"].int()}, {}, "floating point"), ({"0": rows["0"].to(torch.complex64)}, {}, "floating point"),
        ({"0": rows["0"].to(torch.float8_e4m3fn)}, {}, "and floating point"),
        ({"1": rows["0"].clone()}, {"prompts": json.dumps([RED, RED])}, "one prompt for each row"),
    ):  # fmt: skip
        save_file({**rows, **change}, made, metadata={**about, **wrong})
        refused(made, message)
    made.write_bytes(made.read_bytes()[:-3])
    refused(made, "incomplete")


def test_the_encoder_is_freed_after_encoding_and_read_once_a_request(folder: Path) -> None:
    pipe, kept = Pipeline.load(model=folder, text="free"), Pipeline.load(model=folder)
    assert isinstance(pipe.text, FreedEncoder)
    read, alive = pipe.text.load, []

    def counted() -> TextEncoder:
        text = read()
        alive.append(weakref.ref(text))
        return text

    pipe.text.load = counted
    prompt = [(0, RED), (1, BLUE)]
    assert (pipe(prompt, frames=9).frames == kept(prompt, frames=9).frames).all()
    gc.collect()
    assert [ref() for ref in alive] == [None]
    pipe(RED, frames=2)
    assert len(alive) == 1
    with pytest.raises(ValueError, match="the prompt '' is empty"):
        pipe("", frames=2)


@pytest.mark.parametrize(("argv", "message"), [
    (("-o", "a.safetensors"), "no prompt given"),
    (("x", "-o", "a.pt"), r"-o a\.pt: give a .safetensors file"),
    (("x", "-o", "no/a.safetensors"), "in a folder that exists"),
    (("x", "-o", "a.safetensors", "--model", "none"), "none is not a folder of arvid weights"),
    (("x", "-o", "a.safetensors", "--prompts", "none.txt"), "none.txt"),
    (("x", " ", "-o", "a.safetensors", "--model", "none"), "a prompt is empty; describe the video"),
    (("x", "-o", "a.safetensors", "--device", "abacus"), "device 'abacus' cannot be used here"),
    (("x", "-o", "a.safetensors", "--model", "wan2.1-t2v-1.4b"), "did you mean the card 'wan2.1-t2v-1"),
    (("a purple cow", "-o", "a.safetensors"), "does not know the words 'cow'"),
])  # fmt: skip
def test_bad_input_leaves_no_file(run: Any, argv: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = run("encode", *argv)
    assert (done.status, done.out) == (2, "")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(done.err)
    assert not list(tmp_path.iterdir())


def test_the_bundled_model_too(run: Any, tmp_path: Path) -> None:
    assert run("encode", f"{RED.capitalize()}.", "-o", "red.safetensors").status == 0
    pipe, kept = Pipeline.load(text=tmp_path / "red.safetensors"), Pipeline.load()
    assert (pipe(RED, frames=3).frames == kept(RED, frames=3).frames).all()
    done = run("generate", RED, "--text", "red.safetensors", "--frames", "3", "-o", "a.png")
    assert (done.status, done.err) == (0, "")
    done = run("generate", BLUE, "--text", "red.safetensors", "--frames", "3", "-o", "a.png")
    assert (done.status, done.out) == (2, "")
    assert f"has no embedding of '{BLUE}'" in done.err
