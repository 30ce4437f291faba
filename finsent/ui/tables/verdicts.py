"""Who won: a sentence for every pair of arms, with the tests behind it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from finsent.results.catalog import backbone_title
from finsent.results.text import count
from finsent.ui.parts.markup import sentence, signed
from finsent.ui.tables.filters import ALL, Board, Entry, Filters

OUTCOMES = {"better": "Better", "worse": "Worse", "tied": "Tied"}

WHAT_P_IS = (
    "p: exact paired test of accuracy on the same sentences. If the variants were alike, their "
    "answers to a sentence could be swapped; a sentence is swapped in all runs at once (sign-flip "
    "test, clustered by sentence). With one run this is McNemar&rsquo;s test. Tied: p is 0.05 or "
    "more, which does not show that the variants are equal."
)


def verdicts_html(board: Board, filters: Filters) -> str:
    """One sentence per pair of arms; the pair that the project asks about comes first."""
    pairs = sorted(
        (pair for pair in board["comparisons"] if filters.pair(pair)),
        key=lambda pair: (pair["a"], pair["b"]) != ("baseline", "dendritic"),
    )
    several = len({pair["backbone"] for pair in pairs}) > 1
    against = [
        pair
        for pair in board.get("against", ())
        if pair["dataset"] == filters.dataset and filters.backbone in (ALL, pair["backbone"])
    ]
    return _folded("Every pair of variants: tests and intervals", pairs, several) + _folded(
        "Models from elsewhere against those trained here", against, False
    )


def _folded(title: str, pairs: Sequence[Entry], with_backbone: bool) -> str:
    if not pairs:
        return ""
    items = "".join(_verdict(pair, with_backbone) for pair in pairs)
    return (
        f'<details class="fs-more-below"><summary>{title}</summary>'
        f'<ol class="fs-verdicts">{items}</ol><p class="fs-quiet">{WHAT_P_IS}</p></details>'
    )


def _verdict(pair: Entry, with_backbone: bool) -> str:
    place = f" · {backbone_title(pair['backbone'])}" if with_backbone else ""
    return (
        f'<li data-outcome="{escape(pair["outcome"])}"><h3>'
        f"{escape(sentence(pair['b'], stop=''))} against {escape(pair['a'])}{escape(place)}"
        f"<span>{OUTCOMES.get(pair['outcome'], escape(pair['outcome']))}</span></h3>"
        f"<p>{escape(sentence(pair['verdict']))}</p>"
        f'<p class="fs-errors">{_errors(pair)}</p>{_mcnemar(pair)}</li>'
    )


def _errors(pair: Entry) -> str:
    """Remaining errors, as PerforatedAI's users count them."""
    share = pair["errors_removed_pct"]
    if share is None:
        return f"{escape(sentence(pair['a'], stop=''))} makes no error here."
    low, high = pair["errors_removed_ci_pct"]
    verb = "removed" if share >= 0 else "added"
    return (
        f"Remaining errors {verb}: <b>{abs(share):.1f}&#8239;%</b> "
        f"({count(pair['errors_a'])} to {count(pair['errors_b'])} of {count(pair['n'])} answers; "
        f"95&#8239;% CI of the share removed {signed(low)} to {signed(high)}&#8239;%)."
    )


def _mcnemar(pair: Entry) -> str:
    lines = "".join(
        f"<li>training run {test['seed']}: "
        f"only {escape(pair['a'])} right {count(test['only_a_right'])}, only "
        f"{escape(pair['b'])} right {count(test['only_b_right'])}, p = {test['p_value']:.2f}</li>"
        for test in pair["mcnemar"]
    )
    f1_low, f1_high = pair["macro_f1_ci_points"]
    return (
        f"<details><summary>Macro-F1, and McNemar’s test by run</summary><ul><li>macro-F1 "
        f"{signed(pair['macro_f1_delta_points'])} points, 95&#8239;% CI {signed(f1_low)} to "
        f"{signed(f1_high)}</li>{lines}</ul></details>"
    )
