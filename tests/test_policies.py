"""Policies in frame numbers: the listings of published methods, as `select` and `times` give them; and events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from dense import layout
from hypothesis import given, settings
from hypothesis import strategies as st

from arvid.cache import (
    CACHE,
    EVENT,
    CachePolicy,
    Chunk,
    Cut,
    Flush,
    Full,
    Group,
    Kind,
    Participative,
    Pass,
    Recommit,
    Ref,
    Reset,
    Rolling,
    Sink,
    Window,
    after_commit,
    make_plan,
    recommit_plan,
    reduced,
    whole_plan,
)
from arvid.positional import Absolute, SinkAdjacent, TimeMap

DENOISE, COMMIT = Kind.DENOISE, Kind.COMMIT


def rollout(policy: CachePolicy, chunks: Sequence[Chunk], time: TimeMap | None = None
            ) -> Iterator[tuple[Chunk, tuple[Ref, ...], Group, Group]]:  # fmt: skip
    """For each chunk what is held before it, and what its DENOISE and its COMMIT see."""
    held: tuple[Ref, ...] = ()
    for chunk in chunks:
        new = [Pass(kind, (chunk,)) for kind in (DENOISE, COMMIT)]
        plans = [make_plan(policy, time or Absolute(), held, each) for each in new]
        yield chunk, held, plans[0].groups[0], plans[1].groups[0]
        held = after_commit(policy, held, new[1])


def content(group: Group) -> dict[float, int]:
    """The frame seen at every time."""
    assert len(set(group.ref_times)) == len(group.ref_times)
    return dict(sorted(zip(group.ref_times, (ref.frame for ref in group.refs), strict=True)))


def frames(group: Group) -> list[int]:
    return sorted(ref.frame for ref in group.refs)


def test_rolling_sink_in_chunk_8() -> None:
    """Window 21, chunk 3: times 6-26, of which 24-26 are in flight."""
    *_, (chunk, held, denoise, commit) = rollout(Rolling(21, chunk=3), layout(27, 3))
    assert (chunk.start, denoise.times) == (24, (24, 25, 26))
    assert content(denoise) == dict(zip(range(6, 24), [*range(6, 18), 17, 16, 15, 21, 22, 23], strict=True))
    assert content(commit) == dict(zip(range(6, 24), [*range(6, 18), 17, 16, 15, 14, 13, 12], strict=True))
    assert [ref.frame for ref in held] == [*range(18), 21, 22, 23]
    assert {ref.frame for ref in denoise.refs if ref.role == "memory"} == {15, 16, 17}


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 60))
def test_rolling_is_the_released_bank(chunk: int, history: int, end: int) -> None:
    """A simulation of the released code's ring: the last chunk's slots are overwritten, at its successor's commit, by
    the next frames of the first `history`, forwards in even turns and backwards in odd ones."""
    bank = {}  # time: content
    for c, held, denoise, commit in rollout(Rolling(history + chunk, chunk=chunk), layout(end, chunk)):
        if c.n < chunk:
            break  # the released code knows whole chunks only
        if c.end > history + chunk:
            assert content(denoise) == {t: bank[t] for t in range(c.start - history, c.start)}
        for t in range(max(0, c.start - chunk), c.start):
            turn, step = divmod(t, history)
            bank[t] = step if turn % 2 == 0 else history - 1 - step
        assert content(commit) == {t: bank[t] for t in range(max(0, c.start - history), c.start)}
        assert {ref.frame for ref in held} == {*range(min(c.start, history)), *range(max(0, c.start - chunk), c.start)}
        bank |= {t: t for t in range(c.start, c.end)}


def test_rolling_forcing_sees_the_sink_when_it_denoises_only() -> None:
    """Windows of five chunks, of which the first is then committed; the sink's times lie right before the rest."""
    policy, time = Sink(21, 3, sink_on_commit=False), SinkAdjacent()
    listing = {
        7: ([*range(3), *range(6, 9)], range(3, 9), None),
        10: ([*range(3), *range(15, 18)], range(12, 18), range(21 - 3)),
        12: ([*range(3), *range(21, 24)], range(18, 24), range(6, 24)),
        17: ([*range(3), *range(24, 39)], range(21, 39), None),  # the last chunk alone: 15 recent frames
    }
    held: tuple[Ref, ...] = ()
    committed = layout(42, 3)
    for window in range(4, 18):
        flying = tuple(committed[window - 4 : window + 1]) if window < 14 else tuple(committed[window - 4 : 14])
        denoise = make_plan(policy, time, held, Pass(DENOISE, flying)).groups[0]
        new = Pass(COMMIT, flying[:1])
        commit = make_plan(policy, time, held, new).groups[0]
        if window in listing and window != 7:
            seen, times, at_commit = listing[window]
            assert frames(denoise) == seen
            assert sorted(denoise.ref_times) == [*map(float, times)]
            assert at_commit is None or (frames(commit) == [*at_commit] == [int(t) for t in sorted(commit.ref_times)])
        held = after_commit(policy, held, new)
    # window 7 in the recordings: frames 9-23 in flight
    first = [Ref(frame) for frame in range(9)]
    denoise = make_plan(policy, time, first, Pass(DENOISE, tuple(committed[3:8]))).groups[0]
    assert (frames(denoise), sorted(denoise.ref_times)) == (listing[7][0], [*map(float, listing[7][1])])


def test_deep_sink_lies_right_before_the_rest() -> None:
    """12 sinks of a window of 21: 6 recent frames follow them, whatever is evicted."""
    for chunk, _, denoise, _ in rollout(Sink(21, 12), layout(60, 3), SinkAdjacent()):
        expected = {t: t for t in range(chunk.start)} if chunk.end <= 21 else {
            **{chunk.start - 18 + i: i for i in range(12)}, **{t: t for t in range(chunk.start - 6, chunk.start)}
        }  # fmt: skip
        assert content(denoise) == expected


def test_participative_compression_alternates_as_its_released_code() -> None:
    """Frames seen, those in flight included: 21, then 16 and 19 by turns."""
    policy, seen = Participative(21, 10, 4, 16), []
    for chunk, held, denoise, commit in rollout(policy, layout(48, 3), SinkAdjacent()):
        seen.append(denoise.visible + chunk.n)
        assert denoise == commit
        assert len(held) + chunk.n <= (policy.capacity(3, 3) or 0)
        if denoise.routed is not None:
            memory = [ref.frame for ref in denoise.refs if ref.role == "memory"]
            recent = [ref.frame for ref in denoise.refs if ref.role == "recent"]
            assert denoise.routed == 2
            assert recent == [chunk.start - 1]
            assert memory == [ref.frame for ref in held[10:-1]]
            # in time: sinks, two slots for kept tokens, the recent frame, the chunk
            sinks = [t for ref, t in zip(denoise.refs, denoise.ref_times, strict=True) if ref.role == "sink"]
            assert sinks == [chunk.start - 13.0 + i for i in range(10)]
    assert seen[6:] == [21, 16, 19, 16, 19, 16, 19, 16, 19, 16]


def test_packed_frames_are_those_before_the_recent() -> None:
    policy, held = Participative(8, 2, 3, 7), ()
    for chunk in layout(12, 3):
        held = after_commit(policy, held, Pass(COMMIT, (chunk,)))
    assert [(ref.frame, ref.role) for ref in held] == [
        (0, "recent"), (1, "recent"), (7, "memory"), (8, "memory"), (9, "recent"), (10, "recent"), (11, "recent")
    ]  # fmt: skip


def any_(cls: type) -> Any:
    """A class that a type checker lets take any value."""
    return cls


POLICIES = [Full(), Window(7), Sink(9, 2), Sink(9, 2, sink_on_commit=False), Rolling(9, chunk=3),
            Participative(9, 2, 3, 7)]  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("n", [0, 1, 2, 50])
@pytest.mark.parametrize("chunks", [1, 2, 7])
def test_a_flush_keeps_the_sinks_and_the_last_frames(policy: CachePolicy, n: int, chunks: int) -> None:
    held: tuple[Ref, ...] = ()
    for chunk in layout(3 * chunks, 3):
        held = after_commit(policy, held, Pass(COMMIT, (chunk,)))
    left = reduced(policy, held, Flush(n))
    assert left == tuple(ref for i, ref in enumerate(held) if i < policy.sinks or i >= len(held) - n)
    assert reduced(policy, left, Flush(n)) == left  # an early flush, or a second one, keeps what there is


@pytest.mark.parametrize(("event", "left"), [
    (Cut(), [0, 1, 7, 8, 9, 10, 11]), (Cut("sink"), [0, 1]), (Cut("none"), []), (Reset(), []),
    (Recommit(), [0, 1, 7, 8, 9, 10, 11]),
])  # fmt: skip
def test_what_survives_an_event(event, left: list[int]) -> None:
    held: tuple[Ref, ...] = ()
    for chunk in layout(12, 3):
        held = after_commit(Sink(10, 2), held, Pass(COMMIT, (chunk,)))
    held = held[:2] + held[-5:]
    assert [ref.frame for ref in reduced(Sink(10, 2), held, event)] == left


@pytest.mark.parametrize("policy", [Sink(9, 2), Rolling(9, chunk=3), Participative(9, 2, 3, 7)], ids=str)
def test_after_a_reset_the_first_frames_are_the_sinks(policy: CachePolicy) -> None:
    """A history that starts at frame 30 is that of frame 0, moved."""
    moved: tuple[Ref, ...] = ()
    for chunk, held, denoise, commit in rollout(policy, layout(24, 3)):
        later = Chunk(chunk.start + 30, chunk.n, index=chunk.index + 10)
        groups = [make_plan(policy, Absolute(), moved, Pass(kind, (later,))).groups[0] for kind in (DENOISE, COMMIT)]
        assert [ref.frame - 30 for ref in moved] == [ref.frame for ref in held]
        for group, first in zip(groups, (denoise, commit), strict=True):
            assert [t - 30 for t in group.ref_times] == list(first.ref_times)
            assert [(r.frame - 30, r.role) for r in group.refs] == [(r.frame, r.role) for r in first.refs]
        moved = after_commit(policy, moved, Pass(COMMIT, (later,)))


def test_a_shot_is_remembered() -> None:
    held = after_commit(Full(), (), Pass(COMMIT, (Chunk(0, 2),), shot=0))
    held = after_commit(Full(), held, Pass(COMMIT, (Chunk(2, 1),), shot=3))
    assert [ref.shot for ref in held] == [0, 0, 3]


def test_who_sees_whom_in_a_recommit() -> None:
    held, chunks = [Ref(f) for f in (0, 1, 5, 6, 7, 8)], [Chunk(0, 3), Chunk(3, 3), Chunk(6, 3)]
    policy = Sink(8, 2, sink_on_commit=False)
    joint, causal, each = (recommit_plan(policy, SinkAdjacent(), held, chunks, mode)
                           for mode in ("joint", "causal", "per_chunk"))  # fmt: skip
    assert joint.groups == (Group((0, 1, 2, 3, 4, 5), (3, 4, 5, 6, 7, 8)),)
    assert [(g.queries, g.times) for g in causal.groups] == [
        ((0, 1), (0, 1)), ((2,), (5,)), ((3, 4, 5), (6, 7, 8))
    ]  # fmt: skip
    assert [[ref.frame for ref in g.refs] for g in causal.groups] == [[], [0, 1], [0, 1, 2]]
    assert [g.ref_times for g in causal.groups] == [(), (1, 2), (3, 4, 5)]
    # a commit is shown no sink: frames 1 to 5 are the recent ones of the last chunk
    assert [[ref.frame for ref in g.refs] for g in each.groups] == [[], [0, 1], [1, 2]]


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: Flush(-1), r"flush keeps n=-1"),
        (lambda: any_(Flush)(1.5), r"flush keeps n=1.5"),
        (lambda: any_(Cut)("some"), r"keep='some'; allowed: 'all', 'sink', 'none'"),
        (lambda: any_(Recommit)("jointly"), r"mode='jointly'; allowed: 'joint', 'causal', 'per_chunk'"),
        (lambda: any_(Recommit)(sinks="drop"), r"sinks='drop'; allowed: 'keep', 'renew'"),
        (lambda: any_(Window)(6, codec="int9"), r"codec='int9': pages are stored as bf16, int8, fp8"),
        (lambda: Window(6, sink_codec="int8"), r"without a codec for the other frames"),
        (lambda: any_(Window)(6, on_change="flush"), r"on_change='flush': give an event, such as Flush\(2\)"),
        (lambda: Participative(codec="int8"), r"codec='int8': Participative chooses tokens"),
        (lambda: Participative(on_change=Recommit()), r"belong to no frame"),
        (lambda: Participative(9, 5, 4, 9), r"sink \+ recent < budget <= window"),
        (lambda: Participative(9, 2, 3, 10), r"sink \+ recent < budget <= window"),
        (lambda: Participative(9, -1, 3, 8), r"sink=-1: give a whole number"),
        (lambda: Participative(9, 2, 0, 8), r"recent=0: give a whole number of latent frames, at least 1"),
        (lambda: Participative(9, 2, 2, 8).check(3), r"recent=2 counts the frames in flight, which are 3"),
        (lambda: Rolling(3, chunk=3), r"window=3 leaves no history beside a chunk=3: use window >= 4"),
        (lambda: Rolling(9, chunk=0), r"chunk=0"),
        (lambda: Rolling(9).sinks, r"Rolling.chunk is None"),
        (lambda: Rolling(9, chunk=3).check(10), r"10 frames in flight do not fit window=9"),
        (lambda: whole_plan(Participative(9, 2, 3, 7), Absolute(), layout(12, 3)), r"chooses tokens by the queries"),
    ],
)
def test_bad_values_raise(build, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build()


@pytest.mark.parametrize("wrong", [None, 3, [1, 2], "ab"])
def test_a_policy_that_selects_no_refs_is_named(wrong) -> None:
    class Wrong(Full):
        def select(self, held, new):
            return wrong

        def keep(self, held, new):
            return wrong

    with pytest.raises(ValueError, match=r"Wrong.select gave .*; it gives a sequence of Ref"):
        make_plan(Wrong(), Absolute(), (), Pass(DENOISE, (Chunk(0, 2),)))
    with pytest.raises(ValueError, match=r"Wrong.keep gave .*; it gives a set of the frames that are held"):
        after_commit(Wrong(), (), Pass(COMMIT, (Chunk(0, 2),)))


@pytest.mark.parametrize("change", [{"at": "3"}, {"at": 9.0}, {"at": 2.0}, {"at": float("nan")}, {"bias": "a"},
                                    {"bias": float("inf")}, {"bias": float("nan")}, {"role": "king"}])  # fmt: skip
def test_a_ref_that_makes_no_sense_is_named(change: dict) -> None:
    class Odd(Full):
        def select(self, held, new):
            return [replace(ref, **change) for ref in held]

    with pytest.raises(ValueError, match=r"Odd.select gave Ref\(.*: `at` is a slot before the chunk at 2"):
        make_plan(Odd(), Absolute(), [Ref(0)], Pass(DENOISE, (Chunk(2, 2),)))


def test_a_frame_is_seen_once_in_a_slot() -> None:
    class Twice(Full):
        def select(self, held, new):
            return [*held, *held]

    with pytest.raises(ValueError, match=r"Twice.select gave a frame twice for one slot: \[\(0, 0.0\), \(0, 0.0\)\]"):
        make_plan(Twice(), Absolute(), [Ref(0)], Pass(DENOISE, (Chunk(2, 2),)))


def test_only_what_is_held_can_be_kept() -> None:
    class Hoarder(Full):
        def keep(self, held, new):
            return {ref.frame for ref in held} | {99}

    with pytest.raises(ValueError, match=r"Hoarder.keep gave .*99.*frames that are held: \[0, 1\]"):
        after_commit(Hoarder(), (), Pass(COMMIT, (Chunk(0, 2),)))


def test_a_bias_on_frames_whose_tokens_are_chosen_is_refused() -> None:
    class Biased(Participative):
        def select(self, held, new):
            return [replace(ref, bias=-1.0) for ref in super().select(held, new)]

    with pytest.raises(ValueError, match=r"Biased.select gave a bias to a frame whose tokens are chosen"):
        list(rollout(Biased(9, 2, 3, 7), layout(12, 3)))


@pytest.mark.parametrize("event", [Flush(2), Cut(), Cut("none"), Reset(), Recommit(), Recommit("causal", "renew")])
def test_events_round_trip_through_the_registry(event) -> None:
    assert EVENT.build(EVENT.spec(event)) == event
    policy = Sink(9, 2, codec="int8", sink_codec="bf16", on_change=event)
    assert CACHE.build(CACHE.spec(policy)) == policy
