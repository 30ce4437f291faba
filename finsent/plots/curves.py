"""Training curves by epoch or by time: mean and band, every run, or the difference from baseline.

All charts are one figure with one horizontal axis, so that zooming, hovering and the legend work on
all of them at once. No torch, no gradio: a notebook can use them as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean
from typing import Any

import plotly.graph_objects as go

from finsent.config import STUDY_ARMS
from finsent.plots.style import (
    ARM_STYLES,
    GREY,
    GROWTH_SYMBOL,
    ArmStyle,
    ChartError,
    faded,
    log_step,
    style_figure,
)
from finsent.results.runs import Run


@dataclass(frozen=True)
class Panel:
    """One chart: which column of the history it draws, and how it is labelled."""

    key: str
    title: str
    column: str
    number_format: str
    companion: str | None = None
    """A second column drawn as a dotted mean (training loss beside validation loss)."""
    logarithmic: bool = False
    """Whether the log switch applies: shares are read on a plain axis."""
    steps: bool = False
    """Drawn as steps: the value holds for the whole epoch."""


PANELS = (
    Panel("loss", "Validation loss", "val_loss", ".4f", "train_loss", logarithmic=True),
    Panel("accuracy", "Validation accuracy", "val_accuracy", ".1%"),
    Panel("macro_f1", "Validation macro-F1", "val_macro_f1", ".1%"),
    Panel("learning_rate", "Learning rate", "learning_rate", ".2e", logarithmic=True),
    Panel("parameters", "Trained parameters", "trainable_params", ",d", steps=True),
)
FIRST_PANELS = ("loss", "accuracy", "macro_f1")
BAND, LINES, DIFFERENCE = "band", "lines", "difference"
VIEWS = (BAND, LINES, DIFFERENCE)
X_AXES = ("epoch", "time")
MOST_SMOOTHING = 0.9
_PANEL_HEIGHT, _GAP, _TOP, _BOTTOM = 210, 46, 84, 52
"""Pixels: a chart, what is between two of them, and the margins with the legend and the axis."""


@dataclass(frozen=True)
class CurveView:
    """How curves are drawn; the data is the same in every view."""

    show: str = BAND
    """`band`: mean, and from the lowest run to the highest; `lines`: each run thin beside the mean;
    `difference`: what an arm's run has more than the baseline of the same number."""
    x: str = "epoch"
    """`epoch`, or `time`: training time summed up to the end of the epoch, in seconds."""
    log: bool = False
    """Logarithmic y axes where a panel allows it; differences have none."""
    smoothing: float = 0.0
    """Weight of the epochs before in an exponential moving mean, 0 to MOST_SMOOTHING."""
    panels: tuple[str, ...] = FIRST_PANELS

    def __post_init__(self) -> None:
        if self.show not in VIEWS or self.x not in X_AXES:
            raise ChartError(f"show {self.show!r}, x {self.x!r}: choose of {VIEWS} and {X_AXES}")
        if not 0 <= self.smoothing <= MOST_SMOOTHING:
            raise ChartError(f"smoothing {self.smoothing} is not in 0..{MOST_SMOOTHING}")
        if not set(self.panels) & {panel.key for panel in PANELS}:
            raise ChartError("no chart to draw; choose at least one")


@dataclass(frozen=True)
class _Series:
    """Runs that share one mean line."""

    title: str
    style: ArmStyle
    runs: tuple[Run, ...]
    references: tuple[Run, ...] = ()
    """Of a difference: the baseline of each run."""
    dash: str = "solid"

    def values(self, column: str, smoothing: float) -> list[list[float]]:
        """The column of every run by epoch, as it is drawn."""
        found = [smoothed(_column(run, column), smoothing) for run in self.runs]
        if not self.references:
            return found
        bases = [smoothed(_column(run, column), smoothing) for run in self.references]
        # A run that stopped early has fewer epochs than its baseline: compared as far as both go.
        return [
            [a - b for a, b in zip(of_run, base, strict=False)]
            for of_run, base in zip(found, bases, strict=True)
        ]


def curve_figure(
    runs: Sequence[Run], *, view: CurveView | None = None, beside: Run | None = None
) -> go.Figure:
    """Training curves of one backbone on one data set, a chart below the other.

    A thick line with the arm's symbol is the mean over runs; stars mark the epochs at whose end
    dendrites were grown, rings those whose state a run kept. beside: another run, drawn dashed.

    Raises ChartError when there is nothing to draw, or when runs of several backbones or data sets
    are mixed.
    """
    view = view or CurveView()
    if not runs:
        raise ChartError("no finished run to draw; choose others")
    kinds = {(run.backbone, run.dataset) for run in runs}
    if len(kinds) > 1:
        raise ChartError(f"curves of {sorted(kinds)} do not belong in one chart; choose one")
    series = _series(runs, view)
    if beside is not None and view.show != DIFFERENCE:
        style = ARM_STYLES[beside.arm]
        series.append(_Series(f"{style.title}, overlaid", style, (beside,), dash="dash"))
    panels = [panel for panel in PANELS if panel.key in view.panels]
    figure = go.Figure()
    style_figure(figure, height=_TOP + _BOTTOM + len(panels) * (_PANEL_HEIGHT + _GAP) - _GAP)
    for number, panel in enumerate(panels):
        axis = "y" if number == 0 else f"y{number + 1}"
        for one in series:
            _add_series(figure, panel, one, view, axis)
        _style_panel(figure, panel, view, number, len(panels))
    _style_figure(figure, view, len(panels))
    # A band over another arm's line would tint it.
    figure.data = sorted(figure.data, key=lambda trace: trace.fill is None)
    for mark in _MARKS:
        if any(mark.of(run) for one in series for run in one.runs):
            _add_to_legend(figure, mark)
    return figure


def _series(runs: Sequence[Run], view: CurveView) -> list[_Series]:
    bases = {run.seed: run for run in runs if run.arm == "baseline"}
    found = []
    # The widest first, so that equal runs show as nested stripes.
    for arm in sorted(STUDY_ARMS, key=lambda name: -ARM_STYLES[name].width):
        of_arm = tuple(run for run in runs if run.arm == arm)
        references: tuple[Run, ...] = ()
        if view.show == DIFFERENCE:
            of_arm = tuple(run for run in of_arm if run.seed in bases and arm != "baseline")
            references = tuple(bases[run.seed] for run in of_arm)
        if of_arm:
            found.append(_Series(ARM_STYLES[arm].title, ARM_STYLES[arm], of_arm, references))
    if not found:
        raise ChartError("no variant here has a baseline of the same run; choose another view")
    return found


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving mean, without the pull of its start towards zero; weight 0: as it is."""
    if not weight:
        return list(values)
    found, mean, share = [], 0.0, 0.0
    for value in values:
        mean = weight * mean + (1 - weight) * value
        share = weight * share + (1 - weight)
        found.append(mean / share)
    return found


def _column(run: Run, name: str) -> list[float]:
    return [float(line[name]) for line in run.history]


def _side_by_side(each: Iterable[Sequence[float]]) -> list[tuple[float, ...]]:
    """The runs' values at each epoch that all of them reached."""
    lines = list(each)
    shortest = min(map(len, lines))
    return list(zip(*(line[:shortest] for line in lines), strict=True))


def elapsed_seconds(run: Run) -> list[float]:
    """Training time up to the end of each epoch."""
    return list(accumulate(float(line["seconds"]) for line in run.history))


def growth_events(run: Run) -> list[tuple[int, str]]:
    """(epoch from 1, event) of every epoch at whose end a dendrite was grown."""
    return [
        (line["epoch"] + 1, line["event"])
        for line in run.history
        if (line["event"] or "").startswith("grew")
    ]


def kept_epochs(run: Run) -> list[tuple[int, str]]:
    """(epoch from 1, "kept") of the epoch whose state the run kept."""
    return [(int(run.metrics["best_epoch"]) + 1, "kept this state")]


@dataclass(frozen=True)
class _Mark:
    """What is marked on a line: at which epochs, and how."""

    title: str
    of: Callable[[Run], list[tuple[int, str]]]
    marker: Mapping[str, Any]


_MARKS = (
    _Mark("Kept", kept_epochs, {"symbol": "circle-open", "size": 15, "line": {"width": 2}}),
    _Mark(
        "Grown",
        growth_events,
        {
            "symbol": GROWTH_SYMBOL,
            "size": 12,
            "line": {"color": "rgba(255,255,255,0.85)", "width": 0.8},
        },
    ),
)


def _add_to_legend(figure: go.Figure, mark: _Mark) -> None:
    """A line of the legend that says what a mark means; on a line it has the arm's colour."""
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        name=mark.title,
        marker={**mark.marker, "size": 10, "color": GREY},
        hoverinfo="skip",
    )


def _positions(run: Run, view: CurveView) -> list[float]:
    return elapsed_seconds(run) if view.x == "time" else [line["epoch"] + 1 for line in run.history]


def _add_series(
    figure: go.Figure, panel: Panel, series: _Series, view: CurveView, axis: str
) -> None:
    style, alone = series.style, len(series.runs) == 1
    shape = "vh" if panel.steps else "linear"
    each = series.values(panel.column, view.smoothing)
    columns = _side_by_side(each)
    x = [fmean(at) for at in _side_by_side(_positions(run, view) for run in series.runs)]
    x = x[: len(columns)]
    # One click in the legend hides an arm in all charts.
    shared: dict[str, Any] = {"yaxis": axis, "legendgroup": series.title, "showlegend": False}
    if not alone and view.show == LINES:
        for run, values in zip(series.runs, each, strict=True):
            figure.add_scatter(
                x=_positions(run, view)[: len(values)],
                y=values,
                mode="lines",
                name=f"{series.title}, run {run.seed}",
                line={"color": faded(style.colour), "width": 1, "shape": shape},
                hoverinfo="skip",
                **shared,
            )
    elif not alone:
        figure.add_scatter(
            x=[*x, *reversed(x)],
            y=[*map(max, columns), *map(min, reversed(columns))],
            mode="lines",
            name=f"{series.title}, lowest to highest run",
            line={"width": 0},
            fill="toself",
            fillcolor=faded(style.colour, 0.18),
            hoverinfo="skip",
            **shared,
        )
    if panel.companion is not None and view.show != DIFFERENCE:
        means = [fmean(at) for at in _side_by_side(series.values(panel.companion, view.smoothing))]
        figure.add_scatter(
            x=x,
            y=means,
            mode="lines",
            name=f"{series.title}, training",
            line={"color": style.colour, "width": 1.6, "dash": "dot"},
            hovertemplate=_hover(f"{series.title}, training loss", panel, view),
            **shared,
        )
    means = [fmean(at) for at in columns]
    noted = [(mark, _notes(series, mark, len(x))) for mark in _MARKS]
    said = {
        n: "; ".join(found[n] for _, found in noted if n in found) for n in range(1, len(x) + 1)
    }
    figure.add_scatter(
        x=x,
        y=means,
        mode="lines+markers",
        name=series.title,
        text=[f" ({note})" if note else "" for note in said.values()],
        line={"color": style.colour, "width": style.width, "dash": series.dash, "shape": shape},
        marker={"symbol": style.symbol, "size": 5 + style.width, "color": style.colour},
        hovertemplate=_hover(f"{series.title}, {panel.title.lower()}", panel, view, "%{text}"),
        **{**shared, "showlegend": axis == "y"},
    )
    for mark, found in noted:
        if found:
            figure.add_scatter(
                x=[x[epoch - 1] for epoch in found],
                y=[means[epoch - 1] for epoch in found],
                mode="markers",
                name=f"{series.title}, {mark.title.lower()}",
                marker={**mark.marker, "color": style.colour},
                hoverinfo="skip",
                **shared,
            )


def _notes(series: _Series, mark: _Mark, epochs: int) -> dict[int, str]:
    """Epochs from 1 that a run has a mark at -> what is said of which run."""
    notes: dict[int, dict[str, list[str]]] = {}
    for run in series.runs:
        for epoch, event in mark.of(run):
            if epoch <= epochs:
                notes.setdefault(epoch, {}).setdefault(event, []).append(str(run.seed))
    return {
        epoch: "; ".join(
            f"run{'s' if len(runs) > 1 else ''} {', '.join(runs)} {event}"
            for event, runs in found.items()
        )
        for epoch, found in notes.items()
    }


def _hover(name: str, panel: Panel, view: CurveView, behind: str = "") -> str:
    # "0>" changes nothing but that Plotly leaves the format alone, which it would spoil.
    sign = "0>+" if view.show == DIFFERENCE else ""
    return f"{name} %{{y:{sign}{panel.number_format}}}{behind}<extra></extra>"


def _style_panel(
    figure: go.Figure, panel: Panel, view: CurveView, number: int, panels: int
) -> None:
    """A chart's own vertical axis, its place in the figure and its heading."""
    inner = panels * (_PANEL_HEIGHT + _GAP) - _GAP
    top = 1 - number * (_PANEL_HEIGHT + _GAP) / inner
    axis: dict[str, Any] = {
        **figure.layout.yaxis.to_plotly_json(),
        "domain": [max(0.0, top - _PANEL_HEIGHT / inner), top],
        "anchor": "x",
        "nticks": 6,
        "type": None,
        "dtick": None,
        "tickformat": None,
        "exponentformat": None,
        "rangemode": None,
    }
    differs = view.show == DIFFERENCE
    name = f"yaxis{number + 1 if number else ''}"
    ours = [trace for trace in figure.data if trace.yaxis == name.replace("axis", "")]
    if view.log and panel.logarithmic and not differs:
        step = log_step(value for trace in ours for value in trace.y if value > 0)
        axis |= {"type": "log", "dtick": step, "exponentformat": "e", "minexponent": 2}
        axis["nticks"] = None
    elif panel.number_format.endswith("%"):
        # "~": 97.5 % keeps its half, 95 % gets no zero.
        axis["tickformat"] = "+~%" if differs else "~%"
    elif panel.number_format.endswith("e"):
        axis["exponentformat"] = "e"
    elif panel.number_format.endswith("d"):
        axis["tickformat"] = "~s"
    if differs:
        axis |= {"zeroline": True, "zerolinecolor": GREY, "zerolinewidth": 1.2}
    elif not panel.number_format.endswith("%") and axis["type"] is None:
        axis["rangemode"] = "tozero"
    figure.update_layout({name: axis})
    figure.add_annotation(
        x=0,
        y=top,
        xref="paper",
        yref="paper",
        xanchor="left",
        yanchor="bottom",
        yshift=6,
        text=f"<b>{panel.title}</b>{', minus baseline' if differs else ''}",
        showarrow=False,
        font={"size": 13},
    )


def _style_figure(figure: go.Figure, view: CurveView, panels: int) -> None:
    in_time = view.x == "time"
    figure.update_layout(
        hovermode="x unified",
        # A value in one chart is looked at beside those of the same epoch in the others.
        hoversubplots="axis",
        # The nearest epoch answers, however far apart epochs are.
        hoverdistance=-1,
        dragmode="zoom",
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 0.995, "yanchor": "top", "yref": "container"},
        margin={"t": _TOP, "b": _BOTTOM, "l": 56},
    )
    figure.update_xaxes(
        title_text="Training time at the end of the epoch, s" if in_time else "Epoch",
        anchor="y" if panels == 1 else f"y{panels}",
        showgrid=False,
        fixedrange=False,
        unifiedhovertitle={"text": "%{x:.1f} s" if in_time else "epoch %{x}"},
        showspikes=True,
        spikemode="across",
        spikecolor=GREY,
        spikedash="solid",
        spikethickness=1,
    )
    if in_time:
        figure.update_xaxes(rangemode="tozero", nticks=8)
    else:
        last = max(max(trace.x, default=0) for trace in figure.data)
        figure.update_xaxes(dtick=max(1, -(-int(last) // 10)))
