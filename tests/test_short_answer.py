"""The page's short answer follows the figures of the board, whatever they are."""

from __future__ import annotations

from typing import Any

import pytest

from finsent.machine.files import ROOT
from finsent.results.catalog import Catalog
from finsent.results.leaderboard import corrected
from finsent.ui.parts.short_answer import head_html, short_answer

NOT, BETTER, WORSE, UNSURE = "no", "better", "worse", "unsure"


def comparison(dataset: str, points: float, p_value: float, width: float = 0.8) -> dict[str, Any]:
    outcome = "tied" if p_value >= 0.05 else ("better" if points > 0 else "worse")
    return {
        "a": "baseline",
        "b": "dendritic",
        "backbone": "minilm-l6",
        "dataset": dataset,
        "accuracy_delta_points": points,
        "accuracy_ci_points": [points - width, points + width],
        "p_value": p_value,
        "outcome": outcome,
    }


def control(dataset: str, outcome: str, a: str = "matched") -> dict[str, Any]:
    """dendritic against a control; `a` may be dendritic itself, as the board has it for restart."""
    pair = {"a": a, "b": "dendritic"} if a != "dendritic" else {"a": a, "b": "restart"}
    return {**comparison(dataset, 0.0, 1.0), **pair, "outcome": outcome}


@pytest.mark.parametrize(
    ("comparisons", "outcome", "said"),
    [
        ([comparison("news", 0.4, 0.2)], NOT, "In the one comparison no difference"),
        (
            [comparison("news", 0.4, 0.2), comparison("fiqa", -0.3, 0.8)],
            NOT,
            "In all 2 comparisons no difference",
        ),
        # One of many tests is significant by chance: Holm's correction takes it back.
        (
            [comparison(name, 0.9, 0.03) for name in ("news", "fiqa", "twitter")],
            NOT,
            "differ only if tested alone, as can happen by chance",
        ),
        (
            [comparison("news", 0.9, 0.001), comparison("fiqa", 0.1, 0.9)],
            NOT,
            "News (+0.9 points) stands out, but has no control yet",
        ),
        (
            [comparison("news", 0.9, 0.001), control("news", "tied"), comparison("fiqa", 0, 0.9)],
            NOT,
            "but a control without dendrites gains as much",
        ),
        (
            [comparison("news", 0.9, 0.001), control("news", "tied", a="dendritic")],
            NOT,
            "a control without dendrites gains as much",
        ),
        (
            [
                comparison("news", 0.9, 0.001),
                control("news", "better"),
                control("news", "worse", a="dendritic"),
                comparison("fiqa", 0.1, 0.9),
            ],
            BETTER,
            "more accurate in 1 of 2 comparisons",
        ),
        (
            [comparison("news", -0.9, 0.001), comparison("fiqa", 0.1, 0.9)],
            WORSE,
            "less accurate in 1 of 2 comparisons",
        ),
        (
            [comparison("news", -0.9, 0.001), comparison("fiqa", 0.9, 0.001)],
            UNSURE,
            "less accurate on MiniLM-L6 on News",
        ),
        ([comparison("news", 0.4, 0.6, width=4.0)], UNSURE, "precise enough to show"),
        ([], UNSURE, "No comparison"),
    ],
)
def test_the_answer_follows_the_figures(
    comparisons: list[dict[str, Any]], outcome: str, said: str
) -> None:
    answer = short_answer({"comparisons": corrected(comparisons)})
    assert answer.outcome == outcome
    assert answer.sentence.startswith("Short answer: ")
    assert said in answer.sentence


def test_the_answer_of_the_shipped_board_names_every_comparison() -> None:
    board = Catalog.read(ROOT / "artifacts").leaderboard
    assert board is not None
    html = head_html(board)
    pairs = [c for c in board["comparisons"] if (c["a"], c["b"]) == ("baseline", "dendritic")]
    assert html.count("<li ") == len(pairs)
    assert html.count('<b class="fs-main"') == len(pairs)
    assert short_answer(board).head in html


def test_without_a_board_nothing_is_claimed() -> None:
    assert short_answer(None).outcome == UNSURE
    assert "<figure" not in head_html(None)
