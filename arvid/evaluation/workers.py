"""Making and measuring the videos of a task, here or in several processes. What is finished is on disk at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from math import isfinite
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np

from arvid.evaluation.metrics import Clip, measure
from arvid.evaluation.store import Folder
from arvid.evaluation.task import Packed, Task, Unit, noise_seed, unpack
from arvid.video import Video

__all__ = ["Failed", "cores", "work"]

Tell = Callable[[float, int], None]
"""Called with the share of a unit's frames that were generated since the last call, and the rows that were written."""

EXPECTED = (ValueError, OSError, FloatingPointError, RuntimeError)
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Failed(RuntimeError):
    """A video could not be made or measured; the message says which and why."""


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work(
    task: Task, folder: Folder, units: Sequence[Unit], *, jobs: int, keep_videos: bool, prepare: Callable[[], Any],
    tell: Callable[[Unit, float, int], None],
) -> None:  # fmt: skip
    """Make, measure and write all units: in this process, or with `jobs` above 1 in so many, each with its share of
    the cores and weights of its own.

    Each process first runs `prepare`, which registers strategies and can be pickled. `tell` hears how far each unit
    is. Raises `Failed` for the first unit that fails; processes end with this one, whatever ends it.
    """
    jobs = min(jobs, len(units))
    if jobs > 1:
        _in_processes(task, folder, units, jobs, keep_videos, prepare, tell)
    elif units:
        maker = Maker(task, folder, keep_videos)
        for unit in units:
            maker.make(unit, partial(tell, unit))


class Maker:
    """Makes units, with weights that are loaded once for all methods."""

    def __init__(self, task: Task, folder: Folder, keep_videos: bool) -> None:
        from arvid.models.loading import DTYPES, FreedEncoder, load

        self.task, self.folder, self.keep_videos = task, folder, keep_videos
        self.parts = load(task.weights, task.text, task.device, DTYPES[task.dtype])
        if isinstance(self.parts.text, FreedEncoder):
            self.parts.text.remember(task.prompts)

    def make(self, unit: Unit, tell: Tell) -> None:
        """Generate the unit's videos, measure those that are missing and write them. Raises `Failed`."""
        task = self.task
        more = f" and the {unit.stop - unit.first - 1} after it" if unit.stop - unit.first > 1 else ""
        with _named(unit, f"{task.prompts[unit.first]!r}{more}"):
            videos = self._generate(unit, tell)
        for index, key in unit.missing.items():
            with _named(unit, repr(task.prompts[index])):
                self._finish(task.prompts[index], noise_seed(index, unit.seed), key, videos[index - unit.first])
            tell(0.0, 1)

    def _generate(self, unit: Unit, tell: Tell) -> list[Video]:
        from arvid.pipeline import Pipeline

        task, parts = self.task, self.parts
        pipe = Pipeline(parts.dit, task.configs[unit.label], parts.vae, parts.text, task.card)
        total, done = task.edges[-1], 0
        rows = [np.empty((total, *task.size, 3), np.uint8) for _ in range(unit.first, unit.stop)]
        pieces = pipe.stream(
            list(task.prompts[unit.first : unit.stop]), frames=task.frames, height=task.size[0], width=task.size[1],
            seed=[noise_seed(index, unit.seed) for index in range(unit.first, unit.stop)],
        )  # fmt: skip
        for piece in pieces:
            count = len(piece[0])
            for row, video in zip(rows, piece, strict=True):
                row[done : done + count] = video.frames
            done += count
            tell(count / total, 0)
        assert done == total
        return [Video(row, task.card.fps) for row in rows]

    def _finish(self, prompt: str, seed: int, key: str, video: Video) -> None:
        whole, segments = measure(Clip(video.frames, video.fps, prompt), self.task.edges, self.task.metrics)
        found = {"prompt": prompt, "noise_seed": seed, "whole": {name: _plain(x) for name, x in whole.items()},
                 "segments": {name: [*map(_plain, curve)] for name, curve in segments.items()}}  # fmt: skip
        self.folder.finish(key, video, found, self.keep_videos)


def _plain(value: float) -> float | None:
    return float(value) if isfinite(value) else None


@contextmanager
def _named(unit: Unit, prompt: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise Failed(f"{unit.label}, prompt {prompt}, seed {unit.seed}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    import torch

    text = str(error) or type(error).__name__
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in text:
        return f"out of memory, lower --batch or --jobs: {text}"
    if isinstance(error, EXPECTED):
        *_, last = traceback.extract_tb(error.__traceback__)
        return f"{type(error).__name__}: {text} ({os.path.basename(last.filename)}, line {last.lineno})"
    return "".join(traceback.format_exception(error)).rstrip()  # of a bug


def _in_processes(
    task: Task, folder: Folder, units: Sequence[Unit], jobs: int, keep_videos: bool, prepare: Callable[[], Any],
    tell: Callable[[Unit, float, int], None],
) -> None:  # fmt: skip
    threads = max(1, cores() // jobs)
    waiting, busy, processes = list(reversed(units)), dict[Connection, Unit](), list[SpawnProcess]()
    try:
        for _ in range(jobs):
            ours, theirs = multiprocessing.get_context("spawn").Pipe()
            process = multiprocessing.get_context("spawn").Process(
                target=_worker, args=(theirs, prepare, task.packed(), folder, keep_videos, threads), daemon=True
            )
            with _inherited(threads):
                process.start()
            theirs.close()
            processes.append(process)
            busy[ours] = waiting.pop()
            ours.send(busy[ours])
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                _hear(connection, busy, waiting, tell)
    finally:
        for process in processes:  # nothing is lost: what they wrote is whole
            process.kill()
            process.join()


def _hear(
    connection: Connection, busy: dict[Connection, Unit], waiting: list[Unit], tell: Callable[[Unit, float, int], None]
) -> None:
    """Take one message of a worker, and give it the next unit when it is done with one."""
    unit = busy[connection]
    try:
        message = connection.recv()
    except (EOFError, ConnectionError):
        raise Failed(f"{unit.label}, seed {unit.seed}, prompts {unit.first + 1} .. {unit.stop}: the process that made "
                     "them was ended from outside, by the system if memory ran out: lower --batch or --jobs") from None
    if isinstance(message, str):
        raise Failed(message)
    if message is not None:
        tell(unit, *message)
        return
    del busy[connection]
    if waiting:
        busy[connection] = waiting.pop()
        connection.send(busy[connection])


@contextmanager
def _inherited(threads: int) -> Iterator[None]:
    """What a process started here begins with: so many threads for libraries that ask when they are loaded, and no
    traceback when the terminal interrupts it before it runs a line of ours."""
    before = {name: os.environ.get(name) for name in THREADS}
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        if main:
            signal.signal(signal.SIGINT, handler)


def _worker(
    connection: Connection, prepare: Callable[[], Any], packed: Packed, folder: Folder, keep_videos: bool, threads: int
) -> None:  # fmt: skip
    """A process that makes units until it is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C: the process that started this one ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")  # the process that started this one has shown them
    try:
        prepare()
        import torch

        torch.set_num_threads(threads)
        maker = Maker(unpack(packed), folder, keep_videos)
        while True:
            maker.make(connection.recv(), lambda *told: connection.send(told))
            connection.send(None)
    except Exception as error:
        with suppress(OSError):  # that process is gone, and soon this one
            connection.send(str(error) if isinstance(error, Failed) else _reason(error))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)
