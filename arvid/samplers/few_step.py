from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from arvid.cache.base import Chunk

from .base import SAMPLER, Denoiser, Emit, NoiseSource, Sampler
from .schedule import TIMESTEPS, warp


@SAMPLER.register("few_step")
@dataclass(frozen=True)
class FewStep(Sampler):
    """Chunk after chunk: a few predictions of x0, each noised afresh to the next level, then a commit.

    Self Forcing (arXiv 2506.08009, algorithm 2), on consistency sampling (arXiv 2303.01469, algorithm 1). `steps` are
    nominal, falling in (0, 1000]; `shift` warps them. The commit runs at timestep `context_noise` (0..1000, not
    shifted) on x0 itself, or on x0 noised to that level with `context_renoise`. None is the card's.
    """

    steps: tuple[float, ...] | None = None
    shift: float | None = None
    context_noise: float | None = None
    context_renoise: bool = False

    def __post_init__(self) -> None:
        if self.steps is not None:
            object.__setattr__(self, "steps", tuple(self.steps))
            falling = all(a > b for a, b in pairwise(self.steps))
            if not self.steps or not falling or not all(0 < step <= TIMESTEPS for step in self.steps):
                raise ValueError(f"steps={self.steps}: give at least one, falling, each in (0, {TIMESTEPS}], "
                                 "such as (1000, 750, 500, 250)")
        if self.shift is not None and not 0 < self.shift < float("inf"):
            raise ValueError(f"shift={self.shift} must be positive and finite; 1 leaves the steps as they are")
        if self.context_noise is not None and not 0 <= self.context_noise <= TIMESTEPS:
            raise ValueError(f"context_noise={self.context_noise} is a timestep and lies in 0..{TIMESTEPS}; 0 is clean")

    def levels(self) -> tuple[tuple[float, ...], float]:
        """The noise levels of the steps and of the commit. Raises `ValueError` while a field is None."""
        if self.steps is None or self.shift is None or self.context_noise is None:
            raise ValueError(f"{self}: what is None is the card's, and there is no card; give a value")
        return warp(self.steps, self.shift), self.context_noise / TIMESTEPS

    def rollout(
        self, denoiser: Denoiser, noise: NoiseSource, chunks: Sequence[Chunk], state: int | None = None
    ) -> Iterator[Emit]:
        sigmas, context = self.levels()
        for done, chunk in enumerate(chunks[state or 0 :], start=(state or 0) + 1):
            x0 = x = noise.initial(chunk)
            for step, sigma in enumerate(sigmas):
                if step:
                    x = x0.lerp(noise.renoise(chunk, step - 1), sigma)  # one rounding, in bf16 too
                x0 = denoiser(x, (replace(chunk, sigma=sigma),))
            committed = replace(chunk, sigma=context)
            kept = x0.lerp(noise.context(chunk), context) if self.context_renoise else x0
            denoiser.commit(kept, (committed,))
            yield Emit(committed, x0, done)
