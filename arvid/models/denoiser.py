"""The denoiser samplers see: a network, its text, and a store that remembers what was committed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from arvid.cache.base import CachePolicy, Chunk, Kind, Pass, make_plan
from arvid.cache.store import Store, StoreShape
from arvid.positional.base import Rotary, RotaryContext, TimeMap

from .attention import CachedAttention
from .dit import CausalDiT, TextKV


class CachedDenoiser:
    """A `CausalDiT` over a store, under one prompt: what `samplers.Denoiser` asks for. One video, or batch, each.

    `size` is (height, width) in latent pixels, `pages` the frames to allocate at first. `rotated` None stores rotated
    keys exactly where `rotary`, `time` and `policy` are all static. Passes raise `ValueError` for latents of another
    shape, and for frequencies that are not finite or not [planes] or [heads, planes].
    """

    def __init__(
        self, dit: CausalDiT, text: TextKV, *, policy: CachePolicy, time: TimeMap, rotary: Rotary,
        batch: int, size: tuple[int, int], pages: int = 0, train_horizon: int | None = None, horizon: int | None = None,
        rotated: bool | None = None,
    ) -> None:  # fmt: skip
        self.dit, self.text, self.policy, self.time, self.rotary = dit, text, policy, time, rotary
        self.train_horizon, self.horizon = train_horizon, horizon
        self.batch, self.size = batch, tuple(size)
        static = rotary.static and time.static and policy.static
        weight = dit.patch_embedding.weight
        spec = dit.spec
        self.store = Store(
            StoreShape(spec.num_blocks, batch, dit.grid(size), spec.num_heads, spec.axes), policy,
            rotated=static if rotated is None else rotated, pages=pages, dtype=weight.dtype, device=weight.device,
        )  # fmt: skip
        self._mixer = CachedAttention(self.store)

    def __call__(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        return self._run(Kind.DENOISE, x_BFCHW, chunks, lane)

    def commit(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        return self._run(Kind.COMMIT, x_BFCHW, chunks, lane)

    @torch.no_grad()
    def _run(self, kind: Kind, x: Tensor, chunks: Sequence[Chunk], lane: int) -> Tensor:
        new = Pass(kind, tuple(chunks), lane)
        if x.shape != (expected := (self.batch, len(new.frames), self.dit.spec.in_channels, *self.size)):
            raise ValueError(f"latents have shape {tuple(x.shape)}; this pass needs {expected}")
        plan = make_plan(self.policy, self.time, self.store.before(new), new)
        self.store.begin(new, plan, self._inv_freq(new))
        levels = [chunk.sigma for chunk in chunks for _ in range(chunk.n)]
        sigma = torch.tensor(levels, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        velocity = self.dit(x, 1000 * sigma.expand(len(x), -1), self.text, self._mixer)
        if kind is Kind.COMMIT:
            self.store.end()
        return (x - sigma[:, None, None, None] * velocity).to(x.dtype)

    def _inv_freq(self, new: Pass) -> np.ndarray:
        dim, heads = self.dit.spec.axes[0], self.dit.spec.num_heads
        context = RotaryContext(dim, heads, self.train_horizon, self.horizon, new.frames.stop)
        freq = np.asarray(self.rotary.inv_freq(context))
        if freq.shape not in ((dim // 2,), (heads, dim // 2)):
            raise ValueError(f"{type(self.rotary).__name__}.inv_freq has shape {freq.shape}; "
                             f"allowed: ({dim // 2},) or ({heads}, {dim // 2})")
        if freq.dtype.kind not in "fiu" or not np.isfinite(freq).all():
            raise ValueError(f"{type(self.rotary).__name__}.inv_freq gave {freq}; frequencies must be finite numbers")
        return freq.astype(np.float64, copy=False)
