"""What one training run leaves on disk: the schema, strict reading, atomic writing, the manifest.

Standard library only, so that anything (the app, a notebook, a checker on a bare machine) can read
the results without a deep-learning stack. Layout below an artifacts root:

    <backbone>/<dataset>/<arm>/seed-<n>/{config.json, metrics.json, history.jsonl,
                                         predictions.csv, validation.csv, adapter.safetensors}
    leaderboard.json   figures/*.png   studies/...   SHA256SUMS

Models that were not trained here are below external/ (finsent.results.external.runs).
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finsent.machine.files import write_bytes_atomically
from finsent.results.schema import (
    RESTORE,
    ArtifactError,
    check_config,
    check_history,
    check_metrics,
    parse_json,
    read_text,
)

RUN_FILES = (
    "config.json",
    "metrics.json",
    "history.jsonl",
    "predictions.csv",
    "adapter.safetensors",
)
"""A run is finished when all five exist."""

VALIDATION_FILE = "validation.csv"
"""What the selected state says of the validation part, in the format of predictions.csv: for
fitting a calibration. Runs made before it was written do without."""

WORK_FOLDER = ".work"
"""Below an artifacts root: runs under way, in the same layout. Never part of the artifacts."""
LEADERBOARD = "leaderboard.json"
"""Below an artifacts root: what the runs say together."""
EXTERNAL = "external"
"""The folder of models that were not trained here, and the arm that they stand under."""
RESERVED_FOLDERS = ("behaviour", EXTERNAL, "figures", "studies")
"""Folders below an artifacts root that are no backbone."""

SIGNIFICANT_DIGITS = 9
"""Enough to tell any two float32 probabilities apart; more would only pretend precision."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of one run on its test or validation part: n examples, k classes.

    Probabilities are rounded to nine significant digits at construction, so numbers computed
    before writing are the numbers computed after reading.

    Raises ArtifactError when lengths differ, an id occurs twice, a label is unknown, or a row of
    probabilities is not a distribution (each in [0, 1], sum within 1e-4 of 1).
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    """True labels, by name."""
    probabilities: tuple[tuple[float, ...], ...]
    """n rows of k numbers in the order of `label_names`."""
    label_names: tuple[str, ...]

    def __post_init__(self) -> None:
        rounded = tuple(
            tuple(float(f"{p:.{SIGNIFICANT_DIGITS}g}") for p in row) for row in self.probabilities
        )
        for name, value in (
            ("ids", tuple(self.ids)),
            ("labels", tuple(self.labels)),
            ("probabilities", rounded),
            ("label_names", tuple(self.label_names)),
        ):
            object.__setattr__(self, name, value)
        problem = self._problem()
        if problem is not None:
            raise ArtifactError(f"predictions: {problem}")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def label_indices(self) -> tuple[int, ...]:
        """True labels as positions in `label_names`, shape (n,)."""
        position = {name: index for index, name in enumerate(self.label_names)}
        return tuple(position[label] for label in self.labels)

    def only(self, wanted: Collection[str]) -> Predictions | None:
        """The examples whose id is wanted, in the same order; None when there is none."""
        kept = [index for index, example in enumerate(self.ids) if example in wanted]
        if not kept:
            return None
        return Predictions(
            ids=tuple(self.ids[index] for index in kept),
            labels=tuple(self.labels[index] for index in kept),
            probabilities=tuple(self.probabilities[index] for index in kept),
            label_names=self.label_names,
        )

    def _problem(self) -> str | None:
        if not len(self.ids) == len(self.labels) == len(self.probabilities):
            return (
                f"{len(self.ids)} ids, {len(self.labels)} labels, {len(self.probabilities)} rows "
                "of probabilities; give one of each per example"
            )
        if len(self.ids) == 0:
            return "no examples; a run needs a non-empty test set"
        if len(self.label_names) < 2 or len(set(self.label_names)) != len(self.label_names):
            return f"label names {self.label_names} are not two or more different names"
        seen: set[str] = set()
        for number, (example, label, row) in enumerate(
            zip(self.ids, self.labels, self.probabilities, strict=True), start=1
        ):
            where = f"example {number} (id {example!r})"
            if not example or example in seen:
                return f"{where}: ids must be non-empty and unique"
            seen.add(example)
            if label not in self.label_names:
                return f"{where}: label {label!r} is none of {self.label_names}"
            if len(row) != len(self.label_names):
                return f"{where}: {len(row)} probabilities for {len(self.label_names)} labels"
            # `not (...)` also catches NaN, which compares false with everything.
            if not all(0.0 <= p <= 1.0 for p in row) or not abs(math.fsum(row) - 1.0) <= 1e-4:
                return f"{where}: probabilities {row} are not in [0, 1] with sum 1"
        return None


@dataclass(frozen=True)
class Run:
    """One finished run, read and checked. Predictions are read on request: they are the bulk."""

    folder: Path
    backbone: str
    """As the config names it (a Hub id keeps its slash; the folder name is its slug)."""
    dataset: str
    arm: str
    seed: int
    config: dict[str, Any]
    """config.json; the TrainConfig is under the key `config`."""
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    predictions_file: str = "predictions.csv"

    @property
    def label_names(self) -> tuple[str, ...]:
        """Classes in the order of every probability column."""
        return tuple(self.config["label_names"])

    def read_predictions(self) -> Predictions:
        """Predictions of this run. Raises ArtifactError when they are missing or damaged."""
        return read_predictions(self.folder / self.predictions_file, self.label_names)

    def read_validation(self) -> Predictions | None:
        """validation.csv of this run, None where the run kept none. ArtifactError when damaged."""
        path = self.folder / VALIDATION_FILE
        return read_predictions(path, self.label_names) if path.is_file() else None


def slug(backbone: str) -> str:
    """Folder name of a backbone: `org/name` becomes `org--name`.

    Raises ArtifactError when nothing is left to name a folder by.
    """
    name = re.sub(r"[/\\]+", "--", backbone.strip().strip("./\\~"))
    name = re.sub(r"[^A-Za-z0-9._-]", "-", name)
    if not name or name in RESERVED_FOLDERS:
        raise ArtifactError(
            f"backbone {backbone!r} cannot name a folder; use a preset, a Hub id or a path "
            f"whose name is none of {RESERVED_FOLDERS}"
        )
    return name


def run_folder(root: Path | str, backbone: str, dataset: str, arm: str, seed: int) -> Path:
    """Where a run lives below the artifacts root."""
    return Path(root) / slug(backbone) / dataset / arm / f"seed-{seed}"


def arm_of(train_config: Mapping[str, Any]) -> str:
    """Arm of a TrainConfig that was stored as JSON: its treatment's kind, or `baseline`."""
    treatment = train_config["treatment"]
    return "baseline" if treatment is None else str(treatment["kind"])


# ------------------------------------------------------------------------ writing


def rounded(value: Any) -> Any:
    """Rounds every float in nested mappings and lists to SIGNIFICANT_DIGITS.

    Sums may differ in the last bit between processors, and a file that is computed again must not.
    """
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return value


def canonical_json(value: Any) -> str:
    """The one spelling in which JSON files are stored here: two spaces, sorted keys, newline.

    Raises ArtifactError for NaN, infinities and values JSON does not know.
    """
    try:
        return (
            json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
        )
    except (TypeError, ValueError) as error:
        raise ArtifactError(
            f"cannot be stored as JSON: {error}; convert to plain finite numbers, strings, "
            "lists and dicts first"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Canonical JSON, atomically. Raises ArtifactError naming the file."""
    try:
        text = canonical_json(value)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    write_bytes_atomically(path, text.encode())


def write_run(
    folder: Path | str,
    *,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    predictions: Predictions,
    validation: Predictions | None = None,
) -> None:
    """Writes the text files of a run; adapter.safetensors is the trainer's to write.

    Everything is checked against the schema first: a run that could not be read back is refused
    before anything reaches the disk (ArtifactError).
    """
    folder = Path(folder)
    check_config(config, folder / "config.json")
    check_metrics(metrics, folder / "metrics.json", config["label_names"])
    check_history(history, folder / "history.jsonl")
    _check_place(folder, config)
    tables = {"predictions.csv": predictions}
    if validation is not None:
        tables[VALIDATION_FILE] = validation
    for name, table in tables.items():
        if tuple(config["label_names"]) != table.label_names:
            raise ArtifactError(
                f"{folder / name}: predictions name the labels {table.label_names}, "
                f"config.json {tuple(config['label_names'])}; use one order everywhere"
            )
    try:
        lines = [
            json.dumps(line, sort_keys=True, allow_nan=False, ensure_ascii=False)
            for line in history
        ]
    except (TypeError, ValueError) as error:
        raise ArtifactError(
            f"{folder / 'history.jsonl'}: {error}; did the training loss diverge?"
        ) from error
    config_text, metrics_text = canonical_json(config), canonical_json(metrics)
    write_bytes_atomically(folder / "history.jsonl", "".join(f"{x}\n" for x in lines).encode())
    for name, table in tables.items():
        write_bytes_atomically(folder / name, predictions_csv(table).encode())
    write_bytes_atomically(folder / "metrics.json", metrics_text.encode())
    write_bytes_atomically(folder / "config.json", config_text.encode())


def predictions_csv(predictions: Predictions) -> str:
    """`id,label,<one column per class>`, one line an example, shortest exact numbers."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["id", "label", *predictions.label_names])
    for example, label, row in zip(
        predictions.ids, predictions.labels, predictions.probabilities, strict=True
    ):
        writer.writerow([example, label, *(repr(p) for p in row)])
    return buffer.getvalue()


# ------------------------------------------------------------------------ reading


def read_run(folder: Path | str) -> Run:
    """Reads and checks a run. Raises ArtifactError naming the file, the fault and the remedy."""
    folder = Path(folder)
    check_files(folder, RUN_FILES, "the run did not finish: train it again")
    config = read_json(folder / "config.json")
    check_config(config, folder / "config.json")
    metrics = read_json(folder / "metrics.json")
    check_metrics(metrics, folder / "metrics.json", config["label_names"])
    history = read_history(folder / "history.jsonl")
    _check_place(folder, config)
    train_config = config["config"]
    return Run(
        folder=folder,
        backbone=train_config["backbone"],
        dataset=train_config["dataset"],
        arm=arm_of(train_config),
        seed=train_config["seed"],
        config=config,
        metrics=metrics,
        history=history,
    )


def is_finished(folder: Path) -> bool:
    """Whether a run's folder has all of its files."""
    return all((folder / name).is_file() for name in RUN_FILES)


def finished_folders(root: Path) -> list[Path]:
    """Folders below an artifacts root that hold all five files of a run.

    Those that lack one are runs still under way.
    """
    return [
        folder
        for folder in root.glob("*/*/*/seed-*")
        if folder.relative_to(root).parts[0] not in RESERVED_FOLDERS and is_finished(folder)
    ]


def in_order(found: Iterable[Run]) -> list[Run]:
    """Runs by backbone, data set, arm and seed."""
    return sorted(found, key=lambda run: (slug(run.backbone), run.dataset, run.arm, run.seed))


def find_runs(root: Path | str) -> list[Run]:
    """Every finished run below an artifacts root, by backbone, dataset, arm, seed.

    A finished run that cannot be read is an ArtifactError; `finsent.results.catalog` goes on
    without it.
    """
    return in_order(map(read_run, finished_folders(Path(root))))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ArtifactError when the file is missing or is not one."""
    value = parse_json(read_text(path), str(path))
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: holds a {type(value).__name__}, not an object; {RESTORE}")
    return value


def read_history(path: Path) -> list[dict[str, Any]]:
    """history.jsonl, epochs 0, 1, 2, ... Raises ArtifactError naming the line at fault."""
    lines = read_text(path).splitlines()
    history = [parse_json(line, f"{path}, line {n}") for n, line in enumerate(lines, start=1)]
    check_history(history, path)
    return history


def read_csv(path: Path) -> list[list[str]]:
    """Rows of a CSV file. Raises ArtifactError when it is missing or cannot be read."""
    try:
        return list(csv.reader(io.StringIO(read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise ArtifactError(f"{path}: not CSV ({error}); {RESTORE}") from error


def read_predictions(path: Path, label_names: Sequence[str]) -> Predictions:
    """predictions.csv with the columns `id, label, *label_names`.

    Raises ArtifactError when the file is missing, its header differs, or a row is damaged.
    """
    rows = read_csv(path)
    header = ["id", "label", *label_names]
    if not rows or rows[0] != header:
        found = ",".join(rows[0]) if rows else "an empty file"
        raise ArtifactError(f"{path}: header is {found}, expected {','.join(header)}; {RESTORE}")
    probabilities: list[tuple[float, ...]] = []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise ArtifactError(
                f"{path}, line {number}: {len(row)} values, expected {len(header)}; {RESTORE}"
            )
        try:
            probabilities.append(tuple(float(value) for value in row[2:]))
        except ValueError as error:
            raise ArtifactError(f"{path}, line {number}: {error}; {RESTORE}") from error
    try:
        return Predictions(
            ids=tuple(row[0] for row in rows[1:]),
            labels=tuple(row[1] for row in rows[1:]),
            probabilities=tuple(probabilities),
            label_names=tuple(label_names),
        )
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}; {RESTORE}") from error


# ------------------------------------------------------------------------ checks


def check_files(folder: Path, names: Iterable[str], remedy: str) -> None:
    """ArtifactError, which names the remedy, where one of these files is missing."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ArtifactError(f"{folder}: missing {', '.join(missing)}; {remedy}")


def check_place(folder: Path, belongs: Path, remedy: str) -> None:
    """ArtifactError, which names the remedy, where a run lies elsewhere than it says."""
    if folder.absolute().parts[-4:] != belongs.parts:
        raise ArtifactError(
            f"{folder}: config.json describes {belongs}; move the folder there or {remedy}"
        )


def _check_place(folder: Path, config: Mapping[str, Any]) -> None:
    inner = config["config"]
    belongs = run_folder(".", inner["backbone"], inner["dataset"], arm_of(inner), inner["seed"])
    check_place(folder, belongs, "train it again")
