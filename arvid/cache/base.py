"""Passes, refs, plans and policies: what one forward attends to, said in plain host-side values.

Attention over a cache needs no mask: a pass attends to a collection of held frames plus its own. A policy names the
held frames, a time map gives each its time, and the result is a plan, shared by all layers, batch rows and ranks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from typing import ClassVar, Literal

from arvid.positional.base import TimeMap
from arvid.registry import Registry

Role = Literal["sink", "memory", "recent"]


class Kind(Enum):
    """DENOISE reads history and changes nothing a later pass can see; COMMIT also keeps the pass's own keys."""

    DENOISE = "denoise"
    COMMIT = "commit"


@dataclass(frozen=True, slots=True)
class Chunk:
    """`n` latent frames from `start` on, denoised together at noise level `sigma`; the `index`-th of the video."""

    start: int
    n: int
    sigma: float = 0.0
    index: int = 0

    def __post_init__(self) -> None:
        if self.start < 0 or self.n < 1:
            raise ValueError(f"a chunk of n={self.n} frames from start={self.start}: n is at least 1, start at least 0")

    @property
    def end(self) -> int:
        """The first frame after the chunk."""
        return self.start + self.n


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward of the network over chunks in flight, contiguous in time."""

    kind: Kind
    chunks: tuple[Chunk, ...]
    lane: int = 0
    branch: int = 0
    prompt: int = 0
    shot: int = 0

    def __post_init__(self) -> None:
        if not self.chunks or any(a.end != b.start for a, b in pairwise(self.chunks)):
            raise ValueError(f"a pass needs chunks, each starting where the one before ends; got {self.chunks}")

    @property
    def frames(self) -> range:
        """The frames in flight."""
        return range(self.chunks[0].start, self.chunks[-1].end)


@dataclass(frozen=True, slots=True)
class Ref:
    """A held frame as one pass sees it. `at` is the time slot it stands for (None: its own), `bias` is added to the
    logits of its keys, `shot` is the one it was committed in."""

    frame: int
    at: float | None = None
    role: Role = "recent"
    shot: int = 0
    bias: float = 0.0


@dataclass(frozen=True, slots=True)
class Group:
    """Query frames that share one list of keys: the refs, and the queries themselves.

    `queries` are slots of the pass's input, `times` theirs; `ref_times` those of the refs.
    """

    queries: tuple[int, ...]
    times: tuple[float, ...]
    refs: tuple[Ref, ...] = ()
    ref_times: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pass attends to: one group over the store's frames or, for whole-sequence passes, several groups whose
    refs are slots of the pass itself (`inside`)."""

    groups: tuple[Group, ...]
    kind: Kind = Kind.DENOISE
    inside: bool = False

    @property
    def shape_key(self) -> tuple[str, int, int]:
        """(kind, frames in flight, frames visible): equal keys mean equal tensor shapes."""
        return self.kind.value, sum(len(g.queries) for g in self.groups), sum(len(g.refs) for g in self.groups)

    def mask(self, slots: int) -> list[list[bool]]:
        """For an `inside` plan, whether query slot i sees key slot j: [slots][slots]. The oracle of tests."""
        seen = [[False] * slots for _ in range(slots)]
        for group in self.groups:
            for query in group.queries:
                for key in (*group.queries, *(ref.frame for ref in group.refs)):
                    seen[query][key] = True
        return seen


@dataclass(frozen=True)
class CachePolicy(ABC):
    """What a pass sees and what survives a commit, in frame numbers.

    Most policies write `select` alone. `check` and `capacity` serve those with a window. `static` promises that refs
    keep their own time slot (`at` None), so that rotated keys may be stored; the store refuses a broken promise.
    """

    static: ClassVar[bool] = False

    @abstractmethod
    def select(self, held: Sequence[Ref], new: Pass) -> Sequence[Ref]:
        """The held frames that `new` sees. `held` is sorted in time and ends before the pass's first frame."""

    def keep(self, held: Sequence[Ref], new: Pass) -> set[int]:
        """The frames that survive the COMMIT `new`, whose own frames `held` already has.

        By default what a DENOISE and a COMMIT of one next chunk, as long as this pass's last, would see.
        """
        last = new.chunks[-1]
        following = (Chunk(last.end, last.n, index=last.index + 1),)
        seen = (self.select(held, replace(new, kind=kind, chunks=following)) for kind in Kind)
        return {ref.frame for refs in seen for ref in refs}

    def check(self, in_flight: int) -> None:  # noqa: B027 (a policy without limits has nothing to check)
        """Raise `ValueError` when a pass of `in_flight` frames can never fit."""

    def capacity(self, chunk: int, in_flight: int) -> int | None:
        """Frames ever held plus `in_flight`, for chunks of `chunk` frames; None where it grows with the video."""
        return None


CACHE: Registry[CachePolicy] = Registry("cache")


def view(policy: CachePolicy, held: Sequence[Ref], new: Pass) -> tuple[Ref, ...]:
    """The policy's choice for `new`, with `at` filled in. Raises `ValueError` for frames that are not held."""
    past = [ref for ref in held if ref.frame < new.frames.start]
    frames = {ref.frame for ref in past}
    chosen = tuple(replace(ref, at=float(ref.frame)) if ref.at is None else ref for ref in policy.select(past, new))
    if strange := sorted({ref.frame for ref in chosen} - frames):
        name = type(policy).__name__
        raise ValueError(f"{name}.select chose frames {strange}, which are not held (held: {sorted(frames)})")
    return chosen


def _group(policy: CachePolicy, time: TimeMap, held: Sequence[Ref], new: Pass, first_slot: int) -> Group:
    """What the frames of `new`, in slots from `first_slot` on, attend to."""
    refs = view(policy, held, new)
    ref_times, times = map(tuple, time.times(refs, new))
    if (len(ref_times), len(times)) != (len(refs), len(new.frames)):
        raise ValueError(f"{type(time).__name__}.times gave {len(ref_times)} times for {len(refs)} refs "
                         f"and {len(times)} for {len(new.frames)} frames in flight; it gives each one")
    if not all(map(math.isfinite, (*ref_times, *times))):
        raise ValueError(f"{type(time).__name__}.times gave {ref_times} for the refs and {times} for the frames in "
                         "flight; times must be finite")
    return Group(tuple(range(first_slot, first_slot + len(times))), times, refs, ref_times)


def make_plan(policy: CachePolicy, time: TimeMap, held: Sequence[Ref], new: Pass) -> Plan:
    """The plan of a pass against a store: one group. Pure: the same arguments give the same plan."""
    return Plan((_group(policy, time, held, new, 0),), new.kind)


def whole_plan(policy: CachePolicy, time: TimeMap, chunks: Sequence[Chunk], noisy: int = 0) -> Plan:
    """The plan of a whole-sequence pass over [clean frames | noisy copy 1 | ... | noisy copy `noisy`].

    One COMMIT group for each clean chunk and one DENOISE group for each noisy one, with the views and times that a
    rollout over a store would have; refs point at the clean frames. With `noisy` 0 it is the block-causal pass, with
    one copy or more teacher forcing (Self Forcing, arXiv 2506.08009, section 3). Raises `ValueError` for chunks that do
    not start at frame 0 and follow one another: slots of the pass are frame numbers.
    """
    if not chunks or chunks[0].start or any(a.end != b.start for a, b in pairwise(chunks)):
        raise ValueError(f"a whole plan needs chunks from frame 0 on, each starting where one ends; got {chunks}")
    total = chunks[-1].end
    groups: list[Group] = []
    held: tuple[Ref, ...] = ()
    for chunk in chunks:
        for copy in range(noisy + 1):
            new = Pass(Kind.DENOISE if copy else Kind.COMMIT, (chunk,))
            groups.append(_group(policy, time, held, new, copy * total + chunk.start))
        held = after_commit(policy, held, Pass(Kind.COMMIT, (chunk,)))
    return Plan(tuple(groups), inside=True)


def joint_plan(frames: int) -> Plan:
    """Every frame sees every frame, at times 0 .. frames - 1: the bidirectional model."""
    return Plan((Group(tuple(range(frames)), tuple(float(f) for f in range(frames))),), inside=True)


def after_commit(policy: CachePolicy, held: Sequence[Ref], new: Pass) -> tuple[Ref, ...]:
    """The frames held once the COMMIT `new` is done, sorted in time."""
    past = [ref for ref in held if ref.frame < new.frames.start]
    held = (*past, *(Ref(frame, shot=new.shot) for frame in new.frames))
    kept = policy.keep(held, new)
    return tuple(ref for ref in held if ref.frame in kept)
