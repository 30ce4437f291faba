"""What the pages say of each study and of the leaderboard, as values for their templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finsent.config import latest_growth
from finsent.reports.evidence import Evidence
from finsent.results.external.rows import without_entrants
from finsent.study.cycles.findings import findings, progress
from finsent.study.cycles.plans import CYCLE_STUDIES, CycleStudy
from finsent.study.plans import STUDIES
from finsent.study.rows import CLASSICAL, ENSEMBLE
from finsent.study.selection import (
    CHOSEN,
    SELECTION,
    Tried,
    grid_sizes,
    read_selection,
    validates,
    variants,
)
from finsent.study.views import (
    Entry,
    Summary,
    answer,
    chosen,
    classical_rows,
    comparisons_of,
    lora_verdicts,
    place_name,
    places,
    published,
    question,
    regime_key,
    rows_of,
    study_names,
    study_title,
)

DENDRITIC = "dendritic"


def study_values(name: str, evidence: Evidence) -> dict[str, Any]:
    """A study: its answer, its places, its protocol and what was tried on validation."""
    summary, folder = evidence.summaries[name], evidence.study(name)
    rows = summary["rows"]
    return {
        "name": name,
        "title": study_title(name),
        "question": question(name),
        "runs": summary["runs"],
        "answer": answer(summary["comparisons"]),
        "findings": findings(name, folder),
        "cycles": isinstance(STUDIES.get(name), CycleStudy),
        "fully": any(row["regime"].endswith("-full") for row in rows),
        "chosen": chosen(rows),
        "survivors": summary["survivors"],
        "places": [_place(name, summary, place) for place in places(summary)],
        "dendritic": any(row["arm"] == "dendritic" for row in rows),
        "one_split": {row["folds"] for row in rows} == {1},
        "sizes": sorted({(row["folds"], row["seeds"], row["n"]) for row in rows}),
        "backbones": sorted({row["backbone"] for row in rows}),
        "ensembles": any(row["arm"] == ENSEMBLE for row in rows),
        "validated": all(row["validation_accuracy"] is not None for row in rows),
        "tried": grid_sizes(folder),
        "extra_steps": _extra_steps(rows),
        "selected": (folder / SELECTION).is_file(),
        "options": _options(folder),
        "ways": _ways(folder),
    }


def unfinished(evidence: Evidence) -> list[dict[str, Any]]:
    """What of the studies of cycles was registered and has not run, study by study."""
    found = []
    for study in CYCLE_STUDIES:
        parts = progress(study, evidence.study(study.name))
        if any(part.made < part.planned for part in parts):
            found.append(
                {
                    "name": study.name,
                    "question": question(study.name),
                    "made": sum(part.made for part in parts),
                    "planned": sum(part.planned for part in parts),
                    "begun": [part for part in parts if part.made],
                }
            )
    return found


def forest_name(study: str, place: tuple[str, str]) -> str:
    """File of a forest plot."""
    return f"{study}_forest_{'_on_'.join(dict.fromkeys(place))}.png"


def _place(name: str, summary: Summary, place: tuple[str, str]) -> dict[str, Any]:
    comparisons = comparisons_of(summary, place)
    columns = list(dict.fromkeys((c["recipe"], c["a"]) for c in comparisons))
    found = {(c["regime"], c["recipe"], c["a"]): c for c in comparisons}
    regimes = dict.fromkeys(c["regime"] for c in comparisons)
    return {
        "name": place_name(place),
        "forest": forest_name(name, place),
        "columns": columns,
        "matrix": [(r, [found.get((r, *column)) for column in columns]) for r in regimes],
        "survivors": [c for c in comparisons if c["outcome"] != "tied"],
        "rows": rows_of(summary, place),
    }


def context(summaries: Mapping[str, Summary]) -> dict[str, Any]:
    """What stands beside the studies: classical classifiers by place, and published results."""
    trained = [
        (name, place) for name in study_names(summaries) for place in places(summaries[name])
    ]
    rows: dict[tuple[str, str], list[Entry]] = {}
    for name, place in trained:
        shown = rows.setdefault(place, [])
        shown += [row for row in classical_rows(summaries, name, place) if row not in shown]
    references = [r for name, place in trained for r in published(summaries[name], place)]
    return {
        "classical": {
            "name": CLASSICAL,
            "question": question(CLASSICAL),
            "places": [(place_name(place), found) for place, found in rows.items() if found],
        },
        "published": list(dict.fromkeys(references)),
    }


def board_values(board: Mapping[str, Any]) -> dict[str, Any]:
    """The leaderboard's runs: what was found, whether growth paid, what an answer takes."""
    arms = without_entrants(board)["arms"]
    by_name = {(arm["backbone"], arm["dataset"], arm["arm"]): arm for arm in arms}
    compared = [pair for pair in board["comparisons"] if DENDRITIC in (pair["a"], pair["b"])]
    ahead = [{"better": pair["b"], "worse": pair["a"]}.get(pair["outcome"]) for pair in compared]
    baselines = {
        (arm["backbone"], arm["dataset"]): arm["mean"]["latency_ms_p50"]
        for arm in arms
        if arm["arm"] == "baseline"
    }

    def over_baseline(arm: Entry) -> float | None:
        baseline = baselines.get((arm["backbone"], arm["dataset"]))
        return None if baseline is None else arm["mean"]["latency_ms_p50"] / baseline

    return {
        "verdicts": lora_verdicts(board),
        "compared": len(compared),
        "better": [p for p, arm in zip(compared, ahead, strict=True) if arm == DENDRITIC],
        "worse": sum(arm not in (DENDRITIC, None) for arm in ahead),
        "pairs": [
            {
                **pair,
                "other": by_name[pair["backbone"], pair["dataset"], pair["a"]],
                "dendritic": by_name[pair["backbone"], pair["dataset"], DENDRITIC],
            }
            for pair in compared
            if pair["b"] == DENDRITIC
        ],
        "growth": growth_at_half(board),
        "grown": [
            arm
            for arm in arms
            if arm["arm"] == "dendritic" and arm["growth_paid_on_validation"] is not None
        ],
        "latencies": [(arm, over_baseline(arm)) for arm in arms],
        "latency_protocols": sorted({said for arm in arms for said in arm["latency_protocol"]}),
    }


def growth_at_half(board: Mapping[str, Any]) -> dict[str, int]:
    """How many dendritic runs there are, and how many grew as late as early growth allows."""
    grown = [row for row in board["rows"] if row["arm"] == "dendritic"]
    late = sum(row["growth"]["epoch"] == latest_growth(row["epochs"]) for row in grown)
    return {"runs": len(grown), "at_half": late}


def _options(folder: Path) -> list[tuple[tuple[str, str], list[Tried]]]:
    """Options of dendrites by (data set, regime), each recipe followed by what differs from it."""
    found = variants(folder)
    cells = {(row.dataset, row.regime) for row in found}
    options = []
    for cell in sorted(cells, key=lambda cell: (cell[0], regime_key(cell[1]))):
        here = [row for row in found if (row.dataset, row.regime) == cell]
        bases = dict.fromkeys(row.base for row in here)
        options.append((cell, [row for base in bases for row in here if row.base == base]))
    return options


def _ways(folder: Path) -> list[tuple[str, list[dict[str, str]]]]:
    """What ensembles had to choose from by data set, best first."""
    path = folder / SELECTION
    if (folder / CHOSEN).is_file() or not path.is_file():
        return []
    tried = sorted(read_selection(path).values(), key=validates)
    datasets = dict.fromkeys(row["dataset"] for row in tried)
    return [(name, [row for row in tried if row["dataset"] == name]) for name in datasets]


def _extra_steps(rows: Sequence[Entry]) -> dict[str, list[int]]:
    """Percent of optimizer steps that recipes take beyond the baseline's: lowest and highest, of
    recipes that take more or fewer."""
    keys = ("dataset", "test_dataset", "regime")
    baselines = {tuple(r[k] for k in keys): r for r in rows if r["arm"] == "baseline"}
    shares: dict[str, set[int]] = {}
    for row in rows:
        baseline = baselines.get(tuple(row[k] for k in keys))
        if (
            row["arm"] not in ("baseline", ENSEMBLE)
            and baseline is not None
            and baseline["optimizer_steps"]
        ):
            extra = round(100 * (row["optimizer_steps"] / baseline["optimizer_steps"] - 1))
            shares.setdefault(row["recipe"], set()).add(extra)
    return {
        recipe: sorted({min(found), max(found)}) for recipe, found in shares.items() if found != {0}
    }
