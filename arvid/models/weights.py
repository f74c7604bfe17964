"""arvid's own weights on disk: a folder with `card.json` and one safetensors file a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from .dit import CausalDiT
from .file_faults import listed
from .folders import FILES, look
from .loading import Found, card_named, load
from .names import to_wan_names
from .specs import Card
from .text import TextEncoder
from .vae import WanVAE

__all__ = ["BUNDLED", "FILES", "Parts", "load_card", "load_parts", "save_parts"]

BUNDLED = Path(__file__).parent / "bundled"


class Parts(NamedTuple):
    """Everything a folder of weights holds."""

    card: Card
    dit: CausalDiT
    vae: WanVAE
    text: TextEncoder


def load_card(folder: str | Path) -> Card:
    """The card of a folder of arvid's own weights, which takes no time; raises as `load_parts`."""
    folder = Path(folder)
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder} is not a folder of arvid weights: {', '.join(missing)} missing. `arvid "
                                "train` makes one; published weights are read by Pipeline.load(model=...)")
    return card_named(str(folder / "card.json"))


def load_parts(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Parts:
    """The networks of a folder of arvid's own, in evaluation mode; files hold float16, networks `dtype`.

    Raises `FileNotFoundError` naming the files that are missing, `ValueError` naming file and tensors where names,
    shapes or values are not exactly what the card says.
    """
    card = load_card(folder)
    dit, vae, text, _ = load(Found(look(Path(folder)), card), device=device, dtype=dtype)
    assert isinstance(text, TextEncoder)
    return Parts(card, dit, vae, text)


def save_parts(parts: Parts, folder: str | Path, tokenizer: bytes) -> None:
    """Write a folder that `load_parts` reads, tensors as float16, each file under a temporary name and then renamed.

    Raises `ValueError` for values that are not finite in float16, before anything is written.
    """
    folder, text = Path(folder), to_wan_names(parts.text.model.state_dict())
    states = {"dit": parts.dit.state_dict(), "vae": parts.vae.state_dict(), "text": text}
    files = {f"{name}.safetensors": _pack(name, state, parts.card) for name, state in states.items()}
    files |= {"tokenizer.model": tokenizer, "card.json": (json.dumps(parts.card.to_dict(), indent=1) + "\n").encode()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        unfinished = folder / f"{name}.part"
        try:
            unfinished.write_bytes(content)
            unfinished.replace(folder / name)
        finally:
            unfinished.unlink(missing_ok=True)


def _pack(name: str, state: Mapping[str, Tensor], card: Card) -> bytes:
    half = {key: value.half().contiguous() for key, value in state.items()}
    if wrong := [key for key, value in half.items() if not value.isfinite().all()]:
        raise ValueError(f"{name}: {listed(wrong)} not finite in float16")
    return save(half, metadata={"card": card.name})
