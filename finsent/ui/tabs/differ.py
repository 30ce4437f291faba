"""The Where they differ tab: test examples one by one, and how each arm errs.

Everything comes from saved predictions. Sentences are shown only where this machine has a copy of
the data set; elsewhere their ids stand for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from finsent.config import STUDY_ARMS
from finsent.data.agreement import BANDS
from finsent.plots.board import reliability_figure
from finsent.plots.style import ARM_STYLES
from finsent.results.catalog import Catalog, Selection
from finsent.results.disagreements import CONFIDENTLY_WRONG, DISAGREE, Case, choose, read_cases
from finsent.ui.parts.events import interactive_html, sent
from finsent.ui.parts.markup import arms_legend, notice
from finsent.ui.parts.selectors import QUICK, RunSelectors
from finsent.ui.tabs.differ_html import (
    ALL,
    MORE,
    PAGE,
    SEPARATOR,
    by_agreement_html,
    case_of,
    cases_html,
    confusions_html,
    per_class_html,
)


class DifferTab:
    """The tab's components. `examples` triggers `click` with what `rerun` understands."""

    def __init__(self, catalog: Catalog, selectors: RunSelectors | None) -> None:
        """selectors: which runs; None without any."""
        self.catalog, self.selectors = catalog, selectors
        self.examples: gr.HTML | None = None
        self._read: dict[tuple[str, str, tuple[str, ...]], list[Case]] = {}

    def rerun(
        self, backbone: str, dataset: str, event: gr.EventData
    ) -> tuple[Selection, str] | None:
        """The runs and the sentence that a click asks for; None when it asked for something else.

        Raises gr.Error when the sentence is not here.
        """
        key = sent(event)
        if SEPARATOR not in key:
            return None
        seed, text = case_of(key, dataset)
        return self.catalog.select(backbone, dataset, seed), text

    def draw(self) -> None:
        """Draws the tab inside the current gr.Tab."""
        board = self.catalog.leaderboard
        if self.selectors is None or board is None:
            gr.HTML(
                notice(
                    "Nothing to compare yet.",
                    "This tab needs finished runs and leaderboard.json; "
                    "`python train_models.py leaderboard` makes it.",
                )
            )
            return
        first = self.catalog.select(self.catalog.backbones()[0])
        filters = self._draw_filters(first)
        start = (first.backbone, first.dataset, ALL, ALL, ALL, DISAGREE, list(self._arms(first)))
        shown = gr.State(PAGE)
        self.examples = interactive_html(self._examples(PAGE, *start), "differ-cases")
        scores = self._draw_scores(first)
        self._connect(self.selectors, filters, shown, self.examples, scores)

    def _draw_filters(self, first: Selection) -> list[Any]:
        """What is shown of the runs: seed, class, annotators, kind of example and arms."""
        with gr.Row(elem_classes="fs-controls"):
            seed = gr.Dropdown(
                self._seed_choices(first),
                value=ALL,
                label="Seed",
                elem_id="differ-seed",
                filterable=False,
                min_width=110,
            )
            label = gr.Dropdown(
                self._label_choices(first),
                value=ALL,
                label="True class",
                elem_id="differ-class",
                filterable=False,
                min_width=130,
            )
            level = gr.Dropdown(
                [("All", ALL), *((title, band) for band, title in BANDS.items())],
                value=ALL,
                label="Annotators",
                elem_id="differ-level",
                filterable=False,
                min_width=150,
            )
        with gr.Row(elem_classes="fs-controls"):
            kind = gr.Radio(
                [("The arms disagree", DISAGREE), ("Confidently wrong", CONFIDENTLY_WRONG)],
                value=DISAGREE,
                label="Show examples on which",
                elem_id="differ-kind",
                min_width=320,
            )
            arms = gr.CheckboxGroup(
                [(ARM_STYLES[arm].title, arm) for arm in self.catalog.arm_names()],
                value=self._arms(first),
                label="Arms",
                elem_id="differ-arms",
                min_width=300,
            )
        return [seed, label, level, kind, arms]

    def _draw_scores(self, first: Selection) -> list[Any]:
        """The components that show what `_scores` returns, in its order."""
        scores = self._scores(first.backbone, first.dataset)
        gr.HTML("<h2>How each arm errs</h2>")
        confusion = gr.HTML(scores[0], elem_id="confusions")
        with gr.Row(elem_classes="fs-panels fs-uneven"):
            with gr.Column(elem_classes="fs-panel", min_width=0):
                gr.HTML('<h2>Reliability <span class="fs-quiet">test, all seeds</span></h2>')
                legend = gr.HTML(scores[1], elem_id="reliability-legend")
                plot = gr.Plot(
                    scores[2],
                    show_label=False,
                    container=False,
                    elem_id="chart-reliability",
                    buttons=[],
                )
            with gr.Column(elem_classes="fs-panel", min_width=0):
                gr.HTML('<h2>By class <span class="fs-quiet">test, mean over seeds</span></h2>')
                classes = gr.HTML(scores[3], elem_id="per-class")
        gr.HTML(
            "<h2>By agreement of the annotators "
            '<span class="fs-quiet">test, mean over seeds</span></h2>'
        )
        return [confusion, legend, plot, classes, gr.HTML(scores[4], elem_id="by-agreement")]

    def _connect(
        self,
        selectors: RunSelectors,
        filters: Sequence[Any],
        shown: gr.State,
        examples: gr.HTML,
        scores: Sequence[Any],
    ) -> None:
        seed, label = filters[:2]
        chosen = [*selectors.components, *filters]

        def filtered(*values: Any) -> tuple[int, str]:
            return PAGE, self._examples(PAGE, *values)

        def more(
            now: int,
            backbone: str,
            dataset: str,
            seed: str,
            label: str,
            level: str,
            kind: str,
            arms: list[str],
            event: gr.EventData,
        ) -> tuple[Any, Any]:
            if sent(event) != MORE:
                return gr.skip(), gr.skip()
            wanted = now + PAGE
            return wanted, self._examples(wanted, backbone, dataset, seed, label, level, kind, arms)

        def other_runs(backbone: str, dataset: str) -> list[Any]:
            wanted = self.catalog.select(backbone, dataset)
            return [
                gr.update(choices=self._seed_choices(wanted), value=ALL),
                gr.update(choices=self._label_choices(wanted), value=ALL),
                *self._scores(wanted.backbone, wanted.dataset),
            ]

        gr.on(
            [component.change for component in selectors.components],
            other_runs,
            inputs=selectors.components,
            outputs=[seed, label, *scores],
            **QUICK,
        )
        gr.on(
            [component.change for component in chosen],
            filtered,
            inputs=chosen,
            outputs=[shown, examples],
            **QUICK,
        )
        examples.click(more, inputs=[shown, *chosen], outputs=[shown, examples], **QUICK)

    def _arms(self, selection: Selection) -> list[str]:
        """Arms with runs of this backbone on this data set."""
        found = {run.arm for run in self.catalog.of(selection.backbone, selection.dataset)}
        return [arm for arm in STUDY_ARMS if arm in found]

    def _seed_choices(self, selection: Selection) -> list[tuple[str, str | int | float]]:
        seeds = self.catalog.seeds(selection.backbone, selection.dataset)
        return [("All", ALL), *((str(seed), str(seed)) for seed in seeds)]

    def _label_choices(self, selection: Selection) -> list[tuple[str, str | int | float]]:
        run = self.catalog.of(selection.backbone, selection.dataset)[0]
        return [("All", ALL), *((name, name) for name in run.label_names)]

    def _examples(
        self,
        shown: int,
        backbone: str,
        dataset: str,
        seed: str,
        label: str,
        level: str,
        kind: str,
        arms: Sequence[str],
    ) -> str:
        # The selectors change one after the other; in between they name no runs together.
        wanted = self.catalog.select(backbone, dataset)
        picked = tuple(arm for arm in self._arms(wanted) if arm in arms)
        if len(picked) < (2 if kind == DISAGREE else 1):
            return notice(
                "Too few arms.",
                "Tick at least two arms that have runs here."
                if kind == DISAGREE
                else "Tick an arm that has runs here.",
            )
        cases = self._cases(wanted.backbone, wanted.dataset, picked)
        found = choose(
            cases,
            kind,
            seed=int(seed) if seed else None,
            label=label or None,
            level=level or None,
        )
        total = sum(not seed or case.seed == int(seed) for case in cases)
        return cases_html(found, total, shown, kind, wanted.dataset)

    def _cases(self, backbone: str, dataset: str, arms: tuple[str, ...]) -> list[Case]:
        """Read once: the files do not change while the app runs."""
        key = (backbone, dataset, arms)
        if key not in self._read:
            runs = [run for run in self.catalog.of(backbone, dataset) if run.arm in arms]
            self._read[key] = read_cases(runs)
        return self._read[key]

    def _scores(self, backbone: str, dataset: str) -> tuple[str, str, Any, str, str]:
        """Confusion matrices, legend, reliability diagram, scores by class and by agreement."""
        wanted = self.catalog.select(backbone, dataset)
        runs = self.catalog.of(wanted.backbone, wanted.dataset)
        order = {arm: number for number, arm in enumerate(STUDY_ARMS)}
        arms = sorted(
            (
                arm
                for arm in (self.catalog.leaderboard or {})["arms"]
                if arm["backbone"] == runs[0].backbone and arm["dataset"] == wanted.dataset
            ),
            key=lambda arm: order[arm["arm"]],
        )
        if not arms:
            newer = notice(
                "Newer than the board.",
                "Scores are read from leaderboard.json; make it again with "
                "`python train_models.py leaderboard`.",
            )
            return newer, "", None, "", ""
        return (
            confusions_html(arms, runs[0].label_names),
            arms_legend(
                [arm["arm"] for arm in arms],
                "below the dashed line: overconfident; bars: answers in the bin",
            ),
            reliability_figure(arms),
            per_class_html(arms, runs[0].label_names),
            by_agreement_html(arms),
        )
