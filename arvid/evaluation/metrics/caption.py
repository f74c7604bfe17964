"""What the pixel reader says of a video of the bundled grammar, held against its caption. None of it is in VBench."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from arvid.evaluation.motion import LEAST_FRAMES
from arvid.evaluation.reader import Score, score
from arvid.training.clips import parse

from .base import METRIC, Clip, Share

NO_WORLD = "It knows the bundled model's shapes, colours and backgrounds only."


def in_grammar(prompt: str | None) -> bool:
    """Whether a prompt is a caption of the bundled grammar, whose videos the reader can read."""
    try:
        parse(prompt or "")
    except ValueError:
        return False
    return True


def of_one_object(prompt: str | None) -> bool:
    """Whether a prompt is a caption of the bundled grammar that names one object."""
    return in_grammar(prompt) and parse(prompt or "").second is None


class OfGrammar(Share):
    """A metric of videos whose prompts are captions of the bundled grammar."""

    def applies(self, prompt: str | None) -> bool:
        return in_grammar(prompt)


class OfOneObject(Share):
    """A metric of videos whose prompts are captions of one object: of two, the reader cannot say it."""

    def applies(self, prompt: str | None) -> bool:
        return of_one_object(prompt)


def scored(clip: Clip) -> Score:
    """The clip against its caption. Raises `ValueError` where it has none of the bundled grammar."""
    if clip.prompt is None:
        raise ValueError("the clip has no prompt to hold it against: Clip(frames, fps, prompt)")
    return score(clip.reading, clip.prompt)


@METRIC.register("background")
@dataclass(frozen=True)
class Background(OfGrammar):
    """Whether the background is the caption's: 1 or 0.

    The background's colour is named in every frame; the commonest name counts.
    """

    blind: ClassVar[str] = f"A wrong background in less than half of the frames does not count. {NO_WORLD}"

    def measure(self, clip: Clip) -> float:
        return float(scored(clip).background)


@METRIC.register("colour")
@dataclass(frozen=True)
class Colour(OfGrammar):
    """Whether the object's colour is the caption's: 1 or 0.

    The commonest name of the frames with an object counts; 0 where there is none. Two objects are right where there is
    a piece of each one's colour in more than half of the frames.
    """

    blind: ClassVar[str] = f"One frame with an object is enough to be right. {NO_WORLD}"

    def measure(self, clip: Clip) -> float:
        return float(scored(clip).colour)


@METRIC.register("shape")
@dataclass(frozen=True)
class Shape(OfOneObject):
    """Whether the object's shape is the caption's: 1 or 0.

    The commonest of ball, square and triangle in the frames with an object counts; 0 where there is none. NaN for a
    caption of two objects.
    """

    blind: ClassVar[str] = f"The nearest of three shapes counts, however unlike it a blob is. {NO_WORLD}"

    def measure(self, clip: Clip) -> float:
        right = scored(clip).shape
        return math.nan if right is None else float(right)


@METRIC.register("motion")
@dataclass(frozen=True)
class Motion(OfOneObject):
    """Whether the object's motion is the caption's: 1 or 0.

    The track of the whole piece gets one of five names, or none (`arvid.evaluation.motion.classify`). NaN for a piece
    of fewer than 8 frames, and for a caption of two objects.
    """

    blind: ClassVar[str] = f"In less than about 1.5 s a bounce and a circle look alike. {NO_WORLD}"

    def measure(self, clip: Clip) -> float:
        right = scored(clip).motion
        return math.nan if right is None or len(clip) < LEAST_FRAMES else float(right)


@METRIC.register("presence")
@dataclass(frozen=True)
class Presence(OfGrammar):
    """Share of frames with an object: in one piece, of plausible area, of one of the grammar's colours.

    Where the caption names two, of frames with pieces of two of these colours, which may touch.
    """

    blind: ClassVar[str] = f"It does not ask whether it is the right object. {NO_WORLD}"

    def measure(self, clip: Clip) -> float:
        return scored(clip).presence


@METRIC.register("good")
@dataclass(frozen=True)
class Good(OfGrammar):
    """Share of frames with an object of the right colour on the right background.

    Where the caption names two, of frames with a piece of each one's colour.
    """

    blind: ClassVar[str] = f"It asks neither for the shape nor for motion. {NO_WORLD}"

    def measure(self, clip: Clip) -> float:
        return scored(clip).good
