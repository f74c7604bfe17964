"""Weights on disk: a folder with `card.json` and one safetensors file a network, loaded strictly or refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from .dit import CausalDiT
from .specs import CARDS, Card
from .text import TextEncoder, build_umt5, from_wan_names, load_tokenizer, to_wan_names
from .vae import WanVAE

__all__ = ["BUNDLED", "FILES", "Parts", "load_card", "load_parts", "save_parts"]

BUNDLED = Path(__file__).parent / "bundled"
FILES = ("card.json", "dit.safetensors", "vae.safetensors", "text.safetensors", "tokenizer.model")


class Parts(NamedTuple):
    """Everything a folder of weights holds."""

    card: Card
    dit: CausalDiT
    vae: WanVAE
    text: TextEncoder


def load_card(folder: str | Path) -> Card:
    """The card of a folder of weights, which takes no time; raises as `load_parts`."""
    folder = Path(folder)
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{folder} is not a folder of arvid weights: {', '.join(missing)} missing. `python -m arvid.training` "
            f"makes one; published checkpoints (cards: {', '.join(sorted(CARDS))}) cannot be read yet"
        )
    path = folder / "card.json"
    try:
        return Card.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:  # JSON and Unicode errors are ValueErrors
        raise ValueError(f"{path} is not a model card: {error}") from error


def load_parts(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Parts:
    """The networks of a folder, in evaluation mode; files hold float16, networks `dtype`.

    Raises `FileNotFoundError` naming the files that are missing, `ValueError` naming file and tensors where names,
    shapes or values are not exactly what the card says.
    """
    folder, card = Path(folder), load_card(folder)
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    with torch.device("meta"):  # no memory, no random numbers: every parameter comes from the files
        dit, vae, umt5 = CausalDiT(card.dit), WanVAE(card.vae), build_umt5(card.text)
    for name, network in (("dit", dit), ("vae", vae)):
        network.load_state_dict(_read(folder / f"{name}.safetensors", network.state_dict()), assign=True)
    state = _read(folder / "text.safetensors", to_wan_names(umt5.state_dict()))
    umt5.load_state_dict(from_wan_names(state), assign=True)
    text = TextEncoder(umt5, tokenizer, card.dit.text_length, card.grammar)
    for network in (dit, vae, text):
        network.to(device, dtype).eval().requires_grad_(False)
    umt5.tie_weights()  # the token embedding has two names, and became two tensors
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
        raise ValueError(f"{name}: {_listed(wrong)} not finite in float16")
    return save(half, metadata={"card": card.name})


def _read(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a safetensors file: the names and shapes of `wanted`, every value finite, or `ValueError`."""
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} ({path.stat().st_size} bytes) {_mistaken(path)}: {error}") from error
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in sorted(set(wanted) & set(state))
        if state[key].shape != wanted[key].shape
    ]
    groups = {
        "missing": sorted(set(wanted) - set(state)),
        "unexpected": sorted(set(state) - set(wanted)),
        "of another shape": shapes,
        "not floating point": _where(state, lambda value: not value.is_floating_point()),
        "with values that are not finite": _where(state, lambda value: not value.isfinite().all()),
    }
    if wrong := [f"{_listed(keys)} {problem}" for problem, keys in groups.items() if keys]:
        raise ValueError(f"{path} does not fit its card: {'; '.join(wrong)}")
    return state


def _where(state: Mapping[str, Tensor], is_wrong: Callable[[Tensor], bool]) -> list[str]:
    return sorted(key for key, value in state.items() if is_wrong(value))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _mistaken(path: Path) -> str:
    """What a file that is no safetensors file probably is, and what to do."""
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not weights; download the file itself"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not weights; run `git lfs pull`"
    return "is incomplete or no safetensors file; get it again"
