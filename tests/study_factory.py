"""A small made-up study with everything that a finished one leaves behind. No torch."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finsent.results.runs import write_json
from finsent.study.rows import CLASSICAL, RESULTS, StudyRun, append_runs
from finsent.study.summary import write_summary

REGIMES = ("full", "pca-32", "data-10")
RECIPES = ("random-1", "refined-3")
ARMS = ("restart", "dendritic", "matched")
GAINS = {"pca-32": 0.03, "data-10": -0.03}
"""By regime, what dendrites add to the accuracy of a refined head; elsewhere nothing."""
SIZES = {"full": 576, "pca-32": 32, "data-10": 576}
VARIANTS = {"random-1, tanh": "random-1", "random-3": "random-1", "refined-3, tanh": "refined-3"}


def make_study(
    root: Path,
    name: str = "heads",
    *,
    datasets: Sequence[str] = ("allagree", "50agree"),
    regimes: Sequence[str] = REGIMES,
    recipes: Sequence[str] = RECIPES,
    folds: int = 10,
    seeds: int = 2,
) -> Path:
    """Writes root/studies/`name`: results, summary, selection, chosen. Returns the folder."""
    folder = root / "studies" / name
    random = np.random.default_rng(0)
    for dataset in datasets:
        for regime in regimes:
            # What makes a fold easy or hard is the same for every arm.
            level = random.normal(0.86, 0.01, (seeds, folds))
            for arm, recipe in [
                ("baseline", "linear"),
                *((arm, recipe) for recipe in recipes for arm in ARMS),
            ]:
                gain = GAINS.get(regime, 0.0) * (arm == "dendritic" and recipe.startswith("refi"))
                kept = int(recipe.rsplit("-", 1)[-1]) if arm == "dendritic" else 0
                width = SIZES.get(regime, 16)
                append_runs(
                    folder / RESULTS,
                    [
                        _run(dataset, regime, recipe, arm, fold, seed, accuracy + gain, width, k)
                        for seed, row in enumerate(level)
                        for fold, accuracy in enumerate(row + random.normal(0, 0.004, folds))
                        for k in [min(kept, int(random.integers(0, kept + 1)))]
                    ],
                )
    write_summary(folder)
    _make_selection(folder, datasets, regimes, recipes)
    return folder


def make_classical(root: Path, *, datasets: Sequence[str] = ("allagree", "50agree")) -> Path:
    """Writes root/studies/classical."""
    folder = root / "studies" / CLASSICAL
    for dataset in datasets:
        for recipe, accuracy, size in (("majority", 0.6, 1), ("tfidf-logistic", 0.84, 6000)):
            append_runs(
                folder / RESULTS,
                [
                    _run(dataset, "full", recipe, CLASSICAL, fold, seed, accuracy, size, 0)
                    for seed in range(2)
                    for fold in range(10)
                ],
            )
    write_summary(folder)
    return folder


def _run(
    dataset: str,
    regime: str,
    recipe: str,
    arm: str,
    fold: int,
    seed: int,
    accuracy: float,
    width: int,
    dendrites: int,
) -> StudyRun:
    extra = 3 * (width + 2) if arm == "matched" else 0
    return StudyRun(
        backbone="smollm2-135m",
        dataset=dataset,
        regime=regime,
        recipe=recipe,
        arm=arm,
        fold=fold,
        seed=seed,
        accuracy=accuracy,
        macro_f1=accuracy - 0.03,
        nll=1.2 - accuracy,
        ece=0.03,
        trainable_params=3 * (width + 1) + 3 * (width + 2) * dendrites + extra,
        dendrites=dendrites,
        optimizer_steps=400,
        train_seconds=0.25,
        test_dataset=dataset,
        n_train=180 if regime.endswith("data-10") else 1800,
        n_test=226,
        best_epoch=20,
        validation_nll=1.19 - accuracy,
        validation_accuracy=accuracy + 0.01,
    )


def _make_selection(
    folder: Path, datasets: Sequence[str], regimes: Sequence[str], recipes: Sequence[str]
) -> None:
    chosen = {}
    rows = []
    for dataset in datasets:
        for regime in regimes:
            cells = [("linear", "baseline"), *((r, arm) for r in recipes for arm in ARMS)]
            for recipe, arm in cells:
                for rate, nll in ((0.001, 0.25), (0.01, 0.22)):
                    rows.append((dataset, regime, recipe, arm, rate, nll))
                chosen[f"{dataset}/{regime}/{recipe}/{arm}"] = {
                    "features": "mean-16",
                    "learning_rate": 0.01,
                    "weight_decay": 1.0,
                }
            for number, variant in enumerate(VARIANTS):
                if VARIANTS[variant] in recipes:
                    nll = 0.22 + 0.01 * (number - 1)
                    rows.append((dataset, regime, variant, "dendritic", 0.01, nll))
    header = (
        "dataset,regime,recipe,arm,features,learning_rate,weight_decay,validation_nll,"
        "validation_accuracy,dendrites,runs"
    )
    with (folder / "selection.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header.split(","))
        for dataset, regime, recipe, arm, rate, nll in rows:
            place = (dataset, regime, recipe, arm, "mean-16", rate, "1")
            writer.writerow([*place, f"{nll:.6g}", "0.9", "1" if arm == "dendritic" else "0", "5"])
    write_json(folder / "chosen.json", chosen)
