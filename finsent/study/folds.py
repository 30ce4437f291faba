"""Repeated grouped, stratified k-fold cross-validation, and smaller training sets of each fold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from finsent.data import Dataset
from finsent.study.results import StudyError

FOLDS = 10
"""Test shares of a tenth; a ninth of the rest is for validation, so 80/10/10."""
FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)
"""Shares of a fold's training part that a study may use; each is one over a whole number."""


@dataclass(frozen=True)
class Fold:
    """Ascending indices into Dataset.examples; the parts do not overlap, twins share a part."""

    seed: int
    """Number of the repetition: every one deals the sentences into folds anew."""
    number: int
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @property
    def fingerprint(self) -> str:
        """sha256 over the three parts."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.test):
            digest.update(np.asarray(part, np.int64).tobytes() + b"|")
        return digest.hexdigest()


def grouped_folds(dataset: Dataset, seed: int, folds: int = FOLDS) -> Iterator[Fold]:
    """The folds of one repetition. Class shares are kept, twin groups are never divided.

    Over all folds every sentence is in a test part exactly once.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    labels, groups = labels_and_groups(dataset)
    outer = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for number, (rest, test) in enumerate(outer.split(labels, labels, groups)):
        inner = StratifiedGroupKFold(folds - 1, shuffle=True, random_state=seed)
        train, validation = next(inner.split(labels[rest], labels[rest], groups[rest]))
        yield Fold(seed, number, np.sort(rest[train]), np.sort(rest[validation]), np.sort(test))


def smaller(fold: Fold, dataset: Dataset, fraction: float) -> Fold:
    """The fold with a stratified share of its training part; validation and test stay.

    A smaller share is not always part of a larger one. Raises StudyError for another fraction
    than FRACTIONS.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if fraction not in FRACTIONS:
        raise StudyError(f"fraction must be one of {FRACTIONS}, got {fraction}")
    if fraction == 1.0:
        return fold
    labels, groups = labels_and_groups(dataset)
    dealt = StratifiedGroupKFold(round(1 / fraction), shuffle=True, random_state=fold.seed)
    _, kept = next(dealt.split(fold.train, labels[fold.train], groups[fold.train]))
    return Fold(fold.seed, fold.number, np.sort(fold.train[kept]), fold.validation, fold.test)


def labels_and_groups(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Class and twin group of every example, (n,) each."""
    return (
        np.array([example.label for example in dataset.examples]),
        np.array([example.group for example in dataset.examples]),
    )
