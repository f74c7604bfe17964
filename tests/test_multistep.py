"""Many-step sampling: the order of passes, published numbers, precision, and the pipeline around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from dense import SPEC, KeyedNoise, cached, layout, randn, tiny_dit
from hypothesis import given
from hypothesis import strategies as st
from random_model import CARD, RED
from torch import Tensor

from arvid import Pipeline, PipelineConfig
from arvid.cache import Chunk, Sink, Window
from arvid.samplers import SAMPLER, Multistep, shift_sigma
from arvid.testing import trace

PLAIN = Multistep("unipc", 4, shift=5.0, guidance=1.0, context_noise=0)
NAMES = ("unipc", "dpm++", "euler")


# Order of passes


@given(st.sampled_from(NAMES), st.integers(1, 9), st.floats(0.2, 10), st.integers(1, 20), st.integers(1, 5),
       st.floats(0, 1000))  # fmt: skip
def test_passes_of_a_chunk(name: Any, steps: int, shift: float, frames: int, size: int, context: float) -> None:
    chunks, sampler = layout(frames, size), Multistep(name, steps, shift, 1.0, context)
    events, each, first = trace(sampler, chunks), steps + 2, 0.999 if name == "unipc" else 1.0
    assert len(events) == len(chunks) * each
    levels = [shift_sigma(first * (1 - i / steps), shift) for i in range(steps)] + [context / 1000] * 2
    for i, chunk in enumerate(chunks):
        own = events[i * each : (i + 1) * each]
        assert [kind for kind, *_ in own] == ["denoise"] * steps + ["commit", "emit"]
        assert [seen.sigma for _, (seen,), _ in own] == pytest.approx(levels, abs=1e-12)
        assert {(replace(seen, sigma=0), lane) for _, (seen,), lane in own} == {(chunk, 0)}
    assert (sampler.in_flight(size), sampler.lanes, sampler.branches, sampler.needs_horizon) == (size, 1, 1, False)


def test_the_network_may_be_told_whole_timesteps() -> None:
    events = trace(replace(PLAIN, integer_timesteps=True), layout(1, 1))
    assert [1000 * seen.sigma for _, (seen,), _ in events[:4]] == [999, 937, 833, 624]
    events = trace(PLAIN, layout(1, 1))
    assert [1000 * seen.sigma for _, (seen,), _ in events[:4]] == pytest.approx(
        [999.79985, 937.26546, 833.05538, 624.68737], abs=5e-5)  # fmt: skip


# Numbers. One value of Gaussian data N(0, 0.25), from x = 1: recorded runs of the solvers published with Wan2.1, with
# levels in float32. The exact end is 0.5.

RECORDED = [
    (5, 2, 0.04961251596926186, 0.049577131287470655, 0.04950495743655714, 0.04950495049504944),
    (5, 4, 0.14218136292480998, 0.1421303695014, 0.14155857081346346, 0.1406512419613496),
    (5, 10, 0.3273821080589686, 0.32797697233694634, 0.32537831999382166, 0.3086228356999762),
    (5, 50, 0.49941929273605506, 0.4999184525905859, 0.5005735363321041, 0.4571497891394488),
    (3, 2, 0.08126397998616042, 0.0810169727796215, 0.08108108108108114, 0.08108108108108114),
    (3, 4, 0.2177039825896307, 0.21786204634505457, 0.21570061968092114, 0.2121081081081081),
    (3, 10, 0.41077665951318231, 0.41133923997421745, 0.40675943949676235, 0.3696920081801073),
    (3, 50, 0.5025856042668229, 0.5029950871375299, 0.5046220122054002, 0.47158730721029574),
]
COLUMNS = [("unipc", False), ("unipc", True), ("dpm++", False), ("euler", False)]


@dataclass
class Gaussian:
    """The best x0 of data N(0, 0.25), at the level that the chunk is said to have."""

    committed: list[Tensor] = field(default_factory=list)

    def __call__(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        sigma = chunks[0].sigma
        return 0.25 * (1 - sigma) / (0.25 * (1 - sigma) ** 2 + sigma**2) * x_BFCHW

    def commit(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        self.committed.append(x_BFCHW)
        return x_BFCHW


class Given:
    """Initial noise of one value; a chunk of its own index has as many times as much."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.dtype = dtype

    def initial(self, chunk: Chunk) -> Tensor:
        return torch.full((1, chunk.n, 1, 1, 1), 1.0 + chunk.index, dtype=self.dtype)

    def renoise(self, chunk: Chunk, step: int) -> Tensor:
        raise AssertionError("no fresh noise is needed")

    def context(self, chunk: Chunk) -> Tensor:
        raise AssertionError("no fresh noise is needed")


@pytest.mark.parametrize("column", range(4), ids=[f"{name} {whole}" for name, whole in COLUMNS])
@pytest.mark.parametrize("row", RECORDED, ids=lambda row: f"shift {row[0]} steps {row[1]}")
def test_recorded_ends(row: tuple[float, ...], column: int) -> None:
    name, whole = COLUMNS[column]
    sampler = Multistep(name, int(row[1]), row[0], 1.0, 0, integer_timesteps=whole)  # pyright: ignore[reportArgumentType]
    # Chunk 1 begins at 2: the model is linear, and its solver knows nothing of chunk 0.
    ends = [emit.x0.item() for emit in sampler.rollout(Gaussian(), Given(), layout(2, 1))]
    assert ends == pytest.approx([row[2 + column], 2 * row[2 + column]], rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_latents_of_bfloat16_are_solved_in_float32(name: Any) -> None:
    sampler = Multistep(name, 50, 5.0, 1.0, 0)
    (exact,), (half,) = ([emit.x0 for emit in sampler.rollout(Gaussian(), Given(dtype), layout(1, 1))]
                         for dtype in (torch.float64, torch.bfloat16))  # fmt: skip
    assert half.dtype is torch.bfloat16
    assert half.equal(exact.to(torch.bfloat16))  # one rounding, at the end


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_constant_model_is_sampled_exactly(name: Any, dtype: torch.dtype) -> None:
    x0, committed = randn(1, 5, SPEC.in_channels, 4, 6, dtype=dtype), []

    class Constant(Gaussian):
        def __call__(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
            return x0[:, chunks[0].start : chunks[0].end].to(x_BFCHW.dtype)

        def commit(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
            committed.append((x_BFCHW, chunks[0].sigma))
            return x_BFCHW

    sampler = Multistep(name, 7, 5.0, 1.0, context_noise=100)
    emits = list(sampler.rollout(Constant(), KeyedNoise(dtype=dtype), layout(5, 2)))
    assert torch.cat([emit.x0 for emit in emits], 1).equal(x0)
    assert [emit.chunk.sigma for emit in emits] == [sigma for _, sigma in committed] == [0.1] * 3
    assert all(emit.x0 is kept for emit, (kept, _) in zip(emits, committed, strict=True))


# With a network


@pytest.mark.parametrize("name", NAMES)
def test_a_rollout_stops_after_any_chunk_and_continues(name: Any) -> None:
    dit, text, chunks = tiny_dit(), randn(1, 5, SPEC.text_dim), layout(8, 2)
    sampler = Multistep(name, 3, 3.0, 1.0, 50)
    whole = list(sampler.rollout(cached(dit, text, Window(6)), KeyedNoise(), chunks))
    for stop in range(1, len(chunks) + 1):
        first, again = cached(dit, text, Window(6)), cached(dit, text, Window(6))
        started = sampler.rollout(first, KeyedNoise(), chunks)
        head = [next(started) for _ in range(stop)]
        again.store.restore(first.store.snapshot())
        tail = list(sampler.rollout(again, KeyedNoise(), chunks, head[-1].state))
        assert [emit.chunk for emit in head + tail] == [emit.chunk for emit in whole]
        assert all(a.x0.equal(b.x0) for a, b in zip(whole, head + tail, strict=True))


def test_a_network_of_bfloat16_sees_rounded_latents_and_its_x0_is_not_rounded() -> None:
    dit, text = tiny_dit(dtype=torch.bfloat16), randn(1, 5, SPEC.text_dim, dtype=torch.bfloat16)
    seen: list[tuple[Any, ...]] = []
    dit.register_forward_hook(lambda _, inputs, out: seen.append((*inputs[:2], out)))
    denoiser, x = cached(dit, text, Window(6)), randn(1, 2, SPEC.in_channels, 4, 6, dtype=torch.float32)
    x0 = denoiser(x, (Chunk(0, 2, 0.7654321),))
    latents, timestep, velocity = seen.pop()
    assert latents.equal(x.bfloat16())
    assert timestep.tolist()[0] == pytest.approx([765.4321] * 2, rel=1e-7)
    assert x0.dtype is torch.float32
    assert x0.equal(x - torch.tensor(0.7654321) * velocity.float())
    emits = list(PLAIN.rollout(denoiser, KeyedNoise(dtype=torch.bfloat16), layout(4, 2)))
    assert {emit.x0.dtype for emit in emits} == {torch.bfloat16}
    assert denoiser.store.book().latents[3].equal(emits[1].x0[:, 1])


def test_the_first_level_decides_one_step() -> None:
    dit, text = tiny_dit(), randn(1, 5, SPEC.text_dim)
    (emit,) = Multistep("dpm++", 1, 5.0, 1.0, 0).rollout(cached(dit, text, Window(6)), KeyedNoise(), layout(2, 2))
    x = KeyedNoise().initial(Chunk(0, 2))
    assert emit.x0.equal(cached(dit, text, Window(6))(x, (Chunk(0, 2, 1.0),)))


# In a pipeline


def test_what_is_none_is_the_cards(pipe: Pipeline) -> None:
    own = Pipeline.from_parts(pipe.dit, PipelineConfig(sampler="multistep"), card=replace(CARD, context_noise=20.0))
    assert own.config.sampler == Multistep(shift=3.0, context_noise=20.0)
    assert PipelineConfig.from_dict(own.config.to_dict()) == own.config
    for missing in ("shift", "context_noise"):
        with pytest.raises(ValueError, match=f"{missing}=None.*give a value"):
            trace(replace(PLAIN, **{missing: None}), layout(2, 2))
    with pytest.raises(ValueError, match=r"sampler\.shift, sampler\.context_noise: None, which means the card's"):
        Pipeline.from_parts(pipe.dit, PipelineConfig(cache="full", sampler="multistep", chunk=2))


def test_a_cache_that_cannot_serve_the_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit each other"):
        PipelineConfig(cache=Sink(4, 2), sampler=PLAIN, chunk=3)


@pytest.mark.parametrize("name", NAMES)
def test_the_bundled_model_runs(name: Any) -> None:
    """It is distilled for four steps, so that nothing is said of the picture."""
    pipe = Pipeline.load(PipelineConfig(sampler=Multistep(name, 5)))
    one, other = (pipe.latents(prompt=RED, frames=5, seed=seed) for seed in (1, 2))
    assert one.shape == (1, 5, 16, 8, 8)
    assert 0.3 < one.std() < 5
    assert (one - other).abs().mean() > 0.1


# Fields


@pytest.mark.parametrize(("fields", "match"), [
    ({"solver": "unipcc"}, "solver|one of"),
    ({"num_steps": 0}, "num_steps=0"),
    ({"num_steps": True}, "num_steps"),
    ({"num_steps": 2.0}, "num_steps"),
    ({"shift": 0}, "shift=0"),
    ({"shift": float("inf")}, "shift="),
    ({"guidance": -0.5}, "guidance=-0.5"),
    ({"guidance": float("nan")}, "guidance=nan"),
    ({"guidance": float("inf")}, "guidance=inf"),
    ({"context_noise": -1}, "context_noise=-1"),
    ({"context_noise": 1001}, "context_noise=1001"),
    ({"integer_timesteps": True, "shift": 1.0, "num_steps": 1500}, "timestep 0.666, whose whole part is 0"),
])  # fmt: skip
def test_bad_fields_raise(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Multistep(**fields)
    with pytest.raises(ValueError, match=match):
        SAMPLER.build({"name": "multistep", **fields})
