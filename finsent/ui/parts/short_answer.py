"""The page's head: the question, the short answer, and the intervals that it rests on.

The answer is made from leaderboard.json, so it follows the figures: `short_answer` says which of
four outcomes they have, and why in one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from finsent.results.catalog import backbone_title, dataset_description, dataset_title
from finsent.results.metrics import SIGNIFICANCE
from finsent.results.runs import slug
from finsent.ui.parts.markup import signed

QUESTION = "Do dendrites help a language model read financial news?"
TELLING_POINTS = 2.0
"""A comparison whose interval is wider than this on either side could hide a large difference."""

Comparison = Mapping[str, Any]


@dataclass(frozen=True)
class ShortAnswer:
    """What all comparisons of one board say together."""

    outcome: str
    """`no`, `better`, `worse` or `unsure`."""
    head: str
    """The answer in a word or two, as "not measurably"."""
    why: str
    """A sentence or two."""

    @property
    def sentence(self) -> str:
        """The whole answer."""
        return f"Short answer: {self.head}. {self.why}"


@dataclass(frozen=True)
class _Found:
    """Baseline against dendritic on one base model and data set, and what controls say."""

    title: str
    comparison: Comparison
    direction: int
    """1 and -1 for a difference that is significant with all tests counted, else 0."""
    beats_controls: bool | None
    """Whether dendritic beats every control here; None where there is no control."""

    @property
    def points(self) -> str:
        return f"{signed(self.comparison['accuracy_delta_points'])} points"


def primary(board: Mapping[str, Any]) -> list[Comparison]:
    """The comparisons of the dendritic runs with the baseline, in the board's order."""
    return [c for c in board["comparisons"] if (c["a"], c["b"]) == ("baseline", "dendritic")]


def short_answer(board: Mapping[str, Any] | None) -> ShortAnswer:
    """What a leaderboard says about dendrites.

    A difference counts when it is significant after Holm's correction for the number of
    comparisons; one in favour of dendrites counts only where they also beat every control.
    """
    found = _found(board) if board else []
    n = len(found)
    if not found:
        return ShortAnswer("unsure", "nobody knows yet", "No comparison has been made here.")
    up = [f for f in found if f.direction > 0]
    down = [f for f in found if f.direction < 0]
    earned = [f for f in up if f.beats_controls]
    if earned and not down:
        where = _listed(earned)
        return ShortAnswer(
            "better",
            "yes, in part" if len(earned) < n else "yes",
            f"With dendrites the models are more accurate in {len(earned)} of {n} comparisons "
            f"– {where} – and no control without dendrites does as well.",
        )
    if down and not up:
        return ShortAnswer(
            "worse",
            "no, they cost accuracy",
            f"With dendrites the models are less accurate in {len(down)} of {n} comparisons – "
            f"{_listed(down)} – and more accurate in none.",
        )
    if up and down:
        return ShortAnswer(
            "unsure",
            "it depends",
            f"With dendrites the models are more accurate on {_listed(up)} and less accurate on "
            f"{_listed(down)}.",
        )
    if not up and not any(_is_telling(f.comparison) for f in found):
        return ShortAnswer(
            "unsure",
            "too early to say",
            f"None of the {n} comparisons here is precise enough to show a difference of "
            f"{TELLING_POINTS:g} points.",
        )
    level = n - len(up)
    alone = [f for f in found if not f.direction and f.comparison["outcome"] != "tied"]
    counted = ", counted together," if alone else ""
    why = f"In {_of(level, n)}{counted} no difference in accuracy could be measured."
    if up:
        why += f" {_unexplained(up)}"
    if alone:
        verb = "differs" if len(alone) == 1 else "differ"
        why += f" {_listed(alone)} {verb} only if tested alone, as can happen by chance."
    return ShortAnswer("no", "not measurably", why)


def _of(part: int, whole: int) -> str:
    if whole == 1:
        return "the one comparison"
    return f"all {whole} comparisons" if part == whole else f"{part} of {whole} comparisons"


def _listed(found: Sequence[_Found]) -> str:
    return ", ".join(f"{f.title} ({f.points})" for f in found)


def _unexplained(up: Sequence[_Found]) -> str:
    """What keeps the differences in favour of dendrites from being theirs."""
    matched = [f for f in up if f.beats_controls is False]
    alone = [f for f in up if f.beats_controls is None]
    said = []
    if matched:
        said.append(
            f"{_listed(matched)} stands out, but a control without dendrites gains as much."
        )
    if alone:
        verb = "has" if len(alone) == 1 else "have"
        said.append(f"{_listed(alone)} stands out, but {verb} no control yet.")
    return " ".join(said)


def _is_telling(comparison: Comparison) -> bool:
    low, high = comparison["accuracy_ci_points"]
    return max(abs(low), abs(high)) <= TELLING_POINTS


def _found(board: Mapping[str, Any]) -> list[_Found]:
    return [
        _Found(
            _title(c),
            c,
            0 if c["p_holm"] >= SIGNIFICANCE else (1 if c["accuracy_delta_points"] > 0 else -1),
            _beats_controls(board, c),
        )
        for c in primary(board)
    ]


def _title(comparison: Comparison) -> str:
    backbone = backbone_title(slug(comparison["backbone"]))
    return f"{backbone} on {dataset_title(comparison['dataset'])}"


def _beats_controls(board: Mapping[str, Any], comparison: Comparison) -> bool | None:
    """Whether dendritic is better than every control of the same runs; None without a control."""
    better = []
    for c in _beside(board, comparison):
        if c["b"] == "dendritic" and c["a"] != "baseline":
            better.append(c["outcome"] == "better")
        elif c["a"] == "dendritic":
            better.append(c["outcome"] == "worse")
    return all(better) if better else None


def _beside(board: Mapping[str, Any], comparison: Comparison) -> list[Comparison]:
    """All comparisons of the same base model and data set."""
    place = (comparison["backbone"], comparison["dataset"])
    return [c for c in board["comparisons"] if (c["backbone"], c["dataset"]) == place]


def head_html(board: Mapping[str, Any] | None) -> str:
    """The masthead. Off the first tab the page's style shows its first two lines as one."""
    answer = short_answer(board)
    return (
        f'<header class="fs-head" data-outcome="{answer.outcome}"><div>'
        f"<h1>{QUESTION}</h1>"
        f'<p class="fs-short"><b>Short answer: {escape(answer.head)}.</b> '
        f"<span>{escape(answer.why)}</span></p>"
        '<p class="fs-what">One model is fine-tuned twice: with LoRA alone, small trained matrices '
        "beside its frozen weights, and with LoRA plus dendrites, extra units that PerforatedAI "
        "adds while it trains. Both have the same sentences and the same number of steps.</p>"
        f"</div>{_plot(board) if board and primary(board) else ''}</header>"
    )


def _plot(board: Mapping[str, Any]) -> str:
    """Difference in accuracy with its interval, a row for each base model and data set."""
    compared = primary(board)
    controls = {
        id(c): [d for d in _beside(board, c) if d["a"] == "baseline" and d["b"] != "dendritic"]
        for c in compared
    }
    scale = 1.08 * max([0.5, *(abs(bound) for c in compared for bound in c["accuracy_ci_points"])])

    def place(value: float) -> float:
        return 50 + 50 * min(max(value / scale, -1), 1)

    def cuts(c: Comparison) -> str:
        # A bar that is cut must not look like one that ends.
        low, high = c["accuracy_ci_points"]
        left = '<em class="fs-cut" style="left:0">\u2039</em>' if low < -scale else ""
        return left + ('<em class="fs-cut" style="right:0">\u203a</em>' if high > scale else "")

    def bar(c: Comparison, kind: str) -> str:
        low, high = (place(bound) for bound in c["accuracy_ci_points"])
        middle = place(c["accuracy_delta_points"])
        return (
            f'<i class="fs-{kind}" style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
            f'<b class="fs-{kind}" style="left:{middle:.1f}%"></b>'
        )

    rows, said = "", []
    for c in compared:
        low, high = c["accuracy_ci_points"]
        text = f"{_title(c)} ({dataset_description(c['dataset'])}): "
        text += f"{signed(c['accuracy_delta_points'])} points"
        text += f" ({signed(low)} to {signed(high)})"
        said.append(text)
        track = "".join(bar(d, "control") + cuts(d) for d in controls[id(c)]) + bar(c, "main")
        rows += (
            f'<li title="{escape(text)}"><span>{escape(_title(c).replace(" on ", ", "))}</span>'
            f'<div class="fs-track-zero">{track}</div></li>'
        )
    end = f"{scale:.1f}"
    goes_on = " (\u2039 \u203a: longer)" if 'class="fs-cut"' in rows else ""
    return (
        f'<figure class="fs-forest" role="img" aria-label="{escape("; ".join(said))}">'
        "<figcaption>Accuracy with dendrites minus without, in points, with 95\u202f% intervals. "
        f"Faint: controls without dendrites{goes_on}.</figcaption>"
        f"<ul>{rows}</ul>"
        f'<div class="fs-forest-axis"><span></span><div><i>\u2212{end}</i><i>0</i><i>+{end}</i>'
        "</div></div></figure>"
    )
