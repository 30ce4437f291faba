"""What docs/report.md and docs/submission.md say of all studies at once, counted from summaries."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finsent.config import BACKBONE_TITLES
from finsent.results.metrics import errors_bound
from finsent.study.comparisons import REFERENCES, is_unequal
from finsent.study.views import (
    OUTCOMES,
    Entry,
    Summary,
    by_nll,
    question,
    settings_of,
    study_key,
    study_names,
)


def compared(summaries: Mapping[str, Summary]) -> list[str]:
    """Names of the studies that compare dendrites with anything, in the order of the pages."""
    return [name for name in study_names(summaries) if summaries[name]["comparisons"]]


def overview(summaries: Mapping[str, Summary]) -> dict[str, Any]:
    """A line for each study with rows, and the counts of all their comparisons together."""
    lines = [
        {
            "name": name,
            "question": question(name),
            "runs": summaries[name]["runs"],
            "counts": counts(summaries[name]["comparisons"]),
        }
        for name in sorted(summaries, key=study_key)
        if summaries[name]["rows"]
    ]
    named = compared(summaries)
    rows = [row for name in named for row in summaries[name]["rows"]]
    return {
        "lines": lines,
        "studies": len(named),
        "counts": counts(*(summaries[name]["comparisons"] for name in named)),
        "worse": [line for line in lines if line["counts"]["worse"]],
        "backbones": [BACKBONE_TITLES[name] for name in sorted({row["backbone"] for row in rows})],
    }


def finding(all_counts: Mapping[str, Any]) -> str:
    """The answer as a headline."""
    total = all_counts["settings"]
    return f"Dendrites beat all three controls in {all_counts['won']} of {total} settings"


def counts(*studies: Sequence[Entry]) -> dict[str, Any]:
    """Settings, how many of them beat all three controls, and outcomes, bounds and losses.

    studies: the comparisons of each; settings of two studies may bear the same names. `bounds` are
    the highest shares of errors in percent that 95 % intervals leave dendrites to remove: the
    median and the widest over settings.
    """
    comparisons = [c for study in studies for c in study]
    settings = [found for study in studies for found in settings_of(study)]
    complete = [found for found in settings if {c["a"] for c in found} == set(REFERENCES)]
    outcomes = Counter(c["outcome"] for c in comparisons)
    return {
        "settings": len(settings),
        "won": sum(all(c["outcome"] == "better" for c in found) for found in complete),
        "tests": len(comparisons),
        **{outcome: outcomes[outcome] for outcome in OUTCOMES},
        "loss": by_nll(comparisons),
        "unequal": sum(is_unequal(c) for c in comparisons),
        "against": {arm: _against([c for c in comparisons if c["a"] == arm]) for arm in REFERENCES},
    }


def _against(comparisons: Sequence[Entry]) -> dict[str, Any]:
    points = [c["metrics"]["accuracy"]["mean"] for c in comparisons]
    intervals = _known(c["errors_removed_ci_pct"] for c in comparisons)
    bounds = _spread([high for _, high in intervals])
    return {
        "tests": len(comparisons),
        "points": _spread(points),
        "half": statistics.quantiles(points, n=4)[::2] if len(points) > 1 else points * 2,
        "removed": _spread(_known(c["errors_removed_pct"] for c in comparisons)),
        "bounds": bounds,
        "left": [errors_bound(bounds[key]) for key in ("median", "high")] if bounds else [],
        "loss": by_nll(comparisons),
    }


def _known(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest; nothing without values."""
    if not values:
        return {}
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}
