"""A video as it is made: chunk after chunk, and what it takes to stop after any of them and go on later."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar, cast
from uuid import uuid4
from zipfile import ZipFile

import torch
from torch import Tensor

from arvid.cache import CACHE, EVENT, Chunk, Ref
from arvid.cache.history import Book, Place, StoreShape
from arvid.cache.store import Snapshot
from arvid.geometry import pixel_frames
from arvid.models.denoiser import CachedDenoiser, DenoiserState
from arvid.models.vae import WanVAE
from arvid.models.vae_stream import DecodeStream, encoded
from arvid.prompts import Live, ask
from arvid.requests import Given, KeyedNoise, Progress, Report, Request, usable
from arvid.samplers import Denoiser, Emit, Sampler
from arvid.samplers.diffusion_forcing import Flight
from arvid.samplers.solvers import SOLVERS
from arvid.video import Video, check_place

__all__ = ["Ask", "Rollout", "State", "Stream", "finite", "pieces"]

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class State:
    """Where a stream stood after a piece: what `Pipeline.resume` needs. A copy, which nothing later changes.

    `request` holds the prompts up to then, `settings` the configuration; `asked` is the last frame that a live prompt
    was asked for and `prompt` the answer, None if there is none.
    """

    request: Request
    settings: dict[str, Any]
    done: int
    sampler: Any
    history: DenoiserState
    asked: int | None
    prompt: str | None
    decoder: tuple[tuple[int, ...] | None, dict[str, Tensor]]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what `load` reads: a file of the size of the cache, complete or not there. Raises `OSError`, and as
        `arvid.video.check_place`."""
        path, event, store = check_place(path), self.request.on_change, self.history.store
        shape, _, *kind = store.identity  # the policy is a user's class, perhaps; `settings` has it
        frequencies = None if store.frequencies is None else torch.from_numpy(store.frequencies)
        plain = replace(
            self, request=replace(self.request, on_change=event and EVENT.spec(event)),  # pyright: ignore
            history=replace(self.history, store=replace(
                store, identity=(shape, *kind), frequencies=frequencies)),  # pyright: ignore
        )  # fmt: skip
        unfinished = path.parent / f".arvid-{uuid4().hex}"
        try:
            with unfinished.open("wb") as file:
                torch.save(plain, file)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> State:
        """Read what `save` wrote, tensors to `device`; no code in the file is run. Raises `FileNotFoundError`, and
        `ValueError` for a file that is no state, or one of a sampler that keeps objects of its own."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {str(path)!r}")
        device = usable(device)
        try:
            with ZipFile(path) as file:  # whose checksums torch.load does not look at
                if (damaged := file.testzip()) is not None:
                    raise ValueError(f"{damaged} in it is damaged")
            with torch.serialization.safe_globals(STORED):
                state = torch.load(path, device, weights_only=True)
            store, event = state.history.store, state.request.on_change
            shape, *kind = store.identity
            frequencies = None if store.frequencies is None else store.frequencies.numpy()
            identity = (shape, CACHE.build(state.settings["cache"]), *kind)
            store = replace(store, identity=identity, frequencies=frequencies)
            request = replace(state.request, on_change=event and EVENT.build(event))
            return replace(state, request=request, history=replace(state.history, store=store))
        except Exception as error:  # pickles that are damaged or foreign fail in any way
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"{str(path)!r} is no state of a stream that could be read: {reason}") from error


STORED: list[Any] = [
    State, Request, Given, DenoiserState, Snapshot, Book, Ref, Place, Chunk, StoreShape, Flight, range,
    *SOLVERS.values(),
]
"""What a file of a state may be made of, besides numbers, strings, containers and tensors."""


@dataclass
class Ask:
    """A live prompt, what encodes it, the latent frames of a second, and the answer that was last given."""

    live: Live
    encode: Callable[[Sequence[str]], Tensor]
    rate: float
    last: str

    def __call__(self, frame: int) -> Tensor | None:
        """Embeddings of the prompt from a frame on, None where it is the one before."""
        before, self.last = self.last, ask(self.live, frame / self.rate)
        return None if self.last == before else self.encode([self.last])


class Asking:
    """A denoiser that asks for the prompt before a chunk's first pass."""

    def __init__(self, denoiser: CachedDenoiser, ask: Ask, asked: int, request: Request) -> None:
        self.denoiser, self.ask, self.asked, self.on_change = denoiser, ask, asked, request.on_change
        self.answers: list[tuple[int, Tensor]] = []

    def __call__(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        self._asked(chunks)
        return self.denoiser(x_BFCHW, chunks, lane=lane)

    def commit(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        self._asked(chunks)
        return self.denoiser.commit(x_BFCHW, chunks, lane=lane)

    def _asked(self, chunks: Sequence[Chunk]) -> None:
        for start in (chunk.start for chunk in chunks if chunk.start > self.asked):
            self.asked = start
            if (text := self.ask(start)) is not None:
                self.answers.append((start, text))
                self.denoiser.change(start, text, self.on_change)


class Rollout:
    """The chunks of a request, given ones first, as they get final; each is committed before it is emitted.

    Iterating raises `FloatingPointError` in place of a chunk with values that are not finite, and `ValueError` for a
    sampler that leaves frames out.
    """

    def __init__(
        self, request: Request, sampler: Sampler, denoiser: CachedDenoiser, noise: KeyedNoise,
        ask: Ask | None = None, state: State | None = None, vae: WanVAE | None = None,
    ) -> None:  # fmt: skip
        self.request, self.sampler, self.history, self.noise, self.vae = request, sampler, denoiser, noise, vae
        self.done, self.state = (state.done, state.sampler) if state else (0, None)
        for frame, text in request.later:
            denoiser.change(frame, text, request.on_change)
        if state:
            denoiser.restore(state.history)
        asked = state.asked if state and state.asked is not None else 0
        self.asking = Asking(denoiser, ask, asked, request) if ask else None

    def __iter__(self) -> Iterator[Emit]:
        denoiser: Denoiser = self.asking or self.history
        given, new = self.request.chunks
        latents = self._given() if self.request.given else None
        for chunk in given[sum(chunk.end <= self.done for chunk in given) :]:
            assert latents is not None
            x = latents[:, chunk.start : chunk.end]
            committed = self.sampler.commit_given(denoiser, self.noise, chunk, x)
            self.done = chunk.end
            yield Emit(committed, x, None)
        for emit in self.sampler.rollout(denoiser, self.noise, new, self.state):
            if emit.chunk.start != self.done or emit.x0.shape[1] != emit.chunk.n:
                raise ValueError(f"{self.sampler} emitted {emit.x0.shape[1]} frames as {emit.chunk}; "
                                 f"next is a chunk from frame {self.done} on, with all its frames")
            finite(emit.x0, emit.chunk, "latents")
            self.done, self.state = emit.chunk.end, emit.state
            yield emit
        if self.done != self.request.total:
            raise ValueError(f"{self.sampler} stopped after {self.done} of {self.request.total} latent frames; it must "
                             "emit all")

    def _given(self) -> Tensor:
        """Latents of the given frames, as the network takes them."""
        assert self.request.given
        if (x := self.request.given.latents_BFCHW) is None:
            assert self.vae and self.request.given.pixels_BTHWC is not None
            x = encoded(self.vae, self.request.given.pixels_BTHWC)
            finite(x, self.request.chunks[0][0], "encoded latents")
        return x.to(self.noise.like)

    def stand(self, settings: dict[str, Any], decoder: DecodeStream) -> State:
        """Where it is, between two chunks."""
        request, asked, prompt = self.request, None, None
        if self.asking:
            request = replace(request, later=(*request.later, *self.asking.answers))
            asked, prompt = self.asking.asked, self.asking.ask.last
        if request.given and self.done >= request.given.count:
            request = replace(request, given=None)
        return State(request, settings, self.done, self.state, self.history.snapshot(), asked,
                     prompt, decoder.snapshot())  # fmt: skip


class Stream(Generic[T]):
    """Pieces of a video as they are made: an iterator. `close` frees everything; so does the end of a `with`."""

    def __init__(self, pieces: Generator[T, None, None], stand: Callable[[], State]) -> None:
        self._pieces, self._stand = pieces, cast("Callable[[], State] | None", stand)

    def __iter__(self) -> Stream[T]:
        return self

    def __next__(self) -> T:
        try:
            return next(self._pieces)
        except BaseException:
            self.close()
            raise

    def single(self: Stream[list[Video]]) -> Stream[Video]:
        """The stream of the first row."""
        assert self._stand
        return Stream((row[0] for row in self._pieces), self._stand)

    def state(self) -> State:
        """A copy of all that `Pipeline.resume` needs to go on after the last piece. Raises `ValueError` for a stream
        that is closed or at its end."""
        if self._stand is None:
            raise ValueError("the stream is closed, or at its end: ask for its state between two pieces")
        return self._stand()

    def close(self) -> None:
        """Stop, and free everything."""
        self._pieces.close()
        self._stand = None

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def pieces(rollout: Rollout, decoder: DecodeStream, fps: float, progress: Report | None) -> Generator[list[Video]]:
    """Each row's pixel frames of the chunks of a rollout; those of given pixels are the pixels given."""
    began, stride, given = time.perf_counter(), decoder.vae.spec.time_stride, rollout.request.given
    before = pixel_frames(rollout.done, stride) if rollout.done else 0
    done, total = before, pixel_frames(rollout.request.total, stride)
    for emit in rollout:
        pixels_BCTHW = finite(decoder.push(emit.x0), emit.chunk, "pixels")
        if given and given.pixels_BTHWC is not None and emit.chunk.end <= given.count:
            rows = given.pixels_BTHWC[:, done : done + pixels_BCTHW.shape[2]]
            videos = [Video(row.numpy(), fps) for row in rows]
        else:
            videos = [Video.from_tensor(row, fps) for row in pixels_BCTHW]
        done += len(videos[0])
        if progress:
            progress(Progress(done - before, total - before, time.perf_counter() - began))
        yield videos


def finite(x: Tensor, chunk: Chunk, what: str) -> Tensor:
    """`x`, once all of it is finite. Raises `FloatingPointError` naming the chunk."""
    if not torch.isfinite(x).all():
        raise FloatingPointError(
            f"the {what} of chunk {chunk.index} (latent frames {chunk.start}..{chunk.end - 1}) have values that are "
            f"not finite: the weights are damaged, or {x.dtype} overflows and a wider dtype is needed"
        )
    return x
