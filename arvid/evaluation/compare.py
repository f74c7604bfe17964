"""Methods compared on the same prompts and the same noise: run, resumed, summed up, reported.

    task = make_task({"window": PipelineConfig(), "flex": preset("flex")}, prompts, seconds=30)
    comparison = compare(task, "comparison")               # comparison/report.html, report.png, report.json

Run again, it makes what is missing and writes the report. A video is known by what decides its pixels and numbers:
configuration, weights, code of arvid and of strategies, prompt, noise seed, length, size, kind of device, and metrics
with their settings. `batch` and `jobs` are not among these, though they change how sums are rounded: about one pixel
value in ten thousand, by one level of 255.
"""

from __future__ import annotations

import importlib.util
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from arvid import __version__
from arvid.config import REGISTRIES
from arvid.evaluation.metrics import METRIC
from arvid.evaluation.results import Comparison, Interval, Measured, Method, Row, to_json
from arvid.evaluation.statistics import LEAST, summarise
from arvid.evaluation.store import FORMAT, Folder, code_hash, digest, weights_hash
from arvid.evaluation.task import Task, noise_seed, units
from arvid.evaluation.workers import cores, work
from arvid.registry import brief, summary

__all__ = ["Standing", "compare", "table"]

Keys = dict[tuple[str, int, int], str]
"""The key of each video by method, prompt's number and seed."""


@dataclass(frozen=True)
class Standing:
    """How far a comparison is: videos done and in all, videos a minute, and seconds left at this rate."""

    done: int
    total: int
    rate: float
    eta: float


def compare(
    task: Task, folder: str | Path, *, jobs: int = 1, batch: int = 8, keep_videos: bool = False, command: str = "",
    prepare: Callable[[], Any] = int, progress: Callable[[Standing], None] | None = None,
) -> Comparison:  # fmt: skip
    """Make the videos that `folder` lacks, at most `batch` at once in each of `jobs` processes, and write report.json,
    report.html and report.png. It may be killed at any time, and called again.

    With `jobs` above 1, a script that calls this does so below `if __name__ == "__main__":`, and `prepare` registers
    strategies that it does not import, in each process. `command` is what to write of how it was asked for. Raises
    `ValueError` for numbers below 1, `OSError` for a folder that cannot be written or that another process writes to,
    `RuntimeError` without matplotlib, which draws the report, and `Failed` for a video that cannot be made: what was
    finished stays.
    """
    for name, value in {"jobs": jobs, "batch": batch}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: give a whole number, at least 1")
    if importlib.util.find_spec("matplotlib") is None:
        raise RuntimeError("the report needs matplotlib: pip install 'arvid[plots]'")
    store = Folder(Path(folder))
    store.check()
    with store.locked():
        weights = weights_hash(task.weights, task.text, store)
        keys = _keys(task, weights)
        missing = {at: key for at, key in keys.items()
                   if store.row(key) is None or (keep_videos and not store.has_video(key))}  # fmt: skip
        todo = list(units(task, missing, batch, jobs))
        clock = _Clock(len(keys), len(missing), progress)
        work(task, store, todo, jobs=jobs, keep_videos=keep_videos, prepare=prepare, tell=clock.tell)
        comparison = _comparison(task, store, keys, keep_videos, command, weights)
        _report(comparison, store)
    return comparison


def table(comparison: Comparison) -> str:
    """Means, and paired differences from the first method with their 95 % intervals, of whole videos and of drift."""
    wide = max(len(line.metric) for line in comparison.lines)
    long = max(len(line.method) for line in comparison.lines)
    first = comparison.methods[0].label
    away = f"{f'minus {first}'[:25]:>27}" if len(comparison.methods) > 1 else ""
    lines, last = [f"{'':{wide}}  {'':{long}}  {'whole':>8}{away}    {'drift':>8}{away}"], None
    for line in comparison.lines:
        name = "" if line.metric == last else line.metric
        whole, drift = (f"{_number(mean.mean):>8}{_difference(by):>{len(away)}}" for mean, by in (
            (line.whole, line.whole_difference), (line.drift, line.drift_difference)))  # fmt: skip
        lines.append(f"{name:{wide}}  {line.method:{long}}  {whole}    {drift}".rstrip())
        last = line.metric
    return "\n".join(lines)


class _Clock:
    """Counts what workers tell."""

    def __init__(self, total: int, missing: int, progress: Callable[[Standing], None] | None) -> None:
        self.total, self.left, self.progress = total, missing, progress
        self.goal, self.work, self.began = missing, 0.0, time.perf_counter()

    def tell(self, unit: Any, share: float, rows: int) -> None:
        self.work += share * len(unit.missing)
        self.left -= rows
        if self.progress:
            rate = self.work / (time.perf_counter() - self.began)
            eta = (self.goal - self.work) / rate if rate else math.inf
            self.progress(Standing(self.total - self.left, self.total, 60 * rate, max(0.0, eta)))


def _keys(task: Task, weights: str) -> Keys:
    metrics = {name: METRIC.spec(metric) for name, metric in task.metrics.items()}
    same = {
        "format": FORMAT, "code": code_hash(task.strategies), "weights": weights, "frames": task.frames,
        "size": task.size, "edges": task.edges, "metrics": metrics, "device": task.device.partition(":")[0],
        "dtype": task.dtype,
    }  # fmt: skip
    keys: Keys = {}
    for label, config in task.configs.items():
        for i, prompt in enumerate(task.prompts):
            for seed in range(task.seeds):
                own = {"config": config.to_dict(), "prompt": prompt, "seed": noise_seed(i, seed)}
                keys[label, i, seed] = digest({**same, **own})[:32]
    return keys


def _comparison(task: Task, store: Folder, keys: Keys, keep_videos: bool, command: str, weights: str) -> Comparison:
    rows = []
    for (label, i, seed), key in keys.items():
        found = store.row(key)
        if found is None:
            raise RuntimeError(f"row {key} in {store.path} was changed while this ran: run the command again")
        rows.append(Row(
            label, task.prompts[i], seed, found["whole"], found["segments"], store.strip(key), found["noise_seed"],
            store.video(key) if keep_videos else None,
        ))  # fmt: skip
    metrics = [Measured(name, metric.low, metric.high, metric.better, metric.unit, summary(type(metric)), metric.blind)
               for name, metric in task.metrics.items()]  # fmt: skip
    seeds = list(range(task.seeds))
    lines, curves = summarise(rows, task.labels, task.prompts, seeds, metrics)
    return Comparison(
        command, task.frames, task.card.fps, task.edges, list(task.prompts), seeds, _methods(task), metrics, lines,
        curves, rows, _facts(task, weights),
    )  # fmt: skip


def _methods(task: Task) -> list[Method]:
    return [
        Method(label, config.to_toml(), ", ".join(
            [*(brief(getattr(config, key)) for key in REGISTRIES), f"chunk={config.chunk}"]))
        for label, config in task.configs.items()
    ]  # fmt: skip


def _facts(task: Task, weights: str) -> dict[str, str]:
    import numpy
    import torch

    device = torch.device(task.device)
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "arvid": __version__,
        "python": platform.python_version(), "numpy": numpy.__version__, "torch": torch.__version__,
        "system": platform.platform(), "processor": _processor(), "cores": str(cores()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else task.device,
        "weights": f"{task.card.name}, SHA-256 {weights}", "size": f"{task.size[1]}x{task.size[0]}",
        "noise": f"prompt number i from 0 and seed s have the noise seed {noise_seed(0, 1)} s + i, for every method",
        "metrics with settings": ", ".join(brief(metric) for metric in task.metrics.values()),
    }  # fmt: skip
    if left_out := [name for name in METRIC.names() if name not in task.metrics]:
        facts["metrics left out"] = ", ".join(left_out)
    if len(task.prompts) < LEAST:
        facts["no intervals"] = f"{len(task.prompts)} prompts are too few for intervals, which need {LEAST}"
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _report(comparison: Comparison, store: Folder) -> None:
    from arvid.evaluation.html import write

    store.write("report.json", to_json(comparison).encode())
    write(comparison, store.path)


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _difference(away: Interval | None) -> str:
    if away is None:
        return ""
    if math.isnan(away.low):
        return _number(away.mean)
    sure = "*" if away.low > 0 or away.high < 0 else " "
    return f"{away.mean:+.3f} ({away.low:+.3f}, {away.high:+.3f}){sure}"
