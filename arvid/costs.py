"""What running the networks costs, counted on PyTorch's meta device, which works out shapes and nothing else.

The networks and the store are the real ones. One block stands for all, and a pass for all that see as much.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from arvid.cache.base import Kind, Pass
from arvid.config import PipelineConfig
from arvid.models.attention import attend
from arvid.models.denoiser import CachedDenoiser
from arvid.models.dit import CausalDiT, TextKV
from arvid.models.specs import Card, TextSpec
from arvid.models.vae import WanVAE
from arvid.models.vae_layers import StreamState
from arvid.positional import RotaryContext
from arvid.simulate import Seen

__all__ = ["Decoding", "Flops", "Memory", "Networks", "alive", "counted", "memory", "text_flops", "text_parameters"]


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, two a multiply-add, of matrix products and convolutions; other work is not counted.

    `linear` has the DiT's embeddings too. `decode` is the VAE's.
    """

    linear: int = 0
    self_attention: int = 0
    cross_attention: int = 0
    decode: int = 0

    @property
    def dit(self) -> int:
        """All but decoding."""
        return self.linear + self.self_attention + self.cross_attention

    @property
    def total(self) -> int:
        """All."""
        return self.dit + self.decode

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Memory:
    """Bytes on the device.

    Weights: `dit`, `vae`, `text_encoder`. `kv`: the store at its largest, pages of `kv_pages` frames and, where keys
    are not stored rotated, the rotated keys of one view. `text_kv`: keys and values of the prompt. `latents`: of the
    frames held and in flight. Under guidance all these are of two branches. `vae_cache`: what a stream of decoding
    carries from chunk to chunk.

    `activations` and `vae_activations` are estimates: the most that is alive of what the largest pass, and the decoding
    of a chunk, allocate when run operation by operation, with attention that stores no logits. Workspaces of kernels,
    fragmentation and what PyTorch itself takes come on top.
    """

    dit: int
    vae: int
    text_encoder: int
    kv: int
    kv_pages: int
    text_kv: int
    latents: int
    activations: int
    vae_cache: int
    vae_activations: int

    @property
    def peak(self) -> int:
        """The most at a time: chunks are denoised and decoded in turns, and everything else stays."""
        lasting = self.dit + self.vae + self.text_encoder + self.kv + self.text_kv + self.latents + self.vae_cache
        return lasting + max(self.activations, self.vae_activations)


class Decoding(NamedTuple):
    """Operations for the first latent frame and for every later one, the bytes that a stream carries from chunk to
    chunk, and those alive at most while it decodes one."""

    first: int
    later: int
    carried: int
    activations: int

    def flops(self, start: int, frames: int) -> Flops:
        """Decoding of latent frames from `start` on."""
        return Flops(decode=frames * self.later - (self.later - self.first if start == 0 else 0))


class Networks:
    """The DiT with one block, and the VAE, on the meta device, and what running them costs. `size` is latent."""

    def __init__(self, card: Card, size: tuple[int, int], batch: int, dtype: torch.dtype) -> None:
        self.card, self.size, self.batch, self.dtype = card, size, batch, dtype
        with torch.device("meta"):
            self.dit = CausalDiT(replace(card.dit, num_blocks=1)).to(dtype).requires_grad_(False)
            self.vae = WanVAE(card.vae).to(dtype).requires_grad_(False)
        rows, columns = self.dit.grid(size)
        self.tokens, self.blocks = rows * columns, card.dit.num_blocks
        self.text_BLD = self.empty(batch, card.dit.text_length, card.dit.text_dim)
        self.text: TextKV = self.dit.prepare_text(self.text_BLD)
        self._passes: dict[tuple[int, int], Flops] = {}

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device="meta")

    def latents(self, frames: int) -> Tensor:
        """[B, F, C, H, W]."""
        return self.empty(self.batch, frames, self.card.dit.in_channels, *self.size)

    def pass_flops(self, flying: int, visible: int) -> Flops:
        """A pass over `flying` frames that sees `visible`."""
        if (flying, visible) not in self._passes:
            x, times = self.latents(flying), self.empty(self.batch, flying)
            found = counted(lambda: self.dit(x, times, self.text, _Blind())).get_flop_counts()
            whole, block = (sum(found[name].values()) for name in ("Global", "CausalDiT.blocks.0"))
            seen, read = (self._attention(flying * self.tokens, keys)
                          for keys in (visible * self.tokens, self.card.dit.text_length))  # fmt: skip
            linear = whole - block + self.blocks * (block - read)
            self._passes[flying, visible] = Flops(linear, self.blocks * seen, self.blocks * read)
        return self._passes[flying, visible]

    def _attention(self, queries: int, keys: int) -> int:
        heads, width = self.card.dit.num_heads, self.card.dit.head_dim
        q, kv = (self.empty(self.batch, tokens, heads, width) for tokens in (queries, keys))
        return counted(lambda: attend(q, [(kv, kv)])).get_total_flops()

    def prompt_flops(self) -> int:
        """The prompts' keys and values, of all blocks."""
        project: Any = self.dit.blocks[0].cross_attn
        embedded = self.dit.text_embedding(self.text_BLD)
        once = counted(lambda: self.dit.text_embedding(self.text_BLD)).get_total_flops()
        return once + self.blocks * counted(lambda: project.keys_values(embedded)).get_total_flops()

    def decoding(self, chunk: int) -> Decoding:
        """Decoding in chunks of `chunk` latent frames. The clip's first frame is cheaper, all others are alike."""
        state = StreamState()
        one, more = (partial(self.vae.decode, self.latents(n), False, state=state) for n in (1, chunk))
        first, later = counted(one).get_total_flops(), counted(more).get_total_flops()
        assert later % chunk == 0
        activations = alive(more)
        return Decoding(first, later // chunk, sum(x.nbytes for x in state.frames.values()), activations)

    def parameters(self) -> tuple[int, int, int]:
        """Those of DiT, VAE and text encoder."""
        dit, block, vae = (sum(p.numel() for p in network.parameters())
                           for network in (self.dit, self.dit.blocks[0], self.vae))  # fmt: skip
        return dit + (self.blocks - 1) * block, vae, text_parameters(self.card.text)


def counted(run: Callable[[], object]) -> FlopCounterMode:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter


class _Blind:
    """A mixer that mixes nothing: what self-attention costs is counted by itself."""

    def mix(self, layer: int, q_BNhd: Tensor, k_BNhd: Tensor, v_BNhd: Tensor) -> Tensor:
        return q_BNhd


def text_parameters(spec: TextSpec) -> int:
    """Parameters of a umT5 encoder (arXiv 2304.09151): every layer has its own bias of positions."""
    layer = _products(spec) + 2 * spec.dim + spec.num_buckets * spec.num_heads
    return spec.vocab_size * spec.dim + spec.num_layers * layer + spec.dim


def text_flops(spec: TextSpec, length: int) -> int:
    """Operations of a umT5 encoder on a prompt padded to `length` tokens."""
    return spec.num_layers * (2 * length * _products(spec) + 4 * length**2 * spec.attention_dim)


def _products(spec: TextSpec) -> int:
    """Numbers in a layer's matrices: four of attention, three of the gated feed-forward."""
    return 4 * spec.dim * spec.attention_dim + 3 * spec.dim * spec.ffn_dim


def memory(
    networks: Networks, config: PipelineConfig, frames: int, rollout: Sequence[Seen], decoding: Decoding
) -> Memory:
    """What a rollout of `frames` frames takes, `rollout` being its views and `config` resolved."""
    policy, sampler, chunk = config.cache, config.sampler, config.chunk
    assert policy and sampler and chunk and config.time and config.rotary
    size = networks.dtype.itemsize
    dit, vae, text = (size * count for count in networks.parameters())
    bound = policy.capacity(chunk, sampler.in_flight(chunk))
    denoiser = CachedDenoiser(
        networks.dit, networks.text, policy=policy, time=config.time, rotary=config.rotary, batch=networks.batch,
        size=networks.size, pages=frames if bound is None else min(frames, bound), horizon=frames,
        train_horizon=networks.card.train_horizon, guidance=sampler.guidance,
        negative=networks.text if sampler.branches > 1 else None,
    )  # fmt: skip
    stored, latents, activations = _run(networks, denoiser, frames, rollout)
    pages = sum(denoiser.store.pages(*key) for key in product(range(sampler.lanes), range(sampler.branches)))
    prompts = sampler.branches * sum(x.nbytes for pair in networks.text.layers for x in pair)
    return Memory(
        dit, vae, text, networks.blocks * stored, pages, networks.blocks * prompts, latents, activations,
        decoding.carried, decoding.activations,
    )  # fmt: skip


def _run(networks: Networks, denoiser: CachedDenoiser, frames: int, rollout: Sequence[Seen]) -> tuple[int, int, int]:
    """Bytes at most of one block's keys and values, of latents, and of a pass's activations.

    Passes that see less than the lane's most leave in the store what the book says, and are not run, unless the policy
    chooses tokens in them.
    """
    store, policy, spec, horizon = denoiser.store, denoiser.policy, networks.card.dit, networks.card.train_horizon
    most: dict[int, int] = {}
    branches = range(1 if denoiser.negative is None else 2)
    for seen in rollout:
        most[seen.lane] = max(most.get(seen.lane, 0), seen.visible)
    stored = latents = activations = 0
    for seen in rollout[: _enough(rollout, policy.queries)]:
        x = networks.latents(len(seen.frames))
        for kind in (kind for kind in Kind if seen.kind in (kind.value, "both")):
            run = partial(denoiser.commit if kind is Kind.COMMIT else denoiser, x, seen.chunks, lane=seen.lane)
            if seen.visible == most[seen.lane]:
                before = store.live_bytes
                once = alive(run) - (store.live_bytes - before)  # what it made to stay is no activation
                activations = max(activations, once, alive(run))  # in another order the second time
            elif policy.chooses:
                run()
            elif kind is Kind.COMMIT:
                context = RotaryContext(spec.axes[0], spec.num_heads, horizon, frames, seen.frames.stop)
                for branch in branches:
                    new = Pass(kind, seen.chunks, seen.lane, branch)
                    store.begin(new, seen.plan, denoiser.rotary.inv_freq(context))
                    store.end(x)
        books = [store.book(*key) for key in product(most, branches)]
        own = sum(latent.nbytes for book in books for latent in book.latents.values())
        stored, latents = max(stored, store.live_bytes - own), max(latents, own + x.nbytes)
    return stored, latents, activations


def _enough(rollout: Sequence[Seen], queries: int) -> int:
    """How many views it takes until each lane has seen and held as much as it ever will, and given its queries."""
    sizes: Sequence[Callable[[Seen], int]] = (
        lambda seen: seen.visible, lambda seen: seen.held, lambda seen: seen.held + len(seen.frames),
        lambda seen: min(queries, seen.frames.start),
    )  # fmt: skip
    last = 0
    for lane in {seen.lane for seen in rollout}:
        own = [(i, seen) for i, seen in enumerate(rollout) if seen.lane == lane]
        for size in sizes:
            most = max(size(seen) for _, seen in own)
            last = max(last, next(i for i, seen in own if size(seen) == most))
    return last + 1


class _Alive(TorchDispatchMode):
    """Counts the bytes on the meta device that operations made and that are alive: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in tree_leaves((args, kwargs)):
            self._meet(x, made=False)
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            self._meet(x, made=True)
        self.most = max(self.most, self.now)
        return out

    def _meet(self, x: Any, made: bool) -> None:
        """Follow a storage until it is freed. One that was there before, and is freed, makes room."""
        if not isinstance(x, Tensor) or x.device.type != "meta" or id(storage := x.untyped_storage()) in self._known:
            return
        self._known.add(id(storage))
        self.now += storage.nbytes() if made else 0
        weakref.finalize(storage, self._free, id(storage), storage.nbytes()).atexit = False

    def _free(self, known: int, size: int) -> None:
        self._known.discard(known)
        self.now -= size


class _Fused(TorchFunctionMode):
    """Attention as fused kernels run it: what it stores is its result."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            q, _, v = args[:3]
            return q.new_empty(*q.shape[:-1], v.shape[-1])
        return func(*args, **(kwargs or {}))


def alive(run: Callable[[], object]) -> int:
    """The most bytes on the meta device that `run` has allocated and not freed at a time, attention fused."""
    with torch.no_grad(), _Alive() as count, _Fused():
        run()
    return count.most
