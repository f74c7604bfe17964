"""The planner: its operations are those of real rollouts, its bytes those of real stores, and both agree with
arithmetic that others published."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from command import Ran, ran
from random_model import CARD as SMALL
from random_model import random_parts
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import arvid.plan
from arvid import Pipeline, PipelineConfig
from arvid.cache import Chunk, Full, Kind, Pass, Ref
from arvid.costs import Flops, Networks, alive, text_parameters
from arvid.models.denoiser import CachedDenoiser
from arvid.models.dit import CausalDiT
from arvid.models.specs import UMT5_XXL, DiTSpec, VAESpec, card
from arvid.models.text import build_umt5
from arvid.models.vae_stream import DecodeStream
from arvid.plan import Plan, plan
from arvid.samplers import Emit, Sampler

WAN, LARGE = card("wan2.1-t2v-1.3b"), card("wan2.1-t2v-14b")
# The same DiT around a small VAE, for tests that decode nothing.
LIGHT = replace(WAN, vae=VAESpec(4, 16, (1, 1, 1, 1), 1, (False, True, True), (0.0,) * 16, (1.0,) * 16))
TERA, GIGA = 1e12, 1e9


def config(cache: Any, **others: Any) -> PipelineConfig:
    return PipelineConfig(cache=cache, **others)


def window(frames: int, **others: Any) -> dict[str, Any]:
    return {"name": "window", "window": frames, **others}


# Arithmetic of Wan2.1 at 832x480 in bfloat16, worked out by hand and counted over other implementations: L = 30
# layers, d = 1536, ffn = 8960 (14B: 40, 5120, 13824), 1560 tokens a latent frame, chunks of 3, FLOP = 2 x MAC.


@pytest.fixture(scope="module")
def networks() -> Networks:
    return Networks(WAN, (60, 104), 1, torch.bfloat16)


@pytest.mark.parametrize(("seen", "attention", "total"), [
    (3, 4.04, 16.18), (9, 12.11, 24.26), (12, 16.15, 28.30), (21, 28.26, 40.41)
])  # fmt: skip
def test_a_pass_of_the_1_3b_model(networks: Networks, seen: int, attention: float, total: float) -> None:
    found = networks.pass_flops(3, seen)
    parts = found.linear, found.self_attention, found.cross_attention, found.total
    assert [part / TERA for part in parts] == pytest.approx([11.70, attention, 0.44, total], rel=0.01)


def test_one_frame_at_a_time(networks: Networks) -> None:
    assert 5 * networks.pass_flops(1, 12).total / TERA == pytest.approx(47.1, rel=0.01)


def test_a_window_that_grows_over_81_pixel_frames() -> None:
    found = plan(config("full"), WAN, frames=21)
    assert (found.pixel_frames, found.chunks, found.passes, found.tokens, found.steady) == (81, 7, 35, 1560, False)
    assert found.video.dit / TERA == pytest.approx(990.1, rel=0.01)
    assert found.video.decode / TERA == pytest.approx(275.4, rel=0.01)
    assert found.first.flops.decode / TERA == pytest.approx(4.352 + 2 * 13.550, rel=0.01)
    assert found.last.flops.dit / TERA == pytest.approx(202.0, rel=0.01)
    assert found.last.flops.decode / TERA == pytest.approx(40.65, rel=0.01)
    ceilings = [found.fps(790, decode=decode, video=video) for video in (True, False) for decode in (False, True)]
    assert ceilings == pytest.approx([64.6, 50.6, 46.9, 39.1], rel=0.01)
    assert found.text_encoder / TERA == pytest.approx(4.84, rel=0.01)
    # Keys and values of 512 tokens, and the embedding of the text before them: 2 x 512 x (4096 x 1536 + 1536^2).
    assert found.text_kv / TERA == pytest.approx(0.145 + 0.0088, rel=0.01)
    m = found.memory
    assert [size / GIGA for size in (m.dit, m.vae, m.text_encoder, m.kv, m.text_kv, m.vae_cache)] == pytest.approx(
        [2.84, 0.254, 11.36, 6.04, 0.094, 1.889], rel=0.01)  # fmt: skip
    assert (m.dit // 2, m.vae // 2, m.text_encoder // 2) == (1_418_996_800, 126_892_531, 5_680_910_336)


def test_a_steady_window() -> None:
    found = plan(config(window(12)), WAN, frames=18)
    assert found.steady
    assert found.largest == found.last
    assert found.last.flops.dit / TERA == pytest.approx(141.5, rel=0.01)
    assert [found.fps(790, decode=False), found.fps(790)] == pytest.approx([67.0, 52.1], rel=0.01)
    assert found.memory.kv / GIGA == pytest.approx(3.45, rel=0.01)


def test_the_14b_model() -> None:
    found = plan(config(window(6)), LARGE, seconds=60)
    assert found.frames == 240
    assert found.last.flops.dit / TERA == pytest.approx(748.7, rel=0.01)
    assert [found.fps(790, decode=False), found.fps(790)] == pytest.approx([12.7, 12.0], rel=0.01)
    assert found.memory.dit == 2 * 14_288_491_584
    assert found.memory.kv / GIGA == pytest.approx(6 * 1.278, rel=0.01)


def test_parameters_of_the_text_encoder() -> None:
    with torch.device("meta"):
        assert text_parameters(UMT5_XXL) == sum(p.numel() for p in build_umt5(UMT5_XXL).parameters())


# Against real rollouts


@dataclass(frozen=True)
class Joint(Sampler):
    """Pairs of chunks in two lanes: denoised together, then each by itself, then committed; lane 1 does less."""

    lanes: ClassVar[int] = 2

    def in_flight(self, chunk: int) -> int:
        return 2 * chunk

    def rollout(self, denoiser: Any, noise: Any, chunks: Sequence[Chunk], state: Any = None) -> Iterator[Emit]:
        for at in range(0, len(chunks), 2):
            pair = [replace(chunk, sigma=1.0) for chunk in chunks[at : at + 2]]
            x = torch.cat([noise.initial(chunk) for chunk in pair], 1)
            for _ in range(3):
                denoiser(x, tuple(pair))
            for chunk in pair:
                own = noise.initial(chunk)
                for lane, steps in ((0, 2), (1, 1)):
                    for _ in range(steps):
                        denoiser(own, (replace(chunk, sigma=0.5),), lane=lane)
                    denoiser.commit(own, (replace(chunk, sigma=0.5),), lane=lane)
                yield Emit(chunk, own, None)


@dataclass(frozen=True)
class AloneOnCommit(Full):
    """A commit sees no history."""

    def select(self, held: Sequence[Ref], new: Pass) -> Sequence[Ref]:
        return held if new.kind is Kind.DENOISE else []

    def keep(self, held: Sequence[Ref], new: Pass) -> set[int]:
        return {ref.frame for ref in held}


FLOAT, HALF = torch.float32, torch.bfloat16
METHODS = {
    "window": (PipelineConfig(), 11, 1, HALF),
    "full, rows": (config("full"), 9, 2, FLOAT),
    "sinks at new times": (config({"name": "sink", "window": 6, "sink": 2}, time="relative"), 12, 1, HALF),
    "sinks not on commit": (config({"name": "sink", "window": 6, "sink": 2, "sink_on_commit": False}), 12, 1, FLOAT),
    "rolling": (config("rolling"), 14, 1, FLOAT),
    "participative": (
        config({"name": "participative", "window": 8, "sink": 2, "recent": 3, "budget": 7}, time="sink_adjacent"),
        20, 1, FLOAT,
    ),
    "codec": (config(window(6, codec="int8")), 9, 1, HALF),
    "codec of sinks": (config({"name": "sink", "sink": 2, "codec": "int8", "sink_codec": "bf16"}), 11, 1, FLOAT),
    "S that grows": (config("window", rotary={"name": "pi", "scale": "current"}), 12, 1, FLOAT),
    "a commit at the level of the step": (config(AloneOnCommit(), sampler=Joint()), 6, 1, FLOAT),
    "one frame": (config("window"), 1, 1, FLOAT),
    "lanes": (config(window(8), sampler=Joint(), time="relative"), 9, 1, FLOAT),
}  # fmt: skip


@pytest.fixture(scope="module")
def small() -> Plan:
    return plan(None, SMALL, frames=8)


@pytest.fixture(scope="module")
def parts() -> Any:
    """Float64 networks: PyTorch counts no convolution that oneDNN runs."""
    made = random_parts()
    return made._replace(dit=made.dit.double(), vae=made.vae.double())


def operations(run: Callable[[], object]) -> int:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def embeddings(rows: int, dtype: torch.dtype) -> Tensor:
    return torch.ones(rows, SMALL.dit.text_length, SMALL.dit.text_dim, dtype=dtype)


class Watched(CachedDenoiser):
    """Notes, after every pass, the bytes of the store without latents, and those of the latents."""

    made: ClassVar[list[Watched]] = []

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self.sizes: list[tuple[int, int]] = []
        self.made.append(self)

    def _run(self, kind: Any, x: Tensor, chunks: Any, lane: int) -> Tensor:
        x0, books = super()._run(kind, x, chunks, lane), [self.store.book(lane) for lane in range(2)]
        held = sum(latent.nbytes for book in books for latent in book.latents.values())
        self.sizes.append((self.store.live_bytes - held, held + x.nbytes))
        return x0


@pytest.mark.parametrize("method", METHODS)
def test_operations_and_bytes_are_those_of_a_real_rollout(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arvid.pipeline.CachedDenoiser", Watched)
    chosen, frames, rows, dtype = METHODS[method]
    pipe = Pipeline.from_parts(random_parts().dit.to(dtype), chosen, card=SMALL)
    text = embeddings(rows, dtype)
    rollout = operations(lambda: pipe.latents(text=text, frames=frames))
    denoiser = Watched.made.pop()
    kv, latents = (max(size) for size in zip(*denoiser.sizes, strict=True))
    found = plan(chosen, SMALL, frames=frames, batch=rows, dtype="fp32" if dtype is torch.float32 else "bf16")
    assert found.video.dit + found.text_kv == rollout
    assert found.passes == len(denoiser.sizes)
    assert (found.memory.kv, found.memory.latents) == (kv, latents)
    assert found.memory.kv_pages == sum(denoiser.store.pages(lane) for lane in range(2))


def test_a_chunk_is_its_passes_and_its_decoding(small: Plan, parts: Any) -> None:
    pipe, text = Pipeline.from_parts(parts.dit, card=SMALL), embeddings(1, torch.float64)
    one, eight, nine = (operations(partial(pipe.latents, text=text, frames=frames)) for frames in (2, 8, 9))
    assert small.first.flops.dit == one - small.text_kv
    odd = plan(None, SMALL, frames=9)  # the last chunk has one frame
    assert odd.largest.flops.dit == odd.last.flops.dit == small.last.flops.dit
    assert odd.video.dit - small.video.dit == nine - eight
    assert (odd.steady, odd.chunks, odd.pixel_frames) == (True, 5, 33)
    for chunk in (odd.first, odd.last):
        passes = sum((cost.flops for cost in chunk.passes), Flops())
        assert (passes.dit, passes.decode) == (chunk.flops.dit, 0)
        assert [cost.kind for cost in chunk.passes] == ["denoise", "denoise", "commit"]
    assert {(cost.in_flight, cost.visible) for cost in odd.last.passes} == {(2, 6)}
    stream, latents = DecodeStream(parts.vae), torch.zeros(1, 9, 4, 2, 4, dtype=torch.float64)
    pieces = [operations(partial(stream.push, piece)) for piece in latents.split(2, 1)]
    assert (odd.first.flops.decode, odd.last.flops.decode, odd.video.decode) == (pieces[0], pieces[3], sum(pieces))


def test_operations_of_the_text_encoder(parts: Any) -> None:
    ids = torch.ones(3, SMALL.dit.text_length, dtype=torch.long)
    found = plan(None, SMALL, frames=1, batch=3)
    assert found.text_encoder == operations(lambda: parts.text(ids, ids))


def test_bytes_of_the_other_networks(parts: Any) -> None:
    found = plan(None, SMALL, frames=2, dtype="fp16").memory
    assert found.vae == sum(2 * p.numel() for p in parts.vae.parameters())
    assert found.text_encoder == sum(2 * p.numel() for p in parts.text.parameters())
    stream = DecodeStream(parts.vae)
    for _ in range(2):
        stream.push(torch.zeros(1, 2, 4, 2, 4, dtype=torch.float64))
    assert found.vae_cache == sum(x.nbytes for x in stream._state.frames.values()) // 4
    prepared = parts.dit.prepare_text(embeddings(1, torch.float64))
    assert found.text_kv == sum(x.nbytes for pair in prepared.layers for x in pair) // 4


# Memory


def test_full_grows_by_a_frame_and_a_window_does_not() -> None:
    def kv(cache: Any, frames: int) -> int:
        return plan(config(cache), SMALL, frames=frames).memory.kv

    frame = 2 * 2 * 16 * 2 * 2  # keys and values, layers, width, tokens, bytes
    assert [kv("full", frames) for frames in (8, 24)] == [8 * frame, 24 * frame]
    assert [kv(window(6), frames) for frames in (4, 100)] == [4 * frame, 6 * frame]


def test_an_int8_store_is_about_half() -> None:
    found = plan(config(window(3, codec="int8")), LIGHT, frames=3, size=(96, 160)).memory.kv
    exact = 2 * 30 * 1536 * 60 * 2 * 3
    assert 0.5 < found / exact < 0.54


def test_dtypes_rows_and_what_the_peak_is_of(small: Plan) -> None:
    half, whole, double = small, plan(None, SMALL, frames=8, dtype="fp32"), plan(None, SMALL, frames=8, batch=2)
    for name, size in vars(half.memory).items():
        if name == "kv_pages":
            continue
        assert size > 0
        if "activations" not in name:  # some are float32 whatever the dtype
            assert vars(whole.memory)[name] == 2 * size
        weights = name in ("dit", "vae", "text_encoder")
        assert vars(double.memory)[name] == size if weights else vars(double.memory)[name] > 1.9 * size
    assert double.video == half.video + half.video == whole.video + whole.video
    assert double.fps() == pytest.approx(half.fps())
    m = replace(half.memory, dit=1, vae=2, text_encoder=4, kv=8, text_kv=16, latents=32, vae_cache=64)
    assert replace(m, activations=128, vae_activations=256).peak == 127 + 256
    assert replace(m, activations=512, vae_activations=256).peak == 127 + 512


def test_alive_follows_storages_not_tensors() -> None:
    held = [torch.empty(100, device="meta")]  # 400 bytes that were there before

    def chain() -> None:
        x = held[0] + 1  # 400
        y = x.view(10, 10).t()[:5] * 2  # and 200: the views are no more
        del x
        y.add_(1)
        torch.empty(25, device="meta")  # gone at once: 200 + 100
        torch.cat((y.flatten(), y.flatten()))  # 200, two copies of 200, 400

    assert alive(chain) == 1000
    assert alive(lambda: held.append(held.pop() + 1)) == 400  # the old one is freed when the new one is there
    assert alive(lambda: held[0].add_(1)) == 0
    assert alive(lambda: torch.empty(1 << 20)) == 0  # on the host


def handed_out(run: Callable[[], object]) -> int:
    """The most bytes that the host's allocator had handed out at a time for `run`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    profiler: Any = record.profiler
    sizes = (event.nbytes() for event in profiler.kineto_results.events() if event.name() == "[memory]")
    return max(accumulate(sizes))


@pytest.mark.parametrize(("cache", "time"), [
    (window(6), "absolute"), (window(6, codec="int8"), "absolute"), (window(6), "relative")
])  # fmt: skip
def test_activations_are_what_an_allocator_hands_out(cache: Any, time: str) -> None:
    spec = DiTSpec(48, 320, 4, 3, 4, 4, text_dim=16, text_length=16, freq_dim=16)
    own, chosen = replace(SMALL, dit=spec), config(cache, time=time).resolve(SMALL)
    assert chosen.cache and chosen.time and chosen.rotary
    dit = CausalDiT(spec).requires_grad_(False)
    denoiser = CachedDenoiser(
        dit, dit.prepare_text(torch.zeros(1, 16, 16)), policy=chosen.cache, time=chosen.time, rotary=chosen.rotary,
        batch=1, size=(32, 32), pages=6,
    )  # fmt: skip
    x = torch.zeros(1, 2, 4, 32, 32)
    chunks = [(Chunk(2 * index, 2, 1.0, index),) for index in range(3)]
    for chunk in chunks[:2]:
        denoiser(x, chunk)
        denoiser.commit(x, chunk)
    denoiser(x, chunk := chunks[2])
    # The third chunk is the first that sees a full window; its first pass has made the buffers that stay.
    found = max(handed_out(partial(run, x, chunk)) for run in (denoiser, denoiser.commit, denoiser.commit))
    assert found > 1e6
    planned = plan(chosen, own, frames=8, size=(256, 256), dtype="fp32").memory.activations
    assert planned == pytest.approx(found, rel=0.02)


# What it takes and gives


@pytest.mark.parametrize(("given", "error", "message"), [
    ({}, ValueError, "seconds=None, frames=None: give the length"),
    ({"seconds": 1, "frames": 3}, ValueError, "seconds=1, frames=3: give the length"),
    ({"seconds": 0}, ValueError, "seconds=0.0, .* must be positive"),
    ({"seconds": -1.5}, ValueError, "seconds=-1.5"),
    ({"seconds": "60"}, TypeError, "seconds='60' must be a number, got str"),
    ({"seconds": True}, TypeError, "seconds=True must be a number"),
    ({"seconds": float("inf")}, ValueError, "seconds=inf"),
    ({"frames": 0}, ValueError, "frames=0: give a whole number"),
    ({"frames": 3.0}, ValueError, "frames=3.0: give a whole number"),
    ({"frames": 1_000_001}, ValueError, "1000001 latent frames: a video has at most 1000000"),
    ({"frames": 3, "size": (480, 830)}, ValueError, "width=830 must be a positive multiple of 16: use 816 or 832"),
    ({"frames": 3, "size": (0, 832)}, ValueError, "height=0"),
    ({"frames": 3, "size": (480.0, 832)}, ValueError, "height=480.0: give a whole number"),
    ({"frames": 3, "size": 480}, ValueError, r"size=480: give \(height, width\)"),
    ({"frames": 3, "batch": 0}, ValueError, "batch=0: give a whole number"),
    ({"frames": 3, "dtype": "fp8"}, ValueError, "dtype='fp8': allowed are bf16, fp16, fp32"),
    ({"frames": 3, "config": "full"}, TypeError, "config='full': give a PipelineConfig"),
    ({"frames": 3, "card": "wan2.1-t2v-1.3b"}, TypeError, "card='wan2.1-t2v-1.3b': give a Card"),
    ({"frames": 3, "config": config(window(4), chunk=5)}, ValueError, "do not fit window=4"),
])  # fmt: skip
def test_bad_input_is_named(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plan(given.pop("config", None), given.pop("card", WAN), **given)


@pytest.mark.parametrize("rate", [0, -1.0, float("nan"), float("inf")])
def test_a_ceiling_needs_a_rate(small: Plan, rate: float) -> None:
    with pytest.raises(ValueError, match=f"tflops={rate}: give a positive"):
        small.fps(rate)


def test_a_ceiling_is_frames_over_the_time_of_arithmetic(small: Plan) -> None:
    pixels = {"last": 8, "video": 29}  # two latent frames of four pixel frames each; 1 + 7 * 4
    assert small.fps(2.0) == pytest.approx(pixels["last"] * 2e12 / small.last.flops.total)
    assert small.fps(2.0, decode=False, video=True) == pytest.approx(pixels["video"] * 2e12 / small.video.dit)


def test_the_module_is_its_function() -> None:
    found: Any = arvid.plan  # a module for type checkers
    with pytest.raises(TypeError, match="card=None: give a Card"):
        found(None, None, frames=2)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], weights: Path) -> Any:
    """`arvid plan` on a folder of small weights, or on `model`."""
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text('time = "relative"\n[cache]\nname = "sink"\nwindow = 6\nsink = 2\n')

    def call(*argv: str, model: str | None = str(weights)) -> Ran:
        return ran(capsys, "plan", *argv, *(["--model", model] if model else []))

    return call


def test_the_command_prints_what_plan_finds(run: Any, small: Plan) -> None:
    chosen = PipelineConfig.load("my.toml")
    done = run("my.toml", "--frames", "8", "--size", "48x16", "--batch", "2", "--dtype", "fp32", "--tflops", "3")
    expected = plan(chosen, SMALL, frames=8, size=(16, 48), batch=2, dtype="fp32")
    assert (done.status, done.out, done.err) == (0, f"{expected.text(3)}\n", "")
    assert run("--seconds", "4").out == f"{small}\n"
    argv = ("my.toml", "--frames", "8", "--size", "48x16", "--batch", "2", "--dtype", "fp32", "--json")
    plain = json.loads(run(*argv).out)
    assert plain == json.loads(json.dumps(expected.to_dict()))
    assert plain["video"]["total"] == sum(plain["video"][part] for part in (
        "linear", "self_attention", "cross_attention", "decode"))  # fmt: skip
    assert PipelineConfig.from_dict(plain["config"]) == chosen.resolve(SMALL)


def test_a_card_is_named(run: Any, small: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(sys.modules["arvid.plan"], "plan", lambda *given, **_: asked.append(given) or small)
    assert run(model="wan2.1-t2v-14b").status == 0
    sets = ("--set", "cache.codec=int8", "--set", "sampler.shift=3", "--set", "time=relative")
    assert run(*sets, model="wan2.1-t2v-1.3b").status == 0
    assert run("my.toml", "--set", "cache.window=9", model="self_forcing").status == 0
    (plain, own), (changed, other), (given, _) = ((chosen.resolve(card), card) for chosen, card in asked)
    assert (own, other) == (LARGE, WAN)
    assert plain == PipelineConfig().resolve(LARGE)
    expected = config(window(21, codec="int8"), sampler={"name": "few_step", "shift": 3.0}, time="relative")
    assert changed == expected.resolve(WAN)
    assert given == config({"name": "sink", "window": 9, "sink": 2}, time="relative").resolve(WAN)


def test_the_bundled_card_and_one_of_a_file_are_cards_too(run: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(SMALL.to_dict()))
    assert run("--seconds", "4", model="mine.json").out == run("--seconds", "4").out
    assert run("--frames", "3", model="tiny").out == run("--frames", "3", model=None).out


@pytest.mark.parametrize(("argv", "model", "message"), [
    ((), "wan2.1-t2v-1.4b", "did you mean the card 'wan2.1-t2v-1"),
    ((), "nothing", "nothing is not a folder of arvid weights, nor of others: nothing is there"),
    ((), "nothing.json", "there is no card nothing.json"),
    ((), ".", ". is not a folder of arvid weights"),
    (("none.toml",), "self_forcing", "there is no file none.toml"),
    (("--size", "830x480"), "self_forcing", "width=830 must be a positive multiple of 16"),
    (("--seconds", "0"), None, "'0' is not a positive number of seconds"),
    (("--dtype", "fp8"), None, "dtype='fp8': allowed are bf16, fp16, fp32"),
    (("--frames", "3", "--tflops", "0"), None, "tflops=0.0: give a positive"),
    (("--frames", "3", "--tflops", "x"), None, "invalid float value: 'x'"),
    (("--set", "cache.codec=int7"), "self_forcing", "int7"),
])  # fmt: skip
def test_mistakes_are_one_message_and_exit_status_2(run: Any, argv: Any, model: str | None, message: str) -> None:
    done = run(*argv, model=model)
    assert (done.status, done.out) == (2, "")
    assert message in done.err
