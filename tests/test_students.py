"""Student presets: the numbers of their sources, and that each runs, on random weights of a small size."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from random_model import BLUE, CARD, RED, random_parts

from arvid import Pipeline
from arvid.cache import Chunk, Recommit, Sink, Window
from arvid.config import PipelineConfig
from arvid.models.specs import CARDS, Card, card
from arvid.positional import Absolute, SinkAdjacent
from arvid.presets import STUDENTS, preset, warn_if_foreign
from arvid.samplers import FewStep, Hierarchical, RollingForcing, Sampler
from arvid.testing import trace

FOUR = (1000, 750, 500, 250)
FRAMEWISE = FewStep((1000, 500), 5.0, 0.0, first_steps=(FOUR,))

# chunk, sampler, cache: as their papers and released configurations have them.
NUMBERS: dict[str, tuple[int, Sampler, Window | Sink]] = {
    "self_forcing": (3, FewStep(FOUR, 5.0, 0.0), Window(21)),
    "causvid": (3, FewStep((1000, 757, 522), 1.0, 0.0), Window(21)),
    "longlive": (3, FewStep(FOUR, 5.0, 0.0), Sink(12, 3, on_change=Recommit())),
    "rolling_forcing": (3, RollingForcing((1000, 800, 600, 400, 200), 5.0, 0.0), Sink(21, 3, sink_on_commit=False)),
    "hiar": (3, Hierarchical(FOUR, 5.0, 0.0), Window(21)),
    "causal_forcing": (3, FewStep(FOUR, 5.0, 0.0), Window(21)),
    "causal_forcing_framewise": (1, FewStep(FOUR, 5.0, 0.0), Window(21)),
    "causal_forcing_framewise_2step": (1, FRAMEWISE, Window(21)),
    "causal_forcing_framewise_1step": (1, replace(FRAMEWISE, steps=(1000,)), Window(21)),
    "diagonal": (
        3, FewStep((1000, 100), 5.0, 0.0, first_steps=((1000, 750, 500, 100), (1000, 750, 100)), commit="last"),
        Sink(12, 3),
    ),
}  # fmt: skip


def small(name: str) -> Card:
    """The student's card with networks of a few thousand weights."""
    return replace(card(name), **{key: getattr(CARD, key) for key in ("dit", "vae", "text", "size", "fps", "grammar")})


def pipeline(name: str) -> Pipeline:
    own = small(name)
    parts = random_parts(own)
    return Pipeline.from_parts(parts.dit, None, parts.vae, parts.text, own)


def test_every_student_is_listed_here() -> None:
    assert sorted(NUMBERS) == sorted(STUDENTS)


@pytest.mark.parametrize("name", STUDENTS)
def test_the_numbers_of_a_preset(name: str) -> None:
    chunk, sampler, cache = NUMBERS[name]
    config = preset(name)
    assert (config.chunk, config.sampler, config.cache) == (chunk, sampler, cache)
    assert config.time == (SinkAdjacent() if name == "rolling_forcing" else Absolute())
    assert config == PipelineConfig.from_dict(config.to_dict())
    assert pipeline(name).config == config


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_makes_a_video_longer_than_its_window(name: str) -> None:
    """Twice the same, each frame once, and the passes that its trace declares."""
    pipe = pipeline(name)
    frames = 26
    first, again = (pipe.latents(prompt=RED, frames=frames, seed=3) for _ in range(2))
    assert first.shape[1] == frames
    assert first.isfinite().all()
    assert first.equal(again)
    assert not first.equal(pipe.latents(prompt=RED, frames=frames, seed=4))
    pieces = list(pipe.stream(RED, frames=5))
    assert len(pieces) == -(-5 // (preset(name).chunk or 1))
    assert np.concatenate([piece.frames for piece in pieces]).shape == (17, 16, 32, 3)


@pytest.mark.parametrize("name", STUDENTS)
def test_what_was_emitted_before_the_prompt_changed_stays(name: str) -> None:
    """Chunks in flight see the change early: with a joint window, or in levels of their own, some before it do."""
    pipe, chunk = pipeline(name), preset(name).chunk or 1
    at = 6 * chunk * CARD.vae.time_stride / CARD.fps
    plain, changed = (list(pipe.stream(prompt, frames=8 * chunk)) for prompt in (RED, [(0, RED), (at, BLUE)]))
    alike = [np.array_equal(a.frames, b.frames) for a, b in zip(plain, changed, strict=True)]
    early = 4 if name == "rolling_forcing" else 0
    assert alike == [True] * (6 - early) + [False] * (2 + early)


def test_forwards_of_students_a_chunk() -> None:
    """Those of a video of one chunk, and those that a ninth chunk adds."""

    def passes(name: str, chunks: int) -> int:
        config = preset(name)
        assert config.sampler and config.chunk
        listed = [Chunk(config.chunk * i, config.chunk, index=i) for i in range(chunks)]
        return sum(kind != "emit" for kind, *_ in trace(config.sampler, listed))

    assert {name: (passes(name, 1), passes(name, 9) - passes(name, 8)) for name in NUMBERS} == {
        "self_forcing": (5, 5), "causvid": (4, 4), "longlive": (5, 5), "causal_forcing": (5, 5),
        "causal_forcing_framewise": (5, 5), "causal_forcing_framewise_2step": (5, 3),
        "causal_forcing_framewise_1step": (5, 2), "diagonal": (4, 2), "hiar": (8, 8), "rolling_forcing": (6, 2),
    }  # fmt: skip


def test_a_preset_on_weights_made_for_another_sampler_warns() -> None:
    with pytest.warns(UserWarning, match=r"'hiar' belongs to other weights than 'self_forcing'; differing: sampler"):
        warn_if_foreign("hiar", card("self_forcing"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_foreign("hiar", CARDS["hiar"])


def test_a_card_says_its_first_steps_chunk_by_chunk() -> None:
    with pytest.raises(ValueError, match=r"first_steps=\(1000, 500\): give a list of steps for each"):
        replace(CARD, first_steps=(1000, 500))  # pyright: ignore[reportArgumentType]
    plain = CARD.to_dict() | {"first_steps": [[1000, 500], [1000]]}
    own = Card.from_dict(plain)
    assert own.first_steps == ((1000, 500), (1000,))
    parts = random_parts()
    config = Pipeline.from_parts(parts.dit, "rolling_sink", card=own).config
    assert config.sampler == FewStep((1000, 500), 3.0, 0.0, first_steps=((1000, 500), (1000,)))
    assert Card.from_dict(plain | {"first_steps": None}).first_steps == ()
