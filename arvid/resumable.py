"""A video into a file, in as many runs as it takes."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from arvid.cache import EVENT
from arvid.geometry import pixel_frames
from arvid.locking import locked
from arvid.pipeline import Pipeline
from arvid.prompts import Live, Schedule, parse
from arvid.requests import Report
from arvid.streams import State
from arvid.video import VideoWriter, check_output, parts_of
from arvid.video_files import Joined, count_frames

__all__ = ["resumable"]

REQUEST, FINISHED, JOINED, PART = "request.json", "finished.json", "joined.mp4", "%06d.mp4"
OWN = ("state.*", "[0-9][0-9][0-9][0-9][0-9][0-9]*.mp4", ".arvid-*", JOINED, "names", ".lock",
       FINISHED)  # fmt: skip


def resumable(
    pipe: Pipeline, path: str | os.PathLike[str], prompt: str | Schedule | Live, seconds: float | None = None, *,
    scale: int | None = None, every: float = 60.0, progress: Report | None = None,
    note: Callable[[str], None] = lambda text: None, **request: Any,
) -> tuple[int, float]:  # fmt: skip
    """`pipe(prompt, seconds, into=path, **request)` that outlives its process: called again, it goes on.

    About every `every` seconds what is done goes to a part, an .mp4 of its own, in the folder PATH.parts, with the
    state to go on from; whatever ends the process, no more than what came after is made again. At the end the parts
    become the file, with the frames of a single run, and the folder is removed. Returns how many pixel frames there are
    and how many a second. `scale` is as in `Video.save`; `note` is told, in words, when an earlier run is gone on with.
    A prompt that is a function must answer as it did.

    Raises `ValueError` for a path that is no .mp4, for a batch, for an `every` that is no time, and for a folder of
    another request or configuration, of other files, or with parts or states that are missing or damaged, `TypeError`
    for an `every` that is no number, `BlockingIOError` for a folder in which another process writes; and as
    `Pipeline.stream` and `VideoWriter`.
    """
    path, folder = check_output(path), parts_of(path)
    if isinstance(every, bool) or not isinstance(every, (int, float)):
        raise TypeError(f"every={every!r}: give a number of seconds")
    if not every >= 0:
        raise ValueError(f"every={every!r}: give a number of seconds of at least 0")
    VideoWriter(path, scale)  # checks the scale
    stream = pipe.stream(prompt, seconds, progress=progress, **request)
    begun = stream.state()
    if begun.request.batch:
        raise ValueError(f"{str(path)!r} is the file of one video: give one prompt, not a list of them")
    assert pipe.card  # or there would be no stream
    stride, fps = pipe.card.vae.time_stride, pipe.card.fps
    total = pixel_frames(begun.request.total, stride)
    _check_folder(folder)
    with locked(folder, "writing to"):
        if (folder / FINISHED).exists():  # its end was interrupted, with the video in place
            _remove(folder, keep=".lock")
        _claim(folder, _told(begun, prompt, request.get("negative"), scale))
        done, state = _last(folder, next(pipe.dit.parameters()).device)
        if state:
            stream.close()
            _check_parts(folder, done, pixel_frames(state.done, stride))
            stream = pipe.resume(state, prompt if callable(prompt) else None, progress=progress)
            note(f"going on from {state.done} of {state.request.total} latent frames, in {folder}")
        with stream:
            ended = False
            while not ended:
                part = folder / (PART % done)
                ended = _part(stream, part, scale, every)
                done += part.exists()  # nothing was left to be made, perhaps
                if not ended:
                    stream.state().save(folder / f"state.{done}")
                    (folder / f"state.{done - 2}").unlink(missing_ok=True)  # one more stays, lest the last is spoilt
        Joined(folder, [PART % i for i in range(done)], JOINED).finish()
        if (there := count_frames(folder / JOINED)) != total:
            raise ValueError(f"the parts in {str(folder)!r} have {there} pixel frames in place of {total}, so some are "
                             "damaged: those that play are there to be used; delete the folder to begin anew")
        os.replace(folder / JOINED, path)
        os.replace(folder / REQUEST, folder / FINISHED)
        _remove(folder)
    return total, fps


def _check_folder(folder: Path) -> None:
    """Raise for a folder that cannot be taken, before anything is written to it."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"parts go to the folder {str(folder)!r}, and there is such a file: rename it, or "
                                 "name another file to make")
    there = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    if (others := there - {".lock"}) and not there & {REQUEST, FINISHED}:
        raise ValueError(f"{str(folder)!r} holds other files ({min(others)}): name another file to make")


def _claim(folder: Path, told: dict[str, str]) -> None:
    """Write what the request is, or compare it with what is written there."""
    file, unfinished = folder / REQUEST, folder / ".arvid-request"
    if not file.exists():
        unfinished.write_text(json.dumps(told, indent=1))
        os.replace(unfinished, file)
        return
    try:
        saved = json.loads(file.read_bytes())
        assert isinstance(saved, dict)
    except (ValueError, AssertionError):
        raise ValueError(
            f"{str(file)!r} is damaged, or not of arvid: delete its folder, or name another file to make") from None
    if differing := [name for name in {**told, **saved} if told.get(name) != saved.get(name)]:
        raise ValueError(f"{str(folder)!r} is of another request, which differs in {', '.join(differing)}: give that "
                         "one to go on with it, name another file, or delete the folder")


def _last(folder: Path, device: torch.device) -> tuple[int, State | None]:
    """How many parts are done, and the state after them, None before the first."""
    states = {int(file.suffix[1:]): file for file in folder.glob("state.*") if file.suffix[1:].isdigit()}
    done = max(states, default=0)
    if not done:
        return 0, None
    try:
        return done, State.load(states[done], device)
    except ValueError as error:
        raise ValueError(f"{error}; delete this file, to go on from the state before it, if there is one") from error


def _check_parts(folder: Path, done: int, frames: int) -> None:
    """Raise `ValueError` where parts have not so many pixel frames together."""
    counts = {PART % i: count_frames(folder / (PART % i), decode=False) for i in range(done)}
    if sum(counts.values()) != frames:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"the parts in {str(folder)!r} have {sum(counts.values())} pixel frames in place of {frames}, "
                         f"so one is missing or damaged ({told}): put it back, or delete the folder to begin anew")


def _part(stream: Any, path: Path, scale: int | None, every: float) -> bool:
    """Write a part of about `every` seconds' work, and say whether the stream is at its end."""
    path.unlink(missing_ok=True)  # of a run that was stopped before its state was written
    began, writer = time.monotonic(), VideoWriter(path, scale)
    try:
        for piece in stream:
            writer.add(piece)
            if time.monotonic() - began >= every:
                writer.finish()
                return False
    except BaseException:
        writer.close()
        raise
    if writer.count:
        writer.finish()
    return True


def _remove(folder: Path, keep: str = "") -> None:
    """Remove what is arvid's, the mark of the end last, and the folder, where nothing else is in it."""
    for pattern in OWN:
        for file in folder.glob(pattern):
            if file.name != keep:
                file.unlink()
    if not keep and not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()


def _told(state: State, prompt: Any, negative: Any, scale: int | None) -> dict[str, str]:
    """What makes a request what it is; of a prompt that is a function nothing is known."""
    request, start, said = state.request, hashlib.sha256(), None
    for tensor in (request.given.latents_BFCHW, request.given.pixels_BTHWC) if request.given else ():
        if tensor is not None:
            start.update(tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    if not callable(prompt):
        prompts = parse(prompt)
        said = [*prompts.first, *((float(begins), later) for begins, later in prompts.later)]
    told = {
        "prompt": said, "negative": negative, "length": request.layout[1], "seed": request.rows, "size": request.size,
        "on_change": request.on_change and EVENT.spec(request.on_change), "start": start.hexdigest(), "scale": scale,
        "configuration": state.settings,
    }  # fmt: skip
    return {name: repr(value) for name, value in told.items()}
