"""From a prompt to a video: weights, a configuration, and a request, put together."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from arvid.cache import EVENT, Chunk, Event
from arvid.config import PipelineConfig
from arvid.geometry import check_size, chunk_layout, latent_frames, pixel_frames
from arvid.models.denoiser import CachedDenoiser
from arvid.models.dit import CausalDiT
from arvid.models.embeddings import FreedEncoder
from arvid.models.loading import Text, find, load
from arvid.models.specs import Card
from arvid.models.vae import WanVAE
from arvid.models.vae_stream import DecodeStream
from arvid.models.weights import BUNDLED
from arvid.noise import Kind, NoisePrior, seeds
from arvid.presets import STUDENTS, check_built, preset, warn_if_foreign, with_own
from arvid.prompts import Prompts, Schedule, parse
from arvid.samplers import Emit
from arvid.video import Video

__all__ = ["KeyedNoise", "Pipeline", "Progress", "usable"]

MOST_FRAMES = 1_000_000
"""Latent frames of the longest video: days of it. The layout of its chunks is made beforehand."""

T = TypeVar("T")
Pieces = Generator[T, None, None]
Seed = int | Sequence[int]
Change = Event | str | Mapping[str, Any] | None


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


Report = Callable[[Progress], None]


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
    """Weights and a resolved configuration. Make one with `Pipeline.load` or `Pipeline.from_parts`; call it with a
    prompt."""

    def __init__(
        self, dit: CausalDiT, config: PipelineConfig, vae: WanVAE | None, text: Text | None, card: Card | None
    ) -> None:
        self.dit, self.vae, self.text, self.card = dit, vae, text, card
        self.config = config.resolve(card)
        self.tolerated: tuple[str, ...] = ()
        """What `load` let pass because it was called with `strict=False`."""

    @classmethod
    def load(
        cls, config: str | PipelineConfig | None = None, *, model: str | Path | None = None,
        checkpoint: str | Path | None = None, card: str | Card | None = None, lora: str | Path | None = None,
        text: str | Path = "keep", device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
        strict: bool = True,
    ) -> Pipeline:  # fmt: skip
        """Weights of the folder `model` (None: the bundled model), run by `config`: a preset's name, a configuration,
        or None for the weights' own settings.

        `model` is a folder of arvid's, of Wan's official files or of Diffusers', or a hub id "org/name" where no such
        path is. A student's `checkpoint` takes the place of its DiT, with the `lora` that belongs to it added. `card`
        is a name (`arvid list cards`), a .json file or a Card; None is the student preset's, else what the checkpoint's
        name or header says, else the folder's. `text` is "keep", "free" (the text encoder is in memory only while it
        encodes, and read again for a new prompt), or the path of embeddings made by `arvid encode`.
        DiT and VAE are on `device` in `dtype`; a published text encoder stays in bfloat16 on the CPU.

        Warns when a student preset runs on other weights than its own, when the weights are of no student, and of what
        `strict=False` lets pass (`tolerated`). Raises `ValueError` for a device that cannot be used, for a
        configuration that does not fit and for a sampler that is not built, `TypeError` for a `dtype` that is not
        floating point, before weights are read; `FileNotFoundError` and `ValueError` as `arvid.models.loading.load`.
        """
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype={dtype!r}: give a floating point type, such as torch.float32 or torch.bfloat16")
        device = usable(device)
        student = config if isinstance(config, str) and config in STUDENTS else None
        found = find(BUNDLED if model is None else model, checkpoint, card, lora, student)
        resolved = _chosen(config, found.card).resolve(found.card)
        loaded = load(found, text, device, dtype, strict)
        pipe = cls(loaded.dit, resolved, loaded.vae, loaded.text, found.card)
        pipe.tolerated = loaded.tolerated
        return pipe

    @classmethod
    def from_parts(
        cls, dit: CausalDiT, config: str | PipelineConfig | None = None, vae: WanVAE | None = None,
        text: Text | None = None, card: Card | None = None,
    ) -> Pipeline:  # fmt: skip
        """A pipeline of given networks. Without a card a None in the configuration means rope, absolute times and iid
        noise, and any other None raises `ValueError` naming it. Warns as `load`."""
        return cls(dit, _chosen(config, card), vae, text, card)

    @overload
    def __call__(
        self, prompt: str | Schedule, seconds: float | None = None, *, frames: int | None = None,
        height: int | None = None, width: int | None = None, seed: Seed = 0, on_change: Change = None,
        progress: Report | None = None,
    ) -> Video: ...  # fmt: skip
    @overload
    def __call__(
        self, prompt: Sequence[str], seconds: float | None = None, *, frames: int | None = None,
        height: int | None = None, width: int | None = None, seed: Seed = 0, on_change: Change = None,
        progress: Report | None = None,
    ) -> list[Video]: ...  # fmt: skip
    def __call__(
        self, prompt: str | Schedule | Sequence[str], seconds: float | None = None, *, frames: int | None = None,
        height: int | None = None, width: int | None = None, seed: Seed = 0, on_change: Change = None,
        progress: Report | None = None,
    ) -> Video | list[Video]:  # fmt: skip
        """A video of the prompt, or for a list of prompts one each: the pieces of `stream`, joined. Raises as it."""
        prompts = parse(prompt)
        pieces = list(self._begin(prompts, seconds, frames, height, width, seed, on_change, progress))
        videos = [Video.concat(row) for row in zip(*pieces, strict=True)]
        return videos if prompts.batch else videos[0]

    @overload
    def stream(
        self, prompt: str | Schedule, seconds: float | None = None, *, frames: int | None = None,
        height: int | None = None, width: int | None = None, seed: Seed = 0, on_change: Change = None,
        progress: Report | None = None,
    ) -> Pieces[Video]: ...  # fmt: skip
    @overload
    def stream(
        self, prompt: Sequence[str], seconds: float | None = None, *, frames: int | None = None,
        height: int | None = None, width: int | None = None, seed: Seed = 0, on_change: Change = None,
        progress: Report | None = None,
    ) -> Pieces[list[Video]]: ...  # fmt: skip
    def stream(
        self, prompt: str | Schedule | Sequence[str], seconds: float | None = None, *, frames: int | None = None,
        height: int | None = None, width: int | None = None, seed: Seed = 0, on_change: Change = None,
        progress: Report | None = None,
    ) -> Pieces[Video] | Pieces[list[Video]]:  # fmt: skip
        """Pieces of the video, one a chunk, as each chunk is final; for a list of prompts a list of pieces.

        A list of (seconds, prompt), the first at 0, changes the prompt as it runs, from the first chunk on that starts
        at that time or later. Before that chunk `on_change` happens to what is held: an event, its name or its spec;
        None is the cache policy's own.

        Length is `seconds`, rounded to whole chunks, or exactly `frames` latent frames; neither: the training clips'.
        `height` and `width` are pixels (None: the card's). `seed` is an int, the same noise for every row, or one a
        row. Memory does not grow with the length, unless the cache policy keeps ever more. `progress` is called after
        every chunk. Closing the iterator frees all. Bad input raises `ValueError` or `TypeError` here, before the first
        pass; values that are not finite raise `FloatingPointError` in place of their chunk, and a sampler that leaves
        frames out `ValueError`.
        """
        prompts = parse(prompt)
        pieces = self._begin(prompts, seconds, frames, height, width, seed, on_change, progress)
        return pieces if prompts.batch else (row[0] for row in pieces)

    def _begin(
        self, prompts: Prompts, seconds: float | None, frames: int | None, height: int | None, width: int | None,
        seed: Seed, on_change: Change, progress: Report | None,
    ) -> Pieces[list[Video]]:  # fmt: skip
        """Check a request and start on it."""
        if self.vae is None or self.text is None or self.card is None:
            lacks = [name for name in ("vae", "text", "card") if getattr(self, name) is None]
            raise ValueError(f"a video needs {', '.join(lacks)}, which this pipeline lacks; latents(text=...) does not")
        rows = seeds(seed, len(prompts.first))
        total = self._length(seconds, frames)
        sides = self._sides(height, width)
        size = check_size(*sides, space_stride=self.vae.spec.space_stride, patch=self.dit.spec.patch)
        if isinstance(self.text, FreedEncoder):
            self.text.remember([*prompts.first, *(prompt for _, prompt in prompts.later)])
        later, event = self._later(prompts, total), self._event(on_change)
        emits = self._rollout(self.text.encode(prompts.first), total, size, rows, later, event)
        return self._pieces(self.vae, self.card.fps, emits, pixel_frames(total, self.vae.spec.time_stride), progress)

    def _later(self, prompts: Prompts, total: int) -> list[tuple[int, Tensor]]:
        """The frames from which on other prompts run, each the start of a chunk, and their embeddings."""
        assert self.card and self.text and self.config.chunk
        starts = [start for start, _ in chunk_layout(total, self.config.chunk)[1]]
        changes: list[tuple[int, Tensor]] = []
        for seconds, prompt in prompts.later:
            frame = seconds * self.card.fps / self.card.vae.time_stride
            start = next((start for start in starts if start >= frame), None)
            if start is None:
                raise ValueError(f"the prompt {prompt!r} begins at {seconds:g} s, and no chunk of this video of "
                                 f"{total} latent frames begins then or later: give an earlier time or a longer video")
            if changes and changes[-1][0] == start:
                raise ValueError(f"the prompt {prompt!r} begins at {seconds:g} s, in the same chunk as the one before: "
                                 f"give times at least {self.config.chunk} latent frames apart")
            changes.append((start, self.text.encode([prompt])))
        return changes

    def _event(self, on_change: Change) -> Event | None:
        """What a change of the prompt does. Raises `ValueError` for what the cache policy cannot do."""
        policy = self.config.cache
        assert policy
        if on_change is not None:
            policy = dataclasses.replace(policy, on_change=EVENT.build(on_change))
        return policy.on_change

    @staticmethod
    def _pieces(
        vae: WanVAE, fps: float, emits: Iterator[Emit], total: int, progress: Report | None
    ) -> Pieces[list[Video]]:
        # Nothing is clamped before it is checked: clamping turns infinity into white.
        decoder, began, done = DecodeStream(vae, clamp=False), time.perf_counter(), 0
        for emit in emits:
            videos = [Video.from_tensor(row, fps) for row in _finite(decoder.push(emit.x0), emit.chunk, "pixels")]
            done += len(videos[0])
            if progress:
                progress(Progress(done, total, time.perf_counter() - began))
            yield videos

    def latents(
        self, text: Tensor | None = None, prompt: str | Sequence[str] | None = None, frames: int | None = None,
        height: int | None = None, width: int | None = None, seed: Seed = 0,
    ) -> Tensor:  # fmt: skip
        """Normalised latents [B, F, C, H, W] of `frames` latent frames, not decoded.

        Of a prompt or of embeddings `text` [B, L, D], exactly one; `height` and `width` are *latent* pixels. What is
        not given is the card's. Raises as `stream`.
        """
        if (text is None) == (prompt is None):
            raise ValueError("give either text, embeddings [B, L, D], or prompt")
        if prompt is not None:
            if self.text is None:
                raise ValueError("a prompt needs a text encoder, which this pipeline lacks: give text=[B, L, D]")
            prompts = parse(prompt)
            if prompts.later:
                raise ValueError("latents are of one prompt each: use stream for prompts that change")
            text = self.text.encode(prompts.first)
        if not isinstance(text, Tensor) or not text.is_floating_point():
            kind = text.dtype if isinstance(text, Tensor) else type(text).__name__
            raise TypeError(f"text must be a floating point tensor [B, L, D], got {kind}")
        if text.ndim != 3 or 0 in text.shape:
            raise ValueError(f"text has shape {tuple(text.shape)}; it is [B, L, D], nothing empty")
        sides = self._sides(height, width, self.card.vae.space_stride if self.card else 1)
        size = check_size(*sides, space_stride=1, patch=self.dit.spec.patch)
        emits = self._rollout(text, self._length(None, frames), size, seeds(seed, len(text)))
        return torch.cat([emit.x0 for emit in emits], 1)

    def _rollout(
        self, text: Tensor, total: int, size: tuple[int, int], rows: tuple[int, ...],
        later: Sequence[tuple[int, Tensor]] = (), on_change: Event | None = None,
    ) -> Iterator[Emit]:  # fmt: skip
        config, spec, weight = self.config, self.dit.spec, self.dit.patch_embedding.weight
        assert config.cache and config.sampler and config.time and config.rotary and config.noise and config.chunk
        with torch.no_grad():
            prepared, *others = (self.dit.prepare_text(each.to(weight)) for each in (text, *(x for _, x in later)))
        most = config.cache.capacity(config.chunk, config.sampler.in_flight(config.chunk))
        denoiser = CachedDenoiser(
            self.dit, prepared, policy=config.cache, time=config.time, rotary=config.rotary, batch=len(text), size=size,
            pages=total if most is None else min(total, most), horizon=total,
            train_horizon=self.card.train_horizon if self.card else None,
        )  # fmt: skip
        for (frame, _), other in zip(later, others, strict=True):
            denoiser.change(frame, other, on_change)
        noise = KeyedNoise(config.noise, rows, (spec.in_channels, *size), weight)
        _, layout = chunk_layout(total, config.chunk)
        chunks = [Chunk(start, n, index=i) for i, (start, n) in enumerate(layout)]
        done = 0
        for emit in config.sampler.rollout(denoiser, noise, chunks):
            if emit.chunk.start != done or emit.x0.shape[1] != emit.chunk.n:
                raise ValueError(f"{config.sampler} emitted {emit.x0.shape[1]} frames as {emit.chunk}; "
                                 f"next is a chunk from frame {done} on, with all its frames")
            _finite(emit.x0, emit.chunk, "latents")
            done = emit.chunk.end
            yield emit
        if done != total:
            raise ValueError(f"{config.sampler} stopped after {done} of {total} latent frames; it must emit all")

    def _sides(self, height: int | None, width: int | None, stride: int = 1) -> tuple[int, int]:
        """Height and width as given, or the card's pixels over `stride`."""
        own = [side // stride for side in self.card.size] if self.card else [None, None]
        sides = [side if side is not None else default for side, default in zip((height, width), own, strict=True)]
        if sides[0] is None or sides[1] is None:
            raise ValueError(f"height={height}, width={width}: None means the card's, and there is no card: give both")
        _whole(height=sides[0], width=sides[1])
        return sides[0], sides[1]

    def _length(self, seconds: float | None, frames: int | None) -> int:
        """Latent frames of a request."""
        if seconds is not None and frames is not None:
            raise ValueError(f"seconds={seconds!r} and frames={frames!r} both set the length: give one")
        if seconds is not None:
            if isinstance(seconds, bool) or not isinstance(seconds, Real):
                raise TypeError(f"seconds={seconds!r} must be a number, got {type(seconds).__name__}")
            assert self.card and self.config.chunk  # videos have a card, and what is resolved has a chunk
            frames = latent_frames(seconds, self.card.fps, self.card.vae.time_stride, self.config.chunk)
        elif frames is None:
            if self.card is None:
                raise ValueError("frames is None, which means the card's, and there is no card: give latent frames")
            frames = self.card.train_horizon
        _whole(frames=frames)
        if frames > MOST_FRAMES:
            asked = f"{frames} latent frames" if seconds is None else f"seconds={seconds}"
            raise ValueError(f"{asked}: a video has at most {MOST_FRAMES} latent frames")
        return frames


def usable(device: str | torch.device) -> torch.device:
    """The device, once a tensor was there and back. Raises `ValueError` with the reason where it cannot be used."""
    try:
        torch.zeros(1, device=device).cpu()
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:  # PyTorch built without CUDA raises AssertionError
        reason = str(error).split("\n")[0]
        raise ValueError(f"device {str(device)!r} cannot be used here, 'cpu' always can: {reason}") from error


def _chosen(config: str | PipelineConfig | None, card: Card | None) -> PipelineConfig:
    if isinstance(config, str):
        chosen = preset(config)
        if card:
            warn_if_foreign(config, card)
    elif config is not None and not isinstance(config, PipelineConfig):
        raise TypeError(f"config={config!r}: give a preset's name or a PipelineConfig (PipelineConfig.from_dict)")
    else:
        chosen = config or PipelineConfig()
    if card:
        check_built(chosen, card)
        chosen = with_own(chosen, card)
    return chosen


def _whole(**numbers: int) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: give a whole number, at least 1")


def _finite(x: Tensor, chunk: Chunk, what: str) -> Tensor:
    if not x.isfinite().all():
        raise FloatingPointError(
            f"the {what} of chunk {chunk.index} (latent frames {chunk.start}..{chunk.end - 1}) have values that are "
            f"not finite: the weights are damaged, or {x.dtype} overflows and a wider dtype is needed"
        )
    return x
