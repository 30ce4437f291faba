"""The run folder of a model from elsewhere: `external/<entrant>/<dataset>/seed-<n>/`.

It holds config.json (what the model is, and whether it may have seen the data), metrics.json,
predictions.csv.gz (ids, true labels and probabilities of the test part) and, where the model was
also tested on folds, folds.csv. It is read into the same `Run` as those that were trained here.
"""

from __future__ import annotations

import csv
import gzip
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

from finsent.machine.files import write_bytes_atomically
from finsent.results.runs import (
    EXTERNAL,
    Predictions,
    Run,
    check_files,
    check_place,
    predictions_csv,
    read_csv,
    read_json,
    slug,
    write_json,
)
from finsent.results.schema import (
    NOT_MEASURED,
    RESTORE,
    ArtifactError,
    check_external_config,
    check_external_metrics,
)

CONFIG, METRICS, FOLDS = "config.json", "metrics.json", "folds.csv"
PREDICTIONS = "predictions.csv.gz"
FILES = (CONFIG, METRICS, PREDICTIONS)
"""A run is finished when all three exist; folds.csv is there where folds were tested."""

DIGITS = 4
"""Of a stored probability: what other models say need not be told to the last bit, and a clone of
the repository is what everybody waits for."""

UNKNOWN_HERE: Mapping[str, Any] = {
    "trainable_params": None,
    "dendrites": 0,
    "dendrites_requested": False,
    "optimizer_steps": None,
    "epochs": None,
    "train_seconds": None,
    "peak_memory_mb": None,
    "latency_ms_p50": None,
    "latency_ms_p95": None,
    "latency_protocol": NOT_MEASURED,
    "best_epoch": None,
}
"""What metrics.json may leave out, because nobody here trained the model or timed it."""


@dataclass(frozen=True)
class FoldScore:
    """What a model scored on one fold's test part."""

    fold: int
    n_test: int
    accuracy: float
    macro_f1: float
    nll: float
    ece: float


FOLD_METRICS = ("accuracy", "macro_f1", "nll", "ece")
_HEADER = tuple(field.name for field in fields(FoldScore))


def entrant_folder(root: Path | str, name: str) -> Path:
    """Where the runs of an entrant are. ArtifactError when its name cannot name a folder."""
    return Path(root) / EXTERNAL / slug(name)


def external_folder(root: Path | str, name: str, dataset: str, seed: int) -> Path:
    """Where a run of an entrant is."""
    return entrant_folder(root, name) / dataset / f"seed-{seed}"


def as_stored(predictions: Predictions) -> Predictions:
    """The same predictions with `DIGITS` digits, every row with sum 1, as the file has them."""
    rows = []
    for row in predictions.probabilities:
        parts = [round(p * 10**DIGITS) for p in row]
        # What rounding added or lost goes to the likeliest label, which it cannot change.
        parts[max(range(len(row)), key=lambda i: row[i])] += 10**DIGITS - sum(parts)
        rows.append(tuple(part / 10**DIGITS for part in parts))
    return Predictions(predictions.ids, predictions.labels, tuple(rows), predictions.label_names)


def write_external(
    folder: Path,
    *,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    predictions: Predictions,
    folds: Sequence[FoldScore] = (),
) -> None:
    """Writes a run. ArtifactError, before anything is on the disk, when it could not be read."""
    check_external_config(config, folder / CONFIG)
    check_external_metrics({**UNKNOWN_HERE, **metrics}, folder / METRICS, config["label_names"])
    content = predictions_csv(predictions).encode()
    # No time in the header: the same predictions are the same bytes.
    write_bytes_atomically(folder / PREDICTIONS, gzip.compress(content, 9, mtime=0))
    if folds:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(_HEADER)
        writer.writerows(astuple(fold) for fold in folds)
        write_bytes_atomically(folder / FOLDS, buffer.getvalue().encode())
    write_json(folder / METRICS, dict(metrics))
    write_json(folder / CONFIG, dict(config))


def read_external(folder: Path | str) -> Run:
    """Reads and checks a run. Raises ArtifactError naming the file, the fault and the remedy."""
    folder = Path(folder)
    check_files(folder, FILES, "restore it or evaluate the model again")
    config = read_json(folder / CONFIG)
    check_external_config(config, folder / CONFIG)
    metrics = {**UNKNOWN_HERE, **read_json(folder / METRICS)}
    check_external_metrics(metrics, folder / METRICS, config["label_names"])
    belongs = external_folder(".", config["name"], config["dataset"], config["seed"])
    check_place(folder, belongs, "evaluate the model again")
    return Run(
        folder=folder,
        backbone=config["name"],
        dataset=config["dataset"],
        arm=EXTERNAL,
        seed=config["seed"],
        config=config,
        metrics=metrics,
        history=[],
        predictions_file=PREDICTIONS,
    )


def external_folders(root: Path | str) -> list[Path]:
    """Every folder below root that is, or was meant to be, a run of a model from elsewhere."""
    found = {path.parent for path in Path(root).glob(f"{EXTERNAL}/*/*/seed-*/*")}
    return sorted(found)


def find_external(root: Path | str) -> list[Run]:
    """Every run of a model from elsewhere, by entrant, data set and seed.

    ArtifactError for a damaged one: such folders are put in place whole.
    """
    runs = [read_external(folder) for folder in external_folders(root)]
    return sorted(runs, key=lambda run: (slug(run.backbone), run.dataset, run.seed))


def read_folds(folder: Path) -> list[FoldScore]:
    """The folds of a run, none where there is no file. ArtifactError when it is damaged."""
    path = folder / FOLDS
    if not path.is_file():
        return []
    rows = read_csv(path)
    if not rows or tuple(rows[0]) != _HEADER:
        raise ArtifactError(f"{path}: header is not {','.join(_HEADER)}; {RESTORE}")
    found = []
    for number, row in enumerate(rows[1:]):
        try:
            fold = FoldScore(int(row[0]), int(row[1]), *map(float, row[2:]))
        except (TypeError, ValueError, IndexError) as error:
            raise ArtifactError(f"{path}, line {number + 2}: {error}; {RESTORE}") from error
        shares = (fold.accuracy, fold.macro_f1, fold.ece)
        if fold.fold != number or fold.n_test < 1 or not all(0 <= x <= 1 for x in shares):
            raise ArtifactError(f"{path}, line {number + 2}: {row} is no fold; {RESTORE}")
        found.append(fold)
    if len(found) < 2:
        raise ArtifactError(f"{path}: {len(found)} folds, expected several; {RESTORE}")
    return found


def fold_means(folds: Sequence[FoldScore]) -> dict[str, Any] | None:
    """{folds, n_test, mean, sd} over the folds; None where there are none."""
    if not folds:
        return None
    values = {name: [asdict(fold)[name] for fold in folds] for name in FOLD_METRICS}
    return {
        "folds": len(folds),
        "n_test": sum(fold.n_test for fold in folds),
        "mean": {name: statistics.fmean(found) for name, found in values.items()},
        "sd": {name: statistics.stdev(found) for name, found in values.items()},
    }
