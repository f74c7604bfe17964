"""CONFIG on the command line: a preset or a TOML file, `--set` on top of it, and the user's strategies by `--use`."""

from __future__ import annotations

import argparse
import difflib
import sys
import tomllib
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arvid.config import PipelineConfig
    from arvid.models.loading import Found
    from arvid.models.specs import Card

__all__ = ["add", "add_use", "add_weights", "card_of", "chosen", "each", "found", "use"]


def add(parser: argparse.ArgumentParser, option: str | None = None, several: bool = False) -> None:
    """The arguments of a command that takes a configuration: CONFIG, by position or as `option`, and what goes with it.

    With `several` it takes any number of them. `chosen`, for each that `each` gives, and `card_of` read them.
    """
    place: dict[str, Any] = {"dest": "config"} if option else {"nargs": "*" if several else "?"}
    parser.add_argument(
        option or "config", metavar="CONFIG", **place,
        help="a preset's name or a .toml file (arvid list, arvid show); without one, the model's own settings",
    )  # fmt: skip
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[],
        help="change a value: cache.window=12 keeps the cache's other fields, cache=full or cache.name=full replaces "
        "it; VALUE is TOML or a bare word; repeatable",
    )  # fmt: skip
    add_use(parser)
    parser.add_argument(
        "--model", metavar="FOLDER", help="weights: arvid's, Wan's official or Diffusers' folder, or org/name on the "
        "hub; where no weights are read, a card's name or .json file will do (default: the bundled model)",
    )  # fmt: skip


def add_weights(parser: argparse.ArgumentParser) -> None:
    """The arguments of a command that runs weights, besides `--model`; `found` reads them."""
    parser.add_argument("--checkpoint", metavar="FILE", help="a student's weights, in place of the DiT of --model")
    parser.add_argument("--lora", metavar="FILE", help="the LoRA that belongs to the checkpoint")
    parser.add_argument(
        "--card", metavar="NAME", help="the model these weights are (arvid list cards), or a card's .json file "
        "(default: that of a student's CONFIG, or what the checkpoint's name says)",
    )  # fmt: skip
    parser.add_argument(
        "--text", metavar="FILE", default="keep", help="embeddings of arvid encode, so that no text encoder is read; "
        "'free': read it, encode, and free its memory; 'keep': keep it (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of DiT and VAE (default: %(default)s)"
    )


def add_use(parser: argparse.ArgumentParser) -> None:
    """The argument `--use`, for `use`."""
    parser.add_argument(
        "--use", metavar="FILE.py", action="append", default=[], help="run this file, which registers strategies; "
        "repeatable",
    )  # fmt: skip


def each(arguments: argparse.Namespace) -> list[argparse.Namespace]:
    """The arguments once for each CONFIG, with that one only; without any, once."""
    given = arguments.config if isinstance(arguments.config, list) else [arguments.config]
    return [argparse.Namespace(**{**vars(arguments), "config": config}) for config in given or [None]]


def chosen(arguments: argparse.Namespace) -> tuple[PipelineConfig, str | None]:
    """The configuration asked for, what it leaves to the card still None, and the preset it is or starts from.

    `--set` reaches through a None to what the model's card means by it. Raises `ValueError` naming the argument, file,
    key or field at fault.
    """
    use(arguments.use)
    from arvid.config import REGISTRIES, PipelineConfig
    from arvid.presets import check_built, named, with_own

    config, name = named(arguments.config) if arguments.config is not None else (PipelineConfig(), None)
    changes = _tree(arguments.set)
    for key, change in changes.items():
        if key in REGISTRIES and isinstance(change, dict) and "name" not in change:
            current = getattr(config, key)
            if current is None:
                card, other = card_of(arguments, name), changes.get("sampler")
                basis = config.replace(sampler=other) if isinstance(other, str) or "name" in (other or {}) else config
                check_built(basis, card)
                current = getattr(with_own(basis, card).choose(card), key)
            changes[key] = REGISTRIES[key].change(current, change)
    return config.replace(**changes), name


def card_of(arguments: argparse.Namespace, student: str | None = None) -> Card:
    """The card that `--model` names, or that of the weights asked for, `student` being the preset in use; raises as
    `found`."""
    from arvid.models.finding import card_named
    from arvid.models.specs import CARDS
    from arvid.models.weights import BUNDLED, load_card

    if arguments.model in CARDS or str(arguments.model).endswith(".json"):
        return card_named(arguments.model)
    bundled = load_card(BUNDLED)
    return bundled if arguments.model == bundled.name else found(arguments, student).card


def found(arguments: argparse.Namespace, student: str | None = None) -> Found:
    """The weights asked for, not read yet; raises as `arvid.models.loading.find`, and for files that are missing."""
    from arvid.models.loading import find
    from arvid.models.specs import CARDS
    from arvid.models.weights import BUNDLED, load_card
    from arvid.presets import STUDENTS

    given = {key: getattr(arguments, key, None) for key in ("checkpoint", "card", "lora")}
    runs = hasattr(arguments, "checkpoint")
    try:
        what = find(BUNDLED if arguments.model is None else arguments.model, **given,
                    student=student if student in STUDENTS else None, runs=runs)  # fmt: skip
    except FileNotFoundError as error:
        if close := difflib.get_close_matches(str(arguments.model), CARDS, n=1, cutoff=0.6):
            here = "" if close[0] == arguments.model else f"; did you mean the card {close[0]!r}?"
            raise FileNotFoundError(f"{error}; a card is no weights, and its name enough for plan, lint and plot{here}"
                                    ) from error  # fmt: skip
        raise
    if what.folder.kind == "arvid":
        load_card(what.folder.path)
    return what


def use(files: Iterable[str]) -> None:
    """Run files of Python, each once however often it is named. Raises `ValueError` naming file, line and error."""
    for file in files:
        path = str(Path(file).resolve())
        if path in sys.modules:
            continue
        try:
            source = Path(path).read_bytes()
        except OSError as error:
            raise ValueError(f"--use {file}: {error.strerror}") from error
        # Dataclasses find their module in sys.modules; under its path no two files clash, and errors name the file.
        module = sys.modules[path] = ModuleType(path)
        module.__file__ = path
        try:
            exec(compile(source, path, "exec", dont_inherit=True), vars(module))
        except (Exception, SystemExit) as error:
            del sys.modules[path]
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
            line = lines[-1] if lines else getattr(error, "lineno", None)
            message = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
            where = f"--use {file}" + (f", line {line}" if line else "")
            raise ValueError(f"{where}: {type(error).__name__}: {message}") from error


def _tree(assignments: Iterable[str]) -> dict[str, Any]:
    """["cache.window=12", "chunk=3"] as {"cache": {"window": 12}, "chunk": 3}; a later value replaces an earlier."""
    tree: dict[str, Any] = {}
    for text in assignments:
        path, equals, value = text.partition("=")
        *tables, key = (part.strip() for part in path.split("."))
        if not equals or not all((*tables, key)):
            raise ValueError(f"--set {text}: give KEY=VALUE, such as cache.window=12")
        table = tree
        for part in tables:
            inner = table.get(part, {})
            table[part] = {"name": inner} if isinstance(inner, str) else inner
            table = table[part]
            if not isinstance(table, dict):
                raise ValueError(f"--set {text}: {part} is {table!r} by an earlier --set, and has no fields")
        table[key] = _value(text, value.strip())
    return tree


def _value(text: str, value: str) -> Any:
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        if value.startswith(("[", "{", '"', "'")):
            raise ValueError(f"--set {text}: {value} is no TOML: {error}") from error
        return value
