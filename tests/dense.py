"""A network small enough for float64, and an oracle of attention that shares no code with arvid: frame by frame."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from arvid.cache import CachePolicy, Chunk, Kind
from arvid.models.denoiser import CachedDenoiser
from arvid.models.dit import CausalDiT
from arvid.models.specs import DiTSpec
from arvid.positional import Absolute, Rope, Rotary, TimeMap

SIZE = (4, 6)  # latent pixels: 2 x 3 tokens a frame
SPEC = DiTSpec(
    dim=48, ffn_dim=64, num_heads=2, num_blocks=2, in_channels=4, out_channels=4, text_dim=8, text_length=5, freq_dim=16
)


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter random, norms, biases and modulations too, at sizes that keep activations near 1."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            scale = 1 / math.sqrt(p[0].numel()) if p.ndim > 1 and "modulation" not in name else 0.3
            p.copy_(torch.randn(p.shape, generator=rng) * scale + ("norm" in name and name.endswith("weight")))


def tiny_dit(spec: DiTSpec = SPEC, dtype: torch.dtype = torch.float64, seed: int = 0) -> CausalDiT:
    dit = CausalDiT(spec)
    randomise(dit, seed)
    return dit.to(dtype).eval().requires_grad_(False)


def golden(name: str) -> tuple[CausalDiT, dict[str, Tensor]]:
    """The network of a recording of the original implementation, and the recording's tensors."""
    path = Path(__file__).parent / "golden" / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        c = json.loads(file.metadata()["config"])
    tensors = load_file(path)
    dit = CausalDiT(DiTSpec(
        c["dim"], c["ffn_dim"], c["num_heads"], c["num_layers"], c["in_dim"], c["out_dim"], c["text_dim"],
        c["text_len"], c["freq_dim"],
    ))  # fmt: skip
    dit.load_state_dict({key[8:]: value for key, value in tensors.items() if key.startswith("weights.")})
    return dit.eval(), tensors


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def layout(frames: int, size: int) -> list[Chunk]:
    starts = range(0, frames, size)
    return [Chunk(start, min(size, frames - start), index=i) for i, start in enumerate(starts)]


class KeyedNoise:
    """Noise by frame and step: what `samplers.NoiseSource` asks for."""

    def __init__(self, batch: int = 1, dtype: torch.dtype = torch.float64, size: tuple[int, int] = SIZE) -> None:
        self.shape, self.dtype = (batch, 1, SPEC.in_channels, *size), dtype

    def _draw(self, chunk: Chunk, kind: int) -> Tensor:
        frames = range(chunk.start, chunk.end)
        return torch.cat([randn(*self.shape, seed=1000 * kind + frame, dtype=self.dtype) for frame in frames], 1)

    def initial(self, chunk: Chunk) -> Tensor:
        return self._draw(chunk, 1)

    def renoise(self, chunk: Chunk, step: int) -> Tensor:
        return self._draw(chunk, 2 + step)

    def context(self, chunk: Chunk) -> Tensor:
        return self._draw(chunk, 99)


def cached(
    dit: CausalDiT, text: Tensor, policy: CachePolicy, *, time: TimeMap | None = None, rotary: Rotary | None = None,
    rotated: bool | None = None, pages: int = 0, horizon: int | None = None, size: tuple[int, int] = SIZE,
) -> CachedDenoiser:  # fmt: skip
    return CachedDenoiser(
        dit, dit.prepare_text(text), policy=policy, time=time or Absolute(), rotary=rotary or Rope(), batch=len(text),
        size=size, pages=pages, horizon=horizon, rotated=rotated,
    )  # fmt: skip


Key = tuple[int, float, float]  # slot, time, bias
View = tuple[float, list[Key]]  # the query frame's time, and the keys it sees


def turn(x_BNhd: Tensor, time: float, grid: tuple[int, int], axes: tuple[int, int, int]) -> Tensor:
    """One frame's queries or keys turned as complex numbers."""
    t, y, x = (10000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d) for d in axes)
    places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    angles = torch.stack([torch.cat((time * t, row * y, column * x)) for row, column in places])
    planes = torch.view_as_complex(x_BNhd.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(planes * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(-2)


@dataclass
class Explicit:
    """Attention of every query frame to an explicit list of (slot, time, bias). `scale` is that of the logits: of all,
    and of the part that the temporal channels add."""

    views: list[View]
    grid: tuple[int, int]
    axes: tuple[int, int, int]
    scale: tuple[float, float] = (1.0, 1.0)

    def mix(self, layer: int, q_BNhd: Tensor, k_BNhd: Tensor, v_BNhd: Tensor) -> Tensor:
        tokens = self.grid[0] * self.grid[1]
        q, k, v = (x.unflatten(1, (-1, tokens)) for x in (q_BNhd, k_BNhd, v_BNhd))
        out = []
        for slot, (time, seen) in enumerate(self.views):
            mine = turn(q[:, slot], time, self.grid, self.axes)
            keys = torch.cat([turn(k[:, s], t, self.grid, self.axes) for s, t, _ in seen], 1)
            values = torch.cat([v[:, s] for s, *_ in seen], 1).double()
            bias = torch.tensor([b for *_, b in seen], dtype=torch.float64).repeat_interleave(tokens)
            part = [torch.einsum("bqhd,bkhd->bhqk", mine[..., at], keys[..., at])
                    for at in (slice(self.axes[0]), slice(self.axes[0], None))]  # fmt: skip
            logits = self.scale[0] * (self.scale[1] * part[0] + part[1]) / math.sqrt(mine.shape[-1]) + bias
            out.append(torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), values))
        return torch.cat(out, 1).to(q_BNhd.dtype)


Rule = Callable[[Chunk, Kind], Sequence[Key]]


class Oracle:
    """A denoiser without a store: each call is one dense forward over [every clean frame so far | frames in flight].

    `rule` says which (frame, time, bias) of the past a chunk sees in a pass of a kind.
    """

    def __init__(self, dit: CausalDiT, text: Tensor, rule: Rule, size: tuple[int, int] = SIZE) -> None:
        self.dit, self.text, self.rule, self.size = dit, text, rule, size
        self.clean: list[Tensor] = []
        self.levels: list[float] = []
        self.views: list[View] = []

    def _run(self, kind: Kind, x: Tensor, chunks: Sequence[Chunk]) -> tuple[Tensor, list[float], list[View]]:
        (chunk,) = chunks
        own: list[Key] = [(frame, float(frame), 0.0) for frame in range(chunk.start, chunk.end)]
        views = [*self.views, *((time, [*self.rule(chunk, kind), *own]) for _, time, _ in own)]
        levels = [*self.levels, *[chunk.sigma] * chunk.n]
        timestep = 1000 * torch.tensor(levels, dtype=x.dtype).expand(len(x), -1)
        mixer = Explicit(views, self.dit.grid(self.size), self.dit.spec.axes)
        velocity = self.dit(torch.cat([*self.clean, x], 1), timestep, self.text, mixer)
        return x - chunk.sigma * velocity[:, chunk.start :], levels, views

    def __call__(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        return self._run(Kind.DENOISE, x_BFCHW, chunks)[0]

    def commit(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        x0, self.levels, self.views = self._run(Kind.COMMIT, x_BFCHW, chunks)
        self.clean.append(x_BFCHW)
        return x0
