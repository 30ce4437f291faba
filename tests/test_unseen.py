"""Calibration for sources never seen: what is fitted, on what it is measured, what verify finds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from finsent.commands.cli import main
from finsent.results import calibration, manifest, runs
from finsent.results.catalog import Catalog
from finsent.results.schema import ArtifactError
from finsent.results.unseen.files import PREDICTIONS, TRANSFERS, read_transfers
from finsent.results.unseen.fitting import LeftOut, fit_transfer, measure, selective
from finsent.verification import verify
from tests.artifact_factory import make_artifacts, make_run

SOURCES = ("fiqa", "phrasebank", "twitter")
ARMS = ("baseline", "dendritic")


def source(seed: int, off: float, n: int = 3000) -> LeftOut:
    """A source on which the run's own calibration is overconfident by the factor `off`."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, size=(n, 3))
    truth = calibration.scale(np.exp(logits), 1.0)
    labels = (random.random((n, 1)) > truth.cumsum(axis=1)[:, :2]).sum(axis=1)
    # A run with a temperature of 2 of its own.
    return LeftOut(calibration.scale(truth, 1 / (2 * off)), labels, 2.0, 0.4)


def test_the_factor_undoes_what_a_source_never_seen_adds() -> None:
    factor, threshold = fit_transfer([source(0, 1.8), source(1, 1.8)])
    assert factor == pytest.approx(1.8, rel=0.12)
    assert 0 < threshold < 0.5


def test_a_source_counts_no_more_for_having_more_sentences_or_more_neutral_ones() -> None:
    apart = fit_transfer([source(0, 1.2, n=800), source(1, 2.4, n=8000)])[0]
    swapped = fit_transfer([source(0, 1.2, n=8000), source(1, 2.4, n=800)])[0]
    assert apart == pytest.approx(swapped, rel=0.1)
    whole = source(2, 1.8, n=9000)
    kept = (whole.labels != 1) | (np.arange(9000) % 10 == 0)
    few_neutral = LeftOut(whole.probabilities[kept], whole.labels[kept], 2.0, 0.4)
    assert fit_transfer([few_neutral])[0] == pytest.approx(fit_transfer([whole])[0], rel=0.1)


def test_sets_hold_the_label_on_every_source_and_are_never_empty() -> None:
    parts = [source(0, 1.2), source(1, 2.5), source(2, 1.6)]
    factor, threshold = fit_transfer(parts)
    for part in parts:
        calibrated = calibration.scale(part.own, factor)
        held = calibration.in_sets(calibrated, threshold)
        assert held.any(axis=1).all()
        assert held[np.arange(len(part.labels)), part.labels].mean() >= 0.9
        assert (calibrated.argmax(axis=1) == part.probabilities.argmax(axis=1)).all()


def test_a_source_has_no_say_in_what_it_is_measured_by() -> None:
    parts = {name: source(i, 1.3 + i / 2) for i, name in enumerate(SOURCES)}
    found = measure(parts)
    shuffled = np.random.default_rng(0).permutation(parts["fiqa"].labels)
    other = measure({**parts, "fiqa": LeftOut(parts["fiqa"].probabilities, shuffled, 2.0, 0.4)})
    assert other["fiqa"]["factor"] == found["fiqa"]["factor"]
    assert other["twitter"]["factor"] != found["twitter"]["factor"]
    assert found["fiqa"]["unseen"]["ece"] != other["fiqa"]["unseen"]["ece"]
    with pytest.raises(calibration.CalibrationError, match="one source"):
        measure({"fiqa": parts["fiqa"]})
    one_class = LeftOut(np.full((4, 3), 1 / 3), np.zeros(4, dtype=np.int64), 1.0, 0.5)
    with pytest.raises(calibration.CalibrationError, match="no example of class"):
        fit_transfer([one_class])


def test_the_surest_answers_come_first() -> None:
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.45, 0.55]])
    found = dict(map(tuple, selective(p, np.array([0, 1, 1, 0]))))
    assert (found[0.25], found[0.5], found[0.75], found[1.0]) == (1.0, 1.0, 2 / 3, 0.5)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Artifacts with a calibration for sources never seen, and the runs that it was made from."""
    artifacts, left_out = (tmp_path_factory.mktemp("unseen") / name for name in ("a", "loso"))
    make_artifacts(artifacts, backbones=("tiny-phi",), datasets=("news",), seeds=(0,))
    for name in SOURCES:
        for arm in ARMS:
            folder = make_run(left_out, "tiny-phi", f"news-without-{name}", arm)
            (folder / "adapter.safetensors").unlink()
    given = ["calibrate", "--artifacts", str(artifacts), "--left-out", str(left_out)]
    assert main([*given, "--backbone", "tiny-phi"]) == 0
    return artifacts, left_out


def test_calibrate_writes_what_verify_accepts_and_answers_use(
    calibrated: tuple[Path, Path], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(calibrated[0], tmp_path / "artifacts"))
    assert verify(root) == []
    folder = root / "tiny-phi" / "news"
    transfers = read_transfers(folder)
    assert set(transfers) == set(ARMS)
    assert set(transfers["baseline"].coverages) == set(SOURCES)
    catalog = Catalog.read(root)
    found = catalog.calibrations(catalog.select("tiny-phi", "news", 0))
    run = catalog.run("tiny-phi", "news", "baseline", 0)
    own = calibration.calibration_of(run)
    assert own is not None
    assert found["baseline"] is not None
    assert found["baseline"].temperature == own.temperature * transfers["baseline"].factor
    assert found["baseline"].threshold == transfers["baseline"].threshold
    # A control that was not measured is corrected as the baseline is; no other answer changes.
    mixed = catalog.calibrations(catalog.select("tiny-phi", "news", 0, matched=True))
    alone = calibration.calibration_of(catalog.run("tiny-phi", "news", "matched", 0))
    assert mixed["baseline"] == found["baseline"]
    assert alone is not None
    assert mixed["matched"] is not None
    assert mixed["matched"].temperature == alone.temperature * transfers["baseline"].factor
    assert read_transfers(root / "tiny-phi" / "sample") == {}


def test_verify_finds_what_does_not_follow_from_the_predictions(
    calibrated: tuple[Path, Path], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(calibrated[0], tmp_path / "artifacts"))
    path = root / "tiny-phi" / "news" / TRANSFERS
    stored = json.loads(path.read_text())
    stored["arms"]["baseline"]["factor"] *= 1.01
    runs.write_json(path, stored)
    manifest.write_manifest(root)
    assert f"{path}: not what {PREDICTIONS} gives; run `finsent calibrate` again" in verify(root)
    path.unlink()
    manifest.write_manifest(root)
    assert f"{path}: missing; run `finsent calibrate` again" in verify(root)
    (path.parent / PREDICTIONS).write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")
    manifest.write_manifest(root)
    assert any(PREDICTIONS in problem and "cannot be read" in problem for problem in verify(root))
    path.write_text('{"arms": {"baseline": {}}}')
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_transfers(path.parent)


def test_runs_of_another_kind_are_refused(
    calibrated: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifacts = Path(shutil.copytree(calibrated[0], tmp_path / "artifacts"))
    left_out = Path(shutil.copytree(calibrated[1], tmp_path / "loso"))

    def trained_for(folder: Path, epochs: int) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["config"]["epochs"] = epochs
        runs.write_json(folder / "config.json", config)

    given = ["calibrate", "--artifacts", str(artifacts), "--left-out", str(left_out)]
    folder = left_out / "tiny-phi" / "news-without-twitter" / "dendritic" / "seed-0"
    trained_for(folder, 99)
    assert main([*given, "--backbone", "tiny-phi"]) != 0
    assert "train all of them alike" in capsys.readouterr().err
    shutil.rmtree(folder)
    assert main([*given, "--backbone", "tiny-phi"]) != 0
    assert "config.json: missing" in capsys.readouterr().err
    assert main([*given, "--backbone", "tiny-phi", "--dataset", "sample"]) != 0
    assert "leave out a source" in capsys.readouterr().err
    for path in left_out.glob("*/*/baseline/seed-0"):
        trained_for(path, 99)
    assert main([*given, "--backbone", "tiny-phi", "--arms", "baseline"]) == 0
    (problem,) = [problem for problem in verify(artifacts) if TRANSFERS in problem]
    assert "runs with other epochs than" in problem
