"""Where a recipe is carried out: the folder of checkpoints, what is made so far, and a look at it now and then."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from arvid.config import PipelineConfig
from arvid.locking import locked
from arvid.models.dit import CausalDiT
from arvid.models.text import TextEncoder, build_umt5, load_tokenizer, sentences, train_tokenizer
from arvid.models.vae import WanVAE
from arvid.models.weights import Parts, save_parts
from arvid.pipeline import Pipeline
from arvid.samplers import Multistep
from arvid.training.blocks import BlockCode
from arvid.training.data import Clips
from arvid.training.loop import Said, StepLoss, checkpoint, train
from arvid.training.network import Network, Passes, initialise
from arvid.training.recipe import TrainingRecipe
from arvid.training.stages import STAGE, Distillation, NetworkStage, Stage
from arvid.video import Video

__all__ = ["Workshop"]

LOOK_STEPS, LOOK_GUIDANCE = 16, 2.0  # of the solver that samples teachers, guided so where no student says how
LOOKS, LOOK_BATCH = 32, 8  # prompts sampled for a look
SHOWN = 8  # of them on the sheet


class Workshop:
    """Carries out `recipe` in `folder`. `say` is told how far a stage is, `note` what else happens, in words.

    Another run with the same folder goes on where this one stopped. Raises `ValueError` for a recipe that the folder
    was not begun with and for damaged checkpoints, and `OSError` for a folder that cannot be used, before anything is
    trained.
    """

    def __init__(
        self, recipe: TrainingRecipe, folder: str | Path, device: torch.device | str = "cpu", *, compiled: bool = False,
        say: Callable[[Said], None] = lambda said: None, note: Callable[[str], None] = lambda text: None,
        look_every: int = 0,
    ) -> None:  # fmt: skip
        self.recipe, self.folder, self.device = recipe, Path(folder), torch.device(device)
        self.card, self.compiled, self.say, self.note, self.look_every = recipe.card, compiled, say, note, look_every
        self.made: dict[str, nn.Module] = {}
        self._network = self._new()
        recipe.check_room(self.folder, sum(p.numel() for p in self._network.parameters()))
        for stage in recipe.stages:
            if (path := self._checkpoint(stage)).exists():
                checkpoint(path, self.identity(stage), stage.steps, mapped=True)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot write to {self.folder}: {error.strerror}; give another folder with -o") from error

    @cached_property
    def clips(self) -> Clips:
        """What is trained on. Raises `ValueError` for data that gives latents of other sizes than the card's."""
        self.note("making clips")
        clips, card = self.recipe.data.clips(self.card, self.folder), self.card
        wanted = card.train_horizon, card.dit.in_channels, *(side // card.vae.space_stride for side in card.size)
        if clips.latents.shape[1:] != wanted:
            raise ValueError(f"{self.recipe.data} gave latents of shape {tuple(clips.latents.shape)}; the model needs "
                             f"{list(wanted)} a clip")
        return clips

    @cached_property
    def passes(self) -> Passes:
        """Passes over the clips."""
        return self.passes_over(None)

    def passes_over(self, frames: int | None) -> Passes:
        """Passes over the first latent frames of the clips, None all."""
        return Passes(self.clips.first(frames), self.card, self.device)

    @cached_property
    def code(self) -> BlockCode:
        """The block code of the data."""
        return self.recipe.data.code(self.card, self.folder)  # pyright: ignore[reportAttributeAccessIssue]

    def run(self) -> None:
        """All stages in order. After each that makes a network, its folder, named as the stage, is one that
        `Pipeline.load` reads, provided that a VAE was trained before. Raises `OSError` for a folder in which another
        process trains."""
        with self._held():
            for stage in self.recipe.stages:
                self.note(f"stage {stage.called}")
                self.made[stage.called] = module = stage.run(self)
                if isinstance(module, Network) and (vae := self.vae) is not None:
                    parts = Parts(self.card, module.dit, vae, module.text)
                    save_parts(parts, self.folder / stage.called, self._tokenizer)
                    self.note(f"wrote {self.folder / stage.called}")

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the folder, as `arvid.locking.locked`."""
        with locked(self.folder, "training in"):
            for unfinished in self.folder.glob("*.pt.part"):  # of a process that was killed
                unfinished.unlink()
            yield

    @property
    def vae(self) -> WanVAE | None:
        """The VAE, once it is trained."""
        return next((module for module in self.made.values() if isinstance(module, WanVAE)), None)

    def start_of(self, stage: NetworkStage) -> Network:
        """A copy, to be trained, of the network that a stage begins with."""
        return self._ready(copy.deepcopy(self._named(stage.start)).requires_grad_(True))

    def teacher_of(self, stage: Distillation) -> Network:
        """The frozen network that a stage learns from."""
        named = self._named(self.recipe.teacher(stage).called)
        return self._ready(copy.deepcopy(named).requires_grad_(False)).eval()

    def _ready(self, net: Network) -> Network:
        net.to(self.device)
        if self.compiled:
            net.dit.compile(dynamic=False)
        return net

    def _named(self, label: str | None) -> Network:
        if label is None:
            networks = [module for module in self.made.values() if isinstance(module, Network)]
            return networks[-1] if networks else self._network
        found = self.made[label]
        assert isinstance(found, Network)
        return found

    def _new(self) -> Network:
        """Transformer and text encoder at their start, by the seed of the first stage that trains them."""
        card = self.card
        with TemporaryDirectory() as place:
            path = Path(place) / "tokenizer.model"
            train_tokenizer(sentences(self.recipe.data.grammar), path)
            tokenizer, self._tokenizer = load_tokenizer(path), path.read_bytes()
        torch.manual_seed(next((stage.seed for stage in self.recipe.stages if isinstance(stage, NetworkStage)), 0))
        text = TextEncoder(build_umt5(card.text), tokenizer, card.dit.text_length, card.grammar)
        dit = CausalDiT(card.dit)
        initialise(dit)
        return Network(dit, text)

    def _checkpoint(self, stage: Stage) -> Path:
        return self.folder / f"{stage.called}.pt"

    def identity(self, stage: Stage) -> dict[str, Any]:
        """What makes a stage what it is: its own fields, the model, the data, and the stages before it."""
        before = self.recipe.stages[: self.recipe.stages.index(stage)]
        return {**_plain(STAGE.spec(stage)), **_plain(asdict(stage)), "model": json.dumps(_plain(self.card.to_dict())),
                "data": repr(self.recipe.data), "stages before": repr(before)}  # fmt: skip

    def train(
        self, stage: Stage, module: nn.Module, step_loss: StepLoss, *, average: nn.Module,
        averaged: nn.Module | None = None, opts: list[torch.optim.Optimizer] | None = None,
    ) -> None:  # fmt: skip
        """`arvid.training.loop.train` for a stage, with its checkpoint in the folder."""

        def look(step: int, average: nn.Module) -> None:
            assert isinstance(stage, NetworkStage) and isinstance(average, Network)
            self.look(stage, step, average)

        train(
            stage.called, module, stage, step_loss, self._checkpoint(stage), average=average, averaged=averaged,
            opts=opts, identity=self.identity(stage), say=self._told,
            look=look if isinstance(stage, NetworkStage) else None, look_every=self.look_every,
        )  # fmt: skip

    def _told(self, said: Said) -> None:
        self._log({"stage": said.stage, "step": said.step, "seconds a step": said.rate, **said.losses})
        self.say(said)

    def _log(self, line: Mapping[str, Any]) -> None:
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({key: value if isinstance(value, (str, int)) else float(f"{value:.6g}")
                                   for key, value in line.items()}) + "\n")  # fmt: skip

    def look(self, stage: NetworkStage, step: int, net: Network) -> dict[str, float]:
        """Samples of held-out prompts: a sheet of some, and figures of all, which are logged and returned."""
        prompts = self.recipe.data.prompts(LOOKS)
        led = [each.guidance for each in self.recipe.stages
               if isinstance(each, Distillation) and self.recipe.teacher(each) is stage]  # fmt: skip
        guidance = led[0] if led else LOOK_GUIDANCE
        sampler = Multistep("euler", LOOK_STEPS, guidance=guidance) if stage.many_steps else None
        latents = self.sample(net, prompts, sampler)
        figures = self.recipe.data.judge(latents, prompts, self.vae)
        if figures:
            self._log({"stage": stage.called, "step": step, **figures})
            self.note(f"{stage.called} {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
        if (vae := self.vae) is not None:
            with torch.no_grad():
                pixels = [Video.from_tensor(vae.decode(row[None].float())[0], self.card.fps) for row in latents[:SHOWN]]
            from imageio import v3 as imageio

            sheets = self.folder / "sheets"
            sheets.mkdir(exist_ok=True)
            sheet = np.concatenate([video.sheet(columns=12, rows=1) for video in pixels])
            imageio.imwrite(sheets / f"{stage.called}-{step:06d}.png", sheet.repeat(2, 0).repeat(2, 1))
        return figures

    def sample(self, net: Network, prompts: list[str], sampler: Multistep | None = None) -> Tensor:
        """Latents [B, F, C, H, W] of prompts, as long as clips, number i from seed i; None is the card's sampler."""
        config = PipelineConfig(sampler=sampler)
        pipe = Pipeline.from_parts(net.dit.eval(), config, None, net.text.eval(), self.card)
        parts = [pipe.latents(prompt=prompts[i : i + LOOK_BATCH],
                              seed=list(range(i, min(i + LOOK_BATCH, len(prompts)))))
                 for i in range(0, len(prompts), LOOK_BATCH)]  # fmt: skip
        return torch.cat(parts).cpu()


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down: what comes back from a checkpoint."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
