"""The Leaderboard tab: artifacts/leaderboard.json, drawn. No number is computed here."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from finsent.config import STUDY_ARMS
from finsent.machine.files import write_bytes_atomically
from finsent.plots.board import COSTS, pareto_figure
from finsent.plots.style import ARM_STYLES, ChartError
from finsent.results.catalog import Catalog, backbone_title, dataset_title
from finsent.results.leaderboard import arms_csv
from finsent.results.references import bibtex
from finsent.results.runs import canonical_json
from finsent.ui.parts.events import interactive_html, sent
from finsent.ui.parts.markup import arms_legend, left_out, notice
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
from finsent.ui.tables.published import references_html
from finsent.ui.tables.verdicts import WHAT_P_IS, verdicts_html

# -------------------------------------------------------------------------------------------- table


# --------------------------------------------------------------------------------------- verdicts


# ------------------------------------------------------------------------------------- references


# -------------------------------------------------------------------------------------------- tab


def pareto(board: Board, filters: Filters, cost_key: str) -> tuple[str, Any, str]:
    """Legend, chart of cost against score and the remark below; no chart without a cost."""
    cost = next(cost for cost in COSTS if cost.key == cost_key)
    arms = [arm for arm in board["arms"] if filters.own(arm)]
    rows = [row for row in board["rows"] if filters.own({**row, "seeds": [row["seed"]]})]
    try:
        figure = pareto_figure(arms, rows, cost)
    except ChartError as error:
        return "", None, notice("No chart.", str(error))
    legend = arms_legend([arm for arm in STUDY_ARMS if any(entry["arm"] == arm for entry in arms)])
    return (
        legend,
        figure,
        (
            '<p class="fs-quiet">Up and to the left is better. Vertical whiskers: 95&#8239;% '
            "interval of macro-F1; horizontal: standard deviation over seeds; faint marks: single "
            "seeds. The dashed line joins the arms that none beats on both means, which is no "
            "claim that they differ: the verdicts above say whether they do.</p>"
        ),
    )


def add_leaderboard_tab(catalog: Catalog) -> None:
    """Draws the tab inside the current gr.Tab."""
    board = catalog.leaderboard
    if catalog.damaged:
        gr.HTML(left_out(catalog.damaged), elem_id="left-out")
    if not catalog.runs or board is None or not board["arms"]:
        gr.HTML(
            notice(
                "No leaderboard yet.",
                f"{catalog.root / 'leaderboard.json'} is missing or empty; make it with "
                "`python train_models.py leaderboard`.",
            )
        )
        return
    _Tab(catalog, board).draw()


def _split(values: Sequence[Any]) -> tuple[Filters, Sequence[Any]]:
    """The controls' values: the filters, then what follows them."""
    dataset, protocol, backbone, arms, search, *rest = values
    return Filters(dataset, protocol, backbone, tuple(arms), search or ""), rest


class _Tab:
    """The tab's components and the functions that renew them."""

    def __init__(self, catalog: Catalog, board: Board) -> None:
        self.catalog, self.board = catalog, board
        datasets = catalog.all_datasets()
        self.first = Filters(datasets[0], arms=tuple(arms_on(self.board)))
        self.datasets = [(dataset_title(name), name) for name in datasets]

    def draw(self) -> None:
        """All of it, in the order of the page."""
        with gr.Row(elem_classes="fs-controls"):
            self.filters = self._add_filters()
        with gr.Row(elem_classes="fs-controls"):
            self.view = self._add_view()
        self.view.append(self._add_columns())
        gr.HTML("<h2>Do the arms differ?</h2>")
        verdicts = gr.HTML(verdicts_html(self.board, self.first), elem_id="verdicts")
        gr.HTML(f'<p class="fs-quiet">{WHAT_P_IS}</p>')
        gr.HTML("<h2>The board</h2>")
        self.table = interactive_html(board_html(self.board, self.first), "board-table")
        self._add_exports()
        gr.HTML("<h2>What the score costs</h2>")
        with gr.Row(elem_classes="fs-controls"):
            cost = gr.Radio(
                choices=[(c.title, c.key) for c in COSTS],
                value=COSTS[0].key,
                label="Macro-F1 against",
                elem_id="board-cost",
            )
        named, figure, remark = pareto(self.board, self.first, COSTS[0].key)
        legend = gr.HTML(named, elem_id="pareto-legend")
        plot = gr.Plot(
            figure, show_label=False, container=False, elem_id="chart-pareto", buttons=[]
        )
        note = gr.HTML(remark, elem_id="pareto-note")
        references = gr.HTML(references_html(self.board, self.first), elem_id="references")
        self._connect_rows(verdicts, references)
        self._connect_chart(cost, legend, plot, note)

    def _add_filters(self) -> list[Any]:
        board = self.board
        backbones = list(dict.fromkeys(arm["backbone"] for arm in board["arms"]))
        own = dict.fromkeys(arm["protocol"] for arm in board["arms"])
        published = dict.fromkeys(reference["split"] for reference in board["references"])
        protocols = [(f"{name} (here)", name) for name in own]
        protocols += [(name, name) for name in published if name not in own]
        plain: dict[str, Any] = {"filterable": False, "min_width": 150}
        shown = arms_on(board)
        return [
            gr.Dropdown(
                self.datasets,
                value=self.first.dataset,
                label="Data set",
                elem_id="board-dataset",
                **plain,
            ),
            gr.Dropdown(
                [("All", ALL), *protocols],
                value=ALL,
                label="Protocol",
                elem_id="board-protocol",
                **plain,
            ),
            gr.Dropdown(
                [("All", ALL), *((backbone_title(name), name) for name in backbones)],
                value=ALL,
                label="Backbone",
                elem_id="board-backbone",
                **plain,
            ),
            gr.CheckboxGroup(
                [(ARM_STYLES[arm].title, arm) for arm in shown],
                value=shown,
                label="Arms",
                elem_id="board-arms",
            ),
            gr.Textbox(
                label="Search",
                placeholder="model, protocol, seed 1 …",
                max_lines=1,
                elem_id="board-search",
                min_width=150,
            ),
        ]

    def _add_view(self) -> list[Any]:
        level = gr.Radio(
            [("Mean over seeds", PER_ARM), ("Every run", PER_RUN)],
            value=PER_ARM,
            label="Rows",
            elem_id="board-level",
        )
        sort = gr.Dropdown(
            [("Rank", RANK), *((column.title, column.key) for column in COLUMNS)],
            value=RANK,
            label="Sort by",
            elem_id="board-sort",
            filterable=False,
            min_width=150,
        )
        reverse = gr.Checkbox(label="Worst first", elem_id="board-reverse", min_width=0)
        return [level, sort, reverse]

    def _add_columns(self) -> gr.CheckboxGroup:
        with gr.Accordion("Columns", open=False, elem_id="board-columns-box"):
            return gr.CheckboxGroup(
                [(column.title, column.key) for column in COLUMNS],
                value=list(FIRST_COLUMNS),
                show_label=False,
                label="Columns",
                elem_id="board-columns",
            )

    def _add_exports(self) -> None:
        """Buttons whose file is there before the click: a click that makes it downloads nothing."""
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
        with gr.Row(elem_classes="fs-exports"):
            gr.HTML("<span>Download</span>", elem_classes="fs-chips-lead")
            small: dict[str, Any] = {"size": "sm", "min_width": 0, "elem_classes": "fs-chip"}
            shown = gr.DownloadButton(
                "CSV, rows shown",
                value=shown_csv(*(control.value for control in controls)),
                elem_id="export-csv",
                **small,
            )
            gr.DownloadButton(
                "JSON, whole board",
                value=file("leaderboard.json", canonical_json(self.board)),
                elem_id="export-json",
                **small,
            )
            gr.DownloadButton(
                "BibTeX", value=file("finsent.bib", bibtex()), elem_id="export-bib", **small
            )
        # Not `value=shown_csv, inputs=...`: that would publish an endpoint.
        gr.on(
            [control.change for control in controls],
            shown_csv,
            inputs=controls,
            outputs=shown,
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

    def _connect_chart(self, cost: gr.Radio, legend: gr.HTML, plot: gr.Plot, note: gr.HTML) -> None:
        def chart(cost_key: str, *values: Any) -> tuple[str, Any, str]:
            named, figure, remark = pareto(self.board, _split(values)[0], cost_key)
            return named, gr.update(value=figure, visible=figure is not None), remark

        gr.on(
            [component.change for component in (cost, *self.filters)],
            chart,
            inputs=[cost, *self.filters],
            outputs=[legend, plot, note],
            **QUICK,
        )
