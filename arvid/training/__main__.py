"""`python -m arvid.training`: make the bundled model from nothing."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from arvid.models.weights import BUNDLED
from arvid.training.bundled import run


def main() -> None:
    """Parse the arguments and run every stage."""
    p = argparse.ArgumentParser(prog="python -m arvid.training", description=__doc__)
    p.add_argument("--work", type=Path, default=Path("runs/tiny"), help="checkpoints and clips (default: %(default)s)")
    p.add_argument("--target", type=Path, default=BUNDLED, help="the finished model (default: inside the package)")
    p.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    arguments = p.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    run(arguments.work, arguments.target)


if __name__ == "__main__":
    main()
