"""The report of a comparison: an HTML file that needs no other and runs nothing, and a PNG that sums it up."""

from __future__ import annotations

import base64
import io
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from html import escape
from importlib.resources import files
from itertools import product
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

from arvid.evaluation.figures import KEYS, excludes_zero, key, numbers, panel, span, summary, verdict
from arvid.evaluation.results import Comparison, Interval, Line, Measured, Row
from arvid.plots import check_png, save_png

__all__ = ["write"]

SHEETS = 12
"""Prompts whose contact strips are in the report; those of the rest are linked."""
WIDEST = 2048
"""Pixels across of a contact strip in the report; wider ones are reduced."""
DIRECTIONS = {"higher": "higher is better", "lower": "lower is better", "": "no direction is better"}
MARKS = {"better": "✓ better", "worse": "✗ worse", "differs": "≠ differs"}


def write(comparison: Comparison, folder: Path) -> tuple[Path, Path]:
    """Make folder/report.html and folder/report.png and return their paths. Each appears when it is complete, replacing
    an older one; on failure the older ones stay.

    Raises `ValueError` for a comparison with parts missing or that contradict each other and for a strip that is no
    picture, `FileNotFoundError` for a strip that is not in the folder, `RuntimeError` without matplotlib, and as
    `arvid.video.check_output`.
    """
    folder = Path(folder)
    html, png = folder / "report.html", check_png(folder / "report.png")
    if html.is_dir():
        raise IsADirectoryError(f"cannot save {str(html)!r}: it is a folder; move it away")
    _check(comparison)
    page, figure = _page(comparison, folder), summary(comparison)
    unfinished = folder / f".arvid-{uuid4().hex}.html"  # in the same folder, so that the replacement is atomic
    try:
        unfinished.write_bytes(page.encode())
        save_png(figure, png)
        os.replace(unfinished, html)
    finally:
        unfinished.unlink(missing_ok=True)
    return html, png


def _check(comparison: Comparison) -> None:
    """Raises `ValueError` where a part is missing, there twice, or of something that did not take part."""
    labels, metrics = [method.label for method in comparison.methods], [metric.name for metric in comparison.metrics]
    for what, found in {"method": labels, "metric": metrics, "prompt": comparison.prompts,
                        "seed": comparison.seeds}.items():
        if not found:
            raise ValueError(f"the comparison has no {what}: give at least one")
    for what, found in {"method": labels, "metric": metrics}.items():
        if len(set(found)) < len(found):
            raise ValueError(f"the comparison has a {what} twice: {', '.join(found)}")
    cells = Counter(product(metrics, labels))
    _same("lines", cells, ((line.metric, line.method) for line in comparison.lines))
    _same("curves", cells, ((curve.metric, curve.method) for curve in comparison.curves))
    _same("rows", Counter(product(labels, comparison.prompts, comparison.seeds)),
          ((row.method, row.prompt, row.seed) for row in comparison.rows))
    segments = len(comparison.edges) - 1
    for curve in comparison.curves:
        if len(curve.segments) != segments or segments < 1:
            raise ValueError(f"the curve of {curve.metric} of {curve.method!r} has {len(curve.segments)} segments, and "
                             f"there are {len(comparison.edges)} edges: give one more edge than segments")
    for line in comparison.lines:
        if ((line.whole_difference is None) != (line.method == labels[0])
                or (line.drift_difference is None) != (line.method == labels[0])):
            raise ValueError(f"{line.metric} of {line.method!r}: every method but the first, {labels[0]!r}, has "
                             "differences from it, and that has None")
    for metric in comparison.metrics:
        if metric.better not in DIRECTIONS:
            raise ValueError(f"{metric.name}: better={metric.better!r} must be 'higher', 'lower' or ''")


def _same(what: str, wanted: Counter[tuple], given: Iterable[tuple]) -> None:
    found = Counter(given)
    for problem, cells in (("lack", wanted - found), ("have too many of", found - wanted)):
        if cells:
            listed = ", ".join(repr(cell) for cell in list(cells)[:3])
            raise ValueError(f"{what} of the comparison {problem} {listed}{', ...' if len(cells) > 3 else ''}")


def _page(comparison: Comparison, folder: Path) -> str:
    labels = " · ".join(method.label for method in comparison.methods)
    style = files("arvid.evaluation").joinpath("report.css").read_text("utf-8")
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Compared: {escape(labels)}</title>\n<style>\n{style}</style>\n</head>\n<body>",
        f"<h1>Compared: {escape(labels)}</h1>", *_opening(comparison),
        "<h2>Whole videos</h2>", *_table(comparison, "whole"), *_drift(comparison), *_curves(comparison),
        "<h2>Contact sheets</h2>", *_sheets(comparison, folder),
        "<h2>What the metrics are</h2>", *_definitions(comparison),
        "<h2>Exact configurations</h2>", *_configurations(comparison),
        "<h2>How it was run</h2>", *_facts(comparison), "</body>\n</html>\n",
    ]  # fmt: skip
    return "\n".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _opening(comparison: Comparison) -> Iterator[str]:
    """What was compared, and which number and colour each method has."""
    edges, fps, methods = comparison.edges, comparison.fps, comparison.methods
    seconds, segments = edges[-1] / fps, len(edges) - 1
    text = [f"{_count(len(methods), 'method')}, {_count(len(comparison.prompts), 'prompt')} and "
            f"{_count(len(comparison.seeds), 'seed')}: {_count(len(comparison.rows), 'video')} of {seconds:.4g} s "
            f"({_count(comparison.frames, 'latent frame')}, {edges[-1]} pixel frames at {fps:g} a second)."]
    if segments > 1:
        text.append(f"Metrics are measured over whole videos and in {segments} segments, the first of "
                    f"{(edges[1] - edges[0]) / fps:.3g} s and the last of {(edges[-1] - edges[-2]) / fps:.3g} s.")
    if len(methods) > 1:
        text.append("A prompt and seed starts from the same noise with every method, so differences are paired; they "
                    f"are from the first method, {methods[0].label}.")
    text.append("[ ] is a 95 % interval of a mean over prompts, the seeds of a prompt averaged first.")
    yield f"<p>{escape(' '.join(text))}</p>"
    yield _legend(comparison, summaries=True)


def _legend(comparison: Comparison, summaries: bool) -> str:
    entries = "".join(f"<li>{key(i)} <span>{i + 1} <b>{escape(method.label)}</b> "
                      f'<span class="soft">{escape(method.summary) if summaries else ""}</span></span></li>'
                      for i, method in enumerate(comparison.methods))  # fmt: skip
    return f'<ul class="legend">{entries}</ul>'


def _table(comparison: Comparison, kind: str) -> Iterator[str]:
    """A line a metric, a column a method; `kind` is "whole" or "drift"."""
    first = comparison.methods[0].label
    lines = {(line.metric, line.method): line for line in comparison.lines}
    yield f'<div class="scroll" tabindex="0"><table id="{kind}">\n<thead><tr><th scope="col">metric</th>'
    for i, method in enumerate(comparison.methods, 1):
        note = f"<br><small>differences from {escape(first)} below</small>" if i > 1 else ""
        yield f'<th scope="col">{i} {escape(method.label)}{note}</th>'
    yield "</tr></thead>\n<tbody>"
    for metric in comparison.metrics:
        unit = f"{escape(metric.unit)}, " if metric.unit else ""
        name = escape(metric.name).replace("_", "_<wbr>")
        yield (f'<tr><th scope="row">{name} <small>{unit}{span(metric)}, {DIRECTIONS[metric.better]}</small></th>')
        for method in comparison.methods:
            yield _cell(comparison, metric, lines[metric.name, method.label], kind)
        yield "</tr>"
    yield "</tbody>\n</table></div>"
    yield from _chance(comparison, kind)


def _cell(comparison: Comparison, metric: Measured, line: Line, kind: str) -> str:
    own, difference = _of(line, kind)
    text = f'<div class="value">{_interval(own, len(comparison.prompts))}</div>'
    if difference is not None:
        found = verdict(metric, difference)
        mark = f' <span class="mark">{MARKS[found]}</span>' if found else ""
        inside = _interval(difference, len(comparison.prompts), sign=True)
        text += f'<div class="value difference {found}">{inside}{mark}</div>'
    return f"<td>{text}</td>"


def _of(line: Line, kind: str) -> tuple[Interval, Interval | None]:
    return (line.whole, line.whole_difference) if kind == "whole" else (line.drift, line.drift_difference)


def _interval(interval: Interval, prompts: int, sign: bool = False) -> str:
    """Mean and interval as `<data>`, which has the exact values; how many prompts where not all; why there is none."""
    if math.isnan(interval.mean):
        return "– <small>could not be measured</small>"
    values = zip((interval.mean, interval.low, interval.high), numbers(interval, sign), strict=True)
    mean, low, high = (f'<data value="{value!r}">{text}</data>' for value, text in values)
    count = f" <small>{_count(interval.n, 'prompt')}</small>" if interval.n != prompts else ""
    if math.isnan(interval.low) or math.isnan(interval.high):
        return f"{mean} <small>– no interval from {_count(interval.n, 'prompt')}</small>"
    return f'{mean} <span class="interval">[{low}, {high}]</span>{count}'


def _chance(comparison: Comparison, kind: str) -> Iterator[str]:
    """How many intervals of differences there are, and how many of them would leave zero out by chance."""
    differences = [_of(line, kind)[1] for line in comparison.lines]
    given = [interval for interval in differences if interval is not None and not math.isnan(interval.low)]
    if len(comparison.methods) == 1:
        yield "<p>One method: there is nothing to compare it with, so there are no differences.</p>"
    elif not given:
        yield "<p>No difference has an interval: use at least 2 prompts, better 8 or more.</p>"
    else:
        found = sum(map(excludes_zero, given))
        yield (f'<p class="chance">Of {_count(len(given), "interval")} of differences, {found} exclude'
               f"{'s' * (found == 1)} zero (bold, with a mark). Did no method differ from the first at all, about "
               f"{0.05 * len(given):.2g} would exclude zero by chance: at 95 %, one in 20. A mark among many is a "
               "hint, to be confirmed with other prompts.</p>")


def _drift(comparison: Comparison) -> Iterator[str]:
    yield "<h2>Drift: last segment minus first</h2>"
    if len(comparison.edges) < 3:
        yield "<p>Videos are one segment long: there is no drift. Compare longer videos to see it.</p>"
        return
    yield ("<p>How much a metric changed within a video. Better: it lost less, or gained more, than with the first "
           "method.</p>")
    yield from _table(comparison, "drift")


def _curves(comparison: Comparison) -> Iterator[str]:
    yield "<h2>Over time</h2>"
    if len(comparison.edges) < 3:
        yield "<p>Videos are one segment long: there are no curves.</p>"
        return
    yield "<p>Mean over prompts in each segment, drawn at its middle; bands are 95 % intervals.</p>"
    yield _legend(comparison, summaries=False)
    yield '<div class="panels">'
    curves = {(curve.metric, curve.method): curve for curve in comparison.curves}
    for metric in comparison.metrics:
        own = [curves[metric.name, method.label] for method in comparison.methods]
        about = ", ".join(filter(None, [metric.unit, DIRECTIONS[metric.better]]))
        seen = any(math.isfinite(at.mean) for curve in own for at in curve.segments)
        drawn = panel(comparison, own) if seen else "<p>– could not be measured in any segment</p>"
        yield (f"<figure><figcaption><b>{escape(metric.name)}</b> <small>{escape(about)}</small></figcaption>"
               f"{drawn}</figure>")
    yield "</div>"


def _sheets(comparison: Comparison, folder: Path) -> Iterator[str]:
    """The strips of the first prompts, methods under each other, and links to those of the rest."""
    found: dict[tuple[str, str, int], list[Row]] = {}
    for row in comparison.rows:
        if not (folder / row.strip).is_file():
            raise FileNotFoundError(f"{str(folder)!r} has no strip {row.strip!r} ({row.method}, seed {row.seed}, "
                                    f"{row.prompt!r}): run the command that made the comparison again")
        found.setdefault((row.method, row.prompt, row.seed), []).append(row)
    yield "<p>Frames evenly spaced from a video's first to its last. Same prompt and seed: same noise.</p>"
    for i, prompt in enumerate(comparison.prompts):
        again = comparison.prompts[:i].count(prompt)  # a list may have a prompt twice
        rows = [(j, found[method.label, prompt, seed][again])
                for seed in comparison.seeds for j, method in enumerate(comparison.methods)]  # fmt: skip
        if i == SHEETS:
            yield "<details><summary>The other prompts: strips beside this file</summary>"
        yield f'<section class="prompt"><h3>{i + 1}. {escape(prompt)}</h3><div class="scroll strips" tabindex="0">'
        yield from (_strip(folder, j, row) for j, row in rows) if i < SHEETS else [_links(rows)]
        yield "</div></section>"
    if len(comparison.prompts) > SHEETS:
        yield "</details>"


def _links(rows: Iterable[tuple[int, Row]]) -> str:
    return "<p>" + " · ".join(f'<a href="{quote(row.strip)}">{i + 1} {escape(row.method)}, seed {row.seed}</a>'
                              for i, row in rows) + "</p>"  # fmt: skip


def _strip(folder: Path, method: int, row: Row) -> str:
    content, width, height, factor = _picture(folder / row.strip)
    name = escape(f"{method + 1} {row.method}, seed {row.seed}")
    reduced = f", one pixel in {factor}" if factor > 1 else ""
    return (f'<figure><img src="data:image/png;base64,{base64.b64encode(content).decode()}" width="{width}" '
            f'height="{height}" alt="{name}: frames of the video"><figcaption><b class="c{method % KEYS}">{name}</b>'
            f"{reduced}</figcaption></figure>")


def _picture(path: Path) -> tuple[bytes, int, int, int]:
    """A strip as PNG, its width and height, and how many times smaller it was made."""
    from PIL import Image

    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            factor = math.ceil(image.width / WIDEST)
            small = image.convert("RGB").reduce(factor)
    except (OSError, SyntaxError) as error:  # Pillow raises both for damaged files
        raise ValueError(f"{str(path)!r} is no PNG that can be read ({error}): remove it, and make it again with the "
                         "command that made the comparison") from error
    if factor > 1:
        stream = io.BytesIO()
        small.save(stream, "PNG")
        content = stream.getvalue()
    return content, small.width, small.height, factor


def _definitions(comparison: Comparison) -> Iterator[str]:
    yield "<dl>"
    for metric in comparison.metrics:
        facts = ", ".join(filter(None, [metric.unit, span(metric), DIRECTIONS[metric.better]]))
        yield (f"<dt>{escape(metric.name)} <small>{escape(facts)}</small></dt><dd>{escape(metric.about)}"
               f"<br>Cannot see: {escape(metric.blind)}</dd>")
    yield "</dl>"


def _configurations(comparison: Comparison) -> Iterator[str]:
    for i, method in enumerate(comparison.methods, 1):
        yield (f"<details><summary>{i} <b>{escape(method.label)}</b> {escape(method.summary)}</summary>"
               f"<pre>\n{escape(method.toml)}</pre></details>")


def _facts(comparison: Comparison) -> Iterator[str]:
    yield f"<pre>\n{escape(comparison.command)}</pre>"
    yield '<dl class="facts">'
    seeds = ", ".join(map(str, comparison.seeds))
    for name, fact in {"seeds": seeds, **comparison.facts}.items():
        yield f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>"
    yield "</dl>"
