"""How PNG figures look. Matplotlib without pyplot; DejaVu Sans comes with it, so the same data give
the same pixels on every machine with the same Matplotlib."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 200
INK, SOFT, FAINT, ALARM = "#1c2024", "#5b6470", "#dfe3e8", "#b3261e"
MARKERS = {
    "baseline": "o",
    "dendritic": "D",
    "matched": "s",
    "restart": "^",
    "ensemble": "h",
    "classical": "P",
}
"""By arm, the shapes of `finsent.plots.style.ARM_STYLES`."""
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "axes.unicode_minus": True,
}


def margins(
    figure: Figure,
    height: float,
    *,
    left: float,
    right: float,
    top: float,
    bottom: float,
    hspace: float,
    wspace: float,
) -> None:
    """Margins in inches, so that titles keep their distance whatever the number of panels."""
    width = figure.get_figwidth()
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        top=1 - top / height,
        bottom=bottom / height,
        hspace=hspace,
        wspace=wspace,
    )


def headline(figure: Figure, height: float, title: str, subtitle: str) -> None:
    """Title and a line below it, top left."""
    x = 0.24 / figure.get_figwidth()
    figure.text(x, 1 - 0.24 / height, title, fontsize=14, fontweight="bold", va="top")
    figure.text(x, 1 - 0.54 / height, subtitle, fontsize=9.5, color=SOFT, va="top")


def footer(figure: Figure, height: float, text: str) -> None:
    """How to read the figure, bottom left."""
    x = 0.24 / figure.get_figwidth()
    figure.text(x, 0.12 / height, text, fontsize=7.5, color=SOFT, va="bottom", linespacing=1.45)


def panel_title(axes: Axes, title: str, subtitle: str) -> None:
    """Two lines above a panel, flush left."""
    axes.text(0, 1.06, subtitle, transform=axes.transAxes, fontsize=8, color=SOFT)
    axes.annotate(
        title,
        (0, 1.06),
        xycoords="axes fraction",
        xytext=(0, 13),
        textcoords="offset points",
        fontsize=10,
        fontweight="bold",
    )


def side_note(axes: Axes, colour: str, text: str) -> None:
    """On the line of the panel's title, flush right."""
    axes.annotate(
        text,
        (1, 1.06),
        xycoords="axes fraction",
        xytext=(0, 13),
        textcoords="offset points",
        fontsize=8,
        ha="right",
        color=colour,
    )


def bare(axes: Axes, *, grid_axis: str) -> None:
    """Two spines, and a faint grid across `grid_axis`."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="x" if grid_axis == "x" else "y", color=FAINT, lw=0.7)
    axes.tick_params(axis="x", length=3, width=0.7)
    axes.tick_params(axis="y", length=0)


def png(figure: Figure) -> bytes:
    """The figure as a file's content."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    # Without its name and version the writer leaves no trace, so equal figures are equal files.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
