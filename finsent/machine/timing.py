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
        threads = "" if self.threads is None else f", {self.threads} threads"
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
    ratios = sorted(a / b for a, b in zip(times_ms, reference_ms, strict=True))
    n, outside, below = len(ratios), 0, 0.0
    # The interval leaves out as many rounds at each end as a fair coin shows so seldom.
    while (below := below + math.comb(n, outside) / 2**n) <= TAIL:
        outside += 1
    if not outside:
        return None
    return statistics.median(ratios), ratios[outside - 1], ratios[n - outside]


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


class RollingWindow:
    """The latest calls of a running app; safe to share between threads."""

    def __init__(self, size: int = 200) -> None:
        """size: how many calls to remember. Raises ValueError below 1."""
        if size < 1:
            raise ValueError(f"window size must be at least 1, got {size}")
        self._times_ms: deque[float] = deque(maxlen=size)
        self._lock = threading.Lock()

    def add(self, ms: float) -> LatencyStats:
        """Records one call of `ms` milliseconds; returns the statistics with it.

        Raises:
            ValueError: The time is negative or undefined.
        """
        if not ms >= 0:
            raise ValueError(f"a call took {ms} ms; times are >= 0")
        with self._lock:
            self._times_ms.append(ms)
            times_ms = list(self._times_ms)
        return summarize(times_ms)

    def stats(self) -> LatencyStats | None:
        """Statistics of the calls remembered; None before the first."""
        with self._lock:
            times_ms = list(self._times_ms)
        return summarize(times_ms) if times_ms else None


def _percentile(ordered: Sequence[float], fraction: float) -> float:
    position = fraction * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
