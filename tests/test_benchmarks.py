"""Benchmarks: bounded, of the lengths asked for; kept results are shown whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finsent.plots.live import figure_labels, figures_bar, times_figure, training_figure
from finsent.serving import benchmarks
from finsent.serving.benchmarks import BenchmarkError
from finsent.ui.tabs.latency import BENCH_RESULTS, LENGTHS, SIZES, result_html, times_html


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
    times = {("baseline", "8 × 16 words"): [1.0, 2.0, 9.0], ("dendritic", "8 × 16 words"): [3.0]}
    figure = times_figure(times)
    assert [list(trace.y) for trace in figure.data] == [[1.0, 2.0, 9.0], [3.0]]
    html = times_html(times, "<cpu>")
    assert "&lt;cpu&gt;" in html
    assert "4000.0" in html  # 8 texts at a median of 2 ms


def test_kept_results_are_read_whatever_they_hold(tmp_path: Path) -> None:
    data = {
        "device": "CPU",
        "command": "make it",
        "n": 3,
        "p50_ms_nf4": 2,
        "p50_ms_bf16": 4.5,
        "ratio": 1.25,
        "nested": {"seconds": [1, 2]},
        "ok": True,
        "note": "text",
    }
    (tmp_path / "some.json").write_text(json.dumps(data))
    (result,) = benchmarks.read_results(tmp_path)
    assert result.about == {"device": "CPU", "n": 3, "command": "make it"}
    assert result.figures == {
        "p50_ms_nf4": 2,
        "p50_ms_bf16": 4.5,
        "ratio": 1.25,
        "nested/seconds/0": 1,
        "nested/seconds/1": 2,
    }
    assert result.groups() == {"milliseconds": {"p50_ms_nf4": 2, "p50_ms_bf16": 4.5}}
    html = result_html(result)
    for fact in ("some", "make it", "p50_ms_bf16", "4.5"):
        assert fact in html
    # From the bottom up.
    assert list(figures_bar(result.groups()["milliseconds"], "ms").data[0].x) == [2, 4.5]
    (tmp_path / "some.json").write_text("[1]")
    with pytest.raises(BenchmarkError, match=r"some\.json: holds no object"):
        benchmarks.read_results(tmp_path)
    (tmp_path / "some.json").write_text("{")
    with pytest.raises(BenchmarkError, match="cannot be read"):
        benchmarks.read_results(tmp_path)
    assert benchmarks.read_results(tmp_path / "none") == []


def test_a_file_of_several_runs_says_the_commit_of_each() -> None:
    commits = {"speed, memory": "0123456789abcdef", "gradients": "fedcba9876543210"}
    html = result_html(benchmarks.BenchResult("made", {"commit": commits, "n": 3}, {"a_ms": 1.0}))
    assert "speed, memory: 0123456789, gradients: fedcba9876; n: 3" in html


def test_bars_stand_in_the_order_of_their_numbers_and_say_them_in_full() -> None:
    bar = figures_bar({"users_64": 12140.4, "users_8": 813.84, "users_1": 0.98672}, "ms").data[0]
    assert list(bar.y) == ["users_64", "users_8", "users_1"]
    assert list(bar.text) == ["12,140", "813.8", "0.9867"]


def test_the_committed_results_can_be_shown() -> None:
    results = benchmarks.read_results(BENCH_RESULTS)
    assert results
    for result in results:
        assert result.figures
        assert {"device", "versions", "command", "commit"} <= set(result.about), result.name


def test_live_curves_show_every_epoch_so_far_and_growth() -> None:
    lines = [{"epoch": e, "val_loss": 1 / (e + 1), "event": None} for e in range(3)]
    lines[1]["event"] = "grew dendrite 1"
    figure = training_figure({("dendritic", 0): lines, ("baseline", 0): lines[:1]}, "val_loss", "l")
    assert [list(t.y) for t in figure.data] == [[1, 0.5, 1 / 3], [0.5], [1]]


def test_charts_name_figures_in_words_that_fit_a_phone() -> None:
    labels = figure_labels(["p/nf4/peak_memory_gb_dendritic", "p/bf16/reserved_gb", "p/x/ms"])
    assert labels == ["nf4, peak memory<br>dendritic", "bf16, reserved", "x, ms"]
    assert figure_labels(["only_ms"]) == ["only"]


def test_details_leave_the_chart_to_the_main_figures() -> None:
    figures = {
        "a_seconds": 1.0,
        "b_seconds": 2.0,
        "runs/c_seconds": 900.0,
        "runs/x_ms": 1,
        "y_ms": 2,
    }
    groups = benchmarks.BenchResult("made", {}, figures).groups()
    assert groups["seconds"] == {"a_seconds": 1.0, "b_seconds": 2.0}
    assert groups["milliseconds"] == {"runs/x_ms": 1, "y_ms": 2}
