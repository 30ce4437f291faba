"""Evidence, where they differ: how each variant errs, and test answers one by one.

Everything comes from saved predictions. Sentences are shown where this machine may show them;
elsewhere cases written for this project stand for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import gradio as gr

from finsent.config import STUDY_ARMS
from finsent.data.agreement import BANDS
from finsent.data.records import DataError
from finsent.data.registry import DATASETS, local_texts
from finsent.plots.board import SHARES, reliability_figure, selective_figure
from finsent.results.catalog import Catalog, Selection
from finsent.results.disagreements import (
    CONFIDENT,
    CONFIDENTLY_WRONG,
    DISAGREE,
    Case,
    choose,
    read_cases,
)
from finsent.results.metrics import selective
from finsent.results.runs import Run, read_predictions, slug
from finsent.ui.parts.events import interactive_html, sent
from finsent.ui.parts.markup import arm_title, arms_legend, html, label_mark, notice
from finsent.ui.parts.selectors import (
    ALL_RUNS,
    QUICK,
    LinkedCheckboxes,
    LinkedDropdown,
    RunSelectors,
    chosen_runs,
    moved,
)
from finsent.ui.tabs.behaviour import differing_html

PAGE = 5
"""Examples shown at first, and added by each click."""
ALL = ""
MORE = "more"
SEPARATOR = "|"


@lru_cache(maxsize=16)
def texts_of(dataset: str) -> tuple[Mapping[str, str] | None, str]:
    """Sentences by id, or None and why there are none."""
    try:
        texts = local_texts(dataset)
    except DataError as error:
        return None, f"The copy of the data set here cannot be read: {error}"
    if texts is not None:
        return texts, ""
    licence = f" ({DATASETS[dataset].licence})" if dataset in DATASETS else ""
    return None, (
        f"The sentences of this data set are not part of the page{licence}, so the list holds "
        "their ids. About says how to show them on a machine of one’s own."
    )


def _box(dataset: str) -> dict[str, Any]:
    """Heading of the list of answers; where it holds ids only, it is folded."""
    here = texts_of(dataset)[0] is not None
    return {
        "label": "Test sentences" if here else "Sentences hidden by licence: show ids",
        "open": here,
    }


def _box_update(dataset: str) -> dict[str, Any]:
    """For another data set. It is never folded: the visitor may have opened it meanwhile."""
    box = _box(dataset)
    return dict(gr.update(**box) if box["open"] else gr.update(label=box["label"]))


def cases_html(found: Sequence[Case], total: int, shown: int, kind: str, dataset: str) -> str:
    """The first `shown` of the cases found among `total` answers."""
    texts, hint = texts_of(dataset)
    return html(
        "cases",
        found=found[:shown],
        count_found=len(found),
        total=total,
        more=max(0, min(PAGE, len(found) - shown)),
        left=len(found) - shown,
        disagree=kind == DISAGREE,
        confident=CONFIDENT,
        texts=texts,
        hint=hint,
        bands=BANDS,
        key=case_key,
        mark=label_mark,
        more_key=MORE,
    )


def case_key(case: Case) -> str:
    """What a case's button sends: seed and id."""
    return f"{case.seed}{SEPARATOR}{case.id}"


def case_of(key: str, dataset: str) -> tuple[int, str]:
    """Seed and sentence of a case's button. Raises gr.Error for one that is not on this page."""
    seed, _, example = key.partition(SEPARATOR)
    texts, hint = texts_of(dataset)
    text = (texts or {}).get(example)
    if text is None or not seed.isdecimal():
        raise gr.Error(hint or f"no sentence {example!r} here", print_exception=False)
    return int(seed), text


def scores_html(arms: Sequence[Mapping[str, Any]], label_names: Sequence[str], part: str) -> str:
    """A template of the scores of arms: `confusions`, `classes` or `bands`."""
    return html(part, arms=arms, names=label_names, mark=label_mark, bands=BANDS)


class DifferTab:
    """The section's components. `examples` triggers `click` with what `rerun` understands."""

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
        """Draws the section inside the current gr.Tab."""
        if self.selectors is None or self.catalog.leaderboard is None:
            gr.HTML(
                notice(
                    "Nothing to compare yet.",
                    "This needs finished runs and leaderboard.json; "
                    "`python train_models.py leaderboard` makes it.",
                )
            )
            return
        chosen = [component.value for component in self.selectors.components]
        scores = self._scores(*chosen)
        gr.HTML("<h2>How each variant errs</h2>")
        outputs: list[Any] = [gr.HTML(scores[0], elem_id="confusions")]
        gr.HTML("<h2>Answers on which they differ</h2>")
        filters = self._draw_filters(*chosen)
        shown = gr.State(PAGE)
        with gr.Accordion(**_box(chosen[1]), elem_id="differ-box") as box:
            self.examples = interactive_html(
                self._examples(PAGE, *chosen, *(control.value for control in filters)),
                "differ-cases",
            )
        written = gr.HTML(differing_html(self.catalog, *chosen[:2]), elem_id="differ-written")
        gr.HTML("<h2>How far to trust their confidence</h2>")
        with gr.Row(elem_classes="fs-panels"):
            for name, at in (("reliability", 1), ("selective", 3)):
                with gr.Column(elem_classes="fs-panel", min_width=0):
                    outputs.append(gr.HTML(scores[at], elem_id=f"{name}-note"))
                    outputs.append(
                        gr.Plot(
                            scores[at + 1],
                            show_label=False,
                            container=False,
                            elem_id=f"chart-{name}",
                            buttons=[],
                        )
                    )
        with gr.Accordion("Scores by class and by agreement", open=False, elem_id="differ-scores"):
            outputs.append(gr.HTML(scores[5], elem_id="per-class"))
            outputs.append(gr.HTML(scores[6], elem_id="by-agreement"))
        self._connect(self.selectors, filters, shown, self.examples, [*outputs, written, box])

    def _draw_filters(self, backbone: str, dataset: str, seed: int) -> list[Any]:
        """What is shown of the answers: kind, class, annotators and arms."""
        plain: dict[str, Any] = {"filterable": False, "min_width": 150}
        arms = self._arms(backbone, dataset)
        with gr.Row(elem_classes="fs-controls"):
            return [
                gr.Radio(
                    [("They disagree", DISAGREE), ("Confidently wrong", CONFIDENTLY_WRONG)],
                    value=DISAGREE,
                    label="Show answers where",
                    elem_id="differ-kind",
                    min_width=280,
                ),
                LinkedDropdown(
                    self._label_choices(backbone, dataset),
                    value=ALL,
                    label="True class",
                    elem_id="differ-class",
                    **plain,
                ),
                gr.Dropdown(
                    [("All", ALL), *((title, band) for band, title in BANDS.items())],
                    value=ALL,
                    label="Annotators who agreed",
                    elem_id="differ-level",
                    **plain,
                ),
                LinkedCheckboxes(
                    self._variants(backbone, dataset),
                    value=arms,
                    label="Variants",
                    elem_id="differ-arms",
                ),
            ]

    def _connect(
        self,
        selectors: RunSelectors,
        filters: Sequence[Any],
        shown: gr.State,
        examples: gr.HTML,
        scores: Sequence[Any],
    ) -> None:
        _, label, _, arms = filters
        chosen = [*selectors.components, *filters]

        def other_choices(
            backbone: str, dataset: str, label: str, arms: list[str]
        ) -> list[dict[str, Any]]:
            labels = self._label_choices(backbone, dataset)
            known = {value for _, value in labels}
            return [
                moved(labels, label, label if label in known else ALL),
                moved(self._variants(backbone, dataset), arms, self._arms(backbone, dataset)),
            ]

        def other_runs(backbone: str, dataset: str, seed: int) -> list[Any]:
            return [
                *self._scores(backbone, dataset, seed),
                differing_html(self.catalog, backbone, dataset),
                _box_update(self.catalog.select(backbone, dataset).dataset),
            ]

        def filtered(*values: Any) -> tuple[int, str]:
            return PAGE, self._examples(PAGE, *values)

        def more(event: gr.EventData, now: int, *values: Any) -> tuple[Any, Any]:
            if sent(event) != MORE:
                return gr.skip(), gr.skip()
            return now + PAGE, self._examples(now + PAGE, *values)

        # Apart from the scores: those also follow the seed, and are longer on their way.
        gr.on(
            [component.change for component in selectors.components[:2]],
            other_choices,
            inputs=[*selectors.components[:2], label, arms],
            outputs=[label, arms],
            **QUICK,
        )
        gr.on(
            [component.change for component in selectors.components],
            other_runs,
            inputs=selectors.components,
            outputs=list(scores),
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

    def _arms(self, backbone: str, dataset: str) -> list[str]:
        """Arms with runs of this backbone on this data set."""
        found = {run.arm for run in chosen_runs(self.catalog, backbone, dataset, ALL_RUNS)}
        return [arm for arm in STUDY_ARMS if arm in found]

    def _others(self, dataset: str) -> list[Run]:
        """Models not trained here that were tested on a data set, each under its own name."""
        return [
            replace(run, arm=run.backbone)
            for run in self.catalog.external
            if run.dataset == dataset
        ]

    def _variants(self, backbone: str, dataset: str) -> list[tuple[str, str | int | float]]:
        """What can be ticked: arms of this backbone, and models not trained here."""
        wanted = self.catalog.select(backbone, dataset)
        names = dict.fromkeys(run.arm for run in self._others(wanted.dataset))
        return [(arm_title(arm), arm) for arm in (*self._arms(backbone, dataset), *names)]

    def _label_choices(self, backbone: str, dataset: str) -> list[tuple[str, str | int | float]]:
        run = chosen_runs(self.catalog, backbone, dataset, ALL_RUNS)[0]
        return [("All", ALL), *((name, name) for name in run.label_names)]

    def _examples(
        self,
        shown: int,
        backbone: str,
        dataset: str,
        seed: int,
        kind: str,
        label: str,
        level: str,
        arms: Sequence[str],
    ) -> str:
        wanted = self.catalog.select(backbone, dataset)
        known = [str(arm) for _, arm in self._variants(backbone, dataset)]
        picked = tuple(arm for arm in known if arm in arms)
        if len(picked) < (2 if kind == DISAGREE else 1):
            return notice(
                "Too few variants.",
                "Tick at least two that have runs here."
                if kind == DISAGREE
                else "Tick one that has runs here.",
            )
        cases = self._cases(wanted.backbone, wanted.dataset, picked)
        if seed in {case.seed for case in cases}:
            cases = [case for case in cases if case.seed == seed]
        found = choose(cases, kind, label=label or None, level=level or None)
        return cases_html(found, len(cases), shown, kind, wanted.dataset)

    def _cases(self, backbone: str, dataset: str, arms: tuple[str, ...]) -> list[Case]:
        """Read once: the files do not change while the app runs."""
        key = (backbone, dataset, arms)
        if key not in self._read:
            every = [*self.catalog.of(backbone, dataset), *self._others(dataset)]
            runs = [run for run in every if run.arm in arms]
            self._read[key] = read_cases(runs)
        return self._read[key]

    def _scores(self, backbone: str, dataset: str, seed: int) -> list[Any]:
        """Confusion matrices; legend and chart of reliability; note and chart of selective
        answering; scores by class and by agreement."""
        runs = chosen_runs(self.catalog, backbone, dataset, seed)
        board = self.catalog.leaderboard or {"arms": [], "rows": []}
        place = (runs[0].backbone, runs[0].dataset)
        arms = sorted(
            (arm for arm in board["arms"] if (arm["backbone"], arm["dataset"]) == place),
            key=lambda arm: STUDY_ARMS.index(arm["arm"]),
        )
        if not arms:
            newer = notice(
                "Newer than the board.",
                "Scores are read from leaderboard.json; make it again with "
                "`python train_models.py leaderboard`.",
            )
            return [newer, "", None, "", None, "", ""]
        names = runs[0].label_names
        legend = arms_legend([arm["arm"] for arm in arms])
        return [
            scores_html(_of_run(arms, runs, seed), names, "confusions"),
            html("reliability", legend=legend),
            reliability_figure(arms),
            html("selective"),
            selective_figure(self._selective(dataset, seed)),
            scores_html(_of_run(arms, runs, seed), names, "classes"),
            scores_html(arms, names, "bands"),
        ]

    def _selective(self, dataset: str, seed: int) -> dict[tuple[str, str], list[float]]:
        """For every model of a data set, its accuracy at each of SHARES, mean over the runs."""
        runs: dict[tuple[str, str], list[Run]] = {}
        for run in self.catalog.runs:
            if run.dataset == dataset and seed in (ALL_RUNS, run.seed):
                runs.setdefault((slug(run.backbone), run.arm), []).append(run)
        return {
            model: [fmean(at) for at in zip(*map(_selective_of, of_model), strict=True)]
            for model, of_model in runs.items()
        }


@lru_cache(maxsize=512)
def _read_selective(run_folder: str, label_names: tuple[str, ...]) -> tuple[float, ...]:
    read = read_predictions(Path(run_folder) / "predictions.csv", label_names)
    return tuple(map(float, selective(read.label_indices, read.probabilities, SHARES)))


def _selective_of(run: Run) -> tuple[float, ...]:
    return _read_selective(str(run.folder), run.label_names)


def _of_run(
    arms: Sequence[Mapping[str, Any]], runs: Sequence[Run], seed: int
) -> list[Mapping[str, Any]]:
    """Arms of the board, or what a single run of each has in their place."""
    if seed == ALL_RUNS:
        return list(arms)
    alone = {run.arm: run.metrics for run in runs}
    return [
        {
            **arm,
            "confusion": alone[arm["arm"]]["confusion"],
            "per_class": {
                name: {**entry, "f1_sd": None}
                for name, entry in alone[arm["arm"]]["per_class"].items()
            },
        }
        for arm in arms
        if arm["arm"] in alone
    ]
