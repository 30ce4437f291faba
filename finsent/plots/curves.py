"""Training curves by epoch or by time, a line for each seed or their mean.

No torch, no gradio: a notebook can use them as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean

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
    unit: str
    number_format: str
    companion: str | None = None
    """A second column drawn as a dotted mean (training loss beside validation loss)."""
    logarithmic: bool = False
    """Whether the log switch applies: shares are read on a plain axis."""
    steps: bool = False
    """Drawn as steps: the value holds for the whole epoch."""


PANELS = (
    Panel(
        "loss",
        "Loss",
        "val_loss",
        "cross-entropy, nats",
        ".4f",
        companion="train_loss",
        logarithmic=True,
    ),
    Panel("accuracy", "Accuracy", "val_accuracy", "validation", ".1%"),
    Panel("macro_f1", "Macro-F1", "val_macro_f1", "validation", ".1%"),
    Panel(
        "learning_rate",
        "Learning rate",
        "learning_rate",
        "end of epoch",
        ".2e",
        logarithmic=True,
    ),
    Panel(
        "parameters",
        "Trained parameters",
        "trainable_params",
        "during the epoch",
        ",d",
        steps=True,
    ),
)


SEED_VIEWS = ("lines", "band", "mean")


X_AXES = ("epoch", "time")


@dataclass(frozen=True)
class CurveView:
    """How curves are drawn; the data is the same in every view."""

    seeds: str = "lines"
    """`lines`: each seed thin; `band`: from the lowest seed to the highest; `mean`: neither."""
    x: str = "epoch"
    """`epoch`, or `time`: training time summed up to the end of the epoch, in seconds."""
    log: bool = False
    """Logarithmic y axes where a panel allows it."""

    def __post_init__(self) -> None:
        if self.seeds not in SEED_VIEWS or self.x not in X_AXES:
            raise ChartError(
                f"seeds {self.seeds!r} and x {self.x!r}: choose of {SEED_VIEWS} and {X_AXES}"
            )


@dataclass(frozen=True)
class _Series:
    """Runs that share one mean line."""

    title: str
    style: ArmStyle
    runs: tuple[Run, ...]
    dash: str = "solid"

    @property
    def alone(self) -> bool:
        return len(self.runs) == 1


def curve_figures(
    runs: Sequence[Run], *, arms: Iterable[str] = STUDY_ARMS, view: CurveView | None = None
) -> dict[str, go.Figure]:
    """Training curves of one backbone on one data set: a figure per panel key.

    A thick line with the arm's symbol is the mean over seeds; stars mark the epochs at whose end
    dendrites were grown.

    Raises ChartError when no run belongs to the arms asked for, or when runs of several backbones
    or data sets are mixed.
    """
    wanted = set(arms)
    chosen = [run for run in runs if run.arm in wanted]
    if not chosen:
        raise ChartError(f"no finished run of the arms {sorted(wanted)} to draw; choose others")
    kinds = {(run.backbone, run.dataset) for run in chosen}
    if len(kinds) > 1:
        raise ChartError(f"curves of {sorted(kinds)} do not belong in one chart; choose one")
    series = []
    for arm in sorted(STUDY_ARMS, key=lambda name: -ARM_STYLES[name].width):
        of_arm = tuple(run for run in chosen if run.arm == arm)
        if of_arm:
            series.append(_Series(ARM_STYLES[arm].title, ARM_STYLES[arm], of_arm))
    return _figures(series, view or CurveView())


def overlay_figures(
    first: Run, second: Run, *, view: CurveView | None = None
) -> dict[str, go.Figure]:
    """Two runs of any kind in the same charts: A solid, B dashed, in their arms' colours."""
    series = [
        _Series(name, ARM_STYLES[run.arm], (run,), dash)
        for name, run, dash in (("A", first, "solid"), ("B", second, "dash"))
    ]
    return _figures(series, view or CurveView())


def seed_mean(runs: Sequence[Run], column: str) -> tuple[list[int], list[float]]:
    """Mean over seeds at each epoch that all of them reached.

    Beyond that the mean would jump whenever a seed stops, which is no property of training.
    """
    means = [fmean(values) for values in _side_by_side(_column(run, column) for run in runs)]
    return list(range(len(means))), means


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
    """(epoch, event) of every epoch at whose end a dendrite was grown."""
    return [
        (line["epoch"], line["event"])
        for line in run.history
        if (line["event"] or "").startswith("grew")
    ]


def _figures(series: Sequence[_Series], view: CurveView) -> dict[str, go.Figure]:
    return {panel.key: _curve_figure(panel, series, view) for panel in PANELS}


def _curve_figure(panel: Panel, series: Sequence[_Series], view: CurveView) -> go.Figure:
    figure = go.Figure()
    for one in series:
        _add_series(figure, panel, one, view)
    style_figure(figure)
    _style_axes(figure, panel, view)
    return figure


def _positions(run: Run, view: CurveView) -> list[float]:
    return elapsed_seconds(run) if view.x == "time" else [line["epoch"] for line in run.history]


def _mean_positions(runs: Sequence[Run], view: CurveView) -> list[float]:
    return [fmean(values) for values in _side_by_side(_positions(run, view) for run in runs)]


def _add_series(figure: go.Figure, panel: Panel, series: _Series, view: CurveView) -> None:
    style, runs = series.style, series.runs
    shape = "vh" if panel.steps else "linear"
    if not series.alone:
        _add_seeds(figure, panel, series, view, shape)
    x = _mean_positions(runs, view)
    if panel.companion is not None:
        figure.add_scatter(
            x=x,
            y=seed_mean(runs, panel.companion)[1],
            mode="lines",
            name=f"{series.title}, training",
            line={"color": style.colour, "width": 1.6, "dash": "dot"},
            hovertemplate=_hover(f"{series.title} (training)", panel),
        )
    values = seed_mean(runs, panel.column)[1]
    what = f"seed {runs[0].seed}" if series.alone else f"mean of {len(runs)} seeds"
    figure.add_scatter(
        x=x,
        y=values,
        mode="lines+markers",
        name=f"{series.title}, {what}",
        line={"color": style.colour, "width": style.width, "dash": series.dash, "shape": shape},
        marker={"symbol": style.symbol, "size": 5 + style.width / 2, "color": style.colour},
        hovertemplate=_hover(series.title, panel),
    )
    _add_growth(figure, panel, series, x, values, view)


def _add_seeds(
    figure: go.Figure, panel: Panel, series: _Series, view: CurveView, shape: str
) -> None:
    if view.seeds == "lines":
        for run in series.runs:
            figure.add_scatter(
                x=_positions(run, view),
                y=[line[panel.column] for line in run.history],
                mode="lines",
                name=f"{series.title}, seed {run.seed}",
                line={"color": faded(series.style.colour), "width": 1, "shape": shape},
                hoverinfo="skip",
            )
    elif view.seeds == "band":
        x = _mean_positions(series.runs, view)
        columns = _side_by_side(_column(run, panel.column) for run in series.runs)
        figure.add_scatter(
            x=[*x, *reversed(x)],
            y=[*map(max, columns), *map(min, reversed(columns))],
            mode="lines",
            name=f"{series.title}, lowest to highest seed",
            line={"width": 0},
            fill="toself",
            fillcolor=faded(series.style.colour, 0.18),
            hoverinfo="skip",
        )


def _add_growth(
    figure: go.Figure,
    panel: Panel,
    series: _Series,
    mean_x: Sequence[float],
    mean_values: Sequence[float],
    view: CurveView,
) -> None:
    """Stars on the line that is drawn: each seed's, or the mean where seeds have no line."""
    x: list[float] = []
    y: list[float] = []
    notes: list[str] = []
    for run in series.runs:
        for epoch, event in growth_events(run):
            if view.seeds == "lines" or series.alone:
                x.append(_positions(run, view)[epoch])
                y.append(float(run.history[epoch][panel.column]))
            elif epoch < len(mean_x):
                x.append(mean_x[epoch])
                y.append(mean_values[epoch])
            else:
                continue
            notes.append(f"seed {run.seed}: {event}")
    if x:
        figure.add_scatter(
            x=x,
            y=y,
            mode="markers",
            name=f"{series.title}, growth",
            marker={
                "symbol": GROWTH_SYMBOL,
                "size": 12,
                "color": series.style.colour,
                "line": {"color": "rgba(255,255,255,0.85)", "width": 0.8},
            },
            text=notes,
            hovertemplate="%{text}<extra></extra>",
        )


def _hover(name: str, panel: Panel) -> str:
    return f"{name} %{{y:{panel.number_format}}}<extra></extra>"


def _style_axes(figure: go.Figure, panel: Panel, view: CurveView) -> None:
    in_time = view.x == "time"
    figure.update_layout(hovermode="x unified")
    figure.update_xaxes(
        title_text="training time at the end of the epoch, s"
        if in_time
        else "epoch, counted from 0",
        showgrid=False,
        unifiedhovertitle={"text": "%{x:.1f} s" if in_time else "epoch %{x}"},
        spikecolor=GREY,
        spikedash="solid",
        spikethickness=1,
    )
    if in_time:
        figure.update_xaxes(rangemode="tozero", nticks=8)
    else:
        figure.update_xaxes(dtick=_epoch_step(figure))
    figure.update_yaxes(nticks=6)
    if view.log and panel.logarithmic:
        figure.update_yaxes(
            type="log",
            dtick=log_step(v for trace in figure.data for v in trace.y if v > 0),
            exponentformat="e",
            minexponent=2,
            nticks=None,
        )
        return
    if panel.number_format.endswith("%"):
        # "~": 97.5 % keeps its half, 95 % gets no zero.
        figure.update_yaxes(tickformat="~%")
    elif panel.number_format.endswith("e"):
        figure.update_yaxes(exponentformat="e", rangemode="tozero")
    elif panel.number_format.endswith("d"):
        figure.update_yaxes(tickformat="~s", rangemode="tozero")
    else:
        figure.update_yaxes(rangemode="tozero")


def _epoch_step(figure: go.Figure) -> int:
    """Whole epochs on the axis, at most about ten of them."""
    last = max(max(trace.x, default=0) for trace in figure.data)
    return max(1, -(-int(last) // 10))
