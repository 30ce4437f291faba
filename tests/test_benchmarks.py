"""Benchmarks: bounded, of the lengths asked for, with a verdict that their times carry."""

from __future__ import annotations

import json

import pytest

from finsent.machine.files import ROOT
from finsent.plots.live import times_figure, training_figure
from finsent.serving import benchmarks
from finsent.serving.benchmarks import BenchmarkError
from finsent.ui.tabs.latency import LENGTHS, SIZES, times_html

RESULTS = ROOT / "bench" / "results"


def test_batches_have_the_lengths_and_sizes_asked_for() -> None:
    batches = benchmarks.benchmark_batches((32, 8), (8, 1), 5)
    assert list(batches) == ["1 × 8 words", "8 × 8 words", "1 × 32 words", "8 × 32 words"]
    for (size, words), texts in zip(
        [(1, 8), (8, 8), (1, 32), (8, 32)], batches.values(), strict=True
    ):
        assert len(texts) == len(set(texts)) == size
        assert all(len(text.split()) == words for text in texts)


@pytest.mark.parametrize(
    ("lengths", "sizes", "repeats", "reason"),
    [
        ((), (1,), 5, "at least one length"),
        ((8,), (), 5, "at least one length"),
        ((8,), (1,), 0, "repeats must be at least 1"),
        (LENGTHS, SIZES, 50, "8,200 texts per arm"),
    ],
)
def test_what_would_take_too_long_is_refused(
    lengths: tuple[int, ...], sizes: tuple[int, ...], repeats: int, reason: str
) -> None:
    with pytest.raises(BenchmarkError, match=reason):
        benchmarks.benchmark_batches(lengths, sizes, repeats)


def test_every_measured_call_is_drawn_and_summarised() -> None:
    name = "8 × 16 words"
    times = {("baseline", name): [1.0, 2.0, 9.0], ("dendritic", name): [3.0, 3.0, 3.0]}
    figure = times_figure(times)
    assert [list(trace.y) for trace in figure.data] == [[1.0, 2.0, 9.0], [3.0, 3.0, 3.0]]
    html = times_html(times, "<cpu>")
    assert "&lt;cpu&gt;" in html
    assert "4000.0" in html  # 8 texts at a median of 2 ms


def test_a_ratio_needs_rounds_and_says_when_nothing_differs() -> None:
    name = "1 × 8 words"
    noise = [1.0, 1.3, 0.9, 1.1, 1.0, 1.2, 0.95, 1.05, 1.0, 1.15]
    slow = [1.2 * value for value in noise]
    times = {("baseline", name): noise, ("dendritic", name): slow}
    found = benchmarks.against(times, "dendritic", "baseline")
    assert found is not None
    assert found.overall == found.by_batch[name] == (1.2, 1.2, 1.2)
    assert "20 % slower than Baseline" in times_html(times, "CPU").replace("&#8239;", " ")
    same = {("baseline", name): noise, ("dendritic", name): noise[::-1]}
    assert "no measurable difference from Baseline" in times_html(same, "CPU")
    few = {key: values[:5] for key, values in times.items()}
    assert "Too few rounds" in times_html(few, "CPU")


@pytest.mark.parametrize(
    ("overall", "batches", "outcome"),
    [
        ((0.93, 0.88, 0.99), [0.95, 0.91], "faster"),
        # An end that is shown as 1.00 excludes nothing.
        ((0.93, 0.88, 1.0), [0.95, 0.91], "level"),
        ((1.05, 1.01, 1.09), [1.02, 1.08], "slower"),
        # Slower in one batch and faster in another is no verdict.
        ((0.93, 0.88, 0.97), [1.04, 0.82], "level"),
        ((1.05, 1.02, 1.09), [1.0, 1.1], "level"),
    ],
)
def test_a_verdict_needs_an_interval_without_one_and_batches_that_agree(
    overall: benchmarks.Ratio, batches: list[float], outcome: str
) -> None:
    by_batch = {str(n): (value, 0.5, 1.5) for n, value in enumerate(batches)}
    assert benchmarks.Against(overall, by_batch).outcome == outcome


def test_ratios_are_judged_as_they_are_shown() -> None:
    name = "1 × 8 words"
    slow = {("baseline", name): [1000.0] * 10, ("dendritic", name): [1004.0] * 10}
    found = benchmarks.against(slow, "dendritic", "baseline")
    assert found is not None
    assert found.overall == (1.0, 1.0, 1.0)
    assert found.outcome == "level"


def test_a_busy_machine_is_said() -> None:
    times = {("baseline", "1 × 8 words"): [1.0, 2.0]}
    assert "The machine was busy." in times_html(times, "CPU", load=1.4)
    assert "busy" not in times_html(times, "CPU", load=0.1)
    assert "busy" not in times_html(times, "CPU", load=None)


def test_committed_results_say_how_they_were_made() -> None:
    results = {path: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    assert results
    for path, result in results.items():
        assert {"device", "versions", "command", "commit"} <= set(result), path


def test_live_curves_show_every_epoch_so_far_and_growth() -> None:
    lines = [{"epoch": e, "val_loss": 1 / (e + 1), "event": None} for e in range(3)]
    lines[1]["event"] = "grew dendrite 1"
    figure = training_figure({("dendritic", 0): lines, ("baseline", 0): lines[:1]}, "val_loss", "l")
    assert [list(t.y) for t in figure.data] == [[1, 0.5, 1 / 3], [0.5], [1]]
