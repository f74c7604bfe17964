"""Causal consistency distillation: jump along the guided teacher's flow."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from arvid.samplers.schedule import shift_sigma
from arvid.training.network import Batch, Network, Passes, View, mix, per_frame
from arvid.training.stages import STAGE, Distillation, check_first_chunks

if TYPE_CHECKING:
    from arvid.training.recipe import TrainingRecipe
    from arvid.training.workshop import Workshop

__all__ = ["Consistency"]


@STAGE.register("consistency")
@dataclass(frozen=True)
class Consistency(Distillation):
    """Pull x0 at level k to the averaged student's x0 at level k + 1, where one guided Euler step of the teacher leads.

    Causal consistency distillation (arXiv 2605.15141) with the loss of improved consistency training (pseudo-Huber,
    arXiv 2310.14189, eq. 7), on a grid of `points` levels evenly spaced before the shift. At the last, where the next
    level is 0, the goal is the step's own end. Chunks have levels of their own, and see clean frames. `first_chunks` of
    other clips are trained on beside the batch, their loss added.
    """

    points: int = 16
    first_chunks: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points < 1:
            raise ValueError(f"points={self.points}: at least 1")
        check_first_chunks(self.first_chunks)

    def check(self, recipe: TrainingRecipe) -> None:
        if (view := recipe.teacher(self).view) != "clean":
            raise ValueError(f"stage {self.called!r}: its teacher was taught with view={view!r}, and its chunks see "
                             "clean frames; name a teacher with view='clean'")

    def run(self, shop: Workshop) -> Network:
        passes, teacher, student = shop.passes, shop.teacher_of(self), shop.start_of(self).train()
        average = copy.deepcopy(student).requires_grad_(False)
        grid = torch.tensor([shift_sigma(1 - k / self.points, shop.card.shift) for k in range(self.points + 1)])
        grid = grid.to(shop.device)
        scale = 0.03 * passes.clips.latents[0, 0].numel() ** 0.5 / 8

        def huber(error: Tensor) -> Tensor:
            return ((error + scale**2).sqrt() - scale).mean()

        firsts = shop.passes_over(shop.card.chunk) if self.first_chunks else None

        def errors(over: Passes, batch: Batch, rng: np.random.Generator, target: Network, view: View) -> Tensor:
            """Squared errors [B, F] of x0."""
            copies = over.copies(1, view)
            x0, noise = batch.clean, torch.randn_like(batch.clean)
            count = 1 if view == "joint" else batch.chunks
            level = torch.from_numpy(rng.integers(self.points, size=(len(x0), 1, count))).to(shop.device)
            sigma, lower = (over.spread(grid[at], batch) for at in (level, level + 1))
            x = mix(x0, noise, sigma)
            with torch.no_grad():
                v = over.guided(teacher, batch, x, sigma, self.guidance, view).float()
                following = x + per_frame(lower - sigma) * v
                ahead = over.velocity(target, batch, following, lower, over.text(target, batch, copies), view)
                goal = following - per_frame(lower) * ahead.float()
            velocity = over.velocity(student, batch, x, sigma, over.text(student, batch, copies), view).float()
            return (x - per_frame(sigma) * velocity - goal).square().mean((2, 3, 4))

        def step_loss(step: int, rng: np.random.Generator, target: nn.Module) -> dict[str, Tensor]:
            assert isinstance(target, Network)
            error = errors(passes, passes.batch(rng, self.batch), rng, target, "clean")
            losses = {"loss": huber(error), "mse": error.mean()}
            if firsts:
                first = errors(firsts, firsts.batch(rng, self.first_chunks), rng, target, "joint")
                losses |= {"loss": losses["loss"] + huber(first), "first chunk": first.mean()}
            return losses

        shop.train(self, student, step_loss, average=average)
        return average.eval()
