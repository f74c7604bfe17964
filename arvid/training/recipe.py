"""A recipe: data, a model, and the stages that make it, from a TOML file, checked before anything is trained."""

from __future__ import annotations

import difflib
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arvid.config import PipelineConfig
from arvid.geometry import check_size
from arvid.models.specs import Card
from arvid.models.text import sentences
from arvid.training.consistency import Consistency
from arvid.training.datasets import DATA, Data
from arvid.training.flow import Flow
from arvid.training.ode import OdePairs
from arvid.training.resampling import ResamplingForcing
from arvid.training.self_forcing import SelfForcing
from arvid.training.stages import STAGE, Distillation, NetworkStage, Stage
from arvid.training.vae import TrainVAE

__all__ = [
    "DATA", "STAGE", "Consistency", "Flow", "OdePairs", "ResamplingForcing", "SelfForcing", "TrainVAE",
    "TrainingRecipe", "read_recipe", "recipe_of",
]

KEYS = ("data", "model", "stages")
COPIES = 14  # of a network in a checkpoint and the one before it, at most: student and critic with two moments, average
TAKEN = ("clips", "code", "sheets")  # what else is in the folder


@dataclass(frozen=True)
class TrainingRecipe:
    """What a model is made of. `stages` run in order; `card` is the model's, sizes and settings.

    Raises `ValueError` where a stage names another that is not before it or cannot be run on this recipe, where labels
    clash, and for sizes that do not fit each other, the captions or the data.
    """

    data: Data
    card: Card
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError(f"a recipe needs at least one of [[stages]]: {', '.join(STAGE.names())}")
        self.data.check(self.card)
        self._check_sizes()
        self._check_captions()
        labels = [stage.called for stage in self.stages]
        for i, stage in enumerate(self.stages):
            self._check_label(stage.called, labels[:i])
            self._check_needs(stage, [each.called for each in self.stages[:i] if isinstance(each, NetworkStage)])
            if isinstance(stage, Distillation):
                self.teacher(stage)
            stage.check(self)

    def _check_sizes(self) -> None:
        card = self.card
        with _naming("model"):
            check_size(*card.size, space_stride=card.vae.space_stride, patch=card.dit.patch)
            if card.dit.in_channels != card.vae.z_dim:
                raise ValueError(f"dit.in_channels={card.dit.in_channels} must be vae.z_dim={card.vae.z_dim}")
            if card.chunk > card.window or card.chunk > card.train_horizon:
                raise ValueError(f"chunk={card.chunk}: at most window={card.window} and train_horizon="
                                 f"{card.train_horizon}")
            PipelineConfig().resolve(card)

    def _check_captions(self) -> None:
        """One piece a word, the end mark, and three pieces for marks, as `train_tokenizer` makes them."""
        captions = sentences(self.data.grammar)
        longest = max(captions, key=lambda caption: len(caption.split()))
        pieces, tokens = len({word for caption in captions for word in caption.split()}) + 3, len(longest.split()) + 1
        if self.card.text.vocab_size < pieces:
            raise ValueError(f"model: text.vocab_size={self.card.text.vocab_size}: the captions need {pieces}, a word "
                             "each and 3 marks")
        if self.card.dit.text_length < tokens:
            raise ValueError(f"model: dit.text_length={self.card.dit.text_length}: the caption {longest!r} has "
                             f"{tokens} tokens, end mark included")

    @staticmethod
    def _check_label(label: str, before: list[str]) -> None:
        if label in before:
            raise ValueError(f"two stages are called {label!r}: give one a label")
        if not re.fullmatch(r"\w+", label) or label in TAKEN:
            raise ValueError(f"a stage is called {label!r}: files are named after it; use letters, digits and _, and "
                             f"not {' or '.join(TAKEN)}")

    @staticmethod
    def _check_needs(stage: Stage, networks: list[str]) -> None:
        for field, label in stage.needs().items():
            if label not in networks:
                raise ValueError(f"stage {stage.called!r}: {field}={label!r} is no network stage before it (there are: "
                                 f"{', '.join(networks) or 'none'})")
        if isinstance(stage, NetworkStage) and stage.learns and not networks:
            raise ValueError(f"stage {stage.called!r} begins with a network, and no stage before it makes one: add a "
                             "flow stage")

    def teacher(self, stage: Distillation) -> NetworkStage:
        """The stage whose network teaches another: the one named, else the last before it that is no student itself."""
        before = [each for each in self.stages[: self.stages.index(stage)] if isinstance(each, NetworkStage)]
        named = [each for each in before if each.called == stage.teacher or (stage.teacher is None and each.many_steps)]
        if not named:
            raise ValueError(f"stage {stage.called!r}: no stage before it makes a teacher; add a flow stage")
        return named[-1]

    def check_room(self, folder: Path, parameters: int) -> None:
        """Raise `OSError` where the disk of `folder` lacks room for checkpoints of all stages of `parameters`."""
        needed = 4 * COPIES * parameters * len(self.stages)
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if (free := shutil.disk_usage(there).free) < needed:
            raise OSError(f"{there} has {free / 1e9:.1f} GB free, and checkpoints may take {needed / 1e9:.1f} GB: make "
                          "room, or give another folder with -o")


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Put the place at fault before a message, of both kinds of bad input."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error


def read_recipe(path: str | Path) -> TrainingRecipe:
    """The recipe of a TOML file: [data], [model] (the fields of a card), and [[stages]], each with a registered name.

    Raises `FileNotFoundError`, and `ValueError` naming the file and what in it is wrong.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a TOML file")
    try:
        plain = tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    with _naming(str(path)):
        return recipe_of(plain)


def recipe_of(plain: Mapping[str, Any]) -> TrainingRecipe:
    """The recipe of plain values, as TOML has them. Raises `ValueError` naming the place and what is wrong there."""
    for key in plain:
        if key not in KEYS:
            close = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"a recipe has no key {key!r}{hint} (keys: {', '.join(KEYS)})")
    if missing := [key for key in KEYS if key not in plain]:
        raise ValueError(f"{', '.join(missing)} missing: a recipe has [data], [model] and [[stages]]")
    if not isinstance(plain["stages"], list):
        raise ValueError("stages is a list: write [[stages]]")
    with _naming("[data]"):
        data = DATA.build(_table(plain["data"]))
    with _naming("[model]"):
        card = _card(_table(plain["model"]), data)
    stages = []
    for i, stage in enumerate(plain["stages"], start=1):
        with _naming(f"[[stages]] number {i}"):
            stages.append(STAGE.build(_table(stage)))
    return TrainingRecipe(data, card, tuple(stages))


def _table(plain: Any) -> Mapping[str, Any]:
    if not isinstance(plain, Mapping):
        raise ValueError(f"a table of fields is wanted, got {plain!r}")
    return plain


def _card(plain: Mapping[str, Any], data: Data) -> Card:
    """The card of [model]; its grammar is the data's, and the latents' mean and spread are 0 and 1 where not given."""
    vae = plain.get("vae")
    if isinstance(vae, Mapping) and isinstance(channels := vae.get("z_dim"), int):
        vae = {"mean": (0.0,) * channels, "std": (1.0,) * channels, **vae}
    if "grammar" in plain:
        raise ValueError("grammar: leave it out, it is the data's")
    return Card.from_dict({**plain, **({} if vae is None else {"vae": vae}), "grammar": data.grammar})
