"""`arvid plot`: what a configuration does, as a table or a picture."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from . import configs
from .values import seconds, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from arvid.config import PipelineConfig

__all__ = ["add", "run"]

EXAMPLES = """\
examples:
  arvid plot cache self_forcing --seconds 30
  arvid plot cache my.toml --set cache.name=sink --set cache.sink=3 --seconds 60 -o sink.png
"""


def add(commands: Any) -> None:
    """Register the subcommand, with one of its own for each kind of plot."""
    p = commands.add_parser("plot", help="show what a configuration does", description="Show what CONFIG does.")
    kinds = p.add_subparsers(title="kinds", metavar="KIND", required=True)
    for kind, show in KINDS.items():
        k = kinds.add_parser(
            kind, help=show.__doc__, description=f"{show.__doc__} A table, or with -o a picture.", epilog=EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        configs.add(k)
        length = k.add_mutually_exclusive_group()
        length.add_argument("--seconds", type=seconds, default=30.0,
                            help="length of the video, rounded to whole chunks (default: 30)")  # fmt: skip
        length.add_argument("--frames", type=whole, help="length in latent frames, exact")
        k.add_argument("-o", "--output", metavar="FILE.png", help="write a picture; replaces an older file")
        k.add_argument("--all", action="store_true", help="all lines of the table, however long the video")
        k.set_defaults(run=run, show=show)


def run(arguments: argparse.Namespace) -> int:
    """Print the table, or save the picture and print its path, which is checked before anything is loaded."""
    from arvid.plots import check_png, save_png

    path = None if arguments.output is None else check_png(arguments.output)
    (config, name), card = configs.chosen(arguments), configs.card_of(arguments)
    from arvid.geometry import latent_frames
    from arvid.presets import warn_if_foreign

    config = config.resolve(card)
    assert config.chunk
    frames = arguments.frames or latent_frames(arguments.seconds, card.fps, card.vae.time_stride, config.chunk)
    shown = arguments.show(config, frames, arguments)
    if name is not None:
        warn_if_foreign(name, card)
    print(shown if path is None else save_png(shown, path))
    return 0


def _cache(config: PipelineConfig, frames: int, arguments: argparse.Namespace) -> str | Figure:
    """Which frames every pass sees, and at which times."""
    from arvid.plots.cache import figure, table

    return table(config, frames, every=arguments.all) if arguments.output is None else figure(config, frames)


KINDS = {"cache": _cache}
