"""The HTML of the Where they differ tab: cases, confusion matrices, scores per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from html import escape
from typing import Any

import gradio as gr

from finsent.data.agreement import BANDS
from finsent.data.records import DataError
from finsent.data.registry import DATASETS, local_texts
from finsent.plots.style import ARM_STYLES
from finsent.results.disagreements import CONFIDENT, DISAGREE, Case
from finsent.results.text import count
from finsent.ui.parts.markup import (
    label_mark,
    notice,
    percent,
    percent_interval,
    swatch,
    table,
)

Entry = Mapping[str, Any]


PAGE = 10
"""Examples shown at first, and added by each click."""


ALL = ""


MORE = "more"


SEPARATOR = "|"


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
    return f"{case.seed}{SEPARATOR}{case.id}"


def case_of(key: str, dataset: str) -> tuple[int, str]:
    """Seed and sentence of a case's button. Raises gr.Error for one that is not on this page."""
    seed, _, example = key.partition(SEPARATOR)
    texts, hint = texts_of(dataset)
    text = (texts or {}).get(example)
    if text is None or not seed.isdecimal():
        raise gr.Error(hint or f"no sentence {example!r} here", print_exception=False)
    return int(seed), text


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
