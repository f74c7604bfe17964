"""Resampling Forcing: teacher forcing on history that the model itself has degraded."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from arvid.models.denoiser import CachedDenoiser
from arvid.samplers.schedule import TIMESTEPS, shift_sigma
from arvid.training.flow import FlowMatching
from arvid.training.network import Batch, Network, Passes, mix
from arvid.training.stages import STAGE

if TYPE_CHECKING:
    from arvid.training.workshop import Workshop

__all__ = ["ResamplingForcing", "resample"]


@torch.no_grad()
def resample(passes: Passes, net: Network, batch: Batch, noised: Tensor, sigma: float, solver_steps: int) -> Tensor:
    """Clips at level `sigma` finished by the network itself, chunk after chunk on its own results, by Euler steps."""
    config, card = passes.config, passes.card
    assert config.cache and config.time and config.rotary
    text = net.dit.prepare_text(passes.encode(net, [c[0] for c in batch.captions]))
    denoiser = CachedDenoiser(
        net.dit, text, policy=config.cache, time=config.time, rotary=config.rotary, batch=len(noised),
        size=(noised.shape[3], noised.shape[4]), train_horizon=card.train_horizon, horizon=passes.frames,
    )  # fmt: skip
    done = []
    for chunk in passes.chunks(batch.alone):
        x, levels = noised[:, chunk.start : chunk.end], np.linspace(sigma, 0, solver_steps + 1)
        for level, lower in pairwise(levels):
            x0 = denoiser(x, (replace(chunk, sigma=float(level)),))
            x = x0 + float(lower / level) * (x - x0)
        denoiser.commit(x, (replace(chunk, sigma=card.context_noise / TIMESTEPS),))
        done.append(x)
    return torch.cat(done, 1)


@STAGE.register("resampling")
@dataclass(frozen=True)
class ResamplingForcing(FlowMatching):
    """Flow matching to the clips themselves, given history that the model re-made from a noised clip.

    Resampling Forcing (arXiv 2512.15702): a level is drawn, logit-normal and then shifted; the clip is noised to it and
    finished by the model chunk after chunk (`solver_steps`), without gradient; every chunk then learns from that
    history what truly came next. Needs no teacher, and a `start` that was taught with clean frames.
    """

    learns = True
    solver_steps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver_steps < 1:
            raise ValueError(f"solver_steps={self.solver_steps}: at least 1")

    def run(self, shop: Workshop) -> Network:
        passes, net = shop.passes, shop.start_of(self).train()
        average = copy.deepcopy(net).requires_grad_(False)

        def step_loss(step: int, rng: np.random.Generator, _: nn.Module) -> dict[str, Tensor]:
            batch = passes.batch(rng, self.batch, whole_captions=True)
            x0, level = batch.clean, float(shift_sigma(1 / (1 + np.exp(-rng.standard_normal())), shop.card.shift))
            noised = mix(x0, torch.randn_like(x0), torch.full(x0.shape[:2], level, device=x0.device))
            batch = replace(batch, seen=resample(passes, net.eval(), batch, noised, level, self.solver_steps))
            net.train()
            assert batch.seen is not None
            return {"loss": self.errors(passes, net, batch, rng).mean(),
                    "history error": (batch.seen - x0).square().mean()}  # fmt: skip

        shop.train(self, net, step_loss, average=average)
        return average.eval()
