"""Weights on disk: what is saved is loaded, and damage of every kind is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import CARD, RED, random_parts
from safetensors.torch import load_file, save_file

from arvid import Pipeline
from arvid.models.specs import CARDS, Card
from arvid.models.text import BUNDLED_TOKENIZER
from arvid.models.weights import FILES, load_card, load_parts, save_parts

NETWORKS = ("dit", "vae", "text")


@pytest.fixture
def folder(weights: Path, tmp_path: Path) -> Path:
    """A copy of the weights, to be damaged."""
    return Path(shutil.copytree(weights, tmp_path / "model"))


def test_saved_and_loaded_are_equal_in_float16(weights: Path) -> None:
    before, after = random_parts(), load_parts(weights)
    assert after.card == before.card == load_card(weights)
    for one, other in zip(before[1:], after[1:], strict=True):
        assert list(one.state_dict()) == list(other.state_dict())
        for key, value in one.state_dict().items():
            assert other.state_dict()[key].equal(value.half().float()), key
    assert {path.name for path in weights.iterdir()} == set(FILES)


def test_a_folder_saved_again_is_the_same_bytes(weights: Path, tmp_path: Path) -> None:
    save_parts(load_parts(weights), tmp_path, (weights / "tokenizer.model").read_bytes())
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (weights / name).read_bytes(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_networks_have_the_dtype_and_are_for_inference(weights: Path, dtype: torch.dtype) -> None:
    parts = load_parts(weights, dtype=dtype)
    for network in parts[1:]:
        assert not network.training
        for parameter in network.parameters():
            assert (parameter.dtype, parameter.device.type, parameter.requires_grad) == (dtype, "cpu", False)
    umt5: Any = parts.text.model
    assert umt5.shared.weight is umt5.encoder.embed_tokens.weight


def test_loading_leaves_the_global_random_numbers_alone(weights: Path) -> None:
    before = torch.get_rng_state()
    load_parts(weights)
    assert torch.get_rng_state().equal(before)


def test_saving_what_overflows_float16_raises_and_leaves_the_old_files(folder: Path) -> None:
    parts = random_parts()
    parts.dit.state_dict()["head.head.bias"][1] = 1e6
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"dit: head\.head\.bias not finite in float16"):
        save_parts(parts, folder, BUNDLED_TOKENIZER.read_bytes())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# Damaged files


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"model is not a folder of arvid weights: {name} missing"):
        load_parts(folder)


def test_no_folder_at_all() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder .*card\.json, dit\.safetensors.*missing"):
        load_parts("nowhere")


@pytest.mark.parametrize(("content", "message"), [
    (lambda good: good[:-7], "incomplete"),
    (lambda good: good[: len(good) // 2], "incomplete"),
    (lambda good: good[:5], "incomplete"),
    (lambda good: b"", r"is empty \(0 bytes\)"),
    (lambda good: good + b"more", "incomplete or no safetensors"),
    (lambda good: b"\n<!DOCTYPE html><html><body>404</body></html>", "web page, not weights"),
    (lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
])  # fmt: skip
@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_that_is_not_whole_is_named(
    folder: Path, name: str, content: Callable[[bytes], bytes], message: str
) -> None:
    path = folder / f"{name}.safetensors"
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{name}\.safetensors .*{message}"):
        load_parts(folder)


KEYS = {"dit": "blocks.1.ffn.2.weight", "vae": "decoder.conv1.weight", "text": "blocks.1.attn.q.weight"}


def without(state: dict[str, torch.Tensor], key: str) -> None:
    del state[key]


def with_more(state: dict[str, torch.Tensor], key: str) -> None:
    state[f"{key}.more"] = torch.zeros(1)


def misshapen(state: dict[str, torch.Tensor], key: str) -> None:
    state[key] = state[key][1:].contiguous()


def with_nan(state: dict[str, torch.Tensor], key: str) -> None:
    state[key].view(-1)[-1] = torch.nan


def whole_numbers(state: dict[str, torch.Tensor], key: str) -> None:
    state[key] = state[key].to(torch.int8)


@pytest.mark.parametrize(("damage", "message"), [
    (without, "{key} missing"),
    (with_more, "{key}.more unexpected"),
    (misshapen, r"{key} \(.*\) instead of \(.*\) of another shape"),
    (with_nan, r"{key} \(1 of \d+ values, read as torch.float32\) with values that are not finite"),
    (whole_numbers, r"{key} \(torch\.int8\) not floating point of 16 bits or more"),
])  # fmt: skip
@pytest.mark.parametrize("name", NETWORKS)
def test_a_wrong_tensor_is_named_with_its_file(folder: Path, name: str, damage: Any, message: str) -> None:
    path = folder / f"{name}.safetensors"
    state = load_file(path)
    damage(state, KEYS[name])
    save_file(state, path)
    wrong = message.format(key=KEYS[name])
    with pytest.raises(ValueError, match=rf"{name}\.safetensors does not fit its card: {wrong}"):
        load_parts(folder)


def test_networks_of_another_depth_list_ten_tensors_and_count_the_rest(folder: Path) -> None:
    deeper = replace(CARD, dit=replace(CARD.dit, num_blocks=3), text=replace(CARD.text, num_layers=3))
    (folder / "card.json").write_text(json.dumps(deeper.to_dict()))
    with pytest.raises(ValueError, match=r"dit\.safetensors .*: blocks\.2\..* and \d+ more missing$") as caught:
        load_parts(folder)
    assert str(caught.value).count("blocks.2.") == 10
    (folder / "card.json").write_text(json.dumps(replace(deeper, dit=CARD.dit).to_dict()))
    with pytest.raises(ValueError, match=r"text\.safetensors .*: blocks\.2\.attn\.k\.weight, .* missing$"):
        load_parts(folder)


@settings(max_examples=40)
@given(st.data())
def test_no_flipped_byte_gets_past_unless_the_model_still_is_whole(weights: Path, data: st.DataObject) -> None:
    original = (weights / "text.safetensors").read_bytes()
    broken = bytearray(original)
    header = 8 + int.from_bytes(original[:8], "little")
    broken[data.draw(st.integers(0, header - 1))] ^= data.draw(st.integers(1, 255))
    folder = weights.parent / "flipped"
    shutil.copytree(weights, folder, dirs_exist_ok=True)
    (folder / "text.safetensors").write_bytes(broken)
    try:
        parts = load_parts(folder)
    except ValueError as error:
        said = str(error)
    else:  # in the metadata, say
        assert all(parameter.isfinite().all() for parameter in parts.text.parameters())
        return
    assert "text.safetensors" in said


# Cards


@pytest.mark.parametrize("card", [CARD, *CARDS.values()], ids=lambda card: card.name)
def test_cards_survive_json(card: Card) -> None:
    again = Card.from_dict(json.loads(json.dumps(card.to_dict())))
    assert again == card
    assert hash(again) == hash(card)


def changed(*path: str, to: Any = None) -> Callable[[dict[str, Any]], Any]:
    """Sets the field at `path`; removes it if `to` is None."""

    def change(plain: dict[str, Any]) -> dict[str, Any]:
        *parents, last = path
        table = plain
        for name in parents:
            table = table[name]
        table.pop(last, None) if to is None else table.update({last: to})
        return plain

    return change


@pytest.mark.parametrize(("change", "message"), [
    (lambda plain: [plain], "a table of fields, not"),
    (changed("window"), "a card misses window"),
    (changed("colour", to="red"), "a card has no field colour"),
    (changed("dit", "dim"), "its dit misses dim"),
    (changed("vae", "depth", to=3), "its vae has no field depth"),
    (changed("text", to=3), "its text is a table of fields, not 3"),
    (changed("dit", "num_heads", to=0), "num_heads=0"),
    (changed("dit", "dim", to=24.0), r"dim=24\.0"),
    (changed("dit", "patch", to=[1, 2, 0]), r"patch=\(1, 2, 0\)"),
    (changed("chunk", to="3"), "chunk='3'"),
    (changed("train_horizon", to=-1), "train_horizon=-1"),
    (changed("fps", to=0), "fps=0"),
    (changed("fps", to="fast"), "a card has fps='fast': give a whole number"),
    (changed("shift", to="5"), "a card has shift='5': give a finite number"),
    (changed("shift", to=float("nan")), "a card has shift=nan: give a finite number"),
    (changed("steps", to=["a"]), r"steps=\['a'\]: give a list, each a finite number"),
    (changed("steps", to="1000"), "steps='1000': give a list"),
    (changed("grammar", to=3), "grammar=3: give a text or null"),
    (changed("name", to=True), "name=True: give a text"),
    (changed("lora", to=[3]), r"lora=\[3\]: give a list of 2: a whole number, a finite number or null"),
    (changed("vae", "temporal_downsample", to="ab"), "its vae has temporal_downsample='ab': give a list, each true or"),
    (changed("vae", "mean", to=["a", 0, 0, 0]), "its vae has mean=.*: give a list, each a finite number"),
    (changed("vae", "std", to=[0, 1, 1, 1]), r"std=\(0, 1, 1, 1\): give positive values"),
    (changed("dit", "patch", to=[1, 2]), r"its dit has patch=\[1, 2\]: give a list of 3: a whole number, "),
    (changed("text", "num_heads", to=3), "attention_dim=16 must be a multiple of num_heads=3"),
    (changed("size", to=[16]), r"size=\[16\]: give a list of 2: a whole number, a whole number"),
    (changed("dit", "out_channels", to=8), "vae.z_dim=4 must be dit.out_channels=8"),
    (changed("text", "dim", to=32), "text.dim=32 must be dit.text_dim=16"),
])  # fmt: skip
def test_a_wrong_card_is_refused_with_its_file(folder: Path, change: Any, message: str) -> None:
    (folder / "card.json").write_text(json.dumps(change(CARD.to_dict())))
    with pytest.raises(ValueError, match=rf"card\.json is not a model card: .*({message})"):
        load_parts(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"<html>", b"null"])
def test_a_card_that_is_no_json_is_refused_with_its_file(folder: Path, content: bytes) -> None:
    (folder / "card.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"card\.json is not a model card: "):
        load_parts(folder)


def test_settings_of_a_card_that_do_not_fit_are_refused_before_weights_are_read(folder: Path) -> None:
    (folder / "card.json").write_text(json.dumps(replace(CARD, window=1).to_dict()))
    for name in NETWORKS:
        (folder / f"{name}.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="window=1: use window >= 2"):
        Pipeline.load(model=folder)


def test_loaded_weights_make_the_same_video_as_those_saved(weights: Path) -> None:
    parts = random_parts()
    for network in parts[1:]:
        network.half().float()
    direct = Pipeline.from_parts(parts.dit, None, parts.vae, parts.text, parts.card)
    assert (Pipeline.load(model=weights)(RED, frames=3).frames == direct(RED, frames=3).frames).all()
