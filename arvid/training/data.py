"""Clips as normalised latents with their captions: what the diffusion stages train on."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from arvid.models.vae import WanVAE
from arvid.training.clips import CLIP_FRAMES, pixel_frames, render, sample_scene
from arvid.training.loop import rng_for, save_atomically
from arvid.training.vae import to_tensor

log = logging.getLogger("arvid.training")

CHANGED = 0.1  # share of clips whose object changes at a chunk boundary, together with the caption
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

    def pick(self, rng: np.random.Generator, batch: int, alone: bool) -> np.ndarray:
        """Indices of a random batch of clips that fit the layout."""
        return rng.choice(np.flatnonzero(~self.changed | (self.alone == alone)), batch)


def moments(latents_NFCHW: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel."""
    x = latents_NFCHW.float()
    return tuple(x.mean((0, 1, 3, 4)).tolist()), tuple(x.std((0, 1, 3, 4)).tolist())


def encode_clips(vae: WanVAE, count: int, folder: Path, seed: int = 0, group: int = 50) -> Clips:
    """Render and encode `count` clips; finished groups are kept in `folder`, so an interrupted run continues."""
    folder.mkdir(parents=True, exist_ok=True)
    latents, notes, began, made = [], [], time.monotonic(), 0
    for first in range(0, count, group):
        path = folder / f"{first:06d}.pt"
        if not path.exists():
            rng = rng_for(seed, "clips", first)
            scenes, videos = [], []
            for _ in range(group):
                alone = bool(rng.random() < ALONE)
                scene, start = sample_scene(rng, bool(rng.random() < CHANGED), alone), 0
                if scene.change_frame is None:
                    start = int(rng.integers(START))
                scenes.append((scene.captions(), alone))
                videos.append(render(scene, range(start, start + pixel_frames(CLIP_FRAMES))))
            with torch.no_grad():
                z = torch.cat([vae.posterior(to_tensor(np.stack(videos[i : i + 5])))[0] for i in range(0, group, 5)])
            save_atomically({"z": z.transpose(1, 2).half().contiguous(), "notes": json.dumps(scenes)}, path)
            made += 1
            log.info("clips %d/%d, %.2f s each", first + group, count, (time.monotonic() - began) / made / group)
        part = torch.load(path, weights_only=True)
        latents.append(part["z"])
        notes += json.loads(part["notes"])
    captions = [(c[0][1], c[-1][1], c[-1][0] or CLIP_FRAMES) for c, _ in notes]
    alone, changed = np.array([a for _, a in notes]), np.array([len(c) > 1 for c, _ in notes])
    return Clips(torch.cat(latents), captions, alone, changed)
