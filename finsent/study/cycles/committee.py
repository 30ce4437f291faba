"""A committee's knowledge in one small model: a student learns what its teachers say of sentences
that they were not trained on.

The training part of a fold is dealt into groups. One teacher for each group learns from the others
and says what it makes of the sentences left out, so no target is of a sentence that its teacher
knew, and no teacher has seen a test sentence. Hinton et al. (2015), "Distilling the Knowledge in a
Neural Network"; cross-fitted as in stacking (Wolpert 1992).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finsent.data.folds import labels_and_groups
from finsent.data.splits import fold_dealer
from finsent.study.cycles.cell import Cell, CellTrainer, Cycle, Folds, Line
from finsent.study.cycles.stack import Asked
from finsent.study.rows import RunKey
from finsent.training.loop import TrainingData
from finsent.training.progress import Start, Validation

GROUPS = 4
"""Teachers of a fold."""
TEACHER_SHARE = 0.5
"""Of a target; the rest is the label. Fixed before the first run (LOG.md)."""
SOFT, HARD, TEACHER = "soft", "hard", "teacher"
"""Recipes: a student of teachers and labels, a student of labels alone, the teachers together."""
ARM = "baseline"
"""No dendrites here."""


def taught_keys(cell: Cell) -> list[RunKey]:
    """The rows that a cell with teachers becomes."""
    regime = cell.regime
    backbones = {SOFT: regime.backbone, HARD: regime.backbone, TEACHER: regime.teacher or ""}
    return [
        RunKey(backbone, cell.dataset, regime.name, recipe, ARM, cell.fold, cell.seed, tested)
        for recipe, backbone in backbones.items()
        for tested in (cell.dataset, *regime.tested)
    ]


def taught(trainer: CellTrainer, cells: Sequence[Cell]) -> Iterator[list[Line]]:
    """Rows of cells with teachers, of one regime and data set: all of them together.

    Raises:
        TrainingDiverged: A loss became NaN or infinite.
    """
    targets, teachers = _committees(trainer, cells)
    hard, soft = Folds(trainer, cells), Folds(trainer, cells, targets)
    cycles = {HARD: hard.first(), SOFT: soft.first(), TEACHER: teachers}
    teacher = cells[0].regime.teacher or ""
    lines = []
    for tested in (None, *map(trainer.dataset, cells[0].regime.tested)):
        for recipe, of_cells in cycles.items():
            for place, cycle in enumerate(of_cells):
                line = hard.line(place, recipe, ARM, (cycle,), tested)
                if recipe == TEACHER:
                    line = replace(line, run=replace(line.run, backbone=teacher))
                lines.append(line)
    yield lines


def _committees(trainer: CellTrainer, cells: Sequence[Cell]) -> tuple[list[Tensor], list[Cycle]]:
    """For each cell: targets (n, classes) for every sentence of the data set, which are the labels
    outside of the training part, and what the teachers together say of the test part."""
    regime = replace(cells[0].regime, backbone=cells[0].regime.teacher or "", config={})
    regime = replace(regime, teacher=None)
    configs = [trainer.config(replace(cell, regime=regime)) for cell in cells]
    dataset, states = trainer.dataset(cells[0].dataset), trainer.states(configs[0])
    labels, groups = labels_and_groups(dataset)
    classes = len(dataset.label_names)
    asked, left_out = [], []
    for cell, config in zip(cells, configs, strict=True):
        split = trainer.split(config)
        learned = np.array(split.train)
        dealer = fold_dealer(GROUPS, cell.seed)
        for others, kept in dealer.split(learned, labels[learned], groups[learned]):
            data = TrainingData(
                states, labels.tolist(), classes, learned[others].tolist(), split.validation
            )
            left_out.append(learned[kept].tolist())
            asked.append(Asked(config, data, [*left_out[-1], *split.test]))
    made = trainer.trained(asked)
    targets, together = [], []
    for at in range(0, len(made), GROUPS):
        target = F.one_hot(torch.tensor(labels), classes).float()
        of_cell = made[at : at + GROUPS]
        for cycle, texts in zip(of_cell, left_out[at : at + GROUPS], strict=True):
            said = torch.tensor(cycle.probabilities[: len(texts)]).float()
            where = torch.tensor(texts)
            target[where] = (1 - TEACHER_SHARE) * target[where] + TEACHER_SHARE * said
        targets.append(target.to(states.values.device))
        together.append(_joined(of_cell, left_out[at : at + GROUPS]))
    return targets, together


def _joined(teachers: Sequence[Cycle], left_out: Sequence[Sequence[int]]) -> Cycle:
    """The teachers of a cell as one run, which says the mean of what they say of its test part."""
    said = [
        cycle.probabilities[len(texts) :] for cycle, texts in zip(teachers, left_out, strict=True)
    ]
    first = teachers[0]
    return Cycle(
        # Each has its own; together they have none.
        validation=Validation(first.validation.epoch, math.nan, math.nan, math.nan),
        loss=0.0,
        start=Start({}, 0),
        probabilities=np.mean(said, axis=0),
        trained_params=first.trained_params * GROUPS,
        steps=sum(cycle.steps for cycle in teachers),
        epochs=first.epochs,
        seconds=sum(cycle.seconds for cycle in teachers),
    )
