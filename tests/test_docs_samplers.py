"""docs/samplers.md: its table is what samplers do, its names are there, and its example passes the checker."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from arvid.cache import Chunk
from arvid.presets import STUDENTS
from arvid.samplers import SAMPLER, Sampler
from arvid.testing import trace

PAGE = (Path(__file__).parents[1] / "docs" / "samplers.md").read_text()
LEVELS = {"shift": 5.0, "context_noise": 0.0}
FOUR = (1000, 750, 500, 250)
ROWS = {
    "`few_step`": {"name": "few_step", "steps": FOUR},
    "`few_step`, `first_steps`": {"name": "few_step", "steps": (1000, 500), "first_steps": (FOUR,)},
    '`few_step`, `commit = "last"`': {
        "name": "few_step", "steps": (1000, 100), "first_steps": ((1000, 750, 500, 100), (1000, 750, 100)),
        "commit": "last",
    },
    "`multistep`": {"name": "multistep", "num_steps": 50},
    "`rolling_forcing`": {"name": "rolling_forcing", "steps": (1000, 800, 600, 400, 200)},
    "`hierarchical`": {"name": "hierarchical", "steps": FOUR},
    "`diffusion_forcing`": {"name": "diffusion_forcing", "num_steps": 30, "ar_step": 5},
}  # fmt: skip


def cells(table: int) -> dict[str, list[str]]:
    """The rows of a table of the page by their first cell."""
    found = re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE)[table].splitlines()[2:]
    return {name: rest for name, *rest in ([cell.strip() for cell in row.strip("|").split("|")] for row in found)}


def passes(sampler: Sampler, count: int) -> tuple[int, int, int]:
    """Calls, chunk passes, and calls before the first chunk is emitted, for `count` chunks."""
    events = trace(sampler, [Chunk(3 * i, 3, index=i) for i in range(count)])
    calls = [len(chunks) for kind, chunks, _ in events if kind != "emit"]
    return len(calls), sum(calls), [kind for kind, *_ in events].index("emit")


def test_every_sampler_is_there() -> None:
    assert {spec["name"] for spec in ROWS.values()} == {name for name in SAMPLER.names() if _built_in(name)}
    assert set(cells(0)) == set(cells(1)) == set(ROWS)


def _built_in(name: str) -> bool:
    return SAMPLER.get(name).__module__.startswith("arvid.")


@pytest.mark.parametrize("row", ROWS)
def test_calls_are_those_of_the_trace(row: str) -> None:
    sampler = SAMPLER.build({**ROWS[row], **LEVELS})
    (calls, whole, first), (more_calls, more_whole, _) = passes(sampler, 40), passes(sampler, 80)
    measured = [(more_calls - calls) / 40, (more_whole - whole) / 40, first, sampler.lanes]
    assert [float(cell) for cell in cells(0)[row][1:]] == measured


def test_students_are_presets_whose_sampler_it_is() -> None:
    named = {name for row in cells(1).values() for name in re.findall(r"`(\w+)`", row[0]) if name in STUDENTS}
    assert named | {"causal_forcing_framewise_1step"} == set(STUDENTS)


def test_the_example_passes_the_checker() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/samplers.md", "exec"), {"__name__": "docs_samplers"})
    assert "one_step" in SAMPLER.names()
