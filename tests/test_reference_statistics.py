"""Our statistics held to other people's code, and intervals to how often they hold in draws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from mapie.classification import SplitConformalClassifier
from scipy import optimize, special, stats
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import brier_score_loss, log_loss
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from finsent.results import metrics
from finsent.results.calibration import COVERAGE, conformal_threshold, fit_temperature, scale
from finsent.results.comparison import mcnemar_p_value, sign_flip_p_value
from finsent.results.metrics import holm
from finsent.study.fold_tests import corrected_paired_test

DRAWS = 2000
POINT = 0.01


def distributions(n: int, seed: int = 0, sharpness: float = 1.5) -> np.ndarray:
    return special.softmax(sharpness * np.random.default_rng(seed).normal(size=(n, 3)), axis=1)


def labels_of(p: np.ndarray, seed: int = 1) -> np.ndarray:
    """Drawn as the probabilities say."""
    u = np.random.default_rng(seed).random((len(p), 1))
    return np.minimum((p.cumsum(axis=1) < u).sum(axis=1), p.shape[1] - 1)


@pytest.mark.parametrize(("a", "b"), [(1, 5), (0, 3), (7, 7), (30, 12), (200, 260), (0, 1)])
def test_mcnemar_is_that_of_statsmodels(a: int, b: int) -> None:
    found = mcnemar([[50, a], [b, 9]], exact=True).pvalue
    assert mcnemar_p_value(a, b) == pytest.approx(found, abs=1e-12)


def test_holm_is_that_of_statsmodels() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 40):
        p = rng.beta(0.4, 2.0, size=n)
        found = holm({str(i): float(value) for i, value in enumerate(p)})
        expected = multipletests(p, method="holm")[1]
        np.testing.assert_allclose([found[str(i)] for i in range(n)], expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_sign_flip_test_is_scipys_over_all_flips(seed: int) -> None:
    values = np.random.default_rng(seed).integers(-3, 4, size=11)
    found = stats.permutation_test(
        (values,),
        lambda x, axis: np.abs(x.sum(axis=axis)),
        permutation_type="samples",
        alternative="greater",
        n_resamples=np.inf,
        vectorized=True,
    )
    assert sign_flip_p_value(values) == pytest.approx(found.pvalue, abs=1e-12)


def test_the_corrected_test_without_overlap_is_the_plain_one() -> None:
    values = np.random.default_rng(0).normal(0.3, 1.0, size=12)
    found = corrected_paired_test(values, test_share_over_train_share=0.0)
    plain = DescrStatsW(values)
    assert (found.low, found.high) == pytest.approx(plain.tconfint_mean())
    assert found.p_value == pytest.approx(plain.ttest_mean()[1])


def test_scores_are_those_of_scikit_learn() -> None:
    p = distributions(500)
    y = labels_of(p)
    found = metrics.score(y, p, ("a", "b", "c"))
    assert found["nll"] == pytest.approx(log_loss(y, p))
    # A model that is always half sure of what is right half of the time has no calibration error.
    sure = np.tile([0.5, 0.3, 0.2], (400, 1))
    half = np.array([0, 1] * 200)
    assert metrics.expected_calibration_error(half, sure) == pytest.approx(0.0, abs=1e-12)
    assert brier_score_loss(half == 0, sure[:, 0]) == pytest.approx(0.25)


def test_the_temperature_is_where_the_likelihood_is_highest() -> None:
    p = distributions(800, sharpness=3.0)
    y = labels_of(scale(p, 1.7))

    def loss(inverse: float) -> float:
        return log_loss(y, special.softmax(np.log(p) * inverse, axis=1))

    expected = 1 / optimize.minimize_scalar(loss, bounds=(0.1, 5.0), method="bounded").x
    assert fit_temperature(p, y.tolist()) == pytest.approx(expected, rel=1e-3)
    assert expected == pytest.approx(1.7, rel=0.15)


class Known(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier that was fitted elsewhere: its inputs are its probabilities."""

    def __init__(self) -> None:
        self.classes_ = np.arange(3)

    def fit(self, x: np.ndarray, y: np.ndarray) -> Known:
        return self

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        return x

    def predict(self, x: np.ndarray) -> np.ndarray:
        return x.argmax(axis=1)

    def __sklearn_is_fitted__(self) -> bool:
        return True


@pytest.mark.parametrize(("n", "coverage"), [(99, 0.9), (200, 0.9), (37, 0.8), (500, 0.95)])
def test_label_sets_are_those_of_mapie(n: int, coverage: float) -> None:
    p, new = distributions(n, 2), distributions(300, 3)
    y = labels_of(p, 4)
    reference = SplitConformalClassifier(
        Known(), confidence_level=coverage, conformity_score="lac", prefit=True
    ).conformalize(p, y)
    _, sets = reference.predict_set(new)
    ours = new >= conformal_threshold(p, y.tolist(), coverage)
    np.testing.assert_array_equal(ours, sets[:, :, 0])


def test_label_sets_hold_the_true_label_as_often_as_they_say() -> None:
    n, new = 199, 50
    p = distributions(DRAWS * (n + new), 5).reshape(DRAWS, n + new, 3)
    y = labels_of(p.reshape(-1, 3), 6).reshape(DRAWS, n + new)
    own = np.take_along_axis(p, y[:, :, None], axis=2)[:, :, 0]
    thresholds = np.array(
        [conformal_threshold(p[i, :n], y[i, :n].tolist(), COVERAGE) for i in range(DRAWS)]
    )
    measured = float((own[:, n:] >= thresholds[:, None]).mean())
    # Of 199 the 180th: exactly 180 of 200 in expectation.
    assert abs(measured - COVERAGE) < POINT


def test_intervals_of_the_corrected_test_hold_as_often_as_they_say() -> None:
    """Differences that share a part in all folds, as training parts that overlap make them."""
    folds, ratio = 10, 1 / 9
    rng = np.random.default_rng(7)
    # Nadeau and Bengio: a correlation of ratio / (1 + ratio) between folds.
    shared = rng.normal(size=(DRAWS, 1)) * math.sqrt(ratio)
    d = 0.4 + shared + rng.normal(size=(DRAWS, folds))
    held = [
        (found := corrected_paired_test(row, test_share_over_train_share=ratio)).low
        <= 0.4
        <= found.high
        for row in d
    ]
    assert abs(np.mean(held) - 0.95) < POINT


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_bootstrap_intervals_hold_as_often_as_they_say(metric: str) -> None:
    """Every draw is resampled alike, so that all of them are one product of matrices; the first is
    compared with what the function itself gives."""
    n = 400
    p = distributions(DRAWS * n, 8)
    y = labels_of(p, 9)
    values = (p.argmax(axis=1) == y).astype(float)
    truth = float(p.max(axis=1).mean())
    if metric == "nll":
        values = -np.log(p[np.arange(len(p)), y])
        truth = float(-(p * np.log(p)).sum(axis=1).mean())
    weights = metrics._bootstrap_weights(n, metrics.RESAMPLES, 0)
    means = weights @ values.reshape(DRAWS, n).T / n
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    first = metrics.confidence_intervals(y[:n], p[:n])[metric]
    assert (low[0], high[0]) == pytest.approx(tuple(first))
    assert abs(np.mean((low <= truth) & (truth <= high)) - 0.95) < POINT


def test_exact_tests_are_wrong_no_more_often_than_they_say() -> None:
    """Two arms that are alike: how often p is at most 5 %."""
    pairs = np.random.default_rng(10).multinomial(60, [0.1, 0.1, 0.8], size=DRAWS)
    p = {
        (a, b): mcnemar_p_value(a, b)
        for a, b in itertools.product(range(int(pairs[:, :2].max()) + 1), repeat=2)
    }
    wrong = np.mean([p[int(a), int(b)] <= 0.05 for a, b, _ in pairs])
    assert wrong <= 0.05 + POINT
