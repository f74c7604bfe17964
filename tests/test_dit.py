"""The transformer against recorded outputs, against diffusers, and against itself."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from dense import SIZE, SPEC, golden, randn, randomise, tiny_dit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arvid.cache import Chunk, Full, Window, whole_plan
from arvid.models.attention import PlannedAttention
from arvid.models.dit import CausalDiT
from arvid.models.specs import DiTSpec, card
from arvid.positional import Absolute, Rope, RotaryContext


@pytest.fixture(scope="module")
def dit() -> CausalDiT:
    return tiny_dit()


def inputs(batch: int = 2, frames: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    x = randn(batch, frames, SPEC.in_channels, *SIZE, dtype=dtype)
    text = randn(batch, SPEC.text_length, SPEC.text_dim, seed=1, dtype=dtype)
    return x, torch.linspace(100, 900, batch, dtype=torch.promote_types(dtype, torch.float32)), text


def causal(chunks: list[Chunk]) -> PlannedAttention:
    freq = Rope().inv_freq(RotaryContext(SPEC.axes[0], SPEC.num_heads))
    plan = whole_plan(Full(), Absolute(), chunks)
    return PlannedAttention(plan, freq, (SIZE[0] // 2, SIZE[1] // 2), SPEC.axes, torch.float64)


def test_golden_bidirectional() -> None:
    dit, tensors = golden("bidirectional")
    frames = tensors["out"].shape[1]
    with torch.no_grad():
        out = dit(tensors["noise"][:, :frames], tensors["t"], tensors["context"])
    assert (out - tensors["out"]).abs().max() < 3e-6


# Wan's names to those of diffusers' WanTransformer3DModel.
RENAMED = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.modulation": "scale_shift_table",
    "head.head": "proj_out",
    ".modulation": ".scale_shift_table",
    "self_attn": "attn1",
    "cross_attn": "attn2",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
} | {f"attn{n}.{letter}.": f"attn{n}.to_{letter}." for n in (1, 2) for letter in "qkv"}
RENAMED |= {f"attn{n}.o.": f"attn{n}.to_out.0." for n in (1, 2)}


def for_diffusers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in weights.items():
        for ours, theirs in RENAMED.items():
            name = name.replace(ours, theirs)
        renamed[name] = value
    return renamed


@pytest.mark.parametrize("seed", range(4))
def test_parity_with_diffusers(seed: int) -> None:
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    rng = torch.Generator().manual_seed(seed)

    def pick(*values: int) -> int:
        return values[int(torch.randint(len(values), (), generator=rng))]

    heads, width, channels = pick(1, 2, 3), pick(12, 16, 24, 32), pick(3, 4)
    spec = DiTSpec(heads * width, pick(40, 72), heads, pick(1, 2), channels, channels, pick(6, 10), 7, pick(8, 32))
    ours = tiny_dit(spec, torch.float32, seed)
    theirs = WanTransformer3DModel(
        patch_size=spec.patch, num_attention_heads=heads, attention_head_dim=width, in_channels=channels,
        out_channels=channels, text_dim=spec.text_dim, freq_dim=spec.freq_dim, ffn_dim=spec.ffn_dim,
        num_layers=spec.num_blocks, cross_attn_norm=True, qk_norm="rms_norm_across_heads", eps=spec.eps,
        rope_max_seq_len=64,
    ).eval()  # fmt: skip
    theirs.load_state_dict(for_diffusers(ours.state_dict()))

    frames, size = pick(1, 4, 5), (2 * pick(2, 3), 2 * pick(3, 4))
    x = randn(2, frames, channels, *size, seed=seed, dtype=torch.float32)
    text = randn(2, 7, spec.text_dim, seed=seed + 1, dtype=torch.float32)
    level = torch.tensor([937.5, 12.25])
    each = torch.rand(2, frames, generator=rng) * 1000
    tokens = (size[0] // 2) * (size[1] // 2)
    with torch.no_grad():
        for timestep, per_token in ((level, level), (each, each.repeat_interleave(tokens, 1))):
            expected = theirs(x.transpose(1, 2), per_token, text, return_dict=False)[0].transpose(1, 2)
            assert (ours(x, timestep, text) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [("wan2.1-t2v-1.3b", 825, 1_418_996_800), ("wan2.1-t2v-14b", 1095, 14_288_491_584)],
)
def test_parameters_are_those_of_published_checkpoints(name: str, tensors: int, parameters: int) -> None:
    spec = card(name).dit
    with torch.device("meta"):
        state = CausalDiT(spec).state_dict()
    assert len(state) == tensors
    assert sum(value.numel() for value in state.values()) == parameters
    dim, linear = spec.dim, {"weight": (spec.dim, spec.dim), "bias": (spec.dim,)}
    expected: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (dim, 16, 1, 2, 2), "patch_embedding.bias": (dim,),
        "text_embedding.0.weight": (dim, 4096), "text_embedding.0.bias": (dim,),
        "text_embedding.2.weight": (dim, dim), "text_embedding.2.bias": (dim,),
        "time_embedding.0.weight": (dim, 256), "time_embedding.0.bias": (dim,),
        "time_embedding.2.weight": (dim, dim), "time_embedding.2.bias": (dim,),
        "time_projection.1.weight": (6 * dim, dim), "time_projection.1.bias": (6 * dim,),
        "head.modulation": (1, 2, dim), "head.head.weight": (64, dim), "head.head.bias": (64,),
    }  # fmt: skip
    for i in range(spec.num_blocks):
        block = f"blocks.{i}."
        expected[block + "modulation"] = (1, 6, dim)
        expected |= {block + f"norm3.{kind}": (dim,) for kind in ("weight", "bias")}
        for attention in ("self_attn.", "cross_attn."):
            expected |= {f"{block}{attention}{m}.{kind}": linear[kind] for m in "qkvo" for kind in linear}
            expected |= {f"{block}{attention}{norm}.weight": (dim,) for norm in ("norm_q", "norm_k")}
        expected |= {block + "ffn.0.weight": (spec.ffn_dim, dim), block + "ffn.0.bias": (spec.ffn_dim,)}
        expected |= {block + "ffn.2.weight": (dim, spec.ffn_dim), block + "ffn.2.bias": (dim,)}
    assert {key: tuple(value.shape) for key, value in state.items()} == expected


def test_one_level_for_all_frames_is_a_level_each(dit: CausalDiT) -> None:
    x, timestep, text = inputs()
    assert (dit(x, timestep[:, None].expand(-1, 4), text) - dit(x, timestep, text)).abs().max() < 1e-12


def test_a_frames_level_reaches_later_chunks_only(dit: CausalDiT) -> None:
    x, timestep, text = inputs(frames=6)
    chunks = [Chunk(0, 2), Chunk(2, 2, index=1), Chunk(4, 2, index=2)]
    levels = timestep[:, None].repeat(1, 6)
    before = dit(x, levels, text, causal(chunks))
    levels[:, 3] += 50
    change = (dit(x, levels, text, causal(chunks)) - before).abs().amax((0, 2, 3, 4))
    assert (change[:2] == 0).all()
    assert (change[2:] > 1e-6).all()


def test_without_attention_a_frames_level_reaches_that_frame_only(dit: CausalDiT) -> None:
    class Silent:
        def mix(self, layer: int, q_BNhd: Tensor, k_BNhd: Tensor, v_BNhd: Tensor) -> Tensor:
            return torch.zeros_like(v_BNhd)

    x, timestep, text = inputs()
    levels = timestep[:, None].repeat(1, 4)
    before = dit(x, levels, text, Silent())
    levels[:, 2] += 50
    change = (dit(x, levels, text, Silent()) - before).abs().amax((0, 2, 3, 4))
    assert change[2] > 1e-3
    assert change[[0, 1, 3]].max() == 0


@settings(max_examples=10)
@given(st.integers(1, 5), st.sampled_from([Full(), Window(9)]))
def test_one_chunk_of_all_frames_is_the_bidirectional_model(frames: int, policy: Full | Window) -> None:
    dit = tiny_dit()
    x, timestep, text = inputs(frames=frames)
    plan = whole_plan(policy, Absolute(), [Chunk(0, frames)])
    freq = Rope().inv_freq(RotaryContext(SPEC.axes[0], SPEC.num_heads))
    mixer = PlannedAttention(plan, freq, dit.grid(SIZE), SPEC.axes, torch.float64)
    assert torch.equal(dit(x, timestep, text, mixer), dit(x, timestep, text))


def test_padding_rows_of_the_text_are_attended_to(dit: CausalDiT) -> None:
    x, timestep, text = inputs()
    padded = torch.cat((text, torch.zeros(2, 3, SPEC.text_dim)), 1)
    assert (dit(x, timestep, padded) - dit(x, timestep, text)).abs().max() > 1e-3


def test_fractional_timesteps_reach_the_network(dit: CausalDiT) -> None:
    x, _, text = inputs(batch=1)
    level = torch.tensor([937.5]).double()
    assert (dit(x, level, text) - dit(x, level.floor(), text)).abs().max() > 1e-3


def test_prepared_text_is_the_text(dit: CausalDiT) -> None:
    x, timestep, text = inputs()
    prepared = dit.prepare_text(text)
    assert torch.equal(dit(x, timestep, prepared), dit(x, timestep, text))
    hidden = torch.zeros(2, 1, 1, SPEC.text_length).double()
    hidden[..., 3:] = -torch.inf
    masked = dit(x, timestep, dit.prepare_text(text, hidden))
    assert (masked - dit(x, timestep, text[:, :3])).abs().max() < 1e-12


def test_rows_of_a_batch_do_not_meet(dit: CausalDiT) -> None:
    x, timestep, text = inputs(batch=3)
    whole = dit(x, timestep, text)
    for row in range(3):
        one = slice(row, row + 1)
        assert (dit(x[one], timestep[one], text[one]) - whole[one]).abs().max() < 1e-10


def test_bf16_stays_near_float64() -> None:
    x, timestep, text = inputs()
    exact = tiny_dit()(x, timestep, text)
    dit = tiny_dit(dtype=torch.bfloat16)
    out = dit(x.bfloat16(), timestep.float(), text.bfloat16())
    assert out.dtype is torch.bfloat16
    assert (out.double() - exact).norm() < 0.05 * exact.norm()


def test_other_sizes_at_run_time(dit: CausalDiT) -> None:
    _, timestep, text = inputs()
    for size in ((2, 2), (6, 4), (2, 10)):
        assert dit(randn(2, 3, 4, *size), timestep, text).shape == (2, 3, 4, *size)


def test_gradients_reach_every_parameter() -> None:
    dit = CausalDiT(SPEC)
    randomise(dit)
    x, timestep, text = inputs(dtype=torch.float32)
    dit(x, timestep, text).square().mean().backward()
    assert [name for name, p in dit.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    ("x", "timestep", "text", "match"),
    [
        ((2, 3, 4, 6), (2,), (2, 5, 8), "latents have shape"),
        ((2, 4, 3, 4, 6), (2,), (2, 5, 8), r"latents have shape .*\[batch, frames, 4"),
        ((2, 3, 4, 5, 6), (2,), (2, 5, 8), "multiple of 2"),
        ((2, 3, 4, 4, 6), (3,), (2, 5, 8), r"timestep has shape \(3,\); expected \[2\] or \[2, 3\]"),
        ((2, 3, 4, 4, 6), (2, 2), (2, 5, 8), "timestep has shape"),
        ((2, 3, 4, 4, 6), (), (2, 5, 8), "timestep has shape"),
        ((2, 3, 4, 4, 6), (2,), (2, 5, 9), "text has shape"),
        ((2, 3, 4, 4, 6), (2,), (5, 8), "text has shape"),
        ((2, 3, 4, 4, 6), (2,), (1, 5, 8), "text has 1 rows for 2 rows"),
    ],
)
def test_bad_shapes_raise(
    dit: CausalDiT, x: tuple[int, ...], timestep: tuple[int, ...], text: tuple[int, ...], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        dit(torch.zeros(x).double(), torch.zeros(timestep), torch.zeros(text).double())


def test_whole_sequence_attention_refuses_other_plans() -> None:
    plan = whole_plan(Full(), Absolute(), [Chunk(0, 2)])
    for bad in (replace(plan, inside=False), replace(plan, groups=plan.groups * 2)):
        with pytest.raises(ValueError, match=r"over the pass itself|exactly one group"):
            PlannedAttention(bad, Rope().inv_freq(RotaryContext(8, 2)), (2, 3), SPEC.axes)
