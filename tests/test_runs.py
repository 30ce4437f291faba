"""The artifact schema: round trips, strict reading, atomic writing, the manifest."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from finsent.results import manifest, runs, schema
from finsent.results.runs import Predictions
from finsent.results.schema import ArtifactError
from tests.artifact_factory import make_artifacts, make_run

LABELS = ("negative", "neutral", "positive")

ALL_FILES = (*runs.RUN_FILES, runs.VALIDATION_FILE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "artifacts", n_test=12)


def edit_json(path: Path, key: str, value: object) -> None:
    data = json.loads(path.read_text())
    data[key] = value
    path.write_text(json.dumps(data))


def test_write_then_read_gives_the_same(folder: Path) -> None:
    run = runs.read_run(folder)
    predictions = run.read_predictions()
    before = {name: (folder / name).read_bytes() for name in runs.RUN_FILES}
    runs.write_run(
        folder,
        config=run.config,
        metrics=run.metrics,
        history=run.history,
        predictions=predictions,
    )
    assert {name: (folder / name).read_bytes() for name in runs.RUN_FILES} == before
    assert (run.backbone, run.dataset, run.arm, run.seed) == ("tiny-phi", "sample", "baseline", 0)
    assert sorted(path.name for path in folder.iterdir()) == sorted(ALL_FILES)


def test_float32_probabilities_survive(tmp_path: Path) -> None:
    import numpy as np

    row = np.array([1 / 3, 0.6, 1 - 1 / 3 - 0.6], np.float32)
    made = Predictions(("a",), ("neutral",), (tuple(row.tolist()),), LABELS)
    path = tmp_path / "predictions.csv"
    path.write_text(runs.predictions_csv(made))
    read = runs.read_predictions(path, LABELS)
    assert read == made
    assert np.array_equal(np.array(read.probabilities[0], np.float32), row)


@pytest.mark.parametrize(
    ("backbone", "name"),
    [("phi-2", "phi-2"), ("org/name", "org--name"), ("./local/model/", "local--model")],
)
def test_slug(backbone: str, name: str) -> None:
    assert runs.run_folder("root", backbone, "sample", "baseline", 3) == Path(
        f"root/{name}/sample/baseline/seed-3"
    )


@pytest.mark.parametrize("backbone", ["", "/", "figures", "studies"])
def test_slug_refuses(backbone: str) -> None:
    with pytest.raises(ArtifactError, match="cannot name a folder"):
        runs.slug(backbone)


def test_find_runs_sorts_and_skips_unfinished(tmp_path: Path) -> None:
    root = make_artifacts(tmp_path, seeds=(2, 0), n_test=12, datasets=("sample",), publish=False)
    (runs.run_folder(root, "tiny-phi", "sample", "matched", 2) / "metrics.json").unlink()
    (root / "studies/a/b/c/seed-0").mkdir(parents=True)
    found = [(run.backbone, run.arm, run.seed) for run in runs.find_runs(root)]
    assert found == sorted(found)
    assert len(found) == 11
    assert ("tiny-phi", "matched", 2) not in found


@pytest.mark.parametrize("name", runs.RUN_FILES)
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"missing {name}.*train it again"):
        runs.read_run(folder)


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "history.jsonl"])
@pytest.mark.parametrize(
    ("text", "fault"),
    [(b"{", "not JSON"), (b'{"a": NaN}\n', "NaN"), (b"\xff", "cannot be read"), (b"[]", "object")],
)
def test_damaged_json(folder: Path, name: str, text: bytes, fault: str) -> None:
    (folder / name).write_bytes(text)
    with pytest.raises(ArtifactError, match=rf"{name}.*{fault}"):
        runs.read_run(folder)


@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
def test_every_key_is_required(folder: Path, name: str) -> None:
    content = json.loads((folder / name).read_text())
    keys = schema.CONFIG_KEYS if name == "config.json" else schema.METRIC_KEYS
    for key in keys:
        (folder / name).write_text(json.dumps({k: v for k, v in content.items() if k != key}))
        with pytest.raises(ArtifactError, match=rf"{name}.*'{key}' is missing"):
            runs.read_run(folder)


@pytest.mark.parametrize(("key", "value"), [("n_test", True), ("nll", "0.1"), ("ci", None)])
def test_wrong_type(folder: Path, key: str, value: object) -> None:
    edit_json(folder / "metrics.json", key, value)
    with pytest.raises(ArtifactError, match=rf"metrics.json: '{key}' is .* expected"):
        runs.read_run(folder)


def test_nested_keys_are_checked(folder: Path) -> None:
    edit_json(folder / "metrics.json", "best_before_growth", {"epoch": 1})
    with pytest.raises(ArtifactError, match="best_before_growth: key 'accuracy'"):
        runs.read_run(folder)


def test_history_epochs_count_up(folder: Path) -> None:
    path = folder / "history.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:]))
    with pytest.raises(ArtifactError, match="line 3: epoch 3, expected 2"):
        runs.read_run(folder)
    path.write_text("")
    with pytest.raises(ArtifactError, match="no epochs"):
        runs.read_run(folder)


def test_run_in_the_wrong_folder(folder: Path) -> None:
    moved = folder.rename(folder.with_name("seed-7"))
    with pytest.raises(ArtifactError, match=r"config\.json describes"):
        runs.read_run(moved)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "empty file"),
        ("id,label,positive,neutral,negative\n", "header is"),
        ("id,label,negative,neutral,positive\na,neutral,0.5,0.5\n", "line 2: 4 values"),
        ("id,label,negative,neutral,positive\na,neutral,x,0.5,0.5\n", "line 2: could not"),
        ('id,label,negative,neutral,positive\n"a"b,neutral,1,0,0\n', "not CSV"),
        ("id,label,negative,neutral,positive\na,neutral,nan,0.5,0.5\n", "sum 1"),
    ],
)
def test_damaged_predictions(folder: Path, text: str, fault: str) -> None:
    (folder / "predictions.csv").write_text(text)
    with pytest.raises(ArtifactError, match=rf"predictions.csv.*{fault}"):
        runs.read_run(folder).read_predictions()


@pytest.mark.parametrize(
    ("ids", "labels", "rows", "names", "fault"),
    [
        (("a",), (), ((1.0, 0.0),), ("x", "y"), "1 ids, 0 labels"),
        ((), (), (), ("x", "y"), "no examples"),
        (("a",), ("x",), ((1.0,),), ("x",), "two or more"),
        (("a", "a"), ("x", "x"), ((1.0, 0.0),) * 2, ("x", "y"), "unique"),
        (("a",), ("z",), ((1.0, 0.0),), ("x", "y"), "none of"),
        (("a",), ("x",), ((1.0, 0.0, 0.0),), ("x", "y"), "3 probabilities for 2"),
        (("a",), ("x",), ((0.9, 0.2),), ("x", "y"), "sum 1"),
        (("a",), ("x",), ((1.5, -0.5),), ("x", "y"), "sum 1"),
    ],
)
def test_impossible_predictions(ids, labels, rows, names, fault) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ArtifactError, match=fault):
        Predictions(ids, labels, rows, names)


def test_write_refuses_before_touching_the_disk(folder: Path) -> None:
    run = runs.read_run(folder)
    before = (folder / "metrics.json").read_bytes()
    good: dict[str, Any] = {
        "config": run.config,
        "metrics": run.metrics,
        "history": run.history,
        "predictions": run.read_predictions(),
    }
    diverged = [{**run.history[0], "train_loss": float("nan")}]
    flipped = {**run.config, "label_names": list(reversed(LABELS))}
    for change, fault in (
        ({"metrics": {**run.metrics, "nll": float("inf")}}, "cannot be stored"),
        ({"history": diverged}, "diverge"),
        ({"config": flipped}, "one order everywhere"),
        ({"metrics": {}}, "is missing"),
    ):
        with pytest.raises(ArtifactError, match=fault):
            runs.write_run(folder, **{**good, **change})
    assert (folder / "metrics.json").read_bytes() == before


def test_json_error_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"x\.json: cannot be stored"):
        runs.write_json(tmp_path / "x.json", {"a": {1, 2}})


def test_tensor_shapes(folder: Path) -> None:
    path = folder / "adapter.safetensors"
    assert manifest.read_tensor_shapes(path)["score.weight"] == (3, 16)
    content = path.read_bytes()
    for damaged in (
        content[:-1],
        content + b"x",
        content[:5],
        content[:8] + b"x" + content[9:],
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"\xff\xff",
    ):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match="no safetensors file, or damaged"):
            manifest.read_tensor_shapes(path)
    path.unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        manifest.read_tensor_shapes(path)


def test_manifest_is_what_sha256sum_reads(folder: Path) -> None:
    root = folder.parents[3]
    manifest.write_manifest(root)
    check = ["sha256sum", "--check", "--strict", "--quiet", manifest.MANIFEST]
    assert subprocess.run(check, cwd=root).returncode == 0
    assert list(manifest.read_manifest(root)) == manifest.files_below(root)
    assert len(manifest.files_below(root)) == len(ALL_FILES)


def test_damaged_manifest(folder: Path) -> None:
    root = folder.parents[3]
    with pytest.raises(ArtifactError, match="SHA256SUMS: missing"):
        manifest.read_manifest(root)
    (root / manifest.MANIFEST).write_text("abc  file\n")
    with pytest.raises(ArtifactError, match="line 1"):
        manifest.read_manifest(root)
    (root / "bad\nname").touch()
    with pytest.raises(ArtifactError, match="rename"):
        manifest.write_manifest(root)
