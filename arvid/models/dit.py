"""Wan's diffusion transformer over latent video, with a noise level for each frame and attention by plan.

Architecture: Wan2.1 report, arXiv 2503.20314, section 4.2. Parameter names are those of Wan's checkpoints, so strict
loading needs no map. Without a mixer it is the bidirectional model; with one, the causal students of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arvid.cache.base import joint_plan
from arvid.positional import Rope, RotaryContext

from .attention import Mixer, PlannedAttention, attend
from .specs import DiTSpec

__all__ = ["CausalDiT", "TextKV"]


class TextKV(NamedTuple):
    """Keys and values of a prompt for every block, each [B, L, h, d]; made once a prompt by `CausalDiT.prepare_text`.

    `bias`, broadcastable to [B, h, N, L], is added to the logits of cross-attention (training on clips whose caption
    changes); None at inference: Wan attends to its padding rows too.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    bias: Tensor | None = None


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32 at least."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.rms_norm(wide, wide.shape[-1:], eps=self.eps).to(x.dtype) * self.weight


def layer_norm(x: Tensor, eps: float) -> Tensor:
    """Layer norm without parameters, computed in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.layer_norm(wide, wide.shape[-1:], eps=eps).to(x.dtype)


class Attention(nn.Module):
    """Projections and norms that self- and cross-attention share; q and k are normed over the full width."""

    def __init__(self, spec: DiTSpec) -> None:
        super().__init__()
        self.heads = spec.num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(spec.dim, spec.dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(spec.dim, spec.eps), RMSNorm(spec.dim, spec.eps)

    def queries(self, x_BND: Tensor) -> Tensor:
        return self.norm_q(self.q(x_BND)).unflatten(-1, (self.heads, -1))

    def keys_values(self, x_BND: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.norm_k(self.k(x_BND)), self.v(x_BND)
        return k.unflatten(-1, (self.heads, -1)), v.unflatten(-1, (self.heads, -1))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward; the first and last shifted, scaled and gated by the time."""

    def __init__(self, spec: DiTSpec) -> None:
        super().__init__()
        self.eps = spec.eps
        self.self_attn = Attention(spec)
        self.cross_attn = Attention(spec)
        self.norm3 = nn.LayerNorm(spec.dim, eps=spec.eps)
        self.ffn = nn.Sequential(nn.Linear(spec.dim, spec.ffn_dim), nn.GELU("tanh"), nn.Linear(spec.ffn_dim, spec.dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, spec.dim) / spec.dim**0.5)

    def forward(self, x_BND: Tensor, time_BF6D: Tensor, text: TextKV, mixer: Mixer, layer: int) -> Tensor:
        frames = time_BF6D.shape[1]
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + time_BF6D).unsqueeze(3).unbind(2)

        def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
            x_BFnD = layer_norm(x, self.eps).unflatten(1, (frames, -1))
            return torch.addcmul(shift, x_BFnD, 1 + scale).flatten(1, 2)

        def gated(x: Tensor, out: Tensor, gate: Tensor) -> Tensor:
            return torch.addcmul(x.unflatten(1, (frames, -1)), out.unflatten(1, (frames, -1)), gate).flatten(1, 2)

        h = modulated(x_BND, shift1, scale1)
        seen = mixer.mix(layer, self.self_attn.queries(h), *self.self_attn.keys_values(h))
        x_BND = gated(x_BND, self.self_attn.o(seen.flatten(2)), gate1)
        seen = attend(self.cross_attn.queries(self.norm3(x_BND)), [text.layers[layer]], text.bias)
        x_BND = x_BND + self.cross_attn.o(seen.flatten(2))
        return gated(x_BND, self.ffn(modulated(x_BND, shift2, scale2)), gate2)


class Head(nn.Module):
    """Modulated norm and projection of tokens to patches."""

    def __init__(self, spec: DiTSpec) -> None:
        super().__init__()
        self.eps = spec.eps
        _, height, width = spec.patch
        self.head = nn.Linear(spec.dim, height * width * spec.out_channels)
        self.modulation = nn.Parameter(torch.randn(1, 2, spec.dim) / spec.dim**0.5)

    def forward(self, x_BND: Tensor, time_BFD: Tensor) -> Tensor:
        shift, scale = (self.modulation + time_BFD.unsqueeze(2)).unsqueeze(3).unbind(2)
        x_BFnD = layer_norm(x_BND, self.eps).unflatten(1, (time_BFD.shape[1], -1))
        return self.head(torch.addcmul(shift, x_BFnD, 1 + scale))


class CausalDiT(nn.Module):
    """The transformer of Wan2.1, bidirectional or causal by its mixer."""

    def __init__(self, spec: DiTSpec) -> None:
        super().__init__()
        self.spec = spec
        dim = spec.dim
        self.patch_embedding = nn.Conv3d(spec.in_channels, dim, spec.patch, stride=spec.patch)
        self.text_embedding = nn.Sequential(nn.Linear(spec.text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(spec.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.num_blocks))
        self.head = Head(spec)

    def forward(self, x_BFCHW: Tensor, timestep: Tensor, text: Tensor | TextKV, mixer: Mixer | None = None) -> Tensor:
        """Velocity, noise - x0, of noisy latents [B, F, C, H, W]; the same shape with `out_channels`.

        `timestep` is 1000 sigma, [B] or one a frame [B, F]; `text` [B, L, text_dim] or prepared. `mixer` None: every
        frame attends to every frame. Raises `ValueError` when shapes contradict the spec or each other.
        """
        self._check(x_BFCHW, timestep)
        batch, frames, _, height, width = x_BFCHW.shape
        if mixer is None:
            mixer = self.joint_mixer(frames, (height, width), x_BFCHW)
        if not isinstance(text, TextKV):
            text = self.prepare_text(text)
        if len(text.layers[0][0]) != batch:
            raise ValueError(f"text has {len(text.layers[0][0])} rows for {batch} rows of latents; give one each")
        x = self.patch_embedding(x_BFCHW.transpose(1, 2)).flatten(2).transpose(1, 2)
        wave = timestep_embedding(timestep, self.spec.freq_dim).to(x.dtype)
        time_BFD = self.time_embedding(wave if timestep.ndim == 2 else wave[:, None].expand(-1, frames, -1))
        time_BF6D = self.time_projection(time_BFD).unflatten(-1, (6, -1))
        for layer, block in enumerate(self.blocks):
            x = block(x, time_BF6D, text, mixer, layer)
        x = self.head(x, time_BFD)
        _, ph, pw = self.spec.patch
        grid = (height // ph, width // pw)
        x = x.unflatten(2, grid).unflatten(-1, (ph, pw, -1))  # [B, F, rows, columns, ph, pw, C]
        return x.permute(0, 1, 6, 2, 4, 3, 5).reshape(batch, frames, self.spec.out_channels, height, width)

    def prepare_text(self, text_BLD: Tensor, bias: Tensor | None = None) -> TextKV:
        """Keys and values of a prompt's embeddings [B, L, text_dim], to be used in every pass under that prompt."""
        if text_BLD.ndim != 3 or text_BLD.shape[-1] != self.spec.text_dim:
            raise ValueError(f"text has shape {tuple(text_BLD.shape)}; expected [batch, tokens, {self.spec.text_dim}]")
        embedded = self.text_embedding(text_BLD)
        blocks = cast("Sequence[Block]", self.blocks)
        return TextKV(tuple(block.cross_attn.keys_values(embedded) for block in blocks), bias)

    def joint_mixer(self, frames: int, size: tuple[int, int], like: Tensor) -> PlannedAttention:
        """Bidirectional attention with plain RoPE over `frames` frames of `size` latent pixels."""
        context = RotaryContext(self.spec.axes[0], self.spec.num_heads)
        inv_freq = Rope().inv_freq(context)
        return PlannedAttention(
            joint_plan(frames), inv_freq, self.grid(size), self.spec.axes, like.dtype, like.device
        )

    def grid(self, size: Sequence[int]) -> tuple[int, int]:
        """(rows, columns) of tokens in a frame of `size` (height, width) latent pixels."""
        return size[0] // self.spec.patch[1], size[1] // self.spec.patch[2]

    def _check(self, x: Tensor, timestep: Tensor) -> None:
        _, ph, pw = self.spec.patch
        if x.ndim != 5 or x.shape[2] != self.spec.in_channels or x.shape[3] % ph or x.shape[4] % pw:
            raise ValueError(f"latents have shape {tuple(x.shape)}; expected [batch, frames, {self.spec.in_channels}, "
                             f"a multiple of {ph}, a multiple of {pw}]")
        if timestep.shape not in (x.shape[:1], x.shape[:2]):
            raise ValueError(f"timestep has shape {tuple(timestep.shape)}; "
                             f"expected [{x.shape[0]}] or [{x.shape[0]}, {x.shape[1]}]")


def timestep_embedding(timestep: Tensor, dim: int) -> Tensor:
    """[..., dim] of cosines, then sines, of timestep * 10000^(-2i / dim), computed in float64."""
    freq = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64, device=timestep.device) / (dim // 2))
    angle = timestep.double()[..., None] * freq
    return torch.cat((angle.cos(), angle.sin()), -1)
