"""Train the bundled video VAE on procedural clips: object-centred crops first, then whole frames."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arvid.models.specs import VAESpec
from arvid.models.vae import WanVAE
from arvid.training.clips import COLOURS, render, sample_scene
from arvid.training.loop import Recipe, train

FRAMES = 17  # pixel frames of a training clip
HORIZON = 400  # first pixel frames of training clips lie in 0 .. HORIZON


def to_tensor(video_THWC: np.ndarray) -> Tensor:
    """Pixels 0..255 [..., T, H, W, 3] to [-1, 1] as [..., 3, T, H, W]."""
    return torch.from_numpy(np.moveaxis(video_THWC, -1, -4).astype(np.float32) / 127.5 - 1)


def crop_on_object(
    video_THWC: np.ndarray, colour: tuple[int, int, int], side: int, rng: np.random.Generator
) -> np.ndarray:
    """A square window of `side` pixels around the object's mean position, jittered."""
    near = np.abs(video_THWC.astype(np.int16) - np.array(colour, np.int16)).sum(-1) < 60
    rows, columns = np.nonzero(near.any(0)) if near.any() else (np.array([0]), np.array([0]))
    room = video_THWC.shape[1] - side
    top, left = (int(np.clip(round(v.mean() - side / 2 + rng.normal(0, 5)), 0, room)) for v in (rows, columns))
    return video_THWC[:, top : top + side, left : left + side]


def clip_batch(rng: np.random.Generator, batch: int, frames: int, crop: bool) -> Tensor:
    """`batch` random clips of `frames` pixel frames as [B, 3, T, H, W] in [-1, 1]."""
    clips = []
    for _ in range(batch):
        scene, start = sample_scene(rng), int(rng.integers(HORIZON))
        video = render(scene, range(start, start + frames))
        clips.append(crop_on_object(video, COLOURS[scene.said.colour], video.shape[1] // 2, rng) if crop else video)
    return to_tensor(np.stack(clips))


def gradient_l1(a_BCTHW: Tensor, b_BCTHW: Tensor) -> Tensor:
    """Mean absolute difference of the differences between neighbouring pixels, along height and along width."""
    d = a_BCTHW - b_BCTHW
    return d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()


def train_vae(spec: VAESpec, crops: Recipe, whole: Recipe, folder: Path) -> WanVAE:
    """Train a VAE whose `spec` has mean 0 and std 1, and return the averaged weights.

    Stage `crops` sees object-centred crops alone, for an object that fills the picture is not averaged away. Stage
    `whole` goes on from its average with crops and whole frames by turns: whole frames alone undo the first stage.
    """
    torch.manual_seed(crops.seed)
    vae = WanVAE(spec)
    for stage, recipe in (("vae-crops", crops), ("vae", whole)):
        average = copy.deepcopy(vae).requires_grad_(False)

        def step_loss(
            step: int, rng: np.random.Generator, _: nn.Module, recipe: Recipe = recipe, sharp: bool = stage == "vae"
        ) -> dict[str, Tensor]:
            if sharp and step % 2:
                long = step % 8 == 7
                frames, batch = (2 * FRAMES - 1, recipe.batch // 4) if long else (FRAMES, recipe.batch * 3 // 8)
                video = clip_batch(rng, batch, frames, crop=False)
            else:
                video = clip_batch(rng, recipe.batch, FRAMES, crop=True)
            mean, logvar = vae.posterior(video)
            logvar = logvar.clamp(-20, 10)
            z_BCFHW = mean + torch.randn_like(mean) * (logvar / 2).exp()
            seen = vae.decode(z_BCFHW.transpose(1, 2), clamp=False)
            mse, l1 = F.mse_loss(seen, video), F.l1_loss(seen, video)
            kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
            loss = 4 * mse + 0.5 * l1 + 1e-4 * kl + (gradient_l1(seen, video) if sharp else 0)
            return {"loss": loss, "psnr": -10 * torch.log10(mse.detach() / 4), "kl": kl}

        train(stage, vae, recipe, step_loss, folder, average=average)
        vae.load_state_dict(average.state_dict())
    return vae.eval()
