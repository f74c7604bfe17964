"""Passes, refs, plans and policies: what one forward attends to, said in plain host-side values.

Attention over a cache needs no mask: a pass attends to a collection of held frames plus its own. A policy names the
held frames, a time map gives each its time, and the result is a plan, shared by all layers, batch rows and ranks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from arvid.positional.base import TimeMap
from arvid.registry import Registry, brief

from .events import Event, Mode

if TYPE_CHECKING:
    from torch import Tensor

Role = Literal["sink", "memory", "recent"]
CodecName = Literal["bf16", "int8", "fp8"]
CODECS: tuple[CodecName, ...] = ("bf16", "int8", "fp8")


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

    `queries` are slots of the pass's input, `times` theirs; `ref_times` those of the refs. `routed`, where not None, is
    how many frames' worth of tokens each layer chooses among the refs of role memory.
    """

    queries: tuple[int, ...]
    times: tuple[float, ...]
    refs: tuple[Ref, ...] = ()
    ref_times: tuple[float, ...] = ()
    routed: int | None = None

    @property
    def visible(self) -> int:
        """Frames' worth of held tokens that the queries see."""
        memory = [ref for ref in self.refs if ref.role == "memory"]
        return len(self.refs) if self.routed is None else len(self.refs) - len(memory) + self.routed


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
        return self.kind.value, sum(len(g.queries) for g in self.groups), sum(g.visible for g in self.groups)

    def mask(self, slots: int) -> list[list[bool]]:
        """For an `inside` plan, whether query slot i sees key slot j: [slots][slots]. The oracle of tests."""
        seen = [[False] * slots for _ in range(slots)]
        for group in self.groups:
            for query in group.queries:
                for key in (*group.queries, *(ref.frame for ref in group.refs)):
                    seen[query][key] = True
        return seen


@dataclass(frozen=True)
class Scene:
    """What a layer shows a policy that chooses tokens, queries and keys rotated to their times in this pass.

    `q_BNhd` are the pass's queries; `past_BFhd` those of the last committed frames, as many as the policy's `queries`
    asks for, each summed over its tokens; `k_BMhd` and `v_BMhd` the tokens of the refs of role memory, oldest frame
    first.
    """

    new: Pass
    q_BNhd: Tensor
    past_BFhd: Tensor
    k_BMhd: Tensor
    v_BMhd: Tensor


@dataclass(frozen=True)
class CachePolicy(ABC):
    """What a pass sees and what survives a commit, in frame numbers.

    Most policies write `select` alone. `check` and `capacity` serve those with a window. Declarations, all of which
    `arvid.testing.check_cache` holds a policy to: `static`, refs keep their own time slot (`at` None), so that rotated
    keys may be stored; `sinks`, how many first frames of the history no commit evicts; `fits_like_full`, a chunk of the
    usual length that ends within the first `window` frames (None: any chunk) sees every frame before it.

    Every policy has these fields: `codec` stores pages as bf16, int8 or fp8 (None: the model's dtype), `sink_codec`
    those of the sinks; `on_change` is the event that a change of the prompt triggers.

    Policies that choose tokens, layer by layer, also write `routed`, `route` and, with `compacts`, `compact`.
    """

    static: ClassVar[bool] = False
    fits_like_full: ClassVar[bool] = False
    compacts: ClassVar[bool] = False

    codec: CodecName | None = field(default=None, kw_only=True)
    sink_codec: CodecName | None = field(default=None, kw_only=True)
    on_change: Event | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("codec", "sink_codec"):
            if (value := getattr(self, name)) is not None and value not in CODECS:
                raise ValueError(f"{name}={value!r}: pages are stored as {', '.join(CODECS)}, or None for the model's "
                                 "dtype")
        if self.sink_codec and not self.codec:
            raise ValueError(f"sink_codec={self.sink_codec!r} without a codec for the other frames: give codec too")
        if self.codec and self.chooses:
            raise ValueError(f"codec={self.codec!r}: {type(self).__name__} chooses tokens; those that move between "
                             "pages would be rounded again: use codec=None")
        if self.on_change is not None and not isinstance(self.on_change, Event):
            raise ValueError(f"on_change={self.on_change!r}: give an event, such as Flush(2), Cut() or Recommit()")
        if self.on_change is not None and self.compacts and self.on_change.rewrites:
            raise ValueError(f"on_change={self.on_change}: the tokens that {type(self).__name__} keeps belong to no "
                             "frame that could be committed again; use flush, cut or reset")

    def __str__(self) -> str:
        return brief(self)

    @property
    def sinks(self) -> int:
        """First frames of the history that are never evicted."""
        return 0

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

    # Choosing tokens

    @property
    def chooses(self) -> bool:
        """Whether the policy chooses tokens: whether it has a `routed` of its own."""
        return type(self).routed is not CachePolicy.routed

    @property
    def queries(self) -> int:
        """How many of the last committed frames a `Scene` has queries of."""
        return 0

    def routed(self, refs: Sequence[Ref], new: Pass) -> int | None:
        """How many frames' worth of tokens `route` chooses among the refs of role memory; None: all are seen."""
        return None

    def route(self, layer: int, scene: Scene) -> Tensor:
        """The memory tokens that this chunk's passes see in a layer: rising indices [B, routed * tokens] into
        `scene.k_BMhd`. Asked once at the chunk's first pass; a pure function of the scene."""
        raise NotImplementedError(f"{type(self).__name__}.routed promises a choice of tokens: write route")

    def compact(self, layer: int, scene: Scene, chosen: Tensor) -> Tensor:
        """With `compacts`: the memory tokens that survive a COMMIT of a routed chunk, packed into pages of as many
        memory frames as `keep` names. By default those that `route` has chosen."""
        return chosen


CACHE: Registry[CachePolicy] = Registry("cache", CachePolicy)


def view(policy: CachePolicy, held: Sequence[Ref], new: Pass) -> tuple[Ref, ...]:
    """The policy's choice for `new`, with `at` filled in. Raises `ValueError` for what are no refs to held frames."""
    past = [ref for ref in held if ref.frame < new.frames.start]
    frames, name = {ref.frame for ref in past}, type(policy).__name__
    selected = policy.select(past, new)
    if not isinstance(selected, Sequence) or not all(isinstance(ref, Ref) for ref in selected):
        raise ValueError(f"{name}.select gave {selected!r}; it gives a sequence of Ref, such as those of `held`")
    chosen = tuple(replace(ref, at=float(ref.frame)) if ref.at is None else ref for ref in selected)
    if strange := sorted({ref.frame for ref in chosen} - frames):
        raise ValueError(f"{name}.select chose frames {strange}, which are not held (held: {sorted(frames)})")
    for ref in chosen:
        if not (isinstance(ref.at, int | float) and isinstance(ref.bias, int | float) and ref.role in get_args(Role)
                and -math.inf < ref.at < new.frames.start and ref.bias < math.inf):  # fmt: skip
            raise ValueError(f"{name}.select gave {ref}: `at` is a slot before the chunk at {new.frames.start}, `bias` "
                             f"a number or -inf, and `role` one of {', '.join(get_args(Role))}")
    if len({(ref.frame, ref.at) for ref in chosen}) < len(chosen):
        raise ValueError(f"{name}.select gave a frame twice for one slot: {[(ref.frame, ref.at) for ref in chosen]}")
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
    routed = policy.routed(refs, new)
    if routed is not None and any(ref.bias for ref in refs if ref.role == "memory"):
        raise ValueError(f"{type(policy).__name__}.select gave a bias to a frame whose tokens are chosen one by one; "
                         "only frames seen whole have one")
    return Group(tuple(range(first_slot, first_slot + len(times))), times, refs, ref_times, routed)


def make_plan(policy: CachePolicy, time: TimeMap, held: Sequence[Ref], new: Pass) -> Plan:
    """The plan of a pass against a store: one group. Pure: the same arguments give the same plan."""
    return Plan((_group(policy, time, held, new, 0),), new.kind)


def whole_plan(policy: CachePolicy, time: TimeMap, chunks: Sequence[Chunk], noisy: int = 0) -> Plan:
    """The plan of a whole-sequence pass over [clean frames | noisy copy 1 | ... | noisy copy `noisy`].

    One COMMIT group for each clean chunk and one DENOISE group for each noisy one, with the views and times that a
    rollout over a store would have; refs point at the clean frames. With `noisy` 0 it is the block-causal pass, with
    one copy or more teacher forcing (Self Forcing, arXiv 2506.08009, section 3). Raises `ValueError` for chunks that do
    not start at frame 0 and follow one another (slots of the pass are frame numbers), and for a policy that chooses
    tokens.
    """
    if not chunks or chunks[0].start or any(a.end != b.start for a, b in pairwise(chunks)):
        raise ValueError(f"a whole plan needs chunks from frame 0 on, each starting where one ends; got {chunks}")
    total = chunks[-1].end
    groups: list[Group] = []
    held: tuple[Ref, ...] = ()
    for chunk in chunks:
        for copy in range(noisy + 1):
            new = Pass(Kind.DENOISE if copy else Kind.COMMIT, (chunk,))
            group = _group(policy, time, held, new, copy * total + chunk.start)
            if group.routed is not None:
                raise ValueError(f"{type(policy).__name__} chooses tokens by the queries of each pass, which one pass "
                                 "over the whole sequence cannot: train with another policy")
            groups.append(group)
        held = after_commit(policy, held, Pass(Kind.COMMIT, (chunk,)))
    return Plan(tuple(groups), inside=True)


def joint_plan(frames: int) -> Plan:
    """Every frame sees every frame, at times 0 .. frames - 1: the bidirectional model."""
    return Plan((Group(tuple(range(frames)), tuple(float(f) for f in range(frames))),), inside=True)


def recommit_plan(
    policy: CachePolicy, time: TimeMap, held: Sequence[Ref], chunks: Sequence[Chunk], mode: Mode
) -> Plan:
    """The plan of one pass over all held frames, slot i being `held[i]`, to commit them again as `Recommit` says.

    `chunks` are those that the frames were committed in, in order.
    """
    shown = [replace(ref, at=float(ref.frame), role="sink" if i < policy.sinks else "recent")
             for i, ref in enumerate(held)]  # fmt: skip
    if mode == "joint":
        following = Pass(Kind.COMMIT, (Chunk(chunks[-1].end, chunks[-1].n),), shot=held[-1].shot)
        times, _ = time.times(shown, following)
        return Plan((Group(tuple(range(len(held))), tuple(times)),), Kind.COMMIT, inside=True)
    slot, groups = {ref.frame: i for i, ref in enumerate(held)}, []
    for chunk in chunks:
        own = [frame for frame in range(chunk.start, chunk.end) if frame in slot]
        new = Pass(Kind.COMMIT, (chunk,), shot=held[slot[own[0]]].shot)
        refs = view(policy, held, new) if mode == "per_chunk" else [r for r in shown if r.frame < chunk.start]
        ref_times, times = time.times(refs, new)
        groups.append(Group(
            tuple(slot[frame] for frame in own), tuple(times[frame - chunk.start] for frame in own),
            tuple(replace(ref, frame=slot[ref.frame]) for ref in refs), tuple(ref_times),
        ))  # fmt: skip
    return Plan(tuple(groups), Kind.COMMIT, inside=True)


def after_commit(policy: CachePolicy, held: Sequence[Ref], new: Pass) -> tuple[Ref, ...]:
    """The frames held once the COMMIT `new` is done, sorted in time; those of role memory hold packed tokens."""
    packed = {ref.frame for ref in compacted(policy, held, new)}
    past = [ref for ref in held if ref.frame < new.frames.start]
    held = (*past, *(Ref(frame, shot=new.shot) for frame in new.frames))
    kept = policy.keep(held, new)
    if not isinstance(kept, Set) or not kept <= {ref.frame for ref in held}:
        raise ValueError(f"{type(policy).__name__}.keep gave {kept!r}; it gives a set of the frames that are held: "
                         f"{[ref.frame for ref in held]}")
    return tuple(replace(ref, role="memory") if ref.frame in packed else ref for ref in held if ref.frame in kept)


def compacted(policy: CachePolicy, held: Sequence[Ref], new: Pass) -> list[Ref]:
    """The refs whose tokens the COMMIT `new` packs into the pages of those that survive; empty for most."""
    refs = view(policy, held, new) if policy.compacts else ()
    return [ref for ref in refs if ref.role == "memory"] if policy.routed(refs, new) is not None else []


def reduced(policy: CachePolicy, held: Sequence[Ref], event: Event) -> tuple[Ref, ...]:
    """The frames held once an event has happened."""
    return tuple(ref for ref in held if ref.frame in event.survivors([ref.frame for ref in held], policy.sinks))
