"""Clips as latents with their captions: what the diffusion stages train on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from arvid.training.blocks import BlockCode
from arvid.training.clips import CLIP_FRAMES, Scene, pixel_frames, render, sample_scene
from arvid.training.loop import rng_for

CHANGED = 0.1  # share of clips whose object changes at a chunk boundary, together with the caption
TWO = 0.1  # share of clips of two objects, which do not change
ALONE = 0.2  # share of batches whose first frame is a chunk of its own
START = 200  # first pixel frames of clips lie in 0 .. START


@dataclass
class Clips:
    """Latents [N, F, C, H, W] (float16) and, a clip, (caption, later caption, first frame of the later one).

    `alone` marks clips whose change fits chunks of 1, 3, 3, ... and `changed` those that change at all.
    """

    latents: Tensor
    captions: list[tuple[str, str, int]]
    alone: np.ndarray
    changed: np.ndarray

    def first(self, frames: int | None) -> Clips:
        """The first latent frames of every clip, None all."""
        return replace(self, latents=self.latents[:, :frames])

    def pick(self, rng: np.random.Generator, batch: int, alone: bool, whole_captions: bool = False) -> np.ndarray:
        """Indices of a random batch of clips that fit the layout; with `whole_captions` of those that do not change."""
        fits = ~self.changed if whole_captions else ~self.changed | (self.alone == alone)
        if not fits.any():
            raise ValueError(f"no clip fits: the captions of all {len(fits)} change in the middle; give more clips")
        return rng.choice(np.flatnonzero(fits), batch)


def to_tensor(video_THWC: np.ndarray) -> Tensor:
    """Pixels 0..255 [..., T, H, W, 3] to [-1, 1] as [..., 3, T, H, W]."""
    return torch.from_numpy(np.moveaxis(video_THWC, -1, -4).astype(np.float32) / 127.5 - 1)


def training_clips(count: int, seed: int) -> Iterator[tuple[Scene, bool, Tensor]]:
    """`count` seeded clips of the training length: scene, whether its change fits a lone first frame, [3, T, H, W]."""
    for i in range(count):
        rng = rng_for(seed, "clips", i)
        alone, kind = bool(rng.random() < ALONE), rng.random()
        change, two = bool(kind < CHANGED), bool(kind >= 1 - TWO)
        scene = sample_scene(rng, change, alone, two)
        start = 0 if change else int(rng.integers(START))
        yield scene, alone, to_tensor(render(scene, range(start, start + pixel_frames(CLIP_FRAMES))))


def encode_clips(code: BlockCode, count: int, seed: int = 0) -> Clips:
    """Render and encode `count` clips; about 15 ms each."""
    latents, captions, alone, changed = [], [], [], []
    for scene, first_alone, video in training_clips(count, seed):
        latents.append(code.encode(video[None])[0].half())
        said = scene.captions()
        captions.append((said[0][1], said[-1][1], said[-1][0] or CLIP_FRAMES))
        alone.append(first_alone)
        changed.append(len(said) > 1)
    return Clips(torch.stack(latents), captions, np.array(alone), np.array(changed))
