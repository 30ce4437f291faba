"""Which rows an epoch reads: how sources of unequal size are balanced, what becomes of noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from finsent.data.noise import noisy
from finsent.data.registry import Dataset


def epoch_rows(dataset: Dataset, rows: Sequence[int], balance: str, noise: str) -> tuple[int, ...]:
    """`rows` of the training part as an epoch reads them, some of them several times or never.

    balance: "natural", every sentence once; or "repeat-<k>", every sentence of a source as often
    as its rows fit into those of the largest source, k times at most. Whole numbers of times:
    no sentence of a source counts more than another of it. noise: "keep", or "drop" for no rows
    that finsent.data.noise finds. TrainConfig has checked both. Nothing is random; the trainer
    shuffles.
    """
    most = 1 if balance == "natural" else int(balance.removeprefix("repeat-"))
    if noise == "drop":
        found = noisy(dataset)
        rows = [row for row in rows if dataset.examples[row].id not in found]
    sizes = Counter(dataset.examples[row].source for row in rows)
    largest = max(sizes.values(), default=0)
    times = {source: max(1, min(most, largest // size)) for source, size in sizes.items()}
    return tuple(row for row in rows for _ in range(times[dataset.examples[row].source]))
