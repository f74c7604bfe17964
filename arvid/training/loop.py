"""The loop every training stage runs in: seeded by step, averaged weights, atomic checkpoints, resumable."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "Optimisation", "Said", "StepLoss", "checkpoint", "follow", "kept", "optimisers", "rng_for", "save_atomically",
    "train",
]

SAVE_EVERY = 60.0  # seconds
SAY_EVERY = 10.0


@dataclass(frozen=True)
class Optimisation:
    """How one stage is optimised: AdamW at `rate`, with `muon` Muon at that rate for the matrices inside blocks.

    Rates warm up in `warmup` steps, hold, and fall to 0 in the last `decay` of the `steps`. `ema` is the final decay of
    the averaged weights, (1 + step) / (10 + step) where that is less; `clip` the largest norm of the gradient. `seed`
    with the step's number gives all random numbers of a step. Raises `ValueError` for numbers that cannot be.
    """

    steps: int
    rate: float = 1e-3
    batch: int = 8
    warmup: int = 20
    decay: float = 0.4
    ema: float = 0.99
    clip: float = 1.0
    muon: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("warmup", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r}: give a whole number of at least {least}")
        for name in ("rate", "clip", "muon"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name}={value!r} must be positive and finite")
        for name in ("decay", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: give a share in 0..1")

    def scale(self, step: int) -> float:
        """Factor on the rates at a step counted from 0."""
        left = (self.steps - step) / (self.decay * self.steps) if self.decay else 1.0
        return min(1.0, (step + 1) / max(1, self.warmup), max(0.0, left))


StepLoss = Callable[[int, np.random.Generator, nn.Module], dict[str, Tensor]]


@dataclass(frozen=True)
class Said:
    """How far a stage is: steps done and in all, seconds a step, and the means of its losses since it last said."""

    stage: str
    step: int
    steps: int
    rate: float
    losses: Mapping[str, float]

    @property
    def eta(self) -> float:
        """Seconds left at this rate."""
        return self.rate * (self.steps - self.step)


def rng_for(seed: int, stage: str, step: int) -> np.random.Generator:
    """The random numbers of one step: a resumed run draws what an uninterrupted one would."""
    return np.random.default_rng((seed, *stage.encode(), step))


def save_atomically(value: Any, path: Path) -> None:
    """`torch.save` under a temporary name, then rename: a killed run leaves the previous checkpoint whole."""
    temporary = path.with_name(path.name + ".part")
    try:
        torch.save(value, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def kept(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was saved under this identity; None where there is no such file, where it is damaged, or made otherwise."""
    try:
        made = torch.load(path, weights_only=True)
        return made if made["identity"] == identity else None
    except Exception:  # torch.load raises a dozen kinds for a damaged file
        return None


def optimisers(
    named: Iterable[tuple[str, nn.Parameter]], rate: float, muon: float | None = None
) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon at rate `muon` for the matrices inside `blocks` and AdamW for the rest."""
    parameters = [(name, p) for name, p in named if p.requires_grad]
    adam = {"lr": rate, "betas": (0.9, 0.99), "weight_decay": 0.01}
    if muon is None:
        return [torch.optim.AdamW([p for _, p in parameters], **adam)]
    matrices = [p for name, p in parameters if p.ndim == 2 and "blocks." in name]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in parameters if id(p) not in chosen]
    return [torch.optim.Muon(matrices, lr=muon, weight_decay=0.01, adjust_lr_fn="original"),
            torch.optim.AdamW(rest, **adam)]  # fmt: skip


def train(
    stage: str,
    module: nn.Module,
    how: Optimisation,
    step_loss: StepLoss,
    path: Path,
    *,
    average: nn.Module,
    averaged: nn.Module | None = None,
    opts: list[torch.optim.Optimizer] | None = None,
    identity: Mapping[str, Any] | None = None,
    say: Callable[[Said], None] = lambda said: None,
    look: Callable[[int, nn.Module], None] | None = None,
    look_every: int = 0,
) -> None:
    """Train `module` in place and leave averaged weights in `average`: those of `averaged`, by default `module`.

    `step_loss(step, rng, average)` returns named losses, tensors of one value; "loss" is minimised. A parameter without
    a gradient in a step is left alone, and the average where none of its parameters has one. `opts` are by default the
    optimisers of all of `module`. Checkpoints go to `path`; a run that finds one continues from it, bit for bit as if
    it had not stopped. `identity` is what makes the stage what it is; see `checkpoint` for what is refused.
    `look(step, average)` is called every `look_every` steps and after the last. Raises `FloatingPointError` for a loss
    or a gradient that is not finite, before it reaches weights; `OSError` where a checkpoint cannot be written, before
    the first step.
    """
    averaged = module if averaged is None else averaged
    identity = dict(identity or {})
    opts = optimisers(module.named_parameters(), how.rate, how.muon) if opts is None else opts
    rates = [[group["lr"] for group in opt.param_groups] for opt in opts]
    path.parent.mkdir(parents=True, exist_ok=True)
    start, spent = 0, 0.0

    def save(step: int) -> None:
        save_atomically({
            "module": module.state_dict(), "average": average.state_dict(), "opts": [o.state_dict() for o in opts],
            "step": step, "seconds": spent + time.monotonic() - began, "identity": identity,
        }, path)  # fmt: skip

    def check_finite(what: str, value: Tensor, step: int) -> None:
        if not torch.isfinite(value):
            raise FloatingPointError(f"{stage}: the {what} is {value.item()} at step {step}: lower the rate, and "
                                     f"delete the stage's checkpoint, {path}")

    began = saved_at = said_at = time.monotonic()
    if path.exists():
        state = checkpoint(path, identity, how.steps)
        module.load_state_dict(state["module"])
        average.load_state_dict(state["average"])
        for opt, saved in zip(opts, state["opts"], strict=True):
            opt.load_state_dict(saved)
        start, spent = state["step"], state["seconds"]
    else:
        average.load_state_dict(averaged.state_dict())
        save(0)  # a place that cannot be written to is found out now
    sums: dict[str, list[Tensor]] = {}
    said_step = start
    for step in range(start, how.steps):
        rng = rng_for(how.seed, stage, step)
        torch.manual_seed(int(rng.integers(2**62)))
        for opt, own in zip(opts, rates, strict=True):
            opt.zero_grad(set_to_none=True)
            for group, rate in zip(opt.param_groups, own, strict=True):
                group["lr"] = rate * how.scale(step)
        losses = step_loss(step, rng, average)
        check_finite("loss", losses["loss"], step)
        losses["loss"].backward()
        norms = [nn.utils.clip_grad_norm_([p for group in opt.param_groups for p in group["params"]], how.clip)
                 for opt in opts]  # fmt: skip
        check_finite("gradient", torch.stack(norms).sum(), step)
        for opt in opts:
            opt.step()
        follow(average, averaged, min(how.ema, (1 + step) / (10 + step)))
        for key, value in losses.items():
            sums.setdefault(key, []).append(value.detach())
        now, last = time.monotonic(), step + 1 == how.steps
        if last or now - said_at > SAY_EVERY:
            means = {key: float(torch.stack(values).double().mean()) for key, values in sums.items()}
            say(Said(stage, step + 1, how.steps, (now - said_at) / (step + 1 - said_step), means))
            said_at, said_step = now, step + 1
            sums.clear()
        if last or now - saved_at > SAVE_EVERY:
            save(step + 1)
            saved_at = time.monotonic()
        if look and look_every and (last or (step + 1) % look_every == 0):
            look(step + 1, average)


def checkpoint(path: Path, identity: Mapping[str, Any], steps: int, mapped: bool = False) -> dict[str, Any]:
    """A stage's checkpoint; `mapped` leaves its tensors on disk until they are used.

    Raises `ValueError` for a file that is none, for one of another identity (only its `steps` may differ, to go on for
    longer), and for one of more steps than the stage has.
    """
    try:
        state = torch.load(str(path), weights_only=True, mmap=mapped)
        told, done = dict(state["identity"]), int(state["step"])
    except Exception as error:  # torch.load raises a dozen kinds for a damaged file
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} is no checkpoint of arvid train ({reason}): delete it, and the stage begins anew"
                         ) from error
    differing = [key for key in {**told, **identity} if key != "steps" and told.get(key) != identity.get(key)]
    if differing:
        raise ValueError(f"{path} was made by another recipe (differs in {', '.join(differing)}): restore the recipe, "
                         "give another folder, or delete the checkpoints of this stage and those after it")
    if done > steps:
        raise ValueError(f"{path} is after {done} steps, and the recipe has {steps}: give at least as many, give "
                         "another folder, or delete the checkpoints of this stage and those after it")
    return state


@torch.no_grad()
def follow(average: nn.Module, averaged: nn.Module, decay: float) -> None:
    """Move `average` towards `averaged` by 1 - decay, unless no parameter of that has a gradient."""
    pairs = list(zip(average.parameters(), averaged.parameters(), strict=True))
    if any(value.grad is not None for _, value in pairs):
        for mean, value in pairs:
            mean.lerp_(value, 1 - decay)
