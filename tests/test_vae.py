"""The video VAE: against recordings of the original, against diffusers, and streamed against whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from arvid.models.specs import VAESpec
from arvid.models.vae import WanVAE
from arvid.models.vae_stream import DecodeStream, EncodeStream

GOLDEN = Path(__file__).parent / "golden" / "vae.safetensors"


def small(layout: str = "wan22", dim_mult: tuple[int, ...] = (1, 2, 2), time: tuple[bool, ...] = (True, True),
          dim: int = 4, z_dim: int = 3, num_res_blocks: int = 1, **options: int) -> VAESpec:
    mean, std = torch.linspace(-0.5, 0.7, z_dim).tolist(), torch.linspace(0.6, 1.5, z_dim).tolist()
    return VAESpec(dim, z_dim, dim_mult, num_res_blocks, time, tuple(mean), tuple(std), layout, **options)


def build(spec: VAESpec, dtype: torch.dtype = torch.float32, seed: int = 0) -> WanVAE:
    """A model whose every parameter is random, gains and biases included."""
    vae = WanVAE(spec).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for name, p in vae.named_parameters():
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        scale = 0.2 if p.ndim == 1 or "gamma" in name else p[0].numel() ** -0.5
        p.data = (noise * scale + ("gamma" in name)).to(dtype)
    return vae.eval().requires_grad_(False)


def pixels(frames: int, spec: VAESpec, dtype: torch.dtype = torch.float32, batch: int = 1, seed: int = 1) -> Tensor:
    s = spec.space_stride
    return torch.rand(batch, 3, frames, s, 2 * s, generator=torch.Generator().manual_seed(seed)).to(dtype) * 2 - 1


def latents(frames: int, spec: VAESpec, dtype: torch.dtype = torch.float32, batch: int = 1, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, spec.z_dim, 2, 1, generator=generator, dtype=torch.float64).to(dtype)


SPECS = {
    "wan21": small("wan21", (1, 2, 2, 2), (False, True, True), z_dim=4),
    "wan22": small("wan22", patch=2, decoder_dim=6),
}


def test_golden_recording_of_the_original() -> None:
    with safe_open(GOLDEN, "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    spec = VAESpec(config["dim"], config["z_dim"], config["dim_mult"], config["num_res_blocks"],
                   config["temperal_downsample"], tensors["mean"].tolist(), tensors["std"].tolist())
    vae = WanVAE(spec).requires_grad_(False)
    vae.load_state_dict({k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")})

    encoded = vae.encode(tensors["video"]).transpose(1, 2)
    decoded = vae.decode(tensors["latent"].transpose(1, 2), clamp=False)
    torch.testing.assert_close(encoded, tensors["latent_of_video"], atol=1e-5, rtol=0)
    torch.testing.assert_close(decoded, tensors["decoded"], atol=1e-5, rtol=0)


def diffusers_name(name: str, spec: VAESpec) -> str:
    """The name in diffusers' `AutoencoderKLWan` of one of Wan's parameters."""
    for ours, theirs in {
        r"^conv1": "quant_conv", r"^conv2": "post_quant_conv", r"coder\.conv1": "coder.conv_in",
        r"head\.0": "norm_out", r"head\.2": "conv_out", r"residual\.0": "norm1", r"residual\.2": "conv1",
        r"residual\.3": "norm2", r"residual\.6": "conv2", r"\.shortcut": ".conv_shortcut",
        r"middle\.0": "mid_block.resnets.0", r"middle\.1": "mid_block.attentions.0",
        r"middle\.2": "mid_block.resnets.1",
    }.items():
        name = re.sub(ours, theirs, name)
    blocks = spec.num_res_blocks
    if spec.layout == "wan21":
        name = name.replace("downsamples", "down_blocks")
        if m := re.match(r"decoder\.upsamples\.(\d+)\.(.*)", name):
            stage, layer = divmod(int(m[1]), blocks + 2)
            part = f"resnets.{layer}" if layer <= blocks else "upsamplers.0"
            name = f"decoder.up_blocks.{stage}.{part}.{m[2]}"
    elif m := re.match(r"(\w+)\.(down|up)samples\.(\d+)\.\w+\.(\d+)\.(.*)", name):
        layer, count = int(m[4]), blocks + (m[2] == "up")
        part = f"resnets.{layer}" if layer < count else f"{m[2]}sampler"
        name = f"{m[1]}.{m[2]}_blocks.{m[3]}.{part}.{m[5]}"
    return name


@pytest.mark.parametrize("spec", [
    SPECS["wan21"],
    small("wan21", (1, 2, 4), (True, True), num_res_blocks=2),
    SPECS["wan22"],
    small("wan22", (1, 2, 4, 4), (False, True, True), num_res_blocks=2, patch=2, decoder_dim=6),
    small("wan22", (1, 1, 2, 2), (True, False, True), num_res_blocks=3),
])
def test_equals_diffusers(spec: VAESpec) -> None:
    diffusers = pytest.importorskip("diffusers")
    channels = 3 * spec.patch**2
    theirs = diffusers.AutoencoderKLWan(
        base_dim=spec.dim, decoder_base_dim=spec.decoder_dim, z_dim=spec.z_dim, dim_mult=list(spec.dim_mult),
        num_res_blocks=spec.num_res_blocks, temperal_downsample=list(spec.temporal_downsample),
        is_residual=spec.layout == "wan22", in_channels=channels, out_channels=channels,
        patch_size=spec.patch if spec.patch > 1 else None).eval().requires_grad_(False)
    ours = build(spec)
    theirs.load_state_dict({diffusers_name(name, spec): p for name, p in ours.state_dict().items()})

    video, z_BFCHW = pixels(9, spec), latents(3, spec)
    posterior = theirs.encode(video).latent_dist
    mean, logvar = ours.posterior(video)
    torch.testing.assert_close(mean, posterior.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(logvar, posterior.logvar, atol=1e-5, rtol=0)
    shift, std = (torch.tensor(v)[:, None, None] for v in (spec.mean, spec.std))
    torch.testing.assert_close(ours.encode(video), (posterior.mean.transpose(1, 2) - shift) / std, atol=1e-5, rtol=0)
    decoded = theirs.decode((z_BFCHW * std + shift).transpose(1, 2)).sample
    torch.testing.assert_close(ours.decode(z_BFCHW), decoded, atol=1e-5, rtol=0)


def test_full_size_wan21() -> None:
    spec = VAESpec(96, 16, (1, 2, 4, 4), 2, (False, True, True), (0.0,) * 16, (1.0,) * 16)
    with torch.device("meta"):
        state = WanVAE(spec).state_dict()
    assert len(state) == 194
    assert sum(tensor.numel() for tensor in state.values()) == 126_892_531


@st.composite
def splits(draw: st.DrawFn, most: int = 6) -> list[int]:
    """Sizes of pushes, in latent frames, of a clip of up to `most`."""
    sizes: list[int] = []
    left = draw(st.integers(1, most))
    while left:
        sizes.append(draw(st.integers(1, left)))
        left -= sizes[-1]
    return sizes


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-10 if actual.dtype == torch.float64 else 1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", SPECS)
@settings(max_examples=6)
@given(sizes=splits())
def test_decoding_in_any_pieces_equals_the_whole(layout: str, dtype: torch.dtype, sizes: list[int]) -> None:
    spec = SPECS[layout]
    vae, z_BFCHW = build(spec, dtype), latents(sum(sizes), spec, dtype, batch=2)
    stream = DecodeStream(vae, clamp=False)
    pieces = [stream.push(piece) for piece in z_BFCHW.split(sizes, 1)]
    assert [p.shape[2] for p in pieces] == [4 * n - (i == 0) * 3 for i, n in enumerate(sizes)]
    assert_near(torch.cat(pieces, 2), vae.decode(z_BFCHW, clamp=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", SPECS)
@settings(max_examples=6)
@given(sizes=splits())
def test_encoding_in_any_pieces_equals_the_whole(layout: str, dtype: torch.dtype, sizes: list[int]) -> None:
    spec = SPECS[layout]
    vae, frames = build(spec, dtype), [4 * n - (i == 0) * 3 for i, n in enumerate(sizes)]
    video_BCTHW = pixels(sum(frames), spec, dtype, batch=2)
    stream = EncodeStream(vae)
    pieces = [stream.push(piece) for piece in video_BCTHW.split(frames, 2)]
    assert [p.shape[1] for p in pieces] == sizes
    assert_near(torch.cat(pieces, 1), vae.encode(video_BCTHW))


@pytest.mark.parametrize("time", [(True, False), (False, True), (False, False), (True, True)], ids=str)
@pytest.mark.parametrize("layout", SPECS)
def test_streams_follow_any_time_stride(layout: str, time: tuple[bool, bool]) -> None:
    spec = small(layout, (1, 2, 2), time)
    vae, stride = build(spec, torch.float64), spec.time_stride
    video, z_BFCHW = pixels(1 + 3 * stride, spec, torch.float64), latents(4, spec, torch.float64)
    decode, encode = DecodeStream(vae), EncodeStream(vae)
    encoded = torch.cat([encode.push(p) for p in video.split([1, stride, 2 * stride], 2)], 1)
    decoded = torch.cat([decode.push(p) for p in z_BFCHW.split([2, 2], 1)], 2)
    assert encoded.shape[1] == 4
    assert decoded.shape == (*video.shape[:3], 2 * spec.space_stride, spec.space_stride)
    assert_near(encoded, vae.encode(video))
    assert_near(decoded, vae.decode(z_BFCHW))


@pytest.mark.parametrize("layout", SPECS)
@settings(max_examples=5)
@given(kept=st.integers(1, 4), more=st.integers(1, 3))
def test_the_future_changes_nothing(layout: str, kept: int, more: int) -> None:
    spec = SPECS[layout]
    vae = build(spec, torch.float64)
    video, z_BFCHW = pixels(4 * (kept + more) - 3, spec, torch.float64), latents(kept + more, spec, torch.float64)
    short, start = vae.encode(video[:, :, :4 * kept - 3]), vae.decode(z_BFCHW[:, :kept])
    assert short.shape[1] == kept
    assert start.shape[2] == 4 * kept - 3
    assert_near(vae.encode(video)[:, :kept], short)
    assert_near(vae.decode(z_BFCHW)[:, :, :4 * kept - 3], start)


@pytest.mark.parametrize("layout", SPECS)
def test_streams_of_one_model_do_not_disturb_each_other(layout: str) -> None:
    spec = SPECS[layout]
    vae = build(spec, torch.float64)
    clips = [latents(4, spec, torch.float64, seed=seed) for seed in (5, 6)]
    videos = [pixels(9, spec, torch.float64, seed=seed) for seed in (5, 6)]
    decoders, encoders = [DecodeStream(vae), DecodeStream(vae)], [EncodeStream(vae), EncodeStream(vae)]
    decoded: list[list[Tensor]] = [[], []]
    encoded: list[list[Tensor]] = [[], []]
    for step in range(3):
        for i in (0, 1):
            decoded[i].append(decoders[i].push(clips[i].split([1, 2, 1], 1)[step]))
            encoded[i].append(encoders[i].push(videos[i].split([1, 4, 4], 2)[step]))
            vae.encode(videos[1 - i])
    for i in (0, 1):
        assert_near(torch.cat(decoded[i], 2), vae.decode(clips[i]))
        assert_near(torch.cat(encoded[i], 1), vae.encode(videos[i]))


@pytest.mark.parametrize("layout", SPECS)
def test_memory_of_a_stream_does_not_grow(layout: str) -> None:
    spec = SPECS[layout]
    vae = build(spec)
    decode, encode, z_BFCHW, video = DecodeStream(vae), EncodeStream(vae), latents(8, spec), pixels(33, spec)

    def held() -> list[int]:
        return [sum(t.untyped_storage().nbytes() for t in s._state.frames.values()) for s in (decode, encode)]

    decode.push(z_BFCHW[:, :2])
    encode.push(video[:, :, :1])
    before = held()
    decode.push(z_BFCHW[:, :8])
    encode.push(video[:, :, 1:])
    assert held() == before


@pytest.mark.parametrize("layout", SPECS)
def test_every_parameter_learns(layout: str) -> None:
    spec = SPECS[layout]
    vae, video = build(spec).requires_grad_(True), pixels(9, spec)
    mean, logvar = vae.posterior(video)
    sample = mean + torch.randn_like(mean) * (logvar / 2).exp()
    (vae.decode(vae.normalize(sample), clamp=False) - video).square().mean().backward()
    assert [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_gradients_are_those_of_finite_differences() -> None:
    spec = small("wan22", (1, 1), (True,), dim=2, z_dim=2)
    vae = build(spec, torch.float64)
    video = (pixels(3, spec, torch.float64) * 0.9).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda v: vae.decode(vae.encode(v), clamp=False), video, fast_mode=True)


def test_normalize_uses_mean_and_std_of_each_channel_and_decode_undoes_it() -> None:
    spec = SPECS["wan22"]
    vae, video = build(spec, torch.float64), pixels(5, spec, torch.float64)
    mean, _ = vae.posterior(video)
    encoded = vae.encode(video)
    for c in range(spec.z_dim):
        torch.testing.assert_close(encoded[:, :, c] * spec.std[c] + spec.mean[c], mean[:, c])


def test_clamp_cuts_to_the_pixel_range_only_on_demand() -> None:
    spec = SPECS["wan22"]
    vae, z_BFCHW = build(spec), 5 * latents(2, spec)
    free = vae.decode(z_BFCHW, clamp=False)
    assert free.abs().max() > 1
    assert torch.equal(vae.decode(z_BFCHW), free.clamp(-1, 1))


@pytest.mark.parametrize(("shape", "message"), [
    ((1, 3, 4, 8, 8), r"4 frames, which must be 1 \+ k \* 4; nearest: 1 or 5"),
    ((1, 3, 0, 8, 8), r"0 frames, .*nearest: 1$"),
    ((1, 3, 7, 8, 8), r"nearest: 5 or 9"),
    ((1, 3, 5, 12, 8), r"height 12, which must be a multiple of 8; nearest: 8 or 16"),
    ((1, 3, 5, 8, 4), r"width 4, .*nearest: 8$"),
    ((1, 4, 5, 8, 8), r"3 channels on axis 1, got shape \(1, 4, 5, 8, 8\)"),
    ((3, 5, 8, 8), r"needs 5 axes"),
    ((0, 3, 5, 8, 8), r"empty batch, shape \(0, 3, 5, 8, 8\)"),
])
def test_encode_names_what_is_wrong_with_a_video(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(SPECS["wan22"]).encode(torch.zeros(shape))


@pytest.mark.parametrize(("shape", "message"), [
    ((1, 2, 5, 2, 2), r"3 channels on axis 2, got shape \(1, 2, 5, 2, 2\)"),
    ((2, 3, 2, 2), r"needs 5 axes"),
    ((1, 0, 3, 2, 2), r"empty, shape \(1, 0, 3, 2, 2\)"),
])
def test_decode_names_what_is_wrong_with_latents(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(SPECS["wan22"]).decode(torch.zeros(shape))


def test_integers_are_refused() -> None:
    vae = build(SPECS["wan22"])
    with pytest.raises(TypeError, match=r"torch\.uint8; scale 8-bit pixels"):
        vae.encode(torch.zeros(1, 3, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(TypeError, match="latents_BFCHW must hold floating-point"):
        vae.decode(torch.zeros(1, 1, 3, 1, 1, dtype=torch.int64))


def test_a_refused_push_leaves_the_stream_where_it_stood() -> None:
    spec = SPECS["wan22"]
    vae, video, z_BFCHW = build(spec), pixels(9, spec), latents(3, spec)
    encode, decode = EncodeStream(vae), DecodeStream(vae)
    with pytest.raises(ValueError, match=r"4 frames, which must be 1 \+ k \* 4"):
        encode.push(video[:, :, :4])
    first, start = encode.push(video[:, :, :5]), decode.push(z_BFCHW[:, :1])
    with pytest.raises(ValueError, match=r"5 frames, which must be k \* 4, .*nearest: 4 or 8"):
        encode.push(video[:, :, :5])
    with pytest.raises(ValueError, match=r"began with \(batch, height, width\) \(1, 2, 1\), got \(2, 2, 1\)"):
        decode.push(latents(1, spec, batch=2))
    assert_near(torch.cat([first, encode.push(video[:, :, 5:])], 1), vae.encode(video))
    assert_near(torch.cat([start, decode.push(z_BFCHW[:, 1:])], 2), vae.decode(z_BFCHW))


def test_a_push_that_failed_half_way_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS["wan22"]
    vae = build(spec)
    stream = DecodeStream(vae)

    def fail(*_: object) -> Tensor:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(vae.decoder.head, "forward", fail)
        with pytest.raises(MemoryError):
            stream.push(latents(1, spec))
    with pytest.raises(RuntimeError, match="start a new stream"):
        stream.push(latents(1, spec))


@pytest.mark.parametrize(("dim_mult", "side"), [((1, 1, 1, 3), "encoder"), ((1, 1, 8, 8), "decoder")])
def test_widths_that_no_shortcut_can_serve_are_refused(dim_mult: tuple[int, ...], side: str) -> None:
    with pytest.raises(ValueError, match=f"dim_mult: a wan22 {side} stage"):
        WanVAE(small("wan22", dim_mult, (False, False, True)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_stays_near_float32(dtype: torch.dtype) -> None:
    spec = SPECS["wan22"]
    exact, half, video = build(spec), build(spec, dtype), pixels(5, spec)
    encoded = half.encode(video.to(dtype))
    assert encoded.dtype == dtype
    assert (encoded.float() - exact.encode(video)).abs().mean() < 0.05
    # Black frames reach a norm as zeros when a bias does not move them.
    assert WanVAE(spec).to(dtype).decode(torch.zeros(1, 2, 3, 1, 1, dtype=dtype)).isfinite().all()
