"""Regression on a teacher's trajectories: the initialisation of CausVid and Self Forcing."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from arvid.samplers.schedule import shift_sigma, warp
from arvid.training.loop import kept, rng_for, save_atomically
from arvid.training.network import Batch, Network, View, per_frame
from arvid.training.stages import STAGE, Distillation

if TYPE_CHECKING:
    from arvid.training.workshop import Workshop

__all__ = ["OdePairs", "trajectory"]


@torch.no_grad()
def trajectory(
    shop: Workshop, teacher: Network, batch: Batch, noise: Tensor, guidance: float, view: View, levels: list[float]
) -> Tensor:
    """States [B, levels, F, C, H, W] of the guided teacher's flow from `noise`, by Euler steps through falling `levels`
    (the first 1, the last 0); every chunk at one level, seeing clean frames where the view is "clean"."""
    states, x = [noise], noise
    for sigma, lower in pairwise(levels):
        at = torch.full(x.shape[:2], sigma, device=x.device)
        x = x + (lower - sigma) * shop.passes.guided(teacher, batch, x, at, guidance, view).float()
        states.append(x)
    return torch.stack(states, 1)


@STAGE.register("ode_pairs")
@dataclass(frozen=True)
class OdePairs(Distillation):
    """Predict the end of the teacher's trajectory from its states at the card's steps, mean squared error.

    `pairs` trajectories of `solver_steps` Euler steps are made first and kept. A teacher that sees clean frames gives
    causal pairs (Causal Forcing, arXiv 2602.02214), and the student sees clean frames too; from a joint teacher
    (CausVid, arXiv 2412.07772, section 4.2) it sees the noisy states of the chunks before.
    """

    pairs: int = 256
    solver_steps: int = 48

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pairs", "solver_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1")

    def run(self, shop: Workshop) -> Network:
        passes, student, teacher_view = shop.passes, shop.start_of(self).train(), shop.recipe.teacher(self).view
        average = copy.deepcopy(student).requires_grad_(False)
        view: View = "clean" if teacher_view == "clean" else "noisy"
        sigmas = torch.tensor(warp(shop.card.steps, shop.card.shift), device=shop.device)
        made = self._pairs(shop, teacher_view)

        def step_loss(step: int, rng: np.random.Generator, _: nn.Module) -> dict[str, Tensor]:
            rows = torch.from_numpy(rng.integers(self.pairs, size=self.batch))
            clean, states = (made[key][rows].float().to(shop.device) for key in ("clean", "states"))
            batch = passes.laid_out(clean, [made["captions"][int(i)] for i in rows], False)
            level = torch.from_numpy(rng.integers(len(sigmas), size=(self.batch, 1, batch.chunks))).to(shop.device)
            frame_level = passes.spread(level, batch)
            x = states.take_along_dim(frame_level[:, None, :, None, None, None], 1)[:, 0]
            sigma = sigmas[frame_level]
            text = passes.text(student, batch, passes.copies(1, view))
            velocity = passes.velocity(student, batch, x, sigma, text, view)
            return {"loss": (x - per_frame(sigma) * velocity.float() - states[:, -1]).square().mean()}

        shop.train(self, student, step_loss, average=average)
        return average.eval()

    def _pairs(self, shop: Workshop, view: View) -> dict:
        """Clean latents, captions, and states at the card's steps and at 0, float16; made once and kept on disk."""
        path = shop.folder / f"{self.called}-pairs.pt"
        identity = {key: value for key, value in shop.identity(self).items() if key != "steps"}
        if (made := kept(path, identity)) is not None:
            return made
        # The card's levels among evenly spaced ones, so that a state is there for each.
        even = {shift_sigma(1 - k / self.solver_steps, shop.card.shift) for k in range(self.solver_steps + 1)}
        wanted = [*warp(shop.card.steps, shop.card.shift), 0.0]
        levels = sorted(even | set(wanted) | {1.0}, reverse=True)
        teacher, parts, clean, captions = shop.teacher_of(self), [], [], []
        for start in range(0, self.pairs, self.batch):
            rng = rng_for(self.seed, f"{self.called} pairs", start)
            drawn = shop.passes.batch(rng, min(self.batch, self.pairs - start), whole_captions=True)
            batch = shop.passes.laid_out(drawn.clean, drawn.captions, False)  # the layout that the student learns in
            noise = torch.from_numpy(rng.standard_normal(batch.clean.shape, np.float32)).to(shop.device)
            states = trajectory(shop, teacher, batch, noise, self.guidance, view, levels)
            parts.append(states[:, [levels.index(level) for level in wanted]].half().cpu())
            clean.append(batch.clean.half().cpu())
            captions += batch.captions
        made = {"states": torch.cat(parts), "clean": torch.cat(clean), "captions": captions, "identity": identity}
        save_atomically(made, path)
        return made
