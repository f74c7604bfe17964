"""How far what the caption does not name is still as in the whole video's opening. None of it is in VBench."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from arvid.evaluation.reader import REFERENCE, persistence

from .base import METRIC, Clip, Floats, mean
from .caption import OfGrammar, in_grammar, of_one_object

TRAITS = ("texture", "landmark", "marking", "size")


class Kept(OfGrammar):
    """Mean over frames of how far a trait is the opening's: 1 the same, 0 not at all.

    The opening is the first 9 pixel frames of the whole video, also for a part of it; they are left out of the mean.
    NaN where the trait is never seen after them.
    """

    trait: ClassVar[str]

    def measure(self, clip: Clip) -> float:
        return mean(clip.shared(kept)[:, TRAITS.index(self.trait)])


class KeptByOne(Kept):
    """A trait of the object; NaN for a caption of two, which the reader does not tell apart."""

    def applies(self, prompt: str | None) -> bool:
        return of_one_object(prompt)

    def measure(self, clip: Clip) -> float:
        two = in_grammar(clip.prompt) and not of_one_object(clip.prompt)
        return math.nan if two else super().measure(clip)


def kept(clip: Clip) -> Floats:
    """`arvid.evaluation.reader.persistence` of every trait, [T, 4]; NaN in the opening."""
    persisted = persistence(clip.reading, min(REFERENCE, len(clip)))
    kept_T4 = np.stack([getattr(persisted, trait) for trait in TRAITS], axis=-1)
    kept_T4[:REFERENCE] = np.nan
    return kept_T4


@METRIC.register("texture_kept")
@dataclass(frozen=True)
class TextureKept(Kept):
    """How far the background's gradient or stripes are those of the whole video's opening.

    Mean over frames of 1 - the largest difference of the texture's four strengths from their median in the first 9
    pixel frames, at least 0.
    """

    trait: ClassVar[str] = "texture"
    blind: ClassVar[str] = "The opening may have been wrong already, and a plain background has no texture to lose."


@METRIC.register("landmark_kept")
@dataclass(frozen=True)
class LandmarkKept(Kept):
    """How far the corners show the landmark, or none, as in the whole video's opening.

    Mean over frames of 1 - the largest difference of what the four corners show from their median in the first 9
    pixel frames, at least 0; corners behind the object do not count.
    """

    trait: ClassVar[str] = "landmark"
    blind: ClassVar[str] = "The opening may have been wrong already, and a corner behind the object is not seen."


@METRIC.register("marking_kept")
@dataclass(frozen=True)
class MarkingKept(KeptByOne):
    """How far the object's dot or band, or neither, is that of the whole video's opening.

    Mean over frames with an object of 1 - the largest difference of the marking's two strengths from their median in
    the first 9 pixel frames, at least 0.
    """

    trait: ClassVar[str] = "marking"
    blind: ClassVar[str] = "The opening may have been wrong already, and frames without an object do not count."


@METRIC.register("size_kept")
@dataclass(frozen=True)
class SizeKept(KeptByOne):
    """How near the object's size is to that of the whole video's opening.

    Mean over frames with an object of the smaller size (root of the area) over the larger; an object that grows and
    shrinks has the size it ought to have while between the extremes of its first 5 seconds.
    """

    trait: ClassVar[str] = "size"
    blind: ClassVar[str] = "The opening may have been wrong already, and frames without an object do not count."
