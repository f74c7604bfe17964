"""Names and shapes of the tensors in published files, from their documentation and not from arvid's modules."""

from __future__ import annotations

import itertools
import json
import re
from math import prod
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "published"
MODELS = sorted(path.stem for path in FOLDER.glob("*.json"))


class Published(NamedTuple):
    """What is in a file, and the counts that its publishers' code gives, which the list must add up to."""

    shapes: dict[str, tuple[int, ...]]
    tensors: int
    parameters: int


def published(model: str) -> Published:
    """The list `model`; in its patterns `{a,b}` stands for each of a and b, `{0..3}` for each of 0 to 3."""
    content = json.loads((FOLDER / f"{model}.json").read_text())
    shapes: dict[str, tuple[int, ...]] = {}
    for pattern, shape in content["shapes"].items():
        for name in expanded(pattern):
            assert name not in shapes, f"{model} lists {name} twice"
            shapes[name] = tuple(shape)
    return Published(shapes, content["tensors"], content["parameters"])


def expanded(pattern: str) -> list[str]:
    """Every name that a pattern stands for."""
    choices = []
    for text in re.split(r"(\{.*?\})", pattern):
        if m := re.fullmatch(r"\{(\d+)\.\.(\d+)\}", text):
            choices.append([str(i) for i in range(int(m[1]), int(m[2]) + 1)])
        else:
            choices.append(text.strip("{}").split(","))
    return ["".join(choice) for choice in itertools.product(*choices)]


def count(shapes: dict[str, tuple[int, ...]]) -> int:
    """The number of parameters of these shapes."""
    return sum(map(prod, shapes.values()))
