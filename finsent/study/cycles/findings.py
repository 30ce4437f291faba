"""Sentences about studies of cycles that the comparison of arms within a regime does not give.

Each is made from the study's rows. Free of torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from finsent.config import BACKBONE_TITLES
from finsent.results.metrics import SIGNIFICANCE
from finsent.results.text import percent, points
from finsent.study.comparisons import overlap_ratio
from finsent.study.cycles.depths import GROWN, depth_points, saving_sentence, savings
from finsent.study.cycles.plans import CycleStudy
from finsent.study.fold_tests import PairedDifference, corrected_paired_test
from finsent.study.rows import RESULTS, StudyRun, mean, read_runs

SMALL, LARGE = "minilm-l6", "mpnet-base"
WANTED = MappingProxyType({"50agree": 0.86, "allagree": 0.98})
"""Accuracy that a single student was to reach, by data set tested on; fixed beforehand (LOG.md)."""


def findings(study: str, folder: Path) -> list[str]:
    """What a study says besides; nothing for one without such sentences or without runs."""
    make = _MAKERS.get(study)
    return [] if make is None else list(make(read_runs(folder / RESULTS)))


@dataclass(frozen=True)
class RegimeProgress:
    """How much of what was registered of a regime on a data set is there."""

    regime: str
    dataset: str
    made: int
    """Folds, of all repetitions."""
    planned: int


def progress(study: CycleStudy, folder: Path) -> list[RegimeProgress]:
    """Every regime and data set of a study, in the order of the plan."""
    runs = read_runs(folder / RESULTS)
    made: dict[tuple[str, str], set[tuple[int, int]]] = defaultdict(set)
    for run in runs:
        made[run.regime, run.dataset].add((run.seed, run.fold))
    planned = len(study.splits) * len(study.seeds)
    return [
        RegimeProgress(regime.name, dataset, len(made[regime.name, dataset]), planned)
        for regime in study.regimes
        for dataset in study.datasets
    ]


def paired(a: Iterable[StudyRun], b: Iterable[StudyRun]) -> PairedDifference | None:
    """b's accuracy minus a's on the folds that both have; None where they share fewer than two."""
    of_a, of_b = ({(run.seed, run.fold): run for run in runs} for runs in (a, b))
    both = sorted(of_a.keys() & of_b.keys())
    if len(both) < 2:
        return None
    return corrected_paired_test(
        [of_b[key].accuracy - of_a[key].accuracy for key in both],
        test_share_over_train_share=overlap_ratio(of_b[key] for key in both),
    )


def said(difference: PairedDifference) -> str:
    """Points with their interval and p, which is of this comparison alone."""
    low, high = points(difference.low), points(difference.high)
    return (
        f"{points(difference.mean)} points (95 % CI {low} to {high}; p = "
        f"{difference.p_value:.2g}; n = {difference.n} folds)"
    )


def _kept(runs: Sequence[StudyRun]) -> Iterable[str]:
    """How often the best validation score was that of a state with dendrites."""
    for regime, dataset in dict.fromkeys((run.regime, run.dataset) for run in runs):
        for recipe in dict.fromkeys(run.recipe for run in runs if run.regime == regime):
            here = [
                run.dendrites
                for run in runs
                if (run.regime, run.dataset, run.recipe) == (regime, dataset, recipe)
                and run.arm == GROWN
            ]
            kept = sum(number > 0 for number in here)
            if not here:
                continue
            others = "; the others validated best before it grew, and are the baseline then"
            yield (
                f"{dataset}, `{regime}`, `{recipe}`: {kept} of {len(here)} runs kept a dendrite"
                f"{others if kept < len(here) else ''}."
            )


def _authors(runs: Sequence[StudyRun]) -> Iterable[str]:
    """What was kept, and a small network with dendrites against a large one."""
    yield from _kept(runs)
    for dataset in dict.fromkeys(run.dataset for run in runs):
        here = [run for run in runs if run.dataset == dataset]
        small = [run for run in here if (run.regime, run.arm) == (f"{SMALL}-full", GROWN)]
        large = [run for run in here if (run.regime, run.arm) == (f"{LARGE}-full", "baseline")]
        difference = paired(large, small)
        if difference is not None:
            verdict = "it is ahead of it" if difference.mean > 0 else "it does not reach it"
            if difference.p_value >= SIGNIFICANCE:
                verdict = "no difference is shown"
            yield (
                f"{dataset}: {BACKBONE_TITLES[SMALL]} with dendrites on its linear layers, trained "
                f"fully, scores {said(difference)} against {BACKBONE_TITLES[LARGE]} trained fully "
                f"without dendrites: {verdict}."
            )


def _shrink(runs: Sequence[StudyRun]) -> Iterable[str]:
    """What dendrites save, and what was kept."""
    yield from map(saving_sentence, savings(depth_points(runs)))
    yield from _kept(runs)


def _committee(runs: Sequence[StudyRun]) -> Iterable[str]:
    """A student of teachers and labels against one of labels alone."""
    for tested in dict.fromkeys(run.test_dataset for run in runs):
        of = {
            recipe: [r for r in runs if (r.recipe, r.test_dataset) == (recipe, tested)]
            for recipe in ("hard", "soft", "teacher")
        }
        difference = paired(of["hard"], of["soft"])
        if difference is None:
            continue
        reached = mean(of["soft"], "accuracy")
        wanted = ""
        if tested in WANTED:
            verdict = "reached" if reached >= WANTED[tested] else "not reached"
            wanted = f" Wanted were {percent(WANTED[tested], 0)} %, {verdict}."
        yield (
            f"tested on {tested}: one MiniLM that also learns what MPNet says scores "
            f"{percent(reached)} %, {said(difference)} against labels alone; the teachers together "
            f"score {percent(mean(of['teacher'], 'accuracy'))} %.{wanted}"
        )


_MAKERS: Mapping[str, Callable[[Sequence[StudyRun]], Iterable[str]]] = MappingProxyType(
    {"authors": _authors, "shrink": _shrink, "committee": _committee}
)
