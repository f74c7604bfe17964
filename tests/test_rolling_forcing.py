"""The joint window of Rolling Forcing: its schedule, what its passes see, and what it equals."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from dense import SIZE, SPEC, Explicit, KeyedNoise, View, cached, layout, randn
from orders import LAYOUTS, Isolated, assert_it_continues, network, run, same, small_dit
from torch import Tensor

from arvid.cache import CachePolicy, Chunk, Event, Flush, Full, Sink, Window
from arvid.config import PipelineConfig
from arvid.models.specs import card
from arvid.positional import SinkAdjacent
from arvid.presets import preset
from arvid.samplers import FewStep, RollingForcing, warp
from arvid.simulate import views
from arvid.testing import trace

STEPS = (1000, 800, 600, 400, 200)
ROLLING = RollingForcing(STEPS[:3], shift=5.0, context_noise=0)


def windows(sampler: RollingForcing, chunks: Sequence[Chunk]) -> list[list[tuple[int, int]]]:
    """(chunk, level) of every joint pass."""
    sigmas, _ = sampler.levels()
    return [[(chunk.index, sigmas.index(chunk.sigma)) for chunk in flying]
            for kind, flying, _ in trace(sampler, chunks) if kind == "denoise"]  # fmt: skip


def test_four_chunks_and_three_levels() -> None:
    """The schedule of arXiv 2509.25161, with its ends: every chunk passes every level."""
    assert windows(ROLLING, layout(12, 3)) == [
        [(0, 0)], [(0, 1), (1, 0)], [(0, 2), (1, 1), (2, 0)], [(1, 2), (2, 1), (3, 0)], [(2, 2), (3, 1)], [(3, 2)]
    ]  # fmt: skip


@pytest.mark.parametrize("chunks", [1, 2, 3, 7])
@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("given", [0, 2])
def test_every_chunk_takes_every_level_once(chunks: int, levels: int, given: int) -> None:
    sampler, generated = replace(ROLLING, steps=STEPS[:levels]), layout(3 * (given + chunks) - 1, 3)[given:]
    passes = windows(sampler, generated)
    assert passes == [[(given + b, w - b) for b in range(max(0, w - levels + 1), min(chunks - 1, w) + 1)]
                      for w in range(chunks + levels - 1)]  # fmt: skip
    events = [(kind, [c.index for c in flying], flying[0].sigma) for kind, flying, _ in trace(sampler, generated)]
    last = [i for i, event in enumerate(events) if event[0] == "emit"]
    for b, at in enumerate(last):  # right behind its last level, and its commit
        assert events[at] == ("emit", [given + b], 0)
        assert events[at - 1] == ("commit", [given + b], 0)
        assert events[at - 2][:2] == ("denoise", list(range(given + b, given + min(chunks, b + levels))))
    assert len(events) == len(passes) + 2 * chunks
    widest = max(sum(c.n for c in flying) for _, flying, _ in trace(sampler, generated))
    assert widest <= sampler.in_flight(3)
    assert widest == sampler.in_flight(3) or chunks <= levels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_one_level_is_few_step(dtype: torch.dtype, name: str) -> None:
    fields = {"steps": (1000,), "shift": 5.0, "context_noise": 100, "context_renoise": True}
    runs = [run(kind(**fields), LAYOUTS[name], network(Window(4), dtype), dtype) for kind in (RollingForcing, FewStep)]
    assert same(*runs)


@pytest.mark.parametrize("levels", [1, 2, 3, 5])
@pytest.mark.parametrize("name", LAYOUTS)
def test_chunks_that_do_not_see_each_other_are_those_of_few_step(levels: int, name: str) -> None:
    """The same numbers of noise, at the same levels, whatever is in flight beside a chunk."""
    fields = {"steps": STEPS[:levels], "shift": 5.0, "context_noise": 0}
    assert same(*(run(kind(**fields), LAYOUTS[name], Isolated()) for kind in (RollingForcing, FewStep)))


def dense_rollout(chunks: Sequence[Chunk], given: int, steps: Sequence[float]) -> Tensor:
    """Without a store or a sampler: each pass is one dense forward over [all clean frames | the window], in float64."""
    dit, text, noise, sigmas = small_dit(), randn(1, 5, SPEC.text_dim), KeyedNoise(), warp(steps, 5.0)
    clean = [noise.context(chunk) for chunk in chunks[:given]]
    views: list[View] = []

    def forward(x: Tensor, levels: list[float], views: list[View]) -> Tensor:
        past = sum(part.shape[1] for part in clean)
        full = torch.cat((*clean, x), 1)
        sigma = torch.tensor([0.0] * past + levels, dtype=torch.float64)
        velocity = dit(full, 1000 * sigma[None], text, Explicit(views, dit.grid(SIZE), SPEC.axes))
        return (full - sigma[:, None, None, None] * velocity)[:, past:]

    def seen_from(start: int, stop: int) -> list[View]:
        keys = [(frame, float(frame), 0.0) for frame in range(stop)]
        return [(float(frame), keys) for frame in range(start, stop)]

    for chunk in chunks[:given]:
        views += seen_from(chunk.start, chunk.end)
    state: dict[int, Tensor] = {}
    for window in range(given, len(chunks) + len(steps) - 1):
        now = range(max(given, window - len(steps) + 1), min(len(chunks) - 1, window) + 1)
        state |= {b: noise.initial(chunks[b]) for b in now if b == window}
        levels = [sigmas[window - b] for b in now for _ in range(chunks[b].n)]
        own = seen_from(chunks[now[0]].start, chunks[now[-1]].end)
        x0 = forward(torch.cat([state[b] for b in now], 1), levels, [*views, *own])
        for b, part in zip(now, x0.split([chunks[b].n for b in now], 1), strict=True):
            if window - b == len(steps) - 1:
                clean.append(part)
                views += seen_from(chunks[b].start, chunks[b].end)
            else:
                on = sigmas[window - b + 1]
                state[b] = (1 - on) * part + on * noise.renoise(chunks[b], window - b)
    return torch.cat(clean[given:], 1)


@pytest.mark.parametrize(("frames", "levels", "given"), [(2, 3, 0), (5, 3, 0), (8, 2, 0), (4, 3, 1), (7, 2, 2)])
def test_it_equals_dense_forwards(frames: int, levels: int, given: int) -> None:
    """Few chunks and many, a shorter last one, and chunks that were given and committed before."""
    chunks, noise = layout(frames, 2), KeyedNoise()
    denoiser = network(Full(), torch.float64)
    for chunk in chunks[:given]:
        denoiser.commit(noise.context(chunk), (chunk,))
    emits = run(replace(ROLLING, steps=STEPS[:levels]), chunks[given:], denoiser, torch.float64)
    found = torch.cat([emit.x0 for emit in emits], 1)
    assert (found - dense_rollout(chunks, given, STEPS[:levels])).abs().max() < 1e-9


@pytest.mark.parametrize("policy", [Full(), Sink(8, 1, sink_on_commit=False)], ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_rollout_continues_after_any_chunk(policy: CachePolicy, name: str) -> None:
    sampler = replace(ROLLING, context_noise=100, context_renoise=True)
    assert_it_continues(sampler, LAYOUTS[name], lambda: network(policy))


def test_a_state_outlives_what_goes_on() -> None:
    """What is handed out is never written to, and is no part of a larger tensor that it would keep alive."""
    emits, kept = [], []
    for emit in ROLLING.rollout(network(), KeyedNoise(dtype=torch.float32), layout(8, 2)):
        tensors = [emit.x0, *emit.state[1]]
        emits.append(tensors)
        kept.append([x.clone() for x in tensors])
        assert all(x.untyped_storage().nbytes() == x.nbytes for x in tensors)
    assert all(torch.equal(a, b) for now, then in zip(emits, kept, strict=True) for a, b in zip(now, then, strict=True))


def test_memory_does_not_grow() -> None:
    policy = Sink(8, 1, sink_on_commit=False)
    capacity = policy.capacity(2, ROLLING.in_flight(2))
    assert capacity
    denoiser = cached(small_dit(), randn(1, 5, SPEC.text_dim), policy, time=SinkAdjacent(), pages=capacity)
    for emit in ROLLING.rollout(denoiser, KeyedNoise(), layout(24, 2)):
        assert denoiser.store.pages() == capacity
        assert len(emit.state[1]) <= 2


def test_a_window_that_the_cache_cannot_hold_raises_at_build() -> None:
    cache = {"name": "sink", "window": 9, "sink": 1}
    assert PipelineConfig(sampler=ROLLING, cache=cache, chunk=2).sampler == ROLLING
    with pytest.raises(ValueError, match=r"do not fit each other: sink=1 \+ 9 frames in flight .* window >= 10"):
        PipelineConfig(sampler=ROLLING, cache=cache, chunk=3)
    with pytest.raises(ValueError, match="steps is None, which means the card's"):
        RollingForcing().in_flight(3)


def ranges(frames: Sequence[float]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for frame in sorted(map(int, frames)):
        runs[-1:] = [(runs[-1][0], frame)] if runs and runs[-1][1] == frame - 1 else [*runs[-1:], (frame, frame)]
    return runs


@pytest.mark.parametrize(("window", "frames", "times"), [
    (4, [(0, 14)], (0, 14)), (7, [(0, 2), (6, 23)], (3, 23)), (10, [(0, 2), (15, 32)], (12, 32)),
    (12, [(0, 2), (21, 38)], (18, 38)), (17, [(0, 2), (24, 41)], (21, 41)),
])  # fmt: skip
def test_the_preset_sees_what_the_released_code_sees(window: int, frames: list, times: tuple[int, int]) -> None:
    """Frames and their times in joint passes of 14 chunks, as observed in the release of arXiv 2509.25161."""
    seen = views(preset("rolling_forcing"), 42, card("rolling_forcing"))
    denoise = [each for each in seen if each.kind == "denoise" or len(each.frames) > 3]
    # A commit that sees what the pass before it saw is one with it: windows are told apart by their last chunks.
    joint = [each for each in denoise if each.chunks[-1].index == min(window, 13)]
    each = joint[window - min(window, 13)]
    assert ranges([*(ref.frame for ref in each.group.refs), *each.frames]) == frames
    assert ranges([*each.group.ref_times, *each.group.times]) == [times]


@pytest.mark.parametrize(("chunk", "frames"), [(6, (0, 20)), (8, (6, 26)), (4, (0, 14))])
def test_a_commit_of_the_preset_sees_the_last_frames_alone(chunk: int, frames: tuple[int, int]) -> None:
    seen = views(preset("rolling_forcing"), 42, card("rolling_forcing"))
    (each,) = (each for each in seen if each.kind == "commit" and each.chunks[0].index == chunk)
    assert ranges([*(ref.frame for ref in each.group.refs), *each.frames]) == [frames]
    assert ranges([*each.group.ref_times, *each.group.times]) == [frames]


def test_a_change_of_the_prompt_happens_once_and_chunks_in_flight_see_it_early(monkeypatch) -> None:
    denoiser, happened = network(), []
    other = denoiser.dit.prepare_text(randn(1, 5, SPEC.text_dim, seed=3, dtype=torch.float32))
    denoiser.change(8, other, Flush(9))
    happen = denoiser.happen

    def counted(event: Event, lane: int = 0) -> None:
        happened.append([ref.frame for ref in denoiser.store.held()])
        happen(event, lane)

    monkeypatch.setattr(denoiser, "happen", counted)
    changed, plain = run(ROLLING, layout(14, 2), denoiser), run(ROLLING, layout(14, 2))
    assert happened == [[0, 1, 2, 3]]  # chunk 4 begins in the pass that ends chunk 2
    assert [torch.equal(a.x0, b.x0) for a, b in zip(changed, plain, strict=True)] == [True] * 2 + [False] * 5


def test_bfloat16_runs_and_bad_fields_raise() -> None:
    emits = run(ROLLING, layout(6, 2), network(dtype=torch.bfloat16), torch.bfloat16)
    assert all(emit.x0.dtype is torch.bfloat16 and emit.x0.isfinite().all() for emit in emits)
    with pytest.raises(ValueError, match=r"steps=\(500, 750\): give at least one, falling"):
        RollingForcing((500, 750))
    with pytest.raises(ValueError, match="shift=0 must be positive"):
        RollingForcing((500,), shift=0)
    with pytest.raises(ValueError, match="context_noise=-1"):
        RollingForcing((500,), context_noise=-1)
