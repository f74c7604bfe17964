"""How far a pipeline's videos show what their prompts say: figures over prompts, and a contact sheet to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from arvid.evaluation.reader import persistence, read, score
from arvid.video import Video

if TYPE_CHECKING:
    from arvid.pipeline import Pipeline


@dataclass(frozen=True)
class Report:
    """Shares over prompts, 0..1: names right, frames with an object (`presence`), frames with the right object on the
    right background (`good`), and how far unnamed traits of the last quarter are the first chunk's (`..._kept`)."""

    prompts: int
    latent_frames: int
    background: float
    colour: float
    shape: float
    motion: float
    presence: float
    good: float
    texture_kept: float
    landmark_kept: float
    marking_kept: float
    size_kept: float

    def table(self) -> str:
        """One line a figure."""
        return "\n".join(f"{k:15} {v:.3f}" if isinstance(v, float) else f"{k:15} {v}" for k, v in asdict(self).items())


def evaluate(
    pipe: Pipeline, prompts: Sequence[str], frames: int, seed: int = 0, batch: int = 10
) -> tuple[Report, list[Video]]:
    """Generate `frames` latent frames of each prompt, prompt i with seed `seed` + i, and read them."""
    videos: list[Video] = []
    for first in range(0, len(prompts), batch):
        rows = list(prompts[first : first + batch])
        made = pipe(rows, frames=frames, seed=[seed + first + i for i in range(len(rows))])
        assert isinstance(made, list)
        videos += made
    figures: dict[str, list[float]] = {}
    for prompt, video in zip(prompts, videos, strict=True):
        reading = read(video.frames)
        kept = asdict(persistence(reading))
        late = slice(len(reading) * 3 // 4, None)
        row = asdict(score(reading, prompt)) | {f"{k}_kept": _mean(v[late]) for k, v in kept.items()}
        for key, value in row.items():
            figures.setdefault(key, []).append(float(value))
    return Report(len(prompts), frames, **{key: _mean(np.array(values)) for key, values in figures.items()}), videos


def _mean(values: np.ndarray) -> float:
    """Mean of what could be seen; NaN where nothing could."""
    seen = values[~np.isnan(values)]
    return float(seen.mean()) if len(seen) else float("nan")


def sheet(videos: Sequence[Video], columns: int = 8, gap: int = 2) -> np.ndarray:
    """One row a video, `columns` frames evenly spaced in time: uint8 [H', W', 3]."""
    rows = [np.pad(v.sheet(columns, 1), ((0, gap), (0, 0), (0, 0)), constant_values=255) for v in videos]
    return np.concatenate(rows)
