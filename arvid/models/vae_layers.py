"""Layers of Wan's causal video VAE, over features x_BCTHW.

Each layer takes `(x, state)`. Without a state x is a whole clip; with one it is the next piece of a stream.
Features are laid out channels-last in memory, which makes training on a CPU a tenth to a fifth faster.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

__all__ = [
    "CausalConv",
    "DownStage",
    "Downsample",
    "Head",
    "StreamState",
    "UpStage",
    "Upsample",
    "at_start",
    "middle",
    "residuals",
    "run",
]


class StreamState:
    """What one stream carries from piece to piece: for each causal convolution, the last frames of its input.

    Used through `EncodeStream` and `DecodeStream`; belongs to one stream, of one direction, of one model.
    """

    def __init__(self) -> None:
        self.frames: dict[nn.Module, Tensor] = {}
        self.size_BHW: tuple[int, ...] | None = None
        self.interrupted = False

    def begin(self, size_BHW: tuple[int, ...]) -> None:
        """Check that a piece of this batch size, height and width may follow. Raises `ValueError`, `RuntimeError`."""
        if self.interrupted:
            raise RuntimeError("an earlier push of this stream failed half-way; start a new stream")
        if self.size_BHW not in (None, size_BHW):
            raise ValueError(f"this stream began with (batch, height, width) {self.size_BHW}, got {size_BHW}; "
                             "start a new stream for another size")
        self.interrupted = True

    def end(self, size_BHW: tuple[int, ...]) -> None:
        """Record that the piece went through."""
        self.size_BHW, self.interrupted = size_BHW, False


def at_start(state: StreamState | None) -> bool:
    """Whether the frames at hand begin the clip."""
    return state is None or state.size_BHW is None


def fold_time(x_BCTHW: Tensor) -> Tensor:
    """Frames as a batch of images, [B * T, C, H, W]."""
    return x_BCTHW.contiguous(memory_format=torch.channels_last_3d).transpose(1, 2).flatten(0, 1)


def unfold_time(images: Tensor, batch: int) -> Tensor:
    """The inverse of `fold_time`."""
    return images.unflatten(0, (batch, -1)).transpose(1, 2)


class RMSNorm(nn.Module):
    """Scale the channels (axis 1) of every position to unit root mean square, then by `gamma`."""

    def __init__(self, dim: int, axes: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * axes))

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=wide).clamp_min(1e-12)
        return (x * (x.shape[1] ** 0.5 / norm)).to(x.dtype) * self.gamma


class CausalConv(nn.Conv3d):
    """Convolution over x_BCTHW, padded with zeros around each frame and with the past (zeros at first) before it."""

    def __init__(self, cin: int, cout: int, kernel: tuple[int, int, int]) -> None:
        super().__init__(cin, cout, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))

    def forward(self, input: Tensor, state: StreamState | None = None) -> Tensor:
        x = input
        count = self.kernel_size[0] - 1
        if count:
            past = state.frames.get(self) if state else None
            x = F.pad(x, (0, 0, 0, 0, count, 0)) if past is None else torch.cat((past, x), 2)
            if state:
                # A copy: a view would keep the whole piece in memory.
                state.frames[self] = x[:, :, -count:].clone()
        x = x.contiguous(memory_format=torch.channels_last_3d)
        if x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
            # For a small batch PyTorch itself takes a kernel that is ten times slower.
            assert not isinstance(self.padding, str)
            return torch.mkldnn_convolution(
                x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
            )
        return super().forward(x)


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1x1 convolution on the skip where the width changes."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        # The gaps in the numbers are activations and dropout in Wan's own list of layers.
        self.residual = nn.ModuleDict({
            "0": RMSNorm(cin, 3), "2": CausalConv(cin, cout, (3, 3, 3)),
            "3": RMSNorm(cout, 3), "6": CausalConv(cout, cout, (3, 3, 3)),
        })
        self.shortcut = CausalConv(cin, cout, (1, 1, 1)) if cin != cout else None

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        norm1, conv1, norm2, conv2 = self.residual.values()
        h = conv1(F.silu(norm1(x)), state)
        h = conv2(F.silu(norm2(h)), state)
        return h + (x if self.shortcut is None else self.shortcut(x))


class Head(nn.ModuleDict):
    """conv(silu(norm(x)))."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__({"0": RMSNorm(cin, 3), "2": CausalConv(cin, cout, (3, 3, 3))})

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        return self["2"](F.silu(self["0"](x)), state)


class Attention(nn.Module):
    """Self-attention with one head among the positions of each frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, 2)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        images = fold_time(x)
        q, k, v = self.to_qkv(self.norm(images)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, -1)
        out = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).reshape(images.shape)
        return x + unfold_time(self.proj(out), len(x))


class Downsample(nn.Module):
    """Halve height and width; with `time`, then also the number of frames after the clip's first."""

    def __init__(self, dim: int, time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(dim, dim, 3, stride=2)})
        self.time_conv = nn.Conv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1)) if time else None

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        x = unfold_time(self.resample["1"](F.pad(fold_time(x), (0, 1, 0, 1))), len(x))
        if self.time_conv is None:
            return x
        start = at_start(state)
        if state:
            past = x[:, :, :0] if start else state.frames[self.time_conv]
            state.frames[self.time_conv] = x[:, :, -1:].clone()
            x = torch.cat((past, x), 2)
        # The clip's first frame passes as it is, and is then the past of the next two.
        parts = [x[:, :, :1]] if start else []
        if x.shape[2] > 1:
            parts.append(self.time_conv(x))
        return torch.cat(parts, 2)


class Upsample(nn.Module):
    """Double the number of frames after the clip's first (with `time`), then height and width."""

    def __init__(self, cin: int, cout: int, time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(cin, cout, 3, padding=1)})
        self.time_conv = CausalConv(cin, 2 * cin, (3, 1, 1)) if time else None

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        if self.time_conv is not None:
            # The clip's first frame passes as it is and is not even the past of the second.
            alone = 1 if at_start(state) else 0
            parts = [x[:, :, :alone]]
            if x.shape[2] > alone:
                pairs = self.time_conv(x[:, :, alone:], state)
                parts.append(rearrange(pairs, "b (pair c) t h w -> b c (t pair) h w", pair=2))
            x = torch.cat(parts, 2)
        return unfold_time(self.resample["1"](F.interpolate(fold_time(x), scale_factor=2.0)), len(x))


class DownStage(nn.Module):
    """A stage of the Wan2.2 encoder: layers, plus a shortcut that averages groups of (channel, time, row, column)."""

    def __init__(self, cin: int, cout: int, factor_t: int, factor_s: int, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        if cin * factor_t * factor_s**2 % cout:
            raise ValueError(f"dim_mult: a wan22 encoder stage cannot average {cin} channels, {factor_t} x "
                             f"{factor_s} x {factor_s} positions into {cout} channels; use widths that divide")
        self.cout, self.factor_t, self.factor_s = cout, factor_t, factor_s
        self.downsamples = nn.ModuleList(layers)

    def shortcut(self, x: Tensor) -> Tensor:
        ft, fs = self.factor_t, self.factor_s
        x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % ft, 0))
        x = rearrange(x, "b c (t ft) (h fh) (w fw) -> b (c ft fh fw) t h w", ft=ft, fh=fs, fw=fs)
        return x.unflatten(1, (self.cout, -1)).mean(2)

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        return run(self.downsamples, x, state) + self.shortcut(x)


class UpStage(nn.Module):
    """A stage of the Wan2.2 decoder: layers, plus a shortcut that spreads channels over positions if it upsamples."""

    def __init__(self, cin: int, cout: int, factor_t: int, factor_s: int, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        if factor_s > 1 and cout * factor_t * factor_s**2 % cin:
            raise ValueError(f"dim_mult: a wan22 decoder stage cannot spread {cin} channels over {cout} channels, "
                             f"{factor_t} x {factor_s} x {factor_s} positions; use widths that divide")
        self.cout, self.factor_t, self.factor_s = cout, factor_t, factor_s
        self.upsamples = nn.ModuleList(layers)

    def shortcut(self, x: Tensor, start: bool) -> Tensor:
        ft, fs = self.factor_t, self.factor_s
        x = x.repeat_interleave(self.cout * ft * fs**2 // x.shape[1], 1)
        x = rearrange(x, "b (c ft fh fw) t h w -> b c (t ft) (h fh) (w fw)", ft=ft, fh=fs, fw=fs)
        return x[:, :, ft - 1:] if start else x

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        h = run(self.upsamples, x, state)
        return h if self.factor_s == 1 else h + self.shortcut(x, at_start(state))


def run(layers: Iterable[nn.Module], x: Tensor, state: StreamState | None) -> Tensor:
    """Apply `layers` in order."""
    for layer in layers:
        x = layer(x, state)
    return x


def middle(dim: int) -> nn.ModuleList:
    """The layers of the narrowest stage, where frames also attend within themselves."""
    return nn.ModuleList((Residual(dim, dim), Attention(dim), Residual(dim, dim)))


def residuals(cin: int, cout: int, count: int) -> list[nn.Module]:
    """`count` residual blocks, of which the first changes the width."""
    return [Residual(cout if i else cin, cout) for i in range(count)]
