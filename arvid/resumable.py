"""A video into a file, in as many runs as it takes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
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
from arvid.video import VideoWriter, check_output
from arvid.video_files import Joined

__all__ = ["resumable"]


def resumable(
    pipe: Pipeline, path: str | os.PathLike[str], prompt: str | Schedule | Live, seconds: float | None = None, *,
    scale: int | None = None, every: float = 60.0, progress: Report | None = None,
    note: Callable[[str], None] = lambda text: None, **request: Any,
) -> tuple[int, float]:  # fmt: skip
    """`pipe(prompt, seconds, into=path, **request)` that outlives its process: called again, it goes on.

    About every `every` seconds what is done goes to a part, an .mp4 of its own, in the folder NAME.parts beside the
    file, with the state to go on from; whatever ends the process, no more than what came after is made again. At the
    end the parts become the file, with the frames of a single run, and the folder is removed. Returns how many pixel
    frames there are and how many a second. `scale` is as in `Video.save`; `note` is told, in words, when an earlier run
    is gone on with. A prompt that is a function must answer as it did.

    Raises `ValueError` for a path that is no .mp4, for a batch, and for a folder of another request or configuration;
    `BlockingIOError` for one in which another process writes; and as `Pipeline.stream` and `VideoWriter`.
    """
    path = check_output(path)
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"{str(path)!r}: only an .mp4 is made in several runs; name one, or use pipe(..., into=)")
    VideoWriter(path, scale)  # checks the scale
    stream = pipe.stream(prompt, seconds, progress=progress, **request)
    begun = stream.state()
    if begun.request.batch:
        raise ValueError(f"{str(path)!r} is the file of one video: give one prompt, not a list of them")
    told = _told(begun, prompt, request.get("negative"), scale)
    folder = path.with_suffix(".parts")
    with locked(folder, "writing to"):
        if not (file := folder / "request.json").exists():
            if others := sorted(other.name for other in folder.iterdir() if other.name != ".lock"):
                raise ValueError(f"{str(folder)!r} holds other files ({others[0]}): name another file to make")
            file.write_text(json.dumps(told, indent=1))
        elif differing := [name for name, value in _read(file).items() if told.get(name) != value]:
            raise ValueError(f"{str(folder)!r} is of another request, which differs in {', '.join(differing)}: give "
                             "that one to go on with it, name another file, or delete the folder")
        states = {int(file.suffix[1:]): file for file in folder.glob("state.*") if file.suffix[1:].isdigit()}
        done = max(states, default=0)
        if done:
            stream.close()
            state = State.load(states[done], next(pipe.dit.parameters()).device)
            stream = pipe.resume(state, prompt if callable(prompt) else None, progress=progress)
            note(f"going on from {state.done} of {state.request.total} latent frames, in {folder}")
        with stream:
            ended = False
            while not ended:
                ended = _part(stream, _name(folder, done), scale, every)
                done += _name(folder, done).exists()  # nothing was left to be made, perhaps
                if not ended:
                    stream.state().save(folder / f"state.{done}")
                    (folder / f"state.{done - 1}").unlink(missing_ok=True)
        names = folder / "names"
        names.write_text("".join(f"file {_name(folder, i).name}\n" for i in range(done)))
        Joined(names, folder / "joined.mp4").finish()
        os.replace(folder / "joined.mp4", path)
        shutil.rmtree(folder)
    assert pipe.card  # or there would be no stream
    return pixel_frames(begun.request.total, pipe.card.vae.time_stride), pipe.card.fps


def _read(file: Path) -> dict[str, str]:
    try:
        return dict(json.loads(file.read_text()))
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is damaged: delete its folder, to begin anew") from error


def _name(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.mp4"


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
