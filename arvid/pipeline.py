"""From a prompt to a video: weights, a configuration, and a request, put together."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from arvid.cache import EVENT, Event
from arvid.config import PipelineConfig
from arvid.geometry import check_size, chunk_layout
from arvid.models.denoiser import CachedDenoiser
from arvid.models.dit import CausalDiT
from arvid.models.embeddings import FreedEncoder
from arvid.models.loading import Text, find, load
from arvid.models.specs import Card
from arvid.models.vae import WanVAE
from arvid.models.vae_stream import DecodeStream
from arvid.models.weights import BUNDLED
from arvid.noise import seeds
from arvid.presets import STUDENTS, check_built, preset, warn_if_foreign, with_own
from arvid.prompts import Live, Prompts, Schedule, parse, placed
from arvid.requests import (
    MOST_FRAMES,
    Given,
    KeyedNoise,
    Negative,
    Progress,
    Report,
    Request,
    Start,
    away_from,
    embeddings,
    given,
    length,
    sides_of,
    usable,
)
from arvid.streams import Ask, Rollout, State, Stream, pieces
from arvid.video import Video, VideoWriter

__all__ = ["MOST_FRAMES", "KeyedNoise", "Pipeline", "Progress", "State", "Stream", "usable"]

Seed = int | Sequence[int]
Into = str | os.PathLike[str] | VideoWriter
Change = Event | str | Mapping[str, Any] | None


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
        self, prompt: str | Schedule | Live, seconds: float | None = None, *, frames: int | None = None,
        height: int | None = None, width: int | None = None, seed: Seed = 0, on_change: Change = None,
        negative: Negative = None, start: Start | None = None, into: Into, progress: Report | None = None,
    ) -> Path: ...  # fmt: skip
    @overload
    def __call__(
        self, prompt: str | Schedule | Live, seconds: float | None = None, *, frames: int | None = None,
        height: int | None = None, width: int | None = None, seed: Seed = 0, on_change: Change = None,
        negative: Negative = None, start: Start | None = None, into: None = None, progress: Report | None = None,
    ) -> Video: ...  # fmt: skip
    @overload
    def __call__(
        self, prompt: Sequence[str], seconds: float | None = None, *, frames: int | None = None,
        height: int | None = None, width: int | None = None, seed: Seed = 0, on_change: Change = None,
        negative: Negative = None, start: Start | None = None, into: None = None, progress: Report | None = None,
    ) -> list[Video]: ...  # fmt: skip
    def __call__(
        self, prompt: str | Schedule | Live | Sequence[str], seconds: float | None = None, *, frames: int | None = None,
        height: int | None = None, width: int | None = None, seed: Seed = 0, on_change: Change = None,
        negative: Negative = None, start: Start | None = None, into: Into | None = None,
        progress: Report | None = None,
    ) -> Video | list[Video] | Path:  # fmt: skip
        """A video of the prompt, or for a list of prompts one each: the pieces of `stream`, joined. Raises as it.

        `into`, the path of a file or a `VideoWriter`, takes the pieces as they are made, and none stays in memory; what
        is returned is its path. What is done when something stops the run stays in NAME.part.mp4. Raises
        `ValueError` for a batch, whose videos need a file each, and as `VideoWriter`.
        """
        writer = into if into is None or isinstance(into, VideoWriter) else VideoWriter(into)
        request, ask = self._request(
            parse(prompt), seconds, frames, height, width, seed, on_change, negative, start)
        if writer and request.batch:
            raise ValueError(f"into={str(writer.path)!r} is the file of one video, and this is a batch of "
                             f"{len(request.rows)}: give each piece of stream its own VideoWriter")
        with self._stream(request, ask, progress) as rows:
            if writer:
                with writer:
                    for (piece,) in rows:
                        writer.add(piece)
                return writer.path
            videos = [Video.concat(row) for row in zip(*rows, strict=True)]
        return videos if request.batch else videos[0]

    @overload
    def stream(
        self, prompt: str | Schedule | Live, seconds: float | None = None, *, frames: int | None = None,
        height: int | None = None, width: int | None = None, seed: Seed = 0, on_change: Change = None,
        negative: Negative = None, start: Start | None = None, progress: Report | None = None,
    ) -> Stream[Video]: ...  # fmt: skip
    @overload
    def stream(
        self, prompt: Sequence[str], seconds: float | None = None, *, frames: int | None = None,
        height: int | None = None, width: int | None = None, seed: Seed = 0, on_change: Change = None,
        negative: Negative = None, start: Start | None = None, progress: Report | None = None,
    ) -> Stream[list[Video]]: ...  # fmt: skip
    def stream(
        self, prompt: str | Schedule | Live | Sequence[str], seconds: float | None = None, *, frames: int | None = None,
        height: int | None = None, width: int | None = None, seed: Seed = 0, on_change: Change = None,
        negative: Negative = None, start: Start | None = None, progress: Report | None = None,
    ) -> Stream[Video] | Stream[list[Video]]:  # fmt: skip
        """Pieces of the video, one a chunk, as each chunk is final; for a list of prompts a list of pieces.

        A list of (seconds, prompt), the first at 0, changes the prompt as it runs, from the first chunk on that starts
        at that time or later; of two for one chunk the later one counts. A function of the seconds is asked for the
        prompt before each chunk's first pass. Before a chunk under another prompt `on_change` happens to what is held:
        an event, its name or its spec; None is the cache policy's own.

        The video begins with `start`: an image, a clip, or latents [B, F, C, H, W], of one row or a list of one a row.
        They come first in the pieces, exactly as given; seconds of prompts count from their beginning. Latent frames
        given are whole chunks, with or without one frame before them that is a chunk of its own.

        Length, of what is new, is `seconds`, rounded to whole chunks, or exactly `frames` latent frames; neither: the
        training clips'. `height` and `width` are pixels (None: the card's). `seed` is an int, the same noise for every
        row, or one a row. Memory does not grow with the length, unless the cache policy keeps ever more. `progress` is
        called after every chunk. Closing the stream frees all; its `state()` is for `resume`. Bad input raises
        `ValueError` or `TypeError` here, before the first pass; values that are not finite raise `FloatingPointError`
        in place of their chunk, and a sampler that leaves frames out `ValueError`.
        """
        request, ask = self._request(
            parse(prompt), seconds, frames, height, width, seed, on_change, negative, start)
        rows = self._stream(request, ask, progress)
        return rows if request.batch else rows.single()

    def resume(self, state: State, prompt: Live | None = None, *, progress: Report | None = None) -> Stream[Any]:
        """The rest of the stream whose `state()` this is, to the last bit as if it had not stopped.

        `prompt` is for a stream whose prompt is a function, which is no part of a state. Raises `ValueError` for a
        state of another configuration or of networks of other sizes, and where `prompt` is missing or too much,
        `TypeError` for what is no state.
        """
        if not isinstance(state, State):
            raise TypeError(f"state={state!r}: give a State, which State.load reads from a file")
        if state.settings != self.config.to_dict():
            names = [key for key in self.config.to_dict() if state.settings.get(key) != self.config.to_dict()[key]]
            raise ValueError(f"the state is of another configuration, which differs in {', '.join(names)}: load the "
                             "pipeline with that one")
        if (prompt is None) != (state.asked is None):
            raise ValueError("the stream's prompt was a function: give resume(state, prompt) one" if prompt is None else
                             "the stream's prompts are in its state: leave prompt out")
        if self.vae is None or self.card is None:
            raise ValueError("this pipeline lacks a VAE or a card, and makes no video to go on with")
        rows = self._stream(state.request, self._asker(prompt, state.prompt), progress, state)
        return rows if state.request.batch else rows.single()

    def _request(
        self, prompts: Prompts, seconds: float | None, frames: int | None, height: int | None, width: int | None,
        seed: Seed, on_change: Change, negative: Negative, start: Start | None,
    ) -> tuple[Request, Ask | None]:  # fmt: skip
        """Check a request for a video. Raises as `stream`."""
        if self.vae is None or self.text is None or self.card is None:
            lacks = [name for name in ("vae", "text", "card") if getattr(self, name) is None]
            raise ValueError(f"a video needs {', '.join(lacks)}, which this pipeline lacks; latents(text=...) does not")
        rows = seeds(seed, len(prompts.first))
        away = away_from(negative, len(rows), self.config.sampler, self.card)
        new = length(seconds, frames, self.config.chunk, self.card)
        sides = sides_of(self.card, height, width)
        size = check_size(*sides, space_stride=self.vae.spec.space_stride, patch=self.dit.spec.patch)
        first = self._given(start, len(rows), size, new)
        assert self.config.chunk and self.config.sampler
        if prompts.live and self.config.sampler.needs_horizon:
            raise ValueError(f"{self.config.sampler} denoises all of a video before its first chunk is final, so its "
                             "prompts are known beforehand: give a list of (seconds, prompt)")
        layout = chunk_layout(new, self.config.chunk, given=first.count if first else 0)
        event = self._event(on_change)
        if isinstance(self.text, FreedEncoder):
            self.text.remember([*prompts.first, *(prompt for _, prompt in prompts.later), *filter(None, away)])
        changes = placed(prompts.later, (*layout[0], *layout[1]), self.card.fps / self.card.vae.time_stride)
        later = {frame: self.text.encode([prompt]) for frame, prompt in changes}  # of two for one chunk the last
        text = self.text.encode(prompts.first)
        request = Request(text, rows, size, layout, self._encoded(away, text), first, (*later.items(),), event,
                          prompts.batch)  # fmt: skip
        return request, self._asker(prompts.live, prompts.first[0])

    def _given(self, start: Start | None, rows: int, size: tuple[int, int], new: int) -> Given | None:
        """The frames to start from, `size` being latent. Raises as `stream`."""
        if start is None:
            return None
        assert self.config.chunk and self.config.sampler
        self.config.sampler.levels()  # raises for one that does not say at which level it commits
        vae = self.vae.spec if self.vae else None
        stride = vae.space_stride if vae else 1
        latent = (self.dit.spec.in_channels, *size)
        first = given(start, rows, self.config.chunk, (size[0] * stride, size[1] * stride), latent,
                      self.card.fps if self.card else None, vae)  # fmt: skip
        if first.count + new > MOST_FRAMES:
            raise ValueError(f"{first.count} given latent frames and {new} new ones: a video has at most {MOST_FRAMES}")
        return first

    def _asker(self, live: Live | None, prompt: str | None) -> Ask | None:
        if live is None or prompt is None:
            return None
        assert self.card and self.text
        return Ask(live, self.text.encode, self.card.fps / self.card.vae.time_stride, prompt)

    def _encoded(self, away: Sequence[str], text: Tensor) -> Tensor | None:
        """Embeddings of negative prompts, None for none. No text is 0, as where training drops the text."""
        if away and not any(away):
            return torch.zeros_like(text)
        if away and self.text is None:
            raise ValueError(f"the negative prompt {away[0]!r} needs a text encoder, which this pipeline lacks: give "
                             "embeddings, or '' for no text")
        known = {prompt: self.text.encode([prompt]) for prompt in dict.fromkeys(filter(None, away)) if self.text}
        blank = torch.zeros_like(next(iter(known.values()), text))
        return torch.cat([known.get(prompt, blank) for prompt in away]) if away else None

    def _event(self, on_change: Change) -> Event | None:
        """What a change of the prompt does. Raises `ValueError` for what the cache policy cannot do."""
        policy = self.config.cache
        assert policy
        if on_change is not None:
            policy = dataclasses.replace(policy, on_change=EVENT.build(on_change))
        return policy.on_change

    def _stream(
        self, request: Request, ask: Ask | None, progress: Report | None, state: State | None = None
    ) -> Stream[list[Video]]:
        assert self.vae and self.card
        if progress is not None and not callable(progress):
            raise TypeError(f"progress={progress!r}: give a function, which is called with a Progress")
        # Nothing is clamped before it is checked: clamping turns infinity into white.
        decoder, rollout = DecodeStream(self.vae, clamp=False), self._rollout(request, ask, state)
        if state:
            decoder.restore(state.decoder)
        made = pieces(rollout, decoder, self.card.fps, progress)
        return Stream(made, lambda: rollout.stand(self.config.to_dict(), decoder))

    def latents(
        self, text: Tensor | None = None, prompt: str | Sequence[str] | None = None, frames: int | None = None,
        height: int | None = None, width: int | None = None, seed: Seed = 0, negative: Negative | Tensor = None,
        start: Start | None = None,
    ) -> Tensor:  # fmt: skip
        """Normalised latents [B, F, C, H, W] of `frames` new latent frames, after those of `start`; not decoded.

        Of a prompt or of embeddings `text` [B, L, D], exactly one; `negative` may be embeddings too, of one row or of
        all. `height` and `width` are *latent* pixels. What is not given is the card's. Raises as `stream`.
        """
        if (text is None) == (prompt is None):
            raise ValueError("give either text, embeddings [B, L, D], or prompt")
        if prompt is not None:
            if self.text is None:
                raise ValueError("a prompt needs a text encoder, which this pipeline lacks: give text=[B, L, D]")
            prompts = parse(prompt)
            if prompts.later or prompts.live:
                raise ValueError("latents are of one prompt each: use stream for prompts that change")
            text = self.text.encode(prompts.first)
        text = embeddings("text", text)
        if isinstance(negative, Tensor):
            away_from("embeddings", 1, self.config.sampler, self.card)
            away = embeddings("negative", negative)
            if len(away) not in (1, len(text)):
                raise ValueError(f"negative has {len(away)} rows for {len(text)} of text: give one row, or as many")
        else:
            away = self._encoded(away_from(negative, len(text), self.config.sampler, self.card), text)
        sides = sides_of(self.card, height, width, self.card.vae.space_stride if self.card else 1)
        size = check_size(*sides, space_stride=1, patch=self.dit.spec.patch)
        new = length(None, frames, self.config.chunk, self.card)
        first = self._given(start, len(text), size, new)
        assert self.config.chunk
        layout = chunk_layout(new, self.config.chunk, given=first.count if first else 0)
        request = Request(text, seeds(seed, len(text)), size, layout, away, first)
        return torch.cat([emit.x0 for emit in self._rollout(request)], 1)

    def _rollout(self, request: Request, ask: Ask | None = None, state: State | None = None) -> Rollout:
        config, spec, weight = self.config, self.dit.spec, self.dit.patch_embedding.weight
        assert config.cache and config.sampler and config.time and config.rotary and config.noise and config.chunk
        rows, away = len(request.text_BLD), request.negative_BLD
        most = config.cache.capacity(config.chunk, config.sampler.in_flight(config.chunk))
        denoiser = CachedDenoiser(
            self.dit, request.text_BLD, policy=config.cache, time=config.time, rotary=config.rotary, batch=rows,
            size=request.size, pages=request.total if most is None else min(request.total, most),
            horizon=request.total, train_horizon=self.card.train_horizon if self.card else None,
            guidance=config.sampler.guidance, negative=None if away is None else away.expand(rows, -1, -1),
        )  # fmt: skip
        noise = KeyedNoise(config.noise, request.rows, (spec.in_channels, *request.size), weight)
        return Rollout(request, config.sampler, denoiser, noise, ask, state, self.vae)


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
