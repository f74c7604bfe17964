"""Every fault of published files is refused with its path, the reason and what to do, and nothing runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_published import (
    LARGE,
    SMALL,
    config,
    model_,
    other,
    renamed,
    source,
    states,
    write_checkpoint,
    write_diffusers,
    write_official,
)

from arvid import Pipeline
from arvid.models.text import BUNDLED_TOKENIZER, sentences, train_tokenizer
from arvid.models.weights import Parts

pytestmark = [pytest.mark.usefixtures("small_cards"),
              pytest.mark.filterwarnings("ignore:.*the weights are of no student")]  # fmt: skip
DIT, VAE = "diffusion_pytorch_model.safetensors", "Wan2.1_VAE.pth"
TEXT, TOKENIZER = "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/spiece.model"


@pytest.fixture(scope="module")
def whole(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_official(tmp_path_factory.mktemp("whole") / "Wan", parts)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """An official folder, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "Wan"))


def refused(path: Path, message: str, **given: Any) -> str:
    """Raise unless loading fails with the path and the message."""
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        Pipeline.load(**given)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", [DIT, VAE, TEXT])
@pytest.mark.parametrize(("content", "message"), [
    (lambda good: good[:-7], "incomplete|damaged"),
    (lambda good: good[: len(good) // 2], "incomplete|damaged"),
    (lambda good: b"", r"is empty \(0 bytes\); get it again"),
    (lambda good: b"<!DOCTYPE html><html>404</html>", "is a web page, not weights; download the file itself"),
    (lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS pointer.*run `git lfs pull`"),
])  # fmt: skip
def test_files_that_are_not_whole(folder: Path, name: str, content: Callable[[bytes], bytes], message: str) -> None:
    path = folder / name
    path.write_bytes(content(path.read_bytes()))
    refused(path, message, model=folder)


@pytest.mark.parametrize("name", [DIT, VAE, TEXT, TOKENIZER])
def test_missing_files_are_named_before_any_is_read(folder: Path, name: str) -> None:
    for each in {DIT, VAE, TEXT} - {name}:
        (folder / each).write_bytes(b"never read")
    (folder / name).unlink()
    refused(folder / name, "is missing", model=folder)


class Payload:
    """A pickle that would make a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("name", ["small_student.pt", VAE, TEXT])
def test_a_pickle_that_would_run_code_does_not(folder: Path, tmp_path: Path, name: str, parts: Parts) -> None:
    marker, path = tmp_path / "ran", (tmp_path if name == "small_student.pt" else folder) / name
    torch.save({**states(parts)["dit"], "payload": Payload(marker)}, path)
    checkpoint = {"checkpoint": path} if name == "small_student.pt" else {}
    refused(path, r"asks to run '(os|posix)\.system' and is refused", model=folder, **checkpoint)
    assert not marker.exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", [DIT, VAE, TEXT])
def test_values_that_are_not_finite_are_counted_by_tensor(folder: Path, name: str, value: float) -> None:
    path = folder / name
    state = load_file(path) if name == DIT else torch.load(path)
    wrong = sorted(state)[len(state) // 2]
    state[wrong].view(-1)[0] = value
    save_file(state, path) if name == DIT else torch.save(state, path)
    refused(path, rf"fit its card: {wrong} \(1 of \d+ values.*\) with values that are not finite", model=folder)


def test_what_overflows_float16_is_refused_there(folder: Path) -> None:
    state = load_file(folder / DIT)
    state["head.head.bias"][0] = 1e6
    save_file(state, folder / DIT)
    refused(folder / DIT, r"head\.head\.bias .*not finite", model=folder, dtype=torch.float16)
    assert Pipeline.load(model=folder, dtype=torch.bfloat16)


def test_missing_unexpected_and_misshapen_tensors_are_one_report(folder: Path) -> None:
    state = load_file(folder / DIT)
    state["blocks.0.ffn.3.weight"] = state.pop("blocks.0.ffn.2.weight")
    state["blocks.1.modulation"] = state["blocks.1.modulation"][:, 1:].contiguous()
    state["strange"] = torch.zeros(1)
    save_file(state, folder / DIT)
    message = refused(folder / DIT, "does not fit its card: ", model=folder)
    for part in ("blocks.0.ffn.2.weight missing", "blocks.0.ffn.3.weight, strange unexpected",
                 "blocks.1.modulation (1, 5, 16) instead of (1, 6, 16) of another shape"):
        assert part in message


@pytest.mark.parametrize("write", [write_official, write_diffusers])
def test_a_config_of_another_size_is_refused_before_weights_are_read(tmp_path: Path, write: Any, parts: Parts) -> None:
    folder = write(tmp_path / "m", parts)
    path = folder / ("config.json" if write is write_official else "transformer/config.json")
    stated = json.loads(path.read_text())
    path.write_text(json.dumps({**stated, "num_layers": 3}))
    for file in folder.rglob("*.safetensors"):
        file.write_bytes(b"never read")
    refused(path, r"is not of the card 'small': num_blocks 3 \(the card: 2\); no card has these", model=folder,
            card="small")  # fmt: skip
    refused(path, "states sizes that no card has; give card", model=folder)
    path.write_text(json.dumps(stated).replace('"eps": 1e-06', '"eps": 1e-05'))
    refused(path, r"eps 1e-05 \(the card: 1e-06\)", model=folder, card="small")
    for content, message in (("{", "is no JSON"), ("[]", "is not the configuration of a Wan DiT"),
                             (json.dumps({**stated, "model_type": "i2v"}), "of type 'i2v'; only text-to-video")):
        path.write_text(content)
        refused(path, message, model=folder)


def test_a_larger_model_in_a_smaller_is_named(folder: Path, tmp_path: Path) -> None:
    """As the 14B model in the 1.3B: by its config, and, where that is right, by the shapes of its tensors."""
    large = source(LARGE)
    save_file(states(large)["dit"], folder / DIT)
    refused(folder / DIT, r"instead of .* of another shape; these sizes are those of the cards large$", model=folder)
    file = write_checkpoint(tmp_path / "small_student.pt", states(large)["dit"], "ema")
    refused(file, r"of another shape; these sizes are those of the cards large$", model=folder, checkpoint=file)
    (folder / "config.json").write_text(json.dumps(config(LARGE)))
    refused(folder / "config.json", r"dim 32 \(the card: 16\).*num_blocks 3 \(the card: 2\); these sizes are those of "
            "the cards large$", model=folder, card="small")  # fmt: skip


def test_a_vae_or_an_encoder_of_another_layout(folder: Path, parts: Parts) -> None:
    state = states(parts)
    for part, name in (("dit", VAE), ("vae", TEXT)):
        torch.save(state[part], folder / name)
        refused(folder / name, r"no names of a Wan (vae|text)", model=folder)
        torch.save(state["vae" if name == VAE else "text"], folder / name)
    torch.save(states(source(replace(SMALL, text=replace(SMALL.text, num_layers=3))))["text"], folder / TEXT)
    refused(folder / TEXT, r"blocks\.2\.attn\.k\.weight, .* unexpected", model=folder)


def test_a_missing_shard_is_named_with_its_index(tmp_path: Path, parts: Parts) -> None:
    folder = write_official(tmp_path / "m", parts, sharded=True)
    shard = folder / "diffusion_pytorch_model-00002-of-00002.safetensors"
    shard.unlink()
    refused(shard, r"is missing, but .*index\.json wants it; get it again", model=folder)
    write_diffusers(tmp_path / "d", parts)
    shard = tmp_path / "d" / "text_encoder" / "model-00001-of-00002.safetensors"
    shard.unlink()
    refused(shard, r"is missing, but .*index\.json wants it; get it again", model=tmp_path / "d")


def test_a_wrong_tokenizer(folder: Path, parts: Parts) -> None:
    path, right = folder / TOKENIZER, BUNDLED_TOKENIZER.read_bytes()
    train_tokenizer(sentences("a {red|green} ball"), path)
    refused(path, r"has 7 pieces, .* embeds 35, .*: use the tokenizer that came with it", model=folder)
    path.write_bytes(right[:100])
    refused(path, "is not a readable sentencepiece model", model=folder)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (folder / DIT).write_bytes(b"never read")
    refused(path, "LFS pointer.*run `git lfs pull`", model=folder)
    path.write_bytes(right.replace(b"<pad>", b"<bad>"))
    refused(path, "pad", model=folder)


def test_several_candidates_are_listed_and_none_is_chosen(whole: Path, tmp_path: Path, parts: Parts) -> None:
    dit, file = states(parts)["dit"], tmp_path / "mine.pt"
    count = len(dit)
    torch.save({"generator_ema": dit, "generator": other(dit)}, file)
    refused(file, rf"several tables.*'generator_ema' \({count} tensors\), 'generator' \({count} tensors\)", model=whole,
            checkpoint=file, card="small")  # fmt: skip
    torch.save({"generator": renamed(dit, model_)}, file)  # the wrong EMA is no EMA
    refused(file, r"no table of tensors called 'generator_ema'; it has 'generator'", model=whole, checkpoint=file,
            card="small_student")  # fmt: skip
    assert Pipeline.load(model=whole, checkpoint=file, card="small")


def test_names_of_two_namings_are_refused(whole: Path, tmp_path: Path, parts: Parts) -> None:
    dit, file = states(parts)["dit"], tmp_path / "small_student.pt"
    dit["blocks.0.attn1.to_q.weight"] = dit.pop("blocks.0.self_attn.q.weight")
    torch.save(dit, file)
    refused(file, "names of a dit in two namings", model=whole, checkpoint=file)


def test_files_that_are_not_there(whole: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nothing.pt", "no checkpoint at", model=whole, checkpoint=tmp_path / "nothing.pt", card="small")
    refused(tmp_path, "is not a folder of arvid weights: .* nor one of published weights", model=tmp_path)
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "is not a folder", model=tmp_path / "file")


@settings(max_examples=60)
@given(st.data())
def test_no_flipped_byte_gets_past_unless_names_and_shapes_are_right(whole: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([DIT, VAE]))
    folder = whole.parent / "flipped"
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    broken = bytearray((whole / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(broken) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(broken)
    try:
        pipe: Any = Pipeline.load(model=folder)
    except ValueError as error:
        said = str(error)
    else:
        said = name
        _check_whole(pipe)
    assert name in said


def _check_whole(pipe: Any) -> None:
    parts = source()
    for network, whole_one in ((pipe.dit, parts.dit), (pipe.vae, parts.vae)):
        found, expected = network.state_dict(), whole_one.state_dict()
        assert {n: v.shape for n, v in found.items()} == {n: v.shape for n, v in expected.items()}
        assert all(v.isfinite().all() and not v.is_meta for v in found.values())
