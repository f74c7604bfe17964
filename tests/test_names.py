"""Names of weights against published lists, against Diffusers and transformers, and there and back; LoRA merged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from dense import SIZE, SPEC, randn, tiny_dit
from hypothesis import given, settings
from hypothesis import strategies as st
from published_lists import MODELS, count, published
from torch import Tensor, nn

from arvid.models.dit import CausalDiT
from arvid.models.lora import merge_lora
from arvid.models.names import load_text_encoder_state, to_diffusers, to_wan
from arvid.models.specs import TextSpec, VAESpec, card
from arvid.models.text import build_umt5
from arvid.models.vae import WanVAE

Shapes = dict[str, tuple[int, ...]]

WAN22_VAE = VAESpec(dim=160, z_dim=48, dim_mult=(1, 2, 4, 4), num_res_blocks=2, temporal_downsample=(False, True, True),
                    mean=(0.0,) * 48, std=(1.0,) * 48, layout="wan22", decoder_dim=256, patch=2)
PART = {"dit-1.3b": "dit", "dit-14b": "dit", "umt5-xxl": "text", "vae-wan2.1": "vae"}


def shapes_of(network: nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


@cache
def arvids(model: str) -> nn.Module:
    own = card("wan2.1-t2v-14b" if model == "dit-14b" else "wan2.1-t2v-1.3b")
    with torch.device("meta"):
        return {"dit": lambda: CausalDiT(own.dit), "text": lambda: build_umt5(own.text),
                "vae": lambda: WanVAE(own.vae)}[PART[model]]()


def diffusers_vae(spec: VAESpec) -> nn.Module:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    channels = 3 * spec.patch**2
    with torch.device("meta"):
        return AutoencoderKLWan(
            base_dim=spec.dim, decoder_base_dim=spec.decoder_dim, z_dim=spec.z_dim, dim_mult=list(spec.dim_mult),
            num_res_blocks=spec.num_res_blocks, temperal_downsample=list(spec.temporal_downsample),
            is_residual=spec.layout == "wan22", in_channels=channels, out_channels=channels,
            patch_size=spec.patch if spec.patch > 1 else None)


def diffusers_dit(heads: int, ffn_dim: int, layers: int, **options: Any) -> nn.Module:
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    with torch.device("meta"):
        return WanTransformer3DModel(num_attention_heads=heads, ffn_dim=ffn_dim, num_layers=layers, **options)


@cache
def theirs(model: str) -> nn.Module:
    """The network as Diffusers or transformers build it."""
    if PART[model] == "dit":
        return diffusers_dit(*((40, 13824, 40) if model == "dit-14b" else (12, 8960, 30)))
    return arvids(model) if model == "umt5-xxl" else diffusers_vae(card("wan2.1-t2v-1.3b").vae)


# Published files


@pytest.mark.parametrize("model", MODELS)
def test_lists_add_up_to_the_published_counts(model: str) -> None:
    shapes, tensors, parameters = published(model)
    assert (len(shapes), count(shapes)) == (tensors, parameters)


@pytest.mark.parametrize("model", MODELS)
def test_arvids_networks_are_the_published_ones(model: str) -> None:
    found = shapes_of(arvids(model))
    names = to_wan("text", found) if model == "umt5-xxl" else {name: name for name in found}
    assert {names[name]: shape for name, shape in found.items()} == published(model).shapes


# Against Diffusers and transformers


@pytest.mark.parametrize("model", MODELS)
def test_published_names_become_those_of_diffusers_and_transformers(model: str) -> None:
    shapes = published(model).shapes
    others = to_diffusers(PART[model], shapes)
    expected = shapes_of(theirs(model))
    expected.pop("encoder.embed_tokens.weight", None)
    assert {others[name]: shape for name, shape in shapes.items()} == expected


@pytest.mark.parametrize("model", MODELS)
def test_there_and_back_is_the_identity(model: str) -> None:
    part, names = PART[model], published(model).shapes
    others = to_diffusers(part, names)
    assert len({*others.values()}) == len(names)
    back = to_wan(part, others.values())
    assert all(back[other] == name for name, other in others.items())
    assert to_wan(part, names) == {name: name for name in names}
    assert to_diffusers(part, others.values()) == {other: other for other in others.values()}


@pytest.mark.parametrize("model", ["dit-1.3b", "vae-wan2.1"])
def test_equals_the_conversion_in_diffusers(model: str) -> None:
    from diffusers.loaders import single_file_utils

    part = PART[model]
    kind = {"dit": "transformer", "vae": "vae"}[part]
    convert = getattr(single_file_utils, f"convert_wan_{kind}_to_diffusers")
    names = published(model).shapes
    converted = convert({name: torch.full((1,), i) for i, name in enumerate(names)})
    others = list(to_diffusers(part, names).values())
    assert {other: int(value) for other, value in converted.items()} == {other: i for i, other in enumerate(others)}


def test_full_size_wan22_vae() -> None:
    with torch.device("meta"):
        ours = shapes_of(WanVAE(WAN22_VAE))
    others = shapes_of(diffusers_vae(WAN22_VAE))
    names = to_wan("vae", others)
    assert {names[other]: shape for other, shape in others.items()} == ours
    assert to_diffusers("vae", ours) == {name: other for other, name in names.items()}


@settings(max_examples=25)
@given(st.sampled_from(["wan21", "wan22"]), st.integers(1, 4), st.integers(1, 4), st.data())
def test_vaes_of_every_depth(layout: str, stages: int, blocks: int, data: st.DataObject) -> None:
    time = tuple(data.draw(st.booleans()) for _ in range(stages - 1))
    mult = ((1,), (1, 1), (1, 2, 2), (1, 2, 4, 4))[stages - 1]  # wan22's last stage cannot widen
    spec = VAESpec(4, 2, mult, blocks, time, (0.0, 0.0), (1.0, 1.0), layout)
    with torch.device("meta"):
        ours = shapes_of(WanVAE(spec))
    others = shapes_of(diffusers_vae(spec))
    names = to_wan("vae", others)
    assert {names[other]: shape for other, shape in others.items()} == ours
    assert to_diffusers("vae", ours) == {name: other for other, name in names.items()}


def test_image_to_video_names() -> None:
    model = diffusers_dit(2, 512, 2, attention_head_dim=12, image_dim=1280, added_kv_proj_dim=24)
    names = to_wan("dit", model.state_dict())
    extra = [name for name in names.values() if "img" in name]
    projections = [f"img_emb.proj.{i}.{last}" for i in (0, 1, 3, 4) for last in ("weight", "bias")]
    blocks = [f"blocks.{i}.cross_attn.{last}" for i in (0, 1) for last in (
        "k_img.weight", "k_img.bias", "v_img.weight", "v_img.bias", "norm_k_img.weight")]
    assert sorted(extra) == sorted(projections + blocks)
    assert to_diffusers("dit", names.values()) == {name: other for other, name in names.items()}


def test_text_encoder_state_loads_strictly_from_every_naming() -> None:
    model: Any = build_umt5(TextSpec(vocab_size=11, dim=8, attention_dim=8, ffn_dim=16, num_heads=2, num_layers=2))
    state = model.state_dict()
    wan = {name: state[other] for name, other in to_diffusers("text", to_wan("text", state).values()).items()}
    without = {name: value for name, value in state.items() if name != "shared.weight"}
    for given_state in (wan, state, without, {f"model._orig_mod.{name}": value for name, value in wan.items()}):
        loaded = load_text_encoder_state(given_state)
        assert loaded["shared.weight"] is loaded["encoder.embed_tokens.weight"]
        assert all(loaded[name].equal(state[name]) for name in state)
        model.load_state_dict(loaded, strict=True)
    untied = state | {"encoder.embed_tokens.weight": state["shared.weight"] + 1}
    with pytest.raises(ValueError, match=r"encoder\.embed_tokens\.weight differs from its other name"):
        load_text_encoder_state(untied)
    del wan["blocks.1.ffn.fc2.weight"]
    with pytest.raises(ValueError, match=r"missing \['blocks\.1\.ffn\.fc2\.weight'\]"):
        load_text_encoder_state(wan)


# Wrappers, and names that are refused

FRAGMENTS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")


@settings(max_examples=40)
@given(st.sampled_from(MODELS), st.booleans(), st.sampled_from(["", "model.", "module.", "module.model."]), st.data())
def test_wrappers_are_taken_off_anywhere(model: str, in_diffusers: bool, prefix: str, data: st.DataObject) -> None:
    part = PART[model]
    originals = to_diffusers(part, published(model).shapes)
    some = st.lists(st.sampled_from(FRAGMENTS), max_size=2).map("".join)
    wrapped = {}
    for name, other in originals.items():
        pieces = re.split(r"(?<=\.)", prefix + (other if in_diffusers else name))
        at = data.draw(st.integers(0, len(pieces) - 1)) if len(wrapped) < 20 else len(wrapped) % len(pieces)
        fragments = data.draw(some) if len(wrapped) < 20 else FRAGMENTS[len(wrapped) % 3]
        wrapped["".join([*pieces[:at], fragments, *pieces[at:]])] = name
    assert to_wan(part, wrapped) == wrapped


def changed(model: str, old: str, new: str) -> list[str]:
    names = list(published(model).shapes)
    assert old in names
    return [new if name == old else name for name in names]


@pytest.mark.parametrize(("model", "old", "new"), [
    ("dit-1.3b", "head.head.bias", "head.head.bia"),
    ("dit-1.3b", "blocks.3.norm3.weight", "blocks.3.norm4.weight"),
    ("dit-1.3b", "blocks.3.norm3.weight", "blocks.norm3.weight"),
    ("dit-1.3b", "blocks.3.modulation", "model.blocks.3.modulation"),  # the others have no such prefix
    ("dit-1.3b", "patch_embedding.weight", "patch_embedding.lora_A.weight"),
    ("vae-wan2.1", "decoder.upsamples.3.time_conv.weight", "decoder.upsamples.6.time_conv.weight"),
    ("vae-wan2.1", "decoder.upsamples.2.residual.0.gamma", "decoder.upsamples.2.downsamples.0.residual.0.gamma"),
    ("vae-wan2.1", "conv1.weight", "conv3.weight"),
    ("umt5-xxl", "blocks.23.attn.q.weight", "blocks.23.attn.q.bias"),
])  # fmt: skip
def test_a_name_that_is_in_no_naming_is_refused(model: str, old: str, new: str) -> None:
    with pytest.raises(ValueError, match=rf"no names of a Wan {PART[model]}, .*: .*{re.escape(new)}"):
        to_wan(PART[model], changed(model, old, new))


@pytest.mark.parametrize(("model", "old"), [
    ("dit-1.3b", "head.modulation"),
    ("dit-14b", "blocks.39.cross_attn.q.weight"),
    ("vae-wan2.1", "encoder.middle.0.residual.2.bias"),
    ("umt5-xxl", "norm.weight"),
])  # fmt: skip
def test_two_namings_in_one_file_are_refused(model: str, old: str) -> None:
    new = to_diffusers(PART[model], published(model).shapes)[old]
    with pytest.raises(ValueError, match=rf"two namings: Wan's .* and \d+ more; others {re.escape(new)}$"):
        to_wan(PART[model], changed(model, old, new))


def test_one_tensor_under_two_wrapped_names_is_refused() -> None:
    names = [*published("dit-1.3b").shapes, "head._fsdp_wrapped_module.head.bias"]
    with pytest.raises(ValueError, match=r"several names of one tensor: head\.head\.bias and head\._fsdp"):
        to_wan("dit", names)


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ValueError, match="part 'unet': allowed are 'dit', 'vae' and 'text'"):
        to_wan("unet", ["conv1.weight"])


# LoRA


RANK, ALPHA = 3, 6.0
LINEARS = [f"{a}.{n}" for a in ("self_attn", "cross_attn") for n in "qkvo"] + ["ffn.0", "ffn.2"]
BASES = [f"blocks.{i}.{name}" for i in range(SPEC.num_blocks) for name in LINEARS]


def factors(state: Mapping[str, Tensor], end: str = ".weight", start: str = "base_model.model.") -> dict[str, Tensor]:
    found = {}
    for seed, base in enumerate(BASES):
        rows, columns = state[f"{base}.weight"].shape
        found[f"{start}{base}.lora_A{end}"] = randn(RANK, columns, seed=2 * seed) * 0.2
        found[f"{start}{base}.lora_B{end}"] = randn(rows, RANK, seed=2 * seed + 1) * 0.2
    return found


class TwoBranches(nn.Module):
    """A linear layer and, beside it, its two low-rank factors."""

    def __init__(self, linear: nn.Module, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.linear, self.a, self.b = linear, a, b

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + ALPHA / RANK * ((x @ self.a.T) @ self.b.T)


@pytest.mark.parametrize(("end", "start"), [
    (".weight", "base_model.model."), (".default.weight", "base_model.model._fsdp_wrapped_module.model."),
])  # fmt: skip
def test_merged_weights_are_the_two_branches(end: str, start: str) -> None:
    x, t, text = randn(1, 2, SPEC.in_channels, *SIZE), torch.tensor([300.0]), randn(1, 5, SPEC.text_dim, seed=1)
    plain, merged, branched = tiny_dit(), tiny_dit(), tiny_dit()
    lora = factors(plain.state_dict(), end, start)
    state = {name: value.clone() for name, value in merged.state_dict().items()}
    assert sorted(merge_lora(state, lora, RANK, ALPHA)) == sorted(f"{base}.weight" for base in BASES)
    merged.load_state_dict(state)
    for base in BASES:
        parent, _, name = base.rpartition(".")
        a, b = (lora[f"{start}{base}.lora_{side}{end}"] for side in "AB")
        setattr(branched.get_submodule(parent), name, TwoBranches(branched.get_submodule(base), a, b))
    with torch.no_grad():
        expected = branched(x, t, text)
        torch.testing.assert_close(merged(x, t, text), expected, atol=1e-10, rtol=0)
        assert (plain(x, t, text) - expected).abs().max() > 1e-2


def test_merging_into_bfloat16_rounds_once() -> None:
    state = {name: value.bfloat16() for name, value in tiny_dit().state_dict().items()}
    before = dict(state)
    lora = factors(state)
    merge_lora(state, lora, RANK, ALPHA)
    for base in BASES:
        a, b = (lora[f"base_model.model.{base}.lora_{side}.weight"] for side in "AB")
        exact = before[f"{base}.weight"].double() + ALPHA / RANK * b.double() @ a.double()
        assert (state[f"{base}.weight"].double() - exact).abs().le(exact.abs() * 2**-8 + 1e-6).all()


FIRST = f"base_model.model.{BASES[0]}"
MISFITS: list[tuple[Any, str]] = [
    (lambda lora: lora.pop(f"{FIRST}.lora_B.weight"), rf"not one factor A and one B for {BASES[0]}\.weight"),
    (lambda lora: lora.update({f"{BASES[0]}.lora_B.weight": lora[f"{FIRST}.lora_B.weight"]}), "not one factor A"),
    (lambda lora: lora.update({f"{FIRST}.lora_A.weight": torch.zeros(RANK, 1)}), rf"do not fit .*{BASES[0]}.*\(3, 1\)"),
    (lambda lora: lora.update({f"{FIRST}.lora_B.weight": torch.zeros(1, RANK)}), rf"do not fit .*{BASES[0]}.*\(1, 3\)"),
    (lambda lora: lora.update({f"{FIRST}.lora_A.weight": torch.full_like(lora[f"{FIRST}.lora_A.weight"], torch.inf)}),
     rf"{BASES[0]}\.weight has values that are not finite"),
    (lambda lora: lora.update({f"{FIRST}.weight": torch.zeros(1)}), "not LoRA factors under PEFT's names"),
    (lambda lora: lora.update({f"{FIRST}.lora_A.other.weight": torch.zeros(1)}), "factors of one adapter"),
    (lambda lora: lora.clear(), "factors of one adapter; this has none"),
    (lambda lora: lora.update({"base_model.model.blocks.9.ffn.0.lora_A.weight": torch.zeros(1),
                               "base_model.model.blocks.9.ffn.0.lora_B.weight": torch.zeros(1)}),
     r"changes blocks\.9\.ffn\.0\.weight, which the weights lack"),
    (lambda lora: lora.update({"base_model.model.unet.lora_A.weight": torch.zeros(1)}), r"no names of a Wan dit.*unet"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), MISFITS)
def test_a_lora_that_does_not_fit_is_refused_and_changes_nothing(damage: Any, message: str) -> None:
    before = tiny_dit().state_dict()
    state, lora = dict(before), factors(before)
    damage(lora)
    with pytest.raises(ValueError, match=message):
        merge_lora(state, lora, RANK, ALPHA)
    assert all(state[name] is before[name] for name in before)


def test_a_lora_of_another_rank_or_for_a_deeper_model_is_refused() -> None:
    state = tiny_dit().state_dict()
    with pytest.raises(ValueError, match="factors of rank 4 do not fit"):
        merge_lora(dict(state), factors(state), 4, ALPHA)
    shallow = tiny_dit(replace(SPEC, num_blocks=SPEC.num_blocks - 1)).state_dict()
    with pytest.raises(ValueError, match=rf"blocks\.{SPEC.num_blocks - 1}\..*which the weights lack"):
        merge_lora(shallow, factors(state), RANK, ALPHA)
    for rank, alpha in ((0, 1.0), (3, 0.0), (3, float("nan")), (2.5, 1.0)):
        with pytest.raises(ValueError, match="rank of at least 1"):
            merge_lora(dict(state), factors(state), rank, alpha)  # pyright: ignore[reportArgumentType]


def test_a_sum_that_overflows_is_refused() -> None:
    state = {name: value.half() for name, value in tiny_dit().state_dict().items()}
    with pytest.raises(ValueError, match=r"is not finite in torch\.float16"):
        merge_lora(state, factors(state), RANK, 1e7)
