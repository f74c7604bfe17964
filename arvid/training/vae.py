"""Teach the bundled video VAE to write and read given latents: principal components of pixel blocks."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arvid.models.vae import WanVAE
from arvid.training.clips import COLOURS, render, sample_scene
from arvid.training.data import to_tensor
from arvid.training.datasets import ProceduralClips
from arvid.training.stages import STAGE, Stage

if TYPE_CHECKING:
    from arvid.training.recipe import TrainingRecipe
    from arvid.training.workshop import Workshop

FRAMES = 17  # pixel frames of a training clip
HORIZON = 400  # first pixel frames of training clips lie in 0 .. HORIZON


def crop_on_object(
    video_THWC: np.ndarray, colour: tuple[int, int, int], side: int, grid: int, rng: np.random.Generator
) -> np.ndarray:
    """A square window of `side` pixels around the object's mean position, jittered, on multiples of `grid` pixels."""
    near = np.abs(video_THWC.astype(np.int16) - np.array(colour, np.int16)).sum(-1) < 60
    rows, columns = np.nonzero(near.any(0)) if near.any() else (np.array([0]), np.array([0]))
    room = (video_THWC.shape[1] - side) // grid
    wanted = ((v.mean() - side / 2 + rng.normal(0, 5)) / grid for v in (rows, columns))
    top, left = (grid * int(np.clip(round(v), 0, room)) for v in wanted)
    return video_THWC[:, top : top + side, left : left + side]


def clip_batch(rng: np.random.Generator, batch: int, frames: int, crop: int | None) -> Tensor:
    """`batch` random clips of `frames` pixel frames as [B, 3, T, H, W] in [-1, 1]: whole, or a quarter of each frame,
    around the object, on multiples of `crop` pixels."""
    clips = []
    for _ in range(batch):
        scene, start = sample_scene(rng), int(rng.integers(HORIZON))
        video = render(scene, range(start, start + frames))
        if crop:
            video = crop_on_object(video, COLOURS[scene.said.colour], video.shape[1] // 2, crop, rng)
        clips.append(video)
    return to_tensor(np.stack(clips))


def gradient_l1(a_BCTHW: Tensor, b_BCTHW: Tensor) -> Tensor:
    """Mean absolute difference of the differences between neighbouring pixels, along height and along width."""
    d = a_BCTHW - b_BCTHW
    return d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()


@STAGE.register("vae")
@dataclass(frozen=True)
class TrainVAE(Stage):
    """Train the card's VAE on the latents of the data's block code.

    Encoder and decoder do not see each other: one learns to write the latents, the other to read them, slightly noisy
    (`noise` over a latent's spread, for a sampler's are never exact). Three steps of four run on crops, for an object
    that fills the picture is not averaged away.
    """

    rate: float = 2e-3
    decay: float = 0.9
    noise: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise={self.noise}: give a finite number of at least 0")

    def check(self, recipe: TrainingRecipe) -> None:
        if not isinstance(recipe.data, ProceduralClips):
            raise ValueError(f"stage {self.called!r}: {recipe.data} has no pixels; leave the stage out")

    def run(self, shop: Workshop) -> WanVAE:
        torch.manual_seed(self.seed)
        spec, code = shop.card.vae, shop.code.to(shop.device)
        std = code.std[:, None, None]
        vae = WanVAE(spec).to(shop.device)
        average = copy.deepcopy(vae).requires_grad_(False)

        def step_loss(step: int, rng: np.random.Generator, _: nn.Module) -> dict[str, Tensor]:
            whole = step % 4 == 3
            frames = 2 * FRAMES - 1 if step % 16 == 15 else FRAMES
            count = max(1, self.batch // (4 if whole else 1))
            video = clip_batch(rng, count, frames, None if whole else spec.space_stride).to(shop.device)
            latents = code.encode(video)
            written = vae.posterior(video)[0].transpose(1, 2)
            seen = vae.decode(latents + self.noise * std * torch.randn_like(latents), clamp=False)
            mse, miss = F.mse_loss(seen, video), F.smooth_l1_loss(written, latents)
            loss = 4 * mse + 0.5 * F.l1_loss(seen, video) + 0.5 * gradient_l1(seen, video) + miss
            return {"loss": loss, "psnr": -10 * torch.log10(mse.detach() / 4), "encoder": miss}

        shop.train(self, vae, step_loss, average=average)
        return average.eval().cpu()  # where samples are looked at
