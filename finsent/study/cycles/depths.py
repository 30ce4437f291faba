"""What study `shrink` says: how shallow an encoder may be, and how many blocks dendrites save.

Free of torch: the page and the report read the same rows.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from finsent.config import BACKBONE_TITLES, STUDY_ARMS
from finsent.study.comparisons import overlap_ratio
from finsent.study.cycles.plans import DEPTHS
from finsent.study.fold_tests import PairedDifference, corrected_paired_test
from finsent.study.rows import StudyRun, mean

MARGIN = 0.005
"""Accuracy that a shallower encoder may lose, fixed before the first run (LOG.md)."""
GROWN = "dendritic"
_REGIME = re.compile(r".+-depth-(\d+)")


@dataclass(frozen=True)
class DepthPoint:
    """One arm at one depth, against the baseline at full depth."""

    backbone: str
    dataset: str
    arm: str
    depth: int
    n: int
    accuracy: float
    trainable_params: float
    difference: PairedDifference | None
    """None for fewer than two folds that both have."""

    @property
    def good_enough(self) -> bool:
        """Whether the interval of what it loses lies within MARGIN."""
        return self.difference is not None and self.difference.low > -MARGIN


@dataclass(frozen=True)
class Saving:
    """The least depth that is good enough, for each arm of a backbone on a data set."""

    backbone: str
    dataset: str
    full: int
    least: Mapping[str, int | None]
    runs: Mapping[int, int]
    """Runs of an arm at every depth, the fewest of all arms."""

    @property
    def finished(self) -> bool:
        """Whether every depth of the study is there, each with as many folds as the full one."""
        if not self.runs.keys() >= set(DEPTHS.get(self.backbone, ())):
            return False
        most = self.runs[self.full]
        return len(self.runs) > 1 and most > 1 and all(n == most for n in self.runs.values())

    @property
    def blocks(self) -> int | None:
        """Blocks that dendrites save over the best arm without; None where folds are missing."""
        others = [depth for arm, depth in self.least.items() if arm != GROWN and depth is not None]
        if GROWN not in self.least or not others or not self.finished:
            return None
        grown = self.least[GROWN]
        return 0 if grown is None else max(0, min(others) - grown)


def depth_of(regime: str) -> int | None:
    """Blocks that a regime keeps; None where that is not what it varies."""
    found = _REGIME.fullmatch(regime)
    return None if found is None else int(found[1])


def depth_points(runs: Iterable[StudyRun]) -> list[DepthPoint]:
    """Every arm at every depth, deepest first; runs of regimes without a depth are left out."""
    groups: dict[tuple[str, str, str, int], dict[tuple[int, int], StudyRun]] = defaultdict(dict)
    for run in runs:
        kept = depth_of(run.regime)
        if kept is not None:
            key = (run.backbone, run.dataset, run.arm, kept)
            groups[key][run.seed, run.fold] = run
    points = []
    for (backbone, dataset, arm, depth), own in sorted(
        groups.items(), key=lambda g: (*g[0][:2], -g[0][3], STUDY_ARMS.index(g[0][2]))
    ):
        full = max(d for b, s, a, d in groups if (b, s, a) == (backbone, dataset, "baseline"))
        reference = groups[backbone, dataset, "baseline", full]
        both = sorted(own.keys() & reference.keys())
        difference = None
        if len(both) > 1:
            difference = corrected_paired_test(
                [own[key].accuracy - reference[key].accuracy for key in both],
                test_share_over_train_share=overlap_ratio(own[key] for key in both),
            )
        of_arm = list(own.values())
        points.append(
            DepthPoint(
                backbone,
                dataset,
                arm,
                depth,
                len(of_arm),
                mean(of_arm, "accuracy"),
                mean(of_arm, "trainable_params"),
                difference,
            )
        )
    return points


def savings(points: Sequence[DepthPoint]) -> list[Saving]:
    """What every backbone and data set may lose."""
    found = []
    for backbone, dataset in dict.fromkeys((p.backbone, p.dataset) for p in points):
        here = [p for p in points if (p.backbone, p.dataset) == (backbone, dataset)]
        least = {
            arm: min((p.depth for p in here if p.arm == arm and p.good_enough), default=None)
            for arm in dict.fromkeys(p.arm for p in here)
        }
        depths = dict.fromkeys(p.depth for p in here)
        counts = {depth: min(p.n for p in here if p.depth == depth) for depth in depths}
        found.append(Saving(backbone, dataset, max(depths), least, counts))
    return found


def saving_sentence(saving: Saving) -> str:
    """What it says, for people."""
    title = BACKBONE_TITLES.get(saving.backbone, saving.backbone)
    if saving.blocks is None:
        made = ", ".join(f"{depth} ({n} folds)" for depth, n in saving.runs.items())
        return (
            f"There are too few runs to say how many blocks dendrites save of {title} on "
            f"{saving.dataset}; depths so far: {made}."
        )
    needs = ", ".join(
        f"{arm} {'more than ' + str(saving.full) if depth is None else depth}"
        for arm, depth in saving.least.items()
    )
    blocks = saving.blocks
    answer = "Dendrites save no block"
    if blocks:
        answer = f"Dendrites save {blocks} of {saving.full} blocks"
    return (
        f"{answer} of {title} on {saving.dataset}: the least depth whose accuracy is at most "
        f"{100 * MARGIN:g} points below the baseline's at {saving.full} blocks, with 95 % "
        f"confidence, is for each arm: {needs}."
    )
