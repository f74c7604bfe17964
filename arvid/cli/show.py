"""`arvid show`: a configuration with everything filled in, as TOML."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from . import configs

if TYPE_CHECKING:
    from arvid.config import PipelineConfig
    from arvid.models.specs import Card

__all__ = ["add", "run", "text"]

EXAMPLES = """\
examples:
  arvid show self_forcing > my.toml
  arvid show my.toml --set cache.name=sink --set cache.sink=2
"""


def add(commands: Any) -> None:
    """Register the subcommand."""
    p = commands.add_parser(
        "show", help="print a configuration as TOML", description="Print CONFIG, with what it leaves to the model's "
        "card filled in, as TOML that CONFIG may name.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    configs.add(p)
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the configuration."""
    from arvid.presets import describe, warn_if_foreign

    (config, name), card = configs.chosen(arguments), configs.card_of(arguments)
    shown = text(config, card)
    if name is not None:
        warn_if_foreign(name, card)
        print(f"# {name}: {describe(name)}")
    print(shown, end="")
    return 0


def text(config: PipelineConfig, card: Card) -> str:
    """`config.resolve(card)` as TOML, with comments on what the strategies are and which values are the card's."""
    from arvid.config import PLAIN, REGISTRIES, PipelineConfig, open_fields

    chosen, resolved = config.choose(card), config.resolve(card)
    own = f"# The card is that of {card.name!r}.\n"
    parts = [own, _from_card(["chunk"] if config.chunk is None else []), PipelineConfig(chunk=resolved.chunk).to_toml()]
    for key in REGISTRIES:
        strategy = getattr(resolved, key)
        taken = ["name"] if getattr(config, key) is None and key not in PLAIN else []
        taken += [field for field in open_fields(getattr(chosen, key)) if field != "chunk"]
        parts += ["\n", _about(strategy), _from_card(taken), PipelineConfig(**{key: strategy}).to_toml()]
    return "".join(parts)


def _from_card(names: list[str]) -> str:
    return f"# From the card: {', '.join(names)}.\n" if names else ""


def _about(strategy: Any) -> str:
    """Comments that say what a strategy is, and what those in its fields are."""
    from arvid.registry import summary

    held = ((f.name, getattr(strategy, f.name)) for f in dataclasses.fields(strategy))
    nested = [f"# {name}: {summary(type(value))}\n" for name, value in held if dataclasses.is_dataclass(value)]
    return f"# {summary(type(strategy))}\n{''.join(nested)}"
