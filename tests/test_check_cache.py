"""`check_cache` passes what is right, and names what is wrong: policies that break a promise, and stores that do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arvid.cache import CACHE, CachePolicy, Full, Kind, Participative, Pass, Ref, Rolling, Scene, Sink, Window
from arvid.cache.codecs import Int8
from arvid.cache.history import History
from arvid.cache.store import Snapshot, Store
from arvid.cache.views import Composed, Current
from arvid.testing import check_cache


@CACHE.register("fading_of_the_check")
@dataclass(frozen=True)
class Fading(CachePolicy):
    """Frames 1, 2, 4, 8, ... back: detail near, gist far."""

    window: int = 12

    def select(self, held: Sequence[Ref], new: Pass) -> Sequence[Ref]:
        near = [ref for ref in held if (back := new.frames.start - ref.frame) & (back - 1) == 0]
        return near[len(new.frames) - self.window :]

    def keep(self, held: Sequence[Ref], new: Pass) -> set[int]:
        return {ref.frame for ref in held}


@dataclass(frozen=True)
class Faint(CachePolicy):
    """The last frame twice, at its own time and at one that differs from pass to pass, and others with less weight."""

    def select(self, held: Sequence[Ref], new: Pass) -> Sequence[Ref]:
        last = [replace(ref, at=-1.0 - (new.kind is Kind.COMMIT), role="memory") for ref in held[-1:]]
        return [*last, *held[-1:], *(replace(ref, bias=-1.5) for ref in held[-4:-1])]


@dataclass(frozen=True)
class Searching(CachePolicy):
    """The last frame, and of all others the tokens most like the queries; nothing is packed or evicted."""

    choice: ClassVar[Callable[[Tensor, int], Tensor]] = staticmethod(
        lambda score, count: score.argsort(1, descending=True)[:, :count].sort(1).values)
    tokens: ClassVar[int] = 2

    def select(self, held: Sequence[Ref], new: Pass) -> Sequence[Ref]:
        return [*(replace(ref, role="memory") for ref in held[:-1]), *held[-1:]]

    def keep(self, held: Sequence[Ref], new: Pass) -> set[int]:
        return {ref.frame for ref in held}

    def routed(self, refs: Sequence[Ref], new: Pass) -> int | None:
        return self.tokens if len(refs) > 4 else None

    def route(self, layer: int, scene: Scene) -> Tensor:
        frames = len(scene.new.frames)
        score = (scene.k_BMhd * scene.q_BNhd.mean(1, keepdim=True)).sum((2, 3))
        return self.choice(score, self.tokens * scene.q_BNhd.shape[1] // frames)


@dataclass(frozen=True)
class Merging(Participative):
    """Packs other tokens than it shows."""

    def compact(self, layer: int, scene: Scene, chosen: Tensor) -> Tensor:
        score = scene.v_BMhd.square().sum((2, 3))
        return score.argsort(1)[:, : chosen.shape[1]].sort(1).values


@pytest.mark.parametrize(
    "policy",
    [
        Full(),
        Full(codec="bf16"),
        Window(7),
        Window(7, codec="int8"),
        Sink(9, 2),
        Sink(8, 5),
        Sink(7, 3, sink_on_commit=False),
        Sink(9, 2, codec="fp8"),
        Sink(9, 2, codec="int8", sink_codec="bf16"),
        Sink(9, 4, codec="bf16", sink_codec="fp8", sink_on_commit=False),
        Rolling(8, chunk=3),
        Rolling(8, chunk=3, codec="fp8", sink_codec="int8"),
        Participative(8, 2, 3, 6),
        Participative(9, 2, 5, 8),
        Merging(8, 1, 4, 7),
        Fading(),
        Faint(),
        Searching(),
    ],
    ids=str,
)
def test_what_is_right_passes(policy: CachePolicy) -> None:
    check_cache(policy)


@settings(max_examples=8)
@given(st.data(), st.integers(1, 3), st.integers(0, 99))
def test_windows_of_any_size_pass(data: st.DataObject, chunk: int, seed: int) -> None:
    sink = data.draw(st.integers(0, 3))
    window = sink + chunk + data.draw(st.integers(0, 3))
    policies = [Window(window), Sink(window, sink), Sink(window, sink, sink_on_commit=False),
                Rolling(window + 1, chunk=chunk)]  # fmt: skip
    check_cache(data.draw(st.sampled_from(policies)), chunk=chunk, seed=seed)


class Future(Window):
    def select(self, held, new):
        return [*super().select(held, new), Ref(new.frames.start)]


class Impure(Full):
    calls: ClassVar[list[int]] = []

    def select(self, held, new):
        self.calls.append(1)
        return held[len(self.calls) % 2 :]


class ImpureKeep(Full):
    calls: ClassVar[list[int]] = []

    def keep(self, held, new):
        self.calls.append(1)
        return {ref.frame for ref in held[len(self.calls) % 2 :]}


class Mutating(Full):
    def select(self, held, new):
        held.insert(0, Ref(99))  # pyright: ignore[reportAttributeAccessIssue]
        return held[1:]


class MutatingKeep(Full):
    def keep(self, held, new):
        del held[:1]  # pyright: ignore[reportIndexIssue]
        return {ref.frame for ref in held}


class Evicting(Sink):
    def keep(self, held, new):
        return {ref.frame for ref in held[1:]} if len(held) > 6 else super().keep(held, new)


class NeverHeld(Sink):
    """A sink that is not even held once."""

    def keep(self, held, new):
        return {ref.frame for ref in held if ref.frame}


class Hiding(Sink):
    static: ClassVar[bool] = False
    fits_like_full: ClassVar[bool] = False

    def select(self, held, new):
        return self.seen(held, new, self.sinks if new.frames.start < 12 else 0)

    def keep(self, held, new):
        return {ref.frame for ref in held}

    def capacity(self, chunk, in_flight):
        return None


class Unmoving(Rolling):
    static: ClassVar[bool] = True


class Small(Window):
    def capacity(self, chunk, in_flight):
        return self.given("window") - 1


class Bounded(Full):
    def capacity(self, chunk, in_flight):
        return 12


class Shorter(Window):
    def select(self, held, new):
        return super().select(held, new)[-2:]


class Weighing(Window):
    def select(self, held, new):
        return [replace(ref, bias=-0.01) for ref in super().select(held, new)]


class Overrun(Window):
    def select(self, held, new):
        return held[-self.given("window") :]


class ShotLost(Full):
    def select(self, held, new):
        return [Ref(ref.frame) for ref in held]


class Biased(Full):
    def select(self, held, new):
        return [replace(ref, bias=float("nan")) for ref in held]


class Timeless(Full):
    static: ClassVar[bool] = False

    def select(self, held, new):
        return [replace(ref, at=float("inf")) for ref in held]


class Frameless(Full):
    def select(self, held, new):
        return [ref.frame for ref in held]


class TooFew(Searching):
    def routed(self, refs, new):
        return 99 if len(refs) > 4 else None


@dataclass(frozen=True)
class Doubling(Window):
    """Changes what it was given."""

    by: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "by", 2 * self.by)


@dataclass(frozen=True)
class Opaque(Window):
    """Has a field that no file can hold."""

    of: object = ()


@pytest.mark.parametrize(
    ("policy", "match"),
    [
        (Future(7), r"a plan sees held frames only: not so at the DENOISE of chunk 0, frames 0\.\.2: Future\.select "
                    r"chose frames \[0\], which are not held \(held: \[\]\)"),
        (Frameless(), r"a plan sees held frames only.*Frameless\.select gave"),
        (Timeless(), r"a plan sees held frames only.*Timeless.select gave Ref.*`at` is a slot before the chunk"),
        (Impure(), r"a plan is pure: not so at the DENOISE of chunk 1, frames 3\.\.5: first Plan.*, then Plan"),
        (ImpureKeep(), r"keep is pure: not so at the COMMIT of chunk 0, frames 0\.\.2: first \{.*\}, then \{.*\}"),
        (Mutating(), r"select leaves `held` as it is: not so at the DENOISE of chunk 0.*frame=99.*expected \[\]"),
        (MutatingKeep(), r"keep leaves `held` as it is: not so at the COMMIT of chunk 0"),
        (Evicting(9, 2), r"no commit evicts one of the `sinks` first frames: not so at the COMMIT of chunk \d.*\[0\]"),
        (NeverHeld(9, 2), r"no commit evicts one of the `sinks` first frames: not so at the COMMIT of chunk 0.*\[0\]"),
        (Hiding(9, 2), r"every DENOISE sees the sinks: not so at the DENOISE of chunk 4.*: \[0, 1\] of \[0, 1\] are"),
        (Unmoving(8, chunk=3), r"static: refs keep their own slots: not so at the (DENOISE|COMMIT) of chunk \d.*: "
                               r"\(frame, at\) \[\("),
        (Small(7), r"memory is bounded by `capacity`: not so at the .*: \d pages, of 6"),
        (Bounded(), r"memory is bounded by `capacity`: not so at the DENOISE of chunk 4.*: 18 pages, of 12"),
        (Shorter(7), r"fits_like_full: what fits the window is seen as Full sees it: not so at the DENOISE of chunk 1.*"
                     r"frames \[1, 2\], expected \[0, 1, 2\]"),
        (Weighing(7), r"fits_like_full: what fits the window is seen as Full sees it.*outputs differ by"),
        (Overrun(7), r"no more than `window` frames are seen: not so at the DENOISE of chunk 2.*: 6 \+ 3 in flight, "
                     r"expected at most 7"),
        (ShotLost(), r"a ref has the shot of its frame"),
        (Biased(), r"a plan sees held frames only.*Biased.select gave Ref.*`bias` a number or -inf"),
        (TooFew(), r"routed chooses among the refs of role memory: .*99 frames' worth of"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, CachePolicy) else "",
)  # fmt: skip
def test_a_broken_promise_is_named(policy: CachePolicy, match: str) -> None:
    with pytest.raises(AssertionError, match=match):
        check_cache(policy)


@pytest.mark.parametrize(
    ("policy", "match"),
    [(Doubling(7), r"Doubling\(.*by=4\), expected Doubling\(.*by=2\)"), (Opaque(7, object()), r"field of: <object")],
)
def test_a_policy_that_no_file_can_hold_is_named(
    monkeypatch: pytest.MonkeyPatch, policy: CachePolicy, match: str
) -> None:
    monkeypatch.setattr(CACHE, "_classes", {**CACHE._classes, "of_the_check": type(policy)})
    with pytest.raises(AssertionError, match=f"a policy comes back from its spec: not so: {match}"):
        check_cache(policy)


class Recorded(Searching):
    """The first choice of each size, again and again."""

    choices: ClassVar[dict] = {}

    def route(self, layer, scene):
        return self.choices.setdefault((layer, scene.k_BMhd.shape), super().route(layer, scene))


class Scribbling(Searching):
    def route(self, layer, scene):
        scene.k_BMhd.mul_(2)
        return super().route(layer, scene)


class Counting(Searching):
    calls: ClassVar[Counter] = Counter()

    def route(self, layer, scene):
        self.calls[layer] += 1
        return super().route(layer, replace(scene, k_BMhd=scene.k_BMhd * (-1) ** self.calls[layer]))


class Dropping(Participative):
    def compact(self, layer, scene, chosen):
        return chosen[:, 1:]


def choosing(choice: Callable[[Tensor, int], Tensor | None]) -> CachePolicy:
    return type("Choosing", (Searching,), {"choice": staticmethod(choice)})()


@pytest.mark.parametrize(
    ("policy", "match"),
    [
        (choosing(lambda s, n: s.argsort(1)[:, :n]), r"route gives rising indices into the memory: .* in layer 0 \[\["),
        (choosing(lambda s, n: s.argsort(1)[:, :n].sort(1).values + 8), r"route gives rising indices.*of 0\.\.\d+"),
        (choosing(lambda s, n: s.argsort(1)[:, :n].sort(1).values - 1), r"route gives rising indices.*\[-1.*of 0\.\."),
        (choosing(lambda s, n: torch.zeros(len(s), n, dtype=torch.long)), r"route gives rising indices"),
        (choosing(lambda s, n: s.argsort(1)[:, 1:n].sort(1).values), r"\(2, 7\).*expected \(\(2, 8\), torch\.int64\)"),
        (choosing(lambda s, n: s[:, :n]), r"\(2, 8\), torch\.float64\), expected \(\(2, 8\), torch\.int64\)"),
        (choosing(lambda s, n: s.argsort(1)[0, :n].sort().values.expand(len(s), -1)), r"pure .*row by row"),
        (choosing(lambda s, n: None), r"route gives rising indices into the memory: not so .* in layer 0 None"),
        (Recorded(), r"route is a pure function of the scene, row by row: .*with the rows the other way round"),
        (Counting(), r"route is a pure function of the scene: .*the same scene gave \[\[.*, then \[\["),
        (Scribbling(), r"route leaves the scene as it is"),
        (Dropping(8, 2, 3, 6), r"compact gives rising indices into the memory: .*\(2, 3\).*expected \(\(2, 4\)"),
    ],
)
def test_a_broken_choice_is_named(policy: CachePolicy, match: str) -> None:
    with pytest.raises(AssertionError, match=match):
        check_cache(policy)


@pytest.mark.parametrize(
    ("policy", "chunk", "match"),
    [
        (Window(), 3, r"window None means the card's"),
        (Sink(9), 3, r"sink None means the card's"),
        (Rolling(9), 3, r"chunk None means the card's"),
        (Window, 3, r"is no cache policy: give an instance"),
        (Full(), 0, r"chunk=0: a chunk is a whole number"),
        (Window(2), 3, r"do not fit window=2: use window >= 3"),
        (Participative(8, 2, 2, 6), 3, r"use recent >= 3"),
    ],
)
def test_what_cannot_run_is_refused(policy: CachePolicy, chunk: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        check_cache(policy, chunk=chunk)


def renumber(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass may take pages that are in use."""
    used = History.used
    monkeypatch.setattr(History, "used", lambda self, pool: used(self, pool)[1:])


def forget_undo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A COMMIT that is repeated finds what the first has left."""
    monkeypatch.setattr(Store, "_found", staticmethod(lambda history, new: history.book))


def keep_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that is begun once more has the tokens of the first attempt."""
    begin = Composed.begin

    def keeping(self: Composed, now: Current) -> None:
        history = now.history
        routes, routed = history.routes, history.routed
        begin(self, now)
        if routed and routed[0] == now.new.frames:
            history.routes = routes

    monkeypatch.setattr(Composed, "begin", keeping)


def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events happen in all lanes."""
    happen = Store.happen
    monkeypatch.setattr(Store, "happen", lambda self, event, lane=0: [happen(self, event, i) for i in range(2)])


def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 of 7 bits."""
    monkeypatch.setattr(Int8, "top", 63)


def recode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every COMMIT writes all pages once more."""
    end = Store.end

    def ending(self: Store, x_BFCHW: Tensor | None = None) -> None:
        end(self, x_BFCHW)
        for history in self._histories.values():
            for pages in history.keys[0] if history.book.end > 3 else ():
                pages.write(slice(0, pages.count), 0.99 * pages.read(slice(0, pages.count), self.dtype))

    monkeypatch.setattr(Store, "end", ending)


def forget_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots have no queries."""
    restore = Store.restore

    def restoring(self: Store, snapshot: Snapshot) -> None:
        restore(self, replace(snapshot, books={key: replace(book, queries=()) for key, book in snapshot.books.items()}))

    monkeypatch.setattr(Store, "restore", restoring)


@pytest.mark.parametrize(
    ("mistake", "policy", "match"),
    [
        (renumber, Window(7), r"the store gives what a history that evicts nothing gives: not so at the .* of chunk 1"),
        (forget_undo, Window(7), r"of repeated COMMITs the last counts: not so at the COMMIT of chunk"),
        (keep_routes, Participative(8, 2, 3, 6), r"DENOISE changes nothing: not so at the DENOISE of chunk 2"),
        (everywhere, Window(7), r"lanes and branches do not meet"),
        (coarse, Window(7, codec="int8"), r"int8 is as exact as it promises: .*keys of frame \d in layer 0"),
        (recode, Window(7, codec="fp8"), r"what is stored of a frame stays while it is held: .*\(frame, layer\) \["),
        (forget_queries, Participative(9, 2, 5, 8), r"a snapshot goes on as the store did"),
    ],
)
def test_a_mistake_of_the_store_is_named(
    monkeypatch: pytest.MonkeyPatch, mistake: Callable[[pytest.MonkeyPatch], None], policy: CachePolicy, match: str
) -> None:
    mistake(monkeypatch)
    with pytest.raises(AssertionError, match=match):
        check_cache(policy)
