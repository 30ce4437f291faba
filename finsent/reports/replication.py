"""The page of `finsent replicate`: published arms beside fair ones, and what differs by what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from finsent.config import BACKBONE_TITLES, STUDY_ARMS
from finsent.machine.files import write_bytes_atomically
from finsent.plots.png_style import INK, SOFT, STYLE, bare, headline, margins, png
from finsent.results.metrics import SIGNIFICANCE
from finsent.results.text import count, fixed, points, render
from finsent.study.comparisons import overlap_ratio
from finsent.study.cycles.plans import (
    FAIR,
    PUBLISHED_LONGER,
    PUBLISHED_PLAIN,
    PUBLISHED_RATES,
    SAME_RATE,
)
from finsent.study.fold_tests import PairedDifference, corrected_paired_test
from finsent.study.rows import RESULTS, StudyError, StudyRun, mean, read_runs

PAGE, FIGURE = "README.md", "differences.png"
Arm = tuple[str, str]
"""Regime and arm."""
_PLAIN: Arm = (PUBLISHED_PLAIN, "baseline")
_LONGER: Arm = (PUBLISHED_LONGER, "baseline")
_SAME_RATE: Arm = (SAME_RATE, "baseline")
_GROWN: Arm = (FAIR, "dendritic")
_NAMES: Mapping[Arm, str] = {
    _PLAIN: "published baseline",
    _LONGER: 'published "perforated" arm',
    _SAME_RATE: "published baseline, two epochs",
    **{(FAIR, arm): f"fair {arm}" for arm in STUDY_ARMS},
}
_DIFFERENCES: tuple[tuple[Arm, Arm, str], ...] = (
    (_PLAIN, _LONGER, "the published gain: one epoch more at a lower rate, no dendrite"),
    (_PLAIN, _SAME_RATE, "one epoch more alone"),
    (_SAME_RATE, _LONGER, "the lower rate alone"),
    ((FAIR, "baseline"), _GROWN, "dendrites and a second cycle"),
    ((FAIR, "restart"), _GROWN, "dendrites alone"),
    ((FAIR, "matched"), _GROWN, "dendrites against as many parameters elsewhere"),
)


@dataclass(frozen=True)
class Effect:
    """One arm minus another on the folds that both have."""

    a: Arm
    b: Arm
    what: str
    difference: PairedDifference

    @property
    def name(self) -> str:
        """For people."""
        return f"{_NAMES[self.b]} minus {_NAMES[self.a]}"

    @property
    def said(self) -> str:
        """Points with their interval."""
        d = self.difference
        return f"{points(d.mean)} ({points(d.low)} to {points(d.high)})"


def effects_of(runs: Sequence[StudyRun]) -> list[Effect]:
    """Every difference of which both arms have two folds in common."""
    groups = _groups(runs)
    found = []
    for a, b, what in _DIFFERENCES:
        both = sorted(groups[a].keys() & groups[b].keys())
        if len(both) > 1:
            test = corrected_paired_test(
                [groups[b][key].accuracy - groups[a][key].accuracy for key in both],
                test_share_over_train_share=overlap_ratio(groups[b][key] for key in both),
            )
            found.append(Effect(a, b, what, test))
    return found


def _groups(runs: Sequence[StudyRun]) -> dict[Arm, dict[tuple[int, int], StudyRun]]:
    groups: dict[Arm, dict[tuple[int, int], StudyRun]] = defaultdict(dict)
    for run in runs:
        groups[run.regime, run.arm][run.seed, run.fold] = run
    return groups


def write_page(folder: Path, backbone: str) -> tuple[Path, str]:
    """Write the page and its figure beside the runs; returns its path and its answer.

    Raises StudyError where no two arms have two folds in common.
    """
    runs = read_runs(folder / RESULTS)
    effects = effects_of(runs)
    if not effects:
        raise StudyError(
            f"{folder / RESULTS} has no two folds of two arms to compare; run the command without "
            "--page-only, or with more folds"
        )
    title = BACKBONE_TITLES.get(backbone, backbone)
    answer = _answer(effects, title)
    with mpl.rc_context(STYLE):
        write_bytes_atomically(folder / FIGURE, png(figure(effects, title)))
    text = render(
        "finsent.reports",
        "replication.md.j2",
        title=title,
        command=f"python train_models.py replicate --backbone {backbone}",
        results=RESULTS,
        figure=FIGURE,
        n=max(effect.difference.n for effect in effects),
        answer=answer,
        arms=_arms(runs),
        effects=[
            {"name": e.name, "what": e.what, "points": e.said, "p": f"{e.difference.p_value:.2g}"}
            for e in effects
        ],
    )
    write_bytes_atomically(folder / PAGE, text.encode())
    return folder / PAGE, answer


def _answer(effects: Sequence[Effect], title: str) -> str:
    known = {(effect.a, effect.b): effect for effect in effects}
    said = []
    published = known.get((_PLAIN, _LONGER))
    if published is not None:
        said.append(
            f'The published "perforated" arm, which has no dendrite, scores {published.said} '
            f"points over the published baseline on {title}"
        )
        alone = known.get((_PLAIN, _SAME_RATE))
        if alone is not None:
            said[-1] += f"; one more epoch alone gives {alone.said}"
    grown = known.get(((FAIR, "restart"), _GROWN))
    if grown is not None:
        d = grown.difference
        verdict = "no difference is shown"
        if d.p_value < SIGNIFICANCE:
            verdict = "they help" if d.mean > 0 else "they harm"
        said.append(
            f"With equal budgets dendrites change accuracy by {grown.said} points over the same "
            f"run without them (p = {d.p_value:.2g}): {verdict}"
        )
    return ". ".join(said) + "." if said else "There are too few runs for an answer."


def _arms(runs: Sequence[StudyRun]) -> list[dict[str, Any]]:
    groups = _groups(runs)
    rows = []
    for arm, name in _NAMES.items():
        found = list(groups[arm].values())
        if not found:
            continue
        interval = ""
        if len(found) > 1:
            ratio = overlap_ratio(found)
            scores = [run.accuracy for run in found]
            test = corrected_paired_test(scores, test_share_over_train_share=ratio)
            interval = f" ({fixed(test.low, 3)} to {fixed(min(1.0, test.high), 3)})"
        epochs, rate = PUBLISHED_RATES.get(arm[0], ("the preset's", "the preset's"))
        rows.append(
            {
                "name": name,
                "epochs": epochs,
                "rate": rate,
                "accuracy": fixed(mean(found, "accuracy"), 3),
                "interval": interval,
                "macro_f1": fixed(mean(found, "macro_f1"), 3),
                "nll": fixed(mean(found, "nll"), 3),
                "params": count(mean(found, "trainable_params")),
                "n": len(found),
            }
        )
    return rows


def figure(effects: Sequence[Effect], title: str) -> Figure:
    """The differences as points with their intervals."""
    height = 1.5 + 0.42 * len(effects)
    drawn = Figure(figsize=(8.6, height))
    axes = drawn.add_subplot()
    margins(drawn, height, left=4.1, right=0.3, top=0.95, bottom=0.55, hspace=0, wspace=0)
    headline(
        drawn, height, "What the published difference is made of", f"{title}, points of accuracy"
    )
    for place, effect in enumerate(effects):
        d = effect.difference
        axes.plot([100 * d.low, 100 * d.high], [place, place], color=INK, lw=1.6)
        axes.plot(100 * d.mean, place, "o", color=INK, ms=5)
    axes.axvline(0, color=SOFT, lw=0.9)
    axes.set_yticks(range(len(effects)), [effect.what for effect in effects])
    axes.set_ylim(len(effects) - 0.5, -0.5)
    bare(axes, grid_axis="x")
    return drawn
