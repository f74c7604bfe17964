"""Plots of the cache: tables equal the listings of published methods, and pictures show what the plans say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arvid import PipelineConfig
from arvid.cache import Chunk, Kind, Pass, Ref, Sink, after_commit, make_plan
from arvid.models.specs import card
from arvid.plots import save_png
from arvid.plots.cache import COLOURS, figure, ranges, table
from arvid.samplers import Emit, Sampler
from arvid.simulate import views

CARD = card("self_forcing")
FULL = PipelineConfig(cache="full")
SINK = PipelineConfig(cache={"name": "sink", "window": 12, "sink": 3})
DEEP = PipelineConfig(cache={"name": "sink", "window": 21, "sink": 12}, time="sink_adjacent")
ROLLING = PipelineConfig(cache={"name": "rolling", "window": 21})
PARTICIPATIVE = PipelineConfig(cache="participative", time="sink_adjacent")
SMALL = PipelineConfig(cache={"name": "window", "window": 7})

Rows = dict[tuple[str, str], dict[str, str]]


@dataclass(frozen=True)
class Joint(Sampler):
    """One pass over five chunks, then a commit of the first."""

    def in_flight(self, chunk: int) -> int:
        return 5 * chunk

    def rollout(self, denoiser: Any, noise: Any, chunks: Any, state: Any = None) -> Iterator[Emit]:
        import torch

        for i, chunk in enumerate(chunks):
            flying = tuple(chunks[i : i + 5])
            denoiser(torch.cat([noise.initial(each) for each in flying], 1), flying)
            yield Emit(chunk, denoiser.commit(noise.initial(chunk), (chunk,)), None)


@dataclass(frozen=True)
class TwoLanes(Sampler):
    """Lane 1 starts one chunk late and so holds one chunk less."""

    lanes: ClassVar[int] = 2

    def rollout(self, denoiser: Any, noise: Any, chunks: Any, state: Any = None) -> Iterator[Emit]:
        for i, chunk in enumerate(chunks):
            for lane in range(min(2, i + 1)):
                denoiser(noise.initial(chunk), (chunk,), lane=lane)
                denoiser.commit(noise.initial(chunk), (chunk,), lane=lane)
            yield Emit(chunk, noise.initial(chunk), None)


def rows(text: str) -> Rows:
    """The cells of a table, by (chunk, pass), each cut out below the name of its column."""
    lines = text.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("chunk"))
    starts = [match.start() for match in re.finditer(r"\S+( \S+)*", lines[header])]
    found: Rows = {}
    for line in lines[header + 1 : lines.index("", header)]:
        if line != "...":
            chunk, kind, *cells = (line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True))
            found[chunk, kind] = dict(zip(re.split("  +", lines[header])[2:], cells, strict=True))
    return found


def parsed(text: str) -> list[tuple[int, float]]:
    """(frame, time) of every frame in "0-2, 17-15@18-20"."""
    slots: list[tuple[int, float]] = []
    for part in filter(None, text.split(", ")):
        frames, _, times = part.partition("@")
        first, last = int(frames.split("-")[0]), int(frames.split("-")[-1])
        run = range(first, last + 1) if last >= first else range(first, last - 1, -1)
        ends = [float(time) for time in times.split("-")] if times else [first, last]
        slots += zip(run, np.linspace(ends[0], ends[-1], len(run)).tolist(), strict=True)
    return slots


def test_a_window_with_a_sink_sees_what_is_published() -> None:
    """Frames of the history, those in flight included: 0-11; 0-2, 6-14; 0-2, 9-17; 0-2, 12-20."""
    shown = rows(table(SINK, 30, CARD))
    listing = [(3, "3-8", "9-11"), (4, "6-11", "12-14"), (5, "9-14", "15-17"), (6, "12-17", "18-20")]
    for chunk, recent, flying in listing:
        assert shown[str(chunk), "both"] == {"sees": "12", "sink": "0-2", "recent": recent, "in flight": flying}


def test_a_window_evicts_frames_rather_than_chunks() -> None:
    shown = rows(table(SMALL, 15, CARD))
    assert [row["recent"] for row in shown.values()] == ["", "0-2", "2-5", "5-8", "8-11"]
    assert [row["sees"] for row in shown.values()] == ["3", "6", "7", "7", "7"]
    assert "sink" not in shown["0", "both"]


def test_rolling_sink_in_chunk_8() -> None:
    """Times 6-26: content 6-17, 17-15, 21-23 and, at the commit, 6-17, 17-12, before 24-26."""
    shown = rows(table(ROLLING, 27, CARD))
    assert shown["8", "denoise"] == {
        "sees": "21", "memory": "17-15@18-20", "recent": "6-17, 21-23", "in flight": "24-26"
    }  # fmt: skip
    assert shown["8", "commit"] == {"sees": "21", "memory": "17-12@18-23", "recent": "6-17", "in flight": "24-26"}
    assert [kind for _, kind in shown] == ["both"] * 7 + ["denoise", "commit"] * 2


def test_deep_sinks_lie_right_before_the_rest() -> None:
    shown = rows(table(DEEP, 60, CARD))
    for chunk in range(7, 20):
        start = 3 * chunk
        assert shown[str(chunk), "both"] == {
            "sees": "21", "sink": f"0-11@{start - 18}-{start - 7}", "recent": f"{start - 6}-{start - 1}",
            "in flight": f"{start}-{start + 2}",
        }  # fmt: skip
    seen = views(DEEP, 60, CARD)[10].group
    assert dict(zip(seen.ref_times, (ref.frame for ref in seen.refs), strict=True)) == {
        **{12.0 + i: i for i in range(12)}, **{float(frame): frame for frame in range(24, 30)}
    }  # fmt: skip


def test_a_joint_window_and_its_commit_are_two_lines() -> None:
    """Rolling Forcing's windows 7, 10, 12 and 17, by the chunk that each commits."""
    sink = Sink(21, 3, sink_on_commit=False)
    shown = rows(table(PipelineConfig(cache=sink, time="sink_adjacent", sampler=Joint()), 54, CARD))
    listing = {
        3: ("3-7", "0-2@3-5", "6-8", "9-23"), 6: ("6-10", "0-2@12-14", "15-17", "18-32"),
        8: ("8-12", "0-2@18-20", "21-23", "24-38"), 17: ("17", "0-2@33-35", "36-50", "51-53"),
    }  # fmt: skip
    for sinks, recent, flying, row in ((*cells, shown[name, "denoise"]) for name, *cells in listing.values()):
        assert row == {"sees": "21", "sink": sinks, "recent": recent, "in flight": flying}
    commits = {chunk: shown[str(chunk), "commit"] for chunk in listing}
    assert [row["sink"] for row in commits.values()] == [""] * 4
    assert [commits[6]["recent"], commits[8]["recent"]] == ["0-17", "6-23"]


def test_chosen_tokens_are_said_in_words() -> None:
    text = table(PARTICIPATIVE, 48, CARD)
    shown = rows(text)
    assert shown["7", "both"] == {
        "sees": "16", "sink": "0-9@8-17", "memory": "2 frames' worth of tokens chosen from frames 10-19",
        "recent": "20", "in flight": "21-23",
    }  # fmt: skip
    assert [row["sees"] for row in shown.values()][6:] == ["21", "16", "19", "16", "19", "16", "19", "16", "19", "16"]
    assert text.endswith("frames visible: at most 21, held: at most 21, capacity: 26 (held and in flight)")


@pytest.mark.parametrize(("config", "sums"), [
    (SINK, "frames visible: at most 12, held: at most 9, capacity: 12 (held and in flight)"),
    (ROLLING, "frames visible: at most 21, held: at most 21, capacity: 24 (held and in flight)"),
    (FULL, "frames visible: at most 120, held: at most 120, capacity: grows with the video"),
])  # fmt: skip
def test_the_last_line_says_how_much_is_seen_and_held(config: PipelineConfig, sums: str) -> None:
    assert table(config, 120, CARD).splitlines()[-1] == sums


@settings(max_examples=100)
@given(st.tuples(st.integers(20, 60), st.integers(0, 60)),
       st.lists(st.tuples(st.sampled_from([-1, 1, 1, 2]), st.sampled_from([0, 0.25, 1, 1, 1, 7])), max_size=20))
def test_ranges_say_each_frame_and_its_time(first: tuple[int, int], steps: list[tuple[int, float]]) -> None:
    slots = [(first[0], float(first[1]))]
    for frames, times in steps:
        slots.append((slots[-1][0] + frames, slots[-1][1] + times))
    assert parsed(ranges(slots)) == slots


def test_a_range_has_no_gap_in_time() -> None:
    assert ranges([(0, 0), (1, 1), (2, 50), (3, 51)]) == "0-1, 2-3@50-51"
    assert ranges([(4, 20), (5, 20), (6, 20), (6, 21), (5, 22)]) == "4-6@20, 6-5@21-22"
    assert ranges([(0, 0), (1, 0.5), (2, 1)]) == "0-2@0-1"
    assert ranges([(1, 1), (2, 50)]) == "1, 2@50"
    assert ranges([]) == ""


@settings(max_examples=15)
@given(
    st.sampled_from([FULL, SMALL, SINK, DEEP, ROLLING, SINK.replace(time="relative"),
                     SINK.replace(cache=Sink(9, 2, sink_on_commit=False))]),
    st.integers(1, 4), st.integers(1, 60),
)  # fmt: skip
def test_a_table_of_every_pass_says_what_the_plans_say(config: PipelineConfig, chunk: int, frames: int) -> None:
    config = config.replace(chunk=chunk).resolve(CARD)
    assert config.cache and config.time
    shown, held = rows(table(config, frames, every=True)), ()
    for index, start in enumerate(range(0, frames, chunk)):
        for kind in Kind:
            new = Pass(kind, (Chunk(start, min(chunk, frames - start), index=index),))
            group = make_plan(config.cache, config.time, held, new).groups[0]
            row = shown.get((str(index), "both")) or shown[str(index), kind.value]
            expected = {role: sorted((t, ref.frame) for ref, t in zip(group.refs, group.ref_times, strict=True)
                                     if ref.role == role) for role in ("sink", "memory", "recent")}  # fmt: skip
            for role, slots in expected.items():
                assert sorted((t, frame) for frame, t in parsed(row.get(role, ""))) == slots
            assert parsed(row["in flight"]) == [*zip(new.frames, group.times, strict=True)]
            assert int(row["sees"]) == len(group.refs) + len(new.frames)
        held: tuple[Ref, ...] = after_commit(config.cache, held, Pass(Kind.COMMIT, new.chunks))


def test_a_long_table_has_the_beginning_and_the_end_and_says_what_it_leaves_out() -> None:
    text, every = (table(SINK, 960, CARD, every=every) for every in (False, True))
    shown = [int(chunk) for chunk, _ in rows(text)]
    assert shown[:6] == [0, 1, 2, 3, 4, 5]
    assert shown[-1] == 319
    assert len(shown) < 20
    assert text.splitlines().count("...") == sum(b > a + 1 for a, b in pairwise(shown))
    assert [int(chunk) for chunk, _ in rows(every)] == [*range(320)]
    assert "..." not in every.splitlines()
    assert rows(text).items() <= rows(every).items()
    alternating = [row["sees"] for row in rows(table(PARTICIPATIVE, 273, CARD)).values()]
    assert {*alternating[-6:]} == {"16", "19"}
    assert len(rows(table(FULL, 300, CARD))) < 20


def test_lanes_are_shown_one_by_one() -> None:
    whole = SMALL.replace(sampler=TwoLanes())
    assert {seen.lane for seen in views(whole, 9, CARD)} == {0, 1}
    first, second = (table(whole, 9, CARD, lane=lane) for lane in (0, 1))
    assert [row["recent"] for row in rows(first).values()] == ["", "0-2", "2-5"]
    assert [row["recent"] for row in rows(second).values()] == ["", "3-5"]
    assert "lane 1 of 2" in second.splitlines()[0]
    with pytest.raises(ValueError, match="lane=2: the sampler has lanes 0 to 1"):
        table(whole, 9, CARD, lane=2)
    with pytest.raises(ValueError, match="lane=-1: the sampler has lanes 0 to 1"):
        figure(whole, 9, CARD, lane=-1)


@pytest.mark.parametrize(("config", "frames", "message"), [
    (SINK, 0, "frames=0 must be a whole number, at least 1"),
    (SINK, 1.5, "frames=1.5 must be a whole number"),
    (PipelineConfig(cache={"name": "sink", "window": 4, "sink": 3}), 30, "do not fit each other"),
])  # fmt: skip
def test_what_cannot_be_is_refused(config: PipelineConfig, frames: Any, message: str) -> None:
    for show in (views, table, figure):
        with pytest.raises(ValueError, match=message):
            show(config, frames, CARD)
        with pytest.raises(ValueError, match=r"sampler, chunk.*None, which means the card's, and there is no card"):
            show(FULL, 30)


def extent(axes: Any, colour: str | None = None) -> tuple[float, float]:
    """From where to where boxes lie on x, those of a colour or all."""
    from matplotlib.colors import to_rgba

    (boxes,) = axes.collections
    faces = boxes.get_facecolors()
    wanted = [path for path, face in zip(boxes.get_paths(), faces, strict=True)
              if colour is None or np.allclose(face, to_rgba(colour))]  # fmt: skip
    xs = np.concatenate([path.vertices[:, 0] for path in wanted])
    return xs.min(), xs.max()


def test_a_picture_has_a_box_for_each_frame_seen() -> None:
    for config in (SINK, DEEP, ROLLING, PARTICIPATIVE, SINK.replace(time="relative")):
        left, right = figure(config, 120, CARD).axes
        boxes = sum(len(seen.group.refs) + 3 for seen in views(config, 120, CARD))
        assert len(left.collections[0].get_paths()) == len(right.collections[0].get_paths()) == boxes
        assert extent(right) == (-0.5, 119.5)
        assert extent(left)[1] == 2.5
        assert left.get_xlim()[0] <= extent(left)[0]
    assert len(figure(SINK, 1, CARD).axes) == 2


def test_a_picture_shows_sinks_where_they_stand_in_time() -> None:
    blue = COLOURS["sink"]
    left, right = figure(SINK, 120, CARD).axes
    assert extent(left, blue)[0] == -117.5
    assert extent(right, blue) == (-0.5, 2.5)
    assert left.get_xscale() == "symlog"
    left, right = figure(DEEP, 120, CARD).axes
    assert extent(left, blue) == (-18.5, -0.5)
    assert extent(right, blue) == (-0.5, 11.5)
    assert left.get_xscale() == "linear"


def test_a_picture_names_its_axes_roles_and_configuration() -> None:
    drawn = figure(PARTICIPATIVE, 120, CARD)
    left, right = drawn.axes
    assert left.get_ylabel() == "chunk"
    assert left.get_xlabel().startswith("time")
    assert right.get_xlabel() == "latent frame of the video"
    named = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert named == ["sink", "memory (darker: a later frame)", "tokens chosen from these", "recent", "in flight"]
    assert drawn.get_suptitle() == table(PARTICIPATIVE, 120, CARD).splitlines()[0]
    assert figure(PARTICIPATIVE, 300, CARD).axes[0].get_ylabel() == "chunk, one in 3"  # odd: both of two that alternate
    assert figure(ROLLING, 960, CARD).axes[0].get_ylabel() == "chunk, one in 5; denoise above, commit below"


def test_a_failure_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, drawn = tmp_path / "a.png", figure(SINK, 12, CARD)
    path.write_text("older")

    def fail(unfinished: Path, **_: Any) -> None:
        unfinished.write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(drawn, "savefig", fail)
    with pytest.raises(OSError, match="no space left"):
        save_png(drawn, path)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("a.png", "older")]
    with pytest.raises(ValueError, match=r"a.jpg': the name must end in .png"):
        save_png(drawn, tmp_path / "a.jpg")


def test_plots_load_neither_torch_nor_matplotlib_and_never_pyplot() -> None:
    code = """
import sys, arvid.plots.cache, arvid.cli
assert not {"torch", "matplotlib"} & set(sys.modules)
from arvid import PipelineConfig
from arvid.models.specs import card
arvid.plots.cache.figure(PipelineConfig(cache="full"), 9, card("self_forcing"))
assert "matplotlib.pyplot" not in sys.modules
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
