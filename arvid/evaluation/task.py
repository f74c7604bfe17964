"""What a comparison is to make: checked whole before anything starts, and cut into units of work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import ceil
from typing import TYPE_CHECKING, Any

from arvid.config import REGISTRIES, PipelineConfig
from arvid.evaluation.metrics import METRIC, Metric, default_metrics
from arvid.geometry import check_size, latent_frames, pixel_frames
from arvid.models.specs import Card
from arvid.presets import resolved as resolved_for

if TYPE_CHECKING:
    from arvid.models.loading import Found

__all__ = ["MOST_PROMPTS", "Packed", "Task", "Unit", "make_task", "noise_seed", "segment_edges", "units", "unpack"]

MOST_PROMPTS = 1_000_000


@dataclass(frozen=True, eq=False)
class Task:
    """Videos of every method, prompt and seed. `configs` are resolved, by label, the first the baseline; `frames` are
    latent frames, `size` (height, width) in pixels; `text`, `device` and `dtype` as `Pipeline.load` has them, the last
    by name."""

    configs: Mapping[str, PipelineConfig]
    prompts: tuple[str, ...]
    seeds: int
    frames: int
    size: tuple[int, int]
    metrics: Mapping[str, Metric]
    weights: Found
    text: str
    device: str
    dtype: str

    @property
    def card(self) -> Card:
        """The weights'."""
        return self.weights.card

    @property
    def labels(self) -> list[str]:
        """The methods, in order."""
        return list(self.configs)

    @property
    def edges(self) -> list[int]:
        """Of the segments, in pixel frames."""
        return segment_edges(self.frames, self.card.train_horizon, self.card.vae.time_stride)

    @property
    def strategies(self) -> list[object]:
        """All that take part, metrics included."""
        chosen = [getattr(config, key) for config in self.configs.values() for key in REGISTRIES]
        return [*chosen, *self.metrics.values()]

    def packed(self) -> Packed:
        """For `unpack` in another process: strategies by name, for those of `--use` files cannot be pickled."""
        configs = {label: config.to_dict() for label, config in self.configs.items()}
        return replace(self, configs={}, metrics={}), configs, {n: METRIC.spec(m) for n, m in self.metrics.items()}


Packed = tuple[Task, dict[str, dict[str, Any]], dict[str, dict[str, Any]]]


def unpack(packed: Packed) -> Task:
    """The task that was packed, once its strategies are registered here."""
    task, configs, metrics = packed
    return replace(
        task, configs={label: PipelineConfig.from_dict(config) for label, config in configs.items()},
        metrics={name: METRIC.build(spec) for name, spec in metrics.items()},
    )  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """Videos made at once: consecutive prompts `first` .. `stop` - 1 of a method and a seed. `missing` are the keys of
    those to write, by prompt: what is there is made again with the rest, for a batch is made as a whole, but not
    written again."""

    label: str
    seed: int
    first: int
    stop: int
    missing: Mapping[int, str]


def noise_seed(prompt: int, seed: int) -> int:
    """The integer seed of the noise of a prompt, by its number from 0, under a seed: 1,000,000 * seed + prompt. It is
    the same for every method, and another for every prompt and seed."""
    return MOST_PROMPTS * seed + prompt


def segment_edges(frames: int, horizon: int, time_stride: int) -> list[int]:
    """Pixel frames at which segments of `horizon` latent frames begin, and the end; a last one that would be shorter
    than half of that is part of the one before."""
    starts = list(range(0, frames, horizon))
    if len(starts) > 1 and 2 * (frames - starts[-1]) < horizon:
        starts.pop()
    return [0, *(pixel_frames(at, time_stride) for at in (*starts[1:], frames))]


def make_task(
    configs: Mapping[str, PipelineConfig | str], prompts: Sequence[str], *, seconds: float | None = None,
    frames: int | None = None, seeds: int = 1, size: tuple[int, int] | None = None,
    metrics: Sequence[str] | None = None, weights: Found | None = None, text: str = "keep", device: str = "cpu",
    dtype: str = "fp32",
) -> Task:  # fmt: skip
    """Check all of a comparison without reading weights.

    A string in the place of a configuration is why it cannot be had. Length is `seconds`, rounded to whole chunks of
    the card's, or exactly `frames` latent frames, neither: the training clips'; `size` is (height, width), None the
    card's; `metrics` are names, None all that apply to every prompt; `weights` are what `arvid.models.loading.find`
    gives, None the bundled model's. Raises `ValueError` for numbers below 1, for no or
    repeated prompts, and naming every configuration that cannot run, or is another again, with the reason.
    """
    from arvid.models.loading import DTYPES, find
    from arvid.models.weights import BUNDLED
    from arvid.pipeline import MOST_FRAMES, usable

    _whole(seeds=seeds, **({} if frames is None else {"frames": frames}))
    if seconds is not None and frames is not None:
        raise ValueError(f"seconds={seconds} and frames={frames} both set the length: give one")
    if not configs or not all(configs):
        raise ValueError(f"methods {list(configs)}: give at least one, and a name for each")
    if not 1 <= len(set(prompts)) == len(prompts) <= MOST_PROMPTS:
        raise ValueError(f"{len(prompts)} prompts, {len(set(prompts))} different ones: give 1 to {MOST_PROMPTS}, each "
                         "once")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}; allowed: {', '.join(DTYPES)}")
    usable(device)
    weights = find(BUNDLED) if weights is None else weights
    card = weights.card
    if frames is None:
        frames = (card.train_horizon if seconds is None else
                  latent_frames(seconds, card.fps, card.vae.time_stride, card.chunk))  # fmt: skip
    if frames > MOST_FRAMES:
        raise ValueError(f"{frames} latent frames: a video has at most {MOST_FRAMES}")
    size = card.size if size is None else size
    check_size(*size, card.vae.space_stride, card.dit.patch)
    resolved = _resolved(configs, card, frames, size)
    chosen = default_metrics(prompts) if metrics is None else _chosen(metrics, prompts)
    return Task(resolved, tuple(prompts), seeds, frames, size, chosen, weights, text, device, dtype)


def units(task: Task, keys: Mapping[tuple[str, int, int], str], batch: int, jobs: int) -> Iterator[Unit]:
    """The units with missing rows, at most `batch` prompts each; `keys` of the missing by (label, prompt, seed). All
    methods of a few prompts come before the next prompts, so that what is done can be compared."""
    rows = _rows_at_once(len(task.prompts), len(task.configs) * task.seeds, batch, jobs)
    for first in range(0, len(task.prompts), rows):
        stop = min(first + rows, len(task.prompts))
        for seed in range(task.seeds):
            for label in task.configs:
                missing = {i: keys[label, i, seed] for i in range(first, stop) if (label, i, seed) in keys}
                if missing:
                    yield Unit(label, seed, first, stop, missing)


def _rows_at_once(prompts: int, times: int, batch: int, jobs: int) -> int:
    """Rows of a unit: `batch`, or down to half of it if `jobs` workers are done earlier that way."""

    def longest(rows: int) -> int:
        return ceil(times * ceil(prompts / rows) / jobs) * rows

    even = {ceil(prompts / ceil(prompts / rows)) for rows in range(ceil(batch / 2), batch + 1)}
    return min(sorted(even, reverse=True), key=longest)


def _resolved(
    configs: Mapping[str, PipelineConfig | str], card: Card, frames: int, size: tuple[int, int]
) -> dict[str, PipelineConfig]:
    resolved: dict[str, PipelineConfig] = {}
    problems: dict[str, str] = {}
    for label, config in configs.items():
        try:
            if isinstance(config, str):
                raise ValueError(config)
            own = resolved_for(config, card)
            _rehearse(own, card, frames, size)
            if same := [other for other, config in resolved.items() if config == own]:
                raise ValueError(f"it is the configuration of {same[0]} again")
            resolved[label] = own
        except Exception as error:  # strategies may be anyone's
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            problems[label] = f"{kind}{error}"
    if problems:
        listed = "".join(f"\n  {label}: {problem}" for label, problem in problems.items())
        raise ValueError(f"{len(problems)} of {len(configs)} configurations cannot run:{listed}")
    return resolved


def _rehearse(config: PipelineConfig, card: Card, frames: int, size: tuple[int, int]) -> None:
    """All that a video of `frames` latent frames asks of the configuration, but the passes of the networks."""
    import torch

    from arvid.models.denoiser import CachedDenoiser
    from arvid.models.dit import CausalDiT
    from arvid.positional import RotaryContext
    from arvid.simulate import views

    config.to_toml()  # for the report
    views(config, frames, card)
    assert config.cache and config.time and config.rotary
    with torch.device("meta"):
        dit = CausalDiT(card.dit)
        text = dit.prepare_text(torch.empty(1, card.dit.text_length, card.dit.text_dim))
    latent = check_size(*size, card.vae.space_stride, card.dit.patch)
    CachedDenoiser(
        dit, text, policy=config.cache, time=config.time, rotary=config.rotary, batch=1, size=latent, horizon=frames,
        train_horizon=card.train_horizon,
    )  # fmt: skip
    for seen in (min(frames, card.chunk), frames):
        context = RotaryContext(card.dit.axes[0], card.dit.num_heads, card.train_horizon, frames, seen)
        config.rotary.inv_freq(context)


def _chosen(names: Sequence[str], prompts: Sequence[str]) -> dict[str, Metric]:
    """Metrics by name. Raises `ValueError` for an unknown name, for one that does not apply to a prompt, and for one
    whose libraries are not installed."""
    if not any(names):
        raise ValueError(f"no metrics: name at least one of {', '.join(METRIC.names())}")
    chosen = {name: METRIC.build(name) for name in names}
    for name, metric in chosen.items():
        if missing := [library for library in metric.libraries if find_spec(library) is None]:
            raise ValueError(f"metric {name!r} needs {', '.join(missing)}, which is not installed: install it, or "
                             "leave the metric out")
        if strange := [prompt for prompt in prompts if not metric.applies(prompt)]:
            raise ValueError(f"metric {name!r} says nothing of {len(strange)} prompts, such as {strange[0]!r}: "
                             "leave it out")
    return chosen


def _whole(**numbers: int) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: give a whole number, at least 1")
