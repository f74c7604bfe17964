"""A folder of random weights, and a pipeline of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from random_model import random_parts

from arvid import Pipeline
from arvid.models.text import BUNDLED_TOKENIZER
from arvid.models.weights import save_parts

# Most tensors here are too small to share between threads, which then wait for each other.
torch.set_num_threads(1)


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
