from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from arvid.cache.base import Chunk

from .base import SAMPLER, Denoiser, Emit, NoiseSource, Sampler
from .schedule import TIMESTEPS, check_count, check_shift, check_timestep
from .solvers import SOLVERS, levels, truncated

if TYPE_CHECKING:
    from torch import Tensor

SolverName = Literal["unipc", "dpm++", "euler"]


@SAMPLER.register("multistep")
@dataclass(frozen=True)
class Multistep(Sampler):
    """Chunk after chunk: many steps of a solver, for models that are not distilled, then a commit.

    Causal diffusion as in Self Forcing (arXiv 2506.08009, its baseline of many steps): UniPC (arXiv 2302.04867),
    DPM-Solver++(2M) (arXiv 2211.01095) or Euler in `num_steps` levels, warped by `shift`; every chunk has a solver of
    its own. `guidance` g makes of the velocities under the prompt, c, and under the negative prompt, u, the velocity
    u + g (c - u) (arXiv 2207.12598, eq. 6, with g = w + 1), which is the same in x0; 1 runs the prompt's branch alone.
    The commit runs at timestep `context_noise` (0..1000, not shifted) on x0 itself. None is the card's.

    With `integer_timesteps` the network is told whole timesteps, 1000 sigma without its fraction, as Wan2.1's code
    does, while the solver goes on with the true level. The solver's latents are of float32 at least.
    """

    solver: SolverName = "unipc"
    num_steps: int = 50
    shift: float | None = None
    guidance: float = 3.0
    context_noise: float | None = None
    integer_timesteps: bool = False

    def __post_init__(self) -> None:
        if self.solver not in get_args(SolverName):
            raise ValueError(f"solver={self.solver!r}; allowed: {', '.join(map(repr, get_args(SolverName)))}")
        check_count("num_steps", self.num_steps, 1)
        check_shift(self.shift)
        check_timestep("context_noise", self.context_noise)
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance={self.guidance} must be finite and at least 0; 1 is no guidance")
        if self.shift is not None and self.integer_timesteps:
            sigmas = levels(SOLVERS[self.solver], self.num_steps, self.shift)
            if not truncated(sigmas[-2]):
                raise ValueError(f"integer_timesteps: the last of num_steps={self.num_steps} is timestep "
                                 f"{TIMESTEPS * sigmas[-2]:.3g}, whose whole part is 0: take fewer steps, or a larger "
                                 "shift")

    def levels(self) -> tuple[tuple[float, ...], float]:
        """The noise levels of the steps, 0 at the end, and that of the commit. Raises `ValueError` while a field is
        None."""
        if self.shift is None or self.context_noise is None:
            raise ValueError(f"{self}: what is None is the card's, and there is no card; give a value")
        return levels(SOLVERS[self.solver], self.num_steps, self.shift), self.context_noise / TIMESTEPS

    def rollout(
        self, denoiser: Denoiser, noise: NoiseSource, chunks: Sequence[Chunk], state: int | None = None
    ) -> Iterator[Emit]:
        sigmas, context = self.levels()
        for done, chunk in enumerate(chunks[state or 0 :], start=(state or 0) + 1):
            start = noise.initial(chunk)
            x = start.float() if start.itemsize < 4 else start  # half a step of bf16 is more than many a step
            solver = SOLVERS[self.solver](sigmas)
            for sigma in sigmas[:-1]:
                x = solver.step(x, self._x0(denoiser, x, chunk, sigma))
            x0, committed = x.to(start.dtype), replace(chunk, sigma=context)
            denoiser.commit(x0, (committed,))
            yield Emit(committed, x0, done)

    def _x0(self, denoiser: Denoiser, x: Tensor, chunk: Chunk, sigma: float) -> Tensor:
        told = truncated(sigma) if self.integer_timesteps else sigma
        x0 = denoiser(x, (replace(chunk, sigma=told),))
        return x0 if told == sigma else x.lerp(x0, sigma / told)  # the same velocity, (x - x0) / told
