"""Runs a LoRA study: fine-tuning of many runs side by side, kept as lines of results.

A cell is what is made and appended together: all arms and recipes of some folds of one data set and
regime. A study that is stopped goes on with the cells that are missing. Cells may be spread over
GPUs or machines; what they become does not depend on it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from finsent.config import STUDY_ARMS, MatchedCapacity, TrainConfig, latest_growth
from finsent.data.agreement import agreed_shares
from finsent.data.folds import part_examples
from finsent.data.registry import Split, load_dataset
from finsent.machine.devices import use_deterministic_kernels
from finsent.machine.workers import Workers, connected
from finsent.models.adapters import linear_shapes, lora_ranks
from finsent.models.backbones import (
    Backbone,
    HiddenStates,
    entering_hidden_states,
    load_backbone,
    upper_blocks,
)
from finsent.models.presets import cue, preset
from finsent.results.metrics import score
from finsent.study.lora.stack_runs import RunResult, StackContext, StackRun
from finsent.study.lora.training import train_stack
from finsent.study.plans import LORA_RECIPES, LoraRegime, LoraStudy
from finsent.study.rows import RESULTS, RunKey, StudyRun, append_runs, read_runs
from finsent.training.fused_blocks import FusedBlocks

STACKED = {"cuda": 50, "cpu": 5}
"""Runs side by side unless told otherwise."""
LOWER_TOKENS = 8192
"""Padded tokens per batch on the way to the first adapted block."""


@dataclass(frozen=True)
class Resources:
    """What a study may use."""

    base: TrainConfig
    """The recipe for the device; the study fills in what it varies."""
    device: str
    workers: Workers
    stacked: int
    """Runs side by side in a process."""
    data_dir: Path | None
    backbone_dir: Path | None


@dataclass(frozen=True)
class CellOutcome:
    """What became of a cell."""

    lines: list[StudyRun]
    failed: list[str]
    """Runs that ended in numbers that are none."""


@dataclass(frozen=True)
class Cell:
    """Folds of one data set and regime that are trained together, every arm of them."""

    dataset: str
    regime: LoraRegime
    folds: tuple[tuple[str, int], ...]
    """Values of TrainConfig.split and seed."""
    parts: tuple[Split, ...]


class LoraStudyRunner:
    """One study in one folder; goes on where it was stopped."""

    def __init__(self, study: LoraStudy, artifacts: Path, resources: Resources) -> None:
        self.study, self.resources = study, resources
        self.folder = artifacts / "studies" / study.name

    def run(self) -> list[str]:
        """Make every run that is not in the results yet; returns the names of those that failed."""
        path = self.folder / RESULTS
        done = {run.key for run in read_runs(path)}
        cells = self._missing(done)
        if not cells:
            print(f"all runs of study {self.study.name} are in {path}")
            return []
        failed: list[str] = []
        total = sum(
            1
            for cell in cells
            for split, seed in cell.folds
            for _ in _keys(self.study, cell.dataset, cell.regime, split, seed)
        )
        with tqdm(total=total, desc=self.study.name, unit="run", smoothing=0.1) as bar:
            make = _TrainerFactory(self.study, self.resources)
            for made in map_cells(make, cells, self.resources):
                append_runs(path, [line for line in made.lines if line.key not in done])
                for name in made.failed:
                    bar.write(f"error: {name}: its probabilities are not finite", file=sys.stderr)
                failed += made.failed
                bar.update(len(made.lines) + len(made.failed))
        return failed

    def _missing(self, done: set[RunKey]) -> list[Cell]:
        wanted = []
        for dataset in self.study.datasets:
            for regime in self.study.regimes:
                folds = [
                    (split, seed)
                    for seed in self.study.seeds
                    for split in self.study.splits
                    if not all(
                        key in done for key in _keys(self.study, dataset, regime, split, seed)
                    )
                ]
                size = self.resources.stacked
                wanted += [
                    (dataset, regime, tuple(folds[i : i + size]))
                    for i in range(0, len(folds), size)
                ]
        parts = make_splits(
            {(d, r.fraction, fold) for d, r, folds in wanted for fold in folds},
            self.resources.data_dir,
        )
        return [
            Cell(d, r, folds, tuple(parts[d, r.fraction, fold] for fold in folds))
            for d, r, folds in wanted
        ]


T = TypeVar("T")
C = TypeVar("C")


def map_cells(
    make: Callable[[], Callable[[C], T]], cells: Sequence[C], resources: Resources
) -> Iterator[T]:
    """What is made of every cell, as it is ready: here, or by workers, each of which calls `make`
    once."""
    if resources.workers.alone:
        yield from map(make(), cells)
        return
    with connected(resources.workers, on_gpu=resources.device == "cuda") as pool:
        yield from pool.map(make, cells)


def train_in_stacks(
    context: StackContext,
    rows: Sequence[StackRun],
    resources: Resources,
    what: str,
    *,
    last_state: bool = False,
) -> list[RunResult]:
    """Every row's result, as many side by side as the resources allow, with progress by steps where
    there are no workers; the rest as for `train_stack`."""
    found: list[RunResult] = []
    per_run = -(-len(rows[0].train) // context.config.batch_size)
    epochs = sum(context.config.epochs - row.first_epoch for row in rows)
    quiet = not resources.workers.alone
    with tqdm(total=per_run * epochs, desc=what, unit="step", leave=False, disable=quiet) as bar:
        for at in range(0, len(rows), resources.stacked):
            stack = rows[at : at + resources.stacked]
            found += train_stack(context, stack, last_state=last_state, step_done=bar.update)
    return found


SplitKey = tuple[str, float, tuple[str, int]]
"""Data set, share of the training part, and (split, seed)."""


def make_splits(wanted: Iterable[SplitKey], data_dir: Path | None) -> dict[SplitKey, Split]:
    """Splits, made on every core: a thousand of them keep one busy for minutes."""
    from joblib import Parallel, delayed

    order = sorted(wanted)
    datasets = {name: load_dataset(name, data_dir) for name in {deal[0] for deal in order}}
    found = Parallel(n_jobs=-1)(
        delayed(part_examples)(datasets[name], split, seed, fraction, data_dir)
        for name, fraction, (split, seed) in order
    )
    return dict(zip(order, found, strict=True))


def _keys(
    study: LoraStudy, dataset: str, regime: LoraRegime, split: str, seed: int
) -> Iterator[RunKey]:
    for recipe in regime.recipes:
        for arm in STUDY_ARMS:
            if arm != "baseline" or recipe == regime.recipes[0]:
                yield RunKey(
                    study.backbone, dataset, regime.name, recipe, arm, _fold(split), seed, dataset
                )


def _fold(split: str) -> int:
    """Number of a fold; 0 for a protocol with one test part."""
    return int(split.removeprefix("fold-")) if split.startswith("fold-") else 0


@dataclass(frozen=True)
class _TrainerFactory:
    """Makes what makes cells; a worker does so once and keeps the base."""

    study: LoraStudy
    resources: Resources

    def __call__(self) -> Callable[[Cell], CellOutcome]:
        return CellTrainer(self.study, self.resources).train_cell


class CellTrainer:
    """Trains cells on one base in memory."""

    def __init__(self, study: LoraStudy, resources: Resources) -> None:
        self._study, self._resources = study, resources
        self._device = torch.device(resources.device)
        use_deterministic_kernels(self._device)
        self._dataset = lru_cache(maxsize=2)(lambda name: load_dataset(name, resources.data_dir))
        self._states = lru_cache(maxsize=2)(self._entering)
        self._blocks = lru_cache(maxsize=None)(self._upper)

    def train_cell(self, cell: Cell) -> CellOutcome:
        """Every arm and recipe of a cell's folds."""
        context = self.context(cell)
        head = context.hidden_size * context.n_classes
        plain = lora_ranks(context.adapted, cell.regime.r, head, None)
        fresh = [
            StackRun(seed, part.train, part.validation, part.test, plain)
            for (_, seed), part in zip(cell.folds, cell.parts, strict=True)
        ]
        baselines = train_in_stacks(
            context, fresh, self._resources, f"{cell.dataset} {cell.regime.name} baseline"
        )
        forks = [trained.fork for trained in baselines]
        restarted_by_growth = [fork.snapshot is None for fork in forks]
        found: dict[tuple[str, str, int], RunResult] = {}
        forked: list[tuple[str, str, int, StackRun]] = []
        for index, (row, fork) in enumerate(zip(fresh, forks, strict=True)):
            again = replace(row, fork=fork)
            if restarted_by_growth[index]:
                forked.append(("restart", "", index, again))
            else:
                # Growing is no restart here: what a run does without dendrites is known.
                found["restart", "", index] = baselines[index]
            forked += [
                ("dendritic", recipe, index, replace(again, candidates=LORA_RECIPES[recipe]))
                for recipe in cell.regime.recipes
            ]
        # Runs that need no refining first, and runs that go on at the same epoch side by side.
        forked.sort(key=lambda entry: (entry[3].candidates == "refined", entry[3].first_epoch))
        grown = train_in_stacks(
            context,
            [row for *_, row in forked],
            self._resources,
            f"{cell.dataset} {cell.regime.name} grown",
        )
        # The same for all: one dendrite a map, dropped again or not.
        target = max(result.trained_params for result in grown)
        spent = lora_ranks(context.adapted, cell.regime.r, head, MatchedCapacity(target))
        matched = train_in_stacks(
            context,
            [
                replace(row, ranks=spent, restart_after=fork.epoch if again else None)
                for row, fork, again in zip(fresh, forks, restarted_by_growth, strict=True)
            ],
            self._resources,
            f"{cell.dataset} {cell.regime.name} matched",
        )
        for (arm, recipe, index, row), result in zip(forked, grown, strict=True):
            # The part before it grew was trained once, for all.
            shared = baselines[index].seconds * row.first_epoch / context.config.epochs
            found[arm, recipe, index] = replace(result, seconds=result.seconds + shared)
        lines: list[StudyRun] = []
        failed: list[str] = []
        for index, (split, seed) in enumerate(cell.folds):
            for recipe in cell.regime.recipes:
                of_arms = {
                    "restart": found["restart", "", index],
                    "dendritic": found["dendritic", recipe, index],
                    "matched": matched[index],
                }
                if recipe == cell.regime.recipes[0]:
                    of_arms["baseline"] = baselines[index]
                for arm, result in sorted(of_arms.items()):
                    if bool(result.logits.test.isfinite().all()):
                        part = cell.parts[index]
                        lines.append(self._line(cell, recipe, arm, split, seed, part, result))
                    else:
                        what = (cell.dataset, cell.regime.name, recipe, arm, split, f"seed {seed}")
                        failed.append(" ".join(what))
        return CellOutcome(lines, failed)

    def _line(
        self,
        cell: Cell,
        recipe: str,
        arm: str,
        split: str,
        seed: int,
        part: Split,
        result: RunResult,
    ) -> StudyRun:
        dataset = self._dataset(cell.dataset)
        labels = [dataset.examples[i].label for i in part.test]
        probabilities = result.logits.test.double().softmax(dim=1).numpy()
        found = score(labels, probabilities, dataset.label_names)
        return StudyRun(
            backbone=self._study.backbone,
            dataset=cell.dataset,
            regime=cell.regime.name,
            recipe=recipe,
            arm=arm,
            fold=_fold(split),
            seed=seed,
            accuracy=found["accuracy"],
            macro_f1=found["macro_f1"],
            nll=found["nll"],
            ece=found["ece"],
            trainable_params=result.trainable_params,
            dendrites=result.dendrites,
            optimizer_steps=result.optimizer_steps,
            train_seconds=result.seconds,
            test_dataset=cell.dataset,
            n_train=len(part.train),
            n_test=len(part.test),
            best_epoch=result.selected.epoch,
            validation_nll=result.selected.nll,
            validation_accuracy=result.selected.accuracy,
        )

    def context(self, cell: Cell) -> StackContext:
        """What the runs of a cell share; its folds do not matter."""
        config, dataset = self._config(cell), self._dataset(cell.dataset)
        backbone, regime = self._base, cell.regime
        first = backbone.first_adapted_block(config.lora.last_layers)
        labels = [example.label for example in dataset.examples]
        targets = None
        if regime.targets == "agreement":
            targets = torch.tensor(agreed_shares(dataset), device=self._device)
        return StackContext(
            blocks=self._blocks(first),
            hidden_size=backbone.hidden_size,
            states=self._states(
                cell.dataset, config.longest, config.prompt_suffix, config.copies, first
            ),
            labels=torch.tensor(labels, device=self._device),
            n_classes=len(dataset.label_names),
            adapted=linear_shapes(
                upper_blocks(backbone.decoder, first), config.lora.target_modules
            ),
            config=config,
            dendrites=replace(
                self._study.dendrites,
                placement=regime.placement,
                grow_by=latest_growth(config.epochs),
            ),
            targets=targets,
        )

    def _config(self, cell: Cell) -> TrainConfig:
        base, regime, backbone = self._resources.base, cell.regime, self._study.backbone
        recipe = preset(backbone).recipe(self._device.type)
        return replace(
            base,
            backbone=backbone,
            dataset=cell.dataset,
            epochs=self._study.epochs or base.epochs,
            learning_rate=regime.learning_rate or base.learning_rate,
            prompt_suffix=cue(recipe, cell.dataset),
            copies=regime.copies,
            lora=replace(
                base.lora,
                r=regime.r,
                alpha=2.0 * regime.r,
                last_layers=regime.last_layers,
                target_modules=regime.target_modules or base.lora.target_modules,
            ),
        )

    @cached_property
    def _base(self) -> Backbone:
        """The backbone. Where the trainer would compute in bf16 over an fp32 base, the base is held
        in bf16: the copy that autocast makes at every step is made once."""
        base = self._resources.base
        bf16 = base.precision == "fp32" and base.autocast
        return load_backbone(
            self._study.backbone,
            "bf16" if bf16 else base.precision,
            self._device,
            depth=base.depth,
            folder=self._resources.backbone_dir,
        )

    def _upper(self, first: int) -> FusedBlocks:
        return FusedBlocks(upper_blocks(self._base.decoder, first), {}, {}, 1.0)

    def _entering(
        self, name: str, longest: int, suffix: str, copies: int, first: int
    ) -> HiddenStates:
        """What enters a block for every text of a data set."""
        texts = [example.text for example in self._dataset(name).examples]
        token_ids = self._base.tokenize(texts, longest, suffix, copies)
        return entering_hidden_states(self._base, token_ids, first, max_tokens=LOWER_TOKENS)
