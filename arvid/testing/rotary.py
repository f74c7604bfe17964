"""The frequencies of a rule, and the checker of rules: what every one must do, and what it declares of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arvid.positional import ROTARY, Rope, Rotary, RotaryContext
from arvid.positional.base import BASE, UNSCALED, LogitScale
from arvid.positional.rotation import phase, rotate, scale, space_angles, time_angles, token_angles
from arvid.positional.scaled import Scaled

from .engine import require
from .fields import every_field_counts

Array = NDArray[np.float64]

TIMES = (0.0, 1.0, 2.5, 20.0, 21.0, 60.0)  # latent frames; a time map may give fractions
FAR = (1023.0, 1024.0, 1025.0, 1e6)  # tables of published code end at 1,024
SHIFTS = (-1e4, -0.5, 3.0, 1e4)
GRID, SPACE = (2, 2), 4  # of a frame's tokens; channels of a head for height, and for width
CLOSE, TIGHT = 1e-9, 1e-12


def inv_freq(
    rotary: Rotary | str | Mapping[str, Any], planes: int, train_horizon: int, horizon: int | None = None,
    heads: int = 1, end: int | None = None,
) -> Array:  # fmt: skip
    """The frequencies of a rule, which is given by name, as a dict with a name, or as an instance: radians a latent
    frame, float64, [planes], or [heads, planes] for a rule with a ladder for each head.

    `horizon` is the frames to generate (None: not known), `end` those there are once the pass is done (None: all).
    Raises `ValueError` for numbers that are not whole and at least 1, and for what the rule cannot do.
    """
    rule = rotary if isinstance(rotary, Rotary) else ROTARY.build(rotary)
    end = end if end is not None else horizon or 1
    return rule.inv_freq(_Model(planes, heads, train_horizon).at(end, horizon))


def check_rotary(rotary: Rotary, *, planes: int = 22, heads: int = 4, train_horizon: int = 21) -> None:
    """Ask a frequency rule about passes of short and of long videos, made by a model with so many temporal planes and
    heads that was trained on `train_horizon` latent frames, and hold it to what all promise and to what it declares.

    All: frequencies are float64, finite and above 0, [planes] or [heads, planes]; scales and biases finite; all are
    pure; turned queries and keys keep their lengths, and their scores depend on differences of times only; time does
    not turn the planes of space, nor space those of time; frames 1,023 to 1,025 and 1,000,000 are like others; every
    field has an effect. Declared: `identity_within_train`, `monotone` and `is_static`; a `Scaled` rule gives under
    `current` at a video's end what it gives under `total`; and a registered rule comes back from its spec.

    Raises `AssertionError` with the property, and what was expected and seen, and `ValueError` for what is no frequency
    rule, or does not fit the model.
    """
    if not isinstance(rotary, Rotary) or not is_dataclass(rotary):
        raise ValueError(f"{rotary!r} is no frequency rule: give an instance of a frozen dataclass that inherits from "
                         "Rotary")
    model = _Model(planes, heads, train_horizon)
    _comes_back_from_its_spec(rotary)
    for horizon in model.lengths:
        for end in {1, horizon}:
            _turns(_ask(rotary, model.at(end, horizon)))
    _biases_differences(rotary)
    for streams in (False, True) if _streams(rotary, model) else (False,):
        answers = [_ask(rotary, model.at(length, None if streams else length)) for length in model.lengths]
        _plain_within_training(rotary, answers)
        _falls(rotary, answers)
        _goes_on(rotary, answers)
    _same_in_every_pass(rotary, model)
    _current_ends_as_total(rotary, model)
    every_field_counts(rotary, lambda rule: _effect(rule, model), "angles, scale or bias")


@dataclass(frozen=True)
class _Model:
    planes: int
    heads: int
    train_horizon: int

    def at(self, end: int, horizon: int | None) -> RotaryContext:
        """A pass that ends at a frame."""
        numbers = {"planes": self.planes, "heads": self.heads, "train_horizon": self.train_horizon, "horizon": horizon,
                   "end": end}  # fmt: skip
        for name, n in numbers.items():
            if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
                raise ValueError(f"{name}={n!r}: give a whole number, at least 1")
        return RotaryContext(2 * self.planes, self.heads, self.train_horizon, horizon, end)

    @property
    def lengths(self) -> list[int]:
        """Latent frames of videos, from 1 to a million, rising."""
        n = self.train_horizon
        return sorted({1, max(1, n // 2), n, n + 1, 2 * n, 6 * n, 1023, 1024, 1025, 1_000_000})


@dataclass(frozen=True)
class _Answer:
    """What a rule says of a pass."""

    context: RotaryContext
    freq: Array
    scale: LogitScale

    def same(self, other: _Answer) -> bool:
        return np.array_equal(self.freq, other.freq) and self.scale == other.scale

    def __str__(self) -> str:
        return f"{_short(self.freq)}, {self.scale}"


def _ask(rotary: Rotary, context: RotaryContext) -> _Answer:
    """A rule's answer, once it is proved to be right as far as one pass can tell."""
    given = replace(context)
    try:
        freq, logits = rotary.inv_freq(given), rotary.logit_scale(given)
    except (ArithmeticError, IndexError) as error:
        raise AssertionError(f"a rule answers for videos of any length: not so for {context}: {error!r}") from error
    planes = context.dim // 2
    shape, dtype = getattr(freq, "shape", None), getattr(freq, "dtype", None)
    require(isinstance(freq, np.ndarray) and dtype == np.float64 and shape in ((planes,), (context.heads, planes)),
            "inv_freq is a float64 array, [planes] or [heads, planes]", None,
            f"{type(freq).__name__} of {dtype}, {shape} for {context}")  # fmt: skip
    require(np.isfinite(freq).all() and (freq > 0).all(), "frequencies are finite and above 0", None,
            f"{_short(freq)} for {context}")  # fmt: skip
    require(len(logits) == 2 and all(0 < part < np.inf for part in logits), "logit_scale is finite and above 0", None,
            f"{logits} for {context}")  # fmt: skip
    found = _Answer(context, freq.copy(), logits)
    again = _Answer(context, rotary.inv_freq(given), rotary.logit_scale(given))
    require(found.same(again), "a rule is pure", None, f"first {found}, then {again} for {context}")
    require(given == context, "a rule leaves the context as it is", None, f"it is now {given}, expected {context}")
    return found


def _bias(rotary: Rotary, times: Array) -> Array:
    """What a rule adds to the logits of queries and keys at these times, [times, times], once it is proved right."""
    queries, keys = times.copy(), times.copy()
    found, again = (rotary.bias(queries, keys) for _ in range(2))
    alike = found is again is None or (found is not None and again is not None and np.array_equal(found, again))
    require(alike, "a rule is pure", None, f"bias gave first {found}, then {again} for times {times}")
    require(np.array_equal(queries, times) and np.array_equal(keys, times), "bias leaves the times as they are", None,
            f"they are now {queries}, {keys}, expected {times}")  # fmt: skip
    square = (len(times), len(times))
    require(found is None or (np.shape(found) == square and np.isfinite(found).all()), "bias is None or finite, "
            "[queries, keys]", None, f"{found} for times {times}")  # fmt: skip
    return np.zeros(square) if found is None else found


def _biases_differences(rotary: Rotary) -> None:
    here = _bias(rotary, np.array(TIMES))
    for shift in SHIFTS:
        off = np.abs(_bias(rotary, np.array(TIMES) + shift) - here).max() / max(1, np.abs(here).max())
        require(off < CLOSE, "bias depends on differences of times only", None,
                f"off by {off:.2g} when all times are {shift:+g} later")  # fmt: skip


def _turns(answer: _Answer) -> None:
    """Rotation by these frequencies: lengths, axes, and differences of times."""
    model, times, of = answer.context, np.array(TIMES), f"for {answer.context}"
    draw = np.random.default_rng(0).standard_normal((2, 1, 1, model.heads, model.dim + 2 * SPACE))
    q, k = (torch.from_numpy(x) for x in draw)

    def lengths(x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, 2)).norm(dim=-1)

    turned = _turned(k, np.array((*TIMES, *FAR)), answer)
    off = (lengths(turned) - lengths(k)).abs().max().item()
    require(off < TIGHT, "rotation keeps lengths", None, f"off by {off:.2g} {of}")
    by_frame = turned.unflatten(1, (-1, GRID[0] * GRID[1]))
    space, time = by_frame[..., model.dim :], by_frame[..., : model.dim]
    mixed = [*(space - space[:, :1]).abs().amax((0, 2, 3, 4)), *(time - time[:, :, :1]).abs().amax((0, 1, 3, 4))]
    require(not any(mixed), "time turns no plane of space, nor space one of time", None, f"by {max(mixed):.2g} {of}")

    def scores(at: Array) -> Tensor:
        scaled = scale(_turned(q, at, answer), answer.scale, model.dim)
        return torch.einsum("bqhd,bkhd->hqk", scaled, _turned(k, at, answer)) / q.shape[-1] ** 0.5

    here = scores(times)
    for shift in SHIFTS:
        off = (scores(times + shift) - here).abs().max().item() / max(1, here.abs().max().item())
        require(off < CLOSE, "scores depend on differences of times only", None,
                f"off by {off:.2g} when all times are {shift:+g} later, {of}")  # fmt: skip


def _turned(x_BNhd: Tensor, times: Array, answer: _Answer) -> Tensor:
    """One token of each head at every place of a frame, in frames at these times."""
    space = space_angles(GRID, (answer.context.dim, SPACE, SPACE))
    angles = token_angles(time_angles(tuple(times.tolist()), answer.freq), space)
    return rotate(x_BNhd.expand(-1, len(angles), -1, -1), phase(angles, torch.float64))


def _streams(rotary: Rotary, model: _Model) -> bool:
    """Whether a rule does without a horizon."""
    try:
        rotary.inv_freq(model.at(1, None))
    except ValueError:
        return False
    return True


def _plain_within_training(rotary: Rotary, answers: list[_Answer]) -> None:
    if not rotary.identity_within_train:
        return
    claim, plain = "identity_within_train", Rope(getattr(rotary, "base", BASE))
    trained = _trained(rotary, answers[0].context)
    for answer in answers:
        if answer.context.end <= trained:
            rope = _Answer(answer.context, plain.inv_freq(answer.context), UNSCALED)
            alike = np.array_equal(answer.freq, np.broadcast_to(rope.freq, answer.freq.shape))
            require(alike and answer.scale == UNSCALED, claim, None, f"{answer}, expected {rope} for {answer.context}")
    bias = _bias(rotary, np.arange(min(trained, 100), dtype=np.float64))
    require(not bias.any(), claim, None, f"logits are biased by up to {np.abs(bias).max():.2g} within {trained} frames")


def _trained(rotary: Rotary, context: RotaryContext) -> int:
    return getattr(rotary, "train_horizon", None) or context.train_horizon or 0


def _falls(rotary: Rotary, answers: list[_Answer]) -> None:
    for a, b in pairwise(answers) if rotary.monotone else ():
        require((b.freq <= a.freq * (1 + TIGHT)).all(), "monotone: a longer video raises no frequency", None,
                f"{a} at {a.context.end} frames, {b} at {b.context.end}")  # fmt: skip


def _goes_on(rotary: Rotary, answers: list[_Answer]) -> None:
    """At the frame where the trained length ends a rule may set in at once."""
    for a, b in pairwise(answers):
        ends = a.context.end, b.context.end
        if ends in ((1023, 1024), (1024, 1025)) and ends[0] != _trained(rotary, a.context):
            step = np.abs(b.freq / a.freq - 1).max()
            require(step < 0.01, "frames 1023 to 1025 are like others", None,
                    f"a frequency changes by {step:.2g} of itself from a length of {ends[0]} to {ends[1]}")  # fmt: skip


def _same_in_every_pass(rotary: Rotary, model: _Model) -> None:
    for horizon in (*model.lengths, *((None,) if _streams(rotary, model) else ())):
        if rotary.is_static(horizon):
            ends = [end for end in model.lengths if horizon is None or end <= horizon]
            first, *others = (_ask(rotary, model.at(end, horizon)) for end in ends)
            for other in others:
                require(first.same(other), "is_static: all passes are alike", None,
                        f"{first} at the pass that ends at {first.context.end}, {other} at {other.context.end}, of "
                        f"{horizon or 'any number of'} frames")  # fmt: skip


def _current_ends_as_total(rotary: Rotary, model: _Model) -> None:
    if isinstance(rotary, Scaled):
        total, current = replace(rotary, scale="total"), replace(rotary, scale="current")
        for length in model.lengths:
            a, b = _ask(current, model.at(length, None)), _ask(total, model.at(length, length))
            require(a.same(b), "current at the end is total", None, f"{a}, expected {b} at {length} frames")


def _effect(rotary: Rotary, model: _Model) -> list[object]:
    """All that tells a rule from another."""
    bias = rotary.bias(np.array(TIMES), np.array(TIMES))
    found: list[object] = [rotary.stale, None if bias is None else bias.tobytes()]
    for trained in {model.train_horizon, 1000}:
        passes = replace(model, train_horizon=trained)
        for length in passes.lengths:
            for context in (passes.at(1, length), passes.at(length, length), passes.at(length, None)):
                try:
                    found.append((rotary.inv_freq(context).tobytes(), rotary.logit_scale(context)))
                except (ArithmeticError, LookupError, TypeError, ValueError):  # of a field's value that is too bold
                    found.append("refused")
    return found


def _comes_back_from_its_spec(rotary: Rotary) -> None:
    if type(rotary) in map(ROTARY.get, ROTARY.names()):
        claim = "a rule comes back from its spec"
        try:
            back = ROTARY.build(ROTARY.spec(rotary))
        except ValueError as error:
            raise AssertionError(f"{claim}: not so: {error}") from error
        require(back == rotary, claim, None, f"{back}, expected {rotary}")


def _short(freq: Array) -> str:
    return np.array2string(np.asarray(freq), precision=6, threshold=12, edgeitems=3).replace("\n", "")
