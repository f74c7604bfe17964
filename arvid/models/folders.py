"""What is in a folder of weights: arvid's own, Wan's official ones, and those of Diffusers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .specs import CARDS, Card, DiTSpec

__all__ = ["FILES", "Folder", "check_sizes", "fitting", "look"]

FILES = ("card.json", "dit.safetensors", "vae.safetensors", "text.safetensors", "tokenizer.model")
"""A folder of arvid's own."""

DIT = ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors")
VAES = ("Wan2.1_VAE.safetensors", "Wan2.2_VAE.safetensors", "Wan2.2_VAE.pth", "Wan2.1_VAE.pth")
TEXTS = tuple(f"models_t5_umt5-xxl-enc-bf16{end}" for end in (".safetensors", ".pth"))

# What the fields of a DiTSpec are called in a config.json: Wan's, Diffusers'.
_WAN = {"dim": "dim", "ffn_dim": "ffn_dim", "num_heads": "num_heads", "num_layers": "num_blocks",
        "in_dim": "in_channels", "out_dim": "out_channels", "text_dim": "text_dim", "text_len": "text_length",
        "freq_dim": "freq_dim", "patch_size": "patch", "eps": "eps"}  # fmt: skip
_DIFFUSERS = {"ffn_dim": "ffn_dim", "num_attention_heads": "num_heads", "num_layers": "num_blocks",
              "in_channels": "in_channels", "out_channels": "out_channels", "text_dim": "text_dim",
              "freq_dim": "freq_dim", "patch_size": "patch", "eps": "eps"}  # fmt: skip


@dataclass(frozen=True)
class Folder:
    """Where the parts of a model are, some of which may be missing, and the sizes of a DiT that it states.

    `kind` is "arvid", "official" or "diffusers". Each part is a path for `arvid.models.files.open_tensors`.
    """

    path: Path
    kind: str
    dit: Path
    vae: Path
    text: Path
    tokenizer: Path
    config: Path
    sizes: Mapping[str, Any]


def look(path: Path) -> Folder:
    """What kind of folder it is, and where its parts are, or would be. Raises `FileNotFoundError` for another kind, and
    `ValueError` for a config.json that is no table or not of a Wan DiT, and for a model of two."""
    if (path / "card.json").exists():
        own, dit, vae, text, tokenizer = (path / name for name in FILES)
        return Folder(path, "arvid", dit, vae, text, tokenizer, own, {})
    if (path / "model_index.json").is_file() or (path / "transformer").is_dir():
        config = path / "transformer" / "config.json"
        dit, vae, text, tokenizer = (path / name for name in ("transformer", "vae", "text_encoder", "tokenizer"))
        if (path / "transformer_2").exists():
            raise ValueError(f"{path} is of two DiTs, transformer and transformer_2, each for a range of noise levels; "
                             "only models of one are read")
        return Folder(path, "diffusers", dit, vae, text, tokenizer / "spiece.model", config, _sizes(config, _DIFFUSERS))
    config = path / "config.json"
    if config.is_file():
        tokenizer = path / "google" / "umt5-xxl" / "spiece.model"
        return Folder(path, "official", _dit(path), _first(path, VAES), _first(path, TEXTS), tokenizer, config,
                      _sizes(config, _WAN))  # fmt: skip
    if not path.is_dir():
        what = "it is a file" if path.exists() else "nothing is there"
        raise FileNotFoundError(
            f"{path} is not a folder of arvid weights, nor of others: {what}; give a folder, Wan's with "
            "config.json, Diffusers' with model_index.json, or a hub id org/name"
        )
    missing = [name for name in FILES if not (path / name).is_file()]
    raise FileNotFoundError(
        f"{path} is not a folder of arvid weights: {', '.join(missing)} missing (`arvid train` makes "
        "one); nor one of published weights, Wan's with config.json or Diffusers' with model_index.json"
    )


def _dit(folder: Path) -> Path:
    """The index of the DiT's shards, the one file, or, to be refused, the folder that has both."""
    index, single = (folder / name for name in DIT)
    if index.exists() and single.exists():
        return folder
    sharded = any(folder.glob(DIT[1].replace(".", "-*-of-*.")))
    return index if index.exists() or (sharded and not single.exists()) else single


def _first(folder: Path, names: tuple[str, ...]) -> Path:
    """The first of these files that is there, or the last, which is then missing."""
    return next((folder / name for name in names if (folder / name).exists()), folder / names[-1])


def _sizes(path: Path, names: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a DiTSpec that a config.json states."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; get it again: it says of which size the weights are") from None
    except (ValueError, RecursionError) as error:  # JSON and Unicode errors are ValueErrors
        raise ValueError(f"{path} is no JSON; get it again: {error}") from error
    if not isinstance(content, dict) or "num_layers" not in content:
        raise ValueError(f"{path} is not the configuration of a Wan DiT; give the folder of a model")
    if content.get("model_type", "t2v") not in ("t2v", "ti2v"):
        raise ValueError(f"{path} is of a model of type {content['model_type']!r}; only text-to-video weights are read")
    sizes = {ours: content[theirs] for theirs, ours in names.items() if theirs in content}
    if "attention_head_dim" in content and "num_heads" in sizes:
        sizes["dim"] = content["attention_head_dim"] * sizes["num_heads"]
    return {name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()}


def check_sizes(folder: Folder, card: Card) -> None:
    """Raise `ValueError` where a folder's config.json states other sizes than the card, and name cards that fit."""
    stated = [f"{name} {value!r} (the card: {getattr(card.dit, name)})" for name, value in folder.sizes.items()
              if value != getattr(card.dit, name)]  # fmt: skip
    if stated:
        raise ValueError(f"{folder.config} is not of the card {card.name!r}: {', '.join(stated)}; "
                         f"{_advice(fitting(folder.sizes))}")


def fitting(sizes: Mapping[str, Any]) -> list[str]:
    """The cards whose DiT has these sizes, given by the names of a DiTSpec's fields."""
    return [name for name, card in CARDS.items() if sizes and all(getattr(card.dit, k) == v for k, v in sizes.items())]


def sizes_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """What the shapes of a DiT's tensors, by Wan's names, say of its sizes."""
    def side(name: str, axis: int) -> int:
        shape = shapes.get(name, ())
        return shape[axis] if len(shape) > axis else 0

    blocks = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
    sizes = {"dim": side("patch_embedding.weight", 0), "in_channels": side("patch_embedding.weight", 1),
             "ffn_dim": side("blocks.0.ffn.0.weight", 0), "num_blocks": len(blocks)}  # fmt: skip
    return {name: value for name, value in sizes.items() if value}


def _advice(names: list[str]) -> str:
    return f"these sizes are those of the cards {', '.join(names)}" if names else "no card has these sizes"


def describe(shapes: Mapping[str, tuple[int, ...]], card: Card) -> str:
    """Which cards the shapes of a DiT's tensors are of, where that helps: "" if they are of `card` itself."""
    sizes = sizes_of(shapes)
    known = {f for f in DiTSpec.__dataclass_fields__ if f in sizes}
    names = fitting(sizes)
    same = all(sizes[name] == getattr(card.dit, name) for name in known)
    return "" if same or not names else _advice(names)
