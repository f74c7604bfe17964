"""Time maps: what they agree on, how far times can grow, and that a network cannot tell two of them apart."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from dense import SPEC, KeyedNoise, Oracle, Rule, cached, layout, randn, tiny_dit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arvid import PipelineConfig
from arvid.cache import CachePolicy, Chunk, Full, Kind, Pass, Ref, Sink, Window, after_commit, make_plan
from arvid.models.dit import CausalDiT
from arvid.positional import TIME, Absolute, Relative, SinkAdjacent, TimeMap
from arvid.samplers import Denoiser, FewStep

SAMPLER = FewStep((1000, 500), shift=5.0, context_noise=100)


@st.composite
def views(draw: st.DrawFn) -> tuple[list[Ref], Pass]:
    """[contiguous sinks | contiguous recents | new], the refs in any order; what lies between sinks and recents is
    evicted."""
    sinks, evicted, recent, n = (draw(st.integers(low, 9)) for low in (0, 0, 0, 1))
    start = sinks + evicted + recent
    refs = [Ref(frame, at=float(frame), role="sink") for frame in range(sinks)]
    refs += [Ref(frame, at=float(frame)) for frame in range(sinks + evicted, start)]
    cut = draw(st.integers(0, n - 1))
    chunks = (Chunk(start, cut), Chunk(start + cut, n - cut, index=1)) if cut else (Chunk(start, n),)
    return draw(st.permutations(refs)), Pass(draw(st.sampled_from(Kind)), chunks)


def all_times(time: TimeMap, refs: Sequence[Ref], new: Pass) -> dict[int, float]:
    """Times by frame."""
    held, own = time.times(refs, new)
    assert all(type(t) is float for t in (*held, *own))
    return dict(zip([*(ref.frame for ref in refs), *new.frames], (*held, *own), strict=True))


@settings(max_examples=50, deadline=None)
@given(views())
def test_relative_and_adjacent_times_differ_by_one_constant(case: tuple[list[Ref], Pass]) -> None:
    refs, new = case
    relative, adjacent = (all_times(time, refs, new) for time in (Relative(), SinkAdjacent()))
    assert len({relative[frame] - adjacent[frame] for frame in relative}) == 1
    sinks = {ref.frame for ref in refs if ref.role == "sink"}
    rest = sorted(relative.keys() - sinks)
    for times in (relative, adjacent):
        assert len({times[frame] - frame for frame in rest}) == 1, "frames that are no sinks are as far apart as ever"
    assert sorted(relative.values()) == list(range(len(relative)))
    if max(sinks, default=-1) + 1 == rest[0]:  # nothing was evicted
        assert relative == adjacent == all_times(Absolute(), refs, new)


@settings(max_examples=50, deadline=None)
@given(views(), st.integers(0, 30))
def test_adjacent_sinks_keep_the_gap_the_order_and_never_move_back(case: tuple[list[Ref], Pass], gap: int) -> None:
    refs, new = case
    times = all_times(SinkAdjacent(gap), refs, new)
    sinks = sorted(ref.frame for ref in refs if ref.role == "sink")
    rest = [frame for frame in sorted(times) if frame not in sinks]
    assert all(times[frame] == frame for frame in rest)
    assert all(times[a] < times[b] for a, b in pairwise(sorted(times)))
    evicted = rest[0] - len(sinks)
    assert [times[frame] for frame in sinks] == [frame + max(0, evicted - gap) for frame in sinks]


@settings(max_examples=50, deadline=None)
@given(views(), st.sampled_from([Relative(), SinkAdjacent(), SinkAdjacent(3)]))
def test_frames_in_flight_follow_each_other_and_the_view(case: tuple[list[Ref], Pass], time: TimeMap) -> None:
    refs, new = case
    held, own = time.times(refs, new)
    assert len(held) == len(refs)
    assert own == tuple(own[0] + i for i in range(len(new.frames)))
    assert max(held, default=-1) < own[0]


def test_equal_slots_share_a_rank_and_other_roles_stay() -> None:
    new = Pass(Kind.DENOISE, (Chunk(20, 2),))
    refs = [Ref(0, at=0.0, role="sink"), Ref(3, at=11.5, role="memory"), Ref(4, at=11.5, role="memory"),
            Ref(1, at=1.0, role="sink"), Ref(19, at=19.0)]  # fmt: skip
    assert Relative().times(refs, new) == ((0.0, 2.0, 2.0, 1.0, 3.0), (4.0, 5.0))
    assert SinkAdjacent().times(refs, new) == ((9.5, 11.5, 11.5, 10.5, 19.0), (20.0, 21.0))
    assert SinkAdjacent(3).times(refs, new) == ((6.5, 11.5, 11.5, 7.5, 19.0), (20.0, 21.0))


def test_what_is_seen_of_a_frame_is_its_slot_not_its_number() -> None:
    """A memory frame may stand for a slot that is not its own, and is ranked, and bounds the sinks, by that."""
    new = Pass(Kind.DENOISE, (Chunk(30, 1),))
    refs = [Ref(0, at=0.0, role="sink"), Ref(2, at=28.0, role="memory"), Ref(29, at=29.0)]
    assert Relative().times(refs, new) == ((0.0, 1.0, 2.0), (3.0,))
    assert SinkAdjacent().times(refs, new) == ((27.0, 28.0, 29.0), (30.0,))


def test_with_sinks_alone_the_frames_in_flight_are_the_rest() -> None:
    new, refs = Pass(Kind.DENOISE, (Chunk(9, 3),)), [Ref(0, at=0.0, role="sink"), Ref(1, at=1.0, role="sink")]
    assert SinkAdjacent().times(refs, new) == ((7.0, 8.0), (9.0, 10.0, 11.0))
    assert SinkAdjacent(2).times(refs, new) == ((5.0, 6.0), (9.0, 10.0, 11.0))
    assert Relative().times([], new) == ((), (0.0, 1.0, 2.0))
    assert SinkAdjacent().times([], new) == ((), (9.0, 10.0, 11.0))


def test_relative_times_stay_within_the_window() -> None:
    policy, held = Sink(12, 3), ()
    for chunk in layout(6000, 3):
        for kind in Kind:
            (group,) = make_plan(policy, Relative(), held, Pass(kind, (chunk,))).groups
            assert sorted((*group.ref_times, *group.times)) == list(range(min(12, chunk.end)))
        held = after_commit(policy, held, Pass(Kind.COMMIT, (chunk,)))


@pytest.mark.parametrize("gap", [-1, 1.5, 2.0, True, "3", None])
def test_a_gap_is_a_whole_number(gap: Any) -> None:
    with pytest.raises(ValueError, match=r"gap=.*: give a whole number of latent frames .* at least 0"):
        SinkAdjacent(gap)


def test_maps_by_name() -> None:
    for time in (Relative(), SinkAdjacent(), SinkAdjacent(3)):
        assert TIME.build(TIME.spec(time)) == time
        assert not time.static
    assert TIME.spec(SinkAdjacent(3)) == {"name": "sink_adjacent", "gap": 3}
    plain = {"time": {"name": "sink_adjacent", "gap": 3}}
    assert PipelineConfig.from_dict(plain).time == SinkAdjacent(3)
    assert PipelineConfig.from_dict(plain).to_dict() == plain
    assert PipelineConfig(time="relative").time == Relative()


@pytest.fixture(scope="module")
def dit() -> CausalDiT:
    return tiny_dit()


@pytest.fixture(scope="module")
def text() -> Tensor:
    return randn(1, SPEC.text_length, SPEC.text_dim, seed=7)


def rollout(denoiser: Denoiser, frames: int, size: int) -> Tensor:
    chunks = layout(frames, size)
    return torch.cat([emit.x0 for emit in SAMPLER.rollout(denoiser, KeyedNoise(), chunks)], 1)


def error(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def sinks_at(window: int, sink: int, gap: int) -> Rule:
    """Sinks `gap` frames before the recent ones, once these have left them."""

    def rule(chunk: Chunk, kind: Kind) -> list[tuple[int, float, float]]:
        first = max(sink, chunk.end - (window - sink))
        seen = [(frame, float(frame), 0.0) for frame in range(first, chunk.start)]
        away = max(0, min(first, chunk.start) - sink - gap)
        return [(frame, float(frame + away), 0.0) for frame in range(min(sink, chunk.start))] + seen

    return rule


@pytest.mark.parametrize(("window", "sink", "size"), [(5, 1, 1), (7, 2, 2), (6, 3, 3)])
def test_a_rollout_sees_the_times_of_the_oracle(
    dit: CausalDiT, text: Tensor, window: int, sink: int, size: int
) -> None:
    frames, policy = 6 * size, Sink(window, sink)
    runs = {time: rollout(cached(dit, text, policy, time=time), frames, size)
            for time in (Relative(), SinkAdjacent(), SinkAdjacent(3), Absolute())}  # fmt: skip
    for gap in (0, 3):
        expected = rollout(Oracle(dit, text, sinks_at(window, sink, gap)), frames, size)
        assert error(runs[SinkAdjacent(gap)], expected) < 1e-9
    assert error(runs[Relative()], runs[SinkAdjacent()]) < 1e-9
    fits = window // size * size  # the frames of chunks that end within the window
    for time in (Relative(), SinkAdjacent(), SinkAdjacent(3)):
        assert error(runs[time][:, :fits], runs[Absolute()][:, :fits]) < 1e-9
    distinct = (runs[Relative()], runs[SinkAdjacent(3)], runs[Absolute()])
    if frames - window > 3:  # more frames were evicted than the gap has
        assert min(error(a, b) for i, a in enumerate(distinct) for b in distinct[:i]) > 1e-5
    else:
        assert error(distinct[0], distinct[2]) > 1e-5


@pytest.mark.parametrize("policy", [Full(), Window(5)], ids=str)
@pytest.mark.parametrize("time", [Relative(), SinkAdjacent(), SinkAdjacent(3)], ids=str)
def test_without_sinks_every_map_is_absolute(
    dit: CausalDiT, text: Tensor, policy: CachePolicy, time: TimeMap
) -> None:
    runs = [rollout(cached(dit, text, policy, time=time), 8, 2) for time in (time, Absolute())]
    assert error(*runs) < 1e-9
