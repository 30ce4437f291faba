"""The benchmark that the page runs on request: which texts, and what their times say."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence

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


def arm_ratio(times_ms: Times, arm: str, reference: str) -> tuple[float, float, float] | None:
    """Ratio of two arms' times with its interval, as `paired_ratio`; batches count alike."""
    batches = dict.fromkeys(name for _, name in times_ms)
    # A round is slow or fast as a whole: its batches are one measurement.
    rounds = [
        [statistics.geometric_mean(of_round) for of_round in zip(*by_batch, strict=True)]
        for by_batch in ([times_ms[name, batch] for batch in batches] for name in (arm, reference))
    ]
    return paired_ratio(*rounds)
