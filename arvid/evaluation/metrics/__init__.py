"""Numbers for a video: METRIC, all by name, and `measure`, for the whole of a clip and for its segments.

    clip = Clip(video.frames, video.fps, prompt)
    whole, curves = measure(clip, [0, 81, 165], default_metrics([prompt]))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib.util import find_spec
from itertools import pairwise

from .base import METRIC, Clip, Metric
from .caption import Background, Colour, Good, Motion, Presence, Shape
from .consistency import BackgroundConsistency, SubjectConsistency
from .flicker import Flicker
from .flow import DynamicDegree, Flow
from .imaging import Contrast, Saturation, Sharpness
from .kept import LandmarkKept, MarkingKept, SizeKept, TextureKept
from .object_speed import ObjectSpeed
from .repetition import Freeze, Loop
from .vbench import VBenchDimension

__all__ = [
    "METRIC", "Background", "BackgroundConsistency", "Clip", "Colour", "Contrast", "DynamicDegree", "Flicker", "Flow",
    "Freeze", "Good", "LandmarkKept", "Loop", "MarkingKept", "Metric", "Motion", "ObjectSpeed", "Presence",
    "Saturation", "Shape", "Sharpness", "SizeKept", "SubjectConsistency", "TextureKept", "VBenchDimension",
    "default_metrics", "measure",
]  # fmt: skip

ROUNDING = 1e-6
FIRST = ("good", "presence", "texture_kept", "landmark_kept", "object_speed", "motion")
"""What a reader of a report looks for; the others follow by name."""


def default_metrics(prompts: Sequence[str]) -> dict[str, Metric]:
    """All registered metrics, by name, that apply to every prompt and whose libraries are installed, with their own
    settings; not those that are only measured when asked for (`default`), nor those with settings that must be given.
    The ones that say most come first.

    Raises `TypeError` for a string, `ValueError` for no prompts.
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts must be a list of prompts, got the string {prompts!r}: give [{prompts!r}]")
    if not prompts:
        raise ValueError("no prompts, so it cannot be said which metrics apply to them; give at least one")
    known = METRIC.names()
    classes = {name: METRIC.get(name) for name in (*(name for name in FIRST if name in known), *known)}
    metrics = {name: METRIC.build(name) for name, cls in classes.items()
               if cls.default and _complete(cls) and all(map(find_spec, cls.libraries))}  # fmt: skip
    return {name: metric for name, metric in metrics.items() if all(map(metric.applies, prompts))}


def _complete(cls: type[Metric]) -> bool:
    """Whether every setting has a default."""
    assert is_dataclass(cls)
    return all(field.default is not MISSING or field.default_factory is not MISSING for field in fields(cls))


def measure(
    clip: Clip, edges: Sequence[int], metrics: Mapping[str, Metric]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Each metric of the whole clip, and of the segments edges[i] .. edges[i + 1] - 1, in pixel frames.

    Raises `ValueError` for edges that do not rise or leave the clip, and for a metric that leaves its own range.
    """
    if len(edges) < 2 or any(not a < b for a, b in pairwise(edges)) or edges[0] < 0 or edges[-1] > len(clip):
        raise ValueError(f"edges={list(edges)} of a clip of {len(clip)} frames: give at least two, rising, within "
                         f"0 .. {len(clip)}")
    parts = [clip.part(*ends) for ends in pairwise(edges)]
    whole = {name: _checked(name, metric, clip) for name, metric in metrics.items()}
    curves = {name: [_checked(name, metric, part) for part in parts] for name, metric in metrics.items()}
    return whole, curves


def _checked(name: str, metric: Metric, clip: Clip) -> float:
    value = float(metric.measure(clip))
    if math.isinf(value) or value < metric.low - ROUNDING or value > metric.high + ROUNDING:
        raise ValueError(f"metric {name!r} gave {value} for frames {clip.start} .. {clip.start + len(clip) - 1}, and "
                         f"its range is {metric.low:g} .. {metric.high:g}: correct its measure() or its range")
    return value
