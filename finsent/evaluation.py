"""Numbers from predictions: metrics, calibration, intervals, paired comparisons.

Every random draw comes from the raw output of a seeded PCG64 generator. NumPy promises that this
stream never changes (NEP 19) but gives no such promise for `Generator` methods, so intervals that
were committed years ago can still be recomputed to the last digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from finsent.runs import Predictions

CI_METRICS = ("accuracy", "macro_f1", "weighted_f1", "nll")
"""Metrics that get a bootstrap interval, in the order of `_Statistics` columns."""

ECE_BINS = 15
RELIABILITY_BINS = 10
SIGNIFICANCE = 0.05
RESAMPLES = 2000

_SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


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


def expected_calibration_error(
    labels: ArrayLike, probabilities: ArrayLike, *, bins: int = ECE_BINS
) -> float:
    """ECE = sum_b (n_b / n) |accuracy_b - confidence_b| over equal-width bins of the top
    probability, bin b = ((b - 1) / bins, b / bins] (Naeini et al. 2015; Guo et al. 2017,
    arXiv:1706.04599, equation 3).
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


def confidence_intervals(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, list[float]]:
    """95 % percentile bootstrap intervals {metric: [low, high]} of accuracy, macro_f1,
    weighted_f1 and nll.

    groups: (n,) anything hashable; examples of one group are drawn together (a cluster
    bootstrap), for examples that are not independent. None: every example for itself.

    Raises EvaluationError as `score` does, or when groups is not one per example.
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
    return {name: _interval(draws[name]) for name in CI_METRICS}


def pooled_intervals(
    runs: Sequence[Predictions], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, list[float]]:
    """95 % intervals of the mean over runs of each metric, clustered by example id.

    Test sets of different seeds share sentences, so a sentence is drawn or left out in all runs at
    once. The interval is about the test sentences, given these trained models; how much another
    training seed moves the result is the standard deviation over seeds, shown beside it.
    """
    return {name: _interval(draws) for name, draws in _pooled(runs, resamples, seed).items()}


# ------------------------------------------------------------------------ paired comparison


@dataclass(frozen=True)
class McNemar:
    """Exact McNemar test of one seed (binomial, two-sided)."""

    seed: int
    only_a_right: int
    """Usually called b."""
    only_b_right: int
    """Usually called c."""
    p_value: float


@dataclass(frozen=True)
class Comparison:
    """Arm b against arm a on the same test examples; positive differences favour b."""

    a: str
    b: str
    seeds: tuple[int, ...]
    n: int
    """Predictions compared, all seeds together."""
    accuracy_delta_points: float
    """Mean over seeds, in percentage points."""
    accuracy_ci_points: tuple[float, float]
    macro_f1_delta_points: float
    macro_f1_ci_points: tuple[float, float]
    p_value: float
    """Exact two-sided sign-flip test of accuracy, clustered by example id."""
    mcnemar: tuple[McNemar, ...]
    errors_a: int
    errors_b: int
    errors_removed_pct: float | None
    """Share of a's errors that b has fewer (negative: more); None when a makes none."""
    errors_removed_ci_pct: tuple[float, float] | None
    """95 % bootstrap interval of the same, from the draws of the accuracy interval."""
    outcome: str
    """`better`, `worse` or `tied`: of b, at p < 0.05."""
    verdict: str
    """The same in a sentence."""
    seeds_without_dendrites: tuple[int, ...] = ()
    """Seeds whose dendritic run kept no dendrite; the verdict names them."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        data = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}


def compare(
    a: Sequence[Predictions],
    b: Sequence[Predictions],
    *,
    names: tuple[str, str] = ("baseline", "dendritic"),
    seeds: Sequence[int] | None = None,
    seeds_without_dendrites: Sequence[int] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Paired comparison of two arms; a[i] and b[i] are the runs of one seed on one test set.

    Intervals: percentile bootstrap over example ids (a sentence is drawn in all seeds and both
    arms at once). p_value: under "the arms are alike" the two arms' answers to a sentence can be
    swapped; the exact distribution of the accuracy difference under all such swaps, a sentence
    being swapped in all seeds together. With one seed this is the exact McNemar test.

    seeds_without_dendrites: seeds whose dendritic run kept none; the verdict says so.

    Raises EvaluationError when the runs do not pair up (number, ids, labels or label names).
    """
    seeds = tuple(range(len(a))) if seeds is None else tuple(seeds)
    pairs = _paired(a, b, seeds)
    clusters = _cluster_numbers([left.ids for left, _ in pairs])
    size = max(int(c.max()) for c in clusters) + 1

    difference_per_cluster = np.zeros(size, dtype=np.int64)
    tests, errors_a, errors_b, deltas = [], 0, 0, []
    for number, (left, right), cluster in zip(seeds, pairs, clusters, strict=True):
        right_a, right_b = _correct(left), _correct(right)
        only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
        tests.append(McNemar(number, only_a, only_b, mcnemar_p_value(only_a, only_b)))
        errors_a += int((~right_a).sum())
        errors_b += int((~right_b).sum())
        deltas.append((only_b - only_a) / len(left))
        np.add.at(
            difference_per_cluster, cluster, right_b.astype(np.int64) - right_a.astype(np.int64)
        )
    p_value = sign_flip_p_value(difference_per_cluster)

    draws_a = _pooled([left for left, _ in pairs], resamples, seed)
    draws_b = _pooled([right for _, right in pairs], resamples, seed)
    gain = draws_b["accuracy"] - draws_a["accuracy"]
    low, high = _interval(100 * gain)
    f1_low, f1_high = _interval(100 * (draws_b["macro_f1"] - draws_a["macro_f1"]))
    f1_delta = float(np.mean([_macro_f1(right) - _macro_f1(left) for left, right in pairs]) * 100)
    delta = float(np.mean(deltas) * 100)
    sizes = [len(left) for left, _ in pairs]
    outcome = "tied" if p_value >= SIGNIFICANCE else ("better" if delta > 0 else "worse")
    return Comparison(
        a=names[0],
        b=names[1],
        seeds=seeds,
        n=sum(sizes),
        accuracy_delta_points=delta,
        accuracy_ci_points=(low, high),
        macro_f1_delta_points=f1_delta,
        macro_f1_ci_points=(f1_low, f1_high),
        p_value=p_value,
        mcnemar=tuple(tests),
        errors_a=errors_a,
        errors_b=errors_b,
        errors_removed_pct=100 * (errors_a - errors_b) / errors_a if errors_a else None,
        errors_removed_ci_pct=_share_interval(gain, 1 - draws_a["accuracy"]) if errors_a else None,
        outcome=outcome,
        verdict=_verdict(outcome, names, delta, (low, high), p_value, sizes)
        + _disagreement_note(outcome, low, high)
        + _no_dendrite_note(seeds_without_dendrites, seeds),
        seeds_without_dendrites=tuple(seeds_without_dendrites),
    )


def mcnemar_p_value(only_a_right: int, only_b_right: int) -> float:
    """Exact two-sided McNemar p: the discordant pairs are fair coin tosses under the null."""
    discordant = only_a_right + only_b_right
    return float(binomtest(only_b_right, discordant, 0.5).pvalue) if discordant else 1.0


def sign_flip_p_value(differences: ArrayLike) -> float:
    """Exact two-sided p of |sum of differences| when every sign is a fair coin toss.

    differences: (clusters,) integers. The null distribution is a convolution of scaled binomials,
    one per absolute size, so it is computed and not sampled.
    """
    values = np.asarray(differences, dtype=np.int64)
    magnitudes = np.abs(values[values != 0])
    distribution = np.ones(1)
    for magnitude in np.unique(magnitudes):
        count = int((magnitudes == magnitude).sum())
        # The sum of `count` signs times m lies on -m count, ..., m count in steps of 2 m.
        spread = np.zeros(2 * int(magnitude) * count + 1)
        spread[:: 2 * int(magnitude)] = binom.pmf(np.arange(count + 1), count, 0.5)
        distribution = np.convolve(distribution, spread)
    largest = int(magnitudes.sum())
    sums = np.arange(-largest, largest + 1)
    extreme = np.abs(sums) >= abs(int(values.sum()))
    return float(min(1.0, distribution[extreme].sum()))


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
    """How often each resample draws each cluster, shape (resamples, clusters); rows sum to
    `clusters`."""
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


def _interval(draws: Floats) -> list[float]:
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return [float(low), float(high)]


def _share_interval(part: Floats, whole: Floats) -> tuple[float, float]:
    """Interval of 100 part / whole; a draw without a whole (no error at all) says nothing."""
    used = whole > 1e-12
    low, high = _interval(100 * part[used] / whole[used])
    return low, high


def _cluster_numbers(ids_per_run: Sequence[Sequence[str]]) -> list[Integers]:
    """Numbers the ids of all runs together: the same id gets the same number in every run."""
    everything = sorted({example for ids in ids_per_run for example in ids})
    number = {example: index for index, example in enumerate(everything)}
    return [np.array([number[example] for example in ids]) for ids in ids_per_run]


def _pooled(runs: Sequence[Predictions], resamples: int, seed: int) -> dict[str, Floats]:
    if not runs:
        raise EvaluationError("no runs to pool; give at least one")
    if len({run.label_names for run in runs}) > 1:
        raise EvaluationError("runs with different label names cannot be pooled")
    clusters = _cluster_numbers([run.ids for run in runs])
    arrays = [
        (*_checked(run.label_indices, run.probabilities), cluster)
        for run, cluster in zip(runs, clusters, strict=True)
    ]
    table = _cluster_table(arrays, clusters=max(int(c.max()) for c in clusters) + 1)
    weights = _bootstrap_weights(table.shape[0], resamples, seed)
    return _seed_mean_metrics(weights, table, k=len(runs[0].label_names))


def _paired(
    a: Sequence[Predictions], b: Sequence[Predictions], seeds: Sequence[int]
) -> list[tuple[Predictions, Predictions]]:
    """Pairs with b's rows in a's order."""
    if not len(a) == len(b) == len(seeds) or len(a) == 0:
        raise EvaluationError(
            f"{len(a)} runs against {len(b)} for {len(seeds)} seeds; give one of each per seed"
        )
    pairs = []
    for number, left, right in zip(seeds, a, b, strict=True):
        if left.label_names != right.label_names:
            raise EvaluationError(
                f"seed {number}: label names {left.label_names} and {right.label_names} differ"
            )
        place = {example: index for index, example in enumerate(right.ids)}
        if set(place) != set(left.ids):
            raise EvaluationError(
                f"seed {number}: {len(set(place) ^ set(left.ids))} test ids are in one arm only; "
                "train both arms on the same split"
            )
        order = [place[example] for example in left.ids]
        right = Predictions(
            ids=tuple(right.ids[i] for i in order),
            labels=tuple(right.labels[i] for i in order),
            probabilities=tuple(right.probabilities[i] for i in order),
            label_names=right.label_names,
        )
        if left.labels != right.labels:
            raise EvaluationError(f"seed {number}: the arms disagree about the true labels")
        pairs.append((left, right))
    return pairs


def _correct(predictions: Predictions) -> NDArray[np.bool_]:
    chosen = np.asarray(predictions.probabilities).argmax(axis=1)
    correct: NDArray[np.bool_] = chosen == np.asarray(predictions.label_indices)
    return correct


def _macro_f1(predictions: Predictions) -> float:
    metrics = score(predictions.label_indices, predictions.probabilities, predictions.label_names)
    return float(metrics["macro_f1"])


def _verdict(
    outcome: str,
    names: tuple[str, str],
    delta: float,
    interval: tuple[float, float],
    p_value: float,
    sizes: Sequence[int],
) -> str:
    a, b = names
    opening = "tied" if outcome == "tied" else f"{b} is {outcome}"
    # With one seed the two are the same test.
    p_text = "McNemar p " if len(sizes) == 1 else "sign-flip p "
    p_text += "< 0.001" if p_value < 0.001 else f"= {p_value:.{3 if p_value < 0.1 else 2}f}"
    if len(set(sizes)) == 1:
        n_text = f"n = {sizes[0]} x {len(sizes)} seed{'s' if len(sizes) > 1 else ''}"
    else:
        n_text = f"n = {sum(sizes)} over {len(sizes)} seeds"
    return (
        f"{opening}: {b} {_signed(delta)} points accuracy over {a}, "
        f"95 % CI {_signed(interval[0])} to {_signed(interval[1])}, {p_text}, {n_text}"
    )


def _disagreement_note(outcome: str, low: float, high: float) -> str:
    """With few discordant sentences the exact test is the stricter of the two."""
    if outcome == "tied" and not low <= 0 <= high:
        return "; the interval leaves out zero but the exact test does not reject: not settled"
    return ""


def _signed(points: float) -> str:
    # Adding 0.0 turns a rounded -0.0 into 0.0, which must not be printed as "-0.0".
    return f"{round(points, 1) + 0.0:+.1f}"


def _no_dendrite_note(without: Sequence[int], seeds: Sequence[int]) -> str:
    if not without:
        return ""
    if set(without) >= set(seeds):
        return ". NO DENDRITE was kept in any dendritic run: this is not a test of dendrites"
    listed = ", ".join(str(number) for number in sorted(without))
    return (
        f". NO DENDRITE was kept in {len(without)} of {len(seeds)} dendritic runs (seed {listed})"
    )
