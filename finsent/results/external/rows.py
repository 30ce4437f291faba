"""What the leaderboard says of models that were not trained here, and against ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finsent.results.comparison import compare
from finsent.results.runs import EXTERNAL, Run, slug
from finsent.results.schema import HERE

BACKBONE_LICENCES = {
    "phi-2": "MIT",
    "smollm2-135m": "Apache-2.0",
    "mpnet-base": "Apache-2.0",
    "minilm-l6": "Apache-2.0",
}
"""Of their weights, as published."""


def against_ours(arms: Iterable[Sequence[Run]]) -> list[dict[str, Any]]:
    """Every entrant against the arm of each backbone that answers on the page, by data set.

    Args:
        arms: The runs of every arm and entrant, those of a backbone's data set side by side.

    Returns:
        Comparisons, each with data set, backbone and arm of ours, and the entrant's name.
    """
    ours: dict[tuple[str, str], Sequence[Run]] = {}
    theirs = []
    for runs in arms:
        place = (runs[0].dataset, runs[0].backbone)
        if runs[0].arm == EXTERNAL:
            theirs.append(runs)
        elif runs[0].arm == "dendritic" or place not in ours:
            ours[place] = runs
    found = (
        _against(mine, other)
        for other in theirs
        for (dataset, _), mine in ours.items()
        if dataset == other[0].dataset
    )
    return [entry for entry in found if entry]


def without_entrants(board: Mapping[str, Any]) -> dict[str, Any]:
    """The board with this project's own rows and arms alone, for pages about its method."""
    kept = {key: [e for e in board[key] if e["arm"] != EXTERNAL] for key in ("rows", "arms")}
    return {**board, **kept}


def _against(ours: Sequence[Run], theirs: Sequence[Run]) -> dict[str, Any]:
    """An entrant compared with an arm of ours on the seeds of both; empty where there are none."""
    mine, other = ({run.seed: run for run in runs} for runs in (ours, theirs))
    seeds = sorted(set(mine) & set(other))
    if not seeds:
        return {}
    found = compare(
        [mine[seed].read_predictions() for seed in seeds],
        [other[seed].read_predictions() for seed in seeds],
        names=(f"{slug(ours[0].backbone)} {ours[0].arm}", theirs[0].backbone),
        seeds=seeds,
    )
    place = {"dataset": ours[0].dataset, "backbone": ours[0].backbone, "arm": ours[0].arm}
    return {**place, "entrant": theirs[0].backbone, **found.to_dict()}


def honesty(run: Run) -> dict[str, Any]:
    """What a reader has to know before comparing a run.

    Its form, trained_on_data, may_have_seen_test, tested, licence, revision, url and date.
    """
    if run.arm == EXTERNAL:
        names = ("form", "trained_on_data", "may_have_seen_test", "tested", "licence", "revision")
        said = {name: run.config[name] for name in (*names, "url")}
    else:
        said = {
            "form": "trained here",
            "trained_on_data": "yes",
            "may_have_seen_test": False,
            "tested": HERE,
            "licence": BACKBONE_LICENCES.get(run.backbone, "unknown"),
            "revision": run.config["backbone_sha256"],
            "url": None,
        }
    return {**said, "date": str(run.config["finished_at"])[:10]}
