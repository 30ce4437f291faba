"""What one training run leaves on disk: the schema, strict reading, atomic writing, the manifest.

Standard library only, so that anything (the app, a notebook, a checker on a bare machine) can read
the results without a deep-learning stack. Layout below an artifacts root:

    <backbone>/<dataset>/<arm>/seed-<n>/{config.json, metrics.json, history.jsonl,
                                         predictions.csv, validation.csv, adapter.safetensors}
    leaderboard.json   figures/*.png   studies/...   SHA256SUMS
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finsent.files import write_bytes_atomically

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

MANIFEST = "SHA256SUMS"
WORK_FOLDER = ".work"
"""Below an artifacts root: runs under way, in the same layout. Never part of the artifacts."""
RESERVED_FOLDERS = ("figures", "studies")
"""Folders below an artifacts root that are no backbone."""

SIGNIFICANT_DIGITS = 9
"""Enough to tell any two float32 probabilities apart; more would only pretend precision."""

_NUMBER = (int, float)
_OPTIONAL_DICT = (dict, type(None))

CONFIG_KEYS: Mapping[str, tuple[type, ...]] = {
    "config": (dict,),
    "command": (str, list),
    "versions": (dict,),
    "device": (str, dict),
    "git_commit": (str, type(None)),
    "dataset_sha256": (str,),
    "split_sha256": (str,),
    "backbone_sha256": (str, type(None)),
    "label_names": (list,),
    "adapter": (dict,),
    "finished_at": (str,),
}
"""Keys of config.json that must be there, with the JSON types allowed."""

METRIC_KEYS: Mapping[str, tuple[type, ...]] = {
    "accuracy": _NUMBER,
    "macro_f1": _NUMBER,
    "weighted_f1": _NUMBER,
    "nll": _NUMBER,
    "ece": _NUMBER,
    "n_test": (int,),
    "trainable_params": (int,),
    "dendrites": (int,),
    "optimizer_steps": (int,),
    "epochs": (int,),
    "train_seconds": _NUMBER,
    "peak_memory_mb": (*_NUMBER, type(None)),
    "latency_ms_p50": _NUMBER,
    "latency_ms_p95": _NUMBER,
    "latency_protocol": (str,),
    "per_class": (dict,),
    "confusion": (list,),
    "ci": (dict,),
    "best_epoch": (int,),
    "best_before_growth": _OPTIONAL_DICT,
    "dendrite_logit_share": (*_NUMBER, type(None)),
    "dendrites_requested": (bool,),
    "matched_params_target": (int, type(None)),
    "validation": (dict,),
}
"""Keys of metrics.json that must be there. `best_before_growth` holds epoch, accuracy, macro_f1
and nll on validation; `validation` holds accuracy, macro_f1 and nll of the selected state."""

VALIDATION_KEYS: Mapping[str, tuple[type, ...]] = {
    "accuracy": _NUMBER,
    "macro_f1": _NUMBER,
    "nll": _NUMBER,
}
BEFORE_GROWTH_KEYS: Mapping[str, tuple[type, ...]] = {"epoch": (int,), **VALIDATION_KEYS}

HISTORY_KEYS: Mapping[str, tuple[type, ...]] = {
    "epoch": (int,),
    "train_loss": _NUMBER,
    "val_loss": _NUMBER,
    "val_accuracy": _NUMBER,
    "val_macro_f1": _NUMBER,
    "learning_rate": _NUMBER,
    "dendrites": (int,),
    "trainable_params": (int,),
    "seconds": _NUMBER,
    "event": (str, type(None)),
}
"""Keys of every line of history.jsonl."""

TRAIN_CONFIG_KEYS: Mapping[str, tuple[type, ...]] = {
    "backbone": (str,),
    "dataset": (str,),
    "seed": (int,),
    "treatment": _OPTIONAL_DICT,
}
"""What this module needs from the TrainConfig stored under config.json's key `config`."""


class ArtifactError(ValueError):
    """A file of a run is missing, damaged or not what the schema says."""


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

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(self.config["label_names"])

    def read_predictions(self) -> Predictions:
        """predictions.csv of this run. Raises ArtifactError when it is missing or damaged."""
        return read_predictions(self.folder / "predictions.csv", self.label_names)

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
    """Every float in nested mappings and lists to SIGNIFICANT_DIGITS: sums may differ in the last
    bit between processors, and a file that is computed again must not."""
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
    _check_config(config, folder / "config.json")
    _check_metrics(metrics, folder / "metrics.json")
    _check_history(history, folder / "history.jsonl")
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
    missing = [name for name in RUN_FILES if not (folder / name).is_file()]
    if missing:
        raise ArtifactError(
            f"{folder}: missing {', '.join(missing)}; the run did not finish: train it again"
        )
    config = read_json(folder / "config.json")
    _check_config(config, folder / "config.json")
    metrics = read_json(folder / "metrics.json")
    _check_metrics(metrics, folder / "metrics.json")
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


def find_runs(root: Path | str) -> list[Run]:
    """Every finished run below an artifacts root, by backbone, dataset, arm, seed.

    Folders that lack one of the five files are skipped: they are runs still under way. A finished
    run that cannot be read is an ArtifactError.
    """
    root = Path(root)
    folders = [
        folder
        for folder in root.glob("*/*/*/seed-*")
        if folder.relative_to(root).parts[0] not in RESERVED_FOLDERS and is_finished(folder)
    ]
    runs = [read_run(folder) for folder in folders]
    return sorted(runs, key=lambda run: (slug(run.backbone), run.dataset, run.arm, run.seed))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ArtifactError when the file is missing or is not one."""
    value = _parse_json(_read_text(path), str(path))
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: holds a {type(value).__name__}, not an object; {_RESTORE}")
    return value


def read_history(path: Path) -> list[dict[str, Any]]:
    """history.jsonl, epochs 0, 1, 2, ... Raises ArtifactError naming the line at fault."""
    lines = _read_text(path).splitlines()
    history = [_parse_json(line, f"{path}, line {n}") for n, line in enumerate(lines, start=1)]
    _check_history(history, path)
    return history


def read_predictions(path: Path, label_names: Sequence[str]) -> Predictions:
    """predictions.csv with the columns `id, label, *label_names`.

    Raises ArtifactError when the file is missing, its header differs, or a row is damaged.
    """
    try:
        rows = list(csv.reader(io.StringIO(_read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise ArtifactError(f"{path}: not CSV ({error}); {_RESTORE}") from error
    header = ["id", "label", *label_names]
    if not rows or rows[0] != header:
        found = ",".join(rows[0]) if rows else "an empty file"
        raise ArtifactError(f"{path}: header is {found}, expected {','.join(header)}; {_RESTORE}")
    probabilities: list[tuple[float, ...]] = []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise ArtifactError(
                f"{path}, line {number}: {len(row)} values, expected {len(header)}; {_RESTORE}"
            )
        try:
            probabilities.append(tuple(float(value) for value in row[2:]))
        except ValueError as error:
            raise ArtifactError(f"{path}, line {number}: {error}; {_RESTORE}") from error
    try:
        return Predictions(
            ids=tuple(row[0] for row in rows[1:]),
            labels=tuple(row[1] for row in rows[1:]),
            probabilities=tuple(probabilities),
            label_names=tuple(label_names),
        )
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}; {_RESTORE}") from error


def read_tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file, from its header alone.

    The format: eight bytes little-endian header length, a JSON header, the tensors' bytes.
    Raises ArtifactError when the file is missing, cut short or has bytes to spare.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); {_RESTORE}") from error
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise ArtifactError(f"{path}: not a safetensors file ({len(content)} bytes); {_RESTORE}")
    try:
        header = _parse_json(content[8 : 8 + length].decode(), f"{path} (header)")
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in tensors.items()}
        end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except (UnicodeDecodeError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise ArtifactError(
            f"{path}: damaged safetensors header ({error!r}); {_RESTORE}"
        ) from error
    if 8 + length + end != len(content):
        raise ArtifactError(
            f"{path}: header announces {8 + length + end} bytes, the file has {len(content)}; "
            f"{_RESTORE}"
        )
    return shapes


# ------------------------------------------------------------------------ manifest


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_below(root: Path) -> list[str]:
    """POSIX paths, relative to root and sorted, of every file but the manifest and unfinished
    work."""
    paths = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(
        path.as_posix()
        for path in paths
        if path.as_posix() != MANIFEST and path.parts[0] != WORK_FOLDER
    )


def manifest_text(root: Path | str) -> str:
    """The manifest that describes the tree as it is now, in the format of `sha256sum`.

    Raises ArtifactError for a file name that holds a line break or backslash, which that format
    would need to escape.
    """
    root = Path(root)
    lines = []
    for name in files_below(root):
        if any(character in name for character in "\n\r\\"):
            raise ArtifactError(f"{root}: file name {name!r} cannot be listed; rename the file")
        lines.append(f"{sha256_file(root / name)}  {name}\n")
    return "".join(lines)


def write_manifest(root: Path | str) -> Path:
    """Writes root/SHA256SUMS; `sha256sum -c SHA256SUMS` inside root checks it. Call it last."""
    path = Path(root) / MANIFEST
    write_bytes_atomically(path, manifest_text(root).encode())
    return path


def read_manifest(root: Path | str) -> dict[str, str]:
    """Path -> SHA-256 as the manifest states it.

    Raises ArtifactError when it is missing or a line is not `<64 hex digits>  <path>`.
    """
    path = Path(root) / MANIFEST
    entries: dict[str, str] = {}
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        match = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        if match is None:
            raise ArtifactError(f"{path}, line {number}: not `<sha256>  <path>`; {_RESTORE}")
        entries[match[2]] = match[1]
    return entries


# ------------------------------------------------------------------------ checks

_RESTORE = "restore the file from version control or train the run again"


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: missing; {_RESTORE}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); {_RESTORE}") from error


def _parse_json(text: str, where: str) -> Any:
    def refuse(constant: str) -> None:
        raise ArtifactError(f"{where}: holds {constant}, which JSON does not know; {_RESTORE}")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{where}: not JSON ({error}); {_RESTORE}") from error


def _check_keys(value: Any, keys: Mapping[str, tuple[type, ...]], where: str) -> None:
    if not isinstance(value, Mapping):
        raise ArtifactError(f"{where}: holds {value!r}, not an object; {_RESTORE}")
    for key, types in keys.items():
        if key not in value:
            raise ArtifactError(f"{where}: key {key!r} is missing; train the run again")
        # bool is a subclass of int, and true is not a number of examples.
        if not isinstance(value[key], types) or (
            isinstance(value[key], bool) and bool not in types
        ):
            names = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            raise ArtifactError(f"{where}: {key!r} is {value[key]!r}, expected {names}; {_RESTORE}")


def _check_config(config: Any, path: Path) -> None:
    _check_keys(config, CONFIG_KEYS, str(path))
    _check_keys(config["config"], TRAIN_CONFIG_KEYS, f"{path}, config")
    treatment = config["config"]["treatment"]
    if treatment is not None:
        _check_keys(treatment, {"kind": (str,)}, f"{path}, config.treatment")


def _check_metrics(metrics: Any, path: Path) -> None:
    _check_keys(metrics, METRIC_KEYS, str(path))
    _check_keys(metrics["validation"], VALIDATION_KEYS, f"{path}, validation")
    if metrics["best_before_growth"] is not None:
        _check_keys(
            metrics["best_before_growth"], BEFORE_GROWTH_KEYS, f"{path}, best_before_growth"
        )


def _check_history(history: Iterable[Any], path: Path) -> None:
    lines = list(history)
    if not lines:
        raise ArtifactError(f"{path}: no epochs; train the run again")
    for number, line in enumerate(lines):
        where = f"{path}, line {number + 1}"
        _check_keys(line, HISTORY_KEYS, where)
        if line["epoch"] != number:
            raise ArtifactError(f"{where}: epoch {line['epoch']}, expected {number}; {_RESTORE}")


def _check_place(folder: Path, config: Mapping[str, Any]) -> None:
    inner = config["config"]
    belongs = run_folder(".", inner["backbone"], inner["dataset"], arm_of(inner), inner["seed"])
    if folder.absolute().parts[-4:] != belongs.parts:
        raise ArtifactError(
            f"{folder}: config.json describes {belongs}; move the folder there or train it again"
        )
