"""Evidence, studies: arms over many folds, seeds and regimes, from the studies' summaries.

No number is computed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from finsent.plots.style import ARM_STYLES, ChartError
from finsent.results.catalog import Catalog, dataset_description, dataset_order, dataset_title
from finsent.results.metrics import SIGNIFICANCE
from finsent.results.text import safe
from finsent.study.charts import depth_figure, forest_figure, frontier_figure
from finsent.study.comparisons import REFERENCES
from finsent.study.cycles.depths import depth_of
from finsent.study.cycles.findings import findings
from finsent.study.rows import ENSEMBLE
from finsent.study.views import (
    ARM_ORDER,
    ARM_RULES,
    RULES,
    Entry,
    Summary,
    answer,
    chosen,
    classical_rows,
    comparisons_of,
    places,
    published,
    question,
    regime_key,
    rows_of,
    short_answer,
    study_names,
    whole_data,
)
from finsent.ui.parts.events import interactive_html, sent
from finsent.ui.parts.markup import arms_legend, html, notice, sentence
from finsent.ui.parts.selectors import QUICK, LinkedDropdown, moved
from finsent.ui.tables.published import references_table

ALL = ""
"""The regime that stands for all of them."""
_ANY = "any"
"""No regime's name: the first one is taken."""


@dataclass(frozen=True)
class Shown:
    """What the visitor chose, made to fit what there is."""

    study: str
    dataset: str
    tested: str
    regime: str

    @property
    def place(self) -> tuple[str, str]:
        return self.dataset, self.tested


class Studies:
    """The finished studies, and what stands beside them."""

    def __init__(self, summaries: Mapping[str, Summary], root: Path | None = None) -> None:
        """root: where the studies' rows lie as well; None: nowhere."""
        self.summaries = summaries
        self._root = root
        self.names = study_names(summaries)

    def findings(self, study: str) -> list[str]:
        """Sentences that the comparison of arms within a regime does not give."""
        return [] if self._root is None else findings(study, self._root / "studies" / study)

    def datasets(self, study: str) -> list[str]:
        """Data sets that were trained on, the benchmark's main ones first."""
        names = dict.fromkeys(dataset for dataset, _ in places(self.summaries[study]))
        return sorted(names, key=dataset_order)

    def tested(self, study: str, dataset: str) -> list[str]:
        """Data sets that those runs were tested on, their own first."""
        names = [tested for d, tested in places(self.summaries[study]) if d == dataset]
        return sorted(names, key=lambda name: (name != dataset, dataset_order(name), name))

    def regimes(self, study: str, dataset: str, tested: str) -> list[str]:
        """Regimes of a place, in order."""
        rows = rows_of(self.summaries[study], (dataset, tested))
        return sorted({row["regime"] for row in rows}, key=regime_key)

    def nearest(self, study: str, dataset: str, tested: str, regime: str) -> Shown:
        """The choice, with what does not exist replaced by the first that does."""
        study = _one_of(self.names, study)
        dataset = _one_of(self.datasets(study), dataset)
        tested = _one_of(self.tested(study, dataset), tested)
        regimes = self.regimes(study, dataset, tested)
        compared = comparisons_of(self.summaries[study], (dataset, tested))
        # Without a comparison the answer is one row of all, which has to be on the page.
        regime = _one_of([*regimes, ALL] if compared else [ALL, *regimes], regime)
        return Shown(study, dataset, tested, regime)

    def rows(self, shown: Shown) -> list[Entry]:
        """Rows of what is shown."""
        return _in_regime(rows_of(self.summaries[shown.study], shown.place), shown.regime)

    def comparisons(self, shown: Shown) -> list[Entry]:
        """Comparisons of what is shown."""
        return _in_regime(comparisons_of(self.summaries[shown.study], shown.place), shown.regime)


def _one_of(names: Sequence[str], wanted: str) -> str:
    return wanted if wanted in names else names[0]


def _in_regime(entries: Sequence[Entry], regime: str) -> list[Entry]:
    return [entry for entry in entries if regime in (ALL, entry["regime"])]


def list_html(studies: Studies, chosen: str = "") -> str:
    """A row for each study: question, answer, size and figure. chosen: whose details are open."""
    rows = []
    for name in studies.names:
        summary = studies.summaries[name]
        found = [row for place in places(summary) for row in rows_of(summary, place)]
        rows.append(
            {
                "name": name,
                "question": question(name),
                "answer": short_answer(summary, dataset_title),
                "runs": summary["runs"],
                "folds": max(row["folds"] for row in found),
                "datasets": [dataset_title(dataset) for dataset in studies.datasets(name)],
                "comparisons": summary["comparisons"],
                "scores": [
                    (row["accuracy"], row["arm"] == ENSEMBLE)
                    for row in found
                    if not summary["comparisons"]
                ],
            }
        )
    ends = [abs(c["metrics"]["accuracy"]["mean"]) for row in rows for c in row["comparisons"]]
    return html(
        "studies", rows=rows, chosen=chosen, widest=max(ends, default=1.0), sure=SIGNIFICANCE
    )


def answer_html(
    comparisons: Sequence[Entry], rows: Sequence[Entry] = (), besides: Sequence[str] = ()
) -> str:
    """What was found, counted over all regimes; without dendrites, which of the rows validation
    chooses. besides: further sentences of the study."""
    lines = [*(answer(comparisons) if comparisons else chosen(rows)), *besides]
    return html(
        "study_answer",
        lines=[_coded(line) for line in lines],
        compared=bool(comparisons),
        sure=SIGNIFICANCE,
    )


def _coded(text: str) -> str:
    return safe(re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text)))


def verdicts_html(comparisons: Sequence[Entry]) -> str:
    """Differences that survive correction one by one; ties folded away below."""
    return html(
        "study_verdicts",
        sure=[c for c in comparisons if c["outcome"] != "tied"],
        tied=[c for c in comparisons if c["outcome"] == "tied"],
        sentence=sentence,
    )


def rows_html(rows: Sequence[Entry], caption: str) -> str:
    """Every arm of every recipe and regime shown, with intervals."""
    return html("study_rows", rows=rows, caption=caption)


def context_html(summaries: Mapping[str, Summary], study: str, place: tuple[str, str]) -> str:
    """What was trained otherwise: classical classifiers, and results published under the same kind
    of protocol."""
    rows = classical_rows(summaries, study, place)
    references = [reference.to_dict() for reference in published(summaries[study], place)]
    return html(
        "study_context",
        rows=rows,
        dataset=dataset_title(place[0]),
        references=safe(
            references_table(references, f"Published on {dataset_description(place[0])}")
        )
        if references
        else "",
    )


def contents(studies: Studies, shown: Shown) -> list[Any]:
    """Everything below the controls, in the order of the page; None for a chart without data."""
    rows, comparisons = studies.rows(shown), studies.comparisons(shown)
    compared = [arm for arm in REFERENCES if any(c["a"] == arm for c in comparisons)]
    costed = rows if shown.regime else whole_data(rows)
    regimes = {row["regime"] for row in costed}
    others = classical_rows(studies.summaries, shown.study, shown.place, regimes)
    every = studies.rows(replace(shown, regime=ALL))
    shrinks = any(depth_of(row["regime"]) is not None for row in every)
    frontier = _chart(lambda: depth_figure(every) if shrinks else frontier_figure(costed, others))
    drawn = {trace.name for trace in frontier.data} if frontier else set()
    trained = dataset_title(shown.dataset)
    where = "" if shown.tested == shown.dataset else f", tested on {dataset_title(shown.tested)}"
    return [
        answer_html(
            studies.comparisons(replace(shown, regime=ALL)),
            studies.rows(replace(shown, regime=ALL)),
            studies.findings(shown.study),
        ),
        verdicts_html(comparisons),
        _forest_heading(compared),
        _chart(lambda: forest_figure(comparisons)),
        arms_legend(
            [arm for arm in ARM_ORDER if ARM_STYLES[arm].title in drawn], "bars: 95 % intervals"
        ),
        frontier,
        rows_html(rows, f"Study {shown.study}: {trained}{where}"),
        context_html(studies.summaries, shown.study, shown.place),
    ]


def _rules() -> list[tuple[str, str]]:
    return [(ARM_STYLES[arm].title, ARM_RULES[arm]) for arm in ARM_ORDER if arm in ARM_RULES]


def _forest_heading(compared: Sequence[str]) -> str:
    """Nothing where nothing is compared: the chart below is hidden then."""
    if not compared:
        return ""
    legend = arms_legend(compared, "filled: survives correction; bars: 95 % intervals before it")
    return f"<h3>Accuracy of dendritic minus another variant</h3>{legend}"


def _chart(draw: Any) -> Any:
    try:
        return draw()
    except ChartError:
        # The words above say that there is nothing to compare.
        return None


def add_studies_tab(catalog: Catalog) -> None:
    """Draws the section inside the current gr.Tab."""
    studies = Studies(catalog.studies, catalog.root)
    if not studies.names:
        gr.HTML(
            notice(
                "No study yet.",
                "`python train_models.py study heads --select` chooses its settings, the same "
                "without --select runs it; then load this page again.",
            ),
            elem_id="studies-none",
        )
        return
    _Section(studies).draw()


class _Section:
    """The section's components and the functions that renew them."""

    def __init__(self, studies: Studies) -> None:
        self.studies = studies
        # Not all regimes at first: of all, the charts and the table are long.
        self.first = studies.nearest("", "", "", _ANY)

    def draw(self) -> None:
        """The list of studies, and below it the details of the one that is opened."""
        listed = interactive_html(list_html(self.studies), "study-list")
        found = contents(self.studies, self.first)
        with gr.Column(visible=False, elem_id="study-details") as details:
            title = gr.HTML(f"<h2>{escape(question(self.first.study))}</h2>")
            name = gr.State(self.first.study)
            with gr.Row(elem_classes="fs-controls"):
                controls = self._add_controls()
            outputs: list[Any] = [gr.HTML(found[0], elem_id="study-answer")]
            outputs.append(gr.HTML(found[1], elem_id="study-verdicts"))
            outputs += self._add_chart(found[2:4], "forest")
            gr.HTML("<h3>Score vs. cost</h3>")
            outputs += self._add_chart(found[4:6], "frontier")
            gr.HTML(
                '<p class="fs-quiet">Up and to the left is better. Over parameters, the dashed '
                "line is the Pareto frontier. With all settings, only those with all of the "
                "training data; classical classifiers below the axis are in their table only.</p>"
            )
            gr.HTML("<h3>Every variant</h3>")
            outputs.append(gr.HTML(found[6], elem_id="study-rows"))
            gr.HTML(html("study_rules", rules=[_coded(rule) for rule in RULES], arms=_rules()))
            outputs.append(gr.HTML(found[7], elem_id="study-context"))
        self._connect(listed, details, title, [name, *controls], outputs)

    def _add_controls(self) -> list[LinkedDropdown]:
        choices = self._choices(self.first)
        return [
            LinkedDropdown(
                choices[at],
                value=value,
                label=label,
                elem_id=f"study-{name}",
                filterable=False,
                min_width=150,
            )
            for at, (name, label, value) in enumerate(
                (
                    ("dataset", "Data set", self.first.dataset),
                    ("tested", "Tested on", self.first.tested),
                    ("regime", "Setting", self.first.regime),
                )
            )
        ]

    def _choices(self, shown: Shown) -> tuple[list[Any], list[Any], list[Any]]:
        studies = self.studies
        return (
            [(dataset_title(name), name) for name in studies.datasets(shown.study)],
            [(dataset_title(name), name) for name in studies.tested(shown.study, shown.dataset)],
            [("All", ALL), *((name, name) for name in studies.regimes(shown.study, *shown.place))],
        )

    def _add_chart(self, found: Sequence[Any], name: str) -> list[Any]:
        legend, figure = found
        return [
            gr.HTML(legend, elem_id=f"study-{name}-legend"),
            gr.Plot(
                figure,
                show_label=False,
                container=False,
                elem_id=f"chart-study-{name}",
                visible=figure is not None,
                buttons=[],
            ),
        ]

    def _drawn(self, outputs: Sequence[Any], shown: Shown) -> list[Any]:
        return [
            gr.update(value=value, visible=value is not None)
            if isinstance(output, gr.Plot)
            else value
            for output, value in zip(outputs, contents(self.studies, shown), strict=True)
        ]

    def _connect(
        self,
        listed: gr.HTML,
        details: gr.Column,
        title: gr.HTML,
        asked: Sequence[Any],
        outputs: Sequence[Any],
    ) -> None:
        def open_study(event: gr.EventData) -> list[Any]:
            wanted = sent(event)
            if wanted not in self.studies.names:
                return [gr.skip()] * (4 + len(asked) - 1 + len(outputs))
            shown = self.studies.nearest(wanted, "", "", _ANY)
            values = (shown.dataset, shown.tested, shown.regime)
            return [
                list_html(self.studies, wanted),
                gr.update(visible=True),
                f"<h2>{escape(question(wanted))}</h2>",
                wanted,
                *(
                    gr.update(choices=choices, value=value)
                    for choices, value in zip(self._choices(shown), values, strict=True)
                ),
                *self._drawn(outputs, shown),
            ]

        listed.click(open_study, outputs=[listed, details, title, *asked, *outputs], **QUICK).then(
            None,
            js="() => document.querySelector('#study-details')?.scrollIntoView()",
            api_visibility="private",
        )

        def choose(*chosen: str) -> list[Any]:
            shown = self.studies.nearest(*chosen)
            values = (shown.dataset, shown.tested, shown.regime)
            return [
                moved(choices, asked, value)
                for choices, asked, value in zip(
                    self._choices(shown), chosen[1:], values, strict=True
                )
            ]

        def renew(*chosen: str) -> list[Any]:
            return self._drawn(outputs, self.studies.nearest(*chosen))

        # The person's choice: what opening a study sets has been drawn with it. What is chosen
        # while an earlier choice is being drawn is drawn after it.
        last: dict[str, Any] = {"inputs": list(asked), "trigger_mode": "always_last", **QUICK}
        gr.on(
            [control.input for control in asked[1:3]], choose, outputs=list(asked[1:]), **last
        ).then(renew, outputs=list(outputs), **last)
        asked[3].input(renew, outputs=list(outputs), **last)
