"""The Where they differ tab: test examples one by one, and how each arm errs.

Everything comes from saved predictions. Sentences are shown only where this machine has a copy of
the data set; elsewhere their ids stand for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from html import escape
from typing import Any

import gradio as gr

from finsent.agreement import BANDS
from finsent.board_charts import reliability_figure
from finsent.charts import ARM_STYLES
from finsent.config import ARMS
from finsent.data import DATASETS, DataError, local_texts
from finsent.disagreements import (
    CONFIDENT,
    CONFIDENTLY_WRONG,
    DISAGREE,
    Case,
    choose,
    read_cases,
)
from finsent.ui.events import interactive_html, sent
from finsent.ui.markup import (
    arms_legend,
    count,
    label_mark,
    notice,
    percent,
    percent_interval,
    swatch,
    table,
)
from finsent.ui.selectors import RunSelectors, add_run_selectors
from finsent.ui.state import Catalog, Selection

Entry = Mapping[str, Any]

PAGE = 10
"""Examples shown at first, and added by each click."""
ALL = ""
MORE = "more"
_SEPARATOR = "|"


@lru_cache(maxsize=16)
def texts_of(dataset: str) -> tuple[Mapping[str, str] | None, str]:
    """Sentences by id, or None and one line on how to get them."""
    try:
        texts = local_texts(dataset)
    except DataError as error:
        return None, f"The copy of the data set here cannot be read: {error}"
    if texts is not None:
        return texts, ""
    if dataset not in DATASETS:
        return (
            None,
            f"This page knows no source for the sentences of {dataset}; ids stand for them.",
        )
    return None, (
        "Sentences are not part of this page: they are shown by id. Download "
        f"{DATASETS[dataset].files} from {DATASETS[dataset].url}, set FINSENT_DATA_DIR to the "
        "folder and start the app again to read them."
    )


# ----------------------------------------------------------------------------------------- examples


def cases_html(found: Sequence[Case], total: int, shown: int, kind: str, dataset: str) -> str:
    """The first `shown` of the cases found among `total` answers."""
    texts, hint = texts_of(dataset)
    what = (
        "the arms name different labels; largest difference in probability first"
        if kind == DISAGREE
        else f"an arm is wrong with {percent(CONFIDENT, 0)} or more; most confident error first"
    )
    head = (
        f'<p class="fs-found"><b>{count(len(found))}</b> of {count(total)} test answers: {what}.'
        f"</p>{notice('Ids only.', hint) if hint else ''}"
    )
    if not found:
        return head + notice("None.", "No test answer fits; widen the filters above.")
    items = "".join(_case(case, texts) for case in found[:shown])
    left = len(found) - shown
    more = (
        f'<button type="button" class="fs-more" data-send="{MORE}">Show {min(PAGE, left)} more '
        f"of {count(left)}</button>"
        if left > 0
        else ""
    )
    return f'{head}<ol class="fs-cases">{items}</ol>{more}'


def _case(case: Case, texts: Mapping[str, str] | None) -> str:
    text = None if texts is None else texts.get(case.id)
    quoted = (
        f"<blockquote>{escape(text)}</blockquote>"
        if text is not None
        else f"<p><code>{escape(case.id)}</code></p>"
    )
    level = f" · annotators: {BANDS[case.level]}" if case.level else ""
    ident = f" · <code>{escape(case.id)}</code>" if text is not None else ""
    live = (
        f'<button type="button" class="fs-live" data-send="{escape(case_key(case))}" '
        f'aria-label="Rerun live: {escape(text[:60])}">Rerun live</button>'
        if text is not None
        else ""
    )
    arms = "".join(_answer(case, arm) for arm in case.probabilities)
    return (
        f'<li data-id="{escape(case.id)}" data-seed="{case.seed}"><div>{quoted}'
        f'<p class="fs-quiet">labelled <b>{_mark(case.label)} {escape(case.label)}</b>{level} · '
        f"seed {case.seed}{ident}</p>{live}</div><dl>{arms}</dl></li>"
    )


def _answer(case: Case, arm: str) -> str:
    answer = case.answer(arm)
    row = case.probabilities[arm]
    right = answer == case.label
    verdict = "right" if right else "wrong"
    parts = "".join(
        f'<i style="width:{100 * p:.2f}%" data-rank="{index}"></i>' for index, p in enumerate(row)
    )
    each = ", ".join(f"{name} {percent(p)}" for name, p in zip(case.label_names, row, strict=True))
    style = ARM_STYLES[arm]
    return (
        f'<div data-right="{str(right).lower()}" style="--arm:{style.colour}">'
        f"<dt>{swatch(arm)}{escape(style.title)}</dt>"
        f"<dd><b>{_mark(answer)} {escape(answer)}</b> {percent(max(row))} "
        f'<span class="fs-verdict-mark">{"✓" if right else "✗"} {verdict}</span>'
        f'<span class="fs-parts" title="{escape(each)}" aria-hidden="true">{parts}</span>'
        "</dd></div>"
    )


def _mark(label: str) -> str:
    return f'<span aria-hidden="true">{label_mark(label)}</span>'


def case_key(case: Case) -> str:
    """What a case's button sends: seed and id."""
    return f"{case.seed}{_SEPARATOR}{case.id}"


def case_of(key: str, dataset: str) -> tuple[int, str]:
    """Seed and sentence of a case's button. Raises gr.Error for one that is not on this page."""
    seed, _, example = key.partition(_SEPARATOR)
    texts, hint = texts_of(dataset)
    text = (texts or {}).get(example)
    if text is None or not seed.isdecimal():
        raise gr.Error(hint or f"no sentence {example!r} here", print_exception=False)
    return int(seed), text


# ------------------------------------------------------------------------------------------- scores


def confusions_html(arms: Sequence[Entry], label_names: Sequence[str]) -> str:
    """A confusion matrix per arm, all seeds together; shade is the share of the true class."""
    return (
        f'<div class="fs-confusions">{"".join(_confusion(arm, label_names) for arm in arms)}</div>'
        '<p class="fs-quiet">Rows are the true class, columns the answer; test answers of all '
        "seeds. Shade and percentage: share of the row.</p>"
    )


def _confusion(arm: Entry, names: Sequence[str]) -> str:
    style = ARM_STYLES[arm["arm"]]
    head = "".join(f'<th scope="col">{_mark(name)} {escape(name)}</th>' for name in names)
    body = ""
    for name, cells in zip(names, arm["confusion"], strict=True):
        total = sum(cells) or 1
        body += f'<tr><th scope="row">{_mark(name)} {escape(name)}</th>' + "".join(
            f'<td style="--share:{100 * cell / total:.1f}%">{count(cell)}'
            f"<span>{percent(cell / total)}</span></td>"
            for cell in cells
        )
        body += "</tr>"
    return (
        f'<table class="fs-confusion" style="--arm:{style.colour}"><caption>'
        f"{swatch(arm['arm'])}{escape(style.title)}</caption><thead><tr>"
        f"<td></td>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def per_class_html(arms: Sequence[Entry], label_names: Sequence[str]) -> str:
    """Precision, recall and F1 of every class and arm."""
    rows = []
    for name in label_names:
        for arm in arms:
            entry = arm["per_class"][name]
            spread = "" if entry["f1_sd"] is None else f" ± {100 * entry['f1_sd']:.1f}"
            rows.append(
                [
                    f"{_mark(name)} {escape(name)}",
                    _arm(arm),
                    percent(entry["precision"]),
                    percent(entry["recall"]),
                    f'{percent(entry["f1"])}<span class="fs-ci">{spread}</span>',
                    count(entry["support"]),
                ]
            )
    return table(
        ["Class", "Arm", "Precision", "Recall", "F1 ± sd", "Answers"],
        rows,
        caption="Scores by class: mean over seeds",
        numeric=(2, 3, 4, 5),
        css_class="fs-scores",
    )


def by_agreement_html(arms: Sequence[Entry]) -> str:
    """Accuracy and macro-F1 of every agreement band and arm, with intervals."""
    rows = [
        [
            escape(BANDS[band]),
            _arm(arm),
            f'{percent(entry["accuracy"])} <span class="fs-ci">'
            f"{percent_interval(entry['ci']['accuracy'])}</span>",
            f'{percent(entry["macro_f1"])} <span class="fs-ci">'
            f"{percent_interval(entry['ci']['macro_f1'])}</span>",
            count(entry["n_test"]),
        ]
        for band in BANDS
        for arm in arms
        for entry in arm["by_agreement"]
        if entry["level"] == band
    ]
    if not rows:
        return '<p class="fs-quiet">This data set does not say how far its annotators agreed.</p>'
    return table(
        ["Annotators", "Arm", "Accuracy, 95 % CI", "Macro-F1, 95 % CI", "Test answers"],
        rows,
        caption="Scores by agreement of the annotators: mean over seeds with 95 % intervals",
        numeric=(2, 3, 4),
        css_class="fs-scores",
    )


def _arm(arm: Entry) -> str:
    return f'<span class="fs-arm">{swatch(arm["arm"])}{escape(ARM_STYLES[arm["arm"]].title)}</span>'


# ---------------------------------------------------------------------------------------------- tab


class DifferTab:
    """The tab's components. `examples` triggers `click` with what `rerun` understands."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.selectors: RunSelectors | None = None
        self.examples: gr.HTML | None = None
        self._read: dict[tuple[str, str, tuple[str, ...]], list[Case]] = {}

    def rerun(
        self, backbone: str, dataset: str, event: gr.EventData
    ) -> tuple[Selection, str] | None:
        """The runs and the sentence that a click asks for; None when it asked for something else.

        Raises gr.Error when the sentence is not here.
        """
        key = sent(event)
        if _SEPARATOR not in key:
            return None
        seed, text = case_of(key, dataset)
        return self.catalog.select(backbone, dataset, seed), text

    def draw(self) -> None:
        """Draws the tab inside the current gr.Tab."""
        board = self.catalog.leaderboard
        if not self.catalog.runs or board is None:
            gr.HTML(
                notice(
                    "Nothing to compare yet.",
                    "This tab needs finished runs and leaderboard.json; "
                    "`python train_models.py leaderboard` makes it.",
                )
            )
            return
        first = self.catalog.select(self.catalog.backbones()[0])
        with gr.Row(elem_classes="fs-controls"):
            self.selectors = add_run_selectors(
                self.catalog, first, with_seed=False, prefix="differ"
            )
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
                [(ARM_STYLES[arm].title, arm) for arm in ARMS],
                value=[arm for arm in ARMS if arm in self._arms(first)],
                label="Arms",
                elem_id="differ-arms",
                min_width=300,
            )
        chosen = [*self.selectors.components, seed, label, level, kind, arms]
        start = (first.backbone, first.dataset, ALL, ALL, ALL, DISAGREE, list(self._arms(first)))
        shown = gr.State(PAGE)
        self.examples = interactive_html(self._examples(PAGE, *start), "differ-cases")
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
        agreement = gr.HTML(scores[4], elem_id="by-agreement")
        quick: dict[str, Any] = {
            "show_progress": "hidden",
            "queue": False,
            "api_visibility": "private",
        }

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
            [component.change for component in self.selectors.components],
            other_runs,
            inputs=self.selectors.components,
            outputs=[seed, label, confusion, legend, plot, classes, agreement],
            **quick,
        )
        gr.on(
            [component.change for component in chosen],
            filtered,
            inputs=chosen,
            outputs=[shown, self.examples],
            **quick,
        )
        self.examples.click(more, inputs=[shown, *chosen], outputs=[shown, self.examples], **quick)

    def _arms(self, selection: Selection) -> list[str]:
        """Arms with runs of this backbone on this data set."""
        found = {run.arm for run in self.catalog.of(selection.backbone, selection.dataset)}
        return [arm for arm in ARMS if arm in found]

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
        order = {arm: number for number, arm in enumerate(ARMS)}
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
