"""Published files of weights, read one tensor at a time: safetensors, whole or in shards, and torch's .pt and .pth.

Nothing in a file is run, and nothing is chosen silently. Files are mapped into memory, so that a tensor takes memory
when it is used. Every fault is a `ValueError` or `FileNotFoundError` with the path, the reason and what to do.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .file_faults import TORCH, listed, mistaken
from .torch_files import torch_table

__all__ = ["WIDE", "Tensors", "check_fit", "load_exactly", "open_tensors"]

INDEX = ".safetensors.index.json"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
}  # fmt: skip
WIDE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What weights are published in. Floats of 8 bits are other people's, with scales that nothing here reads."""


class Entry(NamedTuple):
    """A tensor in a file that has not been read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


class Tensors:
    """The tensors of a file or of a folder of shards, by their names in it; valid while `open_tensors` is open.

    `tensors[name]` reads one, onto the CPU, in the file's dtype. `path` is the file, or the index of the shards.
    """

    def __init__(self, path: Path, entries: Mapping[str, Entry]) -> None:
        self.path = path
        self._entries = dict(entries)

    @property
    def names(self) -> list[str]:
        """Every name, in the order of the file."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor, without reading it."""
        return self._entry(name).dtype

    def __getitem__(self, name: str) -> Tensor:
        return self._entry(name).read()

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise ValueError(f"{self.path} has no tensor {name!r}; it has {listed(self.names)}")
        return self._entries[name]


def _held(tensor: Tensor) -> Entry:
    return Entry(tuple(tensor.shape), tensor.dtype, lambda: tensor)


@contextmanager
def open_tensors(path: str | Path, key: str | None = None) -> Iterator[Tensors]:
    """Open weights: a `.safetensors` file, its `.safetensors.index.json`, a folder with either, a `.pt` or a `.pth`.

    `key` names the entry of a torch file that holds the weights, such as "generator_ema"; "" is the file's own table.
    It may be left out where there is only one. Raises `FileNotFoundError` for a missing file or shard, `ValueError`
    for a file that is incomplete, of another kind, unsafe or contradicts itself, and for a choice that is left open.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}; give a .safetensors, {INDEX}, .pt or .pth file, or a folder")
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise ValueError(f"{path} is no regular file; give a .safetensors, {INDEX}, .pt or .pth file, or a folder")
    is_torch = path.suffix in TORCH
    if not is_torch and path.suffix != ".safetensors" and not path.name.endswith(INDEX):
        raise ValueError(f"{path} is no kind of weights known here; give .safetensors, *{INDEX}, .pt or .pth")
    if key is not None and not is_torch:
        raise ValueError(f"{path} has no entries to choose {key!r} from: safetensors hold one table; leave key out")
    with ExitStack() as stack:
        if is_torch:
            entries = {name: _held(tensor) for name, tensor in torch_table(path, key).items()}
        elif path.name.endswith(INDEX):
            entries = _shards(path, stack)
        else:
            entries = _safetensors(path, stack)
        yield Tensors(path, entries)


def load_exactly(
    tensors: Tensors,
    wanted: Mapping[str, tuple[int, ...]],
    names: Mapping[str, str] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Copies of the tensors, one read at a time: the names and shapes of `wanted`, all finite; or `ValueError`.

    `names` gives the wanted name of each name in the file (see `arvid.models.names.to_wan`); two names of one tensor
    must hold the same values. `dtype` None keeps the file's. Values are checked in `dtype`: what overflows float16 is
    refused there, and fits bfloat16. All that is wrong is one report.
    """
    names = {name: name for name in tensors.names} if names is None else names
    faults = _faults(tensors, wanted, names)
    sound = not any(faults.values())
    state, infinite, unequal = {}, [], []
    for name, own in names.items():
        if not _fits(tensors, name, wanted.get(own)):
            continue
        value = tensors[name]
        cast = value.to(device, dtype or value.dtype, copy=True)
        if bad := _not_finite(cast):
            infinite.append(f"{name} ({bad} of {value.numel()} values, read as {cast.dtype})")
        elif own in state and not torch.equal(state[own], cast):
            unequal.append(name)
        if sound:  # otherwise values are looked at for the report only
            state.setdefault(own, cast)
    faults |= {"with values that are not finite": infinite, "not equal to their other name": unequal}
    _refuse(tensors.path, faults)
    return state


def check_fit(tensors: Tensors, wanted: Mapping[str, tuple[int, ...]], names: Mapping[str, str]) -> None:
    """Raise as `load_exactly` for names, shapes and dtypes, without reading a value."""
    _refuse(tensors.path, _faults(tensors, wanted, names))


def _faults(
    tensors: Tensors, wanted: Mapping[str, tuple[int, ...]], names: Mapping[str, str]
) -> dict[str, list[str]]:
    """What is wrong with names, shapes and dtypes, by the kind of fault."""
    shapes = [
        f"{name} {tensors.shape(name)} instead of {tuple(wanted[own])}"
        for name, own in names.items()
        if own in wanted and tensors.shape(name) != tuple(wanted[own])
    ]
    narrow = sorted(f"{name} ({tensors.dtype(name)})" for name in names if tensors.dtype(name) not in WIDE)
    return {
        "missing": sorted(set(wanted) - set(names.values())),
        "unexpected": sorted(name for name in tensors.names if names.get(name) not in wanted),
        "of another shape": shapes,
        "not floating point of 16 bits or more": narrow,
    }


def _fits(tensors: Tensors, name: str, shape: tuple[int, ...] | None) -> bool:
    return shape is not None and tensors.shape(name) == tuple(shape) and tensors.dtype(name) in WIDE


def _refuse(path: Path, groups: Mapping[str, list[str]]) -> None:
    if wrong := [f"{listed(names)} {problem}" for problem, names in groups.items() if names]:
        raise ValueError(f"{path} does not fit its card: {'; '.join(wrong)}")


def _not_finite(value: Tensor) -> int:
    """How many values are not finite, in little memory."""
    bad = 0
    for piece in value.reshape(-1).split(1 << 24):
        if not piece.sum().isfinite():  # many times faster than looking at each; a sum may overflow, so then look
            bad += int((~piece.isfinite()).sum())
    return bad


# Safetensors


def _in_folder(folder: Path) -> Path:
    """The one index of a folder, or else its one safetensors file."""
    indexes = sorted(folder.glob(f"*{INDEX}"))
    single = sorted(folder.glob("*.safetensors"))
    found = indexes or single
    if not found:
        raise FileNotFoundError(f"{folder} has no .safetensors and no *{INDEX}; give the path of the file itself")
    if len(found) > 1:
        what = "indexes" if indexes else "files and no index"
        raise ValueError(f"{folder} has {len(found)} {what}: {listed([path.name for path in found])}; give one's path")
    if indexes and indexes[0].with_name(indexes[0].name.removesuffix(".index.json")) in single:
        raise ValueError(f"{folder} has {indexes[0].name} and its weights in one file; remove either, or give its path")
    return found[0]


def _safetensors(path: Path, stack: ExitStack) -> dict[str, Entry]:
    try:
        file = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} {mistaken(path)}: {error}") from error
    if strange := sorted(name for name, part in found.items() if part.get_dtype() not in DTYPES):
        raise ValueError(f"{path}: {listed(strange)} of a dtype that is not known here; allowed: {', '.join(DTYPES)}")

    def entry(name: str, part: Any) -> Entry:
        return Entry(tuple(part.get_shape()), DTYPES[part.get_dtype()], lambda: file.get_tensor(name))

    return {name: entry(name, part) for name, part in found.items()}


def _shards(index: Path, stack: ExitStack) -> dict[str, Entry]:
    """The tensors of every shard an index names, each exactly where the index says."""
    homes = _weight_map(index)
    found: dict[str, Entry] = {}
    held: dict[str, str] = {}
    for shard in sorted(set(homes.values())):
        path = index.with_name(shard)
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing, but {index} wants it; get it again")
        entries = _safetensors(path, stack)
        if twice := sorted(set(entries) & set(held)):
            raise ValueError(f"{path} and {held[twice[0]]} both hold {listed(twice)}; {index} needs one home for each")
        lost = sorted(name for name, home in homes.items() if home == shard and name not in entries)
        if lost:
            raise ValueError(f"{path} lacks {listed(lost)}, which {index} looks for there; get the shards again")
        if unknown := sorted(name for name in entries if homes.get(name) != shard):
            raise ValueError(f"{path} holds {listed(unknown)}, which {index} does not place there; get them again")
        found |= entries
        held |= dict.fromkeys(entries, shard)
    return {name: found[name] for name in homes}


def _weight_map(index: Path) -> dict[str, str]:
    """The file name of each tensor, from an index; only names of files beside it."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
            raise ValueError(f"{listed(twice)} given twice")
        return dict(pairs)

    try:
        content = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:  # JSON and Unicode errors are ValueErrors
        raise ValueError(f"{index} {mistaken(index, 'index')}: {error}") from error
    homes = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(homes, dict) or not homes or not all(isinstance(home, str) for home in homes.values()):
        raise ValueError(f"{index} has no weight_map of tensor names to file names; get it again")
    plain = "/\\:\0"
    if outside := sorted({home for home in homes.values() if {*plain} & {*home} or not home.endswith(".safetensors")}):
        raise ValueError(f"{index} names {listed(outside)}; shards must be .safetensors files beside it. Not read")
    return homes
