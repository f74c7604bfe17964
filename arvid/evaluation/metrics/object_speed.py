from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .base import METRIC, Clip, Metric
from .caption import NO_WORLD, in_grammar, of_one_object


@METRIC.register("object_speed")
@dataclass(frozen=True)
class ObjectSpeed(Metric):
    """How fast the object's centre moves, while it is intact, in shorter frame sides per second.

    Mean over pairs of neighbouring frames that both have an object (of plausible area, in one piece) whose areas differ
    by less than a quarter. A step faster than `fastest` is a jump no object makes, and is left out: the grammar's own
    motions stay below 0.8. NaN for fewer than `pairs` such pairs, and for a caption of two objects. VBench has none:
    its dynamic_degree takes broken objects for motion.
    """

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = math.inf
    better: ClassVar[str] = ""
    unit: ClassVar[str] = "sides/s"
    blind: ClassVar[str] = f"Frames without an object do not count, and a trembling outline moves too. {NO_WORLD}"
    steady: ClassVar[float] = 1.25

    fastest: float = 2.0
    pairs: int = 8

    def __post_init__(self) -> None:
        if not self.fastest > 0 or self.pairs < 1:
            raise ValueError(f"fastest={self.fastest}, pairs={self.pairs}: give a speed above 0 and at least 1 pair")

    def applies(self, prompt: str | None) -> bool:
        return of_one_object(prompt)

    def measure(self, clip: Clip) -> float:
        if in_grammar(clip.prompt) and not of_one_object(clip.prompt):
            return math.nan
        reading = clip.reading
        height, width = clip.frames.shape[1:3]
        sides_2 = np.array([width, height]) / min(height, width)
        speed_T = np.hypot(*(np.diff(reading.centre, axis=0) * sides_2).T) * clip.fps
        growth_T = abs(np.diff(np.log(reading.area)))
        intact_T = (growth_T < math.log(self.steady)) & (speed_T <= self.fastest)  # NaN, without an object, is neither
        return float(speed_T[intact_T].mean()) if intact_T.sum() >= self.pairs else math.nan
