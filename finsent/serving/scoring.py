"""Scoring a CSV file of any size: row by row into another CSV, resumable, in constant memory.

The output repeats the input's columns and adds the label and one probability per class. Rows are
scored in blocks, by one worker or several, and written in their order. A killed run leaves whole
rows (a cut last row is removed when it resumes); resuming reads as many input rows as there are
output rows and goes on, so the finished file is the one that an undisturbed run would have written.
"""

from __future__ import annotations

import csv
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from finsent.results.runs import read_run
from finsent.serving.spreadsheet import neutralize

BLOCK_ROWS = 512
MAX_FIELD = 1 << 20
"""Characters in one cell; the csv module's own limit is lower than some exported articles."""

Predict = Callable[[list[str]], Any]
"""Texts to probabilities (n, classes)."""
PredictAll = Callable[[Iterator[list[str]]], Iterator[Any]]
"""Blocks of texts to their probabilities, in order. May ask for some blocks ahead."""
Report = Callable[[int, float], None]
"""Called after every block with the rows done and the share of the input file read, in [0, 1]."""


class ScoringError(ValueError):
    """An input that cannot be scored, or an output that cannot be resumed."""


@dataclass(frozen=True)
class Scored:
    """What a run did."""

    rows: int
    """Rows in the output now."""
    resumed_from: int
    """Of those, rows that an earlier run had written."""


@dataclass(frozen=True)
class Model:
    """Which trained run scores, and how; every worker loads it for itself."""

    folder: Path
    """artifacts/<backbone>/<dataset>."""
    arm: str
    seed: int
    engine: str | None = None
    whole: bool = False
    """Whether all of a long text is read."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """In the order of the probabilities. ArtifactError where there is no such run."""
        return read_run(self.folder / self.arm / f"seed-{self.seed}").label_names

    def load(self, progress: Callable[[str, float], None] | None = None) -> Predict:
        """Raises what Comparer.from_artifacts raises."""
        from finsent.serving.comparer import Comparer

        model = Comparer.from_artifacts(
            self.folder, self.seed, (self.arm,), engine=self.engine, progress=progress
        )
        answer = model.predict_document_proba if self.whole else model.predict_proba
        return partial(answer, arm=self.arm)


@dataclass(frozen=True)
class _Block:
    """Rows that are scored together."""

    rows: list[list[str]]
    share: float
    """Of the input file that had been read by then."""


def score_csv(
    source: Path,
    target: Path,
    column: str,
    predict: PredictAll,
    label_names: Sequence[str],
    *,
    encoding: str = "utf-8-sig",
    block_rows: int = BLOCK_ROWS,
    report: Report | None = None,
) -> Scored:
    """Score `column` of every row of `source` into `target`; goes on where `target` ends.

    Added columns: `label`, then a probability for each label name. Cells that a spreadsheet would
    take for a formula get a leading apostrophe. Raises ScoringError, naming the line where there is
    one, for a missing column, bytes that are not `encoding`, an empty cell, a row of another width,
    or a target that belongs to another input. All rows before that line are written first, and can
    be resumed.
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
        good = _checked(rows, names, place, source)
        read: deque[_Block] = deque()
        fault: list[ScoringError] = []

        def texts() -> Iterator[list[str]]:
            while not fault:
                block: list[list[str]] = []
                try:
                    for row in itertools.islice(good, block_rows):
                        block.append(row)
                except ScoringError as error:
                    # Told when what was read before it has been written.
                    fault.append(error)
                if not block:
                    return
                read.append(_Block(block, raw.tell() / size))
                yield [row[place] for row in block]

        with target.open("a", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            if done == 0 and stream.tell() == 0:
                writer.writerow(wanted)
            for probabilities in predict(texts()):
                block = read.popleft()
                _write(writer, block.rows, probabilities, label_names)
                stream.flush()
                total += len(block.rows)
                if report is not None:
                    report(total, block.share)
    if fault:
        raise ScoringError(f"{fault[0]} ({total:,} rows before it are in {target})") from fault[0]
    return Scored(total, done)


def _checked(
    rows: Iterator[tuple[int, list[str]]], names: Sequence[str], place: int, source: Path
) -> Iterator[list[str]]:
    """Rows as wide as the header with a text to score; ScoringError at the first other one."""
    for line, row in rows:
        if len(row) != len(names):
            raise ScoringError(
                f"{source}, line {line}: {len(row)} cells, the header has {len(names)}"
            )
        if not row[place].strip():
            raise ScoringError(
                f"{source}, line {line}: the cell in column {names[place]!r} is empty; "
                "fill it or remove the row"
            )
        yield row


def _write(
    writer: Any, rows: Sequence[list[str]], probabilities: Any, label_names: Sequence[str]
) -> None:
    for row, found in zip(rows, probabilities, strict=True):
        best = max(range(len(label_names)), key=lambda i: found[i])
        writer.writerow([*map(neutralize, row), label_names[best], *(f"{p:.6f}" for p in found)])


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
