"""The Leaderboard tab: artifacts/leaderboard.json, drawn. No number is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from finsent.charts import ARM_STYLES
from finsent.ui.markup import (
    count,
    milliseconds,
    notice,
    percent,
    percent_interval,
    sentence,
    swatch,
    table,
)
from finsent.ui.selectors import RunSelectors, add_run_selectors
from finsent.ui.state import (
    Catalog,
    backbone_title,
    dataset_description,
    dataset_order,
    dataset_title,
)

Board = Mapping[str, Any]
Entry = Mapping[str, Any]

OUTCOMES = {"better": "Better", "worse": "Worse", "tied": "Tied"}

RUN_COLUMNS = (
    ("Backbone", "str", ""),
    ("Data set", "str", ""),
    ("Arm", "str", ""),
    ("Seed", "number", "d"),
    ("Accuracy, %", "number", ".2f"),
    ("95 % CI", "str", ""),
    ("Macro-F1, %", "number", ".2f"),
    ("95 % CI ", "str", ""),
    ("NLL", "number", ".4f"),
    ("ECE, %", "number", ".2f"),
    ("Parameters", "number", ",d"),
    ("Dendrites", "number", "d"),
    ("Test n", "number", "d"),
    ("Epochs", "number", "d"),
    ("Training, s", "number", ".1f"),
    ("p50, ms", "number", ".2f"),
)
"""Heading, type and number format of each column. Two intervals need two different headings."""


def run_rows(board: Board) -> list[list[str | float | int]]:
    """The table of runs: the rows of the leaderboard, rounded for reading."""
    return [
        [
            backbone_title(row["backbone"]),
            dataset_title(row["dataset"]),
            row["arm"],
            row["seed"],
            round(100 * row["accuracy"], 2),
            percent_interval(row["ci"]["accuracy"]),
            round(100 * row["macro_f1"], 2),
            percent_interval(row["ci"]["macro_f1"]),
            round(row["nll"], 4),
            round(100 * row["ece"], 2),
            row["trainable_params"],
            row["dendrites"],
            row["n_test"],
            row["epochs"],
            round(row["train_seconds"], 1),
            round(row["latency_ms_p50"], 2),
        ]
        for row in sorted(board["rows"], key=lambda row: dataset_order(row["dataset"]))
    ]


def run_table(board: Board) -> dict[str, Any]:
    """The rows for gr.Dataframe: numbers to sort by, and the same numbers as they are shown."""
    rows = run_rows(board)
    shown = [
        [format(cell, spec) for cell, (_, _, spec) in zip(row, RUN_COLUMNS, strict=True)]
        for row in rows
    ]
    return {
        "headers": [name for name, _, _ in RUN_COLUMNS],
        "data": rows,
        "metadata": {"display_value": shown},
    }


def _of(entries: Sequence[Entry], backbone: str, dataset: str) -> list[Entry]:
    return [e for e in entries if e["backbone"] == backbone and e["dataset"] == dataset]


# ------------------------------------------------------------------------------------------- arms


def arms_html(board: Board, backbone: str, dataset: str) -> str:
    """Arms of one backbone on one data set, aggregated over seeds, with intervals and ties."""
    arms = _of(board["arms"], backbone, dataset)
    if not arms:
        return notice(
            "Not on the board.",
            "These runs are newer than leaderboard.json; make it again with "
            "`python train_models.py leaderboard`.",
        )
    scale = _scale([arm["ci"][metric] for arm in arms for metric in ("accuracy", "macro_f1")])
    ends = (
        f'<span class="fs-scale" aria-hidden="true"><i>{scale[0]:.0f}</i>'
        f"<i>{scale[1]:.0f}&#8239;%</i></span>"
    )
    sizes = [arm["tie_group"] for arm in arms]
    rows = [_arm_row(arm, scale, sizes.count(arm["tie_group"]) > 1) for arm in arms]
    seeds = len(arms[0]["seeds"])
    return (
        table(
            [
                "Rank",
                "Arm",
                f"Accuracy {ends}",
                f"Macro-F1 {ends}",
                "NLL",
                "Parameters",
                "Dendrites",
                "Median time",
                "Seeds",
            ],
            rows,
            caption=f"{backbone_title(backbone)} on {dataset_title(dataset)}: "
            f"mean of {seeds} {'seed' if seeds == 1 else 'seeds'} with 95 % intervals",
            numeric=(4, 5, 6, 7, 8),
            css_class="fs-arms",
        )
        + '<p class="fs-quiet">Arms that the paired test does not tell apart share a rank, marked '
        "with =. Whiskers are 95&#8239;% bootstrap intervals over test sentences, seeds pooled. "
        f"Median time of one sentence: {escape(_timing(arms))}.</p>"
    )


def _timing(arms: Sequence[Entry]) -> str:
    return "; ".join(dict.fromkeys(p for arm in arms for p in arm["latency_protocol"]))


def _scale(intervals: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Percent range of the interval strips: whole fives around all whiskers."""
    low = 5 * int(100 * min(bounds[0] for bounds in intervals) // 5)
    high = 5 * -int(-100 * max(bounds[1] for bounds in intervals) // 5)
    return float(low), float(min(high, 100) if high > low else low + 5)


def _arm_row(arm: Entry, scale: tuple[float, float], tied: bool) -> list[str]:
    mean, ci = arm["mean"], arm["ci"]
    name = arm["arm"]
    title = ARM_STYLES[name].title if name in ARM_STYLES else name
    dendrites = str(arm["dendrites_min"])
    if arm["dendrites_max"] != arm["dendrites_min"]:
        dendrites += f"–{arm['dendrites_max']}"
    if arm["seeds_without_dendrites"]:
        without = ", ".join(map(str, arm["seeds_without_dendrites"]))
        dendrites += f' <span class="fs-flag">none kept: seed {escape(without)}</span>'
    return [
        f"{arm['rank']}{'&#8239;=' if tied else ''}",
        f'<span class="fs-arm">{swatch(name) if name in ARM_STYLES else ""}{escape(title)}</span>',
        _score(mean["accuracy"], ci["accuracy"])
        + _strip(name, mean["accuracy"], ci["accuracy"], scale),
        _score(mean["macro_f1"], ci["macro_f1"])
        + _strip(name, mean["macro_f1"], ci["macro_f1"], scale),
        f"{mean['nll']:.4f}",
        count(round(mean["trainable_params"])),
        dendrites,
        milliseconds(mean["latency_ms_p50"]),
        str(len(arm["seeds"])),
    ]


def _score(value: float, interval: Sequence[float]) -> str:
    return f'<b>{percent(value, 2)}</b> <span class="fs-ci">{percent_interval(interval)}</span>'


def _strip(arm: str, value: float, interval: Sequence[float], scale: tuple[float, float]) -> str:
    """A whisker on the shared scale. Decorative: the numbers stand in the cell before it."""
    low, high = scale
    left, right, dot = (100 * (100 * share - low) / (high - low) for share in (*interval, value))
    colour = ARM_STYLES[arm].colour if arm in ARM_STYLES else "currentColor"
    return (
        f'<span class="fs-strip" aria-hidden="true" style="--arm:{colour}">'
        f'<i style="left:{left:.1f}%;width:{right - left:.1f}%"></i>'
        f'<b style="left:{dot:.1f}%"></b></span>'
    )


# --------------------------------------------------------------------------------------- verdicts


def verdicts_html(board: Board, backbone: str, dataset: str) -> str:
    """One sentence per pair of arms; the pair that the project asks about comes first."""
    pairs = sorted(
        _of(board["comparisons"], backbone, dataset),
        key=lambda pair: (pair["a"], pair["b"]) != ("baseline", "dendritic"),
    )
    items = "".join(
        f'<li data-outcome="{escape(pair["outcome"])}"><h3>'
        f"{escape(sentence(pair['b'], stop=''))} against {escape(pair['a'])}"
        f"<span>{OUTCOMES.get(pair['outcome'], escape(pair['outcome']))}</span></h3>"
        f"<p>{escape(sentence(pair['verdict']))}</p></li>"
        for pair in pairs
    )
    return f'<ol class="fs-verdicts">{items}</ol>' if items else ""


# ------------------------------------------------------------------------------------- references


def references_html(board: Board, dataset: str) -> str:
    """Published results on the same data set, apart from our own and with their protocol."""
    shown = [r for r in board["references"] if r["dataset"] == dataset]
    if not shown:
        return ""
    said: set[str] = set()
    rows = []
    for reference in shown:
        note = reference["note"] or ""
        rows.append(_reference_row(reference, "As above." if note in said else note))
        said.update({note} - {""})
    return (
        '<section class="fs-published"><h2>Published elsewhere</h2>'
        "<p>Context, not competitors: each was measured under its own protocol, on other test "
        "sentences. Numbers under different protocols are not comparable.</p>"
        + table(
            ["Model", "Protocol", "Accuracy", "F1", "Test n", "Source"],
            rows,
            caption=f"Published results on {dataset_description(dataset)}",
            numeric=(2, 4),
            css_class="fs-wide fs-references",
        )
        + "</section>"
    )


def _reference_row(reference: Entry, note: str) -> list[str]:
    accuracy, deviation = reference["accuracy"], reference["sd"]
    spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
    f1 = "–"
    first = accuracy is None
    for key, kind in (
        ("macro_f1", "macro"),
        ("weighted_f1", "weighted"),
        ("f1_average_not_stated", "average not stated"),
    ):
        if reference[key] is not None:
            own = spread if first else ""
            f1 = f'{percent(reference[key])}{own} <span class="fs-ci">{kind}</span>'
            break
    source = escape(reference["source"])
    if reference["url"]:
        source = f'<a href="{escape(reference["url"])}" rel="noreferrer">{source}</a>'
    remark = f'<span class="fs-note">{escape(note)}</span>' if note else ""
    return [
        escape(reference["model"]) + remark,
        escape(reference["protocol"]),
        "–" if accuracy is None else percent(accuracy) + spread,
        f1,
        "–" if reference["n"] is None else count(reference["n"]),
        source,
    ]


# -------------------------------------------------------------------------------------------- tab


def add_leaderboard_tab(catalog: Catalog) -> RunSelectors | None:
    """Draws the tab inside the current gr.Tab. Returns its selectors; None without a board."""
    board = catalog.leaderboard
    if not catalog.runs or board is None:
        gr.HTML(
            notice(
                "No leaderboard yet.",
                f"{catalog.root / 'leaderboard.json'} is missing; make it with "
                "`python train_models.py leaderboard`.",
            )
        )
        return None
    # Selectors speak folder names, the board the configs' spelling: a Hub id keeps its slash.
    spelling = {run.folder.parts[-4]: run.backbone for run in catalog.runs}
    first = catalog.select(catalog.backbones()[0])

    def draw(backbone: str, dataset: str) -> tuple[str, str, str]:
        wanted = catalog.select(backbone, dataset)
        name = spelling[wanted.backbone]
        return (
            verdicts_html(board, name, wanted.dataset),
            arms_html(board, name, wanted.dataset),
            references_html(board, wanted.dataset),
        )

    with gr.Row(elem_classes="fs-controls"):
        selectors = add_run_selectors(catalog, first, with_seed=False, prefix="board")
    verdicts, arms, references = draw(first.backbone, first.dataset)
    outputs = [
        gr.HTML(verdicts, elem_id="verdicts"),
        gr.HTML(arms, elem_id="board-arms"),
    ]
    gr.HTML("<h2>Every run</h2>")
    gr.Dataframe(
        run_table(board),
        headers=[name for name, _, _ in RUN_COLUMNS],
        datatype=[kind for _, kind, _ in RUN_COLUMNS],  # type: ignore[misc]
        interactive=False,
        show_label=False,
        show_search="search",
        max_height=460,
        elem_id="runs",
        buttons=[],
    )
    outputs.append(gr.HTML(references, elem_id="references"))
    gr.on(
        [component.change for component in selectors.components],
        draw,
        inputs=selectors.components,
        outputs=outputs,
        show_progress="hidden",
        queue=False,
        api_visibility="private",
    )
    return selectors
