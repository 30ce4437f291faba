"""`finsent submit`: predictions that somebody sends without the model, checked and scored.

The sentences need not be here: which ids a test part has, and their labels, is read off the runs
that are on the board.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from finsent.entrants.evaluating import knowledge, now, scores_of
from finsent.entrants.labels import EntrantError
from finsent.entrants.publishing import staged
from finsent.entrants.sources import UNKNOWN
from finsent.results.external.runs import as_stored, external_folder, write_external
from finsent.results.runs import EXTERNAL, Predictions, Run, find_runs
from finsent.results.schema import REPORTED

FORM = "predictions"
TOLERANCE = 0.005
"""How far a row may be from sum 1: three digits of each probability are enough."""
SHOWN = 3
"""Ids that an error names."""


@dataclass(frozen=True)
class Submission:
    """What is said of the predictions."""

    name: str
    url: str
    trained_on: tuple[str, ...] | None = None
    licence: str | None = None
    command: str = ""


def submit(files: Sequence[Path], submission: Submission, artifacts: Path) -> list[str]:
    """Checks every file, scores it and puts it on the board; returns a line for each.

    Args:
        files: CSV files, each of one data set's test part: `id` and a column for each label.
        submission: Whose they are.
        artifacts: The folder of runs.

    Raises:
        EntrantError: Which file, line or id is wrong. The board is as it was.
    """
    address = urlsplit(submission.url)
    if address.scheme not in ("http", "https") or not address.netloc:
        raise EntrantError(
            f"--url {submission.url!r}: give the page that describes the model, https://…"
        )
    parts = test_parts(artifacts)
    said = []
    with staged(artifacts, submission.name, submission.url) as place:
        for path in files:
            rows = read_rows(path)
            ours = _part_of(path, rows, parts)
            found = _predictions(path, rows, ours)
            metrics = scores_of(ours.dataset, found)
            trained, seen = knowledge(ours.dataset, submission.trained_on)
            folder = external_folder(place.root, submission.name, ours.dataset, ours.seed)
            if folder.exists():
                raise EntrantError(
                    f"{path}: another file is of {ours.dataset}, seed {ours.seed}, too; leave one "
                    "out"
                )
            config = {
                "kind": EXTERNAL,
                "name": submission.name,
                "form": FORM,
                "source": submission.url,
                "revision": None,
                "licence": submission.licence or UNKNOWN,
                "url": submission.url,
                "dataset": ours.dataset,
                "seed": ours.seed,
                "trained_on_data": trained,
                "may_have_seen_test": seen,
                "tested": REPORTED,
                "settings": {},
                "label_names": list(ours.label_names),
                "dataset_sha256": ours.config["dataset_sha256"],
                "split_sha256": ours.config["split_sha256"],
                "command": submission.command,
                "versions": {},
                "device": None,
                "git_commit": None,
                "finished_at": now(),
            }
            write_external(folder, config=config, metrics=metrics, predictions=found)
            said.append(
                f"{path}: {ours.dataset}, seed {ours.seed}: accuracy {metrics['accuracy']:.3f}, "
                f"macro-F1 {metrics['macro_f1']:.3f} on {metrics['n_test']} sentences"
            )
        place.publish()
    return said


def test_parts(artifacts: Path) -> list[Run]:
    """One run of this project for every data set and seed: it knows the test part.

    EntrantError where there is none.
    """
    found = {(run.dataset, run.seed): run for run in find_runs(artifacts)}
    if not found:
        raise EntrantError(f"{artifacts} has no runs, which say what the test parts are")
    return list(found.values())


@dataclass(frozen=True)
class Row:
    """One line of a file of predictions."""

    line: int
    id: str
    values: Mapping[str, str]


def read_rows(path: Path) -> list[Row]:
    """The lines of a CSV file with the column `id`. EntrantError for another file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EntrantError(f"{path}: cannot be read ({error}); give a CSV file in UTF-8") from error
    try:
        return _rows(path, csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise EntrantError(f"{path}: not CSV ({error}); write it anew") from error


def _rows(path: Path, reader: csv.DictReader[str]) -> list[Row]:
    header = reader.fieldnames or []
    if "id" not in header or len(set(header)) != len(header):
        raise EntrantError(
            f"{path}: its first line is {','.join(header) or 'empty'}; expected id and the names "
            "of the labels, each once"
        )
    rows: dict[str, Row] = {}
    for values in reader:
        if None in values or None in values.values():
            raise EntrantError(
                f"{path}, line {reader.line_num}: {len(header)} values expected, one for each of "
                f"{','.join(header)}"
            )
        name = values.pop("id").strip()
        if name in rows:
            raise EntrantError(
                f"{path}, line {reader.line_num}: id {name!r} stands on line {rows[name].line} "
                "too; give each once"
            )
        rows[name] = Row(reader.line_num, name, values)
    if not rows:
        raise EntrantError(f"{path}: no predictions below the header")
    return list(rows.values())


def _part_of(path: Path, rows: Sequence[Row], parts: Sequence[Run]) -> Run:
    """The run whose test part the rows are of."""
    given = {row.id for row in rows}
    labels = set(rows[0].values)
    best: tuple[int, Run, set[str]] | None = None
    for run in parts:
        ids = set(run.read_predictions().ids)
        shared = len(given & ids)
        # News holds the ids of its sources: the part with the fewest others is meant.
        if best is None or (shared, -len(ids)) > (best[0], -len(best[2])):
            best = (shared, run, ids)
    if best is None or best[0] == 0:
        known = ", ".join(sorted({run.dataset for run in parts}))
        raise EntrantError(
            f"{path}: none of its ids is in a test part on the board ({known}); docs/board.md says "
            "how to get them"
        )
    _, run, ids = best
    where = f"{path}: closest is {run.dataset}, seed {run.seed}, but"
    if given != ids:
        wrong = [
            f"{len(found)} {what} ({', '.join(sorted(found)[:SHOWN])}"
            f"{', …' if len(found) > SHOWN else ''})"
            for what, found in (("ids are missing", ids - given), ("are not of it", given - ids))
            if found
        ]
        raise EntrantError(f"{where} {' and '.join(wrong)}; give exactly its {len(ids)} test ids")
    if labels != set(run.label_names):
        raise EntrantError(
            f"{where} the columns are {', '.join(rows[0].values)}; expected "
            f"{', '.join(run.label_names)}"
        )
    return run


def _predictions(path: Path, rows: Sequence[Row], ours: Run) -> Predictions:
    """The rows in the order of our own, with the true labels."""
    by_id = {row.id: row for row in rows}
    known = ours.read_predictions()
    found = []
    for name in known.ids:
        row = by_id[name]
        where = f"{path}, line {row.line} (id {name})"
        numbers = []
        for label in ours.label_names:
            try:
                number = float(row.values[label])
            except ValueError:
                number = math.nan
            if not 0 <= number <= 1:
                raise EntrantError(
                    f"{where}: {label} is {row.values[label]!r}; expected a probability in 0..1"
                )
            numbers.append(number)
        total = math.fsum(numbers)
        if abs(total - 1) > TOLERANCE:
            raise EntrantError(
                f"{where}: the probabilities have the sum {total:.4f}; give a row that sums to 1"
            )
        found.append(tuple(number / total for number in numbers))
    return as_stored(Predictions(known.ids, known.labels, tuple(found), known.label_names))
