"""The denoiser samplers see: a network, its prompts, and a store that remembers what was committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from arvid.cache.base import CachePolicy, Chunk, Kind, Pass, make_plan, recommit_plan
from arvid.cache.events import Event, Recommit
from arvid.cache.store import Snapshot, Store, StoreShape
from arvid.positional.base import Rotary, RotaryContext, TimeMap

from .attention import CachedAttention, Mixer, PlannedAttention, Recommitting
from .dit import CausalDiT, TextKV


@dataclass
class _Lane:
    """Where a lane is: the number of its prompt, and of its shot."""

    prompt: int
    shot: int = 0


@dataclass(frozen=True)
class DenoiserState:
    """Where a denoiser stood: the number of each lane's prompt and of its shot, and what the store held."""

    lanes: Mapping[int, tuple[int, int]]
    store: Snapshot


class CachedDenoiser:
    """A `CausalDiT` over a store: what `samplers.Denoiser` asks for. One video, or batch, each.

    `text` is the prompt from the first frame on, prepared or embeddings [B, L, D], which are prepared when a pass first
    runs under them; `change` sets others for later. `size` is (height, width) in latent
    pixels, `pages` the frames to allocate at first. `rotated` None stores rotated keys exactly where `rotary`, `time`
    and `policy` are all static and pages are stored in the network's dtype. Passes raise `ValueError` for latents of
    another shape, and for frequencies that are not finite or not [planes] or [heads, planes].

    With `guidance` g other than 1 every pass runs in two branches with a history each, branch 0 under the prompt and
    branch 1 under the text `negative`, and the velocity is v1 + g (v0 - v1) (classifier-free guidance, arXiv
    2207.12598, eq. 6, with g = w + 1). Raises `ValueError` for guidance without a negative text, and the other way
    round.
    """

    def __init__(
        self, dit: CausalDiT, text: TextKV | Tensor, *, policy: CachePolicy, time: TimeMap, rotary: Rotary,
        batch: int, size: tuple[int, int], pages: int = 0, train_horizon: int | None = None, horizon: int | None = None,
        rotated: bool | None = None, guidance: float = 1.0, negative: TextKV | Tensor | None = None,
    ) -> None:  # fmt: skip
        if (guidance == 1) != (negative is None):
            given = "without" if negative is None else "with"
            raise ValueError(f"guidance={guidance} {given} a negative text: guidance other than 1 needs one, and 1 has "
                             "no use for it")
        self.guidance, self.negative = guidance, negative
        self.dit, self.policy, self.time, self.rotary = dit, policy, time, rotary
        self.train_horizon, self.horizon = train_horizon, horizon
        self.batch, self.size = batch, tuple(size)
        self._prompts: list[tuple[int, TextKV | Tensor, Event | None]] = [(0, text, None)]
        self._prepared: dict[int, TextKV] = {}
        self._lanes: dict[int, _Lane] = {}
        static = time.static and policy.static and policy.codec is None
        if rotary.stale and not static:
            raise ValueError(f"{rotary} leaves keys as the pass that committed them rotated them, which {time} and "
                             f"{policy} do not allow: use scale='current'")
        static = static and (rotary.is_static(horizon) or rotary.stale)
        weight = dit.patch_embedding.weight
        spec = dit.spec
        self.store = Store(
            StoreShape(spec.num_blocks, batch, dit.grid(size), spec.num_heads, spec.axes), policy,
            rotated=static if rotated is None else rotated, stale=rotary.stale, pages=pages, dtype=weight.dtype,
            device=weight.device,
        )  # fmt: skip
        self._mixer = CachedAttention(self.store)

    def __call__(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        return self._run(Kind.DENOISE, x_BFCHW, chunks, lane)

    def commit(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        return self._run(Kind.COMMIT, x_BFCHW, chunks, lane)

    def change(self, frame: int, text: TextKV | Tensor, on_change: Event | None) -> None:
        """Run chunks that start at `frame` or later under another prompt. `on_change` happens in each lane before its
        first such pass; the policy's own is `policy.on_change`. Raises `ValueError` for a frame before an earlier
        change's."""
        if frame < (last := self._prompts[-1][0]):
            raise ValueError(f"a prompt from frame {frame} on, after one from frame {last} on: give them in order")
        self._prompts.append((frame, text, on_change))

    def snapshot(self) -> DenoiserState:
        """A copy of where it stands, between two passes; the prompts are not part of it."""
        return DenoiserState({lane: (at.prompt, at.shot) for lane, at in self._lanes.items()}, self.store.snapshot())

    def restore(self, state: DenoiserState) -> None:
        """Stand where a denoiser with the same prompts stood. Raises `ValueError` as `Store.restore`."""
        self.store.restore(state.store)
        self._lanes = {lane: _Lane(*at) for lane, at in state.lanes.items()}

    @torch.no_grad()
    def happen(self, event: Event, lane: int = 0) -> None:
        """Run an event on a lane's history, between two chunks.

        Raises `ValueError` for a recommit of frames that cannot be committed again.
        """
        place = self._lanes.setdefault(lane, _Lane(0))
        place.shot += event.new_shot
        self.store.happen(event, lane)
        if isinstance(event, Recommit) and self.store.held(lane):
            for branch, text in enumerate(self._texts(place.prompt)):
                self._recommit(event, lane, branch, text)

    @torch.no_grad()
    def _run(self, kind: Kind, x: Tensor, chunks: Sequence[Chunk], lane: int) -> Tensor:
        prompt = max(i for i, (frame, *_) in enumerate(self._prompts) if frame <= chunks[-1].start)
        place = self._lanes.setdefault(lane, _Lane(prompt))
        prompt = max(prompt, place.prompt)  # a commit of a joint window's first chunk does not go back to an older one
        new = Pass(kind, tuple(chunks), lane, prompt=prompt, shot=place.shot)
        if x.shape != (expected := (self.batch, len(new.frames), self.dit.spec.in_channels, *self.size)):
            raise ValueError(f"latents have shape {tuple(x.shape)}; this pass needs {expected}")
        if place.prompt != prompt:
            place.prompt = prompt
            if on_change := self._prompts[prompt][-1]:
                self.happen(on_change, lane)
        new = replace(new, shot=place.shot)
        sigmas = [chunk.sigma for chunk in chunks for _ in range(chunk.n)]
        velocity, *negative = (self._branch(replace(new, branch=branch), x, sigmas, text)
                               for branch, text in enumerate(self._texts(prompt)))  # fmt: skip
        for other in negative:
            velocity = other + self.guidance * (velocity - other)
        return (x - self._levels(sigmas, x)[:, None, None, None] * velocity).to(x.dtype)

    def _texts(self, prompt: int) -> tuple[TextKV, ...]:
        """The text of each branch."""
        text = self._text(prompt)
        if isinstance(self.negative, Tensor):
            self.negative = self.dit.prepare_text(self.negative.to(self.dit.patch_embedding.weight))
        return (text,) if self.negative is None else (text, self.negative)

    def _text(self, prompt: int) -> TextKV:
        """A prompt's keys and values; of embeddings those in force in some lane stay prepared."""
        if isinstance(text := self._prompts[prompt][1], TextKV):
            return text
        if prompt not in self._prepared:
            wanted = {lane.prompt for lane in self._lanes.values()}
            self._prepared = {number: kept for number, kept in self._prepared.items() if number in wanted}
            self._prepared[prompt] = self.dit.prepare_text(text.to(self.dit.patch_embedding.weight))
        return self._prepared[prompt]

    def _branch(self, new: Pass, x: Tensor, sigmas: Sequence[float], text: TextKV) -> Tensor:
        """The velocity that a pass gives in its branch."""
        plan = make_plan(self.policy, self.time, self.store.before(new), new)
        (group,) = plan.groups
        bias = self.rotary.bias(np.array(group.times), np.array((*group.ref_times, *group.times)))
        context = self._context(new)
        self.store.begin(new, plan, self._inv_freq(context), scale=self.rotary.logit_scale(context), bias=bias)
        velocity = self._velocity(x, sigmas, text, self._mixer)
        if new.kind is Kind.COMMIT:
            self.store.end(x)
        return velocity

    def _levels(self, sigmas: Sequence[float], x: Tensor) -> Tensor:
        return torch.tensor(sigmas, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)

    def _velocity(self, x: Tensor, sigmas: Sequence[float], text: TextKV, mixer: Mixer) -> Tensor:
        """That of latents whose frames are at these noise levels, in float32 at least."""
        sigma = self._levels(sigmas, x)
        velocity = self.dit(x.to(self.dit.patch_embedding.weight.dtype), 1000 * sigma.expand(len(x), -1), text, mixer)
        return velocity.to(sigma.dtype)

    def _recommit(self, event: Recommit, lane: int, branch: int, text: TextKV) -> None:
        book = self.store.book(lane, branch)
        frames = [ref.frame for ref in book.held]
        if lost := [frame for frame in frames if frame not in book.latents]:
            raise ValueError(f"frames {lost} cannot be committed again: {self.policy} holds tokens of several frames "
                             "there; use flush, cut or reset")
        kept = self.policy.sinks if event.sinks == "keep" else 0
        if not frames[kept:]:
            return
        chunks = sorted({book.places[frame].chunk for frame in frames}, key=lambda chunk: chunk.start)
        plan = recommit_plan(self.policy, self.time, book.held, chunks, event.mode)
        context = self._context(Pass(Kind.COMMIT, (chunks[-1],), lane, branch))
        freq, like = self._inv_freq(context), self.dit.patch_embedding.weight
        mixer = PlannedAttention(
            plan, freq, self.dit.grid(self.size), self.dit.spec.axes, like.dtype, like.device,
            self.rotary.logit_scale(context), self.rotary.bias,
        )  # fmt: skip
        write = self.store.rewriter({f: i for i, f in enumerate(frames) if i >= kept}, plan, freq, lane, branch)
        sigmas = [book.places[frame].chunk.sigma for frame in frames]
        latents = torch.stack([book.latents[frame] for frame in frames], 1)
        self._velocity(latents, sigmas, text, Recommitting(mixer, write))

    def _context(self, new: Pass) -> RotaryContext:
        spec = self.dit.spec
        return RotaryContext(spec.axes[0], spec.num_heads, self.train_horizon, self.horizon, new.frames.stop)

    def _inv_freq(self, context: RotaryContext) -> np.ndarray:
        dim, heads = context.dim, context.heads
        freq = np.asarray(self.rotary.inv_freq(context))
        if freq.shape not in ((dim // 2,), (heads, dim // 2)):
            raise ValueError(f"{type(self.rotary).__name__}.inv_freq has shape {freq.shape}; "
                             f"allowed: ({dim // 2},) or ({heads}, {dim // 2})")
        if freq.dtype.kind not in "fiu" or not np.isfinite(freq).all():
            raise ValueError(f"{type(self.rotary).__name__}.inv_freq gave {freq}; frequencies must be finite numbers")
        return freq.astype(np.float64, copy=False)
