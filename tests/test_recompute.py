"""Predictions that the weights do not give are found, however well the files agree."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from finsent.results import leaderboard, manifest, metrics, runs
from finsent.results.runs import Predictions, Run
from finsent.verification import verify
from finsent.verification.recompute import recompute
from tests.artifact_factory import make_run
from tests.test_damage import change_weights, recorded_again


@pytest.fixture
def root(trained: dict[str, Run], tiny_environment: None, tmp_path: Path) -> Path:
    made = Path(shutil.copytree(trained["baseline"].folder.parents[3], tmp_path / "artifacts"))
    # So small a model has no control of the same size.
    shutil.rmtree(made / "tiny-phi/sample/matched")
    publish(made)
    return made


def publish(root: Path) -> None:
    leaderboard.write(root)
    manifest.write_manifest(root)


def forge(folder: Path, change: np.ndarray) -> None:
    """Other probabilities, and every number that follows from them."""
    run = runs.read_run(folder)
    before = run.read_predictions()
    table = (np.array(before.probabilities) + change).clip(1e-6)
    rows = tuple(map(tuple, (table / table.sum(axis=1, keepdims=True)).tolist()))
    made = Predictions(before.ids, before.labels, rows, before.label_names)
    labels = made.label_indices
    scores = metrics.score(labels, made.probabilities, made.label_names)
    scores["ci"] = metrics.confidence_intervals(labels, made.probabilities)
    runs.write_run(
        folder,
        config=run.config,
        metrics={**run.metrics, **scores},
        history=run.history,
        predictions=made,
        validation=run.read_validation(),
    )


def test_weights_give_the_stored_predictions(root: Path) -> None:
    assert verify(root) == []
    found = recompute(root, 8)
    assert (found.problems, found.skipped) == ([], [])
    assert (found.runs, found.rows) == (2, 16)
    assert found.largest < 1e-5


def test_predictions_that_the_weights_do_not_give_are_found(root: Path, trained: object) -> None:
    folder = next(root.glob("*/*/dendritic/seed-*"))
    forge(folder, np.array([0.02, 0.0, 0.0]))
    publish(root)
    assert verify(root) == [], "nothing else can tell"
    found = recompute(root, 8)
    assert len(found.problems) == 8
    assert all("dendritic" in p and "the weights give" in p for p in found.problems)
    assert found.runs == 2


def test_weights_that_did_not_give_the_predictions_are_found(root: Path) -> None:
    folder = next(root.glob("*/*/baseline/seed-*"))
    change_weights(folder / manifest.ADAPTER_FILE, lambda t: t["score.weight"].__imul__(2))
    recorded_again(folder)
    publish(root)
    assert verify(root) == [], "nothing else can tell"
    assert recompute(root, 8).problems


def test_what_cannot_be_computed_again_is_said(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FINSENT_DATA_DIR", raising=False)
    alone = tmp_path / "alone"
    make_run(alone, "tiny-phi", "allagree")
    make_run(alone, "tiny-phi", "made-up")
    make_run(alone, "tiny-phi", "sample")
    found = recompute(alone, 4)
    assert found.problems == []
    assert found.rows == 0
    reasons = {line.split("/")[1]: line for line in found.skipped}
    assert "not on this machine; give --data-dir" in reasons["allagree"]
    assert "no data set 'made-up'" in reasons["made-up"]
    assert "do not fit" in reasons["sample"], "made on another base"
