"""`python -m arvid.evaluation`: the bundled model's figures on prompts it was never trained on."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path


def main() -> None:
    """Parse the arguments, generate, read, and report."""
    p = argparse.ArgumentParser(prog="python -m arvid.evaluation", description=__doc__)
    p.add_argument("--model", type=Path, help="folder of weights (default: the bundled model)")
    p.add_argument("--config", metavar="CONFIG", help="a preset's name or a .toml file (default: the model's settings)")
    p.add_argument("--prompts", type=int, default=50, help="how many held-out prompts (default: all %(default)s)")
    p.add_argument("--frames", type=int, default=21, help="latent frames (default: %(default)s, a training clip)")
    p.add_argument("--seed", type=int, default=0, help="prompt i has seed SEED + i (default: %(default)s)")
    p.add_argument("--sheet", type=Path, help="write a contact sheet (.png) of the videos")
    p.add_argument("--json", type=Path, help="write the figures")
    arguments = p.parse_args()

    import imageio.v3 as iio

    from arvid.evaluation.report import evaluate, sheet
    from arvid.pipeline import Pipeline
    from arvid.presets import named
    from arvid.training.clips import held_out_captions

    prompts = held_out_captions()[: arguments.prompts]
    pipe = Pipeline.load(named(arguments.config)[0] if arguments.config else None, model=arguments.model)
    report, videos = evaluate(pipe, prompts, arguments.frames, arguments.seed)
    print(report.table())
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(report), indent=1) + "\n")
    if arguments.sheet:
        iio.imwrite(arguments.sheet, sheet(videos))


if __name__ == "__main__":
    main()
