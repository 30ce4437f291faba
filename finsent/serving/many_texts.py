"""Many texts at once: where they come from, what the arms said of each, the table to take away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finsent.results.calibration import Calibration
from finsent.serving.answers import Answer, answers
from finsent.serving.spreadsheet import MAX_ROWS, Table, TableError, read_csv, write_csv

CHUNK = 32
"""Texts between two reports of progress; other visitors get their turn there."""
TEXT_COLUMNS = ("text", "headline", "sentence", "title")
"""Column names taken for the text's, best first, when nobody has picked one."""

Scorer = Callable[[Sequence[str]], Mapping[str, NDArray[np.float64]]]


@dataclass(frozen=True)
class Item:
    """One text and where it stood."""

    number: int
    """Line of what was pasted, counted from 1; row of a file, whose header is row 1."""
    text: str
    problem: str | None
    """Why it cannot be scored, or None."""


@dataclass(frozen=True)
class Scored:
    """One text with what every arm says, or with the reason why none does."""

    item: Item
    answers: tuple[Answer, ...]

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
        raise TableError("nothing to score: paste one text per line or upload a CSV file")
    if len(items) > MAX_ROWS:
        raise TableError(f"line {items[MAX_ROWS].number}: at most {MAX_ROWS:,} texts at once")
    return items


def uploaded(path: Path, column: str | None, problem_of: Callable[[str], str | None]) -> list[Item]:
    """The texts of one column of a CSV file. Empty cells stay, with their reason.

    Raises TableError as `finsent.serving.spreadsheet.read_csv`.
    """
    table = read_csv(path)
    cells = table.column(text_column(table) if column is None else column)
    return [Item(number, cell, problem_of(cell)) for number, cell in enumerate(cells, start=2)]


def text_column(table: Table) -> str:
    """The column most likely to hold the texts: by name, else the one with the longest cells."""
    by_name = {name.lower(): name for name in reversed(table.columns)}
    for name in TEXT_COLUMNS:
        if name in by_name:
            return by_name[name]
    return max(table.columns, key=lambda name: sum(map(len, table.column(name))))


def score(
    items: Sequence[Item],
    scorer: Scorer,
    label_names: Sequence[str],
    calibrations: Mapping[str, Calibration | None],
) -> Iterator[list[Scored]]:
    """Scores chunk by chunk, in order. scorer: texts -> arm -> (n, classes)."""
    for start in range(0, len(items), CHUNK):
        chunk = items[start : start + CHUNK]
        good = [item.text for item in chunk if item.problem is None]
        found = scorer(good) if good else {}
        position = 0
        done = []
        for item in chunk:
            given: list[Answer] = []
            if item.problem is None:
                rows = {arm: values[position].tolist() for arm, values in found.items()}
                given = answers(rows, label_names, calibrations)
                position += 1
            done.append(Scored(item, tuple(given)))
        yield done


def label_counts(scored: Sequence[Scored]) -> dict[str, dict[str, int]]:
    """Arm -> label -> number of texts. Empty when nothing could be scored."""
    counts: dict[str, dict[str, int]] = {}
    for answer in (answer for row in scored for answer in row.answers):
        of_arm = counts.setdefault(answer.arm, dict.fromkeys(answer.label_names, 0))
        of_arm[answer.label] += 1
    return counts


def results_csv(scored: Sequence[Scored], arms: Sequence[str], label_names: Sequence[str]) -> bytes:
    """One line a text: what each arm says, calibrated or raw as the columns' names tell."""
    given = [answer for row in scored for answer in row.answers]
    kind = "raw" if any(answer.calibration is None for answer in given) else "calibrated"
    columns = ["row", "text", "problem", "arms_differ"]
    for arm in arms:
        columns += [f"{arm}_label", f"{arm}_set_90"]
        columns += [f"{arm}_{name}_{kind}" for name in label_names]
    lines: list[list[str | float | int]] = []
    for row in scored:
        differ = ("yes" if row.differ else "no") if row.answers else ""
        line: list[str | float | int] = [
            row.item.number,
            row.item.text,
            row.item.problem or "",
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
