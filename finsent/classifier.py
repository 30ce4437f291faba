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
        """Class probabilities; a text that is too long for the model is cut.

        Args:
            texts: n texts, none of them empty.

        Returns:
            Probabilities (n, classes), columns as `label_names`; rows sum to 1. They are not
            calibrated.

        Raises:
            InputError: A text is empty.
        """
        return self._comparer.predict_proba(texts, self.arm)

    def predict_document_proba(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Class probabilities of texts that are read whole, however long they are.

        Args:
            texts: n texts; a long one is cut into windows of whole sentences, whose answers are
                averaged by tokens (`Comparer.predict_document_proba`).

        Returns:
            Probabilities (n, classes), columns as `label_names`; rows sum to 1.

        Raises:
            InputError: A text is empty.
        """
        return self._comparer.predict_document_proba(texts, self.arm)
