"""Runs a LoRA study: every run is one of the trainer's own, kept as a line of results.

Runs are made below the artifacts' folder for unfinished work, in processes of their own, side by
side where there is room; what a run leaves behind is read, appended, and removed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from finsent import runs
from finsent.backbones import cue, preset
from finsent.config import DendriteConfig, TrainConfig, latest_growth
from finsent.data import Dataset, load_dataset
from finsent.folds import part_examples
from finsent.scheduling import Plan, execute_all
from finsent.study.plans import LORA_RECIPES, LoraRegime, LoraStudy
from finsent.study.results import RESULTS, RunKey, StudyRun, append_runs, read_runs
from finsent.workers import Workers


@dataclass(frozen=True)
class Resources:
    """What a study may use; the fields are those of finsent.scheduling.Plan."""

    base: TrainConfig
    """The recipe for the device; the study fills in what it varies."""
    device: str
    workers: Workers
    command: str
    git_commit: str | None
    data_dir: Path | None
    backbone_dir: Path | None


class LoraStudyRunner:
    """One study in one folder; goes on where it was stopped."""

    def __init__(self, study: LoraStudy, artifacts: Path, resources: Resources) -> None:
        self.study, self.resources = study, resources
        self.folder = artifacts / "studies" / study.name
        self._work = artifacts / runs.WORK_FOLDER / "studies" / study.name
        self._dataset = lru_cache(maxsize=2)(lambda name: load_dataset(name, resources.data_dir))

    def run(self) -> list[str]:
        """Make every run that is not in the results yet; returns the names of those that failed."""
        path = self.folder / RESULTS
        failed: list[str] = []
        for dataset in self.study.datasets:
            for regime in self.study.regimes:
                for recipe in self.study.recipes:
                    failed += self._make(path, dataset, regime, recipe)
        return failed

    def _make(self, path: Path, dataset: str, regime: LoraRegime, recipe: str) -> list[str]:
        done = {run.key for run in read_runs(path)}
        missing = [
            plan
            for split in self.study.splits
            if (plan := self._plan(dataset, regime, recipe, split, done)) is not None
        ]
        if not missing:
            print(f"{dataset} {regime.name} {recipe}: all runs are in {path}")
            return []
        failed = execute_all(missing)
        for plan in missing:
            append_runs(path, [r for r in self._rows(plan, regime, recipe) if r.key not in done])
        # Runs that failed stay in their folder: their checkpoints are gone on with.
        if not failed:
            shutil.rmtree(self._work / dataset / regime.name / recipe)
        return failed

    def _plan(
        self,
        dataset: str,
        regime: LoraRegime,
        recipe: str,
        split: str,
        done: set[RunKey],
    ) -> Plan | None:
        """Seeds of a fold of which an arm is missing; None when there is none."""
        first = recipe == self.study.recipes[0]
        arms = tuple(arm for arm in self.study.arms if first or arm != "baseline")
        seeds = tuple(
            seed
            for seed in self.study.seeds
            if not all(self._key(dataset, regime, recipe, arm, split, seed) in done for arm in arms)
        )
        if not seeds:
            return None
        base = self.resources.base
        epochs = self.study.epochs or base.epochs
        return Plan(
            base=replace(
                base,
                backbone=self.study.backbone,
                dataset=dataset,
                split=split,
                train_fraction=regime.fraction,
                epochs=epochs,
                prompt_suffix=cue(
                    preset(self.study.backbone).recipe(self.resources.device), dataset
                ),
                lora=replace(
                    base.lora, r=regime.r, alpha=2.0 * regime.r, last_layers=regime.last_layers
                ),
            ),
            dendrites=DendriteConfig(
                placement=regime.placement,
                max_dendrites=self.study.max_dendrites,
                candidates=LORA_RECIPES[recipe],
                grow_by=latest_growth(epochs),
            ),
            arms=arms,
            seeds=seeds,
            artifacts=self._work / dataset / regime.name / recipe / split,
            device=self.resources.device,
            workers=self.resources.workers,
            overwrite=False,
            command=self.resources.command,
            git_commit=self.resources.git_commit,
            data_dir=self.resources.data_dir,
            backbone_dir=self.resources.backbone_dir,
            restart_matched=True,
        )

    def _key(
        self, dataset: str, regime: LoraRegime, recipe: str, arm: str, split: str, seed: int
    ) -> RunKey:
        backbone, fold = self.study.backbone, _fold(split)
        return RunKey(backbone, dataset, regime.name, recipe, arm, fold, seed, dataset)

    def _rows(self, plan: Plan, regime: LoraRegime, recipe: str) -> Iterator[StudyRun]:
        dataset = self._dataset(plan.base.dataset)
        split = plan.base.split
        for run in runs.find_runs(plan.artifacts):
            parts = part_examples(dataset, split, run.seed, regime.fraction, plan.data_dir)
            yield study_run(run, dataset, regime.name, recipe, split, len(parts.train))


def study_run(
    run: runs.Run, dataset: Dataset, regime: str, recipe: str, split: str, n_train: int
) -> StudyRun:
    """A run of the trainer as a line of a study."""
    m: Mapping[str, float] = run.metrics
    validation: Mapping[str, float] = run.metrics["validation"]
    return StudyRun(
        backbone=run.backbone,
        dataset=run.dataset,
        regime=regime,
        recipe=recipe,
        arm=run.arm,
        fold=_fold(split),
        seed=run.seed,
        accuracy=m["accuracy"],
        macro_f1=m["macro_f1"],
        nll=m["nll"],
        ece=m["ece"],
        trainable_params=int(m["trainable_params"]),
        dendrites=int(m["dendrites"]),
        optimizer_steps=int(m["optimizer_steps"]),
        train_seconds=m["train_seconds"],
        test_dataset=dataset.name,
        n_train=n_train,
        n_test=int(m["n_test"]),
        best_epoch=int(m["best_epoch"]),
        validation_nll=validation["nll"],
        validation_accuracy=validation["accuracy"],
    )


def _fold(split: str) -> int:
    """Number of a fold; 0 for a protocol with one test part."""
    return int(split.removeprefix("fold-")) if split.startswith("fold-") else 0
