"""Scoring a CSV file of any size: row by row into another CSV, resumable, in constant memory.

The output repeats the input's columns and adds the label and one probability per class. Rows are
scored in chunks and written a chunk at a time. A killed run leaves whole rows (a cut last row is
removed when it resumes); resuming reads as many input rows as there are output rows and goes on,
so the finished file is the one that an undisturbed run would have written.
"""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from finsent.spreadsheet import neutralize

CHUNK_ROWS = 512
MAX_FIELD = 1 << 20
"""Characters in one cell; the csv module's own limit is lower than some exported articles."""

Predict = Callable[[list[str]], Any]
"""Texts to probabilities (n, classes)."""
Report = Callable[[int, float], None]
"""Called after every chunk with the rows done and the share of the input file read, in [0, 1]."""


class ScoringError(ValueError):
    """An input that cannot be scored, or an output that cannot be resumed."""


@dataclass(frozen=True)
class Scored:
    """What a run did."""

    rows: int
    """Rows in the output now."""
    resumed_from: int
    """Of those, rows that an earlier run had written."""


def score_csv(
    source: Path,
    target: Path,
    column: str,
    predict: Predict,
    label_names: Sequence[str],
    *,
    encoding: str = "utf-8-sig",
    chunk_rows: int = CHUNK_ROWS,
    report: Report | None = None,
) -> Scored:
    """Score `column` of every row of `source` into `target`; goes on where `target` ends.

    Added columns: `label`, then a probability for each label name. Cells that a spreadsheet would
    take for a formula get a leading apostrophe. Raises ScoringError, naming the line where there is
    one, for a missing column, bytes that are not `encoding`, an empty cell, a row of another width,
    or a target that belongs to another input. What was written by then stays and can be resumed.
    """
    if source.resolve() == target.resolve():
        raise ScoringError(f"{source} is both input and output; name another output file")
    if not source.is_file():
        raise ScoringError(f"there is no file {source}")
    csv.field_size_limit(MAX_FIELD)
    with source.open("rb") as raw:
        size = max(os.fstat(raw.fileno()).st_size, 1)
        rows = _read(raw, encoding, source)
        header = next(rows, None)
        if header is None:
            raise ScoringError(
                f"{source} is empty; it needs a header line with a column {column!r}"
            )
        names = header[1]
        _check_header(names, column, label_names, source)
        place = names.index(column)
        wanted = [*(neutralize(name) for name in names), "label", *label_names]
        done = _prepare(target, wanted)
        _skip(rows, done, target, place)
        total = done
        with target.open("a", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            if done == 0 and stream.tell() == 0:
                writer.writerow(wanted)
            while chunk := list(itertools.islice(rows, chunk_rows)):
                total += _score_chunk(
                    chunk, names, place, column, source, predict, writer, label_names
                )
                stream.flush()
                if report is not None:
                    report(total, raw.tell() / size)
    return Scored(total, done)


def _score_chunk(
    chunk: Sequence[tuple[int, list[str]]],
    names: Sequence[str],
    place: int,
    column: str,
    source: Path,
    predict: Predict,
    writer: Any,
    label_names: Sequence[str],
) -> int:
    """Write the rows before the first bad one, then raise for that one."""
    good, fault = [], None
    for line, row in chunk:
        if len(row) != len(names):
            fault = f"{source}, line {line}: {len(row)} cells, the header has {len(names)}"
        elif not row[place].strip():
            fault = (
                f"{source}, line {line}: the cell in column {column!r} is empty; "
                "fill it or remove the row"
            )
        if fault is not None:
            break
        good.append(row)
    if good:
        found = predict([row[place] for row in good])
        for row, probabilities in zip(good, found, strict=True):
            best = max(range(len(label_names)), key=lambda i: probabilities[i])
            numbers = [f"{p:.6f}" for p in probabilities]
            writer.writerow([*map(neutralize, row), label_names[best], *numbers])
    if fault is not None:
        raise ScoringError(f"{fault} ({len(good)} rows of this part were written before it)")
    return len(good)


def _read(raw: IO[bytes], encoding: str, source: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number at which the row ends, cells), decoded line by line so that a bad byte can be
    named with its line."""

    def lines() -> Iterator[str]:
        for number, line in enumerate(iter(raw.readline, b""), start=1):
            try:
                # The byte order mark can only stand at the start of the file.
                name = encoding if number == 1 else encoding.removesuffix("-sig")
                yield line.decode(name)
            except UnicodeDecodeError as error:
                raise ScoringError(
                    f"{source}, line {number}: byte 0x{line[error.start]:02x} is not {encoding}; "
                    "name the file's encoding with --encoding, e.g. latin-1 or cp1252"
                ) from error

    reader = csv.reader(lines(), strict=True)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ScoringError(f"{source}, line {reader.line_num}: {error}") from error
        if row:
            yield reader.line_num, row


def _check_header(
    names: Sequence[str], column: str, label_names: Sequence[str], source: Path
) -> None:
    if column not in names:
        shown = ", ".join(repr(name) for name in names)
        raise ScoringError(f"{source} has no column {column!r}; it has {shown}")
    if len(set(names)) != len(names):
        raise ScoringError(f"{source} names a column twice: {', '.join(names)}")
    taken = sorted({"label", *label_names} & set(names))
    if taken:
        raise ScoringError(f"{source} already has columns {', '.join(taken)}; rename them first")


def _prepare(target: Path, header: Sequence[str]) -> int:
    """Rows that are finished in the output; a row cut off at the end is removed."""
    if not target.exists() or target.stat().st_size == 0:
        return 0
    rows, whole = -1, 0
    with target.open("rb") as raw:
        quotes = at = 0
        for line in raw:
            at += len(line)
            quotes += line.count(b'"')
            # A line break inside quotes is part of a cell.
            if quotes % 2 == 0 and line.endswith(b"\n"):
                rows += 1
                whole = at
    with target.open("r+b") as raw:
        raw.truncate(whole)
    if rows < 0:
        return 0
    with target.open(encoding="utf-8", newline="") as stream:
        found = next(csv.reader(stream), [])
    if found != list(header):
        raise ScoringError(
            f"{target} exists with other columns ({', '.join(found)}); it belongs to another "
            "input. Remove it or name another output file"
        )
    return rows


def _skip(rows: Iterator[tuple[int, list[str]]], done: int, target: Path, place: int) -> None:
    """Pass over the input rows that are in the output already, checking that they are the same."""
    if done == 0:
        return
    with target.open(encoding="utf-8", newline="") as stream:
        written = csv.reader(stream)
        next(written)
        for there in itertools.islice(written, done):
            line, here = next(rows, (0, []))
            if place >= len(here) or neutralize(here[place]) != there[place]:
                raise ScoringError(
                    f"{target} does not continue this input (line {line} differs); it belongs to "
                    "another file. Remove it or name another output file"
                )
