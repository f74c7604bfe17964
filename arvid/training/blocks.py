"""The latents of the bundled model: principal components of blocks of pixels, which its VAE learns to read and write.

A block is what one latent pixel stands for: `space` pixels along height and width, and the `time` pixel frames of one
latent frame (the first frame, alone, is repeated to as many). Left to itself a small VAE, trained for minutes, wrote
nearly all it knew into two of eight directions, where a diffusion model could not learn colours; components are linear
in the pixels, decorrelated, and known before any training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


def to_blocks(video_BCTHW: Tensor, time: int, space: int) -> Tensor:
    """Blocks [B, F, h, w, time * space * space * C] of T = 1 + (F - 1) * time frames."""
    x = torch.cat((video_BCTHW[:, :, :1].expand(-1, -1, time - 1, -1, -1), video_BCTHW), 2)
    x = x.unflatten(4, (-1, space)).unflatten(3, (-1, space)).unflatten(2, (-1, time))
    return x.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4)


@dataclass(frozen=True)
class BlockCode:
    """Components [C, block] and the mean block. Over training clips the latents are uncorrelated, with the spreads
    `std` [C]: fourth roots of what the components explain, the mean of their squares 1.

    White latents would give the least detail the weight of the largest form; left as they are, the first would drown
    the others.
    """

    components: Tensor
    mean: Tensor
    std: Tensor
    time: int
    space: int

    def to(self, device: torch.device) -> BlockCode:
        """The same code on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("components", "mean", "std")})

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        """Latents [B, F, C, h, w] of pixels in [-1, 1]."""
        return ((to_blocks(video_BCTHW, self.time, self.space) - self.mean) @ self.components.T).movedim(-1, 2)


def fit_blocks(video_BCTHW: Tensor, channels: int, time: int, space: int) -> BlockCode:
    """The first `channels` principal components of a clip's blocks."""
    blocks = to_blocks(video_BCTHW, time, space).flatten(0, 3)
    mean = blocks.mean(0)
    centred = (blocks - mean).double()
    variance, vectors = np.linalg.eigh((centred.T @ centred / len(centred)).numpy())
    top = np.argsort(variance)[::-1][:channels]
    # An eigenvector's sign is arbitrary: make its largest entry positive, so that machines agree.
    vectors = vectors[:, top] * np.sign(vectors[np.abs(vectors[:, top]).argmax(0), top])
    std = variance[top] ** 0.25
    std /= np.sqrt(np.square(std).mean())
    components = vectors / np.sqrt(variance[top]) * std
    kept = torch.from_numpy(components).T.float().contiguous()
    return BlockCode(kept, mean, torch.from_numpy(std).float(), time, space)
