"""Classifier-free guidance: two branches with a text and a history each, from the denoiser to the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import pytest
import torch
from command import ran
from dense import SIZE, SPEC, KeyedNoise, Oracle, cached, layout, randn, tiny_dit
from random_model import BLUE, CARD, RED, random_parts
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from arvid import Pipeline, PipelineConfig
from arvid.cache import (
    CachePolicy,
    Chunk,
    Cut,
    Event,
    Flush,
    Full,
    Participative,
    Recommit,
    Reset,
    Rolling,
    Sink,
    Window,
)
from arvid.models.denoiser import CachedDenoiser
from arvid.models.dit import CausalDiT
from arvid.models.embeddings import FreedEncoder
from arvid.plan import plan
from arvid.positional import Absolute, Relative, Rope, SinkAdjacent, TimeMap
from arvid.samplers import Denoiser, FewStep, Multistep

DIT = tiny_dit()
POSITIVE, NEGATIVE, LATER = (randn(1, SPEC.text_length, SPEC.text_dim, seed=seed) for seed in (1, 2, 3))
SAMPLER = Multistep("unipc", 2, 3.0, 2.5, context_noise=100)


def guided(
    guidance: float = 2.5, policy: CachePolicy | None = None, positive: Tensor = POSITIVE, negative: Tensor = NEGATIVE,
    *, dit: CausalDiT = DIT, time: TimeMap | None = None, rotated: bool | None = None,
) -> CachedDenoiser:  # fmt: skip
    return CachedDenoiser(
        dit, dit.prepare_text(positive), policy=policy or Window(6), time=time or Absolute(), rotary=Rope(),
        batch=len(positive), size=SIZE, rotated=rotated, guidance=guidance, negative=dit.prepare_text(negative),
    )  # fmt: skip


def rollout(denoiser: Denoiser, chunks: Sequence[Chunk], batch: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.cat([emit.x0 for emit in SAMPLER.rollout(denoiser, KeyedNoise(batch, dtype), chunks)], 1)


def error(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


# What guidance is


class GuidedOracle:
    """Two dense denoisers without a store, guided in x0 rather than in velocity, which is the same."""

    def __init__(self, guidance: float, window: int) -> None:
        def rule(chunk: Chunk, kind: object) -> list[tuple[int, float, float]]:
            return [(frame, float(frame), 0.0) for frame in range(max(0, chunk.end - window), chunk.start)]

        self.guidance = guidance
        self.branches = [Oracle(DIT, text, rule) for text in (POSITIVE, NEGATIVE)]

    def _guided(self, positive: Tensor, negative: Tensor) -> Tensor:
        return negative + self.guidance * (positive - negative)

    def __call__(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        return self._guided(*(branch(x_BFCHW, chunks) for branch in self.branches))

    def commit(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        return self._guided(*(branch.commit(x_BFCHW, chunks) for branch in self.branches))


@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("guidance", [0.0, 0.4, 5.0])
def test_a_guided_rollout_is_two_dense_ones_side_by_side(guidance: float, rotated: bool) -> None:
    chunks = layout(6, 2)
    found = rollout(guided(guidance, Window(4), rotated=rotated), chunks)
    assert error(found, rollout(GuidedOracle(guidance, 4), chunks)) < 1e-9
    assert error(found, rollout(guided(guidance + 0.01, Window(4)), chunks)) > 1e-5


def test_a_commit_is_guided_as_well() -> None:
    x, chunk = randn(1, 2, SPEC.in_channels, *SIZE, seed=4), Chunk(0, 2, 0.6)
    assert error(guided().commit(x, (chunk,)), GuidedOracle(2.5, 6).commit(x, (chunk,))) < 1e-10


def test_guidance_0_knows_only_the_negative_prompt_bitwise() -> None:
    chunks = layout(8, 2)
    runs = [rollout(guided(0.0, positive=text), chunks) for text in (POSITIVE, LATER)]
    assert runs[0].equal(runs[1])
    assert runs[0].equal(rollout(cached(DIT, NEGATIVE, Window(6)), chunks))
    assert error(runs[0], rollout(guided(0.1), chunks)) > 1e-4


def test_equal_prompts_make_guidance_idle() -> None:
    chunks = layout(8, 2)
    plain = rollout(cached(DIT, POSITIVE, Window(6)), chunks)
    for guidance in (0.0, 0.5, 7.0):
        assert rollout(guided(guidance, negative=POSITIVE), chunks).equal(plain)


def test_guidance_near_1_is_near_the_plain_rollout() -> None:
    chunks = layout(8, 2)
    plain = rollout(cached(DIT, POSITIVE, Window(6)), chunks)
    assert error(rollout(guided(1 + 1e-9), chunks), plain) < 1e-7
    assert error(rollout(guided(1.1), chunks), plain) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_difference_of_the_branches_is_taken_in_float32(dtype: torch.dtype) -> None:
    dit, texts = tiny_dit(dtype=dtype), [text.to(dtype) for text in (POSITIVE, NEGATIVE)]
    seen: list[Tensor] = []
    dit.register_forward_hook(lambda _, __, out: seen.append(out.float()))
    x = randn(1, 2, SPEC.in_channels, *SIZE, dtype=torch.float32)
    x0 = guided(3.0, Window(6), *texts, dit=dit)(x, (Chunk(0, 2, 0.5),))
    positive, negative = seen
    assert x0.equal(x - 0.5 * (negative + 3.0 * (positive - negative)))


def test_rows_of_a_batch_are_the_single_videos() -> None:
    positive, negative = torch.cat((POSITIVE, LATER)), torch.cat((NEGATIVE, POSITIVE))
    chunks = layout(6, 2)
    both = rollout(guided(2.0, None, positive, negative), chunks, 2)
    noise = KeyedNoise(2)

    class Row(KeyedNoise):
        def __init__(self, row: int) -> None:
            super().__init__()
            self.row = row

        def initial(self, chunk: Chunk) -> Tensor:
            return noise.initial(chunk)[self.row][None]

    for i in range(2):
        own = guided(2.0, None, positive[i][None], negative[i][None])
        alone = torch.cat([emit.x0 for emit in SAMPLER.rollout(own, Row(i), chunks)], 1)
        assert error(alone[0], both[i]) < 1e-10


@pytest.mark.parametrize(("guidance", "with_text"), [(2.0, False), (1.0, True)])
def test_guidance_and_a_negative_text_go_together(guidance: float, with_text: bool) -> None:
    text = DIT.prepare_text(POSITIVE)
    with pytest.raises(ValueError, match=rf"guidance={guidance} with(out)? a negative text"):
        CachedDenoiser(DIT, text, policy=Full(), time=Absolute(), rotary=Rope(), batch=1, size=SIZE, guidance=guidance,
                       negative=text if with_text else None)  # fmt: skip


# Histories


def latents(chunk: Chunk) -> Tensor:
    return torch.cat([randn(1, 1, SPEC.in_channels, *SIZE, seed=50 + f) for f in range(chunk.start, chunk.end)], 1)


def contents(denoiser: CachedDenoiser, branch: int = 0, lane: int = 0) -> dict[tuple[int, int, int], Tensor]:
    """Keys and values of all that a history holds."""
    store = denoiser.store
    pages = {(ref.frame, layer): store.page(ref.frame, layer, lane, branch)
             for ref in store.held(lane, branch) for layer in range(SPEC.num_blocks)}  # fmt: skip
    return {(*at, half): page.clone() for at, both in pages.items() for half, page in enumerate(both)}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)


EVENTS = [None, Flush(1), Cut("none"), Cut("sink"), Cut("all"), Reset(), Recommit("joint", "renew"),
          Recommit("causal"), Recommit("per_chunk", "renew")]  # fmt: skip
POLICIES = [(Window(6), Absolute()), (Sink(7, 2), SinkAdjacent()), (Rolling(9, chunk=2), Relative()),
            (Window(6, codec="int8"), Absolute())]  # fmt: skip


@pytest.mark.parametrize(("policy", "time"), POLICIES, ids=lambda value: str(value))
@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_each_branch_has_the_history_of_a_denoiser_of_its_own(
    policy: CachePolicy, time: TimeMap, event: Event | None
) -> None:
    """A prompt that changes changes one branch; what it does to the history, it does to both."""
    chunks, lane = layout(10, 2), 2
    both = guided(2.5, policy, time=time)
    alone = [cached(DIT, text, policy, time=time) for text in (POSITIVE, NEGATIVE)]
    both.change(6, DIT.prepare_text(LATER), event)
    alone[0].change(6, DIT.prepare_text(LATER), event)
    for chunk in chunks:
        if chunk.start == 6 and event:
            alone[1].happen(event, lane)
        x = latents(chunk)
        noisy = replace(chunk, sigma=0.8)
        parts = [each(x, (noisy,), lane=lane) for each in alone]
        assert error(both(x, (noisy,), lane=lane), parts[1] + 2.5 * (parts[0] - parts[1])) < 1e-12
        for each in (both, *alone):
            each.commit(x, (chunk,), lane=lane)
        for branch, each in enumerate(alone):
            assert same(contents(both, branch, lane), contents(each, 0, lane))
            assert both.store.held(lane, branch) == each.store.held(lane)
    assert not same(contents(both, 0, lane), contents(both, 1, lane))


def test_branches_choose_their_own_tokens() -> None:
    policy = Participative(8, sink=2, recent=2, budget=6)
    both, chunks = guided(2.5, policy, time=SinkAdjacent()), layout(16, 2)
    alone = [cached(DIT, text, policy, time=SinkAdjacent()) for text in (POSITIVE, NEGATIVE)]
    for chunk in chunks:
        for each in (both, *alone):
            each(latents(chunk), (replace(chunk, sigma=0.8),))
            each.commit(latents(chunk), (chunk,))
        assert all(same(contents(both, branch), contents(each)) for branch, each in enumerate(alone))


def test_denoising_changes_no_history_and_a_commit_may_be_repeated() -> None:
    both, x = guided(), latents(Chunk(0, 2))
    both.commit(x, (Chunk(0, 2),))
    before = [contents(both, branch) for branch in range(2)]
    both(latents(Chunk(2, 2)), (Chunk(2, 2, 0.5),))
    assert all(same(contents(both, branch), before[branch]) for branch in range(2))
    twice = guided()
    for _ in range(2):
        twice.commit(x, (Chunk(0, 2),))
    assert all(same(contents(twice, branch), before[branch]) for branch in range(2))


@pytest.mark.parametrize("rotated", [True, False])
def test_a_snapshot_has_both_branches(rotated: bool) -> None:
    chunks = layout(8, 2)
    whole = rollout(guided(rotated=rotated), chunks)
    first, again = guided(rotated=rotated), guided(rotated=rotated)
    started = SAMPLER.rollout(first, KeyedNoise(), chunks)
    head = [next(started) for _ in range(2)]
    again.store.restore(first.store.snapshot())
    tail = list(SAMPLER.rollout(again, KeyedNoise(), chunks, head[-1].state))
    assert torch.cat([emit.x0 for emit in head + tail], 1).equal(whole)


# In a pipeline


def with_guidance(pipe: Pipeline, guidance: float = 2.0, **card: Any) -> Pipeline:
    config = PipelineConfig(sampler=Multistep("euler", 2, guidance=guidance))
    return Pipeline.from_parts(pipe.dit, config, pipe.vae, pipe.text, replace(CARD, **card))


def test_guidance_1_runs_half_the_forwards_and_nothing_else(pipe: Pipeline) -> None:
    counts, runs = [], []
    for guidance in (1.0, 2.0, 0.0):
        calls = 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1

        handle = pipe.dit.register_forward_hook(count)
        runs.append(with_guidance(pipe, guidance).latents(prompt=RED, frames=5))
        handle.remove()
        counts.append(calls)
    assert counts == [9, 18, 18]  # chunks of 2, 2, 1 frames: two steps and a commit each
    assert not runs[0].equal(runs[1])
    # A sampler that has never heard of guidance, with the same passes.
    plain = Pipeline.from_parts(pipe.dit, PipelineConfig(sampler=Unguided()), card=CARD)
    assert plain.latents(text=pipe.text.encode([RED]), frames=5).equal(runs[0])  # pyright: ignore[reportOptionalMemberAccess]


@dataclass(frozen=True)
class Unguided(FewStep):
    def rollout(self, denoiser: Any, noise: Any, chunks: Any, state: Any = None) -> Any:
        return Multistep("euler", 2, 3.0, 1.0, 0).rollout(denoiser, noise, chunks, state)


def test_the_negative_prompt_is_the_requests_then_the_cards_then_none(pipe: Pipeline) -> None:
    assert pipe.text
    plain, own = with_guidance(pipe), with_guidance(pipe, negative=BLUE)
    blank = torch.zeros(1, CARD.dit.text_length, CARD.dit.text_dim)
    for negative, embedded in (("", blank), (BLUE, pipe.text.encode([BLUE])), (RED, pipe.text.encode([RED]))):
        expected = plain.latents(prompt=RED, frames=4, negative=embedded)
        for asked in (plain, own):
            assert asked.latents(prompt=RED, frames=4, negative=negative).equal(expected)
            assert asked.latents(text=pipe.text.encode([RED]), frames=4, negative=negative).equal(expected)
        ask = {"": plain, BLUE: own}.get(negative)
        assert ask is None or ask.latents(prompt=RED, frames=4).equal(expected)
    videos = [plain(RED, frames=3, negative=negative).frames.tobytes() for negative in (None, "", BLUE)]
    assert videos[0] == videos[1] != videos[2]
    assert videos[2] == b"".join(piece.frames.tobytes() for piece in plain.stream(RED, frames=3, negative=BLUE))
    assert videos[2] == own(RED, frames=3).frames.tobytes()


def test_each_row_may_have_a_negative_prompt_of_its_own(pipe64: Pipeline) -> None:
    own = with_guidance(pipe64)
    rows = own.latents(prompt=[RED, BLUE, RED], frames=3, negative=[BLUE, "", RED])
    for row, prompt, negative in zip(rows, (RED, BLUE, RED), (BLUE, "", RED), strict=True):
        assert error(row[None], own.latents(prompt=prompt, frames=3, negative=negative)) < 1e-10
    one = own.latents(prompt=[RED, BLUE], frames=3, negative=RED)
    assert error(one[1:], own.latents(prompt=BLUE, frames=3, negative=RED)) < 1e-10
    assert len(own([RED, BLUE], frames=1, negative=[BLUE, RED])) == 2


def test_the_prompt_may_change_under_guidance(pipe: Pipeline) -> None:
    own = with_guidance(pipe)
    plain, changed = (own(prompt, frames=7, negative=BLUE) for prompt in (RED, [(0, RED), (2, BLUE)]))
    assert (plain.frames[:13] == changed.frames[:13]).all()
    assert (plain.frames[13:] != changed.frames[13:]).any()
    for event in ("recommit", "reset"):
        other = own([(0, RED), (2, BLUE)], frames=7, negative=BLUE, on_change=event)
        assert (other.frames[:13] == changed.frames[:13]).all()
        assert (other.frames[13:] != changed.frames[13:]).any()


def test_a_freed_encoder_is_read_once(pipe: Pipeline) -> None:
    assert pipe.text
    reads = []

    def read() -> Any:
        reads.append(1)
        return pipe.text

    freed = Pipeline.from_parts(pipe.dit, with_guidance(pipe).config, pipe.vae, FreedEncoder(read), CARD)
    expected = with_guidance(pipe)(RED, frames=2, negative=BLUE)
    assert (freed(RED, frames=2, negative=BLUE).frames == expected.frames).all()
    assert len(reads) == 1


BAD: list[tuple[float, dict[str, Any], type[Exception], str]] = [
    (1.0, {"negative": BLUE}, ValueError, r"negative='a blue .* is for guidance, and Multistep\(.* has none"),
    (1.0, {"negative": ""}, ValueError, "is for guidance"),
    (2.0, {"negative": "a red zebra"}, ValueError, "does not know the words 'zebra'"),
    (2.0, {"negative": " "}, ValueError, "the prompt ' ' is empty"),
    (2.0, {"negative": [RED, BLUE]}, ValueError, "2 negative prompts for 1 rows"),
    (2.0, {"negative": []}, ValueError, "0 negative prompts for 1 rows"),
    (2.0, {"negative": 3}, TypeError, "negative=3: give a prompt, or a list of one for each row"),
    (2.0, {"negative": [3]}, TypeError, r"negative=\[3\]: give a prompt"),
]


@pytest.mark.parametrize(("guidance", "request_", "kind", "message"), BAD, ids=lambda value: str(value)[:30])
def test_bad_negative_prompts_raise_before_anything_runs(
    pipe: Pipeline, guidance: float, request_: dict[str, Any], kind: type[Exception], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    own = with_guidance(pipe, guidance)
    for name in ("forward", "prepare_text"):
        monkeypatch.setattr(CausalDiT, name, lambda *_: pytest.fail("the network ran before the input was checked"))
    for ask in (own, own.stream):
        with pytest.raises(kind, match=message):
            ask(RED, frames=3, **request_)
    with pytest.raises(kind, match=message):
        own.latents(prompt=RED, frames=3, **request_)


def test_bad_negative_embeddings_raise(pipe: Pipeline) -> None:
    own, text = with_guidance(pipe), randn(2, 16, 16, dtype=torch.float32)
    for negative, message in ((text[0], "negative has shape"), (text.repeat(2, 1, 1), "negative has 4 rows for 2 of")):
        with pytest.raises(ValueError, match=message):
            own.latents(text=text, frames=2, negative=negative)
    with pytest.raises(TypeError, match="negative must be a floating point tensor"):
        own.latents(text=text, frames=2, negative=text.int())
    with pytest.raises(ValueError, match="is for guidance"):
        with_guidance(pipe, 1.0).latents(text=text, frames=2, negative=text)
    bare = Pipeline.from_parts(pipe.dit, own.config, card=CARD)
    with pytest.raises(ValueError, match=r"the negative prompt 'a blue .* needs a text encoder"):
        bare.latents(text=text, frames=2, negative=BLUE)
    assert bare.latents(text=text, frames=2).equal(own.latents(text=text, frames=2, negative=""))


def test_a_card_keeps_its_negative_prompt() -> None:
    card = replace(CARD, negative="blurry")
    assert type(card).from_dict(card.to_dict()) == card
    assert CARD.negative is None


def test_the_command_line_takes_it(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("generate", RED, "--frames", "2", "--scale", "1", "--model", str(weights))
    chosen = ("--set", "sampler.name=multistep", "--set", "sampler.num_steps=2", "--set", "sampler.guidance=4")
    own = Pipeline.load(PipelineConfig(sampler=Multistep(num_steps=2, guidance=4.0)), model=weights)
    for name, options, negative in (("a.gif", (), None), ("b.gif", ("--negative", BLUE), BLUE)):
        assert ran(capsys, *given, *chosen, *options, "-o", name).status == 0
        own(RED, frames=2, negative=negative).save(f"own {name}", 1)
        assert (iio.imread(name, index=None) == iio.imread(f"own {name}", index=None)).all()
    refused = ran(capsys, *given, "--negative", BLUE)
    assert (refused.status, "has none: leave it out" in refused.err) == (2, True)


# What it costs


@pytest.mark.parametrize(("cache", "time"), [
    ({"name": "window", "window": 4}, "relative"), ({"name": "window", "window": 4, "codec": "int8"}, "absolute")
])  # fmt: skip
def test_the_planner_counts_both_branches(cache: dict[str, Any], time: str) -> None:
    frames, dit = 6, random_parts().dit
    configs = [PipelineConfig(cache=cache, time=time, sampler=Multistep("euler", 1, guidance=g)) for g in (1.0, 2.0)]
    one, two = (plan(config, CARD, frames=frames, dtype="fp32") for config in configs)
    text = torch.ones(1, CARD.dit.text_length, CARD.dit.text_dim)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        Pipeline.from_parts(dit, configs[1], card=CARD).latents(text=text, frames=frames)
    assert two.video.dit + 2 * two.text_kv == counter.get_total_flops()
    assert (two.passes, two.video.dit, two.video.decode) == (2 * one.passes, 2 * one.video.dit, one.video.decode)
    for name in ("kv", "kv_pages", "text_kv"):
        assert vars(two.memory)[name] == 2 * vars(one.memory)[name]
    assert one.memory.latents < two.memory.latents < 2 * one.memory.latents  # those in flight are shared
    assert one.memory.activations <= two.memory.activations < 1.5 * one.memory.activations
