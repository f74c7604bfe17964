"""Requests and pipelines that cannot be, refused before a network runs or weights are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from random_model import BLUE, RED

import arvid.pipeline
from arvid import Pipeline, PipelineConfig
from arvid.models.dit import CausalDiT
from arvid.models.vae import WanVAE
from arvid.pipeline import MOST_FRAMES
from arvid.samplers import Emit, FewStep


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network of the video may run."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a network ran before the input was checked")

    for network in (CausalDiT, WanVAE):
        monkeypatch.setattr(network, "forward", refuse)
    monkeypatch.setattr(CausalDiT, "prepare_text", refuse)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"seconds": 0}, ValueError, "seconds=0"),
    ({"seconds": -1.5}, ValueError, r"seconds=-1\.5"),
    ({"seconds": math.nan}, ValueError, "seconds=nan"),
    ({"seconds": math.inf}, ValueError, "seconds=inf"),
    ({"seconds": 1e12}, ValueError, f"at most {MOST_FRAMES}"),
    ({"seconds": "5"}, TypeError, "seconds='5' must be a number, got str"),
    ({"seconds": True}, TypeError, "seconds=True"),
    ({"seconds": 1, "frames": 2}, ValueError, "seconds=1 and frames=2 both set the length"),
    ({"frames": 0}, ValueError, "frames=0"),
    ({"frames": 2.0}, ValueError, r"frames=2\.0"),
    ({"frames": True}, ValueError, "frames=True"),
    ({"frames": np.float32(3)}, ValueError, "frames=np.float32"),
    ({"progress": 5}, TypeError, "progress=5: give a function"),
    ({"frames": 2**31}, ValueError, f"{2**31} latent frames: a video has at most {MOST_FRAMES}"),
    ({"height": 40}, ValueError, "height=40 must be a positive multiple of 16: use 32 or 48"),
    ({"width": 8}, ValueError, "width=8 must be a positive multiple of 16: use 16"),
    ({"height": 0}, ValueError, "height=0"),
    ({"width": -16}, ValueError, "width=-16"),
    ({"height": 32.0}, ValueError, r"height=32\.0"),
    ({"prompt": ""}, ValueError, "the prompt '' is empty"),
    ({"prompt": "."}, ValueError, r"the prompt '\.' is empty"),
    ({"prompt": []}, ValueError, "the list of prompts is empty"),
    ({"prompt": [RED, " "]}, ValueError, "the prompt ' ' is empty"),
    ({"prompt": [RED, 3]}, TypeError, "list of strings"),
    ({"prompt": None}, TypeError, r"list of strings \(a batch\), .* or a function .* \(one video\), got None"),
    ({"prompt": [(0, RED), BLUE]}, TypeError, "list of strings"),
    ({"prompt": [(0, RED), (True, BLUE)]}, TypeError, r"\(True, '.*'\) in a list is neither"),
    ({"prompt": [(0, RED), (1, BLUE, 2)]}, TypeError, "in a list is neither"),
    ({"prompt": [(1, RED), (2, BLUE)]}, ValueError, r"\[1.0, 2.0\] s: the first begins at 0"),
    ({"prompt": [(0, RED), (2, BLUE), (2, RED)]}, ValueError, "each later one after the one before"),
    ({"prompt": [(0, RED), (math.nan, BLUE)]}, ValueError, "each later one after"),
    ({"prompt": [(0, RED), (9, BLUE)], "frames": 9}, ValueError, "begins at 9 s, and no chunk of this video of 9"),
    ({"prompt": [(0, RED), (3.6, BLUE)], "frames": 8}, ValueError, r"begins at 3\.6 s, and no chunk"),  # the last: 3 s
    ({"prompt": [(0, RED), (1, " ")], "frames": 9}, ValueError, "the prompt ' ' is empty"),
    ({"prompt": [(0, RED), (1, BLUE)], "frames": 9, "seed": [1, 2]}, ValueError, "seed"),
    ({"on_change": "flush"}, ValueError, "event 'flush' needs a value for n"),
    ({"on_change": "flash"}, ValueError, "no event strategy is called 'flash'; did you mean 'flush'"),
    ({"prompt": "a red ball " * 9}, ValueError, "28 tokens.* reads 16"),
    ({"prompt": "a red zebra"}, ValueError, "does not know the words 'zebra'"),
    ({"prompt": "../../etc/passwd"}, ValueError, "does not know the words"),
    ({"prompt": "a red\0 ball"}, ValueError, "does not know the words"),
    ({"prompt": "🦊" * 1000}, ValueError, "does not know the words"),
    ({"seed": [1, 2]}, ValueError, "2 seeds for 1 rows"),
    ({"prompt": [RED, BLUE], "seed": [1]}, ValueError, "1 seeds for 2 rows"),
    ({"seed": True}, TypeError, "seed=True must be an int"),
    ({"seed": [False]}, TypeError, "seed=False must be an int"),
    ({"seed": 1.0}, TypeError, r"seed=1\.0"),
    ({"seed": 2**64}, ValueError, "seed="),
]


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(("request_", "error", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_requests_raise_before_anything_runs(
    pipe: Pipeline, request_: dict[str, Any], error: type[Exception], message: str
) -> None:
    for ask in (pipe, pipe.stream):  # a stream raises when it is asked for, not at its first piece
        with pytest.raises(error, match=message):
            ask(**{"prompt": RED, **request_})


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(("given_", "message"), [
    ({}, "give either text"),
    ({"text": torch.zeros(1, 16, 16), "prompt": RED}, "give either text"),
    ({"text": torch.zeros(16, 16)}, r"text has shape \(16, 16\)"),
    ({"text": torch.zeros(0, 16, 16)}, "text has shape"),
    ({"text": torch.full((1, 16, 16), torch.nan)}, "text has values that are not finite"),
    ({"prompt": RED, "height": 3, "width": 4}, "height=3 must be a positive multiple of 2: use 2 or 4"),
    ({"prompt": RED, "height": 2, "width": 4.0}, r"width=4\.0"),
    ({"prompt": RED, "frames": -1}, "frames=-1"),
    ({"prompt": [RED], "seed": [1, 2]}, "2 seeds for 1 rows"),
])  # fmt: skip
def test_bad_latents_raise_before_anything_runs(pipe: Pipeline, given_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe.latents(**given_)


def test_bad_pipelines_raise_before_weights_are_read(weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arvid.pipeline, "load", lambda *_: pytest.fail("weights were read"))
    load: Callable[..., Pipeline] = Pipeline.load
    with pytest.raises(ValueError, match="no preset is called 'flexx'"):
        load("flexx", model=weights)
    with pytest.raises(ValueError, match=r"sink=9 .* do not fit window=6"):
        load(PipelineConfig(cache={"name": "sink", "sink": 9}), model=weights)
    with pytest.raises(TypeError, match=r"give a preset's name or a PipelineConfig"):
        load({"cache": "full"}, model=weights)
    with pytest.raises(ValueError, match="device 'gpu' cannot be used here, 'cpu' always can: "):
        load(model=weights, device="gpu")
    with pytest.raises(ValueError, match="device 'meta' cannot be used"):
        load(model=weights, device="meta")
    with pytest.raises(FileNotFoundError, match=r"^\. is not a folder of arvid weights"):
        load(model="")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_cuda_is_refused(weights: Any) -> None:
    with pytest.raises(ValueError, match="device 'cuda' cannot be used here"):
        Pipeline.load(model=weights, device="cuda")


def test_a_dtype_is_floating_point(weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arvid.pipeline, "load", lambda *_: pytest.fail("weights were read"))
    load: Callable[..., Pipeline] = Pipeline.load
    for dtype in (None, "float32", torch.int32):
        with pytest.raises(TypeError, match="give a floating point type"):
            load(model=weights, dtype=dtype)


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("text", [[[1.0]], np.zeros((1, 2, 3)), torch.zeros(1, 2, 3, dtype=torch.int32)])
def test_embeddings_are_a_floating_point_tensor(pipe: Pipeline, text: Any) -> None:
    with pytest.raises(TypeError, match=r"text must be a floating point tensor \[B, L, D\], got"):
        pipe.latents(text=text)


def test_whole_numbers_may_be_numpys(pipe: Pipeline) -> None:
    one = np.int64(1)
    whole = pipe.latents(prompt=RED, frames=3, height=2, width=4)
    assert pipe.latents(prompt=RED, frames=3 * one, height=2 * one, width=4 * one).equal(whole)  # pyright: ignore


@pytest.mark.usefixtures("idle")
def test_the_refusal_of_a_far_too_long_video_is_short(pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match=rf"^seconds=1e\+300: a video has at most {MOST_FRAMES} latent frames$"):
        pipe(RED, 1e300)


@pytest.mark.parametrize(("emitted", "message"), [
    (lambda c: [], "stopped after 0 of 6"),
    (lambda c: [(c[0], 3)], "stopped after 3 of 6"),
    (lambda c: [(c[0], 1)], "emitted 1 frames"),
    (lambda c: [(c[1], 3)], "next is a chunk from frame 0"),
])  # fmt: skip
def test_a_sampler_that_leaves_frames_out_is_named(pipe: Pipeline, emitted: Any, message: str) -> None:
    @dataclass(frozen=True)
    class Lazy(FewStep):
        def rollout(self, denoiser: Any, noise: Any, chunks: Any, state: Any = None) -> Any:
            return (Emit(chunk, noise.initial(chunk)[:, :n], 0) for chunk, n in emitted(chunks))

    lazy = copy(pipe)
    lazy.config = copy(pipe.config)
    object.__setattr__(lazy.config, "sampler", Lazy())
    object.__setattr__(lazy.config, "chunk", 3)
    with pytest.raises(ValueError, match=rf"Lazy.*{message}"):
        lazy.latents(prompt=RED, frames=6)
