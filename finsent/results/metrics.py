"""Numbers from predictions: metrics, calibration, intervals, paired comparisons.

Every random draw comes from the raw output of a seeded PCG64 generator. NumPy promises that this
stream never changes (NEP 19) but gives no such promise for `Generator` methods, so intervals that
were committed years ago can still be recomputed to the last digit.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finsent.data.registry import DATASETS
from finsent.results.runs import Predictions

SOURCE_METRICS = ("accuracy", "macro_f1", "nll", "ece")
"""What is said of every source of a data set made of several, beside n."""

CI_METRICS = ("accuracy", "macro_f1", "weighted_f1", "nll")
"""Metrics that get a bootstrap interval, in the order of `_Statistics` columns."""

ECE_BINS = 15
RELIABILITY_BINS = 10
SIGNIFICANCE = 0.05
RESAMPLES = 2000

_SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Name = TypeVar("Name", bound=Hashable)


class EvaluationError(ValueError):
    """Labels and probabilities that no metric can be computed from."""


# ------------------------------------------------------------------------ one set of runs


def score(
    labels: ArrayLike, probabilities: ArrayLike, label_names: Sequence[str]
) -> dict[str, Any]:
    """Metrics of n examples and k classes, as plain floats and ints.

    labels: (n,) class positions; probabilities: (n, k), rows sum to 1; label_names: k names.
    The predicted class is the most probable one (the first of them when tied).

    Returns accuracy, macro_f1, weighted_f1, nll (mean negative log likelihood, nats), ece,
    n_test, per_class {name: precision, recall, f1, support} and confusion (rows: true class).
    macro_f1 averages over the classes that occur among true or predicted labels: a class the test
    set never shows and the model never predicts is no failure. An undefined precision or recall
    (0 / 0) counts as 0.

    Raises EvaluationError for mismatched shapes, unknown labels, NaN, or rows that are not
    distributions.
    """
    # Here, as below: who only reads a leaderboard or a summary need not wait for it.
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    y, p = _checked(labels, probabilities)
    k = p.shape[1]
    if len(label_names) != k:
        raise EvaluationError(f"{len(label_names)} label names for {k} columns of probabilities")
    predicted = p.argmax(axis=1)
    every_class = list(range(k))
    precision, recall, f1, support = precision_recall_fscore_support(
        y, predicted, labels=every_class, zero_division=0
    )
    confusion = confusion_matrix(y, predicted, labels=every_class)
    present = (confusion.sum(axis=0) + confusion.sum(axis=1)) > 0
    return {
        "accuracy": float((predicted == y).mean()),
        "macro_f1": float(f1[present].mean()),
        "weighted_f1": float(np.average(f1, weights=support)),
        "nll": float(_losses(y, p).mean()),
        "ece": expected_calibration_error(y, p),
        "n_test": len(y),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(label_names)
        },
        "confusion": [[int(count) for count in row] for row in confusion],
    }


def source_scores(dataset: str, predictions: Predictions) -> dict[str, dict[str, float]] | None:
    """{source: accuracy, macro_f1, nll, ece, n} of a data set made of several; else None.

    Sources that the predictions hold none of are left out; the others come in the order of their
    first prediction. Raises EvaluationError as `score` does, DataError for an id of no source.
    """
    source_of = DATASETS[dataset].source_of if dataset in DATASETS else None
    if source_of is None:
        return None
    members: dict[str, set[str]] = {}
    for name in predictions.ids:
        members.setdefault(source_of(name), set()).add(name)
    found = {}
    for source, ids in members.items():
        part = predictions.only(ids)
        if part is None:
            raise EvaluationError(f"source {source!r} of {dataset!r} lost its {len(ids)} ids")
        whole = score(part.label_indices, part.probabilities, part.label_names)
        found[source] = {name: whole[name] for name in SOURCE_METRICS} | {"n": len(part)}
    return found


def expected_calibration_error(
    labels: ArrayLike, probabilities: ArrayLike, *, bins: int = ECE_BINS
) -> float:
    """Expected calibration error, sum_b (n_b / n) |accuracy_b - confidence_b|.

    Bins are of equal width in the top probability, bin b = ((b - 1) / bins, b / bins] (Naeini et
    al. 2015; Guo et al. 2017, arXiv:1706.04599, equation 3).

    Args:
        labels: True classes (n,).
        probabilities: (n, classes), rows sum to 1.
        bins: How many.

    Raises:
        EvaluationError: Shapes do not fit, or a row is no distribution.
    """
    y, p = _checked(labels, probabilities)
    confidence = p.max(axis=1)
    correct = (p.argmax(axis=1) == y).astype(np.float64)
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    # (n_b / n) |acc_b - conf_b| = |sum of (correct - confidence) in b| / n
    gaps = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(y))


def reliability(
    labels: ArrayLike, probabilities: ArrayLike, *, bins: int = RELIABILITY_BINS
) -> list[dict[str, float | int]]:
    """A reliability diagram of the top probability: one entry per equal-width bin that is used.

    low, high: the bin's edges; confidence: mean top probability in it; accuracy: share of it that
    is right; n: examples.
    Points below the diagonal are overconfident. Raises EvaluationError as `score` does.
    """
    from sklearn.calibration import calibration_curve

    y, p = _checked(labels, probabilities)
    confidence = np.minimum(p.max(axis=1), 1.0)
    correct = p.argmax(axis=1) == y
    accuracy, mean_confidence = calibration_curve(correct, confidence, n_bins=bins)
    # scikit-learn gives no counts; these are its bins, closed on the right.
    edges = np.linspace(0.0, 1.0, bins + 1)
    sizes = np.bincount(np.searchsorted(edges[1:-1], confidence), minlength=bins)
    used = np.flatnonzero(sizes)
    return [
        {
            "low": float(edges[b]),
            "high": float(edges[b + 1]),
            "confidence": float(c),
            "accuracy": float(a),
            "n": int(sizes[b]),
        }
        for b, c, a in zip(used, mean_confidence, accuracy, strict=True)
    ]


def selective(labels: ArrayLike, probabilities: ArrayLike, shares: ArrayLike) -> Floats:
    """Accuracy of the answers that a model is surest of, when it answers only so many.

    Args:
        labels: True classes (n,).
        probabilities: (n, classes), rows sum to 1.
        shares: Of examples answered (m,), each in (0, 1]; at least one example is.

    Returns:
        (m,) accuracies; the last of 1.0 is the plain accuracy.

    Raises:
        EvaluationError: As `score` does, or a share outside of (0, 1].
    """
    y, p = _checked(labels, probabilities)
    wanted = np.asarray(shares, dtype=np.float64)
    if not ((wanted > 0) & (wanted <= 1)).all():
        raise EvaluationError(f"shares must lie in (0, 1], got {wanted.tolist()}")
    surest = np.argsort(-p.max(axis=1), kind="stable")
    right = np.cumsum(p.argmax(axis=1)[surest] == y[surest])
    # A share of 0.3 of ten examples is three, which rounding errors must not make four.
    answered = np.maximum(1, np.ceil(wanted * len(y) - 1e-9).astype(np.int64))
    accuracies: Floats = right[answered - 1] / answered
    return accuracies


def confidence_intervals(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, list[float]]:
    """95 % percentile bootstrap intervals of accuracy, macro_f1, weighted_f1 and nll.

    Examples of one group are drawn together (a cluster bootstrap), for examples that are not
    independent; `groups` is (n,) of anything hashable, and None draws every example for itself.

    Returns:
        {metric: [low, high]}.

    Raises:
        EvaluationError: As `score` does, or groups is not one per example.
    """
    y, p = _checked(labels, probabilities)
    if groups is None:
        index = np.arange(len(y))
    else:
        values = np.asarray(groups)
        if values.shape != y.shape:
            raise EvaluationError(f"{values.shape} groups for {len(y)} examples; give one each")
        index = np.unique(values, return_inverse=True)[1]
    table = _cluster_table([(y, p, index)], clusters=int(index.max()) + 1)
    weights = _bootstrap_weights(table.shape[0], resamples, seed)
    draws = _seed_mean_metrics(weights, table, k=p.shape[1])
    return {name: interval(draws[name]) for name in CI_METRICS}


def pooled_intervals(
    runs: Sequence[Predictions], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, list[float]]:
    """95 % intervals of the mean over runs of each metric, clustered by example id.

    Test sets of different seeds share sentences, so a sentence is drawn or left out in all runs at
    once. The interval is about the test sentences, given these trained models; how much another
    training seed moves the result is the standard deviation over seeds, shown beside it.
    """
    return {name: interval(draws) for name, draws in pooled(runs, resamples, seed).items()}


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Adjusted p-values of a family of tests (Holm 1979), under the same names."""
    ordered = sorted(p_values, key=lambda name: p_values[name])
    adjusted: dict[Name, float] = {}
    largest = 0.0
    for rank, name in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


# ------------------------------------------------------------------------ pieces


def _checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Integers, Floats]:
    p = np.asarray(probabilities, dtype=np.float64)
    y = np.asarray(labels)
    if p.ndim != 2 or p.shape[1] < 2:
        raise EvaluationError(f"probabilities have shape {p.shape}, expected (n, k) with k >= 2")
    if y.shape != (p.shape[0],):
        raise EvaluationError(
            f"labels have shape {y.shape} for {p.shape[0]} rows; give one per row"
        )
    if p.shape[0] == 0:
        raise EvaluationError("no examples; the test set is empty")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= p.shape[1]:
        raise EvaluationError(f"labels must be integers in 0..{p.shape[1] - 1}, got {np.unique(y)}")
    # The negated comparison also catches NaN.
    bad = ~(((p >= 0) & (p <= 1)).all(axis=1) & (np.abs(p.sum(axis=1) - 1) <= 1e-4))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise EvaluationError(
            f"row {row}: {p[row].tolist()} is not a distribution (numbers in [0, 1], sum 1); "
            "pass probabilities, not logits"
        )
    return y.astype(np.int64), p


def _losses(y: Integers, p: Floats) -> Floats:
    """Negative log likelihood per example, clipped where float32 rounded a probability to 0."""
    likelihood = np.clip(p[np.arange(len(y)), y], _SMALLEST_PROBABILITY, 1.0)
    losses: Floats = -np.log(likelihood)
    return losses


def _uniform_indices(count: int, below: int, seed: int) -> Integers:
    raw = np.random.PCG64(seed).random_raw(count)
    fractions = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (fractions * below).astype(np.int64)


def _bootstrap_weights(clusters: int, resamples: int, seed: int) -> Floats:
    """How often each resample draws each cluster, shape (resamples, clusters).

    Rows sum to `clusters`.
    """
    drawn = _uniform_indices(resamples * clusters, clusters, seed)
    row = np.repeat(np.arange(resamples), clusters)
    counts = np.bincount(row * clusters + drawn, minlength=resamples * clusters)
    return counts.reshape(resamples, clusters).astype(np.float64)


def _cluster_table(runs: Sequence[tuple[Integers, Floats, Integers]], *, clusters: int) -> Floats:
    """(clusters, runs, k * k + 1): each cluster's confusion counts and summed loss in each run."""
    k = runs[0][1].shape[1]
    table = np.zeros((clusters, len(runs), k * k + 1))
    for number, (y, p, cluster) in enumerate(runs):
        np.add.at(table[:, number], (cluster, y * k + p.argmax(axis=1)), 1.0)
        np.add.at(table[:, number, -1], cluster, _losses(y, p))
    return table


def _seed_mean_metrics(weights: Floats, table: Floats, *, k: int) -> dict[str, Floats]:
    """Each metric of each resample, averaged over runs; arrays of shape (resamples,)."""
    clusters, runs, width = table.shape
    sums = (weights @ table.reshape(clusters, runs * width)).reshape(-1, runs, width)
    confusion = sums[..., :-1].reshape(-1, runs, k, k)
    total = confusion.sum(axis=(2, 3))
    # A resample may miss a run's test set altogether when there are few clusters; it says nothing.
    with np.errstate(invalid="ignore", divide="ignore"):
        hits = np.diagonal(confusion, axis1=2, axis2=3)
        support, predicted = confusion.sum(axis=3), confusion.sum(axis=2)
        present = (support + predicted) > 0
        f1 = np.where(present, 2 * hits / (support + predicted), 0.0)
        per_run = {
            "accuracy": hits.sum(axis=2) / total,
            "macro_f1": f1.sum(axis=2) / present.sum(axis=2),
            "weighted_f1": (f1 * support).sum(axis=2) / total,
            "nll": sums[..., -1] / total,
        }
    return {name: values.mean(axis=1) for name, values in per_run.items()}


def interval(draws: Floats) -> list[float]:
    """[low, high] of the middle 95 % of bootstrap draws (resamples,), without undefined ones."""
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return [float(low), float(high)]


def cluster_numbers(ids_per_run: Sequence[Sequence[str]]) -> list[Integers]:
    """Numbers the ids of all runs together: the same id gets the same number in every run."""
    everything = sorted({example for ids in ids_per_run for example in ids})
    number = {example: index for index, example in enumerate(everything)}
    return [np.array([number[example] for example in ids]) for ids in ids_per_run]


def pooled(runs: Sequence[Predictions], resamples: int, seed: int) -> dict[str, Floats]:
    """Metric -> bootstrap draws (resamples,) of its mean over runs, clustered by example id.

    Raises:
        EvaluationError: There is no run, or their label names differ.
    """
    if not runs:
        raise EvaluationError("no runs to pool; give at least one")
    if len({run.label_names for run in runs}) > 1:
        raise EvaluationError("runs with different label names cannot be pooled")
    clusters = cluster_numbers([run.ids for run in runs])
    arrays = [
        (*_checked(run.label_indices, run.probabilities), cluster)
        for run, cluster in zip(runs, clusters, strict=True)
    ]
    table = _cluster_table(arrays, clusters=max(int(c.max()) for c in clusters) + 1)
    weights = _bootstrap_weights(table.shape[0], resamples, seed)
    return _seed_mean_metrics(weights, table, k=len(runs[0].label_names))


def errors_bound(high: float) -> str:
    """What an interval of errors removed, in percent, leaves: `at most 7.6 % fewer`."""
    return f"at most {high:.1f} % fewer" if high >= 0 else f"at least {-high:.1f} % more"
