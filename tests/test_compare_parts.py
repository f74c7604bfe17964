"""Prompt files, the task of a comparison, and its JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import BLUE, CARD, RED

from arvid import PipelineConfig
from arvid.cache import Full
from arvid.evaluation.metrics import METRIC
from arvid.evaluation.prompts import read_prompts
from arvid.evaluation.results import Comparison, Curve, Interval, Line, Measured, Method, Row, from_json, to_json
from arvid.evaluation.task import make_task, noise_seed, segment_edges, units, unpack
from arvid.geometry import pixel_frames
from arvid.models.loading import find
from arvid.training.clips import held_out_captions

VBENCH = [{"prompt_en": RED, "dimension": ["color"]}, {"prompt_en": BLUE, "dimension": ["scene"], "auxiliary_info": {}}]


@pytest.mark.parametrize(("name", "content", "where"), [
    ("a.txt", f"# x\n\n{RED}\r\n  {BLUE}  \n", ("line 3", "line 4")),
    ("movie_gen", f"\ufeff{RED}\n{BLUE}", ("line 1", "line 2")),
    ("v.json", json.dumps(VBENCH), ("entry 1", "entry 2")),
    ("s.JSON", json.dumps([RED, BLUE]), ("entry 1", "entry 2")),
    ("l.jsonl", f'{json.dumps(VBENCH[0])}\n\n{json.dumps({"prompt": BLUE})}\n', ("line 1", "line 3")),
    ("c.csv", f'id,prompt_en\n1,"{RED}"\n2,{BLUE}\n', ("line 2", "line 3")),
])  # fmt: skip
def test_prompt_files(tmp_path: Path, name: str, content: str, where: tuple[str, str]) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    found = read_prompts(str(path))
    assert [prompt.text for prompt in found] == [RED, BLUE]
    assert [prompt.where for prompt in found] == [f"{path}, {place}" for place in where]
    assert [prompt.text for prompt in read_prompts(str(path), limit=1)] == [RED]


def test_held_out_and_repeated_prompts(tmp_path: Path) -> None:
    assert [prompt.text for prompt in read_prompts("held_out")] == held_out_captions()
    (tmp_path / "a.txt").write_text(f"{RED}\n{BLUE}\n{RED}\n")
    with pytest.warns(UserWarning, match="there already are left out, 1 in all"):
        assert [prompt.text for prompt in read_prompts(str(tmp_path / "a.txt"))] == [RED, BLUE]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.txt", b"", "has no prompts"), ("a.txt", b"# a\n \n", "has no prompts"), ("a.txt", b"\xff\xfe", "no UTF-8 text"),
    ("a.json", b"[", "a.json is no JSON"), ("a.json", b"{}", "is no list"), ("a.json", b"[]", "has no prompts"),
    ("a.json", b'["a", {"text": "b"}]', "entry 2 has no prompt"), ("a.json", b'[" "]', "entry 1 has no prompt"),
    ("a.jsonl", b'"a"\n{', "line 2 is no JSON"), ("a.csv", b"text\na\n", "has the columns text: one must be called"),
    ("a.csv", b"prompt\n\"a", "a.csv, line 1: "), ("a.csv", b"id,prompt\n1\n", "line 2 has no prompt"),
])  # fmt: skip
def test_bad_prompt_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(str(tmp_path / name))


def test_bad_prompt_sources(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder"):
        read_prompts(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="'held_out'"):
        read_prompts(str(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match="limit=0"):
        read_prompts("held_out", 0)


@given(st.integers(1, 400), st.integers(1, 40), st.sampled_from([1, 2, 4]))
def test_segments_fill_the_video(frames: int, horizon: int, stride: int) -> None:
    edges = segment_edges(frames, horizon, stride)
    assert (edges[0], edges[-1]) == (0, pixel_frames(frames, stride))
    inner = [pixel_frames(k * horizon, stride) for k in range(1, frames // horizon + 1)]
    assert edges[1:-1] == inner[: len(edges) - 2]
    last = frames - (len(edges) - 2) * horizon
    assert len(edges) == 2 or horizon / 2 <= last
    assert last < 1.5 * horizon


def test_noise_seeds_differ() -> None:
    assert len({noise_seed(prompt, seed) for prompt in range(300) for seed in range(20)}) == 6000


def task(weights: Path, prompts: int = 3, **given: Any) -> Any:
    configs = {"own": PipelineConfig(), "full": PipelineConfig(cache="full")}
    names = [f"prompt {i}" for i in range(prompts)]
    return make_task(configs, names, **{"frames": 4, "metrics": ["flicker"], "weights": find(weights), **given})


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 3), st.integers(1, 9), st.integers(1, 5))
def test_units_hold_every_missing_video_once(weights: Path, prompts: int, seeds: int, batch: int, jobs: int) -> None:
    whole = task(weights, prompts, seeds=seeds)
    keys = {(label, i, s): f"{label} {i} {s}" for label in whole.configs for i in range(prompts) for s in range(seeds)}
    missing = {at: key for n, (at, key) in enumerate(keys.items()) if n % 3}
    made = list(units(whole, missing, batch, jobs))
    found = {(unit.label, i, unit.seed): key for unit in made for i, key in unit.missing.items()}
    assert found == missing
    assert sum(len(unit.missing) for unit in made) == len(missing)
    assert all(unit.first <= i < unit.stop <= unit.first + batch for unit in made for i in unit.missing)
    # Batches are the same whatever is missing: what is made again is made as before.
    everything = {(unit.label, unit.seed, unit.first, unit.stop) for unit in units(whole, keys, batch, jobs)}
    assert {(unit.label, unit.seed, unit.first, unit.stop) for unit in made} <= everything
    for (label, seed), stops in {(u.label, u.seed): [(v.first, v.stop) for v in units(whole, keys, batch, jobs)
                                 if (v.label, v.seed) == (u.label, u.seed)] for u in made}.items():  # fmt: skip
        assert (label, seed, stops[0][0], stops[-1][1]) == (label, seed, 0, prompts)
        assert all(before[1] == after[0] for before, after in pairwise(stops))


def test_two_workers_share_evenly(weights: Path) -> None:
    whole = task(weights, 8, seeds=3)
    keys = {(label, i, s): "k" for label in whole.configs for i in range(8) for s in range(3)}
    assert {unit.stop - unit.first for unit in units(whole, keys, 8, 1)} == {8}
    assert {unit.stop - unit.first for unit in units(whole, keys, 8, 4)} == {4}


def test_a_plan_travels(weights: Path) -> None:
    whole = task(weights)
    again = unpack(whole.packed())
    assert (again.configs, again.metrics, again.edges) == (whole.configs, whole.metrics, whole.edges)
    assert again.configs["full"].cache == Full()
    assert again.metrics == {"flicker": METRIC.build("flicker")}


def test_length_and_size(weights: Path) -> None:
    assert task(weights, frames=None).frames == CARD.train_horizon
    assert task(weights, frames=None, seconds=2).frames == 4
    assert task(weights).size == CARD.size


@pytest.mark.parametrize(("given", "message"), [
    ({"seeds": 0}, "seeds=0"), ({"frames": 0}, "frames=0"), ({"frames": None, "seconds": 0.0}, "seconds=0.0"),
    ({"seconds": 3.0}, "both set the length"), ({"prompts": 0}, "0 prompts"), ({"metrics": []}, "no metrics"),
    ({"size": (15, 16)}, "height=15 must be"), ({"metrics": ["presence"]}, "says nothing of 3 prompts"),
    ({"device": "nowhere"}, "device 'nowhere' cannot be used"),
])  # fmt: skip
def test_bad_plans(weights: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(weights, **given)


numbers = st.floats(-9, 9) | st.just(math.nan)
spans = st.builds(Interval, numbers, numbers, numbers, st.integers(0, 9))
values = st.none() | st.floats(-1, 1)
comparisons = st.builds(
    Comparison, st.text(), st.integers(), st.floats(1, 60), st.lists(st.integers()), st.lists(st.text()),
    st.lists(st.integers()), st.lists(st.builds(Method), max_size=2),
    st.lists(st.builds(Measured, low=st.just(-math.inf) | st.floats(0, 1), high=st.just(math.inf)), max_size=2),
    st.lists(st.builds(Line, st.text(), st.text(), spans, spans, st.none() | spans, st.none() | spans), max_size=2),
    st.lists(st.builds(Curve, st.text(), st.text(), st.lists(spans, max_size=3)), max_size=2),
    st.lists(st.builds(Row, whole=st.dictionaries(st.text(), values), segments=st.dictionaries(
        st.text(), st.lists(values))), max_size=2), st.dictionaries(st.text(), st.text()),
)  # fmt: skip


@settings(max_examples=40)
@given(comparisons)
def test_json_holds_all_of_it(comparison: Comparison) -> None:
    text = to_json(comparison)
    assert repr(from_json(text)) == repr(comparison)  # NaN is not itself, but is written alike
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"methods": [{}]}'])
def test_what_is_no_comparison(text: str) -> None:
    with pytest.raises(ValueError, match="no comparison in JSON"):
        from_json(text)


def test_infinite_numbers_are_refused() -> None:
    line = Line("m", "a", Interval(math.inf, 0, 0, 1), Interval(0, 0, 0, 1), None, None)
    empty = Comparison("", 1, 1, [], [], [], [], [], [], [], [], {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(dataclasses.replace(empty, lines=[line]))
