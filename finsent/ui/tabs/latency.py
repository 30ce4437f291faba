"""The Latency tab: a benchmark that runs here and now, and the ones that were kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from finsent.machine.files import ROOT
from finsent.machine.timing import summarize
from finsent.plots.live import figures_bar, times_figure
from finsent.plots.style import ARM_STYLES
from finsent.results.catalog import Catalog
from finsent.serving.benchmarks import (
    BenchmarkError,
    BenchResult,
    batch_name,
    benchmark_batches,
    read_results,
    throughput,
)
from finsent.serving.service import Benchmark, ModelService, ServiceError
from finsent.ui.parts.markup import notice, swatch, table
from finsent.ui.parts.selectors import RunSelectors, add_matched_box, add_run_selectors
from finsent.ui.tabs.batch import LONG_QUEUE

BENCH_RESULTS = ROOT / "bench" / "results"
"""Kept benchmarks of a checkout; an installed package has none, and the tab shows none."""
TITLES = {
    "load": "Many users at once",
    "page": "The page in a browser",
    "serve_cpu": "Serving on a CPU",
    "serve_gpu": "Serving on a GPU: Phi-2’s shape, random weights",
    "train_cpu": "Training on a CPU",
    "train_phi2": "Training on a GPU: Phi-2’s shape, random weights",
}
"""What the files in bench/results are about; another file goes by its name."""
LENGTHS = (8, 16, 32, 64)
SIZES = (1, 8, 32)
WARMUP_ROUNDS = 2
COMMIT_DIGITS = 10


def times_html(times_ms: Mapping[tuple[str, str], Sequence[float]], device: str) -> str:
    """A row for each arm and condition."""
    sizes = {batch_name(words, size): size for words in LENGTHS for size in SIZES}
    order = list(dict.fromkeys(name for _, name in times_ms))
    rows = []
    for (arm, name), values in sorted(times_ms.items(), key=lambda item: order.index(item[0][1])):
        stats = summarize(values)
        rows.append(
            [
                f'<span class="fs-arm">{swatch(arm)}{escape(ARM_STYLES[arm].title)}</span>',
                escape(name),
                str(stats.n),
                f"{stats.p50_ms:.1f}",
                f"{stats.p95_ms:.1f}",
                f"{throughput(values, sizes[name]):.1f}",
            ]
        )
    return (
        table(
            ["Arm", "Batch", "Calls", "Median, ms", "p95, ms", "Texts a second"],
            rows,
            caption="Time of a call by arm and batch",
            numeric=(2, 3, 4, 5),
            css_class="fs-arms",
        )
        + f'<p class="fs-quiet">Measured just now on {escape(device)}. A call goes from texts to '
        f"probabilities, tokenizing included, waiting excluded; {WARMUP_ROUNDS} rounds of warm-up "
        "are left out; every round runs all arms and batches in a new random order.</p>"
    )


def result_html(result: BenchResult) -> str:
    """How a kept benchmark was made, and its figures."""
    about = "; ".join(
        f"{key}: {_plain(_short(value) if key == 'commit' else value)}"
        for key, value in result.about.items()
        if key != "versions"
    )
    versions = _plain(result.about.get("versions", {}))
    rows = [[escape(name), f"{value:,.6g}"] for name, value in result.figures.items()]
    return (
        f"<h3>{escape(TITLES.get(result.name, result.name))} "
        f'<span class="fs-quiet">{escape(result.name)}.json</span></h3>'
        f'<p class="fs-quiet">{escape(about)}'
        f"{'; ' + escape(versions) if versions else ''}</p>"
        f"<details><summary>All {len(rows)} figures</summary>"
        + table(["Figure", "Value"], rows, caption=result.name, numeric=(1,))
        + "</details>"
    )


def _short(commit: Any) -> Any:
    """A commit in few digits, or one for each part of a file."""
    if isinstance(commit, dict):
        return {f"{part}:": _short(of_part) for part, of_part in commit.items()}
    return str(commit)[:COMMIT_DIGITS]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return str(value)


def add_latency_tab(
    catalog: Catalog, service: ModelService, bench_results: Path = BENCH_RESULTS
) -> RunSelectors | None:
    """Draws the tab inside the current gr.Tab. Returns its selectors; None without runs.

    Raises BenchmarkError when a kept result cannot be read.
    """
    selectors = _add_live(catalog, service) if catalog.runs else None
    results = read_results(bench_results)
    gr.HTML(
        "<h2>Kept benchmarks</h2>"
        + (
            '<p class="fs-quiet">From bench/results, each made by the command it names. Other '
            "machines, other times: compare within a file, not across.</p>"
            if results
            else '<p class="fs-quiet">None in bench/results.</p>'
        ),
        elem_id="kept",
    )
    for result in results:
        gr.HTML(result_html(result), elem_classes="fs-kept")
        for unit, values in result.groups().items():
            gr.Plot(
                figures_bar(values, unit),
                show_label=False,
                container=False,
                buttons=[],
                elem_id=f"bench-{result.name}-{unit.split()[0].lower()}",
            )
    return selectors


def _add_live(catalog: Catalog, service: ModelService) -> RunSelectors:
    first = catalog.select(catalog.backbones()[0])
    gr.HTML("<h2>Measure here and now</h2>")
    with gr.Row(elem_classes="fs-controls"):
        selectors = add_run_selectors(catalog, first, prefix="latency")
        matched = add_matched_box(
            catalog, selectors, first, "Matched control too", "latency-matched"
        )
    with gr.Row(elem_classes="fs-controls"):
        lengths = gr.CheckboxGroup(
            choices=[(str(n), n) for n in LENGTHS],
            value=[16, 32],
            label="Words a text",
            elem_id="latency-lengths",
            min_width=200,
        )
        sizes = gr.CheckboxGroup(
            choices=[(str(n), n) for n in SIZES],
            value=[1, 8],
            label="Texts a call",
            elem_id="latency-sizes",
            min_width=200,
        )
        repeats = gr.Slider(
            5, 50, value=10, step=5, label="Repeats", elem_id="latency-repeats", min_width=200
        )
    with gr.Row(elem_classes="fs-chips"):
        start = gr.Button("Measure", variant="primary", elem_id="latency-start", min_width=110)
        stop = gr.Button("Cancel", elem_id="latency-stop", interactive=False, min_width=90)
    status = gr.HTML(elem_id="latency-status")
    chart = gr.Plot(
        show_label=False, container=False, elem_id="latency-chart", visible=False, buttons=[]
    )
    numbers = gr.HTML(elem_id="latency-numbers")
    busy = [gr.update(interactive=False), gr.update(interactive=True)]
    idle = [gr.update(interactive=True), gr.update(interactive=False)]

    def run(
        backbone: str,
        dataset: str,
        seed: int,
        with_matched: bool,
        words: list[int],
        texts: list[int],
        rounds: float,
    ) -> Iterator[list[Any]]:
        wanted = catalog.select(backbone, dataset, seed, matched=with_matched)
        times: dict[tuple[str, str], list[float]] = {}
        device = ""
        total = int(rounds)
        try:
            batches = benchmark_batches(words, texts, total)
            service.start()
            yield [_progress(0, total), gr.skip(), gr.skip(), *busy]
            service.measure(Benchmark(batches, WARMUP_ROUNDS, seed=0), wanted)
            # A round at a time, so that other visitors get their turn in between.
            for number in range(total):
                found, device = service.measure(Benchmark(batches, 1, seed=number + 1), wanted)
                for key, values in found.items():
                    times.setdefault(key, []).extend(values)
                yield [_progress(number + 1, total), gr.skip(), gr.skip(), *busy]
        except (BenchmarkError, ServiceError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        figure = gr.Plot(times_figure(times), visible=True)
        yield ["", figure, times_html(times, device), *idle]

    running = start.click(
        run,
        inputs=[*selectors.components, matched, lengths, sizes, repeats],
        outputs=[status, chart, numbers, start, stop],
        concurrency_id=LONG_QUEUE,
        concurrency_limit=1,
        show_progress="hidden",
        api_visibility="private",
    )
    running.failure(
        lambda: ["", *idle], outputs=[status, start, stop], queue=False, api_visibility="private"
    )
    stop.click(
        lambda: [notice("Cancelled.", "Nothing was kept of this benchmark."), *idle],
        outputs=[status, start, stop],
        cancels=[running],
        queue=False,
        api_visibility="private",
    )
    return selectors


def _progress(done: int, total: int) -> str:
    return (
        f'<p class="fs-batch-says" role="status">Round {done} of {total} '
        f'<progress max="{total}" value="{done}" aria-label="Rounds measured"></progress></p>'
    )
