"""Temperature and conformal sets: recovered, covering, honest about missing files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finsent import calibration, runs
from finsent.runs import ArtifactError, Predictions
from tests.artifact_factory import LABEL_NAMES, make_run


def made(n: int, seed: int, overconfidence: float = 1.0) -> Predictions:
    """Labels drawn from the probabilities; then the logits are multiplied."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, size=(n, 3))
    truth = calibration.scale(np.exp(logits), 1.0)
    labels = [int(random.choice(3, p=row)) for row in truth]
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


def test_calibrating_keeps_the_order_of_labels_and_sums_to_one() -> None:
    p = np.array(made(200, 2).probabilities)
    scaled = calibration.scale(p, 2.7)
    np.testing.assert_allclose(scaled.sum(axis=1), 1)
    assert (scaled.argsort(axis=1) == p.argsort(axis=1)).all()
    assert (scaled.max(axis=1) < p.max(axis=1)).all()


def test_sets_cover_what_was_asked_on_average() -> None:
    """A guarantee over draws of validation and test, so it is checked over draws. Whole labels
    instead of random shares of them cover somewhat more than asked."""
    for coverage, most in ((0.6, 0.9), (0.9, 0.98)):
        found = [
            calibration.fit(made(100, 2 * s), made(400, 2 * s + 1), coverage) for s in range(40)
        ]
        mean = np.mean([c.coverage_measured for c in found])
        assert coverage <= mean < most


def test_threshold_is_the_finite_sample_quantile() -> None:
    # Certain and right: the scores are the seeded shares themselves.
    shares = np.sort(np.random.PCG64(0).random_raw(19).astype(np.float64) / 2.0**64)
    certain = np.tile([1.0, 0.0, 0.0], (19, 1))
    assert calibration.conformal_threshold(certain, [0] * 19, 0.9) == shares[17]
    # ceil(0.9 x 9) = 9 > 8: too few examples for that much coverage, so everything is in the set.
    assert calibration.conformal_threshold(certain[:8], [0] * 8, 0.9) == 1.0
    # Certain and wrong scores above everything that was right.
    wrong = calibration.conformal_threshold(certain, [0] * 17 + [1] * 2, 0.9)
    assert wrong == 1.0


def test_sets_are_never_empty_and_start_with_the_likeliest() -> None:
    found = calibration.fit(made(300, 0), made(300, 1))
    assert found.label_set((0.05, 0.0, 0.95)) == (2,)
    assert found.label_set((0.3, 0.36, 0.34)) == (1, 2, 0)
    low = calibration.Calibration(1, 1e-9, 0.9, 1, 1, 0, 0, 1, 1)
    assert low.label_set((0.2, 0.5, 0.3)) == (1,)


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
