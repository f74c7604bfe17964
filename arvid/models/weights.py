"""Weights on disk: a folder with `card.json` and one safetensors file a network, loaded strictly or refused."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .dit import CausalDiT
from .specs import CARDS, Card
from .text import TextEncoder, build_umt5, from_wan_names, load_tokenizer, to_wan_names
from .vae import WanVAE

BUNDLED = Path(__file__).parent / "bundled"
FILES = ("card.json", "dit.safetensors", "vae.safetensors", "text.safetensors", "tokenizer.model")


class Parts(NamedTuple):
    """Everything a folder of weights holds."""

    card: Card
    dit: CausalDiT
    vae: WanVAE
    text: TextEncoder


def load_parts(folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Parts:
    """The networks of a folder, in evaluation mode; files hold float16, networks `dtype`.

    Raises `FileNotFoundError` naming the files that are missing, `ValueError` naming file and tensors where names,
    shapes or values are not exactly what the card says.
    """
    folder = Path(folder)
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{folder} is not a folder of arvid weights: {', '.join(missing)} missing. It is made by `python -m arvid.training`; "
            f"published checkpoints (cards: {', '.join(sorted(CARDS))}) cannot be read yet"
        )
    try:
        card = Card.from_dict(json.loads((folder / "card.json").read_text()))
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'card.json'} is not a model card: {error}") from error
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    text = TextEncoder(build_umt5(card.text), tokenizer, card.dit.text_length, card.grammar)
    dit, vae = CausalDiT(card.dit), WanVAE(card.vae)
    fill(dit, read(folder / "dit.safetensors"), folder / "dit.safetensors")
    fill(vae, read(folder / "vae.safetensors"), folder / "vae.safetensors")
    fill(text.model, from_wan_names(read(folder / "text.safetensors")), folder / "text.safetensors")
    for network in (dit, vae, text):
        network.to(device, dtype).eval().requires_grad_(False)
    return Parts(card, dit, vae, text)


def save_parts(parts: Parts, folder: str | Path, tokenizer: bytes) -> None:
    """Write a folder that `load_parts` reads, tensors as float16, each file under a temporary name and then renamed."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    states = {"dit": parts.dit.state_dict(), "vae": parts.vae.state_dict(), "text": to_wan_names(parts.text.model.state_dict())}
    for name, state in states.items():
        temporary = folder / f"{name}.part"
        save_file({key: value.half().contiguous() for key, value in state.items()}, temporary, metadata={"card": parts.card.name})
        os.replace(temporary, folder / f"{name}.safetensors")
    (folder / "tokenizer.model").write_bytes(tokenizer)
    (folder / "card.json").write_text(json.dumps(parts.card.to_dict(), indent=1) + "\n")


def read(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file. Raises `ValueError` naming the file when it is damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} ({path.stat().st_size} bytes) is incomplete or no safetensors file: {error}") from error


def fill(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Strict loading: the same names and shapes, every value finite. Raises `ValueError` listing what is wrong."""
    own = network.state_dict()
    wrong = [f"missing {key}" for key in sorted(set(own) - set(state))]
    wrong += [f"unexpected {key}" for key in sorted(set(state) - set(own))]
    for key in sorted(set(own) & set(state)):
        if own[key].shape != state[key].shape:
            wrong.append(f"{key} has shape {tuple(state[key].shape)}, not {tuple(own[key].shape)}")
        elif not torch.isfinite(state[key]).all():
            wrong.append(f"{key} has values that are not finite")
    if wrong:
        more = f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise ValueError(f"{path} does not fit its card: {'; '.join(wrong[:10])}{more}")
    network.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()})
