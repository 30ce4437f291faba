"""Every model on every data set at a glance, and what dendrites did on each.

Input are the arms and comparisons of leaderboard.json; nothing is computed anew but marks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finsent.config import STUDY_ARMS
from finsent.results.catalog import (
    backbone_title,
    dataset_description,
    dataset_order,
    dataset_title,
)
from finsent.results.metrics import SIGNIFICANCE
from finsent.results.references import PUBLISHED_GAIN_PCT
from finsent.results.schema import HERE
from finsent.ui.parts.markup import html, sentence
from finsent.ui.tables.filters import ALL, Board, Entry

ARM_NOTES = {
    "baseline": "is fine-tuned with LoRA alone",
    "dendritic": "grows dendrites as well",
    "restart": "is interrupted as the dendritic run was, without dendrites",
    "matched": "has as many parameters as the dendritic model, without dendrites",
}
PAIR = ("baseline", "dendritic")
"""The comparison that the project is about."""
CONTROLS = {"restart": "restarted", "matched": "same-size"}
"""What tells dendrites from what comes with them: a model like that, without dendrites."""


REVERSED = "-"
"""Before the data set that a heading sends: the rows are in its order already, so turn them."""
ALONE = "only if tested alone"
"""Of a difference that Holm's correction for all comparisons with the baseline takes back."""


def higher_loss(entry: Entry, other: Entry) -> bool:
    """Whether an arm's loss lies above the 95 % interval of another's."""
    return bool(entry["mean"]["nll"] > other["ci"]["nll"][1])


def honest(entry: Entry) -> bool:
    """Whether a score says what the model does on sentences it cannot have seen, tested here."""
    return not entry.get("may_have_seen_test", False) and entry.get("tested", HERE) == HERE


def best(entry: Entry, beside: Sequence[Entry]) -> bool:
    """Whether no test tells an arm from the most accurate of its data set, nor its loss is higher.

    beside: all arms of the data set. Not marked: an accuracy bought with a clearly higher loss, and
    one that is not `honest`, which also keeps nobody else from being best.
    """
    fair = [other for other in beside if honest(other)]
    first = min((other["standing_group"] for other in fair), default=0)
    leaders = [other for other in fair if other["standing_group"] == first]
    return (
        honest(entry)
        and entry["standing_group"] == first
        and not any(higher_loss(entry, other) for other in leaders)
    )


def doubts(entry: Entry) -> list[str]:
    """What a reader has to know before comparing a model that was not trained here."""
    found = []
    if entry.get("may_have_seen_test", False):
        found.append("may have seen these sentences")
    if entry.get("tested", HERE) != HERE:
        found.append(str(entry["tested"]))
    if entry.get("trained_on_data") == "unknown":
        found.append("training data unknown")
    return found


def datasets_of(board: Board) -> list[str]:
    """Data sets of the board; the one that most models were tested on comes first: on a phone it is
    all that one sees at once."""
    many = Counter(arm["dataset"] for arm in board["arms"])
    return sorted(many, key=lambda name: (-many[name], dataset_order(name)))


def matrix_html(board: Board, sort: str = ALL, *, reverse: bool = False) -> str:
    """A row for each model, a column for each data set.

    sort: the data set to order rows by, ALL for their names. reverse: worst first, or names from
    the end.
    """
    datasets = datasets_of(board)
    cells = {(arm["backbone"], arm["arm"], arm["dataset"]): arm for arm in board["arms"]}
    models = _ordered({key[:2] for key in cells}, cells, sort, reverse=reverse)
    of = {name: [arm for arm in board["arms"] if arm["dataset"] == name] for name in datasets}
    return html(
        "matrix",
        sort=sort,
        reverse=reverse,
        alone=ALONE,
        notes={arm: said for arm, said in ARM_NOTES.items() if any(m[1] == arm for m in models)},
        datasets=[
            {
                "name": name,
                "title": dataset_title(name),
                "description": dataset_description(name),
                "n": of[name][0]["n_test"] / len(of[name][0]["seeds"]),
            }
            for name in datasets
        ],
        rows=[
            {
                "model": backbone_title(model[0]),
                "arm": model[1],
                "form": next(arm for key, arm in cells.items() if key[:2] == model).get("form"),
                "cells": [_cell(board, cells.get((*model, name)), of[name]) for name in datasets],
            }
            for model in models
        ],
    )


def _ordered(
    models: Iterable[tuple[str, str]], cells: Mapping[Any, Entry], sort: str, *, reverse: bool
) -> list[tuple[str, str]]:
    """Base model and arm of each row; those that were not tested on a data set always come last."""

    def name(model: tuple[str, str]) -> tuple[str, int]:
        arm = model[1]
        return backbone_title(model[0]).casefold(), STUDY_ARMS.index(
            arm
        ) if arm in STUDY_ARMS else len(STUDY_ARMS)

    if sort == ALL:
        return sorted(models, key=name, reverse=reverse)
    named = sorted(models, key=name)
    tested = [model for model in named if (*model, sort) in cells]
    tested.sort(key=lambda m: float(cells[*m, sort]["mean"]["accuracy"]), reverse=not reverse)
    return tested + [model for model in named if (*model, sort) not in cells]


def asked_order(asked: str) -> tuple[str, bool]:
    """Data set and whether its order is reversed, of what a heading of the matrix sends."""
    return asked.removeprefix(REVERSED), asked.startswith(REVERSED)


def _cell(board: Board, entry: Entry | None, beside: Sequence[Entry]) -> dict[str, Any] | None:
    if entry is None:
        return None
    tied = sum(other["standing_group"] == entry["standing_group"] for other in beside) > 1
    pair = pair_of(board, entry) if entry["arm"] == PAIR[1] else None
    return {
        "entry": entry,
        "rank": str(entry["standing"]),
        "best": best(entry, beside),
        "shared": tied,
        "doubts": doubts(entry),
        "badge": None if pair is None or pair["outcome"] == "tied" else badge(board, pair),
    }


def pair_of(board: Board, entry: Entry, reference: str = PAIR[0]) -> Entry | None:
    """The comparison of an arm with a reference arm of the same model and data set."""
    return next(
        (
            pair
            for pair in board["comparisons"]
            if all(pair[key] == entry[key] for key in ("backbone", "dataset"))
            and {pair["a"], pair["b"]} == {reference, entry["arm"]}
        ),
        None,
    )


def badge(board: Board, pair: Entry) -> dict[str, Any]:
    """What a comparison with dendrites found, in a word, and everything that weakens it."""
    runs = len(pair["seeds"])
    weak = []
    if pair["outcome"] != "tied":
        if runs == 1:
            weak.append("one training run")
        if pair["p_holm"] >= SIGNIFICANCE:
            weak.append(ALONE)
        if pair["outcome"] == "better":
            weak += _missing_controls(board, pair)
            arms = {name: _arm(board, pair, name) for name in (pair["a"], pair["b"])}
            if higher_loss(arms[pair["b"]], arms[pair["a"]]):
                weak.append("its loss is higher")
    if pair["seeds_without_dendrites"]:
        weak.append("a run kept no dendrite")
    word = {"better": "Better", "worse": "Worse"}.get(pair["outcome"], "No difference found")
    return {"word": word, "outcome": pair["outcome"], "weak": weak, "alone": ALONE in weak}


def _missing_controls(board: Board, pair: Entry) -> list[str]:
    """Of a gain: which control does as well, or that none was run."""
    found = {
        name: control
        for name in CONTROLS
        if (control := pair_of(board, {**pair, "arm": pair["b"]}, name)) is not None
    }
    if not found:
        return ["no control was run"]
    tied = [name for name, control in found.items() if control["outcome"] == "tied"]
    if not tied:
        return []
    kinds = " or ".join(CONTROLS[name] for name in tied)
    return [f"no better than a {kinds} model without dendrites"]


def _arm(board: Board, pair: Entry, name: str) -> Entry:
    return next(
        arm
        for arm in board["arms"]
        if arm["arm"] == name and all(arm[k] == pair[k] for k in ("backbone", "dataset"))
    )


def effects_html(board: Board) -> str:
    """A row for each model and data set: dendritic minus baseline, and what that excludes."""
    pairs = sorted(
        (pair for pair in board["comparisons"] if (pair["a"], pair["b"]) == PAIR),
        key=lambda pair: (dataset_order(pair["dataset"]), pair["backbone"]),
    )
    # Of arms that answer alike every end is 0, and the scale is any.
    widest = (
        max((abs(end) for pair in pairs for end in pair["accuracy_ci_points"]), default=0.0) or 1.0
    )
    rows = []
    for pair in pairs:
        removed = pair["errors_removed_ci_pct"]
        rows.append(
            {
                "pair": pair,
                "dataset": dataset_title(pair["dataset"]),
                "model": backbone_title(pair["backbone"]),
                "runs": len(pair["seeds"]),
                "losses": [_arm(board, pair, name)["mean"]["nll"] for name in PAIR],
                "excluded": None if removed is None else removed[1] < PUBLISHED_GAIN_PCT,
                "badge": badge(board, pair),
                "verdict": sentence(pair["verdict"]),
                # In percent of the strip, whose middle is zero.
                "marks": [
                    50 + 50 * value / widest
                    for value in (*pair["accuracy_ci_points"], pair["accuracy_delta_points"])
                ],
            }
        )
    return html(
        "effects",
        rows=rows,
        counted=sum(pair["p_holm"] < SIGNIFICANCE for pair in pairs),
        alone=ALONE,
        claimed=PUBLISHED_GAIN_PCT,
    )
