"""Paired comparison of two arms: exact tests, bootstrap intervals, Holm's correction, a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finsent.results.metrics import (
    RESAMPLES,
    SIGNIFICANCE,
    EvaluationError,
    Floats,
    cluster_numbers,
    errors_bound,
    interval,
    pooled,
    score,
)
from finsent.results.runs import Predictions
from finsent.results.text import signed


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
    tests, errors_a, errors_b, deltas = [], 0, 0, []
    for number, (left, right) in zip(seeds, pairs, strict=True):
        right_a, right_b = _correct(left), _correct(right)
        only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
        tests.append(McNemar(number, only_a, only_b, mcnemar_p_value(only_a, only_b)))
        errors_a += int((~right_a).sum())
        errors_b += int((~right_b).sum())
        deltas.append((only_b - only_a) / len(left))
    p_value = sign_flip_p_value(_wins(pairs))

    draws_a = pooled([left for left, _ in pairs], resamples, seed)
    draws_b = pooled([right for _, right in pairs], resamples, seed)
    gain = draws_b["accuracy"] - draws_a["accuracy"]
    low, high = interval(100 * gain)
    f1_low, f1_high = interval(100 * (draws_b["macro_f1"] - draws_a["macro_f1"]))
    f1_delta = float(np.mean([_macro_f1(right) - _macro_f1(left) for left, right in pairs]) * 100)
    delta = float(np.mean(deltas) * 100)
    sizes = [len(left) for left, _ in pairs]
    outcome = "tied" if p_value >= SIGNIFICANCE else ("better" if delta > 0 else "worse")
    removed = _share_interval(gain, 1 - draws_a["accuracy"]) if errors_a else None
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
        errors_removed_ci_pct=removed,
        outcome=outcome,
        verdict=_verdict(outcome, names, delta, (low, high), p_value, sizes)
        + _excluded(outcome, removed)
        + _disagreement_note(outcome, low, high)
        + _no_dendrite_note(seeds_without_dendrites, seeds),
        seeds_without_dendrites=tuple(seeds_without_dendrites),
    )


def paired_p_value(a: Sequence[Predictions], b: Sequence[Predictions]) -> float:
    """The p-value of `compare` alone, without its bootstrap.

    Raises:
        EvaluationError: The runs do not pair up (number, ids, labels or label names).
    """
    return sign_flip_p_value(_wins(_paired(a, b, range(len(a)))))


def mcnemar_p_value(only_a_right: int, only_b_right: int) -> float:
    """Exact two-sided McNemar p: the discordant pairs are fair coin tosses under the null."""
    discordant = only_a_right + only_b_right
    # scipy.stats here and below: half a second that a page need not wait for.
    from scipy.stats import binomtest

    return float(binomtest(only_b_right, discordant, 0.5).pvalue) if discordant else 1.0


def sign_flip_p_value(differences: ArrayLike) -> float:
    """Exact two-sided p of |sum of differences| when every sign is a fair coin toss.

    differences: (clusters,) integers. The null distribution is a convolution of scaled binomials,
    one per absolute size, so it is computed and not sampled.
    """
    from scipy.stats import binom

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


def _share_interval(part: Floats, whole: Floats) -> tuple[float, float]:
    """Interval of 100 part / whole; a draw without a whole (no error at all) says nothing."""
    used = whole > 1e-12
    low, high = interval(100 * part[used] / whole[used])
    return low, high


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


def _wins(pairs: Sequence[tuple[Predictions, Predictions]]) -> NDArray[np.int64]:
    """By example id, in how many runs more b is right than a."""
    clusters = cluster_numbers([left.ids for left, _ in pairs])
    wins = np.zeros(max(int(c.max()) for c in clusters) + 1, dtype=np.int64)
    for (left, right), cluster in zip(pairs, clusters, strict=True):
        np.add.at(wins, cluster, _correct(right).astype(np.int64) - _correct(left))
    return wins


def _correct(predictions: Predictions) -> NDArray[np.bool_]:
    chosen = np.asarray(predictions.probabilities).argmax(axis=1)
    correct: NDArray[np.bool_] = chosen == np.asarray(predictions.label_indices)
    return correct


def _macro_f1(predictions: Predictions) -> float:
    metrics = score(predictions.label_indices, predictions.probabilities, predictions.label_names)
    return float(metrics["macro_f1"])


def p_in_words(p_value: float) -> str:
    """A p-value as it is shown beside a difference."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def _verdict(
    outcome: str,
    names: tuple[str, str],
    delta: float,
    interval: tuple[float, float],
    p_value: float,
    sizes: Sequence[int],
) -> str:
    # With one seed the two are the same test.
    p_text = "McNemar p " if len(sizes) == 1 else "sign-flip p "
    p_text += "< 0.001" if p_value < 0.001 else f"= {p_value:.{3 if p_value < 0.1 else 2}f}"
    if len(set(sizes)) == 1:
        n_text = f"n = {sizes[0]} x {len(sizes)} seed{'s' if len(sizes) > 1 else ''}"
    else:
        n_text = f"n = {sum(sizes)} over {len(sizes)} seeds"
    return verdict_sentence(outcome, names, delta, interval, p_text, n_text)


def verdict_sentence(
    outcome: str,
    names: tuple[str, str],
    delta: float,
    interval: tuple[float, float],
    *details: str,
) -> str:
    """What a comparison found, without the full stop.

    outcome: of the second name against the first. delta, interval: accuracy, in points.
    """
    a, b = names
    finding = f"tied with {a}" if outcome == "tied" else f"{outcome} than {a}"
    low, high = (signed(bound) for bound in interval)
    ends = "; ".join((f"95 % CI {low} to {high}", *details))
    return f"{b} is {finding}: its accuracy differs by {signed(delta)} points ({ends})"


def _excluded(outcome: str, removed: tuple[float, float] | None) -> str:
    """A tie is worth what it excludes."""
    if outcome != "tied" or removed is None:
        return ""
    return f"; 95 % bound: {errors_bound(removed[1])} errors"


def _disagreement_note(outcome: str, low: float, high: float) -> str:
    """With few discordant sentences the exact test is the stricter of the two."""
    if outcome == "tied" and not low <= 0 <= high:
        return (
            ". The interval leaves out zero but the exact test does not reject: this is not settled"
        )
    return ""


def _no_dendrite_note(without: Sequence[int], seeds: Sequence[int]) -> str:
    if not without:
        return ""
    if set(without) >= set(seeds):
        return ". NO DENDRITE was kept in any dendritic run: this is not a test of dendrites"
    listed = ", ".join(str(number) for number in sorted(without))
    return (
        f". NO DENDRITE was kept in {len(without)} of {len(seeds)} dendritic runs (seed {listed})"
    )
