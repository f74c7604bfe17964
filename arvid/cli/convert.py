"""`arvid convert`: published files as safetensors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add", "run"]

EXAMPLES = """\
examples:
  arvid convert self_forcing_dmd.pt -o self_forcing.safetensors --key generator_ema --card self_forcing
  arvid convert longlive_base.pt -o longlive.safetensors --card longlive --lora lora.pt
  arvid convert models_t5_umt5-xxl-enc-bf16.pth -o models_t5_umt5-xxl-enc-bf16.safetensors
"""


def add(commands: Any) -> None:
    """Register the subcommand."""
    p = commands.add_parser(
        "convert", help="write published weights as safetensors", description="Write the weights of SOURCE, a .pt, "
        ".pth or .safetensors file or a folder of shards, as one .safetensors file, dtypes kept, under a Wan model's "
        "official names or Diffusers', without what training wraps around them. The header says where they come from. "
        "Takes the memory of the largest tensor.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("source", metavar="SOURCE", help="a file or a folder of shards")
    p.add_argument("-o", "--output", metavar="FILE", required=True, help="a .safetensors file")
    p.add_argument("--key", help="the entry of a torch file, such as generator_ema (default: the card's, or the one)")
    p.add_argument("--card", metavar="NAME", help="the card these weights belong to, which the header then names")
    p.add_argument("--lora", metavar="FILE", help="add this LoRA, with the rank and alpha of the card")
    p.add_argument("--to", choices=("official", "diffusers"), default="official", help="names (default: %(default)s)")
    p.add_argument("--force", action="store_true", help="replace an older FILE")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Convert, and print what the header says."""
    from arvid.models.convert import convert
    from arvid.models.loading import card_named

    card = None if arguments.card is None else card_named(arguments.card)
    about = convert(arguments.source, arguments.output, key=arguments.key, lora=arguments.lora, card=card,
                    to=arguments.to, force=arguments.force)  # fmt: skip
    print(f"{arguments.output}: {Path(arguments.output).stat().st_size} bytes")
    for name, value in about.items():
        print(f"  {name}: {value}")
    return 0
