"""Tests for paired differences over cross-validation folds, which are not independent.

Training parts of different folds overlap, so the plain t-test finds differences where there are
none; Nadeau and Bengio (2003) widen its variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """Mean of b - a over runs of the same fold and seed."""

    n: int
    mean: float
    low: float
    """95 % confidence interval, corrected for overlapping training parts."""
    high: float
    p_value: float
    """Two-sided corrected resampled t-test."""

    def to_dict(self) -> dict[str, float | int]:
        """Plain JSON-ready values."""
        return asdict(self)


def corrected_paired_test(
    differences: ArrayLike, *, test_share_over_train_share: float
) -> PairedDifference:
    """Nadeau and Bengio's corrected resampled t-test (Machine Learning 52, 2003, section 4).

    differences: (n,), one for each run of repeated cross-validation, n >= 2. The variance of their
    mean is s^2 (1 / n + n_test / n_train) instead of s^2 / n. Raises ValueError otherwise.
    """
    # Here, because who only reads summaries need not wait for it.
    from scipy.stats import t as student_t

    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or len(d) < 2 or not np.isfinite(d).all():
        raise ValueError(f"differences must be at least two finite numbers, got shape {d.shape}")
    if test_share_over_train_share < 0:
        raise ValueError(f"the ratio must be >= 0, got {test_share_over_train_share}")
    n, mean = len(d), float(d.mean())
    error = float(np.sqrt(d.var(ddof=1) * (1 / n + test_share_over_train_share)))
    if error == 0.0:
        return PairedDifference(n, mean, mean, mean, 1.0 if mean == 0.0 else 0.0)
    margin = float(student_t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * error
    p_value = float(2 * student_t.sf(abs(mean) / error, n - 1))
    return PairedDifference(n, mean, mean - margin, mean + margin, p_value)


def errors_removed_pct(accuracy_a: Sequence[float], accuracy_b: Sequence[float]) -> float | None:
    """Share of a's errors, over all runs, that b has fewer (negative: more); None when a makes
    none. The figure that users of PerforatedAI quote."""
    wrong_a, wrong_b = len(accuracy_a) - sum(accuracy_a), len(accuracy_b) - sum(accuracy_b)
    return None if wrong_a == 0 else 100 * (wrong_a - wrong_b) / wrong_a


def errors_removed_interval_pct(
    accuracy_a: Sequence[float], difference: PairedDifference
) -> tuple[float, float] | None:
    """The interval of b's accuracy minus a's, as shares of a's errors in percent: what the test
    excludes lies outside. a's error rate counts as known. None when a makes no error, and when all
    differences are equal, as where no dendrite was kept: what varies nowhere excludes nothing."""
    error = 1 - sum(accuracy_a) / len(accuracy_a)
    if difference.low == difference.high:
        return None
    return (100 * difference.low / error, 100 * difference.high / error) if error > 0 else None
