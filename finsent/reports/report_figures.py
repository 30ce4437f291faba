"""The PNG figures of the report and its appendix, from studies' summaries and runs' histories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from finsent.plots.png_figures import FigureError, draw_curves, style_loss
from finsent.plots.png_style import (
    FAINT,
    INK,
    MARKERS,
    SOFT,
    bare,
    footer,
    headline,
    margins,
    panel_title,
)
from finsent.plots.style import ARM_STYLES
from finsent.reports.overview import compared, counts, finding
from finsent.results.metrics import SIGNIFICANCE
from finsent.results.runs import Run
from finsent.results.text import MINUS, signed
from finsent.study.comparisons import REFERENCES
from finsent.study.rows import CLASSICAL
from finsent.study.views import (
    ARM_ORDER,
    OUTCOMES,
    Entry,
    Summary,
    classical_rows,
    front,
    place_name,
    places,
    rows_of,
    study_title,
    whole_data,
)

WIDTH = 10.4
SLIDE = (8.0, 4.5)
"""Inches of the summary, 1600 x 900 pixels."""
_GAP = 0.6
"""Extra room between regimes, in rows."""


def summary_figure(summaries: Mapping[str, Summary]) -> Figure:
    """Accuracy of dendritic minus each other arm in every setting, a line a study, on one slide.

    Raises FigureError where no study compares dendrites with anything.
    """
    names = compared(summaries)
    if not names:
        raise FigureError("no comparison to draw; run a study with a dendritic arm first")
    studies = [summaries[name]["comparisons"] for name in names]
    figure = Figure(figsize=SLIDE, facecolor="white")
    height = figure.get_figheight()
    grid = figure.subplots(1, len(REFERENCES), squeeze=False, sharex=True, sharey=True)[0]
    margins(figure, height, left=2.45, right=0.15, top=1.2, bottom=0.87, hspace=0, wspace=0.08)
    for axes, arm in zip(grid, REFERENCES, strict=True):
        axes.axvline(0, color=SOFT, lw=0.9, zorder=1)
        against = [[c for c in comparisons if c["a"] == arm] for comparisons in studies]
        for y, comparisons in enumerate(against):
            _summary_line(axes, comparisons, y, arm)
        _panel_head(axes, f"minus {arm}", list(chain.from_iterable(against)))
        axes.set_ylim(len(names) - 0.4, -0.6)
        _points_axis(axes)
    grid[0].set_yticks(range(len(names)), [study_title(name) for name in names])
    grid[0].tick_params(axis="y", labelsize=8, labelcolor=INK, pad=5)
    headline(
        figure,
        height,
        finding(counts(*studies)),
        "Test accuracy with dendrites minus that without, with restarts alone, and with as many "
        "parameters",
    )
    footer(
        figure,
        height,
        "Small mark: a setting, filled where p < 0.05 after correction over its study. Large "
        "mark: the median setting.\nBar: the median 95% interval, before correction for many "
        "tests. Right of zero, dendrites are more accurate.",
    )
    return figure


def _summary_line(axes: Axes, comparisons: Sequence[Entry], y: float, arm: str) -> None:
    colour = ARM_STYLES[arm].colour
    for c in comparisons:
        sure = c["outcome"] != "tied"
        _mark(axes, c, y, arm, size=3.2, alpha=1 if sure else 0.5)
    if comparisons:
        low, middle, high = (
            100 * median(c["metrics"]["accuracy"][end] for c in comparisons)
            for end in ("low", "mean", "high")
        )
        axes.plot([low, high], [y, y], color=colour, lw=2.0, zorder=2)
        axes.plot(middle, y, MARKERS[arm], ms=6, mfc="white", mec=colour, mew=1.6, zorder=4)


def _mark(
    axes: Axes, comparison: Entry, y: float, arm: str, *, size: float, alpha: float = 1
) -> None:
    """A difference in points, filled where it survives correction."""
    test, colour = comparison["metrics"]["accuracy"], ARM_STYLES[arm].colour
    axes.plot(
        100 * test["mean"],
        y,
        MARKERS[arm],
        ms=size,
        mfc=colour if test["p_holm"] < SIGNIFICANCE else "white",
        mec=colour,
        mew=1.1,
        alpha=alpha,
        zorder=3,
    )


def _panel_head(axes: Axes, title: str, comparisons: Sequence[Entry]) -> None:
    wins = {o: sum(c["outcome"] == o for c in comparisons) for o in OUTCOMES}
    for text, above, size, weight, colour in (
        (title, 17, 10, "bold", INK),
        (f"better {wins['better']}, worse {wins['worse']}, tied {wins['tied']}", 5, 8, None, SOFT),
    ):
        axes.annotate(
            text,
            (0, 1),
            xycoords="axes fraction",
            xytext=(0, above),
            textcoords="offset points",
            fontsize=size,
            fontweight=weight,
            color=colour,
        )


def _points_axis(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value, None, minus=MINUS)))
    bare(axes, grid_axis="x")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("points", labelpad=4, fontsize=8)


def forest_figure(comparisons: Sequence[Entry]) -> Figure:
    """Accuracy of dendritic minus each other arm, with corrected intervals; one place's, in order.

    Filled where the difference survives correction. Raises FigureError without comparisons.
    """
    if not comparisons:
        raise FigureError("no comparison to draw; run a study with a dendritic arm first")
    arms = [arm for arm in REFERENCES if any(c["a"] == arm for c in comparisons)]
    lines = _lines(comparisons)
    last = max(lines.values())
    # A single line still needs room between headline and footer.
    height = max(2.9, 1.9 + 0.235 * (last + 1))
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    grid = figure.subplots(1, len(arms), squeeze=False, sharex=True, sharey=True)[0]
    margins(figure, height, left=2.1, right=0.3, top=1.28, bottom=0.95, hspace=0, wspace=0.08)
    for axes, arm in zip(grid, arms, strict=True):
        _forest_panel(axes, [c for c in comparisons if c["a"] == arm], arm, lines)
        axes.set_ylim(last + 0.8, -0.8)
    names, shown = [], ""
    for regime, recipe in lines:
        names.append(recipe if regime == shown else f"{regime}   {recipe}")
        shown = regime
    grid[0].set_yticks(list(lines.values()), names)
    grid[0].tick_params(axis="y", labelsize=8, labelcolor=INK, pad=6)
    first = comparisons[0]
    pairs = " or ".join(str(n) for n in sorted({c["n"] for c in comparisons}))
    headline(
        figure,
        height,
        f"What dendrites change: {place_name((first['dataset'], first['test_dataset']))}",
        f"Test accuracy of dendritic minus another arm, points; {pairs} paired runs a line",
    )
    footer(
        figure,
        height,
        "Bars: 95% intervals of the Nadeau-Bengio corrected resampled t-test, before correction "
        "for many tests.\nFilled: p < 0.05 after Holm's correction over the study. Right of zero, "
        "dendrites are more accurate.",
    )
    return figure


def _lines(comparisons: Sequence[Entry]) -> dict[tuple[str, str], float]:
    """(regime, recipe) -> position from the top."""
    found: dict[tuple[str, str], float] = {}
    position, before = -1.0, None
    for c in comparisons:
        key = (c["regime"], c["recipe"])
        if key not in found:
            position += 1 + _GAP * (before is not None and before != c["regime"])
            before = c["regime"]
            found[key] = position
    return found


def _forest_panel(
    axes: Axes, comparisons: Sequence[Entry], arm: str, lines: Mapping[tuple[str, str], float]
) -> None:
    style = ARM_STYLES[arm]
    axes.axvline(0, color=SOFT, lw=0.9, zorder=1)
    for c in comparisons:
        test, y = c["metrics"]["accuracy"], lines[c["regime"], c["recipe"]]
        sure = test["p_holm"] < SIGNIFICANCE
        low, high = 100 * test["low"], 100 * test["high"]
        axes.plot([low, high], [y, y], color=style.colour, lw=1.5, alpha=0.9 if sure else 0.55)
        _mark(axes, c, y, arm, size=5.5)
    _panel_head(axes, f"minus {arm}", comparisons)
    _points_axis(axes)


def _panels(
    count: int, row_height: float, *, left: float, bottom: float, hspace: float, wspace: float
) -> tuple[Figure, float, list[Axes]]:
    """A figure with two panels a row, its height in inches, and `count` axes.

    left, bottom, row_height: inches; hspace, wspace: shares of a panel, as matplotlib's.
    """
    columns = min(2, count)
    rows = -(-count // columns)
    height = 1.75 + row_height * rows
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    margins(
        figure, height, left=left, right=0.3, top=1.4, bottom=bottom, hspace=hspace, wspace=wspace
    )
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, height, grid[:count]


def frontier_figure(name: str, summaries: Mapping[str, Summary]) -> Figure:
    """Test accuracy against trained parameters, of regimes with all of the training data."""
    summary = summaries[name]
    found = places(summary)
    if not found:
        raise FigureError(f"study {name!r} has no row to draw; run it first")
    figure, height, panels = _panels(len(found), 3.5, left=0.75, bottom=1.0, hspace=0.5, wspace=0.2)
    drawn: set[str] = set()
    for axes, place in zip(panels, found, strict=True):
        arms = whole_data(rows_of(summary, place))
        regimes = {arm["regime"] for arm in arms}
        others = [
            r for r in classical_rows(summaries, name, place, regimes) if r["trainable_params"] > 0
        ]
        drawn |= _frontier_panel(axes, arms, others)
        panel_title(axes, place_name(place), "Up and to the left is better")
        axes.set_xlabel("Trained parameters, log scale", labelpad=4, fontsize=8)
    headline(figure, height, "What accuracy costs in parameters", "")
    _legend(figure, height, [arm for arm in ARM_ORDER if arm in drawn])
    footer(
        figure,
        height,
        "Mean test accuracy over all folds and seeds; bars: its corrected 95% interval. The line "
        "joins the arms that no other beats in both.\nRegimes with less training data, and "
        "classical classifiers below the axis, are in the tables only.",
    )
    return figure


def _frontier_panel(axes: Axes, arms: Sequence[Entry], others: Sequence[Entry]) -> set[str]:
    axes.set_xscale("log")
    line = front(arms)
    axes.plot(
        [row["trainable_params"] for row in line],
        [row["accuracy"] for row in line],
        color=SOFT,
        lw=0.9,
        ls=(0, (4, 3)),
        zorder=1,
    )
    bounds = [value for row in arms for value in row["accuracy_ci"] or (row["accuracy"],) * 2]
    low, high = min(bounds) - 0.015, min(1.005, max(bounds) + 0.015)
    shown = [row for row in others if low <= row["accuracy"] <= high]
    for row in (*arms, *shown):
        style = ARM_STYLES[row["arm"]]
        x, y = row["trainable_params"], row["accuracy"]
        axes.plot(
            [x, x], row["accuracy_ci"] or [y, y], color=style.colour, lw=1.0, alpha=0.4, zorder=2
        )
        axes.plot(x, y, MARKERS[row["arm"]], color=style.colour, ms=5.5, mec="white", mew=0.6)
    axes.set_ylim(low, high)
    named: dict[str, Entry] = {}
    for row in (*_ends(line), *shown):
        name = row["recipe"] if row["arm"] == CLASSICAL else f"{row['regime']} {row['recipe']}"
        named.setdefault(name, row)
    for name, row in named.items():
        axes.annotate(
            name,
            (row["trainable_params"], row["accuracy"]),
            xytext=(6, -12) if row is line[0] else (6, 6),
            textcoords="offset points",
            fontsize=7,
            color=SOFT,
        )
    axes.margins(x=0.22)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1%}"))
    bare(axes, grid_axis="y")
    return {row["arm"] for row in (*arms, *shown)}


def _ends(line: Sequence[Entry]) -> list[Entry]:
    """First and last, or the only one: names of all would cover each other."""
    return list(line[:1]) + list(line[1:][-1:])


def growth_figure(runs: Sequence[Run]) -> Figure:
    """Validation NLL by epoch of baseline and dendritic runs, with growth starred.

    runs: of any backbone and data set. Raises FigureError when none is dendritic.
    """
    found = list(dict.fromkeys((r.backbone, r.dataset) for r in runs if r.arm == "dendritic"))
    if not found:
        raise FigureError("no dendritic run to draw; train one first")
    figure, height, panels = _panels(
        len(found), 2.75, left=0.72, bottom=0.98, hspace=0.52, wspace=0.17
    )
    for axes, (backbone, dataset) in zip(panels, found, strict=True):
        here = [r for r in runs if (r.backbone, r.dataset) == (backbone, dataset)]
        draw_curves(axes, [r for r in here if r.arm in ("baseline", "dendritic")], "val_loss")
        style_loss(axes)
        panel_title(axes, f"{backbone} on {dataset}", "Validation NLL, nats, log scale")
        axes.set_xlabel("Epochs completed", labelpad=4, fontsize=8)
    headline(figure, height, "When dendrites grew", "")
    star = Line2D([], [], ls="", marker="*", ms=9, mec="white", mew=0.7, label="A dendrite grows")
    star.set_color(ARM_STYLES["dendritic"].colour)
    _legend(figure, height, ("baseline", "dendritic"), star, marks=False)
    footer(
        figure,
        height,
        "LoRA runs of the leaderboard. Thin lines: single seeds. Thick lines: mean over seeds.\n"
        "Until the first dendrite grows, the dendritic run is the baseline run, step for step.",
    )
    return figure


def kept_figure(summary: Summary) -> Figure:
    """Share of a study's dendritic runs that kept 0, 1, 2, ... dendrites."""
    found = [
        (place, rows)
        for place in places(summary)
        if (rows := [r for r in rows_of(summary, place) if r["arm"] == "dendritic"])
    ]
    if not found:
        raise FigureError("no dendritic row to draw; run a study with a dendritic arm first")
    most = max(len(row["dendrites_kept"]) for _, rows in found for row in rows) - 1
    longest = max(len(rows) for _, rows in found)
    height = 1.9 + 0.22 * longest
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    grid = figure.subplots(1, len(found), squeeze=False)[0]
    margins(figure, height, left=1.95, right=0.3, top=1.15, bottom=0.75, hspace=0, wspace=0.75)
    for axes, (place, rows) in zip(grid, found, strict=True):
        for y, row in enumerate(rows):
            left = 0.0
            for number, count in enumerate(row["dendrites_kept"]):
                share = count / row["n"]
                axes.barh(y, share, left=left, height=0.74, **_bar(number, most))
                left += share
        axes.set_yticks(range(len(rows)), [f"{row['regime']}   {row['recipe']}" for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.tick_params(axis="y", labelsize=8, labelcolor=INK, pad=5)
        bare(axes, grid_axis="x")
        axes.spines["left"].set_visible(False)
        axes.set_title(place_name(place), loc="left", fontsize=10, fontweight="bold", pad=6)
    headline(figure, height, "How many dendrites a run kept", "")
    handles = [Patch(color=_shade(n, most), label=f"{n}") for n in range(most + 1)]
    _place_legend(figure, height, handles)
    footer(
        figure, height, "Share of runs, by dendrites kept per class or map at the selected epoch."
    )
    return figure


def _bar(number: int, most: int) -> dict[str, Any]:
    return {"color": _shade(number, most), "edgecolor": "white", "linewidth": 0.6}


def _shade(number: int, most: int) -> Any:
    """Grey for none; else from a light tint to the dendritic arm's own colour."""
    if number == 0:
        return FAINT
    strength = 0.3 + 0.7 * number / max(1, most)
    return tuple(1 - strength * (1 - part) for part in to_rgb(ARM_STYLES["dendritic"].colour))


def _legend(
    figure: Figure, height: float, arms: Sequence[str], *more: Line2D, marks: bool = True
) -> None:
    handles = [
        Line2D(
            [],
            [],
            color=ARM_STYLES[arm].colour,
            marker=MARKERS[arm] if marks else "",
            ms=6,
            lw=1.6,
            label=ARM_STYLES[arm].title,
        )
        for arm in arms
    ]
    _place_legend(figure, height, [*handles, *more])


def _place_legend(figure: Figure, height: float, handles: Sequence[Any]) -> None:
    figure.legend(
        handles=list(handles),
        loc="upper left",
        bbox_to_anchor=(0.19 / figure.get_figwidth(), 1 - 0.52 / height),
        borderpad=0.4,
        borderaxespad=0,
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        handlelength=1.5,
        columnspacing=1.5,
    )
