"""The checker of cache policies: what every policy must do, and what it declares of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from arvid.cache import CACHE, CachePolicy, Chunk, Cut, Flush, Reset
from arvid.cache.store import Snapshot
from arvid.positional import Absolute, Relative, SinkAdjacent, TimeMap

from .engine import TIGHT, Engine, close, equal, lay, passes, require, same
from .rollout import Rollout, fits, may_rotate, window_of

EVENTS = (Flush(50), Flush(2), Flush(1), Flush(0), Cut("all"), Cut("sink"), Cut("none"), Reset())
LANES = ((0, 0), (1, 0), (0, 1))  # lane, branch


def check_cache(policy: CachePolicy, *, chunk: int = 3, seed: int = 0) -> None:
    """Run a policy over a store of drawn float64 numbers, with chunks of `chunk` latent frames among others, and hold
    it to what all policies promise and to what this one declares.

    All: plans are pure and see held frames only; the store gives what a history that evicts nothing gives, whatever
    the time map, and also after events; DENOISE changes nothing, and of repeated COMMITs the last counts; a snapshot
    goes on as the store did; pages may lie anywhere; rows, lanes and branches do not meet; choices of tokens are pure.
    Declared: `static`, `sinks` (one that is shown in other slots than its own need not be seen by every DENOISE, but
    stays held), `fits_like_full` (passes that leave room for a whole chunk), `window` where there is such a field,
    `capacity`, `codec`; and a registered policy comes back from its spec.

    Raises `AssertionError` with the property, the chunk, and what was expected and seen; and `ValueError` for a policy
    whose fields are not all given, or that chunks of `chunk` frames do not fit.
    """
    if not isinstance(policy, CachePolicy):
        raise ValueError(f"{policy!r} is no cache policy: give an instance of a class that inherits from CachePolicy")
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk={chunk!r}: a chunk is a whole number of latent frames, at least 1")
    own = {field.name for field in dataclasses.fields(policy)} - {f.name for f in dataclasses.fields(CachePolicy)}
    if missing := sorted(name for name in own if getattr(policy, name) is None):
        raise ValueError(f"{policy}: {', '.join(missing)} None means the card's, and there is no card: give a number")
    policy.check(chunk)
    for name, value, least in (("sinks", policy.sinks, 0), ("queries", policy.queries, 0),
                               ("capacity", policy.capacity(chunk, chunk), chunk)):  # fmt: skip
        if name == "capacity" and value is None:
            continue
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
        assert whole, f"{name} is a whole number of frames, at least {least}: it is {value!r}"
    _comes_back_from_its_spec(policy)
    capacity = policy.capacity(chunk, chunk) or 0
    span = max(window_of(policy) or 0, capacity) or 4 * chunk
    whole = [chunk] * (2 * span // chunk + 1)
    plain, late = lay([*whole, max(1, chunk - 1)]), lay([1, *whole])
    sizes = [n for n in (chunk, 1, chunk + 1, 1, 1, 2) if fits(policy, n)]
    Rollout(policy, Absolute(), seed, chunk, capacity).run(plain)
    Rollout(policy, Relative(), seed, chunk, capacity).run(plain)
    Rollout(policy, SinkAdjacent(), seed, chunk).run(late)
    Rollout(policy, Absolute(), seed, max(sizes)).run(lay(sizes * (2 * span // sum(sizes) + 1)), joint=True)
    _events(policy, seed, chunk, span)
    for rotated in (False, True) if may_rotate(policy) else (False,):
        time = Absolute() if rotated else SinkAdjacent()
        _attempts_leave_nothing(policy, time, seed, rotated, plain)
        _snapshots_go_on(policy, time, seed, rotated, plain)
        _histories_do_not_meet(policy, time, seed, rotated, plain[: span // chunk + 2])
    _rows_do_not_meet(policy, seed, plain)


def _events(policy: CachePolicy, seed: int, chunk: int, span: int) -> None:
    """Each event among few frames and among many, and before the first."""
    far = span // chunk + 1
    for time, pause in ((Absolute(), 1), (Relative(), far)):
        events = {i * pause: event for i, event in enumerate((EVENTS[-1], *EVENTS))}
        Rollout(policy, time, seed, chunk).run(lay([chunk] * (pause * len(events) + far)), events=events)


def _attempts_leave_nothing(
    policy: CachePolicy, time: TimeMap, seed: int, rotated: bool, chunks: Sequence[Chunk]
) -> None:
    """A store where every pass is tried with other numbers first, and repeated, beside one where it is not."""
    store, fresh = (Engine(policy, time, seed, rotated) for _ in range(2))
    for chunk in chunks:
        first, second, commit = passes(chunk)
        before, claim = store.contents(), "DENOISE changes nothing"
        for new in (first, second):
            store.run(new, x=2)  # an attempt that is given up
        for new in (first, second):
            expected = fresh.run(new, x=1)
            for _ in range(2):
                equal(claim, new, store.run(new, x=1), expected)
        same(claim, second, store.contents(), before)
        expected = fresh.run(commit, x=3)
        *_, found = (store.run(commit, x) for x in (4, 3, 3))
        equal("of repeated COMMITs the last counts", commit, found, expected)
        same("of repeated COMMITs the last counts", commit, store.contents(), fresh.contents())


def _snapshots_go_on(policy: CachePolicy, time: TimeMap, seed: int, rotated: bool, chunks: Sequence[Chunk]) -> None:
    """Taken early and late, and restored once the store has gone on."""
    store, rng, taken, found = Engine(policy, time, seed, rotated), np.random.default_rng(seed), {}, []
    for chunk in chunks:
        if chunk.index in (1, len(chunks) // 2):
            taken[chunk.index] = store.store.snapshot(), store.contents()
        found.append([store.run(new) for new in passes(chunk)])
    for at, (snapshot, contents) in taken.items():
        restored, moved = (Engine(policy, time, seed, rotated) for _ in range(2))
        restored.store.restore(snapshot)
        moved.store.restore(elsewhere(snapshot, rng))
        for engine in (restored, moved):
            same("a snapshot is what the store held", passes(chunks[at])[0], engine.contents(), contents)
        for chunk in chunks[at:]:
            for new, expected in zip(passes(chunk), found[chunk.index], strict=True):
                equal("a snapshot goes on as the store did", new, restored.run(new), expected)
                close("pages may lie anywhere", new, moved.run(new), expected, TIGHT)


def elsewhere(snapshot: Snapshot, rng: np.random.Generator) -> Snapshot:
    """The same with every frame on another page."""
    books, pages, sources = {}, {}, {}
    for key, book in snapshot.books.items():
        to, order = {}, []
        for pool in range(len(snapshot.pages[key])):
            used = sorted(place.page for place in book.places.values() if place.pool == pool)
            chosen = rng.permutation(len(used) + 3)[: len(used)]
            to |= {(pool, page): int(other) for page, other in zip(used, chosen, strict=True)}
            order.append(torch.from_numpy(chosen.argsort()))
        books[key] = replace(book, places={
            frame: place._replace(page=to[place.pool, place.page]) for frame, place in book.places.items()})
        pages[key] = [[(tuple(code[:, at] for code in keys), tuple(code[:, at] for code in values))
                       for keys, values in layers] for at, layers in zip(order, snapshot.pages[key], strict=True)]
        sources[key] = [frames[:, order[0]] for frames in snapshot.sources[key]]
    return replace(snapshot, books=books, pages=pages, sources=sources)


def _rows_do_not_meet(policy: CachePolicy, seed: int, chunks: Sequence[Chunk]) -> None:
    together, *alone = (Engine(policy, Absolute(), seed, rows=rows) for rows in (slice(2), slice(1), slice(1, 2)))
    for chunk in chunks:
        for new in passes(chunk):
            expected = torch.cat([engine.run(new) for engine in alone], 1)
            close("rows of a batch do not meet", new, together.run(new), expected, TIGHT)


def _histories_do_not_meet(
    policy: CachePolicy, time: TimeMap, seed: int, rotated: bool, chunks: Sequence[Chunk]
) -> None:
    """Lanes and branches, pass by pass in any order and with an event in one lane, come out as each alone."""
    together, alone = Engine(policy, time, seed, rotated), {key: Engine(policy, time, seed, rotated) for key in LANES}
    todo = {key: iter([new for chunk in chunks for new in passes(chunk, *key)]) for key in LANES}
    order = np.random.default_rng(seed).permutation(len(LANES) * 3 * len(chunks))
    for i, which in enumerate(order):
        for engine in (together, alone[0, 0], alone[0, 1]) if i == len(order) // 2 else ():
            engine.store.happen(Flush(1), lane=0)
        key = LANES[which % len(LANES)]
        new = next(todo[key])
        equal("lanes and branches do not meet", new, together.run(new), alone[key].run(new))
    for key, engine in alone.items():
        last = passes(chunks[-1], *key)[-1]
        same("lanes and branches do not meet", last, together.contents(*key), engine.contents(*key))


def _comes_back_from_its_spec(policy: CachePolicy) -> None:
    if type(policy) in map(CACHE.get, CACHE.names()):
        claim = "a policy comes back from its spec"
        try:
            back = CACHE.build(CACHE.spec(policy))
        except ValueError as error:
            raise AssertionError(f"{claim}: not so: {error}") from error
        require(back == policy, claim, None, f"{back}, expected {policy}")
