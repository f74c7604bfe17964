"""Diffusion forcing: chunks at levels of their own, in step or each so many steps behind the one before."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from dense import KeyedNoise, layout
from hypothesis import given, settings
from hypothesis import strategies as st
from orders import LAYOUTS, Isolated, assert_it_continues, network, run, same

from arvid.cache import Chunk, Full, Sink, Window
from arvid.config import PipelineConfig
from arvid.samplers import SAMPLER, DiffusionForcing, Multistep
from arvid.testing import trace

PYRAMID = DiffusionForcing("euler", 5, shift=5.0, guidance=1.0, context_noise=0.0, ar_step=2)
MANY = Multistep(solver="euler", num_steps=5, shift=5.0, context_noise=0.0, guidance=1.0)
SOLVERS = ("euler", "dpm++", "unipc")


def rows(sampler: DiffusionForcing, chunks: Sequence[Chunk]) -> list[list[int]]:
    """How many steps each chunk has taken with each pass: 0 untouched, num_steps + 1 once it is final before it."""
    sigmas, first = sampler.levels()[0], chunks[0].index
    now, table = [0] * len(chunks), []
    for kind, flying, _ in trace(sampler, chunks):
        if kind == "denoise":
            for chunk in flying:
                now[chunk.index - first] = sigmas.index(chunk.sigma) + 1
            table.append(list(now))
        elif kind == "commit":
            (chunk,) = flying
            assert now[chunk.index - first] == sampler.num_steps
            now[chunk.index - first] += 1
    return table


def test_in_step() -> None:
    """The synchronous table of SkyReels-V2, 4 chunks and 5 steps."""
    assert rows(replace(PYRAMID, ar_step=0, joint=4), layout(4, 1)) == [[c] * 4 for c in range(1, 6)]


def test_two_steps_behind() -> None:
    """The pyramid's table of SkyReels-V2, 4 chunks and 5 steps."""
    assert rows(PYRAMID, layout(12, 3)) == [
        [1, 0, 0, 0], [2, 0, 0, 0], [3, 1, 0, 0], [4, 2, 0, 0], [5, 3, 1, 0], [6, 4, 2, 0], [6, 5, 3, 1], [6, 6, 4, 2],
        [6, 6, 5, 3], [6, 6, 6, 4], [6, 6, 6, 5],
    ]  # fmt: skip


@pytest.mark.parametrize("ar_step", [5, 9])
def test_one_chunk_after_the_other(ar_step: int) -> None:
    table = rows(replace(PYRAMID, ar_step=ar_step), layout(12, 3))
    assert table == [[6] * (r // 5) + [r % 5 + 1] + [0] * (3 - r // 5) for r in range(20)]


def test_behind_a_chunk_that_was_given() -> None:
    """3 chunks of which the first is given, 4 steps, one behind: the given one is final from the start."""
    generated = rows(replace(PYRAMID, num_steps=4, ar_step=1), layout(9, 3)[1:])
    assert [[5, *row] for row in generated] == [[5, 1, 0], [5, 2, 1], [5, 3, 2], [5, 4, 3], [5, 5, 4]]


def test_a_sliding_window() -> None:
    """6 chunks, 4 steps, two behind, 3 at most: the window moves on when a chunk beyond it begins."""
    table = rows(replace(PYRAMID, num_steps=4, joint=3), layout(6, 1))
    ends = [max(3, *(i + 1 for i, c in enumerate(row) if c)) for row in table]
    assert [(end - 3, end) for end in ends] == [(0, 3)] * 6 + [(1, 4)] * 2 + [(2, 5)] * 2 + [(3, 6)] * 4


@settings(max_examples=60)
@given(st.integers(1, 7), st.integers(1, 6), st.integers(0, 8), st.none() | st.integers(1, 5), st.integers(1, 3))
def test_every_chunk_takes_every_step_and_begins_as_soon_as_it_may(
    chunks: int, steps: int, ar_step: int, joint: int | None, size: int
) -> None:
    if not ar_step and joint is None:
        return
    sampler = replace(PYRAMID, num_steps=steps, ar_step=ar_step, joint=joint)
    listed = layout(chunks * size, size)
    table = rows(sampler, listed)
    starts: list[int] = []
    for i in range(chunks):
        column = [row[i] for row in table]
        start = column.index(1)
        assert column == [0] * start + list(range(1, steps + 1)) + [steps + 1] * (len(table) - start - steps)
        behind = starts[-1] + min(ar_step, steps) if i else 0
        room = starts[i - joint] + steps if joint and i >= joint else 0
        assert start == max(behind, room)
        starts.append(start)
    assert all(a >= b for row in table for a, b in pairwise(row))
    if joint is None or ar_step >= math.ceil(steps / joint):
        assert len(table) == steps + (chunks - 1) * min(ar_step, steps)
    widest = max(len(flying) for kind, flying, _ in trace(sampler, listed) if kind == "denoise")
    assert widest <= sampler.most()
    assert widest * size <= sampler.in_flight(size) == sampler.most() * size
    assert widest == sampler.most() or chunks < sampler.most()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("changes", [{"ar_step": 5}, {"ar_step": 0, "joint": 1}, {"ar_step": 3, "joint": 1}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_chunk_at_a_time_is_multistep(solver: str, changes: dict, dtype: torch.dtype) -> None:
    chunks = LAYOUTS["a shorter last one"]
    one = run(replace(PYRAMID, solver=solver, **changes), chunks, network(Window(4), dtype), dtype)
    assert same(one, run(replace(MANY, solver=solver), chunks, network(Window(4), dtype), dtype))
    assert one[0].x0.dtype is dtype


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("changes", [
    {}, {"ar_step": 1}, {"ar_step": 0, "joint": 2}, {"ar_step": 1, "joint": 2}
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", LAYOUTS)
def test_chunks_that_do_not_see_each_other_are_those_of_multistep(solver: str, changes: dict, name: str) -> None:
    """Each chunk has a solver of its own, and its own levels."""
    sampler = replace(PYRAMID, solver=solver, **changes)
    assert same(run(sampler, LAYOUTS[name], Isolated()), run(replace(MANY, solver=solver), LAYOUTS[name], Isolated()))


@pytest.mark.parametrize("solver", SOLVERS)
def test_all_chunks_in_step_are_one_large_chunk(solver: str) -> None:
    """Full joint diffusion: every frame sees every frame, at one level."""
    together = run(replace(PYRAMID, solver=solver, ar_step=0, joint=3), layout(6, 2))
    (large,) = run(replace(MANY, solver=solver), layout(6, 6))
    assert torch.equal(torch.cat([emit.x0 for emit in together], 1), large.x0)


def test_orders_make_different_videos() -> None:
    samplers = [PYRAMID, replace(PYRAMID, ar_step=1), replace(PYRAMID, ar_step=5), replace(PYRAMID, ar_step=0, joint=3),
                replace(PYRAMID, ar_step=1, joint=2), replace(PYRAMID, solver="unipc")]  # fmt: skip
    videos = [torch.cat([emit.x0 for emit in run(sampler, layout(6, 2))], 1) for sampler in samplers]
    assert min((a - b).abs().max().item() for i, a in enumerate(videos) for b in videos[:i]) > 1e-5


def test_groups_that_are_in_step_follow_each_other() -> None:
    table = rows(replace(PYRAMID, num_steps=2, ar_step=0, joint=2), layout(5, 1))
    assert table == [
        [1, 1, 0, 0, 0], [2, 2, 0, 0, 0], [3, 3, 1, 1, 0], [3, 3, 2, 2, 0], [3, 3, 3, 3, 1], [3, 3, 3, 3, 2]
    ]  # fmt: skip


def test_a_chunk_is_committed_and_emitted_when_it_is_final() -> None:
    events = trace(replace(PYRAMID, ar_step=0, joint=2, context_noise=120), layout(8, 2))
    assert [kind for kind, *_ in events] == (["denoise"] * 5 + ["commit", "emit"] * 2) * 2
    assert [(c[0].index, c[0].sigma) for kind, c, _ in events if kind != "denoise"] == [
        (i, 0.12) for i in range(4) for _ in range(2)]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("changes", [{}, {"ar_step": 0, "joint": 2}, {"ar_step": 1, "joint": 2}], ids=str)
def test_a_rollout_continues_after_any_chunk(solver: str, changes: dict) -> None:
    """With the solvers of the chunks in flight as they were, from one state more than once."""
    policy = Full() if "joint" not in changes else Sink(6, 1)
    for chunks in LAYOUTS.values():
        assert_it_continues(replace(PYRAMID, solver=solver, **changes), chunks, lambda: network(policy))


def test_what_does_not_fit_the_cache_raises_at_build() -> None:
    assert PYRAMID.in_flight(3) == 9
    assert PipelineConfig(sampler=PYRAMID, cache=Window(9), chunk=3)
    with pytest.raises(ValueError, match=r"DiffusionForcing\(.*9 frames in flight do not fit window=8"):
        PipelineConfig(sampler=PYRAMID, cache=Window(8), chunk=3)
    assert PipelineConfig(sampler=replace(PYRAMID, joint=2), cache=Window(8), chunk=3)


def test_the_config_round_trips(tmp_path) -> None:
    config = PipelineConfig(sampler=replace(PYRAMID, joint=2, guidance=4.5))
    (tmp_path / "c.toml").write_text(config.to_toml())
    assert PipelineConfig.load(tmp_path / "c.toml") == config


@pytest.mark.parametrize(("fields", "match"), [
    ({"num_steps": 0}, "num_steps=0: give a whole number, at least 1"),
    ({"ar_step": -1}, "ar_step=-1: give a whole number, at least 0"),
    ({"ar_step": 0}, "ar_step=0 denoises chunks in step: say how many together, joint="),
    ({"joint": 0}, "joint=0: give a whole number, at least 1"),
    ({"shift": 0.0}, "shift=0.0 must be positive"),
    ({"context_noise": -1.0}, "context_noise=-1.0 is a timestep"),
    ({"guidance": -1.0}, "guidance=-1.0 must be finite"),
    ({"guidance": float("nan")}, "guidance=nan must be finite"),
])  # fmt: skip
def test_bad_fields_raise(fields: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        DiffusionForcing(**fields)
    with pytest.raises(ValueError, match=match):
        SAMPLER.build({"name": "diffusion_forcing", **fields})


def test_what_is_not_given_or_unknown_raises() -> None:
    with pytest.raises(ValueError, match="solver='rk4'; allowed: 'unipc', 'dpm\\+\\+', 'euler'"):
        DiffusionForcing(solver="rk4")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"shift=None.*give a value"):
        next(DiffusionForcing(context_noise=0.0).rollout(Isolated(), KeyedNoise(), layout(2, 2)))
