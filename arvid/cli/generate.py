"""`arvid generate`: a prompt to a file."""

from __future__ import annotations

import argparse
import sys
from typing import Any

HELP = """\
Make a video of PROMPT with a model's own settings, or with a preset's.

The bundled model is small, runs on a CPU, and knows sentences of one form:
  a {red|green|blue|yellow|orange|purple|pink|cyan} {ball|square|triangle}
  {bounces around|moves left and right|moves up and down|moves in a circle|grows and shrinks}
  on a {black|white|gray|brown|navy|beige} background
"""
EXAMPLES = """\
examples:
  arvid generate "a red ball bounces around on a navy background" -o ball.mp4
  arvid generate "a cyan square moves in a circle on a black background" --seconds 30 --seed 7 -o square.gif
  arvid generate "a pink ball moves up and down on a navy background" -o sheet.png    (a contact sheet)
"""


def add(commands: Any) -> None:
    """Register the subcommand."""
    p = commands.add_parser(
        "generate", help="make a video of a prompt", description=HELP, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("prompt", metavar="PROMPT", help="what the video shows")
    p.add_argument("-o", "--output", default="arvid.mp4", help=".mp4, .gif, or .png for a contact sheet (default: %(default)s)")
    p.add_argument("--preset", help="how to make it; without one, the model's own settings")
    length = p.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, help="length, rounded to whole chunks (default: the training clips')")
    length.add_argument("--frames", type=int, help="length in latent frames, exact")
    p.add_argument("--seed", type=int, default=0, help="the same seed gives the same video (default: 0)")
    p.add_argument("--size", metavar="WIDTHxHEIGHT", help="pixels (default: the model's)")
    p.add_argument("--scale", type=int, help="enlarge pixels by this whole factor (default: small videos to a visible size)")
    p.add_argument("--model", metavar="FOLDER", help="weights (default: the bundled model)")
    p.add_argument("--device", default="cpu", help="where to run (default: %(default)s)")
    p.add_argument("--quiet", action="store_true", help="no progress")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Generate and save; the output path is checked before anything is loaded."""
    from arvid.video import check_output

    width, height = _size(arguments.size)
    check_output(arguments.output)
    from arvid.pipeline import Pipeline, Progress  # torch is slow to import: bad paths are refused without it

    def show(p: Progress) -> None:
        print(f"\r{p.done}/{p.total} frames, {p.fps:.1f} frames/s, {p.eta:.0f} s left ", end="", file=sys.stderr, flush=True)

    pipe = Pipeline.load(arguments.preset, model=arguments.model, device=arguments.device)
    video = pipe(
        arguments.prompt, arguments.seconds, frames=arguments.frames, height=height, width=width, seed=arguments.seed,
        progress=None if arguments.quiet else show,
    )  # fmt: skip
    if not arguments.quiet:
        print(file=sys.stderr)
    path = video.save(arguments.output, arguments.scale)
    print(f"{path}: {len(video)} frames, {video.seconds:g} s")
    return 0


def _size(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--size {text!r}: give WIDTHxHEIGHT in pixels, such as 832x480")
    return int(parts[0]), int(parts[1])
