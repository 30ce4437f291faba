"""Figures show what the runs' histories hold, and nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import json
from statistics import fmean
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


ALL = tuple(panel.key for panel in curves.PANELS)


def draw(runs: list[Run], **view: Any) -> go.Figure:
    return curves.curve_figure(runs, view=curves.CurveView(**{"panels": ALL, **view}))


def traces(figure: go.Figure, name: str) -> list[Any]:
    """Those of that name, one for each chart, from the top."""
    return [t for t in figure.data if t.name == name]


def test_every_chart_draws_every_run_as_recorded(runs: list[Run]) -> None:
    figure = draw(runs, show="lines")
    for run in runs:
        lines = traces(figure, f"{charts.ARM_STYLES[run.arm].title}, run {run.seed}")
        assert len(lines) == len(curves.PANELS)
        for panel, line in zip(curves.PANELS, lines, strict=True):
            assert list(line.x) == [row["epoch"] + 1 for row in run.history]
            assert list(line.y) == [row[panel.column] for row in run.history]


def test_mean_line_is_the_mean_over_runs(runs: list[Run]) -> None:
    (line,) = traces(draw(runs, panels=("accuracy",)), "Dendritic")
    first, second = (run for run in runs if run.arm == "dendritic")
    assert list(line.y) == pytest.approx(
        [
            (a["val_accuracy"] + b["val_accuracy"]) / 2
            for a, b in zip(first.history, second.history, strict=True)
        ]
    )


def seed_mean(runs: list[Run], column: str) -> list[float]:
    # A run may stop early: the mean goes as far as all of them do.
    each = zip(*([line[column] for line in run.history] for run in runs), strict=False)
    return [fmean(values) for values in each]


def test_mean_ends_where_the_shortest_run_ends(runs: list[Run]) -> None:
    first, second = (run for run in runs if run.arm == "baseline")
    short = dataclasses.replace(second, history=second.history[:3])
    (line,) = traces(draw([first, short], panels=("loss",)), "Baseline")
    assert list(line.x) == [1, 2, 3]
    assert list(line.y) == seed_mean([first, short], "val_loss")


def test_the_difference_is_run_minus_its_baseline(runs: list[Run]) -> None:
    figure = draw(runs, show="difference")
    assert not traces(figure, "Baseline")
    by_arm = {(run.arm, run.seed): run.history for run in runs}
    for panel, line in zip(curves.PANELS, traces(figure, "Dendritic"), strict=True):
        expected = [
            sum(
                by_arm["dendritic", seed][epoch][panel.column]
                - by_arm["baseline", seed][epoch][panel.column]
                for seed in (0, 1)
            )
            / 2
            for epoch in range(len(line.y))
        ]
        assert list(line.y) == pytest.approx(expected)
    # Until the first dendrite the two are the same run.
    accuracy = traces(figure, "Dendritic")[1]
    assert list(accuracy.y[: GROWTH_EPOCH + 1]) == pytest.approx(
        [0.0] * (GROWTH_EPOCH + 1), abs=1e-9
    )
    with pytest.raises(charts.ChartError, match="choose another view"):
        draw([run for run in runs if run.arm == "baseline"], show="difference")


def test_smoothing_is_a_weighted_mean_of_what_came_before() -> None:
    assert curves.smoothed([1.0, 2.0, 4.0], 0.0) == [1.0, 2.0, 4.0]
    assert curves.smoothed([3.0, 3.0, 3.0], 0.9) == pytest.approx([3.0, 3.0, 3.0])
    assert curves.smoothed([1.0, 3.0], 0.5) == pytest.approx([1.0, (0.5 * 1 + 3) / 1.5])


def test_growth_is_marked_where_it_happened_and_only_there(runs: list[Run]) -> None:
    figure = draw(runs)
    stars = traces(figure, "Dendritic, grown")
    assert len(stars) == len(curves.PANELS)
    for star, mean in zip(stars, traces(figure, "Dendritic"), strict=True):
        # Run 1 kept no dendrite and its history has no event.
        assert list(star.x) == [GROWTH_EPOCH + 1]
        assert list(star.y) == [mean.y[GROWTH_EPOCH]]
        grown = [place for place, said in enumerate(mean.text) if "grew" in said]
        assert grown == [GROWTH_EPOCH]
        assert "run 0 grew dendrite 1" in mean.text[GROWTH_EPOCH]
    assert {t.name for t in figure.data if "grown" in t.name.lower()} == {
        "Dendritic, grown",
        "Grown",
    }


def test_the_epochs_whose_state_was_kept_are_marked_and_said(runs: list[Run]) -> None:
    figure = draw(runs)
    for arm in ARMS:
        title = charts.ARM_STYLES[arm].title
        epochs = {int(run.metrics["best_epoch"]) for run in runs if run.arm == arm}
        for ring, mean in zip(traces(figure, f"{title}, kept"), traces(figure, title), strict=True):
            assert set(ring.x) == {epoch + 1 for epoch in epochs}
            assert {n for n, said in enumerate(mean.text) if "kept this state" in said} == epochs
    assert [t.name for t in figure.data[-2:]] == ["Kept", "Grown"]


def test_no_band_lies_over_a_line(runs: list[Run]) -> None:
    filled = [trace.fill is not None for trace in draw(runs).data]
    assert filled == sorted(filled, reverse=True)
    assert filled[0]


def test_loss_shows_training_beside_validation(runs: list[Run]) -> None:
    baseline = [run for run in runs if run.arm == "baseline"]
    (line,) = traces(draw(runs), "Baseline, training")
    assert list(line.y) == seed_mean(baseline, "train_loss")


def test_one_click_in_the_legend_hides_an_arm_in_all_charts(runs: list[Run]) -> None:
    figure = draw(runs)
    named = [t.name for t in figure.data if t.showlegend and t.legendgroup]
    assert sorted(named) == ["Baseline", "Dendritic", "Matched"]
    for arm in named:
        group = [t for t in figure.data if t.name.split(",")[0] == arm]
        assert {t.legendgroup for t in group} == {arm}
        assert len({t.yaxis for t in group}) == len(curves.PANELS)


def test_all_charts_share_the_axis_that_is_zoomed_and_hovered(runs: list[Run]) -> None:
    figure = draw(runs)
    assert {t.xaxis for t in figure.data} <= {None, "x"}
    assert figure.layout.hoversubplots == "axis"
    assert figure.layout.xaxis.fixedrange is False
    axes = [figure.layout[f"yaxis{n if n > 1 else ''}"] for n in range(1, len(ALL) + 1)]
    ends = [axis.domain for axis in axes]
    assert all(low < high for low, high in ends)
    assert all(upper[0] > lower[1] for upper, lower in itertools.pairwise(ends)), "charts overlap"


def test_arms_keep_their_colour_and_differ_without_it(runs: list[Run]) -> None:
    assert len({style.colour for style in charts.ARM_STYLES.values()}) == len(charts.ARM_STYLES)
    assert len({style.symbol for style in charts.ARM_STYLES.values()}) == len(charts.ARM_STYLES)
    for arm in ARMS:
        style = charts.ARM_STYLES[arm]
        for mean in traces(draw(runs), style.title):
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
    layout = json.loads(draw(runs).to_json())["layout"]
    assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0,0,0,0)"


def test_single_run_is_drawn_as_itself(runs: list[Run]) -> None:
    alone = [run for run in runs if (run.seed, run.arm) == (0, "dendritic")]
    figure = draw(alone, panels=("accuracy",))
    assert [t.name for t in figure.data] == [
        "Dendritic",
        "Dendritic, kept",
        "Dendritic, grown",
        "Kept",
        "Grown",
    ]


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(charts.ChartError, match="choose others"):
        curves.curve_figure([])


def test_runs_of_two_data_sets_are_refused(runs: list[Run]) -> None:
    other = dataclasses.replace(runs[0], dataset="allagree")
    with pytest.raises(charts.ChartError, match="do not belong in one chart"):
        curves.curve_figure([*runs, other])


def test_time_axis_sums_the_seconds(runs: list[Run]) -> None:
    figure = draw(runs, show="lines", x="time", panels=("loss",))
    for run in runs:
        (line,) = traces(figure, f"{charts.ARM_STYLES[run.arm].title}, run {run.seed}")
        seconds = [row["seconds"] for row in run.history]
        assert list(line.x) == pytest.approx([sum(seconds[: n + 1]) for n in range(len(seconds))])


def test_band_goes_from_the_lowest_run_to_the_highest(runs: list[Run]) -> None:
    (band,) = traces(draw(runs, panels=("macro_f1",)), "Matched, lowest to highest run")
    histories = [r.history for r in runs if r.arm == "matched"]
    columns = list(zip(*([row["val_macro_f1"] for row in h] for h in histories), strict=True))
    epochs = len(columns)
    assert list(band.y[:epochs]) == [max(column) for column in columns]
    assert list(band.y[epochs:]) == [min(column) for column in reversed(columns)]
    assert list(band.x[epochs:]) == list(reversed(band.x[:epochs]))


def test_log_switch_leaves_shares_alone(runs: list[Run]) -> None:
    layout = draw(runs, log=True).layout
    kinds = [layout[f"yaxis{n if n > 1 else ''}"].type for n in range(1, len(ALL) + 1)]
    assert dict(zip(ALL, kinds, strict=True)) == {
        "loss": "log",
        "accuracy": None,
        "macro_f1": None,
        "learning_rate": "log",
        "parameters": None,
    }


def test_parameters_jump_where_a_dendrite_is_grown(runs: list[Run]) -> None:
    (line,) = traces(draw(runs, show="lines", panels=("parameters",)), "Dendritic, run 0")
    steps = [after - before for before, after in itertools.pairwise(line.y)]
    assert [index for index, step in enumerate(steps) if step] == [GROWTH_EPOCH]
    assert line.line.shape == "vh"


def test_another_run_laid_over_differs_by_its_dash(runs: list[Run]) -> None:
    first, second = (run for run in runs if run.arm == "dendritic")
    view = curves.CurveView(panels=("accuracy",))
    figure = curves.curve_figure([first], view=view, beside=second)
    (own,), (other,) = traces(figure, "Dendritic"), traces(figure, "Dendritic, overlaid")
    assert (own.line.dash, other.line.dash) == ("solid", "dash")
    assert own.line.color == other.line.color
    assert list(other.y) == [row["val_accuracy"] for row in second.history]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"show": "all"}, "choose of"),
        ({"x": "steps"}, "choose of"),
        ({"smoothing": 1.0}, "is not in 0"),
        ({"panels": ()}, "at least one"),
    ],
)
def test_unknown_views_are_refused(bad: dict[str, Any], reason: str) -> None:
    with pytest.raises(charts.ChartError, match=reason):
        curves.CurveView(**bad)
