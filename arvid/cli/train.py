"""`arvid train`: carry out a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import configs
from .progress import progress_line
from .values import whole

if TYPE_CHECKING:
    from arvid.training.loop import Said

__all__ = ["add", "run"]

HELP = """\
Train a model from nothing by a RECIPE: its data, its sizes, and stages such as flow (teacher forcing), consistency and
self_forcing, in order. See docs/training.md, and examples/training/ for recipes.

Everything is written to DIR: a checkpoint a stage, log.jsonl with losses and figures, and, once a VAE is trained,
sheets of samples of held-out prompts and after each stage a folder of its name that `arvid generate --model DIR/STAGE`
runs. Stopped at any time, the same command goes on from the last checkpoint (one a minute). A changed recipe is
refused; only the `steps` of the last stage begun may grow.
"""


def add(commands: Any) -> None:
    """Register the subcommand."""
    p = commands.add_parser("train", help="train a model by a recipe", description=HELP,
                            formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("recipe", metavar="RECIPE", type=Path, help="a TOML file")
    p.add_argument("-o", "--output", metavar="DIR", type=Path, help="folder of all that is made (default: runs/RECIPE)")
    p.add_argument("--device", default="cpu", help="where to run: cpu, cuda, cuda:1, ... (default: %(default)s)")
    p.add_argument("--threads", metavar="N", type=whole, help="CPU threads (default: torch's)")
    p.add_argument("--compile", action="store_true", help="compile the transformer: slow to begin with, faster then")
    p.add_argument("--look", metavar="N", type=whole, default=500, help="sample held-out prompts every N steps of a "
                   "stage, and after its last (default: %(default)s)")  # fmt: skip
    p.add_argument("--use", metavar="FILE.py", action="append", default=[], help="import strategies, stages and data "
                   "from a file")  # fmt: skip
    p.add_argument("--quiet", action="store_true", help="no progress, which is shown on a terminal only")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the recipe, carry it out."""
    configs.use(arguments.use)
    from arvid.training.recipe import read_recipe

    recipe = read_recipe(arguments.recipe)
    import torch

    from arvid.pipeline import usable
    from arvid.training.workshop import Workshop

    device = usable(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    folder = arguments.output or Path("runs") / arguments.recipe.stem
    with progress_line(arguments.quiet, _far) as show:
        shop = Workshop(recipe, folder, device, compiled=arguments.compile, say=show or (lambda said: None),
                        note=lambda text: print(text, flush=True), look_every=arguments.look)  # fmt: skip
        try:
            shop.run()
        except KeyboardInterrupt:
            print(f"stopped: the same command goes on from the last checkpoint in {folder}", flush=True)
            raise
    print(folder)
    return 0


def _far(at: Said) -> str:
    losses = ", ".join(f"{name} {value:.4g}" for name, value in at.losses.items())
    return f"{at.stage} {at.step}/{at.steps}: {losses}; {at.rate:.2f} s a step, {at.eta / 60:.0f} min left"
