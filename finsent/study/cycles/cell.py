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
    rate: float
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

    def __init__(self, device: str, data_dir: Path | None, backbone_dir: Path | None) -> None:
        self._device = torch.device(device)
        self._data_dir, self._backbone_dir = data_dir, backbone_dir
        self._dataset = lru_cache(maxsize=2)(lambda name: load_dataset(name, data_dir))
        self._states = lru_cache(maxsize=4)(self._entering)
        self._base = lru_cache(maxsize=2)(self._loaded)

    def lines(self, cell: Cell) -> Iterator[list[Line]]:
        """Rows of the cell, as soon as all arms of a recipe are there. The baseline stands with
        every recipe, so that each is a whole comparison.

        Raises:
            TrainingDiverged: A loss became NaN or infinite.
            GrowthError: PerforatedAI failed.
        """
        fold = Fold(self, cell)
        for name, recipe in cell.regime.recipes.items():
            yield [fold.line(name, arm, cycles) for arm, cycles in fold.arms(recipe).items()]
        if not cell.regime.recipes:
            yield [fold.line(PLAIN, "baseline", (fold.first(),))]

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


class Fold:
    """The arms of one cell, which share what they have in common."""

    def __init__(
        self, trainer: CellTrainer, cell: Cell, targets: torch.Tensor | None = None
    ) -> None:
        """targets: What is learned in place of the labels; see TrainingData."""
        self._cell, self._regime = cell, cell.regime
        self._config = trainer.config(cell)
        self._backbone = trainer.base(self._config)
        self._states = trainer.states(self._config)
        self._dataset = trainer.dataset(cell.dataset)
        self._split = trainer.split(self._config)
        rows = epoch_rows(
            self._dataset, self._split.train, self._config.balance, self._config.noise
        )
        self._data = TrainingData(
            self._states,
            [example.label for example in self._dataset.examples],
            len(self._dataset.label_names),
            rows,
            self._split.validation,
            targets=targets,
        )
        self._first = lru_cache(maxsize=None)(self._tuned_first)
        self._controls = lru_cache(maxsize=None)(self._control)

    def arms(self, recipe: Recipe) -> dict[str, tuple[Cycle, ...]]:
        """The cycles of every arm, those of the control arms from before where they are known."""
        grown = self._chain(self._first(None), recipe.cycles, recipe.dendrites)
        most = max(cycle.trained_params for cycle in grown)
        return {
            "baseline": (self._first(None),),
            "restart": self._controls(None, recipe.cycles),
            "matched": self._controls(MatchedCapacity(most), recipe.cycles),
            "dendritic": grown,
        }

    def first(self) -> Cycle:
        """The baseline's only cycle."""
        return self._first(None)

    def _tuned_first(self, treatment: MatchedCapacity | None) -> Cycle:
        return self._tuned(self._regime.rates, treatment, None)

    def _control(self, treatment: MatchedCapacity | None, cycles: int) -> tuple[Cycle, ...]:
        return self._chain(self._first(treatment), cycles, treatment)

    def _chain(
        self, first: Cycle, cycles: int, treatment: DendriteConfig | MatchedCapacity | None
    ) -> tuple[Cycle, ...]:
        """The first cycle and what follows; each goes on from the best state so far."""
        done = [first]
        for _ in range(cycles):
            start = done[_best(done)].start
            now: Treatment = treatment
            if isinstance(treatment, DendriteConfig):
                now = replace(treatment, max_dendrites=start.dendrites + 1)
            done.append(self._tuned(self._regime.later_rates, now, start))
        return tuple(done)

    def _tuned(self, rates: Sequence[float], treatment: Treatment, start: Start | None) -> Cycle:
        """The best of runs that differ in their learning rate."""
        found = [self._run(rate, treatment, start) for rate in rates]
        return found[_best(found)]

    def _run(self, rate: float, treatment: Treatment, start: Start | None) -> Cycle:
        config = replace(
            self._config, learning_rate=rate * self._config.learning_rate, treatment=treatment
        )
        with tempfile.TemporaryDirectory() as scratch:
            result = train(
                config,
                self._backbone,
                self._data,
                Path(scratch),
                start=start,
                pad_multiple=PAD_MULTIPLE,
            )
        logits = class_logits(result.model, self._states, self._split.test, self._data.lengths)
        tensors = result.model.snapshot()
        result.model.detach()
        return Cycle(
            validation=result.selected,
            loss=result.selected.loss(config.scored_by),
            start=Start(tensors, result.dendrites),
            probabilities=logits.double().softmax(dim=1).numpy(),
            trained_params=result.history[-1].trainable_params,
            steps=result.optimizer_steps,
            epochs=len(result.history),
            seconds=result.train_seconds,
            rate=rate,
        )

    def line(
        self, recipe: str, arm: str, cycles: tuple[Cycle, ...], tested: Dataset | None = None
    ) -> Line:
        """The row of an arm, tested on the sentences of `tested` alone if it is given."""
        kept = _best(cycles)
        chosen, test = cycles[kept], self._split.test
        if not math.isfinite(float(chosen.probabilities.sum())):
            raise TrainingDiverged(f"{self._cell.name} {arm}: probabilities are not finite")
        examples, known = [self._dataset.examples[i] for i in test], None
        if tested is not None:
            known = {example.id for example in tested.examples}
        places = [i for i, e in enumerate(examples) if known is None or e.id in known]
        labels = [examples[i].label for i in places]
        found = score(labels, chosen.probabilities[places], self._dataset.label_names)
        run = StudyRun(
            backbone=self._regime.backbone,
            dataset=self._cell.dataset,
            regime=self._regime.name,
            recipe=recipe,
            arm=arm,
            fold=self._cell.fold,
            seed=self._cell.seed,
            accuracy=found["accuracy"],
            macro_f1=found["macro_f1"],
            nll=found["nll"],
            ece=found["ece"],
            trainable_params=max(cycle.trained_params for cycle in cycles),
            dendrites=chosen.start.dendrites,
            optimizer_steps=sum(cycle.steps for cycle in cycles),
            train_seconds=sum(cycle.seconds for cycle in cycles),
            test_dataset=self._cell.dataset if tested is None else tested.name,
            n_train=len(self._split.train),
            n_test=len(places),
            best_epoch=sum(c.epochs for c in cycles[:kept]) + chosen.validation.epoch,
            validation_nll=chosen.validation.nll,
            validation_accuracy=chosen.validation.accuracy,
        )
        return Line(run, cycles, kept)


def _best(cycles: Sequence[Cycle]) -> int:
    """Index of the lowest validation loss, the first of equal ones."""
    return min(range(len(cycles)), key=lambda i: cycles[i].loss)
