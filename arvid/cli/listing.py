"""`arvid list`: what there is to choose from."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from . import configs

if TYPE_CHECKING:
    from arvid.registry import Registry

__all__ = ["add", "run"]

Lines = Iterator[tuple[str, str, str]]
"""(name, what it is, its values)"""


def add(commands: Any) -> None:
    """Register the subcommand."""
    p = commands.add_parser(
        "list", help="list strategies, presets and cards", description="List strategies with their fields, those of "
        "plugins and --use files included, presets, cards of weights, and stages and data of training recipes.",
    )  # fmt: skip
    p.add_argument("kind", metavar="KIND", nargs="?", help="one kind only, such as cache, noise, presets or cards")
    configs.add_use(p)
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print each kind, or the one asked for."""
    configs.use(arguments.use)
    kinds = _kinds()
    if arguments.kind is not None and arguments.kind not in kinds:
        close = difflib.get_close_matches(arguments.kind, kinds, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"nothing to list is called {arguments.kind!r}{hint} (kinds: {', '.join(kinds)})")
    wanted = kinds if arguments.kind is None else [arguments.kind]
    print("\n".join(_section(kind, kinds[kind]()) for kind in wanted), end="")
    return 0


def _kinds() -> dict[str, Callable[[], Lines]]:
    import arvid.evaluation.metrics  # noqa: F401  (which registers them)
    from arvid.config import REGISTRIES
    from arvid.registry import BY_BASE

    registries = dict.fromkeys((*REGISTRIES.values(), *BY_BASE.values()))  # those of fields last
    strategies = {registry.kind: partial(_strategies, registry) for registry in registries}
    training = {kind: partial(_training, kind) for kind in ("stage", "data")}
    return strategies | {"presets": _presets, "cards": _cards} | training


def _section(kind: str, lines: Lines) -> str:
    entries = [f"  {name}: {what}\n" + (f"      {values}\n" if values else "") for name, what, values in lines]
    return f"{kind}\n{''.join(entries)}"


def _strategies(registry: Registry) -> Lines:
    from arvid.registry import describe_field, summary

    for name in registry.names():
        cls = registry.get(name)
        given = sorted((f for f in dataclasses.fields(cls) if f.init), key=lambda f: f.kw_only is True)  # its own first
        yield name, summary(cls), ", ".join(map(describe_field, given))


def _training(kind: str) -> Lines:
    from arvid.training.recipe import DATA, STAGE

    yield from _strategies({"stage": STAGE, "data": DATA}[kind])


def _presets() -> Lines:
    from arvid.presets import METHODS, STUDENTS, describe

    yield from ((name, f"student, {describe(name)}", "") for name in sorted(STUDENTS))
    yield from ((name, f"method, {describe(name)}", "") for name in sorted(METHODS))


def _cards() -> Lines:
    from arvid.models.specs import CARDS, SETTINGS
    from arvid.models.weights import BUNDLED, load_card

    for what, card in (("bundled, ", load_card(BUNDLED)), *(("", card) for card in CARDS.values())):
        settings = ("sampler", *SETTINGS, "fps", "size")
        yield card.name, f"{what}{card.source}", ", ".join(f"{key}={getattr(card, key)}" for key in settings)
