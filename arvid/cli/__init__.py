"""The `arvid` command: one file a subcommand, each with `add(subparsers)` and `run(arguments) -> exit status`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import generate

COMMANDS = (generate,)


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    top = argparse.ArgumentParser(
        prog="arvid", description="Long video from short-horizon autoregressive video diffusion models.",
        epilog="`arvid COMMAND --help` explains a command.",
    )  # fmt: skip
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; errors that a user can mend are one message and exit status 2, an interruption is 130."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        print(f"arvid: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("arvid: interrupted", file=sys.stderr)
        return 130
