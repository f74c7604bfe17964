"""Networks filled with published weights: of the folder of a model, of a student's checkpoint over it, of a LoRA.

Networks are made without memory and filled tensor by tensor, exactly or not at all.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from .dit import CausalDiT
from .embeddings import Embeddings, FreedEncoder, encoder_hash
from .file_faults import TORCH, listed, mistaken
from .files import Entry, Tensors, load_exactly, open_tensors
from .finding import Found, card_named, find
from .folders import describe
from .lora import merge_lora
from .names import from_wan_names, renames_of, to_wan, to_wan_names, unwrapped
from .specs import Card
from .text import TextEncoder, build_umt5, load_tokenizer
from .vae import WanVAE

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

__all__ = [
    "DTYPES", "Found", "Loaded", "Text", "card_named", "find", "known_names", "load", "open_lora", "opened",
    "read_text", "shapes_of", "wan_names",
]  # fmt: skip

LORA_KEY = "generator_lora"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Text = TextEncoder | FreedEncoder | Embeddings


class Loaded(NamedTuple):
    """Networks, and what `strict=False` let pass."""

    dit: CausalDiT
    vae: WanVAE
    text: Text
    tolerated: tuple[str, ...]


def load(
    found: Found, text: str | Path = "keep", device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
    strict: bool = True,
) -> Loaded:  # fmt: skip
    """The networks of what was found, in evaluation mode.

    DiT and VAE on `device` in `dtype`. A published text encoder is in bfloat16 and on the CPU, whatever its file and
    these are; arvid's own as the other networks. `text` is "keep", "free" (in memory only while it encodes), or the
    path of a file of `arvid encode`.
    Raises `FileNotFoundError`, and `ValueError` with path and reason, unless every parameter is there once, of the
    card's shape and finite. With `strict` False, tensors that are unexpected are left out, those a checkpoint misses
    are the folder's, and both warn.
    """
    tolerated: list[str] = []
    prompts = _prompts(found, text, device, dtype)
    for path in (found.folder.vae, *([] if found.checkpoint else [found.folder.dit])):
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; get it again")
    with torch.device("meta"):
        dit, vae = CausalDiT(found.card.dit), WanVAE(found.card.vae)
    _fill(dit, _dit_state(found, dit, device, dtype, strict, tolerated))
    with open_tensors(found.folder.vae) as tensors:
        kept = _lenient(tensors, wan_names("vae", tensors), vae.state_dict(), strict, tolerated)
        _fill(vae, load_exactly(kept, _shapes(vae), wan_names("vae", kept), device, dtype))
    for network in (dit, vae):
        network.to(device, dtype).eval().requires_grad_(False)
    for note in tolerated:
        warnings.warn(f"not strict: {note}", stacklevel=4)
    return Loaded(dit, vae, prompts() if callable(prompts) else prompts, tuple(tolerated))


def _prompts(found: Found, text: str | Path, device: str | torch.device, dtype: torch.dtype):
    """What encodes prompts, or, to be read last, a function that gives it."""
    folder = found.folder
    place = (device, dtype) if folder.kind == "arvid" else ("cpu", torch.bfloat16)
    if text in ("keep", "free"):
        for path in (folder.text, folder.tokenizer):
            if not path.exists():
                raise FileNotFoundError(f"{path} is missing: get it, or give text=FILE, embeddings of `arvid encode`")

        _pieces(folder.tokenizer, folder.text, found.card)  # a wrong one is known before 3 GB are read

        def read() -> TextEncoder:
            return read_text(folder.text, folder.tokenizer, found.card, *place)

        return read if text == "keep" else FreedEncoder(read)
    cached = Embeddings.read(text)
    there = folder.text.exists() and folder.tokenizer.exists()
    own = encoder_hash(folder.text, folder.tokenizer) if there else None
    cached.check(own, found.card.dit.text_length, found.card.dit.text_dim)
    return cached


def read_text(
    weights: Path, tokenizer: Path, card: Card, device: str | torch.device = "cpu", dtype: torch.dtype = torch.bfloat16
) -> TextEncoder:
    """A text encoder from its file, in any naming. Raises as `load`, and for a tokenizer that is not its own."""
    pieces = _pieces(tokenizer, weights, card)
    with torch.device("meta"):
        umt5 = build_umt5(card.text)
    wanted = {name: tuple(value.shape) for name, value in to_wan_names(umt5.state_dict()).items()}
    with open_tensors(weights) as tensors:
        state = load_exactly(tensors, wanted, wan_names("text", tensors), device, dtype)
    _fill(umt5, from_wan_names(state))
    umt5.tie_weights()  # the token embedding has two names, and became two tensors
    text = TextEncoder(umt5, pieces, card.dit.text_length, card.grammar)
    text.to(device, dtype).eval().requires_grad_(False)
    return text


def _pieces(tokenizer: Path, weights: Path, card: Card) -> SentencePieceProcessor:
    """The tokenizer of a text encoder. Raises `ValueError` for a file that is none, and for another encoder's."""
    try:
        pieces = load_tokenizer(tokenizer)
    except ValueError as error:
        if error.__cause__ is None:  # it is one, and lacks pieces
            raise
        raise ValueError(f"{tokenizer} {mistaken(tokenizer, 'sentencepiece model')}") from error
    count, room = pieces.vocab_size(), card.text.vocab_size
    special = (pieces.pad_id(), pieces.eos_id(), pieces.unk_id())
    # Embedding tables have a few rows more than pieces, for sentinels and alignment: umT5's 0.15 %. mT5 has 2.5 % less.
    if not 0.99 * room <= count <= room or special != (0, 1, 2):
        raise ValueError(f"{tokenizer} has {count} pieces, <pad>, </s> and <unk> at {special}; the encoder {weights} "
                         f"of {card.name!r} embeds {room}, those at (0, 1, 2): use the tokenizer that came with it")
    return pieces


def shapes_of(part: str, card: Card) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of "dit", "vae" or "text", by Wan's names, in no memory."""
    with torch.device("meta"):
        if part == "text":
            state = to_wan_names(build_umt5(card.text).state_dict())
            return {name: tuple(value.shape) for name, value in state.items()}
        return _shapes(CausalDiT(card.dit) if part == "dit" else WanVAE(card.vae))


def _dit_state(
    found: Found, dit: nn.Module, device: str | torch.device, dtype: torch.dtype, strict: bool, tolerated: list[str]
) -> dict[str, Tensor]:
    """The weights of the DiT, from the checkpoint or else from the folder, the LoRA added."""
    wanted = _shapes(dit)
    with ExitStack() as stack:
        path = found.folder.dit if found.checkpoint is None else found.checkpoint
        key = found.card.checkpoint_key if found.checkpoint is not None and path.suffix in TORCH else None
        tensors, _ = opened(path, key, stack)
        tensors = _lenient(tensors, wan_names("dit", tensors), wanted, strict, tolerated)
        names = wan_names("dit", tensors)
        missing = {name: shape for name, shape in wanted.items() if name not in names.values()}
        base = {}
        if missing and not strict and found.checkpoint is not None:
            from_base = stack.enter_context(open_tensors(found.folder.dit))
            own = {name: wan for name, wan in wan_names("dit", from_base).items() if wan in missing}
            base = load_exactly(_only(from_base, own), missing, own, device, dtype)
            tolerated.append(f"{path} lacks {listed([*missing])}: as in {from_base.path}")
        try:
            state = load_exactly(tensors, {n: s for n, s in wanted.items() if n not in base}, names, device, dtype)
        except ValueError as error:
            hint = describe({own: tensors.shape(name) for name, own in names.items()}, found.card)
            raise ValueError(f"{error}" + (f"; {hint}" if hint else "")) from error
    state |= base
    if found.lora is not None:
        _merge(found, state)
    return state


def _merge(found: Found, state: dict[str, Tensor]) -> None:
    assert found.lora is not None and found.card.lora is not None
    with ExitStack() as stack:
        tensors = open_lora(found.lora, stack)
        try:
            merge_lora(state, {name: tensors[name] for name in tensors.names}, *found.card.lora)
        except ValueError as error:
            raise ValueError(f"{found.lora}: {error}") from error


def open_lora(path: Path, stack: ExitStack) -> Tensors:
    """The factors of a LoRA: its file's one table, or the generator's."""
    try:
        return stack.enter_context(open_tensors(path))
    except ValueError:
        if path.suffix not in TORCH:
            raise
        return stack.enter_context(open_tensors(path, LORA_KEY))


def opened(path: Path, key: str | None, stack: ExitStack) -> tuple[Tensors, str | None]:
    """The table `key` of a file, or the file's own, "", where it holds weights only; and which it was."""
    try:
        return stack.enter_context(open_tensors(path, key)), key
    except ValueError as error:
        if key is None:
            raise
        try:
            return stack.enter_context(open_tensors(path, "")), ""
        except ValueError:
            raise error from None


def wan_names(part: str, tensors: Tensors) -> dict[str, str]:
    """Wan's names of what is in a file; names of no part of a model are left out, to be reported with the rest.

    Raises `ValueError` with the path where two namings are mixed, and where no name is known.
    """
    try:
        return to_wan(part, known_names(part, tensors) or tensors.names)
    except ValueError as error:
        raise ValueError(f"{tensors.path}: {error}") from error


def known_names(part: str, tensors: Tensors) -> list[str]:
    """The names in a file that a part of a model has, in either naming."""
    bare = {name: plain for name in tensors.names for plain in unwrapped([name]).values()}
    renames = renames_of(part, bare.values())
    return [name for name, plain in bare.items() if renames.to_wan(plain) or renames.to_diffusers(plain)]


def _lenient(
    tensors: Tensors, names: Mapping[str, str], wanted: Mapping[str, object], strict: bool, tolerated: list[str]
) -> Tensors:
    """The tensors, without unexpected ones if not `strict`."""
    extra = [name for name in tensors.names if names.get(name) not in wanted]
    if strict or not extra:
        return tensors
    tolerated.append(f"{tensors.path} has {listed(extra)}, which the model lacks: left out")
    return _only(tensors, [name for name in tensors.names if name not in {*extra}])


def _only(tensors: Tensors, names: Mapping[str, str] | list[str]) -> Tensors:
    return Tensors(tensors.path, {
        name: Entry(tensors.shape(name), tensors.dtype(name), lambda name=name: tensors[name]) for name in names
    })  # fmt: skip


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def _fill(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    network.load_state_dict(state, assign=True)
    empty = [name for name, value in (*network.named_parameters(), *network.named_buffers()) if value.is_meta]
    assert not empty, f"no values for {empty}"
