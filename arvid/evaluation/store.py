"""A comparison's folder: one file for each finished video, whole or not there, found again by what decided its numbers.

    DIR/rows/KEY.json     metrics of a video
    DIR/strips/KEY.png    its contact strip
    DIR/videos/KEY.mp4    the video, if it is kept
    DIR/weights.json      what the weights' files hashed to, by size and time of change
    DIR/.lock             held by the process that works here
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

import arvid
from arvid.locking import locked
from arvid.models.embeddings import Embeddings
from arvid.models.loading import Found
from arvid.video import Video

__all__ = ["FORMAT", "Folder", "code_hash", "digest", "weights_hash"]

FORMAT = 1
"""Of row files, and of the rules that are in no setting: segments, noise seeds, the order of batches."""

UNFINISHED = ".arvid-"
STRIP_FRAMES = 8
NO_PART = ("cli/", "plots/", "testing/", "costs.py", "lint.py", "plan.py", "presets.py", "simulate.py", *(
    f"evaluation/{name}.py" for name in ("compare", "figures", "html", "prompts", "results", "statistics", "store",
                                         "task", "workers")))  # fmt: skip
"""Files that decide neither pixels nor numbers, or whose rules `FORMAT` counts."""


class Folder:
    """Rows of finished videos in a folder. Other files there are left alone, and so are rows with other keys."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self) -> None:
        """Raise `NotADirectoryError` or `PermissionError` where no rows can be written; makes nothing."""
        above = next(each for each in (self.path, *self.path.absolute().parents) if each.exists())
        if not above.is_dir():
            raise NotADirectoryError(f"cannot write to {str(self.path)!r}: {str(above)!r} is a file; name a folder")
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(f"cannot write to {str(self.path)!r}: no permission in {str(above)!r}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, as `arvid.locking.locked`."""
        with locked(self.path, "writing to"):
            for name in ("rows", "strips"):
                (self.path / name).mkdir(exist_ok=True)
            self._clean()
            yield

    def _clean(self) -> None:
        """Remove what a process that was killed left half-written."""
        for name in ("rows", "strips", "videos"):
            for file in (self.path / name).glob(f"{UNFINISHED}*"):
                file.unlink()

    def row(self, key: str) -> dict[str, Any] | None:
        """What `finish` wrote of a key, or None where it is missing or damaged."""
        try:
            plain = json.loads((self.path / "rows" / f"{key}.json").read_bytes())
            checksum = plain.pop("checksum")
            strip = _sha256(self.path / self.strip(key))
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            return None
        return plain if checksum == digest(plain) and strip == plain["strip"] and plain["key"] == key else None

    def has_video(self, key: str) -> bool:
        """Whether the video of a key was kept."""
        return (self.path / self.video(key)).is_file()

    @staticmethod
    def strip(key: str) -> str:
        """Where the strip of a key is, from the folder."""
        return f"strips/{key}.png"

    @staticmethod
    def video(key: str) -> str:
        """Where the video of a key is, from the folder."""
        return f"videos/{key}.mp4"

    def finish(self, key: str, video: Video, found: Mapping[str, Any], keep_video: bool) -> None:
        """Write a video's files, the row last: once it is there, all is. `found` is plain values."""
        import imageio.v3 as iio

        if keep_video:
            (self.path / "videos").mkdir(exist_ok=True)
            video.save(self.path / self.video(key))
        strip = iio.imwrite("<bytes>", np.ascontiguousarray(video.sheet(STRIP_FRAMES, 1)), extension=".png")
        self.write(self.strip(key), strip)
        plain = {**found, "key": key, "strip": hashlib.sha256(strip).hexdigest()}
        self.write(f"rows/{key}.json", _json({**plain, "checksum": digest(plain)}, indent=1))

    def write(self, name: str, content: bytes) -> Path:
        """Write a file of the folder; it appears when it is complete, replacing an older one."""
        path = self.path / name
        unfinished = path.parent / f"{UNFINISHED}{uuid4().hex}"  # in the same folder: the replacement is atomic
        try:
            unfinished.write_bytes(content)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        return path


def digest(plain: Any) -> str:
    """SHA-256 of plain values, whatever the order of keys."""
    return hashlib.sha256(_json(plain)).hexdigest()


def weights_hash(weights: Found, text: str, folder: Folder) -> str:
    """SHA-256 of all files that networks and tokenizer are read from, and of the encoder of embeddings in the file
    `text`. `folder` remembers that of each file, until its size or time of change is another."""
    try:
        known = json.loads((folder.path / "weights.json").read_bytes())
        assert isinstance(known, dict)
    except (OSError, ValueError, AssertionError):
        known = {}
    own, hashes = weights.folder, {}
    parts = {"dit": weights.checkpoint or own.dit, "vae": own.vae, "text": own.text, "tokenizer": own.tokenizer,
             "lora": weights.lora}  # fmt: skip
    for part, place in parts.items():
        for path in _files(place):
            state = [path.stat().st_size, path.stat().st_mtime_ns]
            *before, sha = known.get(str(path), [None, None, None])
            if before != state:
                sha = _sha256(path)
                known[str(path)] = [*state, sha]
            hashes[f"{part}/{path.name}"] = sha
    folder.write("weights.json", _json(known, indent=1))
    encoder = None if text in ("keep", "free") else Embeddings.read(text).encoder
    return digest({"card": weights.card.to_dict(), "files": hashes, "encoder": encoder})


def _files(place: Path | None) -> list[Path]:
    """The files of a part: one, or those of a folder or beside an index; none where there are none."""
    if place is None or not place.exists():
        return []
    if place.suffix == ".json":
        place = place.parent
    return [place.resolve()] if place.is_file() else sorted(path.resolve() for path in place.glob("*.safetensors"))


def code_hash(strategies: Iterable[object]) -> str:
    """SHA-256 of the code that makes and measures videos: arvid's, and the files of strategies from elsewhere."""
    root = Path(arvid.__file__).parent
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    used = {name: _sha256(path) for name, path in files.items() if not name.startswith(NO_PART)}
    others = {path for strategy in strategies if (path := _source(type(strategy))) and not path.is_relative_to(root)}
    return digest([used, sorted(map(_sha256, others))])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _source(cls: type) -> Path | None:
    try:
        return Path(inspect.getfile(cls)).resolve()
    except (TypeError, OSError):  # a class made in a console
        return None


def _json(plain: Any, indent: int | None = None) -> bytes:
    return (json.dumps(plain, indent=indent, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()

