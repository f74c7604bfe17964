from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from arvid.cache.base import Chunk

from .base import SAMPLER, Denoiser, Emit, NoiseSource
from .schedule import check_count
from .stepped import Stepped

if TYPE_CHECKING:
    from torch import Tensor

State = tuple[int, tuple["Tensor", ...]]


@SAMPLER.register("hierarchical")
@dataclass(frozen=True)
class Hierarchical(Stepped):
    """Every level has a history of its own, of chunks as noisy as what it makes of them; the last one's are clean.

    HiAR (arXiv 2603.08703, section 3): level after level over all chunks. A chunk needs its own last level and the
    chunk before it at this one, so the passes may as well run along diagonals: chunk c at level l beside chunk c - 1 at
    level l + 1. The numbers are the same, chunks are emitted as they get final, and memory does not grow with the
    length. A lane is a level. `steps` to `context_renoise` are those of `few_step`. Further, as in HiAR's code:

    - `always_clean_context`: every level's history is of x0 at the context level.
    - `frame_first_steps`: the first so many levels are one, run chunk after chunk; all of them: `few_step`.
    - `frame_first_chunks`: the first so many chunks run through all levels in turn, and are clean in every history.
    - `ode`: on to the next level along the velocity (Euler), not by fresh noise.
    """

    always_clean_context: bool = False
    frame_first_steps: int = 0
    frame_first_chunks: int = 0
    ode: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("frame_first_steps", self.frame_first_steps)
        check_count("frame_first_chunks", self.frame_first_chunks)
        if self.steps is not None and self.frame_first_steps > len(self.steps):
            raise ValueError(f"frame_first_steps={self.frame_first_steps} of {len(self.steps)} steps: give at most as "
                             "many as there are; all of them is few_step")

    @property
    def lanes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """One for each level, those of `frame_first_steps` together."""
        return self.count() - max(1, self.frame_first_steps) + 1

    def rollout(
        self, denoiser: Denoiser, noise: NoiseSource, chunks: Sequence[Chunk], state: State | None = None
    ) -> Iterator[Emit]:
        """`state`: how many chunks are final, and the latents of those in flight, first to last."""
        done, given = state or (0, ())
        lanes, (sigmas, _) = self.lanes, self.levels()
        for i, chunk in enumerate(chunks[done : self.frame_first_chunks], start=done):
            x0, _ = self._through(denoiser, noise, chunk, noise.initial(chunk), range(len(sigmas)), lanes - 1)
            yield Emit(self.commit_x0(denoiser, noise, chunk, x0, *range(lanes)), x0, (i + 1, ()))
        begun = min(len(chunks), self.frame_first_chunks)
        done = max(done, begun)
        flying = dict(enumerate(given, start=done))  # by chunk, always in order: the oldest goes first
        # Emission is the first thing in a diagonal: what continues after it finds the rest of that one to do.
        for diagonal in range(done + lanes - 2 if done > begun else begun, len(chunks) + lanes - 1):
            for lane in reversed(range(lanes)):
                if not done <= (i := diagonal - lane) < len(chunks):
                    continue
                chunk, steps = chunks[i], self._steps_of(lane)
                x = flying.pop(i) if lane else noise.initial(chunk)
                x0, x = self._through(denoiser, noise, chunk, x, steps, lane)
                if steps.stop == len(sigmas):
                    done = i + 1
                    committed = self.commit_x0(denoiser, noise, chunk, x0, lane)
                    yield Emit(committed, x0, (done, tuple(flying.values())))
                    continue
                flying[i] = x
                if self.always_clean_context:
                    self.commit_x0(denoiser, noise, chunk, x0, lane)
                else:
                    denoiser.commit(x, (replace(chunk, sigma=sigmas[steps.stop]),), lane=lane)

    def _steps_of(self, lane: int) -> range:
        together = max(1, self.frame_first_steps)
        return range(lane + together - 1 if lane else 0, lane + together)

    def _through(
        self, denoiser: Denoiser, noise: NoiseSource, chunk: Chunk, x: Tensor, steps: range, lane: int
    ) -> tuple[Tensor, Tensor]:
        """x0 after the last of these steps, and the latents at the level that follows; there is none after the last."""
        sigmas, _ = self.levels()
        x0 = x
        for step in steps:
            x0 = denoiser(x, (replace(chunk, sigma=sigmas[step]),), lane=lane)
            if step + 1 < len(sigmas):
                on = sigmas[step + 1]
                x = x0.lerp(x, on / sigmas[step]) if self.ode else x0.lerp(noise.renoise(chunk, step), on)
        return x0, x
