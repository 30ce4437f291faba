"""The Studies tab: arms over many folds, seeds and regimes, drawn from the studies' summaries.

No number is computed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import gradio as gr

from finsent.plots.style import ARM_STYLES, ChartError
from finsent.results.catalog import Catalog, dataset_description, dataset_order, dataset_title
from finsent.results.metrics import SIGNIFICANCE
from finsent.results.text import NONE, count, seconds
from finsent.study.charts import forest_figure, frontier_figure
from finsent.study.comparisons import REFERENCES
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
    regime_key,
    rows_of,
    study_names,
    study_title,
    whole_data,
)
from finsent.ui.parts.markup import (
    arms_legend,
    notice,
    percent,
    percent_interval,
    sentence,
    signed,
    swatch,
    table,
)
from finsent.ui.parts.selectors import QUICK, moved
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

    def __init__(self, summaries: Mapping[str, Summary]) -> None:
        self.summaries = summaries
        self.names = study_names(summaries)

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


# -------------------------------------------------------------------------------------------- words


def answer_html(comparisons: Sequence[Entry], rows: Sequence[Entry] = ()) -> str:
    """What was found, counted over all regimes; without dendrites, which of the rows validation
    chooses."""
    if not comparisons:
        return notice("Nothing to compare.", "No dendritic arm was tested here.") + _list(
            chosen(rows)
        )
    return (
        f'{_list(answer(comparisons))}<p class="fs-quiet">Accuracy on test; p &lt; '
        f"{SIGNIFICANCE} after correction over all comparisons of the study. No difference shown "
        "is not the same as none.</p>"
    )


def _list(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{_coded(line)}</li>" for line in lines)
    return f'<ul class="fs-answers">{items}</ul>' if lines else ""


def _coded(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def verdicts_html(comparisons: Sequence[Entry]) -> str:
    """Differences that survive correction one by one; ties folded away below."""
    sure = [c for c in comparisons if c["outcome"] != "tied"]
    tied = [c for c in comparisons if c["outcome"] == "tied"]
    listed = f'<ol class="fs-verdicts">{"".join(map(_verdict, sure))}</ol>' if sure else ""
    if not tied:
        return listed
    items = "".join(
        f"<li><b>{escape(c['regime'])}, {escape(c['recipe'])}</b> {escape(_said(c))}</li>"
        for c in tied
    )
    return (
        f'{listed}<details class="fs-ties"><summary>{count(len(tied))} '
        f"{'tie' if len(tied) == 1 else 'ties'}</summary><ul>{items}</ul></details>"
    )


def _verdict(comparison: Entry) -> str:
    c = comparison
    return (
        f'<li data-outcome="{escape(c["outcome"])}"><h3>{escape(c["regime"])}, '
        f"{escape(c['recipe'])}, against {escape(c['a'])}<span>"
        f"{escape(c['outcome'].capitalize())}</span></h3><p>{escape(_said(c))}</p></li>"
    )


def _said(comparison: Entry) -> str:
    return sentence(comparison["verdict"])


# ------------------------------------------------------------------------------------------- tables


def rows_html(rows: Sequence[Entry], caption: str) -> str:
    """Every arm of every recipe and regime shown, with intervals."""
    return table(
        [
            "Regime", "Recipe", "Arm", "Accuracy", "± sd", "Macro-F1", "NLL", "ECE",
            "Errors removed", "Parameters", "Training, s", "Dendrites", "Runs",
        ],
        [
            [
                escape(row["regime"]),
                escape(row["recipe"]),
                _arm(row["arm"]),
                *_scores(row),
                _removed(row["errors_removed_pct"]),
                *_costs(row),
                _kept(row),
                count(row["n"]),
            ]
            for row in rows
        ],
        caption=caption,
        numeric=range(3, 13),
        css_class="fs-arms fs-tall",
    )  # fmt: skip


def _arm(arm: str) -> str:
    if arm not in ARM_STYLES:
        return escape(arm)
    return f'<span class="fs-arm">{swatch(arm)}{escape(ARM_STYLES[arm].title)}</span>'


def _scores(row: Entry) -> list[str]:
    return [
        _with_interval(row, "accuracy"),
        f"{100 * row['accuracy_sd']:.2f}",
        _with_interval(row, "macro_f1"),
        f"{row['nll']:.4f}",
        percent(row["ece"], 2),
    ]


def _with_interval(row: Entry, metric: str) -> str:
    interval = row[f"{metric}_ci"]
    said = f' <span class="fs-ci">{percent_interval(interval)}</span>' if interval else ""
    return f"<b>{percent(row[metric], 2)}</b>{said}"


def _removed(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{signed(value)}\u202f%"


def _costs(row: Entry) -> list[str]:
    return [count(round(row["trainable_params"])), seconds(row["train_seconds"])]


def _kept(row: Entry) -> str:
    if row["arm"] != "dendritic":
        return NONE
    return f'{row["dendrites"]:.1f} <span class="fs-ci">in {row["runs_with_dendrites"]} runs</span>'


def context_html(summaries: Mapping[str, Summary], study: str, place: tuple[str, str]) -> str:
    """What was trained otherwise: classical classifiers, and results published under the same kind
    of protocol."""
    parts = []
    rows = classical_rows(summaries, study, place)
    if rows:
        parts.append(
            "<h2>Classical classifiers</h2><p>Folds made by the same rule; regimes mean what they "
            "mean for heads.</p>"
            + table(
                ["Classifier", "Regime", "Accuracy", "± sd", "Macro-F1", "NLL", "ECE", "Parameters",
                 "Training, s", "Runs"],
                [
                    [
                        f'<span class="fs-arm">{swatch(row["arm"])}{escape(row["recipe"])}</span>',
                        escape(row["regime"]),
                        *_scores(row),
                        *_costs(row),
                        count(row["n"]),
                    ]
                    for row in rows
                ],
                caption=f"Classical classifiers on {dataset_title(place[0])}",
                numeric=range(2, 10),
                css_class="fs-arms",
            )
        )  # fmt: skip
    references = [reference.to_dict() for reference in published(summaries[study], place)]
    if references:
        parts.append(
            "<h2>Published elsewhere</h2><p>Context, not competitors: the same kind of protocol, "
            "other training.</p>"
            + references_table(references, f"Published on {dataset_description(place[0])}")
        )
    return "".join(f'<section class="fs-published">{part}</section>' for part in parts)


def rules_html() -> str:
    """What regimes, recipes and arms are."""
    arms = "".join(f"<li><b>{escape(arm)}</b>: {escape(rule)}</li>" for arm, rule in _rules())
    return (
        '<details class="fs-ties"><summary>Regimes, recipes and arms</summary>'
        f"{''.join(f'<p>{_coded(rule)}</p>' for rule in RULES)}<ul>{arms}</ul></details>"
    )


def _rules() -> list[tuple[str, str]]:
    return [(ARM_STYLES[arm].title, ARM_RULES[arm]) for arm in ARM_ORDER if arm in ARM_RULES]


# -------------------------------------------------------------------------------------------- tab


def contents(studies: Studies, shown: Shown) -> list[Any]:
    """Everything below the controls, in the order of the page; None for a chart without data."""
    rows, comparisons = studies.rows(shown), studies.comparisons(shown)
    compared = [arm for arm in REFERENCES if any(c["a"] == arm for c in comparisons)]
    costed = rows if shown.regime else whole_data(rows)
    regimes = {row["regime"] for row in costed}
    others = classical_rows(studies.summaries, shown.study, shown.place, regimes)
    frontier = _chart(lambda: frontier_figure(costed, others))
    drawn = {trace.name for trace in frontier.data} if frontier else set()
    trained = dataset_title(shown.dataset)
    where = "" if shown.tested == shown.dataset else f", tested on {dataset_title(shown.tested)}"
    return [
        answer_html(
            studies.comparisons(replace(shown, regime=ALL)),
            studies.rows(replace(shown, regime=ALL)),
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


def _forest_heading(compared: Sequence[str]) -> str:
    """Nothing where nothing is compared: the chart below is hidden then."""
    if not compared:
        return ""
    legend = arms_legend(compared, "filled: survives correction; bars: 95 % intervals before it")
    return f"<h2>Accuracy of dendritic minus another arm</h2>{legend}"


def _chart(draw: Any) -> Any:
    try:
        return draw()
    except ChartError:
        # The words above say that there is nothing to compare.
        return None


def add_studies_tab(catalog: Catalog) -> None:
    """Draws the tab inside the current gr.Tab."""
    studies = Studies(catalog.studies)
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
    _Tab(studies).draw()


class _Tab:
    """The tab's components and the functions that renew them."""

    def __init__(self, studies: Studies) -> None:
        self.studies = studies
        # Not all regimes at first: of all, the charts and the table are long.
        self.first = studies.nearest("", "", "", _ANY)

    def draw(self) -> None:
        """All of it, in the order of the page."""
        with gr.Row(elem_classes="fs-controls"):
            controls = self._add_controls()
        found = contents(self.studies, self.first)
        gr.HTML("<h2>Do dendrites remove errors?</h2>")
        outputs: list[Any] = [
            gr.HTML(found[0], elem_id="study-answer"),
            gr.HTML(found[1], elem_id="study-verdicts"),
        ]
        outputs += self._add_chart(found[2:4], "forest")
        gr.HTML("<h2>What accuracy costs in parameters</h2>")
        outputs += self._add_chart(found[4:6], "frontier")
        gr.HTML(
            '<p class="fs-quiet">Up and to the left is better. The dashed line joins the arms '
            "that none beats in both. With all regimes, only those with all of the training data; "
            "classical classifiers below the axis are in their table only.</p>"
        )
        gr.HTML("<h2>Every arm</h2>")
        outputs.append(gr.HTML(found[6], elem_id="study-rows"))
        gr.HTML(
            '<p class="fs-quiet">Means over folds and seeds with corrected 95 % intervals. Errors '
            "removed: against the baseline of the regime. Dendrites: kept per class or map. "
            "Training time: a run’s share of the stack it was trained in.</p>" + rules_html()
        )
        outputs.append(gr.HTML(found[7], elem_id="study-context"))
        self._connect(controls, outputs)

    def _add_controls(self) -> list[gr.Dropdown]:
        first = self.first
        plain: dict[str, Any] = {"filterable": False, "min_width": 150}
        choices = self._choices(first)
        return [
            gr.Dropdown(
                [(study_title(name), name) for name in self.studies.names],
                value=first.study,
                label="Study",
                elem_id="study-name",
                **plain,
            ),
            gr.Dropdown(
                choices[0],
                value=first.dataset,
                label="Data set",
                elem_id="study-dataset",
                **plain,
            ),
            gr.Dropdown(
                choices[1],
                value=first.tested,
                label="Tested on",
                elem_id="study-tested",
                **plain,
            ),
            gr.Dropdown(
                choices[2], value=first.regime, label="Regime", elem_id="study-regime", **plain
            ),
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

    def _connect(self, controls: Sequence[gr.Dropdown], outputs: Sequence[Any]) -> None:
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
            found = contents(self.studies, self.studies.nearest(*chosen))
            return [
                gr.update(value=value, visible=value is not None)
                if isinstance(output, gr.Plot)
                else value
                for output, value in zip(outputs, found, strict=True)
            ]

        gr.on(
            [control.change for control in controls[:3]],
            choose,
            inputs=list(controls),
            outputs=list(controls[1:]),
            **QUICK,
        )
        gr.on(
            [control.change for control in controls],
            renew,
            inputs=list(controls),
            outputs=list(outputs),
            **QUICK,
        )
