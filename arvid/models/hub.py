"""Where weights are: local paths, and ids of the Hugging Face hub for what is no local path."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from glob import escape
from pathlib import Path

__all__ = ["file_of", "folder_of", "sha256_of"]

ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
FILE_ID = re.compile(rf"({ID.pattern})/(.+)")
WANTED = ("*.json", "*.safetensors", "*.model", "Wan2*_VAE.pth", "models_t5*.pth")
"""What a folder of weights is made of; the rest of a repository stays where it is."""


def folder_of(model: str | Path) -> Path:
    """The folder `model`, or that of the hub's repository "org/name", from the local cache or downloaded.

    A string is an id only where no local path begins like it. Files that were downloaded just now are compared with
    the hub's SHA-256. Raises `FileNotFoundError` for what is neither, or cannot be had here and now, and
    `ValueError` for an address.
    """
    if isinstance(model, str) and "://" in model:
        raise ValueError(f"{model} is an address; give a local folder, or the hub's id org/name")
    if _is_local(model) or not isinstance(model, str) or not ID.fullmatch(model):
        return Path(model)

    def get() -> Path:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(model, allow_patterns=list(WANTED)))

    return _fetched(str(model), get)


def file_of(path: str | Path) -> Path:
    """The file `path`, or the hub's "org/name/path/in/repository". Raises as `folder_of`."""
    m = FILE_ID.fullmatch(path) if isinstance(path, str) and not _is_local(path) else None
    if m is None:
        return Path(path)

    def get() -> Path:
        from huggingface_hub import snapshot_download

        # A download of one file tries for half a minute where there is no network, and says so each time.
        found = Path(snapshot_download(m[1], allow_patterns=[escape(m[2])])) / m[2]
        if not found.is_file():
            raise FileNotFoundError(f"{m[1]} has no {m[2]}, or not in the local cache")
        return found

    return _fetched(str(path), get)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_local(path: str | Path) -> bool:
    """Whether the path, or the folder that it begins with, is there; then a path that ends nowhere is a mistake."""
    return Path(path).exists() or Path(Path(path).parts[0] if Path(path).parts else "").exists()


def _fetched(name: str, get: Callable[[], Path]) -> Path:
    began = time.time()
    try:
        found = get()
    except ImportError as error:
        raise FileNotFoundError(f"no local path {name}; the hub's needs `pip install huggingface_hub`") from error
    # The hub's errors are OSErrors and ValueErrors of many classes, down to those of its HTTP client.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise FileNotFoundError(f"no local path {name}, and the hub's {name} cannot be had ({type(error).__name__}: "
                                f"{reason}); give a local path, or download it where there is a network") from error
    for path in [found] if found.is_file() else sorted(found.rglob("*")):
        _compare(path, began)
    return found


def _compare(path: Path, began: float) -> None:
    """Raise `ValueError` where a large file came just now and is not what its name in the hub's cache says."""
    blob = path.resolve()
    if not blob.is_file() or not re.fullmatch(r"[0-9a-f]{64}", blob.name) or blob.stat().st_mtime < began - 1:
        return
    if (digest := sha256_of(blob)) != blob.name:
        raise ValueError(f"{path} has SHA-256 {digest}, the hub says {blob.name}; delete {blob} and get it again")
