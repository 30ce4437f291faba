"""The PNG figures: honest words and axes, the same bytes every time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from finsent.plots import png_figures
from finsent.results import leaderboard, runs
from tests.artifact_factory import make_artifacts


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifacts(
        tmp_path_factory.mktemp("figures") / "artifacts",
        backbones=("tiny-phi",),
        datasets=("sample",),
        without_dendrites=(1,),
    )


@pytest.fixture
def board(root: Path) -> dict[str, Any]:
    return leaderboard.build(root)


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def test_same_runs_same_bytes(root: Path) -> None:
    first = {path.name: path.read_bytes() for path in png_figures.make_figures(root)}
    again = {path.name: path.read_bytes() for path in png_figures.make_figures(root)}
    assert first == again
    assert set(first) == {"Accuracy_Improvement.png", "Dendrite_vs_Baseline_Training.png"}
    for content in first.values():
        assert content.startswith(b"\x89PNG")
        assert b"Matplotlib" not in content


@pytest.mark.parametrize(
    ("outcome", "title"),
    [("tied", "No significant"), ("better", "significantly more"), ("worse", "significantly less")],
)
def test_title_says_what_the_test_found(board: dict[str, Any], outcome: str, title: str) -> None:
    for pair in board["comparisons"]:
        pair["outcome"] = outcome
    text = words(png_figures.accuracy_figure(board))
    assert title in text
    assert ("Tied:" if outcome == "tied" else f"Dendritic is {outcome}:") in text


def test_title_counts_several_settings(board: dict[str, Any]) -> None:
    for key in ("arms", "rows", "comparisons"):
        board[key] += [{**entry, "dataset": "other"} for entry in board[key]]
    for pair in board["comparisons"]:
        pair["outcome"] = "tied"
    text = words(png_figures.accuracy_figure(board))
    assert "better in 0, tied in 2, worse in 0 of 2 settings" in text


def test_one_arm_claims_nothing(board: dict[str, Any]) -> None:
    board["arms"] = [arm for arm in board["arms"] if arm["arm"] == "baseline"]
    board["comparisons"] = []
    text = words(png_figures.accuracy_figure(board))
    assert "Test accuracy by arm" in text
    assert "No pair of baseline and dendritic runs" in text


def test_cut_axis_is_marked(board: dict[str, Any]) -> None:
    figure = png_figures.accuracy_figure(board)
    (start, end) = figure.axes[0].get_xlim()
    assert start > 0
    assert end == 1
    assert f"axis starts at {start:.0%}" in words(figure)
    board["rows"][0]["accuracy"] = 0.0
    assert "axis starts" not in words(png_figures.accuracy_figure(board))


def test_every_seed_is_drawn_even_when_equal(board: dict[str, Any]) -> None:
    for row in board["rows"]:
        row["accuracy"] = 0.9
    axes = png_figures.accuracy_figure(board).axes[0]
    points = [np.asarray(line.get_xydata()) for line in axes.lines]
    marks = {tuple(xy[0].tolist()) for xy in points if len(xy) == 1}
    assert len([mark for mark in marks if mark[0] == 0.9]) >= 9


def test_run_without_dendrite_is_marked(root: Path, board: dict[str, Any]) -> None:
    assert "No dendrite kept in 1 of 3" in words(png_figures.accuracy_figure(board))
    assert "No dendrite kept in 1 of 3" in words(png_figures.training_figure(runs.find_runs(root)))


def test_growth_is_starred(root: Path) -> None:
    figure = png_figures.training_figure(runs.find_runs(root))
    stars = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
    assert [np.asarray(line.get_xdata())[0] for line in stars] == [4, 4]


def test_growth_that_paid_is_counted(root: Path) -> None:
    found = [run for run in runs.find_runs(root) if run.seed != 1]
    nll = {(run.arm, run.seed): run.metrics["validation"]["nll"] for run in found}
    paid = sum(nll["dendritic", seed] < nll["baseline", seed] for seed in {r.seed for r in found})
    assert f"Best validation loss below the baseline's in {paid} of 2" in words(
        png_figures.training_figure(found)
    )
    baseline = [run for run in found if run.arm == "baseline"]
    assert "Growth lowered" not in words(png_figures.training_figure(baseline))


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(png_figures.FigureError, match="no finished runs"):
        png_figures.make_figures(tmp_path)


def test_pyplot_is_not_used() -> None:
    code = "import sys, finsent.plots.png_figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
