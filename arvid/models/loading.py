"""Published weights put together: the folder of a model, a student's checkpoint over it, and the card of both.

Networks are made without memory and filled tensor by tensor, exactly or not at all.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .dit import CausalDiT
from .embeddings import Embeddings, FreedEncoder, encoder_hash
from .file_faults import TORCH, listed
from .files import Entry, Tensors, load_exactly, open_tensors
from .folders import Folder, check_sizes, describe, fitting, look
from .hub import file_of, folder_of
from .lora import merge_lora
from .names import from_wan_names, renames_of, to_wan, to_wan_names, unwrapped
from .specs import CARDS, Card, card
from .text import TextEncoder, build_umt5, load_tokenizer
from .vae import WanVAE

__all__ = [
    "DTYPES", "Found", "Loaded", "Text", "card_named", "find", "known_names", "load", "open_lora", "opened",
    "read_text", "wan_names",
]  # fmt: skip

LORA_KEY = "generator_lora"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Text = TextEncoder | FreedEncoder | Embeddings


@dataclass(frozen=True)
class Found:
    """What to load: `checkpoint` in place of the folder's DiT, and `lora` on top of it."""

    folder: Folder
    card: Card
    checkpoint: Path | None = None
    lora: Path | None = None


class Loaded(NamedTuple):
    """Networks, and what `strict=False` let pass."""

    dit: CausalDiT
    vae: WanVAE
    text: Text
    tolerated: tuple[str, ...]


def card_named(name: str | Card) -> Card:
    """A card as it is, by its name, or from a .json file. Raises `ValueError` and `TypeError`."""
    if isinstance(name, Card):
        return name
    if not isinstance(name, str):
        raise TypeError(f"card={name!r}: give a card's name, the path of its .json, or a Card")
    if not name.endswith(".json"):
        return card(name)
    try:
        return Card.from_dict(json.loads(Path(name).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no card {name}") from None
    except (TypeError, ValueError) as error:  # JSON and Unicode errors are ValueErrors
        raise ValueError(f"{name} is not a model card: {error}") from error


def find(
    model: str | Path, checkpoint: str | Path | None = None, card: str | Card | None = None,
    lora: str | Path | None = None, student: str | None = None,
) -> Found:  # fmt: skip
    """The folder, the files and their card, without reading weights.

    The card is `card`, else that of the preset `student`, else what the checkpoint's header or name says; without a
    checkpoint the folder's own, or the base card of its sizes. Raises `FileNotFoundError`, and `ValueError` where that
    leaves it open, and where a config.json states other sizes.
    """
    folder = look(folder_of(model))
    file = None if checkpoint is None else file_of(checkpoint)
    if file is not None and not file.exists():
        raise FileNotFoundError(f"no checkpoint at {file}; give a student's .pt, .pth or .safetensors")
    chosen = _card(folder, file, card, student)
    check_sizes(folder, chosen)
    return Found(folder, chosen, file, _lora_file(chosen, file, lora))


def _card(folder: Folder, file: Path | None, given: str | Card | None, student: str | None) -> Card:
    if folder.kind == "arvid":
        own = card_named(str(folder.config))
        if given is not None and card_named(given) != own:
            raise ValueError(f"{folder.path} has its own card, {own.name!r}, for its own weights: leave card out")
        return own
    if given is not None:
        return card_named(given)
    if student is not None:
        return card(student)
    if file is None:
        if names := fitting(folder.sizes):
            warnings.warn(f"{folder.path}: the weights are of no student, which sees what it made; give a checkpoint, "
                          "or a card if they are", stacklevel=5)  # fmt: skip
            return CARDS[names[0]]
        raise ValueError(f"{folder.config} states sizes that no card has; give card, a name or a .json file (cards: "
                         f"{', '.join(sorted(CARDS))})")
    said = _header(file).get("card")
    named = [name for name, each in CARDS.items() for end in each.files if f"/{file.as_posix()}".endswith(f"/{end}")]
    if said in CARDS:
        return CARDS[said]
    if len(named) == 1:
        return CARDS[named[0]]
    raise ValueError(f"{file}: its name does not say which model it is; give card, one of {', '.join(sorted(CARDS))}")


def _header(file: Path) -> Mapping[str, str]:
    """The metadata of a .safetensors file, such as `arvid convert` writes; of others, nothing."""
    if file.suffix != ".safetensors":
        return {}
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}
    except (SafetensorError, OSError):  # said when it is read
        return {}


def _lora_file(card: Card, file: Path | None, lora: str | Path | None) -> Path | None:
    if lora is not None:
        if card.lora is None:
            raise ValueError(f"lora={str(lora)!r}: the card {card.name!r} gives no rank and alpha; leave it out, or "
                             "merge it into the weights with the card it belongs to")
        return file_of(lora)
    if card.lora is not None and not (file is not None and _header(file).get("lora")):
        raise ValueError(f"the weights of {card.name!r} are {listed([*card.files])} and a LoRA: give the path of the "
                         "LoRA too, or a file that `arvid convert --lora` merged")
    return None


# Networks


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
    pieces = load_tokenizer(tokenizer)
    count, room = pieces.vocab_size(), card.text.vocab_size
    special = (pieces.pad_id(), pieces.eos_id(), pieces.unk_id())
    # Embedding tables have a few rows more than pieces, for sentinels and alignment: umT5's 0.15 %. mT5 has 2.5 % less.
    if not 0.99 * room <= count <= room or special != (0, 1, 2):
        raise ValueError(f"{tokenizer} has {count} pieces, <pad>, </s> and <unk> at {special}; the encoder {weights} "
                         f"of {card.name!r} embeds {room}, those at (0, 1, 2): use the tokenizer that came with it")
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
