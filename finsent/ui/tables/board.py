"""The board itself: what a line stands for, the columns, their cells and their order."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from finsent.config import ARMS, STUDY_ARMS
from finsent.plots.style import ARM_STYLES
from finsent.results.catalog import backbone_title, dataset_title
from finsent.results.schema import NOT_MEASURED
from finsent.results.text import NONE, count
from finsent.ui.parts.markup import (
    arm_title,
    milliseconds,
    notice,
    percent,
    percent_interval,
    plain_device,
    swatch,
    table,
)
from finsent.ui.tables.filters import Board, Entry, Filters

PER_ARM, PER_RUN = "arm", "run"
_CALLS = re.compile(r"n = (\d+)")
"""In a stored protocol of timing."""


@dataclass(frozen=True)
class Column:
    """A column of the board."""

    key: str
    title: str
    value: Callable[[Entry], Any]
    """What the column is sorted by; None sorts last."""
    cell: Callable[[Entry, tuple[float, float]], str]
    """HTML of a cell, given an arm and the range of the interval strips."""
    highest_first: bool = False
    numeric: bool = True
    strip: bool = False
    """Whether cells hold an interval strip, whose ends the heading names."""


def _mean(key: str) -> Callable[[Entry], float | None]:
    return lambda arm: arm["mean"][key]


def _shown(key: str, form: Callable[[float], str]) -> Callable[[Entry, tuple[float, float]], str]:
    def cell(arm: Entry, scale: tuple[float, float]) -> str:
        value, deviation = arm["mean"][key], arm["sd"][key]
        if value is None:
            return '<span class="fs-quiet">not recorded</span>'
        spread = f' <span class="fs-ci">± {form(deviation)}</span>' if deviation else ""
        return f"{form(value)}{spread}"

    return cell


def _scored(key: str) -> Callable[[Entry, tuple[float, float]], str]:
    def cell(arm: Entry, scale: tuple[float, float]) -> str:
        value, interval = arm["mean"][key], arm["ci"][key]
        return (
            f'<b>{percent(value, 2)}</b> <span class="fs-ci">{percent_interval(interval)}</span>'
            + _strip(arm["arm"], value, interval, scale)
        )

    return cell


def _said(key: str) -> Callable[[Entry], str | None]:
    return lambda arm: arm.get(key)


def _told(key: str) -> Callable[[Entry, tuple[float, float]], str]:
    def cell(arm: Entry, scale: tuple[float, float]) -> str:
        value = arm.get(key)
        # A revision is a hash or a tag: its start tells it.
        return NONE if value is None else escape(str(value)[:24])

    return cell


def _four(value: float) -> str:
    return f"{value:.4f}"


def _whole(value: float) -> str:
    return count(round(value))


def _seconds(value: float) -> str:
    return f"{value:,.0f}\u202fs"


def _megabytes(value: float) -> str:
    return f"{value:,.0f}\u202fMB"


def _points(value: float) -> str:
    return percent(value, 2)


COLUMNS = (
    Column("accuracy", "Accuracy", _mean("accuracy"), _scored("accuracy"), True, False, True),
    Column("macro_f1", "Macro-F1", _mean("macro_f1"), _scored("macro_f1"), True, False, True),
    Column(
        "weighted_f1", "Weighted F1", _mean("weighted_f1"), _shown("weighted_f1", _points), True
    ),
    Column("nll", "Loss (NLL)", _mean("nll"), _shown("nll", _four)),
    Column("ece", "Calibration error (ECE)", _mean("ece"), _shown("ece", _points)),
    Column(
        "trainable_params",
        "Parameters",
        _mean("trainable_params"),
        _shown("trainable_params", _whole),
    ),
    Column(
        "dendrites",
        "Dendrites",
        lambda arm: arm["dendrites_max"],
        lambda arm, scale: _dendrites(arm),
        True,
    ),
    Column(
        "latency_ms_p50",
        "Median time",
        _mean("latency_ms_p50"),
        _shown("latency_ms_p50", milliseconds),
    ),
    Column(
        "latency_ms_p95",
        "95th percentile",
        _mean("latency_ms_p95"),
        _shown("latency_ms_p95", milliseconds),
    ),
    Column(
        "peak_memory_mb",
        "Memory, training",
        _mean("peak_memory_mb"),
        _shown("peak_memory_mb", _megabytes),
    ),
    Column(
        "train_seconds",
        "Training time",
        _mean("train_seconds"),
        _shown("train_seconds", _seconds),
    ),
    *(
        Column(key, title, _said(key), _told(key), numeric=False)
        for key, title in (
            ("trained_on_data", "Trained on this data"),
            ("tested", "Tested"),
            ("licence", "Licence"),
            ("revision", "Revision"),
            ("date", "Date"),
        )
    ),
    Column(
        "folds",
        "Accuracy on ten folds",
        lambda arm: arm["folds"]["mean"]["accuracy"] if arm.get("folds") else None,
        lambda arm, scale: _on_folds(arm),
        True,
    ),
    Column(
        "n_test", "Test answers", lambda arm: arm["n_test"], lambda arm, _: count(arm["n_test"])
    ),
)
"""Every column that can be picked; rank and variant, with its runs, are always there."""


FIRST_COLUMNS = ("accuracy", "macro_f1", "nll", "trainable_params", "dendrites", "latency_ms_p50")


RANK = "rank"


def _on_folds(arm: Entry) -> str:
    folds = arm.get("folds")
    if not folds:
        return '<span class="fs-quiet">not tested</span>'
    mean, deviation = (folds[name]["accuracy"] for name in ("mean", "sd"))
    return f'{_points(mean)} <span class="fs-ci">± {_points(deviation)}</span>'


def _dendrites(arm: Entry) -> str:
    low, high = arm["dendrites_min"], arm["dendrites_max"]
    text = str(low) if low == high else f"{low}–{high}"
    if arm["seeds_without_dendrites"]:
        without = ", ".join(map(str, arm["seeds_without_dendrites"]))
        text += f' <span class="fs-flag">none kept: run {escape(without)}</span>'
    return text


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


def run_entry(row: Entry) -> dict[str, Any]:
    """A row of one run in the shape of an arm: means of one seed, no deviation, no rank."""
    metrics = {name: row[name] for name in _ROW_METRICS}
    empty = bool(row["dendrites_requested"]) and row["dendrites"] == 0
    return {
        **{key: row[key] for key in ("backbone", "dataset", "protocol", "arm", "n_test", "ci")},
        "seeds": [row["seed"]],
        "mean": metrics,
        "sd": dict.fromkeys(metrics),
        "dendrites_min": row["dendrites"],
        "dendrites_max": row["dendrites"],
        "seeds_without_dendrites": [row["seed"]] if empty else [],
        "latency_protocol": [row["latency_protocol"]],
        **{key: row.get(key) for key in (*_HONESTY, "form", "folds")},
    }


_HONESTY = ("trained_on_data", "tested", "licence", "revision", "date")
_ROW_METRICS = tuple(
    column.key
    for column in COLUMNS
    if column.key not in ("dendrites", "n_test", "folds", *_HONESTY)
)


def arms_on(board: Board) -> list[str]:
    """The three arms, then further controls and models of others that the board has."""
    present = dict.fromkeys(entry["arm"] for entry in board["arms"])
    own = [arm for arm in STUDY_ARMS if arm in ARMS or arm in present]
    return [*own, *(arm for arm in present if arm not in own)]


def entries(board: Board, level: str) -> list[Entry]:
    """What a line of the table stands for: an arm over its seeds, or a single run."""
    return list(board["arms"]) if level == PER_ARM else [run_entry(row) for row in board["rows"]]


def arranged(found: Sequence[Entry], sort: str, *, reverse: bool = False) -> list[Entry]:
    """Entries by rank (single runs: backbones apart) or by a column, best first unless reversed."""
    if sort == RANK:
        order = {arm: number for number, arm in enumerate(STUDY_ARMS)}
        ordered = sorted(
            found,
            key=lambda e: (
                (e["standing"], -e["mean"]["accuracy"])
                if "standing" in e
                else (e["backbone"], order.get(e["arm"], len(order)), e["seeds"])
            ),
        )
        return ordered[::-1] if reverse else ordered
    column = next(column for column in COLUMNS if column.key == sort)
    known = [entry for entry in found if column.value(entry) is not None]
    known.sort(key=column.value, reverse=column.highest_first != reverse)
    return known + [entry for entry in found if column.value(entry) is None]


def board_html(
    board: Board,
    filters: Filters,
    *,
    level: str = PER_ARM,
    sort: str = RANK,
    reverse: bool = False,
    columns: Sequence[str] = FIRST_COLUMNS,
) -> str:
    """Arms aggregated over seeds, or every run, with intervals and tie groups."""
    found = arranged(
        [entry for entry in entries(board, level) if filters.own(entry)], sort, reverse=reverse
    )
    if not found:
        return notice(
            "Nothing of this project here.",
            "No run fits the data set, protocol, filters and search above; widen one of them.",
        )
    picked = [column for column in COLUMNS if column.key in columns]
    scale = _scale(found, [column.key for column in picked if column.strip])
    per_arm = level == PER_ARM
    several = len({entry["backbone"] for entry in board["arms"]}) > 1
    leads = (("Rank", RANK), ("Variant", None)) if per_arm else (("Variant", RANK), ("Run", None))
    headers = [_heading(title, key, sort, reverse) for title, key in leads]
    headers += [
        _heading(column.title, column.key, sort, reverse, scale if column.strip else None)
        for column in picked
    ]
    rows = []
    for entry in found:
        tied = per_arm and _tied(board, entry)
        name = _name(entry, several, per_arm)
        seeds = ", ".join(map(str, entry["seeds"]))
        rank = f"{entry.get('standing', '')}{', shared' if tied else ''}"
        first = [rank, name] if per_arm else [name, seeds]
        rows.append([*first, *(column.cell(entry, scale) for column in picked)])
    numeric = [2 + index for index, column in enumerate(picked) if column.numeric]
    what = "mean over training runs" if per_arm else "every run"
    return (
        table(
            headers,
            rows,
            caption=f"{dataset_title(filters.dataset)}: {what}, with 95 % intervals",
            numeric=numeric,
            css_class="fs-arms",
        )
        + f'<p class="fs-quiet">{len(found)} {"variant" if per_arm else "run"}'
        f"{'' if len(found) == 1 else 's'}. {_explanation(found, per_arm)}</p>"
    )


def _tied(board: Board, arm: Entry) -> bool:
    """Whether an arm shares its rank with another, shown or filtered away."""
    place = ("dataset", "standing_group")
    return sum(all(other[key] == arm[key] for key in place) for other in board["arms"]) > 1


def _explanation(found: Sequence[Entry], per_arm: bool) -> str:
    shared = (
        "Models that the paired test does not tell apart share a rank. It compares answers "
        "sentence by sentence, so a model can share the rank of a better one although one between "
        "them does not. ± is the standard deviation "
        "over training runs. "
        if per_arm
        else ""
    )
    told = dict.fromkeys(p for entry in found for p in entry["latency_protocol"])
    measured = [_CALLS.sub(r"\1 calls each", p) for p in told if p != NOT_MEASURED]
    timing = "; ".join(map(plain_device, measured)) or NOT_MEASURED
    timing = timing.replace(" arms interleaved", " variants in turns")
    protocol = ", ".join(dict.fromkeys(entry["protocol"] for entry in found))
    return (
        f"{shared}Protocol: {escape(protocol)}. Whiskers are 95&#8239;% bootstrap intervals over "
        f"test sentences{', runs pooled' if per_arm else ''}. Time of one sentence: "
        f"{escape(timing)}."
    )


def _name(entry: Entry, with_backbone: bool, with_runs: bool) -> str:
    runs = len(entry["seeds"])
    under = [
        *([backbone_title(entry["backbone"])] if with_backbone else []),
        *([f"{runs} run{'' if runs == 1 else 's'}"] if with_runs else []),
    ]
    return (
        f'<span class="fs-arm">{swatch(entry["arm"])}{escape(arm_title(entry["arm"]))}</span>'
        + (f'<span class="fs-note">{escape(", ".join(under))}</span>' if under else "")
    )


def _heading(
    title: str,
    key: str | None,
    sort: str,
    reverse: bool,
    scale: tuple[float, float] | None = None,
) -> str:
    """A column's name, as a button that sorts by it."""
    ends = (
        f'<span class="fs-scale" aria-hidden="true"><i>{scale[0]:.0f}</i>'
        f"<i>{scale[1]:.0f}&#8239;%</i></span>"
        if scale
        else ""
    )
    if key is None:
        return escape(title)
    mark = ("▴" if reverse else "▾") if key == sort else "↕"
    state = f", sorted, {'worst' if reverse else 'best'} first" if key == sort else ""
    return (
        f'<button type="button" class="fs-sort" data-send="{escape(key)}" '
        f'aria-label="Sort by {escape(title)}{state}">{escape(title)}'
        f'<span aria-hidden="true">{mark}</span></button>{ends}'
    )


def _scale(found: Sequence[Entry], keys: Sequence[str]) -> tuple[float, float]:
    """Percent range of the interval strips: whole fives around all whiskers."""
    intervals = [entry["ci"][key] for entry in found for key in keys] or [(0.0, 1.0)]
    low = 5 * int(100 * min(bounds[0] for bounds in intervals) // 5)
    high = 5 * -int(-100 * max(bounds[1] for bounds in intervals) // 5)
    return float(low), float(min(high, 100) if high > low else low + 5)
