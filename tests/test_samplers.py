"""Noise levels, and the order of passes of few-step sampling."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from dense import SPEC, KeyedNoise, cached, layout, randn, tiny_dit
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from arvid.cache import Chunk, Window
from arvid.samplers import SAMPLER, FewStep, shift_sigma, unshift_sigma, warp
from arvid.testing import trace

SELF_FORCING = FewStep((1000, 750, 500, 250), shift=5.0, context_noise=0)

shifts = st.floats(0.1, 20)
sigmas = st.floats(0, 1)
steps = st.lists(st.floats(1, 1000), min_size=1, max_size=6, unique=True).map(lambda s: tuple(sorted(s, reverse=True)))


@pytest.mark.parametrize(
    ("shift", "nominal", "timesteps"),
    [
        (5, (1000, 750, 500, 250), (1000, 937.5, 833.3333333333334, 625)),
        (5, (1000, 800, 600, 400, 200),
         (1000, 952.3809523809523, 882.3529411764706, 769.2307692307692, 555.5555555555555)),
        (5, (1000, 500), (1000, 833.3333333333334)),
        (5, (1000, 100), (1000, 357.14285714285717)),
        (8, (1000, 750, 500, 250), (1000, 960, 888.8888888888888, 727.2727272727273)),
        (3, (1000, 750, 500, 250), (1000, 900, 750, 500)),
        (1, (1000, 757, 522), (1000, 757, 522)),
    ],
)  # fmt: skip
def test_warped_steps(shift: float, nominal: tuple[float, ...], timesteps: tuple[float, ...]) -> None:
    assert [1000 * s for s in warp(nominal, shift)] == pytest.approx(timesteps, rel=1e-12)


@given(sigmas, shifts, shifts)
def test_shifts_compose_and_invert(sigma: float, a: float, b: float) -> None:
    assert shift_sigma(shift_sigma(sigma, a), b) == pytest.approx(shift_sigma(sigma, a * b), abs=1e-12)
    assert unshift_sigma(shift_sigma(sigma, a), a) == pytest.approx(sigma, abs=1e-12)
    assert shift_sigma(sigma, 1) == sigma
    assert 0 <= shift_sigma(sigma, a) <= 1 + 1e-15


@given(shifts)
def test_shift_keeps_the_ends(shift: float) -> None:
    assert shift_sigma(0, shift) == 0
    assert shift_sigma(1, shift) == pytest.approx(1, abs=1e-15)


@given(steps, shifts, st.integers(1, 20), st.integers(1, 5), st.floats(0, 1000))
def test_passes_of_a_chunk(nominal: tuple[float, ...], shift: float, frames: int, size: int, context: float) -> None:
    chunks = layout(frames, size)
    events = trace(FewStep(nominal, shift, context), chunks)
    assert len([kind for kind, *_ in events if kind != "emit"]) == len(chunks) * (len(nominal) + 1)
    each = len(nominal) + 2
    for i, chunk in enumerate(chunks):
        own = events[i * each : (i + 1) * each]
        assert [kind for kind, *_ in own] == ["denoise"] * len(nominal) + ["commit", "emit"]
        levels = [*(shift_sigma(step / 1000, shift) for step in nominal), context / 1000, context / 1000]
        assert [seen for _, (seen,), _ in own] == [replace(chunk, sigma=level) for level in levels]
        assert {lane for *_, lane in own} == {0}


class Constant:
    """A model that always predicts the same x0, and remembers what it was given."""

    def __init__(self, x0: Tensor) -> None:
        self.x0 = x0
        self.given: list[Tensor] = []
        self.committed: list[Tensor] = []

    def __call__(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        self.given.append(x_BFCHW)
        return self.x0[:, chunks[0].start : chunks[0].end]

    def commit(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        self.committed.append(x_BFCHW)
        return x_BFCHW


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_constant_model_is_sampled_exactly(dtype: torch.dtype) -> None:
    noise, chunks = KeyedNoise(dtype=dtype), layout(5, 2)
    x0 = randn(1, 5, SPEC.in_channels, 4, 6, dtype=dtype)
    model = Constant(x0)
    emits = list(SELF_FORCING.rollout(model, noise, chunks))
    assert torch.equal(torch.cat([e.x0 for e in emits], 1), x0)
    assert torch.equal(torch.cat(model.committed, 1), x0)
    # what the model was given is noise first, then x0 with fresh noise at each level, rounded once
    for i, chunk in enumerate(chunks):
        assert torch.equal(model.given[4 * i], noise.initial(chunk))
        for step, sigma in enumerate((0.9375, 5 / 6, 0.625)):
            x, fresh = x0[:, chunk.start : chunk.end].double(), noise.renoise(chunk, step).double()
            exact = (1 - sigma) * x + sigma * fresh
            bound = torch.finfo(dtype).eps * (exact.abs() + 1e-3 * (x.abs() + fresh.abs())) + 1e-15
            slack = 4 if dtype is not torch.bfloat16 else 0.5
            off = (model.given[4 * i + 1 + step].double() - exact).abs()
            assert (off <= slack * bound + (dtype is torch.float32) * 1e-6).all()


def test_the_context_level_labels_the_commit_and_noises_it_only_when_asked() -> None:
    noise, chunks = KeyedNoise(), layout(4, 2)
    x0 = randn(1, 4, SPEC.in_channels, 4, 6)
    plain, noised = Constant(x0), Constant(x0)
    sampler = replace(SELF_FORCING, context_noise=300)
    emits = list(sampler.rollout(plain, noise, chunks))
    assert torch.equal(torch.cat(plain.committed, 1), x0)
    assert [e.chunk.sigma for e in emits] == [0.3, 0.3]
    emits = list(replace(sampler, context_renoise=True).rollout(noised, noise, chunks))
    expected = 0.7 * x0 + 0.3 * torch.cat([noise.context(chunk) for chunk in chunks], 1)
    assert (torch.cat(noised.committed, 1) - expected).abs().max() < 1e-14
    assert torch.equal(torch.cat([e.x0 for e in emits], 1), x0)
    # at level 0 there is nothing to add
    clean = Constant(x0)
    list(replace(SELF_FORCING, context_renoise=True).rollout(clean, noise, chunks))
    assert torch.equal(torch.cat(clean.committed, 1), x0)


def test_a_chunk_is_committed_before_it_is_emitted() -> None:
    model = Constant(randn(1, 6, SPEC.in_channels, 4, 6))
    for done, _ in enumerate(SELF_FORCING.rollout(model, KeyedNoise(), layout(6, 2)), start=1):
        assert len(model.committed) == done


def test_a_rollout_continues_from_its_state() -> None:
    dit, text, chunks = tiny_dit(), randn(1, 5, SPEC.text_dim), layout(8, 2)
    whole = list(SELF_FORCING.rollout(cached(dit, text, Window(6)), KeyedNoise(), chunks))
    denoiser = cached(dit, text, Window(6))
    first = SELF_FORCING.rollout(denoiser, KeyedNoise(), chunks)
    head = [next(first), next(first)]
    first.close()  # pyright: ignore[reportAttributeAccessIssue]
    tail = list(SELF_FORCING.rollout(denoiser, KeyedNoise(), chunks, state=head[-1].state))
    assert all(torch.equal(a.x0, b.x0) for a, b in zip(whole, head + tail, strict=True))
    assert [a.chunk for a in whole] == [b.chunk for b in head + tail]
    assert list(SELF_FORCING.rollout(denoiser, KeyedNoise(), chunks, state=whole[-1].state)) == []


def test_a_longer_video_begins_like_a_shorter_one() -> None:
    dit, text = tiny_dit(), randn(1, 5, SPEC.text_dim)
    short, long = (
        torch.cat([e.x0 for e in SELF_FORCING.rollout(cached(dit, text, Window(4)), KeyedNoise(), layout(n, 2))], 1)
        for n in (4, 8)
    )
    assert torch.equal(short, long[:, :4])


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"steps": ()}, "at least one"),
        ({"steps": (500, 750)}, "falling"),
        ({"steps": (500, 500)}, "falling"),
        ({"steps": (1001,)}, "steps="),
        ({"steps": (500, 0)}, "steps="),
        ({"steps": (float("nan"),)}, "steps="),
        ({"shift": 0}, "shift=0"),
        ({"shift": -1.0}, "shift=-1"),
        ({"shift": float("inf")}, "shift="),
        ({"shift": float("nan")}, "shift="),
        ({"context_noise": -1}, "context_noise=-1"),
        ({"context_noise": 1000.5}, "context_noise="),
        ({"context_noise": float("nan")}, "context_noise="),
    ],
)
def test_bad_fields_raise(fields: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        FewStep(**fields)
    with pytest.raises(ValueError, match=match):
        SAMPLER.build({"name": "few_step", **fields})


@pytest.mark.parametrize("missing", ["steps", "shift", "context_noise"])
def test_what_is_the_cards_must_be_given_where_there_is_none(missing: str) -> None:
    sampler = replace(SELF_FORCING, **{missing: None})
    with pytest.raises(ValueError, match=f"{missing}=None.*give a value"):
        trace(sampler, layout(2, 2))
