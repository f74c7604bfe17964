"""Whether an object goes on from where it was when a video begins with an image or a clip: a table in Markdown.

    python benchmarks/continuation.py [--prompts 8] [--sheet FILE.png] [--model FOLDER]

A first video of each held-out prompt gives its last frame, or its first 21 pixel frames, to a second one, of the same
prompt and other noise. The reader of pixels then compares the last frame given and the first new one: how far the
object's centre has moved, in pixels, beside how far it moves between two frames of the clip given and between two of
the second video, and whether its colour is the same. Rows of the sheet are videos: the last given frames, and new ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import imageio.v3 as iio
import numpy as np

import arvid
from arvid.cli.values import whole
from arvid.evaluation.prompts import read_prompts
from arvid.evaluation.reader import read
from arvid.training.grammar import parse
from arvid.video import Video, check_output

GIVEN, NEW = 21, 9  # pixel frames of the clip, latent frames that are made


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--prompts", type=whole, default=8)
    p.add_argument("--sheet", type=Path, help="a .png with a row for each video; its name gets -image and -clip")
    p.add_argument("--model", help="a folder of weights (default: the bundled model)")
    arguments = p.parse_args()
    sheet = arguments.sheet and check_output(arguments.sheet)
    pipe = arvid.Pipeline.load(model=arguments.model)
    single = [prompt.text for prompt in read_prompts("held_out") if len(parse(prompt.text).things) == 1]
    prompts = single[:: max(1, len(single) // arguments.prompts)][: arguments.prompts]
    rows = range(len(prompts))
    clips = [Video(video.frames[:GIVEN], video.fps) for video in pipe(prompts, frames=6, seed=[*rows])]
    print("| start | step at the seam, px | largest | usual step | same colour |\n|---|---|---|---|---|", flush=True)
    for kind in ("image", "clip"):
        start = [clip.frames[-1] for clip in clips] if kind == "image" else clips
        given = 1 if kind == "image" else GIVEN
        videos = pipe(prompts, frames=NEW, seed=[100 + row for row in rows], start=start)
        side = videos[0].frames.shape[2]
        seams, usual, same = [], [], []
        for video, first in zip(videos, start, strict=True):
            given_frames = first[None] if isinstance(first, np.ndarray) else first.frames
            assert np.array_equal(video.frames[:given], given_frames)
            reading = read(video.frames)
            steps = np.hypot(*np.diff(reading.centre * side, axis=0).T)
            seams.append(steps[given - 1])
            usual.append(np.nanmedian(np.delete(steps, given - 1)))
            same.append(reading.colour[given] == reading.colour[given - 1])
        print(f"| {kind} | {np.nanmedian(seams):.2f} | {np.nanmax(seams):.2f} | {np.nanmedian(usual):.2f} | "
              f"{sum(same)}/{len(same)} |", flush=True)  # fmt: skip
        if sheet:
            before = [max(0, given - 9), max(0, given - 5), given - 1]
            shown = [*before, *range(given, given + 4), given + 8, given + 16, -1]
            strips = [np.concatenate(video.frames[shown], 1) for video in videos]
            iio.imwrite(sheet.with_stem(f"{sheet.stem}-{kind}"), np.concatenate(strips))


if __name__ == "__main__":
    main()
