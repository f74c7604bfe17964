"""VBench's own dimensions (arXiv 2311.17982), run by the package `vbench` where the user has it and its weights.

Each is measured of a clip alone, written to a temporary .mp4 at its own size, with VBench's mode for any videos
(`custom_input`); a part of a clip is a video of its own here, with its own first frame.
"""

from __future__ import annotations

import json
import math
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from arvid.video import Video

from .base import METRIC, Clip, Share


@dataclass(frozen=True)
class VBenchDimension(Share):
    """A dimension of VBench, on `device`; `local` makes VBench load what it can from its own cache folder.

    VBench fetches weights it does not have when it starts.
    """

    dimension: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]] = ("vbench",)
    default: ClassVar[bool] = False  # it fetches weights and takes minutes

    device: str = "cuda"
    local: bool = False

    def measure(self, clip: Clip) -> float:
        try:
            vbench = import_module("vbench")
        except ImportError as error:
            raise RuntimeError(f"vbench_{self.dimension} needs VBench and its weights: pip install vbench, or leave "
                               f"this metric out ({error})") from error
        import torch

        if len(clip) < 2:
            return math.nan
        with TemporaryDirectory(prefix="arvid-vbench-") as folder, redirect_stdout(sys.stderr):
            even = not any(side % 2 for side in clip.frames.shape[1:3])
            video = Video(clip.frames, clip.fps).save(Path(folder) / "clip.mp4", scale=1 if even else 2)
            # The second argument is the file of VBench's own prompts, which this mode does not read.
            judge = vbench.VBench(torch.device(self.device), "", folder)
            judge.evaluate(videos_path=str(video), name="clip", prompt_list=[clip.prompt or ""], local=self.local,
                           dimension_list=[self.dimension], mode="custom_input")  # fmt: skip
            results = json.loads((Path(folder) / "clip_eval_results.json").read_text())
        return float(results[self.dimension][0])


@METRIC.register("vbench_subject_consistency")
@dataclass(frozen=True)
class VBenchSubject(VBenchDimension):
    """VBench's subject_consistency: DINO features of each frame against the first and the one before."""

    dimension: ClassVar[str] = "subject_consistency"
    blind: ClassVar[str] = "A frozen video is best."


@METRIC.register("vbench_background_consistency")
@dataclass(frozen=True)
class VBenchBackground(VBenchDimension):
    """VBench's background_consistency: CLIP features of each frame against the first and the one before."""

    dimension: ClassVar[str] = "background_consistency"
    blind: ClassVar[str] = "A frozen video is best."


@METRIC.register("vbench_temporal_flickering")
@dataclass(frozen=True)
class VBenchFlicker(VBenchDimension):
    """VBench's temporal_flickering: how little neighbouring frames differ, meant for videos of a still scene."""

    dimension: ClassVar[str] = "temporal_flickering"
    blind: ClassVar[str] = "It cannot tell flicker from motion, and a frozen video is best."


@METRIC.register("vbench_motion_smoothness")
@dataclass(frozen=True)
class VBenchSmoothness(VBenchDimension):
    """VBench's motion_smoothness: how well the network AMT guesses every second frame from its neighbours."""

    dimension: ClassVar[str] = "motion_smoothness"
    blind: ClassVar[str] = "A frozen video is best."


@METRIC.register("vbench_dynamic_degree")
@dataclass(frozen=True)
class VBenchDynamic(VBenchDimension):
    """VBench's dynamic_degree: whether the video moves, by RAFT's optical flow."""

    dimension: ClassVar[str] = "dynamic_degree"
    blind: ClassVar[str] = "It takes a dissolving object, flicker and a cut for motion."


@METRIC.register("vbench_aesthetic_quality")
@dataclass(frozen=True)
class VBenchAesthetic(VBenchDimension):
    """VBench's aesthetic_quality: the LAION predictor of how people like a picture, frame by frame."""

    dimension: ClassVar[str] = "aesthetic_quality"
    blind: ClassVar[str] = "It sees no motion and no prompt."


@METRIC.register("vbench_imaging_quality")
@dataclass(frozen=True)
class VBenchImaging(VBenchDimension):
    """VBench's imaging_quality: MUSIQ's score of distortions, frame by frame; FLEX's imaging drift is its change."""

    dimension: ClassVar[str] = "imaging_quality"
    blind: ClassVar[str] = "It sees no motion and no prompt."


@METRIC.register("vbench_overall_consistency")
@dataclass(frozen=True)
class VBenchOverall(VBenchDimension):
    """VBench's overall_consistency: how near ViCLIP's features of the video are to those of its prompt."""

    dimension: ClassVar[str] = "overall_consistency"
    blind: ClassVar[str] = "Single words of the prompt weigh little."

    def applies(self, prompt: str | None) -> bool:
        return prompt is not None
