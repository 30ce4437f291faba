"""The schema of a run folder: which keys each file has, read strictly.

Errors name the file, the value and the mend.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finsent.machine.strict_json import strict_json

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


PER_CLASS_KEYS: Mapping[str, tuple[type, ...]] = {
    "precision": _NUMBER,
    "recall": _NUMBER,
    "f1": _NUMBER,
    "support": (int,),
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


KNOWLEDGE = ("yes", "no", "unknown")
"""What there is to say about whether a model was trained on a data set."""

NOT_MEASURED = "not measured"
"""The `latency_protocol` of a model that was not timed."""
HERE, REPORTED = "here", "self-reported"
"""Who made a run's predictions: this project's commands, or whoever sent them."""

EXTERNAL_CONFIG_KEYS: Mapping[str, tuple[type, ...]] = {
    "kind": (str,),
    "name": (str,),
    "form": (str,),
    "source": (str,),
    "revision": (str, type(None)),
    "licence": (str,),
    "url": (str, type(None)),
    "dataset": (str,),
    "seed": (int,),
    "trained_on_data": (str,),
    "may_have_seen_test": (bool,),
    "tested": (str,),
    "settings": (dict,),
    "label_names": (list,),
    "dataset_sha256": (str,),
    "split_sha256": (str,),
    "command": (str,),
    "versions": (dict,),
    "device": (str, type(None)),
    "git_commit": (str, type(None)),
    "finished_at": (str,),
}
"""Keys of the config.json of a model that was not trained here. `form`: what kind of model it is;
`settings`: how it was asked (label names, prompt); `tested`: HERE or REPORTED."""

_OPTIONAL_NUMBER = (*_NUMBER, type(None))
_OPTIONAL_COUNT = (int, type(None))
_SCORES = ("accuracy", "macro_f1", "weighted_f1", "nll", "ece", "n_test", "per_class", "confusion")

EXTERNAL_METRIC_KEYS: Mapping[str, tuple[type, ...]] = {
    **{name: METRIC_KEYS[name] for name in (*_SCORES, "ci", "dendrites", "dendrites_requested")},
    "trainable_params": _OPTIONAL_COUNT,
    "optimizer_steps": _OPTIONAL_COUNT,
    "epochs": _OPTIONAL_COUNT,
    "train_seconds": _OPTIONAL_NUMBER,
    "peak_memory_mb": _OPTIONAL_NUMBER,
    "latency_ms_p50": _OPTIONAL_NUMBER,
    "latency_ms_p95": _OPTIONAL_NUMBER,
    "latency_protocol": (str,),
    "best_epoch": _OPTIONAL_COUNT,
}
"""Keys of its metrics.json, once what nobody here measured is filled in."""


class ArtifactError(ValueError):
    """A file of a run is missing, damaged or not what the schema says."""


RESTORE = "restore the file from version control or train the run again"


def read_text(path: Path) -> str:
    """Content of a UTF-8 file, unpacked where its name ends in .gz.

    Raises ArtifactError when it is missing or cannot be read.
    """
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: missing; {RESTORE}") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); {RESTORE}") from error


def parse_json(text: str, where: str) -> Any:
    """Value of a JSON text; `where` is what errors name.

    Raises:
        ArtifactError: It is not JSON, names a key twice, is nested too deep to be read, or holds a
            number (NaN, an infinity, one of more than 19 digits) or a character (half of a pair)
            that no file of ours has.
    """
    try:
        value = strict_json(text)
        if "\\u" in text:
            # An escape may stand for half a character, which no file can hold.
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ArtifactError(f"{where}: holds half of a character; {RESTORE}") from error
    except ValueError as error:
        raise ArtifactError(f"{where}: {error}; {RESTORE}") from error
    return value


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 120 else f"{shown[:120]}…"


def _check_keys(value: Any, keys: Mapping[str, tuple[type, ...]], where: str) -> None:
    if not isinstance(value, Mapping):
        raise ArtifactError(f"{where}: holds {_short(value)}, not an object; {RESTORE}")
    for key, types in keys.items():
        if key not in value:
            raise ArtifactError(f"{where}: key {key!r} is missing; train the run again")
        # bool is a subclass of int, and true is not a number of examples.
        if not isinstance(value[key], types) or (
            isinstance(value[key], bool) and bool not in types
        ):
            names = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            raise ArtifactError(
                f"{where}: {key!r} is {_short(value[key])}, expected {names}; {RESTORE}"
            )


def check_config(config: Any, path: Path) -> None:
    """Raises ArtifactError unless `config`, read from `path`, has the keys of a config.json."""
    _check_keys(config, CONFIG_KEYS, str(path))
    _check_label_names(config["label_names"], path)
    _check_keys(config["config"], TRAIN_CONFIG_KEYS, f"{path}, config")
    treatment = config["config"]["treatment"]
    if treatment is not None:
        _check_keys(treatment, {"kind": (str,)}, f"{path}, config.treatment")


def _check_label_names(names: Sequence[Any], path: Path) -> None:
    strange = [name for name in names if not isinstance(name, str) or not name]
    if strange or len(names) < 2 or len(set(names)) != len(names):
        shown = repr(strange[0] if strange else names)[:80]
        raise ArtifactError(
            f"{path}: label_names must be two or more different names, found {shown}; {RESTORE}"
        )


def check_external_config(config: Any, path: Path) -> None:
    """The same for the config.json of a model that was not trained here."""
    _check_keys(config, EXTERNAL_CONFIG_KEYS, str(path))
    _check_label_names(config["label_names"], path)
    for key, allowed in (("trained_on_data", KNOWLEDGE), ("tested", (HERE, REPORTED))):
        if config[key] not in allowed:
            raise ArtifactError(f"{path}: {key!r} is {config[key]!r}, expected one of {allowed}")
    for key in ("name", "source", "licence"):
        if not config[key].strip():
            raise ArtifactError(f"{path}: {key!r} is empty; say what it is, or `unknown`")


def check_external_metrics(metrics: Any, path: Path, label_names: Sequence[str]) -> None:
    """The same for its metrics.json, with what nobody here measured filled in."""
    _check_keys(metrics, EXTERNAL_METRIC_KEYS, str(path))
    _check_scores(metrics, path, label_names)
    _check_sources(metrics, path)


def check_metrics(metrics: Any, path: Path, label_names: Sequence[str]) -> None:
    """Raises ArtifactError unless `metrics`, read from `path`, has the keys of a metrics.json.

    label_names: the classes that config.json names, each of which has scores of its own.
    """
    _check_keys(metrics, METRIC_KEYS, str(path))
    _check_scores(metrics, path, label_names)
    _check_keys(metrics["validation"], VALIDATION_KEYS, f"{path}, validation")
    _check_sources(metrics, path)
    if metrics["best_before_growth"] is not None:
        _check_keys(
            metrics["best_before_growth"], BEFORE_GROWTH_KEYS, f"{path}, best_before_growth"
        )


def _check_sources(metrics: Any, path: Path) -> None:
    if PER_SOURCE in metrics:
        where = f"{path}, {PER_SOURCE}"
        _check_keys(metrics, {PER_SOURCE: (dict,)}, str(path))
        for source, scores in metrics[PER_SOURCE].items():
            _check_keys(scores, SOURCE_KEYS, f"{where}.{source}")


def _check_scores(metrics: Mapping[str, Any], path: Path, label_names: Sequence[str]) -> None:
    """Scores by class: one of each for every class, whatever run they were taken from."""
    for name, bounds in metrics["ci"].items():
        if not (isinstance(bounds, list) and len(bounds) == 2 and all(map(_is_number, bounds))):
            raise ArtifactError(f"{path}, ci: {name!r} is {bounds!r}, not two numbers; {RESTORE}")
    classes = metrics["per_class"]
    if set(classes) != set(label_names):
        raise ArtifactError(
            f"{path}, per_class: has {sorted(classes)}, but the run's classes are "
            f"{sorted(label_names)}; {RESTORE}"
        )
    for name, scores in classes.items():
        _check_keys(scores, PER_CLASS_KEYS, f"{path}, per_class.{name}")
    k = len(label_names)
    table = metrics["confusion"]
    if len(table) != k or not all(
        isinstance(row, list) and len(row) == k and all(type(cell) is int for cell in row)
        for row in table
    ):
        raise ArtifactError(f"{path}: confusion is no table of {k} x {k} counts; {RESTORE}")


def _is_number(value: Any) -> bool:
    return isinstance(value, _NUMBER) and not isinstance(value, bool)


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
