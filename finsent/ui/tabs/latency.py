"""The speed section of Results: a benchmark that runs here and now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from finsent.machine.timing import load_per_core, summarize
from finsent.plots.live import times_figure
from finsent.results.catalog import Catalog
from finsent.serving.benchmarks import (
    BenchmarkError,
    Times,
    against,
    batch_name,
    benchmark_batches,
    throughput,
)
from finsent.serving.service import Benchmark, ModelService, ServiceError
from finsent.ui.parts.markup import html, notice, plain_device
from finsent.ui.parts.selectors import RunSelectors, add_matched_box, add_run_selectors
from finsent.ui.tabs.batch import LONG_QUEUE

LENGTHS = (8, 16, 32, 64)
SIZES = (1, 8, 32)
WARMUP_ROUNDS = 2
BUSY = 0.5
"""From so much other work for each core on, a time is not that of an idle machine."""
REFERENCE = "baseline"


def times_html(times_ms: Times, device: str, load: float | None = None) -> str:
    """The verdict on every arm, then a row for each arm and batch.

    load: work for each core when the benchmark began; None: not known.
    """
    sizes = {batch_name(words, size): size for words in LENGTHS for size in SIZES}
    order = list(dict.fromkeys(name for _, name in times_ms))
    arms = list(dict.fromkeys(arm for arm, _ in times_ms))
    compared = {
        arm: against(times_ms, arm, REFERENCE)
        for arm in arms
        if arm != REFERENCE and REFERENCE in arms
    }
    return html(
        "times",
        reference=REFERENCE,
        compared=compared,
        rows=[
            (arm, name, summarize(values), throughput(values, sizes[name]))
            for (arm, name), values in sorted(
                times_ms.items(), key=lambda item: order.index(item[0][1])
            )
        ],
        device=plain_device(device),
        warmup=WARMUP_ROUNDS,
        busy=load if load is not None and load > BUSY else None,
    )


def add_latency_tab(catalog: Catalog, service: ModelService) -> RunSelectors | None:
    """Draws the section inside the current gr.Tab; returns its selectors, None without runs."""
    gr.HTML(
        '<p class="fs-lead">How long do the models take on this machine, one after the other on '
        "the same texts? One benchmark runs at a time, and other visitors get their turn.</p>"
    )
    if not catalog.runs:
        gr.HTML(notice("Nothing to measure.", "A benchmark needs at least one finished run."))
        return None
    first = catalog.select(catalog.backbones()[0])
    with gr.Row(elem_classes="fs-controls"):
        selectors = add_run_selectors(catalog, first, prefix="latency")
        matched = add_matched_box(
            catalog,
            selectors,
            first,
            "Include a same-size model without dendrites",
            "latency-matched",
        )
    with gr.Row(elem_classes="fs-controls"):
        lengths, sizes = (
            gr.CheckboxGroup(
                [(str(n), n) for n in choices],
                value=value,
                label=label,
                elem_id=f"latency-{name}",
                min_width=200,
            )
            for name, label, choices, value in (
                ("lengths", "Words per text", LENGTHS, [16, 32]),
                ("sizes", "Texts per call", SIZES, [1, 8]),
            )
        )
        repeats = gr.Slider(
            10, 50, value=20, step=5, label="Repeats", elem_id="latency-repeats", min_width=200
        )
    with gr.Row(elem_classes="fs-chips"):
        start = gr.Button(
            "Run a benchmark", variant="primary", elem_id="latency-start", min_width=110
        )
        stop = gr.Button("Cancel", elem_id="latency-stop", interactive=False, min_width=90)
    status = gr.HTML(elem_id="latency-status")
    numbers = gr.HTML(elem_id="latency-numbers")
    chart = gr.Plot(
        show_label=False, container=False, elem_id="latency-chart", visible=False, buttons=[]
    )
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
        load = load_per_core()
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
        yield ["", figure, times_html(times, device, load), *idle]

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
