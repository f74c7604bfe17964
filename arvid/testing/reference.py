"""Passes over a history that evicts nothing, in NumPy and for clarity: what a store must give.

Every frame ever committed stays. Which of them a pass sees is the plan's business; a token that a policy has packed is
named by the frame it came from and its number there, so that what is packed is never moved here either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arvid.cache import CachePolicy, Event, Full, Kind, Pass, Plan, Ref, Scene, after_commit, make_plan, reduced
from arvid.cache.codecs import codecs
from arvid.positional import Absolute

from .engine import FREQ, SHAPE, Array, drawn, require

Timed = list[tuple[Ref, float]]

ROWS = np.arange(SHAPE.batch)[:, None]


def by_frame(x_BNhd: Array) -> Array:
    return x_BNhd.reshape(len(x_BNhd), -1, SHAPE.tokens, *x_BNhd.shape[2:])


def turned(x: Array, angles: Array) -> Array:
    """Neighbouring channels as complex numbers, each turned by its angle (RoFormer, arXiv 2104.09864, eq. 34)."""
    planes = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
    return np.stack((planes.real, planes.imag), -1).reshape(x.shape)


@cache
def space() -> Array:
    """Angles of a frame's tokens by height and width, [tokens, 1, planes of both]."""
    rows, columns = np.divmod(np.arange(SHAPE.tokens), SHAPE.grid[1])
    h, w = (10000.0 ** (-np.arange(0, d, 2) / d) for d in SHAPE.axes[1:])
    return np.concatenate((np.outer(rows, h), np.outer(columns, w)), 1)[:, None]


def in_space(x_BFNhd: Array) -> Array:
    """Turned by height and width."""
    time = SHAPE.axes[0]
    return np.concatenate((x_BFNhd[..., :time], turned(x_BFNhd[..., time:], space())), -1)


def in_time(x_BNhd: Array, times: Array) -> Array:
    """Turned by time, [B or 1, N]."""
    time = SHAPE.axes[0]
    return np.concatenate((turned(x_BNhd[..., :time], times[..., None, None] * FREQ), x_BNhd[..., time:]), -1)


def attention(q_BNhd: Array, k_BMhd: Array, v_BMhd: Array, bias_BM: Array) -> Array:
    logits = np.einsum("bqhd,bkhd->bhqk", q_BNhd, k_BMhd) / np.sqrt(q_BNhd.shape[-1]) + bias_BM[:, None, None]
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v_BMhd)


class Tokens:
    """Held tokens as a pass sees them: where they came from (frame, number) [B, M, 2], times and biases [B, M]."""

    def __init__(self, source: NDArray[np.int64], times: Array, bias: Array) -> None:
        self.source, self.times, self.bias = source, times, bias

    def pick(self, chosen: Tensor) -> Tokens:
        at = chosen.numpy()
        return Tokens(self.source[ROWS, at], self.times[ROWS, at], self.bias[ROWS, at])


class Reference:
    """One history. `held` is what a store should hold; `exact` and `stored` are all keys, turned in height and width,
    and values, before and after the codec, [layer][keys, values][B, frames, tokens, h, d]."""

    def __init__(self, policy: CachePolicy, seed: int) -> None:
        self.policy, self.seed = policy, seed
        nothing = np.zeros((SHAPE.batch, 0, SHAPE.tokens, SHAPE.heads, sum(SHAPE.axes)))
        self.exact = [[nothing, nothing] for _ in range(SHAPE.layers)]
        self.stored = [[nothing, nothing] for _ in range(SHAPE.layers)]
        self.codecs: list[str | None] = []  # of every frame
        self.sources: dict[tuple[int, int], NDArray[np.int64]] = {}  # (layer, frame): of each token, [B, tokens, 2]
        self.held: tuple[Ref, ...] = ()
        self._asked: list[Array] = []  # queries of the last frames, summed over tokens, each [layers, B, h, d]
        self._routes: dict[int, Tensor] = {}
        self._routed: tuple[range, float] | None = None

    def output(self, new: Pass, plan: Plan, x: int = 0) -> Array:
        """The attention output of every layer, [layers, B, N, h, d]."""
        (group,) = plan.groups
        level = max(chunk.sigma for chunk in new.chunks)
        # A chunk's first pass chooses tokens for all of them. A level as high as that is another first pass.
        if not self._routed or self._routed[0] != new.frames or (new.kind is Kind.DENOISE and level >= self._routed[1]):
            self._routes, self._routed = {}, (new.frames, level)
        shown, memory = self._apart(plan)
        out = []
        for layer in range(SHAPE.layers):
            q, k, v = drawn(new, layer, x, self.seed)
            q, k = (in_space(by_frame(part)).reshape(part.shape) for part in (q, k))
            own = np.repeat(group.times, SHAPE.tokens)[None]
            seen = [self._tokens(layer, shown, False)]
            if memory:
                if layer not in self._routes:
                    self._routes[layer] = self._chosen("route", layer, self._scene(layer, new, plan, x),
                                                       group.routed or 0)  # fmt: skip
                seen.append(self._tokens(layer, memory, True).pick(self._routes[layer]))
            keys, values = zip(*(self._read(layer, tokens) for tokens in seen), strict=True)
            bias = np.concatenate([tokens.bias for tokens in seen] + [np.zeros((SHAPE.batch, own.size))], 1)
            out.append(attention(in_time(q, own), np.concatenate((*keys, in_time(k, own)), 1),
                                 np.concatenate((*values, v), 1), bias))  # fmt: skip
        return np.stack(out)

    def commit(self, new: Pass, plan: Plan, x: int = 0) -> None:
        """What a COMMIT leaves behind, once its `output` was asked for."""
        after, memory, asked = after_commit(self.policy, self.held, new), self._apart(plan)[1], []
        moving = {ref.frame for ref, _ in memory} if self.policy.compacts else set()
        moved = [ref.frame for ref in after if ref.frame in moving]
        for layer in range(SHAPE.layers):
            if moved:
                scene = self._scene(layer, new, plan, x)
                chosen = self._chosen("compact", layer, scene, len(moved), self._routes[layer])
                kept = self._tokens(layer, memory, True).pick(chosen).source
                for i, frame in enumerate(moved):
                    self.sources[layer, frame] = kept[:, i * SHAPE.tokens : (i + 1) * SHAPE.tokens]
            q, k, v = map(by_frame, drawn(new, layer, x, self.seed))
            asked.append(in_space(q).sum(2).swapaxes(0, 1))
            for half, part in enumerate((in_space(k), v)):
                self.exact[layer][half] = np.concatenate((self.exact[layer][half], part), 1)
                coded = [self._coded(part[:, i : i + 1], half, len(self.held) + i) for i in range(len(new.frames))]
                self.stored[layer][half] = np.concatenate((self.stored[layer][half], *coded), 1)
            for frame in new.frames:
                tokens = np.stack((np.full(SHAPE.tokens, frame), np.arange(SHAPE.tokens)), -1)
                self.sources[layer, frame] = np.broadcast_to(tokens, (SHAPE.batch, SHAPE.tokens, 2))
        self.codecs += [self._codec(len(self.held) + i) for i in range(len(new.frames))]
        self._asked = [*self._asked, *np.stack(asked, 1)][-self.policy.queries :] if self.policy.queries else []
        self.held = after

    def happen(self, event: Event) -> None:
        """What an event leaves: the queries, too, of the last frames as far as they are held."""
        last = self.held[-1].frame if self.held else 0
        self.held, self._routed = reduced(self.policy, self.held, event), None
        left, unbroken = {ref.frame for ref in self.held}, 0
        while last - unbroken in left:
            unbroken += 1
        self._asked = self._asked[max(0, len(self._asked) - unbroken) :]

    def like_full(self, new: Pass, x: int = 0) -> Array:
        """The output of a pass that sees every frame before it, at its own time."""
        everything = [Ref(frame) for frame in range(new.frames.start)]
        return self.output(new, make_plan(Full(), Absolute(), everything, new), x)

    def page(self, frame: int, layer: int) -> list[Array]:
        """Keys and values that a held frame's page must hold, [B, tokens, h, d] each."""
        source = self.sources[layer, frame]
        return [half[ROWS, source[..., 0], source[..., 1]] for half in self.stored[layer]]

    def _codec(self, position: int) -> str | None:
        """That of the frame at this position of the history."""
        return self.policy.sink_codec if position < self.policy.sinks else self.policy.codec

    def _coded(self, x_BFNhd: Array, half: int, position: int) -> Array:
        codec = codecs(self._codec(position), torch.float64)[half]
        return codec.decode(codec.encode(torch.from_numpy(x_BFNhd)), torch.float64).numpy()

    def _apart(self, plan: Plan) -> tuple[Timed, Timed]:
        """The refs that are seen whole, and those of which tokens are chosen, oldest first; with their times."""
        (group,) = plan.groups
        timed = list(zip(group.refs, group.ref_times, strict=True))
        chosen = [group.routed is not None and ref.role == "memory" for ref, _ in timed]
        memory = [pair for pair, apart in zip(timed, chosen, strict=True) if apart]
        return ([pair for pair, apart in zip(timed, chosen, strict=True) if not apart],
                sorted(memory, key=lambda pair: pair[0].frame))  # fmt: skip

    def _tokens(self, layer: int, refs: Timed, routed: bool) -> Tokens:
        """The tokens of refs. Packed ones, and those that may be, have times of their own: as far from the frame they
        came from as the ref's time is from its slot."""
        packed = {ref.frame for ref in self.held if ref.role == "memory"}
        source, times, bias = [np.zeros((SHAPE.batch, 0, 2), np.int64)], [], []
        for ref, time in refs:
            source.append(self.sources[layer, ref.frame])
            own = ref.frame in packed or (routed and self.policy.compacts)
            far = source[-1][..., 0] - (ref.at or 0.0) if own else np.zeros((SHAPE.batch, SHAPE.tokens))
            times.append(far + time)
            bias.append(np.full((SHAPE.batch, SHAPE.tokens), ref.bias))
        none = np.zeros((SHAPE.batch, 0))
        return Tokens(np.concatenate(source, 1), np.concatenate((none, *times), 1), np.concatenate((none, *bias), 1))

    def _read(self, layer: int, tokens: Tokens) -> tuple[Array, Array]:
        """Keys, turned, and values, [B, M, h, d] each."""
        at = ROWS, tokens.source[..., 0], tokens.source[..., 1]
        keys, values = self.stored[layer]
        return in_time(keys[at], tokens.times), values[at]

    def _scene(self, layer: int, new: Pass, plan: Plan, x: int) -> Scene:
        (group,) = plan.groups
        q = drawn(new, layer, x, self.seed)[0]
        q = in_time(in_space(by_frame(q)).reshape(q.shape), np.repeat(group.times, SHAPE.tokens)[None])
        past = np.zeros((SHAPE.batch, 0, SHAPE.heads, sum(SHAPE.axes)))
        if self._asked:
            start = new.frames.start
            seen = {ref.frame: t for ref, t in zip(group.refs, group.ref_times, strict=True) if ref.at == ref.frame}
            asked = range(start - len(self._asked), start)
            times = np.array([seen.get(frame, group.times[0] - start + frame) for frame in asked])
            past = in_time(np.stack([of[layer] for of in self._asked], 1), times[None])
        k, v = self._read(layer, self._tokens(layer, self._apart(plan)[1], True))
        return Scene(new, *map(torch.from_numpy, (q, past, k, v)))

    def _chosen(self, hook: str, layer: int, scene: Scene, frames: int, *more: Tensor) -> Tensor:
        """What `route` or `compact` gives, once it is proved to be a choice."""
        ask: Callable[..., Tensor] = getattr(self.policy, hook)
        given = scene_of(scene, Tensor.clone)
        chosen, new = ask(layer, given, *more), scene.new
        expected, count = (SHAPE.batch, frames * SHAPE.tokens), scene.k_BMhd.shape[1]
        got = (tuple(chosen.shape), chosen.dtype) if isinstance(chosen, Tensor) else repr(chosen)
        name, where = f"{hook} gives rising indices into the memory", f"in layer {layer}"
        require(got == (expected, torch.int64), name, new, f"{where} {got}, expected {(expected, torch.int64)}")
        out = chosen[(chosen < 0) | (chosen >= count)].tolist()
        require(not out, name, new, f"{where} {out} of 0..{count - 1}")
        require((chosen.diff(dim=1) > 0).all(), name, new, f"{where} {chosen.tolist()}")
        same = [torch.equal(a, b) for a, b in zip(tensors(scene), tensors(given), strict=True)]
        require(all(same), f"{hook} leaves the scene as it is", new, f"{where} its tensors changed")
        again = ask(layer, scene_of(scene, Tensor.clone), *more)
        require(torch.equal(again, chosen), f"{hook} is a pure function of the scene", new,
                f"{where} the same scene gave {chosen.tolist()}, then {again.tolist()}")  # fmt: skip
        flipped = ask(layer, scene_of(scene, lambda part: part.flip(0)), *(part.flip(0) for part in more))
        require(torch.equal(flipped.flip(0), chosen), f"{hook} is a pure function of the scene, row by row", new,
                f"{where} {chosen.tolist()}, with the rows the other way round {flipped.flip(0).tolist()}")  # fmt: skip
        return chosen


def tensors(scene: Scene) -> Sequence[Tensor]:
    return scene.q_BNhd, scene.past_BFhd, scene.k_BMhd, scene.v_BMhd


def scene_of(scene: Scene, change: Callable[[Tensor], Tensor]) -> Scene:
    """The scene with its tensors changed."""
    return Scene(scene.new, *map(change, tensors(scene)))
