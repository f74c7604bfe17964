"""The `arvid` command, run in this process."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from arvid.cli import main


@dataclass(frozen=True)
class Ran:
    """What one run of the command returned and wrote."""

    status: int
    out: str
    err: str


def ran(capsys: pytest.CaptureFixture[str], *argv: str) -> Ran:
    """Run a command line."""
    try:
        status = main(argv)
    except SystemExit as exit_:  # argparse
        status = exit_.code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return Ran(status, captured.out, captured.err)  # pyright: ignore[reportArgumentType]
