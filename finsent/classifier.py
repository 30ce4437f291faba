"""Serving: one frozen base in memory, any number of trained arms on it.

Needs neither peft nor PerforatedAI; an adapter file and the base are the whole model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from finsent.models.weights import ReportProgress
from finsent.serving.comparer import Comparer

if TYPE_CHECKING:
    # Not every engine needs torch, which takes seconds to import.
    import torch


class Classifier:
    """One trained arm as a classifier."""

    def __init__(self, comparer: Comparer, arm: str) -> None:
        self._comparer = comparer
        self.arm = arm

    @classmethod
    def from_artifacts(
        cls,
        folder: Path | str,
        arm: str = "dendritic",
        seed: int = 0,
        *,
        device: torch.device | str | None = None,
        backbone_dir: Path | None = None,
        engine: str | None = None,
        progress: ReportProgress | None = None,
    ) -> Classifier:
        """Load <folder>/<arm>/seed-<n>. Errors as `Comparer.from_artifacts`."""
        comparer = Comparer.from_artifacts(
            folder,
            seed,
            (arm,),
            device=device,
            backbone_dir=backbone_dir,
            engine=engine,
            progress=progress,
        )
        return cls(comparer, arm)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Classes in the order of the columns of `predict_proba`."""
        return self._comparer.label_names

    def predict_proba(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Probabilities (n, classes), columns as `label_names`. A text too long for the model is
        cut."""
        return self._comparer.predict_proba(texts, self.arm)

    def predict_document_proba(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """As `predict_proba`, but long texts are read whole: see
        `Comparer.predict_document_proba`."""
        return self._comparer.predict_document_proba(texts, self.arm)
