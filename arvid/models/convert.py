"""Published files written again as one safetensors file, tensor by tensor, with a header that says what they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from arvid import __version__

from .file_faults import TORCH, listed
from .files import WIDE, Tensors, check_fit, open_tensors
from .finding import header
from .hub import sha256_of
from .loading import known_names, open_lora, opened, shapes_of, wan_names
from .lora import FACTOR, PEFT, merge_lora
from .names import to_diffusers, to_wan
from .specs import CARDS, Card
from .writing import write_safetensors

__all__ = ["convert"]

PARTS = ("dit", "vae", "text")
KEPT = ("key", "card", "lora", "lora_sha256")
"""What the header of a converted file says of its weights, and says again when it is converted."""


def convert(
    source: str | Path, output: str | Path, *, key: str | None = None, lora: str | Path | None = None,
    card: Card | None = None, to: str = "official", force: bool = False,
) -> dict[str, str]:  # fmt: skip
    """Write the weights of a file or of a folder of shards, under official or Diffusers' names, and return the header.

    `key` names the entry of a torch file (None: the card's, else the only one). `lora` is added with the card's rank
    and alpha. Dtypes are kept; values are checked to be finite, names and shapes to be the card's where one is given.
    The header's metadata are "source", "sha256" (of each file), "key", "card", "lora", "lora_sha256" and "arvid", the
    version. The output gets its name when it is whole. Raises `FileNotFoundError`, `FileExistsError` without `force`,
    and `ValueError` as `open_tensors`, and for names of no or several parts of a model.
    """
    source, output = Path(source), Path(output)
    if to not in ("official", "diffusers"):
        raise ValueError(f"to={to!r}; allowed: 'official', 'diffusers'")
    if output.suffix != ".safetensors":
        raise ValueError(f"{output}: name the output .safetensors")
    if output.exists() and not force:
        raise FileExistsError(f"{output} exists; give another name, or --force to replace it")
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {output.absolute().parent} to write {output.name} to")
    with ExitStack() as stack:
        if key is None and card is not None and source.suffix in TORCH:
            tensors, key = opened(source, card.checkpoint_key, stack)
        else:
            tensors = stack.enter_context(open_tensors(source, key))
        if tensors.path.resolve() == output.resolve():
            raise ValueError(f"{output} is the source itself; give another name")
        names, part = _wan(tensors)
        if card is not None:
            check_fit(tensors, shapes_of(part, card), wan_names(part, tensors))
        if narrow := [f"{name} ({tensors.dtype(name)})" for name in names if tensors.dtype(name) not in WIDE]:
            raise ValueError(f"{tensors.path}: {listed(narrow)} not floating point of 16 bits or more; get the weights "
                             "as they were published")
        read, about = _reader(tensors, names), _about(tensors, key, card)
        if lora is not None:
            if "lora" in about:
                raise ValueError(f"{source} has a LoRA in it already, {about['lora']}: leave {lora} out")
            read, more = _with_lora(read, names, part, card, Path(lora), stack)
            about |= more
        own = names if to == "official" else to_diffusers(part, names)
        file_name = {own[name]: name for name in names}
        layout = {mine: (tensors.dtype(name), tensors.shape(name)) for mine, name in file_name.items()}
        write_safetensors(output, layout, lambda mine: read(file_name[mine]), about)
    return about


def _wan(tensors: Tensors) -> tuple[dict[str, str], str]:
    """Wan's name of each name in a file, the tied second name of umT5's embedding left out, and the part it is."""
    part = max(PARTS, key=lambda part: len(known_names(part, tensors)))
    try:
        names = to_wan(part, tensors.names)
    except ValueError as error:
        raise ValueError(f"{tensors.path} is not DiT, VAE or text encoder of a Wan model: {error}") from error
    first = {wan: name for name, wan in reversed(names.items())}
    return {name: wan for name, wan in names.items() if first[wan] == name}, part


def _reader(tensors: Tensors, names: Mapping[str, str]) -> Callable[[str], Tensor]:
    def read(name: str) -> Tensor:
        value = tensors[name]
        if value.is_floating_point() and not all(piece.float().isfinite().all() for piece in _pieces(value)):
            raise ValueError(f"{tensors.path}: {name} has values that are not finite; get it again")
        return value

    return read


def _pieces(value: Tensor) -> tuple[Tensor, ...]:
    return value.reshape(-1).split(1 << 24)


def _about(tensors: Tensors, key: str | None, card: Card | None) -> dict[str, str]:
    files = [tensors.path]
    if tensors.path.suffix == ".json":
        homes = json.loads(tensors.path.read_text(encoding="utf-8"))["weight_map"].values()
        files = [tensors.path.with_name(home) for home in sorted({*homes})]
    about = {"format": "pt", "source": tensors.path.name, "arvid": __version__}
    about["sha256"] = sha256_of(files[0]) if len(files) == 1 else json.dumps({f.name: sha256_of(f) for f in files})
    about |= {name: value for name, value in header(tensors.path).items() if name in KEPT}
    return about | ({"key": key} if key else {}) | ({"card": card.name} if card else {})


def _with_lora(
    read: Callable[[str], Tensor], names: Mapping[str, str], part: str, card: Card | None, path: Path, stack: ExitStack
) -> tuple[Callable[[str], Tensor], dict[str, str]]:
    """`read` with the LoRA added to what it changes, and what the header says of it."""
    if card is None or card.lora is None or part != "dit":
        with_lora = [each.name for each in CARDS.values() if each.lora]
        raise ValueError(f"a LoRA needs the card of a DiT that gives its rank and alpha: {listed(with_lora)}")
    factors = open_lora(path, stack)
    pairs: dict[str, list[str]] = {}
    for name in factors.names:
        m = FACTOR.fullmatch(name.removeprefix(PEFT))
        if m is None:
            raise ValueError(f"{path}: {name} is not a LoRA factor under PEFT's names")
        pairs.setdefault(f"{m[1]}.weight", []).append(name)
    homes = to_wan("dit", pairs)
    if lost := [name for name, wan in homes.items() if wan not in names.values()]:
        raise ValueError(f"{path} changes {listed(lost)}, which the weights lack; it belongs to another model")
    of = {wan: pairs[name] for name, wan in homes.items()}
    rank, alpha = card.lora

    def merged(name: str) -> Tensor:
        wan = names[name]
        state = {wan: read(name)}
        if wan in of:
            try:
                merge_lora(state, {factor: factors[factor] for factor in of[wan]}, rank, alpha)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        return state[wan]

    return merged, {"lora": path.name, "lora_sha256": sha256_of(path)}
