from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from arvid.cache.base import Chunk

from .base import Denoiser, NoiseSource, Sampler
from .schedule import TIMESTEPS, check_shift, check_steps, check_timestep, warp

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Stepped(Sampler):
    """Base of samplers that predict x0 at a few noise levels, with fresh noise in between.

    `steps` are nominal, falling in (0, 1000]; `shift` warps them. Commits of x0 run at timestep `context_noise`
    (0..1000, not shifted) on x0 itself, or on x0 noised to that level with `context_renoise`. None is the card's.
    """

    steps: tuple[float, ...] | None = None
    shift: float | None = None
    context_noise: float | None = None
    context_renoise: bool = False

    def __post_init__(self) -> None:
        if self.steps is not None:
            object.__setattr__(self, "steps", check_steps("steps", self.steps))
        check_shift(self.shift)
        check_timestep("context_noise", self.context_noise)

    def levels(self) -> tuple[tuple[float, ...], float]:
        """The noise levels of the steps and of the commit. Raises `ValueError` while a field is None."""
        if self.steps is None or self.shift is None or self.context_noise is None:
            raise ValueError(f"{self}: what is None is the card's, and there is no card; give a value")
        return warp(self.steps, self.shift), self.context_noise / TIMESTEPS

    def count(self) -> int:
        """How many levels there are. Raises `ValueError` while `steps` is None."""
        if self.steps is None:
            raise ValueError(f"{self}: steps is None, which means the card's, and there is no card; give a value")
        return len(self.steps)

    def commit_given(self, denoiser: Denoiser, noise: NoiseSource, chunk: Chunk, x0: Tensor) -> Chunk:
        return self.commit_x0(denoiser, noise, chunk, x0, *range(self.lanes))

    def commit_x0(self, denoiser: Denoiser, noise: NoiseSource, chunk: Chunk, x0: Tensor, *lanes: int) -> Chunk:
        """Commit x0 at the context level in `lanes` (none given: lane 0); the chunk at that level."""
        context = self.levels()[1]
        committed = replace(chunk, sigma=context)
        kept = x0.lerp(noise.context(chunk), context) if self.context_renoise else x0
        for lane in lanes or (0,):
            denoiser.commit(kept, (committed,), lane=lane)
        return committed
