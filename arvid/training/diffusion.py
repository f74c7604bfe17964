"""Teacher-forced flow matching and causal consistency distillation, on the plans that inference uses.

The sequence is [clean frames | noisy copies]: each noisy chunk sees the clean frames that a rollout would have held, so
one pass trains every chunk (teacher forcing; Self Forcing, arXiv 2506.08009). The student then learns to jump along the
guided teacher's flow (causal consistency distillation, arXiv 2605.15141; consistency models, arXiv 2303.01469).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from arvid.cache import Chunk, Window, whole_plan
from arvid.geometry import chunk_layout
from arvid.models.attention import PlannedAttention
from arvid.models.dit import CausalDiT, TextKV
from arvid.models.text import TextEncoder
from arvid.positional import Absolute, Rope, RotaryContext
from arvid.samplers.schedule import shift_sigma
from arvid.training.data import ALONE, Clips
from arvid.training.loop import Recipe, train

NOISY = 2  # independently noised copies that share one clean context


class Network(nn.Module):
    """The parts trained together: transformer and text encoder."""

    def __init__(self, dit: CausalDiT, text: TextEncoder) -> None:
        super().__init__()
        self.dit, self.text = dit, text


@dataclass(frozen=True)
class Batch:
    """Clean latents [B, F, C, H, W], the chunk each frame is in, captions, and the layout of chunks."""

    clean: Tensor
    chunk_of: Tensor
    captions: list[tuple[str, str, int]]
    alone: bool


class Trainer:
    """What the two diffusion stages share: batches, plans, text, and the network on [clean | noisy copies]."""

    def __init__(
        self, clips: Clips, mean: tuple[float, ...], std: tuple[float, ...], chunk: int, window: int, shift: float
    ) -> None:
        self.clips, self.chunk, self.window, self.shift = clips, chunk, window, shift
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (mean, std))
        self.frames = clips.latents.shape[1]
        self._mixers = cache(self._mixer)

    def batch(self, rng: np.random.Generator, size: int) -> Batch:
        """A random batch; all its clips share one chunk layout."""
        alone = bool(rng.random() < ALONE)
        rows = self.clips.pick(rng, size, alone)
        clean = (self.clips.latents[torch.from_numpy(rows)].float() - self.mean) / self.std
        chunk_of = torch.tensor([i for i, c in enumerate(self.chunks(alone)) for _ in range(c.n)])
        return Batch(clean, chunk_of, [self.clips.captions[i] for i in rows], alone)

    def chunks(self, alone: bool) -> list[Chunk]:
        _, layout = chunk_layout(self.frames, self.chunk, first_alone=alone)
        return [Chunk(start, n, index=i) for i, (start, n) in enumerate(layout)]

    def _mixer(
        self, alone: bool, noisy: int, grid: tuple[int, int], axes: tuple[int, int, int], heads: int
    ) -> PlannedAttention:
        plan = whole_plan(Window(self.window), Absolute(), self.chunks(alone), noisy)
        return PlannedAttention(plan, Rope().inv_freq(RotaryContext(axes[0], heads)), grid, axes)

    def sigmas(self, rng: np.random.Generator, batch: Batch, noisy: int) -> Tensor:
        """Shifted uniform noise levels, one a chunk of every noisy copy: [B, noisy * F]."""
        uniform = torch.from_numpy(rng.random((len(batch.clean), noisy, int(batch.chunk_of[-1]) + 1), np.float32))
        return shift_sigma(uniform, self.shift)[:, :, batch.chunk_of].flatten(1)

    def text(self, net: Network, batch: Batch, copies: int, keep: Tensor | None = None) -> TextKV:
        """Text of each clip; frames after a change attend to the later caption. `keep` 0 blanks a row's text."""
        captions = [c[0] for c in batch.captions], [c[1] for c in batch.captions]
        words = sorted({*captions[0], *captions[1]})
        encoded = dict(zip(words, net.text.encode(words), strict=True))
        first, later = (torch.stack([encoded[caption] for caption in column]) for column in captions)
        if keep is not None:
            first, later = first * keep[:, None, None], later * keep[:, None, None]
        change = torch.tensor([c[2] for c in batch.captions])
        if bool((change == self.frames).all()):
            return net.dit.prepare_text(first)
        rows, columns = net.dit.grid(batch.clean.shape[3:])
        frame = torch.arange(self.frames).repeat(copies).repeat_interleave(rows * columns)
        is_later = (frame >= change[:, None])[..., None]  # [B, N, 1]
        wrong = torch.cat((is_later.expand(-1, -1, first.shape[1]), ~is_later.expand(-1, -1, first.shape[1])), -1)
        bias = torch.zeros(wrong.shape).masked_fill(wrong, -torch.inf)[:, None]
        return net.dit.prepare_text(torch.cat((first, later), 1), bias)

    def velocity(self, net: Network, batch: Batch, x_noisy: Tensor, sigma: Tensor, text: TextKV) -> Tensor:
        """Velocities of the noisy copies, given the clean frames as context at noise level 0."""
        noisy = x_noisy.shape[1] // self.frames
        grid = net.dit.grid(batch.clean.shape[3:])
        mixer = self._mixers(batch.alone, noisy, grid, net.dit.spec.axes, net.dit.spec.num_heads)
        timestep = 1000 * torch.cat((torch.zeros(len(sigma), self.frames), sigma), 1)
        return net.dit(torch.cat((batch.clean, x_noisy), 1), timestep, text, mixer)[:, self.frames :]


def initialise(dit: CausalDiT) -> None:
    """Wan's initialisation for training from scratch; the head starts at 0, so the first velocity is 0."""
    for module in dit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(dit.patch_embedding.weight.flatten(1))
    for part in (dit.text_embedding, dit.time_embedding):
        for layer in (part[0], part[2]):
            nn.init.normal_(layer.weight, std=0.02)  # pyright: ignore[reportArgumentType]
    nn.init.zeros_(dit.head.head.weight)


def mix(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """(1 - sigma) x0 + sigma noise, sigma [B, F] for x0 [B, F, C, H, W]."""
    s = sigma[..., None, None, None]
    return (1 - s) * x0 + s * noise


def train_flow(
    net: Network, trainer: Trainer, recipe: Recipe, folder: Path, muon: float | None, dropout: float = 0.1
) -> Network:
    """Teacher-forced flow matching; returns the averaged network. `dropout` blanks that share of the texts."""
    average = copy.deepcopy(net).requires_grad_(False)
    net.train()

    def step_loss(step: int, rng: np.random.Generator, _: nn.Module) -> dict[str, Tensor]:
        batch = trainer.batch(rng, recipe.batch)
        x0 = batch.clean.repeat(1, NOISY, 1, 1, 1)
        sigma, noise = trainer.sigmas(rng, batch, NOISY), torch.randn_like(x0)
        keep = torch.from_numpy((rng.random(len(x0)) >= dropout).astype(np.float32))
        text = trainer.text(net, batch, NOISY + 1, keep)
        error = (trainer.velocity(net, batch, mix(x0, noise, sigma), sigma, text) - (noise - x0)).square()
        first = error.unflatten(1, (NOISY, -1))[:, :, batch.chunk_of == 0]
        return {"loss": error.mean(), "first chunk": first.mean()}

    train("flow", net, recipe, step_loss, folder, average=average, muon=muon)
    return average.eval()


def train_consistency(
    teacher: Network, trainer: Trainer, recipe: Recipe, folder: Path, guidance: float, points: int
) -> Network:
    """Causal consistency distillation of a guided teacher on a grid of `points` levels; returns the averaged student.

    At level k the teacher takes one guided Euler step to level k + 1; the student's x0 at k is pulled, by a
    pseudo-Huber loss, to the averaged student's x0 at k + 1, or to the step's own end where that level is 0.
    """
    teacher.eval()
    student = copy.deepcopy(teacher).requires_grad_(True).train()
    average = copy.deepcopy(student).requires_grad_(False)
    grid = torch.tensor([shift_sigma(1 - k / points, trainer.shift) for k in range(points + 1)])
    scale = 0.03 * trainer.clips.latents[0, 0].numel() ** 0.5 / 8

    def step_loss(step: int, rng: np.random.Generator, target: nn.Module) -> dict[str, Tensor]:
        assert isinstance(target, Network)
        batch = trainer.batch(rng, recipe.batch)
        x0, noise = batch.clean, torch.randn_like(batch.clean)
        level = torch.from_numpy(rng.integers(points, size=(len(x0), int(batch.chunk_of[-1]) + 1)))[:, batch.chunk_of]
        sigma, lower = grid[level], grid[level + 1]
        x = mix(x0, noise, sigma)
        with torch.no_grad():
            text = trainer.text(teacher, batch, 2)
            blank = trainer.text(teacher, batch, 2, torch.zeros(len(x0)))
            with_text, without = (trainer.velocity(teacher, batch, x, sigma, t) for t in (text, blank))
            x_next = x + (lower - sigma)[..., None, None, None] * (without + guidance * (with_text - without))
            v_next = trainer.velocity(target, batch, x_next, lower, trainer.text(target, batch, 2))
            goal = x_next - lower[..., None, None, None] * v_next
        v = trainer.velocity(student, batch, x, sigma, trainer.text(student, batch, 2))
        error = (x - sigma[..., None, None, None] * v - goal).square().mean((2, 3, 4))
        return {"loss": ((error + scale**2).sqrt() - scale).mean(), "mse": error.mean()}

    train("consistency", student, recipe, step_loss, folder, average=average)
    return average.eval()
