"""A folder of random weights, a pipeline of it, and a small model as others are published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from random_model import random_parts
from small_published import SMALL_CARDS, source

from arvid import Pipeline
from arvid.models.specs import CARDS
from arvid.models.text import BUNDLED_TOKENIZER
from arvid.models.weights import Parts, save_parts

# Most tensors here are too small to share between threads, which then wait for each other.
torch.set_num_threads(1)
# A shared machine may stop for seconds at any point; time says nothing about a property.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `Pipeline.load` reads; not to be changed."""
    folder = tmp_path_factory.mktemp("weights")
    save_parts(random_parts(), folder, BUNDLED_TOKENIZER.read_bytes())
    return folder


@pytest.fixture(scope="session")
def pipe(weights: Path) -> Pipeline:
    return Pipeline.load(model=weights)


@pytest.fixture(scope="session")
def pipe64(weights: Path) -> Pipeline:
    return Pipeline.load(model=weights, dtype=torch.float64)


@pytest.fixture(scope="session")
def parts() -> Parts:
    """The small model of `small_published`; not to be changed."""
    return source()


@pytest.fixture
def small_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cards among the published ones."""
    for name, small in SMALL_CARDS.items():
        monkeypatch.setitem(CARDS, name, small)
