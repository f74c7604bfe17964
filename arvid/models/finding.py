"""Which weights are meant: the folder of a model, a student's checkpoint over it, a LoRA, and the card of them all."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .file_faults import listed
from .folders import Folder, check_sizes, fitting, look
from .hub import file_of, folder_of
from .specs import CARDS, Card, card

__all__ = ["Found", "card_named", "find", "header"]


@dataclass(frozen=True)
class Found:
    """What to load: `checkpoint` in place of the folder's DiT, and `lora` on top of it."""

    folder: Folder
    card: Card
    checkpoint: Path | None = None
    lora: Path | None = None


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
    except (TypeError, ValueError, RecursionError) as error:  # JSON and Unicode errors are ValueErrors
        raise ValueError(f"{name} is not a model card: {error}") from error


def find(
    model: str | Path, checkpoint: str | Path | None = None, card: str | Card | None = None,
    lora: str | Path | None = None, student: str | None = None, runs: bool = True,
) -> Found:  # fmt: skip
    """The folder, the files and their card, without reading weights.

    The card is `card`, else that of the preset `student`, else what the checkpoint's header or name says; without a
    checkpoint the folder's own, or the base card of its sizes. Raises `FileNotFoundError`, and `ValueError` where that
    leaves it open, where a config.json states other sizes, and for a LoRA that does not belong there. Warns where a
    name says that the weights are another model's than the card's; and, if the DiT `runs`, where it is no student's.
    """
    folder = look(folder_of(model))
    file = None if checkpoint is None else file_of(checkpoint)
    if file is not None and not file.exists():
        raise FileNotFoundError(f"no checkpoint at {file}; give a student's .pt, .pth or .safetensors")
    chosen = _card(folder, file, card, student, runs)
    check_sizes(folder, chosen)
    return Found(folder, chosen, file, _lora_file(chosen, file, lora))


def _card(folder: Folder, file: Path | None, given: str | Card | None, student: str | None, runs: bool) -> Card:
    said = None if file is None else _said(file)
    if folder.kind == "arvid":
        own = card_named(str(folder.config))
        others = [None if given is None else card_named(given), CARDS.get(said or "")]
        if strange := [each for each in others if each not in (None, own)]:
            raise ValueError(f"{folder.path} has its own card, {own.name!r}, for its own weights, and not "
                             f"{strange[0].name!r}: leave that card out, or give the folder of its model")
        return own
    if given is not None or student is not None:
        chosen = card_named(student or "" if given is None else given)
        if said not in (None, chosen.name) and not isinstance(given, Card):
            warnings.warn(f"{file} is of the card {said!r} by its name or header, and runs as {chosen.name!r}",
                          stacklevel=5)  # fmt: skip
        if file is None and given is None and runs:
            warnings.warn(f"{folder.path}: its own DiT is taken for that of {chosen.name!r}; give a checkpoint if it "
                          "is not", stacklevel=5)  # fmt: skip
        return chosen
    if file is None:
        if not (names := fitting(folder.sizes)):
            raise ValueError(f"{folder.config} states sizes that no card has; give card, a name or a .json file "
                             f"(cards: {', '.join(sorted(CARDS))})")
        if runs:
            warnings.warn(f"{folder.path}: the weights are of no student, which sees what it made; give a checkpoint, "
                          "or a card if they are", stacklevel=5)  # fmt: skip
        return CARDS[names[0]]
    if said in CARDS:
        return CARDS[said]
    if said is not None:
        raise ValueError(f"{file}: its header names the card {said!r}, none of arvid's; give its .json as card")
    raise ValueError(f"{file}: its name does not say which model it is; give card, one of {', '.join(sorted(CARDS))}")


def _said(file: Path) -> str | None:
    """The name of the card that the header of a file gives, or else the file's name."""
    ends = [name for name, each in CARDS.items() for end in each.files if f"/{file.as_posix()}".endswith(f"/{end}")]
    return header(file).get("card") or (ends[0] if len(ends) == 1 else None)


def header(file: Path) -> Mapping[str, str]:
    """The metadata of a .safetensors file, such as `arvid convert` writes; of others, nothing."""
    if file.suffix != ".safetensors" or not file.is_file():
        return {}
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}
    except (SafetensorError, OSError):  # said when it is read
        return {}


def _lora_file(card: Card, file: Path | None, lora: str | Path | None) -> Path | None:
    merged = None if file is None else header(file).get("lora")
    if lora is None:
        if card.lora is not None and not merged:
            raise ValueError(f"the weights of {card.name!r} are {listed([*card.files])} and a LoRA: give the path of "
                             "the LoRA too, or a file that `arvid convert --lora` merged")
        return None
    if card.lora is None:
        raise ValueError(f"lora={str(lora)!r}: the card {card.name!r} gives no rank and alpha; leave it out, or "
                         "merge it into the weights with the card it belongs to")
    if merged:
        raise ValueError(f"{file} has a LoRA in it already, {merged}: leave lora={str(lora)!r} out")
    if file is None and card.files:
        raise ValueError(f"lora={str(lora)!r} belongs to {listed([*card.files])}, not to a folder's own DiT: give the "
                         "checkpoint too")
    if not (path := file_of(lora)).exists():
        raise FileNotFoundError(f"no LoRA at {path}; give a .pt, .pth or .safetensors file")
    return path
