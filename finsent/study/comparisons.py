"""The dendritic arm against its controls: paired tests, what they exclude, how equal the arms are.

Every comparison is tested with the overlap of its own runs, test over training examples, and Holm's
correction is over all comparisons of one metric in the study.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finsent.results.comparison import verdict_sentence
from finsent.results.metrics import SIGNIFICANCE, errors_bound, holm
from finsent.study.fold_tests import (
    PairedDifference,
    corrected_paired_test,
    errors_removed_interval_pct,
    errors_removed_pct,
)
from finsent.study.rows import StudyError, StudyRun, mean

METRICS = ("accuracy", "macro_f1", "nll")
"""Metrics that are compared; lower is better for the last."""
REFERENCES = ("baseline", "restart", "matched")
"""Arms that the dendritic arm is compared with."""
EQUAL_WITHIN = 0.05
"""`matched` counts as equal in size when its trained parameters differ by no more than this share
from the dendritic arm's. Dendrites that were dropped, and ranks that are whole numbers, make it
differ."""
EARLIER_RATIO = 1 / 8
"""Test over training share of a whole fold. Summaries used it for every regime once, also where a
tenth of the data trains; `survivors` counts what that changes."""

Group = tuple[str, str, str, str, str]
"""dataset, test_dataset, regime, recipe, arm"""
Groups = Mapping[Group, Mapping[tuple[int, int], StudyRun]]
"""Runs of a group by seed and fold."""


def overlap_ratio(runs: Iterable[StudyRun]) -> float:
    """Test examples of the runs over their training examples, Nadeau and Bengio's n_test / n_train.

    StudyError for runs that trained on nothing.
    """
    found = list(runs)
    trained = sum(run.n_train for run in found)
    if trained == 0:
        raise StudyError("runs without training examples have no ratio of test to training part")
    return sum(run.n_test for run in found) / trained


def compared(groups: Groups) -> list[dict[str, Any]]:
    """Every comparison of the study, corrected and in words.

    Raises StudyError when two arms do not have the same folds, seeds and parts.
    """
    found = list(_comparisons(groups))
    for name in ("p_value", "p_value_at_one_eighth"):
        for metric in METRICS:
            adjusted = holm({str(i): c["metrics"][metric][name] for i, c in enumerate(found)})
            for i, comparison in enumerate(found):
                comparison["metrics"][metric][name.replace("p_value", "p_holm")] = adjusted[str(i)]
    for comparison in found:
        comparison["outcome"] = _outcome(comparison["metrics"]["accuracy"])
        comparison["verdict"] = verdict(comparison)
    return found


def survivors(comparisons: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each metric and control: in how many of `n` comparisons dendrites raise and lower it
    after correction, and in how many with `EARLIER_RATIO` for every regime."""
    lines = []
    for metric in METRICS:
        for reference in REFERENCES:
            tests = [c["metrics"][metric] for c in comparisons if c["a"] == reference]
            if tests:
                lines.append(
                    {
                        "metric": metric,
                        "a": reference,
                        "n": len(tests),
                        **_surviving(tests, "p_holm", ""),
                        **_surviving(tests, "p_holm_at_one_eighth", "_at_one_eighth"),
                    }
                )
    return lines


def _surviving(tests: Sequence[Mapping[str, float]], p_value: str, ending: str) -> dict[str, int]:
    means = [test["mean"] for test in tests if test[p_value] < SIGNIFICANCE]
    return {
        f"higher{ending}": sum(mean > 0 for mean in means),
        f"lower{ending}": sum(mean < 0 for mean in means),
    }


def reference_runs(
    groups: Groups, group: Group, arm: str
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


def _comparisons(groups: Groups) -> Iterable[dict[str, Any]]:
    for group, dendritic in sorted(groups.items()):
        dataset, test_dataset, regime, recipe, arm = group
        if arm != "dendritic":
            continue
        for reference in REFERENCES:
            other = reference_runs(groups, group, reference)
            if other is None:
                continue
            where = f"{dataset} {regime} {recipe}"
            if other.keys() != dendritic.keys():
                raise StudyError(
                    f"{where}: {reference} has {len(other)} runs and dendritic "
                    f"{len(dendritic)}, of other folds or seeds; finish the study first"
                )
            if len(dendritic) < 2:
                continue
            a = [other[key] for key in sorted(other)]
            b = [dendritic[key] for key in sorted(other)]
            yield {
                "dataset": dataset,
                "test_dataset": test_dataset,
                "regime": regime,
                "recipe": recipe,
                "a": reference,
                "b": "dendritic",
                **_compare(a, b, f"{where} {reference}"),
            }


def _compare(a: Sequence[StudyRun], b: Sequence[StudyRun], where: str) -> dict[str, Any]:
    for left, right in zip(a, b, strict=True):
        if (left.n_train, left.n_test) != (right.n_train, right.n_test):
            raise StudyError(
                f"{where}: fold {left.fold}, seed {left.seed} has {left.n_train} training and "
                f"{left.n_test} test examples, dendritic {right.n_train} and {right.n_test}; "
                "paired runs need the same parts"
            )
    ratio = overlap_ratio(b)
    tests = {metric: _test(a, b, metric, ratio) for metric in METRICS}
    accuracy_a = [run.accuracy for run in a]
    return {
        "n": len(b),
        "test_over_train": ratio,
        "params_ratio": mean(a, "trainable_params") / mean(b, "trainable_params"),
        "errors_removed_pct": errors_removed_pct(accuracy_a, [run.accuracy for run in b]),
        "errors_removed_ci_pct": errors_removed_interval_pct(accuracy_a, tests["accuracy"]),
        "metrics": {
            metric: {
                **test.to_dict(),
                "p_value_at_one_eighth": _test(a, b, metric, EARLIER_RATIO).p_value,
            }
            for metric, test in tests.items()
        },
    }


def _test(
    a: Sequence[StudyRun], b: Sequence[StudyRun], metric: str, ratio: float
) -> PairedDifference:
    differences = [
        getattr(right, metric) - getattr(left, metric) for left, right in zip(a, b, strict=True)
    ]
    return corrected_paired_test(differences, test_share_over_train_share=ratio)


# ------------------------------------------------------------------------------------------- words


def _outcome(test: Mapping[str, float]) -> str:
    """Of b on accuracy, after correction."""
    if test["p_holm"] >= SIGNIFICANCE:
        return "tied"
    return "better" if test["mean"] > 0 else "worse"


def is_unequal(comparison: Mapping[str, Any]) -> bool:
    """Whether the control of equal size is not of equal size (see EQUAL_WITHIN)."""
    return comparison["a"] == "matched" and abs(comparison["params_ratio"] - 1) > EQUAL_WITHIN


def size_note(comparison: Mapping[str, Any]) -> str:
    """`matched has 36 % more parameters`; nothing where the sizes count as equal."""
    if not is_unequal(comparison):
        return ""
    share = 100 * (comparison["params_ratio"] - 1)
    return f"matched has {abs(share):.0f} % {'more' if share > 0 else 'fewer'} parameters"


def verdict(comparison: Mapping[str, Any]) -> str:
    """A comparison in a sentence; a tie says which effect its 95 % interval excludes."""
    test = comparison["metrics"]["accuracy"]
    removed, interval = comparison["errors_removed_pct"], comparison["errors_removed_ci_pct"]
    share = []
    if removed is not None:
        share = [f"{abs(removed):.1f} % {'fewer' if removed >= 0 else 'more'} errors"]
        if comparison["outcome"] == "tied":
            bound = "none, every run differs alike"
            if interval is not None:
                bound = errors_bound(interval[1])
            share[0] += f", 95 % bound: {bound}"
    found = verdict_sentence(
        comparison["outcome"],
        (comparison["a"], "dendritic"),
        100 * test["mean"],
        (100 * test["low"], 100 * test["high"]),
        f"p {_p(test['p_holm'])} after correction",
        *share,
        f"n = {comparison['n']} runs",
    )
    note = size_note(comparison)
    return f"{found}; {note}" if note else found


def _p(value: float) -> str:
    return f"= {value:.2g}" if value >= 0.0001 else "< 0.0001"
