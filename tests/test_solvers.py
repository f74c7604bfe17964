"""Solvers of the flow: published schedules, other implementations, the papers' own formulas, and order of accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from arvid.samplers.solvers import DPM, SOLVERS, Euler, Solver, UniPC, levels, truncated

Model = Callable[[Tensor, float], Tensor]

shifts = st.floats(0.2, 12)
names = st.sampled_from(sorted(SOLVERS))


def solve(solver: type[Solver], sigmas: tuple[float, ...], x: Tensor, model: Model) -> list[Tensor]:
    """Latents at every level."""
    own, path = solver(sigmas), [x]
    for sigma in sigmas[:-1]:
        path.append(own.step(path[-1], model(path[-1], sigma)))
    return path


def gaussian(x: Tensor, sigma: float, deviation: float = 0.5) -> Tensor:
    """The best x0 of data with this deviation around 0."""
    alpha, variance = 1 - sigma, deviation**2
    return alpha * variance / (alpha**2 * variance + sigma**2) * x


def wild(x: Tensor, sigma: float) -> Tensor:
    """A prediction that depends on everything, smoothly."""
    mixed = torch.tanh(x.roll(1, -1) + 2 * sigma) - 0.3 * x * math.cos(5 * sigma)
    return mixed + 0.1 * x.square().mean()


def start(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Schedules


@pytest.mark.parametrize(("name", "steps", "shift", "timesteps"), [
    ("unipc", 4, 5, [999, 937, 833, 624]),
    ("unipc", 2, 5, [999, 833]),
    ("unipc", 50, 5, [999, 995, 991, 987, 982, 978, ..., 241, 172, 92]),
    ("unipc", 50, 3, [999, 992, 985, ...]),
    ("unipc", 30, 8, [999, 995, 991, 986, 980, 975, ..., 470, 363, 216]),
    ("dpm++", 4, 5, [1000, 937, 833, 625]),
])  # fmt: skip
def test_whole_timesteps_of_published_schedules(name: str, steps: int, shift: float, timesteps: list) -> None:
    *found, last = (round(1000 * truncated(sigma)) for sigma in levels(SOLVERS[name], steps, shift))
    assert (len(found), last) == (steps, 0)
    gap = timesteps.index(...) if ... in timesteps else steps
    tail = timesteps[gap + 1 :]
    assert found[:gap] == timesteps[:gap]
    assert found[len(found) - len(tail) :] == tail


def test_levels_of_published_schedules() -> None:
    assert levels(UniPC, 4, 5) == pytest.approx((0.99979985, 0.93726546, 0.83305538, 0.62468737, 0), abs=5e-8)
    assert levels(Euler, 4, 5) == levels(DPM, 4, 5) == pytest.approx((1, 15 / 16, 5 / 6, 5 / 8, 0), abs=1e-15)


@pytest.mark.parametrize(("sigma", "whole"), [(0.9998, 0.999), (0.0009, 0), (1, 1)])
def test_a_whole_timestep_has_no_fraction(sigma: float, whole: float) -> None:
    assert truncated(sigma) == whole


def test_a_level_that_rounding_took_below_a_whole_timestep_has_it() -> None:
    sigma = levels(Euler, 5, 1.0)[4]
    assert sigma < 0.2
    assert truncated(sigma) == 0.2


# Other implementations. Diffusers' UniPC schedule with flow sigmas falls from 1 - 1e-6 to just above 0.001 where that
# published with Wan falls from 0.999 to just above 0, which is what diffusers' DPM-Solver has, whose published one
# falls from 1. So it is given these levels.

REFERENCE: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "solver_order": 2}


def of_diffusers(name: str, sigmas: tuple[float, ...], x: Tensor, model: Model) -> list[Tensor]:
    scheduler: Any = {
        "unipc": partial(UniPCMultistepScheduler, solver_type="bh2", **REFERENCE),
        "dpm++": partial(DPMSolverMultistepScheduler, **REFERENCE),
        "euler": FlowMatchEulerDiscreteScheduler,
    }[name]()
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    path = [x]
    for sigma, timestep in zip(sigmas, scheduler.timesteps, strict=False):
        velocity = (path[-1] - model(path[-1], sigma)) / sigma
        path.append(scheduler.step(velocity, timestep, path[-1]).prev_sample)
    return path


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_every_step_is_that_of_diffusers(name: str, steps: int, shift: float) -> None:
    sigmas = levels(UniPC, steps, shift)  # below 1, where diffusers' logarithms end
    own, other = solve(SOLVERS[name], sigmas, start(), wild), of_diffusers(name, sigmas, start(), wild)
    bound = 1e-6 if name == "unipc" else 5e-6  # the other two compute in float32
    for mine, theirs in zip(own, other, strict=True):
        assert (mine - theirs).abs().max() < bound


def test_schedules_of_diffusers() -> None:
    dpm, unipc = (kind(**REFERENCE, flow_shift=5.0) for kind in (DPMSolverMultistepScheduler, UniPCMultistepScheduler))
    for scheduler in (dpm, unipc):
        scheduler.set_timesteps(10)
    assert levels(UniPC, 10, 5) == pytest.approx(dpm.sigmas.tolist(), abs=1e-7)
    assert levels(UniPC, 10, 5) != pytest.approx(unipc.sigmas.tolist(), abs=1e-3)


# The papers' formulas, as they are written there


def as_written(name: str, sigmas: tuple[float, ...], x: float, a: Callable[[float], float]) -> list[float]:
    """A prediction a(sigma) x, with alpha, lambda, h, B(h) and the linear system of the papers; the path's numbers."""
    alpha = [1 - s for s in sigmas]
    lam = [math.inf if s == 0 else math.log(1 - s) - math.log(s) for s in sigmas]
    path, seen, last = [x], [], len(sigmas) - 2
    for i in range(len(sigmas) - 1):
        now, x0 = path[-1], a(sigmas[i]) * path[-1]
        if name == "unipc" and i:
            now = path[-1] = corrected(sigmas, alpha, lam, path[-2], [*seen, x0], i)
        seen.append(x0)
        h = lam[i + 1] - lam[i]
        move = sigmas[i + 1] / sigmas[i] * now - alpha[i + 1] * math.expm1(-h) * seen[-1]
        if i not in (0, last):
            r = (lam[i] - lam[i - 1]) / h
            move -= alpha[i + 1] * math.expm1(-h) * (seen[-1] - seen[-2]) / (2 * r)
        path.append(move)
    return path


def corrected(sigmas, alpha, lam, before: float, seen: list[float], i: int) -> float:
    """UniC: latents at level i from those at level i - 1; `seen` are the predictions at levels 0 to i."""
    h, big = lam[i] - lam[i - 1], math.expm1(-(lam[i] - lam[i - 1]))
    points = [(lam[i - 2] - lam[i - 1]) / h, 1.0] if i > 1 else [1.0]
    slopes = [(seen[i - 2] - seen[i - 1]) / points[0], seen[i] - seen[i - 1]][-len(points) :]
    # phi_{k+1}(-h) = (phi_k(-h) - 1 / k!) / -h, phi_1(-h) = B / -h; the right side is h^k k! phi_{k+1} / B.
    phi, sides = math.expm1(-h) / -h, []
    for k in range(1, len(points) + 1):
        phi = (phi - 1 / math.factorial(k)) / -h
        sides.append((-h) * phi * math.factorial(k) / big)
    weights = [0.5] if i == 1 else np.linalg.solve([[1.0, 1.0], points], sides)
    total = sum(w * d for w, d in zip(weights, slopes, strict=True))
    return sigmas[i] / sigmas[i - 1] * before - alpha[i] * big * (seen[i - 1] + total)


@given(names, st.integers(1, 12), shifts, st.floats(0.1, 2))
def test_a_gaussian_is_solved_as_the_papers_write(name: str, steps: int, shift: float, deviation: float) -> None:
    sigmas = levels(UniPC, steps, shift)  # below 1, so that every logarithm is a number
    one = torch.ones(1, dtype=torch.float64)
    final = solve(SOLVERS[name], sigmas, one, lambda x, s: gaussian(x, s, deviation))[-1].item()
    if name == "euler":
        expected = 1.0
        for s, following in pairwise(sigmas):
            expected += (following - s) * (expected - gaussian(one * expected, s, deviation).item()) / s
    else:
        expected = as_written(name, sigmas, 1.0, lambda s: gaussian(one, s, deviation).item())[-1]
    assert final == pytest.approx(expected, rel=1e-9, abs=1e-12)


# What holds of every solver


@given(names, st.integers(1, 30), shifts, st.floats(-3, 3))
def test_a_constant_prediction_is_reached_exactly(name: str, steps: int, shift: float, value: float) -> None:
    target = torch.full((2, 3, 5), value, dtype=torch.float64)
    assert solve(SOLVERS[name], levels(SOLVERS[name], steps, shift), start(), lambda *_: target)[-1].equal(target)


@given(names, shifts)
def test_one_step_gives_its_prediction(name: str, shift: float) -> None:
    sigmas = levels(SOLVERS[name], 1, shift)
    assert solve(SOLVERS[name], sigmas, start(), wild)[-1].equal(wild(start(), sigmas[0]))


@pytest.mark.parametrize(("solver", "order"), [(Euler, 1), (DPM, 2), (UniPC, 3)])
def test_order_of_accuracy(solver: type[Solver], order: int) -> None:
    """Against the exact path of a Gaussian, along which x grows as its deviation does. UniC adds one to UniP-2's."""
    errors = []
    for steps in (20, 40, 80):
        growths = np.linspace(-math.log(19), math.log(19), steps + 1)  # from sigma 0.95 to 0.05
        sigmas = tuple(1 / (1 + math.exp(growth)) for growth in growths)
        first, last = (math.hypot(2 * (1 - sigma), sigma) for sigma in (sigmas[0], sigmas[-1]))
        found = solve(solver, sigmas, torch.ones(1, dtype=torch.float64), lambda x, s: gaussian(x, s, 2))[-1].item()
        errors.append(abs(found - last / first))
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([order, order], abs=0.1)


@pytest.mark.parametrize("solver", SOLVERS.values())
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_more_steps_come_to_the_exact_end(solver: type[Solver], shift: float) -> None:
    errors = []
    for steps in (50, 400):
        sigmas = levels(solver, steps, shift)
        found = solve(solver, sigmas, torch.ones(1, dtype=torch.float64), gaussian)[-1].item()
        errors.append(abs(found - 0.5 / math.hypot(0.5 * (1 - sigmas[0]), sigmas[0])))
    assert errors[1] < min(0.005, errors[0] / (7 if solver is Euler else 10))


def test_nothing_given_is_changed_and_a_copy_goes_on_by_itself() -> None:
    sigmas = levels(UniPC, 6, 2.0)
    for kind in SOLVERS.values():
        whole = solve(kind, sigmas, start(), wild)
        solver, x = kind(sigmas), start()
        for i in range(3):
            x0 = wild(x, sigmas[i])
            before = x.clone(), x0.clone()
            following = solver.step(x, x0)
            assert x.equal(before[0])
            assert x0.equal(before[1])
            x = following
        forked, y = copy(solver), x
        for _ in range(3):
            x = solver.step(x, torch.zeros_like(x))
        for i in range(3, 6):
            y = forked.step(y, wild(y, sigmas[i]))
        assert y.equal(whole[-1])


@pytest.mark.parametrize("sigmas", [(), (1.0,), (1.0, 1.0), (0.2, 0.5), (1.5, 0.0), (0.5, -0.1), (1.0, math.nan, 0.0)])
def test_levels_that_do_not_fall_are_refused(sigmas: tuple[float, ...]) -> None:
    for solver in SOLVERS.values():
        with pytest.raises(ValueError, match=r"sigmas=.*two levels or more, falling, in 0\.\.1"):
            solver(sigmas)


def test_a_solver_is_for_one_chunk() -> None:
    solver = Euler((1.0, 0.0))
    solver.step(start(), start(1))
    with pytest.raises(ValueError, match="done after 1 steps: make a new one for every chunk"):
        solver.step(start(), start(1))
