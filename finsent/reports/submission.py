"""docs/submission.md: the project in the sections that PerforatedAI's community expects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finsent.growth.settings import LIBRARY_VERSION, growth_settings
from finsent.plots.png_figures import ACCURACY_FIGURE, TRAINING_FIGURE
from finsent.reports.evidence import link_to
from finsent.reports.report_values import growth_at_half
from finsent.results.text import render
from finsent.study.views import (
    Entry,
    Summary,
    answer,
    comparisons_of,
    lora_verdicts,
    place_name,
    places,
    rows_of,
    study_names,
    study_title,
)


def submission_markdown(
    summaries: Mapping[str, Summary], board: Mapping[str, Any], artifacts: Path, out: Path
) -> str:
    """The whole page; `out` is the folder that it will stand in."""
    arms = {(arm["backbone"], arm["dataset"], arm["arm"]): arm for arm in board["arms"]}
    return render(
        "finsent.reports",
        "submission.md.j2",
        artifacts=link_to(artifacts, out),
        accuracy_figure=ACCURACY_FIGURE,
        training_figure=TRAINING_FIGURE,
        settings=growth_settings(),
        library_version=LIBRARY_VERSION,
        growth=growth_at_half(board),
        verdicts=lora_verdicts(board),
        pairs=[
            {
                **pair,
                "other": arms[pair["backbone"], pair["dataset"], pair["a"]],
                "dendritic": arms[pair["backbone"], pair["dataset"], "dendritic"],
            }
            for pair in board["comparisons"]
            if pair["b"] == "dendritic"
        ],
        studies=[
            {
                "name": name,
                "title": study_title(name),
                "answer": answer(summaries[name]["comparisons"]),
                "comparisons": summaries[name]["comparisons"],
                "places": _places(summaries[name]),
            }
            for name in study_names(summaries)
            if summaries[name]["comparisons"]
        ],
    )


def _places(summary: Summary) -> list[dict[str, Any]]:
    """Where dendrites were compared, and every setting that they were compared in."""
    found = []
    for place in places(summary):
        comparisons = comparisons_of(summary, place)
        if comparisons:
            arms = list(dict.fromkeys(c["a"] for c in comparisons))
            settings = _settings(comparisons, rows_of(summary, place), arms)
            found.append({"name": place_name(place), "arms": arms, "settings": settings})
    return found


def _settings(
    comparisons: Sequence[Entry], rows: Sequence[Entry], arms: Sequence[str]
) -> list[dict[str, Any]]:
    by_row = {(row["regime"], row["recipe"], row["arm"]): row for row in rows}
    baselines = {row["regime"]: row for row in rows if row["arm"] == "baseline"}
    found = {(c["regime"], c["recipe"], c["a"]): c for c in comparisons}
    return [
        {
            "regime": regime,
            "recipe": recipe,
            "baseline": baselines.get(regime),
            "dendritic": by_row[regime, recipe, "dendritic"],
            "comparisons": [found.get((regime, recipe, arm)) for arm in arms],
        }
        for regime, recipe in dict.fromkeys((c["regime"], c["recipe"]) for c in comparisons)
    ]
