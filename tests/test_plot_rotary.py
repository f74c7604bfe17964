"""Plots of frequency rules: exposures and frequencies in closed form, and pictures that show them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Ran, ran
from random_model import CARD as SMALL

from arvid.models.specs import card
from arvid.models.weights import BUNDLED, load_card
from arvid.plots.rotary import Rule, figure, table
from arvid.positional import NTK, PI, Flex, Lol, Riflex, Rope

CARD = card("self_forcing")
PLAIN = 10000 ** (-np.arange(22) / 22)
FOUR = [Rule("rope", Rope(), 120), Rule("my.toml", PI(), 120), Rule("flex", Flex(), 240), Rule("lol", Lol(), 120)]


def cells(text: str) -> tuple[list[str], list[list[str]]]:
    """The header and the cells of a table."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("plane"))
    return re.split("  +", lines[start]), [line.split() for line in lines[start + 1 :]]


def test_a_table_has_turns_and_frequencies_in_closed_form() -> None:
    header, lines = cells(table(FOUR, CARD))
    assert header == ["plane", "period", "training", "rope", "x rope", "my.toml", "x rope", "flex", "x rope", "lol",
                      "x rope"]  # fmt: skip
    assert [line[0] for line in lines] == [str(plane) for plane in range(22)]
    columns = np.array([[float(cell) for cell in line[:7]] for line in lines]).T
    turns = PLAIN / (2 * np.pi)
    expected = [np.arange(22), 1 / turns, 21 * turns, 120 * turns, np.ones(22), 21 * turns, np.full(22, 21 / 120)]
    np.testing.assert_allclose(columns, expected, rtol=5e-3)


def test_flex_keeps_one_plane_blends_eight_and_divides_the_rest() -> None:
    """The published numbers for 120 frames of a model trained on 21."""
    _, lines = cells(table([Rule("flex", Flex(), 120)], CARD))
    ratios = [line[4] for line in lines]
    assert ratios[:9] == ["1", "0.897", "0.638", "0.468", "0.356", "0.282", "0.234", "0.202", "0.181"]
    assert ratios[9:] == ["0.175"] * 13


def test_heads_that_differ_are_a_range() -> None:
    freq = Rule("lol", Lol(), 120).freq(CARD)
    assert freq.shape == (12, 22)
    _, lines = cells(table([Rule("lol", Lol(), 120)], CARD))
    assert lines[0][4] == "1"
    for plane, line in enumerate(lines[1:], 1):
        low, high = map(float, line[4].split("-"))
        assert low == pytest.approx(freq[:, plane].min() / PLAIN[plane], rel=5e-3)
        assert high == pytest.approx(freq[:, plane].max() / PLAIN[plane], rel=5e-3)
        assert low < high


@pytest.mark.parametrize("rule", [PI, Flex, NTK])
def test_a_scale_that_grows_is_shown_where_it_ends(rule: Any) -> None:
    total, current = (Rule("a", rule(scale=scale), 120).freq(CARD) for scale in ("total", "current"))
    np.testing.assert_array_equal(total, current)


def test_the_head_of_a_table_names_the_rules_their_lengths_and_the_card() -> None:
    lines = table(FOUR, CARD).splitlines()
    assert lines[0] == "rope: Rope(base=10000.0), 120 latent frames (30 s)"
    assert lines[2].startswith("flex: Flex(")
    assert lines[2].endswith("240 latent frames (60 s)")
    assert "card 'self_forcing', trained on 21 latent frames (5.25 s)" in lines[4]


def test_a_rule_that_does_not_fit_raises() -> None:
    for show in (table, figure):
        with pytest.raises(ValueError, match="k=23"):
            show([Rule("riflex", Riflex(k=23), 120)], CARD)


def test_a_picture_has_a_line_or_a_band_for_each_rule() -> None:
    drawing = figure(FOUR, CARD)
    exposure, ratio, *panels = drawing.axes
    # Training, and the one rule whose heads differ; rope, pi and flex, and one turn.
    assert (len(exposure.collections), len(exposure.lines)) == (2, 4)
    assert (len(ratio.collections), len(ratio.lines)) == (1, 3)
    assert [axes.get_title() for axes in panels] == ["plane 0", "plane 3", "plane 9", "plane 21"]
    turns = {line.get_label(): np.asarray(line.get_ydata()) for line in exposure.lines}
    np.testing.assert_allclose(turns["rope"], 120 * PLAIN / (2 * np.pi), rtol=1e-12)
    np.testing.assert_allclose(turns["my.toml: PI"], 21 * PLAIN / (2 * np.pi), rtol=1e-12)
    np.testing.assert_allclose(np.asarray(ratio.lines[1].get_ydata()), 21 / 120, rtol=1e-12)
    for axes, plane in zip(panels, (0, 3, 9, 21), strict=True):
        rope, _, flex = axes.lines[:3]
        np.testing.assert_allclose(np.asarray(rope.get_ydata()), np.arange(1, 121) * PLAIN[plane] / (2 * np.pi))
        assert len(np.asarray(flex.get_xdata())) == 240
    named = [text.get_text() for text in drawing.legends[0].get_texts()]
    assert sorted(named) == ["flex", "lol", "my.toml: PI", "rope", "training"]
    assert drawing.get_suptitle() == ("card 'self_forcing', trained on 21 latent frames (5.25 s); videos of 120 latent "
                                      "frames (30 s), 240 latent frames (60 s)")  # fmt: skip


def test_a_picture_of_few_planes_or_one_frame_can_be_drawn(tmp_path: Path) -> None:
    assert len(cells(table([Rule("rope", Rope(), 1)], SMALL))[1]) == 2
    figure([Rule("rope", Rope(), 1)], SMALL).savefig(tmp_path / "a.png")
    figure([Rule(f"{i}", Rope(), 9) for i in range(12)], SMALL).savefig(tmp_path / "b.png")


# The command


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`arvid plot rotary`, in a folder with two configurations."""
    monkeypatch.chdir(tmp_path)
    Path("pi.toml").write_text('rotary = "pi"\n')
    Path("slow.toml").write_text('chunk = 7\n[rotary]\nname = "ntk"\n')

    def call(*argv: str) -> Ran:
        return ran(capsys, "plot", "rotary", *argv)

    return call


def test_configurations_by_position_are_compared(run: Any) -> None:
    own = load_card(BUNDLED)
    pi, ntk = PI(train_horizon=21), NTK(train_horizon=21)
    slower = [Rule("slow.toml", replace(ntk, base=500.0), 240), Rule("pi.toml", replace(pi, base=500.0), 240)]
    for argv, rules in {
        (): [Rule(own.name, Rope(), 120)],
        ("pi.toml",): [Rule("pi.toml", pi, 120)],
        ("pi.toml", "slow.toml"): [Rule("pi.toml", pi, 120), Rule("slow.toml", ntk, 119)],  # whole chunks of each
        ("pi.toml", "slow.toml", "--frames", "50"): [Rule("pi.toml", pi, 50), Rule("slow.toml", ntk, 50)],
        ("--seconds", "60", "slow.toml", "pi.toml", "--set", "chunk=3", "--set", "rotary.base=500.0"): slower,
    }.items():  # fmt: skip
        done = run(*argv)
        assert (done.status, done.out, done.err) == (0, table(rules, own) + "\n", "")


def test_a_picture_on_the_command_line(run: Any, tmp_path: Path) -> None:
    done = run("pi.toml", "slow.toml", "-o", "a.png")
    assert (done.status, done.out, done.err) == (0, "a.png\n", "")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("argv", "message"), [
    (("pi.toml", "none.toml"), "arvid: there is no file none.toml\n"),
    (("none.toml", "-o", "a.pdf"), "cannot save 'a.pdf'"),
    (("pi.toml", "flexx"), "did you mean 'flex'?"),
    (("pi.toml", "--set", "rotary.k=3"), "no field 'k'"),
    (("pi.toml", "--all"), "unrecognized arguments: --all"),
])  # fmt: skip
def test_mistakes_are_one_message_and_exit_status_2(run: Any, argv: tuple[str, ...], message: str) -> None:
    done = run(*argv)
    assert (done.status, done.out) == (2, "")
    assert message in done.err
