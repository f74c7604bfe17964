"""Solvers of the flow from noise to data, for chunks that are denoised in many steps.

Everything is said in the prediction of x0: x = (1 - sigma) x0 + sigma noise, so alpha = 1 - sigma, and a step whose
prediction is taken as constant (DDIM, arXiv 2010.02502, eq. 12; here the same as Euler's) is
x0 + sigma' / sigma (x - x0).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from .schedule import TIMESTEPS, shift_sigma

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DPM", "SOLVERS", "Euler", "Solver", "UniPC", "levels"]


class Solver(ABC):
    """One chunk's way down the levels `sigmas`, the last of which is where it ends: 0 for x0 itself.

    It remembers earlier predictions, so every chunk needs one of its own; a shallow copy goes on from here. `first` is
    the level that its published schedules begin at, before the shift. Raises `ValueError` for levels that do not fall
    within [0, 1].
    """

    first: ClassVar[float] = 1.0

    def __init__(self, sigmas: Sequence[float]) -> None:
        if len(sigmas) < 2 or sigmas[0] > 1 or sigmas[-1] < 0 or not all(a > b for a, b in pairwise(sigmas)):
            raise ValueError(f"sigmas={tuple(sigmas)}: give two levels or more, falling, in 0..1")
        self.sigmas, self.done = tuple(sigmas), 0

    def step(self, x: Tensor, x0: Tensor) -> Tensor:
        """Latents at the next level, from those at this one and the prediction of x0 there, of the same dtype.

        Neither is changed. Raises `ValueError` when the last level is reached.
        """
        if self.done == len(self.sigmas) - 1:
            raise ValueError(f"the solver is done after {self.done} steps: make a new one for every chunk")
        x = self._advance(x, x0, self.done)
        self.done += 1
        return x

    @abstractmethod
    def _advance(self, x: Tensor, x0: Tensor, i: int) -> Tensor:
        """Latents at level i + 1."""

    def _plain(self, x: Tensor, x0: Tensor, i: int) -> Tensor:
        """The step from level i to level i + 1 with a prediction that is taken as constant."""
        return x0.lerp(x, self.sigmas[i + 1] / self.sigmas[i])

    def _span(self, i: int) -> float:
        """h: the growth of log(alpha / sigma) from level i to level i + 1; infinite from sigma 1, and to sigma 0."""
        before, after = (math.inf if s == 0 else -math.inf if s == 1 else math.log1p(-s) - math.log(s)
                         for s in self.sigmas[i : i + 2])  # fmt: skip
        return after - before


class Euler(Solver):
    """First order: x + (sigma' - sigma) velocity."""

    def _advance(self, x: Tensor, x0: Tensor, i: int) -> Tensor:
        return self._plain(x, x0, i)


class DPM(Solver):
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): the prediction taken as linear in log(alpha / sigma), by this
    and the last one; the first step and the last one are of first order."""

    _last: Tensor | None = None

    def _advance(self, x: Tensor, x0: Tensor, i: int) -> Tensor:
        last, self._last = self._last, x0
        plain = self._plain(x, x0, i)
        if last is None or i == len(self.sigmas) - 2:
            return plain
        # Their D - x0 is (h / 2 h_before) (x0 - last), and -alpha' (exp(-h) - 1) is 1 - sigma' / sigma for a flow.
        slope = self._span(i) / self._span(i - 1) / 2
        return plain + (1 - self.sigmas[i + 1] / self.sigmas[i]) * slope * (x0 - last)


class UniPC(DPM):
    """UniPC of order 2 with B2, in the form for predictions of x0 (arXiv 2302.04867, algorithms 1 and 2, theorem 3.1):
    a step of DPM-Solver++(2M), which UniP-2 is, from latents that the prediction there has corrected (UniC-2).

    The first correction is UniC-1, with the weight 1/2. Published schedules begin at 0.999.
    """

    first = 0.999
    _from: Tensor | None = None  # the latents, corrected, that the last step began at
    _older: Tensor | None = None  # the prediction before the last

    def _advance(self, x: Tensor, x0: Tensor, i: int) -> Tensor:
        last = self._last
        if last is not None and self._from is not None:
            x = self._corrected(self._from, x0, last, i - 1)
        self._from, self._older = x, last
        return super()._advance(x, x0, i)

    def _corrected(self, x: Tensor, x0: Tensor, last: Tensor, i: int) -> Tensor:
        """Latents at level i + 1, from those at level i, the prediction there and `x0`, that at level i + 1."""
        plain, weight = self._plain(x, last, i), 1 - self.sigmas[i + 1] / self.sigmas[i]
        if self._older is None:
            return plain + weight / 2 * (x0 - last)
        # Theorem 3.1 for two points, at r = -h_before / h and at 1: a + b = first, a r + b = second.
        h, r = self._span(i), -self._span(i - 1) / self._span(i)
        growth = math.expm1(-h)
        first = (growth / -h - 1) / growth
        second = 2 * ((growth / -h - 1) / -h - 0.5) / growth
        a = (first - second) / (1 - r)
        return plain + weight * (a / r * (self._older - last) + (first - a) * (x0 - last))


SOLVERS: dict[str, type[Solver]] = {"unipc": UniPC, "dpm++": DPM, "euler": Euler}


def levels(solver: type[Solver], num_steps: int, shift: float) -> tuple[float, ...]:
    """The solver's `num_steps` levels, equally spaced before the shift, and 0.

    UniPC's are 0.999, ... where the others begin at 1: the last of 1000 steps of its training schedule is sigma 0.999.
    """
    base = [solver.first * (1 - i / num_steps) for i in range(num_steps + 1)]
    return tuple(1.0 if sigma == 1 else shift_sigma(sigma, shift) for sigma in base)  # 1 has no finite logarithm


def truncated(sigma: float) -> float:
    """The level of a whole timestep, 1000 sigma without its fraction."""
    return math.floor(round(TIMESTEPS * sigma, 6)) / TIMESTEPS  # a rounded 0.2 is 200, not 199
