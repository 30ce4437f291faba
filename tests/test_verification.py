"""Every kind of damage to an artifacts tree is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from finsent.plots import png_figures
from finsent.results import leaderboard, manifest, runs
from finsent.results.manifest import count_dendrites, count_parameters
from finsent.verification import verify
from tests.artifact_factory import make_artifacts, make_run

ARMS = ("baseline", "dendritic", "matched")
PLACE = "tiny-phi/sample"
KEPT = dict.fromkeys([*runs.RUN_FILES, runs.VALIDATION_FILE])
RUN_PATHS = [f"{PLACE}/{arm}/seed-0/{name}" for arm in ARMS for name in KEPT]
FIGURES = ["figures/Accuracy_Improvement.png", "figures/Dendrite_vs_Baseline_Training.png"]
EVERY_FILE = [*RUN_PATHS, *FIGURES, "leaderboard.json", "SHA256SUMS"]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree") / "artifacts"
    make_artifacts(root, backbones=("tiny-phi",), datasets=("sample",), seeds=(0,), n_test=24)
    png_figures.make_figures(root)
    manifest.write_manifest(root)
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "artifacts"))


def republish(root: Path) -> None:
    """What a forger would do: make the hashes and the leaderboard fit again."""
    leaderboard.write(root)
    manifest.write_manifest(root)


def edit(path: Path, change: dict[str, object], inner: str | None = None) -> None:
    data = json.loads(path.read_text())
    (data if inner is None else data[inner]).update(change)
    runs.write_json(path, data)


def test_untouched_tree_is_fine(pristine: Path) -> None:
    assert verify(pristine) == []
    present = {path.relative_to(pristine).as_posix() for path in pristine.rglob("*.*")}
    assert present | {"SHA256SUMS"} == set(EVERY_FILE), "the list of damaged files is complete"


@pytest.mark.parametrize("name", EVERY_FILE)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_one_byte_changed(root: Path, name: str, where: str) -> None:
    path = root / name
    content = bytearray(path.read_bytes())
    content[{"first": 0, "middle": len(content) // 2, "last": -1}[where]] ^= 1
    path.write_bytes(content)
    problems = verify(root)
    assert any(path.name in problem for problem in problems), problems


@pytest.mark.parametrize("name", EVERY_FILE)
def test_file_missing(root: Path, name: str) -> None:
    (root / name).unlink()
    assert any(Path(name).name in problem for problem in verify(root))


def test_file_added(root: Path) -> None:
    (root / "extra.txt").touch()
    assert any("extra.txt: not listed" in problem for problem in verify(root))


def test_manifest_lines_reordered(root: Path) -> None:
    path = root / "SHA256SUMS"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert any("not the manifest of this tree" in problem for problem in verify(root))


def test_no_folder(tmp_path: Path) -> None:
    assert "no such folder" in verify(tmp_path / "nowhere")[0]


@pytest.mark.parametrize(
    ("change", "inner"),
    [
        ({"accuracy": 0.999}, None),
        ({"macro_f1": 0.999}, None),
        ({"weighted_f1": 0.999}, None),
        ({"nll": 0.001}, None),
        ({"ece": 0.001}, None),
        ({"n_test": 25}, None),
        ({"confusion": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}, None),
        ({"nll": [0.0, 0.1]}, "ci"),
        ({"neutral": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1}}, "per_class"),
        ({"trainable_params": 3300}, None),
        ({"dendrites": 2}, None),
        ({"best_epoch": 99}, None),
        ({"best_epoch": 0}, None),
        ({"nll": 0.0001}, "validation"),
        ({"epochs": 9}, None),
        ({"optimizer_steps": 161}, None),
        ({"dendrites_requested": False}, None),
    ],
)
def test_forged_metric(root: Path, change: dict[str, object], inner: str | None) -> None:
    edit(root / PLACE / "dendritic/seed-0/metrics.json", change, inner)
    republish(root)
    name = next(iter(change))
    assert any(name in problem for problem in verify(root)), verify(root)


@pytest.mark.parametrize(
    ("change", "inner"),
    [
        ({"learning_rate": 1e-5}, "config"),
        ({"split_sha256": "0" * 64}, None),
        ({"dataset_sha256": "0" * 64}, None),
    ],
)
@pytest.mark.parametrize("arm", ["dendritic", "matched"])
def test_unfair_arm(root: Path, change: dict[str, object], inner: str | None, arm: str) -> None:
    edit(root / PLACE / arm / "seed-0/config.json", change, inner)
    republish(root)
    (problem,) = verify(root)
    assert f"{arm}/seed-0/config.json: {next(iter(change))}" in problem


def test_matched_arm_of_another_size(root: Path) -> None:
    make_run(root, arm="dendritic", n_test=24, dendrites=2)
    republish(root)
    assert any("matched" in p and "more than 1%" in p for p in verify(root))


def test_dendrites_that_never_grew(root: Path) -> None:
    path = root / PLACE / "dendritic/seed-0/history.jsonl"
    path.write_text(path.read_text().replace('"grew dendrite 1"', "null"))
    republish(root)
    assert any("no epoch grew one" in problem for problem in verify(root))


def test_dendrites_in_the_baseline(root: Path) -> None:
    edit(root / PLACE / "baseline/seed-0/metrics.json", {"dendrites": 1})
    republish(root)
    assert any("1 dendrites in the baseline arm" in problem for problem in verify(root))


def test_stale_leaderboard(root: Path) -> None:
    edit(root / "leaderboard.json", {"rows": []})
    manifest.write_manifest(root)
    assert verify(root) == [
        f"{root / 'leaderboard.json'}: not what the runs give; write the leaderboard again"
    ]


def test_run_without_dendrites_is_no_fault(tmp_path: Path) -> None:
    root = make_artifacts(
        tmp_path / "a", backbones=("tiny-phi",), datasets=("sample",), without_dendrites=(1,)
    )
    assert verify(root) == []


def test_counting() -> None:
    shapes = {
        "a.lora_A.weight": (2, 8),
        "a.lora_B.weight": (8, 2),
        "a.lora_B.dendrites.0.weight": (8, 2),
        "a.lora_B.dendrites.1.weight": (8, 2),
        "a.lora_B.dendrites.1.bias": (8,),
        "a.lora_B.output_weights": (2, 8),
        "a.lora_B.recurrent.1": (1, 8),
        "score.dendrites.0.weight": (3, 8),
    }
    assert count_parameters(shapes) == 16 * 5 + 8 + 8 + 24
    assert count_dendrites(shapes) == 2
    assert count_dendrites({}) == 0
