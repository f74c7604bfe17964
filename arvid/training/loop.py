"""The loop every training stage runs in: seeded by step, averaged weights, atomic checkpoints, resumable."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

log = logging.getLogger("arvid.training")


@dataclass(frozen=True)
class Recipe:
    """What one stage does. `rate` scales every optimiser's own rate; it warms up, holds, and falls to 0 in the last
    `decay` of the steps. `ema` is the final decay of the averaged weights."""

    steps: int
    rate: float
    batch: int
    warmup: int = 20
    decay: float = 0.4
    ema: float = 0.99
    clip: float = 1.0
    seed: int = 0

    def scale(self, step: int) -> float:
        """Factor on the rate at a step counted from 0."""
        left = (self.steps - step) / (self.decay * self.steps) if self.decay else 1.0
        return min(1.0, (step + 1) / self.warmup, max(0.0, left))


def rng_for(seed: int, stage: str, step: int) -> np.random.Generator:
    """The random numbers of one step: a resumed run draws what an uninterrupted one would."""
    return np.random.default_rng((seed, *stage.encode(), step))


def save_atomically(value: Any, path: Path) -> None:
    """`torch.save` under a temporary name, then rename: a killed run leaves the previous checkpoint whole."""
    temporary = path.with_name(path.name + ".part")
    torch.save(value, temporary)
    os.replace(temporary, path)


def optimisers(module: nn.Module, rate: float, muon: float | None = None) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon at rate `muon` for the matrices inside `blocks` and AdamW for the rest."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if muon is None:
        return [torch.optim.AdamW([p for _, p in named], lr=rate, betas=(0.9, 0.99), weight_decay=0.01)]
    matrices = [p for name, p in named if p.ndim == 2 and "blocks." in name]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=muon, weight_decay=0.01, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.01),
    ]


def train(
    stage: str,
    module: nn.Module,
    recipe: Recipe,
    step_loss: Callable[[int, np.random.Generator, nn.Module], dict[str, Tensor]],
    folder: Path,
    *,
    average: nn.Module,
    muon: float | None = None,
    save_every: float = 60.0,
) -> None:
    """Train `module` in place and leave its averaged weights in `average` (same shape; also the target network).

    `step_loss(step, rng, average)` returns named losses; "loss" is minimised. Checkpoints go to `folder/stage.pt`
    every `save_every` seconds; a run that finds one continues from it, and refuses one of another recipe (only
    `steps` may differ). Raises `FloatingPointError` on a loss that is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stage}.pt"
    opts = optimisers(module, recipe.rate, muon)
    rates = [opt.param_groups[0]["lr"] for opt in opts]
    start, spent = 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        told, given = state["recipe"], asdict(recipe)
        if differing := [k for k in given if k != "steps" and told.get(k) != given[k]]:
            named = ", ".join(differing)
            raise ValueError(f"{path} was made by another recipe (differs in {named}); delete it or restore the recipe")
        module.load_state_dict(state["module"])
        average.load_state_dict(state["average"])
        for opt, saved in zip(opts, state["opts"], strict=True):
            opt.load_state_dict(saved)
        start, spent = state["step"], state["seconds"]
        log.info("%s: continuing at step %d of %d", stage, start, recipe.steps)
    else:
        average.load_state_dict(module.state_dict())
    began = saved_at = told_at = time.monotonic()
    sums: dict[str, list[float]] = {}

    def save(step: int) -> None:
        save_atomically(
            {"module": module.state_dict(), "average": average.state_dict(), "opts": [o.state_dict() for o in opts],
             "step": step, "seconds": spent + time.monotonic() - began, "recipe": asdict(recipe)}, path)  # fmt: skip

    for step in range(start, recipe.steps):
        rng = rng_for(recipe.seed, stage, step)
        torch.manual_seed(int(rng.integers(2**62)))
        losses = step_loss(step, rng, average)
        loss = losses["loss"]
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{stage}: loss is {loss.item()} at step {step}; the last checkpoint is {path}")
        for opt, rate in zip(opts, rates, strict=True):
            opt.zero_grad(set_to_none=True)
            for group in opt.param_groups:
                group["lr"] = rate * recipe.scale(step)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
        for opt in opts:
            opt.step()
        decay = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), module.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        for key, value in losses.items():
            sums.setdefault(key, []).append(float(value.detach()))
        now = time.monotonic()
        if now - told_at > 15 or step + 1 == recipe.steps:
            told_at, rate_now = now, (now - began) / (step + 1 - start)
            means = {k: round(float(np.mean(v)), 4) for k, v in sums.items()}
            eta = rate_now * (recipe.steps - step - 1)
            log.info("%s %d/%d %s %.2f s/step, %.0f min left", stage, step + 1, recipe.steps, means, rate_now, eta / 60)
            sums.clear()
        if now - saved_at > save_every or step + 1 == recipe.steps:
            save(step + 1)
            saved_at = now
