"""Participative compression against a reference written for clarity: plain loops over queries, keys and heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dense import layout, randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arvid.cache import CachePolicy, Chunk, Full, Kind, Participative, Pass, Scene, make_plan
from arvid.cache.store import Store, StoreShape
from arvid.models.attention import attend
from arvid.positional import Absolute, Relative, SinkAdjacent, TimeMap
from arvid.positional.rotation import rotate

SHAPE = StoreShape(layers=2, batch=2, grid=(1, 2), heads=2, axes=(4, 2, 2))
FREQ = np.array([1.0, 0.1])
POLICY = Participative(8, 2, 3, 6)


def scene(draws: int, past: int, in_flight: int, memory: int, tokens: int) -> tuple[Scene, list[Tensor]]:
    """A scene, and the queries of the frames before the pass, [B, tokens, h, d] each."""
    before = [randn(2, tokens, 3, 4, seed=draws + 10 * i) for i in range(past)]
    sums = torch.stack([q.sum(1) for q in before], 1) if before else torch.zeros(2, 0, 3, 4, dtype=torch.float64)
    new = Pass(Kind.DENOISE, (Chunk(30, in_flight),))
    q, k, v = (randn(2, n * tokens, 3, 4, seed=draws + i) for i, n in ((1, in_flight), (2, memory), (3, memory)))
    return Scene(new, q, sums, k, v), before


@settings(max_examples=20)
@given(st.integers(0, 999), st.integers(0, 4), st.integers(1, 3), st.integers(2, 5), st.integers(1, 3))
def test_the_tokens_kept_are_those_that_recent_queries_score_highest(draws, past, in_flight, memory, tokens) -> None:
    policy = Participative(12, 2, 3, 7)
    shown, before = scene(draws, past, in_flight, memory, tokens)
    kept = policy.route(0, shown)
    asking = [*before[max(0, past - (3 - in_flight)) :], *shown.q_BNhd.split(tokens, 1)]
    for row in range(2):
        scores = [
            sum(float(torch.dot(q[row, n, head], shown.k_BMhd[row, m, head]))
                for q in asking for n in range(tokens) for head in range(3))
            for m in range(memory * tokens)
        ]  # fmt: skip
        best = sorted(range(len(scores)), key=lambda m: -scores[m])[: 2 * tokens]
        assert kept[row].tolist() == sorted(best)


def test_equal_scores_go_to_the_older_tokens() -> None:
    shown, _ = scene(0, 0, 1, 4, 2)
    assert Participative(12, 2, 3, 7).route(0, Scene(
        shown.new, shown.q_BNhd, shown.past_BFhd, torch.ones_like(shown.k_BMhd), shown.v_BMhd)
    ).tolist() == [[0, 1, 2, 3]] * 2  # fmt: skip


def drawn(new: Pass, layer: int, x: int = 0) -> list[Tensor]:
    return [randn(2, len(new.frames) * 2, 2, 8, seed=1000 * new.frames.start + 100 * x + 10 * layer + i)
            for i in range(3)]  # fmt: skip


def run(store: Store, kind: Kind, chunk: Chunk, x: int = 0, time: TimeMap | None = None) -> Tensor:
    new = Pass(kind, (chunk,))
    store.begin(new, make_plan(store.policy, time or Absolute(), store.before(new), new), FREQ)
    out = []
    for layer in range(SHAPE.layers):
        q, k, v = drawn(new, layer, x)
        out.append(attend(rotate(q, store.phase), [store.exchange(layer, k, v, q)], store.bias))
    if kind is Kind.COMMIT:
        store.end()
    return torch.stack(out)


def new_store(policy: CachePolicy = POLICY) -> Store:
    return Store(SHAPE, policy, rotated=False, pages=policy.capacity(2, 2) or 0, dtype=torch.float64)


def stored(store: Store, frame: int, layer: int) -> list[tuple[bytes, bytes]]:
    """The tokens of a page of row 0, as bytes: keys and values side by side."""
    key, value = store.page(frame, layer)
    return [(key[0, n].numpy().tobytes(), value[0, n].numpy().tobytes()) for n in range(2)]


def test_what_is_kept_is_a_sorted_subset_beside_untouched_sinks_and_recent_frames() -> None:
    store, full = new_store(), new_store(Full())
    for chunk in layout(30, 2):
        packed = len(store.held()) + 2 > POLICY.window
        for kind in (Kind.DENOISE, Kind.COMMIT):
            run(store, kind, chunk)
            run(full, kind, chunk)
        held = store.held()
        assert len(held) == (POLICY.budget if packed else min(chunk.end, len(held)))
        for layer in range(SHAPE.layers):
            every = {token: (frame, n) for frame in range(chunk.end)
                     for n, token in enumerate(stored(full, frame, layer))}  # fmt: skip
            memory = [every[token] for ref in held if ref.role == "memory" for token in stored(store, ref.frame, layer)]
            assert memory == sorted(set(memory))
            for i, ref in enumerate(held):
                whole = stored(store, ref.frame, layer) == stored(full, ref.frame, layer)
                assert whole or ref.role == "memory"
                assert ref.role != "memory" or 2 <= i < len(held) - 1
    assert {ref.frame for ref in store.held()[:2]} == {0, 1}


def test_layers_and_rows_choose_for_themselves() -> None:
    store = new_store()
    for chunk in layout(20, 2):
        run(store, Kind.COMMIT, chunk)
    (ref, *_) = [ref for ref in store.held() if ref.role == "memory"]
    sources = store._histories[0, 0].sources
    page = store.book().places[ref.frame].page
    choices = {tuple(sources[layer][row, page].tolist()) for layer in range(2) for row in range(2)}
    assert len(choices) > 1


def test_a_chunk_chooses_once_and_an_abandoned_attempt_leaves_no_trace() -> None:
    steady, calls = layout(14, 2), []

    class Counting(Participative):
        def route(self, layer, scene):
            calls.append((layer, float(scene.q_BNhd.sum())))
            return super().route(layer, scene)

    policy = Counting(8, 2, 3, 6)
    store, fresh = new_store(policy), new_store(policy)
    for each in (store, fresh):
        for chunk in steady[:4]:
            run(each, Kind.COMMIT, chunk)
    calls.clear()
    first, later = Chunk(8, 2, 1.0, 4), Chunk(8, 2, 0.5, 4)
    run(store, Kind.DENOISE, first, x=1)
    run(store, Kind.DENOISE, later, x=2)
    assert len(calls) == SHAPE.layers  # the second step sees what the first has chosen
    again = run(store, Kind.DENOISE, first, x=3)  # a new attempt chooses anew
    assert len(calls) == 2 * SHAPE.layers
    assert torch.equal(again, run(fresh, Kind.DENOISE, first, x=3))
    for kind, chunk in ((Kind.DENOISE, later), (Kind.COMMIT, Chunk(8, 2, 0.0, 4)), (Kind.COMMIT, Chunk(8, 2, 0.0, 4))):
        assert torch.equal(run(store, kind, chunk, x=4), run(fresh, kind, chunk, x=4))
    assert len(calls) == 3 * SHAPE.layers


def test_a_step_at_the_same_level_chooses_anew_only_where_the_chunk_begins() -> None:
    """A chunk whose frames are committed without a denoise chooses by the commit's own queries."""
    direct, stepped = new_store(), new_store()
    for chunk in layout(8, 2):
        run(direct, Kind.COMMIT, chunk)
        run(stepped, Kind.COMMIT, chunk)
    run(stepped, Kind.DENOISE, Chunk(8, 2, 1.0, 4), x=7)
    outputs = [run(store, Kind.COMMIT, Chunk(8, 2, 0.0, 4)) for store in (direct, stepped)]
    assert not torch.equal(*outputs)


def test_kept_tokens_keep_their_distance_to_the_frames_around_them() -> None:
    """Times that move a view by a constant change nothing; a chunk that jumps ahead leaves kept tokens behind."""

    class Moved(Absolute):
        def times(self, refs, new):
            return tuple(tuple(t + 1000 for t in part) for part in super().times(refs, new))

    class Ahead(Absolute):
        def times(self, refs, new):
            held, own = super().times(refs, new)
            return held, tuple(t + 5 for t in own)

    stores = {time: new_store() for time in (Absolute(), Moved(), Ahead(), SinkAdjacent(), Relative())}
    for chunk in layout(20, 2):
        out = {time: [run(store, kind, chunk, time=time) for kind in Kind] for time, store in stores.items()}
        plain, moved, _, near, ranked = ([x.float() for x in each] for each in out.values())
        assert max((a - b).abs().max() for a, b in zip(plain, moved, strict=True)) < 1e-6
        assert max((a - b).abs().max() for a, b in zip(near, ranked, strict=True)) < 1e-6
    new = Pass(Kind.DENOISE, (Chunk(20, 2),))
    store = stores[Ahead()]
    plan = make_plan(POLICY, Ahead(), store.before(new), new)
    store.begin(new, plan, FREQ)
    held = store._views._memory  # pyright: ignore[reportAttributeAccessIssue]
    assert held.shift.tolist() == [0.0] * len(held.shift)


@pytest.mark.parametrize("chosen", [None, torch.zeros(2, 3, dtype=torch.long), torch.zeros(4, dtype=torch.long)])
def test_a_choice_of_the_wrong_size_is_named(chosen) -> None:
    class Wrong(Participative):
        def route(self, layer, scene):
            return chosen

    store = new_store(Wrong(8, 2, 3, 6))
    for chunk in layout(8, 2):
        run(store, Kind.COMMIT, chunk)
    with pytest.raises(ValueError, match=r"Wrong.route gave .*; it gives indices \(2, 2\)"):
        run(store, Kind.DENOISE, Chunk(8, 2, 1.0))


def test_choosing_needs_queries_and_unrotated_keys() -> None:
    store = new_store()
    new = Pass(Kind.COMMIT, (Chunk(0, 2),))
    store.begin(new, make_plan(POLICY, Absolute(), (), new), FREQ)
    with pytest.raises(ValueError, match=r"asks for queries: give exchange\(layer, k, v, q\)"):
        store.exchange(0, *drawn(new, 0)[1:])
    with pytest.raises(ValueError, match="use rotated=False"):
        Store(SHAPE, POLICY, rotated=True)
