"""Plots of noise priors: closed forms, drawn noise, and pictures that show them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import pytest
from command import Ran, ran
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import CARD as SMALL

from arvid.models.specs import card
from arvid.models.weights import BUNDLED, load_card
from arvid.noise import (
    ANS,
    IID,
    NOISE,
    Constant,
    FreeNoise,
    Grouped,
    Key,
    Mixed,
    NoisePrior,
    Progressive,
    Repeat,
)
from arvid.plots.noise import OMEGA, Stream, figure, table
from arvid.registry import BY_BASE

CARD = card("self_forcing")
FREE = FreeNoise(train_horizon=21, chunk=3)
LATE = ANS(-0.5, apply_to="renoise")
PRIORS = [IID(), ANS(), ANS(-0.5), ANS(0.5, "stream"), FREE, Repeat(), Constant(), Grouped(), Mixed(a=2.0),
          Progressive(), LATE]  # fmt: skip
COLUMNS = ["configuration", "motion within", "motion across", "power at 0", "power at pi", "r within", "r across",
           "r chunk before", "applies to", "random access"]  # fmt: skip


def streams(*priors: NoisePrior, chunk: int = 3, frames: int = 120, seed: int = 0) -> list[Stream]:
    return [Stream(f"{i}", prior, chunk, frames, seed) for i, prior in enumerate(priors)]


def cells(text: str) -> list[dict[str, str]]:
    """The lines of a table, by column."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("configuration"))
    assert re.split("  +", lines[start]) == COLUMNS
    return [dict(zip(COLUMNS, re.split("  +", line), strict=True)) for line in lines[start + 1 :]]


def curves(drawing: Any, panel: int, gid: str) -> list[np.ndarray]:
    return [np.asarray(line.get_ydata(), float) for line in drawing.axes[panel].lines if line.get_gid() == gid]


def starts(axes: Any, gid: str | None = None) -> tuple[list[float], list[float]]:
    """Where the lines of a kind start: their x, and their y."""
    lines = [line for line in axes.lines if gid is None or line.get_gid() == gid]
    return [line.get_xdata()[0] for line in lines], [line.get_ydata()[0] for line in lines]


def matrices(drawing: Any) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in drawing.axes if axes.images]


# The table


def test_a_table_has_the_closed_forms() -> None:
    """AR(1) in a chunk of 3: motion 2 (1 - rho), power 1 + (4 rho + 2 rho^2) / 3 at 0 and, with -rho, at pi."""
    lines = cells(table(streams(*PRIORS), CARD))
    assert [line["configuration"] for line in lines] == [f"{i}" for i in range(len(PRIORS))]
    g = 2 / 5**0.5
    within = [0, -1, -0.5, 0.5, 0, 0, 1, 0.5, 0.8, g, -0.5]
    across = [0, 0, 0, 0.5, 0, 0, 1, 0, 0.8, g, 0]
    before = [0, 0, 0, 0.125, 0, 1, 1, 0, 0.8, g**3, 0]
    far = [rho if isinstance(prior, Mixed | Grouped) else rho**2 for prior, rho in zip(PRIORS, within, strict=True)]
    expected = {
        "r within": within, "r across": across, "r chunk before": before,
        "motion within": [2 * (1 - rho) for rho in within], "motion across": [2 * (1 - rho) for rho in across],
        "power at 0": [1 + (4 * rho + 2 * two) / 3 for rho, two in zip(within, far, strict=True)],
        "power at pi": [1 + (-4 * rho + 2 * two) / 3 for rho, two in zip(within, far, strict=True)],
    }  # fmt: skip
    for column, values in expected.items():
        np.testing.assert_allclose([float(line[column]) for line in lines], values, rtol=5e-3, err_msg=column)
        assert not any(line[column].startswith("-0") and float(line[column]) == 0 for line in lines)
    assert [line["applies to"] for line in lines] == ["initial"] * 10 + ["renoise"]
    assert [line["random access"] for line in lines] == [*["yes"] * 3, "no", *["yes"] * 5, "no", "yes"]


def test_motion_is_a_mean_and_a_correlation_that_varies_is_a_range() -> None:
    """Groups of 3 and chunks of 2, over 42 frames: every third of the 41 neighbours is in two groups, 7 of the 21
    within a chunk and 6 of the 20 across; no frame is in the group of the one two before but each third."""
    (line,) = cells(table(streams(Grouped(3, 0.8), chunk=2), CARD))
    assert (line["r within"], line["r across"], line["r chunk before"]) == ("0 to 0.8",) * 3
    assert float(line["motion within"]) == pytest.approx(2 - 1.6 * 14 / 21, rel=5e-3)
    assert float(line["motion across"]) == pytest.approx(2 - 1.6 * 14 / 20, rel=5e-3)


@pytest.mark.parametrize("seed", [0, 7])
def test_the_seed_is_that_of_the_order(seed: int) -> None:
    """With a horizon of one chunk the frames of a chunk are those of the one before: which, the draws show."""
    (stream,) = streams(replace(FREE, train_horizon=3), frames=12, seed=seed)
    (c,) = matrices(figure([stream], CARD))
    z = np.concatenate([stream.noise.draw(Key(seed), [*range(at.start, at.start + 3)], at, (16,))
                        for at in stream.chunks(CARD)])  # fmt: skip
    same = (z[:, None] == z).all(-1)
    np.testing.assert_array_equal(c, same)
    (line,) = cells(table([stream], CARD))
    assert float(line["motion across"]) == pytest.approx(2 * (1 - same.diagonal(1)[2::3].mean()), rel=5e-3)


def test_seeds_differ() -> None:
    one, other = (matrices(figure(streams(FREE, seed=seed), CARD))[0] for seed in (0, 1))
    assert not np.array_equal(one, other)
    first, *_ = table(streams(FREE, seed=1), CARD).splitlines()
    assert first == f"0: {FREE}, chunk=3, 120 latent frames (30 s), here the first 42, seed 1"


def test_chunks_of_one_frame_and_videos_of_one_have_no_neighbours_there() -> None:
    dash = dict.fromkeys(("motion within", "r within"), "-")
    (line,) = cells(table(streams(ANS(), chunk=1), CARD))
    assert line.items() >= {**dash, "motion across": "2", "r across": "0", "r chunk before": "0", "power at 0": "1",
                            "power at pi": "1"}.items()  # fmt: skip
    (line,) = cells(table(streams(ANS(0.5, "stream"), chunk=1), CARD))
    assert line.items() >= {**dash, "motion across": "1", "r across": "0.5", "r chunk before": "0.5"}.items()
    (line,) = cells(table(streams(ANS(), frames=1), CARD))
    assert line.items() >= {**dash, "motion across": "-", "r across": "-", "r chunk before": "-", "power at 0": "1",
                            "power at pi": "1"}.items()  # fmt: skip
    (line,) = cells(table(streams(ANS(), frames=2), CARD))  # a chunk of two
    assert line.items() >= {"motion within": "4", "r within": "-1", "motion across": "-", "power at 0": "0",
                            "power at pi": "2"}.items()  # fmt: skip
    (line,) = cells(table(streams(Progressive(a=1e6)), CARD))
    assert line["motion within"] == "0"  # from 1 - 5e-13, which is not told from rounding
    (line,) = cells(table(streams(Repeat(), frames=4), CARD))  # a second of one
    assert line.items() >= {"motion across": "2", "r chunk before": "1"}.items()


def test_the_head_names_priors_lengths_and_where_all_power_lies() -> None:
    lines = table(streams(ANS(), ANS(1.0), ANS(-1.0, "stream"), Constant(), IID(), frames=9), CARD).splitlines()
    assert lines[0] == f"0: {ANS()}, chunk=3, 9 latent frames (2.25 s), seed 0"
    assert [line for line in lines if "density" in line] == [
        "0: within a chunk each frame is minus the one before: all power lies at omega = pi, which has no density",
        "1: within a chunk each frame is the one before: all power lies at omega = 0, which has no density",
        "2: each frame is minus the one before: all power lies at omega = pi, which has no density",
        "3: each frame is the one before: all power lies at omega = 0, which has no density",
    ]


@pytest.mark.parametrize(("chunk", "frames", "expected"), [
    (3, 120, [3] * 14), (3, 20, [3] * 6 + [2]), (4, 120, [4] * 11), (21, 120, [21] * 2), (60, 200, [60] * 2),
    (7, 3, [3]), (1, 10**9, [1] * 42),
])  # fmt: skip
def test_two_horizons_are_shown_and_at_least_two_chunks(chunk: int, frames: int, expected: list[int]) -> None:
    (stream,) = streams(IID(), chunk=chunk, frames=frames)
    assert [at.n for at in stream.chunks(CARD)] == expected
    assert [at.start for at in stream.chunks(CARD)] == [sum(expected[:i]) for i in range(len(expected))]


# The picture


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
def test_curves_are_the_power_of_drawn_noise(prior: NoisePrior) -> None:
    """Fourier transforms of drawn frames, within six standard errors: |Z|^2 of a Gaussian Z varies by at most
    sqrt(2) of its mean."""
    (stream,), count = streams(prior, seed=5), 1024
    drawing = figure([stream], CARD)
    key, chunks = Key(5, 1 if prior is LATE else 0), stream.chunks(CARD)
    z = np.concatenate([prior.draw(key, range(at.start, at.start + at.n), at, (count,)) for at in chunks])
    for panel, frames in ((0, 3), (1, 42)):
        found = (np.abs(np.fft.rfft(z[:frames], 2 * (len(OMEGA) - 1), axis=0)) ** 2).mean(1) / frames
        (power,), (motion,) = (curves(drawing, at, "power") for at in (panel, panel + 2))
        assert (np.abs(found - power) <= 6 * (2 / count) ** 0.5 * power + 1e-9).all()
        np.testing.assert_allclose(motion, 4 * np.sin(OMEGA / 2) ** 2 * power, rtol=1e-9, atol=1e-12)


@settings(max_examples=10)
@given(st.floats(-1, 1) | st.sampled_from([-1.0, 0.0, 1.0]), st.integers(1, 5), st.integers(1, 12))
def test_the_mean_of_the_motion_density_is_the_energy_of_differences(rho: float, chunk: int, frames: int) -> None:
    """Parseval, with zeros before and after: 2 + 2 (f - 1)(1 - rho) over f frames (FLEX, eq. 14, and the ends)."""
    drawing = figure(streams(ANS(rho, "stream"), chunk=chunk, frames=frames), SMALL)
    shown = min(frames, chunk * max(2, -(-12 // chunk)))
    for panel, f in ((2, min(chunk, frames)), (3, shown)):
        (motion,) = curves(drawing, panel, "power")
        np.testing.assert_allclose(np.trapezoid(motion, OMEGA) / np.pi, (2 + 2 * (f - 1) * (1 - rho)) / f, atol=1e-9)


def test_closed_forms_are_thin_lines_where_there_is_one() -> None:
    drawing = figure(streams(*PRIORS), CARD)
    rho = np.array([0, -0.5, 0.5, 2 / 5**0.5, -0.5])[:, None]
    expected = (1 - rho**2) / (1 + rho**2 - 2 * rho * np.cos(OMEGA))
    for panel in range(4):
        factor = 1 if panel < 2 else 2 - 2 * np.cos(OMEGA)
        np.testing.assert_allclose(curves(drawing, panel, "closed"), factor * expected, rtol=1e-9, atol=1e-12)
        low, high = drawing.axes[panel].get_ylim()
        assert high < 60  # not that of the highest closed form
        assert low in (0, 0.01)
    (stream,) = streams(Progressive(a=30.0))
    assert np.max(curves(figure([stream], CARD), 0, "closed")) > 1000
    assert figure([stream], CARD).axes[0].get_ylim()[1] < 4


def test_a_point_mass_is_marked_and_its_spectrum_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ANS, "spectrum", lambda *_: pytest.fail("there is no density"))
    for prior, marks in {ANS(-1.0): ([np.pi], []), ANS(1.0, "stream"): ([0], [0]), Constant(): ([0], [0]),
                         ANS(-1.0, "stream"): ([np.pi], [np.pi]), Progressive(a=1e9): ([0], [0])}.items():  # fmt: skip
        drawing = figure(streams(prior), CARD)
        assert [starts(axes, "point")[0] for axes in drawing.axes[:4]] == [*marks, [], []]
        assert not any(curves(drawing, panel, "closed") for panel in range(4))
        assert "all power at this frequency" in [text.get_text() for text in drawing.legends[0].get_texts()]
    monkeypatch.undo()
    drawing = figure(streams(Mixed(), Repeat(), FREE, IID(), ANS(-0.999)), CARD)
    assert not any(curves(drawing, panel, "point") for panel in range(4))
    for chunk, frames in ((1, 120), (3, 1)):  # where no neighbours are seen, the refusal of the prior counts
        drawing = figure(streams(ANS(), chunk=chunk, frames=frames), CARD)
        assert not any(curves(drawing, 0, gid) for gid in ("closed", "point"))


def test_matrices_are_covariances_with_borders_of_chunks() -> None:
    drawing = figure(streams(ANS(-0.5), FREE, LATE, frames=60), CARD)
    apart = np.abs(np.subtract.outer(np.arange(42), np.arange(42)))
    together = np.equal.outer(np.arange(42) // 3, np.arange(42) // 3)
    ans, free, late = matrices(drawing)
    np.testing.assert_allclose(ans, np.where(together, (-0.5) ** apart, 0.0), atol=1e-12)
    np.testing.assert_allclose(late, ans, atol=1e-12)
    np.testing.assert_array_equal(free[:21, :21], np.eye(21))
    again = free[21:, :21]  # each frame once, in the chunk that lies a horizon before
    assert set(again.ravel()) == {0, 1}
    assert (again.sum(0) == 1).all()
    assert (again.sum(1) == 1).all()
    assert not again[~together[:21, :21]].any()
    fields = [axes for axes in drawing.axes if axes.images]
    for axes in fields:
        assert axes.images[0].get_clim() == (-1, 1)
        borders = [*np.arange(3, 42, 3) - 0.5]
        assert starts(axes) == ([x for at in borders for x in (0, at)], [y for at in borders for y in (at, 0)])
    assert [axes.get_title() for axes in fields] == [
        "0\nANS(rho=-0.5, scope='chunk')", "1\nFreeNoise(train_horizon=21, chunk=3)",
        "2\nANS(apply_to='renoise', rho=-0.5,\nscope='chunk')",
    ]  # fmt: skip


def test_what_is_written_says_what_is_drawn() -> None:
    drawing = figure([Stream("_a", IID(), 3, 120), Stream("$b$", ANS(), 4, 240, 7)], CARD)
    assert [axes.get_title() for axes in drawing.axes[:4]] == [
        "power, a chunk", "power, first 42, 44 frames", "motion, a chunk", "motion, first 42, 44 frames"]  # fmt: skip
    assert [text.get_text() for text in drawing.legends[0].get_texts()] == [
        "_a: IID", "$b$: ANS(rho=-1.0, scope='chunk')", "closed form, of a recursion that never starts anew",
        "all power at this frequency",
    ]  # fmt: skip
    texts = [*drawing.legends[0].get_texts(), *(axes.title for axes in drawing.axes if axes.images)]
    assert not any(text.get_parse_math() for text in texts)
    assert drawing.get_suptitle() == ("card 'self_forcing', trained on 21 latent frames (5.25 s); videos of 120 latent "
                                      "frames (30 s), 240 latent frames (60 s); seed 0, seed 7")  # fmt: skip


@pytest.mark.parametrize("count", [1, 4, 11])
def test_names_do_not_overlap(count: int) -> None:
    """However long they are; `$` is a letter like any other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    long = [Stream("my_long_configuration_$x_of_the_19th.toml", prior, 3, 120) for prior in (FREE, *PRIORS)[:count]]
    drawing = figure(long, CARD)
    FigureCanvasAgg(drawing).draw()
    titles = [axes.title for axes in drawing.axes if axes.get_title()]
    boxes = [text.get_window_extent() for text in (*titles, *drawing.legends[0].get_texts())]
    assert len(boxes) >= 4 + 2 * count
    assert all(drawing.bbox.x0 <= box.x0 and box.x1 <= drawing.bbox.x1 for box in boxes)
    assert not [(one, other) for i, one in enumerate(boxes) for other in boxes[:i] if one.overlaps(other)]
    assert sum(bool(axes.images) for axes in drawing.axes) == count
    assert sum(axes.get_visible() for axes in drawing.axes) == 4 + count + 1  # with the bar of colours


def test_a_picture_of_a_frame_or_of_chunks_of_one_can_be_drawn(tmp_path: Path) -> None:
    figure(streams(*PRIORS[:4], frames=1), CARD).savefig(tmp_path / "a.png")
    (power,) = curves(figure(streams(FREE, frames=1), CARD), 1, "power")
    np.testing.assert_allclose(power, 1, rtol=1e-12)
    drawing = figure(streams(replace(FREE, chunk=1), chunk=1), CARD)
    drawing.savefig(tmp_path / "b.png")
    np.testing.assert_array_equal(matrices(drawing)[0], np.eye(42) + np.eye(42, k=21) + np.eye(42, k=-21))


# Priors of others


@dataclass(frozen=True)
class Loud(NoisePrior):
    """Noise of growing variance, each frame of correlation 0.25 with every other, which says so itself."""

    step: float = 1.0

    def recipe(self, frame: int, chunk: Any, key: Key) -> Any:
        raise AssertionError("draw and covariance are overridden")

    def draw(self, key: Key, frames: Sequence[int], chunk: Any, shape: Sequence[int]) -> Any:
        raise AssertionError("a plot draws nothing")

    def covariance(self, frames: Sequence[int], chunks: Any = None, seed: int = 0, kind: int = 0) -> Any:
        size = 1 + self.step * np.asarray(frames, float)
        return np.outer(size, size) * (0.25 + 0.75 * np.eye(len(size)))


def test_a_prior_of_its_own_covariance_is_shown() -> None:
    drawing = figure(streams(Loud(), frames=6), CARD)
    power = (1 + 4 + 9 + 0.5 * (8 * np.cos(OMEGA) + 3 * np.cos(2 * OMEGA))) / 3
    np.testing.assert_allclose(curves(drawing, 0, "power")[0], power, rtol=1e-12)
    assert [c.max() for c in matrices(drawing)] == [36]
    assert cast(Any, drawing.axes[4].images[0]).colorbar.extend == "both"
    assert cast(Any, figure(streams(ANS()), CARD).axes[4].images[0]).colorbar.extend == "neither"
    (line,) = cells(table(streams(Loud(), frames=6), CARD))
    assert line["motion within"] == f"{(5 + 13 + 41 + 61 - 0.5 * (2 + 6 + 20 + 30)) / 4:.3g}"
    assert line["motion across"] == "19"
    assert (line["r within"], line["random access"]) == ("0.25", "no")


# The command

PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar
import arvid
from arvid.noise import Domain, NoisePrior

@arvid.NOISE.register("pairs")
@dataclass(frozen=True)
class Pairs(NoisePrior):
    """Every second frame is the one before, turned round."""

    turn: float = -1.0
    random_access: ClassVar[bool] = True

    def recipe(self, frame, chunk, key):
        return {(Domain.BASE, frame - frame % 2): self.turn ** (frame % 2)}
'''


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """`arvid plot noise`, in a folder with configurations."""
    monkeypatch.chdir(tmp_path)
    Path("ans.toml").write_text('[noise]\nname = "ans"\nrho = -0.5\n')
    Path("free.toml").write_text('chunk = 7\nnoise = "freenoise"\n')
    Path("pairs.toml").write_text('chunk = 4\nnoise = "pairs"\n')
    Path("pairs.py").write_text(PLUGIN)

    def call(*argv: str) -> Ran:
        return ran(capsys, "plot", "noise", *argv)

    with patch.dict(NOISE._classes), patch.dict(BY_BASE):
        yield call


def test_configurations_by_position_are_compared(run: Any) -> None:
    own, ans = load_card(BUNDLED), ANS(-0.5)
    free = FreeNoise(train_horizon=21, chunk=7)
    for argv, shown in {
        (): [Stream(own.name, IID(), 3, 120)],
        ("ans.toml",): [Stream("ans.toml", ans, 3, 120)],
        ("ans.toml", "free.toml"): [Stream("ans.toml", ans, 3, 120), Stream("free.toml", free, 7, 119)],
        ("free.toml", "--frames", "50", "--seed", "7"): [Stream("free.toml", free, 7, 50, 7)],
        ("--set", "noise.apply_to=all", "ans.toml", "flex", "--seed", "-1", "--seconds", "60"): [
            Stream("ans.toml", replace(ans, apply_to="all"), 3, 240, -1),
            Stream("flex", ANS(apply_to="all"), 3, 240, -1)],
    }.items():  # fmt: skip
        done = run(*argv)
        assert (done.status, done.out, done.err) == (0, table(shown, own) + "\n", "")
    assert run("free.toml", "--seed", "7").out != run("free.toml").out == run("free.toml", "--seed", "0").out


def test_a_prior_of_the_users_is_shown(run: Any) -> None:
    done = run("pairs.toml", "--use", "pairs.py")
    (line,) = cells(done.out)
    assert (done.status, done.err) == (0, "")
    assert line == dict(zip(COLUMNS, ("pairs.toml", "3.33", "2", "0", "2", "-1 to 0", "0", "0", "initial", "yes"),
                            strict=True))  # fmt: skip


def test_a_picture_on_the_command_line(run: Any, tmp_path: Path) -> None:
    done = run("ans.toml", "free.toml", "pairs.toml", "--use", "pairs.py", "-o", "a.png")
    assert (done.status, done.out, done.err) == (0, "a.png\n", "")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("argv", "message"), [
    (("ans.toml", "none.toml"), "arvid: there is no file none.toml\n"),
    (("none.toml", "-o", "a.pdf"), "cannot save 'a.pdf'"),
    (("ans.toml", "flexx"), "did you mean 'flex'?"),
    (("ans.toml", "--set", "noise.rho=2.0"), "rho=2.0: the correlation of neighbouring frames lies in [-1, 1]"),
    (("self_forcing", "--set", "noise.rho=-0.5"), "noise 'iid' has no field 'rho'"),
    (("free.toml", "--set", "chunk=4"), "train_horizon=21 is no multiple of chunk=4"),
    (("pairs.toml",), "no noise strategy is called 'pairs'"),
    (("ans.toml", "--seed", "x"), "invalid int value: 'x'"),
    (("ans.toml", "--seed", "99999999999999999999"), "arvid: seed=99999999999999999999 is outside"),
    (("ans.toml", "--all"), "unrecognized arguments: --all"),
])  # fmt: skip
def test_mistakes_are_one_message_and_exit_status_2(run: Any, argv: tuple[str, ...], message: str) -> None:
    done = run(*argv)
    assert (done.status, done.out) == (2, "")
    assert message in done.err


def test_a_seed_is_for_noise_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("cache", "rotary"):
        done = ran(capsys, "plot", kind, "--seed", "1")
        assert done.status == 2
        assert "unrecognized arguments: --seed" in done.err
