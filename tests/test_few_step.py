"""Few-step sampling with steps of their own for the first chunks, and commits of x0 or of the last noisy input."""

from dataclasses import replace

import pytest
import torch
from dense import KeyedNoise, layout, randn
from orders import LAYOUTS, assert_it_continues, network, run, same

from arvid.cache import Chunk, Sink, Window
from arvid.config import PipelineConfig
from arvid.samplers import SAMPLER, FewStep, warp
from arvid.testing import trace

PLAIN = FewStep((1000, 750, 500, 250), shift=5.0, context_noise=0)
DIAGONAL = FewStep((1000, 100), 5.0, 0, first_steps=((1000, 750, 500, 100), (1000, 750, 100)), commit="last")
PLUS_PLUS = FewStep((1000,), 5.0, 0, first_steps=((1000, 750, 500, 250),))


def passes(sampler: FewStep, chunks: list[Chunk]) -> list[tuple[int, str, float]]:
    return [(flying[0].index, kind, round(1000 * flying[0].sigma, 2)) for kind, flying, _ in trace(sampler, chunks)]


def test_diagonal_distillation_takes_four_three_and_then_two_passes() -> None:
    """Table of arXiv 2603.09488's released schedule at shift 5; the last pass of a chunk is its commit."""
    steps = {0: (1000, 937.5, 833.33, 357.14), 1: (1000, 937.5, 357.14)}
    expected = []
    for i in range(5):
        *denoised, last = steps.get(i, (1000, 357.14))
        expected += [*((i, "denoise", t) for t in denoised), (i, "commit", last), (i, "emit", last)]
    assert passes(DIAGONAL, layout(15, 3)) == expected


@pytest.mark.parametrize("chunks", [1, 2, 5])
def test_only_the_first_chunk_has_steps_of_its_own(chunks: int) -> None:
    found = passes(PLUS_PLUS, layout(chunks, 1))
    assert [entry for entry in found if entry[0] == 0] == passes(PLAIN, layout(1, 1))
    assert [entry for entry in found if entry[0]] == [
        (i, *event) for i in range(1, chunks) for event in (("denoise", 1000), ("commit", 0), ("emit", 0))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_table_that_is_constant_changes_nothing(dtype: torch.dtype, count: int) -> None:
    plain = replace(PLAIN, context_noise=100, context_renoise=True)
    constant = replace(plain, first_steps=(PLAIN.steps,) * count)
    for chunks in LAYOUTS.values():
        runs = [run(s, chunks, network(Window(6), dtype), dtype) for s in (plain, constant)]
        assert same(*runs)


def test_the_noise_of_a_chunk_does_not_depend_on_the_table() -> None:
    asked = []

    class Listening(KeyedNoise):
        def renoise(self, chunk: Chunk, step: int) -> torch.Tensor:
            asked.append((chunk.index, step))
            return super().renoise(chunk, step)

    list(DIAGONAL.rollout(network(), Listening(dtype=torch.float32), layout(6, 2)))
    assert asked == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]


@pytest.mark.parametrize("policy", [Window(6), Sink(8, 2)], ids=str)
def test_committing_the_last_noisy_input_is_the_prediction_and_keeps_its_keys(policy) -> None:
    """Chunk by chunk by hand: where views of both kinds are the same, one pass predicts x0 and leaves its keys."""
    chunks, noise = LAYOUTS["a shorter last one"], KeyedNoise(dtype=torch.float32)
    found, by_hand = network(policy), network(policy)
    for i, emit in enumerate(DIAGONAL.rollout(found, noise, chunks)):
        sigmas = warp([*DIAGONAL.first_steps, DIAGONAL.steps, DIAGONAL.steps][i] or (), 5.0)
        x, chunk = noise.initial(chunks[i]), chunks[i]
        for step, sigma in enumerate(sigmas[:-1]):
            x0 = by_hand(x, (replace(chunk, sigma=sigma),))
            x = x0.lerp(noise.renoise(chunk, step), sigmas[step + 1])
        last = replace(chunk, sigma=sigmas[-1])
        assert torch.equal(by_hand(x, (last,)), emit.x0)
        by_hand.commit(x, (last,))
        assert emit.chunk == last
        held = {ref.frame for ref in found.store.held()}
        assert held == {ref.frame for ref in by_hand.store.held()} >= set(range(chunk.start, chunk.end))
        for frame in held:
            for one, other in zip(found.store.page(frame, 1), by_hand.store.page(frame, 1), strict=True):
                assert torch.equal(one, other)
        assert torch.equal(found.store.book().latents[chunk.start], x[:, 0])


def test_committing_x0_and_the_last_input_differ_from_the_second_chunk_on() -> None:
    runs = [run(replace(PLAIN, commit=how), layout(4, 2)) for how in ("x0", "last")]
    (first, second), (alike, other) = runs
    assert torch.equal(first.x0, alike.x0)
    assert (second.x0 - other.x0).abs().max() > 1e-4


@pytest.mark.parametrize("sampler", [
    PLUS_PLUS, DIAGONAL, replace(PLAIN, context_renoise=True, context_noise=200)
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_rollout_continues_after_any_chunk(sampler: FewStep, name: str) -> None:
    """A continued video has no first chunks again."""
    assert_it_continues(sampler, LAYOUTS[name], lambda: network(Window(4)))


def test_the_first_chunk_that_is_generated_has_the_first_steps_whatever_was_given_before() -> None:
    given, *chunks = layout(8, 2)
    x = randn(1, 2, 4, 4, 6, dtype=torch.float32)
    denoiser = network()
    denoiser.commit(x, (given,))
    emits = run(PLUS_PLUS, chunks, denoiser)
    assert [emit.chunk for emit in emits] == chunks
    assert passes(PLUS_PLUS, chunks)[:5] == [(1, kind, t) for _, kind, t in passes(PLAIN, layout(2, 2))[:5]]
    other = network()
    other.commit(x + 0.1, (given,))
    assert (run(PLUS_PLUS, chunks, other)[0].x0 - emits[0].x0).abs().max() > 1e-5


def test_tables_survive_a_trip_through_toml(tmp_path) -> None:
    for sampler in (DIAGONAL, PLUS_PLUS, PLAIN):
        config = PipelineConfig(sampler=sampler)
        (tmp_path / "c.toml").write_text(config.to_toml())
        assert PipelineConfig.load(tmp_path / "c.toml") == config
    assert SAMPLER.build({"name": "few_step", "first_steps": [[1000, 500]]}) == FewStep(first_steps=((1000, 500),))


@pytest.mark.parametrize(("fields", "match"), [
    ({"first_steps": ((),)}, r"first_steps\[0\]=\(\): give at least one"),
    ({"first_steps": ((1000,), (500, 750))}, r"first_steps\[1\]=\(500, 750\): .* falling"),
    ({"first_steps": ((1200,),)}, r"first_steps\[0\]=.*in \(0, 1000\]"),
    ({"commit": "last", "context_renoise": True}, "context_renoise noises the x0"),
])  # fmt: skip
def test_bad_fields_raise(fields: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        FewStep(**fields)
    with pytest.raises(ValueError, match=match):
        SAMPLER.build({"name": "few_step", **fields})


def test_fields_of_the_wrong_kind_raise() -> None:
    with pytest.raises(ValueError, match=r"first_steps=\(1000, 500\): give the steps of each first chunk in a tuple"):
        FewStep(first_steps=(1000, 500))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="commit='x1'; allowed: 'x0', 'last'"):
        FewStep(commit="x1")  # pyright: ignore[reportArgumentType]
