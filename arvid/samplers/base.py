"""What a sampler is, and all it knows of models: a denoiser that reads and commits, and a source of noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from arvid.cache.base import Chunk
from arvid.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


class Denoiser(Protocol):
    """A model with its history. Chunks carry the noise level of their frames."""

    def __call__(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        """The prediction of x0 for noisy latents, in their dtype, which may be wider than the network's; changes
        nothing that a later pass can see."""
        ...

    def commit(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        """Keep the keys of exactly these latents, run at each chunk's noise level; returns the prediction of x0."""
        ...


class NoiseSource(Protocol):
    """Standard Gaussian noise [B, n, C, H, W] of a chunk's frames, whenever and in whatever order it is asked.

    `renoise` number k takes x0 from noise level k to level k + 1; `context` noises a chunk that is to be committed.
    """

    def initial(self, chunk: Chunk) -> Tensor: ...
    def renoise(self, chunk: Chunk, step: int) -> Tensor: ...
    def context(self, chunk: Chunk) -> Tensor: ...


@dataclass(frozen=True)
class Emit:
    """A chunk is final. `x0` [B, n, C, H, W]; `state` is what the sampler's `rollout` needs to continue after it."""

    chunk: Chunk
    x0: Tensor
    state: Any


@dataclass(frozen=True)
class Sampler(ABC):
    """The order of passes. A chunk is committed before it is emitted.

    `guidance` other than 1 is classifier-free guidance, which is the denoiser's business (arXiv 2207.12598).
    """

    needs_horizon: ClassVar[bool] = False
    lanes: ClassVar[int] = 1
    guidance = 1.0  # without a type it is no field, and those of a sampler that has it keep their order

    @property
    def branches(self) -> int:
        """How often the network runs in a pass: with guidance under the negative prompt too."""
        return 1 if self.guidance == 1 else 2

    def in_flight(self, chunk: int) -> int:
        """Most frames in one pass, for chunks of `chunk` frames."""
        return chunk

    def levels(self) -> tuple[tuple[float, ...], float]:
        """The noise levels of the steps and of the commit. Raises `ValueError` for a sampler that does not say."""
        raise ValueError(f"{self} cannot start from given frames: it has no levels(), whose second value is the level "
                         "they are committed at")

    def commit_given(self, denoiser: Denoiser, noise: NoiseSource, chunk: Chunk, x0: Tensor) -> Chunk:
        """Commit a chunk that is given, not made, in every lane, as those that are made; the chunk at that level."""
        committed = replace(chunk, sigma=self.levels()[1])
        for lane in range(self.lanes):
            denoiser.commit(x0, (committed,), lane=lane)
        return committed

    @abstractmethod
    def rollout(
        self, denoiser: Denoiser, noise: NoiseSource, chunks: Sequence[Chunk], state: Any = None
    ) -> Iterator[Emit]:
        """Generate `chunks`, all of the video's, in order (their `sigma` is of no account).

        `state` continues after the emission that gave it, with a denoiser whose history is what it was then.
        """


SAMPLER: Registry[Sampler] = Registry("sampler", Sampler)
