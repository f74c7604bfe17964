"""`arvid plan`: what a video will cost, before any download."""

from __future__ import annotations

import argparse
from typing import Any

from . import configs
from .plot import add_length
from .values import size, whole

__all__ = ["add", "run"]

EXAMPLES = """\
examples:
  arvid plan --model wan2.1-t2v-1.3b --seconds 60
  arvid plan deep_sink --model wan2.1-t2v-14b --seconds 60 --size 832x480 --set cache.codec=int8 --json
"""


def add(commands: Any) -> None:
    """Register the subcommand."""
    p = commands.add_parser(
        "plan", help="count what a video will cost", description="Print the operations and the memory that a video by "
        "CONFIG takes, and how fast arithmetic alone would let it be made. --model may also be a card's name (arvid "
        "list cards). Reads no weights.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    configs.add(p)
    add_length(p)
    p.add_argument("--size", metavar="WIDTHxHEIGHT", type=size, help="pixels to generate (default: the model's)")
    p.add_argument("--batch", type=whole, default=1, help="videos made together (default: %(default)s)")
    p.add_argument("--dtype", default="bf16", help="of all networks: bf16, fp16 or fp32 (default: %(default)s)")
    p.add_argument("--tflops", type=float, help="TFLOP/s of the device (default: 790, 80 %% of an H100's bfloat16)")
    p.add_argument("--json", action="store_true", help="print JSON: operations, bytes, and everything they come from")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    config, name = configs.chosen(arguments)
    card = configs.card_of(arguments, name)
    import json

    from arvid.plan import TFLOPS, plan
    from arvid.presets import warn_if_foreign

    seconds = arguments.seconds if arguments.frames is None else None
    pixels = None if arguments.size is None else arguments.size[::-1]
    found = plan(config, card, seconds=seconds, frames=arguments.frames, size=pixels, batch=arguments.batch,
                 dtype=arguments.dtype)  # fmt: skip
    tflops = TFLOPS if arguments.tflops is None else arguments.tflops
    shown = json.dumps(found.to_dict(tflops), indent=1) if arguments.json else found.text(tflops)
    if name is not None:
        warn_if_foreign(name, card)
    print(shown)
    return 0
