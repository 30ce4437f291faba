"""The board of Results: artifacts/leaderboard.json, drawn. No number is computed here."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from finsent.machine.files import write_bytes_atomically
from finsent.plots.board import COSTS, pareto_figure
from finsent.plots.style import ARM_STYLES, ChartError
from finsent.results.catalog import Catalog, backbone_title, dataset_title
from finsent.results.leaderboard import arms_csv
from finsent.results.references import bibtex
from finsent.results.runs import canonical_json
from finsent.ui.parts.events import interactive_html, sent
from finsent.ui.parts.markup import arm_title, arms_legend, html, left_out, notice
from finsent.ui.parts.selectors import QUICK
from finsent.ui.tables.board import (
    COLUMNS,
    FIRST_COLUMNS,
    PER_ARM,
    PER_RUN,
    RANK,
    arms_on,
    arranged,
    board_html,
    entries,
)
from finsent.ui.tables.filters import ALL, Board, Filters
from finsent.ui.tables.matrix import asked_order, datasets_of, effects_html, matrix_html
from finsent.ui.tables.published import references_html
from finsent.ui.tables.verdicts import verdicts_html


def pareto(board: Board, filters: Filters, cost_key: str) -> tuple[str, Any, str]:
    """Legend, chart of cost against score and what it says in words; no chart without a cost."""
    cost = next(cost for cost in COSTS if cost.key == cost_key)
    arms = [arm for arm in board["arms"] if filters.own(arm)]
    rows = [row for row in board["rows"] if filters.own({**row, "seeds": [row["seed"]]})]
    try:
        figure, frontier = pareto_figure(arms, rows, cost)
    except ChartError as error:
        return "", None, notice("No chart.", str(error))
    drawn = [arm for arm in arms_on(board) if any(entry["arm"] == arm for entry in arms)]
    ours = [arm for arm in drawn if arm in ARM_STYLES]
    note = "grey: models from elsewhere" if len(ours) < len(drawn) else ""
    return arms_legend(ours, note), figure, html("frontier", frontier=frontier, cost=cost)


def add_leaderboard_tab(catalog: Catalog) -> None:
    """Draws the section inside the current gr.Tab."""
    board = catalog.leaderboard
    if catalog.damaged:
        gr.HTML(left_out(catalog.damaged), elem_id="left-out")
    if not catalog.runs or board is None or not board["arms"]:
        gr.HTML(
            notice(
                "No results yet.",
                f"{catalog.root / 'leaderboard.json'} is missing or empty; make it with "
                "`python train_models.py leaderboard`.",
            )
        )
        return
    _Board(board).draw()


def _split(values: Sequence[Any]) -> tuple[Filters, Sequence[Any]]:
    """The controls' values: the filters, then what follows them."""
    dataset, protocol, backbone, arms, search, *rest = values
    return Filters(dataset, protocol, backbone, tuple(arms), search or ""), rest


class _Board:
    """The section's components and the functions that renew them."""

    def __init__(self, board: Board) -> None:
        self.board = board
        datasets = datasets_of(board)
        self.first = Filters(datasets[0], arms=tuple(arms_on(board)))
        self.datasets = [(dataset_title(name), name) for name in datasets]

    def draw(self) -> None:
        """All of it, in the order of the page."""
        board, first = self.board, self.first
        gr.HTML("<h2>Every model on every data set</h2>")
        matrix = interactive_html(matrix_html(board, first.dataset), "board-matrix")

        def sort_by(event: gr.EventData) -> str:
            dataset, reverse = asked_order(sent(event))
            return matrix_html(board, dataset, reverse=reverse)

        matrix.click(sort_by, outputs=matrix, **QUICK)
        gr.HTML("<h2>What dendrites changed</h2>")
        gr.HTML(effects_html(board), elem_id="board-effects")
        gr.HTML("<h2>One data set in detail</h2>")
        self._add_controls()
        self.table = interactive_html(board_html(board, first), "board-table")
        connect_exports = self._add_exports()
        verdicts = gr.HTML(verdicts_html(board, first), elem_id="verdicts")
        gr.HTML("<h2>Score vs. cost</h2>")
        cost = gr.Radio(
            [(c.title, c.key) for c in COSTS],
            value=COSTS[0].key,
            label="Macro-F1 against",
            elem_id="board-cost",
        )
        legend, figure, said = pareto(board, first, COSTS[0].key)
        chart = [
            gr.HTML(legend, elem_id="pareto-legend"),
            gr.Plot(figure, show_label=False, container=False, elem_id="chart-pareto", buttons=[]),
            gr.HTML(said, elem_id="pareto-note"),
        ]
        references = gr.HTML(references_html(board, first), elem_id="references")
        # The table first: it follows every letter that is typed, in order.
        self._connect_rows(verdicts, references)
        self._connect_chart(cost, chart)
        connect_exports()

    def _add_controls(self) -> None:
        """The data set in sight; everything else folded away."""
        plain: dict[str, Any] = {"filterable": False, "min_width": 150}
        shown = arms_on(self.board)
        with gr.Row(elem_classes="fs-controls"):
            dataset = gr.Dropdown(
                self.datasets,
                value=self.first.dataset,
                label="Data set",
                elem_id="board-dataset",
                **plain,
            )
        with gr.Accordion("Filters, rows and columns", open=False, elem_id="board-filters"):
            with gr.Row(elem_classes="fs-controls"):
                protocol = gr.Dropdown(
                    self._protocols(),
                    value=ALL,
                    label="Protocol",
                    elem_id="board-protocol",
                    **plain,
                )
                backbones = dict.fromkeys(arm["backbone"] for arm in self.board["arms"])
                backbone = gr.Dropdown(
                    [("All", ALL), *((backbone_title(name), name) for name in backbones)],
                    value=ALL,
                    label="Base model",
                    elem_id="board-backbone",
                    **plain,
                )
                search = gr.Textbox(
                    label="Search",
                    placeholder="model, protocol, run 1 …",
                    max_lines=1,
                    elem_id="board-search",
                    min_width=150,
                )
                arms = gr.CheckboxGroup(
                    [(arm_title(arm), arm) for arm in shown],
                    value=shown,
                    label="Variants",
                    elem_id="board-arms",
                )
            with gr.Row(elem_classes="fs-controls"):
                level = gr.Radio(
                    [("Mean over training runs", PER_ARM), ("Every run", PER_RUN)],
                    value=PER_ARM,
                    label="Rows",
                    elem_id="board-level",
                )
                sort = gr.Dropdown(
                    [("Rank", RANK), *((column.title, column.key) for column in COLUMNS)],
                    value=RANK,
                    label="Sort by",
                    elem_id="board-sort",
                    **plain,
                )
                reverse = gr.Checkbox(label="Worst first", elem_id="board-reverse", min_width=0)
            columns = gr.CheckboxGroup(
                [(column.title, column.key) for column in COLUMNS],
                value=list(FIRST_COLUMNS),
                label="Columns",
                elem_id="board-columns",
            )
        self.filters: list[Any] = [dataset, protocol, backbone, arms, search]
        self.view: list[Any] = [level, sort, reverse, columns]

    def _protocols(self) -> list[tuple[str, str | int | float]]:
        own = dict.fromkeys(arm["protocol"] for arm in self.board["arms"])
        published = dict.fromkeys(reference["split"] for reference in self.board["references"])
        return [
            ("All", ALL),
            *((f"{name} (here)", name) for name in own),
            *((name, name) for name in published if name not in own),
        ]

    def _add_exports(self) -> Callable[[], Any]:
        """Buttons whose file is there before the click: a click that makes it downloads nothing.

        Returns what makes the files follow the controls.
        """
        folder = Path(tempfile.mkdtemp(prefix="finsent-export-"))

        def file(name: str, text: str) -> str:
            # By content: two visitors must not overwrite each other's file, nor fill the disk.
            path = folder / hashlib.sha256(text.encode()).hexdigest()[:16] / name
            if not path.is_file():
                write_bytes_atomically(path, text.encode())
            return str(path)

        def shown_csv(*values: Any) -> str:
            filters, (level, sort, reverse) = _split(values)
            found = [e for e in entries(self.board, level) if filters.own(e)]
            found = arranged(found, sort, reverse=reverse)
            return file("finsent-leaderboard.csv", arms_csv(found))

        controls = [*self.filters, *self.view[:3]]
        files = {
            "csv": ("CSV, rows shown", shown_csv(*(control.value for control in controls))),
            "json": ("JSON, whole board", file("leaderboard.json", canonical_json(self.board))),
            "bib": ("BibTeX", file("finsent.bib", bibtex())),
        }
        with gr.Row(elem_classes="fs-exports"):
            gr.HTML("<span>Download</span>", elem_classes="fs-chips-lead")
            buttons = {
                kind: gr.DownloadButton(
                    title,
                    value=path,
                    elem_id=f"export-{kind}",
                    size="sm",
                    min_width=0,
                    elem_classes="fs-chip",
                )
                for kind, (title, path) in files.items()
            }
        # Not `value=shown_csv, inputs=...`: that would publish an endpoint.
        return lambda: gr.on(
            [control.change for control in controls],
            shown_csv,
            inputs=controls,
            outputs=buttons["csv"],
            **QUICK,
        )

    def _connect_rows(self, verdicts: gr.HTML, references: gr.HTML) -> None:
        controls = [*self.filters, *self.view]

        def rows(*values: Any) -> tuple[str, str, str]:
            filters, (level, sort, reverse, columns) = _split(values)
            return (
                board_html(
                    self.board, filters, level=level, sort=sort, reverse=reverse, columns=columns
                ),
                verdicts_html(self.board, filters),
                references_html(self.board, filters),
            )

        gr.on(
            [component.change for component in controls],
            rows,
            inputs=controls,
            outputs=[self.table, verdicts, references],
            **QUICK,
        )

        def sort_by(chosen: str, reverse: bool, event: gr.EventData) -> tuple[str, bool]:
            key = sent(event)
            if key not in {RANK, *(column.key for column in COLUMNS)}:
                return chosen, reverse
            return key, not reverse if key == chosen else False

        _, sort, reverse, _ = self.view
        self.table.click(sort_by, inputs=[sort, reverse], outputs=[sort, reverse], **QUICK)

    def _connect_chart(self, cost: gr.Radio, outputs: Sequence[Any]) -> None:
        def chart(cost_key: str, *values: Any) -> tuple[str, Any, str]:
            legend, figure, said = pareto(self.board, _split(values)[0], cost_key)
            return legend, gr.update(value=figure, visible=figure is not None), said

        gr.on(
            [component.change for component in (cost, *self.filters)],
            chart,
            inputs=[cost, *self.filters],
            outputs=list(outputs),
            **QUICK,
        )
