"""A store beside a reference, chunk after chunk: what a policy's plans, its hooks and its declarations are held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from arvid.cache import CachePolicy, Chunk, Event, Kind, Pass, Plan, Ref, after_commit, make_plan
from arvid.positional import Absolute, TimeMap

from .engine import CLOSE, SHAPE, TIGHT, Engine, close, named, passes, require, same
from .reference import Reference


def plan_of(policy: CachePolicy, time: TimeMap, held: Sequence[Ref], new: Pass) -> Plan:
    """The plan of a pass, once it is proved to be one."""
    given = list(held)
    policy.select(given, new)
    require(given == list(held), "select leaves `held` as it is", new, f"it is now {given}, expected {list(held)}")
    try:
        plan, again = (make_plan(policy, time, held, new) for _ in range(2))
    except ValueError as error:
        raise AssertionError(f"a plan sees held frames only: not so at {named(new)}: {error}") from error
    (group,) = plan.groups
    shots = {ref.frame: ref.shot for ref in held}
    wrong = [ref for ref in group.refs if ref.shot != shots[ref.frame] or not ref.bias < np.inf]
    require(not wrong, "a ref has the shot of its frame, and a bias", new, f"{wrong}, frames and their shots {shots}")
    require(plan == again and hash(plan) == hash(again), "a plan is pure", new, f"first {plan}, then {again}")
    memory = sum(ref.role == "memory" for ref in group.refs)
    require(group.routed is None or 0 <= group.routed <= memory, "routed chooses among the refs of role memory", new,
            f"{group.routed} frames' worth of {memory}")  # fmt: skip
    return plan


def kept_of(policy: CachePolicy, time: TimeMap, held: Sequence[Ref], new: Pass) -> tuple[Ref, ...]:
    """What is held after a COMMIT, once `keep` is proved to be pure."""
    now = [*held, *(Ref(frame, shot=new.shot) for frame in new.frames)]
    if type(policy).keep is CachePolicy.keep:  # which asks for the plans of the next chunk
        last = new.chunks[-1]
        for kind in Kind:
            plan_of(policy, time, now, replace(new, kind=kind, chunks=(Chunk(last.end, last.n, index=last.index + 1),)))
    given = list(now)
    kept = policy.keep(given, new)
    require(given == now, "keep leaves `held` as it is", new, f"it is now {given}, expected {now}")
    again = policy.keep(list(now), new)
    require(kept == again, "keep is pure", new, f"first {kept}, then {again}")
    return after_commit(policy, held, new)


class Rollout:
    """A store beside the reference, chunk after chunk; `pages` as the policy's capacity says (0: none is promised),
    `room` the frames of the largest chunk."""

    def __init__(self, policy: CachePolicy, time: TimeMap, seed: int, room: int, pages: int = 0) -> None:
        self.policy, self.time, self.room, self.pages = policy, time, room, pages
        self.reference = Reference(policy, seed)
        self.engines = [Engine(policy, time, seed, pages=pages)]
        if may_rotate(policy) and time == Absolute():
            self.engines.append(Engine(policy, time, seed, rotated=True, pages=pages))
        self.shot, self.bytes, self.whole = 0, {}, True
        self.sinks: dict[tuple[int, int], Tensor] = {}  # promised, as they were committed
        self.unseen: tuple[Pass, str] | None = None  # a DENOISE that was not shown all sinks
        self.rolled = False  # sinks were shown in other slots than theirs

    def run(self, chunks: Sequence[Chunk], joint: bool = False, events: Mapping[int, Event] | None = None) -> None:
        """Chunks in turn; `events` happen before chunks. `joint` also denoises each with the next one, and leaves every
        fourth chunk to its COMMIT."""
        for chunk, following in zip(chunks, [*chunks[1:], None], strict=True):
            if event := (events or {}).get(chunk.index):
                self._happen(event)
            if joint and following and fits(self.policy, chunk.n + following.n):
                self._denoise(Pass(Kind.DENOISE, (replace(chunk, sigma=0.5), replace(following, sigma=1.0))))
            *levels, last = passes(chunk, shot=self.shot)
            for new in levels if not joint or chunk.index % 4 != 3 else ():
                self._denoise(new)
            self._commit(last)
        if self.unseen and not self.rolled:
            require(False, "every DENOISE sees the sinks", *self.unseen)

    def _denoise(self, new: Pass) -> None:
        self._step(new)
        sinks = sorted({frame for frame, _ in self.sinks})
        seen = {ref.frame for ref in self.plan.groups[0].refs}
        if missing := [frame for frame in sinks if frame not in seen]:
            self.unseen = self.unseen or (new, f"{missing} of {sinks} are missing among {sorted(seen)}")
        if self.pages and new.frames.start >= self.pages:
            shape, bytes_now = self.plan.shape_key, self.engines[0].store.live_bytes
            expected = self.bytes.setdefault(shape, bytes_now)
            require(bytes_now == expected, "memory is bounded by `capacity`", new, f"{bytes_now} bytes for passes of "
                    f"{shape}, once {expected}")  # fmt: skip

    def _commit(self, new: Pass) -> None:
        sources, pages = dict(self.reference.sources), self.engines[0].contents()
        after = kept_of(self.policy, self.time, self.reference.held, new)
        self._step(new)
        now, held = self.engines[0].contents(), self.engines[0].store.held()
        require(held == after, "the store holds what `keep` says", new, f"{held}, expected {after}")
        stay = {key: page for key, page in pages.items() if key in now
                and self.reference.sources[key[1], key[0]] is sources[key[1], key[0]]}  # fmt: skip
        same("what is stored of a frame stays while it is held", new, {key: now[key] for key in stay}, stay)
        for (frame, layer), page in now.items():
            expected = np.stack(self.reference.page(frame, layer))
            close("a page holds what was committed, coded once", new, page, expected, TIGHT)
            if frame in new.frames:
                self._is_coded_well(new, frame, layer, page)
        self._keep_sinks(new, now)

    def _step(self, new: Pass) -> None:
        self.plan = plan_of(self.policy, self.time, self.reference.held, new)
        self._declared(new)
        evicting_nothing = self.reference.output(new, self.plan)
        claims = [("the store gives what a history that evicts nothing gives", evicting_nothing, CLOSE)]
        if self.policy.fits_like_full and self._has_room(new):
            claim, past = "fits_like_full: what fits the window is seen as Full sees it", list(range(new.frames.start))
            seen = sorted(ref.frame for ref in self.plan.groups[0].refs)
            require(seen == past, claim, new, f"frames {seen}, expected {past}")
            if self.time == Absolute():
                claims.append((claim, self.reference.like_full(new), TIGHT))
        if new.kind is Kind.COMMIT:
            self.reference.commit(new, self.plan)
        raw, *rotated = (engine.run(new) for engine in self.engines)
        claims += [("static: keys stored rotated give the same", out.numpy(), CLOSE) for out in rotated]
        for claim, expected, to in claims:
            close(claim, new, raw, expected, to)
        for engine in self.engines if self.pages else ():
            pages = engine.store.pages()
            require(pages == self.pages, "memory is bounded by `capacity`", new, f"{pages} pages, of {self.pages}")

    def _has_room(self, new: Pass) -> bool:
        """Whether all frames so far, and room for the largest chunk, are within the window."""
        return self.whole and new.frames.start + max(self.room, len(new.frames)) <= (window_of(self.policy) or np.inf)

    def _declared(self, new: Pass) -> None:
        (group,) = self.plan.groups
        moved = [(ref.frame, ref.at) for ref in group.refs if ref.at != ref.frame]
        require(not (self.policy.static and moved), "static: refs keep their own slots", new, f"(frame, at) {moved}")
        self.rolled |= any((frame, 0) in self.sinks for frame, _ in moved)
        window, total = window_of(self.policy), group.visible + len(new.frames)
        require(window is None or total <= window, "no more than `window` frames are seen", new, f"{group.visible} + "
                f"{len(new.frames)} in flight, expected at most {window}")  # fmt: skip

    def _keep_sinks(self, new: Pass, now: dict[tuple[int, int], Tensor]) -> None:
        held, sinks = sorted({frame for frame, _ in now}), {frame for frame, _ in self.sinks}
        first = list(new.frames)[: max(0, self.policy.sinks - len(sinks))]
        lost = sorted({*sinks, *first} - {*held})
        require(not lost, "no commit evicts one of the `sinks` first frames", new, f"{lost} are gone, held: {held}")
        same("what is stored of a sink stays", new, {key: now[key] for key in self.sinks}, self.sinks)
        self.sinks |= {(frame, layer): now[frame, layer] for frame in first for layer in range(SHAPE.layers)}

    def _is_coded_well(self, new: Pass, frame: int, layer: int, page: Tensor) -> None:
        codec = self.reference.codecs[frame]
        for half, name in enumerate(("keys", "values")):
            exact = torch.from_numpy(self.reference.exact[layer][half][:, frame])
            over = ((page[half] - exact).abs() - 1.0001 * half_a_step(codec, exact, (1, 3)[half])).max().item()
            require(over < TIGHT, f"{codec} is as exact as it promises", new,
                    f"{name} of frame {frame} in layer {layer} are off by half a step and {over:.2g}")  # fmt: skip

    def _happen(self, event: Event) -> None:
        self.reference.happen(event)
        for engine in self.engines:
            engine.store.happen(event)
        held = {ref.frame for ref in self.reference.held}
        self.sinks = {key: page for key, page in self.sinks.items() if key[0] in held}
        self.shot, self.whole = self.shot + event.new_shot, False


def half_a_step(codec: str | None, x_BNhd: Tensor, shared: int) -> Tensor:
    """How far a codec may move numbers; int8 has a scale that dimension `shared` shares."""
    size = x_BNhd.abs()
    if codec == "int8":
        return size.amax(shared, keepdim=True) / 127 / 2
    if codec == "fp8":
        return torch.maximum(2.0**-4 * size, 2.0**-10 * size.amax((1, 3), keepdim=True) / 448)
    return 2.0**-8 * size if codec else 0 * size


def may_rotate(policy: CachePolicy) -> bool:
    """Whether a store may keep this policy's keys rotated."""
    return policy.static and policy.codec is None and not policy.chooses


def fits(policy: CachePolicy, in_flight: int) -> bool:
    """Whether passes of so many frames are allowed."""
    try:
        policy.check(in_flight)
    except ValueError:
        return False
    return True


def window_of(policy: CachePolicy) -> int | None:
    """The policy's field of that name."""
    window = getattr(policy, "window", None)
    return window if isinstance(window, int) else None
