"""What a study's runs say: means, paired tests, and which differences survive correction.

Standard statistics only, no torch: the app and the report read the same file.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finsent.results.manifest import checksums_of, is_published
from finsent.results.runs import read_json, rounded, write_json
from finsent.results.schema import ArtifactError
from finsent.study.comparisons import (
    METRICS,
    Group,
    compared,
    overlap_ratio,
    reference_runs,
    survivors,
)
from finsent.study.fold_tests import corrected_paired_test, errors_removed_pct
from finsent.study.rows import ENSEMBLE, RESULTS, SUMMARY, StudyError, StudyRun, mean, read_runs


def summarize(runs: Sequence[StudyRun]) -> dict[str, Any]:
    """The content of summary.json: `rows`, one for every arm, `comparisons`, and `survivors`, which
    counts those that survive correction.

    Raises StudyError when two arms do not have the same folds, seeds and parts.
    """
    groups: dict[Group, dict[tuple[int, int], StudyRun]] = defaultdict(dict)
    for run in runs:
        group = (run.dataset, run.test_dataset, run.regime, run.recipe, run.arm)
        groups[group][run.seed, run.fold] = run
    comparisons = compared(groups)
    members = any(arm == ENSEMBLE for *_, arm in groups)
    summary: dict[str, Any] = {
        # The last part of the key is where it was tested, which may be in several places.
        "runs": len({run.key[:-1] for run in runs}),
        "test": "Nadeau-Bengio corrected resampled t-test with n_test / n_train of the runs, Holm "
        "over the study, per metric",
        "rows": [
            _row(group, found, reference_runs(groups, group, "baseline"), members=members)
            for group, found in sorted(groups.items())
        ],
        "comparisons": comparisons,
        "survivors": survivors(comparisons),
    }
    found: dict[str, Any] = rounded(summary)
    return found


def write_summary(folder: Path) -> Path:
    """Read a study's results, write its summary beside them and return the path."""
    runs = read_runs(folder / RESULTS)
    if not runs:
        raise StudyError(f"{folder / RESULTS} holds no runs; run the study first")
    write_json(folder / SUMMARY, summarize(runs))
    return folder / SUMMARY


def read_summaries(
    artifacts: Path, damaged: Callable[[Path, ArtifactError], None] | None = None
) -> dict[str, dict[str, Any]]:
    """Study name -> content of its summary.json, of every study below `artifacts`/studies.

    damaged: told of a summary that is damaged, not as published or of another version, which is
    then left out. Without it such a summary raises ArtifactError.
    """
    found = {}
    sums = checksums_of(artifacts)
    for path in sorted((artifacts / "studies").glob(f"*/{SUMMARY}")):
        try:
            is_published(path, artifacts, sums)
            found[path.parent.name] = _read_summary(path)
        except ArtifactError as error:
            if damaged is None:
                raise
            damaged(path, error)
    return found


_PLACE_KEYS = {"dataset", "test_dataset", "regime", "recipe"}
_ROW_COLUMNS = (
    "accuracy", "macro_f1", "nll", "ece", "trainable_params", "dendrites", "train_seconds",
    "optimizer_steps", "n_train", "n_test", "validation_accuracy", "validation_nll",
)  # fmt: skip
_ROW_KEYS = {
    *_PLACE_KEYS,
    *_ROW_COLUMNS,
    *("arm", "backbone", "n", "folds", "seeds", "accuracy_sd", "macro_f1_sd", "accuracy_ci"),
    *("macro_f1_ci", "errors_removed_pct", "dendrites_kept", "runs_with_dendrites"),
    "test_over_train",
}
_COMPARISON_KEYS = {
    *_PLACE_KEYS,
    *("a", "b", "n", "errors_removed_pct", "metrics", "outcome", "verdict"),
    *("errors_removed_ci_pct", "params_ratio", "test_over_train"),
}
_SURVIVOR_KEYS = {
    *("metric", "a", "n", "higher", "lower", "higher_at_one_eighth", "lower_at_one_eighth"),
}


def _read_summary(path: Path) -> dict[str, Any]:
    summary = read_json(path)
    if not isinstance(summary.get("runs"), int):
        raise ArtifactError(f"{path}: no number of runs; {_again(path)}")
    for name, keys in (
        ("rows", _ROW_KEYS),
        ("comparisons", _COMPARISON_KEYS),
        ("survivors", _SURVIVOR_KEYS),
    ):
        entries = summary.get(name)
        if not isinstance(entries, list):
            raise ArtifactError(f"{path}: no list of {name}; {_again(path)}")
        for entry in entries:
            missing = keys - set(entry if isinstance(entry, dict) else ())
            if missing:
                raise ArtifactError(
                    f"{path}: {name} lack {', '.join(sorted(missing))}; {_again(path)}"
                )
    for comparison in summary["comparisons"]:
        if set(METRICS) - set(comparison["metrics"]):
            raise ArtifactError(f"{path}: comparisons lack one of {METRICS}; {_again(path)}")
    return summary


def _again(path: Path) -> str:
    return f"make it again with `python train_models.py study {path.parent.name} --summarize`"


def _row(
    group: Group,
    found: Mapping[tuple[int, int], StudyRun],
    baseline: Mapping[tuple[int, int], StudyRun] | None,
    *,
    members: bool,
) -> dict[str, Any]:
    """members: whether the seeds of a fold share its parts; each fold counts once then."""
    dataset, test_dataset, regime, recipe, arm = group
    runs = list(found.values())
    kept = [run.dendrites for run in runs]
    ratio = overlap_ratio(runs)
    removed = None
    if arm != "baseline" and baseline is not None and baseline.keys() == found.keys():
        removed = errors_removed_pct(
            [run.accuracy for run in baseline.values()], [run.accuracy for run in runs]
        )
    return {
        "dataset": dataset,
        "test_dataset": test_dataset,
        "regime": regime,
        "recipe": recipe,
        "arm": arm,
        "backbone": runs[0].backbone,
        "n": len(runs),
        "test_over_train": ratio,
        "folds": len({run.fold for run in runs}),
        "seeds": len({run.seed for run in runs}),
        **{column: _mean(runs, column) for column in _ROW_COLUMNS},
        "accuracy_sd": _sd(run.accuracy for run in runs),
        "macro_f1_sd": _sd(run.macro_f1 for run in runs),
        **{
            f"{metric}_ci": _interval(
                _by_fold(runs, metric) if members else [getattr(run, metric) for run in runs],
                ratio,
            )
            for metric in ("accuracy", "macro_f1")
        },
        "errors_removed_pct": removed,
        "dendrites_kept": [kept.count(number) for number in range(max(kept) + 1)],
        "runs_with_dendrites": sum(number > 0 for number in kept),
    }


def _mean(runs: Sequence[StudyRun], column: str) -> float | None:
    """None where runs have no such figure, as those have none of validation that learned it."""
    found = mean(runs, column)
    return None if math.isnan(found) else found


def _by_fold(runs: Sequence[StudyRun], metric: str) -> list[float]:
    folds: dict[int, list[StudyRun]] = defaultdict(list)
    for run in runs:
        folds[run.fold].append(run)
    return [mean(of_fold, metric) for of_fold in folds.values()]


def _interval(shares: Sequence[float], ratio: float) -> list[float] | None:
    """95 % interval of a mean over folds, corrected as the tests are for the ratio of test to
    training part; None of a single run."""
    if len(shares) < 2:
        return None
    found = corrected_paired_test(shares, test_share_over_train_share=ratio)
    return [max(0.0, found.low), min(1.0, found.high)]


def _sd(values: Iterable[float]) -> float:
    """Sample standard deviation; 0 of a single value."""
    found = np.array(list(values))
    return float(found.std(ddof=1)) if len(found) > 1 else 0.0
