"""Charts of a study: paired differences, and accuracy against parameters. No torch, no gradio.

Input are rows and comparisons of summary.json, in the order they are to be drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from finsent.plots.style import ARM_STYLES, ChartError, log_step, style_figure
from finsent.results.metrics import SIGNIFICANCE
from finsent.study.cycles.depths import depth_of
from finsent.study.rows import CLASSICAL
from finsent.study.views import ARM_ORDER, Entry, front

_LINE = 16
"""Pixels between two intervals."""
_EDGES = 76
"""Pixels of the margins above and below."""
_ROOM = 0.015
"""Above and below the arms' intervals, in accuracy."""


def forest_figure(comparisons: Sequence[Entry]) -> go.Figure:
    """Accuracy of dendritic minus another arm, in points, with corrected 95 % intervals.

    A block for each regime and recipe, whose name stands above its intervals, so that it fits a
    phone. Filled marks survive correction. Raises ChartError without comparisons.
    """
    if not comparisons:
        raise ChartError("No comparison of dendritic with another arm here; choose another.")
    lines, names = _layout(comparisons)
    figure = go.Figure()
    for arm in dict.fromkeys(c["a"] for c in comparisons):
        style = ARM_STYLES[arm]
        found = [(y, c) for y, c in zip(lines, comparisons, strict=True) if c["a"] == arm]
        tests = [c["metrics"]["accuracy"] for _, c in found]
        fill = [style.symbol + ("" if _sure(c) else "-open") for _, c in found]
        figure.add_scatter(
            x=[100 * test["mean"] for test in tests],
            y=[y for y, _ in found],
            mode="markers",
            name=f"minus {arm}",
            marker={
                "symbol": fill,
                "size": 9,
                "color": style.colour,
                "line": {"color": style.colour, "width": 1.6},
            },
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [100 * (test["high"] - test["mean"]) for test in tests],
                "arrayminus": [100 * (test["mean"] - test["low"]) for test in tests],
                "color": style.colour,
                "thickness": 1.6,
                "width": 0,
            },
            customdata=[
                [c["regime"], c["recipe"], 100 * t["low"], 100 * t["high"], t["p_holm"]]
                for (_, c), t in zip(found, tests, strict=True)
            ],
            hovertemplate=(
                f"%{{customdata[0]}}, %{{customdata[1]}}<br>dendritic minus {arm}: %{{x:+.2f}} "
                "points<br>95 % CI %{customdata[2]:+.2f} to %{customdata[3]:+.2f}<br>"
                "p = %{customdata[4]:.2g} after correction<extra></extra>"
            ),
        )
    for y, name in names:
        figure.add_annotation(
            x=0, y=y, xref="paper", xanchor="left", text=name, showarrow=False, font={"size": 12}
        )
    last = max(lines) + 0.6
    style_figure(figure, height=round(_EDGES + _LINE * (last + 0.6)))
    figure.update_layout(hovermode="closest", margin={"l": 10, "t": 30})
    figure.add_vline(x=0, line={"color": "#888888", "width": 1.2})
    figure.update_xaxes(title_text="points of accuracy", tickformat="+~g", nticks=9)
    figure.update_yaxes(range=[last, -0.6], showticklabels=False, showgrid=False)
    return figure


def _sure(comparison: Entry) -> bool:
    return bool(comparison["metrics"]["accuracy"]["p_holm"] < SIGNIFICANCE)


def _layout(comparisons: Sequence[Entry]) -> tuple[list[float], list[tuple[float, str]]]:
    """A position for each comparison, and for the name of each block, from the top."""
    positions: list[float] = []
    names: list[tuple[float, str]] = []
    y, before = -1.0, ("", "")
    for c in comparisons:
        block = (c["regime"], c["recipe"])
        y += 1
        if block != before:
            y += 0.3 if names else 0
            names.append((y, f"<b>{block[0]}</b> {block[1]}"))
            before = block
            y += 1
        positions.append(y)
    return positions, names


def frontier_figure(rows: Sequence[Entry], classical: Sequence[Entry] = ()) -> go.Figure:
    """Test accuracy against trained parameters, with corrected 95 % intervals.

    The dashed line joins the arms that none beats in both; classical classifiers are grey and
    shown where the others' axis reaches. Raises ChartError without rows.
    """
    if not rows:
        raise ChartError("No row of this study here; choose another.")
    bounds = [value for row in rows for value in row["accuracy_ci"] or [row["accuracy"]]]
    low, high = min(bounds) - _ROOM, max(bounds) + _ROOM
    figure = go.Figure()
    line = front(rows)
    figure.add_scatter(
        x=[row["trainable_params"] for row in line],
        y=[row["accuracy"] for row in line],
        mode="lines",
        name="Pareto front",
        line={"color": "#888888", "width": 1.2, "dash": "dash"},
        hoverinfo="skip",
    )
    # A logarithmic axis has no place for a rule without parameters.
    shown = [r for r in classical if r["trainable_params"] > 0 and low <= r["accuracy"] <= high]
    for arm in ARM_ORDER:
        found = [row for row in (*rows, *shown) if row["arm"] == arm]
        if found:
            _add_arm(figure, arm, found)
    style_figure(figure, height=380)
    figure.update_layout(hovermode="closest", margin={"l": 60})
    figure.update_xaxes(
        type="log",
        title_text="trained parameters, log scale",
        tickformat="~s",
        dtick=log_step(row["trainable_params"] for row in (*rows, *shown)),
    )
    figure.update_yaxes(range=[low, high], tickformat="~%", title_text="accuracy, test", nticks=7)
    return figure


def depth_figure(rows: Sequence[Entry]) -> go.Figure:
    """Test accuracy against the number of blocks that are kept, with corrected 95 % intervals.

    A line for each arm, dashed for every backbone but the first. Raises ChartError without rows of
    regimes that vary it.
    """
    depths = {row["regime"]: depth_of(row["regime"]) for row in rows}
    found = [row for row in rows if depths[row["regime"]] is not None]
    if not found:
        raise ChartError("No row of this study varies the number of blocks; choose another.")
    figure = go.Figure()
    backbones = list(dict.fromkeys(row["backbone"] for row in found))
    arms = [arm for arm in ARM_ORDER if any(row["arm"] == arm for row in found)]
    for place, arm in enumerate(arms):
        style = ARM_STYLES[arm]
        for backbone in backbones:
            line = sorted(
                (row for row in found if (row["arm"], row["backbone"]) == (arm, backbone)),
                key=lambda row: depths[row["regime"]] or 0,
            )
            ends = [row["accuracy_ci"] or [row["accuracy"]] * 2 for row in line]
            figure.add_scatter(
                # Side by side, so that intervals of one depth do not cover each other.
                x=[(depths[row["regime"]] or 0) + 0.07 * (place - 1.5) for row in line],
                y=[row["accuracy"] for row in line],
                mode="lines+markers",
                name=style.title,
                line={
                    "color": style.colour,
                    "width": 1.6,
                    "dash": "solid" if backbone == backbones[0] else "dash",
                },
                marker={"symbol": style.symbol, "size": 9, "color": style.colour},
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [e[1] - row["accuracy"] for e, row in zip(ends, line, strict=True)],
                    "arrayminus": [
                        row["accuracy"] - e[0] for e, row in zip(ends, line, strict=True)
                    ],
                    "color": style.colour,
                    "thickness": 1.1,
                    "width": 0,
                },
                customdata=[[depths[row["regime"]], row["n"]] for row in line],
                hovertemplate=(
                    f"{backbone}, {style.title}<br>%{{customdata[0]}} blocks: %{{y:.2%}}, "
                    "%{customdata[1]} runs<extra></extra>"
                ),
            )
    style_figure(figure, height=380)
    figure.update_layout(hovermode="closest", margin={"l": 60})
    figure.update_xaxes(title_text="blocks kept", dtick=1)
    figure.update_yaxes(tickformat="~%", title_text="accuracy, test", nticks=7)
    return figure


def _add_arm(figure: go.Figure, arm: str, rows: Sequence[Entry]) -> None:
    style = ARM_STYLES[arm]
    ends = [row["accuracy_ci"] or [row["accuracy"]] * 2 for row in rows]
    named = [
        row["recipe"] if arm == CLASSICAL else f"{row['regime']}, {row['recipe']}" for row in rows
    ]
    figure.add_scatter(
        x=[row["trainable_params"] for row in rows],
        y=[row["accuracy"] for row in rows],
        mode="markers",
        name=style.title,
        marker={
            "symbol": style.symbol,
            "size": 10,
            "color": style.colour,
            "line": {"color": "rgba(255,255,255,0.7)", "width": 0.8},
        },
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [end[1] - row["accuracy"] for end, row in zip(ends, rows, strict=True)],
            "arrayminus": [row["accuracy"] - end[0] for end, row in zip(ends, rows, strict=True)],
            "color": style.colour,
            "thickness": 1.1,
            "width": 0,
        },
        text=named,
        hovertemplate=f"%{{text}}<br>{style.title}: %{{y:.2%}}, %{{x:,.0f}} parameters"
        "<extra></extra>",
    )
