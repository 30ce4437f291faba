"""How charts look, and the training curves. No torch, no gradio: a notebook can use them as well.

Colours and marks are those of the whole page: an arm looks the same wherever it appears. Figures
have no background of their own, so they sit on a light or a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go


@dataclass(frozen=True)
class ArmStyle:
    """How an arm is drawn. The symbol tells arms apart without colour."""

    title: str
    colour: str
    symbol: str
    width: float
    """Of the mean line, in pixels. Drawn widest first, so equal runs show as nested stripes."""


ARM_STYLES = {
    "baseline": ArmStyle("Baseline", "#2a78b8", "circle", 5.4),
    "dendritic": ArmStyle("Dendritic", "#d2600f", "diamond", 1.6),
    "matched": ArmStyle("Matched", "#0f8f6d", "square", 2.6),
    "restart": ArmStyle("Restart", "#b0609c", "triangle-up", 5.0),
    "ensemble": ArmStyle("Ensemble", "#6a6fc8", "hexagon", 2.2),
    "classical": ArmStyle("Classical", "#7d7d7d", "cross", 2.0),
}
"""Blue, vermilion, green, reddish purple of about equal weight: distinct under the common
colour-vision deficiencies and at least 3:1 against both page backgrounds. The last three are arms
of studies only, violet is drawn beside blue alone, and grey is no head at all."""


OTHER_STYLE = ArmStyle("Other model", "#7d7d7d", "circle", 2.0)
"""Of models from elsewhere, which are no arms."""
GROWTH_SYMBOL = "star"
CHART_HEIGHT = 300
FONT = {"color": "#888888", "size": 12, "family": "IBM Plex Sans, system-ui, sans-serif"}
GRID = "rgba(128,128,128,0.22)"
GREY = "#888888"


class ChartError(ValueError):
    """There is nothing to draw."""


def faded(colour: str, alpha: float = 0.45) -> str:
    """`#rrggbb` as rgba. A trace's own `opacity` tints its whole bounding box in some browsers."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def style_figure(figure: go.Figure, *, height: int = CHART_HEIGHT) -> None:
    """What all charts of the page share: no background, quiet axes, no zooming by accident."""
    axis: dict[str, Any] = {
        "gridcolor": GRID,
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
        font=FONT,
        height=height,
        margin={"l": 52, "r": 14, "t": 10, "b": 42},
        showlegend=False,
        hoverlabel={"font": {"size": 12}},
        # Dragging on a phone scrolls the page instead of zooming a small chart.
        dragmode=False,
    )
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)


def log_step(values: Iterable[float]) -> int | str:
    """One label a decade where there are several, else 1, 2 and 5 of each."""
    found = list(values)
    return 1 if math.log10(max(found) / min(found)) > 1.5 else "D2"
