"""Cost and reliability charts show what leaderboard.json holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finsent.config import BACKBONE_TITLES
from finsent.data.agreement import agreement_levels
from finsent.plots import board as board_charts
from finsent.plots.style import ChartError
from finsent.results import leaderboard, metrics
from finsent.results.runs import find_runs
from tests.artifact_factory import make_artifacts


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifacts(
        tmp_path_factory.mktemp("board"),
        backbones=("tiny-phi",),
        datasets=("50agree",),
        publish=False,
    )


@pytest.fixture(scope="module")
def board(root: Path) -> dict[str, Any]:
    return leaderboard.build(root)


def named(figure: Any, name: str) -> Any:
    (trace,) = [trace for trace in figure.data if trace.name == name]
    return trace


@pytest.mark.parametrize("cost", board_charts.COSTS, ids=lambda cost: cost.key)
def test_points_whiskers_and_runs_are_the_boards(board: dict[str, Any], cost: Any) -> None:
    figure, frontier = board_charts.pareto_figure(board["arms"], board["rows"], cost)
    title = BACKBONE_TITLES["tiny-phi"]
    for arm in board["arms"]:
        point = named(figure, f"{title}, {arm['arm']}")
        y = arm["mean"]["macro_f1"]
        assert (point.x[0], point.y[0]) == (arm["mean"][cost.key], y)
        low, high = arm["ci"]["macro_f1"]
        assert (y - point.error_y.arrayminus[0], y + point.error_y.array[0]) == pytest.approx(
            (low, high)
        )
        assert point.error_x.array[0] == (arm["sd"][cost.key] or 0.0)
        runs = named(figure, f"{title}, {arm['arm']}, runs")
        rows = [row for row in board["rows"] if row["arm"] == arm["arm"]]
        assert list(runs.y) == [row["macro_f1"] for row in rows]
    # The chart numbers what is on the frontier, and nothing else.
    numbers = [note.text for note in figure.layout.annotations]
    assert numbers == [f"<b>{n}</b>" for n in range(1, len(frontier) + 1)]
    assert len(named(figure, "best for their cost (Pareto frontier)").x) == len(frontier) > 0


def test_a_model_of_others_is_drawn_under_its_own_name(board: dict[str, Any]) -> None:
    other = {**board["arms"][0], "backbone": "someone/model", "arm": "external"}
    figure, _ = board_charts.pareto_figure([other], [], board_charts.COSTS[0])
    assert named(figure, "someone/model").y[0] == other["mean"]["macro_f1"]


def test_selective_answering_is_drawn_for_every_model() -> None:
    shares = board_charts.SHARES
    found = {("a", "baseline"): [1.0] * len(shares), ("b", "baseline"): [0.5] * len(shares)}
    figure = board_charts.selective_figure(found)
    assert [list(t.y) for t in figure.data] == list(found.values())
    assert len({t.line.dash for t in figure.data}) == 2, "two base models in one colour"
    with pytest.raises(ChartError):
        board_charts.selective_figure({})


def test_selective_accuracy_by_hand() -> None:
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.45, 0.55]])
    labels = [0, 1, 1, 1]
    assert metrics.selective(labels, p, [0.25, 0.5, 0.75, 1.0]).tolist() == [1, 1, 2 / 3, 0.75]
    assert metrics.selective(labels, p, [0.01]).tolist() == [1.0]
    assert (
        metrics.selective(labels, p, [1.0])[0] == metrics.score(labels, p, ("a", "b"))["accuracy"]
    )
    with pytest.raises(metrics.EvaluationError, match="shares"):
        metrics.selective(labels, p, [0.0])


def test_front_keeps_what_nothing_beats() -> None:
    assert board_charts.pareto_front([(1, 0.5), (2, 0.7), (3, 0.6), (2, 0.6)]) == [0, 1]
    # Equals do not beat each other.
    assert board_charts.pareto_front([(1, 0.5), (1, 0.5)]) == [0, 1]


def test_a_cost_nobody_recorded_is_an_error(board: dict[str, Any]) -> None:
    arms = [{**arm, "mean": {**arm["mean"], "peak_memory_mb": None}} for arm in board["arms"]]
    with pytest.raises(ChartError, match="peak memory in training"):
        board_charts.pareto_figure(arms, [], board_charts.COSTS[2])
    with pytest.raises(ChartError):
        board_charts.reliability_figure([])


def test_reliability_lines_and_bars(board: dict[str, Any]) -> None:
    figure = board_charts.reliability_figure(board["arms"])
    for arm in board["arms"]:
        title = board_charts.ARM_STYLES[arm["arm"]].title
        bins = arm["reliability"]
        assert list(named(figure, title).y) == [entry["accuracy"] for entry in bins]
        assert list(named(figure, f"{title}, answers").y) == [entry["n"] for entry in bins]
        assert sum(entry["n"] for entry in bins) == arm["n_test"]


def test_reliability_by_hand() -> None:
    p = np.array([[0.95, 0.05], [0.97, 0.03], [0.65, 0.35], [0.5, 0.5]])
    found = metrics.reliability([0, 1, 0, 0], p)
    assert [(round(e["low"], 1), round(e["high"], 1), e["n"]) for e in found] == [
        (0.4, 0.5, 1),
        (0.6, 0.7, 1),
        (0.9, 1.0, 2),
    ]
    assert [e["accuracy"] for e in found] == [1.0, 1.0, 0.5]
    assert found[-1]["confidence"] == pytest.approx(0.96)


def test_a_band_holds_the_sentences_of_its_level(board: dict[str, Any], root: Path) -> None:
    levels = agreement_levels()
    for arm in board["arms"]:
        runs = [run.read_predictions() for run in find_runs(root) if run.arm == arm["arm"]]
        for band in arm["by_agreement"]:
            shares = []
            for read in runs:
                right = [
                    read.label_names[row.index(max(row))] == label
                    for name, label, row in zip(
                        read.ids, read.labels, read.probabilities, strict=True
                    )
                    if levels[name] == band["level"]
                ]
                shares.append(sum(right) / len(right))
            assert band["accuracy"] == pytest.approx(np.mean(shares))


def test_scores_by_agreement_are_those_of_the_band(board: dict[str, Any]) -> None:
    for arm in board["arms"]:
        bands = arm["by_agreement"]
        assert sum(band["n_test"] for band in bands) == arm["n_test"]
        assert all(
            band["ci"]["accuracy"][0] <= band["accuracy"] <= band["ci"]["accuracy"][1]
            for band in bands
        )
        rows = [row for row in board["rows"] if row["arm"] == arm["arm"]]
        assert (
            np.array(arm["confusion"]).tolist()
            == sum(np.array(row["confusion"]) for row in rows).tolist()
        )
        for name, entry in arm["per_class"].items():
            f1 = [row["per_class"][name]["f1"] for row in rows]
            assert entry["f1"] == pytest.approx(np.mean(f1))
            assert entry["f1_sd"] == pytest.approx(np.std(f1, ddof=1))
