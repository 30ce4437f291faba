"""Paired tests of a study's arms, held to scipy and to the committed runs; what a tie excludes."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from finsent.machine.files import ROOT
from finsent.results.metrics import errors_bound
from finsent.results.runs import read_json
from finsent.study.comparisons import (
    EQUAL_WITHIN,
    compared,
    is_unequal,
    overlap_ratio,
    size_note,
    survivors,
)
from finsent.study.fold_tests import corrected_paired_test, errors_removed_interval_pct
from finsent.study.rows import StudyError, StudyRun
from finsent.study.summary import summarize

STUDIES = ROOT / "artifacts" / "studies"


def runs_of(arm: str, accuracies: list[float], *, trained: int, size: int = 100) -> list[StudyRun]:
    """Runs of ten folds, tested on 100 sentences each."""
    return [
        StudyRun(
            backbone="smollm2-135m",
            dataset="allagree",
            regime="r8-all-data-10",
            recipe="grown",
            arm=arm,
            fold=i % 10,
            seed=i // 10,
            accuracy=accuracy,
            macro_f1=accuracy,
            nll=1 - accuracy,
            ece=0.0,
            trainable_params=size,
            dendrites=0,
            optimizer_steps=1,
            train_seconds=0.0,
            test_dataset="allagree",
            n_train=trained,
            n_test=100,
            best_epoch=0,
            validation_nll=0.5,
            validation_accuracy=0.8,
        )
        for i, accuracy in enumerate(accuracies)
    ]


def independent_test(differences: np.ndarray, ratio: float) -> tuple[float, float, float]:
    """p-value and 95 % interval, from Student's distribution as scipy has it."""
    n = len(differences)
    error = stats.sem(differences) * np.sqrt(n) * np.sqrt(1 / n + ratio)
    law = stats.t(df=n - 1, loc=differences.mean(), scale=error)
    centred = stats.t(df=n - 1)
    p_value = 2 * centred.sf(abs(differences.mean()) / error)
    return float(p_value), float(law.ppf(0.025)), float(law.ppf(0.975))


@pytest.mark.parametrize("ratio", [0.0, 1 / 8, 1.25, 2.49])
def test_the_corrected_test_is_students_with_the_ratio_given(ratio: float) -> None:
    d = np.random.default_rng(3).normal(-0.03, 0.06, 20)
    found = corrected_paired_test(d, test_share_over_train_share=ratio)
    assert (found.p_value, found.low, found.high) == pytest.approx(independent_test(d, ratio))


def test_a_tenth_of_the_data_is_tested_with_its_own_ratio() -> None:
    level = np.random.default_rng(0).uniform(0.6, 0.8, 20)
    shift = np.random.default_rng(1).normal(-0.04, 0.03, 20)
    whole, tenth = (
        summarize(
            runs_of("baseline", level.tolist(), trained=trained)
            + runs_of("dendritic", (level + shift).tolist(), trained=trained)
        )
        for trained in (800, 80)
    )
    for summary, ratio in ((whole, 1 / 8), (tenth, 1.25)):
        (comparison,) = summary["comparisons"]
        assert comparison["test_over_train"] == pytest.approx(ratio)
        test = comparison["metrics"]["accuracy"]
        expected = independent_test(shift, ratio)
        assert (test["p_value"], test["low"], test["high"]) == pytest.approx(expected)
        assert test["p_value_at_one_eighth"] == pytest.approx(independent_test(shift, 1 / 8)[0])
        assert all(row["test_over_train"] == pytest.approx(ratio) for row in summary["rows"])
    assert whole["comparisons"][0]["outcome"] == "worse"
    assert tenth["comparisons"][0]["outcome"] == "tied"
    line = next(line for line in tenth["survivors"] if line["metric"] == "accuracy")
    assert (line["lower"], line["lower_at_one_eighth"]) == (0, 1)
    widths = [
        np.diff(next(r for r in s["rows"] if r["arm"] == "baseline")["accuracy_ci"])[0]
        for s in (whole, tenth)
    ]
    assert widths[1] > 2 * widths[0]


def test_pairs_of_other_parts_are_refused() -> None:
    level = [0.7, 0.8]
    groups: dict[Any, dict[tuple[int, int], StudyRun]] = defaultdict(dict)
    for arm, trained in (("baseline", 80), ("dendritic", 800)):
        for run in runs_of(arm, level, trained=trained):
            key = ("allagree", "allagree", "r8-all-data-10", "grown", arm)
            groups[key][run.seed, run.fold] = run
    with pytest.raises(StudyError, match=r"has 80 training .* dendritic 800 .* the same parts"):
        compared(groups)
    with pytest.raises(StudyError, match="without training examples"):
        overlap_ratio(runs_of("baseline", level, trained=0))


# -------------------------------------------------------------------------- ties and unequal sizes


def test_a_tie_says_what_it_excludes() -> None:
    level = np.random.default_rng(0).uniform(0.7, 0.9, 50)
    noise = np.random.default_rng(1).normal(0, 0.01, 50)
    runs = runs_of("baseline", level.tolist(), trained=800)
    runs += runs_of("dendritic", (level + noise).tolist(), trained=800)
    (comparison,) = summarize(runs)["comparisons"]
    assert comparison["outcome"] == "tied"
    low, high = comparison["errors_removed_ci_pct"]
    test = comparison["metrics"]["accuracy"]
    error = 1 - level.mean()
    assert (low, high) == pytest.approx((100 * test["low"] / error, 100 * test["high"] / error))
    assert low < comparison["errors_removed_pct"] < high
    assert f"errors, 95 % bound: at most {high:.1f} % fewer;" in comparison["verdict"]
    assert errors_bound(-2.04) == "at least 2.0 % more"
    nothing_wrong = corrected_paired_test([-0.1, -0.2], test_share_over_train_share=0.1)
    assert errors_removed_interval_pct([1.0, 1.0], nothing_wrong) is None


@pytest.mark.parametrize(
    ("size", "note"),
    [
        (104, ""),
        (136, "matched has 36 % more parameters"),
        (90, "matched has 10 % fewer parameters"),
    ],
)
def test_an_unequal_control_is_called_unequal(size: int, note: str) -> None:
    level = np.random.default_rng(0).uniform(0.7, 0.9, 10)
    runs = runs_of("matched", level.tolist(), trained=800, size=size)
    runs += runs_of("dendritic", (level + 0.001).tolist(), trained=800, size=100)
    (comparison,) = summarize(runs)["comparisons"]
    assert comparison["params_ratio"] == pytest.approx(size / 100)
    assert size_note(comparison) == note
    assert is_unequal(comparison) == bool(note)
    assert comparison["verdict"].endswith(f"; {note}" if note else "n = 10 runs)")
    # A baseline is smaller by intention.
    assert not is_unequal({**comparison, "a": "baseline"})


# ------------------------------------------------------------------------------- committed figures


def _rows(name: str) -> list[dict[str, str]]:
    with (STUDIES / name / "results.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_committed_summary_is_what_scipy_makes_of_the_committed_runs() -> None:
    """The harm with a tenth of 50Agree: p = 0.0004 with 1/8 for every regime, 0.13 with its own."""
    values: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    tested = trained = 0
    for row in _rows("lora"):
        if (row["dataset"], row["regime"]) == ("50agree", "r8-all-data-10"):
            values[row["arm"]][row["seed"], row["fold"]] = float(row["accuracy"])
            if row["arm"] == "dendritic":
                tested, trained = tested + int(row["n_test"]), trained + int(row["n_train"])
    keys = sorted(values["dendritic"])
    difference = np.array([values["dendritic"][k] - values["baseline"][k] for k in keys])
    literal, low, high = independent_test(difference, tested / trained)
    (comparison,) = (
        c
        for c in read_json(STUDIES / "lora" / "summary.json")["comparisons"]
        if (c["dataset"], c["regime"], c["a"]) == ("50agree", "r8-all-data-10", "baseline")
    )
    test = comparison["metrics"]["accuracy"]
    assert (test["p_value"], test["low"], test["high"]) == pytest.approx((literal, low, high))
    assert test["p_value_at_one_eighth"] == pytest.approx(independent_test(difference, 0.125)[0])
    assert literal == pytest.approx(0.13, abs=0.005)
    assert test["p_value_at_one_eighth"] == pytest.approx(0.0004, abs=0.00005)


@pytest.mark.parametrize(
    "path", sorted(STUDIES.glob("*/summary.json")), ids=lambda p: p.parent.name
)
def test_committed_verdicts_name_ties_and_sizes(path: Path) -> None:
    summary = read_json(path)
    sizes: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row in _rows(path.parent.name):
        place = ("dataset", "test_dataset", "regime", "recipe", "arm")
        sizes[tuple(row[key] for key in place)].append(int(row["trainable_params"]))
    for c in summary["comparisons"]:
        bound = "none, every" if c["errors_removed_ci_pct"] is None else "at "
        assert (c["outcome"] != "tied") or f"95 % bound: {bound}" in c["verdict"]
        place = (c["dataset"], c["test_dataset"], c["regime"], c["recipe"])
        if c["a"] == "matched":
            share = np.mean(sizes[*place, "matched"]) / np.mean(sizes[*place, "dendritic"])
            assert c["params_ratio"] == pytest.approx(share)
            assert (abs(share - 1) > EQUAL_WITHIN) == ("matched has" in c["verdict"])
    assert summary["survivors"] == survivors(summary["comparisons"])
