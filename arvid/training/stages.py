"""What a training stage is: a strategy whose fields are its settings, run in a workshop that knows the others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from arvid.registry import Registry
from arvid.training.loop import Optimisation
from arvid.training.network import View

if TYPE_CHECKING:
    from arvid.training.recipe import TrainingRecipe
    from arvid.training.workshop import Workshop

__all__ = ["STAGE", "Distillation", "NetworkStage", "Stage"]


@dataclass(frozen=True)
class Stage(Optimisation, ABC):
    """One stage of a recipe. `label` is what later stages call it, None its registered name."""

    label: str | None = None

    @property
    def called(self) -> str:
        """The label, or the registered name."""
        return self.label or STAGE.spec(self)["name"]

    def needs(self) -> dict[str, str]:
        """Labels of earlier stages, by the field that names them."""
        return {}

    def check(self, recipe: TrainingRecipe) -> None:
        """Raise `ValueError` for what this stage cannot be run on."""

    @abstractmethod
    def run(self, shop: Workshop) -> nn.Module:
        """Train, or load what was trained, and return the averaged weights in evaluation mode."""


STAGE: Registry[Stage] = Registry("stage", Stage)


def check_first_chunks(count: int) -> None:
    """Raise `ValueError` for a number of first chunks that cannot be."""
    if count < 0:
        raise ValueError(f"first_chunks={count}: at least 0")


@dataclass(frozen=True)
class NetworkStage(Stage):
    """A stage that trains transformer and text encoder, beginning with the weights of stage `start` (None: those of the
    network stage before it, or new ones)."""

    view: ClassVar[View] = "clean"
    learns: ClassVar[bool] = False
    """Whether it needs a network to begin with."""
    many_steps: ClassVar[bool] = False
    """Whether its network is sampled by a solver in many guided steps, and not in the card's few."""
    start: str | None = None

    def needs(self) -> dict[str, str]:
        return super().needs() | ({} if self.start is None else {"start": self.start})


@dataclass(frozen=True)
class Distillation(NetworkStage):
    """A stage that learns from the frozen network of stage `teacher`, led by `guidance`.

    None is the last stage before it whose network is sampled in many steps.
    """

    learns = True
    teacher: str | None = None
    guidance: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1e3 < self.guidance < 1e3:
            raise ValueError(f"guidance={self.guidance}: give a number such as 2.0; 1 is none")

    def needs(self) -> dict[str, str]:
        return super().needs() | ({} if self.teacher is None else {"teacher": self.teacher})
