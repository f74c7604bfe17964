"""The words of the bundled model's captions: palette, grammar, parsing, and the held-out split.

    a {colour} {shape} {motion} on a {background} background

Always "a", also before "orange". Colours are RGB in 0..255.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import dist

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
MIN_CONTRAST = 140.0
HELD_OUT = 50

GRAMMAR = "\n".join(
    (
        'A prompt reads "a COLOUR SHAPE MOTION on a BACKGROUND background":',
        "  COLOUR      " + ", ".join(COLOURS),
        "  SHAPE       " + ", ".join(SHAPES),
        "  MOTION      " + ", ".join(MOTIONS),
        "  BACKGROUND  " + ", ".join(BACKGROUNDS),
    )
)

_PATTERN = re.compile(
    "a ({}) ({}) ({}) on a ({}) background".format(*map("|".join, (COLOURS, SHAPES, MOTIONS, BACKGROUNDS)))
)
_WORDS = {
    word for part in (["a", "on", "background"], COLOURS, SHAPES, MOTIONS, BACKGROUNDS) for text in part
    for word in text.split()
}  # fmt: skip


@dataclass(frozen=True)
class Caption:
    """What a caption says, each part one of the words of the grammar; `str` gives the caption itself."""

    colour: str
    shape: str
    motion: str
    background: str

    def __post_init__(self) -> None:
        for name, allowed in (
            ("colour", COLOURS),
            ("shape", SHAPES),
            ("motion", MOTIONS),
            ("background", BACKGROUNDS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of: {', '.join(allowed)}")

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape} {self.motion} on a {self.background} background"


def parse(caption: str) -> Caption:
    """Read a caption or a user's prompt; case, spacing and a final full stop do not matter.

    Raises ValueError, with the unknown words and the grammar, for anything the grammar cannot say.
    """
    words = caption.lower().strip().removesuffix(".").split()
    if match := _PATTERN.fullmatch(" ".join(words)):
        return Caption(*match.groups())
    unknown = list(dict.fromkeys(word for word in words if word not in _WORDS))
    reason = f"unknown words: {', '.join(unknown)}" if unknown else "known words, but not in the form of the grammar"
    raise ValueError(f"cannot read the prompt {caption!r} ({reason}).\n{GRAMMAR}")


def contrast(colour: str, background: str) -> float:
    """Distance in RGB between an object's colour and a background's, 0..441.

    Clips are only made where it is at least `MIN_CONTRAST`: 41 of 48 pairs. Below that a squared error hardly sees
    the object. Left out: purple, pink and green on gray; red and green on brown; pink on white and beige.
    """
    return dist(COLOURS[colour], BACKGROUNDS[background])


@cache
def _split() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(training, held out); the split follows the captions' own hashes, hence no generator and no order."""
    everything = [
        str(Caption(colour, shape, motion, background))
        for colour, shape, motion, background in product(COLOURS, SHAPES, MOTIONS, BACKGROUNDS)
        if contrast(colour, background) >= MIN_CONTRAST
    ]
    held_out = set(sorted(everything, key=lambda text: hashlib.sha256(text.encode()).digest())[:HELD_OUT])
    return (
        tuple(text for text in everything if text not in held_out),
        tuple(text for text in everything if text in held_out),
    )


def training_captions() -> list[str]:
    """The 565 captions that training may use."""
    return list(_split()[0])


def held_out_captions() -> list[str]:
    """The `HELD_OUT` captions that training never uses; the split is fixed."""
    return list(_split()[1])


def all_captions() -> list[str]:
    """Every caption with enough contrast to be seen: training captions, then held-out ones."""
    return training_captions() + held_out_captions()
