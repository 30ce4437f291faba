"""What was tried on validation (selection.csv) and chosen there (chosen.json). No torch."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finsent.results.runs import read_json
from finsent.study.rows import StudyError

SELECTION = "selection.csv"
CHOSEN = "chosen.json"
SELECTION_COLUMNS = (
    "dataset",
    "regime",
    "recipe",
    "arm",
    "features",
    "learning_rate",
    "weight_decay",
    "validation_nll",
    "validation_accuracy",
    "dendrites",
    "runs",
)
_SETTINGS = ("features", "learning_rate", "weight_decay")


def recipe_key(name: str) -> tuple[str, int]:
    """Sort key: by family, then by number of dendrites."""
    family, _, number = name.rpartition("-")
    return (family, int(number)) if number.isdigit() else (name, 0)


def cell_label(dataset: str, regime: str, recipe: str, arm: str) -> str:
    """Key of chosen.json."""
    return f"{dataset}/{regime}/{recipe}/{arm}"


def read_selection(path: Path) -> dict[tuple[str, ...], dict[str, str]]:
    """Lines of selection.csv by cell and settings; none when it is not there.

    Raises StudyError for a file of another version or a damaged one.
    """
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            if tuple(reader.fieldnames or ()) != SELECTION_COLUMNS:
                raise StudyError(f"{path} is of another version; move it away or use another --out")
            return {tuple(row[name] for name in SELECTION_COLUMNS[:7]): row for row in reader}
    except (csv.Error, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read ({error}); restore it") from error


def append_selection(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Add lines, with a header where the file is new."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, SELECTION_COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def best_regime(rows: Iterable[Mapping[str, str]], dataset: str) -> str:
    """The regime with the highest validation accuracy on a data set, the lowest NLL deciding ties.

    Raises StudyError when none was tried on it.
    """
    found = [row for row in rows if row["dataset"] == dataset]
    if not found:
        raise StudyError(f"no regime was tried on {dataset}")
    return min(found, key=validates)["regime"]


def validates(row: Mapping[str, Any]) -> tuple[float, float]:
    """Sort key, best first: highest validation accuracy, then lowest validation NLL. row: of
    selection.csv, or of a summary."""
    return -float(row["validation_accuracy"]), float(row["validation_nll"])


@dataclass(frozen=True)
class Tried:
    """A dendritic recipe on validation, and the one that it differs from in a setting."""

    dataset: str
    regime: str
    recipe: str
    base: str
    """The recipe itself where it is one that is tested."""
    nll: float
    accuracy: float
    dendrites: float
    nll_change: float
    """Against the base under the same settings; negative is better."""
    accuracy_change: float


def variants(folder: Path) -> list[Tried]:
    """Every recipe of the regimes in which variants were compared, bases first.

    Empty without selection.csv or chosen.json. Raises StudyError for a variant whose base was not
    tried under the same settings.
    """
    rows = read_selection(folder / SELECTION)
    if not rows or not (folder / CHOSEN).is_file():
        return []
    chosen = read_json(folder / CHOSEN)
    tested = _tested_recipes(chosen)
    found = []
    for row in rows.values():
        if row["arm"] != "dendritic" or row["recipe"] in tested:
            continue
        base = base_recipe(row["recipe"], tested)
        found.append((row, _base_row(rows, chosen, row, base, folder / SELECTION)))
    bases = {(b["dataset"], b["regime"], b["recipe"]): b for _, b in found}
    return [_tried(row, row) for row in bases.values()] + [_tried(*pair) for pair in found]


def grid_sizes(folder: Path) -> dict[str, int]:
    """Arm -> settings tried for each of its cells, over chosen cells. StudyError where they
    differ between cells of an arm."""
    rows = read_selection(folder / SELECTION)
    chosen = read_json(folder / CHOSEN) if (folder / CHOSEN).is_file() else {}
    counts: dict[str, dict[str, int]] = {}
    for key in rows:
        label, arm = cell_label(*key[:4]), key[3]
        if label in chosen:
            cells = counts.setdefault(arm, {})
            cells[label] = cells.get(label, 0) + 1
    sizes = {}
    for arm, cells in counts.items():
        if len(set(cells.values())) > 1:
            raise StudyError(f"{folder / SELECTION}: cells of {arm} were tuned unequally: {cells}")
        sizes[arm] = next(iter(cells.values()))
    return sizes


def _tested_recipes(chosen: Mapping[str, Any]) -> list[str]:
    found = [label.split("/")[2] for label in chosen if label.endswith("/dendritic")]
    return sorted(dict.fromkeys(found), key=recipe_key)


def base_recipe(variant: str, recipes: Sequence[str]) -> str:
    """The recipe that a variant differs from in one setting, else the first of its family.

    Raises StudyError when it has neither.
    """
    named = variant.split(",")[0]
    if named in recipes:
        return named
    family = [name for name in recipes if name.split("-")[0] == variant.split("-")[0]]
    if not family:
        raise StudyError(f"variant {variant!r} belongs to none of the recipes {list(recipes)}")
    return family[0]


def _base_row(
    rows: Mapping[tuple[str, ...], dict[str, str]],
    chosen: Mapping[str, Any],
    row: Mapping[str, str],
    base: str,
    path: Path,
) -> dict[str, str]:
    key = (row["dataset"], row["regime"], base, "dendritic", *(row[name] for name in _SETTINGS))
    if key not in rows:
        settings = chosen.get(cell_label(row["dataset"], row["regime"], base, "dendritic"))
        raise StudyError(
            f"{path}: {row['recipe']} ({row['dataset']}, {row['regime']}) was not tried under the "
            f"settings of {base}, {settings}; choose settings again"
        )
    return rows[key]


def _tried(row: Mapping[str, str], base: Mapping[str, str]) -> Tried:
    nll, accuracy = float(row["validation_nll"]), float(row["validation_accuracy"])
    return Tried(
        row["dataset"],
        row["regime"],
        row["recipe"],
        base["recipe"],
        nll,
        accuracy,
        float(row["dendrites"]),
        nll - float(base["validation_nll"]),
        accuracy - float(base["validation_accuracy"]),
    )
