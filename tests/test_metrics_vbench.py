"""VBench's dimensions, against a stand-in with the signatures and files of VBench's public source."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from arvid.evaluation.metrics import METRIC, Clip, default_metrics, measure

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
DIMENSIONS = [name.removeprefix("vbench_") for name in METRIC.names() if name.startswith("vbench_")]


class VBench:
    """The class of VBench 0.1.5: (device, full_info_dir, output_path), and a file of results for `custom_input`."""

    calls: list[dict[str, Any]]

    def __init__(self, device, full_info_dir, output_path):
        assert isinstance(device, torch.device)
        assert Path(output_path).is_dir()
        self.device, self.output_path = device, output_path

    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, local=False, read_frame=False,  # noqa: B006
                 mode="vbench_standard", **kwargs):  # fmt: skip
        assert mode == "custom_input" and dimension_list and not kwargs and not read_frame
        print("chatter")
        frames = iio.imread(videos_path)
        self.calls.append({"shape": frames.shape, "prompts": prompt_list, "device": self.device.type, "local": local,
                           "video": Path(videos_path)})  # fmt: skip
        one = [{"video_path": videos_path, "video_results": -1.0}]
        results = {dimension: [len(frames) / 100, one] for dimension in dimension_list}
        (Path(self.output_path) / f"{name}_eval_results.json").write_text(json.dumps(results))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    module = ModuleType("vbench")
    module.VBench = VBench  # pyright: ignore[reportAttributeAccessIssue]
    VBench.calls = []
    monkeypatch.setitem(sys.modules, "vbench", module)
    return VBench.calls


def test_vbenchs_dimensions_for_any_video_are_there():
    assert DIMENSIONS == [
        "aesthetic_quality", "background_consistency", "dynamic_degree", "imaging_quality", "motion_smoothness",
        "overall_consistency", "subject_consistency", "temporal_flickering",
    ]  # fmt: skip


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_a_dimension_is_run_on_the_clip_and_its_parts(dimension, calls, capsys):
    metric = METRIC.build({"name": f"vbench_{dimension}", "device": "cpu", "local": True})
    whole, curves = measure(Clip(FRAMES, 16.0, "a cat"), [0, 2, 5], {"m": metric})
    assert whole["m"] == 0.05
    assert curves["m"] == [0.02, 0.03]
    assert [call["shape"] for call in calls] == [(5, 32, 48, 3), (2, 32, 48, 3), (3, 32, 48, 3)]
    assert all((call["prompts"], call["device"], call["local"]) == (["a cat"], "cpu", True) for call in calls)
    assert not any(call["video"].parent.exists() for call in calls)
    assert capsys.readouterr().out == ""


def test_odd_sizes_and_single_frames(calls):
    metric = METRIC.build({"name": "vbench_imaging_quality", "device": "cpu"})
    assert metric.measure(Clip(FRAMES[:, :31], 16.0)) == 0.05
    assert calls[0]["shape"] == (5, 62, 96, 3)
    assert np.isnan(metric.measure(Clip(FRAMES[:1], 16.0)))


def test_it_is_measured_only_when_asked_for(calls):
    assert not any(name.startswith("vbench") for name in default_metrics(["a cat"]))


def test_a_prompt_is_wanted_where_vbench_compares_with_it():
    assert [name for name in DIMENSIONS if not METRIC.build(f"vbench_{name}").applies(None)] == ["overall_consistency"]


def test_without_vbench_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "vbench", None)
    with pytest.raises(RuntimeError, match="vbench_dynamic_degree needs VBench and its weights: pip install vbench"):
        METRIC.build("vbench_dynamic_degree").measure(Clip(FRAMES, 16.0))
