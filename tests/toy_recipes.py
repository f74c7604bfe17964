"""The toy recipe, small enough for a test, and what a run of it leaves behind."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import torch
from dense import randomise
from torch import Tensor

from arvid.training.network import Batch, Network, Passes
from arvid.training.recipe import recipe_of
from arvid.training.workshop import Workshop

TOY = Path(__file__).parents[1] / "examples" / "training" / "toy.toml"
FLOW = {"name": "flow", "steps": 3, "batch": 4}
FAST = {"dim": 32, "ffn_dim": 64, "text_dim": 16}  # and enough to learn
SMALL = {"dim": 16, "ffn_dim": 16, "text_dim": 8}


def toy(*stages: dict[str, Any], data: dict[str, Any] | None = None, dit: dict[str, Any] | None = None,
        **model: Any) -> dict[str, Any]:  # fmt: skip
    """Plain values of the toy recipe with other stages (none given: one flow stage), and a smaller network."""
    plain = tomllib.loads(TOY.read_text())
    plain["data"] = data or {"name": "gaussian", "count": 24}
    plain["model"]["dit"] |= SMALL | (dit or {})
    plain["model"]["text"] |= {"dim": plain["model"]["dit"]["text_dim"], "ffn_dim": 16}
    return {**plain, "model": plain["model"] | model, "stages": [dict(stage) for stage in stages or (FLOW,)]}


def workshop(folder: Path, *stages: dict[str, Any], **changes: Any) -> Workshop:
    """A workshop for `toy(*stages, **changes)`."""
    return Workshop(recipe_of(toy(*stages, **changes)), folder)


def random_network(shop: Workshop, seed: int = 0) -> Network:
    """Its network with every weight random: as it is made, its head is 0."""
    net = shop.start_of(shop.recipe.stages[0])  # pyright: ignore[reportArgumentType]
    randomise(net.dit, seed)
    return net.eval()


def some_batch(passes: Passes, alone: bool = False, rows: int = 2) -> Batch:
    """The first clips."""
    clips = passes.clips
    return passes.laid_out(clips.latents[:rows].float(), clips.captions[:rows], alone)


def saved(folder: Path, stage: str) -> dict[str, Any]:
    """A stage's checkpoint, less how long it took."""
    state = torch.load(folder / f"{stage}.pt", weights_only=True)
    return {key: value for key, value in state.items() if key != "seconds"}


def same(a: Any, b: Any) -> bool:
    """Whether nested values are equal, tensors bit for bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
