"""The `arvid` command: one file a subcommand, each with `add(subparsers)` and `run(arguments) -> exit status`.

`configs` is what the subcommands that take a configuration share.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from arvid import __version__

from . import compare, convert, encode, generate, lint, listing, plan, plot, show, train

__all__ = ["COMMANDS", "main", "parser"]

COMMANDS = (compare, convert, encode, generate, lint, listing, plan, plot, show, train)


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    top = argparse.ArgumentParser(
        prog="arvid", description="Long video from short-horizon autoregressive video diffusion models.",
        epilog="`arvid COMMAND --help` explains a command.",
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"arvid {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. An error is one message and exit status 2, an interruption 130; a warning is one line,
    shown once.

    Errors that no input explains (a TypeError, say) are bugs and keep their traceback.
    """
    arguments = parser().parse_args(argv)
    shown: set[str] = set()  # Python's own memory of it is lost whenever an import adds a filter

    def show_once(message: Warning | str, *_: Any, **__: Any) -> None:
        line = " ".join(str(message).split())
        if line not in shown:
            print(f"arvid: warning: {line}", file=sys.stderr)
        shown.add(line)

    with warnings.catch_warnings():
        warnings.showwarning = show_once
        try:
            return arguments.run(arguments)
        except BrokenPipeError:  # the reader, `head` say, has seen enough
            sys.stdout = None
            return 1
        # RuntimeError is PyTorch's (out of memory, no such device) and that of a video encoder which fails.
        except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
            print(f"arvid: {str(error) or type(error).__name__}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("arvid: interrupted", file=sys.stderr)
            return 130
