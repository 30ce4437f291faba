"""Template twins, and splits that never put two twins on different sides.

Financial news repeats itself: the same report with other figures. A random split lets a model
meet a test sentence's twin in training, so twins share a group and groups are never divided.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

TWIN_JACCARD = 0.8
TWIN_SHARED_WORDS = 5
WORD = r"[^\W\d_]+"
"""A maximal run of letters: digits, signs and punctuation never make two sentences differ."""
CHUNK = 512
"""Sentences compared with all others at a time; bounds the memory of the shared-word counts."""

FOLDS = 20
TEST_FOLDS = 3
VALIDATION_FOLDS = 3


def twin_groups(texts: Sequence[str]) -> np.ndarray:
    """Group number of every text, shape (n,), counted from 0 in order of first occurrence.

    Twins are two texts whose sets of lower-cased words have a Jaccard index of at least
    TWIN_JACCARD and share at least TWIN_SHARED_WORDS words. Groups are the connected components:
    a twin's twin belongs to the same group.
    """
    # scikit-learn takes a second to import, and the app reads data-set names without splitting.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from sklearn.feature_extraction.text import CountVectorizer

    if not any(re.search(WORD, text) for text in texts):
        return np.arange(len(texts))
    words = CountVectorizer(binary=True, token_pattern=WORD, dtype=np.int32).fit_transform(texts)
    sizes = np.asarray(words.sum(axis=1)).ravel()
    rows, columns = [], []
    for start in range(0, len(texts), CHUNK):
        shared = (words[start : start + CHUNK] @ words.T).tocoo()
        union = sizes[shared.row + start] + sizes[shared.col] - shared.data
        twins = (shared.data >= TWIN_SHARED_WORDS) & (shared.data / union >= TWIN_JACCARD)
        rows.append(shared.row[twins] + start)
        columns.append(shared.col[twins])
    row, column = np.concatenate(rows), np.concatenate(columns)
    links = coo_array((np.ones(len(row), bool), (row, column)), (len(texts), len(texts)))
    _, groups = connected_components(links, directed=False)
    return np.asarray(groups)


def join_kin(groups: np.ndarray, kin: Sequence[Sequence[str]]) -> np.ndarray:
    """`groups` (n,) with those made one whose rows share a value in `kin`; numbered as before."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    values = {value: place for place, value in enumerate(dict.fromkeys(v for k in kin for v in k))}
    rows = [row for row, shared in enumerate(kin) for _ in shared]
    n = len(groups)
    # One more node for every group and every value, to which its rows are tied.
    columns = [n + int(group) for group in groups]
    columns += [2 * n + values[value] for shared in kin for value in shared]
    links = (np.ones(len(columns), bool), ([*range(n), *rows], columns))
    size = 2 * n + len(values)
    _, joined = connected_components(coo_array(links, (size, size)), directed=False)
    number: dict[int, int] = {}
    return np.array([number.setdefault(int(node), len(number)) for node in joined[:n]])


def fold_dealer(folds: int, seed: int) -> Any:
    """scikit-learn's StratifiedGroupKFold, shuffled, which deals the same folds in less time.

    It tries every group in every fold one after the other, which for 18,000 headlines takes half a
    minute; here a group is tried in all folds at once, by the same sums in the same order.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    class FoldDealer(StratifiedGroupKFold):  # type: ignore[misc]
        def _find_best_fold(
            self, y_counts_per_fold: np.ndarray, y_cnt: np.ndarray, group_y_counts: np.ndarray
        ) -> int:
            # [i, j]: what fold j would hold if the group went to fold i.
            tried = np.repeat(y_counts_per_fold[None], self.n_splits, axis=0)
            tried[np.arange(self.n_splits), np.arange(self.n_splits)] += group_y_counts
            spread = np.std(tried / y_cnt.reshape(1, 1, -1), axis=1).mean(axis=1).tolist()
            held = y_counts_per_fold.sum(axis=1).tolist()
            best = 0
            for i in range(1, self.n_splits):
                # numpy.isclose, which takes longer than all the rest.
                tied = abs(spread[i] - spread[best]) <= 1e-8 + 1e-5 * abs(spread[best])
                if spread[i] < spread[best] or (tied and held[i] < held[best]):
                    best = i
            return best

    return FoldDealer(folds, shuffle=True, random_state=seed)


def grouped_parts(
    labels: np.ndarray, groups: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ascending row numbers of train, validation and test: 70/15/15 %, stratified, groups whole.

    labels, groups: integers of shape (n,). Twenty folds, three for testing, three for validation.
    """
    folds = [
        fold for _, fold in fold_dealer(FOLDS, seed).split(np.zeros(len(labels)), labels, groups)
    ]
    first_train = TEST_FOLDS + VALIDATION_FOLDS
    test, validation, train = (
        np.sort(np.concatenate(part))
        for part in (folds[:TEST_FOLDS], folds[TEST_FOLDS:first_train], folds[first_train:])
    )
    return train, validation, test
