"""A two-layer random model, and the same written in every format in which models like it are published."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from random_model import CARD, random_parts
from safetensors.torch import save_file
from torch import Tensor

from arvid.models.names import to_diffusers, to_wan_names
from arvid.models.specs import Card, VAESpec
from arvid.models.text import BUNDLED_TOKENIZER
from arvid.models.weights import Parts

State = dict[str, Tensor]

WAN21 = VAESpec(dim=4, z_dim=4, dim_mult=(1, 2, 2), num_res_blocks=1, temporal_downsample=(True, True),
                mean=(0.1, 0, 0, 0), std=(1.5, 1, 1, 1))  # fmt: skip
SMALL = replace(CARD, name="small", vae=WAN21, grammar=None, source="nothing, arXiv 0000.00000")
STUDENT = replace(SMALL, name="small_student", checkpoint_key="generator_ema", files=("small_student.pt",))
TUNED = replace(SMALL, name="small_tuned", window=4, sink=1, files=("small_base.pt",), lora=(3, 6.0))
LARGE = replace(SMALL, name="large", dit=replace(SMALL.dit, dim=32, num_heads=4, num_blocks=3))
SMALL_CARDS = {card.name: card for card in (SMALL, STUDENT, TUNED, LARGE)}


def source(card: Card = SMALL) -> Parts:
    """The model that is published; its text encoder is in bfloat16, as it is loaded."""
    parts = random_parts(card)
    with torch.no_grad():  # gates of fresh weights are 0 in places, and would hide what a loader mixes up
        for i, parameter in enumerate((*parts.dit.parameters(), *parts.vae.parameters())):
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    parts.text.bfloat16()
    return parts


def states(parts: Parts) -> dict[str, State]:
    """The weights by part, under official names, contiguous copies."""
    text = to_wan_names(parts.text.model.state_dict())
    found = {"dit": parts.dit.state_dict(), "vae": parts.vae.state_dict(), "text": text}
    return {part: {name: value.clone() for name, value in state.items()} for part, state in found.items()}


def write_shards(state: Mapping[str, Tensor], folder: Path, stem: str, dtype: torch.dtype) -> None:
    names = sorted(state)
    homes = {name: f"{stem}-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for home in sorted({*homes.values()}):
        save_file({name: state[name].to(dtype) for name in names if homes[name] == home}, folder / home)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))


def config(card: Card) -> dict[str, Any]:
    """Wan's config.json."""
    d = card.dit
    return {"_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": d.dim, "eps": d.eps, "ffn_dim": d.ffn_dim,
            "freq_dim": d.freq_dim, "in_dim": d.in_channels, "model_type": "t2v", "num_heads": d.num_heads,
            "num_layers": d.num_blocks, "out_dim": d.out_channels, "text_len": d.text_length,
            "text_dim": d.text_dim}  # fmt: skip


def write_official(folder: Path, parts: Parts, dtype: torch.dtype = torch.float32, sharded: bool = False) -> Path:
    """A folder as Wan publishes it."""
    state = states(parts)
    (folder / "google" / "umt5-xxl").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(parts.card)))
    if sharded:
        write_shards(state["dit"], folder, "diffusion_pytorch_model", dtype)
    else:
        save_file({name: value.to(dtype) for name, value in state["dit"].items()},
                  folder / "diffusion_pytorch_model.safetensors")  # fmt: skip
    torch.save(state["vae"], folder / ("Wan2.2_VAE.pth" if parts.card.vae.layout == "wan22" else "Wan2.1_VAE.pth"))
    torch.save(state["text"], folder / "models_t5_umt5-xxl-enc-bf16.pth")
    (folder / "google" / "umt5-xxl" / "spiece.model").write_bytes(BUNDLED_TOKENIZER.read_bytes())
    return folder


def write_diffusers(folder: Path, parts: Parts, dtype: torch.dtype = torch.float32) -> Path:
    """A folder as Diffusers publishes it; its text encoder is in float32 and in shards."""
    d, state = parts.card.dit, {}
    for part, official in states(parts).items():
        names = to_diffusers(part, official)
        state[part] = {names[name]: value for name, value in official.items()}
    for name in ("transformer", "vae", "text_encoder", "tokenizer"):
        (folder / name).mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    stated = {"_class_name": "WanTransformer3DModel", "attention_head_dim": d.head_dim, "eps": d.eps,
              "ffn_dim": d.ffn_dim, "freq_dim": d.freq_dim, "in_channels": d.in_channels, "num_layers": d.num_blocks,
              "num_attention_heads": d.num_heads, "out_channels": d.out_channels, "patch_size": list(d.patch),
              "text_dim": d.text_dim, "added_kv_proj_dim": None}  # fmt: skip
    (folder / "transformer" / "config.json").write_text(json.dumps(stated))
    write_shards(state["dit"], folder / "transformer", "diffusion_pytorch_model", dtype)
    save_file(state["vae"], folder / "vae" / "diffusion_pytorch_model.safetensors")
    write_shards(state["text"], folder / "text_encoder", "model", torch.float32)
    (folder / "tokenizer" / "spiece.model").write_bytes(BUNDLED_TOKENIZER.read_bytes())
    return folder


def renamed(state: State, rename: Callable[[str], str]) -> State:
    return {rename(name): value for name, value in state.items()}


def model_(name: str) -> str:
    return f"model.{name}"


def fsdp(name: str) -> str:
    """A name as FSDP and checkpointing leave it."""
    block, _, rest = name.partition(".")
    if block != "blocks":
        return f"model._fsdp_wrapped_module.{name}"
    number, _, rest = rest.partition(".")
    return f"model._fsdp_wrapped_module.blocks.{number}._fsdp_wrapped_module._checkpoint_wrapped_module.{rest}"


def other(state: State) -> State:
    """Weights that must not be taken for these."""
    return {name: value + 1 for name, value in state.items()}


def write_checkpoint(path: Path, dit: State, style: str) -> Path:
    """A student's file: "ema" and its generator, the fragments of "fsdp", "bare", "compiled", "bf16", "diffusers"."""
    if style == "ema":
        content: Any = {"generator_ema": renamed(dit, model_), "generator": renamed(other(dit), model_),
                        "critic": renamed(other(dit), model_), "step": 600}  # fmt: skip
    elif style == "fsdp":
        content = {"generator": renamed(other(dit), fsdp), "generator_ema": renamed(dit, fsdp)}
    elif style == "bf16":
        content = {"generator_ema": {f"model.{name}": value.bfloat16() for name, value in dit.items()}}
    elif style == "compiled":
        content = {"generator_ema": renamed(dit, lambda name: f"module._orig_mod.{name}")}
    elif style == "diffusers":
        names = to_diffusers("dit", dit)
        content = renamed(dit, names.__getitem__)
    else:
        content = dit
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


def lora_of(dit: State, rank: int) -> State:
    """A LoRA on every linear layer of the blocks, under PEFT's names."""
    draw, found = torch.Generator().manual_seed(5), {}
    for name, value in dit.items():
        if name.startswith("blocks.") and name.endswith(".weight") and value.ndim == 2:
            stem = f"base_model.model.model.{name.removesuffix('.weight')}"
            found[f"{stem}.lora_A.weight"] = torch.randn(rank, value.shape[1], generator=draw) / 4
            found[f"{stem}.lora_B.weight"] = torch.randn(value.shape[0], rank, generator=draw) / 4
    return found
