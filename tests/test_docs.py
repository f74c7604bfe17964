"""What the documentation shows is what the program does."""

from __future__ import annotations

import gzip
import json
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from command import ran

from arvid.cache import CACHE, CachePolicy, Chunk, Full, Kind, Participative, Pass, Rolling, Sink, Window, make_plan
from arvid.cache.base import CodecName
from arvid.cache.store import Store, StoreShape
from arvid.evaluation.statistics import intervals
from arvid.models.specs import card
from arvid.noise import NOISE
from arvid.positional import ROTARY, Absolute, Rope, RotaryContext, SinkAdjacent, TimeMap
from arvid.positional.rotation import phase, rotate, time_angles
from arvid.testing import check_cache, check_noise

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("cache", "positional", "noise")
CACHE_PAGE, POSITIONAL_PAGE, NOISE_PAGE = ((DOCS / f"{page}.md").read_text() for page in PAGES)
CONSOLE = [block for page in sorted(DOCS.glob("*.md")) for block in
           re.findall(r"```console\n\$ arvid (.*?)\n(.*?)```", page.read_text(), re.DOTALL)]  # fmt: skip


@pytest.mark.parametrize(("command", "output"), CONSOLE, ids=[command for command, _ in CONSOLE])
def test_console_output(command: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(capsys, *shlex.split(command)).out == output


def test_every_picture_is_there() -> None:
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        pictures = re.findall(r"!\[.*?\]\((.*?)\)", page.read_text())
        missing = [picture for picture in pictures if not (page.parent / picture).is_file()]
        assert not missing, f"{page.name} shows {missing}"


def gib(policy: CachePolicy, time: TimeMap, frames: int = 84) -> float:
    """What a store of the published 1.3B model holds in the end, in bfloat16; nothing is allocated."""
    published = card("self_forcing")
    dit, (height, width) = published.dit, published.size
    stride = published.vae.space_stride * dit.patch[1]
    shape = StoreShape(1, 1, (height // stride, width // stride), dit.num_heads, dit.axes)
    static = policy.static and time.static and policy.codec is None
    pages = policy.capacity(3, 3) or frames
    store = Store(shape, policy, rotated=static, pages=pages, dtype=torch.bfloat16, device="meta")
    freq = Rope().inv_freq(RotaryContext(dit.axes[0], dit.num_heads))
    qkv = torch.empty(1, 3 * shape.tokens, dit.num_heads, sum(dit.axes), dtype=torch.bfloat16, device="meta")
    for index in range(frames // 3):
        for kind in Kind:
            new = Pass(kind, (Chunk(3 * index, 3, 0.5, index),))
            store.begin(new, make_plan(policy, time, store.before(new), new), freq)
            store.exchange(0, qkv, qkv, qkv)
        store.end()
    return store.live_bytes * dit.num_blocks / 2**30


@pytest.mark.parametrize(("row", "policy", "time"), [
    ("`window`", Window(21), Absolute()),
    ("`sink`", Sink(12, 3), Absolute()),
    ("`sink`, `sink_on_commit=false`", Sink(21, 3, sink_on_commit=False), SinkAdjacent()),
    ("`rolling`", Rolling(21, chunk=3), Absolute()),
    ("`participative`", Participative(), SinkAdjacent()),
    ("preset `deep_sink`", Sink(21, 12), SinkAdjacent()),
    ("`full`", Full(), Absolute()),
])  # fmt: skip
def test_memory_column(row: str, policy: CachePolicy, time: TimeMap) -> None:
    (memory,) = re.findall(rf"^\| {re.escape(row)} \|.*? (\d+\.\d) GiB", CACHE_PAGE, re.MULTILINE)
    assert f"{gib(policy, time):.1f}" == memory


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_codec_bytes(name: CodecName) -> None:
    (share,) = re.findall(rf"^\| `{name}` \| (0\.\d{{3}}) \|", CACHE_PAGE, re.MULTILINE)
    exact, coded = (gib(Window(21, codec=codec), Absolute(), 21) for codec in ("bf16", name))
    assert f"{coded / exact:.3f}" == share


def test_the_rule_of_the_page_passes_the_checker() -> None:
    (code,) = re.findall(r"## Your own\n\n```python\n(.*?)```", POSITIONAL_PAGE, re.DOTALL)
    exec(compile(code.replace('"slow"', '"slow_of_the_docs"'), "positional.md", "exec"), {"__name__": __name__})
    assert "slow_of_the_docs" in ROTARY.names()


def test_the_table_of_rotation_in_place() -> None:
    """A bfloat16 key turned by 3 frames again and again, and turned once from what it was."""
    rows = re.findall(r"^\| ([\d,]+) \| (\S+) \| (\S+) \|$", POSITIONAL_PAGE, re.MULTILINE)
    assert len(rows) == 5
    dim, draw = card("self_forcing").dit.axes[0], torch.Generator().manual_seed(0)
    key = torch.randn(1, 4096, 1, dim, generator=draw, dtype=torch.float64).bfloat16()

    def turned(x: torch.Tensor, frames: int) -> torch.Tensor:
        return rotate(x, phase(time_angles((float(frames),), Rope().inv_freq(RotaryContext(dim, 1))), x.dtype))

    place, chunks = key, 0
    for count, in_place, at_read in rows:
        while chunks < int(count.replace(",", "")):
            place, chunks = turned(place, 3), chunks + 1
        exact = turned(key.double(), 3 * chunks)
        for found, said in ((place, in_place), (turned(key, 3 * chunks), at_read)):
            error = ((found.double() - exact).square().mean() / exact.square().mean()).sqrt()
            assert abs(error / float(said) - 1) < 0.1


def test_the_policy_of_the_page_passes_the_checker() -> None:
    (code,) = re.findall(r"## Your own\n\n```python\n(.*?)```", CACHE_PAGE, re.DOTALL)
    code = code.replace('register("fading")', 'register("fading_of_the_docs")')
    exec(compile(code, "cache.md", "exec"), {"__name__": __name__})
    check_cache(CACHE.build("fading_of_the_docs"))


def test_the_prior_of_the_page_passes_the_checker() -> None:
    (code,) = re.findall(r"## Your own\n\n```python\n(.*?)```", NOISE_PAGE, re.DOTALL)
    exec(compile(code.replace('"pendulum"', '"pendulum_of_the_docs"'), "noise.md", "exec"), {"__name__": __name__})
    check_noise(NOISE.build({"name": "pendulum_of_the_docs", "period": 4}))


def test_the_noise_snippet_runs() -> None:
    (code,) = re.findall(r"From Python:\n\n```python\n(.*?)```", NOISE_PAGE, re.DOTALL)
    exec(compile(code, "noise.md", "exec"), {})


def test_the_table_of_priors_is_that_of_the_report() -> None:
    """Means, and intervals exactly where they leave out zero."""
    report = json.loads(gzip.decompress((DOCS / "results/noise/report.json.gz").read_bytes()))
    lines = {(line["metric"], line["method"]): line for line in report["lines"]}
    (head, rows) = re.findall(r"^\| configuration \|(.*) \|\n\|---.*\n((?:\|.*\n)+)", NOISE_PAGE, re.MULTILINE)[0]
    metrics = [name.strip(" `") for name in head.split("|")]
    methods = [row.split("|")[1].strip(" `") for row in rows.splitlines()]
    assert methods == [method["label"] for method in report["methods"]]
    for row, method in zip(rows.splitlines(), methods, strict=True):
        for cell, metric in zip(row.strip("| ").split("|")[1:], metrics, strict=True):
            line = lines[metric, method]
            wanted, away = f"{line['whole']['mean']:.2f}", line["whole_difference"]
            if away and (away["low"] > 0 or away["high"] < 0):
                wanted = f"**{wanted}** ({away['low']:+.3f}, {away['high']:+.3f})"
            assert cell.strip() == wanted


def test_the_claims_of_the_results_are_those_of_the_reports() -> None:
    """Each interval in the table of claims, from the numbers of single videos."""
    page = (DOCS / "results/README.md").read_text()
    rows = re.findall(r"^\|[^|]*\| `(\w+)`(?: - `(\w+)`)?: `(\w+)`, (\w+) \|(.*?)\|(.*?)\|", page, re.MULTILINE)
    assert len(rows) > 20
    for place, column in (("horizon-6x", 4), ("horizon-12x", 5)):
        report = json.loads(gzip.decompress((DOCS / f"results/{place}/report.json.gz").read_bytes()))
        videos = {(row["method"], row["prompt"]): row for row in report["rows"]}

        def value(method: str, metric: str, what: str, prompt: str) -> float:
            if not method:
                return 0.0
            row = videos[method, prompt]  # noqa: B023
            ends = [row["whole"][metric]] if what == "whole" else [row["segments"][metric][i] for i in (-1, 0)]
            return math.nan if None in ends else ends[0] - sum(ends[1:])

        for row in rows:
            a, b, metric, what = row[:4]
            away = [[value(a, metric, what, prompt) - value(b, metric, what, prompt)] for prompt in report["prompts"]]
            (found,) = intervals(np.array(away))
            mark = "**" if found.low > 0 or found.high < 0 else ""
            assert row[column].strip() == f"{mark}{found.mean:+.3f}{mark} ({found.low:+.3f}, {found.high:+.3f})", row
