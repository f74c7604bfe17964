"""Samplers as plugins may have them: some that are right, and some that break a promise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from arvid.cache import Chunk
from arvid.samplers import Emit, Sampler


@dataclass(frozen=True)
class Plain(Sampler):
    """Chunk after chunk, as a plugin may have it."""

    sigmas: tuple[float, ...] = (1.0, 0.8, 0.5)

    def __post_init__(self) -> None:
        if not all(a > b for a, b in pairwise((1.000001, *self.sigmas, 0))):
            raise ValueError(f"sigmas={self.sigmas} must fall in (0, 1]")

    def rollout(self, denoiser, noise, chunks, state: Any = None) -> Iterator[Emit]:
        for i in range(state or 0, len(chunks)):
            x0, committed = self.one(denoiser, noise, chunks[i])
            yield Emit(committed, x0, i + 1)

    def one(self, denoiser, noise, chunk) -> tuple[Tensor, Chunk]:
        x0 = x = self.begin(noise, chunk)
        for level, sigma in enumerate(self.sigmas):
            x0 = denoiser(x, (replace(chunk, sigma=sigma),))
            if level + 1 < len(self.sigmas):
                x = self.onward(x, x0, noise, chunk, level)
        return self.finish(denoiser, x0, chunk)

    def begin(self, noise, chunk) -> Tensor:
        return noise.initial(chunk)

    def onward(self, x, x0, noise, chunk, level) -> Tensor:
        return x0.lerp(noise.renoise(chunk, level), self.sigmas[level + 1])

    def finish(self, denoiser, x0, chunk) -> tuple[Tensor, Chunk]:
        committed = replace(chunk, sigma=0.0)
        denoiser.commit(x0, (committed,))
        return x0, committed


@dataclass(frozen=True)
class Ancestral(Plain):
    """Half of the noise of a level is fresh."""

    def onward(self, x, x0, noise, chunk, level):
        sigma, after = self.sigmas[level : level + 2]
        old = (x - (1 - sigma) * x0) / sigma
        return (1 - after) * x0 + after * (0.6 * old + 0.8 * noise.renoise(chunk, level))


@dataclass(frozen=True)
class Euler(Plain):
    """Along the velocity, without fresh noise."""

    def onward(self, x, x0, noise, chunk, level):
        return x0.lerp(x, self.sigmas[level + 1] / self.sigmas[level])


@dataclass(frozen=True)
class Joint(Plain):
    """Three chunks in a pass, each a level behind the one before."""

    def in_flight(self, chunk):
        return len(self.sigmas) * chunk

    def rollout(self, denoiser, noise, chunks, state=None):
        done, given = state or (0, ())
        flying, last = [*given], len(self.sigmas) - 1
        for window in range(done + last if given or done else 0, len(chunks) + last):
            now = chunks[max(0, window - last) : window + 1]
            flying += [noise.initial(chunk) for chunk in chunks[window : window + 1]]
            levels = [window - chunks.index(chunk) for chunk in now]
            labelled = [replace(chunk, sigma=self.sigmas[k]) for chunk, k in zip(now, levels, strict=True)]
            x0s = denoiser(torch.cat(flying, 1), labelled).split([chunk.n for chunk in now], 1)
            flying = [self.onward(None, x0, noise, chunk, k)
                      for x0, chunk, k in zip(x0s, now, levels, strict=True) if k < last]  # fmt: skip
            if levels[0] == last:
                x0, committed = self.finish(denoiser, x0s[0].clone(), now[0])
                yield Emit(committed, x0, self.stated(chunks.index(now[0]) + 1, flying))

    def stated(self, done, flying) -> Any:
        return done, tuple(flying)


@dataclass(frozen=True)
class LevelByLevel(Plain):
    """All chunks at a level before the next, which only the video's end allows."""

    needs_horizon: ClassVar[bool] = True

    @property
    def lanes(self):
        return len(self.sigmas)

    def rollout(self, denoiser, noise, chunks, state=None):
        done, latents = state or (0, [noise.initial(chunk) for chunk in chunks])
        *lanes, last = range(self.lanes)
        for lane in () if state else lanes:
            for i, chunk in enumerate(chunks):
                x0 = denoiser(latents[i], (replace(chunk, sigma=self.sigmas[lane]),), lane=lane)
                latents[i] = self.onward(None, x0, noise, chunk, lane)
                denoiser.commit(latents[i], (replace(chunk, sigma=self.sigmas[lane + 1]),), lane=lane)
        for i, chunk in enumerate(chunks[done:], start=done):
            x0 = denoiser(latents[i], (replace(chunk, sigma=self.sigmas[last]),), lane=last)
            denoiser.commit(x0, (replace(chunk, sigma=0.0),), lane=last)
            yield Emit(replace(chunk, sigma=0.0), x0, (i + 1, latents))


def broken(base: type[Sampler] = Plain, **members: Any) -> Sampler:
    """`base` with other methods and declarations."""
    return type("Broken", (base,), members)()


def same(x0: Tensor) -> Tensor:
    return x0


def finishing(
    emit: Callable[[Tensor], Tensor] = same, commit: Callable[[Tensor], Tensor] = same, lanes: Sequence[int] = (0,)
) -> Callable[..., Any]:
    """A `finish` that emits and commits something else, in each of `lanes`."""

    def finish(self, denoiser, x0, chunk):
        chunk = replace(chunk, sigma=0.0)
        for lane in lanes:
            denoiser.commit(commit(x0), (chunk,), lane=lane)
        return emit(x0), chunk

    return finish


def emitting(change: Callable[[list[Emit]], Sequence[Any]]) -> Callable[..., Any]:
    """A rollout that emits something else when all is done."""
    return lambda self, *given: iter(change([*Plain.rollout(self, *given)]))


def onward(change: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Latents at level `after`, by `change(x0, noise, chunk, level, after)`."""
    return lambda self, x, x0, noise, chunk, level: change(x0, noise, chunk, level, self.sigmas[level + 1])


@dataclass
class Changed:
    """A denoiser that is asked in another way: x0 is `ask(denoiser, x, chunks)`."""

    of: Any
    ask: Callable[[Any, Tensor, Sequence[Chunk]], Tensor]

    def __call__(self, x, chunks, lane=0):
        return self.ask(self.of, x, chunks)

    def commit(self, x, chunks, lane=0):
        return self.of.commit(x, chunks, lane=lane)


def asking(ask: Callable[[Any, Tensor, Sequence[Chunk]], Tensor]) -> Callable[..., Any]:
    """A `one` with a denoiser that is asked so."""
    return lambda self, denoiser, noise, chunk: Plain.one(self, Changed(denoiser, ask), noise, chunk)


def frame_by_frame(denoiser: Any, x: Tensor, chunks: Sequence[Chunk]) -> Tensor:
    (chunk,) = chunks
    frames = [replace(chunk, start=chunk.start + i, n=1) for i in range(chunk.n)]
    return torch.cat([denoiser(x[:, i : i + 1], (frame,)) for i, frame in enumerate(frames)], 1)


def halved(denoiser: Any, x: Tensor, chunks: Sequence[Chunk]) -> Tensor:
    """Half precision where single is asked for."""
    x0 = denoiser(x, chunks)
    return x0.half().to(x) if x.dtype == torch.float32 else x0


class After(Plain):
    lanes: ClassVar[int] = 2

    def rollout(self, denoiser, noise, chunks, state=None):
        for emit in super().rollout(denoiser, noise, chunks, state):
            yield emit
            denoiser.commit(emit.x0, (emit.chunk,), lane=1)


class Adaptive(Plain):
    """A level fewer for some noise."""

    def one(self, denoiser, noise, chunk):
        few = noise.initial(chunk).mean() > 0
        return Plain.one(Plain((1.0, 0.5) if few else self.sigmas), denoiser, noise, chunk)


class Reversed(Joint):
    """The first chunk of a pass is said to be the noisiest."""

    def rollout(self, denoiser, noise, chunks, state=None):
        def ask(denoiser, x, flying):
            levels = [chunk.sigma for chunk in flying][::-1]
            return denoiser(x, [replace(chunk, sigma=s) for chunk, s in zip(flying, levels, strict=True)])

        return super().rollout(Changed(denoiser, ask), noise, chunks, state)


class Stale(Plain):
    """Goes on with the prediction before the last."""

    def one(self, denoiser, noise, chunk):
        known = []

        def ask(denoiser, x, flying):
            known.append(denoiser(x, flying))
            return known[-2:][0]

        return super().one(Changed(denoiser, ask), noise, chunk)


class StaleEuler(Stale, Euler):
    """Without fresh noise."""


class Curious(Plain):
    """Asks for a noise that it does not use, where a number is 1."""

    def onward(self, x, x0, noise, chunk, level):
        if (x0 == 1).any():
            noise.context(chunk)
        return super().onward(x, x0, noise, chunk, level)


class Neighbourly(Plain):
    """A chunk takes over a little of the chunk before."""

    def rollout(self, denoiser, noise, chunks, state=None):
        done, before = state or (0, None)
        for i, chunk in enumerate(chunks[done:], start=done + 1):
            x0 = denoiser(noise.initial(chunk), (replace(chunk, sigma=1.0),))
            x0 = x0 if before is None else 0.9 * x0 + 0.1 * before
            x0, committed = self.finish(denoiser, x0, chunk)
            before = x0[:, -1:]
            yield Emit(committed, x0, (i, before))


class Late(Changed):
    """A denoiser that is told of commits later."""

    def __init__(self, of: Any) -> None:
        super().__init__(of, lambda denoiser, x, chunks: denoiser(x, chunks))
        self.due = []

    def commit(self, x, chunks, lane=0):
        self.due.append((x, chunks))
        return x


class Early(Plain):
    """Emits a chunk, then commits it."""

    def rollout(self, denoiser, noise, chunks, state=None):
        late: Any = Late(denoiser)
        for emit in super().rollout(late, noise, chunks, state):
            yield emit
            denoiser.commit(*late.due.pop())


class Premature(Plain):
    """Commits a chunk, then denoises it."""

    def one(self, denoiser, noise, chunk):
        denoiser.commit(noise.initial(chunk), (replace(chunk, sigma=1.0),))
        return super().one(denoiser, noise, chunk)


class Seeded(Plain):
    def begin(self, noise, chunk):
        torch.manual_seed(chunk.start)
        return torch.randn_like(noise.initial(chunk))


class Stopping(Plain):
    """Runs another pass when it is closed."""

    def rollout(self, denoiser, noise, chunks, state=None):
        try:
            yield from super().rollout(denoiser, noise, chunks, state)
        except GeneratorExit:
            denoiser(noise.initial(chunks[1]), (replace(chunks[1], sigma=1.0),))


class Unstoppable(Plain):
    def rollout(self, denoiser, noise, chunks, state=None):
        for emit in super().rollout(denoiser, noise, chunks, state):
            try:
                yield emit
            except GeneratorExit:
                yield emit


class Working(Plain):
    """A thread waits for work as long as nobody says that there is none."""

    over: ClassVar[threading.Event] = threading.Event()

    def rollout(self, denoiser, noise, chunks, state=None):
        thread = threading.Thread(target=self.over.wait, args=(20,), name="worker", daemon=True)
        thread.start()
        yield from super().rollout(denoiser, noise, chunks, state)


class Hoarding(Plain):
    """Remembers every chunk, in the class or in the rollout."""

    memory: ClassVar[list[Tensor] | None] = None

    def rollout(self, denoiser, noise, chunks, state=None):
        memory = [] if self.memory is None else self.memory
        for emit in super().rollout(denoiser, noise, chunks, state):
            memory.append(emit.x0 + 1)
            yield emit


class Growing(Plain):
    """Remembers every chunk in one tensor."""

    def rollout(self, denoiser, noise, chunks, state=None):
        whole = None
        for emit in super().rollout(denoiser, noise, chunks, state):
            whole = emit.x0 if whole is None else torch.cat([whole, emit.x0], 1)
            yield emit


class Sharing(Joint):
    """The state is the list that the rollout goes on with."""

    def rollout(self, denoiser, noise, chunks, state=None):
        shared = []
        for emit in super().rollout(denoiser, noise, chunks, state):
            shared[:] = emit.state
            yield replace(emit, state=shared)


class Consuming(Joint):
    """Takes from the state what it goes on with."""

    def stated(self, done, flying):
        return [done, tuple(flying)]

    def rollout(self, denoiser, noise, chunks, state=None):
        given = state and (state[0], state.pop())
        return super().rollout(denoiser, noise, chunks, given)


class Writing(Plain):
    """Writes over what it emitted, when it is asked for more."""

    def rollout(self, denoiser, noise, chunks, state=None):
        for emit in super().rollout(denoiser, noise, chunks, state):
            yield emit
            emit.x0.zero_()


class Popping(Plain):
    def rollout(self, denoiser, noise, chunks, state=None):
        todo = chunks if isinstance(chunks, list) else [*chunks]
        for done in range((state or 0) + 1, len(todo) + 1):
            x0, committed = self.one(denoiser, noise, todo[0])
            todo.pop(0)
            yield Emit(committed, x0, done)


def over_x(self, x, x0, noise, chunk, level):
    return x.copy_(Plain.onward(self, x, x0, noise, chunk, level)) if level else Plain.onward(
        self, x, x0, noise, chunk, level)  # fmt: skip


class Unlike(Plain):
    """Commits the last prediction, and emits one before it."""

    def one(self, denoiser, noise, chunk):
        known = []

        def ask(denoiser, x, flying):
            known.append(denoiser(x, flying))
            return known[-1]

        _, committed = super().one(Changed(denoiser, ask), noise, chunk)
        return known[-2], committed


def refuse(self, chunk: int) -> int:
    raise ValueError(f"chunks of {chunk} frames are too long for this one")


@dataclass(frozen=True)
class Windowed(Plain):
    """A field that is the card's."""

    window: int | None = None


@dataclass(frozen=True)
class Idle(Plain):
    """A field that nothing reads."""

    gamma: float = 0.5
