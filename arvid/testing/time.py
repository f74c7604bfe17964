"""The checker of time maps: what every map must do, and what it declares of itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from arvid.cache import (
    CachePolicy,
    Chunk,
    Cut,
    Event,
    Flush,
    Full,
    Kind,
    Pass,
    Ref,
    Rolling,
    Sink,
    Window,
    after_commit,
    reduced,
    view,
)
from arvid.positional import TIME, TimeMap

from .reference import require

Times = tuple[list[float], list[float]]  # of the refs, and of the frames in flight

CLOSE = 1e-6  # frames
SIZES = (3, 3, 1, 3, 2, 3, 3, 3, 3, 1, 3, 3, 2, 3, 3, 3)  # of chunks
EVENTS: dict[int, Event] = {5: Cut("all"), 8: Flush(1), 10: Cut("sink"), 13: Cut("none")}  # before these chunks
STARTS = 0, 1015, 1_000_000  # the second goes past 1,024, where tables of published code end


def check_time(time: TimeMap, *, seed: int = 0) -> None:
    """Show a time map the views of many passes, of at most 3 frames each, and hold it to what all maps promise and to
    what this one declares. The views are those of windows, sinks, rolled and scattered frames, empty ones and ones of
    several shots, from frame 0, 1,015 and 1,000,000 on.

    All: one finite float for each ref and each frame in flight; pure; blind to the order of the refs and to what else
    a ref and a pass have; frames in flight one time apart, and no ref after the first of them; recent refs in order.
    Declared: `static`, `bounded` and `absolute_at_first`, as `TimeMap` says; and a registered map comes back from its
    spec. That a new frame's query and key share one time needs no check: a plan has one for both.

    Raises `AssertionError` with the property, the pass, and what was expected and seen, and `ValueError` for what is no
    time map.
    """
    if not isinstance(time, TimeMap):
        raise ValueError(f"{time!r} is no time map: give an instance of a class that inherits from TimeMap")
    _comes_back_from_its_spec(time)
    for policy in (Full(), Window(7), Sink(9, 2), Rolling(9, chunk=3), Scattered(seed)):
        for first in STARTS:
            _rollout(time, policy, first, np.random.default_rng(seed))
    if time.bounded:
        _stays_below_a_bound(time)


def _comes_back_from_its_spec(time: TimeMap) -> None:
    if type(time) in map(TIME.get, TIME.names()):
        claim = "a time map comes back from its spec"
        try:
            back = TIME.build(TIME.spec(time))
        except ValueError as error:
            raise AssertionError(f"{claim}: not so: {error}") from error
        require(back == time, claim, None, f"{back}, expected {time}")


@dataclass(frozen=True)
class Scattered(CachePolicy):
    """The first two frames, then four of any age, maybe twice, in slots between those and the last two."""

    seed: int = 0

    def select(self, held: Sequence[Ref], new: Pass) -> Sequence[Ref]:
        sinks, recent = [replace(ref, role="sink") for ref in held[:2]], held[2:][-2:]
        if len(held) < 5:
            return [*sinks, *recent]
        rng = np.random.default_rng((self.seed, new.frames.start))
        slots = rng.integers(2 * sinks[-1].frame + 1, 2 * recent[0].frame, 4) / 2
        frames = rng.integers(len(held), size=4)
        memory = [replace(held[i], at=float(at), role="memory") for i, at in zip(frames, slots, strict=True)]
        return [*sinks, *dict.fromkeys(memory), *recent]

    def keep(self, held: Sequence[Ref], new: Pass) -> set[int]:
        return {ref.frame for ref in held}


def _rollout(time: TimeMap, policy: CachePolicy, first: int, rng: np.random.Generator) -> None:
    """Chunks from frame `first` on, and events between them."""
    held: tuple[Ref, ...] = ()
    committed: dict[int, float] = {}  # times of frames in the passes that committed them
    start, shot = first, 0
    for index, n in enumerate(SIZES):
        if event := EVENTS.get(index):
            held, shot = reduced(policy, held, event), shot + event.new_shot
        chunk = Chunk(start, n, index=index)
        start = chunk.end
        *denoise, commit = _passes(chunk, shot)
        for new in (*denoise, commit):
            refs = view(policy, held, new)
            past, own = _times_of(time, refs, new, rng)
            moved = [(ref.frame, committed[ref.frame], t) for ref, t in zip(refs, past, strict=True)
                     if ref.at == ref.frame and abs(t - committed[ref.frame]) > CLOSE]  # fmt: skip
            require(not (time.static and moved), "static: a frame's time never changes", new,
                    f"(frame, time when it was committed, time) {moved}")  # fmt: skip
            if time.absolute_at_first and _all_is_seen(time, refs, new, first):
                frames, times = [*(ref.frame for ref in refs), *new.frames], [*past, *own]
                expected = [frame - new.frames.start + own[0] for frame in frames]
                require(_near(times, expected), "absolute_at_first: while all is seen, times are absolute up to one "
                        "constant", new, f"{times} for frames {frames}")  # fmt: skip
        committed |= zip(commit.frames, own, strict=True)
        held = after_commit(policy, held, commit)


def _passes(chunk: Chunk, shot: int) -> list[Pass]:
    """A DENOISE, one in which its first frame is a chunk of its own, and the COMMIT."""
    layouts: list[tuple[Chunk, ...]] = [(replace(chunk, sigma=1.0),)]
    if chunk.n > 1:
        layouts.append((replace(chunk, n=1, sigma=0.5), Chunk(chunk.start + 1, chunk.n - 1, 1.0, chunk.index + 1)))
    return [*(Pass(Kind.DENOISE, chunks, shot=shot) for chunks in layouts), Pass(Kind.COMMIT, (chunk,), shot=shot)]


def _all_is_seen(time: TimeMap, refs: Sequence[Ref], new: Pass, first: int) -> bool:
    """Whether a pass sees every frame from `first` on, each in its own slot and of its shot, and no more than the map's
    `train_horizon`, where it has one."""
    every = sorted(ref.frame for ref in refs) == [*range(first, new.frames.start)]
    own = all(ref.at == ref.frame and ref.shot == new.shot for ref in refs)
    horizon = getattr(time, "train_horizon", None)
    return every and own and (horizon is None or new.frames.stop - first <= horizon)


class _Blind:
    """What raises `AssertionError` when it is asked for what a time map must not read."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):  # Python itself asks
            raise AttributeError(name)
        raise AssertionError("times reads only a ref's at, role and shot, and the pass's chunks, frames and shot: not "
                             f"so: it asked for {name!r}")


@dataclass(frozen=True)
class _Ref(_Blind):
    at: float | None
    role: str
    shot: int


@dataclass(frozen=True)
class _Pass(_Blind):
    chunks: tuple[Chunk, ...]
    frames: range
    shot: int


def _times_of(time: TimeMap, refs: Sequence[Ref], new: Pass, rng: np.random.Generator) -> Times:
    """A map's times, once they are proved to be right as far as one pass can tell."""
    shown = [_Ref(ref.at, ref.role, ref.shot) for ref in refs]
    past, own = found = _ask(time, shown, new)
    counts = len(past), len(own)
    require(counts == (len(refs), len(new.frames)), "each ref and each frame in flight has one time", new,
            f"{len(past)} for {len(refs)} refs, {len(own)} for {len(new.frames)} in flight")  # fmt: skip
    require(all(isinstance(t, float) and math.isfinite(t) for t in (*past, *own)), "times are finite floats", new,
            f"{past}, {own}")  # fmt: skip
    again = _ask(time, shown, new)
    require(again == found, "times is pure", new, f"first {found}, then {again}")
    order = rng.permutation(len(refs))
    mixed = _ask(time, [shown[i] for i in order], new)
    alike = _near(mixed[0], [past[i] for i in order]) and _near(mixed[1], own)
    require(alike, "the order of refs does not matter", new, f"{found}, and {mixed} for refs {order.tolist()}")
    require(_near(own, [own[0] + i for i in range(len(own))]), "frames in flight are one time apart", new, f"{own}")
    require(max(past, default=own[0]) < own[0] + CLOSE, "no ref comes after the first frame in flight", new,
            f"{past}, then {own}")  # fmt: skip
    recent = sorted((ref.at, t) for ref, t in zip(shown, past, strict=True) if ref.role == "recent")
    require(all(a[1] < b[1] + CLOSE for a, b in pairwise(recent)), "recent refs keep their order", new,
            f"(slot, time) {recent}")  # fmt: skip
    return found


def _ask(time: TimeMap, refs: Sequence[_Ref], new: Pass) -> Times:
    given = list(refs)
    past, own = time.times(given, _Pass(new.chunks, new.frames, new.shot))
    require(given == refs, "times leaves the refs as they are", new, f"they are now {given}, expected {refs}")
    return list(past), list(own)


def _stays_below_a_bound(time: TimeMap) -> None:
    """Times of 2,000 chunks late in a video, and of 2,000 a thousand times later."""
    soon, late = (max(map(_furthest, [time] * 2000, range(first, first + 6000, 3))) for first in (3 * 10**6, 3 * 10**9))
    require(late < soon + 1, "bounded: times stay below a bound", None, f"they reach {soon} within 2,000 chunks from "
            f"frame 3e6 on, and {late} from frame 3e9 on")  # fmt: skip


def _furthest(time: TimeMap, start: int) -> float:
    """The largest time, sign left out, in a view of three sinks and six recent frames. Every 30 frames are a shot."""
    refs = [Ref(frame, float(frame), "sink") for frame in range(3)]
    refs += [Ref(frame, float(frame), shot=frame // 30) for frame in range(start - 6, start)]
    new = Pass(Kind.DENOISE, (Chunk(start, 3, 1.0, start // 3),), shot=start // 30)
    return max(abs(t) for part in time.times(refs, new) for t in part)


def _near(found: Sequence[float], expected: Sequence[float]) -> bool:
    return len(found) == len(expected) and all(abs(a - b) < CLOSE for a, b in zip(found, expected, strict=True))
