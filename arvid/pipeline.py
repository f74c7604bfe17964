"""From a prompt to a video: weights, a configuration, and a request, put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from arvid.cache import Chunk
from arvid.config import PipelineConfig
from arvid.geometry import check_size, chunk_layout, latent_frames, pixel_frames
from arvid.models.denoiser import CachedDenoiser
from arvid.models.dit import CausalDiT
from arvid.models.specs import Card
from arvid.models.text import TextEncoder
from arvid.models.vae import WanVAE
from arvid.models.vae_stream import DecodeStream
from arvid.models.weights import BUNDLED, load_parts
from arvid.noise import Kind, NoisePrior, seeds
from arvid.presets import preset, warn_if_foreign
from arvid.samplers import Emit
from arvid.video import Video

Seed = int | Sequence[int]


@dataclass(frozen=True)
class Progress:
    """How far a request is: pixel frames done and asked for, and the seconds since it began."""

    done: int
    total: int
    seconds: float

    @property
    def fps(self) -> float:
        """Pixel frames made a second."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def eta(self) -> float:
        """Seconds left at this rate."""
        return (self.total - self.done) / self.fps if self.fps else float("inf")


class KeyedNoise:
    """A prior's draws as tensors for one request: what `samplers.NoiseSource` asks for."""

    def __init__(self, prior: NoisePrior, seeds: Sequence[int], shape: Sequence[int], like: Tensor) -> None:
        self.prior, self.seeds, self.shape, self.like = prior, tuple(seeds), tuple(shape), like

    def _draw(self, kind: Kind, step: int, chunk: Chunk) -> Tensor:
        return torch.from_numpy(self.prior.batch(self.seeds, kind, step, chunk, self.shape)).to(self.like)

    def initial(self, chunk: Chunk) -> Tensor:
        return self._draw(Kind.INITIAL, 0, chunk)

    def renoise(self, chunk: Chunk, step: int) -> Tensor:
        return self._draw(Kind.RENOISE, step, chunk)

    def context(self, chunk: Chunk) -> Tensor:
        return self._draw(Kind.CONTEXT, 0, chunk)


class Pipeline:
    """Weights and a resolved configuration. Make one with `Pipeline.load` or `Pipeline.from_parts`; call it with a prompt."""

    def __init__(
        self, dit: CausalDiT, config: PipelineConfig, vae: WanVAE | None, text: TextEncoder | None, card: Card | None
    ) -> None:
        self.dit, self.vae, self.text, self.card = dit, vae, text, card
        self.config = config.resolve(card)

    @classmethod
    def load(
        cls, config: str | PipelineConfig | None = None, *, model: str | Path | None = None,
        device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
    ) -> Pipeline:  # fmt: skip
        """Weights of the folder `model` (None: the bundled model), run by `config`: a preset's name, a configuration, or
        None for the weights' own settings.

        Warns when a student preset runs on other weights than its own. Raises `ValueError` for a configuration that does
        not fit, and as `load_parts`.
        """
        chosen = preset(config) if isinstance(config, str) else config or PipelineConfig()
        parts = load_parts(model or BUNDLED, device, dtype)
        if isinstance(config, str):
            warn_if_foreign(config, parts.card)
        return cls(parts.dit, chosen, parts.vae, parts.text, parts.card)

    @classmethod
    def from_parts(
        cls, dit: CausalDiT, config: str | PipelineConfig, vae: WanVAE | None = None, text: TextEncoder | None = None,
        card: Card | None = None,
    ) -> Pipeline:  # fmt: skip
        """A pipeline of given networks. Without a card a None in the configuration means rope, absolute times and iid
        noise, and any other None raises `ValueError` naming it."""
        return cls(dit, preset(config) if isinstance(config, str) else config, vae, text, card)

    def __call__(
        self, prompt: str | Sequence[str], seconds: float | None = None, *, frames: int | None = None, height: int | None = None,
        width: int | None = None, seed: Seed = 0, progress: Callable[[Progress], None] | None = None,
    ) -> Video | list[Video]:  # fmt: skip
        """A video of the prompt, or for a list of prompts one each: the pieces of `stream`, joined. Raises as `stream`."""
        pieces = list(self.stream(prompt, seconds, frames=frames, height=height, width=width, seed=seed, progress=progress))
        if isinstance(prompt, str):
            return Video.concat(pieces)  # pyright: ignore[reportArgumentType]
        return [Video.concat(row) for row in zip(*pieces, strict=True)]  # pyright: ignore[reportArgumentType]

    def stream(
        self, prompt: str | Sequence[str], seconds: float | None = None, *, frames: int | None = None, height: int | None = None,
        width: int | None = None, seed: Seed = 0, progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[Video | list[Video]]:  # fmt: skip
        """Pieces of the video, one a chunk, as each chunk is final; for a list of prompts a list of pieces.

        Length is `seconds`, rounded to whole chunks, or exactly `frames` latent frames; neither: the training clips'.
        `height` and `width` are pixels (None: the card's). `seed` is an int, the same noise for every row, or one a
        row. Memory does not grow with the length. `progress` is called after every chunk. Bad input raises
        `ValueError` here, before anything runs; closing the iterator frees all.
        """
        if self.vae is None or self.text is None or self.card is None:
            raise ValueError("videos need a VAE, a text encoder and a card; this pipeline lacks one: use Pipeline.load, or latents(text=...)")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        total = self._length(seconds, frames)
        size = check_size(*self._size(height, width), self.card.vae.space_stride, self.card.dit.patch)
        rows = seeds(seed, max(1, len(prompts)))
        text = self.text.encode(prompts)
        return self._pieces(text, total, size, rows, isinstance(prompt, str), progress)

    def _pieces(
        self, text: Tensor, total: int, size: tuple[int, int], rows: tuple[int, ...], single: bool,
        progress: Callable[[Progress], None] | None,
    ) -> Iterator[Video | list[Video]]:  # fmt: skip
        assert self.vae is not None and self.card is not None
        decoder, began, done = DecodeStream(self.vae), time.perf_counter(), 0
        for emit in self._rollout(text, total, size, rows):
            pixels = decoder.push(emit.x0)
            if not torch.isfinite(pixels).all():
                raise FloatingPointError(f"chunk {emit.chunk.index} (frames {emit.chunk.start}..{emit.chunk.end - 1}) has values that are not finite")
            videos = [Video.from_tensor(row, self.card.fps) for row in pixels]
            done += len(videos[0])
            if progress:
                progress(Progress(done, pixel_frames(total, self.card.vae.time_stride), time.perf_counter() - began))
            yield videos[0] if single else videos

    def latents(
        self, text: Tensor | None = None, prompt: str | Sequence[str] | None = None, frames: int | None = None,
        height: int | None = None, width: int | None = None, seed: Seed = 0,
    ) -> Tensor:  # fmt: skip
        """Normalised latents [B, F, C, H, W] of `frames` frames, not decoded.

        Of a prompt or of embeddings `text` [B, L, D], exactly one; `height` and `width` are latent pixels. What is not
        given is the card's. Raises `ValueError` for bad input, before anything runs.
        """
        if (text is None) == (prompt is None):
            raise ValueError("give either text=[B, L, D] or prompt=..., and not both")
        if prompt is not None:
            if self.text is None:
                raise ValueError("a prompt needs a text encoder, and this pipeline has none: give text=[B, L, D]")
            text = self.text.encode([prompt] if isinstance(prompt, str) else list(prompt))
        assert text is not None
        spec = self.dit.spec
        stride = self.card.vae.space_stride if self.card else None
        if (height is None or width is None) and (stride is None or self.card is None):
            raise ValueError("height and width are None, which means the card's, and there is no card: give latent pixels")
        given = [side if side is not None else own // stride for side, own in zip((height, width), self.card.size if self.card and stride else (0, 0), strict=True)]  # type: ignore[operator]
        size = check_size(given[0], given[1], 1, spec.patch)
        emits = self._rollout(text, self._length(None, frames), size, seeds(seed, len(text)))
        return torch.cat([emit.x0 for emit in emits], 1)

    def _rollout(self, text: Tensor, total: int, size: tuple[int, int], rows: tuple[int, ...]) -> Iterator[Emit]:
        config, spec, weight = self.config, self.dit.spec, self.dit.patch_embedding.weight
        assert config.cache and config.sampler and config.time and config.rotary and config.noise and config.chunk
        _, layout = chunk_layout(total, config.chunk)
        with torch.no_grad():
            prepared = self.dit.prepare_text(text.to(weight))
        most = config.cache.capacity(config.chunk, config.sampler.in_flight(config.chunk))
        denoiser = CachedDenoiser(
            self.dit, prepared, policy=config.cache, time=config.time, rotary=config.rotary, batch=len(text), size=size,
            pages=total if most is None else min(total, most), horizon=total,
            train_horizon=self.card.train_horizon if self.card else None,
        )  # fmt: skip
        noise = KeyedNoise(config.noise, rows, (spec.in_channels, *size), weight)
        chunks = [Chunk(start, n, index=i) for i, (start, n) in enumerate(layout)]
        yield from config.sampler.rollout(denoiser, noise, chunks)

    def _length(self, seconds: float | None, frames: int | None) -> int:
        if seconds is not None and frames is not None:
            raise ValueError(f"seconds={seconds} and frames={frames} both set the length: give one")
        if seconds is not None:
            assert self.card and self.config.chunk
            return latent_frames(seconds, self.card.fps, self.card.vae.time_stride, self.config.chunk)
        if frames is None:
            if self.card is None:
                raise ValueError("frames is None, which means the card's training clips, and there is no card: give latent frames")
            return self.card.train_horizon
        if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
            raise ValueError(f"frames={frames!r}: give a whole number of latent frames, at least 1")
        return frames

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        assert self.card is not None
        return self.card.size[0] if height is None else height, self.card.size[1] if width is None else width
