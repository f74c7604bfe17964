"""The report of a comparison: its numbers are the comparison's, its text is inert, and it is there whole or not."""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import imageio.v3 as iio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arvid.evaluation import figures, html
from arvid.evaluation.results import Comparison, Curve, Interval, Line, Measured, Method, Row

NAN = float("nan")
NONE = Interval(NAN, NAN, NAN, 0)
LABELS = ("window", "sink, three frames", "a label of sixty characters & <u>markup</u> in it, to be inert")
METRICS = [
    Measured("colour", 0, 1, "higher", "", "Share of videos with the colour right.", "Anything but colour."),
    Measured("flicker", 0, 1, "lower", "", "Mean change of neighbouring frames.", "Slow changes."),
    Measured("object_speed", 0, math.inf, "", "sides/s", "How fast the object moves.", "Objects not intact."),
    Measured("never_heard_of", -1, 1, "higher", "<i>", 'About "<script>alert(1)</script>".', "All & <nothing>."),
    Measured("tiny", 0, 1e-3, "lower", "s", "A small number.", "Large numbers."),
]
SCALES = {"colour": 1.0, "flicker": 0.1, "object_speed": 40.0, "never_heard_of": 1.0, "tiny": 1e-4}


def interval(values: np.ndarray) -> Interval:
    """Mean and a normal interval; what matters here is that the numbers vary."""
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return Interval(float(values[0]) if len(values) else NAN, NAN, NAN, len(values))
    half = 2 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Interval(float(values.mean()), float(values.mean()) - half, float(values.mean()) + half, len(values))


def compared(folder: Path, labels: Sequence[str] = LABELS, metrics: list[Measured] = METRICS, prompts: int = 12,
             segments: int = 6, seeds: int = 1, size: int = 4) -> Comparison:  # fmt: skip
    """Of random values; strips are written to the folder. Metrics are worse with time, and better by method."""
    rng = np.random.default_rng(0)
    texts = [f"prompt {i}: a red ball bounces around on a navy background" for i in range(prompts)]
    texts[0] = '<script>alert("a")</script> & a \'quoted\' ball'
    values = {(metric.name, label): SCALES.get(metric.name, 1.0) * (
        0.5 + 0.05 * i - 0.04 * np.arange(segments) + 0.05 * rng.standard_normal((prompts, segments)))
        for metric in metrics for i, label in enumerate(labels)}  # fmt: skip
    if len(labels) > 1 and metrics is METRICS:
        values["never_heard_of", labels[1]][:] = NAN  # cannot be measured at all
        values["object_speed", labels[0]][:3, 2:4] = NAN
        values["object_speed", labels[0]][:, 3:4] = NAN
    lines, curves = [], []
    for metric in metrics:
        base = values[metric.name, labels[0]]
        for label in labels:
            own = values[metric.name, label]
            whole, drift = own[:, 0] + own[:, -1], own[:, -1] - own[:, 0]
            other = (interval(whole - base[:, 0] - base[:, -1]), interval(drift - base[:, -1] + base[:, 0]))
            lines.append(Line(metric.name, label, interval(whole), interval(drift),
                              *((None, None) if label == labels[0] else other)))  # fmt: skip
            curves.append(Curve(metric.name, label, [interval(column) for column in own.T]))
    rows = []
    (folder / "strips").mkdir(exist_ok=True)
    for i, label in enumerate(labels):
        for j, prompt in enumerate(texts):
            for seed in range(seeds):
                name = f"strips/{i}-{j} #{seed}.png"
                frames = rng.integers(0, 255, (8, 1, 1, 3), np.uint8).repeat(size, 1).repeat(size, 2)
                iio.imwrite(folder / name, np.concatenate(list(frames), 1))
                rows.append(Row(label, prompt, seed, {}, {}, name))
    methods = [Method(label, f'# {i}\ncache = "<{label}>"\n', f"cache={i}") for i, label in enumerate(labels)]
    edges = [0, *(1 + 83 * (i + 1) for i in range(segments))]
    return Comparison('arvid compare a b --set "x=<y>"', 126, 16.0, edges, texts, list(range(seeds)), methods, metrics,
                      lines, curves, rows, {"torch": "2.10", "cpu": "<cores> & more"})  # fmt: skip


@dataclass
class Node:
    """An element of a page; `text` is all that is in it."""

    tag: str
    attrs: dict[str, str | None]
    children: list[Node] = field(default_factory=list)
    text: str = ""

    def all(self, tag: str, **attrs: str) -> list[Node]:
        own = [self] if self.tag == tag and all(self.attrs.get(k) == v for k, v in attrs.items()) else []
        return own + [found for child in self.children for found in child.all(tag, **attrs)]

    def has(self, cls: str) -> bool:
        return cls in (self.attrs.get("class") or "").split()


class Tree(HTMLParser):
    """A parser that refuses what is not closed in its turn."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Node("", {})]
        self.feed(page)
        self.close()
        assert [node.tag for node in self.open] == [""], f"not closed: {self.open[-1].tag}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} is there twice"
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in {"meta", "img", "br", "wbr"}:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes {self.open[-1].tag} at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for node in self.open:
            node.text += data


def tree(page: str) -> Node:
    return Tree(page).open[0]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path, Node]:
    """Three methods, five metrics, 14 prompts: the comparison, its folder, and the page as it was read again."""
    folder = tmp_path_factory.mktemp("report")
    comparison = compared(folder, prompts=14)
    page, picture = html.write(comparison, folder)
    assert (page, picture) == (folder / "report.html", folder / "report.png")
    return comparison, folder, tree(page.read_text("utf-8"))


def page_of(comparison: Comparison, folder: Path) -> Node:
    html._check(comparison)
    return tree(html._page(comparison, folder))


def plain(text: str) -> float:
    return float(text.replace("−", "-"))


def check_value(node: Node, value: float, sign: bool) -> None:
    """An element has the very value, and shows it to half of the last digit that it shows."""
    assert node.attrs["value"] == repr(value)
    mantissa, _, power = node.text.replace("−", "-").partition("e")
    last = 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2]))
    assert abs(plain(node.text) - value) <= 0.5001 * last
    assert node.text.startswith("+") == (sign and plain(node.text) > 0)


def check_interval(node: Node, interval: Interval, prompts: int, sign: bool = False) -> None:
    found, wanted = node.all("data"), [interval.mean, interval.low, interval.high]
    if interval.n == 0:
        assert (found, node.text) == ([], "– could not be measured")
        return
    if math.isnan(interval.low):
        assert node.text.endswith(f"– no interval from {interval.n} prompt{'s' * (interval.n != 1)}")
        wanted = wanted[:1]
    for one, value in zip(found, wanted, strict=True):
        check_value(one, value, sign)
    assert ("prompt" in node.text) == (interval.n != prompts or math.isnan(interval.low))


def check_table(page: Node, comparison: Comparison, kind: str) -> int:
    """Every number of a table is the comparison's, and every mark what the numbers say; the count of marks."""
    (table,) = page.all("table", id=kind)
    head, *rows = [[*row.all("th"), *row.all("td")] for row in table.all("tr")]
    assert [cell.text.split("differences")[0] for cell in head] == [
        "metric", *(f"{i} {method.label}" for i, method in enumerate(comparison.methods, 1))]  # fmt: skip
    lines = {(line.metric, line.method): line for line in comparison.lines}
    marks = 0
    for (name, *cells), metric in zip(rows, comparison.metrics, strict=True):
        assert name.text.split()[0] == metric.name
        for cell, method in zip(cells, comparison.methods, strict=True):
            line = lines[metric.name, method.label]
            own = line.whole if kind == "whole" else line.drift
            difference = line.whole_difference if kind == "whole" else line.drift_difference
            value, *others = cell.children
            check_interval(value, own, len(comparison.prompts))
            assert len(others) == (difference is not None)
            if difference is not None:
                mark = others[0].text.split()[-1] if others[0].all("span", **{"class": "mark"}) else ""
                sides = {difference.low > 0: "higher", difference.high < 0: "lower"}
                expected = "" if True not in sides else "differs" if not metric.better else (
                    "better" if sides[True] == metric.better else "worse")  # fmt: skip
                assert mark == expected
                assert not mark or others[0].has(mark)
                without = re.sub(" [✓✗≠] [a-z]+$", "", others[0].text)
                check_interval(replace(others[0], text=without), difference, len(comparison.prompts), sign=True)
                marks += bool(mark)
    return marks


@pytest.mark.parametrize("kind", ["whole", "drift"])
def test_the_numbers_of_a_table_are_the_comparisons(written: tuple[Comparison, Path, Node], kind: str) -> None:
    comparison, _, page = written
    marks = check_table(page, comparison, kind)
    (note,) = [p.text for p in page.all("p", **{"class": "chance"})[kind == "drift" :][:1]]
    assert note.startswith(f"Of 9 intervals of differences, {marks} exclude")  # 4 metrics of 2, 1 cannot be measured
    assert "about 0.45 would exclude zero by chance" in note
    assert marks > 0


@pytest.mark.parametrize("case", [
    {"labels": ("window",)}, {"prompts": 1}, {"prompts": 2}, {"segments": 1}, {"metrics": METRICS[:1]},
    {"labels": tuple("abcdefghij")}, {"seeds": 3, "prompts": 2},
    {"labels": ("window",), "prompts": 1, "segments": 1, "metrics": METRICS[-1:]},
])  # fmt: skip
def test_reports_of_all_sizes_have_their_numbers(case: Any, tmp_path: Path) -> None:
    comparison = compared(tmp_path, **case)
    page = page_of(comparison, tmp_path)
    check_table(page, comparison, "whole")
    if case.get("segments") == 1:
        assert not page.all("table", id="drift") + page.all("svg", **{"class": "panel"})
        assert "one segment long" in page.text
    else:
        check_table(page, comparison, "drift")
        assert len(page.all("svg", **{"class": "panel"})) == len(comparison.metrics)
    assert ("no differences" in page.text) == (len(comparison.methods) == 1)
    assert len(page.all("img")) == len(comparison.rows)
    figures.summary(comparison).savefig(io.BytesIO(), dpi=30)


def test_one_prompt_has_no_intervals_and_the_report_says_why(tmp_path: Path) -> None:
    page = page_of(compared(tmp_path, prompts=1), tmp_path)
    assert "– no interval from 1 prompt" in page.text
    assert "No difference has an interval" in page.text
    assert not page.all("span", **{"class": "mark"})


ENDS = st.floats(-1e6, 1e6, allow_subnormal=False).filter(lambda value: value == 0 or abs(value) > 1e-9)


@given(ENDS, ENDS, st.floats(0, 1))
def test_numbers_show_two_digits_of_the_interval_and_never_touch_zero_wrongly(a: float, b: float, part: float) -> None:
    low, high = sorted((a, b))
    mean = min(max(low + part * (high - low), low), high)
    given_interval = Interval(mean, low, high, 8)
    texts = figures.numbers(given_interval)
    if high > low:
        for text, value in zip(texts, (mean, low, high), strict=True):
            assert abs(plain(text) - value) <= 0.051 * (high - low) / 2 + 1e-12 * abs(value)
    if low > 0:
        assert plain(texts[1]) > 0
    if high < 0:
        assert plain(texts[2]) < 0
    assert not any(re.fullmatch(r"[−-]0\.?0*", text) for text in texts)


@pytest.mark.parametrize(("interval_", "texts"), [
    (Interval(0.81234, 0.79012, 0.83456, 8), ("0.812", "0.790", "0.835")),
    (Interval(0.98333, NAN, NAN, 1), ("0.983", "–", "–")),
    (Interval(1, 1, 1, 8), ("1.00", "1.00", "1.00")),
    (Interval(0, 0, 0, 8), ("0.00", "0.00", "0.00")),
    (Interval(1234.5, 1000, 1469, 8), ("1234", "1000", "1469")),
    (Interval(0.0339, 0.00009, 0.0677, 8), ("0.034", "0.00009", "0.068")),
    (Interval(-1.5e-7, -2e-7, -1e-7, 8), ("−1.50e−07", "−2.00e−07", "−1.00e−07")),
])  # fmt: skip
def test_numbers_by_hand(interval_: Interval, texts: tuple[str, ...]) -> None:
    assert figures.numbers(interval_) == texts


@pytest.mark.parametrize(("better", "low", "high", "expected"), [
    ("higher", 0.1, 0.2, "better"), ("higher", -0.2, -0.1, "worse"), ("lower", 0.1, 0.2, "worse"),
    ("lower", -0.2, -0.1, "better"), ("", 0.1, 0.2, "differs"), ("", -0.2, -0.1, "differs"), ("higher", -0.1, 0.2, ""),
    ("higher", 0.0, 0.2, ""), ("lower", 0.0, 0.0, ""), ("higher", NAN, NAN, ""),
])  # fmt: skip
def test_verdicts(better: str, low: float, high: float, expected: str) -> None:
    metric = Measured("m", 0, 1, better, "", "", "")
    assert figures.verdict(metric, Interval((low + high) / 2, low, high, 8)) == expected


# What is in a page, and what is not


def test_text_of_users_is_inert_and_all_there(written: tuple[Comparison, Path, Node], tmp_path: Path) -> None:
    comparison, _, page = written
    other = page_of(compared(tmp_path, LABELS[::-1], prompts=1), tmp_path)  # markup in the first label, too
    tags = {node.tag for node in (*nodes(page), *nodes(other))}
    assert not tags & {"script", "link", "iframe", "object", "base", "form", "i", "u", "nothing", "cores"}
    assert not any(name.startswith("on") or name == "style" for node in nodes(page) for name in node.attrs)
    for text in [*comparison.prompts, comparison.command, *comparison.facts, *comparison.facts.values()]:
        assert text in page.text
    for metric in comparison.metrics:
        (name,) = [dt for dt in page.all("dt") if dt.text.split()[0] == metric.name]
        assert metric.unit in name.text
        assert f"{metric.about}Cannot see: {metric.blind}" in page.text
    configurations = [node for node in page.all("details") if node.all("pre")]
    for details, method in zip(configurations, comparison.methods, strict=True):
        assert details.all("pre")[0].text.removeprefix("\n") == method.toml
        assert method.label in details.all("summary")[0].text
        assert method.summary in details.all("summary")[0].text


def nodes(node: Node) -> list[Node]:
    return [node, *(found for child in node.children for found in nodes(child))]


def test_a_page_needs_nothing_from_elsewhere(written: tuple[Comparison, Path, Node]) -> None:
    _, folder, page = written
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert (policy.attrs["content"] or "").startswith("default-src 'none'")
    for node in nodes(page):
        for name in {"src", "href", "srcset", "data", "poster"} & set(node.attrs):
            address = unquote(node.attrs[name] or "")
            assert address.startswith("data:image/png;base64,") or (node.tag == "a" and (folder / address).is_file())
    (style,) = page.all("style")
    assert not re.search(r"url\(|@import|https?:", style.text)


def test_the_parts_are_in_order(written: tuple[Comparison, Path, Node]) -> None:
    _, _, page = written
    assert [node.text for node in page.all("h2")] == [
        "Whole videos", "Drift: last segment minus first", "Over time", "Contact sheets", "What the metrics are",
        "Exact configurations", "How it was run"]  # fmt: skip
    opening = page.all("p")[0].text
    for words in ("3 methods, 14 prompts and 1 seed: 42 videos of 31.19 s", "126 latent frames, 499 pixel frames at 16",
                  "in 6 segments, the first of 5.25 s and the last of 5.19 s", "the first method, window"):  # fmt: skip
        assert words in opening


# Contact strips


def test_strips_are_in_the_page_as_they_are_in_the_folder(written: tuple[Comparison, Path, Node]) -> None:
    comparison, folder, page = written
    strips = {(row.method, row.prompt): folder / row.strip for row in comparison.rows}
    sections = page.all("section")
    assert [section.all("h3")[0].text for section in sections] == [
        f"{i}. {prompt}" for i, prompt in enumerate(comparison.prompts, 1)]
    for prompt, section in zip(comparison.prompts[:12], sections, strict=False):
        for image, method in zip(section.all("img"), comparison.methods, strict=True):
            content = base64.b64decode((image.attrs["src"] or "").partition(",")[2])
            assert content == strips[method.label, prompt].read_bytes()
            assert (image.attrs["width"], image.attrs["height"]) == ("32", "4")
            assert method.label in (image.attrs["alt"] or "")
    for prompt, section in zip(comparison.prompts[12:], sections[12:], strict=True):
        links = [(folder / unquote(a.attrs["href"] or "")).resolve() for a in section.all("a")]
        assert not any("#" in (a.attrs["href"] or "") for a in section.all("a"))
        assert links == [strips[method.label, prompt].resolve() for method in comparison.methods]


def test_a_prompt_that_is_there_twice_has_its_own_strips(tmp_path: Path) -> None:
    comparison = compared(tmp_path, LABELS[:1], prompts=3)
    same = [replace(row, prompt="twice") if row.prompt != comparison.prompts[0] else row for row in comparison.rows]
    page = page_of(replace(comparison, rows=same, prompts=[comparison.prompts[0], "twice", "twice"]), tmp_path)
    content = [base64.b64decode((image.attrs["src"] or "").partition(",")[2]) for image in page.all("img")]
    assert content == [(tmp_path / row.strip).read_bytes() for row in comparison.rows]


def test_a_wide_strip_is_reduced_and_says_so(tmp_path: Path) -> None:
    comparison = compared(tmp_path, LABELS[:1], prompts=1, size=300)
    (image,) = page_of(comparison, tmp_path).all("img")
    small = iio.imread(io.BytesIO(base64.b64decode((image.attrs["src"] or "").partition(",")[2])))
    large = iio.imread(tmp_path / comparison.rows[0].strip)
    assert (image.attrs["width"], image.attrs["height"], small.shape) == ("1200", "150", (150, 1200, 3))
    np.testing.assert_array_equal(small, large[::2, ::2])  # frames are plain, and meet at even pixels
    assert "one pixel in 2" in page_of(comparison, tmp_path).text


def test_strips_that_cannot_be_shown_are_named(tmp_path: Path) -> None:
    comparison = compared(tmp_path, prompts=14)
    strip = tmp_path / comparison.rows[0].strip
    strip.write_bytes(strip.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"0-0 #0\.png' is no PNG that can be read"):
        html.write(comparison, tmp_path)
    strip.write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match="is no PNG that can be read"):
        html.write(comparison, tmp_path)
    strip.unlink()
    with pytest.raises(FileNotFoundError, match=r"no strip 'strips/0-0 #0\.png' \(window, seed 0, .*again"):
        html.write(comparison, tmp_path)
    (tmp_path / comparison.rows[13].strip).unlink()  # one that is linked only
    with pytest.raises(FileNotFoundError, match="run the command"):
        html.write(comparison, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["strips"]


# Curves, and the picture


def test_curves_lie_where_their_ticks_say(written: tuple[Comparison, Path, Node]) -> None:
    comparison, _, page = written
    curves = {(curve.metric, curve.method): curve for curve in comparison.curves}
    middles = (np.array(comparison.edges)[1:] + comparison.edges[:-1]) / 2 / comparison.fps
    for svg, metric in zip(page.all("svg", **{"class": "panel"}), comparison.metrics, strict=True):
        x, y = scale(svg, "x"), scale(svg, "y")
        for i, (group, method) in enumerate(zip(svg.all("g"), comparison.methods, strict=True)):
            assert group.attrs["class"] == f"c{i}"
            segments = curves[metric.name, method.label].segments
            seen = [j for j, at in enumerate(segments) if not math.isnan(at.mean)]
            room = 0.002 * (y(10) - y(150))
            drawn = [point for line in group.all("polyline") for point in points(line)]
            assert len(drawn) == len(seen)
            for (across, up), j in zip(drawn, seen, strict=True):
                assert x(across) == pytest.approx(middles[j], abs=0.05)
                assert y(up) == pytest.approx(segments[j].mean, abs=room)
            ups = [y(up) for band in group.all("polygon") if band.has("band") for _, up in points(band)]
            ends = [end for at in segments for end in (at.low, at.high) if not math.isnan(end)]
            np.testing.assert_allclose(sorted(ups), sorted(ends), atol=room)
            titles = [title.text for title in group.all("title")]
            assert titles == [f"{i + 1}, {middles[j]:.1f} s: {mean} [{low}, {high}]"
                              for j in seen for mean, low, high in [figures.numbers(segments[j])]]  # fmt: skip


def points(node: Node) -> list[tuple[float, float]]:
    pairs = [pair.split(",") for pair in (node.attrs["points"] or "").split()]
    return [(float(x), float(y)) for x, y in pairs]


def scale(svg: Node, axis: str) -> Callable[[float], float]:
    """From pixels to values, by the outermost ticks."""
    ticks = [(float(text.attrs[axis] or ""), plain(text.text)) for text in svg.all("text", **{"class": axis})
             if text.text != "seconds"]  # fmt: skip
    (pixel, value), (pixel_, value_) = ticks[0], ticks[-1]
    assert 2 <= len(ticks) <= 6
    return lambda at: value + (at - pixel) * (value_ - value) / (pixel_ - pixel)


def test_a_gap_in_what_could_be_measured_is_a_gap_in_the_curve(written: tuple[Comparison, Path, Node]) -> None:
    comparison, _, page = written
    speed = page.all("svg", **{"class": "panel"})[2].all("g")
    assert [len(points(line)) for line in speed[0].all("polyline")] == [3, 2]
    assert [len(points(line)) for line in speed[1].all("polyline")] == [6]
    unseen = page.all("svg", **{"class": "panel"})[3].all("g")[1]
    assert unseen.children == []
    nothing = [replace(curve, segments=[NONE] * 6) for curve in comparison.curves]
    page = page_of(replace(comparison, curves=nothing), written[1])
    assert page.text.count("could not be measured in any segment") == 5


def test_the_picture_draws_the_comparisons_numbers(written: tuple[Comparison, Path, Node]) -> None:
    comparison, folder, _ = written
    image = iio.imread(folder / "report.png")
    assert image.shape[1] == 1200
    drawing = figures.summary(comparison)
    curves = {(curve.metric, curve.method): curve for curve in comparison.curves}
    lines = {(line.metric, line.method): line for line in comparison.lines}
    for curve_axes, forest, metric in zip(drawing.axes[::2], drawing.axes[1::2], comparison.metrics, strict=True):
        assert curve_axes.get_title().startswith(metric.name)
        for i, method in enumerate(comparison.methods):
            segments = curves[metric.name, method.label].segments
            np.testing.assert_array_equal(np.asarray(curve_axes.lines[i].get_ydata()), [at.mean for at in segments])
            ends = {end for at in segments for end in (at.low, at.high) if not math.isnan(end)}
            band = [np.asarray(path.vertices)[:, 1] for path in curve_axes.collections[i].get_paths()]
            assert set(np.concatenate(band).tolist() if band else []) >= ends
        for i, method in enumerate(comparison.methods[1:], 1):
            difference = lines[metric.name, method.label].whole_difference
            assert difference
            bar, dot = forest.lines[2 * i - 1 : 2 * i + 1]
            np.testing.assert_array_equal(np.asarray(bar.get_xdata()), [difference.low, difference.high])
            np.testing.assert_array_equal(np.asarray(dot.get_xdata()), [difference.mean])
            assert (dot.get_markerfacecolor() != "white") == (difference.low > 0 or difference.high < 0)
            left, right = forest.get_xlim()
            assert left < 0 < right
            assert math.isnan(difference.mean) or left < difference.low <= difference.high < right
        unseen = sum(math.isnan(curves[metric.name, method.label].segments[0].mean) for method in comparison.methods)
        assert sum("could not be measured" in text.get_text() for text in forest.texts) == unseen
    smallest = min(text.get_fontsize() for text in drawing.findobj(lambda artist: hasattr(artist, "get_fontsize")))  # pyright: ignore
    assert smallest >= 8  # points, at 150 pixels an inch


def test_the_picture_has_at_most_six_metrics_and_says_so(tmp_path: Path) -> None:
    more = [replace(METRICS[0], name=f"m{i}") for i in range(8)]
    drawing = figures.summary(compared(tmp_path, metrics=more, prompts=2))
    assert [axes.get_title() for axes in drawing.axes[::2]] == [f"m{i} ↑" for i in range(6)]
    assert drawing.get_suptitle().startswith("6 of 8 metrics, 2 prompts")


def test_the_picture_of_one_segment_has_methods_side_by_side(tmp_path: Path) -> None:
    comparison = compared(tmp_path, "ab", METRICS[:1], prompts=3, segments=1)
    axes = figures.summary(comparison).axes[0]
    for i, curve in enumerate(comparison.curves):
        assert (list(axes.lines[i].get_xdata()), list(axes.lines[i].get_ydata())) == (  # pyright: ignore
            [i + 1], [curve.segments[0].mean])  # fmt: skip
        ends = np.asarray(axes.collections[i].get_paths()[0].vertices)
        np.testing.assert_array_equal(ends, [[i + 1, curve.segments[0].low], [i + 1, curve.segments[0].high]])


def test_labels_in_the_picture_are_no_formulas_and_none_is_hidden(tmp_path: Path) -> None:
    labels = (r"$\frac{1}{$", "_hidden", "x" * 60)
    drawing = figures.summary(compared(tmp_path, labels, [replace(METRICS[0], name="colour", unit="$x^{$")], 2))
    drawing.savefig(io.BytesIO(), dpi=30)
    names = [text.get_text() for text in drawing.legends[0].get_texts()]
    assert [handle.get_color() for handle in drawing.legends[0].get_lines()] == list(figures.COLOURS[:3])
    assert names[:2] == [r"1  $\frac{1}{$", "2  _hidden"]
    assert re.fullmatch("3  x{30,}…", names[2])


# Files that appear whole


@pytest.mark.parametrize("broken", ["savefig", "replace"])
def test_a_failure_leaves_older_files(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    comparison = compared(tmp_path, LABELS[:1], METRICS[:1], prompts=1)
    for name in ("report.html", "report.png"):
        (tmp_path / name).write_text("older")

    def fails(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    def saves_half(_: Any, path: Path, **__: Any) -> None:
        path.write_bytes(b"half")
        fails()

    if broken == "savefig":
        monkeypatch.setattr(Figure, "savefig", saves_half)
    else:
        monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no space left"):
        html.write(comparison, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()} == {
        "report.html": "older", "report.png": "older"}  # fmt: skip
    monkeypatch.undo()
    html.write(comparison, tmp_path)
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_page_that_cannot_be_put_in_its_place_leaves_the_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison, moves = compared(tmp_path, LABELS[:1], METRICS[:1], prompts=1), os.replace
    (tmp_path / "report.html").write_text("older")

    def fails(source: Path, target: Path) -> None:
        if target.name == "report.html":
            raise OSError("no space left")
        moves(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no space left"):
        html.write(comparison, tmp_path)
    assert (tmp_path / "report.html").read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.png", "strips"]


def test_folders_that_cannot_hold_a_report(tmp_path: Path) -> None:
    comparison = compared(tmp_path, prompts=1)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        html.write(comparison, tmp_path / "none")
    (tmp_path / "report.html").mkdir()
    with pytest.raises(IsADirectoryError, match=r"report\.html'.*it is a folder"):
        html.write(comparison, tmp_path)
    assert not (tmp_path / "report.png").exists()


def test_the_same_comparison_makes_the_same_files(written: tuple[Comparison, Path, Node]) -> None:
    comparison, folder, _ = written
    before = [(folder / name).read_bytes() for name in ("report.html", "report.png")]
    html.write(comparison, folder)
    assert before == [(folder / name).read_bytes() for name in ("report.html", "report.png")]


@pytest.mark.parametrize(("change", "message"), [
    (lambda c: {"methods": []}, "has no method"),
    (lambda c: {"prompts": []}, "has no prompt"),
    (lambda c: {"seeds": []}, "has no seed"),
    (lambda c: {"methods": [*c.methods, c.methods[0]]}, "a method twice: window"),
    (lambda c: {"metrics": [*c.metrics, c.metrics[0]]}, "a metric twice: colour"),
    (lambda c: {"lines": c.lines[1:]}, r"lines of the comparison lack \('colour', 'window'\)"),
    (lambda c: {"curves": [*c.curves, c.curves[0]]}, r"curves .* too many of \('colour', 'window'\)"),
    (lambda c: {"lines": [replace(c.lines[0], metric="other"), *c.lines[1:]]}, "lines of the comparison lack"),
    (lambda c: {"rows": c.rows[:-1]}, "rows of the comparison lack .*prompt 1"),
    (lambda c: {"edges": c.edges[:-1]}, "6 segments, and there are 6 edges"),
    (lambda c: {"lines": [replace(line, whole_difference=None) for line in c.lines]}, "has differences from it"),
    (lambda c: {"lines": [replace(line, drift_difference=NONE) for line in c.lines]}, "has differences from it"),
    (lambda c: {"metrics": [replace(c.metrics[0], better="more"), *c.metrics[1:]]}, "better='more'"),
])  # fmt: skip
def test_a_comparison_that_contradicts_itself_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    comparison = compared(tmp_path, prompts=2)
    with pytest.raises(ValueError, match=message):
        html.write(replace(comparison, **change(comparison)), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["strips"]
