"""A committee's knowledge in one small model: a student learns what its teachers say of sentences
that they were not trained on.

The training part of a fold is dealt into groups. One teacher for each group learns from the others
and says what it makes of the sentences left out, so no target is of a sentence that its teacher
knew, and no teacher has seen a test sentence. Hinton et al. (2015), "Distilling the Knowledge in a
Neural Network"; cross-fitted as in stacking (Wolpert 1992).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finsent.data.folds import labels_and_groups
from finsent.study.cycles.cell import PAD_MULTIPLE, Cell, CellTrainer, Cycle, Fold, Line
from finsent.study.rows import RunKey
from finsent.training.loop import TrainingData, class_logits, train
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


def taught(trainer: CellTrainer, cell: Cell) -> Iterator[list[Line]]:
    """Rows of a cell with teachers: all of them together.

    Raises:
        TrainingDiverged: A loss became NaN or infinite.
    """
    targets, teachers = _committee(trainer, cell)
    hard, soft = Fold(trainer, cell), Fold(trainer, cell, targets)
    cycles = {HARD: hard.first(), SOFT: soft.first(), TEACHER: teachers}
    lines = []
    for tested in (None, *map(trainer.dataset, cell.regime.tested)):
        for recipe, cycle in cycles.items():
            line = hard.line(recipe, ARM, (cycle,), tested)
            if recipe == TEACHER:
                line = replace(line, run=replace(line.run, backbone=cell.regime.teacher or ""))
            lines.append(line)
    yield lines


def _committee(trainer: CellTrainer, cell: Cell) -> tuple[Tensor, Cycle]:
    """Targets (n, classes) for every sentence of the data set, which are the labels outside of the
    training part, and what the teachers together say of the test part."""
    from sklearn.model_selection import StratifiedGroupKFold

    regime = replace(cell.regime, backbone=cell.regime.teacher or "", config={}, teacher=None)
    config = trainer.config(replace(cell, regime=regime))
    dataset, split = trainer.dataset(cell.dataset), trainer.split(config)
    labels, groups = labels_and_groups(dataset)
    classes = len(dataset.label_names)
    base, states = trainer.base(config), trainer.states(config)
    targets = F.one_hot(torch.tensor(labels), classes).float()
    learned = np.array(split.train)
    dealer = StratifiedGroupKFold(GROUPS, shuffle=True, random_state=cell.seed)
    results, said = [], []
    for others, left_out in dealer.split(learned, labels[learned], groups[learned]):
        data = TrainingData(
            states, labels.tolist(), classes, learned[others].tolist(), split.validation
        )
        with tempfile.TemporaryDirectory() as scratch:
            result = train(config, base, data, Path(scratch), pad_multiple=PAD_MULTIPLE)
        asked = learned[left_out]
        logits = class_logits(result.model, states, asked.tolist(), data.lengths)
        targets[torch.tensor(asked)] *= 1 - TEACHER_SHARE
        targets[torch.tensor(asked)] += TEACHER_SHARE * logits.softmax(dim=1)
        test = class_logits(result.model, states, split.test, data.lengths)
        said.append(test.double().softmax(dim=1).numpy())
        result.model.detach()
        results.append(result)
    first = results[0]
    together = Cycle(
        # Each has its own; together they have none.
        validation=Validation(first.selected.epoch, math.nan, math.nan, math.nan),
        loss=0.0,
        start=Start({}, 0),
        probabilities=np.mean(said, axis=0),
        trained_params=first.trainable_params * GROUPS,
        steps=sum(result.optimizer_steps for result in results),
        epochs=len(first.history),
        seconds=sum(result.train_seconds for result in results),
        rate=1.0,
    )
    return targets.to(base.device), together
