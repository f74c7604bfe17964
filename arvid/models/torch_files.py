"""Files of torch.save, opened without running what is in them and without reading a tensor before it is used."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint
from torch.torch_version import TorchVersion

from .file_faults import listed, mistaken

__all__ = ["torch_table"]

SAFE_TORCH = "2.10"
CONVERT = "get safetensors, or, where you trust its source, save its tensors again without the rest"


def torch_table(path: Path, key: str | None) -> dict[str, Tensor]:
    """A table of tensors of a `.pt` or `.pth` file, mapped into memory; raises as `arvid.models.files.open_tensors`."""
    content = _unpickled(path)
    tables = _tables(content)
    if not tables:
        kind = f"its keys: {listed([*map(repr, content)])}" if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} holds no table of tensors ({kind}); give a file of weights")
    counts = ", ".join(f"{name!r} ({sum(map(torch.is_tensor, table.values()))} tensors)"
                       for name, table in tables.items()) + ("; '' is the file's own table" if "" in tables else "")
    if key is None and len(tables) > 1:
        raise ValueError(f"{path} holds several tables of tensors; choose one with key, by `arvid convert --key` or by "
                         f"the card it belongs to: {counts}")
    if key is not None and key not in tables:
        raise ValueError(f"{path} has no table of tensors called {key!r}; it has {counts}; `arvid convert --key` "
                         "takes another")
    table = tables[next(iter(tables)) if key is None else key]
    if strange := [str(name) for name, value in table.items() if not (isinstance(name, str) and _is_plain(value))]:
        raise ValueError(f"{path}: {listed(strange)} not a dense tensor on the CPU; weights hold nothing else")
    return {name: tensor.detach() for name, tensor in table.items()}


def _tables(content: Any) -> dict[str, dict[Any, Any]]:
    """The dictionaries with tensors in them: `content` itself as "", and those it holds, by key."""
    if not isinstance(content, dict):
        return {}
    named = {"": content} | {name: value for name, value in content.items() if isinstance(name, str) and name}
    return {name: table for name, table in named.items()
            if isinstance(table, dict) and any(map(torch.is_tensor, table.values()))}


def _is_plain(value: Any) -> bool:
    kind = type(value)
    return kind in (Tensor, torch.nn.Parameter) and value.layout == torch.strided and value.device.type == "cpu"


def _unpickled(path: Path) -> Any:
    """What the file holds, by torch's unpickler that knows tensors and containers only."""
    if TorchVersion(torch.__version__) < SAFE_TORCH:
        raise ValueError(
            f"{path} is not read with torch {torch.__version__}: before {SAFE_TORCH} a file can corrupt memory even "
            "when only weights are loaded (GHSA-63cw-57p8-fm3p); update torch, or get safetensors"
        )
    _check_archive(path)
    try:
        unknown = sorted(get_unsafe_globals_in_checkpoint(path))
        if not unknown:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than weights and is refused: {_reason(error)}; {CONVERT}") from None
    except Exception as error:  # damage surfaces as whatever the unpickler stumbles over
        raise ValueError(f"{path} is damaged; get it again: {_in_short(error)}") from error
    asked = listed([*map(repr, unknown)])
    raise ValueError(f"{path} asks to run {asked} and is refused: weights need no code; {CONVERT}")


def _check_archive(path: Path) -> None:
    """Raise unless the zip archive is as torch.save writes it: stored records, each once, where the index says.

    Torch compares no checksum, and maps records as they lie, so that compressed ones would become noise. Here all
    checksums are compared but those of the tensors' values, which takes no time.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":
            raise ValueError(f"{path} {mistaken(path)}")
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            packed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
            for record in [] if packed else records:  # unpacked they may be a thousand times the file
                with archive.open(record) as content:
                    if "/data/" not in record.filename:
                        content.read()
    except Exception as error:  # zipfile lets many kinds of error through
        raise ValueError(f"{path} {mistaken(path)}: {_in_short(error)}") from error
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise ValueError(f"{path} holds a TorchScript program, not weights; {CONVERT}")
    if packed:
        raise ValueError(f"{path}: {listed(packed)} compressed; give the file as torch.save wrote it")
    if len({record.filename for record in records}) < len(records):
        raise ValueError(f"{path} holds a record twice, so it is not as torch.save wrote it; get it again")


def _reason(error: pickle.UnpicklingError) -> str:
    """What the unpickler met, without torch's advice on how to run it all the same."""
    told = [part for part in str(error).split("\n\n") if part.strip() and "documentation of torch.load" not in part]
    return told[-1].split("WeightsUnpickler error:")[-1].split(". Please use")[0].strip() if told else "no reason given"


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__} {str(error).strip().split(chr(10))[0]}".strip()
