"""Time maps: what they agree on, how far times can grow, and that a network cannot tell two of them apart."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from dense import SPEC, KeyedNoise, Oracle, Rule, cached, layout, randn, tiny_dit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arvid import PipelineConfig, preset
from arvid.cache import (
    CachePolicy,
    Chunk,
    Cut,
    Event,
    Flush,
    Full,
    Group,
    Kind,
    Pass,
    Ref,
    Sink,
    Window,
    after_commit,
    make_plan,
    reduced,
)
from arvid.models.denoiser import CachedDenoiser
from arvid.models.dit import CausalDiT
from arvid.models.specs import card
from arvid.positional import TIME, Absolute, Clamped, Relative, ShotOffset, SinkAdjacent, TimeMap
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


@settings(max_examples=50)
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


@settings(max_examples=50)
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


def groups(policy: CachePolicy, time: TimeMap, chunks: Sequence[Chunk], events: Mapping[int, Event]) -> Iterator[Group]:
    """What each chunk's passes see; events happen before chunks."""
    held, shot = (), 0
    for chunk in chunks:
        if event := events.get(chunk.index):
            held, shot = reduced(policy, held, event), shot + event.new_shot
        new = Pass(Kind.COMMIT, (chunk,), shot=shot)
        (group,) = make_plan(policy, time, held, new).groups
        assert make_plan(policy, time, held, replace(new, kind=Kind.DENOISE)).groups == (group,)
        yield group
        held = after_commit(policy, held, new)


def test_infinity_rope_and_its_cut_as_released() -> None:
    policy, time = Sink(6, 1, on_change=Flush(2)), Relative(42)
    config = preset("infinity_rope").resolve(card("self_forcing"))
    assert (config.cache, config.time) == (policy, time)
    seen = [*groups(policy, time, layout(30, 3), {6: Cut()})]
    assert [group.ref_times for group in seen] == [(), *[(0.0, 1.0, 2.0)] * 9]
    starts = [group.times[0] for group in seen]
    assert starts == [0, 3, 3, 3, 3, 3, 45, 3, 3, 3]
    assert all(group.times == tuple(start + i for i in range(3)) for start, group in zip(starts, seen, strict=True))
    assert [ref.shot for group in seen[6:8] for ref in group.refs] == [0, 0, 0, 0, 1, 1]
    held = seen[5].refs
    assert reduced(policy, held, Flush(2)) == held, "in a window of 6 a flush finds nothing to evict"


@pytest.mark.parametrize(("time", "plain"), [(Relative(10), Relative()), (Clamped(21, 10), Clamped(21))], ids=str)
def test_what_sees_another_shot_alone_jumps(time: TimeMap, plain: TimeMap) -> None:
    """So does a shot's first chunk, or one that an event has left nothing but the sinks of another shot. Where nothing
    is seen there is nothing to jump from."""
    events = {3: Cut(), 6: Cut("sink"), 9: Flush(0), 11: Cut("none")}
    for policy, jumping in ((Full(), {3}), (Sink(9, 2), {3, 6, 9})):
        pairs = zip(*(groups(policy, t, layout(42, 3), events) for t in (time, plain)), strict=True)
        for index, (group, unmoved) in enumerate(pairs):
            assert group.ref_times == unmoved.ref_times
            assert group.times == tuple(t + 10 * (index in jumping) for t in unmoved.times)


@settings(max_examples=50)
@given(views(), st.integers(9, 60))
def test_clamped_times_are_those_of_the_paper(case: tuple[list[Ref], Pass], onset: int) -> None:
    refs, new = case
    times, last = all_times(Clamped(onset), refs, new), new.frames[-1]
    assert times == {frame: max(0, min(last, onset - 1) - (last - frame)) for frame in times}
    assert max(times.values()) == times[last] == min(last, onset - 1)
    if last < onset:
        assert times == all_times(Absolute(), refs, new)


def test_clamped_frames_stop_at_the_onset_and_collapse_at_zero() -> None:
    """Infinity-RoPE's figures with its onset of 21 and chunks of 3; it counts from 1."""
    seen = [*groups(Full(), Clamped(21), layout(45, 3), {})]
    absolute = [*groups(Full(), Absolute(), layout(45, 3), {})]
    assert seen[:7] == absolute[:7]
    assert {group.times for group in seen[6:]} == {(18.0, 19.0, 20.0)}
    assert seen[7].ref_times == (*[0.0] * 3, *map(float, range(18)))
    assert seen[10].ref_times == (*[0.0] * 12, *map(float, range(18)))


def test_the_paper_and_the_code_of_infinity_rope_differ_in_how_far_the_sink_is() -> None:
    runs = [[*groups(Sink(6, 1), time, layout(60, 3), {})] for time in (Clamped(21), Relative(), Absolute())]
    for chunk, *seen in zip(layout(60, 3), *runs, strict=True):
        paper, code, absolute = ([group.times[-1] - t for t in (*group.ref_times, *group.times)] for group in seen)
        if chunk.index:
            assert (paper[0], code[0], absolute[0]) == (min(20, chunk.end - 1), 5, chunk.end - 1)
        assert paper[1:] == code[1:] == absolute[1:]


def test_shots_lie_phi_further_apart() -> None:
    new = Pass(Kind.DENOISE, (Chunk(20, 2),), shot=2)
    refs = [Ref(0, at=0.0, role="sink"), Ref(3, at=11.5, role="memory", shot=1), Ref(19, at=19.0, shot=2)]
    assert ShotOffset(8).times(refs, new) == ((0.0, 19.5, 35.0), (36.0, 37.0))
    assert ShotOffset(0.25).times(refs, new) == ((0.0, 11.75, 19.5), (20.5, 21.5))
    assert ShotOffset(0).times(refs, new) == Absolute().times(refs, new)
    seen = [*groups(Full(), ShotOffset(8), layout(12, 3), {2: Cut(), 3: Cut("sink")})]
    assert [group.times[0] for group in seen] == [0, 3, 14, 25]
    assert seen[2].ref_times == tuple(map(float, range(6)))


FRAMES = r"=.*: give a whole number of latent frames .*at least "


@pytest.mark.parametrize(("cls", "field", "values", "message"), [
    (Relative, "cut", (-1, 1.5, 2.0, True, "3", None), f"cut{FRAMES}0"),
    (Clamped, "cut", (-1, 1.5, 2.0, True, "3", None), f"cut{FRAMES}0"),
    (SinkAdjacent, "gap", (-1, 1.5, 2.0, True, "3", None), f"gap{FRAMES}0"),
    (Clamped, "train_horizon", (0, -3, 1.5, 21.0, True, "21"), r"train_horizon=.*: give a whole number .*, at least 1"),
    (ShotOffset, "phi", (-1, -0.5, float("nan"), float("inf"), True, "8", None), r"phi=.*: .* a finite number, at lea"),
])  # fmt: skip
def test_bad_fields_are_named(cls: type[TimeMap], field: str, values: tuple[Any, ...], message: str) -> None:
    for value in values:
        with pytest.raises(ValueError, match=message):
            cls(**{field: value})


def test_clamped_needs_a_horizon_that_frames_in_flight_fit() -> None:
    new = Pass(Kind.DENOISE, (Chunk(30, 3), Chunk(33, 3, index=1)))
    with pytest.raises(ValueError, match=r"Clamped\(train_horizon=None, cut=0\): .* there is no card: give the latent"):
        Clamped().times([], new)
    with pytest.raises(ValueError, match=r"6 frames in flight would share times: use train_horizon >= 6"):
        Clamped(5).times([], new)
    assert Clamped(6).times([], new) == ((), tuple(map(float, range(6))))
    config = PipelineConfig.from_dict({"time": {"name": "clamped", "cut": 3}})
    assert config.resolve(card("self_forcing")).time == Clamped(21, 3)
    assert config.replace(time=Clamped(12)).resolve(card("self_forcing")).time == Clamped(12)
    with pytest.raises(ValueError, match=r"time\.train_horizon.*: None, which means the card's, and there is no card"):
        config.resolve()


def test_maps_by_name() -> None:
    for time in (Relative(), Relative(42), SinkAdjacent(), SinkAdjacent(3), Clamped(), Clamped(21, 5), ShotOffset(0.5)):
        assert TIME.build(TIME.spec(time)) == time
        assert time.static == isinstance(time, ShotOffset)
    with pytest.raises(ValueError, match="needs a value for phi"):
        TIME.build("shot_offset")
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


def rollout(denoiser: Denoiser, frames: int, size: int, events: Mapping[int, Event] | None = None) -> Tensor:
    """A video; events happen before chunks, which the oracle needs not to be told."""
    made = []
    for emit in SAMPLER.rollout(denoiser, KeyedNoise(), layout(frames, size)):
        made.append(emit.x0)
        if isinstance(denoiser, CachedDenoiser) and (event := (events or {}).get(emit.chunk.index + 1)):
            denoiser.happen(event)
    return torch.cat(made, 1)


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


CUTS = {3: Cut(), 5: Cut()}  # before these chunks, of 3 frames each


def shot_of(frame: int) -> int:
    return sum(frame >= 3 * index for index in CUTS)


def seen(window: int, sink: int, times: Callable[[Chunk, list[int]], list[float]]) -> Rule:
    """Sinks and recent frames at `times(chunk, frames)`, where those of the chunk are their numbers."""

    def rule(chunk: Chunk, kind: Kind) -> list[tuple[int, float, float]]:
        sinks = range(min(sink, chunk.start))
        frames = [*sinks, *range(max(len(sinks), chunk.end - (window - sink)), chunk.start)]
        return [(frame, time, 0.0) for frame, time in zip(frames, times(chunk, frames), strict=True)]

    return rule


MOVED: dict[TimeMap, Callable[[Chunk, list[int]], list[float]]] = {
    Clamped(10): lambda chunk, frames: [float(max(f, chunk.end - 10)) for f in frames],
    Clamped(10, 4): lambda chunk, frames: [float(max(f, chunk.end - 10) - 4 * (chunk.index in CUTS)) for f in frames],
    Relative(4): lambda chunk, frames: [
        float(chunk.start - len(frames) + i - 4 * (chunk.index in CUTS)) for i in range(len(frames))],
    ShotOffset(2.5): lambda chunk, frames: [f - 2.5 * (shot_of(chunk.start) - shot_of(f)) for f in frames],
}  # fmt: skip


@pytest.mark.parametrize("time", MOVED, ids=str)
def test_a_rollout_of_several_shots_sees_the_times_of_the_oracle(dit: CausalDiT, text: Tensor, time: TimeMap) -> None:
    found = rollout(cached(dit, text, Sink(8, 2), time=time), 21, 3, CUTS)
    assert error(found, rollout(Oracle(dit, text, seen(8, 2, MOVED[time])), 21, 3)) < 1e-9
    for other in (Absolute(), Relative(), SinkAdjacent()):
        assert error(found, rollout(cached(dit, text, Sink(8, 2), time=other), 21, 3, CUTS)) > 1e-5
    if time.static:
        for rotated in (True, False):
            assert error(found, rollout(cached(dit, text, Sink(8, 2), time=time, rotated=rotated), 21, 3, CUTS)) < 1e-9
