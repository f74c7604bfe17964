"""Safetensors written tensor by tensor, so that a file of any size takes the memory of its largest tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import DTYPES

__all__ = ["write_safetensors"]

_CODES = {dtype: code for code, dtype in DTYPES.items()}


def write_safetensors(
    path: str | Path, layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], read: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> None:  # fmt: skip
    """Write tensors of the dtypes and shapes of `layout`, each got by `read(name)` in turn, and metadata.

    The format is that of huggingface/safetensors: the header's length, the header, the values. The file gets its name
    when it is whole; until then it is `path` with ".part" added, which is removed when something fails.
    Raises `OSError` with the path where it cannot be written.
    """
    path, end = Path(path), 0
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, (dtype, shape) in layout.items():
        begin, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    unfinished = path.with_name(f"{path.name}.part")
    try:
        with unfinished.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, (dtype, shape) in layout.items():
                value = read(name)
                assert (value.dtype, tuple(value.shape)) == (dtype, shape)
                file.write(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # where nothing can be written, nothing can be removed
            unfinished.unlink()
