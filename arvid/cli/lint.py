"""`arvid lint`: what a configuration does to temporal position that training never did."""

from __future__ import annotations

import argparse
from typing import Any

from . import configs
from .plot import add_length

__all__ = ["add", "run"]

EXAMPLES = """\
examples:
  arvid lint self_forcing --seconds 60
  arvid lint deep_sink --seconds 240 --set time=absolute -o lint.png
"""


def add(commands: Any) -> None:
    """Register the subcommand."""
    p = commands.add_parser(
        "lint", help="find what leaves the phases seen in training", description="Print how far each temporal plane "
        "turns between queries and keys when CONFIG makes a video, against training, and what to do. Reads no weights.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    configs.add(p)
    add_length(p)
    p.add_argument("-o", "--output", metavar="FILE.png", help="write a picture too; replaces an older file")
    p.add_argument("--strict", action="store_true", help="exit with status 1 if there is a warning")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print what was found, and save the picture, whose path is checked before anything is loaded."""
    from arvid.plots import check_png, save_png

    path = None if arguments.output is None else check_png(arguments.output)
    (config, name), card = configs.chosen(arguments), configs.card_of(arguments)
    from arvid.lint import lint
    from arvid.presets import warn_if_foreign

    seconds = arguments.seconds if arguments.frames is None else None
    found = lint(config, card, seconds=seconds, frames=arguments.frames)
    if name is not None:
        warn_if_foreign(name, card)
    print(found)
    if path is not None:
        print(f"\n{save_png(found.figure(), path)}")
    return int(arguments.strict and bool(found.warnings))
