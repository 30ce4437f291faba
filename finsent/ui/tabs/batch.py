"""Many headlines: paste them or bring a file, see where the models differ, take a table away."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from finsent.machine.errors import traceback_of
from finsent.plots.live import distribution_figure
from finsent.results.catalog import Catalog, Selection
from finsent.serving.many_texts import (
    MAX_BYTES,
    MAX_ROWS,
    Item,
    Scored,
    label_counts,
    results_csv,
    score,
)
from finsent.serving.service import ModelService
from finsent.serving.tables.rows import TableError
from finsent.ui.parts.events import interactive_html
from finsent.ui.parts.headline import MAX_CHARACTERS
from finsent.ui.parts.markup import notice
from finsent.ui.parts.selectors import QUICK, RunSelectors, add_matched_box, add_run_selectors
from finsent.ui.parts.source import (
    Source,
    Updates,
    add_source,
    items_of,
    read_otherwise,
    refusal_html,
)
from finsent.ui.tables.scored import (
    ALL,
    FILTERS,
    PAGE,
    WRONG,
    Results,
    accuracy_html,
    rows_html,
    summary_html,
)
from finsent.ui.tabs.differ import scores_html

_log = logging.getLogger(__name__)
LONG_QUEUE = "long"
"""Batches and benchmarks share it; other visitors' headlines do not wait for them."""
BATCHES_AT_ONCE = 2
AFTERMATH_SECONDS = 1.0
"""How long news of a batch that was cancelled may be on its way."""


def progress_html(done: int, total: int, seconds: float) -> str:
    """The line shown while texts are scored. seconds: since the first was begun."""
    left = ""
    if 0 < done < total and seconds > 1:
        left = f"; about {_duration(seconds / done * (total - done))} left"
    return (
        f'<p class="fs-batch-says" role="status">{done:,} of {total:,} texts scored{left} '
        f'<progress max="{total}" value="{done}" aria-label="Texts scored"></progress></p>'
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@dataclass(frozen=True)
class _Parts:
    """The section's components."""

    source: Source
    selectors: RunSelectors
    matched: gr.Checkbox
    start: gr.Button
    stop: gr.Button
    download: gr.DownloadButton
    status: gr.HTML
    accuracy: gr.HTML
    chart: gr.Plot
    pager: gr.Row
    kind: gr.Radio
    earlier: gr.Button
    later: gr.Button
    table: gr.HTML
    results: gr.State
    page: gr.State

    @property
    def filled(self) -> list[Any]:
        """What a batch fills."""
        return [
            self.status,
            self.accuracy,
            self.chart,
            self.pager,
            self.kind,
            self.table,
            self.download,
            self.start,
            self.stop,
            self.results,
            self.page,
        ]

    def busy(self, on: bool) -> Updates:
        """Score and Cancel, for a batch that runs or does not."""
        return {self.start: gr.update(interactive=not on), self.stop: gr.update(interactive=on)}


def add_batch_tab(catalog: Catalog, service: ModelService) -> RunSelectors | None:
    """Draws the section inside the current gr.Tab. Returns its selectors; None without runs."""
    if not catalog.runs:
        gr.HTML(notice("Nothing trained yet.", service.status.message, tone="warning"))
        return None
    parts = _draw(catalog)
    _connect_pages(parts, _connect_work(parts, catalog, service))
    return parts.selectors


def _draw(catalog: Catalog) -> _Parts:
    first = catalog.select(catalog.backbones()[0])
    gr.HTML(
        '<p class="fs-lead">Paste one text per line, or bring a file: CSV or TSV, JSON Lines, '
        f"Excel (.xlsx) or Parquet. At most {MAX_ROWS:,} rows, {MAX_BYTES / 1e6:.0f} MB and "
        f"{MAX_CHARACTERS:,} characters a text. Nothing is stored on the server.</p>"
    )
    source = add_source()
    with gr.Row(elem_classes="fs-chips"):
        start = gr.Button("Score", variant="primary", elem_id="batch-start", min_width=110)
        stop = gr.Button("Cancel", elem_id="batch-stop", interactive=False, min_width=90)
        download = gr.DownloadButton(
            "Download results (CSV)", elem_id="batch-download", interactive=False, min_width=190
        )
    with (
        gr.Accordion("Models being compared", open=False, elem_id="batch-which"),
        gr.Row(elem_classes="fs-controls"),
    ):
        selectors = add_run_selectors(catalog, first, prefix="batch")
        matched = add_matched_box(
            catalog,
            selectors,
            first,
            "Include a same-size model without dendrites",
            "batch-matched",
        )
    status = interactive_html("", "batch-status")
    accuracy = gr.HTML(elem_id="batch-accuracy")
    chart = gr.Plot(
        show_label=False, container=False, elem_id="batch-chart", visible=False, buttons=[]
    )
    with gr.Row(elem_classes="fs-chips", visible=False) as pager:
        kind = gr.Radio(
            _filters(labelled=False),
            value=ALL,
            label="Rows",
            show_label=False,
            container=False,
            elem_id="batch-filter",
        )
        earlier = gr.Button("Earlier rows", size="sm", elem_id="batch-earlier", min_width=0)
        later = gr.Button("Later rows", size="sm", elem_id="batch-later", min_width=0)
    table = gr.HTML(elem_id="batch-results")
    # Memory of the server; gradio forgets it an hour after the visitor was last here.
    results = gr.State(Results(), time_to_live=3600)
    page = gr.State(0)
    return _Parts(
        source,
        selectors,
        matched,
        start,
        stop,
        download,
        status,
        accuracy,
        chart,
        pager,
        kind,
        earlier,
        later,
        table,
        results,
        page,
    )


def _filters(*, labelled: bool) -> list[tuple[str, str]]:
    return [(title, kind) for kind, title in FILTERS.items() if labelled or kind != WRONG]


def _connect_work(parts: _Parts, catalog: Catalog, service: ModelService) -> list[Any]:
    """Score and Cancel; the events that end a batch."""

    def run(*asked: Any) -> Iterator[Updates]:
        *source, backbone, dataset, seed, with_matched = asked
        wanted = catalog.select(backbone, dataset, seed, matched=with_matched)
        names = catalog.label_names(wanted)
        try:
            items, what = items_of(*source)
        except TableError as error:
            said = refusal_html("Nothing was scored.", error)
            yield {parts.status: said, **parts.busy(on=False)}
            return
        yield from _scoring(items, Results((), names), what, wanted, catalog, service, parts)

    reread = read_otherwise(parts.source, [parts.source.found, parts.status])
    running = []
    for begun in (parts.start.click, reread.success):
        waiting = begun(
            lambda: {
                parts.status: '<p class="fs-batch-says" role="status">Waiting for a turn …</p>',
                **parts.busy(on=True),
            },
            outputs=parts.filled,
            **QUICK,
        )
        work = waiting.then(
            run,
            inputs=[*parts.source.components, *parts.selectors.components, parts.matched],
            outputs=parts.filled,
            concurrency_id=LONG_QUEUE,
            concurrency_limit=BATCHES_AT_ONCE,
            show_progress="hidden",
            api_visibility="private",
        )
        work.failure(
            lambda: parts.busy(on=False),
            outputs=parts.filled,
            queue=False,
            api_visibility="private",
        )
        running.append(work)

    def stopped(results: Results) -> Updates:
        said = notice("Cancelled.", "Your texts are still there; what was scored is below.")
        if not results.rows:
            said = notice("Cancelled.", "Your texts are still there; nothing was scored yet.")
        return {parts.status: said, **parts.busy(on=False)}

    cancelled = parts.stop.click(
        stopped,
        inputs=parts.results,
        outputs=parts.filled,
        cancels=running,
        queue=False,
        api_visibility="private",
    ).then(lambda: time.sleep(AFTERMATH_SECONDS), queue=False, api_visibility="private")
    # Once more: news of the batch that was on its way may have come after the first.
    cancelled = cancelled.then(stopped, inputs=parts.results, outputs=parts.filled, **QUICK)
    return [*running, cancelled]


def _connect_pages(parts: _Parts, ended: Sequence[Any]) -> None:
    """Filter, earlier and later rows. ended: events after which there are other rows."""

    def show(results: Results, kind: str, page: int) -> tuple[str, int]:
        last = max(0, (len(results.select(kind)) - 1) // PAGE)
        page = min(max(page, 0), last)
        return rows_html(results, kind, page), page

    steps = [(parts.kind.change, None), (parts.earlier.click, -1), (parts.later.click, 1)]
    for event, step in [*steps, *((event.then, 0) for event in ended)]:
        event(
            lambda results, kind, page, by=step: show(
                results, kind, 0 if by is None else page + by
            ),
            inputs=[parts.results, parts.kind, parts.page],
            outputs=[parts.table, parts.page],
            **QUICK,
        )


def _scoring(
    items: Sequence[Item],
    empty: Results,
    what: str,
    wanted: Selection,
    catalog: Catalog,
    service: ModelService,
    parts: _Parts,
) -> Iterator[Updates]:
    """What is shown as the work goes on: the first page of rows as soon as it is there."""
    hidden = gr.update(visible=False)
    labelled = any(item.label is not None for item in items)
    yield {
        parts.status: progress_html(0, len(items), 0),
        parts.accuracy: "",
        parts.chart: hidden,
        parts.pager: hidden,
        parts.kind: gr.update(choices=_filters(labelled=labelled), value=ALL),
        parts.table: "",
        parts.download: gr.update(value=None, interactive=False),
        parts.results: empty,
        parts.page: 0,
        **parts.busy(on=True),
    }
    results, device, started = empty, "", time.monotonic()
    said = ""
    try:
        for done, where in _chunks(items, wanted, catalog, service):
            before = len(results.rows)
            results, device = replace(results, rows=(*results.rows, *done)), where
            now = progress_html(len(results.rows), len(items), time.monotonic() - started)
            first = before < PAGE
            # Later rows come by leafing; what a visitor looks at does not change under his eyes.
            table = {parts.table: rows_html(results, ALL, 0)} if first else {}
            pager = {} if first else {parts.pager: gr.update(visible=True)}
            yield {
                parts.status: now,
                parts.results: results,
                **table,
                **pager,
                **parts.busy(on=True),
            }
    except (RuntimeError, OSError, ValueError) as error:
        # Without the message, which may hold a text.
        _log.error("a batch stopped\n%s", traceback_of(error))
        said = notice("Stopped.", f"{error} Your texts are still there.", tone="warning")
        if not results.rows:
            yield {parts.status: said, **parts.busy(on=False)}
            return
    with tempfile.TemporaryDirectory(prefix="finsent-batch-") as folder:
        written = Path(folder) / "finsent-scores.csv"
        names = catalog.label_names(wanted)
        written.write_bytes(results_csv(results.rows, wanted.arms, names))
        counts = label_counts(results.rows)
        # gradio copies the file into its own cache before this resumes and the folder goes.
        yield {
            parts.status: said + summary_html(results, len(items), device, what),
            parts.accuracy: accuracy_html(
                results, scores_html(results.confusions(), names, "confusions")
            ),
            parts.chart: gr.Plot(distribution_figure(counts), visible=bool(counts)),
            parts.pager: gr.update(visible=True),
            parts.download: gr.update(value=str(written), interactive=True),
            parts.results: results,
            **parts.busy(on=False),
        }


def _chunks(
    items: Sequence[Item], wanted: Selection, catalog: Catalog, service: ModelService
) -> Iterator[tuple[list[Scored], str]]:
    """Scored chunks with the device that scored them."""
    device = ""

    def scorer(texts: Sequence[str]) -> tuple[dict[str, NDArray[np.float64]], list[bool]]:
        nonlocal device
        found, device = service.batch(texts, wanted)
        return found

    service.start()
    calibrations = catalog.calibrations(wanted)
    for done in score(items, scorer, catalog.label_names(wanted), calibrations):
        yield done, device
