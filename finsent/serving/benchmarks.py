"""The benchmark that the page runs on request: which texts, and what their times say."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from finsent.data.sets.examples import HEADLINES
from finsent.machine.timing import paired_ratio, summarize


class BenchmarkError(ValueError):
    """A benchmark that cannot be run."""


Times = Mapping[tuple[str, str], Sequence[float]]
"""(Arm, batch) -> milliseconds of its calls, one a round."""

MAX_TEXTS = 4_000
"""Texts per arm and benchmark: a minute or two on two CPU cores."""


def batch_name(words: int, size: int) -> str:
    """How a condition is called on screen."""
    return f"{size} × {words} words"


def benchmark_batches(
    lengths: Sequence[int], sizes: Sequence[int], repeats: int
) -> dict[str, list[str]]:
    """Name -> texts of one call, for every length (words) and batch size.

    Raises BenchmarkError when nothing is chosen or it would take too long.
    """
    if not lengths or not sizes:
        raise BenchmarkError("tick at least one length and one batch size")
    if repeats < 1:
        raise BenchmarkError(f"repeats must be at least 1, got {repeats}")
    total = len(lengths) * sum(sizes) * repeats
    if total > MAX_TEXTS:
        raise BenchmarkError(
            f"{total:,} texts per arm would take too long (at most {MAX_TEXTS:,}): choose fewer "
            "repeats, lengths or batch sizes"
        )
    return {
        batch_name(words, size): [text_of(words, start) for start in range(size)]
        for words in sorted(lengths)
        for size in sorted(sizes)
    }


def text_of(words: int, start: int = 0) -> str:
    """A text of so many words, taken in turn from the examples from the start-th word on."""
    source = itertools.cycle(" ".join(example.text for example in HEADLINES).split())
    return " ".join(itertools.islice(source, start, start + words))


def throughput(times_ms: Sequence[float], size: int) -> float:
    """Texts a second at the median time of a call."""
    return 1000 * size / summarize(times_ms).p50_ms


Ratio = tuple[float, float, float]
"""A ratio of times with the ends of its 95 % interval, to a hundredth."""


@dataclass(frozen=True)
class Against:
    """How many times as long as the reference an arm takes."""

    overall: Ratio
    """Of all batches of a round together, each counting alike."""
    by_batch: Mapping[str, Ratio]

    @property
    def outcome(self) -> Literal["slower", "faster", "level"]:
        """Slower or faster only where the interval leaves no other choice, as it is shown, and
        every batch alone points the same way; else a difference could not be measured."""
        ratio, low, high = self.overall
        if low <= 1 <= high:
            return "level"
        batches = [each for each, _, _ in self.by_batch.values()]
        if ratio > 1:
            return "slower" if all(each > 1 for each in batches) else "level"
        return "faster" if all(each < 1 for each in batches) else "level"


def against(times_ms: Times, arm: str, reference: str) -> Against | None:
    """An arm's times compared with those of a reference in the same rounds; None for too few."""
    batches = dict.fromkeys(name for _, name in times_ms)
    # A round is slow or fast as a whole: its batches are one measurement.
    rounds = [
        [statistics.geometric_mean(of_round) for of_round in zip(*by_batch, strict=True)]
        for by_batch in ([times_ms[name, batch] for batch in batches] for name in (arm, reference))
    ]
    overall = paired_ratio(*rounds)
    by_batch = {
        batch: paired_ratio(times_ms[arm, batch], times_ms[reference, batch]) for batch in batches
    }
    if overall is None:
        return None
    return Against(
        _hundredths(overall),
        {batch: _hundredths(found) for batch, found in by_batch.items() if found is not None},
    )


def _hundredths(ratio: Ratio) -> Ratio:
    value, low, high = (round(end, 2) for end in ratio)
    return value, low, high
