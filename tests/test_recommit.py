"""Events in a running video: prompts that change, frames committed again, shots; against dense passes in float64."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from dense import SIZE, SPEC, Explicit, Key, View, cached, layout, randn, tiny_dit
from torch import Tensor

from arvid.cache import (
    CachePolicy,
    Chunk,
    Cut,
    Flush,
    Full,
    Kind,
    Participative,
    Recommit,
    Ref,
    Reset,
    Rolling,
    Sink,
    Window,
)
from arvid.cache.events import Mode
from arvid.models.denoiser import CachedDenoiser
from arvid.positional import Absolute, Relative, SinkAdjacent, TimeMap

DIT = tiny_dit()
OLD, NEW = randn(1, 5, SPEC.text_dim, seed=1), randn(1, 5, SPEC.text_dim, seed=2)


def latents(chunk: Chunk) -> Tensor:
    return torch.cat([randn(1, 1, SPEC.in_channels, *SIZE, seed=50 + f) for f in range(chunk.start, chunk.end)], 1)


def video(policy: CachePolicy, chunks: list[Chunk], time: TimeMap | None = None, **options) -> CachedDenoiser:
    """A denoiser that has committed the chunks under the old prompt."""
    denoiser = cached(DIT, OLD, policy, time=time, **options)
    for chunk in chunks:
        denoiser(latents(chunk), (chunk,))
        denoiser.commit(latents(chunk), (chunk,))
    return denoiser


def contents(denoiser: CachedDenoiser) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    found = {}
    for ref in denoiser.store.held():
        for layer in range(SPEC.num_blocks):
            key, value = denoiser.store.page(ref.frame, layer)
            found[ref.frame, layer] = key.clone(), value.clone()
    return found


def distance(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max((x - y).abs().max().item() for key in a for x, y in zip(a[key], b[key], strict=True))


@pytest.mark.parametrize("mode", ["causal", "per_chunk"])
@pytest.mark.parametrize("policy", [Full(), Window(9), Sink(9, 2), Rolling(9, chunk=3)], ids=str)
@pytest.mark.parametrize("time", [Absolute(), SinkAdjacent(), Relative()], ids=str)
def test_a_recommit_under_the_same_prompt_changes_nothing_while_all_is_held(mode, policy, time) -> None:
    denoiser = video(policy, layout(9, 3), time)
    if isinstance(policy, Window | Sink):
        denoiser = video(policy, layout(6, 3), time)
    before = contents(denoiser)
    denoiser.happen(Recommit(mode, "renew"))
    assert distance(contents(denoiser), before) < 1e-12


def dense(mode: str, denoiser: CachedDenoiser, chunk: Chunk, held: list[Ref], at: dict[str, list[float]]) -> Tensor:
    """The prediction for `chunk` after a recommit of `held` under the new prompt, in one dense pass."""
    frames = [ref.frame for ref in held]
    clean = [denoiser.store.book().latents[f] for f in frames]
    x = torch.cat([torch.stack(clean, 1), latents(chunk)], 1)
    views: list[View] = []
    for slot, frame in enumerate(frames):
        if mode == "joint":
            seen: list[Key] = [(i, t, 0.0) for i, t in enumerate(at["joint"])]
            views.append((at["joint"][slot], seen))
        else:
            first = frame - frame % 3
            before = [i for i, f in enumerate(frames) if f < first + 3]
            views.append((float(frame), [(i, float(frames[i]), 0.0) for i in before]))
    own = [(len(frames) + i, float(chunk.start + i), 0.0) for i in range(chunk.n)]
    views += [(time, [*((i, t, 0.0) for i, t in enumerate(at["seen"])), *own]) for _, time, _ in own]
    level = torch.tensor([[0.0] * len(frames) + [chunk.sigma] * chunk.n], dtype=torch.float64)
    mixer = Explicit(views, DIT.grid(SIZE), SPEC.axes)
    velocity = DIT(x, 1000 * level, DIT.prepare_text(NEW), mixer)
    return (x - level[:, :, None, None, None] * velocity)[:, len(frames) :]


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("rotated", [True, False])
def test_a_recommit_is_one_dense_pass(mode: str, rotated: bool) -> None:
    denoiser = video(Sink(9, 2), layout(12, 3), rotated=rotated)
    next_chunk = Chunk(12, 3, 0.7, 4)
    denoiser.change(12, DIT.prepare_text(NEW), Recommit(mode, "renew"))  # pyright: ignore[reportArgumentType]
    found = denoiser(latents(next_chunk), (next_chunk,))
    held = list(denoiser.store.held())
    assert [ref.frame for ref in held] == [0, 1, 8, 9, 10, 11]
    own = [float(ref.frame) for ref in held]
    # frame 8 is all that is left of chunk 6-8; every mode sees all that is held, for it fits the window
    assert (found - dense(mode, denoiser, next_chunk, held, {"joint": own, "seen": own})).abs().max() < 1e-10


def test_a_joint_recommit_has_the_times_that_the_next_chunk_will_see() -> None:
    denoiser = video(Sink(9, 2), layout(12, 3), SinkAdjacent())
    next_chunk = Chunk(12, 3, 0.7, 4)
    denoiser.change(12, DIT.prepare_text(NEW), Recommit("joint", "renew"))
    found = denoiser(latents(next_chunk), (next_chunk,))
    times = [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]
    expected = dense("joint", denoiser, next_chunk, list(denoiser.store.held()), {"joint": times, "seen": times})
    assert (found - expected).abs().max() < 1e-10


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("codec", [None, "int8"])
def test_sinks_are_kept_or_renewed(mode, codec) -> None:
    runs = {}
    for sinks in ("keep", "renew"):
        denoiser = video(Sink(9, 2, codec=codec), layout(12, 3))
        before = contents(denoiser)
        denoiser.change(12, DIT.prepare_text(NEW), None)
        denoiser._lanes[0].prompt = 1
        denoiser.happen(Recommit(mode, sinks))
        runs[sinks] = contents(denoiser)
    for key in before:
        same = [torch.equal(a, b) for a, b in zip(runs["keep"][key], before[key], strict=True)]
        renewed = [torch.equal(a, b) for a, b in zip(runs["keep"][key], runs["renew"][key], strict=True)]
        if key[0] < 2:
            assert all(same)
        else:
            assert all(renewed)
        if key[1] > 0:  # the first layer's keys do not know the prompt
            assert not any(torch.equal(a, b) for a, b in zip(runs["renew"][key], before[key], strict=True))


def test_after_a_joint_recommit_nothing_but_the_latents_remembers_the_old_prompt() -> None:
    third = randn(1, 5, SPEC.text_dim, seed=3)
    found = []
    for first in (OLD, third):
        denoiser = cached(DIT, first, Sink(9, 2))
        for chunk in layout(12, 3):
            denoiser.commit(latents(chunk), (chunk,))
        denoiser.change(12, DIT.prepare_text(NEW), Recommit("joint", "renew"))
        found.append(denoiser(latents(Chunk(12, 3)), (Chunk(12, 3, 0.5, 4),)))
    assert torch.equal(*found)


def test_each_lane_changes_when_it_gets_there() -> None:
    denoiser = cached(DIT, OLD, Sink(9, 2))
    denoiser.change(6, DIT.prepare_text(NEW), Flush(1))
    for lane in (0, 1):
        for chunk in layout(6, 3):
            denoiser.commit(latents(chunk), (chunk,), lane=lane)
    third = Chunk(6, 3, 0.5, 2)
    denoiser(latents(third), (third,))
    frames = [[ref.frame for ref in denoiser.store.held(lane)] for lane in (0, 1)]
    assert frames == [[0, 1, 5], [0, 1, 2, 3, 4, 5]]
    for _ in range(2):  # it happens once
        denoiser(latents(third), (third,), lane=1)
    denoiser.commit(latents(third), (third,), lane=1)
    assert [ref.frame for ref in denoiser.store.held(1)] == [0, 1, 5, 6, 7, 8]


def test_a_changed_prompt_without_an_event_touches_no_frame() -> None:
    denoiser, chunk = video(Window(9), layout(6, 3)), Chunk(6, 3, 0.5, 2)
    before, old = contents(denoiser), denoiser(latents(chunk), (chunk,))
    denoiser.change(6, DIT.prepare_text(NEW), None)
    assert not torch.equal(denoiser(latents(chunk), (chunk,)), old)
    assert distance(contents(denoiser), before) == 0
    with pytest.raises(ValueError, match="a prompt from frame 3 on, after one from frame 6 on"):
        denoiser.change(3, DIT.prepare_text(OLD), None)


def test_a_cut_starts_a_shot() -> None:
    seen = []

    class Watching(Absolute):
        def times(self, refs, new):
            seen.append(([ref.shot for ref in refs], new.shot, new.kind))
            return super().times(refs, new)

    denoiser = video(Window(9), layout(6, 3), Watching())
    denoiser.happen(Cut("all"))
    chunk = Chunk(6, 3, index=2)
    denoiser.commit(latents(chunk), (chunk,))
    assert seen[-1] == ([0] * 6, 1, Kind.COMMIT)
    denoiser.happen(Cut("none"))
    denoiser(latents(Chunk(9, 3)), (Chunk(9, 3, 0.5, 3),))
    assert seen[-1] == ([], 2, Kind.DENOISE)


@pytest.mark.parametrize("event", [Reset(), Cut("none"), Recommit()])
def test_an_event_before_the_first_frame_does_no_harm(event) -> None:
    denoiser = cached(DIT, OLD, Sink(9, 2))
    denoiser.happen(event)
    chunk = Chunk(0, 3)
    expected = video(Sink(9, 2), []).commit(latents(chunk), (chunk,))
    assert torch.equal(denoiser.commit(latents(chunk), (chunk,)), expected)


@pytest.mark.parametrize("policy", [Sink(9, 6), Rolling(9, chunk=3)], ids=str)
def test_a_recommit_that_keeps_the_sinks_leaves_a_history_of_sinks_alone(policy: CachePolicy) -> None:
    denoiser = video(policy, layout(6, 3))
    before = contents(denoiser)
    denoiser.change(6, DIT.prepare_text(NEW), Recommit())
    chunk = Chunk(6, 3, 0.5, 2)
    denoiser(latents(chunk), (chunk,))
    assert distance(contents(denoiser), before) == 0


def test_packed_tokens_cannot_be_committed_again() -> None:
    denoiser = video(Participative(9, 2, 3, 7), layout(15, 3))
    before = contents(denoiser)
    with pytest.raises(ValueError, match=r"frames \[.*\] cannot be committed again.*use flush, cut or reset"):
        denoiser.happen(Recommit())
    assert distance(contents(denoiser), before) == 0


def test_the_store_keeps_the_latents_of_what_is_held() -> None:
    denoiser = video(Sink(9, 2), layout(12, 3))
    kept = denoiser.store.book().latents
    assert sorted(kept) == [ref.frame for ref in denoiser.store.held()]
    for frame, x in kept.items():
        assert torch.equal(x, latents(Chunk(frame, 1))[:, 0])


def test_snapshots_continue_bitwise() -> None:
    for policy in (Window(7), Sink(9, 2, codec="int8"), Rolling(9, chunk=3), Participative(9, 2, 3, 7)):
        denoiser, chunks = video(policy, layout(15, 3)), layout(30, 3)
        snapshot = denoiser.store.snapshot()
        expected = [denoiser(latents(c), (c,)) if kind else denoiser.commit(latents(c), (c,))
                    for c in chunks[5:] for kind in (1, 0)]  # fmt: skip
        fresh = cached(DIT, OLD, policy)
        fresh.store.restore(snapshot)
        again = [fresh(latents(c), (c,)) if kind else fresh.commit(latents(c), (c,))
                 for c in chunks[5:] for kind in (1, 0)]  # fmt: skip
        assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))
        with pytest.raises(ValueError, match=r"is of another store: policy .*, here Window\(window=8\)"):
            cached(DIT, OLD, Window(8)).store.restore(snapshot)


def test_a_snapshot_in_the_middle_of_a_chunk_continues_bitwise() -> None:
    """The commit sees what the first denoise has chosen."""
    policy, chunk = Participative(9, 2, 3, 7), Chunk(15, 3, 0.7, 5)
    denoiser = video(policy, layout(15, 3))
    denoiser(latents(chunk), (chunk,))
    snapshot = denoiser.store.snapshot()
    fresh, direct = cached(DIT, OLD, policy), video(policy, layout(15, 3))
    fresh.store.restore(snapshot)
    committed = [each.commit(2 * latents(chunk), (chunk,)) for each in (denoiser, fresh, direct)]
    assert torch.equal(committed[0], committed[1])
    assert not torch.equal(committed[0], committed[2])
