"""A folder for one process at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["locked"]


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Hold a folder, made if need be, for this process; the system lets go of it when the process ends.

    Raises `BlockingIOError` naming the process that is `doing` it ("writing to"), `OSError` where the folder cannot be
    written to, and `RuntimeError` on a system without flock.
    """
    try:
        import fcntl
    except ModuleNotFoundError as error:
        raise RuntimeError("folders are locked with flock, which this system lacks: use Linux or macOS") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise OSError(f"cannot write to {str(folder)!r}: {error.strerror}; name another folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise BlockingIOError(f"process {lock.read().strip() or 'unknown'} is {doing} {str(folder)!r}: wait for "
                                  "it, or name another folder") from None  # fmt: skip
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield
