"""The checker of samplers: what every sampler must do, and what it declares of itself."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from arvid.cache import Chunk
from arvid.config import open_fields
from arvid.samplers import SAMPLER, Emit, Sampler

from .engine import TIGHT, lay, require
from .fields import every_field_counts
from .recorded import trace
from .scheme import WHOLE, check_scheme
from .stage import WRONG, Counted, Draw, Event, Held, History, Key, Stage, answering, brief, drawn, honest, play, sizes

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
PATIENCE = 1.0  # seconds that a thread may take to end
RESUMED = 6  # a video is continued after so many of its emissions at most


def check_sampler(
    sampler: Sampler, *, chunk: int = 3, steps: Sequence[float] = (1000, 750, 500, 250), shift: float = 5.0,
    context_noise: float = 0.0,
) -> None:  # fmt: skip
    """Let a sampler play with toys in place of a model, and hold it to what all samplers promise and to what this one
    declares. Fields of the names `chunk`, `steps`, `shift` and `context_noise` that are None are filled with these, as
    by a configuration. Videos have one chunk, fewer than there are levels, a shorter last one, a first frame that is a
    chunk of its own, frames given before them, or more chunks than are in flight.

    All: every chunk is emitted once, in order, after its COMMIT at the level that the emission names, and is in no pass
    after it; a pass finds in its lane all that comes before it, committed once, and nothing else; a chunk's levels fall
    within a lane, and in a pass no chunk is cleaner than the one before it; passes are those of `trace`, whatever the
    numbers; a noise has one use; a chunk is made of its own noises and predictions, and each of its latents is as noisy
    as its level says; a point mass is sampled exactly, and a Gaussian as the linear recursion that the sampler is, with
    the spread of the plain one over its levels (consistency sampling or Euler) or nearer the data's; runs are equal bit
    by bit and use no random numbers but the noise; rows of a batch do not meet; stopped after an emission, a video goes
    on from its `state` bit by bit; a rollout that is closed leaves nothing behind; nothing given or emitted is written
    over; every field has an effect. Declared: `in_flight`, `lanes`; without `needs_horizon` a chunk is emitted as soon,
    and memory is as large, however long the video; and a registered sampler comes back from its spec.

    Raises `AssertionError` with the property, and what was expected and seen, and `ValueError` for what is no sampler,
    has other fields that are None and mean the card's, or, by its `in_flight`, cannot serve chunks of `chunk` frames.
    """
    if not isinstance(sampler, Sampler) or not is_dataclass(sampler):
        raise ValueError(f"{sampler!r} is no sampler: give an instance of a frozen dataclass that inherits from "
                         "Sampler")
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk={chunk!r}: a chunk is a whole number of latent frames, at least 1")
    given = {"chunk": chunk, "steps": tuple(steps), "shift": shift, "context_noise": context_noise}
    filled = replace(sampler, **{name: given[name] for name in open_fields(sampler) if name in given})
    if missing := open_fields(filled):
        raise ValueError(f"{sampler}: {', '.join(missing)} None means the card's, and there is no card: give a value")
    _comes_back_from_its_spec(sampler)
    span, exact = _declared(filled, chunk), True
    videos, usual = _videos(chunk, span), lay([1, *[chunk] * 3, max(1, chunk - 1)])
    for chunks in videos:
        events = _in_order(filled, chunks)
        _same_again(filled, chunks, events)
        _goes_on(filled, chunks)
    _flies_as_declared(filled, chunk)
    _rows_do_not_meet(filled, usual)
    for chunks in videos:
        exact = check_scheme(filled, chunks) and exact
    for dtype in DTYPES:
        _exact(filled, usual, dtype, 0.0 if exact else 5 * WHOLE)
    _closes(filled, usual)
    if not filled.needs_horizon:
        _streams(filled, chunk, span)
    every_field_counts(filled, lambda one: _effect(one, chunk), "passes, latents, lanes or guidance")


def _declared(sampler: Sampler, chunk: int) -> int:
    """The chunks that are in work at once, by what a sampler declares."""
    guidance = sampler.guidance
    for name, value, least in (("lanes", sampler.lanes, 1), ("in_flight", sampler.in_flight(chunk), chunk)):
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
        require(whole, f"{name} is a whole number, at least {least}", None, f"it is {value!r}")
    number = isinstance(guidance, (int, float)) and 0 <= guidance < float("inf")
    require(number, "guidance is a number, at least 0", None, f"it is {guidance!r}")
    return max(-(-sampler.in_flight(chunk) // chunk), sampler.lanes)


def _videos(chunk: int, span: int) -> list[list[Chunk]]:
    short = max(1, chunk - 1)
    layouts = [[chunk], [1], [chunk, chunk], [1, chunk, short], [*[chunk] * (span + 2), short]]
    unlike = [list(one) for one in dict.fromkeys(map(tuple, layouts))]
    return [*map(lay, unlike), lay([1, chunk, chunk, chunk, short])[2:]]


def _run(sampler: Sampler, stage: Stage, chunks: Sequence[Chunk], state: Any = None, first: int = 0) -> list[Emit]:
    emits = list(play(sampler, stage, chunks, state, first))
    stage.untouched()
    return emits


def _in_order(sampler: Sampler, chunks: Sequence[Chunk]) -> list[Event]:
    """The events of a video, which are in order."""
    stage, given = Stage(sampler, chunks), [*chunks]
    _run(sampler, stage, given)
    require(given == chunks, "the list of chunks stays as it is", None, f"it is now {given}, expected {chunks}")
    return stage.events


def _same_again(sampler: Sampler, chunks: Sequence[Chunk], events: list[Event]) -> None:
    """Other numbers, another instance, levels on the chunks that are given, the same again."""
    with answering(f"for trace(), {sizes(chunks)}"):
        traced = trace(sampler, chunks)
    _equal_events("passes are those of the trace, whatever the numbers", events, traced)
    random = torch.get_rng_state()
    labelled = [replace(chunk, sigma=0.7) for chunk in chunks]
    runs = [(sampler, chunks), (replace(sampler), tuple(chunks)), (sampler, labelled)]
    stages = [Stage(one, video) for one, video in runs]
    first, *others = [_run(one, stage, video) for (one, video), stage in zip(runs, stages, strict=True)]
    for stage, emits in zip(stages[1:], others, strict=True):
        _equal_events("the sigma of given chunks is of no account", stage.events, events)
        _equal_emits("two runs are equal bit by bit", emits, first)
    require(torch.equal(torch.get_rng_state(), random), "no random numbers but the noise", None,
            "torch's generator has moved on")  # fmt: skip


def _equal_events(claim: str, seen: Sequence[Event], expected: Sequence[Event]) -> None:
    for i, (a, b) in enumerate(zip([*seen, None], [*expected, None], strict=False)):
        require(a == b, claim, None, f"event {i} is {_event(a)}, expected {_event(b)}")


def _event(event: Event | None) -> str:
    return "none" if event is None else f"{event[0]} of {', '.join(map(str, event[1]))} in lane {event[2]}"


def _equal_emits(claim: str, seen: Sequence[Emit], expected: Sequence[Emit], to: float = 0.0) -> None:
    for a, b in zip(seen, expected, strict=True):
        off = (a.x0 - b.x0).abs().max().item()
        require(off <= to and a.chunk == b.chunk, claim, None,
                f"x0 of {brief((b.chunk,))} differs by {off:.2g}, expected at most {to:g}")  # fmt: skip


def _goes_on(sampler: Sampler, chunks: Sequence[Chunk]) -> None:
    """Continued after an emission, from its state and the history of then, once the rollout has gone on; twice."""
    stage = Stage(sampler, chunks)
    emits, taken = [], list[tuple[int, History]]()
    for emit in play(sampler, stage, chunks):
        emits.append(emit)
        taken.append((len(stage.events), stage.history()))
    for i in range(0, len(emits), -(-len(emits) // RESUMED)):
        for _ in range(2):
            fresh = Stage(sampler, chunks, history=taken[i][1])
            claim = f"stopped after chunk {i}, a video goes on bit by bit"
            try:
                rest = _run(replace(sampler), fresh, chunks, emits[i].state, i + 1)
            except AssertionError as error:
                raise AssertionError(f"{claim}: not so: {error}") from error
            _equal_events(claim, fresh.events, stage.events[taken[i][0] :])
            _equal_emits(claim, rest, emits[i + 1 :])


def _flies_as_declared(sampler: Sampler, chunk: int) -> None:
    """`in_flight` and `lanes` are what a long video has, and a short one no more than."""
    for size in sorted({1, chunk, chunk + 1}):
        try:
            most = sampler.in_flight(size)
        except ValueError:  # it serves other chunks
            continue
        span = max(-(-most // size), sampler.lanes) + 2
        for count in (1, 2, span):
            with answering(f"for {count} chunks of {size} frames"):
                passes = [event for event in trace(sampler, lay([size] * count)) if event[0] != "emit"]
            long, what = count == span, f"in a video of {count} chunks of {size} frames"
            seen = max(sum(each.n for each in flying) for _, flying, _ in passes)
            require(seen == most or (seen < most and not long), "in_flight is the most frames of any pass", None,
                    f"{seen} {what}, and in_flight says {most}")  # fmt: skip
            used = len({lane for *_, lane in passes})
            require(used == sampler.lanes or not long, "`lanes` is how many lanes there are", None,
                    f"{used} are used {what}, and lanes says {sampler.lanes}")  # fmt: skip


def _exact(sampler: Sampler, chunks: Sequence[Chunk], dtype: torch.dtype, slack: float) -> None:
    """A model that always predicts c is sampled as c, in its dtype."""
    c = {chunk.start: drawn(dtype=dtype, seed=1)(Key("initial", chunk.start), chunk) for chunk in chunks}

    def answer(x: Tensor, flying: Sequence[Chunk], past: Sequence[Held]) -> Tensor:
        return torch.cat([c[chunk.start] for chunk in flying], 1).to(x.dtype)

    most = 16 * torch.finfo(dtype).eps + slack
    for emit in _run(sampler, Stage(sampler, chunks, answer, drawn(dtype=dtype)), chunks):
        off = (emit.x0.double() - c[emit.chunk.start].double()).abs().max().item()
        require(off <= most, "a point mass is sampled exactly", None,
                f"x0 of {brief((emit.chunk,))} is off by {off:.2g} in {dtype}, expected at most {most:.2g}")


def _rows_do_not_meet(sampler: Sampler, chunks: Sequence[Chunk]) -> None:
    together, *alone = (_run(sampler, Stage(sampler, chunks, draw=drawn(rows)), chunks)
                        for rows in (slice(2), slice(1), slice(1, 2)))  # fmt: skip
    joined = [replace(a, x0=torch.cat([a.x0, b.x0])) for a, b in zip(*alone, strict=True)]
    _equal_emits("rows of a batch do not meet", together, joined, TIGHT)


def _closes(sampler: Sampler, chunks: Sequence[Chunk]) -> None:
    """Closed after its first emission: no pass, no thread, no tensor."""
    claim, threads = "a rollout that is closed leaves nothing behind", {*threading.enumerate()}
    stage = Stage(sampler, chunks, draw=_counted(drawn()), keep=False)
    before = Counted.alive()
    run = sampler.rollout(stage, stage, chunks)
    with answering("when it is closed after its first emission"):
        next(run)
        events = len(stage.events)
        if callable(close := getattr(run, "close", None)):
            close()
    require(len(stage.events) == events, claim, None, f"closing it ran {len(stage.events) - events} passes")
    new = [thread for thread in threading.enumerate() if thread not in threads]
    for thread in new:
        thread.join(PATIENCE)
    left = [thread.name for thread in new if thread.is_alive()]
    require(not left, claim, None, f"threads {left} are running")
    alive = weakref.ref(stage)
    del run, stage, close
    if alive() or Counted.alive() > before:
        gc.collect()
    require(not alive() and Counted.alive() <= before, claim, None,
            f"{'the denoiser and ' * bool(alive())}{Counted.alive() - before} bytes of latents are there")  # fmt: skip


def _counted(draw: Draw) -> Draw:
    return lambda key, chunk: Counted.of(draw(key, chunk))


def _streams(sampler: Sampler, chunk: int, span: int) -> None:
    """In a much longer video the first chunks take as many passes; and in a long one memory stays as it is."""
    early, late = 2 * span + 2, 4 * span + 6
    counts = {}
    for length in (late + 2 * span, 4 * late + 2 * span):
        chunks = lay([chunk] * length)
        stage = Stage(sampler, chunks, keep=False)
        counts[length] = [len(stage.events) for _ in islice(play(sampler, stage, chunks), 2)]
    (few, seen), (many, grown) = counts.items()
    require(seen == grown, "without needs_horizon a chunk is emitted as soon in a longer video", None,
            f"the first two after {grown} events in a video of {many} chunks, of {few} after {seen}")  # fmt: skip
    chunks = lay([chunk] * (late + 2 * span))
    stage = Stage(sampler, chunks, draw=_counted(drawn()), keep=False)
    run: Iterator[Emit] = play(sampler, stage, chunks)
    bytes_at = {}
    for i in range(late):
        next(run)
        if i + 1 in (early, late):
            bytes_at[i + 1] = Counted.alive()
    require(bytes_at[early] >= bytes_at[late], "without needs_horizon memory is bounded", None,
            f"{bytes_at[late]} bytes after {late} chunks, {bytes_at[early]} after {early}")  # fmt: skip


def _effect(sampler: Sampler, chunk: int) -> list[object]:
    """All that tells a sampler from another."""
    chunks = lay([1, *[chunk] * 4, max(1, chunk - 1)])
    found: list[object] = [sampler.guidance]
    try:
        found += [sampler.lanes, sampler.in_flight(chunk)]
        stage = Stage(sampler, chunks, honest)
        found += (emit.x0.numpy().tobytes() for emit in sampler.rollout(stage, stage, chunks))
        found += stage.events
    except WRONG:
        found.append("refused")
    return found


def _comes_back_from_its_spec(sampler: Sampler) -> None:
    if type(sampler) in map(SAMPLER.get, SAMPLER.names()):
        claim = "a sampler comes back from its spec"
        try:
            back = SAMPLER.build(SAMPLER.spec(sampler))
        except ValueError as error:
            raise AssertionError(f"{claim}: not so: {error}") from error
        require(back == sampler, claim, None, f"{back}, expected {sampler}")
