"""Plotly figures from runs. No torch, no gradio: a notebook can use them as well.

Colours and marks are those of the whole page: an arm looks the same wherever it appears. Figures
have no background of their own, so they sit on a light or a dark page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import plotly.graph_objects as go

from finsent.config import ARMS
from finsent.runs import Run


@dataclass(frozen=True)
class ArmStyle:
    """How an arm is drawn. The symbol tells arms apart without colour."""

    title: str
    colour: str
    symbol: str
    width: float
    """Of the mean line, in pixels. Drawn widest first, so equal runs show as nested stripes."""


ARM_STYLES = {
    "baseline": ArmStyle("Baseline", "#2a78b8", "circle", 4.2),
    "dendritic": ArmStyle("Dendritic", "#d2600f", "diamond", 1.8),
    "matched": ArmStyle("Matched", "#0f8f6d", "square", 2.8),
}
"""Blue, vermilion, green of about equal weight: distinct under the common colour-vision
deficiencies and at least 3:1 against both page backgrounds."""


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


PANELS = (
    Panel("loss", "Loss", "val_loss", "cross-entropy, nats", ".4f", companion="train_loss"),
    Panel("accuracy", "Accuracy", "val_accuracy", "validation", ".1%"),
    Panel("macro_f1", "Macro-F1", "val_macro_f1", "validation", ".1%"),
    Panel("learning_rate", "Learning rate", "learning_rate", "end of epoch", ".2e"),
)

GROWTH_SYMBOL = "star"
CHART_HEIGHT = 300
_GREY = "#888888"
_GRID = "rgba(128,128,128,0.22)"


class ChartError(ValueError):
    """There is nothing to draw."""


def curve_figures(
    runs: Sequence[Run], *, arms: Iterable[str] = ARMS, show_seeds: bool = True
) -> dict[str, go.Figure]:
    """Training curves of one backbone on one data set: a figure per panel key.

    Seeds are thin lines, the mean over seeds a thick line with the arm's symbol; stars mark the
    epochs at whose end dendrites were grown.

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
    return {panel.key: _curve_figure(panel, chosen, show_seeds) for panel in PANELS}


def seed_mean(runs: Sequence[Run], column: str) -> tuple[list[int], list[float]]:
    """Mean over seeds at each epoch that all of them reached.

    Beyond that the mean would jump whenever a seed stops, which is no property of training.
    """
    length = min(len(run.history) for run in runs)
    return list(range(length)), [
        fmean(float(run.history[epoch][column]) for run in runs) for epoch in range(length)
    ]


def growth_events(run: Run) -> list[tuple[int, str]]:
    """(epoch, event) of every epoch at whose end a dendrite was grown."""
    return [
        (line["epoch"], line["event"])
        for line in run.history
        if (line["event"] or "").startswith("grew")
    ]


def _curve_figure(panel: Panel, runs: Sequence[Run], show_seeds: bool) -> go.Figure:
    figure = go.Figure()
    for arm in sorted(ARMS, key=lambda name: -ARM_STYLES[name].width):
        of_arm = [run for run in runs if run.arm == arm]
        if of_arm:
            _add_arm(figure, panel, ARM_STYLES[arm], of_arm, show_seeds)
    _style(figure, panel)
    return figure


def _add_arm(
    figure: go.Figure, panel: Panel, style: ArmStyle, runs: Sequence[Run], show_seeds: bool
) -> None:
    alone = len(runs) == 1
    if show_seeds and not alone:
        for run in runs:
            figure.add_scatter(
                x=[line["epoch"] for line in run.history],
                y=[line[panel.column] for line in run.history],
                mode="lines",
                name=f"{style.title}, seed {run.seed}",
                line={"color": _faded(style.colour), "width": 1},
                hoverinfo="skip",
            )
    if panel.companion is not None:
        epochs, values = seed_mean(runs, panel.companion)
        figure.add_scatter(
            x=epochs,
            y=values,
            mode="lines",
            name=f"{style.title}, training",
            line={"color": style.colour, "width": 1.6, "dash": "dot"},
            hovertemplate=_hover(f"{style.title} (training)", panel),
        )
    epochs, values = seed_mean(runs, panel.column)
    what = f"seed {runs[0].seed}" if alone else f"mean of {len(runs)} seeds"
    figure.add_scatter(
        x=epochs,
        y=values,
        mode="lines+markers",
        name=f"{style.title}, {what}",
        line={"color": style.colour, "width": style.width},
        marker={"symbol": style.symbol, "size": 5 + style.width / 2, "color": style.colour},
        hovertemplate=_hover(style.title, panel),
    )
    _add_growth(figure, panel, style, runs, epochs, values, show_seeds or alone)


def _add_growth(
    figure: go.Figure,
    panel: Panel,
    style: ArmStyle,
    runs: Sequence[Run],
    mean_epochs: Sequence[int],
    mean_values: Sequence[float],
    on_seeds: bool,
) -> None:
    """Stars on the line that is drawn: each seed's, or the mean when seeds are hidden."""
    x: list[int] = []
    y: list[float] = []
    notes: list[str] = []
    for run in runs:
        for epoch, event in growth_events(run):
            if on_seeds:
                value = float(run.history[epoch][panel.column])
            elif epoch < len(mean_epochs):
                value = mean_values[epoch]
            else:
                continue
            x.append(epoch)
            y.append(value)
            notes.append(f"seed {run.seed}: {event}")
    if x:
        figure.add_scatter(
            x=x,
            y=y,
            mode="markers",
            name=f"{style.title}, growth",
            marker={
                "symbol": GROWTH_SYMBOL,
                "size": 12,
                "color": style.colour,
                "line": {"color": "white", "width": 0.8},
            },
            text=notes,
            hovertemplate="%{text}<extra></extra>",
        )


def _faded(colour: str, alpha: float = 0.45) -> str:
    """`#rrggbb` as rgba. A trace's own `opacity` tints its whole bounding box in some browsers."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def _hover(name: str, panel: Panel) -> str:
    return f"{name} %{{y:{panel.number_format}}}<extra></extra>"


def _style(figure: go.Figure, panel: Panel) -> None:
    axis: dict[str, Any] = {
        "gridcolor": _GRID,
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "fixedrange": True,
        "title": {"font": {"size": 12}, "standoff": 8},
    }
    figure.update_layout(
        # "none" rather than a named template: those paint their own backgrounds.
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": _GREY, "size": 12, "family": "IBM Plex Sans, system-ui, sans-serif"},
        height=CHART_HEIGHT,
        margin={"l": 52, "r": 14, "t": 10, "b": 42},
        showlegend=False,
        hovermode="x unified",
        hoverlabel={"font": {"size": 12}},
        # Dragging on a phone scrolls the page instead of zooming a small chart.
        dragmode=False,
    )
    figure.update_xaxes(**axis, dtick=_epoch_step(figure))
    figure.update_yaxes(**axis, nticks=6)
    figure.update_xaxes(
        title_text="epoch, counted from 0",
        showgrid=False,
        unifiedhovertitle={"text": "epoch %{x}"},
        spikecolor=_GREY,
        spikedash="solid",
        spikethickness=1,
    )
    if panel.number_format.endswith("%"):
        # "~": 97.5 % keeps its half, 95 % gets no zero.
        figure.update_yaxes(tickformat="~%")
    elif panel.number_format.endswith("e"):
        figure.update_yaxes(exponentformat="e", rangemode="tozero")
    else:
        figure.update_yaxes(rangemode="tozero")


def _epoch_step(figure: go.Figure) -> int:
    """Whole epochs on the axis, at most about ten of them."""
    last = max(max(trace.x, default=0) for trace in figure.data)
    return max(1, -(-last // 10))
