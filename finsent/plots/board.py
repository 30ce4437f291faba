"""Charts of the leaderboard's arms: cost against score, and confidence against accuracy.

Input are the arms and rows of leaderboard.json. No torch, no gradio, nothing computed anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from finsent.plots.style import ARM_STYLES, GRID, ArmStyle, ChartError, faded, style_figure

Entry = Mapping[str, Any]

_OTHER = ArmStyle("", "#7d7d7d", "circle", 2.0)
_WHISKER = 1.4


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


def pareto_figure(arms: Sequence[Entry], rows: Sequence[Entry], cost: Cost) -> go.Figure:
    """Macro-F1 against a cost: an arm a point, its seeds faint beside it.

    Whiskers: 95 % interval of macro-F1, and the standard deviation over seeds of the cost. The
    dashed line joins the arms that no other arm beats by their means; it says nothing about
    whether the differences are significant.

    Raises ChartError when no arm has this cost.
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
        name="Pareto front",
        line={"color": "#888888", "width": 1.2, "dash": "dash"},
        hoverinfo="skip",
    )
    several = len({arm["backbone"] for arm in arms}) > 1
    for arm, (x, y) in zip(arms, points, strict=True):
        style = ARM_STYLES.get(arm["arm"], _OTHER)
        name = f"{arm['backbone']}, {arm['arm']}"
        own = [row for row in rows if _same(row, arm) and row[cost.key] is not None]
        figure.add_scatter(
            x=[row[cost.key] for row in own],
            y=[row["macro_f1"] for row in own],
            mode="markers",
            name=f"{name}, seeds",
            marker={"symbol": style.symbol, "size": 8, "color": faded(style.colour, 0.35)},
            text=[f"seed {row['seed']}" for row in own],
            hovertemplate=f"%{{text}}: %{{y:.1%}}, %{{x:{cost.number_format}}}"
            f"<extra>{style.title}</extra>",
        )
        low, high = arm["ci"]["macro_f1"]
        deviation = arm["sd"][cost.key]
        figure.add_scatter(
            x=[x],
            y=[y],
            mode="markers+text" if several else "markers",
            name=name,
            text=[arm["backbone"]] if several else None,
            textposition="top right",
            marker={"symbol": style.symbol, "size": 12, "color": style.colour},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [high - y],
                "arrayminus": [y - low],
                "color": style.colour,
                "thickness": _WHISKER,
                "width": 5,
            },
            error_x={
                "type": "data",
                "array": [deviation or 0.0],
                "visible": bool(deviation),
                "color": style.colour,
                "thickness": _WHISKER,
                "width": 5,
            },
            hovertemplate=f"{name}<br>macro-F1 %{{y:.1%}}, 95 % CI {100 * low:.1f} to "
            f"{100 * high:.1f}<br>{cost.axis}: %{{x:{cost.number_format}}}<extra></extra>",
        )
    style_figure(figure, height=360)
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(title_text=cost.axis, range=_room(arms, rows, cost), nticks=7)
    if cost.key == "trainable_params":
        figure.update_xaxes(tickformat="~s")
    figure.update_yaxes(tickformat="~%", title_text="macro-F1, test")
    return figure


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
        style = ARM_STYLES.get(arm["arm"], _OTHER)
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
