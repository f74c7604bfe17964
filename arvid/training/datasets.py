"""What is trained on: latents with captions, and how samples are judged along the way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from arvid.evaluation.reader import read, score
from arvid.models.specs import Card
from arvid.models.text import BUNDLED_GRAMMAR
from arvid.models.vae import WanVAE
from arvid.registry import Registry
from arvid.training.blocks import BlockCode, fit_blocks
from arvid.training.clips import CLIP_FRAMES, FPS, SIZE, held_out_captions
from arvid.training.data import Clips, encode_clips, training_clips
from arvid.training.loop import kept, rng_for, save_atomically

__all__ = ["DATA", "Data", "Gaussian", "ProceduralClips", "wasserstein"]

CODE_CLIPS = 200  # clips that the block code is fitted to


@dataclass(frozen=True)
class Data(ABC):
    """Where clips come from, and what they are."""

    @property
    @abstractmethod
    def grammar(self) -> str:
        """The sentence patterns of all captions, as `arvid.models.text.sentences` reads them."""

    @abstractmethod
    def check(self, card: Card) -> None:
        """Raise `ValueError` for a card whose sizes this data does not have."""

    @abstractmethod
    def clips(self, card: Card, folder: Path) -> Clips:
        """Latents as the network sees them; what takes long to make is kept in `folder`."""

    @abstractmethod
    def prompts(self, count: int) -> list[str]:
        """As many prompts that training never uses, where there are such."""

    @abstractmethod
    def judge(self, latents_BFCHW: Tensor, prompts: Sequence[str], vae: WanVAE | None) -> dict[str, float]:
        """Figures of samples, to look at while training."""


DATA: Registry[Data] = Registry("data", Data)


def _check_draw(count: int, seed: int) -> None:
    if count < 1 or seed < 0:
        raise ValueError(f"count={count}, seed={seed}: at least 1 clip, and a seed of at least 0")


@DATA.register("clips")
@dataclass(frozen=True)
class ProceduralClips(Data):
    """`count` rendered clips of coloured shapes (`arvid.training.clips`), as the latents of a block code."""

    count: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        _check_draw(self.count, self.seed)

    @property
    def grammar(self) -> str:
        return BUNDLED_GRAMMAR

    def check(self, card: Card) -> None:
        wanted = {"train_horizon": CLIP_FRAMES, "fps": FPS, "size": (SIZE, SIZE)}
        for name, value in wanted.items():
            if getattr(card, name) != value:
                raise ValueError(f"model.{name}={getattr(card, name)}: the clips have {value}")
        if any(m != 0 for m in card.vae.mean) or any(s != 1 for s in card.vae.std):
            raise ValueError("model.vae.mean and std: leave them out, a block code has mean 0 and spreads of its own")

    def code(self, card: Card, folder: Path) -> BlockCode:
        """The latents: principal components of the pixel blocks of some clips.

        Kept in `folder`: the VAE and the clips must have the same, and rounding decides signs that are arbitrary.
        """
        path, sizes = folder / "code.pt", (card.vae.z_dim, card.vae.time_stride, card.vae.space_stride)
        identity = {"sizes": list(sizes), "seed": self.seed}
        if (made := kept(path, identity)) is None:
            videos = torch.stack([video for *_, video in training_clips(CODE_CLIPS, seed=self.seed + 1)])
            made = {"code": vars(fit_blocks(videos, *sizes)), "identity": identity}
            save_atomically(made, path)
        return BlockCode(**made["code"])

    def clips(self, card: Card, folder: Path) -> Clips:
        path, identity = folder / "clips.pt", {**asdict(self), "z_dim": card.vae.z_dim, "vae": repr(card.vae)}
        if (made := kept(path, identity)) is not None:
            return Clips(made["latents"], made["captions"], made["alone"].numpy(), made["changed"].numpy())
        clips = encode_clips(self.code(card, folder), self.count, self.seed)
        save_atomically({
            "latents": clips.latents, "captions": clips.captions, "alone": torch.from_numpy(clips.alone),
            "changed": torch.from_numpy(clips.changed), "identity": identity,
        }, path)  # fmt: skip
        return clips

    def prompts(self, count: int) -> list[str]:
        return held_out_captions()[:count]

    def judge(self, latents_BFCHW: Tensor, prompts: Sequence[str], vae: WanVAE | None) -> dict[str, float]:
        if vae is None:
            return {}
        figures: dict[str, list[float]] = {}
        for row, prompt in zip(latents_BFCHW, prompts, strict=True):
            with torch.no_grad():
                pixels = ((vae.decode(row[None].float())[0].movedim(0, -1) + 1) * 127.5).round().clamp(0, 255)
            for name, value in asdict(score(read(pixels.byte().cpu().numpy()), prompt)).items():
                if value is not None:
                    figures.setdefault(name, []).append(float(value))
        return {name: float(np.mean(values)) for name, values in figures.items()}


MEANS = {"low": -0.5, "high": 0.5}
MEMORIES = {"brief": 0.6, "long": 0.95}


@DATA.register("gaussian")
@dataclass(frozen=True)
class Gaussian(Data):
    """Latents of a known law: each latent pixel an autoregression of order 1 over frames, of variance `spread` squared.

    The caption, "a low brief wave", names its mean and how long it remembers. What any method should give is known in
    closed form: for trying recipes in seconds, and for proving them.
    """

    count: int = 512
    spread: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        _check_draw(self.count, self.seed)
        if not 0 < self.spread < float("inf"):
            raise ValueError(f"spread={self.spread} must be positive and finite")

    @property
    def grammar(self) -> str:
        return f"a {{{'|'.join(MEANS)}}} {{{'|'.join(MEMORIES)}}} wave"

    def check(self, card: Card) -> None:
        """Any sizes do."""

    @staticmethod
    def shape(card: Card) -> tuple[int, int, int, int]:
        """[F, C, H, W] of a clip."""
        height, width = (side // card.vae.space_stride for side in card.size)
        return card.train_horizon, card.dit.in_channels, height, width

    def law(self, prompt: str, frames: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean [F] and covariance [F, F] of a latent pixel over frames."""
        _, level, memory, _ = prompt.split()
        gap = abs(np.subtract.outer(np.arange(frames), np.arange(frames)))
        return np.full(frames, MEANS[level]), self.spread**2 * MEMORIES[memory] ** gap

    def clips(self, card: Card, folder: Path) -> Clips:
        prompts, latents = self.prompts(4), []
        for i in range(self.count):
            mean, covariance = self.law(prompts[i % 4], card.train_horizon)
            shape = self.shape(card)
            white = rng_for(self.seed, "gaussian", i).standard_normal((len(mean), int(np.prod(shape[1:]))))
            latents.append((mean[:, None] + np.linalg.cholesky(covariance) @ white).reshape(shape))
        made = torch.from_numpy(np.stack(latents).astype(np.float16))
        captions = [(prompts[i % 4], prompts[i % 4], card.train_horizon) for i in range(self.count)]
        return Clips(made, captions, np.zeros(self.count, bool), np.zeros(self.count, bool))

    def prompts(self, count: int) -> list[str]:
        every = [f"a {level} {memory} wave" for level in MEANS for memory in MEMORIES]
        return [every[i % 4] for i in range(count)]

    def judge(self, latents_BFCHW: Tensor, prompts: Sequence[str], vae: WanVAE | None) -> dict[str, float]:
        return {"distance": self.distance(latents_BFCHW, prompts)}

    def distance(self, latents_BFCHW: Tensor, prompts: Sequence[str]) -> float:
        """Wasserstein distance of samples from the law over frames, the mean over prompts; 0 is exact."""
        rows = latents_BFCHW.double().flatten(2).numpy()  # [B, F, pixels]
        distances = []
        for prompt in sorted(set(prompts)):
            own = np.concatenate([row for row, said in zip(rows, prompts, strict=True) if said == prompt], 1)
            distances.append(wasserstein(own.mean(1), np.cov(own), *self.law(prompt, len(own))))
        return float(np.mean(distances))


def wasserstein(mean: np.ndarray, covariance: np.ndarray, mean2: np.ndarray, covariance2: np.ndarray) -> float:
    """2-Wasserstein distance of two normal laws (Dowson and Landau, 1982): the root of |m - m2|^2 + tr(C + C2 -
    2 (C^1/2 C2 C^1/2)^1/2)."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariance2 @ root).clip(0)).sum()
    return float(np.sqrt(max(0.0, ((mean - mean2) ** 2).sum() + np.trace(covariance + covariance2) - 2 * cross)))
