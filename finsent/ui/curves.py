"""The Training curves tab: how the runs got where they are, drawn from history.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from finsent.charts import ARM_STYLES, GROWTH_SYMBOL, PANELS, curve_figures, growth_events
from finsent.config import ARMS
from finsent.leaderboard import baseline_of
from finsent.runs import Run
from finsent.ui.markup import notice, swatch, table
from finsent.ui.selectors import RunSelectors, add_run_selectors
from finsent.ui.state import Catalog


def legend_html(arms: Sequence[str], runs: Sequence[Run]) -> str:
    """One legend for all charts."""
    items = [
        f"<li>{swatch(arm)}{escape(ARM_STYLES[arm].title)}</li>"
        for arm in ARMS
        if arm in arms and any(run.arm == arm for run in runs)
    ]
    if any(growth_events(run) for run in runs if run.arm in arms):
        items.append(f"<li>{swatch('dendritic', GROWTH_SYMBOL)}dendrite grown</li>")
    items.append(
        '<li class="fs-quiet">thick: mean over seeds; thin: one seed; dotted: training loss</li>'
    )
    return f'<ul class="fs-legend">{"".join(items)}</ul>'


def growth_html(runs: Sequence[Run]) -> str:
    """What growth did to the validation score, seed by seed, and whether it paid."""
    rows = [_growth_row(run, baseline_of(run, runs)) for run in runs if run.arm == "dendritic"]
    if not rows:
        return ""
    return (
        "<h2>Did growing pay on validation?</h2>"
        + table(
            [
                "Seed",
                "Grown",
                "Dendrites kept",
                "Best NLL before growth",
                "NLL of the kept state",
                "Baseline's NLL",
                "Share of the logits",
                "Paid?",
            ],
            rows,
            caption="Dendritic runs: validation loss before growth and after",
            numeric=(2, 3, 4, 5, 6),
            css_class="fs-wide",
        )
        + '<p class="fs-quiet">Lower is better. Growth paid if the kept state is below that of the '
        "baseline, which took as many steps. Before the first dendrite the baseline and the "
        "dendritic run of a seed are the same run, step for step.</p>"
    )


def _growth_row(run: Run, baseline: Run | None) -> list[str]:
    metrics = run.metrics
    other = None if baseline is None else baseline.metrics["validation"]["nll"]
    events = ", ".join(f"{event}, end of epoch {epoch}" for epoch, event in growth_events(run))
    before, share = metrics["best_before_growth"], metrics["dendrite_logit_share"]
    after = metrics["validation"]["nll"]
    if metrics["dendrites"] == 0:
        paid = "no dendrite kept"
    elif other is None:
        paid = "no baseline to compare"
    else:
        paid = "yes" if after < other else "no"
    return [
        str(run.seed),
        escape(events or "never"),
        str(metrics["dendrites"]),
        "–" if before is None else f"{before['nll']:.4f}",
        f"{after:.4f}",
        "–" if other is None else f"{other:.4f}",
        "–" if share is None else f"{100 * share:.1f}\u202f%",
        paid,
    ]


def add_curves_tab(catalog: Catalog) -> RunSelectors | None:
    """Draws the tab inside the current gr.Tab. Returns its selectors; None without runs."""
    if not catalog.runs:
        gr.HTML(notice("No curves yet.", "They appear with the first finished run."))
        return None
    first = catalog.select(catalog.backbones()[0])
    runs = catalog.of(first.backbone, first.dataset)
    figures = curve_figures(runs)
    with gr.Row(elem_classes="fs-controls"):
        selectors = add_run_selectors(catalog, first, with_seed=False, prefix="curves")
        arms = gr.CheckboxGroup(
            choices=[(ARM_STYLES[arm].title, arm) for arm in ARMS],
            value=list(ARMS),
            label="Arms",
            elem_id="curves-arms",
            min_width=300,
        )
        seeds = gr.Checkbox(
            value=True, label="Show each seed", elem_id="curves-seeds", min_width=150
        )
    legend = gr.HTML(legend_html(ARMS, runs), elem_id="curves-legend")
    plots: list[gr.Plot] = []
    with gr.Row(elem_classes="fs-panels"):
        for panel in PANELS:
            with gr.Column(elem_classes="fs-panel", min_width=0):
                gr.HTML(
                    f"<h2>{escape(panel.title)} "
                    f'<span class="fs-quiet">{escape(panel.unit)}</span></h2>'
                )
                plots.append(
                    gr.Plot(
                        figures[panel.key],
                        show_label=False,
                        container=False,
                        elem_id=f"chart-{panel.key}",
                        buttons=[],
                    )
                )
    growth = gr.HTML(growth_html(runs), elem_id="growth")

    def draw(backbone: str, dataset: str, shown: list[str], each_seed: bool) -> list[Any]:
        # The selectors change one after the other; in between they name no runs together.
        wanted = catalog.select(backbone, dataset)
        found = catalog.of(wanted.backbone, wanted.dataset)
        if not any(run.arm in shown for run in found):
            raise gr.Error("Tick at least one arm that has runs here.", print_exception=False)
        drawn = curve_figures(found, arms=shown, show_seeds=each_seed)
        return [
            legend_html(shown, found),
            *(drawn[panel.key] for panel in PANELS),
            growth_html(found),
        ]

    gr.on(
        [component.change for component in (*selectors.components, arms, seeds)],
        draw,
        inputs=[*selectors.components, arms, seeds],
        outputs=[legend, *plots, growth],
        show_progress="hidden",
        queue=False,
        api_visibility="private",
    )
    return selectors
