"""Timing: fair order, warm-up left out, synchronised clocks."""

from __future__ import annotations

import math
import threading
import time

import numpy as np
import pytest

from finsent.machine.timing import (
    LatencyStats,
    PairedWindow,
    median_with_interval,
    paired_ratio,
    summarize,
    time_interleaved,
)


def test_rounds_are_complete_shuffled_and_repeatable() -> None:
    def order(seed: int) -> list[str]:
        log: list[str] = []
        calls = {name: (lambda name=name: log.append(name)) for name in "abc"}
        found = time_interleaved(calls, repeats=10, warmup=2, seed=seed)
        assert {stats.n for stats in found.values()} == {10}
        return log

    log = order(0)
    rounds = ["".join(log[i : i + 3]) for i in range(0, len(log), 3)]
    assert len(rounds) == 12
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 2
    assert log == order(0) != order(1)


def test_synchronises_before_and_after_every_call() -> None:
    log: list[str] = []
    time_interleaved(
        {"a": lambda: log.append("call")},
        repeats=2,
        warmup=1,
        seed=0,
        synchronize=lambda: log.append("sync"),
    )
    assert log == ["sync", "call", "sync"] * 3


def test_waiting_for_the_device_counts_but_earlier_work_does_not() -> None:
    pending = [0.3]

    def synchronize() -> None:
        time.sleep(pending.pop() if pending else 0)

    slow = time_interleaved(
        {"a": lambda: pending.append(0.02)}, repeats=1, warmup=0, seed=0, synchronize=synchronize
    )["a"]
    assert 19 <= slow.p50_ms < 200


def test_warmup_is_not_counted() -> None:
    delays = [0.3, 0.0, 0.0]
    found = time_interleaved({"a": lambda: time.sleep(delays.pop(0))}, repeats=2, warmup=1, seed=0)
    assert found["a"].mean_ms < 100


def test_errors_propagate() -> None:
    with pytest.raises(ZeroDivisionError):
        time_interleaved({"a": lambda: 1 / 0}, repeats=1, warmup=0, seed=0)


@pytest.mark.parametrize(
    ("calls", "repeats", "warmup", "fault"),
    [({}, 1, 0, "no calls"), ({"a": int}, 0, 0, "repeats"), ({"a": int}, 1, -1, "warmup")],
)
def test_impossible_settings(calls, repeats, warmup, fault) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=fault):
        time_interleaved(calls, repeats=repeats, warmup=warmup, seed=0)


def test_percentiles_agree_with_numpy() -> None:
    values = np.random.default_rng(0).exponential(size=37).tolist()
    found = summarize(values)
    assert found.p50_ms == pytest.approx(np.percentile(values, 50))
    assert found.p95_ms == pytest.approx(np.percentile(values, 95))
    assert summarize([3.0]) == LatencyStats(n=1, p50_ms=3.0, p95_ms=3.0, mean_ms=3.0)
    with pytest.raises(ValueError, match="no times"):
        summarize([])


def test_the_interval_of_a_median_covers_it_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    assert median_with_interval([1.0] * 5) is None
    for n in (6, 9, 40, 200):
        hits = 0
        for _ in range(400):
            found = median_with_interval(generator.exponential(size=n).tolist())
            assert found is not None
            hits += found.low <= math.log(2) <= found.high
        assert hits >= 0.93 * 400, n


def test_calls_are_compared_in_pairs() -> None:
    window = PairedWindow(size=8)
    for number in range(5):
        window.add({"a": 10.0 + number, "b": 11.0 + 1.1 * number})
    assert window.summary() is None
    # Times that wander together by far more than the arms differ hide nothing.
    for number in range(10):
        window.add({"a": 10.0 * (number + 1), "b": 11.0 * (number + 1), "c": 10.0 + number % 2})
    found = window.summary()
    assert found is not None
    assert found.n == 8
    assert found.spreads["a"].value == pytest.approx(65)
    assert found.ratios["b"].value == pytest.approx(1.1)
    assert found.differs("b")
    same = PairedWindow()
    for number in range(12):
        same.add({"a": 10.0, "b": 10.5 if number % 2 else 9.5})
    level = same.summary()
    assert level is not None
    assert not level.differs("b")


def test_one_slow_call_moves_no_time_that_is_shown() -> None:
    window = PairedWindow(warmup=2)
    for ms in (900.0, 400.0, 10.0, 11.0, 754.0, 9.0, 10.0):
        window.add({"a": ms})
    assert window.summary() is None
    window.add({"a": 10.0})
    found = window.summary()
    assert found is not None
    assert found.n == 6
    shown = found.spreads["a"]
    assert shown.value == 10
    assert 9 <= shown.low <= shown.high <= 11


def test_window_between_threads() -> None:
    window = PairedWindow(size=5000)

    def work() -> None:
        for _ in range(50):
            window.add({"a": 1.0})
            window.summary()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = window.summary()
    assert found is not None
    assert found.n == 200


@pytest.mark.parametrize("times", [{"a": -1.0}, {"a": float("nan")}, {"a": 0.0}, {}])
def test_window_refuses(times: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="times in ms are > 0"):
        PairedWindow().add(times)
    with pytest.raises(ValueError, match="at least 1"):
        PairedWindow(size=0)


def test_a_ratio_is_the_median_of_rounds_within_order_statistics() -> None:
    rounds = [float(n) for n in range(1, 11)]
    # 95 % of a binomial of ten fair coins leaves out one round at each end.
    assert paired_ratio(rounds, [1.0] * 10) == (5.5, 2.0, 9.0)
    assert paired_ratio([2.0] * 6, [1.0] * 6) == (2.0, 2.0, 2.0)
    assert paired_ratio([1.0] * 5, [1.0] * 5) is None
    assert paired_ratio([], []) is None
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([1.0], [])


def test_the_interval_of_a_ratio_covers_what_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        found = paired_ratio(random.lognormal(0.1, 0.3, 20).tolist(), [1.0] * 20)
        assert found is not None
        covered += found[1] <= np.exp(0.1) <= found[2]
    assert covered / 2000 >= 0.95
