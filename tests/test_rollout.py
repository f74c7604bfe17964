"""A rollout over the store against dense attention without one, and against recorded runs of other code."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from dense import SIZE, SPEC, Explicit, KeyedNoise, Oracle, Rule, cached, golden, layout, randn, tiny_dit
from torch import Tensor

import arvid
from arvid.cache import CachePolicy, Chunk, Full, Kind, Pass, Ref, Sink, Window, whole_plan
from arvid.config import PipelineConfig
from arvid.models.attention import PlannedAttention
from arvid.models.dit import CausalDiT
from arvid.positional import Absolute, Rope, Rotary, RotaryContext
from arvid.samplers import Denoiser, FewStep
from arvid.testing import MaskedAttention, RecordedNoise

FRAMES = 8
SAMPLER = FewStep((1000, 500), shift=5.0, context_noise=100)


@pytest.fixture(scope="module")
def dit() -> CausalDiT:
    return tiny_dit()


@pytest.fixture(scope="module")
def text() -> Tensor:
    return randn(1, SPEC.text_length, SPEC.text_dim, seed=7)


def rollout(denoiser: Denoiser, chunks: Sequence[Chunk], batch: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.cat([emit.x0 for emit in SAMPLER.rollout(denoiser, KeyedNoise(batch, dtype), chunks)], 1)


def error(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def rule_of(policy: CachePolicy, size: int) -> Rule:
    """The window rule in its plainest words: a frame is seen when it is a sink, or recent enough.

    `size` is that of full chunks: a shorter last one has the room for more history, but only as much is held.
    """

    def rule(chunk: Chunk, kind: Kind) -> list[tuple[int, float, float]]:
        sink, first = 0, 0
        if isinstance(policy, Window | Sink):
            assert policy.window is not None
            sinks = (policy.sink or 0) if isinstance(policy, Sink) else 0
            always = not isinstance(policy, Sink) or policy.sink_on_commit
            sink = sinks if always or kind is Kind.DENOISE else 0
            held = policy.window - (sinks if always else 0) - size
            first = chunk.start - min(held, policy.window - sink - chunk.n)
        return [(frame, float(frame), 0.0) for frame in range(chunk.start) if frame < sink or frame >= first]

    return rule


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    "policy",
    [Full(), Window(5), Window(4), Sink(6, 1), Sink(7, 3), Sink(6, 2, sink_on_commit=False)],
    ids=str,
)
def test_cached_rollout_equals_dense_masked_forwards(
    dit: CausalDiT, text: Tensor, policy: CachePolicy, size: int
) -> None:
    chunks = layout(FRAMES, size)
    expected = rollout(Oracle(dit, text, rule_of(policy, size)), chunks)
    for rotated in (True, False):
        assert error(rollout(cached(dit, text, policy, rotated=rotated), chunks), expected) < 1e-9


def test_the_oracle_can_tell_windows_apart(dit: CausalDiT, text: Tensor) -> None:
    chunks = layout(11, 2)
    policies = (Full(), Window(6), Window(5), Sink(6, 1), Sink(6, 1, False))
    runs = [rollout(cached(dit, text, policy), chunks) for policy in policies]
    assert min(error(a, b) for i, a in enumerate(runs) for b in runs[:i]) > 1e-5


def test_a_window_as_long_as_the_video_equals_full(dit: CausalDiT, text: Tensor) -> None:
    chunks = layout(FRAMES, 3)
    full = rollout(cached(dit, text, Full()), chunks)
    for policy in (Window(12), Sink(12, 3), Sink(12, 3, sink_on_commit=False)):
        assert torch.equal(rollout(cached(dit, text, policy), chunks), full)
    # and for as long as the video fits
    assert torch.equal(rollout(cached(dit, text, Window(9)), chunks)[:, :9], full[:, :9])


def test_the_first_chunk_alone(dit: CausalDiT, text: Tensor) -> None:
    chunks = [Chunk(0, 1), Chunk(1, 3, index=1), Chunk(4, 3, index=2), Chunk(7, 3, index=3)]
    policy = Sink(6, 1)
    expected = rollout(Oracle(dit, text, rule_of(policy, 3)), chunks)
    assert error(rollout(cached(dit, text, policy), chunks), expected) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_raw_and_rotated_keys_give_the_same_video(dtype: torch.dtype) -> None:
    dit, text = tiny_dit(dtype=dtype), randn(1, 5, SPEC.text_dim, dtype=dtype)
    chunks = layout(FRAMES, 3)
    runs = [rollout(cached(dit, text, Sink(7, 2), rotated=rotated), chunks, dtype=dtype) for rotated in (True, False)]
    assert error(runs[0], runs[1]) < 1e-12
    assert runs[0].dtype is dtype


def test_static_choices_store_rotated_keys(dit: CausalDiT, text: Tensor) -> None:
    assert cached(dit, text, Window(5)).store.rotated
    assert not cached(dit, text, Twice()).store.rotated


@dataclass(frozen=True)
class Listening(Rotary):
    """Rope that remembers what it was told."""

    heard: list[RotaryContext] = field(default_factory=list)

    def inv_freq(self, context: RotaryContext) -> np.ndarray:
        self.heard.append(context)
        return Rope().inv_freq(context)


def test_frequency_rules_are_told_the_horizon_and_how_far_the_video_is(dit: CausalDiT, text: Tensor) -> None:
    rotary = Listening()
    rollout(cached(dit, text, Window(6), rotary=rotary, horizon=8), layout(8, 3))
    assert [c.end for c in rotary.heard] == [3, 3, 3, 6, 6, 6, 8, 8, 8]
    assert {(c.horizon, c.dim, c.heads, c.train_horizon) for c in rotary.heard} == {(8, 8, 2, None)}


@dataclass(frozen=True)
class Slowing(Rotary):
    """Frequencies that fall as the video grows, one ladder a head; promises to be static, and is not."""

    def inv_freq(self, context: RotaryContext) -> np.ndarray:
        plain = Rope().inv_freq(context) / (1 + context.end)
        return np.stack([plain * (1 + head) for head in range(context.heads)])


def test_frequencies_that_change_turn_every_key_and_refuse_rotated_storage(dit: CausalDiT, text: Tensor) -> None:
    chunks = layout(8, 2)
    moved = rollout(cached(dit, text, Window(6), rotary=Slowing(), rotated=False), chunks)
    assert error(moved, rollout(cached(dit, text, Window(6)), chunks)) > 1e-6
    with pytest.raises(ValueError, match=r"frequencies changed.*is_static"):
        rollout(cached(dit, text, Window(6), rotary=Slowing(), rotated=True), chunks)


def test_frequencies_of_each_head_turn_held_keys_as_a_whole_pass_does(dit: CausalDiT, text: Tensor) -> None:
    chunks, policy, x = layout(6, 2), Full(), randn(1, 6, SPEC.in_channels, *SIZE, seed=3)
    freq = Slowing().inv_freq(RotaryContext(SPEC.axes[0], SPEC.num_heads, end=6))

    @dataclass(frozen=True)
    class Frozen(Rotary):
        def inv_freq(self, context: RotaryContext) -> np.ndarray:
            return freq

    denoiser = cached(dit, text, policy, rotary=Frozen(), rotated=False)
    for chunk in chunks[:-1]:
        denoiser.commit(x[:, chunk.start : chunk.end], (chunk,))
    last = replace(chunks[-1], sigma=0.5)
    mixer = PlannedAttention(whole_plan(policy, Absolute(), chunks), freq, dit.grid(SIZE), SPEC.axes, torch.float64)
    levels = torch.tensor([[0.0] * 4 + [500.0] * 2]).double()
    expected = x[:, 4:] - 0.5 * dit(x, levels, text, mixer)[:, 4:]
    assert error(denoiser(x[:, 4:], (last,)), expected) < 1e-9


@pytest.mark.parametrize("shape", [(5,), (3, 4), (1, 4)])
def test_frequencies_of_a_wrong_shape_are_refused(dit: CausalDiT, text: Tensor, shape: tuple[int, ...]) -> None:
    @dataclass(frozen=True)
    class Odd(Rotary):
        def inv_freq(self, context: RotaryContext) -> np.ndarray:
            return np.ones(shape)

    with pytest.raises(ValueError, match=r"Odd.inv_freq has shape .*allowed: \(4,\) or \(2, 4\)"):
        rollout(cached(dit, text, Full(), rotary=Odd()), layout(2, 2))


@dataclass(frozen=True)
class Uneven(CachePolicy):
    """The last two frames, some fainter than others."""

    def select(self, held: Sequence[Ref], new: Pass) -> Sequence[Ref]:
        return [replace(ref, bias=-0.3 * (ref.frame % 5)) for ref in held[-2:]]


def test_biases_are_added_to_the_logits(dit: CausalDiT, text: Tensor) -> None:
    chunks = layout(8, 2)

    def rule(chunk: Chunk, kind: Kind) -> list[tuple[int, float, float]]:
        return [(frame, float(frame), -0.3 * (frame % 5)) for frame in range(chunk.start)[-2:]]

    expected = rollout(Oracle(dit, text, rule), chunks)
    assert error(expected, rollout(cached(dit, text, Window(4)), chunks)) > 1e-4
    for rotated in (True, False):
        assert error(rollout(cached(dit, text, Uneven(), rotated=rotated), chunks), expected) < 1e-9
    # the same in one whole-sequence pass, in classes of several groups and for a batch
    x, texts = randn(3, 8, SPEC.in_channels, *SIZE), randn(3, 5, SPEC.text_dim)
    plan = whole_plan(Uneven(), Absolute(), chunks)
    freq = Rope().inv_freq(RotaryContext(SPEC.axes[0], SPEC.num_heads))
    mixer = PlannedAttention(plan, freq, dit.grid(SIZE), SPEC.axes, torch.float64)
    oracle = Oracle(dit, texts, rule)
    for chunk in chunks:
        oracle.commit(x[:, chunk.start : chunk.end], (replace(chunk, sigma=0.4),))
    level, explicit = torch.full((3,), 400.0).double(), Explicit(oracle.views, dit.grid(SIZE), SPEC.axes)
    assert error(dit(x, level, texts, mixer), dit(x, level, texts, explicit)) < 1e-9


@dataclass(frozen=True)
class Twice(CachePolicy):
    """The last two frames, and the first one once more as if it had just been."""

    def select(self, held: Sequence[Ref], new: Pass) -> Sequence[Ref]:
        again = [Ref(0, at=new.frames.start - 0.5, role="memory")] if held else []
        return [*held[:1], *again, *(ref for ref in held[-2:] if ref.frame)]


def test_a_frame_can_be_seen_twice_at_different_times(dit: CausalDiT, text: Tensor) -> None:
    chunks = layout(8, 2)

    def rule(chunk: Chunk, kind: Kind) -> list[tuple[int, float, float]]:
        if not chunk.start:
            return []
        recent = [frame for frame in (chunk.start - 2, chunk.start - 1) if frame]
        return [(0, 0.0, 0.0), (0, chunk.start - 0.5, 0.0), *((frame, float(frame), 0.0) for frame in recent)]

    assert error(rollout(cached(dit, text, Twice()), chunks), rollout(Oracle(dit, text, rule), chunks)) < 1e-9
    with pytest.raises(ValueError, match=r"frame 0 .* stored rotated.*static = False"):
        rollout(cached(dit, text, Twice(), rotated=True), chunks)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
def test_a_row_of_a_batch_equals_the_video_made_alone(dtype: torch.dtype, bound: float) -> None:
    dit, chunks = tiny_dit(dtype=dtype), layout(8, 3)
    texts = randn(3, 5, SPEC.text_dim, dtype=dtype)
    batch = rollout(cached(dit, texts, Sink(6, 2)), chunks, 3, dtype)
    noise = KeyedNoise(3, dtype)

    class Row:
        def __init__(self, row: int) -> None:
            self.row = row

        def initial(self, chunk: Chunk) -> Tensor:
            return noise.initial(chunk)[self.row :][:1]

        def renoise(self, chunk: Chunk, step: int) -> Tensor:
            return noise.renoise(chunk, step)[self.row :][:1]

        def context(self, chunk: Chunk) -> Tensor:
            return noise.context(chunk)[self.row :][:1]

    for row in range(3):
        alone = SAMPLER.rollout(cached(dit, texts[row : row + 1], Sink(6, 2)), Row(row), chunks)
        assert error(torch.cat([emit.x0 for emit in alone], 1), batch[row : row + 1]) < bound


@pytest.mark.parametrize("policy", [Full(), Window(5), Sink(6, 1), Sink(6, 2, sink_on_commit=False)], ids=str)
@pytest.mark.parametrize("first_alone", [False, True])
def test_teacher_forcing_equals_sequential_passes(dit: CausalDiT, policy: CachePolicy, first_alone: bool) -> None:
    frames = 7
    chunks = layout(frames, 3)
    if first_alone:
        chunks = [Chunk(0, 1), Chunk(1, 3, index=1), Chunk(4, 3, index=2)]
    texts = randn(2, 5, SPEC.text_dim)
    clean, *noisy = (randn(2, frames, SPEC.in_channels, *SIZE, seed=seed) for seed in range(3))
    sigmas = [[0.3 + 0.1 * copy + 0.15 * c.index for c in chunks for _ in range(c.n)] for copy in range(2)]
    levels = 1000 * torch.tensor([[0.0] * frames + sigmas[0] + sigmas[1]], dtype=torch.float64).expand(2, -1)
    plan = whole_plan(policy, Absolute(), chunks, noisy=2)
    freq = Rope().inv_freq(RotaryContext(SPEC.axes[0], SPEC.num_heads))
    mixers = [
        kind(plan, freq, dit.grid(SIZE), SPEC.axes, dtype=torch.float64) for kind in (PlannedAttention, MaskedAttention)
    ]
    outs = [dit(torch.cat((clean, *noisy), 1), levels, texts, mixer) for mixer in mixers]
    assert error(*outs) < 1e-10
    denoiser = cached(dit, texts, policy)
    for chunk in chunks:
        own = slice(chunk.start, chunk.end)
        for copy, x in enumerate(noisy):
            sigma = sigmas[copy][chunk.start]
            x0 = denoiser(x[:, own], (replace(chunk, sigma=sigma),))
            velocity = outs[0][:, frames * (copy + 1) :][:, own]
            assert error(x0, x[:, own] - sigma * velocity) < 1e-9
        denoiser.commit(clean[:, own], (chunk,))


def test_several_chunks_in_one_pass_each_at_its_own_level(dit: CausalDiT, text: Tensor) -> None:
    """A joint window: frames in flight see one another, whatever their chunk."""
    x = randn(1, 7, SPEC.in_channels, *SIZE)
    denoiser = cached(dit, text, Full())
    denoiser.commit(x[:, :3], (Chunk(0, 3),))
    x0 = denoiser(x[:, 3:], (Chunk(3, 2, 0.5), Chunk(5, 2, 0.75)))
    plan = whole_plan(Full(), Absolute(), [Chunk(0, 3), Chunk(3, 4)])
    freq = Rope().inv_freq(RotaryContext(SPEC.axes[0], SPEC.num_heads))
    levels = torch.tensor([[0.0] * 3 + [0.5] * 2 + [0.75] * 2]).double()
    mixer = PlannedAttention(plan, freq, dit.grid(SIZE), SPEC.axes, torch.float64)
    expected = x - levels[..., None, None, None] * dit(x, 1000 * levels, text, mixer)
    assert error(x0, expected[:, 3:]) < 1e-10


@pytest.mark.parametrize("shape", [(2, 2, 4, 4, 6), (1, 3, 4, 4, 6), (1, 2, 3, 4, 6), (1, 2, 4, 4, 8)])
def test_latents_of_another_shape_are_refused(dit: CausalDiT, text: Tensor, shape: tuple[int, ...]) -> None:
    denoiser = cached(dit, text, Full())
    with pytest.raises(ValueError, match=r"latents have shape .* this pass needs \(1, 2, 4, 4, 6\)"):
        denoiser(randn(*shape), (Chunk(0, 2, 0.5),))
    assert denoiser.store.held() == ()


def test_golden_window() -> None:
    """A recorded Self Forcing rollout, 9 chunks of 3 frames in a window of 9, through the public pipeline."""
    dit, tensors = golden("window")
    config = PipelineConfig(
        noise=RecordedNoise(tensors["noise"], tensors["renoise"]),
        cache=Window(9),
        sampler=FewStep((1000, 750, 500, 250), shift=5.0, context_noise=0),
        chunk=3,
    )
    latents = arvid.Pipeline.from_parts(dit, config).latents(text=tensors["context"], frames=27, height=8, width=12)
    assert error(latents, tensors["latents"]) < 3e-6


def test_recorded_noise_says_what_it_lacks() -> None:
    noise = RecordedNoise(torch.zeros(1, 4, 2, 1, 1), torch.zeros(2, 1, 1, 2, 2, 1, 1))
    with pytest.raises(ValueError, match="nothing for initial noise of chunk 2"):
        noise.batch([0], 0, 0, Chunk(4, 2, index=2), (2, 1, 1))
    with pytest.raises(ValueError, match="nothing for renoise noise of chunk 0, step 1"):
        noise.batch([0], 1, 1, Chunk(0, 2), (2, 1, 1))
    with pytest.raises(ValueError, match=r"shape \(1, 2, 2, 1, 1\)"):
        noise.batch([0, 1], 0, 0, Chunk(0, 2), (2, 1, 1))


def test_the_mask_oracle_refuses_what_a_mask_cannot_say() -> None:
    for policy in (Uneven(), Twice()):
        with pytest.raises(ValueError, match="one time"):
            MaskedAttention(whole_plan(policy, Absolute(), layout(4, 2)), np.ones(4), (1, 1), (8, 8, 8))


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1j])
def test_frequencies_are_finite_numbers(dit, text, wrong, static):
    rules = {"is_static": lambda _, horizon: static, "inv_freq": lambda _, c: np.full(c.dim // 2, wrong)}
    rotary = type("Wrong", (Rotary,), rules)()
    denoiser = cached(dit, text, Full(), rotary=rotary)
    with pytest.raises(ValueError, match=r"Wrong\.inv_freq gave .* finite numbers"):
        denoiser(randn(1, 2, SPEC.in_channels, *SIZE), (Chunk(0, 2, 1.0),))
