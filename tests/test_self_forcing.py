"""Self Forcing: rollouts are inference, gradients go through last steps alone, distributions are matched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy_recipes import random_network, workshop

from arvid import Pipeline
from arvid.cache import Chunk
from arvid.config import PipelineConfig
from arvid.models.denoiser import CachedDenoiser
from arvid.training import self_forcing
from arvid.training.loop import rng_for
from arvid.training.network import Batch, Network, Passes, mix, per_frame
from arvid.training.self_forcing import Rollout, SelfForcing, dmd_gradient, dmd_loss, replay, self_rollout
from arvid.training.workshop import Workshop

SEEDS = [5, 6]
CAPTIONS = ["a low brief wave", "a high long wave"]


@pytest.fixture(scope="module", params=[(0, 0.0), (2, 100.0)], ids=["window", "sink, noisy context"])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    sink, noise = request.param
    return workshop(tmp_path_factory.mktemp("shop"), sink=sink, context_noise=noise)


@pytest.fixture(scope="module")
def net(shop: Workshop) -> Network:
    return random_network(shop)


def batch_of(passes: Passes, x0: Tensor) -> Batch:
    return passes.laid_out(x0, [(caption, caption, passes.frames) for caption in CAPTIONS], False)


class Spy(CachedDenoiser):
    """Remembers itself, and the chunk and level of each of its passes; `on_pass` may look at one."""

    made: list[Spy]
    on_pass: Callable[[Spy, Tensor, Sequence[Chunk]], None] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.passes: list[tuple[int, float]] = []
        Spy.made.append(self)

    def __call__(self, x_BFCHW: Tensor, chunks: Sequence[Chunk], *, lane: int = 0) -> Tensor:
        self.passes.append((chunks[0].start, chunks[0].sigma))
        if Spy.on_pass:
            Spy.on_pass(self, x_BFCHW, chunks)
        return super().__call__(x_BFCHW, chunks, lane=lane)

    def plain(self, x_BFCHW: Tensor, chunks: Sequence[Chunk]) -> Tensor:
        """A pass that is not looked at."""
        return super().__call__(x_BFCHW, chunks)


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spy, "made", [], raising=False)
    monkeypatch.setattr(Spy, "on_pass", None)
    monkeypatch.setattr(self_forcing, "CachedDenoiser", Spy)


def test_a_rollout_left_after_the_last_step_is_the_pipeline_bit_for_bit(shop: Workshop, net: Network) -> None:
    pipe = Pipeline.from_parts(net.dit, PipelineConfig(), None, net.text, shop.card)
    rolled = self_rollout(shop.passes, net, CAPTIONS, SEEDS, leave=3)
    assert torch.equal(rolled.x0, pipe.latents(prompt=CAPTIONS, seed=SEEDS))
    assert not torch.equal(rolled.x0, self_rollout(shop.passes, net, CAPTIONS, SEEDS, leave=2).x0)


@pytest.mark.parametrize("leave", range(4))
def test_every_chunk_is_left_after_the_same_step(spied: None, shop: Workshop, net: Network, leave: int) -> None:
    rolled = self_rollout(shop.passes, net, CAPTIONS, SEEDS, leave)
    (spy,) = Spy.made
    levels = [1.0, 0.9, 0.75, 0.5]  # (1000, 750, 500, 250) with a shift of 3
    assert Counter(start for start, _ in spy.passes) == dict.fromkeys((0, 2, 4, 6), leave + 1)
    assert {sigma for _, sigma in spy.passes} == set(levels[: leave + 1])
    assert rolled.sigma == levels[leave]


@pytest.mark.parametrize("leave", range(4))
def test_a_replay_is_its_rollout(shop: Workshop, net: Network, leave: int) -> None:
    rolled = self_rollout(shop.passes, net, CAPTIONS, SEEDS, leave)
    again = replay(shop.passes, net, batch_of(shop.passes, rolled.x0), rolled)
    torch.testing.assert_close(again, rolled.x0, atol=2e-5, rtol=1e-4)


def test_nothing_that_is_cached_keeps_a_graph(spied: None, shop: Workshop, net: Network) -> None:
    net.requires_grad_(True)
    rolled = self_rollout(shop.passes, net, CAPTIONS, SEEDS, leave=1)
    held = list(tensors(Spy.made[0].store))
    assert len(held) > 4
    assert not any(x.requires_grad for x in (*held, rolled.x0, rolled.inputs))


def tensors(value: object, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Every tensor that an object holds, at any depth."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item, seen)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from tensors(item, seen)
    elif hasattr(value, "__dict__"):
        yield from tensors(vars(value), seen)


def test_no_gradient_goes_through_what_was_committed(shop: Workshop, net: Network) -> None:
    rolled = self_rollout(shop.passes, net, CAPTIONS, SEEDS, leave=1)
    rolled = Rollout(rolled.x0.requires_grad_(), rolled.inputs.requires_grad_(), rolled.sigma)
    x0 = replay(shop.passes, net, batch_of(shop.passes, rolled.x0), rolled)
    by_frames, by_inputs = torch.autograd.grad(x0.square().sum(), (rolled.x0, rolled.inputs))
    assert not by_frames.any()
    assert bool((by_inputs.abs().amax((0, 2, 3, 4)) > 0).all())


@contextmanager
def nudged(parameter: nn.Parameter, by: Tensor) -> Iterator[None]:
    with torch.no_grad():
        parameter.add_(by)
        yield
        parameter.sub_(by)


@pytest.mark.parametrize("name", [
    "patch_embedding.weight", "time_projection.1.weight", "blocks.0.self_attn.k.weight", "blocks.1.self_attn.v.weight",
    "blocks.0.ffn.0.weight", "head.head.weight",
])  # fmt: skip
def test_the_gradient_is_that_of_the_last_steps_alone(
    spied: None, monkeypatch: pytest.MonkeyPatch, shop: Workshop, name: str
) -> None:
    """Finite differences in float64: each chunk's last step under nudged weights, after earlier steps and commits, its
    own included, under the weights as they are."""
    net = random_network(shop).double().requires_grad_(True)
    passes, leave, parameter = shop.passes, 1, dict(net.dit.named_parameters())[name]
    towards = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    last: dict[float, list[Tensor]] = {1e-5: [], -1e-5: []}

    def on_pass(spy: Spy, x: Tensor, chunks: Sequence[Chunk]) -> None:
        if chunks[0].sigma == 0.9:  # the second step, after which the rollout leaves
            for size, found in last.items():
                with nudged(parameter, size * towards):
                    found.append(spy.plain(x, chunks))

    monkeypatch.setattr(Spy, "on_pass", staticmethod(on_pass))
    rolled = self_rollout(passes, net, CAPTIONS, SEEDS, leave)
    weight = torch.randn(rolled.x0.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    above, below = ((torch.cat(found, 1) * weight).sum() for found in last.values())
    loss = (replay(passes, net, batch_of(passes, rolled.x0), rolled) * weight).sum()
    (slope,) = torch.autograd.grad(loss, parameter)
    assert float((slope * towards).sum()) == pytest.approx(float(above - below) / 2e-5, rel=1e-4)


def test_the_step_to_leave_after_is_uniform() -> None:
    counts = np.bincount([SelfForcing(1).leave(rng_for(0, "leave", i), 4) for i in range(4000)], minlength=4)
    assert ((counts - 1000) ** 2 / 1000).sum() < 16.27  # chi-square of 3 degrees of freedom, 0.1 %
    assert {SelfForcing(1, last_only=True).leave(rng_for(0, "leave", i), 4) for i in range(50)} == {3}


def posterior(x: Tensor, sigma: Tensor, mean: Tensor | float, spread: Tensor | float) -> Tensor:
    """E[x0 | x] where x0 is normal and x = (1 - sigma) x0 + sigma noise."""
    s = per_frame(sigma)
    gain = (1 - s) * spread**2 / ((1 - s) ** 2 * spread**2 + s**2)
    return mean + gain * (x - (1 - s) * mean)


def noised(x0: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    sigma = 0.02 + 0.96 * torch.rand(len(x0), 1, generator=draw)
    return mix(x0, torch.randn(x0.shape, generator=draw), sigma), sigma


def test_the_gradient_is_zero_where_the_generator_is_the_data() -> None:
    x0 = 0.5 + 0.3 * torch.randn(64, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x, sigma = noised(x0, 1)
    real = posterior(x, sigma, 0.5, 0.3)
    assert not dmd_gradient(x0, real, posterior(x, sigma, 0.5, 0.3)).any()
    shifted = dmd_gradient(x0, real, posterior(x, sigma, 0.9, 0.3))  # a generator that is too high
    assert bool((shifted > 0).all())  # a step against it goes down
    wanted = (posterior(x, sigma, 0.9, 0.3) - real) / (x0 - real).abs().mean((1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(shifted, wanted)
    assert not dmd_gradient(real, real, real).any()  # and is finite where x0 is the prediction


def test_matching_distributions_moves_a_normal_generator_to_the_data() -> None:
    """Mean and spread of the generator by gradient steps, its own posterior mean as the critic."""
    mean, spread = torch.tensor(2.0, requires_grad=True), torch.tensor(1.5, requires_grad=True)
    opt = torch.optim.Adam([mean, spread], 0.03)
    for step in range(300):
        z = torch.randn(512, 1, 1, 1, 4, generator=torch.Generator().manual_seed(step))
        x0 = mean + spread * z
        x, sigma = noised(x0.detach(), 1000 + step)
        fake = posterior(x, sigma, mean.detach(), spread.detach())
        opt.zero_grad()
        dmd_loss(x0, dmd_gradient(x0.detach(), posterior(x, sigma, -0.5, 0.4), fake)).backward()
        opt.step()
    assert mean.item() == pytest.approx(-0.5, abs=0.05)
    assert abs(spread.item()) == pytest.approx(0.4, abs=0.05)


def test_the_slope_of_the_loss_is_the_gradient_over_its_size() -> None:
    x0, gradient = (torch.randn(2, 3, 1, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    by_x0, by_gradient = torch.autograd.grad(dmd_loss(x0, gradient), (x0, gradient), allow_unused=True)
    torch.testing.assert_close(by_x0, gradient.detach() / x0.numel(), atol=1e-14, rtol=0)
    assert by_gradient is None


@pytest.mark.parametrize(("offset", "least"), [(0.0, True), (0.1, False)])
def test_the_critics_loss_is_least_at_the_true_score(
    monkeypatch: pytest.MonkeyPatch, shop: Workshop, offset: float, least: bool
) -> None:
    """Its slopes along five directions of velocity around that of a normal law: zero at it, and not beside it."""
    stage, means = SelfForcing(1), torch.tensor([-0.5, 0.5])[:, None, None, None, None]
    slopes = []
    for i in range(200):
        rng = rng_for(0, "critic", i)
        torch.manual_seed(i)
        batch = batch_of(shop.passes, means + 0.5 * torch.randn(2, 8, 2, 4, 4))
        theta = torch.zeros(5, requires_grad=True)

        def velocity(_: Passes, net: Network, batch: Batch, x: Tensor, sigma: Tensor, *rest: Any) -> Tensor:
            s = per_frame(sigma)
            true = (x - posterior(x, sigma, means + offset, 0.5)) / s
            ways = torch.ones_like(x), x, s.expand_as(x), x * s, x**2
            return true + sum(t * way for t, way in zip(theta, ways, strict=True))  # noqa: B023

        monkeypatch.setattr(Passes, "velocity", velocity)
        monkeypatch.setattr(Passes, "text", lambda *_: None)
        loss = stage._critic_loss(shop.passes, None, batch, rng, "clean")  # pyright: ignore[reportArgumentType]
        slopes.append(torch.autograd.grad(loss, theta)[0])
    found = torch.stack(slopes)
    errors = (found.mean(0) / (found.std(0) / len(found) ** 0.5)).abs()
    assert bool((errors < 6).all()) == least, errors


STEPS, RATIO = 7, 3


def test_the_student_learns_in_one_of_ratio_steps_and_the_critic_in_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from arvid.training import loop

    states: list[dict[str, Any]] = []
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)
    monkeypatch.setattr(loop, "save_atomically", lambda value, path: states.append(plain_copy(value)))
    shop = workshop(tmp_path, {"name": "flow", "steps": 1, "batch": 2},
                    {"name": "self_forcing", "steps": STEPS, "ratio": RATIO, "batch": 2, "warmup": 0, "rate": 1e-2})
    shop.made["flow"] = random_network(shop)
    shop.recipe.stages[1].run(shop)
    assert [state["step"] for state in states] == list(range(STEPS + 1))

    def changed(part: str) -> list[int]:
        return [after["step"] for before, after in pairwise(states)
                if any(not torch.equal(value, after["weights"][name]) for name, value in before["weights"].items()
                       if name.startswith(part))]  # fmt: skip

    assert changed("student.") == changed("average.") == [3, 6]
    assert changed("critic.") == list(range(1, STEPS + 1))


def plain_copy(state: dict[str, Any]) -> dict[str, Any]:
    average = {f"average.{name}": value for name, value in state["average"].items()}
    weights = {name: value.clone() for name, value in (state["module"] | average).items()}
    return {"step": state["step"], "weights": weights}
