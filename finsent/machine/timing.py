"""Honest timing: warm-up, interleaved order, synchronised clocks, percentiles instead of one mean.

Timing one arm after the other charges the second with whatever the machine did meanwhile (heat,
frequency, other users). Here every round times every arm, in an order drawn anew. Used by the app,
the trainer and the benches; a time is told with its n and with the `Conditions` it was taken under.
Time spent waiting in a queue is not model time and is never added to it.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)
Result = TypeVar("Result")
TAIL = 0.025
"""Left out at each end of a 95 % interval."""
SETTLED = 6
"""So many values have a 95 % interval of their median, and quartiles that say something."""


@dataclass(frozen=True)
class LatencyStats:
    """Wall-clock time of n calls, in milliseconds."""

    n: int
    p50_ms: float
    p95_ms: float
    mean_ms: float


@dataclass(frozen=True)
class Conditions:
    """What a time depends on besides the model."""

    device: str
    """Name of the GPU, or "CPU"."""
    threads: int | None
    """Threads that compute; None on a GPU."""
    engine: str
    """Library and precision, e.g. "PyTorch fp32"."""

    def __str__(self) -> str:
        number = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        threads = "" if self.threads is None else f", {number}"
        return f"{self.device}{threads}, {self.engine}"


def summarize(times_ms: Sequence[float]) -> LatencyStats:
    """Statistics of one or more times; percentiles interpolate linearly between neighbours.

    Raises ValueError when there are none.
    """
    if not times_ms:
        raise ValueError("no times to summarise; record at least one call")
    return LatencyStats(
        n=len(times_ms),
        p50_ms=statistics.median(times_ms),
        p95_ms=_percentile(sorted(times_ms), 0.95),
        mean_ms=statistics.fmean(times_ms),
    )


def interleaved_times(
    calls: Mapping[Name, Callable[[], object]],
    *,
    repeats: int,
    warmup: int,
    seed: int,
    synchronize: Callable[[], object] | None = None,
) -> dict[Name, list[float]]:
    """Times each named call `repeats` times, after `warmup` untimed rounds; milliseconds.

    Every round runs all calls once in a fresh random order (seeded). synchronize, for devices that
    work asynchronously (pass `torch.cuda.synchronize`), runs before the clock starts and before it
    stops. Errors of the calls propagate.

    Raises ValueError for no calls, repeats < 1 or warmup < 0.
    """
    if not calls:
        raise ValueError("no calls to time; give at least one")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    if warmup < 0:
        raise ValueError(f"warmup must be >= 0, got {warmup}")
    shuffler = random.Random(seed)
    order = list(calls)
    times_ms: dict[Name, list[float]] = {name: [] for name in calls}
    for number in range(warmup + repeats):
        shuffler.shuffle(order)
        for name in order:
            elapsed = timed(calls[name], synchronize)[1]
            if number >= warmup:
                times_ms[name].append(elapsed)
    return times_ms


def time_interleaved(
    calls: Mapping[Name, Callable[[], object]],
    *,
    repeats: int,
    warmup: int,
    seed: int,
    synchronize: Callable[[], object] | None = None,
) -> dict[Name, LatencyStats]:
    """Statistics of `interleaved_times`."""
    times_ms = interleaved_times(
        calls, repeats=repeats, warmup=warmup, seed=seed, synchronize=synchronize
    )
    return {name: summarize(values) for name, values in times_ms.items()}


def paired_ratio(
    times_ms: Sequence[float], reference_ms: Sequence[float]
) -> tuple[float, float, float] | None:
    """How many times as long as a reference's calls those of the same rounds take.

    Returns the median of the rounds' ratios and its 95 % interval by order statistics, which one
    slow round does not move: (ratio, low, high). None for fewer rounds than such an interval takes.

    Raises ValueError when the two are not of the same rounds.
    """
    found = median_with_interval([a / b for a, b in zip(times_ms, reference_ms, strict=True)])
    return None if found is None else (found.value, found.low, found.high)


def load_per_core() -> float | None:
    """Work that waits for a core, in cores, over the last minute; None where no system says so."""
    if not hasattr(os, "getloadavg"):
        return None
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def timed(
    call: Callable[[], Result], synchronize: Callable[[], object] | None = None
) -> tuple[Result, float]:
    """What the call returns, and its wall-clock time in milliseconds on a synchronised device."""
    if synchronize is not None:
        synchronize()
    start = time.perf_counter_ns()
    result = call()
    if synchronize is not None:
        synchronize()
    return result, (time.perf_counter_ns() - start) / 1e6


@dataclass(frozen=True)
class Median:
    """A median with its 95 % interval."""

    value: float
    low: float
    high: float


def median_with_interval(values: Sequence[float]) -> Median | None:
    """Median and 95 % interval from order statistics, which suppose nothing about the values.

    None for fewer than six values: not even their extremes hold the median that surely.
    """
    ordered, n = sorted(values), len(values)
    tail, rank = 0.0, 0
    # The interval from rank k to n + 1 - k misses when fewer than k values are on either side.
    while (tail := tail + math.comb(n, rank) / 2**n) <= TAIL and rank < n:
        rank += 1
    if rank == 0:
        return None
    return Median(statistics.median(ordered), ordered[rank - 1], ordered[n - rank])


@dataclass(frozen=True)
class Spread:
    """A median and the middle half of the values, which a slow call in four does not move."""

    value: float
    low: float
    """A quarter of the values are below."""
    high: float
    """A quarter of the values are above."""


def spread(values: Sequence[float]) -> Spread | None:
    """Median and quartiles; None for fewer values than SETTLED."""
    if len(values) < SETTLED:
        return None
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high)


@dataclass(frozen=True)
class PairedTimes:
    """What the latest calls say of how long each name takes, asked about the same thing."""

    n: int
    spreads: Mapping[str, Spread]
    """Milliseconds, by name."""
    ratios: Mapping[str, Median]
    """Time of every other name as a multiple of the first one's, call by call."""

    def differs(self, name: str) -> bool:
        """Whether a difference from the first name can be told from noise."""
        ratio = self.ratios[name]
        return not ratio.low <= 1 <= ratio.high


class PairedWindow:
    """The latest calls that timed the same names together. Safe to share between threads."""

    def __init__(self, size: int = 200, warmup: int = 0) -> None:
        """size: how many calls to remember. warmup: first calls that are not recorded.

        Raises ValueError for a size below 1.
        """
        if size < 1:
            raise ValueError(f"window size must be at least 1, got {size}")
        self._warmup = warmup
        self._calls: deque[Mapping[str, float]] = deque(maxlen=size)
        self._lock = threading.Lock()

    def add(self, times_ms: Mapping[str, float]) -> None:
        """Records one call: name -> milliseconds.

        Raises:
            ValueError: There is no time, or one is not positive or undefined.
        """
        wrong = [ms for ms in times_ms.values() if not ms > 0]
        if wrong or not times_ms:
            raise ValueError(f"a call took {wrong or 'no time'}; times in ms are > 0")
        with self._lock:
            if self._warmup:
                self._warmup -= 1
            else:
                self._calls.append(dict(times_ms))

    def summary(self) -> PairedTimes | None:
        """Statistics of the calls remembered; None while they are fewer than SETTLED."""
        with self._lock:
            calls = list(self._calls)
        names = list(calls[0]) if calls else []
        spreads = {name: spread([call[name] for call in calls]) for name in names}
        ratios = {
            name: median_with_interval([call[name] / call[names[0]] for call in calls])
            for name in names[1:]
        }
        if not names or None in spreads.values():
            return None
        return PairedTimes(
            len(calls),
            {name: found for name, found in spreads.items() if found is not None},
            {name: found for name, found in ratios.items() if found is not None},
        )


def _percentile(ordered: Sequence[float], fraction: float) -> float:
    position = fraction * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
