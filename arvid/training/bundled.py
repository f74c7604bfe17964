"""How the bundled model is made, from nothing: VAE, clips, teacher, student, and the folder inside the package.

`python -m arvid.training` runs it all, seeded and resumable; the model card tells what it measured.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from arvid.models.dit import CausalDiT
from arvid.models.specs import Card, DiTSpec, TextSpec, VAESpec
from arvid.models.text import BUNDLED_GRAMMAR, BUNDLED_TOKENIZER, TextEncoder, build_umt5, load_tokenizer
from arvid.models.vae import WanVAE
from arvid.models.weights import Parts, save_parts
from arvid.training.blocks import BlockCode, fit_blocks
from arvid.training.clips import CLIP_FRAMES, FPS, SIZE
from arvid.training.data import Clips, encode_clips, moments, training_clips
from arvid.training.diffusion import Network, Trainer, initialise, train_consistency, train_flow
from arvid.training.loop import Recipe
from arvid.training.vae import train_vae

log = logging.getLogger("arvid.training")

VAE = VAESpec(
    dim=24, z_dim=8, dim_mult=(1, 2, 2), num_res_blocks=1, temporal_downsample=(True, True),
    mean=(0.0,) * 8, std=(1.0,) * 8, layout="wan22", decoder_dim=32, patch=2,
)  # fmt: skip
TEXT = TextSpec(vocab_size=35, dim=64, attention_dim=64, ffn_dim=128, num_heads=4, num_layers=2)
DIT = DiTSpec(
    dim=128, ffn_dim=512, num_heads=2, num_blocks=6, in_channels=8, out_channels=8,
    text_dim=64, text_length=16, freq_dim=256,
)  # fmt: skip
CARD = Card(
    name="tiny", dit=DIT, vae=VAE, text=TEXT, chunk=3, window=9, sink=0, steps=(1000, 750, 500, 250), shift=3.0,
    context_noise=0.0, train_horizon=CLIP_FRAMES, fps=FPS, size=(SIZE, SIZE), grammar=BUNDLED_GRAMMAR,
    source="trained from scratch by arvid.training; see MODEL_CARD.md",
)  # fmt: skip

CODE_CLIPS, CLIPS = 100, 1500
VAE_RECIPE = Recipe(steps=1200, rate=2e-3, batch=8, warmup=40, decay=0.9)
FLOW_RECIPE = Recipe(steps=900, rate=2e-3, batch=6, decay=0.5)
MUON = 0.02
CONSISTENCY_RECIPE = Recipe(steps=140, rate=3e-4, batch=6, ema=0.95, decay=0.3)
GUIDANCE, POINTS = 2.0, 16


def new_network() -> Network:
    """Transformer and text encoder at their start."""
    torch.manual_seed(FLOW_RECIPE.seed)
    text = TextEncoder(build_umt5(TEXT), load_tokenizer(BUNDLED_TOKENIZER), DIT.text_length, BUNDLED_GRAMMAR)
    dit = CausalDiT(DIT)
    initialise(dit)
    return Network(dit, text)


def block_code() -> BlockCode:
    """The latents: principal components of the blocks of some training clips."""
    videos = torch.stack([video for *_, video in training_clips(CODE_CLIPS, seed=1)])
    return fit_blocks(videos, VAE.z_dim, VAE.time_stride, VAE.space_stride)


def run(folder: Path, target: Path) -> Card:
    """Everything in order, checkpoints in `folder`, the model in `target`; continues where it was interrupted."""
    code = block_code()
    vae = train_vae(VAE, code, VAE_RECIPE, folder)
    clips = encode_clips(code, CLIPS)
    mean, std = moments(clips.latents)
    trainer = Trainer(clips, mean, std, CARD.chunk, CARD.window, CARD.shift)
    teacher = train_flow(new_network(), trainer, FLOW_RECIPE, folder, MUON)
    student = train_consistency(teacher, trainer, CONSISTENCY_RECIPE, folder, GUIDANCE, POINTS)
    return export(vae, student, clips, target)


def export(vae: WanVAE, net: Network, clips: Clips, target: Path) -> Card:
    """Write the folder that `Pipeline.load` reads, with the latents' moments in the card."""
    mean, std = moments(clips.latents)
    card = replace(CARD, vae=replace(VAE, mean=mean, std=std))
    save_parts(Parts(card, net.dit, vae, net.text), target, BUNDLED_TOKENIZER.read_bytes())
    log.info("wrote %s", target)
    return card
