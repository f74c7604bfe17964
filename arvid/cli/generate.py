"""`arvid generate`: a prompt to a file."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from . import configs
from .progress import progress_line
from .values import seconds, size, whole

if TYPE_CHECKING:
    from arvid.pipeline import Pipeline, Progress
    from arvid.video import VideoWriter

__all__ = ["add", "run"]

HELP = """\
Make a video of PROMPT with a model's own settings, or with those of CONFIG.

The bundled model is small, runs on a CPU, and knows sentences of this form,
  a {red|green|blue|yellow|orange|purple|pink|cyan} {ball|square|triangle}
  {bounces around|moves left and right|moves up and down|moves in a circle|grows and shrinks}
  on a {black|white|gray|brown|navy|beige} background
or of two objects: a red ball bounces around and a cyan square moves up and down on a black background
"""
EXAMPLES = """\
examples:
  arvid generate "a red ball bounces around on a navy background" -o ball.mp4
  arvid generate "a cyan square moves in a circle on a black background" --seconds 30 --seed 7 -o square.gif
  arvid generate "a pink ball moves up and down on a navy background" -o sheet.png    (a contact sheet)
  arvid generate "a red ball bounces around on a navy background" --set cache.name=sink --set cache.sink=1
  arvid generate "a red ball bounces around on a navy background" --seconds 10 \\
      --then 5 "a green ball moves in a circle on a navy background" --set cache.on_change=recommit
"""


def add(commands: Any) -> None:
    """Register the subcommand."""
    p = commands.add_parser(
        "generate", help="make a video of a prompt", description=HELP, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("prompt", metavar="PROMPT", help="what the video shows")
    p.add_argument(
        "-o", "--output", metavar="FILE", default="arvid.mp4",
        help=".mp4, .gif, or .png for a contact sheet; replaces an older file (default: %(default)s). An .mp4 is "
        "written as it is made, to NAME.part.mp4, which stays when the run is stopped",
    )  # fmt: skip
    p.add_argument(
        "--then", nargs=2, metavar=("SECONDS", "PROMPT"), action="append", default=[],
        help="change the prompt at this time, as the cache's on_change says (--set cache.on_change=recommit); "
        "repeatable",
    )  # fmt: skip
    p.add_argument(
        "--negative", metavar="PROMPT", help="under guidance, what to lead the video away from (default: the card's; "
        '"" is no text)',
    )  # fmt: skip
    configs.add(p, "--preset")
    configs.add_weights(p)
    length = p.add_mutually_exclusive_group()
    length.add_argument(
        "--seconds", type=seconds, help="length, rounded to whole chunks (default: that of the training clips)"
    )
    length.add_argument("--frames", type=whole, help="length in latent frames, exact")
    p.add_argument(
        "--start", metavar="FILE", help="begin with this image (.png, .jpg) or clip (.mp4, .gif), of the size that is "
        "made; the length is that of what is new",
    )  # fmt: skip
    p.add_argument(
        "--resumable", action="store_true", help="keep what is done in the folder FILE.parts, once a minute: however "
        "this run is stopped, the same command goes on from there",
    )  # fmt: skip
    p.add_argument("--seed", type=int, default=0, help="the same seed gives the same video (default: 0)")
    p.add_argument("--size", metavar="WIDTHxHEIGHT", type=size, help="pixels to generate (default: the model's)")
    p.add_argument(
        "--scale", type=whole, help="enlarge every pixel by this factor in the file (default: until well visible)"
    )
    p.add_argument("--device", default="cpu", help="where to run: cpu, cuda, cuda:1, ... (default: %(default)s)")
    p.add_argument("--quiet", action="store_true", help="no progress, which is shown on a terminal only")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Generate and save; the output path is checked before anything is loaded."""
    from arvid.video import VideoWriter, parts_of

    writer = VideoWriter(arguments.output, arguments.scale)
    if arguments.resumable:
        parts_of(writer.path)  # raises for what is made in one run only
    later = [(_moment(when), prompt) for when, prompt in arguments.then]
    config, name = configs.chosen(arguments)
    from arvid.models.loading import DTYPES  # torch is slow to import: bad paths are refused without it
    from arvid.pipeline import Pipeline
    from arvid.presets import warn_if_foreign

    weights = configs.found(arguments, name)
    if name is not None:
        warn_if_foreign(name, weights.card)
    pipe = Pipeline.load(
        config, model=weights.folder.path, checkpoint=weights.checkpoint, card=weights.card, lora=weights.lora,
        text=arguments.text, device=arguments.device, dtype=DTYPES[arguments.dtype],
    )  # fmt: skip
    width, height = arguments.size or (None, None)
    ask: dict[str, Any] = {
        "prompt": [(0, arguments.prompt), *later] if later else arguments.prompt, "seconds": arguments.seconds,
        "frames": arguments.frames, "height": height, "width": width, "seed": arguments.seed,
        "negative": arguments.negative, "start": arguments.start,
    }  # fmt: skip
    with progress_line(arguments.quiet, _far) as show:
        make = _in_parts if arguments.resumable else _at_once
        frames, fps = make(pipe, writer, {**ask, "progress": show})
    print(f"{writer.path}: {frames} pixel frames, {frames / fps:g} s")
    return 0


def _at_once(pipe: Pipeline, writer: VideoWriter, ask: dict[str, Any]) -> tuple[int, float]:
    try:
        pipe(**ask, into=writer)
    except BaseException:
        if writer.count and writer.part.exists():  # it may be the writing that failed
            print(f"arvid: {writer.part} has the first {writer.seconds:g} s", file=sys.stderr)
        raise
    return writer.count, writer.fps


def _in_parts(pipe: Pipeline, writer: VideoWriter, ask: dict[str, Any]) -> tuple[int, float]:
    from arvid.resumable import resumable
    from arvid.video import parts_of

    def note(text: str) -> None:
        print(f"arvid: {text}", file=sys.stderr)

    try:
        return resumable(pipe, writer.path, scale=writer.scale, note=note, **ask)
    except KeyboardInterrupt:
        if any(parts_of(writer.path).glob("state.*")):
            note(f"the same command goes on from what is in {parts_of(writer.path)}, all but the last minute")
        raise


def _far(at: Progress) -> str:
    return f"{at.done}/{at.total} frames, {at.fps:.1f} frames/s, {at.eta:.0f} s left"


def _moment(text: str) -> float:
    try:
        return seconds(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--then: {error}") from None
