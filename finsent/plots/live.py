"""Plotly figures of what is measured while the page is open. No torch, no gradio.

Colours and symbols are those of finsent.plots.style; backgrounds are left to the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from finsent.plots.style import ARM_STYLES, GROWTH_SYMBOL, style_figure

_PATTERNS = {"baseline": "", "dendritic": "/", "matched": "."}
"""Bars have no symbol: hatching tells the arms apart without colour."""


def distribution_figure(counts: Mapping[str, Mapping[str, int]]) -> go.Figure:
    """Number of texts per label, a bar for each arm. counts: arm -> label -> n."""
    figure = go.Figure()
    for arm, by_label in counts.items():
        style = ARM_STYLES[arm]
        figure.add_bar(
            x=list(by_label),
            y=list(by_label.values()),
            name=style.title,
            text=[str(n) for n in by_label.values()],
            textposition="outside",
            cliponaxis=False,
            marker={
                "color": style.colour,
                "pattern": {
                    "shape": _PATTERNS[arm],
                    "fillmode": "overlay",
                    "fgcolor": "rgba(255,255,255,0.6)",
                    "size": 7,
                    "solidity": 0.25,
                },
            },
            hovertemplate=f"{style.title}: %{{y}} %{{x}}<extra></extra>",
        )
    _style(figure)
    most = max((max(c.values()) for c in counts.values()), default=1)
    figure.update_yaxes(title_text="texts", range=[0, 1.15 * most], rangemode="tozero")
    if most < 5:
        figure.update_yaxes(dtick=1)  # there are no half texts
    figure.update_layout(barmode="group", bargap=0.28)
    return figure


def times_figure(times_ms: Mapping[tuple[str, str], Sequence[float]]) -> go.Figure:
    """Every measured call as a point beside its box. times_ms: (arm, batch) -> milliseconds."""
    figure = go.Figure()
    for arm in dict.fromkeys(arm for arm, _ in times_ms):
        style = ARM_STYLES[arm]
        of_arm = {batch: values for (name, batch), values in times_ms.items() if name == arm}
        figure.add_box(
            x=[_in_lines(batch) for batch, values in of_arm.items() for _ in values],
            y=[value for values in of_arm.values() for value in values],
            name=style.title,
            boxpoints="all",
            jitter=0.5,
            pointpos=0,
            marker={"color": style.colour, "symbol": style.symbol, "size": 5, "opacity": 0.55},
            line={"width": 1.4},
            fillcolor="rgba(128,128,128,0.10)",
            hovertemplate=f"{style.title}, %{{x}}: %{{y:.1f}} ms<extra></extra>",
        )
    _style(figure)
    figure.update_layout(boxmode="group")
    figure.update_yaxes(title_text="milliseconds a call", rangemode="tozero")
    # Level, in lines of their own: at an angle they do not fit a phone's chart.
    figure.update_xaxes(tickangle=0)
    figure.update_layout(margin={"b": 64})
    return figure


def _in_lines(batch: str) -> str:
    return batch.replace(" × ", " ×<br>").replace(" words", "<br>words")


def training_figure(
    histories: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]], column: str, title: str
) -> go.Figure:
    """One column of the histories so far, a line for each (arm, seed), with growth as stars."""
    figure = go.Figure()
    for (arm, seed), lines in histories.items():
        style = ARM_STYLES[arm]
        figure.add_scatter(
            x=[line["epoch"] for line in lines],
            y=[line[column] for line in lines],
            mode="lines+markers",
            name=f"{style.title}, seed {seed}",
            line={"color": style.colour, "width": style.width},
            marker={"symbol": style.symbol, "size": 7, "color": style.colour},
            hovertemplate=f"{style.title}, seed {seed}: %{{y:.4g}}<extra></extra>",
        )
        grown = [line for line in lines if (line["event"] or "").startswith("grew")]
        if grown:
            figure.add_scatter(
                x=[line["epoch"] for line in grown],
                y=[line[column] for line in grown],
                mode="markers",
                name=f"{style.title}, growth",
                marker={"symbol": GROWTH_SYMBOL, "size": 13, "color": style.colour},
                text=[line["event"] for line in grown],
                hovertemplate="%{text}<extra></extra>",
            )
    _style(figure)
    last = max((line["epoch"] for lines in histories.values() for line in lines), default=0)
    figure.update_xaxes(title_text="epoch", dtick=max(1, -(-last // 10)))
    figure.update_yaxes(title_text=title)
    return figure


def _style(figure: go.Figure) -> None:
    style_figure(figure)
    figure.update_layout(
        margin={"l": 56, "t": 34, "b": 46},
        legend={"orientation": "h", "x": 0, "y": 1.14, "yanchor": "bottom"},
        showlegend=True,
    )
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(nticks=6)
