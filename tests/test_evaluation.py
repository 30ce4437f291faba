"""Metrics, intervals and tests against independent computations."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from finsent.results import comparison
from finsent.results import metrics as ev
from finsent.results.runs import Predictions

NAMES = ("negative", "neutral", "positive")


def made(n: int, k: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(k, size=n)
    logits = rng.normal(size=(n, k))
    logits[np.arange(n), labels] += 1.5
    p = np.exp(logits)
    return labels, p / p.sum(axis=1, keepdims=True)


def answers(right: list[bool], prefix: str = "e", start: int = 0) -> Predictions:
    """One example per entry, true class `x`, answered right or wrong."""
    rows = tuple((0.9, 0.1) if r else (0.1, 0.9) for r in right)
    ids = tuple(f"{prefix}{start + i}" for i in range(len(right)))
    return Predictions(ids, ("x",) * len(right), rows, ("x", "y"))


@pytest.mark.parametrize("k", [2, 3, 4])
def test_score_agrees_with_sklearn(k: int) -> None:
    labels, p = made(200, k)
    names = [f"c{i}" for i in range(k)]
    found, predicted = ev.score(labels, p, names), p.argmax(axis=1)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    weighted = sk.f1_score(labels, predicted, average="weighted")
    assert found["weighted_f1"] == pytest.approx(weighted)
    assert found["nll"] == pytest.approx(sk.log_loss(labels, p))
    assert found["confusion"] == sk.confusion_matrix(labels, predicted).tolist()
    assert sum(entry["support"] for entry in found["per_class"].values()) == found["n_test"] == 200
    assert type(found["accuracy"]) is float
    assert type(found["confusion"][0][0]) is int


def test_absent_class_is_not_counted_as_a_failure() -> None:
    p = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    found = ev.score([0, 1], p, NAMES)
    assert found["macro_f1"] == 1.0
    assert found["per_class"]["positive"] == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "support": 0,
    }
    assert ev.confidence_intervals([0, 1], p)["macro_f1"] == [1.0, 1.0]


def test_zero_probability_of_the_truth_costs_a_finite_loss() -> None:
    assert ev.score([0], np.array([[0.0, 1.0]]), ("x", "y"))["nll"] == pytest.approx(
        36.04, abs=0.01
    )


def test_known_calibration_error() -> None:
    # Two bins: 0.9 twice with one hit (gap 0.4), 0.6 twice with two hits (gap 0.4).
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    assert ev.expected_calibration_error([0, 1, 0, 0], p) == pytest.approx(0.4)
    # With one bin the gaps cancel: mean confidence 0.75, accuracy 0.75.
    assert ev.expected_calibration_error([0, 1, 0, 0], p, bins=1) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("labels", "p", "names", "fault"),
    [
        ([0, 1], [[0.5, 0.5]], ("x", "y"), "labels have shape"),
        ([0], [[0.5, 0.5]], NAMES, "3 label names for 2"),
        ([0], [0.5, 0.5], ("x", "y"), r"expected \(n, k\)"),
        ([0], [[1.0]], ("x",), "k >= 2"),
        ([], np.zeros((0, 2)), ("x", "y"), "empty"),
        ([2], [[0.5, 0.5]], ("x", "y"), "integers in 0..1"),
        ([0.0], [[0.5, 0.5]], ("x", "y"), "integers in 0..1"),
        ([0], [[0.6, 0.6]], ("x", "y"), "row 0.*not logits"),
        ([0], [[-0.5, 1.5]], ("x", "y"), "row 0"),
        ([0, 0], [[0.5, 0.5], [np.nan, 0.5]], ("x", "y"), "row 1"),
    ],
)
def test_impossible_input(labels, p, names, fault) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ev.EvaluationError, match=fault):
        ev.score(labels, p, names)


def test_interval_agrees_with_scipy_and_is_fast() -> None:
    labels, p = made(750)
    started = time.perf_counter()
    found = ev.confidence_intervals(labels, p)
    assert time.perf_counter() - started < 1.0
    correct = (p.argmax(axis=1) == labels).astype(float)
    loss = -np.log(p[np.arange(750), labels])
    for name, values in (("accuracy", correct), ("nll", loss)):
        theirs = stats.bootstrap(
            (values,), np.mean, method="percentile", n_resamples=2000, rng=1
        ).confidence_interval
        width = theirs.high - theirs.low
        assert found[name] == pytest.approx(list(theirs), abs=0.08 * width)
    assert found == ev.confidence_intervals(labels, p)
    assert found != ev.confidence_intervals(labels, p, seed=1)


def test_interval_of_f1_agrees_with_resampling_by_hand() -> None:
    labels, p = made(60)
    predicted = p.argmax(axis=1)
    rng = np.random.default_rng(5)
    draws = []
    for _ in range(600):
        chosen = rng.integers(60, size=60)
        draws.append(sk.f1_score(labels[chosen], predicted[chosen], average="macro"))
    by_hand = np.percentile(draws, [2.5, 97.5])
    assert ev.confidence_intervals(labels, p)["macro_f1"] == pytest.approx(by_hand, abs=0.03)


def test_groups_widen_the_interval_of_copies() -> None:
    labels, p = made(60)
    copies = np.repeat(np.arange(60), 4)
    naive = ev.confidence_intervals(labels[copies], p[copies])["accuracy"]
    grouped = ev.confidence_intervals(labels[copies], p[copies], groups=copies)["accuracy"]
    assert grouped == ev.confidence_intervals(labels, p)["accuracy"]
    assert grouped[1] - grouped[0] > 1.6 * (naive[1] - naive[0])
    with pytest.raises(ev.EvaluationError, match="give one each"):
        ev.confidence_intervals(labels, p, groups=[1, 2])


def test_draws_are_the_frozen_stream() -> None:
    """Committed intervals depend on these numbers; a change would invalidate them all."""
    raw = np.random.PCG64(0).random_raw(3)
    expected = [int(int(value) / 2**64 * 100) for value in raw]
    assert ev._uniform_indices(3, 100, seed=0).tolist() == expected == [63, 26, 4]


def test_mcnemar_by_hand() -> None:
    # b = 1, c = 5: 2 * (C(6,0) + C(6,1)) / 2^6 = 14 / 64
    assert comparison.mcnemar_p_value(1, 5) == pytest.approx(14 / 64)
    assert comparison.mcnemar_p_value(0, 0) == 1.0
    assert comparison.mcnemar_p_value(3, 3) == 1.0


def test_sign_flip_by_enumeration() -> None:
    values = np.array([2, 1, -1, 3, 0, 2])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T
    by_hand = np.mean(np.abs(signs @ values) >= abs(values.sum()))
    assert comparison.sign_flip_p_value(values) == pytest.approx(by_hand)
    assert comparison.sign_flip_p_value([0, 0]) == 1.0


def test_one_seed_is_exact_mcnemar() -> None:
    a = answers([False] * 5 + [True] * 35)
    b = answers([True] * 5 + [False] + [True] * 34)
    found = comparison.compare([a], [b])
    assert found.p_value == pytest.approx(14 / 64) == found.mcnemar[0].p_value
    assert (found.mcnemar[0].only_a_right, found.mcnemar[0].only_b_right) == (1, 5)
    assert found.accuracy_delta_points == pytest.approx(10.0)
    assert found.errors_removed_pct == pytest.approx(80.0)
    assert (found.errors_a, found.errors_b, found.n) == (5, 1, 40)
    assert found.outcome == "tied"
    assert found.verdict.startswith(
        "dendritic is tied with baseline: its accuracy differs by +10.0 points (95 % CI "
    )
    assert found.verdict.endswith(
        "McNemar p = 0.22; n = 40 x 1 seed); 95 % bound: at most 100.0 % fewer errors"
    )


def test_better_and_worse_mirror_each_other() -> None:
    a, b = answers([False] * 12 + [True] * 28), answers([True] * 40)
    better, worse = (
        comparison.compare([a], [b]),
        comparison.compare([b], [a], names=("dendritic", "baseline")),
    )
    assert better.outcome == "better"
    assert better.verdict.startswith(
        "dendritic is better than baseline: its accuracy differs by +30.0 points"
    )
    assert "McNemar p < 0.001" in better.verdict
    assert worse.outcome == "worse"
    assert worse.accuracy_ci_points == pytest.approx([-x for x in better.accuracy_ci_points][::-1])
    assert worse.errors_removed_pct is None
    assert better.accuracy_ci_points[0] > 0
    # Every error is gone in every resample.
    assert better.errors_removed_ci_pct == pytest.approx((100.0, 100.0))
    assert worse.errors_removed_ci_pct is None


def test_interval_of_the_errors_removed() -> None:
    a = answers([False] * 20 + [True] * 80)
    b = answers([True] * 10 + [False] * 10 + [True] * 80)
    found = comparison.compare([a], [b])
    assert found.errors_removed_pct == pytest.approx(50.0)
    assert found.errors_removed_ci_pct is not None
    # Half of twenty, give or take two binomial standard deviations.
    assert found.errors_removed_ci_pct == pytest.approx((28, 72), abs=5)


def test_repeated_sentences_do_not_count_twice() -> None:
    """Three seeds that test the same sentences are no more evidence than one."""
    a, b = answers([False] * 6 + [True] * 30), answers([True] * 36)
    one, three = comparison.compare([a], [b]), comparison.compare([a] * 3, [b] * 3)
    assert three.p_value == pytest.approx(one.p_value)
    assert three.accuracy_ci_points == pytest.approx(one.accuracy_ci_points)
    apart = comparison.compare(
        [a, answers([False] * 6 + [True] * 30, "f")], [b, answers([True] * 36, "f")]
    )
    assert apart.p_value < one.p_value


def test_order_of_rows_does_not_matter() -> None:
    a, b = answers([False, True, True, False]), answers([True, True, False, True])
    turned = Predictions(b.ids[::-1], b.labels[::-1], b.probabilities[::-1], b.label_names)
    assert comparison.compare([a], [b]) == comparison.compare([a], [turned])


@pytest.mark.parametrize(
    ("without", "note"),
    [((1,), "NO DENDRITE was kept in 1 of 2 dendritic runs (seed 1)"), ((0, 1), "in any")],
)
def test_missing_dendrites_are_said_loudly(without: tuple[int, ...], note: str) -> None:
    a = answers([True, False])
    found = comparison.compare([a, a], [a, a], seeds_without_dendrites=without)
    assert note in found.verdict
    assert "-0.0" not in found.verdict
    assert found.to_dict()["seeds_without_dendrites"] == list(without)


def test_seeds_of_different_size() -> None:
    a, b = answers([True, False]), answers([True, False, True])
    assert "; n = 5 over 2 seeds)" in comparison.compare([a, b], [a, b]).verdict


def test_runs_that_do_not_pair() -> None:
    a = answers([True, False])
    others = Predictions(a.ids, a.labels, a.probabilities, ("x", "z"))
    relabelled = Predictions(a.ids, ("x", "y"), a.probabilities, ("x", "y"))
    for left, right, fault in (
        ([], [], "0 runs against 0"),
        ([a], [a, a], "1 runs against 2"),
        ([a], [others], "label names"),
        ([a], [answers([True, False], "f")], "4 test ids are in one arm only"),
        ([a], [relabelled], "true labels"),
    ):
        with pytest.raises(ev.EvaluationError, match=fault):
            comparison.compare(left, right)
    with pytest.raises(ev.EvaluationError, match="no runs"):
        ev.pooled_intervals([])
    with pytest.raises(ev.EvaluationError, match="different label names"):
        ev.pooled_intervals([a, others])


def test_the_verdict_names_its_test() -> None:
    a, b = answers([False] * 5 + [True] * 35), answers([True] * 5 + [False] + [True] * 34)
    assert "; McNemar p = 0.22; n = 40 x 1 seed" in comparison.compare([a], [b]).verdict
    several = comparison.compare([a, a], [b, b])
    # A sentence answered alike in both seeds is one piece of evidence, not two.
    assert several.p_value == pytest.approx(14 / 64)
    assert "; sign-flip p = 0.22; n = 40 x 2 seeds" in several.verdict
