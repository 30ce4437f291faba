"""The study's file: one line a run, appended as runs finish. Standard library only."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

RESULTS = "results.csv"
SUMMARY = "summary.json"
CLASSICAL = "classical"
"""Arm of the classifiers that are no heads, and name of their study."""
ENSEMBLE = "ensemble"
"""Arm of several runs that answer together."""


class StudyError(ValueError):
    """A study, regime, fold or result that cannot be made or read."""


class RunKey(NamedTuple):
    """What makes a run the same run, tested on the same set; fields as in StudyRun."""

    backbone: str
    dataset: str
    regime: str
    recipe: str
    arm: str
    fold: int
    seed: int
    test_dataset: str


@dataclass(frozen=True)
class StudyRun:
    """What one run of a study scored. The first columns are fixed by the artifact schema."""

    backbone: str
    dataset: str
    """Data set trained on."""
    regime: str
    recipe: str
    arm: str
    fold: int
    seed: int
    accuracy: float
    macro_f1: float
    nll: float
    ece: float
    trainable_params: int
    dendrites: int
    optimizer_steps: int
    train_seconds: float
    """A stack of runs takes its time together; this is the share of one."""
    test_dataset: str
    """Data set tested on: the same but for cross-domain regimes."""
    n_train: int
    n_test: int
    best_epoch: int
    validation_nll: float
    """This and the next: NaN for a run that was trained on the validation part as well."""
    validation_accuracy: float

    @property
    def key(self) -> RunKey:
        """What makes a run the same run."""
        return RunKey(*(getattr(self, name) for name in RunKey._fields))


COLUMNS = tuple(field.name for field in fields(StudyRun))
_TYPES = {
    field.name: {"int": int, "float": float, "str": str}[str(field.type)]
    for field in fields(StudyRun)
}


def append_runs(path: Path, runs: Iterable[StudyRun]) -> None:
    """Add lines in one write, with a header where the file is new."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    if not path.exists():
        writer.writeheader()
    for run in runs:
        writer.writerow({name: _text(value) for name, value in asdict(run).items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(stream.getvalue())
        file.flush()
        os.fsync(file.fileno())


def _text(value: str | int | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read_runs(path: Path) -> list[StudyRun]:
    """Every run of the file; none when it is not there.

    Raises StudyError that names the line for a damaged file, or a run that stands there twice.
    """
    if not path.exists():
        return []
    try:
        return _read(path)
    except (csv.Error, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read ({error}); restore it") from error


def _read(path: Path) -> list[StudyRun]:
    found: dict[RunKey, StudyRun] = {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise StudyError(
                f"{path}: columns {reader.fieldnames}, expected {list(COLUMNS)}; it is of another "
                "version: move it away or use another --name"
            )
        for row in reader:
            run = _parse(row, f"{path}, line {reader.line_num}")
            if run.key in found:
                raise StudyError(f"{path}, line {reader.line_num}: this run is there twice")
            found[run.key] = run
    return list(found.values())


def _parse(row: Mapping[str, str | None], where: str) -> StudyRun:
    try:
        # A line cut short by a full disk lacks columns: None.
        return StudyRun(**{name: _TYPES[name](row[name] or "") for name in COLUMNS})
    except (KeyError, ValueError) as error:
        raise StudyError(f"{where}: {error}; remove the line and run the study again") from error


def mean(runs: Sequence[StudyRun], column: str) -> float:
    """Mean of a column. StudyError for no runs."""
    if not runs:
        raise StudyError(f"no run to average {column} over")
    return sum(float(getattr(run, column)) for run in runs) / len(runs)
