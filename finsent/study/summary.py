"""What a study's runs say: means, paired tests, and which differences survive correction.

Standard statistics only, no torch: the app and the report read the same file.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finsent.data.folds import FOLDS
from finsent.results.runs import read_json, rounded, write_json
from finsent.results.schema import ArtifactError
from finsent.study.fold_tests import (
    PairedDifference,
    corrected_paired_test,
    errors_removed_pct,
    holm,
)
from finsent.study.rows import ENSEMBLE, RESULTS, SUMMARY, StudyError, StudyRun, mean, read_runs

METRICS = ("accuracy", "macro_f1", "nll")
"""Metrics that are compared; lower is better for the last."""
RATIO = (1 / FOLDS) / ((FOLDS - 2) / FOLDS)
"""Test over training share of a fold. Where a regime uses less of the training part, folds overlap
less and this stays an upper bound on what the correction has to allow for."""
SIGNIFICANCE = 0.05
REFERENCES = ("baseline", "restart", "matched")
"""Arms that the dendritic arm is compared with."""

Group = tuple[str, str, str, str, str]
"""dataset, test_dataset, regime, recipe, arm"""


def summarize(runs: Sequence[StudyRun]) -> dict[str, Any]:
    """The content of summary.json: `rows`, one for every arm, and `comparisons`.

    Holm's correction is over all comparisons of one metric in the study. Raises StudyError when
    two arms do not have the same folds and seeds.
    """
    groups: dict[Group, dict[tuple[int, int], StudyRun]] = defaultdict(dict)
    for run in runs:
        group = (run.dataset, run.test_dataset, run.regime, run.recipe, run.arm)
        groups[group][run.seed, run.fold] = run
    comparisons = list(_comparisons(groups))
    for metric in METRICS:
        adjusted = holm(
            {str(i): c["metrics"][metric]["p_value"] for i, c in enumerate(comparisons)}
        )
        for i, comparison in enumerate(comparisons):
            comparison["metrics"][metric]["p_holm"] = adjusted[str(i)]
    for comparison in comparisons:
        comparison["outcome"] = _outcome(comparison["metrics"]["accuracy"])
        comparison["verdict"] = verdict(comparison)
    members = any(arm == ENSEMBLE for *_, arm in groups)
    summary: dict[str, Any] = {
        # The last part of the key is where it was tested, which may be in several places.
        "runs": len({run.key[:-1] for run in runs}),
        "test": "Nadeau-Bengio corrected resampled t-test, Holm over the study, per metric",
        "test_share_over_train_share": RATIO,
        "rows": [
            _row(group, found, _reference(groups, group, "baseline"), members=members)
            for group, found in sorted(groups.items())
        ],
        "comparisons": comparisons,
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


def read_summaries(artifacts: Path) -> dict[str, dict[str, Any]]:
    """Study name -> content of its summary.json, of every study below `artifacts`/studies.

    Raises ArtifactError when one is damaged or of another version.
    """
    return {
        path.parent.name: _read_summary(path)
        for path in sorted((artifacts / "studies").glob(f"*/{SUMMARY}"))
    }


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
}
_COMPARISON_KEYS = {
    *_PLACE_KEYS,
    *("a", "b", "n", "errors_removed_pct", "metrics", "outcome", "verdict"),
}


def _read_summary(path: Path) -> dict[str, Any]:
    summary = read_json(path)
    if not isinstance(summary.get("runs"), int):
        raise ArtifactError(f"{path}: no number of runs; {_again(path)}")
    for name, keys in (("rows", _ROW_KEYS), ("comparisons", _COMPARISON_KEYS)):
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
    return f"make it again with `python train_models.py study {path.parent.name}`"


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
        "folds": len({run.fold for run in runs}),
        "seeds": len({run.seed for run in runs}),
        **{column: _mean(runs, column) for column in _ROW_COLUMNS},
        "accuracy_sd": _sd(run.accuracy for run in runs),
        "macro_f1_sd": _sd(run.macro_f1 for run in runs),
        **{
            f"{metric}_ci": _interval(
                _by_fold(runs, metric) if members else [getattr(run, metric) for run in runs]
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


def _interval(shares: Sequence[float]) -> list[float] | None:
    """95 % interval of a mean over folds, corrected as the tests are; None of a single run."""
    if len(shares) < 2:
        return None
    found = corrected_paired_test(shares, test_share_over_train_share=RATIO)
    return [max(0.0, found.low), min(1.0, found.high)]


def _sd(values: Iterable[float]) -> float:
    """Sample standard deviation; 0 of a single value."""
    found = np.array(list(values))
    return float(found.std(ddof=1)) if len(found) > 1 else 0.0


def _comparisons(
    groups: Mapping[Group, Mapping[tuple[int, int], StudyRun]],
) -> Iterable[dict[str, Any]]:
    for group, dendritic in sorted(groups.items()):
        dataset, test_dataset, regime, recipe, arm = group
        if arm != "dendritic":
            continue
        for reference in REFERENCES:
            other = _reference(groups, group, reference)
            if other is None:
                continue
            if other.keys() != dendritic.keys():
                raise StudyError(
                    f"{dataset} {regime} {recipe}: {reference} has {len(other)} runs and dendritic "
                    f"{len(dendritic)}, of other folds or seeds; finish the study first"
                )
            if len(dendritic) < 2:
                continue
            a = [other[key] for key in sorted(other)]
            b = [dendritic[key] for key in sorted(other)]
            tests = {m: _test(a, b, m) for m in METRICS}
            yield {
                "dataset": dataset,
                "test_dataset": test_dataset,
                "regime": regime,
                "recipe": recipe,
                "a": reference,
                "b": "dendritic",
                "n": len(b),
                "errors_removed_pct": errors_removed_pct(
                    [run.accuracy for run in a], [run.accuracy for run in b]
                ),
                "metrics": {metric: test.to_dict() for metric, test in tests.items()},
            }


def _reference(
    groups: Mapping[Group, Mapping[tuple[int, int], StudyRun]], group: Group, arm: str
) -> Mapping[tuple[int, int], StudyRun] | None:
    """Runs of another arm of the same recipe; a baseline may serve several recipes."""
    dataset, test_dataset, regime, recipe, _ = group
    own = groups.get((dataset, test_dataset, regime, recipe, arm))
    if own is not None or arm != "baseline":
        return own
    shared = [
        found
        for (d, t, r, _, a), found in groups.items()
        if (d, t, r, a) == (dataset, test_dataset, regime, arm)
    ]
    return shared[0] if len(shared) == 1 else None


def _test(a: Sequence[StudyRun], b: Sequence[StudyRun], metric: str) -> PairedDifference:
    differences = [
        getattr(right, metric) - getattr(left, metric) for left, right in zip(a, b, strict=True)
    ]
    return corrected_paired_test(differences, test_share_over_train_share=RATIO)


def _outcome(test: Mapping[str, float]) -> str:
    """Of b on accuracy, after correction."""
    if test["p_holm"] >= SIGNIFICANCE:
        return "tied"
    return "better" if test["mean"] > 0 else "worse"


def verdict(comparison: Mapping[str, Any]) -> str:
    """A comparison in a sentence."""
    test = comparison["metrics"]["accuracy"]
    removed = comparison["errors_removed_pct"]
    share = "" if removed is None else f", {abs(removed):.1f} % {_fewer(removed)} errors"
    return (
        f"{comparison['outcome']}: dendritic {100 * test['mean']:+.1f} points accuracy over "
        f"{comparison['a']}, 95 % CI {100 * test['low']:+.1f} to {100 * test['high']:+.1f}, "
        f"p {_p(test['p_holm'])} after correction{share}, n = {comparison['n']} runs"
    )


def _fewer(removed: float) -> str:
    return "fewer" if removed >= 0 else "more"


def _p(value: float) -> str:
    return f"= {value:.2g}" if value >= 0.0001 else "< 0.0001"
