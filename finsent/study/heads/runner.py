"""Runs a head study: settings chosen on validation, then every run tested once.

The two stages are two commands, so that what was chosen can be written down before anything is
tested. Both append to files and go on where they were stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from finsent.data.folds import Fold, grouped_folds, smaller
from finsent.data.registry import Dataset, load_dataset
from finsent.models.weights import terminal_bar
from finsent.results.metrics import score
from finsent.results.runs import read_json, write_json
from finsent.study.head_recipe import HEAD_ARMS, HeadRecipe
from finsent.study.heads.candidates import StackedExamples
from finsent.study.heads.features import Features, frozen_features
from finsent.study.heads.training import (
    FeatureTransform,
    StackResult,
    stacked_examples,
    train_heads,
)
from finsent.study.plans import SELECTION_FOLDS, SELECTION_SEED, HeadStudy, Regime, Settings
from finsent.study.rows import RESULTS, RunKey, StudyError, StudyRun, append_runs, read_runs
from finsent.study.selection import (
    CHOSEN,
    SELECTION,
    append_selection,
    base_recipe,
    cell_label,
    read_selection,
)

LEAST_STEPS = 10
"""Optimizer steps between two looks at validation, however small the training part is."""
SHARED = "linear"
"""Recipe of the baseline, which all recipes are compared with."""


@dataclass(frozen=True)
class Cell:
    """Runs that are trained together: all folds of some seeds under one recipe and arm."""

    dataset: str
    regime: str
    recipe: str
    arm: str

    @property
    def label(self) -> str:
        """For messages and as a key of chosen.json."""
        return cell_label(self.dataset, self.regime, self.recipe, self.arm)


class HeadStudyRunner:
    """One study in one folder. `select` before `run`; both resume."""

    def __init__(
        self,
        study: HeadStudy,
        folder: Path,
        *,
        data_dir: Path | None = None,
        backbone_dir: Path | None = None,
        cache: Path | None = None,
    ) -> None:
        self.study, self.folder = study, folder
        self._data_dir, self._backbone_dir, self._cache = data_dir, backbone_dir, cache
        # One stack of folds is prepared at a time: it holds a copy of the features for every fold.
        self._prepared: tuple[object, _Prepared] | None = None
        self._datasets = lru_cache(maxsize=None)(self._load_dataset)
        self._features = lru_cache(maxsize=None)(self._load_features)
        self._folds = lru_cache(maxsize=None)(self._make_folds)

    def cells(self, *, choosing: bool = False) -> list[Cell]:
        """Every stack of the study; of each regime the baseline first, whose features all use.

        choosing: without regimes that use the settings of another.
        """
        return [
            Cell(dataset, regime.name, recipe, arm)
            for regime in self.study.regimes
            if regime.settings_of is None or not choosing
            for dataset in self.study.datasets
            for recipe, arm in self._recipes_and_arms()
        ]

    def _recipes_and_arms(self) -> list[tuple[str, str]]:
        grown = [arm for arm in HEAD_ARMS if arm != "baseline"]
        pairs = [(recipe, arm) for recipe in self.study.recipes for arm in grown]
        return [(SHARED, "baseline"), *pairs]

    # ------------------------------------------------------------------------ selection

    def select(self) -> Path:
        """Choose settings for every cell on validation and compare the variants there.

        Returns the path of chosen.json. Nothing here looks at a test part. Raises StudyError for a
        study that uses the settings of another.
        """
        if self.study.settings_from is not None:
            raise StudyError(
                f"study {self.study.name!r} uses the settings of {self.study.settings_from!r}: "
                "choose those"
            )
        path = self.folder / SELECTION
        done = read_selection(path)
        cells = self.cells(choosing=True)
        with tqdm(cells, desc="selection", unit="cell") as bar:
            for cell in bar:
                bar.set_postfix_str(cell.label)
                for features in self._candidate_features(cell, done):
                    for rate, decay in self.study.grid():
                        settings = Settings(features, rate, decay)
                        self._validate(path, done, cell, self._recipe(cell), settings)
        chosen = {cell.label: self._best_settings(cell, done) for cell in cells}
        self._compare_variants(path, done, chosen)
        write_json(
            self.folder / CHOSEN, {label: asdict(settings) for label, settings in chosen.items()}
        )
        return self.folder / CHOSEN

    def _candidate_features(
        self, cell: Cell, done: dict[tuple[str, ...], dict[str, str]]
    ) -> Sequence[str]:
        if cell.arm == "baseline":
            return self.study.features
        baseline = Cell(cell.dataset, cell.regime, SHARED, "baseline")
        return (self._best_settings(baseline, done).features,)

    def _best_settings(self, cell: Cell, done: dict[tuple[str, ...], dict[str, str]]) -> Settings:
        rows = [
            row
            for row in done.values()
            if (row["dataset"], row["regime"], row["recipe"], row["arm"])
            == (cell.dataset, cell.regime, cell.recipe, cell.arm)
        ]
        best = min(rows, key=lambda row: float(row["validation_nll"]))
        return Settings(best["features"], float(best["learning_rate"]), float(best["weight_decay"]))

    def _compare_variants(
        self,
        path: Path,
        done: dict[tuple[str, ...], dict[str, str]],
        chosen: dict[str, Settings],
    ) -> None:
        cells = [
            Cell(dataset, regime, variant, "dendritic")
            for dataset in self.study.datasets
            for regime in self.study.variant_regimes
            for variant in self.study.variants
        ]
        with tqdm(cells, desc="variants", unit="cell") as bar:
            for cell in bar:
                bar.set_postfix_str(cell.label)
                # The settings of the recipe that the variant differs from in one thing.
                base = base_recipe(cell.recipe, list(self.study.recipes))
                settings = chosen[replace(cell, recipe=base).label]
                recipe = self.study.variants[cell.recipe]
                self._validate(path, done, cell, recipe, settings)

    def _validate(
        self,
        path: Path,
        done: dict[tuple[str, ...], dict[str, str]],
        cell: Cell,
        recipe: HeadRecipe,
        settings: Settings,
    ) -> None:
        row = {
            "dataset": cell.dataset,
            "regime": cell.regime,
            "recipe": cell.recipe,
            "arm": cell.arm,
            "features": settings.features,
            "learning_rate": f"{settings.learning_rate:g}",
            "weight_decay": f"{settings.weight_decay:g}",
        }
        key = tuple(row.values())
        if key in done:
            return
        result, _ = self._train(cell, recipe, settings, (SELECTION_SEED,))
        row |= {
            "validation_nll": f"{np.mean(result.validation_nll):.6g}",
            "validation_accuracy": f"{np.mean(result.validation_accuracy):.6g}",
            "dendrites": f"{np.mean(result.dendrites):.3g}",
            "runs": str(len(result.best_epoch)),
        }
        append_selection(path, [row])
        done[key] = row

    # ------------------------------------------------------------------------ test

    def run(self) -> Path:
        """Train and test every run that is not in the results yet; returns their path.

        Raises StudyError when settings have not been chosen.
        """
        study = self.study.settings_from or self.study.name
        chosen_path = self.folder.with_name(study) / CHOSEN
        if not chosen_path.is_file():
            raise StudyError(
                f"{chosen_path} is missing: choose settings on validation first, with "
                f"`python train_models.py study {study} --select`"
            )
        chosen = {label: Settings(**values) for label, values in read_json(chosen_path).items()}
        path = self.folder / RESULTS
        done = {run.key for run in read_runs(path)}
        with tqdm(self.cells(), desc=self.study.name, unit="cell") as bar:
            for cell in bar:
                bar.set_postfix_str(cell.label)
                regime = self.study.regime(cell.regime)
                settings = chosen[replace(cell, regime=regime.settings_of or regime.name).label]
                seeds = tuple(
                    seed
                    for seed in self.study.seeds
                    if not {self._key(cell, n, seed) for n in range(self.study.folds)} <= done
                )
                if not seeds:
                    continue
                result, prepared = self._train(cell, self._recipe(cell), settings, seeds)
                # All of a cell's lines in one write: a run is there whole or not at all.
                rows = [
                    row
                    for row in self._test(cell, settings, result, prepared)
                    if row.key not in done
                ]
                append_runs(path, rows)
                done.update(row.key for row in rows)
        return path

    def _key(self, cell: Cell, fold: int, seed: int) -> RunKey:
        # Cross-domain rows are written together with this one.
        c = cell
        return RunKey(
            self.study.backbone, c.dataset, c.regime, c.recipe, c.arm, fold, seed, c.dataset
        )

    def _test(
        self, cell: Cell, settings: Settings, result: StackResult, prepared: _Prepared
    ) -> Iterator[StudyRun]:
        regime = self.study.regime(cell.regime)
        dataset = self._datasets(cell.dataset)
        with torch.no_grad():
            inside = result.heads.logits(prepared.test.x).double().softmax(-1).numpy()
        for row, fold in enumerate(prepared.folds):
            labels = prepared.test.y[row, : len(fold.test)].numpy()
            yield self._row(cell, result, row, fold, dataset, labels, inside[row, : len(fold.test)])
        for name in regime.test_datasets:
            other = self._datasets(name)
            if other.label_names != dataset.label_names:
                raise StudyError(
                    f"{name} has the classes {other.label_names}, {dataset.name} "
                    f"{dataset.label_names}; heads of one cannot be tested on the other"
                )
            x = self._features(name).values[settings.features]
            labels = np.array([example.label for example in other.examples])
            seen = torch.stack([view(x) for view in prepared.views])
            with torch.no_grad():
                found = result.heads.logits(seen).double().softmax(-1).numpy()
            for row, fold in enumerate(prepared.folds):
                yield self._row(cell, result, row, fold, other, labels, found[row])

    def _row(
        self,
        cell: Cell,
        result: StackResult,
        row: int,
        fold: Fold,
        tested: Dataset,
        labels: np.ndarray,
        probabilities: np.ndarray,
    ) -> StudyRun:
        metrics = score(labels, probabilities, tested.label_names)
        heads = result.heads
        unused = heads.n_dendrites - result.dendrites[row]
        per_dendrite = heads.classes * (heads.features + 2)
        return StudyRun(
            backbone=self.study.backbone,
            dataset=cell.dataset,
            regime=cell.regime,
            recipe=cell.recipe,
            arm=cell.arm,
            fold=fold.number,
            seed=fold.seed,
            accuracy=metrics["accuracy"],
            macro_f1=metrics["macro_f1"],
            nll=metrics["nll"],
            ece=metrics["ece"],
            trainable_params=heads.trainable_params - unused * per_dendrite,
            dendrites=result.dendrites[row],
            optimizer_steps=result.optimizer_steps,
            train_seconds=result.seconds / heads.runs,
            test_dataset=tested.name,
            n_train=len(fold.train),
            n_test=len(labels),
            best_epoch=result.best_epoch[row],
            validation_nll=result.validation_nll[row],
            validation_accuracy=result.validation_accuracy[row],
        )

    # ------------------------------------------------------------------------ both

    def _recipe(self, cell: Cell) -> HeadRecipe:
        if cell.recipe == SHARED:
            return next(iter(self.study.recipes.values()))
        return self.study.recipes[cell.recipe]

    def _train(
        self, cell: Cell, recipe: HeadRecipe, settings: Settings, seeds: tuple[int, ...]
    ) -> tuple[StackResult, _Prepared]:
        regime = self.study.regime(cell.regime)
        prepared = self._prepare(cell.dataset, regime, settings.features, seeds)
        recipe = recipe.with_(
            learning_rate=settings.learning_rate, weight_decay=settings.weight_decay
        )
        dataset = self._datasets(cell.dataset)
        # From the nominal size of the part: folds differ by a few sentences, budgets must not.
        share = regime.fraction * (self.study.folds - 2) / self.study.folds
        steps = max(LEAST_STEPS, round(share * len(dataset.examples) / recipe.batch_size))
        result = train_heads(
            cell.arm,
            recipe,
            prepared.folds,
            prepared.train,
            prepared.validation,
            len(dataset.label_names),
            steps,
        )
        return result, prepared

    def _prepare(
        self, dataset_name: str, regime: Regime, features: str, seeds: tuple[int, ...]
    ) -> _Prepared:
        key = (dataset_name, regime, features, seeds)
        if self._prepared is not None and self._prepared[0] == key:
            return self._prepared[1]
        self._prepared = None  # the old one goes first: two may be large
        dataset = self._datasets(dataset_name)
        folds = [
            fold for seed in seeds for fold in self._folds(dataset_name, seed, regime.fraction)
        ]
        x = self._features(dataset_name).values[features]
        y = torch.tensor([example.label for example in dataset.examples])
        views = [
            FeatureTransform.fit(x[torch.as_tensor(fold.train)], regime.dimensions)
            for fold in folds
        ]
        prepared = _Prepared(
            folds,
            views,
            train=stacked_examples(views, x, y, [fold.train for fold in folds]),
            validation=stacked_examples(views, x, y, [fold.validation for fold in folds]),
            test=stacked_examples(views, x, y, [fold.test for fold in folds]),
        )
        self._prepared = (key, prepared)
        return prepared

    def _load_dataset(self, name: str) -> Dataset:
        return load_dataset(name, self._data_dir)

    def _load_features(self, name: str) -> Features:
        with terminal_bar() as progress:
            return frozen_features(
                self.study.backbone,
                self._datasets(name),
                folder=self._backbone_dir,
                cache=self._cache,
                progress=progress,
            )

    def _make_folds(self, name: str, seed: int, fraction: float) -> tuple[Fold, ...]:
        dataset = self._datasets(name)
        if fraction < 1.0:
            return tuple(smaller(f, dataset, fraction) for f in self._folds(name, seed, 1.0))
        folds = tuple(grouped_folds(dataset, seed, self.study.folds))
        return folds[:SELECTION_FOLDS] if seed == SELECTION_SEED else folds


@dataclass(frozen=True)
class _Prepared:
    """The examples of some folds as their heads see them."""

    folds: list[Fold]
    views: list[FeatureTransform]
    train: StackedExamples
    validation: StackedExamples
    test: StackedExamples
