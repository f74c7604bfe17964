"""Frequency rules in the whole model: S that is constant, grows, or goes stale, and logits that are scaled or biased;
against dense passes in float64 that know none of arvid's rotations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
import pytest
import torch
from dense import SIZE, SPEC, Explicit, Key, View, layout, randn, tiny_dit
from numpy.typing import NDArray
from torch import Tensor

from arvid.cache import CachePolicy, Chunk, Full, Participative, Recommit, Rolling, Sink, Window
from arvid.models.denoiser import CachedDenoiser
from arvid.positional import Absolute, Relative, Rope, Rotary, RotaryContext, SinkAdjacent, TimeMap
from arvid.positional.base import LogitScale
from arvid.positional.scaled import Scaled, Source

DIT = tiny_dit()
TEXT = randn(1, 5, SPEC.text_dim, seed=1)
TRAINED = 6


@dataclass(frozen=True)
class Compressed(Scaled):
    """Position interpolation: every frequency over S, which is every time over S."""

    def inv_freq(self, context: RotaryContext) -> NDArray[np.float64]:
        return Rope().inv_freq(context) / self.factor(context)


@dataclass(frozen=True)
class Tempered(Rope):
    """Logits scaled, and lower the older a key is."""

    slope: float = 0.3
    whole: float = 1.3
    time: float = 0.6

    def logit_scale(self, context: RotaryContext) -> LogitScale:
        return LogitScale(self.whole, self.time)

    def bias(self, queries: NDArray[np.float64], keys: NDArray[np.float64]) -> NDArray[np.float64]:
        return -self.slope * np.maximum(0, queries[:, None] - keys)


def latents(chunk: Chunk) -> Tensor:
    return torch.cat([randn(1, 1, SPEC.in_channels, *SIZE, seed=50 + f) for f in range(chunk.start, chunk.end)], 1)


def video(
    policy: CachePolicy, chunks: list[Chunk], rotary: Rotary, time: TimeMap | None = None, horizon: int | None = None,
    rotated: bool | None = None,
) -> tuple[CachedDenoiser, list[Tensor]]:  # fmt: skip
    """What each chunk's denoise predicts, after the chunks before it were committed."""
    denoiser = CachedDenoiser(
        DIT, DIT.prepare_text(TEXT), policy=policy, time=time or Absolute(), rotary=rotary, batch=1, size=SIZE,
        train_horizon=TRAINED, horizon=horizon, rotated=rotated,
    )  # fmt: skip
    out = []
    for chunk in chunks:
        noisy = Chunk(chunk.start, chunk.n, 0.7, chunk.index)
        out.append(denoiser(latents(chunk), (noisy,)))
        denoiser.commit(latents(chunk), (chunk,))
    return denoiser, out


def dense(chunks: list[Chunk], seen: dict[int, list[int]], divide, rotary: Tempered | None = None) -> list[Tensor]:
    """The same in one dense pass a chunk, over [every clean frame before it | the chunk]: `seen` are the frames that a
    chunk sees, and `divide(chunk)` what its pass divides all times by."""
    rule = rotary or Tempered(slope=0, whole=1, time=1)
    views: list[View] = []
    out = []
    for chunk in chunks:
        frames = [*seen[chunk.start], *range(chunk.start, chunk.end)]
        own: list[View] = []
        for query in range(chunk.start, chunk.end):
            keys: list[Key] = [(f, f / divide(chunk), -rule.slope * max(0, query - f)) for f in frames]
            own.append((query / divide(chunk), keys))
        x = torch.cat([latents(c) for c in chunks if c.start <= chunk.start], 1)
        level = torch.tensor([[0.0] * chunk.start + [0.7] * chunk.n], dtype=torch.float64)
        mixer = Explicit([*views, *own], DIT.grid(SIZE), SPEC.axes, (rule.whole, rule.time))
        velocity = DIT(x, 1000 * level, TEXT, mixer)
        out.append((x - level[:, :, None, None, None] * velocity)[:, chunk.start :])
        views += own
    return out


def error(one: list[Tensor], other: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


CHUNKS = layout(15, 3)
WINDOW = {c.start: [*range(max(0, c.start - 6), c.start)] for c in CHUNKS}
SINK = {c.start: [f for f in range(c.start) if f < 2 or f >= c.start - 4] for c in CHUNKS}


@pytest.mark.parametrize(("policy", "seen"), [(Window(9), WINDOW), (Sink(9, 2), SINK)], ids=str)
def test_under_a_growing_scale_every_chunk_runs_under_its_own(policy: CachePolicy, seen: dict[int, list[int]]) -> None:
    _, found = video(policy, CHUNKS, Compressed(scale="current"))
    assert error(found, dense(CHUNKS, seen, lambda chunk: max(1, chunk.end / TRAINED))) < 1e-10


@pytest.mark.parametrize("rotated", [True, False])
def test_under_the_total_scale_all_run_under_one(rotated: bool) -> None:
    _, found = video(Sink(9, 2), CHUNKS, Compressed(scale="total"), horizon=15, rotated=rotated)
    assert error(found, dense(CHUNKS, SINK, lambda chunk: 15 / TRAINED)) < 1e-10


def test_what_none_means_and_where_keys_are_stored_rotated() -> None:
    cases: list[tuple[Source | None, int | None, bool, Source]] = [
        (None, None, False, "current"), (None, 15, True, "total"), ("current", 15, False, "current")
    ]  # fmt: skip
    for scale, horizon, rotated, same in cases:
        denoiser, found = video(Sink(9, 2), CHUNKS, Compressed(scale=scale), horizon=horizon)
        assert denoiser.store.rotated == rotated
        assert error(found, video(Sink(9, 2), CHUNKS, Compressed(scale=same), horizon=15)[1]) < 1e-12
    with pytest.raises(ValueError, match="scale='total' needs to know how many frames"):
        video(Window(9), CHUNKS, Compressed(scale="total"))


def test_a_growing_scale_does_not_depend_on_the_horizon_and_the_total_does() -> None:
    short, long = (video(Window(9), CHUNKS[:3], Compressed(scale="current"), horizon=h)[1] for h in (9, 90))
    assert error(short, long) == 0
    short, long = (video(Window(9), CHUNKS[:3], Compressed(scale="total"), horizon=h)[1] for h in (9, 90))
    assert error(short, long) > 1e-3


def test_within_the_training_length_all_scales_are_plain() -> None:
    plain = video(Window(9), CHUNKS[:2], Rope())[1]
    for scale in get_args(Source):
        assert error(video(Window(9), CHUNKS[:2], Compressed(scale=scale), horizon=6)[1], plain) < 1e-12


def test_stale_keys_keep_the_scale_of_their_own_pass() -> None:
    """Frame f of a past chunk lies at f / S of that chunk, whatever the pass that sees it."""
    denoiser, found = video(Full(), CHUNKS, Compressed(scale="stale"))
    assert denoiser.store.rotated
    scales = {f: max(1, c.end / TRAINED) for c in CHUNKS for f in range(c.start, c.end)}
    views: list[View] = []
    for chunk, prediction in zip(CHUNKS, found, strict=True):
        own: list[View] = [(q / scales[q], [(f, f / scales[f], 0.0) for f in range(chunk.end)])
                           for q in range(chunk.start, chunk.end)]  # fmt: skip
        x = torch.cat([latents(c) for c in CHUNKS if c.start <= chunk.start], 1)
        level = torch.tensor([[0.0] * chunk.start + [0.7] * chunk.n], dtype=torch.float64)
        velocity = DIT(x, 1000 * level, TEXT, Explicit([*views, *own], DIT.grid(SIZE), SPEC.axes))
        expected = (x - level[:, :, None, None, None] * velocity)[:, chunk.start :]
        assert (prediction - expected).abs().max() < 1e-10
        views += own
    assert error(found, video(Full(), CHUNKS, Compressed(scale="current"))[1]) > 1e-3


@pytest.mark.parametrize(("policy", "time"), [(Rolling(9, chunk=3), Absolute()), (Sink(9, 2), SinkAdjacent()),
                                              (Sink(9, 2, codec="int8"), Absolute())], ids=str)  # fmt: skip
def test_keys_that_are_moved_cannot_go_stale(policy: CachePolicy, time: TimeMap) -> None:
    with pytest.raises(ValueError, match=r"leaves keys as the pass that committed them rotated them.*scale='current'"):
        video(policy, CHUNKS, Compressed(scale="stale"), time)


@pytest.mark.parametrize(("policy", "seen"), [(Window(9), WINDOW), (Sink(9, 2), SINK), (Full(), None)], ids=str)
@pytest.mark.parametrize("rotated", [True, False])
def test_logits_are_scaled_and_biased_by_frame(policy: CachePolicy, seen, rotated: bool) -> None:
    """Also within a chunk, where a later frame is no older than its query."""
    seen = seen or {c.start: [*range(c.start)] for c in CHUNKS}
    _, found = video(policy, CHUNKS, Tempered(), rotated=rotated)
    assert error(found, dense(CHUNKS, seen, lambda chunk: 1, Tempered())) < 1e-10


@pytest.mark.parametrize("policy", [Rolling(9, chunk=3), Sink(9, 2)], ids=str)
def test_a_bias_follows_the_times_that_a_view_gives(policy: CachePolicy) -> None:
    """A codec's view is laid out otherwise; ranks are the sink's times but for a shift."""
    plain = video(policy, CHUNKS, Tempered(), Relative())[1]
    assert error(plain, video(policy, CHUNKS, Tempered(), SinkAdjacent())[1]) < 1e-10
    coded = type(policy)(**{**vars(policy), "codec": "bf16"})
    assert 1e-9 < error(plain, video(coded, CHUNKS, Tempered(), Relative())[1]) < 0.05


def test_a_recommit_scales_and_biases_too() -> None:
    """Under the same prompt it changes nothing while all is held."""
    denoiser, _ = video(Full(), CHUNKS, Tempered())
    before = [[x.clone() for x in denoiser.store.page(f, 1)] for f in range(15)]
    denoiser.happen(Recommit("per_chunk", "renew"))
    for frame, (key, value) in enumerate(before):
        now = denoiser.store.page(frame, 1)
        assert max((now[0] - key).abs().max(), (now[1] - value).abs().max()) < 1e-12


def test_a_bias_by_frame_does_not_reach_chosen_tokens() -> None:
    with pytest.raises(ValueError, match="Participative chooses tokens, which a bias by frame does not reach"):
        video(Participative(9, 2, 3, 7), CHUNKS, Tempered())


def test_a_choice_of_tokens_goes_by_the_scaled_logits() -> None:
    @dataclass(frozen=True)
    class Timeless(Tempered):
        def bias(self, queries, keys):
            return None

    policy = Participative(9, 2, 3, 7)
    one, other = (video(policy, CHUNKS, Timeless(whole=1, time=time)) for time in (1, 50))
    sources = [denoiser.store._histories[0, 0].sources for denoiser, _ in (one, other)]
    assert not all(torch.equal(a, b) for a, b in zip(*sources, strict=True))


def test_reading_from_raw_keys_never_drifts() -> None:
    """After 2,000 chunks of float32 keys the error is that of one rotation (the in-place variant: docs)."""
    policy, chunks = Sink(4, 1), layout(4000, 2)
    exact, single = (CachedDenoiser(
        dit, dit.prepare_text(TEXT.to(dtype)), policy=policy, time=SinkAdjacent(), rotary=Rope(), batch=1, size=SIZE
    ) for dtype in (torch.float64, torch.float32) for dit in [tiny_dit(dtype=dtype)])  # fmt: skip
    x, errors = latents(Chunk(0, 2)), []
    for chunk in chunks:
        for denoiser, dtype in ((exact, torch.float64), (single, torch.float32)):
            denoiser.commit(x.to(dtype), (chunk,))
        if chunk.index in (3, 1999):
            noisy = Chunk(chunk.end, 2, 0.5, chunk.index + 1)
            a, b = exact(x, (noisy,)), single(x.float(), (noisy,))
            errors.append((a - b).abs().max().item())
    assert errors[1] < 3 * errors[0] < 1e-4
