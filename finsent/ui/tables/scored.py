"""Many scored texts: which of them are shown, the table, and how right the models were."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from html import escape
from typing import Any

from finsent.plots.style import ARM_STYLES
from finsent.results.comparison import Comparison, p_in_words
from finsent.serving.answers import Answer
from finsent.serving.many_texts import Scored, agreement, comparisons, true_label
from finsent.ui.parts.markup import label_mark, notice, percent, plain_device, signed, swatch, table

PAGE = 50
"""Rows of the table at a time."""
SHOWN_CHARACTERS = 220
"""Of a text in the table; the download has all of it."""
SPELLINGS = 5
"""Unknown labels that are named at most."""
ALL, DIFFER, UNSURE, WRONG, WARNED = "all", "differ", "unsure", "wrong", "warned"
FILTERS = {
    ALL: "All",
    DIFFER: "Only where they differ",
    UNSURE: "Only unsure",
    WRONG: "Only wrong",
    WARNED: "Only with a warning",
}
"""What the table may be cut down to."""


@dataclass(frozen=True)
class Results:
    """A batch that was scored, as far as it is."""

    rows: tuple[Scored, ...] = ()
    label_names: tuple[str, ...] = ()
    total: int = 0
    """Rows that are to be scored."""
    what: str = ""
    """What is scored, as "the pasted texts"."""
    asked: tuple[Any, ...] = ()
    """What decides them: texts and models as they were when the batch began."""
    device: str = ""
    """What computed them."""

    @property
    def arms(self) -> list[str]:
        """The models, in the order of their answers."""
        return [a.arm for a in next((row.answers for row in self.rows if row.answers), ())]

    @property
    def labelled(self) -> bool:
        """Whether true labels came along."""
        return any(row.item.label is not None for row in self.rows)

    def select(self, kind: str) -> list[int]:
        """Places of the rows that a filter leaves."""
        return [place for place in range(len(self.rows)) if self._is(kind, place)]

    def true_label(self, place: int) -> str | None:
        """The true label of a row, if it has one that the models know."""
        return true_label(self.rows[place].item, self.label_names)

    def _is(self, kind: str, place: int) -> bool:
        row = self.rows[place]
        if kind == DIFFER:
            return row.differ
        if kind == WARNED:
            return bool(row.notices)
        if kind == UNSURE:
            return any(answer.unsure for answer in row.answers)
        if kind == WRONG:
            true = self.true_label(place)
            return true is not None and any(answer.label != true for answer in row.answers)
        return True

    def confusions(self) -> list[dict[str, object]]:
        """For every model its name and a matrix: true class by row, answer by column."""
        names = self.label_names
        found: dict[str, list[list[int]]] = {}
        for place, row in enumerate(self.rows):
            true = self.true_label(place)
            for answer in row.answers:
                cells = found.setdefault(answer.arm, [[0] * len(names) for _ in names])
                if true is not None:
                    cells[names.index(true)][names.index(answer.label)] += 1
        return [{"arm": arm, "confusion": cells} for arm, cells in found.items()]


def done_html(results: Results) -> str:
    """That a batch has ended, in the place where its progress was."""
    n = sum(bool(row.answers) for row in results.rows)
    return (
        f'<p class="fs-batch-says fs-batch-done">{n:,} {"text" if n == 1 else "texts"} scored; '
        "see below.</p>"
    )


def summary_html(results: Results) -> str:
    """What came out, in a sentence, and which rows could not be scored and why."""
    what, total = results.what, results.total
    good = [row for row in results.rows if row.answers]
    bad = [row.item for row in results.rows if row.item.problem is not None]
    texts = "text" if len(good) == 1 else "texts"
    said = f"{len(good):,} {texts} scored of {what}, on {plain_device(results.device)}."
    if not good:
        said = f"No text of {what} could be scored."
    if good and len(good[0].answers) > 1:
        differ = sum(row.differ for row in good)
        said += f" The models differ on {differ:,} of them ({percent(differ / len(good))})."
    if good and good[0].answers[0].calibration is None:
        said += " Probabilities are raw: these runs kept no validation predictions."
    beginnings = sum(row.truncated for row in good)
    if beginnings:
        said += f" Of {beginnings:,} only the beginning was read, which the table marks."
    warned = sum(bool(row.notices) for row in good)
    if warned:
        said += (
            f" {warned:,} {'carries' if warned == 1 else 'carry'} a warning in the table: the "
            "models were not made for such texts."
        )
    html = f'<p class="fs-batch-says" role="status">{escape(said)}</p>'
    if len(results.rows) < total:
        html += notice(
            "Stopped early.",
            f"{len(results.rows):,} of {total:,} rows are here; the others were not scored.",
            tone="warning",
        )
    if bad:
        listed = "; ".join(f"row {item.number}: {item.problem}" for item in bad[:5])
        more = f"; and {len(bad) - 5:,} more, see the table" if len(bad) > 5 else ""
        html += notice(f"{len(bad):,} not scored.", listed + more, tone="warning")
    return html


def accuracy_html(results: Results, confusions: str) -> str:
    """How often each model was right, where true labels came along; else nothing.

    confusions: the matrices of `Results.confusions`, drawn.
    """
    if not results.labelled:
        return ""
    found = agreement(results.rows, results.label_names)
    if not found:
        return notice(
            "No accuracy.",
            f"The label column holds none of {', '.join(results.label_names)}. "
            f"{_unknown_labels(results)}",
            tone="warning",
        )
    compared = comparisons(results.rows, results.label_names)
    verdicts = "".join(_verdict(pair, len(compared)) for pair in compared)
    said = [
        f"<li>{swatch(arm)}<b>{escape(ARM_STYLES[arm].title)}</b> "
        f"{percent(right / n)} right ({right:,} of {n:,})</li>"
        for arm, (right, n) in found.items()
    ]
    skipped = sum(bool(row.answers) for row in results.rows) - max(n for _, n in found.values())
    note = ""
    if skipped:
        rows = "1 row is" if skipped == 1 else f"{skipped:,} rows are"
        note = (
            f'<p class="fs-quiet">{rows} left out: the label is none of '
            f"{escape(', '.join(results.label_names))}. {escape(_unknown_labels(results))}</p>"
        )
    return (
        f'<h2>Against your labels</h2>{verdicts}<ul class="fs-legend">{"".join(said)}</ul>{note}'
        f"{confusions}"
    )


def _unknown_labels(results: Results) -> str:
    """What stands in the label column instead of the model's labels, the most frequent first."""
    there = Counter(
        (row.item.label or "").strip()
        for row in results.rows
        if row.answers and true_label(row.item, results.label_names) is None
    )
    empty = there.pop("", 0)
    said = [f"“{label[:40]}” ({n:,} times)" for label, n in there.most_common(SPELLINGS)]
    if len(there) > SPELLINGS:
        said.append(f"{len(there) - SPELLINGS:,} other spellings")
    if empty:
        said.append(f"empty cells ({empty:,} times)")
    return f"There instead: {', '.join(said)}."


def _verdict(found: Comparison, compared: int) -> str:
    """Whether two models differ measurably on the labelled texts, in a sentence.

    compared: comparisons that the p-value is corrected for.
    """
    a, b = (escape(ARM_STYLES[arm].title) for arm in (found.a, found.b))
    (test,) = found.mcnemar
    if not test.only_a_right + test.only_b_right:
        # Nothing to draw from: an interval of no width would look like certainty.
        body = f"{a} and {b} are right and wrong on the same {found.n:,} texts."
        return f'<p class="fs-batch-verdict"><b>No measurable difference.</b> {body}</p>'
    first = {
        "tied": "No measurable difference.",
        "better": f"{b} is better on these texts.",
        "worse": f"{a} is better on these texts.",
    }[found.outcome]
    low, high = found.accuracy_ci_points
    tested = "McNemar’s exact test"
    if compared > 1:
        tested += f", corrected for {compared} comparisons"
    unsettled = ""
    if found.outcome == "tied" and not low <= 0 <= high:
        unsettled = " The interval leaves out zero but the test does not reject: it is not settled."
    return (
        f'<p class="fs-batch-verdict"><b>{first}</b> Over {found.n:,} labelled texts the accuracy '
        f"of {b} differs from that of {a} by {signed(found.accuracy_delta_points)} points "
        f"(95\u202f% interval {signed(low)} to {signed(high)}; {tested}: "
        f"{escape(p_in_words(found.p_value))})."
        f"{unsettled}</p>"
    )


def rows_html(results: Results, kind: str, page: int) -> str:
    """One page of the table, or a sentence where a filter leaves nothing."""
    places = results.select(kind)
    if not results.rows:
        return ""
    if not places:
        return f'<p class="fs-quiet">{FILTERS[kind]}: there is no such row.</p>'
    start = page * PAGE
    shown = places[start : start + PAGE]
    names = [_name(arm) for arm in results.arms]
    labelled = results.labelled
    return table(
        ["Row", "Text", *(["True label"] if labelled else []), *names],
        [_cells(results, place, len(names), labelled) for place in shown],
        caption=f"Scored texts {start + 1:,} to {start + len(shown):,} of {len(places):,}",
        css_class="fs-scored",
    )


def _cells(results: Results, place: int, arms: int, labelled: bool) -> list[str]:
    row = results.rows[place]
    text = row.item.text
    cut = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} …"
    differ = '<span class="fs-flag">They differ.</span> ' if row.differ else ""
    read = ' <span class="fs-flag">(only the beginning was read)</span>' if row.truncated else ""
    warned = "".join(
        f'<span class="fs-note"><b class="fs-flag">Careful.</b> {escape(remark.message)}</span>'
        for remark in row.notices
    )
    cells = [str(row.item.number), f'{differ}<span dir="auto">{escape(cut)}</span>{read}{warned}']
    true = results.true_label(place)
    if labelled:
        shown = "–" if true is None else f"{label_mark(true)} {escape(true)}"
        cells.append(f'<span class="fs-of">True label</span>{shown}')
    if not row.answers:
        return [*cells, f'<span class="fs-flag">{escape(str(row.item.problem))}</span>'] + [""] * (
            arms - 1
        )
    return [*cells, *(_answer(answer, true) for answer in row.answers)]


def _answer(answer: Answer, true: str | None) -> str:
    remarks = ["wrong"] if true is not None and answer.label != true else []
    if answer.unsure:
        remarks.append("unsure")
    said = f'<span class="fs-note">{escape("; ".join(remarks))}</span>' if remarks else ""
    # Whose it is stands in the head of the column, which a narrow window has no room for.
    return (
        f'<span class="fs-of">{_name(answer.arm)}</span>'
        f"{label_mark(answer.label)} {escape(answer.label)} {percent(answer.confidence)}{said}"
    )


def _name(arm: str) -> str:
    return f"{swatch(arm)} {escape(ARM_STYLES[arm].title)}"
