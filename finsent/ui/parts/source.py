"""What is scored when there are many texts: pasted lines, a file, or the sample."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr

from finsent.serving.many_texts import Item, find_labels, pasted, read_upload
from finsent.serving.many_texts import uploaded as uploaded_items
from finsent.serving.tables.reading import SUFFIXES, may_hold_columns, text_column
from finsent.serving.tables.rows import Reading, TableError
from finsent.ui.parts.events import interactive_html, sent
from finsent.ui.parts.headline import text_problem
from finsent.ui.parts.markup import notice
from finsent.ui.parts.selectors import QUICK, LinkedDropdown

PASTED, FILE = "the pasted texts", "the file"
NO_LABELS = "(none)"
FIRST_ROWS = (
    ("as found", ""),
    ("names the columns", "names"),
    ("is a text like the others", "text"),
)
ENCODINGS = (
    ("UTF-8, UTF-16 or UTF-32, as found", ""),
    ("Windows-1252", "cp1252"),
    ("Latin-1", "latin-1"),
)
_TITLES: dict[str | None, str] = {code: title for title, code in ENCODINGS if code}
SEPARATORS = (
    ("as found", ""),
    ("comma", "comma"),
    ("semicolon", "semicolon"),
    ("tab", "tab"),
    ("pipe", "pipe"),
    ("none: every line is one text", "none"),
)
"""Beside any one character that a visitor types."""
Updates = dict[Any, Any]
"""What becomes of components; those that are not named stay as they are."""


def row_problem(text: str) -> str | None:
    """Why a row cannot be scored, or None when it can."""
    return text_problem(text, empty="the cell is empty")


@dataclass(frozen=True)
class Source:
    """The components that say what is scored, in the order of `items_of`'s arguments."""

    lines: gr.Textbox
    file: gr.File
    which: gr.Radio
    column: LinkedDropdown
    labels: LinkedDropdown
    header: gr.Dropdown
    encoding: gr.Dropdown
    separator: gr.Dropdown
    """Shown only where none was found."""
    found: gr.HTML
    """What was found in the file; no argument of `items_of`."""

    @property
    def components(self) -> list[Any]:
        """Inputs of an event that scores."""
        return [getattr(self, name) for name in self.__dataclass_fields__ if name != "found"]


def items_of(
    text: str,
    path: str | None,
    which: str,
    column: str | None,
    labels: str | None,
    header: str,
    encoding: str,
    separator: str | None,
) -> tuple[list[Item], str]:
    """The texts that are asked for, and what they come from, PASTED or FILE.

    Raises TableError when there are none or the file cannot be read.
    """
    if path is None or _prefers_text(text, which):
        return pasted(text or "", row_problem), PASTED
    upload = read_upload(Path(path), _reading(header, encoding, separator))
    return uploaded_items(
        upload, column, row_problem, None if labels == NO_LABELS else labels
    ), FILE


def asked_for(text: str, path: str | None, which: str, *reading: str | None) -> tuple[Any, ...]:
    """What decides what `items_of` gives for the same arguments."""
    pasted_alone = path is None or _prefers_text(text, which)
    return (text or "",) if pasted_alone else (path, *reading)


def _prefers_text(text: str, which: str) -> bool:
    return which == PASTED and bool((text or "").strip())


def add_source() -> Source:
    """Draws and connects them."""
    with gr.Row(elem_classes="fs-batch-in"):
        lines = gr.Textbox(
            label="Texts, one per line", lines=7, max_lines=7, elem_id="batch-lines", min_width=280
        )
        with gr.Column(min_width=240):
            file = gr.File(
                label="or a file",
                file_types=list(SUFFIXES),
                elem_id="batch-file",
                height=120,
            )
            sample = gr.Button(
                "Use sample headlines", size="sm", elem_id="batch-sample", min_width=0
            )
            with gr.Row():
                column = _column_choice("Column with the texts", "batch-column")
                labels = _column_choice("Column with true labels", "batch-labels")
            with gr.Row():
                header = _way_of_reading("Row 1", FIRST_ROWS, "batch-header")
                encoding = _way_of_reading("Encoding", ENCODINGS, "batch-encoding")
                separator = _way_of_reading("Separator", SEPARATORS, "batch-separator", typed=True)
    which = gr.Radio(
        [("The pasted texts", PASTED), ("The file", FILE)],
        value=PASTED,
        label="There are pasted texts and a file. Which should be scored?",
        visible=False,
        elem_id="batch-source",
    )
    found = interactive_html("", "batch-found")
    parts = Source(lines, file, which, column, labels, header, encoding, separator, found)
    _connect(parts, sample)
    return parts


def _column_choice(label: str, elem_id: str) -> LinkedDropdown:
    # Its choices are those of a file: what was chosen for the one before is no error.
    return LinkedDropdown(
        choices=[],
        label=label,
        elem_id=elem_id,
        filterable=False,
        interactive=True,
        visible=False,
        min_width=120,
    )


def _way_of_reading(
    label: str, choices: Sequence[tuple[str, str]], elem_id: str, *, typed: bool = False
) -> gr.Dropdown:
    return gr.Dropdown(
        choices=list(choices),
        value="",
        label=label,
        elem_id=elem_id,
        filterable=typed,
        allow_custom_value=typed,
        interactive=True,
        visible=False,
        min_width=120,
    )


def _connect(parts: Source, sample: gr.Button) -> None:
    """The file's columns, the sample, and which of text and file is meant."""

    def brought(path: str | None, text: str) -> Updates:
        both = path is not None and bool((text or "").strip())
        which = gr.update(visible=both, value=PASTED if path is None else FILE)
        return {**about(path), parts.which: which}

    def about(
        path: str | None, header: str = "", encoding: str = "", separator: str | None = ""
    ) -> Updates:
        return dict(zip(about_file, file_updates(path, header, encoding, separator), strict=True))

    def typed(text: str, path: str | None) -> Any:
        both = path is not None and bool((text or "").strip())
        return gr.update(visible=True, value=PASTED) if both else gr.update(visible=False)

    ways = [parts.header, parts.encoding, parts.separator]
    about_file = [parts.column, parts.labels, *ways, parts.found]
    parts.file.change(
        brought,
        inputs=[parts.file, parts.lines],
        outputs=[*about_file, parts.which],
        **QUICK,
    )
    for choice in ways:
        choice.input(
            about,
            inputs=[parts.file, *ways],
            outputs=about_file,
            **QUICK,
        )
    # Not `input`: that one does not hear what is pasted.
    parts.lines.change(typed, inputs=[parts.lines, parts.file], outputs=parts.which, **QUICK)
    sample.click(_sample, outputs=parts.file, **QUICK)


def _sample() -> Iterator[str]:
    """The sample data set of the package as a file of its own."""
    content = resources.files("finsent.data").joinpath("sample.csv").read_bytes()
    with tempfile.TemporaryDirectory(prefix="finsent-sample-") as folder:
        path = Path(folder) / "sample.csv"
        path.write_bytes(content)
        # gradio copies the file into its own cache before this resumes and the folder goes.
        yield str(path)


def file_updates(
    path: str | None, header: str, encoding: str, separator: str | None
) -> tuple[Any, ...]:
    """What is offered for a file: its columns, those of true labels, what row 1 is, its encoding
    and its separator; and what the status line says of it.

    header, encoding, separator: as chosen; empty where the file tells.
    """
    none = gr.update(choices=[], value=None, visible=False)
    first, named = (gr.update(value=v, visible=path is not None) for v in (header, encoding))
    asked = gr.update(value=separator, visible=path is not None and bool(separator))
    if path is None:
        return none, none, first, named, asked, ""
    try:
        upload = read_upload(Path(path), _reading(header, encoding, separator))
    except TableError as error:
        if error.option.startswith("--delimiter"):
            asked = gr.update(visible=True)
        said = refusal_html("This file cannot be read.", error)
        return none, none, first, named, asked, said
    table, n = upload.table, len(upload.rows)
    columns = "column" if len(table.names) == 1 else "columns"
    said = f"{n:,} {'row' if n == 1 else 'rows'}, {len(table.names)} {columns}. {table.found}."
    if not header and not table.has_header:
        said += " Row 1 looks like a text and is scored too; choose otherwise if it is not."
    if not separator and may_hold_columns(table, upload.rows):
        asked = gr.update(visible=True)
        said += " If these are several columns, choose what stands between them below Separator."
    html = f'<p class="fs-batch-says">{escape(said)}</p>'
    if table.warnings:
        html += notice("This looks wrong.", "; ".join(table.warnings), tone="warning")
    names = list(table.names)
    return (
        gr.update(choices=names, value=text_column(table, upload.rows), visible=True),
        gr.update(choices=[NO_LABELS, *names], value=find_labels(table) or NO_LABELS, visible=True),
        first,
        named,
        asked,
        html,
    )


def refusal_html(title: str, error: TableError) -> str:
    """Why nothing can be read, with a button that reads it otherwise where that would help."""
    reason = str(error)
    if error.option.startswith("--delimiter"):
        reason += ", or choose another one below Separator"
    said = notice(title, f"{reason[:1].upper()}{reason[1:]}.", tone="warning")
    if error.encoding not in _TITLES:
        return said
    return (
        f'{said}<button type="button" class="fs-more" data-send="{error.encoding}">'
        f"Read it as {escape(_TITLES[error.encoding])} and score</button>"
    )


def read_otherwise(source: Source, told: Sequence[gr.HTML]) -> Any:
    """The event of a click on what `refusal_html` offers: the file is read in that encoding.

    told: where such messages are shown.
    """

    def reread(path: str | None, header: str, event: gr.EventData) -> list[Any]:
        return list(file_updates(path, header, sent(event), ""))

    return gr.on(
        [html.click for html in told],
        reread,
        inputs=[source.file, source.header],
        outputs=[
            source.column,
            source.labels,
            source.header,
            source.encoding,
            source.separator,
            source.found,
        ],
        **QUICK,
    )


def _reading(header: str, encoding: str, separator: str | None) -> Reading:
    return Reading(
        encoding=encoding or None,
        delimiter=separator or None,
        header={"": None, "names": True, "text": False}[header],
    )
