"""What others published on the same data sets, each result with its protocol and source."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from finsent.results.catalog import dataset_description
from finsent.results.text import count
from finsent.ui.parts.markup import percent, table
from finsent.ui.tables.filters import Board, Entry, Filters


def references_html(board: Board, filters: Filters) -> str:
    """Published results on the same data set, apart from our own and with their protocol."""
    shown = [r for r in board["references"] if filters.published(r)]
    if not shown:
        return ""
    return (
        '<section class="fs-published"><h2>Published elsewhere</h2>'
        "<p>Context, not competitors: each was measured under its own protocol, on other test "
        "sentences. Numbers under different protocols are not comparable.</p>"
        + references_table(shown, f"Published results on {dataset_description(filters.dataset)}")
        + "</section>"
    )


def references_table(references: Sequence[Entry], caption: str) -> str:
    """Published results, each with its protocol and source; a repeated note is said once."""
    said: set[str] = set()
    rows = []
    for reference in references:
        note = reference["note"] or ""
        rows.append(_reference_row(reference, "As above." if note in said else note))
        said.update({note} - {""})
    return table(
        ["Model", "Protocol", "Accuracy", "F1", "Test n", "Licence of weights", "Source"],
        rows,
        caption=caption,
        numeric=(2, 4),
        css_class="fs-wide fs-references",
    )


def _reference_row(reference: Entry, note: str) -> list[str]:
    accuracy, deviation = reference["accuracy"], reference["sd"]
    spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
    f1 = "–"
    first = accuracy is None
    for key, kind in (
        ("macro_f1", "macro"),
        ("weighted_f1", "weighted"),
        ("f1_average_not_stated", "average not stated"),
    ):
        if reference[key] is not None:
            own = spread if first else ""
            f1 = f'{percent(reference[key])}{own} <span class="fs-ci">{kind}</span>'
            break
    source = escape(reference["source"])
    if reference["url"]:
        source = f'<a href="{escape(reference["url"])}" rel="noreferrer">{source}</a>'
    remark = f'<span class="fs-note">{escape(note)}</span>' if note else ""
    return [
        escape(reference["model"]) + remark,
        escape(reference["protocol"]),
        "–" if accuracy is None else percent(accuracy) + spread,
        f1,
        "–" if reference["n"] is None else count(reference["n"]),
        escape(reference["licence"] or "not stated"),
        source,
    ]
