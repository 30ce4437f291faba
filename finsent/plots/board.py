"""Charts of the leaderboard's arms: cost against score, and confidence against accuracy.

Input are the arms and rows of leaderboard.json. No torch, no gradio, nothing computed anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from finsent.config import BACKBONE_TITLES
from finsent.plots.style import ARM_STYLES, GREY, GRID, OTHER_STYLE, ChartError, faded, style_figure

Entry = Mapping[str, Any]

_WHISKER = 1.4
_DASHES = ("solid", "dash", "dot", "dashdot")
"""A line's dash tells its backbone, its colour the arm."""
SHARES = tuple(n / 20 for n in range(1, 21))
"""Of sentences answered, in a curve of selective answering."""


@dataclass(frozen=True)
class Cost:
    """A cost to weigh the score against: a key of an arm's `mean`."""

    key: str
    title: str
    axis: str
    number_format: str


COSTS = (
    Cost("trainable_params", "Trained parameters", "trained parameters", ",.0f"),
    Cost("latency_ms_p50", "Median time of one sentence", "median time of one sentence, ms", ".1f"),
    Cost("peak_memory_mb", "Peak memory in training", "peak memory while training, MB", ",.0f"),
)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of (cost, score) points that no other beats in one and equals in the other,
    cheapest first."""

    def beaten(cost: float, score: float) -> bool:
        return any(
            other_cost <= cost
            and other_score >= score
            and (other_cost, other_score) != (cost, score)
            for other_cost, other_score in points
        )

    front = [index for index, point in enumerate(points) if not beaten(*point)]
    return sorted(front, key=lambda index: points[index])


def pareto_figure(
    arms: Sequence[Entry], rows: Sequence[Entry], cost: Cost
) -> tuple[go.Figure, list[str]]:
    """Macro-F1 against a cost, a point for each model, and the names on the frontier.

    The dashed line joins the Pareto frontier, whose models the chart numbers in the order of the
    names: no other model has a higher mean at the same cost or less. It says nothing about
    whether differences are significant.

    Raises:
        ChartError: No arm has this cost.
    """
    arms = [arm for arm in arms if arm["mean"][cost.key] is not None]
    if not arms:
        raise ChartError(
            f"No run here recorded the {cost.title[:1].lower()}{cost.title[1:]}; choose another."
        )
    figure = go.Figure()
    points = [(float(arm["mean"][cost.key]), float(arm["mean"]["macro_f1"])) for arm in arms]
    front = pareto_front(points)
    figure.add_scatter(
        x=[points[index][0] for index in front],
        y=[points[index][1] for index in front],
        mode="lines",
        name="best for their cost (Pareto frontier)",
        line={"color": GREY, "width": 1.2, "dash": "dash"},
        hoverinfo="skip",
    )
    for arm in arms:
        _add_model(figure, arm, [row for row in rows if _same(row, arm)], cost)
    style_figure(figure, height=380)
    figure.update_layout(hovermode="closest", margin={"t": 24})
    for place, index in enumerate(front, start=1):
        # By number: names of models that cost alike would lie on one another.
        figure.add_annotation(
            x=points[index][0],
            y=points[index][1],
            text=f"<b>{place}</b>",
            showarrow=False,
            font={"size": 13},
            xshift=-14,
            yshift=12,
        )
    figure.update_xaxes(title_text=cost.axis, range=_room(arms, rows, cost), nticks=7)
    if cost.key == "trainable_params":
        figure.update_xaxes(tickformat="~s")
    figure.update_yaxes(tickformat="~%", title_text="macro-F1, test")
    return figure, [_name(arms[index]) for index in front]


def _name(arm: Entry) -> str:
    backbone = str(BACKBONE_TITLES.get(arm["backbone"], arm["backbone"]))
    style = ARM_STYLES.get(arm["arm"])
    return f"{backbone}, {style.title.lower()}" if style else backbone


def _add_model(figure: go.Figure, arm: Entry, rows: Sequence[Entry], cost: Cost) -> None:
    """A model's point with its bars, and its runs faint beside it."""
    style = ARM_STYLES.get(arm["arm"], OTHER_STYLE)
    name = _name(arm)
    own = [row for row in rows if row[cost.key] is not None]
    figure.add_scatter(
        x=[row[cost.key] for row in own],
        y=[row["macro_f1"] for row in own],
        mode="markers",
        name=f"{name}, runs",
        marker={"symbol": style.symbol, "size": 8, "color": faded(style.colour, 0.35)},
        text=[f"run {row['seed']}" for row in own],
        hovertemplate=f"{name}, %{{text}}: %{{y:.1%}}, %{{x:{cost.number_format}}}<extra></extra>",
    )
    low, high = arm["ci"]["macro_f1"]
    y, deviation = arm["mean"]["macro_f1"], arm["sd"][cost.key]
    bars = {"type": "data", "color": style.colour, "thickness": _WHISKER, "width": 5}
    figure.add_scatter(
        x=[arm["mean"][cost.key]],
        y=[y],
        mode="markers",
        name=name,
        marker={"symbol": style.symbol, "size": 12, "color": style.colour},
        error_y={**bars, "symmetric": False, "array": [high - y], "arrayminus": [y - low]},
        error_x={**bars, "array": [deviation or 0.0], "visible": bool(deviation)},
        hovertemplate=f"{name}<br>macro-F1 %{{y:.1%}}, 95 % interval {100 * low:.1f} to "
        f"{100 * high:.1f}<br>{cost.axis}: %{{x:{cost.number_format}}}<extra></extra>",
    )


def _same(row: Entry, arm: Entry) -> bool:
    return all(row[key] == arm[key] for key in ("backbone", "dataset", "arm"))


def _room(arms: Sequence[Entry], rows: Sequence[Entry], cost: Cost) -> list[float]:
    """An x range with air at both ends."""
    values = [row[cost.key] for row in rows if row[cost.key] is not None]
    for arm in arms:
        mean, deviation = arm["mean"][cost.key], arm["sd"][cost.key] or 0.0
        values += [mean - deviation, mean + deviation]
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    return [low - 0.15 * span, high + 0.15 * span]


def reliability_figure(arms: Sequence[Entry]) -> go.Figure:
    """Accuracy against confidence in bins of the top probability, with the number of answers.

    On the diagonal, an answer given with 80 % is right in 80 % of cases; below it the model is
    overconfident. Raises ChartError without arms.
    """
    if not arms:
        raise ChartError("no arm to draw; choose another")
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.76, 0.24])
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        name="perfectly calibrated",
        line={"color": "#888888", "width": 1.2, "dash": "dash"},
        hoverinfo="skip",
        row=1,
        col=1,
    )
    for arm in arms:
        style = ARM_STYLES.get(arm["arm"], OTHER_STYLE)
        title = style.title or arm["arm"]
        bins = arm["reliability"]
        x = [entry["confidence"] for entry in bins]
        sizes = [entry["n"] for entry in bins]
        figure.add_scatter(
            x=x,
            y=[entry["accuracy"] for entry in bins],
            mode="lines+markers",
            name=title,
            line={"color": style.colour, "width": 2},
            marker={"symbol": style.symbol, "size": 8, "color": style.colour},
            customdata=sizes,
            hovertemplate=f"{title}: says %{{x:.1%}}, right %{{y:.1%}} of %{{customdata:,d}}"
            "<extra></extra>",
            row=1,
            col=1,
        )
        figure.add_bar(
            x=[(entry["low"] + entry["high"]) / 2 for entry in bins],
            y=sizes,
            name=f"{title}, answers",
            marker={"color": style.colour},
            hovertemplate=f"{title}: %{{y:,d}} answers<extra></extra>",
            row=2,
            col=1,
        )
    style_figure(figure, height=430)
    lowest = min(entry["low"] for arm in arms for entry in arm["reliability"])
    figure.update_layout(hovermode="closest", barmode="group", bargap=0.3, margin={"l": 60})
    figure.update_xaxes(range=[lowest, 1.02], tickformat="~%", showgrid=False)
    figure.update_xaxes(title_text="confidence: the top probability", row=2, col=1)
    figure.update_yaxes(range=[0, 1.04], tickformat="~%", title_text="right", row=1, col=1)
    figure.update_yaxes(
        type="log", title_text="answers", dtick=1, gridcolor=GRID, tickformat="~s", row=2, col=1
    )
    return figure


def selective_figure(curves: Mapping[tuple[str, str], Sequence[float]]) -> go.Figure:
    """Accuracy of the surest answers against the share of sentences that is answered.

    curves: (backbone, arm) -> accuracy at each of SHARES. Raises ChartError without any.
    """
    if not curves:
        raise ChartError("no model to draw; choose another")
    figure = go.Figure()
    backbones = list(dict.fromkeys(backbone for backbone, _ in curves))
    for (backbone, arm), accuracies in curves.items():
        style = ARM_STYLES.get(arm, OTHER_STYLE)
        name = _name({"backbone": backbone, "arm": arm})
        figure.add_scatter(
            x=SHARES,
            y=list(accuracies),
            mode="lines+markers",
            name=name,
            line={
                "color": style.colour,
                "width": 2,
                "dash": _DASHES[backbones.index(backbone) % len(_DASHES)],
            },
            marker={"symbol": style.symbol, "size": 6, "color": style.colour},
            hovertemplate=f"{name}: answers %{{x:.0%}}, right in %{{y:.1%}}<extra></extra>",
        )
    style_figure(figure, height=360 + 22 * len(curves))
    figure.update_layout(
        hovermode="closest",
        margin={"l": 60, "t": 30 + 22 * len(curves)},
        showlegend=True,
        legend={"y": 1.02, "yanchor": "bottom", "x": 0},
    )
    figure.update_xaxes(
        range=[0, 1.03], tickformat="~%", title_text="share of sentences answered, surest first"
    )
    figure.update_yaxes(tickformat="~%", title_text="right among those answered", nticks=7)
    return figure
