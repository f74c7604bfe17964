"""What is wrong with a file of weights, in words for the person who has it."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["TORCH", "listed", "mistaken"]

TORCH = (".pt", ".pth")


def listed(names: list[str]) -> str:
    """The first ten names, and how many more there are."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def mistaken(path: Path, what: str = "") -> str:
    """What a file that cannot be read probably is, and what to do."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not size:
        return "is empty (0 bytes); get it again"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return f"({size} bytes) is a web page, not weights; download the file itself"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not weights; run `git lfs pull`"
    if what:
        return f"({size} bytes) is not a readable {what}; get it again"
    if path.suffix in TORCH:
        return _mistaken_torch(path, start, size)
    if start.startswith(b"PK\3\4"):
        return f"({size} bytes) is a zip archive as torch saves it, not safetensors; name it .pt"
    expected = _expected_size(path)
    if expected is not None and size < expected:
        return f"is incomplete, {size} bytes of {expected}; get it again"
    return f"({size} bytes) is incomplete or no safetensors file; get it again"


def _mistaken_torch(path: Path, start: bytes, size: int) -> str:
    if start.startswith(b"PK\3\4"):
        return f"({size} bytes) is incomplete or damaged; get it again"
    if start[:1] == b"{" or start[8:9] == b"{":
        return f"({size} bytes) is no torch file; if it holds safetensors, name it .safetensors"
    if start[:1] == b"\x80" or start[257:262] == b"ustar":
        return (f"({size} bytes) is a bare pickle or an archive of torch before 1.6, which is not read; "
                "get safetensors, or, where you trust its source, load it and torch.save it again")
    return f"({size} bytes) is no file of torch.save, or not a whole one; get it again"


def _expected_size(path: Path) -> int | None:
    """The size that the header of a safetensors file asks for; None if the header itself cannot be read."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return None
        try:
            header = json.loads(file.read(length))
            ends = [part["data_offsets"][1] for name, part in header.items() if name != "__metadata__"]
            return 8 + length + max(ends, default=0)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None
