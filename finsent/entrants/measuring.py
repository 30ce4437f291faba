"""A model tested: on the test part of a data set, and on folds of all of its sentences."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finsent.data.folds import fold_tests, grouped_folds
from finsent.data.registry import Dataset, Split, make_split
from finsent.entrants.labels import EntrantError, Labels, Probabilities
from finsent.entrants.models import Model
from finsent.entrants.simple import SimpleEntrant
from finsent.results.external.runs import FOLD_METRICS, FoldScore, as_stored
from finsent.results.metrics import score
from finsent.results.runs import Predictions

FOLD_SEED = 0
"""The repetition of the folds: the first of those that the studies use."""
BLOCK = 256
"""Texts that are answered before the answers are put on the disk."""

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Tested:
    """What a model said of one test part."""

    seed: int
    split: Split
    predictions: Predictions
    parameters: int | None = None
    """Trained ones."""
    train_seconds: float | None = None


class Answers:
    """A model's answers, each text asked once, kept in a file so that an interrupted test goes on
    where it was."""

    def __init__(
        self, model: Model, revision: str, labels: Labels, folder: Path, report: Report
    ) -> None:
        self._model, self._labels, self._report = model, labels, report
        asked = {k: v for k, v in model.settings.items() if k != "sanity_right"}
        about = json.dumps([revision, model.form, labels, asked, model.device.rpartition(" ")[2]])
        self._path = folder / f"{hashlib.sha256(about.encode()).hexdigest()[:24]}.csv"
        self._known: dict[str, tuple[float, ...]] = {}
        if self._path.is_file():
            try:
                self._read(1 + len(labels) + 1)
            except (ValueError, csv.Error) as error:
                raise EntrantError(
                    f"{self._path}: kept answers that cannot be read ({error}); remove the file"
                ) from error

    def _read(self, width: int) -> None:
        for row in csv.reader(self._path.read_text(encoding="utf-8").splitlines()):
            # The last line of an interrupted test may be cut.
            if len(row) == width and row[-1] == ".":
                self._known[row[0]] = tuple(map(float, row[1:-1]))

    def of(self, texts: Sequence[str]) -> Probabilities:
        """Probabilities (n, labels) in the order of the texts."""
        keys = [hashlib.sha256(text.encode()).hexdigest()[:24] for text in texts]
        todo = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        missing = list(todo)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(missing), BLOCK):
            block = missing[start : start + BLOCK]
            found = self._model.answer([todo[key] for key in block], self._labels).tolist()
            self._known.update(zip(block, map(tuple, found), strict=True))
            with self._path.open("a", encoding="utf-8", newline="") as stream:
                csv.writer(stream).writerows(
                    [key, *row, "."] for key, row in zip(block, found, strict=True)
                )
            self._report("asking", min(1.0, (start + BLOCK) / len(missing)))
        return np.array([self._known[key] for key in keys])


def test_model(
    dataset: Dataset, seeds: Sequence[int], answers: Answers, parameters: int | None
) -> Iterator[Tested]:
    """What a model that is not trained here says of the test part of every seed."""
    for seed in seeds:
        split = make_split(dataset, seed)
        found = answers.of([dataset.examples[row].text for row in split.test])
        yield Tested(seed, split, predictions(dataset, split.test, found), parameters)


def fold_model(dataset: Dataset, answers: Answers) -> list[FoldScore]:
    """The same on ten folds, which are all of the sentences: nothing is trained."""
    found = answers.of([example.text for example in dataset.examples])
    return [
        _scored(dataset, number, rows, found[rows])
        for number, rows in enumerate(fold_tests(dataset, FOLD_SEED))
    ]


def test_simple(entrant: SimpleEntrant, dataset: Dataset, seeds: Sequence[int]) -> Iterator[Tested]:
    """What an entrant says of the test part of every seed, trained on its training part."""
    for seed in seeds:
        split = make_split(dataset, seed)
        found, parameters, seconds = entrant.answer(split)
        yield Tested(seed, split, predictions(dataset, split.test, found), parameters, seconds)


def fold_simple(entrant: SimpleEntrant, dataset: Dataset, report: Report) -> list[FoldScore]:
    """Ten folds, trained anew on each one's training part."""
    scores = []
    for fold in grouped_folds(dataset, FOLD_SEED):
        scores.append(_scored(dataset, fold.number, fold.test, entrant.answer(fold)[0]))
        report(f"{dataset.name}, folds", len(scores) / 10)
    return scores


def predictions(dataset: Dataset, rows: Sequence[int], found: Probabilities) -> Predictions:
    """Probabilities of rows of a data set, as they are stored."""
    examples = [dataset.examples[row] for row in rows]
    return as_stored(
        Predictions(
            ids=tuple(example.id for example in examples),
            labels=tuple(dataset.label_names[example.label] for example in examples),
            probabilities=tuple(map(tuple, found.tolist())),
            label_names=dataset.label_names,
        )
    )


def _scored(
    dataset: Dataset, number: int, rows: Sequence[int] | NDArray[np.int64], found: Probabilities
) -> FoldScore:
    labels = [dataset.examples[row].label for row in rows]
    scores = score(labels, found, dataset.label_names)
    numbers = {name: float(f"{scores[name]:.6g}") for name in FOLD_METRICS}
    return FoldScore(number, len(rows), **numbers)
