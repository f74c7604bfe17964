"""The networks that are trained together, and their passes over whole sequences, by the plans that inference uses.

What a noisy chunk sees is the stage's `view`:

- "clean": the clean frames that a rollout would have held. The sequence is [clean | noisy copies], and one pass trains
  every chunk (teacher forcing; Self Forcing, arXiv 2506.08009, section 3);
- "noisy": the noisy chunks before it, each at a level of its own (diffusion forcing; arXiv 2407.01392);
- "joint": every frame, all at one level (a bidirectional model).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from arvid.cache import Chunk, joint_plan, whole_plan
from arvid.config import PipelineConfig
from arvid.geometry import chunk_layout
from arvid.models.attention import Mixer, PlannedAttention
from arvid.models.dit import CausalDiT, TextKV
from arvid.models.specs import Card
from arvid.models.text import TextEncoder
from arvid.positional import RotaryContext
from arvid.samplers.schedule import TIMESTEPS, shift_sigma
from arvid.training.data import ALONE, Clips

__all__ = ["VIEWS", "Batch", "Network", "Passes", "View", "initialise", "mix", "per_frame"]

View = Literal["clean", "noisy", "joint"]
VIEWS = ("clean", "noisy", "joint")


class Network(nn.Module):
    """Transformer and text encoder."""

    def __init__(self, dit: CausalDiT, text: TextEncoder) -> None:
        super().__init__()
        self.dit, self.text = dit, text


@dataclass(frozen=True)
class Batch:
    """Clean latents [B, F, C, H, W], the chunk that each frame is in, captions as `Clips` has them, and whether the
    first frame is a chunk of its own. `seen` are the frames that a noisy chunk sees before it, where not the clean."""

    clean: Tensor
    chunk_of: Tensor
    captions: list[tuple[str, str, int]]
    alone: bool
    seen: Tensor | None = None

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return int(self.chunk_of[-1]) + 1


@dataclass(frozen=True)
class _Stopped:
    """Another mixer, for which keys and values of the first `tokens` tokens are constants: no gradient goes through
    what a rollout would have had in its cache."""

    mixer: Mixer
    tokens: int

    def mix(self, layer: int, q_BNhd: Tensor, k_BNhd: Tensor, v_BNhd: Tensor) -> Tensor:
        k, v = (torch.cat((x[:, : self.tokens].detach(), x[:, self.tokens :]), 1) for x in (k_BNhd, v_BNhd))
        return self.mixer.mix(layer, q_BNhd, k, v)


class Passes:
    """Batches of clips, and a network's velocities on them."""

    def __init__(self, clips: Clips, card: Card, device: torch.device | str = "cpu") -> None:
        self.clips, self.card, self.device = clips, card, torch.device(device)
        self.frames = clips.latents.shape[1]
        self.config = PipelineConfig().resolve(card)  # what the card means: its window, absolute times, rope
        self._mixers = cache(self._mixer)

    def batch(self, rng: np.random.Generator, size: int, whole_captions: bool = False) -> Batch:
        """A random batch; all its clips share one layout of chunks, and with `whole_captions` no caption changes."""
        alone = bool(rng.random() < ALONE)
        rows = self.clips.pick(rng, size, alone, whole_captions)
        clean = self.clips.latents[torch.from_numpy(rows)].float().to(self.device)
        return self.laid_out(clean, [self.clips.captions[i] for i in rows], alone)

    def laid_out(self, clean: Tensor, captions: list[tuple[str, str, int]], alone: bool) -> Batch:
        """Latents and captions as a batch."""
        of = [i for i, chunk in enumerate(self.chunks(alone)) for _ in range(chunk.n)]
        return Batch(clean, torch.tensor(of, device=self.device), captions, alone)

    def chunks(self, alone: bool) -> list[Chunk]:
        """The chunks of a clip."""
        _, layout = chunk_layout(self.frames, self.card.chunk, first_alone=alone)
        return [Chunk(start, n, index=i) for i, (start, n) in enumerate(layout)]

    def _mixer(self, view: View, alone: bool, noisy: int, grid: tuple[int, int], axes: tuple[int, int, int],
               heads: int) -> PlannedAttention:  # fmt: skip
        policy, time, rotary = self.config.cache, self.config.time, self.config.rotary
        assert policy and time and rotary
        plan = joint_plan(self.frames) if view == "joint" else whole_plan(policy, time, self.chunks(alone), noisy)
        context = RotaryContext(axes[0], heads, self.card.train_horizon, self.frames)
        return PlannedAttention(plan, rotary.inv_freq(context), grid, axes, device=self.device)

    def sigmas(self, rng: np.random.Generator, batch: Batch, copies: int = 1, view: View = "clean") -> Tensor:
        """Shifted uniform noise levels, one a chunk of every copy, or one a clip in a joint view: [B, copies * F]."""
        count = 1 if view == "joint" else batch.chunks
        uniform = torch.from_numpy(rng.random((len(batch.clean), copies, count), np.float32)).to(self.device)
        return self.spread(shift_sigma(uniform, self.card.shift), batch)

    def spread(self, levels: Tensor, batch: Batch) -> Tensor:
        """Levels [B, copies, chunks or 1] for every frame of every copy: [B, copies * F]."""
        of = batch.chunk_of if levels.shape[-1] > 1 else torch.zeros_like(batch.chunk_of)
        return levels[:, :, of].flatten(1)

    def text(self, net: Network, batch: Batch, copies: int, keep: Tensor | None = None) -> TextKV:
        """Text of each clip for a pass over `copies` copies of it; frames after a change of the caption attend to the
        later one. `keep` [B] 0 blanks a row's text."""
        first, later = (self.encode(net, list(said)) for said in list(zip(*batch.captions, strict=True))[:2])
        if keep is not None:
            first, later = first * keep[:, None, None], later * keep[:, None, None]
        change = torch.tensor([c[2] for c in batch.captions], device=self.device)
        if bool((change >= self.frames).all()):
            return net.dit.prepare_text(first)
        rows, columns = net.dit.grid(batch.clean.shape[3:])
        frame = torch.arange(self.frames, device=self.device).repeat(copies).repeat_interleave(rows * columns)
        is_later = (frame >= change[:, None])[..., None].expand(-1, -1, first.shape[1])  # [B, N, L]
        wrong = torch.cat((is_later, ~is_later), -1)
        bias = torch.zeros(wrong.shape, device=self.device).masked_fill(wrong, -torch.inf)[:, None]
        return net.dit.prepare_text(torch.cat((first, later), 1), bias)

    @staticmethod
    def encode(net: Network, captions: list[str]) -> Tensor:
        """Embeddings [B, L, D] of captions, each different one encoded once."""
        words = sorted(set(captions))
        encoded = dict(zip(words, net.text.encode(words), strict=True))
        return torch.stack([encoded[caption] for caption in captions])

    def copies(self, noisy: int, view: View) -> int:
        """How many copies of a clip a pass runs over, the clean one included."""
        return noisy + (view == "clean")

    def velocity(
        self, net: Network, batch: Batch, x_noisy: Tensor, sigma: Tensor, text: TextKV, view: View = "clean",
        stop: bool = False,
    ) -> Tensor:  # fmt: skip
        """Velocities of noisy copies [B, copies * F, C, H, W] at levels `sigma` [B, copies * F]; `text` is that of as
        many copies as `copies` says. `stop` makes what clean frames contribute a constant."""
        noisy = x_noisy.shape[1] // self.frames
        grid, spec = net.dit.grid(batch.clean.shape[3:]), net.dit.spec
        if view != "clean":
            mixer: Mixer = self._mixers(view, batch.alone, 0, grid, spec.axes, spec.num_heads)
            return net.dit(x_noisy, TIMESTEPS * sigma, text, mixer)
        mixer = self._mixers(view, batch.alone, noisy, grid, spec.axes, spec.num_heads)
        if stop:
            mixer = _Stopped(mixer, self.frames * grid[0] * grid[1])
        seen = batch.clean if batch.seen is None else batch.seen
        clean = torch.full((len(sigma), self.frames), self.card.context_noise, device=self.device)
        return net.dit(torch.cat((seen, x_noisy), 1), torch.cat((clean, TIMESTEPS * sigma), 1), text, mixer)[
            :, self.frames :
        ]

    def guided(self, net: Network, batch: Batch, x: Tensor, sigma: Tensor, guidance: float, view: View) -> Tensor:
        """Velocities with classifier-free guidance (arXiv 2207.12598): without + guidance (with - without)."""
        copies = self.copies(x.shape[1] // self.frames, view)
        given = self.velocity(net, batch, x, sigma, self.text(net, batch, copies), view)
        if guidance == 1:
            return given
        blank = self.text(net, batch, copies, torch.zeros(len(x), device=self.device))
        without = self.velocity(net, batch, x, sigma, blank, view)
        return without + guidance * (given - without)


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


def per_frame(levels: Tensor) -> Tensor:
    """Levels [B, F] against latents [B, F, C, H, W]."""
    return levels[..., None, None, None]


def mix(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """(1 - sigma) x0 + sigma noise, sigma [B, F] for x0 [B, F, C, H, W]."""
    s = per_frame(sigma)
    return (1 - s) * x0 + s * noise
