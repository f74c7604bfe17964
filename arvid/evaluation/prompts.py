"""Files of prompts: one a line, or those of benchmarks as they are published; checked before anything is generated."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from arvid.models.loading import Found

__all__ = ["HELD_OUT", "Prompt", "check_prompts", "read_prompts"]

HELD_OUT = "held_out"
KEYS = ("prompt_en", "prompt")
SHOWN = 5


class Prompt(NamedTuple):
    """A prompt, and where it is from: a file and its line, or its entry."""

    text: str
    where: str


def read_prompts(source: str, limit: int | None = None) -> list[Prompt]:
    """Prompts of a file, or, for "held_out", the bundled model's held-out captions; of these the first `limit`.

    Plain text (MovieGen's bench is) has one a line; blank lines and lines that start with # are left out. `.json` is a
    list of strings or of objects with "prompt_en" (VBench's VBench_full_info.json) or "prompt", `.jsonl` one such a
    line, `.csv` has a column of one of these names. A prompt that was there before is left out, with a warning:
    prompts are the independent units of the statistics. Raises `ValueError` or `OSError` naming file and line for what
    cannot be read, and `ValueError` for a limit below 1 and where no prompt is left.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit={limit!r}: give a whole number of prompts, at least 1")
    found = _held_out() if source == HELD_OUT else _of_file(Path(source))
    first: dict[str, Prompt] = {}
    for prompt in found:
        first.setdefault(prompt.text, prompt)
    if not first:
        raise ValueError(f"{source} has no prompts: give at least one; in plain text, blank lines and lines that start "
                         "with # are none")  # fmt: skip
    if again := len(found) - len(first):
        warnings.warn(f"{source}: prompts that are there already are left out, {again} in all; for more videos of a "
                      "prompt, ask for more seeds",
                      stacklevel=2)  # fmt: skip
    return list(first.values())[:limit]


def check_prompts(prompts: Iterable[Prompt], weights: Found, text: str = "keep") -> None:
    """Raise `ValueError` for prompts that the weights' text encoder refuses, or that the embeddings of the file `text`
    lack, naming where each is and why. Reads the tokenizer or the embeddings, and no weights."""
    import torch

    from arvid.models.embeddings import Embeddings
    from arvid.models.text import TextEncoder, build_umt5, load_tokenizer

    card = weights.card
    if text in ("keep", "free"):
        with torch.device("meta"):
            network = build_umt5(card.text)
        tokenizer = load_tokenizer(weights.folder.tokenizer)
        check = TextEncoder(network, tokenizer, card.dit.text_length, card.grammar).tokenize
    else:
        check = Embeddings.read(text).encode
    refused = []
    for prompt in prompts:
        try:
            check([prompt.text])
        except ValueError as error:
            refused.append(f"{prompt.where}: {error}")
    if refused:
        more = f"\nand {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
        raise ValueError("\n".join(refused[:SHOWN]) + more)


def _held_out() -> list[Prompt]:
    from arvid.training.clips import held_out_captions

    return [Prompt(text, f"{HELD_OUT}, caption {i}") for i, text in enumerate(held_out_captions(), start=1)]


def _of_file(path: Path) -> list[Prompt]:
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a file of prompts, one a line")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}; prompts are a file, one a line, or {HELD_OUT!r}, the "
                                "bundled model's held-out captions") from None  # fmt: skip
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}") from error
    read = {".json": _json, ".jsonl": _jsonl, ".csv": _csv}.get(path.suffix.lower(), _lines)
    return [Prompt(prompt, where) for where, prompt in read(text, path)]


Entries = Iterator[tuple[str, str]]
"""(where, prompt)"""


def _lines(text: str, path: Path) -> Entries:
    for number, line in enumerate(text.splitlines(), start=1):
        if (prompt := line.strip()) and not prompt.startswith("#"):
            yield f"{path}, line {number}", prompt


def _json(text: str, path: Path) -> Entries:
    entries = _parsed(text, str(path))
    if not isinstance(entries, list):
        raise ValueError(f"{path} is no list: give a list of prompts, or of objects with one of {', '.join(KEYS)}")
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, entry {number}"
        yield where, _prompt(entry, where)


def _jsonl(text: str, path: Path) -> Entries:
    # Not splitlines(): JSON strings may hold other characters that it takes for ends of lines.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _prompt(_parsed(line, where), where)


def _csv(text: str, path: Path) -> Entries:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if not set(KEYS) & set(rows.fieldnames or ()):
            raise ValueError(f"{path} has the columns {', '.join(rows.fieldnames or ()) or 'none'}: one must be called "
                             f"{' or '.join(KEYS)}")  # fmt: skip
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            yield where, _prompt(row, where)
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: {error}") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON: {error}") from error


def _prompt(entry: Any, where: str) -> str:
    if isinstance(entry, dict):
        entry = next((entry[key] for key in KEYS if key in entry), None)
    if not isinstance(entry, str) or not entry.strip():
        raise ValueError(f"{where} has no prompt: give a string, or an object with one of {', '.join(KEYS)}")
    return entry.strip()
