"""What one fold of a regime becomes: cycles of the real trainer, tuned and compared."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from finsent.config import (
    DendriteConfig,
    LoraConfig,
    MatchedCapacity,
    TrainConfig,
    Treatment,
)
from finsent.data.folds import part_examples
from finsent.data.mixture import epoch_rows
from finsent.data.registry import Dataset, Split, load_dataset
from finsent.models.backbones import (
    Backbone,
    HiddenStates,
    check_decomposition,
    entering_hidden_states,
    load_backbone,
)
from finsent.models.presets import cue, preset
from finsent.results.metrics import score
from finsent.study.cycles.plans import PLAIN, CycleRegime, Recipe
from finsent.study.cycles.stack import Asked, train_side_by_side
from finsent.study.rows import StudyRun
from finsent.training.loop import TrainingData, TrainingDiverged, class_logits, train
from finsent.training.progress import Start, Validation

PAD_MULTIPLE = 32
"""Runs are short: a captured shape less saves more than the padding costs."""


@dataclass(frozen=True)
class Cell:
    """One fold of one repetition in one regime: every arm and recipe of it."""

    regime: CycleRegime
    dataset: str
    split: str
    seed: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.regime.name} {self.dataset} {self.split} seed {self.seed}"

    @property
    def fold(self) -> int:
        """Number of the fold; 0 for a protocol with one test part."""
        return int(self.split.removeprefix("fold-")) if self.split.startswith("fold-") else 0


@dataclass(frozen=True)
class Cycle:
    """One run between two growths, the best of those that were tried."""

    validation: Validation
    loss: float
    """Its validation loss, by the regime's score."""
    start: Start = field(repr=False)
    """Its selected state, from which a next cycle may begin."""
    probabilities: Any = field(repr=False)
    """(test, classes)"""
    trained_params: int
    steps: int
    epochs: int
    seconds: float
    rate: float = 1.0
    """Which factor of the learning rate was chosen."""


@dataclass(frozen=True)
class Line:
    """A row of the results, and what is known of its cycles besides."""

    run: StudyRun
    cycles: tuple[Cycle, ...]
    kept: int
    """Which of them is tested."""

    def without_states(self) -> Line:
        """The same without tensors, to be sent to another process."""
        empty = Start({}, 0)
        cycles = tuple(replace(c, start=empty, probabilities=None) for c in self.cycles)
        return replace(self, cycles=cycles)


class CellTrainer:
    """Trains cells in this process. Bases and data sets stay in memory for the next one."""

    def __init__(
        self, device: str, data_dir: Path | None, backbone_dir: Path | None, stacked: int = 1
    ) -> None:
        """stacked: runs side by side at most (finsent.study.cycles.stack)."""
        self._device, self.stacked = torch.device(device), stacked
        self._data_dir, self._backbone_dir = data_dir, backbone_dir
        self._dataset = lru_cache(maxsize=2)(lambda name: load_dataset(name, data_dir))
        self._states = lru_cache(maxsize=4)(self._entering)
        self._base = lru_cache(maxsize=2)(self._loaded)

    def lines(self, cells: Sequence[Cell]) -> Iterator[list[Line]]:
        """Rows of cells of one regime and data set, as soon as all arms of a recipe are there. The
        baseline stands with every recipe, so that each is a whole comparison.

        Raises:
            TrainingDiverged: A loss became NaN or infinite.
            GrowthError: PerforatedAI failed.
        """
        folds = Folds(self, cells)
        regime = cells[0].regime
        for name, recipe in regime.recipes.items():
            arms = folds.arms(recipe)
            yield [
                folds.line(place, name, arm, cycles[place])
                for place in range(len(cells))
                for arm, cycles in arms.items()
            ]
        if not regime.recipes:
            yield [
                folds.line(place, PLAIN, "baseline", (cycle,))
                for place, cycle in enumerate(folds.first())
            ]

    def trained(self, asked: Sequence[Asked]) -> list[Cycle]:
        """The runs, side by side where more than one at a time is allowed."""
        backbone = self.base(asked[0].config)
        if self.stacked == 1:
            return [self._alone(run, backbone) for run in asked]
        made = train_side_by_side(asked, backbone, most=self.stacked, pad_multiple=PAD_MULTIPLE)
        return [
            Cycle(
                validation=one.selected,
                loss=one.selected.loss(run.config.scored_by),
                start=Start(one.tensors, one.dendrites),
                probabilities=one.test_logits.double().softmax(dim=1).numpy(),
                trained_params=one.trained_params,
                steps=one.steps,
                epochs=one.epochs,
                seconds=one.seconds,
            )
            for run, one in zip(asked, made, strict=True)
        ]

    def _alone(self, run: Asked, backbone: Backbone) -> Cycle:
        with tempfile.TemporaryDirectory() as scratch:
            result = train(
                run.config,
                backbone,
                run.data,
                Path(scratch),
                start=run.start,
                pad_multiple=PAD_MULTIPLE,
            )
        logits = class_logits(result.model, run.data.states, run.test, run.data.lengths)
        tensors = result.model.snapshot()
        result.model.detach()
        return Cycle(
            validation=result.selected,
            loss=result.selected.loss(run.config.scored_by),
            start=Start(tensors, result.dendrites),
            probabilities=logits.double().softmax(dim=1).numpy(),
            trained_params=result.history[-1].trainable_params,
            steps=result.optimizer_steps,
            epochs=len(result.history),
            seconds=result.train_seconds,
        )

    def forget(self) -> None:
        """Drop the bases: a run that failed may have left its maps on one."""
        self._base.cache_clear()
        self._states.cache_clear()

    def config(self, cell: Cell) -> TrainConfig:
        """What all arms of a cell share."""
        regime = cell.regime
        recipe = preset(regime.backbone).recipe(self._device.type)
        lora = LoraConfig(
            r=recipe.lora_r,
            alpha=recipe.lora_alpha,
            target_modules=recipe.target_modules,
            last_layers=recipe.last_layers,
        )
        changes = dict(regime.config)
        of_lora = {k.removeprefix("lora_"): changes.pop(k) for k in list(changes) if "lora_" in k}
        values: dict[str, Any] = {
            "precision": recipe.precision,
            "depth": recipe.depth,
            "pooling": recipe.pooling,
            "epochs": recipe.epochs,
            "batch_size": recipe.batch_size,
            "learning_rate": recipe.learning_rate,
            "label_smoothing": recipe.label_smoothing,
            "class_weight_power": recipe.class_weight_power,
            "prompt_suffix": cue(recipe, cell.dataset),
            **changes,
        }
        return TrainConfig(
            backbone=regime.backbone,
            dataset=cell.dataset,
            split=cell.split,
            seed=cell.seed,
            autocast=self._device.type == "cuda",
            lora=replace(lora, **of_lora),
            **values,
        )

    def dataset(self, name: str) -> Dataset:
        """A data set, read once."""
        return self._dataset(name)

    def base(self, config: TrainConfig) -> Backbone:
        """The base of a configuration, loaded once."""
        return self._base(config.backbone, config.precision, config.depth)

    def states(self, config: TrainConfig) -> HiddenStates:
        """What enters the first adapted block for every text of the data set."""
        return self._states(
            config.backbone,
            config.precision,
            config.depth,
            config.dataset,
            config.longest,
            config.prompt_suffix,
            config.lora.last_layers,
        )

    def split(self, config: TrainConfig) -> Split:
        """The parts of a run."""
        dataset = self.dataset(config.dataset)
        return part_examples(
            dataset, config.split, config.seed, config.train_fraction, self._data_dir
        )

    def _loaded(self, name: str, precision: Any, depth: int | None) -> Backbone:
        return load_backbone(name, precision, self._device, depth=depth, folder=self._backbone_dir)

    def _entering(
        self,
        backbone: str,
        precision: str,
        depth: int | None,
        name: str,
        longest: int,
        suffix: str,
        last_layers: int | None,
    ) -> HiddenStates:
        base = self._base(backbone, precision, depth)
        texts = [example.text for example in self.dataset(name).examples]
        token_ids = base.tokenize(texts, longest, suffix)
        block = base.first_adapted_block(last_layers)
        check_decomposition(base, token_ids, block)
        return entering_hidden_states(base, token_ids, block)


class Folds:
    """The arms of cells of one regime and data set, which share what they have in common."""

    def __init__(
        self, trainer: CellTrainer, cells: Sequence[Cell], targets: Sequence[torch.Tensor] = ()
    ) -> None:
        """targets: What is learned in each cell in place of the labels; see TrainingData."""
        self._trainer, self._cells, self._regime = trainer, cells, cells[0].regime
        self._configs = [trainer.config(cell) for cell in cells]
        self._dataset = trainer.dataset(cells[0].dataset)
        self._splits = [trainer.split(config) for config in self._configs]
        states = trainer.states(self._configs[0])
        labels = [example.label for example in self._dataset.examples]
        self._data = [
            TrainingData(
                states,
                labels,
                len(self._dataset.label_names),
                epoch_rows(self._dataset, split.train, config.balance, config.noise),
                split.validation,
                targets=targets[place] if targets else None,
            )
            for place, (config, split) in enumerate(zip(self._configs, self._splits, strict=True))
        ]
        self._first = lru_cache(maxsize=None)(self._tuned_first)
        self._controls = lru_cache(maxsize=None)(self._control)

    def arms(self, recipe: Recipe) -> dict[str, list[tuple[Cycle, ...]]]:
        """The cycles of every arm in each cell, those of the control arms from before where they
        are known."""
        plain = (None,) * len(self._cells)
        first = self._first(plain)
        grown = self._chain(first, recipe.cycles, (recipe.dendrites,) * len(self._cells))
        most = tuple(MatchedCapacity(max(c.trained_params for c in cycles)) for cycles in grown)
        return {
            "baseline": [(cycle,) for cycle in first],
            "restart": self._controls(plain, recipe.cycles),
            "matched": self._controls(most, recipe.cycles),
            "dendritic": grown,
        }

    def first(self) -> list[Cycle]:
        """The baseline's only cycle in each cell."""
        return self._first((None,) * len(self._cells))

    def _tuned_first(self, treatments: tuple[Treatment, ...]) -> list[Cycle]:
        return self._tuned(self._regime.rates, treatments, [None] * len(self._cells))

    def _control(self, treatments: tuple[Treatment, ...], cycles: int) -> list[tuple[Cycle, ...]]:
        return self._chain(self._first(treatments), cycles, treatments)

    def _chain(
        self, first: Sequence[Cycle], cycles: int, treatments: Sequence[Treatment]
    ) -> list[tuple[Cycle, ...]]:
        """The first cycle and what follows; each goes on from the best state so far."""
        done = [[cycle] for cycle in first]
        for _ in range(cycles):
            starts = [of_cell[_best(of_cell)].start for of_cell in done]
            now = [
                replace(treatment, max_dendrites=start.dendrites + 1)
                if isinstance(treatment, DendriteConfig)
                else treatment
                for treatment, start in zip(treatments, starts, strict=True)
            ]
            more = self._tuned(self._regime.later_rates, now, starts)
            for of_cell, cycle in zip(done, more, strict=True):
                of_cell.append(cycle)
        return [tuple(of_cell) for of_cell in done]

    def _tuned(
        self,
        rates: Sequence[float],
        treatments: Sequence[Treatment],
        starts: Sequence[Start | None],
    ) -> list[Cycle]:
        """In each cell, the best of runs that differ in their learning rate."""
        of_cells = zip(self._configs, self._data, self._splits, treatments, starts, strict=True)
        found = self._trainer.trained(
            [
                Asked(
                    replace(config, learning_rate=rate * config.learning_rate, treatment=treatment),
                    data,
                    split.test,
                    start,
                )
                for config, data, split, treatment, start in of_cells
                for rate in rates
            ]
        )
        tuned = []
        for place in range(0, len(found), len(rates)):
            tried = [
                replace(cycle, rate=rate)
                for cycle, rate in zip(found[place : place + len(rates)], rates, strict=True)
            ]
            tuned.append(tried[_best(tried)])
        return tuned

    def line(
        self,
        place: int,
        recipe: str,
        arm: str,
        cycles: tuple[Cycle, ...],
        tested: Dataset | None = None,
    ) -> Line:
        """The row of an arm in a cell, tested on the sentences of `tested` alone if it is given."""
        kept, cell, split = _best(cycles), self._cells[place], self._splits[place]
        chosen, test = cycles[kept], split.test
        if not math.isfinite(float(chosen.probabilities.sum())):
            raise TrainingDiverged(f"{cell.name} {arm}: probabilities are not finite")
        examples, known = [self._dataset.examples[i] for i in test], None
        if tested is not None:
            known = {example.id for example in tested.examples}
        places = [i for i, e in enumerate(examples) if known is None or e.id in known]
        labels = [examples[i].label for i in places]
        found = score(labels, chosen.probabilities[places], self._dataset.label_names)
        run = StudyRun(
            backbone=self._regime.backbone,
            dataset=cell.dataset,
            regime=self._regime.name,
            recipe=recipe,
            arm=arm,
            fold=cell.fold,
            seed=cell.seed,
            accuracy=found["accuracy"],
            macro_f1=found["macro_f1"],
            nll=found["nll"],
            ece=found["ece"],
            trainable_params=max(cycle.trained_params for cycle in cycles),
            dendrites=chosen.start.dendrites,
            optimizer_steps=sum(cycle.steps for cycle in cycles),
            train_seconds=sum(cycle.seconds for cycle in cycles),
            test_dataset=cell.dataset if tested is None else tested.name,
            n_train=len(split.train),
            n_test=len(places),
            best_epoch=sum(c.epochs for c in cycles[:kept]) + chosen.validation.epoch,
            validation_nll=chosen.validation.nll,
            validation_accuracy=chosen.validation.accuracy,
        )
        return Line(run, cycles, kept)


def _best(cycles: Sequence[Cycle]) -> int:
    """Index of the lowest validation loss, the first of equal ones."""
    return min(range(len(cycles)), key=lambda i: cycles[i].loss)
