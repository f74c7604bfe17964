"""How long until a change of the prompt is seen, by what happens to the cache then: a table in Markdown.

    python benchmarks/prompt_changes.py [--prompts 20] [--at 3] [--seconds 8] [--preset CONFIG] [--model FOLDER]

Each video begins under one held-out prompt and goes on under the next one in which colour and background are others.
A change is seen from the first pixel frame on at which the reader of pixels finds the new prompt's colour on the new
prompt's background in that frame and in most of the frames after it. Seconds count from the time that was asked for,
so they include the wait for the next chunk to begin.
"""

from __future__ import annotations

import argparse
from itertools import islice

import numpy as np

import arvid
from arvid.cli.values import whole
from arvid.evaluation.prompts import read_prompts
from arvid.evaluation.reader import read
from arvid.training.grammar import parse
from arvid.video import Video

MODES = {
    "none": None, "recommit": {"name": "recommit"}, "recommit, sinks renewed": {"name": "recommit", "sinks": "renew"},
    "flush(n=1)": {"name": "flush", "n": 1}, "cut(keep=sink)": {"name": "cut", "keep": "sink"},
    "cut(keep=none)": {"name": "cut", "keep": "none"},
}  # fmt: skip


def pairs(count: int) -> list[tuple[str, str]]:
    """Prompts of one object, each with the next one that differs from it in colour and in background."""
    single = [prompt.text for prompt in read_prompts("held_out") if len(parse(prompt.text).things) == 1]

    def other(i: int) -> str:
        first = parse(single[i])
        following = (parse(text) for text in single[i + 1 :] + single[:i])
        return str(next(then for then in following if then.background != first.background
                        and then.things[0].colour != first.things[0].colour))  # fmt: skip

    return [(single[i], other(i)) for i in range(min(count, len(single)))]


def seen_after(video: Video, asked: int, prompt: str) -> float:
    """Seconds from pixel frame `asked` until the video shows the prompt's colour and background, infinite if never."""
    reading, said = read(video.frames[asked:]), parse(prompt)
    right = (reading.background == said.background) & (reading.colour == said.things[0].colour)
    shares = np.cumsum(right[::-1])[::-1] / np.arange(len(right), 0, -1)
    found = np.flatnonzero(right & (shares > 0.5))
    return float(found[0] / video.fps) if len(found) else float("inf")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--prompts", type=whole, default=20)
    p.add_argument("--at", type=float, default=3.0, help="seconds at which the prompt changes (default: 3)")
    p.add_argument("--seconds", type=float, default=8.0)
    p.add_argument("--preset", help="a preset or a .toml file (default: the model's own settings)")
    p.add_argument("--model", help="a folder of weights (default: the bundled model)")
    p.add_argument("--modes", nargs="+", choices=MODES, default=[*MODES])
    arguments = p.parse_args()
    pipe = arvid.Pipeline.load(arguments.preset, model=arguments.model)
    assert pipe.card
    asked = round(arguments.at * pipe.card.fps)
    before_it = asked - pipe.card.vae.time_stride + 1  # where the chunk of latent frames begins whose first ends there
    before: dict[int, np.ndarray] = {}
    print("| on_change | median s | within 2 s | seen at all |\n|---|---|---|---|", flush=True)
    for mode in arguments.modes:
        seconds = []
        for seed, (first, then) in enumerate(islice(pairs(arguments.prompts), arguments.prompts)):
            video = pipe([(0, first), (arguments.at, then)], arguments.seconds, seed=seed, on_change=MODES[mode])
            kept = before.setdefault(seed, video.frames[:before_it])
            assert np.array_equal(kept, video.frames[:before_it]), "what came before the change must not depend on it"
            seconds.append(seen_after(video, asked, then))
        soon, ever = (np.mean(np.array(seconds) <= limit) for limit in (2, 1e9))
        print(f"| `{mode}` | {np.median(seconds):.2f} | {soon:.0%} | {ever:.0%} |", flush=True)


if __name__ == "__main__":
    main()
