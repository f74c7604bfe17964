"""HiAR's order: level after level over all chunks, run along diagonals with a history for each level."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from dense import KeyedNoise, layout
from orders import LAYOUTS, Isolated, assert_it_continues, network, run, same
from torch import Tensor

from arvid.cache import CachePolicy, Chunk, Sink, Window
from arvid.models.denoiser import CachedDenoiser
from arvid.samplers import SAMPLER, FewStep, Hierarchical, warp
from arvid.testing import trace

HIAR = Hierarchical((1000, 750, 500, 250), shift=5.0, context_noise=0)
FEW = FewStep(HIAR.steps, HIAR.shift, HIAR.context_noise)

OPTIONS = {
    "plain": HIAR,
    "two levels": replace(HIAR, steps=(1000, 400)),
    "always clean": replace(HIAR, always_clean_context=True),
    "two levels are one": replace(HIAR, frame_first_steps=2),
    "three of four, always clean": replace(HIAR, frame_first_steps=3, always_clean_context=True),
    "two chunks first": replace(HIAR, frame_first_chunks=2),
    "all of it": replace(HIAR, frame_first_chunks=1, frame_first_steps=2, always_clean_context=True, ode=True),
    "ode": replace(HIAR, ode=True),
    "noisy context": replace(HIAR, context_noise=150, context_renoise=True),
}


def step_first(sampler: Hierarchical, chunks: Sequence[Chunk], policy: CachePolicy, dtype: torch.dtype) -> list[Tensor]:
    """As the paper has it: a level over all chunks, then the next with a history begun anew; lanes play no part."""
    assert sampler.steps
    noise, sigmas, context = KeyedNoise(dtype=dtype), warp(sampler.steps, 5.0), (sampler.context_noise or 0) / 1000
    x, first, final = [noise.initial(chunk) for chunk in chunks], sampler.frame_first_chunks, len(sigmas)

    def commit(denoiser: CachedDenoiser, i: int, level: int, x0: Tensor) -> None:
        if i < first or level == final or sampler.always_clean_context:
            noised = x0.lerp(noise.context(chunks[i]), context) if sampler.context_renoise else x0
            denoiser.commit(noised, (replace(chunks[i], sigma=context),))
        else:
            denoiser.commit(x[i], (replace(chunks[i], sigma=sigmas[level]),))

    def denoise(denoiser: CachedDenoiser, i: int, level: int) -> Tensor:
        x0 = denoiser(x[i], (replace(chunks[i], sigma=sigmas[level]),))
        if level + 1 < final:
            on = sigmas[level + 1]
            to = x[i] if sampler.ode else noise.renoise(chunks[i], level)
            x[i] = x0.lerp(to, on / sigmas[level] if sampler.ode else on)
        return x0

    out: list[Tensor] = [torch.empty(0)] * len(chunks)
    denoiser = network(policy, dtype)
    for i in range(min(first, len(chunks))):
        for level in range(final):
            out[i] = denoise(denoiser, i, level)
        commit(denoiser, i, final, out[i])
    levels = [range(max(1, sampler.frame_first_steps))]
    levels += [range(level, level + 1) for level in range(levels[0].stop, final)]
    for together in levels:
        denoiser = network(policy, dtype)
        for i in range(len(chunks)):
            for level in together if i >= first else ():
                out[i] = denoise(denoiser, i, level)
            commit(denoiser, i, together.stop, out[i])
    return out


@pytest.mark.parametrize("layout_name", LAYOUTS)
@pytest.mark.parametrize("name", OPTIONS)
def test_diagonals_are_step_first(name: str, layout_name: str) -> None:
    chunks, sampler = LAYOUTS[layout_name], OPTIONS[name]
    expected = step_first(sampler, chunks, Window(4), torch.float32)
    found = run(sampler, chunks, network(Window(4)))
    assert [emit.chunk for emit in found] == [replace(c, sigma=(sampler.context_noise or 0) / 1000) for c in chunks]
    assert all(torch.equal(emit.x0, x) for emit, x in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_diagonals_are_step_first_in_every_precision(dtype: torch.dtype) -> None:
    chunks, policy = layout(10, 2), Sink(6, 2)
    found = run(HIAR, chunks, network(policy, dtype), dtype)
    assert all(torch.equal(e.x0, x) for e, x in zip(found, step_first(HIAR, chunks, policy, dtype), strict=True))


def test_every_option_makes_another_video() -> None:
    videos = [torch.cat([emit.x0 for emit in run(sampler, layout(10, 2))], 1)
              for sampler in OPTIONS.values()]
    videos.append(torch.cat([emit.x0 for emit in run(FEW, layout(10, 2))], 1))
    assert min((a - b).abs().max().item() for i, a in enumerate(videos) for b in videos[:i]) > 1e-4


@pytest.mark.parametrize("changes", [{"frame_first_steps": 4}, {"frame_first_chunks": 9}, {"steps": (1000,)},
                                     {"frame_first_steps": 4, "always_clean_context": True}], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", LAYOUTS)
def test_all_levels_in_chunk_order_are_few_step(changes: dict, name: str) -> None:
    sampler = replace(HIAR, context_noise=100, context_renoise=True, **changes)
    few = replace(FEW, context_noise=100, context_renoise=True, steps=sampler.steps)
    assert same(run(sampler, LAYOUTS[name], network(Window(4))), run(few, LAYOUTS[name], network(Window(4))))


def test_one_chunk_is_few_step() -> None:
    assert same(run(HIAR, layout(3, 3)), run(FEW, layout(3, 3)))


@pytest.mark.parametrize("name", LAYOUTS)
def test_chunks_that_do_not_see_each_other_are_those_of_few_step(name: str) -> None:
    """The same numbers of noise, at the same levels."""
    for sampler in (HIAR, replace(HIAR, frame_first_steps=2), replace(HIAR, frame_first_chunks=1)):
        assert same(run(sampler, LAYOUTS[name], Isolated()), run(FEW, LAYOUTS[name], Isolated()))


@pytest.mark.parametrize("chunks", [1, 2, 3, 7])
@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.parametrize("given", [0, 3])
def test_the_passes_of_a_lane_are_those_of_a_level(chunks: int, levels: int, given: int) -> None:
    """Chunk after chunk a denoise at its level and a commit at the next one; chunks enter from the lane above."""
    sampler = replace(HIAR, steps=HIAR.steps[:levels] if HIAR.steps else None)
    sigmas = [*sampler.levels()[0], 0.0]
    events = trace(sampler, layout(2 * (given + chunks) - 1, 2)[given:])
    assert sampler.lanes == levels
    for level in range(levels):
        own = [(kind, flying[0].index, flying[0].sigma) for kind, flying, lane in events
               if lane == level and kind != "emit"]  # fmt: skip
        assert own == [(kind, given + i, sigmas[level + at]) for i in range(chunks)
                       for at, kind in enumerate(("denoise", "commit"))]  # fmt: skip
    when = {(kind, flying[0].index, lane): i for i, (kind, flying, lane) in enumerate(events)}
    for i in range(given, given + chunks):
        diagonals = [when["denoise", i, level] for level in range(levels)]
        assert diagonals == sorted(diagonals)
        assert when["emit", i, 0] == when["commit", i, levels - 1] + 1
    # the oldest chunk of a diagonal goes first
    assert [when["denoise", given + d - level, level] for d in range(chunks + levels - 1)
            for level in reversed(range(levels)) if 0 <= d - level < chunks] == sorted(
        at for (kind, *_), at in when.items() if kind == "denoise")  # fmt: skip


def test_it_streams_and_memory_does_not_grow() -> None:
    """The first chunk comes after as many passes however long the video; latents in flight are bounded."""
    counts = set()
    for n in (6, 40):
        denoiser = Isolated()
        emits = HIAR.rollout(denoiser, KeyedNoise(dtype=torch.float32), layout(2 * n, 2))
        emit = next(emits)
        counts.add(len(denoiser.passes))
        assert len(emit.state[1]) == 2
        assert max(len(each.state[1]) for each in emits) == 2
    assert counts == {2 * (1 + 2 + 3) + 2}  # three whole diagonals, and the start of the fourth
    held = network(Window(6))
    for _ in HIAR.rollout(held, KeyedNoise(dtype=torch.float32), layout(24, 2)):
        assert max(held.store.pages(lane) for lane in range(HIAR.lanes)) <= 6


@pytest.mark.parametrize("option", ["plain", "two chunks first", "all of it", "noisy context"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_rollout_continues_after_any_chunk(option: str, name: str) -> None:
    assert_it_continues(OPTIONS[option], LAYOUTS[name], lambda: network(Window(4)))


def test_ode_is_eulers_step_along_the_velocity() -> None:
    given: list[Tensor] = []

    class Half:
        """Predicts x0 = x / 2."""

        def __call__(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
            given.append(x_BFCHW)
            return x_BFCHW / 2

        def commit(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
            return x_BFCHW

    run(replace(HIAR, ode=True), layout(2, 2), Half(), torch.float64)
    sigmas, _ = HIAR.levels()
    for x, following, sigma, on in zip(given, given[1:], sigmas, sigmas[1:], strict=False):
        velocity = (x - x / 2) / sigma
        assert (following - (x + (on - sigma) * velocity)).abs().max() < 1e-14


@pytest.mark.parametrize(("fields", "match"), [
    ({"frame_first_steps": -1}, "frame_first_steps=-1: give a whole number, at least 0"),
    ({"steps": (1000, 500), "frame_first_steps": 3}, "frame_first_steps=3 of 2 steps: give at most"),
    ({"frame_first_chunks": -2}, "frame_first_chunks=-2: give a whole number"),
    ({"steps": (500, 500)}, "steps=.*falling"),
    ({"shift": -1.0}, "shift=-1.0 must be positive"),
    ({"context_noise": 1001}, "context_noise=1001"),
])  # fmt: skip
def test_bad_fields_raise(fields: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Hierarchical(**fields)
    with pytest.raises(ValueError, match=match):
        SAMPLER.build({"name": "hierarchical", **fields})


def test_what_is_the_cards_must_be_given_where_there_is_none() -> None:
    assert replace(HIAR, frame_first_steps=3).lanes == 2
    with pytest.raises(ValueError, match="steps is None, which means the card's"):
        Hierarchical().lanes  # noqa: B018
    with pytest.raises(ValueError, match=r"context_noise=None.*give a value"):
        run(replace(HIAR, context_noise=None), layout(2, 2))
    with pytest.raises(ValueError, match="frame_first_steps=True"):
        Hierarchical(frame_first_steps=True)
