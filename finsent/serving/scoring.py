"""Scoring a file of any size: row by row into a CSV file, resumable, in constant memory.

The output repeats the input's columns and adds the label, one probability per class and whether the
text was cut. Rows are scored in blocks, by one worker or several, and written in their order. A
killed run leaves whole rows and goes on from them, so the finished file is the one that an
undisturbed run would have written (`finsent.serving.output`).
"""

from __future__ import annotations

import contextlib
import copy
import csv
import hashlib
import io
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from finsent.machine.files import sha256_file
from finsent.results.runs import Run, read_run
from finsent.serving.output import Appender, Output, OutputStep, ScoringError, Tally
from finsent.serving.tables.reading import LABEL_COLUMN, Table
from finsent.serving.tables.rows import Row, TableError
from finsent.serving.tables.writing import Cell, csv_writer, neutralize, restored, written

BLOCK_ROWS = 512
FIRST_BLOCK_ROWS = 16
"""Blocks begin small and double, so that the first rows are on the disk soon."""
ON_EMPTY = ("keep", "skip", "error")
"""What becomes of a row whose text is empty: it is kept with an empty answer, left out, or ends the
run."""


@dataclass(frozen=True)
class Answers:
    """What a model says of some texts."""

    probabilities: Sequence[Sequence[float]]
    """(n, classes), in the order of the label names."""
    truncated: Sequence[bool]
    """Whether each text was cut to what the model reads."""
    engine: str
    """What computed them; see `finsent.engines.rule.ENGINES`."""


Predict = Callable[[list[str]], Answers]
PredictAll = Callable[[Iterator[list[str]]], Iterator[Answers]]
"""Blocks of texts to their answers, in order. May ask for some blocks ahead."""
Answering = Callable[[], AbstractContextManager[PredictAll]]
"""Loads the model; not called where nothing is left to score."""
Report = Callable[[int, float], None]
"""Called after every block with the rows done and the share of the input file read, in [0, 1]."""


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

    def run(self) -> Run:
        """The run. ArtifactError where there is none."""
        return read_run(self.folder / self.arm / f"seed-{self.seed}")

    def about(self) -> dict[str, Any]:
        """What decides the answers, to be recorded with them."""
        run = self.run()
        return {
            "model": run.backbone,
            "dataset": run.dataset,
            "arm": self.arm,
            "seed": self.seed,
            "adapter_sha256": sha256_file(run.folder / "adapter.safetensors"),
            "weights_sha256": run.config["backbone_sha256"],
            "long": "windows" if self.whole else "truncate",
        }

    def engine_here(self) -> str:
        """What will compute in a process of this machine. Raises what Comparer raises."""
        from finsent.config import TrainConfig
        from finsent.engines.rule import chosen_engine
        from finsent.machine.devices import cuda_available

        config = TrainConfig.from_dict(self.run().config["config"])
        return chosen_engine(config, "cuda" if cuda_available() else "cpu", None)[0]

    def load(self, progress: Callable[[str, float], None] | None = None) -> Predict:
        """Raises what Comparer.from_artifacts raises."""
        from finsent.serving.comparer import Comparer

        model = Comparer.from_artifacts(
            self.folder, self.seed, (self.arm,), engine=self.engine, progress=progress
        )
        answer = model.predict_document_proba if self.whole else model.predict_proba

        def predict(texts: list[str]) -> Answers:
            cut = [False] * len(texts) if self.whole else model.truncated(texts)
            return Answers(answer(texts, self.arm).tolist(), cut, model.engine_name)

        return predict


@dataclass(frozen=True)
class Scored:
    """What is in the output now."""

    rows: int
    resumed_from: int
    """Of those, rows that an earlier run had written."""
    skipped: int
    """Rows of the input that were left out, having an empty text."""
    tally: Tally

    @property
    def labelled(self) -> int:
        """Rows whose answer was compared with the input's label."""
        return sum(self.tally.confusion.values())

    def agreement(self) -> tuple[float, float]:
        """Accuracy and macro-F1 of the answers on the labelled rows.

        F1 averages over the labels that occur among the input's or the answers, as in
        `finsent.results.metrics.score`.
        """
        from sklearn.metrics import accuracy_score, f1_score

        pairs = [tuple(key.split("/")) for key in self.tally.confusion]
        true, found = zip(*pairs, strict=True)
        weights = list(self.tally.confusion.values())
        return (
            float(accuracy_score(true, found, sample_weight=weights)),
            float(f1_score(true, found, sample_weight=weights, average="macro", zero_division=0)),
        )


@dataclass(frozen=True)
class Task:
    """What is scored, and how rows come out."""

    table: Table
    column: str
    label_names: Sequence[str]
    about: Mapping[str, Any] = field(default_factory=dict)
    """What decides the answers; see Model.about."""
    on_empty: str = "keep"
    label_column: str | None = None
    """Column with the true labels; None: one named `label`, if there is one."""
    engine: str | None = None
    """That was asked for by name."""
    engine_here: Callable[[], str] | None = None
    """Tells before the model is loaded what will compute; None: only the answers tell."""

    @property
    def place(self) -> int:
        """Position of the texts. TableError where there is no such column."""
        return self.table.place(self.column)

    @property
    def label_place(self) -> int | None:
        """Position of the true labels."""
        if self.label_column is not None:
            return self.table.place(self.label_column)
        return self.table.names.index(LABEL_COLUMN) if LABEL_COLUMN in self.table.names else None

    @property
    def columns(self) -> list[str]:
        """Of the output: the input's, then those that are added, under names that are not taken."""
        given = list(self.table.header if self.table.has_header else self.table.names)
        added = ["label", *self.label_names, "truncated"]
        while set(added) & set(given):
            added = [f"predicted_{name}" for name in added]
        return [*given, *added]

    def record(self) -> dict[str, Any]:
        """What makes the rows, for the output's record."""
        return {
            **self.about,
            "column": self.table.names[self.place],
            "columns": list(self.table.names),
            "header": self.table.has_header,
            "on_empty": self.on_empty,
            "label_column": self.label_column,
        }


@dataclass(frozen=True)
class _Block:
    """Rows that are scored together."""

    rows: list[Row]
    read: int
    """Rows of the input up to its end."""
    read_sha256: str
    share: float
    """Of the input file that had been read by then."""


def score_table(
    task: Task,
    source: Path,
    target: Path,
    answering: Answering,
    *,
    block_rows: int = BLOCK_ROWS,
    report: Report | None = None,
) -> Scored:
    """Score a column of every row into `target`; goes on where an earlier run was stopped.

    Cells that a spreadsheet would take for a formula get a leading apostrophe. Raises ScoringError
    or TableError, naming the row where there is one, for a missing column, an input that cannot be
    read to its end, an empty text where `on_empty` is "error", and an output that is not this
    task's. All rows before a bad one are written first, and a later run goes on from them.
    """
    task.place, task.label_place  # noqa: B018 (raise before anything is written)
    if target.exists() and source.exists() and target.samefile(source):
        raise ScoringError(f"{source} is both input and output; name another output file")
    rows = task.table.rows()
    first = next(rows, None)
    if first is None:
        raise ScoringError(f"{source} has a header and no row below it; there is nothing to score")
    with Output(target, task.record(), _lines([task.columns])) as output:
        reader = _Reader(task, source, itertools.chain([first], rows))
        reader.pass_over(output, target)
        begun = output.begun
        more = reader.more()
        engine = task.engine
        if engine is None and more and begun.engine is not None and task.engine_here is not None:
            engine = task.engine_here()
        if engine is not None:
            output.check_engine(engine)
        if more or not output.finished:
            loaded = answering() if more else contextlib.nullcontext(None)
            with loaded as predict, output.appending() as appender:
                _write(task, reader, output, appender, predict, block_rows, report)
            if reader.fault is not None:
                fault = reader.fault
                said = fault.for_command if isinstance(fault, TableError) else str(fault)
                raise ScoringError(
                    f"{source}: {said} ({output.begun.rows:,} rows before it are in "
                    f"{output.beside(output.part)}; mend it and run the same command again)"
                ) from fault
            output.publish()
        end = output.begun
        return Scored(end.rows, begun.rows, end.read - end.rows, end.tally)


def _write(
    task: Task,
    reader: _Reader,
    output: Output,
    appender: Appender,
    predict: PredictAll | None,
    block_rows: int,
    report: Report | None,
) -> None:
    """Everything that is left, block by block."""
    tally, rows = copy.deepcopy(output.begun.tally), output.begun.rows
    engine = output.begun.engine

    def noted(read: int, read_sha256: str, *, finished: bool = False) -> None:
        done = (appender.size, appender.sha256, engine, copy.deepcopy(tally), finished)
        output.note(OutputStep(read, read_sha256, rows, *done))

    for answers in predict(reader.blocks(rows, block_rows)) if predict else ():
        block = reader.waiting.popleft()
        output.check_engine(answers.engine)
        engine = answers.engine
        appender.write(_lines(_answered(task, block.rows, answers, tally)))
        rows += len(block.rows)
        noted(block.read, block.read_sha256)
        if report is not None:
            report(rows, block.share)
    if reader.fault is None:
        noted(reader.read, reader.sha256, finished=True)


class _Reader:
    """Rows of the input with their checksum, in blocks, up to the first one that cannot be read."""

    def __init__(self, task: Task, source: Path, rows: Iterator[Row]) -> None:
        self.task, self.source, self.rows = task, source, rows
        self.place = task.place
        self.read, self._digest = 0, hashlib.sha256()
        self.waiting: deque[_Block] = deque()
        """Blocks that were handed out and are not written yet."""
        self.fault: Exception | None = None
        """Why reading ended before the end; told when what was read before it is written."""

    @property
    def sha256(self) -> str:
        """Of the cells read so far."""
        return self._digest.hexdigest()

    def pass_over(self, output: Output, target: Path) -> None:
        """Reads what an earlier run has read. ScoringError where it is not the same."""
        for step in output.steps:
            for _ in range(step.read - self.read):
                if self._next() is None:
                    raise ScoringError(
                        f"{target} does not continue {self.source}: it was made of more rows. "
                        "Remove it to begin anew, or name another output file"
                    )
            if self.sha256 != step.read_sha256:
                raise ScoringError(
                    f"{target} does not continue {self.source}: {self._differing(output)}. "
                    "Remove it to begin anew, or name another output file"
                )

    def more(self) -> bool:
        """Whether there is another row."""
        row = next(self.rows, None)
        if row is not None:
            self.rows = itertools.chain([row], self.rows)
        return row is not None

    def _differing(self, output: Output) -> str:
        """The first cell of the input that is another now, by the cells that the output repeats."""
        if output.there is not None:
            with output.there.open(encoding="utf-8", newline="") as stream:
                there = csv.reader(stream)
                next(there, None)
                # The output ends where the run was stopped, and repeats the cells before its own.
                for row, cells in zip(self._kept(self.task.table.rows()), there, strict=False):
                    for name, now, before in zip(
                        self.task.table.names, row.cells, cells, strict=False
                    ):
                        if neutralize(now) != before:
                            return (
                                f"{row.where}, column {name!r}, is {now!r} and was "
                                f"{restored(before)!r} when it was scored"
                            )
        return "rows that were left out are others now"

    def _kept(self, rows: Iterator[Row]) -> Iterator[Row]:
        skipping = self.task.on_empty == "skip"
        return (row for row in rows if not skipping or row.cells[self.place].strip())

    def blocks(self, done: int, most: int) -> Iterator[list[str]]:
        """The texts of each block."""
        while self.fault is None:
            size = min(most, max(FIRST_BLOCK_ROWS, done))
            rows: list[Row] = []
            try:
                while len(rows) < size and (row := self._next()) is not None:
                    if self.task.on_empty != "skip" or row.cells[self.place].strip():
                        rows.append(row)
            except (TableError, ScoringError) as error:
                self.fault = error
            if not rows:
                return
            done += len(rows)
            self.waiting.append(_Block(rows, self.read, self.sha256, self.task.table.share))
            yield [text for row in rows if (text := row.cells[self.place]).strip()]

    def _next(self) -> Row | None:
        row = next(self.rows, None)
        if row is None:
            return None
        if self.task.on_empty == "error" and not row.cells[self.place].strip():
            raise ScoringError(
                f"{row.where}: the cell in column {self.task.column!r} is empty; fill it or remove "
                "the row, or let it be kept or left out: --on-empty keep or skip"
            )
        self.read += 1
        self._digest.update(json.dumps(row.cells).encode())
        return row


def _answered(
    task: Task, rows: Sequence[Row], answers: Answers, tally: Tally
) -> Iterator[list[Cell]]:
    """Rows of the output; counts them."""
    place, label_place = task.place, task.label_place
    known = {name.lower(): name for name in task.label_names}
    given = zip(answers.probabilities, answers.truncated, strict=True)
    for row in rows:
        if not row.cells[place].strip():
            tally.empty += 1
            yield [*row.cells, "", *[""] * len(task.label_names), ""]
            continue
        probabilities, cut = next(given)
        best = max(range(len(probabilities)), key=lambda i: probabilities[i])
        label = task.label_names[best]
        tally.truncated += cut
        if label_place is not None:
            true = known.get(row.cells[label_place].strip().lower())
            if true is None:
                tally.unlabelled += 1
            else:
                key = f"{true}/{label}"
                tally.confusion[key] = tally.confusion.get(key, 0) + 1
        shown = (Decimal(f"{p:.6f}") for p in probabilities)
        yield [*row.cells, label, *shown, "yes" if cut else "no"]


def _lines(rows: Sequence[Sequence[Cell]] | Iterator[list[Cell]]) -> bytes:
    buffer = io.StringIO()
    writer = csv_writer(buffer)
    for row in rows:
        writer.writerow(written(row))
    return buffer.getvalue().encode("utf-8")
