"""`arvid plot`: what configurations do, as a table or a picture."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from . import configs
from .values import seconds, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from arvid.config import PipelineConfig
    from arvid.models.specs import Card

__all__ = ["add", "add_length", "run"]


class Chosen(NamedTuple):
    """A configuration with everything filled in, what to call it, and the latent frames of its video."""

    label: str
    config: PipelineConfig
    frames: int


def add(commands: Any) -> None:
    """Register the subcommand, with one of its own for each kind of plot."""
    p = commands.add_parser("plot", help="show what a configuration does", description="Show what CONFIG does.")
    kinds = p.add_subparsers(title="kinds", metavar="KIND", required=True)
    for kind, (show, several, examples, options) in KINDS.items():
        k = kinds.add_parser(
            kind, help=show.__doc__, description=f"{show.__doc__} A table, or with -o a picture.",
            epilog=f"examples:\n{examples}", formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        configs.add(k, several=several)
        add_length(k)
        k.add_argument("-o", "--output", metavar="FILE.png", help="write a picture; replaces an older file")
        for option, how in options.items():
            k.add_argument(option, **how)
        k.set_defaults(run=run, show=show)


def add_length(parser: argparse.ArgumentParser) -> None:
    """The arguments `--seconds` and `--frames`, which is None where it is not given."""
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=seconds, default=30.0,
                        help="length of the video, rounded to whole chunks (default: 30)")  # fmt: skip
    length.add_argument("--frames", type=whole, help="length in latent frames, exact")


def run(arguments: argparse.Namespace) -> int:
    """Print the table, or save the picture and print its path, which is checked before anything is loaded."""
    from arvid.plots import check_png, save_png

    path = None if arguments.output is None else check_png(arguments.output)
    named, card = [(each.config, *configs.chosen(each)) for each in configs.each(arguments)], configs.card_of(arguments)
    from arvid.geometry import latent_frames
    from arvid.presets import resolved, warn_if_foreign

    chosen = []
    for label, config, _ in named:
        config = resolved(config, card)
        assert config.chunk
        frames = arguments.frames or latent_frames(arguments.seconds, card.fps, card.vae.time_stride, config.chunk)
        chosen.append(Chosen(label or card.name, config, frames))
    shown = arguments.show(chosen, card, arguments)
    for name in dict.fromkeys(name for *_, name in named if name is not None):
        warn_if_foreign(name, card)
    print(shown if path is None else save_png(shown, path))
    return 0


def _cache(chosen: Sequence[Chosen], card: Card, arguments: argparse.Namespace) -> str | Figure:
    """Which frames every pass sees, and at which times."""
    from arvid.plots.cache import figure, table

    ((_, config, frames),) = chosen
    return table(config, frames, every=arguments.all) if arguments.output is None else figure(config, frames)


def _rotary(chosen: Sequence[Chosen], card: Card, arguments: argparse.Namespace) -> str | Figure:
    """How far each temporal plane turns, in training and by the end of the video."""
    from arvid.plots.rotary import Rule, figure, table

    rules = [Rule(label, config.rotary, frames) for label, config, frames in chosen if config.rotary]
    return table(rules, card) if arguments.output is None else figure(rules, card)


def _noise(chosen: Sequence[Chosen], card: Card, arguments: argparse.Namespace) -> str | Figure:
    """How the noise of frames depends on each other: motion, frequencies and covariance."""
    from arvid.plots.noise import Stream, figure, table

    streams = [Stream(label, config.noise, config.chunk, frames, arguments.seed)
               for label, config, frames in chosen if config.noise and config.chunk]  # fmt: skip
    return table(streams, card) if arguments.output is None else figure(streams, card)


class Kind(NamedTuple):
    """A kind of plot: what makes it, whether of several configurations, examples, and arguments of its own."""

    show: Callable[[Sequence[Chosen], Card, argparse.Namespace], str | Figure]
    several: bool
    examples: str
    options: dict[str, dict[str, Any]]


KINDS = {
    "cache": Kind(_cache, False, """\
  arvid plot cache self_forcing --seconds 30
  arvid plot cache my.toml --set cache.name=sink --set cache.sink=3 --seconds 60 -o sink.png
""", {"--all": {"action": "store_true", "help": "all lines of the table, however long the video"}}),
    "rotary": Kind(_rotary, True, """\
  arvid plot rotary flex --seconds 60
  arvid plot rotary self_forcing flex my.toml --seconds 60 -o rotary.png
""", {}),
    "noise": Kind(_noise, True, """\
  arvid plot noise flex --seconds 30
  arvid plot noise self_forcing flex my.toml --seed 7 -o noise.png
""", {"--seed": {"type": int, "default": 0, "help": "the video's, for priors that shuffle (default: 0)"}}),
}  # fmt: skip
