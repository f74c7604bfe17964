"""Rotation by angles that are computed, not looked up: an isometry that knows differences of times only."""

import math

import numpy as np
import pytest
import torch
from dense import randn, turn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arvid.cache import Chunk, Kind, Pass, Ref
from arvid.models.specs import DiTSpec
from arvid.positional import ROTARY, TIME, Absolute, Rope, RotaryContext
from arvid.positional.rotation import phase, rotate, space_angles, time_angles, token_angles

GRID = (2, 3)
AXES = (8, 4, 4)

times = st.floats(-1e4, 1e4)


def turned(x_BNhd: Tensor, time: tuple[float, ...], inv_freq: np.ndarray | None = None) -> Tensor:
    freq = Rope().inv_freq(RotaryContext(AXES[0], 2)) if inv_freq is None else inv_freq
    angles = token_angles(time_angles(time, freq), space_angles(GRID, AXES))
    return rotate(x_BNhd, phase(angles, x_BNhd.dtype))


@settings(max_examples=30)
@given(times, times)
def test_rotation_is_the_complex_one_and_keeps_lengths(a: float, b: float) -> None:
    x = randn(2, 12, 2, 16)
    y = turned(x, (a, b))
    for frame, time in enumerate((a, b)):
        own = slice(6 * frame, 6 * frame + 6)
        assert (y[:, own] - turn(x[:, own], time, GRID, AXES)).abs().max() < 1e-9
    planes = [z.unflatten(-1, (-1, 2)).norm(dim=-1) for z in (x, y)]
    assert (planes[0] - planes[1]).abs().max() < 1e-12


@settings(max_examples=30)
@given(times, times, times)
def test_logits_know_time_differences_only(a: float, b: float, offset: float) -> None:
    q, k = randn(1, 6, 1, 16), randn(1, 6, 1, 16, seed=1)

    def logits(q_time: float, k_time: float) -> Tensor:
        return torch.einsum("bqhd,bkhd->bqk", turned(q, (q_time,)), turned(k, (k_time,)))

    assert (logits(a, b) - logits(a + offset, b + offset)).abs().max() < 1e-9


def test_time_0_and_the_first_token_is_the_identity() -> None:
    x = randn(1, 6, 2, 16)
    y = turned(x, (0.0,))
    assert torch.equal(y[:, 0], x[:, 0])
    assert torch.equal(y[..., : AXES[0]], x[..., : AXES[0]])  # height and width do not touch the planes of time


def test_textbook_values() -> None:
    assert np.array_equal(Rope().inv_freq(RotaryContext(2, 1)), [1.0])
    assert np.allclose(Rope().inv_freq(RotaryContext(8, 1)), [1, 0.1, 0.01, 0.001], rtol=1e-15)
    assert np.allclose(Rope(base=16.0).inv_freq(RotaryContext(4, 1)), [1, 0.25], rtol=1e-15)
    x = torch.tensor([1.0, 0.0]).double().expand(1, 1, 1, 2)
    by = phase(time_angles((math.pi / 2,), np.array([1.0])), torch.float64)
    assert (rotate(x, by).flatten() - torch.tensor([0.0, 1.0])).abs().max() < 1e-15


@given(st.integers(1, 128), st.floats(1.01, 1e9))
def test_frequencies_fall_from_1(planes: int, base: float) -> None:
    freq = Rope(base).inv_freq(RotaryContext(2 * planes, 1))
    assert freq.dtype == np.float64
    assert freq[0] == 1
    expected = [math.exp(-math.log(base) * m / planes) for m in range(planes)]
    assert np.allclose(freq, expected, rtol=1e-12)


def test_rope_agrees_with_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = LlamaConfig(hidden_size=88, num_attention_heads=2, rope_parameters=rope)
    theirs = LlamaRotaryEmbedding(config).inv_freq
    assert isinstance(theirs, Tensor)
    assert np.allclose(theirs.numpy(), Rope().inv_freq(RotaryContext(44, 2)), rtol=1e-6)


@given(st.integers(3, 200))
def test_axes_cover_every_even_head_width(half: int) -> None:
    width = 2 * half
    time, height, column = DiTSpec(width, 8, 1, 1, 4, 4, 4, 4, 8).axes
    assert time + height + column == width
    assert height == column == 2 * (width // 6)
    assert all(axis >= 2 and axis % 2 == 0 for axis in (time, height, column))
    angles = token_angles(time_angles((1.0,), np.ones(time // 2)), space_angles((1, 2), (time, height, column)))
    assert angles.shape == (2, 1, half)


def test_wan_splits_128_channels_into_44_42_42() -> None:
    assert DiTSpec(1536, 8960, 12, 30, 16, 16, 4096, 512, 256).axes == (44, 42, 42)


def test_a_frequency_ladder_for_each_head() -> None:
    x, freq = randn(1, 6, 2, 16), Rope().inv_freq(RotaryContext(AXES[0], 2))
    each = turned(x, (7.0,), np.stack((freq, 3 * freq)))
    assert torch.equal(each[:, :, 0], turned(x, (7.0,))[:, :, 0])
    assert torch.equal(each[:, :, 1], turned(x, (7.0,), 3 * freq)[:, :, 1])
    assert turned(x, (7.0,), freq[::-1]).shape == x.shape  # any array will do, a reversed view too


def test_a_million_frames_lose_no_precision() -> None:
    """Angles are float64: in float32, frame 1e6 would be off by a hundredth of a radian or more."""
    angle = phase(time_angles((1e6 + 1,), np.array([1.0])), torch.float32)
    assert angle.cos.item() == pytest.approx(math.cos(1e6 + 1), abs=1e-7)
    q, k = randn(1, 6, 1, 16, dtype=torch.float32), randn(1, 6, 1, 16, seed=1, dtype=torch.float32)
    near, far = ((turned(q, (t + 5,)) * turned(k, (t,))).sum(-1) for t in (0.0, 1e6))
    assert (near - far).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_rotation_rounds_once(dtype: torch.dtype) -> None:
    x = randn(1, 6, 1, 16).to(dtype)
    y, exact = turned(x, (12.0,)), turn(x, 12.0, GRID, AXES)
    assert y.dtype is dtype
    before_rounding = 1e-14 if dtype is torch.float64 else 1e-6
    assert ((y.double() - exact).abs() <= torch.finfo(dtype).eps / 2 * exact.abs() + before_rounding).all()


@pytest.mark.parametrize("base", [1.0, 0.0, -5.0, math.inf, math.nan])
def test_a_base_that_makes_no_ladder_is_refused(base: float) -> None:
    with pytest.raises(ValueError, match="base="):
        Rope(base)


def test_absolute_times_are_slots() -> None:
    new = Pass(Kind.DENOISE, (Chunk(9, 2), Chunk(11, 1)))
    refs = (Ref(3, at=3.0), Ref(3, at=7.5), Ref(8, at=8.0))
    assert Absolute().times(refs, new) == ((3.0, 7.5, 8.0), (9.0, 10.0, 11.0))


def test_registered_by_name() -> None:
    assert ROTARY.build({"name": "rope", "base": 500.0}) == Rope(500.0)
    assert TIME.build("absolute") == Absolute()
