"""`check_sampler` passes what is right, and names what is wrong: samplers that break a promise."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from broken_samplers import (
    Adaptive,
    After,
    Ancestral,
    Consuming,
    Curious,
    Early,
    Euler,
    Growing,
    Hoarding,
    Idle,
    Joint,
    LevelByLevel,
    Neighbourly,
    Plain,
    Popping,
    Premature,
    Reversed,
    Seeded,
    Sharing,
    Stale,
    StaleEuler,
    Stopping,
    Unlike,
    Unstoppable,
    Windowed,
    Working,
    Writing,
    asking,
    broken,
    emitting,
    finishing,
    frame_by_frame,
    halved,
    onward,
    over_x,
    refuse,
)  # fmt: skip

from arvid.samplers import SAMPLER, FewStep, Sampler
from arvid.testing import check_sampler

TABLE: dict[str, list[dict[str, Any]]] = {
    "few_step": [
        {}, {"steps": (1000,)}, {"context_noise": 300, "context_renoise": True}, {"steps": (1000,), "commit": "last"},
        {"steps": (1000, 100), "first_steps": ((1000, 750, 500, 100), (1000, 750, 100)), "commit": "last"},
    ],
    "rolling_forcing": [{}, {"steps": (1000,)}],
    "hierarchical": [
        {}, {"steps": (1000, 600, 300), "ode": True}, {"steps": (1000, 500), "always_clean_context": True},
        {"frame_first_steps": 2, "frame_first_chunks": 1},
    ],
    "multistep": [
        {"num_steps": 6}, {"num_steps": 5, "solver": "dpm++"}, {"num_steps": 4, "solver": "euler"},
        {"num_steps": 8, "integer_timesteps": True, "guidance": 1}, {"num_steps": 1},
    ],
    "diffusion_forcing": [
        {"num_steps": 6, "ar_step": 2}, {"num_steps": 3, "ar_step": 0, "joint": 2}, {"num_steps": 3, "ar_step": 5},
    ],
}  # fmt: skip
"""Settings that stand for all, by name. What has none here is held to its promises as it is by default."""

SETTINGS = [(name, fields) for name in SAMPLER.names() if SAMPLER.get(name).__module__.startswith("arvid.")
            for fields in TABLE.get(name, [{}])]  # fmt: skip


@pytest.mark.parametrize(("name", "fields"), SETTINGS, ids=lambda value: str(value))
def test_every_registered_sampler_passes(name: str, fields: dict[str, Any]) -> None:
    check_sampler(SAMPLER.build({"name": name, **fields}))


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_samplers_pass_with_chunks_of_other_sizes(chunk: int) -> None:
    check_sampler(FewStep(), chunk=chunk, steps=(1000, 500), shift=3, context_noise=100)


@pytest.mark.parametrize("sampler", [Plain(), Plain((0.9, 0.2)), Ancestral(), Euler(), Euler((0.9, 0.2)), Joint(),
                                     Joint((1.0,)), LevelByLevel()],
                         ids=str)  # fmt: skip
def test_what_is_right_passes(sampler: Sampler) -> None:
    check_sampler(sampler, chunk=2)


@SAMPLER.register("doubling_of_the_sampler_check")
@dataclass(frozen=True)
class Doubling(Plain):
    """Changes what it was given."""

    size: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", 2 * self.size)


@pytest.mark.parametrize(
    ("sampler", "match"),
    [
        # emissions
        (broken(rollout=emitting(lambda emits: emits[:-1])), r"emitted once, in order: .*chunks \[0\] never were"),
        (broken(rollout=emitting(lambda emits: emits[::-1])), r"emitted once, in order: .*index=1\), expected chunk 0"),
        (broken(rollout=emitting(lambda emits: [*emits, emits[-1]])), "emitted once, in order: .*expected none"),
        (broken(rollout=emitting(lambda emits: [emit.x0 for emit in emits])), "gives emissions: .*a Tensor, expected"),
        (broken(rollout=emitting(lambda emits: [replace(e, chunk=replace(e.chunk, sigma=0.1)) for e in emits])),
         "committed before it is emitted, .*chunk 0 has no COMMIT at level 0.1"),
        (Early(), "committed before it is emitted, .*chunk 0 has no COMMIT at level 0"),
        (After(), r"no pass is over a chunk that was emitted: not so: chunks \[0\] were before the COMMIT"),
        (broken(finish=finishing(emit=lambda x0: x0[:, :, :1])),
         r"x0 as noise is, in dtype and shape: .*\(2, 2, 1, 2, 3\)\), expected .*\(2, 2, 2, 2, 3\)"),
        (broken(finish=finishing(emit=lambda x0: x0.double())),
         "x0 as noise is, in dtype and shape: .*torch.float64.* expected .*torch.float32"),
        # passes
        (broken(finish=finishing(lanes=[1]), lanes=2),
         "comes before a pass is committed in its lane: not so: before the DENOISE of chunk 1 in lane 0 .* at frame 0"),
        (broken(finish=finishing(lanes=[0, 0])),
         "a chunk is committed once in a lane: not so: before the COMMIT of chunk 0"),
        (broken(begin=lambda self, noise, chunk: noise.initial(chunk)[:, :1]), "latents for all its frames: .*chunk 0"),
        (broken(begin=lambda self, noise, chunk: noise.initial(chunk) / 0), "latents are finite: .*chunk 0 in lane 0"),
        (Premature(),
         "a DENOISE reads nothing final of its own chunks or of later ones: not so: before the DENOISE of chunk 0"),
        (broken(one=asking(lambda d, x, chunks: (d(x, chunks), d(x, chunks))[1])),
         "a chunk's levels fall within a lane: not so: 1 after 1 in the DENOISE of chunk 0"),
        (broken(one=asking(lambda d, x, chunks: d(x, [replace(chunk, sigma=0.0) for chunk in chunks]))),
         r"a noise level is a number in \(0, 1\].*: the DENOISE of chunk 0 in lane 0: 0\.0"),
        (broken(one=asking(frame_by_frame)), "a pass is over chunks of the video, in a row: .* chunk 0"),
        (Reversed(), r"no chunk is cleaner than the one before it: .*levels \[1\.0, 0\.8\] in the DENOISE"),
        (broken(finish=finishing(lanes=[1])),
         "lanes are numbers below `lanes`: not so: the COMMIT of chunk 0 in lane 1, expected a lane below 1"),
        (Adaptive(), r"passes are those of the trace, whatever the numbers: not so: event \d+ is denoise of Chunk"),
        (broken(begin=lambda self, noise, chunk: noise.initial(chunk) * (1 // (chunk.n - 1))),
         "a sampler serves every video: not so: ZeroDivisionError.*for chunks of 1 frames from frame 0 on"),
        # declared
        (broken(lanes=2), "`lanes` is how many lanes there are: not so: 1 are used in a video of 4 chunks of 1 frames"),
        (broken(lanes=0), "lanes is a whole number, at least 1: not so: it is 0"),
        (broken(in_flight=lambda self, chunk: 2 * chunk), "in_flight is the most frames of any pass: not so: 1 in a"),
        (broken(in_flight=lambda self, chunk: float(chunk)), r"in_flight is a whole number, at least 2: .*2\.0"),
        (broken(Joint, in_flight=lambda self, chunk: chunk),
         "in_flight is the most frames .*: not so: 2 .*in_flight says 1"),
        (broken(guidance=float("nan")), "guidance is a number, at least 0: not so: it is nan"),
        (broken(LevelByLevel, needs_horizon=False),
         "without needs_horizon a chunk is emitted as soon in a longer video: not so: the first two after"),
        (Hoarding(), "without needs_horizon memory is bounded: not so: .* bytes after .* chunks"),
        (Growing(), "without needs_horizon memory is bounded: not so: .* bytes after .* chunks"),
        # runs
        (broken(begin=lambda self, noise, chunk: torch.randn_like(noise.initial(chunk))), "two runs are equal bit by"),
        (Seeded(), "no random numbers but the noise: not so: torch's generator"),
        (broken(one=asking(lambda d, x, chunks: d(x, chunks).mean(0, keepdim=True).expand_as(x))),
         "rows of a batch do not meet: not so: x0 of chunk 0 differs by"),
        (broken(rollout=lambda self, d, noise, chunks, state=None: Plain.rollout(self, d, noise, chunks)),
         "stopped after chunk 0, a video goes on bit by bit: not so: a DENOISE reads nothing final"),
        (broken(Joint, stated=lambda self, done, flying: (done, ())), "stopped after chunk 0, a video goes on"),
        (Sharing(), "stopped after chunk 0, a video goes on bit by bit: not so"),
        (Consuming(), "stopped after chunk 0, a video goes on bit by bit: .*TypeError"),
        (Stopping(), "a rollout that is closed leaves nothing behind: not so: closing it ran 1 passes"),
        (Unstoppable(), "a sampler serves every video: not so: .*generator ignored GeneratorExit.*when it is closed"),
        (Working(), r"a rollout that is closed leaves nothing behind: not so: threads \['worker'.* are running"),
        (broken(Hoarding, memory=[]), "a rollout that is closed leaves nothing behind: not so: .* bytes of latents"),
        (broken(begin=lambda self, noise, chunk: noise.initial(chunk).neg_()),
         "tensors stay as they were given: not so: .* wrote over the initial noise of"),
        (broken(onward=over_x), "tensors stay .* wrote over the latents of the DENOISE of chunk 0"),
        (Writing(), "tensors stay as they were given: not so: the sampler wrote over .*chunk 0"),
        (Popping(), "the list of chunks stays as it is: not so: it is now"),
        # noise
        (broken(onward=onward(lambda x0, noise, chunk, level, s: x0.lerp(noise.renoise(chunk, 0), s))),
         "a noise has one use: not so: renoise noise 0 of the chunk from frame 0 on is asked for after denoise 1"),
        (broken(onward=onward(lambda x0, noise, chunk, level, s: x0.lerp(noise.initial(chunk), s))),
         "a noise has one use: not so: initial noise of the chunk from frame 0 on is asked for after denoise 0"),
        (broken(onward=onward(lambda x0, noise, chunk, level, s: x0.lerp(noise.renoise(chunk, level + 1), s))),
         "renoise noise k takes x0 from level k to level k .*: not so: the DENOISE of chunk 0 at level 0.8 is level 1"),
        (broken(onward=onward(lambda x0, noise, chunk, level, s: x0.lerp(noise.context(chunk), s))),
         "context noise a chunk to its COMMIT: not so: .*context noise of the chunk from frame 0 on in it"),
        (broken(begin=lambda self, noise, chunk: noise.renoise(chunk, 0)), "a chunk begins as its initial noise"),
        (broken(begin=lambda self, noise, chunk: 0.9 * noise.initial(chunk)), "as its initial noise: .*0.9 initial"),
        (broken(begin=lambda self, noise, chunk: noise.initial(replace(chunk, n=chunk.n + 1))[:, 1:]),
         "noise is asked for by a chunk of the video, and a step: not so: initial noise .*, 3 frames"),
        # what latents are made of
        (Neighbourly(), "a chunk is made of its own noise and predictions: .*the COMMIT of chunk 1 .*x0 of chunk 0"),
        (broken(onward=onward(lambda x0, noise, chunk, level, s: x0.lerp(noise.renoise(chunk, level), s + 0.01))),
         r"as noisy as their level says: not so: .*level 0.8 is 0\.19 c \+ 0\.81 noise, expected 0\.2 c \+ 0\.8 noise"),
        (broken(finish=finishing(commit=lambda x0: 0.9 * x0)),
         "what is committed is x0, or as noisy as its level says: .* the COMMIT of chunk 0 at level 0 is 0.9 c"),
        (broken(finish=finishing(emit=lambda x0: 1.01 * x0)),
         "a point mass is sampled exactly: not so: with predictions c, the EMIT of chunk 0 at level 0 is 1.01 c"),
        (Unlike(), "what is emitted is what was committed: not so: the COMMIT of chunk 0 .* is 1 x0 at 0.5, and 1"),
        (Stale(), r"the spread is that of the plain recursion, or nearer: .* 0\.\d+ for chunk 0 at levels 1, 0.8"),
        (StaleEuler(), r"the spread is that of the plain recursion, or nearer: .* 0\.\d+ for chunk 0 at levels 1, 0.8"),
        (Curious(), "neither passes nor noises depend on numbers: not so: they do for chunks of 2 frames"),
        (broken(one=asking(lambda d, x, chunks: d(x, chunks).clamp(-1, 1))),
         r"for Gaussian data a sampler is its linear recursion: not so: x0 of chunk \d is off by up to"),
        (broken(one=asking(lambda d, x, chunks: d(x, chunks).flip(1))),
         r"for Gaussian data a sampler is its linear recursion: not so: x0 of chunk \d is off by up to"),
        (broken(begin=lambda self, noise, chunk: noise.initial(chunk).flip(-1)), "begins as its initial noise"),
        (broken(one=asking(halved)),
         r"a point mass is sampled exactly: not so: .* is off by .* in torch.float32, expected at most 1.9e-06"),
        # fields
        (Idle(), r"every field has an effect: not so: gamma has none on passes, .*: 0\.5 gives what \[0\.51, "),
        (Doubling(), r"a sampler comes back from its spec: not so: Doubling\(.*size=8.*expected Doubling\(.*size=4"),
    ],
)  # fmt: skip
def test_a_broken_promise_is_named(sampler: Sampler, match: str) -> None:
    Working.over.clear()
    try:
        with pytest.raises(AssertionError, match=match):
            check_sampler(sampler, chunk=2)
    finally:
        Working.over.set()


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ((lambda: check_sampler("few_step")), "'few_step' is no sampler: give an instance of a frozen dataclass"),  # pyright: ignore[reportArgumentType]
        ((lambda: check_sampler(FewStep)), "is no sampler"),  # pyright: ignore[reportArgumentType]
        ((lambda: check_sampler(FewStep(), chunk=0)), "chunk=0: a chunk is a whole number of latent frames"),
        ((lambda: check_sampler(FewStep(), chunk=True)), "chunk=True"),
        ((lambda: check_sampler(FewStep(), steps=(500, 1000))), "steps="),
        ((lambda: check_sampler(Windowed())), "window None means the card's, and there is no card: give a value"),
        ((lambda: check_sampler(broken(in_flight=refuse), chunk=4)), "chunks of 4 frames are too long for this one"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(given, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        given()


def test_the_check_leaves_no_trace() -> None:
    """Neither torch's random numbers nor threads, and what it says does not depend on what was checked before."""
    random, threads = torch.get_rng_state(), threading.active_count()
    check_sampler(Joint(), chunk=2)
    assert torch.equal(torch.get_rng_state(), random)
    assert threading.active_count() == threads
