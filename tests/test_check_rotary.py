"""`check_rotary` passes what is right, and names what is wrong: rules that break a promise, and rotations that do.
`inv_freq` gives what a rule gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

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
from arvid.positional.base import LogitScale
from arvid.positional.scaled import Scaled
from arvid.testing import check_rotary, inv_freq

FACTORS = tuple(1 + m / 7 for m in range(22))


@dataclass(frozen=True)
class Halved(Rotary):
    """A rule as a plugin may have it: no base, no declaration, no word of training."""

    by: float = 2.0

    def inv_freq(self, context):
        return np.full((context.heads, context.dim // 2), 1 / self.by)


@dataclass(frozen=True)
class OfTheLength(Scaled):
    """A rule of its own making: a slower clock for a longer video, even a short one."""

    def inv_freq(self, context):
        return self.ladder(context) / (1 + self.factor(context))


@pytest.mark.parametrize(
    "rule",
    [Rope(), Rope(300.0), PI(), PI(scale="total"), PI(scale="current"), PI(scale="stale"), PI(train_horizon=240), NTK(),
     DynamicNTK(3.0), NTKByParts(0, 15), Flex(), Flex(1, 15, scale="stale"), Yarn(), Yarn(truncate=False, scope="time"),
     Yarn(scope="none", train_horizon=21), Riflex(6), Riflex(22, 1.0), LongRope(FACTORS),
     LongRope((0.5,) * 22, scope="none"), Lol(), Lol(0), FlexRope(0.1), FlexRope(0), Halved(), OfTheLength()],
    ids=str,
)  # fmt: skip
def test_what_is_right_passes(rule: Rotary) -> None:
    check_rotary(rule)


@settings(max_examples=15)
@given(st.integers(2, 40), st.integers(1, 4), st.integers(2, 1500), st.floats(0, 3), st.floats(0.01, 9), st.data())
def test_rules_with_any_fields_pass(
    planes: int, heads: int, trained: int, low: float, more: float, data: st.DataObject
) -> None:
    factors = tuple(data.draw(st.lists(st.floats(0.5, 8), min_size=planes, max_size=planes)))
    rules = (PI(), NTK(), DynamicNTK(more), NTKByParts(low, low + more), Yarn(low + more, more / 2), LongRope(factors),
             Riflex(data.draw(st.integers(1, planes))), Lol(low / 4), FlexRope(low))  # fmt: skip
    rule, scale = data.draw(st.sampled_from(rules)), data.draw(st.sampled_from([None, "total", "current", "stale"]))
    own = replace(rule, scale=scale) if isinstance(rule, Scaled) else rule
    check_rotary(own, planes=planes, heads=heads, train_horizon=trained)


def test_every_registered_rule_has_its_declarations_right() -> None:
    """Those of arvid itself say all that is true of them."""
    needed = {"ntk_by_parts": {"alpha": 1, "beta": 15}, "longrope": {"factors": FACTORS}, "riflex": {"k": 6},
              "flexrope": {"slope": 0.1}}  # fmt: skip
    said = {}
    for name in ROTARY.names():
        cls = ROTARY.get(name)
        if cls.__module__.startswith("arvid."):
            check_rotary(cls(**needed.get(name, {})))
            said[name] = (cls.identity_within_train, cls.monotone)
    both = ("rope", "pi", "ntk", "dynamic_ntk", "ntk_by_parts", "flex", "yarn", "riflex")
    assert said == {
        **dict.fromkeys(both, (True, True)), "longrope": (True, False), "lol": (False, True), "flexrope": (False, True)
    }  # fmt: skip


def broken(base: type[Rotary] = Rope, **changed: Any) -> Rotary:
    """`base` with other declarations, and with methods that are given what the right one gives first."""

    def wrap(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Rotary, *given: Any) -> Any:
            return change(getattr(base, name)(self, *given), *given)

        return method

    members = {name: wrap(name, value) if callable(value) else value for name, value in changed.items()}
    return type("Broken", (base,), members)()


def counted(change: Callable[[Any, int], Any]) -> Callable[..., Any]:
    calls = []

    def changing(found: Any, *given: Any) -> Any:
        calls.append(1)
        return change(found, len(calls))

    return changing


def table(freq: np.ndarray, context: Any) -> np.ndarray:
    return freq * np.ones(1024)[context.end - 1]


def scribbled(freq: np.ndarray, context: Any) -> np.ndarray:
    object.__setattr__(context, "horizon", 3)
    return freq


def moved(bias: None, queries: np.ndarray, keys: np.ndarray) -> None:
    keys -= 1


def age(bias: None, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    return 0.1 * (keys - queries[:, None])


@dataclass(frozen=True)
class Idle(Flex):
    """A field that nothing reads."""

    gamma: float = 0.5


@dataclass(frozen=True)
class Total(PI):
    """Reads the horizon whatever `scale` says."""

    identity_within_train: ClassVar[bool] = False

    def factor(self, context):
        return max(1.0, (context.horizon or 2 * context.end) / self.trained(context))


@ROTARY.register("doubling_of_the_rotary_check")
@dataclass(frozen=True)
class Doubling(Rope):
    """Changes what it was given."""

    base: float = 100.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", 2 * self.base)


@pytest.mark.parametrize(
    ("rule", "match"),
    [
        (broken(inv_freq=lambda f, c: f.astype(np.float32)), r"inv_freq is a float64 array.*ndarray of float32, \(2"),
        (broken(inv_freq=lambda f, c: f[1:]), r"inv_freq is a float64 array, \[planes\] or .*float64, \(21,\) for Rot"),
        (broken(inv_freq=lambda f, c: np.stack([f, f])), r"inv_freq is a float64 array.*\(2, 22\)"),
        (broken(inv_freq=lambda f, c: f.tolist()), "inv_freq is a float64 array.*: list of None"),
        (broken(inv_freq=lambda f, c: f * np.nan), "frequencies are finite and above 0: not so: .*nan"),
        (broken(inv_freq=lambda f, c: f * (f > 0.1)), "frequencies are finite and above 0"),
        (broken(inv_freq=lambda f, c: -f), "frequencies are finite and above 0"),
        (broken(logit_scale=lambda s, c: LogitScale(0.0)), "logit_scale is finite and above 0"),
        (broken(logit_scale=lambda s, c: LogitScale(1.0, np.inf)), "logit_scale is finite and above 0"),
        (broken(inv_freq=counted(lambda f, n: f / n)), r"a rule is pure: not so: first \[.*, then \["),
        (broken(logit_scale=counted(lambda s, n: LogitScale(1 + n))), "a rule is pure: not so: first .*e=2.*e=3"),
        (broken(bias=counted(lambda b, n: np.full((6, 6), n))), "a rule is pure: not so: bias gave first"),
        (broken(inv_freq=scribbled), "a rule leaves the context as it is: not so: it is now .*horizon=3"),
        (broken(inv_freq=table), "a rule answers for videos of any length: not so for .*end=1025.*IndexError"),
        (broken(inv_freq=lambda f, c: f * 0.9 ** (c.end > 1024)),
         "frames 1023 to 1025 are like others: .* by 0.1 of itself from a length of 1024 to 1025"),
        (broken(bias=moved), "bias leaves the times as they are"),
        (broken(bias=lambda b, q, k: np.zeros((1, 6))), r"bias is None or finite, \[queries, keys\]"),
        (broken(bias=lambda b, q, k: np.full((6, 6), -np.inf)), "bias is None or finite"),
        (broken(bias=lambda b, q, k: 0.1 * k - 0 * q[:, None]), "bias depends on differences of times only: .*off by"),
        (broken(bias=age), "identity_within_train: not so: logits are biased by up to 2 within 21 frames"),
        (broken(PI, logit_scale=lambda s, c: LogitScale(1.1)), "identity_within_train: not so: .*whole=1.1.*expected"),
        (broken(inv_freq=lambda f, c: f * (1 + 1e-15)), r"identity_within_train: not so: .*expected \["),
        (broken(Lol, identity_within_train=True), "identity_within_train"),
        (broken(PI, inv_freq=lambda f, c: f + (c.end > 500)), "monotone: .* at 126 frames, .* at 1023"),
        (broken(inv_freq=lambda f, c: f / max(1, c.end / 21)),
         "is_static: all passes are alike: not so: .* at the pass that ends at 1, .* at 22, of 22 frames"),
        (broken(logit_scale=lambda s, c: LogitScale(1 + c.end), identity_within_train=False),
         "is_static: all passes are alike: not so: .*whole=2.* at the pass that ends at 1, "),
        (broken(inv_freq=lambda f, c: f if c.horizon else f / max(1, c.end / 21)),
         "is_static: all passes are alike: .* of any number of frames"),
        (Total(), "current at the end is total: not so: .*, expected .* at 21 frames"),
        (Idle(), r"every field has an effect: not so: gamma has none on angles.*: 0\.5 gives what \[0\.51, "),
        (Doubling(), r"a rule comes back from its spec: not so: Doubling\(.*base=400.*expected Doubling\(base=200"),
    ],
)  # fmt: skip
def test_a_broken_promise_is_named(rule: Rotary, match: str) -> None:
    with pytest.raises(AssertionError, match=match):
        check_rotary(rule)


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("rotate", lambda y, *_: y * 1.001, "rotation keeps lengths: not so: off by"),
        ("time_angles", lambda y, *_: y.float().double(), "scores depend on differences of times only"),
        ("time_angles", lambda y, *_: y.square(), "scores depend on differences of times only"),
        ("time_angles", lambda y, *_: y.clamp(max=50), "scores depend on differences of times only"),
        ("token_angles", lambda y, *_: y + y[..., :1], "time turns no plane of space"),
        ("token_angles", lambda y, *_: y + y[..., -1:], "nor space one of time"),
    ],
)
def test_a_mistaken_rotation_is_found(monkeypatch: pytest.MonkeyPatch, name: str, change, match: str) -> None:
    from arvid.testing import rotary

    right = getattr(rotary, name)
    monkeypatch.setattr(rotary, name, lambda *given: change(right(*given), *given))
    with pytest.raises(AssertionError, match=match):
        check_rotary(Rope())


def test_declarations_are_what_is_held_against_a_rule() -> None:
    """What declares nothing may do as it likes."""
    check_rotary(broken(PI, inv_freq=lambda f, c: f * 1.5, identity_within_train=False))
    check_rotary(broken(bias=age, identity_within_train=False))
    check_rotary(broken(inv_freq=lambda f, c: f * (1.5 if c.end > 500 else 1), identity_within_train=False,
                        monotone=False, is_static=lambda s, h: False))  # fmt: skip


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ((lambda: check_rotary("rope")), "'rope' is no frequency rule: give an instance of a frozen dataclass"),  # pyright: ignore[reportArgumentType]
        ((lambda: check_rotary(type("Bare", (Rotary,), {"inv_freq": lambda self, now: None})())), "no frequency rule"),
        ((lambda: check_rotary(Riflex(6), planes=5)), "k=6: this model has temporal planes 1 to 5"),
        ((lambda: check_rotary(LongRope((1.0,)))), "1 factors for 22 temporal planes"),
        ((lambda: check_rotary(Rope(), heads=0)), "heads=0: give a whole number, at least 1"),
    ],
)
def test_what_cannot_be_asked_is_refused(given, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        given()


def test_the_check_leaves_no_trace() -> None:
    """Random numbers of its caller are its caller's."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    check_rotary(Flex())
    assert torch.equal(torch.get_rng_state(), before)


class Remembering(Rope):
    calls: ClassVar[list] = []

    def inv_freq(self, context):
        self.calls.append((context.end, context.horizon, context.train_horizon))
        return super().inv_freq(context)


def test_long_short_streamed_and_known_videos_are_asked_about() -> None:
    check_rotary(Remembering())
    asked = set(Remembering.calls)
    assert {(n, n, 21) for n in (1, 21, 22, 1023, 1024, 1025, 10**6)} <= asked
    assert {(n, None, 21) for n in (1, 21, 22, 1023, 1024, 1025, 10**6)} <= asked
    assert (1, 10**6, 21) in asked


@settings(max_examples=15)
@given(st.integers(2, 40), st.integers(1, 300), st.integers(1, 4000))
def test_inv_freq_takes_names_dicts_and_instances(planes: int, trained: int, horizon: int) -> None:
    rule = Flex(0.2)
    expected = rule.inv_freq(RotaryContext(2 * planes, 1, trained, horizon, horizon))
    spec = {"name": "flex", "alpha": 0.2}
    for found in (inv_freq(rule, planes, trained, horizon), inv_freq(spec, planes, trained, horizon),
                  inv_freq(spec, planes, trained, end=horizon)):  # fmt: skip
        assert found.dtype == np.float64
        assert np.array_equal(found, expected)
    assert np.array_equal(inv_freq("pi", planes, trained), inv_freq("rope", planes, trained))
    assert inv_freq("lol", planes, trained, heads=3).shape == (3, planes)
    assume(horizon > trained)
    assert not np.array_equal(inv_freq(spec, planes, trained, horizon), inv_freq("rope", planes, trained))


@pytest.mark.parametrize(
    ("numbers", "match"),
    [
        ((0, 21), "planes=0: give a whole number, at least 1"),
        ((22, 0), "train_horizon=0"),
        ((22, 21, 0), "horizon=0"),
        ((22, 21, 120, 0), "heads=0"),
        ((22, 21, 120, 1, 0), "end=0"),
        ((22, 21.0), r"train_horizon=21\.0"),
    ],
)
def test_inv_freq_refuses_what_is_no_model(numbers: tuple, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        inv_freq("flex", *numbers)


def test_inv_freq_knows_registered_names_only() -> None:
    with pytest.raises(ValueError, match=r"no rotary strategy is called 'flx'; did you mean 'flex'"):
        inv_freq("flx", 22, 21)
