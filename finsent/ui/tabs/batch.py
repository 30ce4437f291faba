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
    asked_for,
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
    done_html,
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


FAILED = notice(
    "Stopped.",
    "The server could not go on. Your texts are still there; press Score to try again.",
    tone="warning",
)
OUTDATED = notice(
    "These results are older.",
    "The texts or the models were changed since; press Score to renew the results.",
    tone="warning",
)


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
    status: gr.HTML
    """How far the work is, beside the button that begins it."""
    outdated: gr.HTML
    """That the results are those of other texts or models than the ones that are chosen now."""
    summary: gr.HTML
    download: gr.DownloadButton
    accuracy: gr.HTML
    chart: gr.Plot
    pager: gr.Row
    kind: gr.Radio
    earlier: gr.Button
    later: gr.Button
    table: gr.HTML
    results: gr.State
    page: gr.State
    cancelled: gr.State
    """Whether the batch that was begun last was cancelled."""

    @property
    def asked(self) -> list[Any]:
        """What says which texts are scored by which models."""
        return [*self.source.components, *self.selectors.components, self.matched]

    @property
    def filled(self) -> list[Any]:
        """What a batch fills."""
        return [
            self.status,
            self.outdated,
            self.summary,
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
            self.cancelled,
        ]

    def emptied(self) -> Updates:
        """No results: what is shown belongs to what was asked for last, or is not shown."""
        hidden = gr.update(visible=False)
        return {
            self.outdated: "",
            self.summary: "",
            self.accuracy: "",
            self.chart: hidden,
            self.pager: hidden,
            self.table: "",
            self.download: gr.update(value=None, interactive=False, visible=False),
            self.results: Results(),
            self.page: 0,
            self.cancelled: False,
        }

    def busy(self, on: bool) -> Updates:
        """Score and Cancel, for a batch that runs or does not."""
        return {self.start: gr.update(interactive=not on), self.stop: gr.update(interactive=on)}


def add_batch_tab(catalog: Catalog, service: ModelService) -> RunSelectors | None:
    """Draws the section inside the current gr.Tab. Returns its selectors; None without runs."""
    if not catalog.runs:
        gr.HTML(notice("Nothing trained yet.", service.status.message, tone="warning"))
        return None
    parts = _draw(catalog)
    ended = _connect_work(parts, catalog, service)
    _connect_pages(parts, ended)
    _connect_changes(parts, ended)
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
        status = interactive_html("", "batch-status")
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
    outdated, summary, download, accuracy, chart, pager, kind, earlier, later, table = (
        _draw_results()
    )
    # Memory of the server; gradio forgets it an hour after the visitor was last here.
    results = gr.State(Results(), time_to_live=3600)
    page = gr.State(0)
    return _Parts(
        source,
        selectors,
        matched,
        start,
        stop,
        status,
        outdated,
        summary,
        download,
        accuracy,
        chart,
        pager,
        kind,
        earlier,
        later,
        table,
        results,
        page,
        gr.State(False),
    )


def _draw_results() -> tuple[Any, ...]:
    """What a batch fills, in the order of `_Parts`."""
    with gr.Column(elem_id="batch-out"):
        outdated = gr.HTML(elem_id="batch-outdated")
        summary = gr.HTML(elem_id="batch-summary")
        with gr.Row(elem_classes="fs-chips"):
            download = gr.DownloadButton(
                "Download results (CSV)",
                elem_id="batch-download",
                interactive=False,
                visible=False,
                min_width=190,
            )
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
    return outdated, summary, download, accuracy, chart, pager, kind, earlier, later, table


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
        empty = Results((), names, len(items), what, _asked(*asked))
        yield from _scoring(items, empty, wanted, catalog, service, parts)

    def failed(cancelled: bool) -> Updates:
        # gradio counts a batch that was cancelled among those that failed.
        said = gr.skip() if cancelled else FAILED
        return {parts.status: said, **parts.busy(on=False)}

    reread = read_otherwise(parts.source, [parts.source.found, parts.status])
    running = []
    for begun in (parts.start.click, reread.success):
        waiting = begun(
            lambda: {
                **parts.emptied(),
                parts.status: '<p class="fs-batch-says" role="status">Waiting for a turn …</p>',
                **parts.busy(on=True),
            },
            outputs=parts.filled,
            **QUICK,
        )
        work = waiting.then(
            run,
            inputs=parts.asked,
            outputs=parts.filled,
            concurrency_id=LONG_QUEUE,
            concurrency_limit=BATCHES_AT_ONCE,
            show_progress="hidden",
            api_visibility="private",
        )
        work.failure(failed, inputs=parts.cancelled, outputs=parts.filled, **QUICK)
        running.append(work)

    def stopped(results: Results) -> Iterator[Updates]:
        if results.rows:
            said = notice("Cancelled.", "Your texts are still there; what was scored is below.")
            ended = _ended(parts, results, said)
        else:
            said = notice("Cancelled.", "Your texts are still there; nothing was scored yet.")
            ended = iter([{parts.status: said, **parts.busy(on=False)}])
        for updates in ended:
            yield {**updates, parts.cancelled: True}

    cancelled = parts.stop.click(
        stopped,
        inputs=parts.results,
        outputs=parts.filled,
        cancels=running,
        **QUICK,
    ).then(lambda: time.sleep(AFTERMATH_SECONDS), **QUICK)
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


def _asked(*asked: Any) -> tuple[Any, ...]:
    """What decides the results of `_Parts.asked`."""
    *source, backbone, dataset, seed, matched = asked
    return (*asked_for(*source), backbone, dataset, seed, matched)


def _connect_changes(parts: _Parts, ended: Sequence[Any]) -> None:
    """Says of results that they are those of other texts or models, as soon as that is so."""

    def outdated(results: Results, *asked: Any) -> str:
        if not results.rows or results.asked == _asked(*asked):
            return ""
        return OUTDATED

    def changed(said: str, *given: Any) -> tuple[str, Any]:
        # A refusal was of what stood there before; progress is still that of what runs.
        return outdated(*given), "" if "fs-notice" in (said or "") else gr.skip()

    given = [parts.results, *parts.asked]
    for part in parts.asked:
        part.change(
            changed,
            inputs=[parts.status, *given],
            outputs=[parts.outdated, parts.status],
            **QUICK,
        )
    for event in ended:
        event.then(outdated, inputs=given, outputs=parts.outdated, **QUICK)


def _scoring(
    items: Sequence[Item],
    empty: Results,
    wanted: Selection,
    catalog: Catalog,
    service: ModelService,
    parts: _Parts,
) -> Iterator[Updates]:
    """What is shown as the work goes on: the first page of rows as soon as it is there."""
    labelled = any(item.label is not None for item in items)
    yield {
        **parts.emptied(),
        parts.status: progress_html(0, len(items), 0),
        parts.kind: gr.update(choices=_filters(labelled=labelled), value=ALL),
        parts.results: empty,
        **parts.busy(on=True),
    }
    results, started, said = empty, time.monotonic(), ""
    try:
        for done, device in _chunks(items, wanted, catalog, service):
            before = len(results.rows)
            results = replace(results, rows=(*results.rows, *done), device=device)
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
    yield from _ended(parts, results, said or done_html(results))


def _ended(parts: _Parts, results: Results, said: str) -> Iterator[Updates]:
    """What is shown of a batch that goes on no more, whole or not.

    said: in the place of its progress.
    """
    names = results.label_names
    with tempfile.TemporaryDirectory(prefix="finsent-batch-") as folder:
        written = Path(folder) / "finsent-scores.csv"
        written.write_bytes(results_csv(results.rows, results.arms, names))
        counts = label_counts(results.rows)
        # gradio copies the file into its own cache before this resumes and the folder goes.
        yield {
            parts.status: said,
            parts.summary: summary_html(results),
            parts.accuracy: accuracy_html(
                results, scores_html(results.confusions(), names, "confusions")
            ),
            parts.chart: gr.Plot(distribution_figure(counts), visible=bool(counts)),
            parts.pager: gr.update(visible=True),
            parts.download: gr.update(value=str(written), interactive=True, visible=True),
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
