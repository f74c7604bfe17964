"""`check_time` passes what is right, and names what is wrong: time maps that break a promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arvid.positional import TIME, Absolute, Clamped, Relative, ShotOffset, SinkAdjacent, TimeMap
from arvid.testing import check_time


@dataclass(frozen=True)
class Halved(TimeMap):
    """The past at half speed: a map as a plugin may have it, which declares nothing."""

    def times(self, refs, new):
        start = new.frames.start
        return [float((ref.at - start) / 2) for ref in refs], [float(i) for i in range(len(new.frames))]


class Sawtooth(Relative):
    """Bounded, but its times jump with the frame's number."""

    absolute_at_first: ClassVar[bool] = False

    def times(self, refs, new):
        past, own = super().times(refs, new)
        by = float(new.frames.start % 1000)
        return tuple(t + by for t in past), tuple(t + by for t in own)


@pytest.mark.parametrize(
    "time",
    [Absolute(), Relative(), Relative(42), SinkAdjacent(), SinkAdjacent(3), Clamped(21), Clamped(6, 5), Clamped(3),
     Clamped(100_000), ShotOffset(8), ShotOffset(0.1), ShotOffset(0), Halved(), Sawtooth()],
    ids=str,
)  # fmt: skip
def test_what_is_right_passes(time: TimeMap) -> None:
    check_time(time)


@settings(max_examples=6)
@given(st.integers(3, 40), st.integers(0, 50), st.floats(0, 100), st.integers(0, 99))
def test_maps_with_any_fields_pass(some: int, more: int, phi: float, seed: int) -> None:
    for time in (Clamped(some, more), Relative(more), SinkAdjacent(more), ShotOffset(phi)):
        check_time(time, seed=seed)


def test_every_registered_map_has_its_declarations_right() -> None:
    """Those of arvid itself say all that is true of them."""
    given = {ShotOffset: {"phi": 8}, Clamped: {"train_horizon": 21}}
    said = {}
    for name in TIME.names():
        cls = TIME.get(name)
        if cls.__module__.startswith("arvid."):
            check_time(cls(**given.get(cls, {})))
            said[name] = (cls.static, cls.bounded, cls.absolute_at_first)
    assert said == {
        "absolute": (True, False, True), "relative": (False, True, True), "sink_adjacent": (False, False, True),
        "clamped": (False, True, True), "shot_offset": (True, False, True),
    }  # fmt: skip


def broken(times: Callable[..., Any], base: type[TimeMap] = Relative, **declared: bool) -> TimeMap:
    """`base` with what it gives changed by `times(past, own, refs, new)`."""

    def changed(self: TimeMap, refs: Any, new: Any) -> Any:
        return times(*map(list, base.times(self, refs, new)), refs, new)

    return type("Broken", (base,), {"times": changed, **declared})()


def declaring(time: TimeMap, **declared: bool) -> TimeMap:
    """The same map with other declarations."""
    cls = type(f"Lying{type(time).__name__}", (type(time),), declared)
    return cls(**vars(time))


class Impure(Relative):
    calls: ClassVar[list[int]] = []

    def times(self, refs, new):
        self.calls.append(1)
        past, own = super().times(refs, new)
        return past, tuple(t + len(self.calls) for t in own)


class Untied(Relative):
    """Refs in one slot at different times, the first given first."""

    def times(self, refs, new):
        order = sorted(range(len(refs)), key=lambda i: refs[i].at)
        return [float(order.index(i)) for i in range(len(refs))], [float(len(refs) + i) for i in range(len(new.frames))]


class Mutating(Relative):
    def times(self, refs: Any, new):
        refs.sort(key=lambda ref: -ref.at)
        return super().times(refs, new)


class Replacing(Relative):
    def times(self, refs: Any, new):
        refs[:] = [replace(ref, shot=0) for ref in refs]
        return super().times(refs, new)


class OfTheShot(ShotOffset):
    """Moves what is held with the shot of the pass, so what was committed before lies elsewhere."""

    def times(self, refs, new):
        return super().times([replace(ref, shot=new.shot) for ref in refs], new)


@dataclass(frozen=True)
class Doubling(Absolute):
    """Changes what it was given."""

    by: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "by", 2 * self.by)


@dataclass(frozen=True)
class Opaque(Absolute):
    """Has a field that no file can hold."""

    of: object = ()


def moved(past: list[float], refs: Any, by: float) -> list[float]:
    """Sinks elsewhere."""
    return [t + by * (ref.role == "sink") for t, ref in zip(past, refs, strict=True)]


READS = r"times reads only a ref's at, role and shot, and the pass's chunks, frames and shot: not so: it asked for "
APART = "frames in flight are one time apart: not so at "
NEVER = "static: a frame's time never changes: not so at "
BOUND = "bounded: times stay below a bound: not so: they reach "


@pytest.mark.parametrize(
    ("time", "match"),
    [
        (broken(lambda past, own, *_: (past[1:], own)),
         r"each ref and each frame in flight has one time: not so at the DENOISE of chunk 1.*: 2 for 3 refs, 3 for 3"),
        (broken(lambda past, own, *_: (past, own[:1])), r"each ref and each frame.*: 0 for 0 refs, 1 for 3 in flight"),
        (broken(lambda past, own, *_: (past, [*own[1:], float("nan")])), r"times are finite floats: not so at .*nan"),
        (broken(lambda past, own, *_: ([*map(int, past)], own)), r"times are finite floats: not so at .*: \[0, 1, 2\]"),
        (Impure(), r"times is pure: not so at the DENOISE of chunk 0, frames 0\.\.2: first \(.*, then \("),
        (Mutating(), r"times leaves the refs as they are: not so at the DENOISE of chunk 1"),
        (Replacing(), r"times leaves the refs as they are: not so at the DENOISE of chunk 6"),
        (broken(lambda past, own, *_: (sorted(past), own)), r"the order of refs does not matter: not so at"),
        (broken(lambda past, own, refs, new: (past, [t + bool(refs and refs[0].at) for t in own])),
         r"the order of refs does not matter: not so at"),
        (Untied(), r"the order of refs does not matter: not so at"),
        (broken(lambda past, own, refs, new: ([float(ref.frame) for ref in refs], own)), READS + "'frame'"),
        (broken(lambda past, own, refs, new: (past, [t + new.prompt for t in own])), READS + "'prompt'"),
        (broken(lambda past, own, refs, new: (past, [t + getattr(new, "kind", 0) for t in own])), READS + "'kind'"),
        (broken(lambda past, own, *_: (past, [2 * t for t in own])), APART + r".*: \[0\.0, 2\.0, 4\.0\]"),
        (broken(lambda past, own, *_: (past, own[::-1])), APART),
        (broken(lambda past, own, *_: (past, own[:1] * len(own))), APART),
        (broken(lambda past, own, refs, new: (past, [t * len(new.chunks) for t in own])), APART),
        (broken(lambda *parts: tuple([min(t, 1023.0) for t in part] for part in parts[:2]), Absolute),
         APART + r"the DENOISE of chunk 3, frames 1022\.\.1024: \[1022\.0, 1023\.0, 1023\.0\]"),
        (broken(lambda past, own, *_: ([t + 1.5 for t in past], own)),
         r"no ref comes after the first frame in flight: not so at .*: \[1\.5, 2\.5, 3\.5\], then \[3"),
        (broken(lambda past, own, refs, new: (moved(past, refs, 9.0), own)), r"no ref comes after the first frame"),
        (broken(lambda past, own, *_: ([-t for t in past], own)),
         r"recent refs keep their order: not so at .*: \(slot, time\) \[\(0\.0, -0\.0\), \(1\.0, -1\.0\)"),
        (declaring(Relative(), static=True), NEVER + r".*: \(frame, time when it was committed, time\) \[\(\d+, "),
        (declaring(SinkAdjacent(), static=True), NEVER + r".*\[\(0, 0\.0, "),
        (declaring(Clamped(21), static=True), NEVER + r"the DENOISE of chunk 8, frames 21\.\.23: .*\[\(20, 20\.0, 17"),
        (OfTheShot(8), NEVER + "the DENOISE of chunk 5"),
        (declaring(Absolute(), bounded=True), BOUND + r"3005999\.0 within 2,000 chunks .*, and 3000005999\.0 from"),
        (declaring(SinkAdjacent(), bounded=True), BOUND),
        (declaring(ShotOffset(8), bounded=True), BOUND),
        (broken(lambda past, own, refs, new: (past, [t + 10 * new.shot for t in own])), BOUND),
        (broken(lambda past, own, refs, new: ([t - new.frames.start**0.5 for t in past], own), absolute_at_first=False),
         BOUND),
        (declaring(Halved(), absolute_at_first=True),
         r"absolute_at_first: while all is seen, times are absolute up to one constant: not so at the DENOISE of chu"),
        (broken(lambda past, own, refs, new: (moved(past, refs, -1.0), own)), r"absolute_at_first: .*: \[-1\.0, 0\.0"),
    ],
)  # fmt: skip
def test_a_broken_promise_is_named(time: TimeMap, match: str) -> None:
    with pytest.raises(AssertionError, match=match):
        check_time(time)


@pytest.mark.parametrize(
    ("time", "match"),
    [(Doubling(), r"Doubling\(by=4\), expected Doubling\(by=2\)"), (Opaque(object()), r"field of: <object")],
)
def test_a_map_that_no_file_can_hold_is_named(monkeypatch: pytest.MonkeyPatch, time: TimeMap, match: str) -> None:
    monkeypatch.setattr(TIME, "_classes", {**TIME._classes, "of_the_check": type(time)})
    with pytest.raises(AssertionError, match=f"a time map comes back from its spec: not so: {match}"):
        check_time(time)


@pytest.mark.parametrize(
    ("time", "match"),
    [(Clamped(), r"train_horizon is None, which means the card's, and there is no card"),
     (Clamped(2), r"3 frames in flight would share times: use train_horizon >= 3"),
     (Relative, r"is no time map: give an instance")],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(time: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        check_time(time)
