"""Self Forcing: train on the student's own rollouts, by distribution matching (arXiv 2506.08009)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from arvid.cache import Chunk
from arvid.models.denoiser import CachedDenoiser
from arvid.pipeline import KeyedNoise
from arvid.samplers import Denoiser, FewStep
from arvid.samplers.schedule import shift_sigma
from arvid.training.loop import optimisers
from arvid.training.network import Batch, Network, Passes, View, mix, per_frame
from arvid.training.stages import STAGE, Distillation

if TYPE_CHECKING:
    from arvid.training.recipe import TrainingRecipe
    from arvid.training.workshop import Workshop

__all__ = ["Rollout", "SelfForcing", "dmd_gradient", "dmd_loss", "replay", "self_rollout"]

LEVELS = (0.02, 0.98)  # noise levels at which distributions are compared (arXiv 2506.08009, appendix A)


class Rollout(NamedTuple):
    """What a rollout gave: latents x0 [B, F, C, H, W], the inputs of each chunk's last step, and its level."""

    x0: Tensor
    inputs: Tensor
    sigma: float


class _Recording:
    """A denoiser that remembers the input of each chunk's last pass before its commit."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.inputs = denoiser, {}

    def __call__(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        self.inputs[chunks[0].start] = x_BFCHW
        return self.denoiser(x_BFCHW, chunks, lane=lane)

    def commit(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        return self.denoiser.commit(x_BFCHW, chunks, lane=lane)


@torch.no_grad()
def self_rollout(passes: Passes, net: Network, captions: list[str], seeds: Sequence[int], leave: int) -> Rollout:
    """Run the card's sampler as at inference, with every chunk left after step `leave` of its steps (from 0).

    A rollout that leaves after the last step is the inference sampler's, bit for bit. Keys are read from the store that
    inference uses; nothing here keeps a graph.
    """
    config, card = passes.config, passes.card
    sampler, policy, time, rotary, noise = (
        config.sampler, config.cache, config.time, config.rotary, config.noise)  # fmt: skip
    assert isinstance(sampler, FewStep) and sampler.steps and policy and time and rotary and noise
    *_, height, width = shape = passes.clips.latents.shape[2:]
    like = net.dit.patch_embedding.weight
    denoiser = CachedDenoiser(
        net.dit, net.dit.prepare_text(passes.encode(net, captions)), policy=policy, time=time, rotary=rotary,
        batch=len(captions), size=(height, width), train_horizon=card.train_horizon, horizon=passes.frames,
    )  # fmt: skip
    left = replace(sampler, steps=sampler.steps[: leave + 1])
    recording = _Recording(denoiser)
    source = KeyedNoise(noise, seeds, shape, like.detach())
    x0 = torch.cat([emit.x0 for emit in left.rollout(recording, source, passes.chunks(alone=False))], 1)
    inputs = torch.cat([recording.inputs[chunk.start] for chunk in passes.chunks(alone=False)], 1)
    return Rollout(x0, inputs, left.levels()[0][-1])


def replay(passes: Passes, net: Network, batch: Batch, rolled: Rollout) -> Tensor:
    """The rollout's x0 once more, with a graph through the last step of each chunk and through nothing else.

    One pass over [frames as they were committed | inputs of the last steps], by the plan of the rollout; what the
    committed frames contribute is a constant. Equal to `rolled.x0` but for rounding.
    """
    seeing = replace(batch, clean=rolled.x0, seen=rolled.x0)
    sigma = torch.full(rolled.x0.shape[:2], rolled.sigma, device=rolled.x0.device)
    velocity = passes.velocity(net, seeing, rolled.inputs, sigma, passes.text(net, seeing, 2), "clean", stop=True)
    return rolled.inputs - rolled.sigma * velocity.float()


def dmd_gradient(x0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """The direction of distribution matching, (fake - real) / mean |x0 - real|, the mean over each clip.

    `real` and `fake` are the predictions of x0, from the same noised x0, of the data's network and of the one that
    follows the generator (DMD, arXiv 2311.18828, eq. 7 and 8). 0 where the two agree.
    """
    size = (x0 - real).abs().mean((1, 2, 3, 4), keepdim=True)
    return torch.nan_to_num((fake - real) / size.clamp_min(torch.finfo(x0.dtype).tiny))


def dmd_loss(x0: Tensor, gradient: Tensor) -> Tensor:
    """Half the mean square of x0 less where a step along the gradient leads: its slope by x0 is gradient / numel."""
    return 0.5 * (x0 - (x0 - gradient).detach()).square().mean()


@STAGE.register("self_forcing")
@dataclass(frozen=True)
class SelfForcing(Distillation):
    """Match the distribution of the student's own rollouts to the teacher's (Self Forcing, arXiv 2506.08009, algorithm
    1, with DMD2's two rates, arXiv 2405.14867).

    Each step rolls out prompts of the data through the store, every chunk left after one step chosen at random for the
    whole batch. A critic, begun as the teacher, learns the flow of these rollouts at rate `critic_rate` in every step;
    in one of `ratio` the student follows `dmd_gradient`, through the last step of each chunk alone. Teacher and critic
    see what the teacher's stage saw: with a joint teacher all frames at one level, as published; with one that sees
    clean frames each chunk given the rollout's own chunks before, the same divergence by the chain rule. `last_only`
    leaves after the last step always.
    """

    rate: float = 1e-4
    critic_rate: float = 1e-4
    ratio: int = 5
    last_only: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio < 1:
            raise ValueError(f"ratio={self.ratio}: at least 1 step for each of the student's")
        if not 0 < self.critic_rate < float("inf"):
            raise ValueError(f"critic_rate={self.critic_rate} must be positive and finite")

    def check(self, recipe: TrainingRecipe) -> None:
        card = recipe.card
        if card.sampler != "few_step" or card.first_steps:
            raise ValueError(f"stage {self.called!r} rolls out with the sampler few_step, the same steps for every "
                             f"chunk, and not with sampler={card.sampler!r}, first_steps={card.first_steps}")

    def leave(self, rng: np.random.Generator, steps: int) -> int:
        """The step, of `steps`, after which this rollout's chunks are left: uniform."""
        return steps - 1 if self.last_only else int(rng.integers(steps))

    def run(self, shop: Workshop) -> Network:
        passes, student, teacher = shop.passes, shop.start_of(self), shop.teacher_of(self)
        view = shop.recipe.teacher(self).view
        critic = copy.deepcopy(teacher).requires_grad_(True)
        average = copy.deepcopy(student).requires_grad_(False)
        both = nn.ModuleDict({"student": student, "critic": critic})
        opts = optimisers(student.named_parameters(), self.rate, self.muon)
        opts += optimisers(critic.named_parameters(), self.critic_rate)
        steps = len(shop.card.steps)

        def step_loss(step: int, rng: np.random.Generator, _: nn.Module) -> dict[str, Tensor]:
            captions = [c[0] for c in passes.batch(rng, self.batch).captions]
            seeds = [int(seed) for seed in rng.integers(2**31, size=self.batch)]
            rolled = self_rollout(passes, student.eval(), captions, seeds, self.leave(rng, steps))
            batch = passes.laid_out(rolled.x0, [(c, c, passes.frames) for c in captions], False)
            losses = {"critic": self._critic_loss(passes, critic, batch, rng, view)}
            if (step + 1) % self.ratio == 0:
                x0 = replay(passes, student, batch, rolled)
                gradient = self._gradient(passes, teacher, critic, batch, x0.detach(), rng, view)
                losses["student"] = dmd_loss(x0, gradient)
            return {"loss": torch.stack(list(losses.values())).sum(), **losses}

        shop.train(self, both, step_loss, average=average, averaged=student, opts=opts)
        return average.eval()

    @staticmethod
    def _noised(passes: Passes, batch: Batch, x0: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x0 noised to one shifted level a clip: the noised, the level of every frame, the noise."""
        level = torch.from_numpy(rng.random((len(x0), 1, 1), np.float32)).to(x0)
        sigma = passes.spread(shift_sigma(level, passes.card.shift).clamp(*LEVELS), batch)
        noise = torch.randn_like(x0)
        return mix(x0, noise, sigma), sigma, noise

    def _critic_loss(
        self, passes: Passes, critic: Network, batch: Batch, rng: np.random.Generator, view: View
    ) -> Tensor:
        x, sigma, noise = self._noised(passes, batch, batch.clean, rng)
        text = passes.text(critic, batch, passes.copies(1, view))
        return (passes.velocity(critic, batch, x, sigma, text, view).float() - (noise - batch.clean)).square().mean()

    @torch.no_grad()
    def _gradient(
        self, passes: Passes, teacher: Network, critic: Network, batch: Batch, x0: Tensor, rng: np.random.Generator,
        view: View,
    ) -> Tensor:  # fmt: skip
        x, sigma, _ = self._noised(passes, batch, x0, rng)
        real = x - per_frame(sigma) * passes.guided(teacher, batch, x, sigma, self.guidance, view).float()
        fake = x - per_frame(sigma) * passes.guided(critic, batch, x, sigma, 1.0, view).float()
        return dmd_gradient(x0, real, fake)
