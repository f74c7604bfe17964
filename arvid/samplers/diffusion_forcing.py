from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, get_args

from arvid.cache.base import Chunk

from .base import SAMPLER, Denoiser, Emit, NoiseSource, Sampler
from .multistep import SolverName
from .schedule import TIMESTEPS, check_count, check_shift, check_timestep
from .solvers import SOLVERS, Solver, levels

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Flight(NamedTuple):
    """A chunk in flight: its latents, its solver, and the dtype in which it will be emitted."""

    x: Tensor
    solver: Solver
    dtype: torch.dtype


State = tuple[int, tuple[Flight, ...]]


@SAMPLER.register("diffusion_forcing")
@dataclass(frozen=True)
class DiffusionForcing(Sampler):
    """Many steps of a solver, in which a chunk runs `ar_step` steps behind the one before: a pyramid of noise levels.

    Diffusion Forcing (arXiv 2407.01392, section 3.2) with the schedules of SkyReels-V2 (arXiv 2504.13074, its
    diffusion forcing transformer). A pass denoises all chunks that have begun and are not final, each at its own level;
    one that is final is committed. A chunk begins when the one before has `ar_step` steps done and fewer than `joint`
    are in flight (None: no other bound). `ar_step` 0 is synchronous: `joint` chunks together, then the next ones; with
    `num_steps` or more each chunk is alone, as in `multistep`, whose other fields these are. Frames of a chunk share
    their level: chunks of one frame give each its own.
    """

    solver: SolverName = "unipc"
    num_steps: int = 30
    shift: float | None = None
    guidance: float = 3.0
    context_noise: float | None = None
    ar_step: int = 5
    joint: int | None = None

    def __post_init__(self) -> None:
        if self.solver not in get_args(SolverName):
            raise ValueError(f"solver={self.solver!r}; allowed: {', '.join(map(repr, get_args(SolverName)))}")
        check_count("num_steps", self.num_steps, 1)
        check_count("ar_step", self.ar_step)
        check_shift(self.shift)
        check_timestep("context_noise", self.context_noise)
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance={self.guidance} must be finite and at least 0; 1 is no guidance")
        if self.joint is not None:
            check_count("joint", self.joint, 1)
        elif not self.ar_step:
            raise ValueError("ar_step=0 denoises chunks in step: say how many together, joint=...")

    def levels(self) -> tuple[tuple[float, ...], float]:
        """The noise levels of the steps, 0 at the end, and that of the commit. Raises `ValueError` while a field is
        None."""
        if self.shift is None or self.context_noise is None:
            raise ValueError(f"{self}: what is None is the card's, and there is no card; give a value")
        return levels(SOLVERS[self.solver], self.num_steps, self.shift), self.context_noise / TIMESTEPS

    def most(self) -> int:
        """Most chunks in flight."""
        bounds = [math.ceil(self.num_steps / self.ar_step)] if self.ar_step else []
        return min(bounds if self.joint is None else [*bounds, self.joint])

    def in_flight(self, chunk: int) -> int:
        return self.most() * chunk

    def rollout(
        self, denoiser: Denoiser, noise: NoiseSource, chunks: Sequence[Chunk], state: State | None = None
    ) -> Iterator[Emit]:
        """`state`: how many chunks are final, and those in flight, first to last."""
        sigmas, context = self.levels()
        done, given = state or (0, ())
        flying = _copied(given)
        while done < len(chunks):
            if flying and flying[0].solver.done == self.num_steps:
                final, committed = flying.pop(0), replace(chunks[done], sigma=context)
                x0, done = final.x.to(final.dtype), done + 1
                denoiser.commit(x0, (committed,))
                yield Emit(committed, x0, (done, tuple(_copied(flying))))
                continue
            while self._may_begin(flying) and done + len(flying) < len(chunks):
                start = noise.initial(chunks[done + len(flying)])
                x = start.float() if start.itemsize < 4 else start  # half a step of bf16 is more than many a step
                flying.append(Flight(x, SOLVERS[self.solver](sigmas), start.dtype))
            _advance(denoiser, chunks[done : done + len(flying)], flying)

    def _may_begin(self, flying: Sequence[Flight]) -> bool:
        if not flying:
            return True
        return len(flying) < self.most() and flying[-1].solver.done >= self.ar_step


def _advance(denoiser: Denoiser, chunks: Sequence[Chunk], flying: list[Flight]) -> None:
    """One pass over the chunks in flight, and a step of each's solver."""
    import torch

    now = tuple(replace(chunk, sigma=each.solver.sigmas[each.solver.done])
                for chunk, each in zip(chunks, flying, strict=True))  # fmt: skip
    x0 = denoiser(torch.cat([each.x for each in flying], 1), now).split([chunk.n for chunk in now], 1)
    flying[:] = [each._replace(x=each.solver.step(each.x, own)) for each, own in zip(flying, x0, strict=True)]


def _copied(flying: Sequence[Flight]) -> list[Flight]:
    """With solvers that go on by themselves; tensors are shared, since none is ever changed."""
    return [each._replace(solver=copy(each.solver)) for each in flying]
