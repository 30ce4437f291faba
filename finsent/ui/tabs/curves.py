"""The Training curves tab: how the runs got where they are, drawn from history.jsonl."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from finsent.config import STUDY_ARMS
from finsent.plots.curves import PANELS, CurveView, curve_figures, growth_events, overlay_figures
from finsent.plots.style import ARM_STYLES, GROWTH_SYMBOL
from finsent.results.catalog import Catalog, backbone_title, dataset_title
from finsent.results.runs import Run
from finsent.ui.parts.markup import dash, notice, swatch, table
from finsent.ui.parts.selectors import QUICK, RunSelectors

BY_ARM, TWO_RUNS = "arms", "two"

_SEED_NOTES = {
    "lines": "thick: mean over seeds; thin: one seed",
    "band": "line: mean over seeds; band: lowest to highest seed",
    "mean": "mean over seeds",
}


def legend_html(arms: Sequence[str], runs: Sequence[Run], view: CurveView) -> str:
    """One legend for all charts of one data set's arms."""
    items = [
        f"<li>{swatch(arm)}{escape(ARM_STYLES[arm].title)}</li>"
        for arm in STUDY_ARMS
        if arm in arms and any(run.arm == arm for run in runs)
    ]
    if any(growth_events(run) for run in runs if run.arm in arms):
        items.append(_grown())
    items.append(_note(f"{_SEED_NOTES[view.seeds]}; dotted: training loss"))
    return f'<ul class="fs-legend">{"".join(items)}</ul>'


def overlay_legend_html(first: Run, second: Run) -> str:
    """The legend of two runs laid over each other."""
    items = [
        f"<li>{dash(run.arm, dashed)}{name}: {escape(run_title(run))}</li>"
        for name, run, dashed in (("A", first, False), ("B", second, True))
    ]
    if growth_events(first) or growth_events(second):
        items.append(_grown())
    items.append(_note("dotted: training loss"))
    return f'<ul class="fs-legend">{"".join(items)}</ul>'


def _grown() -> str:
    return f"<li>{swatch('dendritic', GROWTH_SYMBOL)}dendrite grown</li>"


def _note(text: str) -> str:
    return f'<li class="fs-quiet">{escape(text)}</li>'


def run_title(run: Run) -> str:
    """A run's name for people."""
    return (
        f"{backbone_title(run.folder.parts[-4])}, {dataset_title(run.dataset)}, {run.arm}, "
        f"seed {run.seed}"
    )


def growth_html(runs: Sequence[Run], board: Mapping[str, Any] | None) -> str:
    """What growth did to the validation score, seed by seed, and whether it paid."""
    dendritic = [run for run in runs if run.arm == "dendritic"]
    if not dendritic or board is None:
        return ""
    facts = {row["folder"]: row["growth"] for row in board["rows"]}
    rows = []
    for run in dendritic:
        found = facts.get("/".join(run.folder.parts[-4:]))
        if found is None:
            return notice(
                "Newer than the board.",
                "What growth did is read from leaderboard.json; make it again with "
                "`python train_models.py leaderboard`.",
            )
        rows.append(_growth_row(run, found))
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


def _growth_row(run: Run, facts: Mapping[str, Any]) -> list[str]:
    events = ", ".join(f"{event}, end of epoch {epoch}" for epoch, event in growth_events(run))
    paid = {True: "yes", False: "no", None: "no baseline to compare"}[facts["paid_on_validation"]]
    share = facts["logit_share"]
    return [
        str(run.seed),
        escape(events or "never"),
        str(run.metrics["dendrites"]),
        _loss(facts["val_nll_before"]),
        _loss(run.metrics["validation"]["nll"]),
        _loss(facts["val_nll_baseline"]),
        "–" if share is None else f"{100 * share:.1f}\u202f%",
        paid if facts["grown"] else "no dendrite kept",
    ]


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


@dataclass(frozen=True)
class _Controls:
    """What says which runs are drawn, and how."""

    mode: gr.Radio
    axis: gr.Radio
    log: gr.Checkbox
    by_arm: gr.Row
    selectors: RunSelectors
    arms: gr.CheckboxGroup
    seeds: gr.Radio
    two_runs: gr.Row
    run_a: gr.Dropdown
    run_b: gr.Dropdown

    @property
    def inputs(self) -> list[Any]:
        """In the order of `_drawing`'s arguments."""
        runs = [*self.selectors.components, self.arms, self.seeds, self.run_a, self.run_b]
        return [self.mode, *runs, self.axis, self.log]


def add_curves_tab(catalog: Catalog, selectors: RunSelectors | None) -> None:
    """Draws the section inside the current gr.Tab. selectors: which runs; None without any."""
    if selectors is None:
        gr.HTML(notice("No curves yet.", "They appear with the first finished run."))
        return
    first = catalog.select(catalog.backbones()[0])
    runs = catalog.of(first.backbone, first.dataset)
    controls = _add_controls(catalog, selectors, runs)
    legend = gr.HTML(legend_html(catalog.arm_names(), runs, CurveView()), elem_id="curves-legend")
    plots = _add_charts(runs)
    growth = gr.HTML(growth_html(runs, catalog.leaderboard), elem_id="growth")
    gr.on(
        [component.change for component in controls.inputs],
        functools.partial(_drawing, catalog),
        inputs=controls.inputs,
        outputs=[controls.by_arm, controls.two_runs, legend, *plots, growth],
        **QUICK,
    )


def _add_controls(catalog: Catalog, selectors: RunSelectors, runs: Sequence[Run]) -> _Controls:
    with gr.Row(elem_classes="fs-controls"):
        mode = gr.Radio(
            [("Arms of one data set", BY_ARM), ("Two runs, overlaid", TWO_RUNS)],
            value=BY_ARM,
            label="Show",
            elem_id="curves-mode",
        )
        axis = gr.Radio(
            [("Epoch", "epoch"), ("Training time", "time")],
            value="epoch",
            label="Horizontal axis",
            elem_id="curves-x",
        )
        log = gr.Checkbox(
            label="Log scale for loss and learning rate", elem_id="curves-log", min_width=0
        )
    with gr.Row(elem_classes="fs-controls") as by_arm:
        arms = gr.CheckboxGroup(
            choices=[(ARM_STYLES[arm].title, arm) for arm in catalog.arm_names()],
            value=catalog.arm_names(),
            label="Arms",
            elem_id="curves-arms",
            min_width=300,
        )
        seeds = gr.Radio(
            [("Lines", "lines"), ("Band", "band"), ("Mean only", "mean")],
            value="lines",
            label="Seeds",
            elem_id="curves-seeds",
            min_width=260,
        )
    names = list(_titles(catalog))
    with gr.Row(elem_classes="fs-controls fs-two", visible=False) as two_runs:
        run_a, run_b = (
            gr.Dropdown(names, value=value, label=label, elem_id=elem_id, min_width=240)
            for value, label, elem_id in (
                (run_title(runs[0]), "Run A, solid", "curves-a"),
                (run_title(_other(runs)), "Run B, dashed", "curves-b"),
            )
        )
    return _Controls(mode, axis, log, by_arm, selectors, arms, seeds, two_runs, run_a, run_b)


def _add_charts(runs: Sequence[Run]) -> list[gr.Plot]:
    """A chart for each of PANELS, in their order."""
    figures = curve_figures(runs)
    plots: list[gr.Plot] = []
    with gr.Row(elem_classes="fs-panels"):
        for panel in PANELS:
            wide = "fs-panel fs-hero" if panel is PANELS[0] else "fs-panel"
            with gr.Column(elem_classes=wide, min_width=0):
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
    return plots


def _drawing(
    catalog: Catalog,
    how: str,
    backbone: str,
    dataset: str,
    shown: list[str],
    seed_view: str,
    name_a: str,
    name_b: str,
    x: str,
    logarithmic: bool,
) -> list[Any]:
    """What the controls ask for: which of them are shown, the legend, the charts, the table."""
    view = CurveView(seeds=seed_view, x=x, log=logarithmic)
    if how == TWO_RUNS:
        titles = _titles(catalog)
        a, b = titles[name_a], titles[name_b]
        drawn, said, table_html = (
            overlay_figures(a, b, view=view),
            overlay_legend_html(a, b),
            "",
        )
    else:
        # The selectors change one after the other; in between they name no runs together.
        wanted = catalog.select(backbone, dataset)
        found = catalog.of(wanted.backbone, wanted.dataset)
        if not any(run.arm in shown for run in found):
            said = notice("Nothing to draw.", "Tick at least one arm that has runs here.")
            return [gr.skip(), gr.skip(), said, *[gr.skip()] * (len(PANELS) + 1)]
        drawn, said = (
            curve_figures(found, arms=shown, view=view),
            legend_html(shown, found, view),
        )
        table_html = growth_html(found, catalog.leaderboard)
    return [
        gr.update(visible=how == BY_ARM),
        gr.update(visible=how == TWO_RUNS),
        said,
        *(drawn[panel.key] for panel in PANELS),
        table_html,
    ]


def _titles(catalog: Catalog) -> dict[str, Run]:
    return {run_title(run): run for run in catalog.runs}


def _other(runs: Sequence[Run]) -> Run:
    """The run to lay over the first: the dendritic one of its seed, else any other."""
    first = runs[0]
    same_seed = [run for run in runs if run.seed == first.seed and run.arm == "dendritic"]
    return (same_seed or list(runs[1:]) or [first])[0]
