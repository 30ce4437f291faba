"""How far off a calibration is on a source never seen: fitted on the others, measured on each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finsent.results.calibration import (
    COVERAGE,
    CalibrationError,
    Floats,
    conformal_threshold,
    in_sets,
    losses,
    lowest,
    scale,
)
from finsent.results.metrics import expected_calibration_error

SURE = 0.95
"""Probability from which an answer is called sure."""
SHARES = tuple(step / 20 for step in range(1, 21))
"""Shares of the texts, the surest ones, that selective answering is shown for."""


@dataclass(frozen=True)
class LeftOut:
    """What a run says of a source that it neither learned nor validated on."""

    probabilities: Floats
    """Softmax of the logits (n, classes)."""
    labels: NDArray[np.int64]
    """True classes (n,)."""
    temperature: float
    """Fitted on the run's own validation part, of the sources that it learned."""
    threshold: float
    """Of its conformal sets, fitted there as well."""

    @property
    def own(self) -> Floats:
        """Probabilities calibrated by the run's own temperature."""
        return scale(self.probabilities, self.temperature)


def fit_transfer(sources: Sequence[LeftOut], coverage: float = COVERAGE) -> tuple[float, float]:
    """Factor on a run's own temperature, and the threshold of its sets, for a source never seen.

    The factor has the lowest NLL, every class of every source counting the same: sources differ
    most in how often they call news neutral, and that must not decide how sure an answer may be.
    The threshold is that of the source that needs the lowest one.

    Raises CalibrationError without a source, or for one that lacks a class.
    """
    if not sources:
        raise CalibrationError("no source was left out; give the runs of at least one")
    classes = range(sources[0].probabilities.shape[1])
    for part in sources:
        absent = set(classes) - set(part.labels.tolist())
        if absent:
            raise CalibrationError(f"a source that was left out has no example of class {absent}")

    def loss(factor: float) -> float:
        each = [losses(scale(part.own, factor), part.labels) for part in sources]
        means = [
            loss[part.labels == k].mean()
            for loss, part in zip(each, sources, strict=True)
            for k in classes
        ]
        return float(np.mean(means))

    factor = lowest(loss)
    threshold = min(
        conformal_threshold(scale(part.own, factor), part.labels.tolist(), coverage)
        for part in sources
    )
    return factor, threshold


def measure(sources: Mapping[str, LeftOut], coverage: float = COVERAGE) -> dict[str, Any]:
    """Scores of each source under what the others say of it; it takes no part in its own fit.

    Returns {source: {n, accuracy, factor, threshold, raw, own, unseen, selective}}; `raw`, `own`
    (the run's own calibration) and `unseen` hold ece, sure_and_wrong (share of all answers) and,
    but for `raw`, coverage and set_size. `selective` lists [share answered, accuracy].
    Raises CalibrationError for fewer than two sources.
    """
    if len(sources) < 2:
        raise CalibrationError(f"one source was left out ({', '.join(sources)}); two are needed")
    found = {}
    for name, part in sources.items():
        others = [other for source, other in sources.items() if source != name]
        factor, threshold = fit_transfer(others, coverage)
        unseen = scale(part.own, factor)
        found[name] = {
            "n": len(part.labels),
            "accuracy": float(_right(part.own, part.labels).mean()),
            "factor": factor,
            "threshold": threshold,
            "raw": _scores(part.probabilities, part.labels),
            "own": _scores(part.own, part.labels, part.threshold),
            "unseen": _scores(unseen, part.labels, threshold),
            "selective": selective(unseen, part.labels),
        }
    return found


def selective(probabilities: Floats, labels: NDArray[np.int64]) -> list[list[float]]:
    """[share answered, accuracy among those], the surest answers first, for each of SHARES."""
    surest_first = np.argsort(-probabilities.max(axis=1), kind="stable")
    right = _right(probabilities, labels)[surest_first]
    counts = [max(1, math.floor(share * len(right))) for share in SHARES]
    return [[share, float(right[:n].mean())] for share, n in zip(SHARES, counts, strict=True)]


def _right(probabilities: Floats, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.asarray(probabilities.argmax(axis=1) == labels)


def _scores(
    probabilities: Floats, labels: NDArray[np.int64], threshold: float | None = None
) -> dict[str, float]:
    wrong = ~_right(probabilities, labels)
    found = {
        "ece": expected_calibration_error(labels, probabilities),
        "sure_and_wrong": float((wrong & (probabilities.max(axis=1) >= SURE)).mean()),
    }
    if threshold is not None:
        held = in_sets(probabilities, threshold)
        found["coverage"] = float(held[np.arange(len(labels)), labels].mean())
        found["set_size"] = float(held.sum(axis=1).mean())
    return found
