"""Encode and decode a video piece by piece: the result is that of the whole clip, the memory that of one piece.

A stream owns its state and only reads the model, so any number of streams may share one model.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .vae import WanVAE
from .vae_layers import StreamState

__all__ = ["DecodeStream", "EncodeStream", "encoded"]


class DecodeStream:
    """Latent frames in, the pixel frames they complete out; `clamp` cuts pixels to [-1, 1].

    >>> stream = DecodeStream(vae)
    >>> pieces = [stream.push(latents_BFCHW) for latents_BFCHW in chunks]
    """

    def __init__(self, vae: WanVAE, clamp: bool = True) -> None:
        self.vae = vae
        self.clamp = clamp
        self._state = StreamState()

    @torch.no_grad()
    def push(self, latents_BFCHW: Tensor) -> Tensor:
        """Pixels [B, 3, T, H, W] of the next F >= 1 normalised latent frames.

        T is 1 + (F - 1) * time_stride in the first push and F * time_stride later. Raises as `WanVAE.decode` does, and
        `ValueError` when batch size, height or width change; the stream then stands where it stood.
        """
        return self.vae.decode(latents_BFCHW, self.clamp, state=self._state)

    def snapshot(self) -> tuple[tuple[int, ...] | None, dict[str, Tensor]]:
        """What the stream remembers: (batch, height, width), and the last frames of each convolution's input, by name.
        Nothing later changes it."""
        names = {module: name for name, module in self.vae.named_modules()}
        return self._state.size_BHW, {names[module]: frames for module, frames in self._state.frames.items()}

    def restore(self, snapshot: tuple[tuple[int, ...] | None, dict[str, Tensor]]) -> None:
        """Go on from where a stream of this VAE was."""
        size, frames = snapshot
        self._state = StreamState()
        self._state.size_BHW = size
        self._state.frames = {self.vae.get_submodule(name): x for name, x in frames.items()}


class EncodeStream:
    """Pixel frames in, normalised mean latents out.

    >>> stream = EncodeStream(vae)
    >>> first, rest = stream.push(video_BCTHW[:, :, :1]), stream.push(video_BCTHW[:, :, 1:])
    """

    def __init__(self, vae: WanVAE) -> None:
        self.vae = vae
        self._state = StreamState()

    @torch.no_grad()
    def push(self, video_BCTHW: Tensor) -> Tensor:
        """Latents [B, F, C, H, W] of the next pixel frames.

        The first push takes 1 + k * time_stride frames, a later one k * time_stride. Raises as
        `WanVAE.encode` does, and `ValueError` when batch size, height or width change; the stream then stands where it
        stood.
        """
        return self.vae.encode(video_BCTHW, state=self._state)


def encoded(vae: WanVAE, pixels_BTHWC: Tensor, piece: int = 8) -> Tensor:
    """Latents [B, F, C, H, W] of whole clips, uint8 pixels, in the network's dtype: `piece` latent frames at a time.

    T is 1 + k * time_stride. Raises as `EncodeStream.push`.
    """
    like, stream, step = next(vae.parameters()), EncodeStream(vae), piece * vae.spec.time_stride
    cuts = [0, *range(1, pixels_BTHWC.shape[1], step), pixels_BTHWC.shape[1]]
    latents = []
    for start, stop in pairwise(cuts):
        pixels = pixels_BTHWC[:, start:stop].to(like.device)
        video = pixels.to(torch.promote_types(like.dtype, torch.float32)) / 127.5 - 1
        latents.append(stream.push(video.permute(0, 4, 1, 2, 3).to(like)))
    return torch.cat(latents, 1)
