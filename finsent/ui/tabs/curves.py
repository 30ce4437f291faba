"""Evidence, training curves: how the runs got where they are, drawn from history.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from finsent.plots.curves import (
    BAND,
    DIFFERENCE,
    FIRST_PANELS,
    LINES,
    MOST_SMOOTHING,
    PANELS,
    CurveView,
    curve_figure,
    growth_events,
)
from finsent.plots.style import ChartError
from finsent.results.catalog import Catalog, backbone_title, dataset_title
from finsent.results.runs import Run
from finsent.ui.parts.markup import arm_title, html, notice
from finsent.ui.parts.selectors import QUICK, RunSelectors, chosen_runs

NOTHING = ""
"""The choice of no run to lay over the others."""


def run_title(run: Run) -> str:
    """A run's name for people."""
    return (
        f"{backbone_title(run.folder.parts[-4])}, {dataset_title(run.dataset)}, "
        f"{arm_title(run.arm).lower()}, run {run.seed}"
    )


def growth_html(runs: Sequence[Run], board: Mapping[str, Any] | None) -> str:
    """What growth did to the validation score, run by run, and whether it paid."""
    dendritic = [run for run in runs if run.arm == "dendritic"]
    if not dendritic or board is None:
        return ""
    facts = {row["folder"]: row["growth"] for row in board["rows"]}
    found = [(run, facts.get("/".join(run.folder.parts[-4:]))) for run in dendritic]
    if any(growth is None for _, growth in found):
        return notice(
            "Newer than the board.",
            "What growth did is read from leaderboard.json; make it again with "
            "`python train_models.py leaderboard`.",
        )
    return html("growth", rows=[(run, growth, growth_events(run)) for run, growth in found])


def add_curves_tab(catalog: Catalog, selectors: RunSelectors | None) -> None:
    """Draws the section inside the current gr.Tab. selectors: which runs; None without any."""
    if selectors is None:
        gr.HTML(notice("No curves yet.", "They appear with the first finished run."))
        return
    with gr.Row(elem_classes="fs-controls"):
        show = gr.Radio(
            [
                ("Mean and band", BAND),
                ("Every run", LINES),
                ("Difference from baseline", DIFFERENCE),
            ],
            value=BAND,
            label="Show",
            elem_id="curves-show",
        )
        smoothing = gr.Slider(
            0, MOST_SMOOTHING, value=0, step=0.1, label="Smoothing", elem_id="curves-smoothing"
        )
    by_title = {run_title(run): run for run in catalog.runs}
    with gr.Accordion("More", open=False, elem_id="curves-more"):
        with gr.Row(elem_classes="fs-controls"):
            axis = gr.Radio(
                [("Epoch", "epoch"), ("Training time", "time")],
                value="epoch",
                label="Horizontal axis",
                elem_id="curves-x",
            )
            log = gr.Checkbox(
                label="Log scale for loss and learning rate", elem_id="curves-log", min_width=0
            )
            beside = gr.Dropdown(
                [("None", NOTHING), *by_title],
                value=NOTHING,
                label="Lay another run over these",
                elem_id="curves-beside",
            )
        panels = gr.CheckboxGroup(
            [(panel.title, panel.key) for panel in PANELS],
            value=list(FIRST_PANELS),
            label="Charts",
            elem_id="curves-panels",
        )

    def draw(
        backbone: str,
        dataset: str,
        seed: int,
        show: str = BAND,
        smoothing: float = 0.0,
        axis: str = "epoch",
        log: bool = False,
        beside: str = NOTHING,
        panels: Sequence[str] = FIRST_PANELS,
    ) -> tuple[Any, str, str]:
        runs = chosen_runs(catalog, backbone, dataset, seed)
        growth = growth_html(runs, catalog.leaderboard)
        try:
            view = CurveView(show, axis, log, smoothing, tuple(panels))
            figure = curve_figure(runs, view=view, beside=by_title.get(beside))
        except ChartError as error:
            return None, notice("Nothing to draw.", f"{error}."), growth
        return figure, html("curves", view=view), growth

    drawn = draw(*(component.value for component in selectors.components))
    plot = gr.Plot(drawn[0], show_label=False, container=False, elem_id="chart-curves", buttons=[])
    said = gr.HTML(drawn[1], elem_id="curves-note")
    growth = gr.HTML(drawn[2], elem_id="growth")
    controls = [*selectors.components, show, smoothing, axis, log, beside, panels]
    gr.on(
        [component.change for component in controls],
        draw,
        inputs=controls,
        outputs=[plot, said, growth],
        **QUICK,
    )
