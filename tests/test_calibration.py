"""Temperature and conformal sets: recovered, covering, honest about missing files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from finsent.results import calibration, runs
from finsent.results.runs import Predictions
from finsent.results.schema import ArtifactError
from finsent.serving.answers import Answer
from tests.artifact_factory import LABEL_NAMES, make_run


def made(n: int, seed: int, overconfidence: float = 1.0, *, sharpness: float = 1.0) -> Predictions:
    """Labels drawn from the probabilities; then the logits are multiplied."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5 * sharpness, size=(n, 3))
    truth = calibration.scale(np.exp(logits), 1.0)
    labels = (random.random((n, 1)) > truth.cumsum(axis=1)[:, :2]).sum(axis=1).tolist()
    stated = calibration.scale(truth, 1 / overconfidence)
    return Predictions(
        ids=tuple(f"{seed}-{i}" for i in range(n)),
        labels=tuple(LABEL_NAMES[y] for y in labels),
        probabilities=tuple(map(tuple, stated.tolist())),
        label_names=LABEL_NAMES,
    )


@pytest.mark.parametrize("overconfidence", [0.5, 1.0, 3.0])
def test_temperature_undoes_overconfidence(overconfidence: float) -> None:
    found = calibration.fit(made(4000, 0, overconfidence), made(4000, 1, overconfidence))
    assert found.temperature == pytest.approx(overconfidence, rel=0.12)
    if overconfidence == 3.0:
        assert found.nll_calibrated < found.nll_raw - 0.1


@pytest.mark.parametrize(
    ("loss", "lowest"),
    [
        (lambda t: (np.log(t) - np.log(3.7)) ** 2, 3.7),
        (lambda t: abs(np.log(t) + 2), float(np.exp(-2))),
        (lambda t: t, 0.05),
        (lambda t: -t, 20.0),
    ],
)
def test_the_lowest_loss_is_found_within_the_bounds_and_at_them(
    loss: Callable[[float], float], lowest: float
) -> None:
    assert calibration.lowest(loss) == pytest.approx(lowest, rel=1e-5)


def test_calibrating_keeps_the_order_of_labels_and_sums_to_one() -> None:
    p = np.array(made(200, 2).probabilities)
    scaled = calibration.scale(p, 2.7)
    np.testing.assert_allclose(scaled.sum(axis=1), 1)
    assert (scaled.argsort(axis=1) == p.argsort(axis=1)).all()
    assert (scaled.max(axis=1) < p.max(axis=1)).all()


@pytest.mark.parametrize("coverage", [0.6, 0.9])
@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_sets_cover_what_was_asked(coverage: float, sharpness: float) -> None:
    """A guarantee over draws of validation and test, so it is checked over draws. The sharper model
    is right more often than 60 %, and its sets, which hold its answer, hold as much."""
    found = [
        calibration.fit(
            made(100, 2 * s, sharpness=sharpness),
            made(400, 2 * s + 1, sharpness=sharpness),
            coverage,
        )
        for s in range(60)
    ]
    mean = np.mean([c.coverage_measured for c in found])
    assert coverage - 0.015 <= mean
    if sharpness == 1.0 and coverage == 0.9:
        assert mean <= coverage + 1 / 101 + 0.015
    assert all(c.mean_set_size >= 1 for c in found)


def test_threshold_is_the_finite_sample_quantile() -> None:
    own = np.linspace(0.05, 0.95, 19)
    p = np.column_stack([own, 1 - own, np.zeros(19)])
    # ceil(20 x 0.9) = 18: the second smallest probability of a true label.
    assert calibration.conformal_threshold(p, [0] * 19, 0.9) == own[1]
    # ceil(0.9 x 9) = 9 > 8: too few examples for that much coverage, so everything is in the set.
    assert calibration.conformal_threshold(p[:8], [0] * 8, 0.9) == 0.0


def test_a_set_holds_the_labels_that_reach_the_threshold_likeliest_first() -> None:
    level = calibration.Calibration(1, 0.34, 0.9, 1, 1, 0, 0, 1, 1)
    assert level.label_set((0.05, 0.0, 0.95)) == (2,)
    assert level.label_set((0.34, 0.32, 0.34)) == (0, 2)
    assert level.label_set((0.33, 0.335, 0.335)) == (1,), "never empty"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("positive",), "positive"),
        (("positive", "neutral"), "positive or neutral: unsure"),
        (("neutral", "positive", "negative"), "neutral, positive or negative: cannot tell"),
    ],
)
def test_sets_in_words(names: tuple[str, ...], words: str) -> None:
    assert calibration.set_in_words(names, 3) == words


def test_a_set_of_both_of_two_classes_tells_nothing() -> None:
    names = ("in-claim", "out-of-claim")
    assert calibration.set_in_words(names, 2) == "in-claim or out-of-claim: cannot tell"
    assert calibration.set_in_words(names[:1], 2) == "in-claim"


def test_a_runs_calibration_comes_from_its_two_files(tmp_path: Path) -> None:
    run = runs.read_run(make_run(tmp_path, n_test=60))
    found = calibration.calibration_of(run)
    assert found is not None
    assert (found.n_validation, found.n_test) == (60, 60)
    test = run.read_predictions()
    covered = [
        y in found.label_set(found.calibrate(row))
        for y, row in zip(test.label_indices, test.probabilities, strict=True)
    ]
    assert found.coverage_measured == np.mean(covered)
    sizes = [len(found.label_set(found.calibrate(row))) for row in test.probabilities]
    assert found.mean_set_size == np.mean(sizes)
    test_file, validation_file = (run.folder / n for n in ("predictions.csv", "validation.csv"))
    validation_file.write_bytes(test_file.read_bytes())
    with pytest.raises(ArtifactError, match="in the test part too"):
        calibration.calibration_of(run)
    validation_file.write_text("id,label\n")
    with pytest.raises(ArtifactError, match="header"):
        calibration.calibration_of(run)
    validation_file.unlink()
    assert calibration.calibration_of(run) is None


def test_bad_coverage_and_other_labels_are_refused() -> None:
    with pytest.raises(calibration.CalibrationError, match="between 0 and 1, got 1.0"):
        calibration.fit(made(10, 0), made(10, 1), 1.0)
    other = Predictions(("a",), ("no",), ((0.5, 0.5),), ("no", "yes"))
    with pytest.raises(calibration.CalibrationError, match="names the labels"):
        calibration.fit(other, made(10, 1))


@pytest.mark.parametrize(
    ("probabilities", "unsure"), [((0.3, 0.59, 0.11), True), ((0.2, 0.6, 0.2), False)]
)
def test_an_answer_is_unsure_by_its_probability(
    probabilities: tuple[float, ...], unsure: bool
) -> None:
    assert Answer("baseline", ("a", "b", "c"), probabilities, None).unsure is unsure
