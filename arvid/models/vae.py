"""Wan's causal video VAE: pixels in [-1, 1] to normalised latents and back.

Architecture: Wan2.1 report, arXiv 2503.20314, section 4.1. Parameter names are those of Wan's checkpoints, for the
layouts of Wan2.1 and Wan2.2. Convolutions in time see the past only, so latents of a longer clip start with those of a
shorter one. The modules hold weights and nothing else: what a stream remembers is in a `StreamState` its owner keeps.
"""

from __future__ import annotations

from itertools import pairwise

from einops import rearrange
from torch import Tensor, nn

from .specs import VAESpec
from .vae_layers import (
    CausalConv,
    Downsample,
    DownStage,
    Head,
    StreamState,
    Upsample,
    UpStage,
    at_start,
    middle,
    residuals,
    run,
)

__all__ = ["WanVAE"]


class Encoder(nn.Module):
    """Patched pixels [B, 3 * patch^2, T, h, w] to [B, 2 * z_dim, F, H, W]."""

    def __init__(self, spec: VAESpec) -> None:
        super().__init__()
        widths = [spec.dim * m for m in (1, *spec.dim_mult)]
        self.conv1 = CausalConv(3 * spec.patch**2, widths[0], (3, 3, 3))
        self.downsamples = nn.ModuleList()
        for i, (cin, cout) in enumerate(pairwise(widths)):
            shrink = i < len(spec.temporal_downsample)
            time = shrink and spec.temporal_downsample[i]
            layers = residuals(cin, cout, spec.num_res_blocks)
            if shrink:
                layers.append(Downsample(cout, time))
            if spec.layout == "wan22":
                layers = [DownStage(cin, cout, 1 + time, 1 + shrink, layers)]
            self.downsamples.extend(layers)
        self.middle = middle(widths[-1])
        self.head = Head(widths[-1], 2 * spec.z_dim)

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        return run((self.conv1, *self.downsamples, *self.middle, self.head), x, state)


class Decoder(nn.Module):
    """Un-normalised latents [B, z_dim, F, H, W] to patched pixels [B, 3 * patch^2, T, h, w]."""

    def __init__(self, spec: VAESpec) -> None:
        super().__init__()
        dim = spec.dim if spec.decoder_dim is None else spec.decoder_dim
        widths = [dim * m for m in (spec.dim_mult[-1], *reversed(spec.dim_mult))]
        self.conv1 = CausalConv(spec.z_dim, widths[0], (3, 3, 3))
        self.middle = middle(widths[0])
        self.upsamples = nn.ModuleList()
        for i, (cin, cout) in enumerate(pairwise(widths)):
            grow = i < len(spec.temporal_downsample)
            time = grow and spec.temporal_downsample[-1 - i]
            if spec.layout == "wan22":
                layers = residuals(cin, cout, spec.num_res_blocks + 1)
                layers += [Upsample(cout, cout, time)] if grow else []
                layers = [UpStage(cin, cout, 1 + time, 1 + grow, layers)]
            else:
                # Wan2.1's upsampling halves the width for the stage after it.
                layers = residuals(cin // 2 if i else cin, cout, spec.num_res_blocks + 1)
                layers += [Upsample(cout, cout // 2, time)] if grow else []
            self.upsamples.extend(layers)
        self.head = Head(widths[-1], 3 * spec.patch**2)

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        return run((self.conv1, *self.middle, *self.upsamples, self.head), x, state)


def patchify(video_BCTHW: Tensor, patch: int) -> Tensor:
    """Fold `patch` x `patch` pixels into channels ordered (colour, column, row), as Wan2.2 does."""
    return rearrange(video_BCTHW, "b c t (h ph) (w pw) -> b (c pw ph) t h w", ph=patch, pw=patch)


def unpatchify(x: Tensor, patch: int) -> Tensor:
    """The inverse of `patchify`."""
    return rearrange(x, "b (c pw ph) t h w -> b c t (h ph) (w pw)", ph=patch, pw=patch)


class WanVAE(nn.Module):
    """Video autoencoder of Wan2.1 or Wan2.2, as `spec` says: T pixel frames, F = 1 + (T - 1) / time_stride latent ones.

    Stateless: `state` serves `EncodeStream` and `DecodeStream`, which are also the way to run a clip in little memory.
    """

    def __init__(self, spec: VAESpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec)
        self.conv1 = CausalConv(2 * spec.z_dim, 2 * spec.z_dim, (1, 1, 1))
        self.conv2 = CausalConv(spec.z_dim, spec.z_dim, (1, 1, 1))
        self.decoder = Decoder(spec)

    def posterior(self, video_BCTHW: Tensor, *, state: StreamState | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents, [B, z_dim, F, H, W], not normalised; pixels in [-1, 1].

        T is 1 + k * time_stride (k * time_stride after the start of a stream); height and width are multiples of
        space_stride. Raises `ValueError` otherwise, `TypeError` for integer pixels.
        """
        self._check_video(video_BCTHW, at_start(state))
        size = (len(video_BCTHW), *video_BCTHW.shape[3:])
        if state:
            state.begin(size)
        x = self.conv1(self.encoder(patchify(video_BCTHW, self.spec.patch), state))
        if state:
            state.end(size)
        mean, logvar = x.chunk(2, 1)
        return mean, logvar

    def encode(self, video_BCTHW: Tensor, *, state: StreamState | None = None) -> Tensor:
        """Normalised mean latents, [B, F, C, H, W], of pixels in [-1, 1]. Raises as `posterior` does."""
        return self.normalize(self.posterior(video_BCTHW, state=state)[0])

    def normalize(self, z_BCFHW: Tensor) -> Tensor:
        """(z - mean) / std of the spec, as [B, F, C, H, W]: what `decode` takes."""
        mean, std = self._moments(z_BCFHW)
        return (z_BCFHW.transpose(1, 2) - mean) / std

    def decode(self, latents_BFCHW: Tensor, clamp: bool = True, *, state: StreamState | None = None) -> Tensor:
        """Pixels [B, 3, T, H, W] of normalised latents, cut to [-1, 1] if `clamp`; T = 1 + (F - 1) * time_stride.

        Raises `ValueError` when the latents have another shape, `TypeError` when they are integers.
        """
        self._check_latents(latents_BFCHW)
        size = (len(latents_BFCHW), *latents_BFCHW.shape[3:])
        if state:
            state.begin(size)
        mean, std = self._moments(latents_BFCHW)
        z_BCFHW = (latents_BFCHW * std + mean).transpose(1, 2)
        video_BCTHW = unpatchify(self.decoder(self.conv2(z_BCFHW), state), self.spec.patch)
        if state:
            state.end(size)
        return video_BCTHW.clamp(-1, 1) if clamp else video_BCTHW

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = like.new_tensor((self.spec.mean, self.spec.std))[..., None, None]
        return mean, std

    def _check_video(self, video: Tensor, start: bool) -> None:
        check_tensor("video_BCTHW", video, 3, channel_axis=1)
        if not len(video):
            raise ValueError(f"video_BCTHW is an empty batch, shape {tuple(video.shape)}")
        stride, (frames, height, width) = self.spec.time_stride, video.shape[2:]
        # Frames after the clip's first come in whole strides; a later piece of a stream has no such first frame.
        extra = 1 if start else 0
        if (frames - extra) % stride or frames == 0:
            wanted = f"{extra} + k * {stride}" if start else f"k * {stride}, as this stream has begun"
            raise ValueError(f"video_BCTHW has {frames} frames, which must be {wanted}; "
                             f"nearest: {nearest(frames, stride, extra)}")
        for name, size in (("height", height), ("width", width)):
            if size % self.spec.space_stride or size == 0:
                raise ValueError(f"video_BCTHW has {name} {size}, which must be a multiple of "
                                 f"{self.spec.space_stride}; nearest: {nearest(size, self.spec.space_stride, 0)}")

    def _check_latents(self, latents: Tensor) -> None:
        check_tensor("latents_BFCHW", latents, self.spec.z_dim, channel_axis=2)
        if 0 in latents.shape:
            raise ValueError(f"latents_BFCHW is empty, shape {tuple(latents.shape)}; every size must be at least 1")


def check_tensor(name: str, x: Tensor, channels: int, channel_axis: int) -> None:
    """Raise unless `x` holds floats and has 5 axes, of which `channel_axis` has the size `channels`."""
    if x.ndim != 5 or x.shape[channel_axis] != channels:
        raise ValueError(f"{name} needs 5 axes, with {channels} channels on axis {channel_axis}, "
                         f"got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must hold floating-point values, got {x.dtype}; scale 8-bit pixels as x / 127.5 - 1")


def nearest(size: int, stride: int, offset: int) -> str:
    """The positive sizes offset + k * stride around `size`, as text."""
    below = offset + (size - offset) // stride * stride
    return " or ".join(str(n) for n in (below, below + stride) if n > 0)
