"""Ensembles: what several runs of a fold say together, kept as lines of results.

A cell is every member of some folds, trained side by side. A study that is stopped goes on with the
folds that are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from finsent.adapters import lora_ranks
from finsent.data import Dataset, Split, load_dataset
from finsent.evaluation import score
from finsent.folds import FOLDS
from finsent.study.lora_runner import Cell, CellTrainer, Resources, dealt, spread, trained
from finsent.study.lora_training import Ground, Row, RowResult, Said
from finsent.study.plans import EnsembleStudy, LoraStudy, Source
from finsent.study.results import (
    ENSEMBLE,
    RESULTS,
    RunKey,
    StudyError,
    StudyRun,
    append_runs,
    read_runs,
)

SINGLE = "baseline"
"""Arm of a member alone."""
WHOLE, RESTARTED = "whole", "restarted"
"""Recipes: trained through, or gone back to the best state once, as the control `restart` is."""
LAST = "-last"
"""Ends a recipe's name whose state is the one after the last epoch, not that of the lowest NLL."""
RECIPES = tuple(way + state for way in (WHOLE, RESTARTED) for state in ("", LAST))


@dataclass(frozen=True)
class _Cell:
    """Folds of one source that are trained together, every member of them."""

    source: Source
    folds: tuple[int, ...]
    parts: tuple[Split, ...]


class EnsembleRunner:
    """One study in one folder; goes on where it was stopped."""

    def __init__(self, study: EnsembleStudy, artifacts: Path, resources: Resources) -> None:
        self._study, self._resources = study, resources
        self._path = artifacts / "studies" / study.name / RESULTS

    def run(self) -> None:
        """Make every line that is not in the results yet. Raises StudyError for a loss that is no
        longer finite."""
        done = {run.key for run in read_runs(self._path)}
        cells = self._missing(done)
        if not cells:
            print(f"all runs of study {self._study.name} are in {self._path}")
            return
        make = _Maker(self._study, self._resources)
        total = sum(len(cell.folds) for cell in cells)
        with tqdm(total=total, desc=self._study.name, unit="fold", smoothing=0.1) as bar:
            for lines in spread(make, cells, self._resources):
                append_runs(self._path, [line for line in lines if line.key not in done])
                bar.update(len({(line.dataset, line.fold) for line in lines}))

    def _missing(self, done: set[RunKey]) -> list[_Cell]:
        # A fold at least, however many runs go side by side.
        size = max(1, self._resources.stacked // self._study.members)
        cells = []
        for source in self._study.sources:
            folds = [
                number
                for number in range(FOLDS)
                if not all(key in done for key in self._keys(source, number))
            ]
            wanted = [
                (source.dataset, self._study.regime.fraction, (f"fold-{n}", self._study.repetition))
                for n in folds
            ]
            found = dealt(wanted, self._resources.data_dir)
            parts = [found[deal] for deal in wanted]
            cells += [
                _Cell(source, tuple(folds[at : at + size]), tuple(parts[at : at + size]))
                for at in range(0, len(folds), size)
            ]
        return cells

    def _keys(self, source: Source, fold: int) -> Iterator[RunKey]:
        members = [(SINGLE, member) for member in range(self._study.members)]
        for tested in source.tested:
            for recipe in RECIPES:
                for arm, seed in [*members, (ENSEMBLE, self._study.repetition)]:
                    yield RunKey(
                        self._study.backbone,
                        source.dataset,
                        self._study.regime.name,
                        recipe,
                        arm,
                        fold,
                        seed,
                        tested,
                    )


@dataclass(frozen=True)
class _Maker:
    """Makes what makes cells; a worker does so once and keeps the base."""

    study: EnsembleStudy
    resources: Resources

    def __call__(self) -> Callable[[_Cell], list[StudyRun]]:
        return _EnsembleTrainer(self.study, self.resources).lines_of


class _EnsembleTrainer:
    """Trains cells and scores what their members say."""

    def __init__(self, study: EnsembleStudy, resources: Resources) -> None:
        self._study, self._resources = study, resources
        self._dataset = lru_cache(maxsize=None)(lambda name: load_dataset(name, resources.data_dir))
        self._trainer = lru_cache(maxsize=1)(self._trainer_of)

    def _trainer_of(self, source: Source) -> CellTrainer:
        study = self._study
        as_lora = LoraStudy(
            study.name,
            (source.dataset,),
            (study.regime,),
            epochs=source.epochs,
            backbone=study.backbone,
        )
        return CellTrainer(as_lora, self._resources)

    def lines_of(self, cell: _Cell) -> list[StudyRun]:
        """Every line of a cell's folds."""
        return [*self._made(cell)]

    def _made(self, cell: _Cell) -> Iterator[StudyRun]:
        source, regime, members = cell.source, self._study.regime, self._study.members
        ground = self._trainer(source).ground(Cell(source.dataset, regime, (), ()))
        head = ground.hidden_size * ground.n_classes
        ranks = lora_ranks(ground.adapted, regime.r, head, None)
        rows = [
            Row(member, part.train, part.validation, part.test, ranks)
            for part in cell.parts
            for member in range(members)
        ]
        whole = self._trained(ground, rows, f"{source.dataset} {WHOLE}")
        again = [replace(row, start=one.fork) for row, one in zip(rows, whole, strict=True)]
        restarted = self._trained(ground, again, f"{source.dataset} {RESTARTED}")
        for row, result, before in zip(again, restarted, whole, strict=True):
            # The part before it went back was trained once, for both.
            result.seconds += before.seconds * row.first_epoch / ground.config.epochs
        for index, (number, part) in enumerate(zip(cell.folds, cell.parts, strict=True)):
            own = slice(index * members, (index + 1) * members)
            scores = {
                tested: _Scores(self._dataset(source.dataset), self._dataset(tested), part)
                for tested in source.tested
            }
            line = partial(
                StudyRun,
                backbone=self._study.backbone,
                dataset=source.dataset,
                regime=regime.name,
                fold=number,
                n_train=len(part.train),
                dendrites=0,
            )
            for way, results in ((WHOLE, whole[own]), (RESTARTED, restarted[own])):
                for state in ("", LAST):
                    in_recipe = partial(line, recipe=way + state)
                    yield from self._lines(in_recipe, scores, results, last=bool(state))

    def _trained(self, ground: Ground, rows: Sequence[Row], what: str) -> list[RowResult]:
        return trained(ground, rows, self._resources, what, last_state=True)

    def _lines(
        self,
        line: Callable[..., StudyRun],
        scores: Mapping[str, _Scores],
        results: Sequence[RowResult],
        *,
        last: bool,
    ) -> Iterator[StudyRun]:
        """Of one fold and recipe, on every data set: every member alone and all together."""
        said = [_said(result, last=last) for result in results]
        validation = np.stack([_probabilities(one.validation) for one in said])
        test = np.stack([_probabilities(one.test) for one in said])
        for tested, scored in scores.items():
            for member, result in enumerate(results):
                yield line(
                    test_dataset=tested,
                    arm=SINGLE,
                    seed=member,
                    **scored.of(validation[member], test[member]),
                    **_costs([result]),
                )
            yield line(
                test_dataset=tested,
                arm=ENSEMBLE,
                seed=self._study.repetition,
                **scored.of(validation.mean(axis=0), test.mean(axis=0)),
                **_costs(results),
            )


def _said(result: RowResult, *, last: bool) -> Said:
    said = result.said_last if last else result.said
    if said is None:
        raise StudyError("a run was trained without asking for its last state")
    return said


def _probabilities(logits: Tensor) -> NDArray[np.float64]:
    if not bool(logits.isfinite().all()):
        raise StudyError("a run ended in logits that are not finite; lower the learning rate")
    found: NDArray[np.float64] = logits.double().softmax(dim=1).numpy()
    return found


def _costs(results: Sequence[RowResult]) -> dict[str, Any]:
    """Columns of a line: what some runs took in all, and the latest epoch that was selected."""
    return {
        "trainable_params": sum(result.trainable_params for result in results),
        "optimizer_steps": sum(result.optimizer_steps for result in results),
        "train_seconds": sum(result.seconds for result in results),
        "best_epoch": max(result.selected.epoch for result in results),
    }


class _Scores:
    """Scores probabilities for a fold's parts on those sentences that a data set has."""

    def __init__(self, trained: Dataset, tested: Dataset, part: Split) -> None:
        there = {example.id for example in tested.examples}
        self._names = trained.label_names
        self._parts = []
        for indices in (part.validation, part.test):
            examples = [trained.examples[index] for index in indices]
            kept = [place for place, example in enumerate(examples) if example.id in there]
            self._parts.append((kept, [examples[place].label for place in kept]))

    def of(self, validation: NDArray[np.float64], test: NDArray[np.float64]) -> dict[str, Any]:
        """Columns of a line; both (n, classes), in the order of the parts."""
        chosen, found = (
            score(labels, probabilities[kept], self._names)
            for (kept, labels), probabilities in zip(self._parts, (validation, test), strict=True)
        )
        return {
            **{name: found[name] for name in ("accuracy", "macro_f1", "nll", "ece", "n_test")},
            "validation_nll": chosen["nll"],
            "validation_accuracy": chosen["accuracy"],
        }
