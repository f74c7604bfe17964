from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from arvid.cache.base import Chunk

from .base import SAMPLER, Denoiser, Emit, NoiseSource
from .stepped import Stepped

if TYPE_CHECKING:
    from torch import Tensor

State = tuple[int, tuple["Tensor", ...]]


@SAMPLER.register("rolling_forcing")
@dataclass(frozen=True)
class RollingForcing(Stepped):
    """As many chunks together as there are levels, the first the cleanest: each pass moves all of them one level on.

    Rolling Forcing (arXiv 2509.25161, section 3.2). A pass ends with the first chunk final, committed and emitted, and
    one of pure noise begins in the next; a video begins with one chunk and ends with one, so no level is left out where
    chunks are fewer. Fields are those of `few_step`; its numbers of noise are used, in another order.
    """

    def in_flight(self, chunk: int) -> int:
        return self.count() * chunk

    def rollout(
        self, denoiser: Denoiser, noise: NoiseSource, chunks: Sequence[Chunk], state: State | None = None
    ) -> Iterator[Emit]:
        """`state`: how many chunks are final, and the latents of those in flight, first to last."""
        import torch

        sigmas, _ = self.levels()
        last = len(sigmas) - 1
        first, given = state or (0, ())
        flying = list(given)
        for window in range(first + last if state else 0, len(chunks) + last):
            first = max(0, window - last)
            if window < len(chunks):
                flying.append(noise.initial(chunks[window]))
            now = chunks[first : window + 1]
            steps = [window - first - i for i in range(len(now))]
            levelled = tuple(replace(chunk, sigma=sigmas[step]) for chunk, step in zip(now, steps, strict=True))
            x0 = denoiser(torch.cat(flying, 1), levelled).split([chunk.n for chunk in now], 1)
            flying = [x0_chunk.lerp(noise.renoise(chunk, step), sigmas[step + 1])
                      for chunk, step, x0_chunk in zip(now, steps, x0, strict=True) if step < last]  # fmt: skip
            if window >= last:
                final = x0[0].clone()  # not a part of all the pass's latents, which would stay with it
                committed = self.commit_x0(denoiser, noise, now[0], final)
                yield Emit(committed, final, (first + 1, tuple(flying)))
