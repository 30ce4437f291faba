"""The Batch tab: many texts, both arms, a table to take away."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from finsent.plots.live import distribution_figure
from finsent.plots.style import ARM_STYLES
from finsent.results.catalog import Catalog, Selection
from finsent.serving.many_texts import (
    MAX_BYTES,
    MAX_ROWS,
    Item,
    Scored,
    agreement,
    label_counts,
    pasted,
    read_upload,
    results_csv,
    score,
)
from finsent.serving.many_texts import uploaded as uploaded_items
from finsent.serving.service import ModelService, ServiceError
from finsent.serving.tables.reading import SUFFIXES, text_column
from finsent.serving.tables.rows import Reading, TableError
from finsent.ui.parts.headline import MAX_CHARACTERS, text_problem
from finsent.ui.parts.markup import label_mark, notice, percent
from finsent.ui.parts.selectors import QUICK, RunSelectors, add_matched_box, add_run_selectors

LONG_QUEUE = "long"
"""Batches and benchmarks wait for each other; other visitors' headlines do not wait for them."""
ENCODINGS = (
    ("UTF-8, UTF-16 or UTF-32, as found", ""),
    ("Windows-1252", "cp1252"),
    ("Latin-1", "latin-1"),
)
SHOWN_CHARACTERS = 160
"""Of a text in the results table; the download has all of it."""


def row_problem(text: str) -> str | None:
    """Why a row cannot be scored, or None when it can."""
    return text_problem(text, empty="the cell is empty")


def summary_html(scored: Sequence[Scored], device: str) -> str:
    """What came out, in a sentence, and which rows could not be scored and why."""
    good = [row for row in scored if row.answers]
    differ = sum(row.differ for row in good)
    bad = [row.item for row in scored if row.item.problem is not None]
    texts = "text" if len(good) == 1 else "texts"
    text = f"{len(good):,} {texts} scored on {device}." if good else "No text could be scored."
    if good and len(good[0].answers) > 1:
        text += f" The arms differ on {differ:,} of them ({percent(differ / len(good))})."
    if good and good[0].answers[0].calibration is None:
        text += " Probabilities are raw: these runs kept no validation predictions."
    cut = sum(row.truncated for row in good)
    if cut:
        text += f" {cut:,} were cut to what the models read (“… cut” in the table)."
    names = good[0].answers[0].label_names if good else ()
    for arm, (right, n) in agreement(scored, names).items():
        text += (
            f" {ARM_STYLES[arm].title}: {percent(right / n)} of {n:,} answers are the label in the "
            "file."
        )
    html = f'<p class="fs-batch-says" role="status">{escape(text)}</p>'
    if bad:
        listed = "; ".join(f"row {item.number}: {item.problem}" for item in bad[:5])
        more = f"; and {len(bad) - 5:,} more, see the table" if len(bad) > 5 else ""
        html += notice(f"{len(bad):,} not scored.", listed + more, tone="warning")
    return html


def result_rows(scored: Sequence[Scored], arms: Sequence[str]) -> list[list[str]]:
    """Cells of the results table."""
    rows = []
    for row in scored:
        text = row.item.text
        shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} …"
        cells = [str(row.item.number), f"{shown} … cut" if row.truncated else shown]
        if not row.answers:
            cells += ["not scored", str(row.item.problem)] + [""] * (len(arms) * 2 - 1)
        else:
            cells.append("differ" if row.differ else "agree")
            for answer in row.answers:
                cells.append(
                    f"{label_mark(answer.label)} {answer.label} {percent(max(answer.shown))}"
                )
                cells.append(answer.set_words or "–")
        rows.append(cells)
    return rows


def headers(arms: Sequence[str]) -> list[str]:
    """Column names of the results table."""
    names = ["Row", "Text", "Arms"]
    for arm in arms:
        names += [ARM_STYLES[arm].title, f"{ARM_STYLES[arm].title}: 90\u202f% set"]
    return names


def column_widths(arms: Sequence[str]) -> list[str]:
    """Widths of the results table's columns."""
    return ["52px", "240px", "80px"] + ["150px", "190px"] * len(arms)


def progress_html(done: int, total: int) -> str:
    """The line shown while texts are scored."""
    return (
        f'<p class="fs-batch-says" role="status">{done:,} of {total:,} texts scored '
        f'<progress max="{total}" value="{done}" aria-label="Texts scored"></progress></p>'
    )


@dataclass(frozen=True)
class _Parts:
    """The tab's components."""

    lines: gr.Textbox
    file: gr.File
    column: gr.Dropdown
    header: gr.Checkbox
    encoding: gr.Dropdown
    selectors: RunSelectors
    matched: gr.Checkbox
    start: gr.Button
    stop: gr.Button
    download: gr.DownloadButton
    status: gr.HTML
    chart: gr.Plot
    results: gr.Dataframe


_BUSY = (gr.update(interactive=False), gr.update(interactive=True))
"""What Score and Cancel become while texts are scored."""
_IDLE = (gr.update(interactive=True), gr.update(interactive=False))
_HIDDEN = (gr.update(visible=False), gr.update(visible=False))
"""What chart and table become while there is nothing to show."""


def add_batch_tab(catalog: Catalog, service: ModelService) -> RunSelectors | None:
    """Draws the tab inside the current gr.Tab. Returns its selectors; None without runs."""
    if not catalog.runs:
        gr.HTML(notice("Nothing trained yet.", service.status.message, tone="warning"))
        return None
    parts = _draw(catalog)
    _connect(parts, catalog, service)
    return parts.selectors


def _draw(catalog: Catalog) -> _Parts:
    first = catalog.select(catalog.backbones()[0])
    gr.HTML(
        '<p class="fs-lead">Paste one text per line, or upload a file: CSV or TSV, JSON Lines, '
        "Excel (.xlsx) or Parquet. "
        f"At most {MAX_ROWS:,} rows, {MAX_BYTES / 1e6:.0f} MB and {MAX_CHARACTERS:,} characters a "
        "text. Nothing is stored.</p>"
    )
    with gr.Row(elem_classes="fs-batch-in"):
        lines = gr.Textbox(
            label="Texts, one per line", lines=8, max_lines=8, elem_id="batch-lines", min_width=280
        )
        with gr.Column(min_width=240):
            file = gr.File(
                label="or a file",
                file_types=list(SUFFIXES),
                elem_id="batch-file",
                height=132,
            )
            column = gr.Dropdown(
                choices=[],
                label="Column with the texts",
                elem_id="batch-column",
                filterable=False,
                interactive=True,
                visible=False,
            )
            header = gr.Checkbox(
                label="Row 1 names the columns",
                elem_id="batch-header",
                interactive=True,
                visible=False,
            )
            encoding = gr.Dropdown(
                choices=list(ENCODINGS),
                value="",
                label="Encoding",
                elem_id="batch-encoding",
                filterable=False,
                interactive=True,
                visible=False,
            )
    with gr.Row(elem_classes="fs-controls"):
        selectors = add_run_selectors(catalog, first, prefix="batch")
        matched = add_matched_box(catalog, selectors, first, "Matched control too", "batch-matched")
    with gr.Row(elem_classes="fs-chips"):
        start = gr.Button("Score", variant="primary", elem_id="batch-start", min_width=110)
        stop = gr.Button("Cancel", elem_id="batch-stop", interactive=False, min_width=90)
        download = gr.DownloadButton(
            "Download results (CSV)", elem_id="batch-download", interactive=False, min_width=190
        )
    status = gr.HTML(elem_id="batch-status")
    chart = gr.Plot(
        show_label=False, container=False, elem_id="batch-chart", visible=False, buttons=[]
    )
    results = gr.Dataframe(
        headers=headers(first.arms),
        interactive=False,
        visible=False,
        wrap=True,
        max_height=460,
        column_widths=column_widths(first.arms),
        elem_id="batch-results",
        show_label=False,
        buttons=[],
    )
    return _Parts(
        lines,
        file,
        column,
        header,
        encoding,
        selectors,
        matched,
        start,
        stop,
        download,
        status,
        chart,
        results,
    )


def _connect(parts: _Parts, catalog: Catalog, service: ModelService) -> None:
    def run(
        text: str,
        path: str | None,
        name: str | None,
        header: bool,
        encoding: str | None,
        backbone: str,
        dataset: str,
        seed: int,
        with_matched: bool,
    ) -> Iterator[list[Any]]:
        wanted = catalog.select(backbone, dataset, seed, matched=with_matched)
        try:
            items = _items(text, path, name, _reading(header, encoding))
        except TableError as error:
            # gradio takes the message for HTML, and names of columns are in it.
            raise gr.Error(escape(str(error)), print_exception=False) from error
        yield from _scoring(items, wanted, catalog, service)

    about_file = [parts.column, parts.header, parts.encoding, parts.status]
    parts.file.change(_columns, inputs=parts.file, outputs=about_file, **QUICK)
    for choice in (parts.header, parts.encoding):
        choice.input(
            _columns,
            inputs=[parts.file, parts.header, parts.encoding],
            outputs=about_file,
            **QUICK,
        )
    running = parts.start.click(
        run,
        inputs=[
            parts.lines,
            parts.file,
            parts.column,
            parts.header,
            parts.encoding,
            *parts.selectors.components,
            parts.matched,
        ],
        outputs=[parts.status, parts.chart, parts.results, parts.download, parts.start, parts.stop],
        concurrency_id=LONG_QUEUE,
        concurrency_limit=1,
        show_progress="hidden",
        api_visibility="private",
    )
    running.failure(
        lambda: list(_IDLE),
        outputs=[parts.start, parts.stop],
        queue=False,
        api_visibility="private",
    )
    parts.stop.click(
        lambda: [
            notice("Cancelled.", "Your texts are still there; nothing was kept of the scores."),
            *_IDLE,
        ],
        outputs=[parts.status, parts.start, parts.stop],
        cancels=[running],
        queue=False,
        api_visibility="private",
    )


def _columns(
    path: str | None, header: bool | None = None, encoding: str | None = None
) -> tuple[Any, Any, Any, str]:
    """What is offered for a file: its columns, whether row 1 names them, and its encoding; and what
    the status line says of it. header: None where nobody has chosen, and the file tells."""
    if path is None:
        hidden = gr.update(visible=False)
        return gr.update(choices=[], value=None, visible=False), hidden, hidden, ""
    named = gr.update(value=encoding or "", visible=True)
    try:
        upload = read_upload(Path(path), _reading(header, encoding))
    except TableError as error:
        said = notice("This file cannot be read.", str(error), tone="warning")
        return gr.update(choices=[], value=None, visible=False), gr.skip(), named, said
    table, n = upload.table, len(upload.rows)
    columns = "column" if len(table.names) == 1 else "columns"
    said = f"{n:,} {'row' if n == 1 else 'rows'}, {len(table.names)} {columns}. {table.found}."
    if header is None and not table.has_header:
        said += " Row 1 looks like a row of texts, so it is scored too; tick the box if it is not."
    html = f'<p class="fs-batch-says">{escape(said)}</p>'
    if table.warnings:
        html += notice("This looks wrong.", "; ".join(table.warnings), tone="warning")
    return (
        gr.update(choices=list(table.names), value=text_column(table, upload.rows), visible=True),
        gr.update(value=table.has_header, visible=True),
        named,
        html,
    )


def _reading(header: bool | None, encoding: str | None) -> Reading:
    return Reading(encoding=encoding or None, header=header)


def _items(text: str, path: str | None, name: str | None, reading: Reading) -> list[Item]:
    """The texts of the file, else those pasted. Raises TableError."""
    if path is not None:
        return uploaded_items(read_upload(Path(path), reading), name, row_problem)
    return pasted(text, row_problem)


def _scoring(
    items: Sequence[Item], wanted: Selection, catalog: Catalog, service: ModelService
) -> Iterator[list[Any]]:
    """Status, chart, table, download, Score and Cancel, as the work goes on."""
    cleared = gr.update(value=None, interactive=False)
    yield [progress_html(0, len(items)), *_HIDDEN, cleared, *_BUSY]
    try:
        scored: list[Scored] = []
        device = ""
        for done, where in _chunks(items, wanted, catalog, service):
            scored, device = scored + done, where
            yield [progress_html(len(scored), len(items)), *[gr.skip()] * 3, *_BUSY]
    except (ServiceError, ValueError) as error:
        said = notice("Stopped.", f"{error} Your texts are still there.", tone="warning")
        yield [said, *_HIDDEN, gr.skip(), *_IDLE]
        return
    with tempfile.TemporaryDirectory(prefix="finsent-batch-") as folder:
        written = Path(folder) / "finsent-scores.csv"
        written.write_bytes(results_csv(scored, wanted.arms, catalog.label_names(wanted)))
        counts = label_counts(scored)
        # gradio copies the file into its own cache before this resumes and the folder goes.
        yield [
            summary_html(scored, device),
            gr.Plot(distribution_figure(counts), visible=bool(counts)),
            gr.update(
                value=result_rows(scored, wanted.arms),
                headers=headers(wanted.arms),
                column_widths=column_widths(wanted.arms),
                visible=True,
            ),
            gr.update(value=str(written), interactive=True),
            *_IDLE,
        ]


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
