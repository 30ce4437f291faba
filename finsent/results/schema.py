"""The schema of a run folder: which keys each file has, read strictly.

Errors name the file, the value and the mend. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

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


PER_SOURCE = "per_source"
"""Key of metrics.json where the data set is made of several sources: source -> SOURCE_KEYS."""

SOURCE_KEYS: Mapping[str, tuple[type, ...]] = {
    "accuracy": _NUMBER,
    "macro_f1": _NUMBER,
    "nll": _NUMBER,
    "ece": _NUMBER,
    "n": (int,),
}


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


RESTORE = "restore the file from version control or train the run again"


def read_text(path: Path) -> str:
    """Content of a UTF-8 file. Raises ArtifactError when it is missing or cannot be read."""
    try:
        return path.read_bytes().decode()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: missing; {RESTORE}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); {RESTORE}") from error


def parse_json(text: str, where: str) -> Any:
    """Value of a JSON text; `where` is what errors name.

    Raises:
        ArtifactError: It is not JSON, or holds NaN or an infinity, which JSON does not know.
    """

    def refuse(constant: str) -> None:
        raise ArtifactError(f"{where}: holds {constant}, which JSON does not know; {RESTORE}")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{where}: not JSON ({error}); {RESTORE}") from error


def _check_keys(value: Any, keys: Mapping[str, tuple[type, ...]], where: str) -> None:
    if not isinstance(value, Mapping):
        raise ArtifactError(f"{where}: holds {value!r}, not an object; {RESTORE}")
    for key, types in keys.items():
        if key not in value:
            raise ArtifactError(f"{where}: key {key!r} is missing; train the run again")
        # bool is a subclass of int, and true is not a number of examples.
        if not isinstance(value[key], types) or (
            isinstance(value[key], bool) and bool not in types
        ):
            names = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            raise ArtifactError(f"{where}: {key!r} is {value[key]!r}, expected {names}; {RESTORE}")


def check_config(config: Any, path: Path) -> None:
    """Raises ArtifactError unless `config`, read from `path`, has the keys of a config.json."""
    _check_keys(config, CONFIG_KEYS, str(path))
    _check_keys(config["config"], TRAIN_CONFIG_KEYS, f"{path}, config")
    treatment = config["config"]["treatment"]
    if treatment is not None:
        _check_keys(treatment, {"kind": (str,)}, f"{path}, config.treatment")


def check_metrics(metrics: Any, path: Path) -> None:
    """Raises ArtifactError unless `metrics`, read from `path`, has the keys of a metrics.json."""
    _check_keys(metrics, METRIC_KEYS, str(path))
    _check_keys(metrics["validation"], VALIDATION_KEYS, f"{path}, validation")
    if PER_SOURCE in metrics:
        where = f"{path}, {PER_SOURCE}"
        _check_keys(metrics, {PER_SOURCE: (dict,)}, str(path))
        for source, scores in metrics[PER_SOURCE].items():
            _check_keys(scores, SOURCE_KEYS, f"{where}.{source}")
    if metrics["best_before_growth"] is not None:
        _check_keys(
            metrics["best_before_growth"], BEFORE_GROWTH_KEYS, f"{path}, best_before_growth"
        )


def check_history(history: Iterable[Any], path: Path) -> None:
    """Raises ArtifactError unless the epochs of a history.jsonl are whole and in order."""
    lines = list(history)
    if not lines:
        raise ArtifactError(f"{path}: no epochs; train the run again")
    for number, line in enumerate(lines):
        where = f"{path}, line {number + 1}"
        _check_keys(line, HISTORY_KEYS, where)
        if line["epoch"] != number:
            raise ArtifactError(f"{where}: epoch {line['epoch']}, expected {number}; {RESTORE}")
