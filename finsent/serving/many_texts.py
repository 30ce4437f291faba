"""Many texts at once: where they come from, what the arms said of each, the table to take away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finsent.results.calibration import Calibration
from finsent.results.comparison import Comparison, compare
from finsent.results.metrics import RESAMPLES, SIGNIFICANCE, holm
from finsent.results.runs import Predictions
from finsent.serving.answers import Answer, answers
from finsent.serving.notices import Notice, notices
from finsent.serving.tables.reading import LABEL_COLUMN, Table, open_table, text_column
from finsent.serving.tables.rows import Reading, Row, TableError
from finsent.serving.tables.writing import Cell, write_csv

CHUNK = 32
"""Texts between two reports of progress; other visitors get their turn there."""
MAX_BYTES = 2_000_000
MAX_UNPACKED_BYTES = 50_000_000
MAX_ROWS = 10_000
MAX_DRAWS = 5_000_000
"""Rows drawn for an interval, all resamples together."""
LARGER = "take a part of it, or score all of it with the command finsent score"
LABEL_COLUMNS = (LABEL_COLUMN, "labels", "sentiment", "true_label", "class")
"""Column names taken for that of true labels, best first."""

Scorer = Callable[[Sequence[str]], tuple[Mapping[str, NDArray[np.float64]], Sequence[bool]]]
"""Texts -> arm -> (n, classes), and whether each text was cut to what the model reads."""


@dataclass(frozen=True)
class Item:
    """One text and where it stood."""

    number: int
    """Line of what was pasted, counted from 1; row of a file, whose header is row 1."""
    text: str
    problem: str | None
    """Why it cannot be scored, or None."""
    label: str | None = None
    """What the file says of it; None where it has no column of labels."""
    others: tuple[tuple[str, str], ...] = ()
    """Name and cell of each other column of the file."""


@dataclass(frozen=True)
class Upload:
    """A table that somebody uploaded, whole in memory."""

    table: Table
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Scored:
    """One text with what every arm says, or with the reason why none does."""

    item: Item
    answers: tuple[Answer, ...]
    truncated: bool = False
    """Whether only the beginning was read."""
    notices: tuple[Notice, ...] = ()
    """What speaks against taking the answers at their word."""

    @property
    def differ(self) -> bool:
        """Whether the arms name different labels."""
        return len({answer.label for answer in self.answers}) > 1


def pasted(text: str, problem_of: Callable[[str], str | None]) -> list[Item]:
    """A text per line; blank lines are left out. Raises TableError for none or too many."""
    items = [
        Item(number, line.strip(), problem_of(line))
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip()
    ]
    if not items:
        raise TableError("there is nothing to score: paste one text per line or upload a file")
    if len(items) > MAX_ROWS:
        raise TableError(
            f"line {items[MAX_ROWS].number}: at most {MAX_ROWS:,} texts at once; {LARGER}"
        )
    return items


def read_upload(path: Path, reading: Reading) -> Upload:
    """A file of at most MAX_BYTES and MAX_ROWS.

    Raises TableError, naming the row where there is one, for a larger file and for what
    `finsent.serving.tables.reading.open_table` cannot read.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise TableError(
            f"{size / 1e6:.1f} MB are too many: at most {MAX_BYTES / 1e6:.0f} MB; {LARGER}"
        )
    table = open_table(path, replace(reading, max_bytes=MAX_UNPACKED_BYTES))
    rows = tuple(islice(table.rows(), MAX_ROWS + 1))
    if len(rows) > MAX_ROWS:
        raise TableError(
            f"row {rows[-1].number}: at most {MAX_ROWS:,} rows below the header; {LARGER}"
        )
    if not rows:
        raise TableError("the header is the only row; below it must be at least one")
    return Upload(table, rows)


def uploaded(
    upload: Upload,
    column: str | None,
    problem_of: Callable[[str], str | None],
    label_column: str | None = None,
) -> list[Item]:
    """The texts of one column, of the likeliest where none is named. Empty cells stay, with their
    reason.

    label_column: where the true labels are. Raises TableError when there is no such column.
    """
    table = upload.table
    place = table.place(text_column(table, upload.rows) if column is None else column)
    labels = None if label_column is None else table.place(label_column)
    others = [(i, name) for i, name in enumerate(table.names) if i not in (place, labels)]
    return [
        Item(
            row.number,
            row.cells[place],
            problem_of(row.cells[place]),
            None if labels is None else row.cells[labels],
            tuple((name, row.cells[i]) for i, name in others),
        )
        for row in upload.rows
    ]


def find_labels(table: Table) -> str | None:
    """The column that by its name holds true labels, if there is one."""
    by_name = {name.lower(): name for name in reversed(table.names)}
    return next((by_name[name] for name in LABEL_COLUMNS if name in by_name), None)


def true_label(item: Item, label_names: Sequence[str]) -> str | None:
    """The label that the file gives a text, as the model names it; None where that is none."""
    known = {name.lower(): name for name in label_names}
    return known.get((item.label or "").strip().lower())


def score(
    items: Sequence[Item],
    scorer: Scorer,
    label_names: Sequence[str],
    calibrations: Mapping[str, Calibration | None],
) -> Iterator[list[Scored]]:
    """Scores chunk by chunk, in order."""
    for start in range(0, len(items), CHUNK):
        chunk = items[start : start + CHUNK]
        good = [item.text for item in chunk if item.problem is None]
        found, cut = scorer(good) if good else ({}, ())
        position = 0
        done = []
        for item in chunk:
            given: list[Answer] = []
            truncated = False
            remarks: list[Notice] = []
            if item.problem is None:
                rows = {arm: values[position].tolist() for arm, values in found.items()}
                given = answers(rows, label_names, calibrations)
                truncated = cut[position]
                remarks = notices(item.text)
                position += 1
            done.append(Scored(item, tuple(given), truncated, tuple(remarks)))
        yield done


def label_counts(scored: Sequence[Scored]) -> dict[str, dict[str, int]]:
    """Arm -> label -> number of texts. Empty when nothing could be scored."""
    counts: dict[str, dict[str, int]] = {}
    for answer in (answer for row in scored for answer in row.answers):
        of_arm = counts.setdefault(answer.arm, dict.fromkeys(answer.label_names, 0))
        of_arm[answer.label] += 1
    return counts


def agreement(scored: Sequence[Scored], label_names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Arm -> texts whose answer is the label that the file gives, and texts with such a label.

    Empty where the file gives none of the model's labels.
    """
    counts: dict[str, tuple[int, int]] = {}
    for row in scored:
        true = true_label(row.item, label_names)
        if true is not None:
            for answer in row.answers:
                right, n = counts.get(answer.arm, (0, 0))
                counts[answer.arm] = (right + (answer.label == true), n + 1)
    return counts


def comparisons(
    scored: Sequence[Scored], label_names: Sequence[str], *, against: str = "dendritic"
) -> list[Comparison]:
    """The arm `against` beside every other one, by the paired test of the board.

    `p_value` and `outcome` are corrected for the number of comparisons (Holm), which `verdict` is
    not. Empty where there is no such arm, or the file gives none of the model's labels.
    """
    labelled = [
        (row, true)
        for row in scored
        if row.answers and (true := true_label(row.item, label_names)) is not None
    ]
    if not labelled:
        return []
    ids = tuple(str(row.item.number) for row, _ in labelled)
    labels = tuple(true for _, true in labelled)
    arms = [answer.arm for answer in labelled[0][0].answers]
    made = {
        arm: Predictions(
            ids, labels, tuple(row.answers[place].raw for row, _ in labelled), tuple(label_names)
        )
        for place, arm in enumerate(arms)
    }
    # Memory and time grow with both; an interval is shown to a tenth of a point.
    resamples = min(RESAMPLES, MAX_DRAWS // len(labelled))
    found = [
        compare([made[arm]], [made[against]], names=(arm, against), resamples=resamples)
        for arm in arms
        if against in made and arm != against
    ]
    corrected = holm({pair.a: pair.p_value for pair in found})
    return [
        replace(
            pair,
            p_value=corrected[pair.a],
            outcome=pair.outcome if corrected[pair.a] < SIGNIFICANCE else "tied",
        )
        for pair in found
    ]


def results_csv(scored: Sequence[Scored], arms: Sequence[str], label_names: Sequence[str]) -> bytes:
    """One line a text: what each arm says, calibrated or raw as the columns' names tell.

    Other columns of the file stay; one whose name is taken here gets `input_` before it.
    """
    given = [answer for row in scored for answer in row.answers]
    kind = "raw" if any(answer.calibration is None for answer in given) else "calibrated"
    labelled = any(row.item.label is not None for row in scored)
    first = ["row", "text", *["label"] * labelled]
    own = ["problem", "truncated", "warnings", "arms_differ"]
    for arm in arms:
        own += [f"{arm}_label", f"{arm}_set_90"]
        own += [f"{arm}_{name}_{kind}" for name in label_names]
    others = [name for name, _ in scored[0].item.others] if scored else []
    for place, name in enumerate(others):
        while name in (*first, *own, *others[:place]):
            name = f"input_{name}"
        others[place] = name
    columns = [*first, *others, *own]
    lines: list[list[Cell]] = []
    for row in scored:
        differ = ("yes" if row.differ else "no") if row.answers else ""
        line: list[Cell] = [
            row.item.number,
            row.item.text,
            *[row.item.label or ""] * labelled,
            *(cell for _, cell in row.item.others),
            row.item.problem or "",
            ("yes" if row.truncated else "no") if row.answers else "",
            " ".join(notice.message for notice in row.notices),
            differ,
        ]
        if not row.answers:
            line += [""] * (len(columns) - len(line))
        for answer in row.answers:
            line += [answer.label, _set_cell(answer)]
            line += [round(p, 6) for p in answer.shown]
        lines.append(line)
    return write_csv(columns, lines)


def _set_cell(answer: Answer) -> str:
    return "" if answer.label_set is None else " or ".join(answer.label_set)
