"""Ensembles: what several runs of a fold say together, kept as lines of results.

A cell is every member of some folds, trained side by side. A study that is stopped goes on with the
folds that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
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
from finsent.study.lora_runner import Cell, CellTrainer, Resources, dealt
from finsent.study.lora_training import Ground, Row, RowResult, train_rows
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


class EnsembleRunner:
    """One study in one folder; goes on where it was stopped."""

    def __init__(self, study: EnsembleStudy, artifacts: Path, resources: Resources) -> None:
        self._study, self._resources = study, resources
        self._path = artifacts / "studies" / study.name / RESULTS
        self._dataset = lru_cache(maxsize=None)(lambda name: load_dataset(name, resources.data_dir))

    def run(self) -> None:
        """Make every line that is not in the results yet. Raises StudyError for a loss that is no
        longer finite."""
        done = {run.key for run in read_runs(self._path)}
        for source in self._study.sources:
            folds = [
                number
                for number in range(FOLDS)
                if not all(key in done for key in self._keys(source, number))
            ]
            # A fold at least, however many runs go side by side.
            size = max(1, self._resources.stacked // self._study.members)
            trainer = CellTrainer(self._as_lora(source), self._resources)
            for at in range(0, len(folds), size):
                lines = list(self._made(source, folds[at : at + size], trainer))
                append_runs(self._path, [line for line in lines if line.key not in done])

    def _as_lora(self, source: Source) -> LoraStudy:
        study = self._study
        return LoraStudy(
            study.name,
            (source.dataset,),
            (study.regime,),
            epochs=source.epochs,
            backbone=study.backbone,
        )

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

    def _made(
        self, source: Source, folds: Sequence[int], trainer: CellTrainer
    ) -> Iterator[StudyRun]:
        regime, members = self._study.regime, self._study.members
        deals = [
            (source.dataset, regime.fraction, (f"fold-{number}", self._study.repetition))
            for number in folds
        ]
        dealt_parts = dealt(deals, self._resources.data_dir)
        parts = [dealt_parts[deal] for deal in deals]
        ground = trainer.ground(Cell(source.dataset, regime, (), ()))
        head = ground.hidden_size * ground.n_classes
        ranks = lora_ranks(ground.adapted, regime.r, head, None)
        rows = [
            Row(member, part.train, part.validation, part.test, ranks)
            for part in parts
            for member in range(members)
        ]
        whole = self._train(ground, rows, f"{source.dataset} {WHOLE}")
        again = [replace(row, start=one.fork) for row, one in zip(rows, whole, strict=True)]
        restarted = self._train(ground, again, f"{source.dataset} {RESTARTED}")
        for row, result, before in zip(again, restarted, whole, strict=True):
            # The part before it went back was trained once, for both.
            result.seconds += before.seconds * row.first_epoch / ground.config.epochs
        for index, (number, part) in enumerate(zip(folds, parts, strict=True)):
            own = slice(index * members, (index + 1) * members)
            for way, results in ((WHOLE, whole[own]), (RESTARTED, restarted[own])):
                yield from self._lines(source, way, number, part, results)

    def _train(self, ground: Ground, rows: Sequence[Row], what: str) -> list[RowResult]:
        per_run = -(-len(rows[0].train) // ground.config.batch_size)
        epochs = sum(ground.config.epochs - row.first_epoch for row in rows)
        with tqdm(total=per_run * epochs, desc=what, unit="step", leave=False) as bar:
            return train_rows(ground, rows, last_state=True, step_done=bar.update)

    def _lines(
        self, source: Source, way: str, fold: int, part: Split, results: Sequence[RowResult]
    ) -> Iterator[StudyRun]:
        """Of one fold and way: both states, every member alone and all together."""
        for state in ("", LAST):
            said = [result.said_last if state else result.said for result in results]
            validation = np.stack([_probabilities(one.validation) for one in said if one])
            test = np.stack([_probabilities(one.test) for one in said if one])
            for tested in source.tested:
                line = partial(
                    StudyRun,
                    backbone=self._study.backbone,
                    dataset=source.dataset,
                    regime=self._study.regime.name,
                    recipe=way + state,
                    fold=fold,
                    test_dataset=tested,
                    n_train=len(part.train),
                    dendrites=0,
                )
                scores = _Scores(self._dataset(source.dataset), self._dataset(tested), part)
                for member, result in enumerate(results):
                    yield line(
                        arm=SINGLE,
                        seed=member,
                        **scores.of(validation[member], test[member]),
                        **_costs([result]),
                    )
                yield line(
                    arm=ENSEMBLE,
                    seed=self._study.repetition,
                    **scores.of(validation.mean(axis=0), test.mean(axis=0)),
                    **_costs(results),
                )


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
