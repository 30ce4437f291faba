"""The two PNG figures of the runs: accuracy by arm, and training with and without dendrites.

Arms are coloured as in the app's charts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    MultipleLocator,
    NullLocator,
)

from finsent.config import ARMS
from finsent.machine.files import write_bytes_atomically
from finsent.plots.png_style import (
    ALARM,
    INK,
    MARKERS,
    SOFT,
    STYLE,
    bare,
    footer,
    headline,
    margins,
    panel_title,
    png,
    side_note,
)
from finsent.plots.style import ARM_STYLES
from finsent.results import leaderboard
from finsent.results.comparison import p_in_words
from finsent.results.external.rows import without_entrants
from finsent.results.runs import Run, find_runs

ACCURACY_FIGURE = "Accuracy_Improvement.png"
TRAINING_FIGURE = "Dendrite_vs_Baseline_Training.png"

_OFFSET, _STACK = 0.33, 0.15
"""How far below an arm's mean its seeds are drawn, and equal seeds below each other, in rows."""


class FigureError(ValueError):
    """There is nothing to draw."""


def make_figures(root: Path | str) -> list[Path]:
    """Writes root/figures/{Accuracy_Improvement,Dendrite_vs_Baseline_Training}.png.

    Returns the two paths; refresh the manifest afterwards. The same runs give the same bytes.
    Raises FigureError when root holds no finished run, ArtifactError for a damaged one.
    """
    root = Path(root)
    runs = find_runs(root)
    if not runs:
        raise FigureError(f"{root}: no finished runs to draw; train something first")
    board = without_entrants(leaderboard.build(root))
    with mpl.rc_context(STYLE):
        figures = {
            ACCURACY_FIGURE: accuracy_figure(board),
            TRAINING_FIGURE: training_figure(runs),
        }
        paths = []
        for name, figure in figures.items():
            path = root / "figures" / name
            write_bytes_atomically(path, png(figure))
            paths.append(path)
    return paths


def accuracy_figure(board: dict[str, Any]) -> Figure:
    """Test accuracy of every arm: mean over seeds, pooled 95 % interval, each seed as a dot.

    board: as `leaderboard.build` returns it. All panels share one axis, whose start is written
    under it when it is not zero.
    """
    places = _places(board["arms"])
    columns = min(2, len(places))
    rows = math.ceil(len(places) / columns)
    height = 1.65 + 2.35 * rows
    figure = Figure(figsize=(5.5 * columns if columns > 1 else 7.0, height), facecolor="white")
    grid = figure.subplots(rows, columns, squeeze=False)
    margins(figure, height, left=1.05, right=0.75, top=1.42, bottom=1.05, hspace=0.62, wspace=0.4)
    start = _axis_start(board)
    for number, axes in enumerate(grid.flat):
        if number < len(places):
            _accuracy_panel(axes, board, places[number], start)
            if number + columns >= len(places):
                note = "" if start == 0 else f" (axis starts at {start:.0%})"
                axes.set_xlabel(f"Test accuracy{note}", labelpad=5, fontsize=8)
        else:
            axes.set_visible(False)
    headline(figure, height, _finding(board["comparisons"]), _seeds_text(board["arms"]))
    crossed = any(arm["seeds_without_dendrites"] for arm in board["arms"])
    footer(
        figure,
        height,
        "Large mark: mean over seeds. Bar: 95% bootstrap interval over test sentences. "
        "Small marks: single seeds.\n"
        "Better, worse or tied: exact paired test of dendritic against baseline at p < 0.05."
        f"{' Cross: no dendrite kept.' if crossed else ''}",
    )
    return figure


def training_figure(runs: Sequence[Run]) -> Figure:
    """Validation loss and accuracy by epoch: seeds thin, mean over seeds thick, growth starred.

    runs: at least one; a row of two panels for each backbone and data set.
    """
    groups = [
        (place, list(members))
        for place, members in groupby(runs, key=lambda run: (run.backbone, run.dataset))
    ]
    height = 1.5 + 2.75 * len(groups)
    figure = Figure(figsize=(10.4, height), facecolor="white")
    grid = figure.subplots(len(groups), 2, squeeze=False)
    margins(figure, height, left=0.72, right=0.3, top=1.36, bottom=0.98, hspace=0.52, wspace=0.17)
    for (left, right), (place, members) in zip(grid, groups, strict=True):
        draw_curves(left, members, "val_loss")
        draw_curves(right, members, "val_accuracy")
        style_loss(left)
        right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        panel_title(left, _name(place), "Validation loss, nats, log scale (lower is better)")
        panel_title(right, "", "Validation accuracy (higher is better)")
        side_note(right, *_growth_text(members))
    for axes in grid[-1]:
        axes.set_xlabel("Epochs completed", labelpad=5, fontsize=8)
    headline(figure, height, "Training with and without dendrites", "")
    arms = [arm for arm in ARMS if any(run.arm == arm for run in runs)]
    _training_legend(figure, height, arms)
    footer(
        figure,
        height,
        "Thin lines: single seeds. Thick lines: mean over seeds. No vertical axis starts at "
        "zero.\nUntil the first dendrite grows, the dendritic run is the baseline run, step for "
        "step.",
    )
    return figure


# ---------------------------------------------------------------------------- panels


def _accuracy_panel(
    axes: Axes, board: dict[str, Any], place: tuple[str, str], start: float
) -> None:
    arms = [arm for name in ARMS for arm in board["arms"] if _at(arm, place) and arm["arm"] == name]
    for row, arm in enumerate(arms):
        style, marker = ARM_STYLES[arm["arm"]], MARKERS[arm["arm"]]
        mean, (low, high) = arm["mean"]["accuracy"], arm["ci"]["accuracy"]
        axes.plot([low, high], [row, row], color=style.colour, lw=2.4, alpha=0.42, zorder=2)
        axes.plot(mean, row, marker, color=style.colour, ms=8.5, mec="white", mew=1.1, zorder=4)
        below = row + _OFFSET
        drawn: Counter[float] = Counter()
        for line in board["rows"]:
            if _at(line, place) and line["arm"] == arm["arm"]:
                accuracy = line["accuracy"]
                empty = line["seed"] in arm["seeds_without_dendrites"]
                axes.plot(
                    accuracy,
                    below + _STACK * drawn[accuracy],
                    "x" if empty else marker,
                    ms=4.4 if empty else 3.6,
                    mfc=style.colour,
                    mec=ALARM if empty else "white",
                    mew=1.3 if empty else 0.4,
                    zorder=3,
                )
                drawn[accuracy] += 1
        axes.text(
            1.03,
            row,
            f"{mean:.1%}",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=9,
            fontweight="bold",
            color=style.colour,
        )
    axes.set_yticks(range(len(arms)), [ARM_STYLES[arm["arm"]].title for arm in arms])
    axes.tick_params(axis="y", length=0, pad=8, labelsize=9, labelcolor=INK)
    axes.set_ylim(len(arms) - 1 + 0.85, -0.4)
    axes.set_xlim(start, 1.0)
    axes.xaxis.set_major_locator(MultipleLocator(0.05 if start >= 0.7 else 0.1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    bare(axes, grid_axis="x")
    axes.spines["left"].set_visible(False)
    panel_title(axes, _name(place), _panel_verdict(board["comparisons"], place))
    empty_seeds = {seed for arm in arms for seed in arm["seeds_without_dendrites"]}
    if empty_seeds:
        promised = max(len(arm["seeds"]) for arm in arms if arm["seeds_without_dendrites"])
        side_note(axes, ALARM, f"No dendrite kept in {len(empty_seeds)} of {promised} runs")


def style_loss(axes: Axes) -> None:
    """A logarithmic axis with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def draw_curves(axes: Axes, runs: Sequence[Run], column: str) -> None:
    """A column of the history by epochs completed: seeds thin, means thick, growth starred."""
    for layer, name in enumerate(("matched", "baseline", "dendritic")):
        arm = [run for run in runs if run.arm == name]
        if not arm:
            continue
        colour = ARM_STYLES[name].colour
        for run in arm:
            values = [line[column] for line in run.history]
            epochs = range(1, len(values) + 1)
            axes.plot(epochs, values, color=colour, lw=0.8, alpha=0.5, zorder=2 + layer)
            for epoch in leaderboard.growth_epochs(run.history):
                axes.plot(
                    epoch + 1,
                    values[epoch],
                    "*",
                    color=colour,
                    ms=9,
                    mec="white",
                    mew=0.7,
                    zorder=9,
                )
        shortest = min(len(run.history) for run in arm)
        means = [fmean(run.history[i][column] for run in arm) for i in range(shortest)]
        # The baseline's line is wider, so it frames the dendritic one where the two coincide.
        width = 3.4 if name == "baseline" else 1.7
        axes.plot(range(1, shortest + 1), means, color=colour, lw=width, zorder=5 + layer)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.margins(x=0.02, y=0.08)
    bare(axes, grid_axis="y")


# ----------------------------------------------------------------------------- words


def _finding(comparisons: Sequence[dict[str, Any]]) -> str:
    outcomes = [c["outcome"] for c in comparisons if (c["a"], c["b"]) == ("baseline", "dendritic")]
    if not outcomes:
        return "Test accuracy by arm"
    if len(outcomes) == 1:
        return {
            "tied": "No significant difference between dendritic and baseline",
            "better": "Dendritic is significantly more accurate than baseline",
            "worse": "Dendritic is significantly less accurate than baseline",
        }[outcomes[0]]
    counts = [f"{name} in {outcomes.count(name)}" for name in ("better", "tied", "worse")]
    return f"Dendritic against baseline: {', '.join(counts)} of {len(outcomes)} settings"


def _panel_verdict(comparisons: Sequence[dict[str, Any]], place: tuple[str, str]) -> str:
    for pair in comparisons:
        if _at(pair, place) and (pair["a"], pair["b"]) == ("baseline", "dendritic"):
            opening = "Tied" if pair["outcome"] == "tied" else f"Dendritic is {pair['outcome']}"
            low, high = pair["accuracy_ci_points"]
            numbers = (
                f"{pair['accuracy_delta_points']:+.1f} points (95% CI {low:+.1f} to {high:+.1f})"
            )
            p = p_in_words(pair["p_value"])
            # A hyphen is too short to be seen as a sign.
            return f"{opening}: {numbers}, {p}".replace("-", "\N{MINUS SIGN}")
    return "No pair of baseline and dendritic runs"


def _growth_text(runs: Sequence[Run]) -> tuple[str, str]:
    facts = [
        f
        for run in runs
        if (f := leaderboard.growth(run, leaderboard.baseline_of(run, runs))) is not None
    ]
    if not facts:
        return SOFT, ""
    empty = sum(not f["grown"] for f in facts)
    if empty:
        return ALARM, f"No dendrite kept in {empty} of {len(facts)} dendritic runs"
    paid = sum(f["paid_on_validation"] is True for f in facts)
    return SOFT, f"Best validation loss below the baseline's in {paid} of {len(facts)} seeds"


def _seeds_text(arms: Sequence[dict[str, Any]]) -> str:
    counts = sorted({len(arm["seeds"]) for arm in arms})
    span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"Test accuracy, {span} seed{'' if counts == [1] else 's'} per arm, same data and budget"


def _name(place: tuple[str, str]) -> str:
    backbone, dataset = place
    return f"{backbone} on {dataset}"


# ---------------------------------------------------------------------------- pieces


def _places(entries: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((entry["backbone"], entry["dataset"]) for entry in entries))


def _at(entry: dict[str, Any], place: tuple[str, str]) -> bool:
    return (entry["backbone"], entry["dataset"]) == place


def _axis_start(board: dict[str, Any]) -> float:
    """A round share below everything drawn."""
    lowest: float = min(
        *(arm["ci"]["accuracy"][0] for arm in board["arms"]),
        *(row["accuracy"] for row in board["rows"]),
    )
    return max(0.0, math.floor((lowest - 0.01) * 20) / 20)


def _training_legend(figure: Figure, height: float, arms: Sequence[str]) -> None:
    handles = [
        Line2D([], [], color=ARM_STYLES[arm].colour, lw=2.2, label=ARM_STYLES[arm].title)
        for arm in arms
    ]
    star = Line2D([], [], ls="", marker="*", ms=9, mec="white", mew=0.7)
    star.set_color(ARM_STYLES["dendritic"].colour)
    star.set_label("A dendrite grows")
    figure.legend(
        handles=[*handles, star],
        loc="upper left",
        bbox_to_anchor=(0.19 / figure.get_figwidth(), 1 - 0.52 / height),
        borderpad=0.4,
        borderaxespad=0,
        ncols=len(handles) + 1,
        frameon=False,
        fontsize=9,
        handlelength=1.5,
        columnspacing=1.8,
    )
