"""A sampler as the linear recursion it is: what each of its latents is made of, and what that comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arvid.cache import Chunk
from arvid.samplers import Sampler

from .engine import require
from .stage import Held, Key, Stage, brief, drawn, play, sizes

Array = NDArray[np.float64]

CLOSE = 1e-9
WHOLE = 1.1e-3
"""How far a latent may be from its level where all levels are whole timesteps, which published solvers truncate to."""
MEAN, VARIANCE = 0.7, 0.25  # of the Gaussian's data


@dataclass(frozen=True)
class Row:
    """Latents as a sum of noises and of the predictions of earlier rows: weights [noises], [rows]."""

    kind: str
    chunk: Chunk
    of_noise: Array
    of_x0: Array


@dataclass(frozen=True)
class Scheme:
    """All latents that were given to the model, and those emitted, one for each chunk."""

    keys: tuple[Key, ...]
    rows: tuple[Row, ...]
    final: tuple[Row, ...]

    def chain(self, final: Row) -> list[tuple[int, Row]]:
        """The rows that a chunk's x0 comes from: its DENOISEs, and a COMMIT whose prediction is emitted."""
        return [(i, row) for i, row in enumerate(self.rows) if row.chunk.start == final.chunk.start
                and (row.kind == "denoise" or final.of_x0[i])]  # fmt: skip

    def weight(self, row: Row, key: Key) -> float:
        """Of a noise in a row."""
        return row.of_noise[self.keys.index(key)] if key in self.keys else 0.0


def scheme_of(sampler: Sampler, chunks: Sequence[Chunk]) -> Scheme:
    """A sampler run on noises and predictions that are unit vectors, all different, which adds them up for itself."""
    counting = Stage(sampler, chunks)
    for _ in play(sampler, counting, chunks):
        pass
    at, rows, made = {key: i for i, key in enumerate(counting.noises)}, len(counting.given), 0

    def unit(i: int, n: int) -> Tensor:
        return torch.eye(rows + len(at), dtype=torch.float64)[i].expand(1, n, 1, 1, -1).clone()

    def draw(key: Key, chunk: Chunk) -> Tensor:
        return unit(rows + at.get(key, 0), chunk.n)

    def answer(x: Tensor, flying: Sequence[Chunk], past: Sequence[Held]) -> Tensor:
        nonlocal made
        made += len(flying)
        return torch.cat([unit(made - len(flying) + i, chunk.n) for i, chunk in enumerate(flying)], 1)

    stage = Stage(sampler, chunks, answer, draw)
    emits = list(play(sampler, stage, chunks))
    same = stage.events == counting.events and [*stage.noises] == [*at]
    require(same, "neither passes nor noises depend on numbers", None, f"they do for {sizes(chunks)}")

    def row(kind: str, chunk: Chunk, x: Tensor) -> Row:
        weights = x[0, 0, 0, 0].numpy()
        return Row(kind, chunk, weights[rows:], weights[:rows])

    return Scheme(tuple(at), tuple(row(given.kind, given.chunk, given.x_BFCHW) for given in stage.given),
                  tuple(row("emit", emit.chunk, emit.x0) for emit in emits))  # fmt: skip


def check_scheme(sampler: Sampler, chunks: Sequence[Chunk]) -> bool:
    """Hold a sampler's recursion to a point mass and to a Gaussian, and the sampler to its recursion; whether latents
    have their levels exactly, rather than to a whole timestep."""
    scheme, exact = scheme_of(sampler, chunks), True
    _own(scheme)
    for final in scheme.final:
        _noises_in_place(scheme, final)
        exact = _on_a_point_mass(scheme, final) and exact
        _committed(scheme, final, exact)
        _spread(scheme, final, exact)
    _is_its_recursion(sampler, chunks, scheme)
    return exact


def _own(scheme: Scheme) -> None:
    """A chunk's latents are of its own noises and predictions."""
    for row in (*scheme.rows, *scheme.final):
        foreign = [str(scheme.keys[i]) for i in np.flatnonzero(row.of_noise) if scheme.keys[i].start != row.chunk.start]
        others = [scheme.rows[i].chunk for i in np.flatnonzero(row.of_x0)]
        foreign += [f"x0 of {brief((other,))}" for other in others if other.start != row.chunk.start]
        require(not foreign, "a chunk is made of its own noise and predictions", None,
                f"{named(row)} has {', '.join(foreign[:3])} in it")  # fmt: skip


def _noises_in_place(scheme: Scheme, final: Row) -> None:
    """Pure noise comes first, and renoise number k in at level k + 1."""
    for level, (_, row) in enumerate(scheme.chain(final)):
        seen = {scheme.keys[i]: row.of_noise[i] for i in np.flatnonzero(row.of_noise)}
        if level == 0:
            pure = seen == {Key("initial", row.chunk.start): 1} and not row.of_x0.any()
            require(pure, "a chunk begins as its initial noise", None, f"{named(row)} is {said(scheme, row)}")
        wrong = [str(key) for key in seen if key.kind == "context" or (key.kind == "renoise" and key.step >= level)]
        require(not wrong, "renoise noise k takes x0 from level k to level k + 1, context noise a chunk to its COMMIT",
                None, f"{named(row)} is level {level} and has {', '.join(wrong)} in it")  # fmt: skip


def _on_a_point_mass(scheme: Scheme, final: Row) -> bool:
    """With predictions that are all c, latents at sigma are (1 - sigma) c + sigma noise, and c is emitted.

    Where a sampler takes its first level for pure noise, which is at 1, sigma is in parts of that level. Returns
    whether this is so exactly, rather than as levels are when they are cut to whole timesteps.
    """
    rows = [row for _, row in scheme.chain(final)]
    first = rows[0].chunk.sigma
    whole = all(abs(1000 * row.chunk.sigma - round(1000 * row.chunk.sigma)) < CLOSE for row in rows)
    exact = True
    for row in (*rows, final):
        level = 1.0 if row is rows[0] else 0.0 if row is final else row.chunk.sigma
        off = _off(row, level, level / first)
        exact = exact and off < CLOSE
        claim = "a point mass is sampled exactly" if row is final else "latents are as noisy as their level says"
        require(off < (WHOLE if whole else CLOSE), claim, None,
                f"{_mix(row)}, expected {1 - level:.6g} c + {level:.6g} noise")  # fmt: skip
    return exact


def _off(row: Row, *levels: float) -> float:
    """How far a row is, with predictions that are all c, from (1 - s) c + s noise, s the nearest of the levels."""
    data, noise = row.of_x0.sum(), float(np.linalg.norm(row.of_noise))
    return min(max(abs(noise - s), abs(data - (1 - s))) for s in levels)


def _mix(row: Row) -> str:
    return (f"with predictions c, {named(row)} is {row.of_x0.sum():.6g} c + "
            f"{np.linalg.norm(row.of_noise):.6g} noise")


def _committed(scheme: Scheme, final: Row, exact: bool) -> None:
    """Every COMMIT is of x0 or at its level, and the one named is of the x0 that is emitted, or predicts it."""
    first, last = scheme.chain(final)[0][1].chunk.sigma, None
    for i, row in enumerate(scheme.rows):
        if row.kind == "commit" and row.chunk.start == final.chunk.start:
            off = _off(row, 0.0, row.chunk.sigma, row.chunk.sigma / first)
            require(off < (CLOSE if exact else WHOLE), "what is committed is x0, or as noisy as its level says", None,
                    _mix(row))  # fmt: skip
            last = (i, row) if row.chunk == final.chunk else last
    assert last  # play() has seen to it
    i, row = last
    off = min(np.abs(row.of_x0 - part * final.of_x0).max() for part in (1.0, 1 - row.chunk.sigma))
    require(off < CLOSE or final.of_x0[i] == 1, "what is emitted is what was committed", None,
            f"{named(row)} is {said(scheme, row)}, and {said(scheme, final)} is emitted")  # fmt: skip


def gain(sigma: float) -> float:
    """d x0 / d x of the best prediction for Gaussian data of VARIANCE: a (1 - sigma) with a the share of the signal."""
    return (1 - sigma) * VARIANCE / ((1 - sigma) ** 2 * VARIANCE + sigma**2)


def solved(scheme: Scheme) -> Array:
    """What is emitted for Gaussian data, as weights of the noises, and a constant: [chunks, noises + 1]."""
    known = np.zeros((len(scheme.rows) + len(scheme.final), len(scheme.keys) + 1))
    for i, row in enumerate((*scheme.rows, *scheme.final)):
        known[i, :-1] = row.of_noise
        for k in np.flatnonzero(row.of_x0):
            sigma = scheme.rows[k].chunk.sigma
            known[i] += row.of_x0[k] * gain(sigma) * known[k]
            known[i, -1] += row.of_x0[k] * MEAN * (1 - gain(sigma) * (1 - sigma))
    return known[len(scheme.rows) :]


def _spread(scheme: Scheme, final: Row, exact: bool) -> None:
    """The spread is no further from the data's than that of the plainest of recursions. (The mean is the data's where
    a point mass is sampled exactly.)"""
    weights = solved(scheme)[[row is final for row in scheme.final]][0, :-1]
    chain = [row for _, row in scheme.chain(final)]
    levels, slack = [row.chunk.sigma for row in chain], CLOSE if exact else 10 * WHOLE
    seen, right = float(np.linalg.norm(weights)), VARIANCE**0.5
    fresh = [scheme.weight(row, Key("renoise", row.chunk.start, k)) != 0 for k, row in enumerate(chain[1:])]
    plain = max((_plain(levels, noised) for noised in set(fresh) or {False}), key=lambda s: abs(s - right))
    require(abs(seen - right) <= abs(plain - right) + slack,
            "of Gaussian data the spread is that of the plain recursion, or nearer", None,
            f"it is {seen:.6g} for {brief((final.chunk,))} at levels {', '.join(f'{s:.4g}' for s in levels)}, expected "
            f"{plain:.6g}, or nearer to {right:g}")  # fmt: skip


def _plain(levels: Sequence[float], noised: bool) -> float:
    """The standard deviation of what is emitted by consistency sampling (arXiv 2303.01469, algorithm 1), x0 with fresh
    noise at every level, or by Euler steps along the velocity."""
    x = 1.0
    for sigma, after in pairwise(levels):
        x0 = gain(sigma) * x
        x = float(np.hypot((1 - after) * x0, after)) if noised else x0 + after / sigma * (x - x0)
    return gain(levels[-1]) * x


def _is_its_recursion(sampler: Sampler, chunks: Sequence[Chunk], scheme: Scheme) -> None:
    """The sampler on numbers gives what its recursion gives."""

    def answer(x: Tensor, flying: Sequence[Chunk], past: Sequence[Held]) -> Tensor:
        pieces = x.split([chunk.n for chunk in flying], 1)
        return torch.cat([MEAN + gain(chunk.sigma) * (piece - (1 - chunk.sigma) * MEAN)
                          for chunk, piece in zip(flying, pieces, strict=True)], 1)  # fmt: skip

    draw = drawn()
    emits = list(play(sampler, Stage(sampler, chunks, answer, draw), chunks))
    for emit, own, (*weights, mean) in zip(emits, chunks, solved(scheme), strict=True):
        noises = [weight * draw(key, own) for key, weight in zip(scheme.keys, weights, strict=True) if weight]
        off = (emit.x0 - mean - sum(noises)).abs().max().item()
        require(off < CLOSE, "for Gaussian data a sampler is its linear recursion", None,
                f"x0 of {brief((own,))} is off by up to {off:.2g}, expected less than {CLOSE:g}")  # fmt: skip


def named(row: Row) -> str:
    """A row in words."""
    return f"the {row.kind.upper()} of {brief((row.chunk,))} at level {row.chunk.sigma:.4g}"


def said(scheme: Scheme, row: Row) -> str:
    """What a row is made of, in words."""
    parts = [f"{row.of_noise[i]:.3g} {scheme.keys[i].kind} {scheme.keys[i].step}" for i in np.flatnonzero(row.of_noise)]
    parts += [f"{row.of_x0[i]:.3g} x0 at {scheme.rows[i].chunk.sigma:.4g}" for i in np.flatnonzero(row.of_x0)]
    return " + ".join(parts) or "0"
