"""The words of the bundled model's captions: palette, grammar, parsing, and the held-out split.

    a {colour} {shape} {motion} on a {background} background
    a {colour} {shape} {motion} and a {colour} {shape} {motion} on a {background} background

Always "a", also before "orange". Colours are RGB in 0..255.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from math import sqrt
from typing import NamedTuple

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (219, 31, 31),
    "green": (33, 166, 51),
    "blue": (38, 77, 230),
    "yellow": (242, 217, 26),
    "orange": (250, 128, 13),
    "purple": (140, 38, 179),
    "pink": (250, 128, 191),
    "cyan": (26, 204, 217),
}
BACKGROUNDS: dict[str, RGB] = {
    "black": (8, 8, 8),
    "white": (242, 242, 242),
    "gray": (128, 128, 128),
    "brown": (92, 56, 31),
    "navy": (13, 20, 77),
    "beige": (230, 209, 166),
}
SHAPES = ("ball", "square", "triangle")
MOTIONS = (
    "bounces around",
    "moves left and right",
    "moves up and down",
    "moves in a circle",
    "grows and shrinks",
)
MIN_CONTRAST = 133.0
HELD_OUT, HELD_OUT_PAIRS = 100, 20

GRAMMAR = "\n".join(
    (
        'A prompt reads "a COLOUR SHAPE MOTION on a BACKGROUND background", or, for two objects of different colours,',
        '"a COLOUR SHAPE MOTION and a COLOUR SHAPE MOTION on a BACKGROUND background":',
        "  COLOUR      " + ", ".join(COLOURS),
        "  SHAPE       " + ", ".join(SHAPES),
        "  MOTION      " + ", ".join(MOTIONS),
        "  BACKGROUND  " + ", ".join(BACKGROUNDS),
    )
)

_THING = "a ({}) ({}) ({})".format(*map("|".join, (COLOURS, SHAPES, MOTIONS)))
_PATTERN = re.compile(f"{_THING}(?: and {_THING})? on a ({'|'.join(BACKGROUNDS)}) background")
_WORDS = {
    word for part in (["a", "and", "on", "background"], COLOURS, SHAPES, MOTIONS, BACKGROUNDS) for text in part
    for word in text.split()
}  # fmt: skip
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Thing(NamedTuple):
    """An object as a caption names it."""

    colour: str
    shape: str
    motion: str

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape} {self.motion}"


@dataclass(frozen=True)
class Caption:
    """What a caption says, each part one of the words of the grammar; `str` gives the caption itself.

    `second` is the other object, of another colour, where there are two. Raises ValueError for other words.
    """

    colour: str
    shape: str
    motion: str
    background: str
    second: Thing | None = None

    def __post_init__(self) -> None:
        for colour, shape, motion in self.things:
            for name, word, allowed in (
                ("colour", colour, COLOURS),
                ("shape", shape, SHAPES),
                ("motion", motion, MOTIONS),
                ("background", self.background, BACKGROUNDS),
            ):
                if word not in allowed:
                    raise ValueError(f"{name} is {word!r}; choose one of: {', '.join(allowed)}")
        if self.second and self.second.colour == self.colour:
            raise ValueError(f"both objects are {self.colour}; give two objects different colours")

    @property
    def things(self) -> tuple[Thing, ...]:
        """The objects, one or two, as they are named."""
        first = Thing(self.colour, self.shape, self.motion)
        return (first,) if self.second is None else (first, self.second)

    def __str__(self) -> str:
        return f"{' and '.join(map(str, self.things))} on a {self.background} background"


def parse(caption: str) -> Caption:
    """Read a caption or a user's prompt; case, spacing and a final full stop do not matter.

    Raises ValueError, with the unknown words and the grammar, for anything the grammar cannot say.
    """
    words = caption.lower().strip().removesuffix(".").split()
    if match := _PATTERN.fullmatch(" ".join(words)):
        *words, background = match.groups()
        first, second = Thing(*words[:3]), Thing(*words[3:])
        return Caption(*first, background, second if second.colour else None)
    unknown = list(dict.fromkeys(word for word in words if word not in _WORDS))
    reason = f"unknown words: {', '.join(unknown)}" if unknown else "known words, but not in the form of the grammar"
    raise ValueError(f"cannot read the prompt {caption!r} ({reason}).\n{GRAMMAR}")


def contrast(colour: str, other: str) -> float:
    """How far apart two colours of the palettes look, 0..442: their distance in RGB, its squares weighted by luma.

    Clips are only made where it is at least `MIN_CONTRAST`, between an object and the background (37 of 48 pairs) and
    between two objects (22 of 28). Left out on white: yellow; on gray: green, blue, purple, pink; on brown: red, blue,
    purple; on navy: blue; on beige: yellow, pink. Plain RGB would keep yellow on white and blue on navy.
    """
    both = ((COLOURS | BACKGROUNDS)[name] for name in (colour, other))
    return sqrt(3 * sum(weight * (a - b) ** 2 for weight, a, b in zip(LUMA, *both, strict=True)))


@cache
def _split() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(training, held out); the split follows the captions' own hashes, hence no generator and no order."""
    everything = [
        str(Caption(*words)) for words in product(COLOURS, SHAPES, MOTIONS, BACKGROUNDS)
        if contrast(words[0], words[-1]) >= MIN_CONTRAST
    ]  # fmt: skip
    held_out = _drawn(everything, HELD_OUT)
    return tuple(text for text in everything if text not in held_out), held_out


@cache
def _pair_split() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(training, held out) of two objects; a pair is held out in both orders, and listed in one."""
    colours = {pair for pair in permutations(COLOURS, 2) if contrast(*pair) >= MIN_CONTRAST}
    everything = [
        Caption(*first.things[0], first.background, second.things[0])
        for first, second in permutations(map(parse, _split()[0]), 2)
        if first.background == second.background and (first.colour, second.colour) in colours
    ]
    held_out = _drawn(map(str, everything), HELD_OUT_PAIRS)
    kept_apart = {frozenset(parse(text).things) | {parse(text).background} for text in held_out}
    training = [str(said) for said in everything if frozenset(said.things) | {said.background} not in kept_apart]
    return tuple(training), held_out


def _drawn(captions: Iterable[str], count: int) -> tuple[str, ...]:
    """Of the captions those `count` with the smallest hashes, by hash: any first so many are a fair sample."""
    return tuple(sorted(captions, key=lambda text: hashlib.sha256(text.encode()).digest())[:count])


def training_captions() -> list[str]:
    """The captions of one object that training may use."""
    return list(_split()[0])


def held_out_captions() -> list[str]:
    """The `HELD_OUT` captions of one object that training never uses; the split is fixed."""
    return list(_split()[1])


def training_pairs() -> list[str]:
    """The captions of two objects that training may use; each of the two is a training caption on its own, too."""
    return list(_pair_split()[0])


def held_out_pairs() -> list[str]:
    """The `HELD_OUT_PAIRS` captions of two objects that training never uses, in neither order; the split is fixed."""
    return list(_pair_split()[1])


def all_captions() -> list[str]:
    """Every caption of one object: training captions, then held-out ones."""
    return training_captions() + held_out_captions()
