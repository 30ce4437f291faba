"""Ensembles: what several runs of a fold say together, kept as lines of results.

A cell is every member of some folds, trained side by side. A study that is stopped goes on with the
folds that are missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from finsent.config import latest_growth
from finsent.data.folds import FOLDS
from finsent.data.registry import Dataset, Split, load_dataset, make_split
from finsent.data.splits import twin_groups
from finsent.models.adapters import lora_ranks
from finsent.results.metrics import score
from finsent.study.lora.runner import (
    Cell,
    CellTrainer,
    Resources,
    make_splits,
    map_cells,
    train_in_stacks,
)
from finsent.study.lora.stack_runs import RunResult, SplitLogits, StackContext, StackRun
from finsent.study.plans import SELECTION_SEED, EnsembleStudy, LoraRegime, LoraStudy, Source
from finsent.study.rows import (
    ENSEMBLE,
    RESULTS,
    RunKey,
    StudyError,
    StudyRun,
    append_runs,
    read_runs,
)
from finsent.study.selection import SELECTION, append_selection, best_regime, read_selection

MEMBER = "baseline"
"""Arm of a member alone."""
WHOLE, RESTARTED = "whole", "restarted"
"""Recipes: trained through, or gone back to the best state once, as the control `restart` is."""
LAST_STATE = "-last"
"""Ends a recipe's name whose state is the one after the last epoch, not that of the lowest NLL."""
RECIPES = tuple(way + state for way in (WHOLE, RESTARTED) for state in ("", LAST_STATE))
REFITTED = "refitted"
"""Recipe: trained on the validation part as well, to the last epoch."""
ALL_REGIMES = "together"
"""Stands for the regime of an ensemble whose members are of several."""

PRETRAINING_EPOCHS = 3
"""Of training on another data set first, chosen on nothing: about as many steps as a run's own."""


@dataclass(frozen=True)
class _Cell:
    """Folds of one source that are trained together, every member of them."""

    source: Source
    regimes: tuple[LoraRegime, ...]
    folds: tuple[int, ...]
    parts: tuple[Split, ...]


class EnsembleRunner:
    """One study in one folder; goes on where it was stopped."""

    def __init__(self, study: EnsembleStudy, artifacts: Path, resources: Resources) -> None:
        self._study, self._resources = study, resources
        self._path = artifacts / "studies" / study.name / RESULTS
        self._selection = self._path.with_name(SELECTION)

    def select(self, regimes: Sequence[str] | None = None) -> Path:
        """Try every regime (of those named) that is not in selection.csv yet, one run of each fold
        of a repetition that is never tested, on its validation parts; returns that file's path.

        Raises StudyError for a study with nothing to choose, an unknown regime, and a loss that is
        no longer finite.
        """
        if not self._study.chooses:
            raise StudyError(f"--select: study {self._study.name!r} has nothing to choose from")
        asked = self._study.regimes
        if regimes is not None:
            asked = tuple(map(self._study.regime, dict.fromkeys(regimes)))
        numbers = tuple(range(FOLDS))
        trainer = _EnsembleTrainer(self._study, self._resources)
        for source in self._study.sources:
            tried = {row["regime"] for row in self._tried(source)}
            missing = [regime for regime in asked if regime.name not in tried]
            if not missing:
                continue
            parts = self._parts(source, numbers, SELECTION_SEED)
            for regime in tqdm(missing, desc=f"{source.dataset}, selection", unit="regime"):
                cell = _Cell(source, (regime,), numbers, parts)
                append_selection(self._selection, trainer.validated(cell))
        return self._selection

    def run(self) -> None:
        """Make every line that is not in the results yet. Raises StudyError for a loss that is no
        longer finite, and where regimes are to be chosen from that were not tried."""
        done = {run.key for run in read_runs(self._path)}
        cells = self._missing(done)
        if not cells:
            print(f"all runs of study {self._study.name} are in {self._path}")
            return
        make = _TrainerFactory(self._study, self._resources)
        total = sum(len(cell.folds) for cell in cells)
        with tqdm(total=total, desc=self._study.name, unit="fold", smoothing=0.1) as bar:
            for lines in map_cells(make, cells, self._resources):
                append_runs(self._path, [line for line in lines if line.key not in done])
                bar.update(len({(line.dataset, line.fold) for line in lines}))

    def _missing(self, done: set[RunKey]) -> list[_Cell]:
        # A fold at least, however many runs go side by side.
        size = max(1, self._resources.stacked // self._study.members)
        cells = []
        for source in self._study.sources:
            regimes = self._regimes_of(source)
            folds = [
                number
                for number in range(FOLDS)
                if not all(key in done for key in self._keys(source, regimes, number))
            ]
            parts = self._parts(source, folds, self._study.repetition)
            cells += [
                _Cell(source, regimes, tuple(folds[at : at + size]), parts[at : at + size])
                for at in range(0, len(folds), size)
            ]
        return cells

    def _parts(self, source: Source, folds: Sequence[int], repetition: int) -> tuple[Split, ...]:
        wanted = [(source.dataset, 1.0, (f"fold-{number}", repetition)) for number in folds]
        found = make_splits(wanted, self._resources.data_dir)
        return tuple(found[deal] for deal in wanted)

    def _regimes_of(self, source: Source) -> tuple[LoraRegime, ...]:
        if not self._study.chooses:
            return self._study.regimes
        rows = self._tried(source)
        tried = {row["regime"] for row in rows}
        for regime in self._study.regimes:
            if regime.name not in tried:
                raise StudyError(
                    f"{self._selection} has nothing of {regime.name} on {source.dataset}: try it "
                    f"on validation first, with `python train_models.py study {self._study.name} "
                    "--select`"
                )
        return (self._study.regime(best_regime(rows, source.dataset)),)

    def _tried(self, source: Source) -> list[dict[str, str]]:
        """What selection.csv says of a source."""
        rows = read_selection(self._selection).values()
        return [row for row in rows if row["dataset"] == source.dataset]

    def _keys(self, source: Source, regimes: Sequence[LoraRegime], fold: int) -> Iterator[RunKey]:
        study = self._study
        members = [(MEMBER, member) for member in range(study.members)]
        together = (ENSEMBLE, study.repetition)
        runs = [(regime.name, *one) for regime in regimes for one in (*members, together)]
        if len(regimes) > 1:
            runs.append((ALL_REGIMES, *together))
        for tested in source.tested:
            for recipe in (REFITTED,) if study.refit else RECIPES:
                for name, arm, seed in runs:
                    yield RunKey(
                        study.backbone, source.dataset, name, recipe, arm, fold, seed, tested
                    )


@dataclass(frozen=True)
class _TrainerFactory:
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
        as_lora = LoraStudy(study.name, (), (), backbone=study.backbone)
        self._trainer = CellTrainer(as_lora, resources)
        self._initial_states = lru_cache(maxsize=None)(self._pretrained)

    def _context(self, dataset: str, regime: LoraRegime, epochs: int | None) -> StackContext:
        context = self._trainer.context(Cell(dataset, regime, (), ()))
        epochs = epochs or context.config.epochs
        return replace(
            context,
            config=replace(context.config, epochs=epochs),
            dendrites=replace(context.dendrites, grow_by=latest_growth(epochs)),
        )

    def _pretrained(
        self, regime: LoraRegime, dataset: str, seeds: tuple[int, ...]
    ) -> list[Mapping[str, Tensor] | None]:
        """What runs of these seeds begin with: the best state of a run on `regime.first_on`, which
        has seen no sentence whose twin is in `dataset`."""
        if regime.first_on is None:
            return [None] * len(seeds)
        first, target = self._dataset(regime.first_on), self._dataset(dataset)
        groups = twin_groups([example.text for example in (*target.examples, *first.examples)])
        known = set(groups[: len(target.examples)].tolist())
        fresh = [group not in known for group in groups[len(target.examples) :].tolist()]
        rows = []
        context = self._context(first.name, replace(regime, targets="labels"), PRETRAINING_EPOCHS)
        ranks = self._ranks(context, regime)
        for seed in seeds:
            part = make_split(first, seed)
            train, validation = (
                [index for index in indices if fresh[index]]
                for indices in ((*part.train, *part.test), part.validation)
            )
            rows.append(StackRun(seed, train, validation, validation, ranks))
        found = train_in_stacks(context, rows, self._resources, f"{first.name} first")
        return [result.tensors for result in found]

    @staticmethod
    def _ranks(context: StackContext, regime: LoraRegime) -> Mapping[str, int]:
        return lora_ranks(context.adapted, regime.r, context.hidden_size * context.n_classes, None)

    def validated(self, cell: _Cell) -> list[dict[str, str]]:
        """Lines of selection.csv: one run of every fold, in the best and in the last state. The
        folds' test parts are not looked at."""
        (regime,) = cell.regimes
        context = self._context(cell.source.dataset, regime, cell.source.epochs)
        ranks = self._ranks(context, regime)
        (initial,) = self._initial_states(regime, cell.source.dataset, (0,))
        rows = [
            StackRun(0, part.train, part.validation, part.validation, ranks, initial=initial)
            for part in cell.parts
        ]
        results = self._trained(context, rows, f"{cell.source.dataset} {regime.name}")
        dataset = self._dataset(cell.source.dataset)
        lines = []
        for last in (False, True):
            scores = [
                score(
                    [dataset.examples[i].label for i in part.validation],
                    _probabilities(_split_logits(result, last=last).validation),
                    dataset.label_names,
                )
                for part, result in zip(cell.parts, results, strict=True)
            ]
            nll, accuracy = (
                f"{np.mean([found[name] for found in scores]):.6g}" for name in ("nll", "accuracy")
            )
            lines.append(
                {
                    "dataset": cell.source.dataset,
                    "regime": regime.name,
                    "recipe": WHOLE + LAST_STATE * last,
                    "arm": MEMBER,
                    "features": "",
                    "learning_rate": f"{context.config.learning_rate:g}",
                    "weight_decay": f"{context.config.weight_decay:g}",
                    "validation_nll": nll,
                    "validation_accuracy": accuracy,
                    "dendrites": "0",
                    "runs": str(len(rows)),
                }
            )
        return lines

    def lines_of(self, cell: _Cell) -> list[StudyRun]:
        """Every line of a cell's folds."""
        return [*self._made(cell)]

    def _made(self, cell: _Cell) -> Iterator[StudyRun]:
        source, members = cell.source, self._study.members
        found = {regime.name: self._results(cell, regime) for regime in cell.regimes}
        recipes = next(iter(found.values()))
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
                fold=number,
                n_train=len(self._training_indices(part)),
                dendrites=0,
            )
            for recipe, (_, last) in recipes.items():
                of_regimes = {name: results[recipe][0][own] for name, results in found.items()}
                in_recipe = partial(line, recipe=recipe)
                yield from self._lines(in_recipe, scores, of_regimes, last=last)

    def _training_indices(self, part: Split) -> list[int]:
        return [*part.train, *(part.validation if self._study.refit else ())]

    def _results(self, cell: _Cell, regime: LoraRegime) -> dict[str, tuple[list[RunResult], bool]]:
        """Recipe -> every member of every fold, fold by fold, and whether their last states count
        or those that validate best."""
        source = cell.source
        context = self._context(source.dataset, regime, source.epochs)
        ranks = self._ranks(context, regime)
        members = range(self._study.members)
        initial = self._initial_states(regime, source.dataset, tuple(members))
        rows = [
            StackRun(
                member,
                self._training_indices(part),
                part.validation,
                part.test,
                ranks,
                initial=initial[member],
            )
            for part in cell.parts
            for member in members
        ]
        what = f"{source.dataset} {regime.name}"
        if self._study.refit:
            return {REFITTED: (self._trained(context, rows, f"{what} {REFITTED}"), True)}
        whole = self._trained(context, rows, f"{what} {WHOLE}")
        again = [replace(row, fork=one.fork) for row, one in zip(rows, whole, strict=True)]
        restarted = self._trained(context, again, f"{what} {RESTARTED}")
        for row, result, before in zip(again, restarted, whole, strict=True):
            # The part before it went back was trained once, for both.
            result.seconds += before.seconds * row.first_epoch / context.config.epochs
        return {
            way + LAST_STATE * last: (results, last)
            for way, results in ((WHOLE, whole), (RESTARTED, restarted))
            for last in (False, True)
        }

    def _trained(
        self, context: StackContext, rows: Sequence[StackRun], what: str
    ) -> list[RunResult]:
        return train_in_stacks(context, rows, self._resources, what, last_state=True)

    def _lines(
        self,
        line: Callable[..., StudyRun],
        scores: Mapping[str, _Scores],
        found: Mapping[str, Sequence[RunResult]],
        *,
        last: bool,
    ) -> Iterator[StudyRun]:
        """Of one fold and recipe, on every data set: every member alone, all of a regime together,
        and all of several. found: members by regime."""
        groups = {name: list(results) for name, results in found.items()}
        if len(found) > 1:
            groups[ALL_REGIMES] = [result for results in found.values() for result in results]
        for name, results in groups.items():
            logits = [_split_logits(result, last=last) for result in results]
            validation = np.stack([_probabilities(one.validation) for one in logits])
            test = np.stack([_probabilities(one.test) for one in logits])
            for tested, scored in scores.items():
                of_group = partial(line, regime=name, test_dataset=tested)
                for member, result in enumerate(results if name in found else ()):
                    yield of_group(
                        arm=MEMBER,
                        seed=member,
                        **self._scored(scored, validation[member], test[member]),
                        **_costs([result]),
                    )
                yield of_group(
                    arm=ENSEMBLE,
                    seed=self._study.repetition,
                    **self._scored(scored, validation.mean(axis=0), test.mean(axis=0)),
                    **_costs(results),
                )

    def _scored(
        self, scored: _Scores, validation: NDArray[np.float64], test: NDArray[np.float64]
    ) -> dict[str, Any]:
        columns = scored.of(validation, test)
        if self._study.refit:
            # What was learned says nothing about what was not.
            columns.update(validation_nll=math.nan, validation_accuracy=math.nan)
        return columns


def _split_logits(result: RunResult, *, last: bool) -> SplitLogits:
    logits = result.last_logits if last else result.logits
    if logits is None:
        raise StudyError("a run was trained without asking for its last state")
    return logits


def _probabilities(logits: Tensor) -> NDArray[np.float64]:
    if not bool(logits.isfinite().all()):
        raise StudyError("a run ended in logits that are not finite; lower the learning rate")
    found: NDArray[np.float64] = logits.double().softmax(dim=1).numpy()
    return found


def _costs(results: Sequence[RunResult]) -> dict[str, Any]:
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
