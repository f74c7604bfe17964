"""The frequency rules against transformers, against closed forms in float64, and against numbers of their papers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from arvid.positional import (
    NTK,
    PI,
    ROTARY,
    DynamicNTK,
    Flex,
    FlexRope,
    Lol,
    LongRope,
    NTKByParts,
    Riflex,
    Rope,
    Rotary,
    RotaryContext,
    Yarn,
)
from arvid.positional.base import UNSCALED, LogitScale
from arvid.positional.scaled import Scaled

PLANES = 22  # 44 of a head's 128 channels, as in Wan
THETA = [10000 ** (-2 * m / 44) for m in range(PLANES)]
FACTORS = tuple(1 + m / 7 for m in range(PLANES))
RULES = (PI(), NTK(), DynamicNTK(2.0), NTKByParts(0.5, 3.0), Flex(), Yarn(), LongRope(FACTORS), Riflex(6))

lengths = st.integers(1, 4000)


def context(trained: int, horizon: int, planes: int = PLANES, heads: int = 1) -> RotaryContext:
    return RotaryContext(2 * planes, heads, trained, horizon, horizon)


def theirs(kind: str, trained: int, horizon: int, base: float = 1e4, **fields: Any) -> tuple[np.ndarray, float]:
    """transformers' frequencies, computed in float32, and what it multiplies cosines and sines by."""
    rope = {"rope_type": kind, "rope_theta": base, "factor": horizon / trained,
            "original_max_position_embeddings": trained, **fields}  # fmt: skip
    config = LlamaConfig(hidden_size=88, num_attention_heads=2, max_position_embeddings=trained, rope_parameters=rope)
    freq, factor = ROPE_INIT_FUNCTIONS[kind](config, seq_len=horizon)
    return freq.double().numpy(), factor


@pytest.mark.parametrize(("trained", "horizon"), [(21, 22), (21, 120), (21, 240), (240, 960), (81, 1000)])
@pytest.mark.parametrize("base", [1e4, 500.0])
@pytest.mark.parametrize(
    ("rule", "kind", "fields"),
    [
        (PI(), "linear", {}),
        (NTK(), "dynamic", {"factor": 1.0}),
        (DynamicNTK(), "dynamic", {"factor": 1.0}),
        (DynamicNTK(3.0), "dynamic", {"factor": 3.0}),
        (Yarn(), "yarn", {}),
        (Yarn(truncate=False), "yarn", {"truncate": False}),
        (Yarn(2.0, 0.5, scope="time"), "yarn", {"beta_fast": 2.0, "beta_slow": 0.5}),
        (LongRope(FACTORS), "longrope", {"long_factor": list(FACTORS), "short_factor": [1.0] * PLANES}),
        (Flex(), "llama3", {"low_freq_factor": 0.1, "high_freq_factor": 2.5}),
        (NTKByParts(1, 15), "llama3", {"low_freq_factor": 1.0, "high_freq_factor": 15.0}),
    ],
    ids=lambda value: str(value) if isinstance(value, (Rotary, str)) else "",
)
def test_rules_agree_with_transformers(
    rule: Rotary, kind: str, fields: dict, base: float, trained: int, horizon: int
) -> None:
    expected, factor = theirs(kind, trained, horizon, base, **fields)
    rule = replace(rule, base=base)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(rule.inv_freq(context(trained, horizon)), expected, rtol=1e-6)
    whole, time = rule.logit_scale(context(trained, horizon))
    assert whole * time == pytest.approx(factor**2, rel=1e-12)


def yarn(trained: int, s: float, fast: float, slow: float) -> list[float]:
    """By the planes, not whole, that make so many turns in training."""
    first, last = (math.log(trained / (2 * math.pi * turns)) / math.log(1e4) * 22 for turns in (fast, slow))
    first, last = max(first, 0.0), max(last, 0.0)
    by = [min(1.0, max(0.0, (m - first) / (last - first))) if last > first else float(m > 0) for m in range(PLANES)]
    return [t * (d / s + 1 - d) for t, d in zip(THETA, by, strict=True)]


@settings(max_examples=60)
@given(st.integers(1, 300), lengths, st.floats(0, 3), st.floats(0.01, 20), st.floats(0.1, 5), st.integers(1, PLANES))
def test_closed_forms(trained: int, horizon: int, alpha: float, more: float, growth: float, k: int) -> None:
    """Each equation, plane by plane."""
    s = max(1.0, horizon / trained)
    blend = [min(1.0, max(0.0, (trained * t / (2 * math.pi) - alpha) / more)) for t in THETA]
    slowed = min(THETA[k - 1], 0.9 * 2 * math.pi / horizon) if s > 1 else THETA[k - 1]
    expected: dict[Rotary, list[float]] = {
        Rope(): THETA,
        PI(): [t / s for t in THETA],
        NTK(): [(10000 * s ** (44 / 42)) ** (-2 * m / 44) for m in range(PLANES)],
        DynamicNTK(growth): [(1e4 * (growth * s - growth + 1) ** (44 / 42)) ** (-m / 22) for m in range(PLANES)],
        NTKByParts(alpha, alpha + more): [(1 - g) * t / s + g * t for g, t in zip(blend, THETA, strict=True)],
        LongRope(FACTORS): [t / (f if s > 1 else 1) for t, f in zip(THETA, FACTORS, strict=True)],
        Riflex(k): [slowed if m == k - 1 else t for m, t in enumerate(THETA)],
        FlexRope(0.3): THETA,
        Yarn(beta := alpha + more, beta / 3, truncate=False): yarn(trained, s, beta, beta / 3),
    }
    for rule, freq in expected.items():
        np.testing.assert_allclose(rule.inv_freq(context(trained, horizon)), freq, rtol=1e-12, err_msg=str(rule))


@settings(max_examples=15)
@given(st.integers(1, 300), st.data())
def test_within_training_they_are_rope_bit_by_bit(trained: int, data: st.DataObject) -> None:
    now = context(trained, data.draw(st.integers(1, trained)))
    for rule in RULES:
        for base in (1e4, 300.0):
            own = replace(rule, base=base)
            assert np.array_equal(own.inv_freq(now), Rope(base).inv_freq(now)), rule
            if trained > 1 or not isinstance(rule, LongRope):
                assert own.logit_scale(now) == UNSCALED


def ratio(rule: Rotary, trained: int, horizon: int) -> np.ndarray:
    return rule.inv_freq(context(trained, horizon)) / THETA


def test_flex_of_the_paper() -> None:
    s = 120 / 21
    printed = [1, 0.8965, 0.6380, 0.4678, 0.3559, 0.2823, 0.2338, 0.2019, 0.1810, *[0.175] * 13]
    np.testing.assert_allclose(found := ratio(Flex(), 21, 120), printed, atol=5e-5)
    assert found[0] == 1
    assert ((found[1:9] > 1 / s) & (found[1:9] < 1)).all()
    np.testing.assert_allclose(found[9:], 1 / s, rtol=1e-15)
    longlive = [1, 1, 1, 0.7792, 0.5799, 0.4487, 0.3624, 0.3056, 0.2683, *[0.25] * 13]
    np.testing.assert_allclose(ratio(Flex(1, 15), 240, 960), longlive, atol=5e-5)


def test_thresholds_of_language_models_interpolate_nearly_everything() -> None:
    assert ratio(NTKByParts(1, 32), 21, 84)[0] == pytest.approx(0.307, abs=5e-4)


@settings(max_examples=15)
@given(st.integers(2, 300), st.floats(1, 50), st.floats(0, 3), st.floats(0.01, 20))
def test_by_parts_lies_between_interpolation_and_rope(trained: int, times: float, alpha: float, more: float) -> None:
    now = context(trained, math.ceil(times * trained))
    plain, pi, found = (rule.inv_freq(now) for rule in (Rope(), PI(), NTKByParts(alpha, alpha + more)))
    assert (np.diff(found) < 0).all()
    assert (found <= plain * (1 + 1e-15)).all()
    assert (found >= pi * (1 - 1e-15)).all()
    fewer = NTKByParts(alpha + 0.5, alpha + 0.5 + more).inv_freq(now)
    assert (fewer <= found * (1 + 1e-15)).all()  # fewer planes are kept
    turns = trained * plain / (2 * math.pi)
    assert np.array_equal(NTKByParts(turns[0], turns[0] + more).inv_freq(now), pi)
    assert np.array_equal(NTKByParts(0, turns[-1] * (1 - 1e-9)).inv_freq(now), plain)
    slow = turns <= alpha
    assert (found[slow] * (now.horizon or 0) <= trained * plain[slow] * (1 + 1e-12)).all()  # no phase is new to these


@settings(max_examples=15)
@given(st.integers(2, 64), st.integers(1, 300), lengths)
def test_ntk_keeps_the_first_plane_and_divides_the_last(planes: int, trained: int, horizon: int) -> None:
    now = context(trained, horizon, planes)
    plain, found = Rope().inv_freq(now), NTK().inv_freq(now)
    assert found[0] == plain[0]
    assert found[-1] == pytest.approx(plain[-1] / max(1, horizon / trained), rel=1e-14)
    np.testing.assert_allclose(DynamicNTK().inv_freq(now), found, rtol=1e-12)


def test_yarn_of_the_paper() -> None:
    np.testing.assert_allclose(ratio(Yarn(), 21, 84), [1, 0.75, 0.5, *[0.25] * 19], rtol=1e-12)
    whole, time = Yarn().logit_scale(context(21, 84))
    assert (math.sqrt(whole), whole, time) == (pytest.approx(1.13863, abs=5e-6), pytest.approx(1.29648, abs=5e-6), 1)


def test_yarn_keeps_the_first_plane_however_short_the_training() -> None:
    """Published code turns its ramp over where no plane makes beta_slow turns, and then keeps all planes."""
    np.testing.assert_allclose(ratio(Yarn(), 4, 8), [1, *[0.5] * 21], rtol=1e-12)
    np.testing.assert_array_equal(theirs("yarn", 4, 8)[0] / Rope().inv_freq(context(4, 8)) > 0.99, True)
    np.testing.assert_allclose(ratio(Yarn(), 10**9, 2 * 10**9), 1, rtol=1e-12)


def test_scope_says_what_of_the_logits_is_scaled() -> None:
    now, square = context(21, 84), (0.1 * math.log(4) + 1) ** 2
    scales = [Yarn(scope=scope).logit_scale(now) for scope in ("whole", "time", "none")]
    assert scales == [LogitScale(whole=square), LogitScale(time=square), UNSCALED]
    assert math.sqrt(LongRope(FACTORS, scope="time").logit_scale(now).time) == pytest.approx(1.20637, abs=5e-6)
    assert all(rule.logit_scale(now) == UNSCALED for rule in (PI(), NTK(), Flex(), Riflex(6), Lol(), FlexRope(1.0)))


def periods(freq: np.ndarray) -> list[int]:
    return [round(2 * math.pi / f) for f in freq]


def test_riflex_of_the_paper() -> None:
    own = periods(Rope(256.0).inv_freq(RotaryContext(16, 1)))
    k = 1 + min(range(8), key=lambda m: abs(own[m] - 48))
    assert (k, own[k - 1]) == (4, 50)
    assert periods(np.array(THETA))[:10] == [6, 10, 15, 22, 34, 51, 77, 118, 179, 272]
    found = Riflex(6).inv_freq(context(21, 240))
    assert found[5] == pytest.approx(0.0236, abs=5e-5)
    assert found[5] < found[6]  # the ladder no longer falls


@settings(max_examples=15)
@given(st.integers(1, PLANES), st.integers(1, 300), lengths, st.floats(0.1, 1))
def test_riflex_slows_one_plane_and_never_quickens_it(k: int, trained: int, horizon: int, margin: float) -> None:
    plain, found = (rule.inv_freq(context(trained, horizon)) for rule in (Rope(), Riflex(k, margin)))
    assert np.array_equal(np.delete(found, k - 1), np.delete(plain, k - 1))
    assert found[k - 1] <= plain[k - 1]
    if horizon > trained:
        assert found[k - 1] * horizon <= margin * 2 * math.pi * (1 + 1e-12)


def test_lol_draws_a_base_for_each_head() -> None:
    many, few = (Lol().inv_freq(context(21, 240, heads=heads)) for heads in (4096, 4))
    plain = Rope().inv_freq(context(21, 240))
    assert np.array_equal(many[:4], few)  # a head's base does not depend on how many there are
    assert (many[:, 0] == plain[0]).all()
    factor = many[:, -1] / plain[-1]
    assert 0.570 < factor.min() < 0.573 < 4.5 < factor.max() < 4.65
    draws = np.sort([Lol().jitter(head) for head in range(4096)])
    uniform = np.linspace(-1, 1, 4096)
    assert np.abs(draws - uniform).max() < 2 * math.sqrt(math.log(2 / 1e-9) / (2 * 4096))  # DKW bound
    for head, ladder in enumerate(few):
        base = 10000 * (1 + 0.8 * Lol().jitter(head))
        np.testing.assert_allclose(ladder, [base ** (-2 * m / 44) for m in range(PLANES)], rtol=1e-12)


def test_lol_is_fixed_by_its_seed() -> None:
    now, later = context(21, 240, heads=12), context(21, 9, heads=12)
    assert np.array_equal(Lol().inv_freq(now), Lol().inv_freq(later))
    assert not np.array_equal(Lol().inv_freq(now), Lol(jitter_seed=1).inv_freq(now))
    assert np.array_equal(Lol(sigma=0).inv_freq(now), np.broadcast_to(Rope().inv_freq(now), (12, PLANES)))
    # numpy promises this stream of bits
    assert [Lol().jitter(head) for head in range(2)] == [0.4423935050811558, 0.3488763280455023]


def test_jitter_lowers_the_coherence_of_heads_where_videos_collapse() -> None:
    """LoL's collapses at frames 132 and 201 lie by local maxima of the coherence of plain rope (arXiv 2601.16914)."""

    def coherence(freq: np.ndarray, distance: int) -> float:
        return float(np.abs(np.exp(1j * freq * distance).mean()))

    plain = Rope().inv_freq(context(21, 240))
    for peak in (133, 201):
        near = [coherence(plain, peak + d) for d in (-1, 0, 1)]
        assert near[1] == max(near)
        assert coherence(Lol().inv_freq(context(21, 240, heads=12)), peak) < near[1]
    assert coherence(plain, 133) == pytest.approx(0.557, abs=5e-4)


def test_flexrope_lowers_the_logits_of_older_keys() -> None:
    queries, keys = np.array([5.0, 6.0]), np.array([0.0, 4.5, 5.0, 6.0])
    bias = FlexRope(0.1).bias(queries, keys)
    assert bias is not None
    np.testing.assert_allclose(bias, [[-0.5, -0.05, 0, 0], [-0.6, -0.15, -0.1, 0]], atol=1e-15)
    assert FlexRope(0).bias(queries, keys) is None
    assert all(rule.bias(queries, keys) is None for rule in (*RULES, Lol(), Rope()))


SCALED = [rule for rule in RULES if isinstance(rule, Scaled)]


@pytest.mark.parametrize("rule", SCALED, ids=lambda rule: type(rule).__name__)
def test_total_current_and_what_none_means(rule: Scaled) -> None:
    def ask(scale: Any, horizon: int | None, end: int) -> list[float]:
        now = RotaryContext(44, 1, 21, horizon, end)
        own = replace(rule, scale=scale)
        return [*own.inv_freq(now), *own.logit_scale(now)]

    assert ask("total", 120, 3) == ask("total", 120, 60) == ask(None, 120, 60) == ask("current", 240, 120)
    assert ask("current", 120, 60) == ask("current", 999, 60) == ask(None, None, 60) == ask("stale", None, 60)
    assert ask("current", 120, 60) != ask("total", 120, 60)
    assert [replace(rule, scale=scale).is_static(120) for scale in (None, "total", "current", "stale")] == [
        True, True, False, False]  # fmt: skip
    assert not rule.is_static(None)
    with pytest.raises(ValueError, match="scale='total' needs to know how many frames"):
        ask("total", None, 60)


def test_train_horizon_is_the_rules_own_or_the_cards() -> None:
    now = context(21, 240)
    assert np.array_equal(Flex(train_horizon=60).inv_freq(now), Flex().inv_freq(replace(now, train_horizon=60)))
    with pytest.raises(ValueError, match="train_horizon is None, which means the card's, and there is no card"):
        Flex().inv_freq(RotaryContext(44, 1, None, 240))


def test_stale_keys_pile_up() -> None:
    """Keys that keep the S of their own pass come to lie around the 21st frame, and after their query: FLEX's appendix
    A on dynamic position interpolation (arXiv 2602.14027)."""

    def time(frame: int) -> float:
        end = 3 * (frame // 3 + 1)
        return frame * PI(scale="stale").inv_freq(RotaryContext(44, 1, 21, None, end))[0]

    assert time(21) - time(20) == pytest.approx(-1.625)
    assert time(60) - time(59) == pytest.approx(-0.65)
    assert all(18 <= time(frame) <= 21 for frame in range(18, 2000))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Flex(2.5, 2.5), r"alpha=2\.5, beta=2\.5: give 0 <= alpha < beta"),
        (lambda: Flex(-0.1), r"alpha=-0\.1, beta=2\.5: give 0 <= alpha < beta"),
        (lambda: NTKByParts(1, math.inf), "beta=inf: give 0 <= alpha < beta, finite"),
        (lambda: NTKByParts(math.nan, 3), "alpha=nan"),
        (lambda: Yarn(1, 1), "beta_fast=1, beta_slow=1: give 0 < beta_slow < beta_fast"),
        (lambda: Yarn(beta_slow=0), "0 < beta_slow < beta_fast"),
        (lambda: Yarn(scope="all"), "scope='all'; allowed: 'whole', 'time', 'none'"),  # pyright: ignore[reportArgumentType]
        (lambda: DynamicNTK(0), "growth=0: give a finite number above 0"),
        (lambda: DynamicNTK(math.inf), "growth=inf"),
        (lambda: LongRope(()), r"factors=\(\): give a tuple of numbers, one for each temporal plane"),
        (lambda: LongRope([1.0]), "give a tuple"),  # pyright: ignore[reportArgumentType]
        (lambda: LongRope((1.0, 0.0)), r"factors=\(1\.0, 0\.0\): 0\.0 is not finite and above 0"),
        (lambda: LongRope((math.nan,)), "nan is not finite"),
        (lambda: Riflex(0), "k=0: planes are counted from 1"),
        (lambda: Riflex(True), "k=True"),
        (lambda: Riflex(6.0), "k=6.0"),  # pyright: ignore[reportArgumentType]
        (lambda: Riflex(6, 0.0), r"margin=0\.0: give a part of a turn, above 0 and at most 1"),
        (lambda: Riflex(6, 1.1), r"margin=1\.1"),
        (lambda: Lol(1.0), r"sigma=1\.0: give a number in \[0, 1\)"),
        (lambda: Lol(-0.1), r"sigma=-0\.1"),
        (lambda: Lol(math.nan), "sigma=nan"),
        (lambda: Lol(base=4.0), r"sigma=0\.8 takes base=4\.0 down to 0\.8, where .* use sigma < 0\.75"),
        (lambda: Lol(jitter_seed=-1), r"jitter_seed=-1: give a whole number in \[0, 2\^64\)"),
        (lambda: Lol(jitter_seed=2**64), "jitter_seed=18446744073709551616"),
        (lambda: Lol(jitter_seed=True), "jitter_seed=True"),
        (lambda: FlexRope(-1), "slope=-1: give what logits lose a latent frame, at least 0 and finite"),
        (lambda: FlexRope(math.inf), "slope=inf"),
        (lambda: PI(scale="now"), "scale='now'; allowed: 'total', 'current', 'stale', or None"),  # pyright: ignore[reportArgumentType]
        (lambda: PI(train_horizon=0), "train_horizon=0: give a whole number of latent frames, at least 1"),
        (lambda: PI(train_horizon=True), "train_horizon=True"),
        *[(lambda rule=rule: replace(rule, base=1.0), r"base=1\.0: a rotary ladder needs a finite base above 1")
          for rule in (*RULES, Lol(), FlexRope(0.1))],
        (lambda: ROTARY.build("riflex"), "needs a value for k"),
        (lambda: ROTARY.build("ntk_by_parts"), "needs a value for alpha, beta"),
        (lambda: ROTARY.build("flexrope"), "needs a value for slope"),
        (lambda: ROTARY.build({"name": "yarn", "truncate": "no"}), "truncate wants bool, got 'no'"),
    ],
)  # fmt: skip
def test_bad_fields_raise_with_the_range(make, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("horizon", [5, 240])  # within training too: before a long video comes to it
@pytest.mark.parametrize(
    ("rule", "planes", "match"),
    [
        (Riflex(23), 22, "k=23: this model has temporal planes 1 to 22"),
        (LongRope((2.0, 3.0)), 22, "2 factors for 22 temporal planes"),
        (NTK(), 1, r"at least 4 temporal channels a head.*has 2: use pi"),
        (DynamicNTK(), 1, "at least 4 temporal channels"),
    ],
)
def test_what_does_not_fit_a_model_raises_in_any_pass(rule: Rotary, planes: int, match: str, horizon: int) -> None:
    with pytest.raises(ValueError, match=match):
        rule.inv_freq(context(21, horizon, planes))


def test_longrope_sharpens_only_what_was_trained_on_more_than_a_frame() -> None:
    with pytest.raises(ValueError, match=r"train_horizon=1: .*at least 2 frames; or use scope='none'"):
        LongRope(FACTORS).logit_scale(context(1, 5))
    assert LongRope(FACTORS, scope="none").logit_scale(context(1, 5)) == UNSCALED


def test_lists_of_a_file_become_tuples() -> None:
    spec = {"name": "longrope", "factors": [2, 3.5], "scope": "time"}
    assert ROTARY.build(spec) == LongRope((2, 3.5), scope="time")
    assert ROTARY.spec(ROTARY.build(spec)) == spec
