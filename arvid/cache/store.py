"""The store: what is held of every history, and what a pass gets of it.

Keys come in after qk-norm, unrotated. They are kept with height and width rotated and time not, and the temporal
rotation is applied at read, once per chunk and layer; where times and frequencies are static, fully rotated keys are
kept and no second copy. A rotated key is never rotated again: in bf16 the error would grow with every chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from arvid.positional.base import UNSCALED, LogitScale
from arvid.positional.rotation import Phase, rotate, time_angles, token_angles

from .base import CachePolicy, Group, Kind, Pass, Plan, Ref, after_commit, compacted, reduced
from .codecs import codecs
from .events import Event
from .history import Book, History, Place, StoreShape
from .views import Composed, Current, Direct, Entry

__all__ = ["Book", "Snapshot", "Store", "StoreShape"]

Key = tuple[int, int]  # lane, branch


@dataclass(frozen=True)
class Snapshot:
    """All that a store held, copied. `pages` are, by history, pool and layer, the code words of keys and of values on
    the pages in use, sorted; `sources` the frames that their tokens came from, where tokens are packed; `routes` the
    tokens chosen for a chunk that is in progress, and for which."""

    identity: tuple
    frequencies: np.ndarray | None
    books: Mapping[Key, Book]
    routes: Mapping[Key, tuple[dict[int, Tensor], tuple[range, float] | None]]
    pages: Mapping[Key, list[list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]]]
    sources: Mapping[Key, list[Tensor]]


class Store:
    """Keys and values of held frames, by (lane, branch).

    `begin(pass, plan, inv_freq)`, then `exchange(layer, k, v, q)` for each layer in turn, then, for a COMMIT, `end()`.
    `rotated` keeps fully rotated keys, right only where times and frequencies are static; `stale` lets the frequencies
    change all the same. `pages` is how many frames to allocate at first; a store that needs more grows. Raises
    `ValueError` for rotated keys where a codec, or a choice of tokens, needs others.
    """

    def __init__(
        self, shape: StoreShape, policy: CachePolicy, *, rotated: bool, stale: bool = False, pages: int = 0,
        dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.shape, self.policy, self.rotated, self.stale, self.first_pages = shape, policy, rotated, stale, pages
        self.dtype, self.device = dtype, torch.device(device)
        self._composes = policy.chooses or policy.codec is not None
        if rotated and self._composes:
            raise ValueError(f"{policy} needs keys stored before temporal rotation: use rotated=False")
        # Sinks with a codec of their own have a pool of their own.
        names = (policy.codec, policy.sink_codec) if policy.codec != policy.sink_codec and policy.sinks else (
            policy.codec,)  # fmt: skip
        self._codecs = [codecs(name, dtype) for name in names]
        self.reset()

    def reset(self) -> None:
        """Forget everything and free the pages."""
        self._histories: dict[Key, History] = {}
        self._pass: Current | None = None
        self._static_freq: np.ndarray | None = None
        given = self.shape, self.policy, self.device, self.dtype
        self._views = Composed(*given) if self._composes else Direct(*given, self.rotated)

    @property
    def live_bytes(self) -> int:
        """Bytes of all pages, read buffers, latents and queries."""
        return sum(history.nbytes for history in self._histories.values())

    @property
    def phase(self) -> Phase:
        """The rotation of the pass's own tokens, for its queries."""
        self._current()
        return self._views.phase

    @property
    def scale(self) -> LogitScale:
        """What the pass's logits are multiplied by."""
        self._current()
        return self._views.scale

    @property
    def bias(self) -> Tensor | None:
        """Additive logits of the visible tokens, [1, 1, 1 or frames in flight, visible tokens]; None: all are 0."""
        self._current()
        return self._views.bias

    def pages(self, lane: int = 0, branch: int = 0) -> int:
        """How many frames fit without growing."""
        history = self._histories.get((lane, branch))
        return sum(layers[0].count for layers in history.keys) if history else 0

    def book(self, lane: int = 0, branch: int = 0) -> Book:
        """What is held and where, as of the last COMMIT or event."""
        history = self._histories.get((lane, branch))
        return history.book if history else Book()

    def held(self, lane: int = 0, branch: int = 0) -> tuple[Ref, ...]:
        """The frames held, sorted in time; those of role memory hold packed tokens of several frames."""
        return self.book(lane, branch).held

    def page(self, frame: int, layer: int, lane: int = 0, branch: int = 0) -> tuple[Tensor, Tensor]:
        """A held frame's keys and values as stored, decoded, each [B, tokens, h, d] (for tests and inspection)."""
        history = self._histories[lane, branch]
        pool, page, *_ = history.book.places[frame]
        at = slice(page, page + 1)
        key, value = (half[pool][layer].read(at, self.dtype)[:, 0] for half in (history.keys, history.values))
        return key, value

    def before(self, new: Pass) -> tuple[Ref, ...]:
        """The history `new` is planned against: the frames held, or for a chunk that is committed once more, those held
        before it was. Raises `ValueError` for frames that are not next in time and were not the last committed."""
        return self._found(self._history((new.lane, new.branch)), new).held

    def begin(
        self, new: Pass, plan: Plan, inv_freq: np.ndarray, *, scale: LogitScale = UNSCALED,
        bias: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Put a pass's indices, angles and biases into device buffers. `inv_freq`: [planes] or [heads, planes]; `scale`
        and `bias`, [frames in flight, refs and frames in flight], are those of the logits.

        Raises `ValueError` as `before`, for a plan over whole sequences, and where rotated keys would have to turn.
        """
        if plan.inside or len(plan.groups) != 1:
            raise ValueError("a store runs plans of one group over held frames, as make_plan makes them; "
                             "run whole-sequence plans with PlannedAttention")
        (group,) = plan.groups
        if group.routed is not None and self.policy.codec:
            raise ValueError(f"codec={self.policy.codec!r}: {type(self.policy).__name__} chooses tokens, which are "
                             "stored in the model's dtype; use codec=None")
        if group.routed is not None and bias is not None:
            raise ValueError(f"{type(self.policy).__name__} chooses tokens, which a bias by frame does not reach: use "
                             "another cache policy, or a frequency rule without a bias")
        history = self._history((new.lane, new.branch))
        book = self._found(history, new)
        if self.rotated:
            self._check_static(book, group, inv_freq)
        if book is not history.book:
            history.turn_to(book)
        history.undo = None
        after, moving = (), []
        if new.kind is Kind.COMMIT:
            after = after_commit(self.policy, book.held, new)
            packed = {ref.frame for ref in compacted(self.policy, book.held, new)}
            moving = [ref.frame for ref in after if ref.frame in packed]
        sinks = self.policy.sinks - len(book.held) if len(self._codecs) > 1 else 0
        spots = history.free([int(i < sinks) for i in range(len(new.frames))] + [0] * len(moving))
        own = [Entry(spot, time, 0.0, frame, len(group.refs) + i)
               for i, (spot, time, frame) in enumerate(zip(spots, group.times, new.frames, strict=False))]  # fmt: skip
        shown, memory = [], []
        for i, (ref, time) in enumerate(zip(group.refs, group.ref_times, strict=True)):
            apart = group.routed is not None and ref.role == "memory"
            (memory if apart else shown).append(Entry(book.places[ref.frame][:2], time, ref.bias, ref.frame, i))
        packed = dict(zip(moving, spots[len(own) :], strict=True))
        self._pass = Current(new, history, group, inv_freq, own, shown, memory, packed, after, scale, bias)
        self._views.begin(self._pass)

    def exchange(
        self, layer: int, k_BNhd: Tensor, v_BNhd: Tensor, q_BNhd: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values that the pass sees in a layer, [B, visible tokens, h, d], its own included.

        Takes the pass's own, [B, tokens in flight, h, d], keys and queries after qk-norm and unrotated; the queries are
        for policies that choose tokens.
        """
        self._current()
        return self._views.exchange(layer, k_BNhd, v_BNhd, q_BNhd)

    def end(self, x_BFCHW: Tensor | None = None) -> None:
        """Finish a COMMIT: its frames are held from now on, and those the policy does not keep are not.

        `x_BFCHW` is what was committed; it is kept with the frames, for a recommit.
        """
        now = self._current()
        if now.new.kind is not Kind.COMMIT:
            raise ValueError("end() finishes a COMMIT; a DENOISE has nothing to finish")
        found, after = now.history.book, now.after
        chunk = {frame: chunk for chunk in now.new.chunks for frame in range(chunk.start, chunk.end)}
        places = {**found.places, **{own.frame: Place(*own.spot, own.time, chunk[own.frame]) for own in now.own}}
        for frame, (pool, page) in now.packed.items():
            places[frame] = places[frame]._replace(pool=pool, page=page)
        latents = dict(found.latents)
        if x_BFCHW is not None:
            latents |= {frame: x_BFCHW[:, i].clone() for i, frame in enumerate(now.new.frames)}
        whole = {ref.frame for ref in after if ref.role != "memory"}
        now.history.turn_to(Book(
            after, {ref.frame: places[ref.frame] for ref in after}, now.new.frames.stop,
            {frame: x for frame, x in latents.items() if frame in whole}, tuple(self._views.queries),
        ))  # fmt: skip
        now.history.undo = now.new.frames, found
        self._pass = None

    def happen(self, event: Event, lane: int = 0) -> None:
        """Evict what does not survive an event, in every branch of a lane."""
        for (own, _), history in self._histories.items():
            if own == lane:
                book, held = history.book, reduced(self.policy, history.book.held, event)
                places = {ref.frame: book.places[ref.frame] for ref in held}
                latents = {frame: x for frame, x in book.latents.items() if frame in places}
                last = next(n for n in count() if book.end - 1 - n not in places)  # as many of the last frames are left
                queries = tuple(each[:, max(0, each.shape[1] - last) :] for each in book.queries)
                history.turn_to(Book(held, places, book.end, latents, queries))
                history.routed = None

    def rewriter(
        self, frames: Mapping[int, int], plan: Plan, inv_freq: np.ndarray, lane: int = 0, branch: int = 0
    ) -> Callable[[int, Tensor, Tensor], None]:
        """What replaces the keys and values of held `frames` (frame: its slot in the pass of an `inside` plan), from
        those of the pass: called with a layer, k and v, [B, tokens of all slots, h, d], keys normed and unrotated."""
        history, views = self._histories[lane, branch], self._views
        history.turn_to(history.book)
        history.routed = None
        time = {slot: time for group in plan.groups for slot, time in zip(group.queries, group.times, strict=True)}
        angles = token_angles(time_angles(tuple(time[slot] for slot in sorted(time)), inv_freq), views.space)
        turn, slots = views.buffers.phase("rewritten", angles), torch.tensor(list(frames.values()), device=self.device)
        where = views.buffers.where("rewritten", [history.book.places[frame][:2] for frame in frames])

        def write(layer: int, k_BNhd: Tensor, v_BNhd: Tensor) -> None:
            keys = views.by_frame(rotate(k_BNhd, turn)) if self.rotated else views.untimed(k_BNhd)
            history.write(where, layer, keys[:, slots], views.by_frame(v_BNhd)[:, slots])

        return write

    def snapshot(self) -> Snapshot:
        """A copy of all that is held, which nothing later changes."""
        pages, sources = {}, {}
        for key, history in self._histories.items():
            used = [self._used(history, pool) for pool in range(len(self._codecs))]
            pages[key] = [[(keys.raw(at), values.raw(at)) for keys, values in zip(*layers, strict=True)]
                          for at, *layers in zip(used, history.keys, history.values, strict=True)]  # fmt: skip
            sources[key] = [frames[:, used[0]] for frames in history.sources]
        books = {key: history.book for key, history in self._histories.items()}
        routes = {key: (dict(history.routes), history.routed) for key, history in self._histories.items()}
        return Snapshot(self._identity, self._static_freq, books, routes, pages, sources)

    def restore(self, snapshot: Snapshot) -> None:
        """Hold what was held when the snapshot was taken, in this store or another, and nothing else.

        Raises `ValueError` for a snapshot of a store with another shape, policy, dtype or storage of keys.
        """
        if snapshot.identity != self._identity:
            pairs = zip(("shape", "policy", "rotated", "dtype"), snapshot.identity, self._identity, strict=True)
            differing = "; ".join(f"{name} {its}, here {own}" for name, its, own in pairs if its != own)
            raise ValueError(f"the snapshot is of another store: {differing}")
        self.reset()
        self._static_freq = snapshot.frequencies
        for key, book in snapshot.books.items():
            history = self._history(key)
            history.book, (routes, history.routed) = book, snapshot.routes[key]
            history.routes = dict(routes)
            for pool, layers in enumerate(snapshot.pages[key]):
                history.grow(pool, max(history.used(pool), default=-1) + 1)
                used = self._used(history, pool)
                for layer, (keys, values) in enumerate(layers):
                    history.keys[pool][layer].put(used, keys)
                    history.values[pool][layer].put(used, values)
                for layer, frames in enumerate(snapshot.sources[key] if pool == 0 else ()):
                    history.sources[layer][:, used] = frames

    @property
    def _identity(self) -> tuple:
        return self.shape, self.policy, self.rotated, self.dtype

    def _current(self) -> Current:
        if self._pass is None:
            raise RuntimeError("no pass is in progress: call begin() first")
        return self._pass

    def _used(self, history: History, pool: int) -> Tensor:
        return torch.tensor(history.used(pool), dtype=torch.long, device=self.device)

    def _history(self, key: Key) -> History:
        if key not in self._histories:
            sinks = min(self.first_pages, self.policy.sinks) if len(self._codecs) > 1 else 0
            counts = (self.first_pages - sinks, sinks)[: len(self._codecs)]
            self._histories[key] = History(self.shape, self._codecs, counts, self.policy.compacts, self.device)
        return self._histories[key]

    @staticmethod
    def _found(history: History, new: Pass) -> Book:
        """The book that `new` finds: the history's, or for a repeated COMMIT the one before it."""
        if new.frames.start >= history.book.end:
            return history.book
        if new.kind is Kind.COMMIT and history.undo and history.undo[0] == new.frames:
            return history.undo[1]
        raise ValueError(
            f"{new.kind.value} of frames {new.frames.start}..{new.frames.stop - 1}: frames up to "
            f"{history.book.end - 1} are committed; a pass continues after them, or commits the last ones again before "
            "any other pass"
        )

    def _check_static(self, book: Book, group: Group, inv_freq: np.ndarray) -> None:
        for ref, time in zip(group.refs, group.ref_times, strict=True):
            if time != (then := book.places[ref.frame].time):
                raise ValueError(
                    f"frame {ref.frame} was committed at time {then:g} and is now seen at {time:g}, but its key is "
                    "stored rotated: set `static = False` on the cache policy or time map that moves it"
                )
        if self._static_freq is None:
            self._static_freq = inv_freq.copy()
        elif not self.stale and not np.array_equal(self._static_freq, inv_freq):
            raise ValueError("the frequencies changed between passes, but keys are stored rotated: "
                             "let `is_static` of the frequency rule say so")
