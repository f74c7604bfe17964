"""Policies, plans and the store: what is seen, what survives, and what no pass may change."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from dense import SPEC, KeyedNoise, cached, layout, randn, tiny_dit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from arvid.cache import (
    CACHE,
    CachePolicy,
    Chunk,
    Full,
    Kind,
    Participative,
    Pass,
    Plan,
    Ref,
    Rolling,
    Sink,
    Window,
    make_plan,
    view,
    whole_plan,
)
from arvid.cache.store import Store, StoreShape
from arvid.models.attention import attend
from arvid.positional import Absolute, Relative, SinkAdjacent, TimeMap
from arvid.positional.rotation import rotate
from arvid.samplers import FewStep

SHAPE = StoreShape(layers=2, batch=2, grid=(1, 2), heads=1, axes=(4, 2, 2))
FREQ = np.array([1.0, 0.1])
DENOISE, COMMIT = Kind.DENOISE, Kind.COMMIT


@dataclass(frozen=True)
class Case:
    policy: Window | Sink
    chunk: int
    frames: int

    @property
    def sink(self) -> int:
        return (self.policy.sink or 0) if isinstance(self.policy, Sink) else 0

    def sinks(self, kind: Kind) -> int:
        """The sinks that a pass of this kind is shown."""
        hidden = kind is COMMIT and isinstance(self.policy, Sink) and not self.policy.sink_on_commit
        return 0 if hidden else self.sink

    @property
    def window(self) -> int:
        assert self.policy.window is not None
        return self.policy.window

    @property
    def chunks(self) -> list[Chunk]:
        return layout(self.frames, self.chunk)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    chunk, sink = draw(st.integers(1, 4)), draw(st.integers(0, 5))
    window = sink + chunk + draw(st.integers(0, 8))
    policies = [Sink(window, sink), Sink(window, sink, sink_on_commit=False), Window(window)]
    return Case(draw(st.sampled_from(policies)), chunk, draw(st.integers(1, 30)))


def drawn(new: Pass, layer: int) -> list[Tensor]:
    """q, k, v of a pass: a function of its first frame and the layer."""
    seed = hash((new.frames.start, layer)) % 2**31
    return [randn(2, len(new.frames) * 2, 1, 8, seed=seed + i) for i in range(3)]


def run(store: Store, kind: Kind, chunk: Chunk, time: TimeMap | None = None) -> Tensor:
    """A whole pass: the attention output of every layer."""
    new = Pass(kind, (chunk,))
    plan = make_plan(store.policy, time or Absolute(), store.before(new), new)
    store.begin(new, plan, FREQ)
    out = []
    for layer in range(SHAPE.layers):
        q, k, v = drawn(new, layer)
        out.append(attend(rotate(q, store.phase), [store.exchange(layer, k, v)], store.bias))
    if kind is COMMIT:
        store.end()
    return torch.stack(out)


def held(store: Store) -> list[int]:
    return [ref.frame for ref in store.held()]


def contents(store: Store) -> dict[tuple[int, int, str], bytes]:
    return {
        (frame, layer, name): part.contiguous().numpy().tobytes()
        for frame in held(store)
        for layer in range(SHAPE.layers)
        for name, part in zip("kv", store.page(frame, layer), strict=True)
    }


def seen(plan: Plan) -> list[int]:
    return sorted(ref.frame for ref in plan.groups[0].refs)


def plans(policy: CachePolicy, chunks: Sequence[Chunk]) -> list[tuple[Chunk, Plan, Plan]]:
    """The DENOISE and COMMIT plan of every chunk of a rollout."""
    store, found = Store(SHAPE, policy, rotated=False, dtype=torch.float64), []
    for chunk in chunks:
        pair = [make_plan(policy, Absolute(), store.held(), Pass(kind, (chunk,))) for kind in (DENOISE, COMMIT)]
        found.append((chunk, *pair))
        run(store, COMMIT, chunk)
    return found


@settings(max_examples=15)
@given(cases())
def test_plans(case: Case) -> None:
    for (chunk, *pair), again in zip(plans(case.policy, case.chunks), plans(case.policy, case.chunks), strict=True):
        assert again == (chunk, *pair)
        assert [hash(plan) for plan in again[1:]] == [hash(plan) for plan in pair]
        for plan in pair:
            frames = seen(plan)
            assert len(set(frames)) == len(frames)
            assert all(frame < chunk.start for frame in frames)
            assert len(frames) + chunk.n <= case.window
            assert plan.groups[0].times == tuple(range(chunk.start, chunk.end))
            sinks = case.sinks(plan.kind)
            refs = plan.groups[0].refs
            sink, recent = ([ref.frame for ref in refs if ref.role == role] for role in ("sink", "recent"))
            assert sink == list(range(min(sinks, chunk.start)))
            assert recent == list(range(chunk.start - len(recent), chunk.start))
            if chunk.n == case.chunk:
                assert len(recent) == min(max(0, chunk.start - sinks), case.window - sinks - chunk.n)


def test_listing_of_window_12_sink_3() -> None:
    visible = {c.index: sorted({*seen(p), *range(c.start, c.end)}) for c, p, _ in plans(Sink(12, 3), layout(21, 3))}
    assert visible[3] == [*range(12)]
    assert visible[4] == [*range(3), *range(6, 15)]
    assert visible[5] == [*range(3), *range(9, 18)]
    assert visible[6] == [*range(3), *range(12, 21)]


def test_a_window_that_is_no_multiple_of_the_chunk() -> None:
    assert [seen(p) for _, p, _ in plans(Window(7), layout(12, 3))] == [[], [0, 1, 2], [2, 3, 4, 5], [5, 6, 7, 8]]


def test_a_commit_without_sinks_sees_recent_frames_only() -> None:
    """Also where the last chunk is shorter and more would fit: a sink is never taken for a recent frame."""
    policy = Sink(6, 2, sink_on_commit=False)
    (*_, before, last) = plans(policy, layout(11, 3))
    assert (seen(before[1]), seen(before[2])) == ([0, 1, 5], [3, 4, 5])
    assert (seen(last[1]), seen(last[2])) == ([0, 1, 7, 8], [6, 7, 8])


def test_a_joint_window_counts_every_frame_in_flight() -> None:
    """Rolling Forcing: 15 frames in flight at DENOISE, 3 at COMMIT, window 21."""
    policy = Sink(21, 3, sink_on_commit=False)
    past = [Ref(frame) for frame in range(30)]
    five = tuple(Chunk(30 + 3 * i, 3, 0.2 * i) for i in range(5))
    assert [ref.frame for ref in view(policy, past, Pass(DENOISE, five))] == [0, 1, 2, 27, 28, 29]
    assert [ref.frame for ref in view(policy, past, Pass(COMMIT, five[:1]))] == [*range(12, 30)]
    assert policy.capacity(3, 15) == 3 + 18 + 15


def test_live_bytes_of_a_long_window_stay_what_they_were() -> None:
    for rotated in (True, False):
        store, sizes = Store(SHAPE, Window(6), rotated=rotated, pages=6), []
        for chunk in layout(24, 2):
            run_float32(store, chunk)
            sizes.append(store.live_bytes)
        frame = 2 * 2 * 2 * 8 * 4  # layers, batch, tokens, channels, bytes
        assert set(sizes[3:]) == {6 * frame * (2 if rotated else 3)}


@pytest.mark.parametrize("rotated", [True, False])
def test_a_full_window_is_seen_without_a_copy(rotated: bool) -> None:
    store = Store(SHAPE, Sink(6, 2), rotated=rotated, pages=6)
    for chunk in layout(24, 2):
        run_float32(store, chunk)
    before = [x.clone() for x in store.page(0, 0)]
    new = Pass(DENOISE, (Chunk(24, 2),))
    store.begin(new, make_plan(store.policy, Absolute(), store.before(new), new), FREQ)
    seen = [store.exchange(0, *(x.float() for x in drawn(new, 0)[1:])) for _ in range(2)]
    for first, again in zip(*seen, strict=True):
        assert first.data_ptr() == again.data_ptr()
    (keys, values), pages = seen[0], store.page(0, 0)
    assert pages[1].data_ptr() == values.data_ptr()  # the first sink is the first page
    assert (pages[0].data_ptr() == keys.data_ptr()) == rotated
    assert all(torch.equal(a, b) for a, b in zip(before, pages, strict=True))


def run_float32(store: Store, chunk: Chunk) -> None:
    for kind in (DENOISE, COMMIT):
        new = Pass(kind, (chunk,))
        store.begin(new, make_plan(store.policy, Absolute(), store.before(new), new), FREQ)
        for layer in range(SHAPE.layers):
            store.exchange(layer, *(x.float() for x in drawn(new, layer)[1:]))
    store.end()


def test_a_store_that_grows_keeps_what_it_holds() -> None:
    small, large = (Store(SHAPE, Full(), rotated=False, pages=pages, dtype=torch.float64) for pages in (0, 20))
    for chunk in layout(20, 3):
        for kind in (DENOISE, COMMIT):
            assert torch.equal(run(small, kind, chunk), run(large, kind, chunk))
        assert contents(small) == contents(large)
    assert held(small) == list(range(20))
    assert (small.pages(), large.pages(), small.pages(lane=3)) == (small.pages(), 20, 0)
    small.reset()
    assert (held(small), small.live_bytes, small.pages()) == ([], 0, 0)


@pytest.mark.parametrize("policy", [Window(5), Sink(5, 1), Full()], ids=str)
def test_passes_out_of_order_are_refused(policy: CachePolicy) -> None:
    chunks = layout(12, 2)
    store = Store(SHAPE, policy, rotated=False, dtype=torch.float64)
    for chunk in chunks[:3]:
        run(store, COMMIT, chunk)
    before = contents(store)
    refused = [(COMMIT, chunks[0]), (COMMIT, Chunk(5, 2)), (COMMIT, Chunk(4, 1)), (DENOISE, chunks[2])]
    for kind, chunk in refused:
        with pytest.raises(ValueError, match="frames up to 5 are committed"):
            run(store, kind, chunk)
    assert contents(store) == before
    run(store, COMMIT, chunks[2])  # refusals do not spoil the repeated commit,
    run(store, DENOISE, chunks[3])
    with pytest.raises(ValueError, match="frames up to 5 are committed"):
        run(store, COMMIT, chunks[2])  # but another pass does


@dataclass(frozen=True)
class First(CachePolicy):
    """The first frame alone."""

    def select(self, held: Sequence[Ref], new: Pass) -> Sequence[Ref]:
        return held[:1]


def test_evicted_frames_are_still_committed_ones() -> None:
    store = Store(SHAPE, First(), rotated=False, dtype=torch.float64)
    for chunk in layout(6, 2):
        run(store, COMMIT, chunk)
    assert held(store) == [0]
    run(store, DENOISE, Chunk(6, 2))
    with pytest.raises(ValueError, match="frames up to 5 are committed"):
        run(store, COMMIT, Chunk(4, 2))


@dataclass(frozen=True)
class Stray(CachePolicy):
    """Chooses a frame of the future."""

    def select(self, held: Sequence[Ref], new: Pass) -> Sequence[Ref]:
        return [Ref(new.frames.start)]


def test_a_policy_that_chooses_what_is_not_held_is_named() -> None:
    with pytest.raises(ValueError, match=r"Stray.select chose frames \[4\], which are not held \(held: \[0, 1\]\)"):
        view(Stray(), [Ref(0), Ref(1), Ref(4)], Pass(DENOISE, (Chunk(4, 2),)))


def test_a_time_map_that_forgets_frames_is_named() -> None:
    class Short(TimeMap):
        def times(self, refs: Sequence[Ref], new: Pass) -> tuple[tuple[float, ...], tuple[float, ...]]:
            return (), (0.0,)

    with pytest.raises(ValueError, match=r"Short.times gave 0 times for 2 refs and 1 for 2 frames"):
        make_plan(Full(), Short(), [Ref(0), Ref(1)], Pass(DENOISE, (Chunk(2, 2),)))


def test_a_time_map_that_moves_frames_needs_raw_keys() -> None:
    class Ranked(TimeMap):
        def times(self, refs: Sequence[Ref], new: Pass) -> tuple[tuple[float, ...], tuple[float, ...]]:
            n = len(refs)
            return tuple(map(float, range(n))), tuple(float(n + i) for i in range(len(new.frames)))

    raw, plain, stiff = (Store(SHAPE, Window(4), rotated=r, dtype=torch.float64) for r in (False, False, True))
    for chunk in layout(12, 2):
        # a window without sinks at ranks is the same window at its own times, moved
        assert (run(raw, DENOISE, chunk, time=Ranked()) - run(plain, DENOISE, chunk)).abs().max() < 1e-12
        run(raw, COMMIT, chunk, time=Ranked())
        run(plain, COMMIT, chunk)
    run(stiff, COMMIT, Chunk(0, 2), time=Ranked())
    run(stiff, COMMIT, Chunk(2, 2), time=Ranked())
    with pytest.raises(ValueError, match=r"frame 2 was committed at time 2 and is now seen at 0"):
        run(stiff, DENOISE, Chunk(4, 2), time=Ranked())


def test_misuse_of_the_store_is_named() -> None:
    store = Store(SHAPE, Window(4), rotated=False, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"call begin\(\) first"):
        store.end()
    run(store, DENOISE, Chunk(0, 2))
    with pytest.raises(ValueError, match="DENOISE has nothing to finish"):
        store.end()
    with pytest.raises(ValueError, match=r"run whole-sequence plans with PlannedAttention"):
        store.begin(Pass(DENOISE, (Chunk(0, 2),)), whole_plan(Window(4), Absolute(), layout(2, 2)), FREQ)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: Window(0), "window=0"),
        (lambda: Window(-3), "window=-3"),
        (lambda: Sink(6, -1), "sink=-1"),
        (lambda: Sink(4, 4), r"sink=4 \+ 1 frames in flight do not fit window=4.*window >= 5 or sink <= 3"),
        (lambda: Sink(6, 4).check(3), r"sink=4 \+ 3 frames.*window >= 7 or sink <= 3"),
        (lambda: Window(2).check(3), r"do not fit window=2: use window >= 3$"),
        (lambda: plans(Sink(6, 4), layout(9, 3)), "do not fit"),
        (lambda: plans(Window(), layout(2, 2)), "Window.window is None.*give it a number"),
        (lambda: plans(Sink(6), layout(2, 2)), "Sink.sink is None.*give it a number"),
        (lambda: Chunk(-1, 2), "start=-1"),
        (lambda: Chunk(0, 0), "n=0"),
        (lambda: Pass(DENOISE, ()), "a pass needs chunks"),
        (lambda: Pass(DENOISE, (Chunk(0, 2), Chunk(3, 2))), "a pass needs chunks"),
        (lambda: whole_plan(Full(), Absolute(), [Chunk(1, 2)]), "from frame 0 on"),
        (lambda: whole_plan(Full(), Absolute(), [Chunk(0, 2), Chunk(3, 2)]), "from frame 0 on"),
        (lambda: whole_plan(Full(), Absolute(), []), "from frame 0 on"),
    ],
)
def test_bad_values_raise(build, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build()


def test_policies_round_trip_through_the_registry() -> None:
    for policy in (Full(), Window(9), Sink(12, 3), Sink(12, 3, sink_on_commit=False), Window(), Sink()):
        assert CACHE.build(CACHE.spec(policy)) == policy
        assert dataclasses.replace(policy) == policy


class Ops(TorchDispatchMode):
    """Counts the operations that reach the backend."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rotated", [True, False])
def test_a_pass_never_waits_for_the_device_and_work_does_not_grow(rotated: bool) -> None:
    dit, policy, text = tiny_dit(), Sink(8, 2), randn(1, 5, SPEC.text_dim)
    denoiser = cached(dit, text, policy, rotated=rotated, pages=8)
    store, x = denoiser.store, randn(1, 2, SPEC.in_channels, 4, 6)
    level = torch.full((1, 2), 500.0)
    for chunk in layout(8, 2):
        for kind in (DENOISE, DENOISE, COMMIT):
            new = Pass(kind, (chunk,))
            plan = make_plan(policy, Absolute(), store.before(new), new)
            store.begin(new, plan, denoiser._inv_freq(denoiser._context(new)))
            with Ops() as ops:
                dit(x, level, denoiser._prompts[0][1], denoiser._mixer)
            waits = {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "unique", "masked_select"}
            assert not waits & set(ops.seen)
            if kind is COMMIT:
                store.end()
    sampler, chunks, counts = FewStep((1000, 500), 5.0, 0), layout(28, 2), []
    rollout = sampler.rollout(cached(dit, text, policy, rotated=rotated, pages=8), KeyedNoise(), chunks)
    for _ in chunks:
        with Ops() as ops:
            next(rollout)
        counts.append(ops.seen.total())
    assert max(counts[4:]) < 1.02 * min(counts[4:])  # an index where another chunk has a slice: an operation more


FLAT = {
    "rotated": (Sink(12, 2), None),
    "raw": (Sink(12, 2), Relative()),
    "rolling": (Rolling(12, chunk=2), None),
    "int8": (Sink(12, 2, codec="int8"), None),
    "participative": (Participative(12, 2, 4, 10), SinkAdjacent()),
}


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize("late", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_chunk_2000_costs_what_chunk_100_does(name: str, late: int) -> None:
    """The same operations and bytes, summed over 20 chunks, in which every view comes round again."""
    policy, time = FLAT[name]
    spec = dataclasses.replace(SPEC, num_blocks=1, dim=24, num_heads=1, ffn_dim=8)
    dit, ops, held = tiny_dit(spec), {}, {}
    denoiser = cached(dit, randn(1, 5, SPEC.text_dim), policy, time=time, pages=policy.capacity(2, 2) or 0)
    x = randn(1, 2, SPEC.in_channels, 4, 6)
    for index in range(late + 20):
        chunk = Chunk(2 * index, 2, 0.5, index)
        with Ops() if 100 <= index < 120 or index >= late else contextlib.nullcontext() as counter:
            denoiser(x, (chunk,))
            denoiser.commit(x, (chunk,))
        if counter:
            start = 100 if index < late else late
            ops.setdefault(start, Counter()).update(counter.seen)
            held.setdefault(start, Counter())[denoiser.store.live_bytes] += 1
    assert ops[100] == ops[late]
    assert held[100] == held[late]
    assert denoiser.store.pages() == policy.capacity(2, 2)


@pytest.mark.parametrize("value", ["9", 9.5, True, float("nan")])
def test_a_window_is_a_whole_number(value):
    for build in (Window, lambda n: Sink(window=12, sink=n)):
        with pytest.raises(ValueError, match="give a whole number of latent frames"):
            build(value)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_times_are_finite(wrong):
    class Wrong(TimeMap):
        def times(self, refs, new):
            return (0.0,) * len(refs), (wrong,) * len(new.frames)

    with pytest.raises(ValueError, match="times must be finite"):
        make_plan(Full(), Wrong(), (), Pass(Kind.DENOISE, (Chunk(0, 3),)))
