"""Flow matching: teacher forcing, diffusion forcing, and a bidirectional teacher (arXiv 2210.02747, eq. 23)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from arvid.training.network import VIEWS, Batch, Network, Passes, View, mix
from arvid.training.stages import STAGE, NetworkStage, check_first_chunks

if TYPE_CHECKING:
    from arvid.training.recipe import TrainingRecipe
    from arvid.training.workshop import Workshop

__all__ = ["Flow", "FlowMatching"]


@dataclass(frozen=True)
class FlowMatching(NetworkStage):
    """A stage whose network predicts noise - x0. `dropout` is the share of texts that are blanked, for guidance."""

    many_steps = True
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: give a share in [0, 1)")

    def errors(
        self, passes: Passes, net: Network, batch: Batch, rng: np.random.Generator, copies: int = 1,
        view: View = "clean",
    ) -> Tensor:  # fmt: skip
        """Squared errors [B, copies * F, C, H, W] of velocities, each copy of the clips noised at levels of its own."""
        x0 = batch.clean.repeat(1, copies, 1, 1, 1)
        sigma, noise = passes.sigmas(rng, batch, copies, view), torch.randn_like(x0)
        keep = torch.from_numpy((rng.random(len(x0)) >= self.dropout).astype(np.float32)).to(x0)
        text = passes.text(net, batch, passes.copies(copies, view), keep)
        velocity = passes.velocity(net, batch, mix(x0, noise, sigma), sigma, text, view)
        return (velocity.float() - (noise - x0)).square()


@STAGE.register("flow")
@dataclass(frozen=True)
class Flow(FlowMatching):
    """Predict noise - x0 of clips noised chunk by chunk, mean squared error.

    `view` is what a noisy chunk sees: "clean" frames (teacher forcing, Self Forcing, arXiv 2506.08009, section 3),
    "noisy" ones at levels of their own (diffusion forcing, arXiv 2407.01392, algorithm 1), or "joint", all frames at
    one level. `copies` of a clip, noised independently, share its clean frames. `frames` trains on the first latent
    frames of every clip only. `first_chunks` of other clips are trained on beside the batch, their loss added: the
    first chunk is made from noise alone, is the hardest, and costs the least.
    """

    view: View = "clean"  # pyright: ignore[reportIncompatibleVariableOverride]
    copies: int = 2
    frames: int | None = None
    first_chunks: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.view not in VIEWS:
            raise ValueError(f"view={self.view!r}; choose one of: {', '.join(VIEWS)}")
        if self.copies < 1 or (self.copies > 1 and self.view != "clean"):
            raise ValueError(f"copies={self.copies}: at least 1, and 1 unless view='clean': copies share clean frames")
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"frames={self.frames}: at least 1, or leave it out for whole clips")
        check_first_chunks(self.first_chunks)
        if self.first_chunks and self.view == "joint":
            raise ValueError(f"first_chunks={self.first_chunks}: 0 with view='joint', which knows no chunks")

    def check(self, recipe: TrainingRecipe) -> None:
        if self.frames is not None and self.frames > recipe.card.train_horizon:
            raise ValueError(f"stage {self.called!r}: frames={self.frames}: a clip has {recipe.card.train_horizon}")

    def run(self, shop: Workshop) -> Network:
        passes, net = shop.passes_over(self.frames), shop.start_of(self).train()
        average = copy.deepcopy(net).requires_grad_(False)
        firsts = shop.passes_over(shop.card.chunk) if self.first_chunks else None

        def step_loss(step: int, rng: np.random.Generator, _: nn.Module) -> dict[str, Tensor]:
            batch = passes.batch(rng, self.batch)
            error = self.errors(passes, net, batch, rng, self.copies, self.view)
            first = error.unflatten(1, (self.copies, -1))[:, :, batch.chunk_of == 0].mean()
            if firsts is None:
                return {"loss": error.mean(), "first chunk": first}
            beside = self.errors(firsts, net, firsts.batch(rng, self.first_chunks), rng, view="joint").mean()
            return {"loss": error.mean() + beside, "first chunk": beside}

        shop.train(self, net, step_loss, average=average)
        return average.eval()
