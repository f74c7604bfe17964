"""From a request to a video: lengths, seeds, streams, memory, and values that are not finite."""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import BLUE, CARD, RED, random_parts

import arvid.pipeline
from arvid import Pipeline, PipelineConfig, Video
from arvid.cache import Recommit, Reset
from arvid.models.denoiser import CachedDenoiser
from arvid.models.vae import WanVAE
from arvid.pipeline import Progress
from arvid.samplers import FewStep

LONG = 7  # latent frames: three chunks of 2, then one of 1


def same(one: Video, other: Video) -> bool:
    return np.array_equal(one.frames, other.frames) and one.fps == other.fps


def near(one: Video, other: Video) -> bool:
    """The same but for rounding to 8 bits."""
    return bool((np.abs(one.frames.astype(int) - other.frames) <= 1).all()) and one.fps == other.fps


# One path: stream, call, batch


def test_a_video_is_the_pieces_of_its_stream(pipe: Pipeline) -> None:
    pieces = list(pipe.stream(RED, frames=LONG, seed=3))
    video = pipe(RED, frames=LONG, seed=3)
    assert [len(piece) for piece in pieces] == [5, 8, 8, 4]
    assert same(Video.concat(pieces), video)
    assert video.frames.shape == (25, 16, 32, 3)
    assert video.fps == CARD.fps


def test_the_seed_and_the_prompt_decide(pipe: Pipeline) -> None:
    video = pipe(RED, frames=3, seed=3)
    assert same(pipe(RED, frames=3, seed=3), video)
    assert not same(pipe(RED, frames=3, seed=4), video)
    assert not same(pipe(BLUE, frames=3, seed=3), video)
    assert same(pipe(RED, frames=3), pipe(RED, frames=3, seed=0))


# Prompts that change


def test_a_prompt_changes_at_the_first_chunk_that_starts_then(pipe: Pipeline) -> None:
    """Chunks of 2 latent frames at 8 fps and time stride 4: they start at 0, 1, 2, 3 s."""
    plain, changed = pipe(RED, frames=LONG), pipe([(0, RED), (1.5, BLUE)], frames=LONG)
    first = 5 + 8  # pixel frames of the first two chunks
    assert np.array_equal(changed.frames[:first], plain.frames[:first])
    assert not np.array_equal(changed.frames[first:], plain.frames[first:])
    assert same(changed, pipe([(0, RED), (2, BLUE)], frames=LONG))
    assert same(Video.concat(list(pipe.stream([(0, RED), (2, BLUE)], frames=LONG))), changed)
    assert same(pipe([(0, RED)], frames=LONG), plain)


def test_a_request_may_say_what_a_change_does(pipe: Pipeline) -> None:
    schedule = [(0, RED), (2, BLUE)]
    runs = {change: pipe(schedule, frames=LONG, on_change=change) for change in (None, "reset", "recommit")}
    assert len({video.frames.tobytes() for video in runs.values()}) == 3
    assert pipe.config.cache
    policy = replace(pipe.config.cache, on_change=Reset())
    resets = Pipeline(pipe.dit, pipe.config.replace(cache=policy), pipe.vae, pipe.text, pipe.card)
    assert same(resets(schedule, frames=LONG), runs["reset"])
    assert same(resets(schedule, frames=LONG, on_change=Recommit()), runs["recommit"])


# Batches


def test_rows_of_a_batch_are_the_single_videos(pipe: Pipeline) -> None:
    rows = pipe([RED, BLUE, RED], frames=5, seed=(7, 8, 9))
    singles = [pipe(prompt, frames=5, seed=seed) for prompt, seed in ((RED, 7), (BLUE, 8), (RED, 9))]
    assert all(near(row, single) for row, single in zip(rows, singles, strict=True))
    assert not near(rows[0], rows[2])


@pytest.mark.parametrize(("name", "tolerance"), [("pipe", 1e-4), ("pipe64", 1e-10)])
def test_rows_of_a_batch_are_the_single_latents(
    name: str, tolerance: float, request: pytest.FixtureRequest
) -> None:
    pipe: Pipeline = request.getfixturevalue(name)
    rows = pipe.latents(prompt=[RED, BLUE], frames=5, seed=[7, 8])
    for row, prompt, seed in zip(rows, (RED, BLUE), (7, 8), strict=True):
        torch.testing.assert_close(row[None], pipe.latents(prompt=prompt, frames=5, seed=seed), atol=tolerance, rtol=0)


def test_one_seed_is_the_same_noise_in_every_row(pipe: Pipeline) -> None:
    one, two, other = pipe.latents(prompt=[RED, RED, BLUE], frames=3, seed=5)
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)
    assert (one - other).abs().max() > 1e-3
    # What noise each row gets, seen where the network first sees it: the prompts differ, the noise does not.
    seen: list[torch.Tensor] = []
    handle = pipe.dit.patch_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pipe.latents(prompt=[RED, BLUE], frames=1, seed=5)
    handle.remove()
    assert seen[0][0].equal(seen[0][1])


def test_streaming_a_batch_gives_a_piece_a_row(pipe: Pipeline) -> None:
    pieces = list(pipe.stream([RED, BLUE], frames=3, seed=1))
    whole = pipe([RED, BLUE], frames=3, seed=1)
    assert [len(piece) for piece in pieces] == [2, 2]
    assert all(same(Video.concat(row), video) for row, video in zip(zip(*pieces, strict=True), whole, strict=True))
    (one,) = pipe([RED], frames=3, seed=1)
    assert same(one, pipe(RED, frames=3, seed=1))


@pytest.mark.parametrize(("name", "tolerance"), [("pipe", 1e-4), ("pipe64", 1e-10)])
def test_streamed_pixels_are_those_of_the_whole_decode(
    name: str, tolerance: float, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe: Pipeline = request.getfixturevalue(name)
    seen: list[torch.Tensor] = []
    from_tensor = Video.from_tensor
    monkeypatch.setattr(Video, "from_tensor", lambda pixels, fps: (seen.append(pixels), from_tensor(pixels, fps))[1])
    pipe(RED, frames=LONG, seed=2)
    assert pipe.vae
    with torch.no_grad():
        whole = pipe.vae.decode(pipe.latents(prompt=RED, frames=LONG, seed=2), clamp=False)[0]
    torch.testing.assert_close(torch.cat(seen, 1), whole, atol=tolerance, rtol=0)


def test_what_is_seen_first_does_not_depend_on_the_length(pipe: Pipeline) -> None:
    short, long = pipe.latents(prompt=RED, frames=4), pipe.latents(prompt=RED, frames=8)
    assert long[:, :4].equal(short)


def test_global_random_numbers_are_neither_used_nor_changed(pipe: Pipeline) -> None:
    videos = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (the global numbers are what this is about)
        before, numpy_before = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002
        videos.append(pipe(RED, frames=3))
        assert torch.get_rng_state().equal(before)
        assert str(np.random.get_state(legacy=False)) == str(numpy_before)  # noqa: NPY002
    assert same(*videos)


# Length, size, progress


@settings(max_examples=12)
@given(st.integers(1, 9))
def test_frames_are_exact(pipe: Pipeline, frames: int) -> None:
    pieces = list(pipe.stream(RED, frames=frames))
    assert sum(map(len, pieces)) == 1 + 4 * (frames - 1)
    assert len(pieces) == math.ceil(frames / 2)


@pytest.mark.parametrize(("seconds", "latent"), [(0.01, 2), (1, 2), (1.4, 2), (1.6, 4), (3, 6), (np.float32(2), 4)])
def test_seconds_round_to_whole_chunks(pipe: Pipeline, seconds: float, latent: int) -> None:
    assert len(pipe(RED, seconds)) == 1 + 4 * (latent - 1)  # a chunk is one second: 2 frames of 4 at 8 a second


def test_the_default_length_and_size_are_the_cards(pipe: Pipeline) -> None:
    assert pipe(RED).frames.shape == (1 + 4 * (CARD.train_horizon - 1), *CARD.size, 3)
    assert pipe.latents(prompt=RED).shape == (1, CARD.train_horizon, 4, 2, 4)
    assert pipe(RED, frames=1, height=32).frames.shape == (1, 32, 32, 3)
    assert pipe(RED, frames=1, width=16).frames.shape == (1, 16, 16, 3)
    assert pipe.latents(prompt=RED, frames=1, height=4, width=2).shape == (1, 1, 4, 4, 2)


@pytest.mark.parametrize("prompt", [RED, [RED, BLUE]])
def test_progress_counts_pixel_frames_up_to_the_total(pipe: Pipeline, prompt: Any) -> None:
    seen: list[Progress] = []
    pieces = pipe.stream(prompt, frames=LONG, progress=seen.append)
    assert not seen
    next(pieces)
    assert len(seen) == 1
    assert sum(1 for _ in pieces) == 3
    assert [p.done for p in seen] == [5, 13, 21, 25]
    assert {p.total for p in seen} == {25}
    assert all(a.seconds < b.seconds for a, b in pairwise(seen))
    assert seen[-1].eta == 0
    assert all(p.eta == pytest.approx((p.total - p.done) / p.fps) for p in seen)
    assert Progress(0, 9, 0.0).eta == math.inf


# Memory


def tensor_bytes() -> int:
    """Bytes of all tensors that are alive, wherever they are held."""
    gc.collect()
    storages = {t.untyped_storage() for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter)
                and t.layout == torch.strided}  # others have none
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


@pytest.mark.parametrize("cache", ["window", {"name": "sink", "window": 8, "sink": 2}])
def test_memory_does_not_grow_with_the_video(pipe: Pipeline, cache: Any) -> None:
    config = PipelineConfig(cache=cache, sampler=FewStep((1000,)))
    own = Pipeline.from_parts(pipe.dit, config, pipe.vae, pipe.text, CARD)
    used = {i: tensor_bytes() for i, _ in enumerate(own.stream(RED, frames=80), 1) if i in (10, 40)}
    assert used[10] == used[40]


def test_memory_of_the_full_cache_does_grow(pipe: Pipeline) -> None:  # so the measure above measures
    config = PipelineConfig(cache="full", sampler=FewStep((1000,)))
    own = Pipeline.from_parts(pipe.dit, config, pipe.vae, pipe.text, CARD)
    peaks = []
    for frames in (4, 40):
        pieces = own.stream(RED, frames=frames)
        next(pieces)
        peaks.append(tensor_bytes())
        pieces.close()
    assert peaks[1] > peaks[0] + 10_000


@pytest.mark.parametrize("prompt", [RED, [RED, BLUE]])
def test_closing_a_stream_frees_its_store(pipe: Pipeline, prompt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = []

    class Watched(CachedDenoiser):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            stores.append(weakref.ref(self.store))

    monkeypatch.setattr(arvid.pipeline, "CachedDenoiser", Watched)
    gc.disable()  # at once, not at the next collection
    try:
        pieces = pipe.stream(prompt, frames=LONG)
        next(pieces)
        assert stores[0]() is not None
        pieces.close()
        assert stores[0]() is None
        assert list(pieces) == []
    finally:
        gc.enable()


# Values that are not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_vae_that_fails_stops_before_its_chunk(pipe: Pipeline, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, calls = WanVAE.decode, 0

    def failing(self: WanVAE, latents: torch.Tensor, clamp: bool = True, **state: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        pixels = decode(self, latents, False, **state)
        if calls == 3:
            pixels[0, 0, -1, 0, 0] = value
        return pixels.clamp(-1, 1) if clamp else pixels

    monkeypatch.setattr(WanVAE, "decode", failing)
    pieces = pipe.stream(RED, frames=LONG)
    assert [len(next(pieces)), len(next(pieces))] == [5, 8]
    with pytest.raises(FloatingPointError, match=r"the pixels of chunk 2 \(latent frames 4\.\.5\)"):
        next(pieces)


def test_a_transformer_that_fails_stops_before_its_chunk() -> None:
    parts = random_parts()
    runs = len(CARD.steps) + 1
    state = {"calls": 0}

    def poison(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
        state["calls"] += 1
        return out.fill_(math.inf) if state["calls"] == runs + len(CARD.steps) else out  # chunk 1, its last step

    parts.dit.register_forward_hook(poison)
    own = Pipeline.from_parts(parts.dit, None, parts.vae, parts.text, CARD)
    with pytest.raises(FloatingPointError, match=r"the latents of chunk 1 \(latent frames 2\.\.3\)"):
        own(RED, frames=LONG)
    state["calls"] = 0
    with pytest.raises(FloatingPointError, match="the latents of chunk 1"):
        own.latents(prompt=RED, frames=LONG)


# Parts


def test_a_transformer_alone_makes_latents() -> None:
    dit = random_parts().dit
    config = PipelineConfig(cache={"name": "window", "window": 6}, sampler=FewStep((1000, 500), 3.0, 0.0), chunk=2)
    bare = Pipeline.from_parts(dit, config)
    text = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    latents = bare.latents(text=text, frames=LONG, height=2, width=4, seed=1)
    assert latents.shape == (2, LONG, 4, 2, 4)
    assert latents.equal(Pipeline.from_parts(dit, None, card=CARD).latents(text=text, frames=LONG, seed=1))
    assert not latents.requires_grad
    with pytest.raises(ValueError, match="a video needs vae, text, card, which this pipeline lacks"):
        bare(RED, frames=2)
    with pytest.raises(ValueError, match="a prompt needs a text encoder"):
        bare.latents(prompt=RED, frames=2, height=2, width=4)
    with pytest.raises(ValueError, match="frames is None, which means the card's"):
        bare.latents(text=text, height=2, width=4)
    with pytest.raises(ValueError, match="None means the card's, and there is no card"):
        bare.latents(text=text, frames=2)
    with pytest.raises(ValueError, match="cache, sampler, chunk: "):
        Pipeline.from_parts(dit)


def test_text_and_prompt_are_the_same_thing(pipe: Pipeline) -> None:
    assert pipe.text
    text = pipe.text.encode([RED])
    assert pipe.latents(text=text, frames=3).equal(pipe.latents(prompt=RED, frames=3))


def test_a_window_of_the_whole_video_equals_the_full_cache(pipe: Pipeline) -> None:
    caches = ({"name": "window", "window": LONG + 1}, "full")
    made = [Pipeline.from_parts(pipe.dit, PipelineConfig(cache=c), pipe.vae, pipe.text, CARD) for c in caches]
    one, other = (p.latents(prompt=RED, frames=LONG) for p in made)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert not pipe.latents(prompt=RED, frames=12).equal(made[1].latents(prompt=RED, frames=12))


def test_the_card_decides_the_sampling() -> None:
    parts = random_parts()
    other = replace(CARD, steps=(1000,), chunk=3, window=9)
    one, two = (Pipeline.from_parts(parts.dit, None, parts.vae, parts.text, card) for card in (CARD, other))
    assert len(next(two.stream(RED, frames=6))) == 9
    assert not one.latents(prompt=RED, frames=6).equal(two.latents(prompt=RED, frames=6))
