"""Probabilities that mean what they say, and sets that hold the true label 90 % of the time.

Both are fitted on a run's validation predictions and judged on its test predictions:

- temperature scaling (Guo et al. 2017): one number that sharpens or softens every prediction and
  never changes which label comes first;
- split conformal sets (Vovk et al. 2005) of the least ambiguous kind (Sadinle et al. 2019): a set
  holds the likeliest label, and every label whose calibrated probability reaches a threshold, the
  finite-sample quantile of what the true labels of the validation part got. It is never empty, and
  so holds the true label at least as often as the model is right, even where less was asked.

The state of a run was selected on the same validation part, so the guarantee holds only nearly;
that is why the coverage on test is measured and shown. It says nothing of texts from elsewhere.
For those, finsent.results.unseen fits a Transfer on predictions for sources that were left out of
training, and it takes the place of the threshold and corrects the temperature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finsent.results.runs import VALIDATION_FILE, Predictions, Run
from finsent.results.schema import ArtifactError

COVERAGE = 0.9

_SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)
_TEMPERATURES = (0.05, 20.0)
_LOG_TOLERANCE = 1e-6

Floats = NDArray[np.float64]


class CalibrationError(ValueError):
    """Predictions that no calibration can be fitted on."""


@dataclass(frozen=True)
class Transfer:
    """What makes a calibration hold on a source that the model never saw."""

    factor: float
    """By which a run's own temperature is multiplied."""
    threshold: float
    """Calibrated probability from which a label is in the set, in [0, 1]."""
    coverages: Mapping[str, float]
    """Source -> share of its examples whose set holds the true label, where this source was left
    out of training and of the fit."""


@dataclass(frozen=True)
class Calibration:
    """What one run's validation predictions say about its probabilities."""

    temperature: float
    """Above 1 the model was overconfident."""
    threshold: float
    """Calibrated probability from which a label is in the set, in [0, 1]."""
    coverage_asked: float
    coverage_measured: float
    """Share of test examples whose set holds the true label."""
    mean_set_size: float
    """Labels per set, over the test examples."""
    nll_raw: float
    nll_calibrated: float
    """Mean negative log-likelihood on test, before and after, in nats."""
    n_validation: int
    n_test: int
    transfer: Transfer | None = None
    """What it was corrected by for sources never seen; None: it holds for the run's own alone."""

    def calibrate(self, probabilities: ArrayLike) -> Floats:
        """Calibrated probabilities of the same shape, (classes,) or (n, classes)."""
        return scale(probabilities, self.temperature)

    def label_set(self, calibrated: Sequence[float]) -> tuple[int, ...]:
        """Positions of the labels in the set of one calibrated prediction, likeliest first."""
        (held,) = in_sets([calibrated], self.threshold)
        likeliest_first = sorted(range(len(calibrated)), key=lambda i: -calibrated[i])
        return tuple(i for i in likeliest_first if held[i])


def calibration_of(run: Run, transfer: Transfer | None = None) -> Calibration | None:
    """The calibration of a finished run; None when it kept no validation predictions.

    transfer: what corrects it for sources that the run never saw.

    Raises ArtifactError when a file is damaged or both parts share an example.
    """
    validation = run.read_validation()
    if validation is None:
        return None
    test = run.read_predictions()
    shared = set(validation.ids) & set(test.ids)
    if shared:
        raise ArtifactError(
            f"{run.folder / VALIDATION_FILE}: {len(shared)} examples are in the test part too, "
            f"{min(shared)!r} among them; train the run again"
        )
    return fit(validation, test, transfer=transfer)


def fit(
    validation: Predictions,
    test: Predictions,
    coverage: float = COVERAGE,
    *,
    transfer: Transfer | None = None,
) -> Calibration:
    """Fits on validation, corrects by `transfer` for sources never seen, measures on test.

    Raises CalibrationError when coverage is not in (0, 1) or the label names differ.
    """
    if not 0 < coverage < 1:
        raise CalibrationError(f"coverage must lie between 0 and 1, got {coverage}")
    if validation.label_names != test.label_names:
        raise CalibrationError(
            f"validation names the labels {validation.label_names}, test {test.label_names}"
        )
    temperature = fit_temperature(validation.probabilities, validation.label_indices)
    if transfer is None:
        scaled = scale(validation.probabilities, temperature)
        threshold = conformal_threshold(scaled, validation.label_indices, coverage)
    else:
        temperature *= transfer.factor
        threshold = transfer.threshold
    labels = test.label_indices
    calibrated = scale(test.probabilities, temperature)
    in_set = in_sets(calibrated, threshold)
    sizes = in_set.sum(axis=1)
    return Calibration(
        temperature=temperature,
        threshold=threshold,
        coverage_asked=coverage,
        coverage_measured=float(in_set[np.arange(len(labels)), list(labels)].mean()),
        mean_set_size=float(sizes.mean()),
        nll_raw=float(losses(test.probabilities, labels).mean()),
        nll_calibrated=float(losses(calibrated, labels).mean()),
        n_validation=len(validation),
        n_test=len(test),
        transfer=transfer,
    )


def softmax(scores: ArrayLike) -> Floats:
    """Probabilities of class scores (..., classes) along the last axis, computed in float64."""
    raised = np.asarray(scores, dtype=np.float64)
    raised = np.exp(raised - raised.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True))


def scale(probabilities: ArrayLike, temperature: float) -> Floats:
    """softmax(log p / temperature) along the last axis; the logits' own constant cancels."""
    return softmax(_log(probabilities) / temperature)


def fit_temperature(probabilities: ArrayLike, labels: Sequence[int]) -> float:
    """The temperature with the lowest NLL, in [0.05, 20]. probabilities (n, classes)."""
    return lowest(
        lambda temperature: float(losses(scale(probabilities, temperature), labels).mean())
    )


def lowest(loss: Callable[[float], float]) -> float:
    """The temperature, or factor on one, in [0.05, 20] with the lowest loss.

    Golden-section search over its logarithm, to a millionth. SciPy's would do the same, but the
    first answer after a start would wait for its import.
    """
    low, high = (math.log(bound) for bound in _TEMPERATURES)
    share = (math.sqrt(5) - 1) / 2
    left, right = high - share * (high - low), low + share * (high - low)
    at_left, at_right = loss(math.exp(left)), loss(math.exp(right))
    while high - low > _LOG_TOLERANCE:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - share * (high - low)
            at_left = loss(math.exp(left))
        else:
            low, left, at_left = left, right, at_right
            right = low + share * (high - low)
            at_right = loss(math.exp(right))
    return math.exp((low + high) / 2)


def in_sets(probabilities: ArrayLike, threshold: float) -> NDArray[np.bool_]:
    """Which labels are in the sets (n, classes): the likeliest, and those that reach the threshold.

    probabilities: Calibrated ones (n, classes).
    """
    p = np.asarray(probabilities, dtype=np.float64)
    held = p >= threshold
    held[np.arange(len(p)), p.argmax(axis=1)] = True
    return held


def conformal_threshold(probabilities: ArrayLike, labels: Sequence[int], coverage: float) -> float:
    """What the probability of a label must reach for it to be in a set.

    Args:
        probabilities: Calibrated ones (n, classes).
        labels: True classes (n,).
        coverage: Share of sets that are to hold the true label, such as 0.9.

    Returns:
        The ceil((n + 1) coverage)-th largest probability of a true label; 0, which every label
        reaches, when n is too small for that many.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    own = np.sort(p[np.arange(len(labels)), list(labels)])[::-1]
    rank = math.ceil((len(own) + 1) * coverage)
    return 0.0 if rank > len(own) else float(own[rank - 1])


def set_in_words(names: Sequence[str], classes: int) -> str:
    """The labels of a set as a person would say it.

    Args:
        names: Labels in the set, likeliest first; at least one.
        classes: How many there are to choose from; a set of all of them tells nothing.
    """
    if len(names) == 1:
        return names[0]
    listed = f"{', '.join(names[:-1])} or {names[-1]}"
    return f"{listed}: unsure" if len(names) < classes else f"{listed}: cannot tell"


def losses(probabilities: ArrayLike, labels: Sequence[int] | NDArray[np.int64]) -> Floats:
    """Negative log-likelihood of every true label (n,), in nats. probabilities (n, classes)."""
    return np.asarray(-_log(probabilities)[np.arange(len(labels)), np.asarray(labels)])


def _log(probabilities: ArrayLike) -> Floats:
    # Nine stored digits may round a probability to 0, of which there is no logarithm.
    p = np.asarray(probabilities, dtype=np.float64)
    return np.asarray(np.log(np.maximum(p, _SMALLEST_PROBABILITY)), dtype=np.float64)
