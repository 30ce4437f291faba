"""Figures show what the runs' histories hold, and nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from finsent.config import ARMS
from finsent.plots import curves
from finsent.plots import style as charts
from finsent.results.runs import Run, find_runs
from tests.artifact_factory import GROWTH_EPOCH, make_artifacts


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    root = make_artifacts(
        tmp_path_factory.mktemp("charts"),
        backbones=("tiny-phi",),
        datasets=("sample",),
        seeds=(0, 1),
        without_dendrites=(1,),
        publish=False,
    )
    return find_runs(root)


def trace(figure: go.Figure, name: str) -> Any:
    found = [t for t in figure.data if t.name == name]
    assert len(found) == 1, [t.name for t in figure.data]
    return found[0]


def test_every_panel_draws_every_run_as_recorded(runs: list[Run]) -> None:
    figures = curves.curve_figures(runs)
    assert set(figures) == {"loss", "accuracy", "macro_f1", "learning_rate", "parameters"}
    for panel in curves.PANELS:
        for run in runs:
            style = charts.ARM_STYLES[run.arm]
            line = trace(figures[panel.key], f"{style.title}, seed {run.seed}")
            assert list(line.x) == [row["epoch"] for row in run.history]
            assert list(line.y) == [row[panel.column] for row in run.history]


def test_mean_line_is_the_mean_over_seeds(runs: list[Run]) -> None:
    figure = curves.curve_figures(runs)["accuracy"]
    of_arm = [run for run in runs if run.arm == "dendritic"]
    line = trace(figure, "Dendritic, mean of 2 seeds")
    expected = [
        (a["val_accuracy"] + b["val_accuracy"]) / 2
        for a, b in zip(of_arm[0].history, of_arm[1].history, strict=True)
    ]
    assert list(line.y) == pytest.approx(expected)


def test_mean_ends_where_the_shortest_seed_ends(runs: list[Run]) -> None:
    first, second = (run for run in runs if run.arm == "baseline")
    short = dataclasses.replace(second, history=second.history[:3])
    epochs, values = curves.seed_mean([first, short], "val_loss")
    assert epochs == [0, 1, 2]
    assert len(values) == 3


def test_growth_is_marked_where_it_happened_and_only_there(runs: list[Run]) -> None:
    for figure in curves.curve_figures(runs).values():
        stars = trace(figure, "Dendritic, growth")
        # Seed 1 kept no dendrite and its history has no event.
        assert list(stars.x) == [GROWTH_EPOCH]
        assert stars.text[0].startswith("seed 0")
        assert not [t for t in figure.data if t.name in ("Baseline, growth", "Matched, growth")]


def test_growth_stays_on_the_mean_line_when_seeds_are_hidden(runs: list[Run]) -> None:
    figure = curves.curve_figures(runs, view=curves.CurveView(seeds="mean"))["loss"]
    mean, stars = trace(figure, "Dendritic, mean of 2 seeds"), trace(figure, "Dendritic, growth")
    assert list(stars.y) == [mean.y[GROWTH_EPOCH]]
    assert not [t for t in figure.data if t.name == "Dendritic, seed 0"]


def test_loss_shows_training_beside_validation(runs: list[Run]) -> None:
    figure = curves.curve_figures(runs)["loss"]
    baseline = [run for run in runs if run.arm == "baseline"]
    assert (
        list(trace(figure, "Baseline, training").y) == curves.seed_mean(baseline, "train_loss")[1]
    )


def test_arms_keep_their_colour_and_differ_without_it(runs: list[Run]) -> None:
    assert len({style.colour for style in charts.ARM_STYLES.values()}) == len(charts.ARM_STYLES)
    assert len({style.symbol for style in charts.ARM_STYLES.values()}) == len(charts.ARM_STYLES)
    for figure in curves.curve_figures(runs).values():
        for arm in ARMS:
            style = charts.ARM_STYLES[arm]
            mean = trace(figure, f"{style.title}, mean of 2 seeds")
            assert (mean.line.color, mean.marker.symbol) == (style.colour, style.symbol)


@pytest.mark.parametrize("background", ["#faf9f6", "#131518", "#ffffff", "#1a1d21"])
@pytest.mark.parametrize("arm", charts.ARM_STYLES)
def test_arm_colours_stand_out_on_both_pages(arm: str, background: str) -> None:
    """WCAG 2.1, 1.4.11: graphical objects need 3:1."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    bright, dark = sorted((luminance(charts.ARM_STYLES[arm].colour), luminance(background)))[::-1]
    assert (bright + 0.05) / (dark + 0.05) >= 3


def test_figures_have_no_background_of_their_own(runs: list[Run]) -> None:
    for figure in curves.curve_figures(runs).values():
        layout = json.loads(figure.to_json())["layout"]
        assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0,0,0,0)"


def test_single_seed_is_drawn_as_itself(runs: list[Run]) -> None:
    alone = [run for run in runs if run.seed == 0]
    figure = curves.curve_figures(alone, arms=["dendritic"])["accuracy"]
    assert [t.name for t in figure.data] == ["Dendritic, seed 0", "Dendritic, growth"]


def test_nothing_to_draw_is_an_error(runs: list[Run]) -> None:
    with pytest.raises(charts.ChartError, match="choose others"):
        curves.curve_figures(runs, arms=[])


def test_runs_of_two_data_sets_are_refused(runs: list[Run], tmp_path: Path) -> None:
    other = dataclasses.replace(runs[0], dataset="allagree")
    with pytest.raises(charts.ChartError, match="do not belong in one chart"):
        curves.curve_figures([*runs, other])


def test_time_axis_sums_the_seconds(runs: list[Run]) -> None:
    figure = curves.curve_figures(runs, view=curves.CurveView(x="time"))["loss"]
    for run in runs:
        line = trace(figure, f"{charts.ARM_STYLES[run.arm].title}, seed {run.seed}")
        seconds = [row["seconds"] for row in run.history]
        assert list(line.x) == pytest.approx([sum(seconds[: n + 1]) for n in range(len(seconds))])
    grown = next(r for r in runs if r.arm == "dendritic" and r.seed == 0)
    stars = trace(figure, "Dendritic, growth")
    assert list(stars.x) == [curves.elapsed_seconds(grown)[GROWTH_EPOCH]]


def test_band_goes_from_the_lowest_seed_to_the_highest(runs: list[Run]) -> None:
    figure = curves.curve_figures(runs, view=curves.CurveView(seeds="band"))["macro_f1"]
    band = trace(figure, "Matched, lowest to highest seed")
    histories = [r.history for r in runs if r.arm == "matched"]
    columns = list(zip(*([row["val_macro_f1"] for row in h] for h in histories), strict=True))
    epochs = len(columns)
    assert list(band.y[:epochs]) == [max(column) for column in columns]
    assert list(band.y[epochs:]) == [min(column) for column in reversed(columns)]
    assert list(band.x[epochs:]) == list(reversed(band.x[:epochs]))


def test_log_switch_leaves_shares_alone(runs: list[Run]) -> None:
    figures = curves.curve_figures(runs, view=curves.CurveView(log=True))
    kinds = {key: figure.layout.yaxis.type for key, figure in figures.items()}
    assert kinds == {
        "loss": "log",
        "accuracy": None,
        "macro_f1": None,
        "learning_rate": "log",
        "parameters": None,
    }


def test_parameters_jump_where_a_dendrite_is_grown(runs: list[Run]) -> None:
    line = trace(curves.curve_figures(runs)["parameters"], "Dendritic, seed 0")
    steps = [after - before for before, after in itertools.pairwise(line.y)]
    assert [index for index, step in enumerate(steps) if step] == [GROWTH_EPOCH]
    assert line.line.shape == "vh"


def test_two_runs_of_one_arm_differ_by_their_dash(runs: list[Run]) -> None:
    first, second = (run for run in runs if run.arm == "dendritic")
    figure = curves.overlay_figures(first, second)["accuracy"]
    a, b = trace(figure, "A, seed 0"), trace(figure, "B, seed 1")
    assert (a.line.dash, b.line.dash) == ("solid", "dash")
    assert a.line.color == b.line.color
    assert list(b.y) == [row["val_accuracy"] for row in second.history]


def test_unknown_views_are_refused() -> None:
    for bad in ({"seeds": "all"}, {"x": "steps"}):
        with pytest.raises(charts.ChartError, match="choose of"):
            curves.CurveView(**bad)
