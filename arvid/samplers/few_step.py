from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

from arvid.cache.base import Chunk

from .base import SAMPLER, Denoiser, Emit, NoiseSource
from .schedule import check_steps, warp
from .stepped import Stepped

Committed = Literal["x0", "last"]


@SAMPLER.register("few_step")
@dataclass(frozen=True)
class FewStep(Stepped):
    """Chunk after chunk: a few predictions of x0, each noised afresh to the next level, then a commit.

    Self Forcing (arXiv 2506.08009, algorithm 2), on consistency sampling (arXiv 2303.01469, algorithm 1). `steps` are
    nominal, falling in (0, 1000]; `shift` warps them. The commit runs at timestep `context_noise` (0..1000, not
    shifted) on x0 itself, or on x0 noised to that level with `context_renoise`. None is the card's.

    `first_steps` are those of the first chunks that are generated, one entry a chunk (Causal-Forcing++, arXiv
    2605.15141; Diagonal Distillation, arXiv 2603.09488). With `commit` "last" the last prediction is the commit: it
    keeps the keys of its noisy input at its level, one pass fewer a chunk (Diagonal Distillation).
    """

    first_steps: tuple[tuple[float, ...], ...] = ()
    commit: Committed = "x0"

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(not isinstance(steps, Sequence) for steps in self.first_steps):
            raise ValueError(f"first_steps={self.first_steps}: give the steps of each first chunk in a tuple of its "
                             "own, such as ((1000, 750, 500, 250),)")
        tables = (check_steps(f"first_steps[{i}]", steps) for i, steps in enumerate(self.first_steps))
        object.__setattr__(self, "first_steps", tuple(tables))
        if self.commit not in get_args(Committed):
            raise ValueError(f"commit={self.commit!r}; allowed: {', '.join(map(repr, get_args(Committed)))}")
        if self.commit == "last" and self.context_renoise:
            raise ValueError("context_renoise noises the x0 that is committed, but commit='last' commits the input of "
                             "the last step: leave one of them out")

    def rollout(
        self, denoiser: Denoiser, noise: NoiseSource, chunks: Sequence[Chunk], state: int | None = None
    ) -> Iterator[Emit]:
        later, _ = self.levels()
        assert self.shift
        tables = [warp(steps, self.shift) for steps in self.first_steps]
        for done, chunk in enumerate(chunks[state or 0 :], start=state or 0):
            sigmas = tables[done] if done < len(tables) else later
            x = noise.initial(chunk)
            for step, (sigma, following) in enumerate(pairwise(sigmas)):
                x0 = denoiser(x, (replace(chunk, sigma=sigma),))
                x = x0.lerp(noise.renoise(chunk, step), following)  # one rounding, in bf16 too
            last = replace(chunk, sigma=sigmas[-1])
            if self.commit == "last":
                x0, committed = denoiser.commit(x, (last,)), last
            else:
                x0 = denoiser(x, (last,))
                committed = self.commit_x0(denoiser, noise, chunk, x0)
            yield Emit(committed, x0, done + 1)
