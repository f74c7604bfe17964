"""The checker of noise priors: what every prior must do, and what it declares of itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arvid.noise import APPLY_TO, IID, NOISE, Domain, Floats, Key, Kind, NoisePrior, Recipe, Span

from .engine import require
from .fields import every_field_counts

Draw = NDArray[np.float32]
Stream = tuple[Kind, int]
WRONG = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What code that is asked for what it cannot do may raise."""

SHAPE = (4, 32, 32)  # of a frame in statistics: 4,096 elements
SMALL = (2, 3)  # where bytes are compared
SIGMAS = 6.0
TIGHT = 1e-12
ROUNDING = 1e-6  # of float32 mixing, in a mean of products
SEED = 11
SEEDS = (SEED, 12, SEED + (1 << 32), SEED)  # of a batch; numpy splits seeds into words of 32 bits
STREAMS = ((Kind.INITIAL, 0), (Kind.RENOISE, 0), (Kind.RENOISE, 2), (Kind.CONTEXT, 0))
FAR, FURTHER = 1000, 1_000_000


def check_noise(prior: NoisePrior, *, chunk: int = 3, train_horizon: int = 21) -> None:
    """Ask a prior for the noise of videos of two training horizons and more, and hold it to what all promise and to
    what this one declares. Fields of the names `chunk` and `train_horizon` that are None are filled with these, as by a
    configuration. The videos have whole chunks, a shorter last one, a shorter first one, a first frame that is a chunk
    of its own, and, unless the prior has its own `chunk`, one frame a chunk.

    All: draws are float32 and pure, and reading them needs a chunk's start and size only; neither the order of
    requests, the company of a frame, the batch, nor a restart changes a byte; the covariance is symmetric, positive
    semidefinite, that of the recipes (1e-12), and that of draws (six standard errors of 4,096 elements), which are
    Gaussian and white within a frame; recipes are pure, with valid sources; seeds, kinds and steps have nothing in
    common; `apply_to` leaves the other kinds as `iid` has them; every field has an effect. Declared: `unit_variance`
    (1e-12), `random_access` (frame 1,000,000 has no longer recipe than frame 1,000 or the first); and a registered
    prior comes back from its spec. A prior that overrides `draw` and `covariance` is held to all but what concerns
    recipes.

    Raises `AssertionError` with the property, and what was expected and seen, and `ValueError` for what is no prior,
    or does not fit the chunk and the horizon.
    """
    if not isinstance(prior, NoisePrior) or not is_dataclass(prior) or not (_mixes(prior) or _draws(prior)):
        raise ValueError(f"{prior!r} is no noise prior: give an instance of a frozen dataclass that inherits from "
                         "NoisePrior and has a recipe, or both draw and covariance")
    for name, n in {"chunk": chunk, "train_horizon": train_horizon}.items():
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"{name}={n!r}: give a whole number of latent frames, at least 1")
    _comes_back_from_its_spec(prior)
    own = getattr(prior, "chunk", None)
    for size in dict.fromkeys((own,) if own else (chunk, 1)):
        given = {"chunk": size, "train_horizon": train_horizon}
        filled = replace(prior, **{name: n for name, n in given.items() if getattr(prior, name, n) is None})  # pyright: ignore[reportArgumentType]
        horizon = getattr(filled, "train_horizon", train_horizon)
        everywhere = _applied(filled, "all")
        videos = _videos(size, horizon)
        for chunks in videos:
            _check_video(everywhere, chunks)
        _shares_nothing_between_streams(everywhere, videos[0][:2])
        _applies_to_what_it_says(everywhere, (*videos[0][:2], videos[0][-1]))
        _reaches_far(everywhere, videos[0])
    every_field_counts(everywhere, lambda one: _effect(one, videos), "draws")  # of the last size


def _mixes(prior: NoisePrior) -> bool:
    """Whether draws come from recipes."""
    return type(prior).draw is NoisePrior.draw and type(prior).recipe is not NoisePrior.recipe


def _draws(prior: NoisePrior) -> bool:
    return type(prior).draw is not NoisePrior.draw


def _videos(chunk: int, horizon: int) -> list[tuple[Span, ...]]:
    """The chunks of videos with each kind of first and last chunk."""
    whole, videos = chunk * (2 * horizon // chunk + 2), []
    for first, last in dict.fromkeys(((chunk, 0), (1, 1 % chunk), (max(1, chunk - 1), chunk - 1))):
        edges = sorted({0, *range(first, first + whole + 1, chunk), first + whole + last})
        videos.append(tuple(Span(a, b - a) for a, b in pairwise(edges)))
    return videos


def _check_video(prior: NoisePrior, chunks: Sequence[Span]) -> None:
    """What concerns the frames of one video."""
    draws = {stream: _video(prior, Key(SEED, *stream), chunks) for stream in STREAMS}
    _pure(prior, chunks)
    for stream in STREAMS:
        key, what = Key(SEED, *stream), _of(stream, chunks)
        stated = _covariance(prior, chunks, stream)
        if _mixes(prior):
            mixed = _algebra([_recipe(prior, frame, c, key) for c in chunks for frame in _frames(c)])
            off, most = np.abs(mixed - stated).max(), _tight(stated)
            require(off <= most, "the covariance is that of the recipes", None,
                    f"off by up to {off:.2g}, expected at most {most:.2g}, {what}")  # fmt: skip
        _drawn_as_stated(_video(prior, key, chunks, SHAPE), stated, what)
    _blind_to_order(prior, chunks, draws)
    _blind_to_the_batch(prior, chunks, draws)


@dataclass(frozen=True)
class _Blind(Span):
    """A chunk that raises `AssertionError` when it is asked for what a prior must not read."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):  # Python itself asks
            raise AttributeError(name)
        raise AssertionError(f"a prior reads only a chunk's start and n: not so: it asked for {name!r}")


@contextmanager
def _answering(what: str) -> Iterator[None]:
    try:
        yield
    except WRONG as error:
        raise AssertionError(f"a prior has noise for every chunk: not so: {error!r} {what}") from error


def _draw(prior: NoisePrior, key: Key, frames: Sequence[int], chunk: Span, shape: Sequence[int] = SMALL) -> Draw:
    """A prior's draw, once it is proved to be right as far as one can tell."""
    asked, given, at = [*frames], replace(key), _Blind(chunk.start, chunk.n)
    what = f"for frames {asked} of {chunk}, {key}"
    with _answering(what):
        found = prior.draw(given, asked, at, shape)
    _whole(found, (len(frames), *shape), "draw", what)
    unchanged = asked == [*frames] and given == key and at == _Blind(chunk.start, chunk.n)
    require(unchanged, "draw leaves its arguments as they are", None, f"they are now {asked}, {given}, {at} {what}")
    return found


def _whole(found: Any, shape: tuple[int, ...], method: str, what: str) -> None:
    seen = f"{type(found).__name__} of {getattr(found, 'dtype', None)}, {getattr(found, 'shape', None)} {what}"
    right = isinstance(found, np.ndarray) and found.dtype == np.float32 and found.shape == shape
    require(right, f"{method} gives a float32 array, one frame for each asked", None, f"{seen}, expected {shape}")
    require(np.isfinite(found).all(), f"{method} is finite", None, f"{np.isnan(found).sum()} NaN, or infinite, {what}")


def _same(seen: Draw, expected: Draw, claim: str, what: str) -> None:
    """Require every bit to be the same."""
    off = seen != expected
    if off.any():
        raise AssertionError(f"{claim}: not so: {_few(seen[off])}, expected {_few(expected[off])}, {what}")


def _video(prior: NoisePrior, key: Key, chunks: Sequence[Span], shape: Sequence[int] = SMALL) -> Draw:
    """All frames, chunk by chunk: [frames, *shape]."""
    return np.concatenate([_draw(prior, key, _frames(chunk), chunk, shape) for chunk in chunks])


def _pure(prior: NoisePrior, chunks: Sequence[Span]) -> None:
    for chunk in (chunks[0], chunks[-1]):
        first, again = (_draw(prior, Key(SEED), _frames(chunk), chunk) for _ in range(2))
        _same(again, first, "draw is pure", "when it is asked again")
        kept = first.copy()
        require(first.flags.writeable, "a draw is its caller's own", None, "it cannot be written to")
        first[:] = 0  # as a pipeline may, which shares its memory
        again = _draw(prior, Key(SEED), _frames(chunk), chunk)
        _same(again, kept, "a draw is its caller's own", "after the caller wrote over the first")


def _recipe(prior: NoisePrior, frame: int, chunk: Span, key: Key) -> Recipe:
    """A prior's recipe, once it is proved to be right as far as one can tell."""
    what = f"for frame {frame} of {chunk}, {key}"
    with _answering(what):
        found, again = (dict(prior.recipe_of(frame, chunk, key)) for _ in range(2))
    require(found == again, "recipe is pure", None, f"first {found}, then {again} {what}")
    wrong = [source for source in found if source[0] == Domain.PERM]
    require(not wrong, "a source's domain is not PERM, whose numbers make permutations", None, f"{wrong[:3]} {what}")
    return found


def _algebra(recipes: Sequence[Recipe]) -> Floats:
    """E z_u z_v for sums of independent white frames."""
    return np.array([[sum(w * b[s] for s, w in a.items() if s in b) for b in recipes] for a in recipes])


def _tight(c: Floats) -> float:
    """How far entries of a covariance may be off by rounding."""
    return TIGHT * max(1.0, c.diagonal().max())


def _covariance(prior: NoisePrior, chunks: Sequence[Span], stream: Stream) -> Floats:
    """What a prior states, once it is proved to be a covariance, and to have what is declared."""
    frames, what = [frame for chunk in chunks for frame in _frames(chunk)], _of(stream, chunks)
    with _answering(what):
        c = np.asarray(prior.covariance(frames, [_Blind(chunk.start, chunk.n) for chunk in chunks], SEED, *stream))
    require(c.shape == (len(frames),) * 2 and c.dtype == np.float64 and np.isfinite(c).all(),
            "covariance is finite float64, [frames, frames]", None, f"{c.dtype}, {c.shape} {what}")  # fmt: skip
    off = np.abs(c - c.T).max()
    require(off <= _tight(c), "the covariance is symmetric", None, f"off by up to {off:.2g} {what}")
    least = np.linalg.eigvalsh(c).min() / max(1, len(frames))
    require(least >= -_tight(c), "the covariance is positive semidefinite", None,
            f"smallest eigenvalue {least:.2g} {what}")  # fmt: skip
    if prior.unit_variance:
        off = np.abs(c.diagonal() - 1).max()
        require(off <= TIGHT, "unit_variance: every variance is 1", None, f"off by up to {off:.2g} {what}")
    return c


def _drawn_as_stated(z: Draw, stated: Floats, what: str) -> None:
    """Moments within six standard errors; elements of a frame are independent and Gaussian."""
    z_FN, variance = z.reshape(len(z), -1).astype(float), stated.diagonal()
    n = z_FN.shape[1]
    _near(z_FN @ z_FN.T / n, stated, np.sqrt((np.outer(variance, variance) + stated**2) / n),
          "draws have the covariance that is stated", what)  # fmt: skip
    _near(z_FN.mean(1), np.zeros(len(z)), np.sqrt(variance / n), "draws have mean 0", what)
    _near(np.square(z_FN**2).mean(1), 3 * variance**2, np.sqrt(96 / n) * variance**2, "draws are Gaussian",
          f"(mean of 4th powers) {what}")  # fmt: skip
    for axis in range(1, z.ndim):
        a, b = (np.moveaxis(z, axis, 1)[:, part].reshape(len(z), -1).astype(float) for part in (np.s_[1:], np.s_[:-1]))
        _near((a * b).mean(1), np.zeros(len(z)), variance / np.sqrt(a.shape[1]), "a frame is white",
              f"(neighbours on axis {axis}) {what}")  # fmt: skip


def _near(seen: Floats, expected: Floats, error: Floats, claim: str, what: str) -> None:
    """Require each number to be within six of its standard errors."""
    allowed = SIGMAS * error + ROUNDING
    worst = np.unravel_index(np.argmax(np.abs(seen - expected) - allowed), seen.shape)
    place = ", ".join(map(str, worst))
    require((np.abs(seen - expected) <= allowed).all(), claim, None,
            f"{seen[worst]:.4f} at {place}, expected {expected[worst]:.4f} +- {allowed[worst]:.4f} {what}")  # fmt: skip


def _blind_to_order(prior: NoisePrior, chunks: Sequence[Span], draws: dict[tuple[Kind, int], Draw]) -> None:
    """Other instances, asked backwards, at random, and for one frame at a time."""
    claim, chunk_of = "neither order, company nor a restart changes a frame", {f: c for c in chunks for f in _frames(c)}
    rng = np.random.default_rng(SEED)
    for stream, order in ((STREAMS[0], rng.permutation(len(chunk_of)).tolist()), (STREAMS[2], [*reversed(chunk_of)])):
        fresh, key, whole = replace(prior), Key(SEED, *stream), draws[stream]
        for frame in order:
            _same(_draw(fresh, key, [frame], chunk_of[frame])[0], whole[frame], claim, f"frame {frame} alone, {key}")
        for i in rng.permutation(len(chunks)):
            frames = [*reversed(_frames(chunks[i]))]
            _same(_draw(fresh, key, frames, chunks[i]), whole[frames], claim, f"frames {frames}, {key}")


def _blind_to_the_batch(prior: NoisePrior, chunks: Sequence[Span], draws: dict[tuple[Kind, int], Draw]) -> None:
    for stream, whole in draws.items():
        for chunk in (chunks[0], chunks[-2], chunks[-1]):
            frames, what = _frames(chunk), f"for a batch of the seeds {SEEDS}, {chunk}"
            with _answering(what):
                rows = prior.batch(SEEDS, *stream, _Blind(chunk.start, chunk.n), SMALL)
            _whole(rows, (len(SEEDS), chunk.n, *SMALL), "batch", what)
            alone = [whole[list(frames)], *(_draw(prior, Key(s, *stream), frames, chunk) for s in SEEDS[1:])]
            for seed, row, one in zip(SEEDS, rows, alone, strict=True):
                _same(row, one, "a row of a batch is its seed alone", f"seed {seed} {what}")


def _shares_nothing_between_streams(prior: NoisePrior, chunks: Sequence[Span]) -> None:
    """Draws of any two seeds, kinds or steps are uncorrelated."""
    keys = [*(Key(SEED, *stream) for stream in STREAMS), *(Key(seed) for seed in SEEDS[1:-1])]
    draws = [_video(prior, key, chunks, SHAPE).reshape(-1, np.prod(SHAPE)).astype(float) for key in keys]
    for i, a in enumerate(draws):
        for j, b in enumerate(draws[:i]):
            spread = np.sqrt(np.outer((a**2).mean(1), (b**2).mean(1)) / a.shape[1])
            _near(a @ b.T / a.shape[1], np.zeros(spread.shape), spread, "seeds, kinds and steps have nothing in common",
                  f"between {keys[i]} and {keys[j]}")  # fmt: skip


def _applied(prior: NoisePrior, apply_to: str) -> NoisePrior:
    with _answering(f"for apply_to={apply_to!r}"):
        return replace(prior, apply_to=apply_to)


def _applies_to_what_it_says(everywhere: NoisePrior, chunks: Sequence[Span]) -> None:
    for apply_to in APPLY_TO:
        prior = _applied(everywhere, apply_to)
        for stream in STREAMS:
            name = stream[0].name.lower()
            right, who = (everywhere, "'all'") if apply_to in ("all", name) else (IID(), "iid")
            claim = f"with apply_to={apply_to!r} {name} noise is that of {who}"
            seen, expected = (_video(one, Key(SEED, *stream), chunks) for one in (prior, right))
            _same(seen, expected, claim, f"step {stream[1]}")
            off = np.abs(_covariance(prior, chunks, stream) - _covariance(right, chunks, stream)).max()
            require(off <= TIGHT, claim, None, f"the covariance is off by up to {off:.2g}")


def _reaches_far(prior: NoisePrior, chunks: Sequence[Span]) -> None:
    """A frame far in is asked first, then the beginning, then the frame again."""
    longest = max(len(prior.recipe(f, c, Key(SEED))) for c in chunks for f in _frames(c)) if _mixes(prior) else 0
    for frame in (FAR, FURTHER) if prior.random_access else (FAR,):
        chunk = Span(frame - frame % chunks[1].n, chunks[1].n)
        if _mixes(prior):
            with _answering(f"for frame {frame} of {chunk}"):
                terms = len(prior.recipe(frame, chunk, Key(SEED)))
            require(frame == FAR or terms <= longest, "random_access: recipes grow no longer", None,
                    f"{terms} white frames make frame {frame}, at most {longest} one of the first {FAR}")  # fmt: skip
            longest = max(longest, terms)
            _recipe(prior, frame, chunk, Key(SEED))
        fresh = replace(prior)
        first = _draw(fresh, Key(SEED), [frame], chunk)
        _video(fresh, Key(SEED), chunks)
        again = _draw(fresh, Key(SEED), _frames(chunk), chunk)[[frame - chunk.start]]
        _same(again, first, "a frame far in may be asked first", f"frame {frame} asked after the beginning")
        if prior.random_access:
            _covariance(prior, [chunk], STREAMS[0])


def _effect(prior: NoisePrior, videos: Sequence[Sequence[Span]]) -> list[bytes | str]:
    """All that tells a prior from another."""
    found: list[bytes | str] = []
    for key in (Key(SEED), Key(SEED, Kind.RENOISE, 1), Key(SEED, Kind.RENOISE, 2)):
        for chunks in videos:
            try:
                found += (prior.draw(key, _frames(chunk), chunk, SMALL).tobytes() for chunk in chunks)
            except WRONG:
                found.append("refused")
    return found


def _comes_back_from_its_spec(prior: NoisePrior) -> None:
    if type(prior) in map(NOISE.get, NOISE.names()):
        claim = "a prior comes back from its spec"
        try:
            back = NOISE.build(NOISE.spec(prior))
        except ValueError as error:
            raise AssertionError(f"{claim}: not so: {error}") from error
        require(back == prior, claim, None, f"{back}, expected {prior}")


def _frames(chunk: Span) -> range:
    return range(chunk.start, chunk.start + chunk.n)


def _of(stream: Stream, chunks: Sequence[Span]) -> str:
    ends = f"{chunks[0].n} in the first chunk, {chunks[-1].n} in the last"
    kind, step = stream
    return f"for {kind.name.lower()} noise, step {step}, of frames {chunks[0].start}..{_frames(chunks[-1])[-1]}, {ends}"


def _few(x: Draw) -> str:
    return np.array2string(x.ravel()[:3], precision=4) + "..."
