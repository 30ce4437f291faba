"""Protocols beside the 70/15/15 split: repeated grouped, stratified k-fold cross-validation with
smaller training parts, and the split of FinBERT's own repository.

A run names its protocol in one word, `TrainConfig.split`: "70/15/15", "fold-3" or "finbert".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from finsent.data.records import DataError
from finsent.data.registry import Dataset, Split, make_split, split_fingerprint
from finsent.data.sets.phrasebank import clean, parse_phrasebank, read_level, record_id
from finsent.data.splits import fold_dealer

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


def part_examples(
    dataset: Dataset, split: str, seed: int, fraction: float = 1.0, data_dir: Path | None = None
) -> Split:
    """The parts that a run of this protocol uses; `fraction` of the training part of a fold.

    "finbert" reads the raw lines of 50Agree from `data_dir` and has one deal for all seeds. Raises
    DataError for an unknown protocol, a fold that is not there, or a data set that the protocol is
    not about.
    """
    if split == "70/15/15" or split == "finbert":
        if fraction != 1.0:
            raise DataError(f"a share of the training part is for folds, not for split {split!r}")
        return make_split(dataset, seed) if split != "finbert" else _finbert(dataset, data_dir)
    found = re.fullmatch(r"fold-(\d+)", split)
    if found is None or int(found[1]) >= FOLDS:
        raise DataError(
            f"split must be '70/15/15', 'finbert' or 'fold-0' to 'fold-{FOLDS - 1}', got {split!r}"
        )
    if dataset.left_out:
        raise DataError(
            f"data set {dataset.name!r} is tested on {dataset.left_out}; folds are of all sources: "
            "use split '70/15/15', or another data set"
        )
    number = int(found[1])
    rest, test = next(islice(_dealt(dataset, seed, FOLDS), number, None))
    fold = smaller(_with_validation(dataset, seed, number, rest, test, FOLDS), dataset, fraction)
    return _split(dataset, fold.train, fold.validation, fold.test)


def _split(dataset: Dataset, *indices: np.ndarray) -> Split:
    train, validation, test = (tuple(part.tolist()) for part in indices)
    return Split(train, validation, test, split_fingerprint(dataset, train, validation, test))


def _finbert(dataset: Dataset, data_dir: Path | None) -> Split:
    """The split that the code of ProsusAI/finBERT makes of 50Agree: a random fifth of the lines for
    testing and a tenth of the rest for validation, twins and duplicates on both sides.

    A sentence that stands on several lines counts once, in the part that reads it last: test, then
    validation.
    """
    from sklearn.model_selection import train_test_split

    if dataset.name != "50agree":
        raise DataError(f"split 'finbert' is of data set '50agree', not of {dataset.name!r}")
    content, source = read_level("50agree", data_dir)
    ids = [record_id(clean(text)) for text, _ in parse_phrasebank(content, source)]
    rest, test = train_test_split(range(len(ids)), test_size=0.2, random_state=0)
    train, validation = train_test_split(rest, test_size=0.1, random_state=0)
    part_of = {
        ids[line]: part for part, lines in enumerate((train, validation, test)) for line in lines
    }
    parts = np.array([part_of[example.id] for example in dataset.examples])
    return _split(dataset, *(np.flatnonzero(parts == part) for part in range(3)))


def grouped_folds(dataset: Dataset, seed: int, folds: int = FOLDS) -> Iterator[Fold]:
    """The folds of one repetition. Class shares are kept, twin groups are never divided.

    Over all folds every sentence is in a test part exactly once.
    """
    for number, (rest, test) in enumerate(_dealt(dataset, seed, folds)):
        yield _with_validation(dataset, seed, number, rest, test, folds)


def fold_tests(dataset: Dataset, seed: int, folds: int = FOLDS) -> Iterator[np.ndarray]:
    """The test parts of these folds alone, in their order: dealing all parts takes ten times as
    long, which is a matter of minutes where there are many sentences."""
    for _, test in _dealt(dataset, seed, folds):
        yield np.sort(test)


def _dealt(dataset: Dataset, seed: int, folds: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(everything else, test part) of each fold."""
    labels, groups = labels_and_groups(dataset)
    dealer = fold_dealer(folds, seed)
    found: Iterator[tuple[np.ndarray, np.ndarray]] = dealer.split(labels, labels, groups)
    return found


def _with_validation(
    dataset: Dataset, seed: int, number: int, rest: np.ndarray, test: np.ndarray, folds: int
) -> Fold:
    """The fold with its validation part taken out of the rest, which takes as long as dealing."""
    labels, groups = labels_and_groups(dataset)
    dealer = fold_dealer(folds - 1, seed)
    train, validation = next(dealer.split(labels[rest], labels[rest], groups[rest]))
    return Fold(seed, number, np.sort(rest[train]), np.sort(rest[validation]), np.sort(test))


def smaller(fold: Fold, dataset: Dataset, fraction: float) -> Fold:
    """The fold with a stratified share of its training part; validation and test stay.

    A smaller share is not always part of a larger one. Raises DataError for another fraction
    than FRACTIONS.
    """
    if fraction not in FRACTIONS:
        raise DataError(f"fraction must be one of {FRACTIONS}, got {fraction}")
    if fraction == 1.0:
        return fold
    labels, groups = labels_and_groups(dataset)
    dealt = fold_dealer(round(1 / fraction), fold.seed)
    _, kept = next(dealt.split(fold.train, labels[fold.train], groups[fold.train]))
    return Fold(fold.seed, fold.number, np.sort(fold.train[kept]), fold.validation, fold.test)


def labels_and_groups(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Class and twin group of every example, (n,) each."""
    return (
        np.array([example.label for example in dataset.examples]),
        np.array([example.group for example in dataset.examples]),
    )
