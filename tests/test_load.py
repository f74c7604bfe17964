"""Published weights in every format give the source's output, and a card, a file or a setting is chosen as said."""

from __future__ import annotations

import json
import shutil
import socket
import warnings
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from random_model import BLUE, CARD, RED, random_parts
from safetensors.torch import load_file, save_file
from small_published import (
    SMALL,
    SMALL_CARDS,
    STUDENT,
    TUNED,
    lora_of,
    model_,
    other,
    renamed,
    source,
    states,
    write_checkpoint,
    write_diffusers,
    write_official,
)

from arvid import Pipeline, PipelineConfig, preset
from arvid.cache import Recommit, Sink
from arvid.models.specs import CARDS, Card, card
from arvid.models.weights import Parts
from arvid.presets import STUDENTS
from arvid.samplers import FewStep

pytestmark = [pytest.mark.usefixtures("small_cards"),
              pytest.mark.filterwarnings("ignore:.*the weights are of no student")]  # fmt: skip


@pytest.fixture(scope="module")
def official(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An official folder; not to be changed."""
    return write_official(tmp_path_factory.mktemp("official") / "Wan", parts)


def same(pipe: Pipeline, parts: Parts, **settings: Any) -> None:
    """Raise unless the pipeline makes what the source makes with the same settings."""
    direct = Pipeline.from_parts(parts.dit, pipe.config, parts.vae, parts.text, pipe.card)
    one, two = (each.latents(prompt=RED, frames=3, **settings) for each in (pipe, direct))
    assert one.equal(two)
    assert (pipe(BLUE, frames=2).frames == direct(BLUE, frames=2).frames).all()


# Folders


@pytest.mark.parametrize("layout", ["wan21", "wan22"])
@pytest.mark.parametrize(("write", "sharded"), [
    (write_official, False), (write_official, True), (write_diffusers, False),  # whose transformer always is
])  # fmt: skip
def test_a_folder_gives_the_sources_output(tmp_path: Path, write: Any, sharded: bool, layout: str) -> None:
    small = SMALL if layout == "wan21" else replace(SMALL, vae=CARD.vae)
    parts = source(small)
    folder = write(tmp_path / "m", parts, **({"sharded": True} if sharded else {}))
    pipe = Pipeline.load(model=folder, card=small)
    same(pipe, parts)
    assert (pipe.card, pipe.tolerated) == (small, ())


@pytest.mark.parametrize("write", [write_official, write_diffusers])
def test_bfloat16_is_read_as_it_is(tmp_path: Path, write: Any) -> None:
    parts = source()
    folder = write(tmp_path / "m", parts, torch.bfloat16)
    parts.dit.bfloat16().float()
    same(Pipeline.load(model=str(folder)), parts)
    half = Pipeline.load(model=folder, dtype=torch.bfloat16)
    for network in (half.dit, half.vae):
        assert network is not None
        assert {p.dtype for p in network.parameters()} == {torch.bfloat16}


def test_a_published_text_encoder_is_never_made_float32(tmp_path: Path) -> None:
    pipe: Any = Pipeline.load(model=write_diffusers(tmp_path / "m", source()))  # whose file is in float32
    assert {p.dtype for p in pipe.text.parameters()} == {torch.bfloat16}
    assert pipe.text.encode([RED]).shape == (1, SMALL.dit.text_length, SMALL.dit.text_dim)


def test_nothing_is_left_on_meta_or_to_be_trained(official: Path) -> None:
    pipe: Any = Pipeline.load(model=official)
    for network in (pipe.dit, pipe.vae, pipe.text):
        assert not network.training
        assert not any(p.is_meta or p.requires_grad for p in network.parameters())
        assert not any(b.is_meta for b in network.buffers())


def test_local_paths_never_touch_the_network(official: Path, parts: Parts, tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    file = write_checkpoint(tmp_path / "small_student.pt", states(parts)["dit"], "ema")
    monkeypatch.chdir(official.parent)
    assert Pipeline.load(model="Wan", checkpoint=str(file))
    monkeypatch.chdir(official.parent.parent)
    assert Pipeline.load(model=f"{official.parent.name}/Wan")  # which looks like an id
    for missing in (f"{official.parent.name}/Wen", "./Wen", "/nowhere/at/all"):
        with pytest.raises(FileNotFoundError, match=r"is not a folder of arvid weights, .*: nothing is there"):
            Pipeline.load(model=missing)


# Students over a folder


@pytest.mark.parametrize(("style", "name"), [
    *product(["ema", "fsdp", "bf16", "compiled"], ["small_student.pt", "small_student.pth"]),
    *product(["bare", "diffusers"], ["small_student.pt", "small_student.pth", "small_student.safetensors"]),
])  # fmt: skip
def test_a_student_replaces_the_base(official: Path, tmp_path: Path, parts: Parts, style: str, name: str) -> None:
    folder = shutil.copytree(official, tmp_path / "m")
    save_file(other(states(parts)["dit"]), folder / "diffusion_pytorch_model.safetensors")
    file = write_checkpoint(tmp_path / name, states(parts)["dit"], style)
    pipe = Pipeline.load(model=folder, checkpoint=file, card="small_student")
    expected = source()
    if style == "bf16":
        expected.dit.bfloat16().float()
    same(pipe, expected)
    (folder / "diffusion_pytorch_model.safetensors").unlink()  # which a student does not need
    assert Pipeline.load(model=folder, checkpoint=file, card="small_student").card == STUDENT


def test_a_lora_is_added_to_its_base(official: Path, tmp_path: Path, parts: Parts) -> None:
    dit = states(parts)["dit"]
    torch.save({"generator": renamed(dit, model_)}, tmp_path / "small_base.pt")
    lora = lora_of(dit, 3)
    save_file(lora, tmp_path / "lora.safetensors")
    torch.save({"generator_lora": lora, "critic_lora": other(lora)}, tmp_path / "lora.pt")
    expected = source()
    with torch.no_grad():
        for name, value in expected.dit.named_parameters():
            stem = f"base_model.model.model.{name.removesuffix('.weight')}"
            if f"{stem}.lora_A.weight" in lora:
                value += 6 / 3 * lora[f"{stem}.lora_B.weight"] @ lora[f"{stem}.lora_A.weight"]
    for name in ("lora.safetensors", "lora.pt"):
        pipe = Pipeline.load(model=official, checkpoint=tmp_path / "small_base.pt", lora=tmp_path / name)
        assert pipe.card == TUNED
        direct = Pipeline.from_parts(expected.dit, None, expected.vae, expected.text, TUNED)
        one, two = (each.latents(prompt=RED, frames=3) for each in (pipe, direct))
        assert (one - two).abs().max() < 1e-4
        plain = Pipeline.from_parts(parts.dit, None, parts.vae, parts.text, TUNED).latents(prompt=RED, frames=3)
        assert (one - plain).abs().max() > 0.1
    with pytest.raises(ValueError, match=r"'small_tuned' are small_base\.pt and a LoRA: give the path of the LoRA"):
        Pipeline.load(model=official, checkpoint=tmp_path / "small_base.pt")
    with pytest.raises(ValueError, match="'small' gives no rank and alpha"):
        Pipeline.load(model=official, lora=tmp_path / "lora.pt")
    del lora["base_model.model.model.blocks.1.ffn.2.lora_B.weight"]
    torch.save(lora, tmp_path / "lora.pt")
    with pytest.raises(ValueError, match=r"lora\.pt: not one factor A and one B for blocks\.1\.ffn\.2\.weight"):
        Pipeline.load(model=official, checkpoint=tmp_path / "small_base.pt", lora=tmp_path / "lora.pt")


def test_arvids_own_folder_takes_a_checkpoint(weights: Path, tmp_path: Path) -> None:
    dit = {name: value / 2 for name, value in random_parts().dit.state_dict().items()}
    torch.save(dit, tmp_path / "mine.pt")
    pipe = Pipeline.load(model=weights, checkpoint=tmp_path / "mine.pt")
    assert all(value.equal(dit[name]) for name, value in pipe.dit.state_dict().items())
    with pytest.raises(ValueError, match="has its own card, 'random', for its own weights"):
        Pipeline.load(model=weights, card="self_forcing")


# Which card


def test_the_card_is_named_by_argument_preset_file_or_sizes(
    official: Path, tmp_path: Path, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    dit = states(parts)["dit"]
    known, unknown = (write_checkpoint(tmp_path / name, dit, "bare") for name in ("small_student.pt", "mine.pt"))

    def chosen(config: str | None = None, **given: Any) -> Card | None:
        return Pipeline.load(config, model=official, **given).card

    with pytest.warns(UserWarning, match="Wan: the weights are of no student, which sees what it made; give a check"):
        assert chosen() == SMALL
    assert chosen(checkpoint=known) == chosen(checkpoint=unknown, card="small_student") == STUDENT
    with pytest.warns(UserWarning, match=r"student\.pt is of the card 'small_student' by .*, and runs as 'small'"):
        assert chosen(checkpoint=known, card="small") == SMALL
    mine = replace(SMALL, name="mine", window=4)
    (tmp_path / "mine.json").write_text(json.dumps(mine.to_dict()))
    assert chosen(checkpoint=unknown, card=mine) == chosen(checkpoint=unknown, card=str(tmp_path / "mine.json")) == mine
    monkeypatch.setitem(CARDS, "self_forcing", replace(SMALL, name="self_forcing"))
    with pytest.warns(UserWarning, match="of the card 'small_student' by .*, and runs as 'self_forcing'"):
        assert chosen("self_forcing", checkpoint=known) == CARDS["self_forcing"]
    with pytest.raises(ValueError, match=r"mine\.pt: its name does not say which model it is; give card, .*hiar"):
        chosen(checkpoint=unknown)
    with pytest.raises(ValueError, match="no card is called 'smal'"):
        chosen(card="smal")
    with pytest.raises(FileNotFoundError, match=r"there is no card nowhere\.json"):
        chosen(card="nowhere.json")
    with pytest.raises(TypeError, match="card=3: give a card's name"):
        chosen(card=3)


@pytest.mark.parametrize(("path", "name"), [
    ("chunkwise/causal_forcing.pt", "causal_forcing"), ("framewise/causal_forcing.pt", "causal_forcing_framewise"),
    ("a/framewise-1step.pt", "causal_forcing_framewise_1step"), ("autoregressive_checkpoint/model.pt", "causvid"),
    ("self_forcing_dmd.pt", "self_forcing"), ("hiar.pt", "hiar"), ("rolling_forcing_dmd.pt", "rolling_forcing"),
])  # fmt: skip
def test_published_file_names_are_known(official: Path, tmp_path: Path, path: str, name: str, parts: Parts) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(file, states(parts)["dit"], "bare")
    with pytest.raises(ValueError, match=rf"config\.json is not of the card '{name}': dim 16 \(.*1536\).*small"):
        Pipeline.load(model=official, checkpoint=file)


@pytest.mark.parametrize("name", [name for name in CARDS if name not in SMALL_CARDS])
def test_every_published_card_says_where_its_numbers_come_from(name: str) -> None:
    assert "arXiv" in card(name).source
    assert Card.from_dict(json.loads(json.dumps(card(name).to_dict()))) == card(name)
    for end in card(name).files:
        assert [each.name for each in CARDS.values() if end in each.files] == [name]


def test_a_card_whose_sampler_is_not_there_is_refused_before_weights_are_read(
    official: Path, tmp_path: Path, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {key: getattr(SMALL, key) for key in ("dit", "vae", "text", "size")}
    monkeypatch.setitem(CARDS, "hiar", replace(card("hiar"), sampler="absent", **sizes))
    file = tmp_path / "hiar.pt"
    file.write_bytes(b"nothing yet")
    match = "the weights of 'hiar' are made for the sampler 'absent', .* not there .samplers: .*few_step.*; load the pl"
    for asked in (lambda: Pipeline.load(model=official, checkpoint=file), lambda: preset("hiar"),
                  lambda: Pipeline.from_parts(parts.dit, card=CARDS["hiar"])):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            asked()
    write_checkpoint(file, states(parts)["dit"], "ema")
    given = PipelineConfig(sampler=FewStep((1000,), 5.0, 0.0))
    assert Pipeline.load(given, model=official, checkpoint=file).card == CARDS["hiar"]


def test_a_card_brings_the_strategies_of_its_model(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def own(name: str, config: str | None = None) -> PipelineConfig:
        small = replace(card(name), dit=SMALL.dit, vae=SMALL.vae, text=SMALL.text)
        return Pipeline.from_parts(parts.dit, config, card=small).config

    assert own("longlive").cache == Sink(window=12, sink=3, on_change=Recommit())
    assert own("longlive") == preset("longlive")
    assert own("infinity_rope").time == preset("infinity_rope").time
    assert own("infinity_rope").cache == preset("infinity_rope").cache
    assert own("infinity_rope", "deep_sink").cache == preset("deep_sink").cache
    assert own("self_forcing") == own("causal_forcing") == preset("self_forcing")
    assert preset("causvid").sampler.levels()[0] == pytest.approx((1, 0.757, 0.522))  # pyright: ignore
    assert preset("causal_forcing_framewise") == preset("self_forcing").replace(chunk=1)
    assert all(preset(name) == PipelineConfig.from_dict(preset(name).to_dict()) for name in STUDENTS)


# Not strict


def test_what_is_not_strict_is_asked_for_warned_of_and_recorded(
    official: Path, tmp_path: Path, parts: Parts
) -> None:
    dit = states(parts)["dit"]
    file = write_checkpoint(tmp_path / "small_student.pt", dit, "bare")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert Pipeline.load(model=official, checkpoint=file, strict=False).tolerated == ()
    halved = {name: value / 2 for name, value in dit.items()}
    lost = halved.pop("blocks.1.ffn.2.weight")
    torch.save(halved | {"blocks.1.ffn.2.more": lost, "strange": lost}, file)
    with pytest.raises(ValueError, match=r"small_student\.pt does not fit its card: blocks\.1\.ffn\.2\.weight missing; "
                                         r"blocks\.1\.ffn\.2\.more, strange unexpected"):  # fmt: skip
        Pipeline.load(model=official, checkpoint=file)
    with pytest.warns(UserWarning, match="^not strict: ") as caught:
        pipe = Pipeline.load(model=official, checkpoint=file, strict=False)
    notes = [str(w.message) for w in caught if "not strict" in str(w.message)]
    assert [f"not strict: {note}" for note in pipe.tolerated] == notes
    assert len(notes) == 2
    assert "blocks.1.ffn.2.more, strange, which the model lacks: left out" in notes[0]
    assert f"lacks blocks.1.ffn.2.weight: as in {official}" in notes[1]
    for name, value in pipe.dit.state_dict().items():
        assert value.equal(dit[name] if name == "blocks.1.ffn.2.weight" else halved[name]), name


def test_no_strictness_fills_what_nobody_has(official: Path, tmp_path: Path, parts: Parts) -> None:
    folder = Path(shutil.copytree(official, tmp_path / "m"))
    path = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["head.head.bias"]
    save_file(state, path)
    with pytest.raises(ValueError, match=r"head\.head\.bias missing"):
        Pipeline.load(model=folder, strict=False)
    file = write_checkpoint(tmp_path / "small_student.pt", state, "bare")
    with pytest.raises(ValueError, match=r"head\.head\.bias missing"):
        Pipeline.load(model=folder, checkpoint=file, strict=False)
    misshapen = states(parts)["dit"]
    misshapen["head.head.bias"] = torch.zeros(3)
    write_checkpoint(file, misshapen, "bare")
    with pytest.raises(ValueError, match=r"head\.head\.bias \(3,\) instead of \(16,\) of another shape"):
        Pipeline.load(model=official, checkpoint=file, strict=False)
