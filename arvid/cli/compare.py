"""`arvid compare`: methods on the same prompts and noise, measured, in a report."""

from __future__ import annotations

import argparse
import shlex
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import configs
from .progress import progress_line
from .values import seconds, size, whole

if TYPE_CHECKING:
    from arvid.config import PipelineConfig
    from arvid.evaluation.compare import Standing

__all__ = ["add", "run"]

HELP = """\
Make videos of the same prompts from the same noise with every CONFIG, measure them, and write DIR/report.html,
report.png and report.json: means over prompts with 95 % intervals, paired differences from the first CONFIG, and
how each metric drifts from segment to segment, a segment being as long as the clips of training.

CONFIG may be written LABEL=CONFIG, which names it in the report; LABEL= alone is the model's own settings.
Stopped at any time, the same command goes on from the last finished batch. Prompt number i (from 0) has noise
seed 1000000 s + i under seed s, for every CONFIG: `arvid generate PROMPT --seed` makes the same video, but for the
rounding of a batch (about one pixel value in ten thousand, by one level).
"""
EXAMPLES = """\
examples:
  arvid compare own= flex deep_sink --seconds 31.5 --limit 8 --jobs 2 -o comparison
  arvid compare window=my.toml sink=other.toml --prompts VBench_full_info.json --limit 100 --seeds 3 --videos
"""


def add(commands: Any) -> None:
    """Register the subcommand."""
    p = commands.add_parser(
        "compare", help="compare configurations on the same prompts and noise", description=HELP, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    configs.add(p, several=True)
    configs.add_weights(p)
    p.add_argument(
        "--prompts", metavar="FILE", default="held_out", help="a text file, one prompt a line (MovieGen's bench), "
        ".json (VBench's), .jsonl or .csv with prompt_en or prompt; or held_out, the bundled model's held-out "
        "captions (default: %(default)s)",
    )  # fmt: skip
    p.add_argument("--limit", metavar="N", type=whole, help="the first N prompts only")
    length = p.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=seconds, default=30.0,
                        help="length of the videos, rounded to whole chunks (default: 30)")  # fmt: skip
    length.add_argument("--frames", type=whole, help="length in latent frames, exact")
    p.add_argument("--seeds", metavar="N", type=whole, default=1, help="videos a prompt (default: %(default)s)")
    p.add_argument("--size", metavar="WIDTHxHEIGHT", type=size, help="pixels to generate (default: the model's)")
    p.add_argument("--metrics", metavar="A,B,...", help="measure these only (docs/metrics.md; default: all that "
                   "apply to the prompts)")  # fmt: skip
    p.add_argument("--jobs", metavar="N", type=whole, default=1, help="processes that share the cores (default: 1)")
    p.add_argument("--batch", metavar="N", type=whole, default=8, help="most videos a process makes at once; fewer "
                   "take less memory (default: %(default)s)")  # fmt: skip
    p.add_argument("--device", default="cpu", help="where to run: cpu, cuda, cuda:1, ... (default: %(default)s)")
    p.add_argument("--videos", action="store_true", help="keep the videos, as .mp4")
    p.add_argument("-o", "--output", metavar="DIR", default="comparison", help="folder of the report, and of all that "
                   "is done (default: %(default)s)")  # fmt: skip
    p.add_argument("--quiet", action="store_true", help="no progress, which is shown on a terminal only")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check all that was asked for, make what is missing, report."""
    from arvid.evaluation.prompts import read_prompts
    from arvid.evaluation.store import Folder

    Folder(Path(arguments.output)).check()
    prompts = read_prompts(arguments.prompts, arguments.limit)
    weights = configs.found(arguments, _student(arguments))
    configs.use(arguments.use)
    chosen, presets = _methods(arguments, weights.card.name)
    from arvid.evaluation.compare import compare, table
    from arvid.evaluation.prompts import check_prompts
    from arvid.evaluation.statistics import LEAST
    from arvid.evaluation.task import make_task
    from arvid.presets import warn_if_foreign

    check_prompts(prompts, weights, arguments.text)
    task = make_task(
        chosen, [prompt.text for prompt in prompts], frames=arguments.frames, seeds=arguments.seeds,
        seconds=arguments.seconds if arguments.frames is None else None, weights=weights,
        size=arguments.size and arguments.size[::-1], text=arguments.text, device=arguments.device,
        dtype=arguments.dtype,
        metrics=None if arguments.metrics is None else [name.strip() for name in arguments.metrics.split(",")],
    )  # fmt: skip
    for name in presets:
        warn_if_foreign(name, weights.card)
    if len(prompts) < LEAST:
        warnings.warn(f"means only: 95 % intervals need at least {LEAST} prompts, not {len(prompts)}", stacklevel=1)
    with progress_line(arguments.quiet, _far) as show:
        comparison = compare(
            task, arguments.output, jobs=arguments.jobs, batch=arguments.batch, keep_videos=arguments.videos,
            command=_command(arguments), prepare=partial(configs.use, arguments.use), progress=show,
        )  # fmt: skip
    print(table(comparison))
    if len(chosen) > 1:
        print("\n* the interval of the difference excludes 0")
    print(Path(arguments.output) / "report.html")
    return 0


def _student(arguments: argparse.Namespace) -> str | None:
    """The first student preset among the methods, whose card the weights then have."""
    from arvid.presets import STUDENTS

    names = [_labelled(text, "")[1] for text in arguments.config]
    return next((name for name in names if name in STUDENTS), None)


def _methods(arguments: argparse.Namespace, own: str) -> tuple[dict[str, PipelineConfig | str], list[str]]:
    """Configurations by label, with the reason in place of one that cannot be had, and the presets among them."""
    chosen: dict[str, PipelineConfig | str] = {}
    presets: dict[str, None] = {}
    for each in configs.each(arguments):
        label, each.config = _labelled(each.config, own)
        if label in chosen:
            raise ValueError(f"two methods are called {label!r}: name them, LABEL=CONFIG")
        try:
            chosen[label], name = configs.chosen(each)
            presets |= {} if name is None else {name: None}
        except (ValueError, OSError) as error:
            chosen[label] = str(error)
    return chosen, list(presets)


def _labelled(text: str | None, own: str) -> tuple[str, str | None]:
    """The label and CONFIG of LABEL=CONFIG or CONFIG."""
    if text is None:
        return own, None
    label, equals, config = text.partition("=")
    if not equals:
        return Path(text).stem if text.endswith(".toml") else text, text
    if not label.strip():
        raise ValueError(f"{text!r} names no method: give LABEL=CONFIG, such as window=my.toml")
    return label.strip(), config or None


def _command(arguments: argparse.Namespace) -> str:
    """The command, with every option that changes what comes out."""
    given = vars(arguments)
    length = "frames" if given["frames"] else "seconds"
    names = ["prompts", "limit", length, "seeds", "metrics", "jobs", "batch", "device", "dtype", "text", "model",
             "checkpoint", "lora", "card"]  # fmt: skip
    parts = ["arvid", "compare", *given["config"]]
    parts += [part for name in names if given[name] is not None for part in (f"--{name}", f"{given[name]}")]
    parts += [] if given["size"] is None else ["--size", "{}x{}".format(*given["size"])]
    parts += [part for name in ("set", "use") for value in given[name] for part in (f"--{name}", value)]
    return shlex.join([*parts, *(["--videos"] if given["videos"] else []), "-o", given["output"]])


def _far(at: Standing) -> str:
    left = f", {at.eta // 60:.0f}:{at.eta % 60:02.0f} left" if at.eta < 1e7 else ""
    return f"{at.done}/{at.total} videos, {at.rate:.1f} videos/min{left}"
