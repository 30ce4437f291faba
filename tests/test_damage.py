"""Damaged artifacts: what is damaged is left out and named, the rest is served, `verify` fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from finsent.machine import files
from finsent.results import leaderboard, manifest, runs
from finsent.results.catalog import Catalog
from finsent.results.manifest import check_run, checksums_of
from finsent.results.schema import ArtifactError, parse_json
from finsent.serving.comparer import Comparer
from finsent.ui.build import build_demo
from finsent.ui.renewal import read_catalog
from finsent.verification import verify
from tests.app_fixtures import FakeComparer
from tests.artifact_factory import make_artifacts

PLACE = "smollm2-135m/allagree"
DENDRITIC = f"{PLACE}/dendritic/seed-0"
BASELINE = f"{PLACE}/baseline/seed-0"
ADAPTER = manifest.ADAPTER_FILE


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifacts(
        tmp_path_factory.mktemp("tree") / "artifacts",
        backbones=("smollm2-135m",),
        datasets=("allagree",),
        seeds=(0, 1),
        n_test=30,
    )


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "artifacts"))


def edit(path: Path, **change: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def flip(path: Path, place: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def change_weights(path: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    with safe_open(path, framework="np") as stored:
        tensors = {name: stored.get_tensor(name).copy() for name in stored.keys()}  # noqa: SIM118
        about = stored.metadata()
    change(tensors)
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, path, about)


def first_map(tensors: Mapping[str, np.ndarray]) -> str:
    return next(name for name in sorted(tensors) if name.endswith("lora_A.weight"))


def not_a_number(tensors: dict[str, np.ndarray]) -> None:
    tensors[first_map(tensors)][0, 0] = np.nan


def transposed(tensors: dict[str, np.ndarray]) -> None:
    for name in list(tensors):
        tensors[name] = tensors[name].T


def recorded_again(folder: Path) -> None:
    """What a forger of weights does who also knows of the checksum in config.json."""
    path = folder / "config.json"
    sha256 = files.sha256_file(folder / ADAPTER)
    edit(path, adapter={"sha256": sha256})


DAMAGES: Mapping[str, Callable[[Path], object]] = {
    "weights of one bit": lambda f: flip(f / ADAPTER),
    "weights cut": lambda f: (f / ADAPTER).write_bytes((f / ADAPTER).read_bytes()[:-9]),
    "weights of another arm": lambda f: shutil.copy(
        f.parents[1] / "baseline/seed-0" / ADAPTER, f / ADAPTER
    ),
    "weights of another seed": lambda f: shutil.copy(f.parent / "seed-1" / ADAPTER, f / ADAPTER),
    "config cut": lambda f: (f / "config.json").write_text("{"),
    "metrics edited": lambda f: edit(f / "metrics.json", accuracy=1.0),
    "metrics of other classes": lambda f: edit(f / "metrics.json", per_class={"yes": {}}),
    "metrics nested": lambda f: (f / "metrics.json").write_text("[" * 200_000),
    "metrics of many digits": lambda f: (f / "metrics.json").write_text(
        '{"epochs": ' + "9" * 5000 + "}"
    ),
    "labels that are numbers": lambda f: edit(f / "config.json", label_names=[1, 2, 3]),
    "labels that are lists": lambda f: edit(f / "config.json", label_names=[[], {}, None]),
    "history of one bit": lambda f: flip(f / "history.jsonl"),
    "predictions of one bit": lambda f: flip(f / "predictions.csv"),
    "validation missing": lambda f: (f / runs.VALIDATION_FILE).unlink(),
}


UNSEEN = ("validation missing", "metrics edited", "predictions of one bit")
"""A run may be without a validation part; that metrics do not follow from predictions, `verify`
finds, which computes them again; and a billionth in a probability is within its tolerance."""


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_left_out_and_the_rest_is_served(root: Path, damage: str) -> None:
    whole = Catalog.read(root)
    assert whole.damaged == ()
    DAMAGES[damage](root / DENDRITIC)
    found = Catalog.read(root)
    assert [d.place for d in found.damaged] == [DENDRITIC], found.damaged
    assert str(root) not in found.damaged[0].reason
    assert {run.folder for run in whole.runs} - {run.folder for run in found.runs} == {
        root / DENDRITIC
    }
    assert any(DENDRITIC in problem for problem in verify(root))


@pytest.mark.parametrize(
    "damage",
    [
        *(name for name in DAMAGES if name not in UNSEEN),
        "weights that are no numbers",
        "weights transposed",
    ],
)
def test_a_manifest_that_was_written_again_hides_no_damage(root: Path, damage: str) -> None:
    forged = {
        "weights that are no numbers": not_a_number,
        "weights transposed": transposed,
    }
    if damage in forged:
        change_weights(root / DENDRITIC / ADAPTER, forged[damage])
        recorded_again(root / DENDRITIC)
    else:
        DAMAGES[damage](root / DENDRITIC)
    manifest.write_manifest(root)
    if damage != "history of one bit":  # which may still be well-formed
        assert [d.place for d in Catalog.read(root).damaged] == [DENDRITIC]
    assert any(DENDRITIC in problem for problem in verify(root)), verify(root)


def test_the_page_says_what_it_does_without(root: Path) -> None:
    flip(root / DENDRITIC / ADAPTER)
    flip(root / "leaderboard.json", 20)
    page = build_demo(
        root,
        comparer_factory=lambda folder, seed, arms, progress: FakeComparer(folder, seed, arms),  # type: ignore[arg-type, return-value]
        probe_cuda=lambda: False,
    )
    by_id: dict[str, Any] = {b.elem_id: b for b in page.demo.blocks.values() if b.elem_id}
    said = by_id["status"].value
    assert "Left out for damage:" in said
    assert DENDRITIC in said
    assert "leaderboard.json" in said
    reasons = by_id["left-out"].value
    assert f"{DENDRITIC}/{ADAPTER}: bytes differ from SHA256SUMS" in reasons
    assert str(root) not in said + reasons


def test_a_damaged_manifest_vouches_for_what_can_still_be_read(root: Path) -> None:
    path = root / manifest.MANIFEST
    lines = path.read_text().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if f"{DENDRITIC}/{ADAPTER}" in line)
    lines[place] = "?" + lines[place][1:]
    path.write_text("".join(lines))
    found = read_catalog(root)
    assert {d.place for d in found.damaged} == {DENDRITIC, manifest.MANIFEST}
    assert "has no checksum to compare with" in found.damaged[0].reason
    path.write_bytes(b"\xff\xfe")
    assert read_catalog(root).runs == ()


def test_a_run_that_was_just_made_is_served_before_the_manifest_is_written(root: Path) -> None:
    path = root / manifest.MANIFEST
    path.write_text("".join(x for x in path.read_text().splitlines(True) if DENDRITIC not in x))
    assert read_catalog(root).damaged == ()
    (root / DENDRITIC / "predictions.csv").write_text("id\n")
    assert "header is id" in read_catalog(root).damaged[0].reason


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name.startswith("weights")])
def test_damaged_weights_are_not_loaded(root: Path, damage: str) -> None:
    DAMAGES[damage](root / DENDRITIC)
    with pytest.raises(ArtifactError, match=rf"dendritic/seed-0/{ADAPTER}"):
        Comparer.from_artifacts(root / PLACE, 0)


def test_a_run_is_known_by_its_weights_without_a_manifest(root: Path) -> None:
    """Same arm, same shapes, another seed: only config.json can tell."""
    (root / manifest.MANIFEST).unlink()
    change_weights(root / DENDRITIC / ADAPTER, lambda t: t[first_map(t)].__imul__(-1))
    with pytest.raises(ArtifactError, match="not the weights of this run"):
        check_run(runs.read_run(root / DENDRITIC), checksums_of(root))


def test_links_and_what_has_no_place_are_found(root: Path) -> None:
    elsewhere = shutil.move(root / DENDRITIC, root.with_name("moved"))
    (root / DENDRITIC).symlink_to(elsewhere)
    (root / "figures").mkdir()
    (root / "figures/run.sh").write_text("true")
    (root / "smollm2-135m/allagree/baseline/seed-0/deep/er").mkdir(parents=True)
    (root / "stranger").mkdir()
    (root / "stranger/pickle.pkl").touch()
    manifest.write_manifest(root)
    said = "\n".join(verify(root))
    for name, what in (
        ("dendritic/seed-0", "is a link"),
        ("figures/run.sh", "has no place"),
        ("seed-0/deep/er", "an empty folder"),
        ("stranger/pickle.pkl", "has no place"),
    ):
        assert f"{name}: {what}" in said, said


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_verify_says_what_is_wrong_whatever_a_file_holds(
    pristine: Path, data: st.DataObject
) -> None:
    """Any value in the place of any other, in any JSON file of a run, with the hashes made to fit:
    the run is a problem or, where the value changes nothing that is known, none, but no crash."""
    name = data.draw(st.sampled_from(["config.json", "metrics.json", "history.jsonl"]))
    path = pristine / BASELINE / name
    before = path.read_bytes()
    text = before.decode()
    whole = json.loads(text.splitlines()[0] if name == "history.jsonl" else text)
    place = whole
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JSON)
    try:
        path.write_text(json.dumps(whole) + "\n")
        Catalog.read(pristine)
        leaderboard_problem = None
        try:
            leaderboard.write(pristine)
        except (ArtifactError, ValueError) as error:
            leaderboard_problem = error
        problems = verify(pristine)
        assert leaderboard_problem is None or problems
    finally:
        path.write_bytes(before)
        leaderboard.write(pristine)
        manifest.write_manifest(pristine)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"a": 1e999}', "1e999"),
        ('{"a": ' + "9" * 5000 + "}", "5000 digits"),
        ("[" * 100_000 + "]" * 100_000, "nested too deep"),
        ('{"a": 1, "a": 2}', "names 'a' twice"),
        ('{"a": "\\ud800"}', "half of a character"),
        ('{"a": Infinity}', "Infinity"),
    ],
)
def test_json_that_no_file_of_ours_holds(text: str, fault: str) -> None:
    with pytest.raises(ArtifactError, match=fault):
        parse_json(text, "x.json")
