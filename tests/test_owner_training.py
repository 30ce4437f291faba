"""The owner's training: nobody else's, watched while it runs, whole or not at all."""

from __future__ import annotations

import json
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finsent.machine import files
from finsent.results.catalog import Catalog
from finsent.serving import owner_training
from finsent.serving.owner_training import (
    OwnerTraining,
    OwnerTrainingError,
    Recipe,
    _end_group,
    running_in_group,
)
from finsent.ui.tabs.owner import Owner, OwnerError, owner_from_environment
from finsent.verification import verify
from tests.app_fixtures import OWNER_TOKEN, FakeHub
from tests.artifact_factory import make_artifacts

pytestmark = pytest.mark.slow
EPOCHS = 4
ARMS = ("baseline", "dendritic")
SECONDS = 180


def wait_for(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.1)


def recipe(epochs: int, *more: str) -> Recipe:
    return Recipe("tiny-phi", "sample", (0,), ("--epochs", str(epochs), "--device", "cpu", *more))


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    return make_artifacts(
        tmp_path / "artifacts", backbones=("smollm2-135m",), datasets=("allagree",), seeds=(0,)
    )


@pytest.fixture
def training(artifacts: Path, tiny_environment: None) -> Iterator[OwnerTraining]:
    # Two arms are enough: what costs time here is starting a process for each.
    training = OwnerTraining(artifacts, recipe(EPOCHS, "--arms", *ARMS))
    yield training
    training.cancel()
    training.join()


def snapshot(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): files.sha256_file(path)
        for path in root.rglob("*")
        if path.is_file()
    }


def test_a_training_is_watched_kept_packed_and_pushed(
    training: OwnerTraining, artifacts: Path, tmp_path: Path
) -> None:
    assert training.needed
    with pytest.raises(OwnerTrainingError, match="train first"):
        training.push(FakeHub(tmp_path / "hub"), "me/mine")
    training.start()
    with pytest.raises(OwnerTrainingError, match="under way"):
        training.start()
    wait_for(lambda: training.histories() or training.state.phase != "running")
    seen = training.histories()
    # The second arm's process takes seconds to start when the first arm has ended.
    assert training.state.phase == "running", training.state
    assert set(seen) == {("baseline", 0)}, "histories grow while the training runs"
    wait_for(lambda: training.state.phase not in owner_training.ACTIVE)
    assert training.state.phase == "finished", training.state
    assert {len(lines) for lines in training.histories().values()} == {EPOCHS}
    assert {key[0] for key in training.histories()} == set(ARMS)
    assert not training.staging.exists()
    assert verify(artifacts) == []
    # What was there is served as before; the new runs stand beside it.
    assert Catalog.read(artifacts).backbones() == ["smollm2-135m", "tiny-phi"]
    assert not training.needed
    with pytest.raises(OwnerTrainingError, match="trained already"):
        training.start()
    with zipfile.ZipFile(training.zip_runs(tmp_path / "runs.zip")) as archive:
        names = set(archive.namelist())
    for arm in ARMS:
        assert f"tiny-phi/sample/{arm}/seed-0/adapter.safetensors" in names
    record = tmp_path / "hub"
    assert (
        training.push(FakeHub(record), "me/mine", "model") == "Pushed tiny-phi/sample to me/mine."
    )
    assert training.push(FakeHub(record), "me/space", "space")
    created, model, space = map(json.loads, record.read_text().splitlines())
    assert (created["create_repo"], created["private"]) == ("me/mine", True)
    assert model["path_in_repo"] == "."
    assert space["path_in_repo"] == "artifacts"
    assert space["allow_patterns"] == ["tiny-phi/sample/**", "leaderboard.json", "SHA256SUMS"]
    for name, fault in (("mine", "user/name"), ("/x", "user/name"), ("someone/else", "403")):
        with pytest.raises(OwnerTrainingError, match=fault):
            training.push(FakeHub(record), name, "space")
    with pytest.raises(OwnerTrainingError, match="model or space"):
        training.push(FakeHub(record), "me/mine", "dataset")


def test_cancelling_ends_every_process_and_leaves_nothing(
    artifacts: Path, tiny_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = OwnerTraining(artifacts, recipe(500))
    before = snapshot(artifacts)
    training.start()
    wait_for(training.histories)
    assert training._process is not None
    group = training._process.pid
    assert len(running_in_group(group)) >= 2, "the trainer and its child"

    seen: list[str] = []

    def slowly(process: subprocess.Popen[bytes]) -> None:
        seen.append(training.state.phase)
        with pytest.raises(OwnerTrainingError, match="under way"):
            training.start()
        assert training.staging.exists()
        _end_group(process)

    monkeypatch.setattr(owner_training, "_end_group", slowly)
    training.cancel()
    assert set(seen) == {"cancelling"}, "cancelled means that nothing is left"
    training.cancel()
    assert training.state.phase == "cancelled"
    assert running_in_group(group) == []
    assert snapshot(artifacts) == before
    assert not training.staging.exists()
    assert training.needed
    assert training.histories() == {}


def test_a_failing_training_says_why_and_leaves_nothing(
    artifacts: Path, tiny_environment: None
) -> None:
    training = OwnerTraining(artifacts, recipe(4, "--learning-rate", "-1"))
    before = snapshot(artifacts)
    training.start()
    wait_for(lambda: training.state.phase != "running")
    training.join()
    assert training.state.phase == "failed"
    assert "learning_rate must be > 0" in " ".join(training.state.log)
    assert snapshot(artifacts) == before
    with pytest.raises(OwnerTrainingError, match="no finished run"):
        training.zip_runs(artifacts / "x.zip")


@pytest.mark.parametrize(
    ("token", "username", "yes"),
    [
        (OWNER_TOKEN, None, True),
        (OWNER_TOKEN + "x", None, False),
        ("", None, False),
        (None, None, False),
        ("ünïcode", None, False),
        (None, "author", True),
        (None, "visitor", False),
    ],
)
def test_only_the_owner_is_the_owner(
    tmp_path: Path, token: str | None, username: str | None, yes: bool
) -> None:
    owner = Owner(OwnerTraining(tmp_path, Recipe()), token=OWNER_TOKEN, username="author")
    assert owner.is_owner(token, username) is yes


def test_without_a_secret_or_a_name_nobody_is(tmp_path: Path) -> None:
    nobody = Owner(OwnerTraining(tmp_path, Recipe()))
    assert not nobody.is_owner("", None)
    assert not nobody.is_owner(None, None)
    assert not nobody.is_owner("x", "y")


def test_the_owner_comes_from_the_settings_of_the_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert owner_from_environment(tmp_path, {}) is None
    # A name alone proves nothing: only with the login switched on does anybody carry it.
    assert owner_from_environment(tmp_path, {"SPACE_AUTHOR_NAME": "author"}) is None
    space = {"SPACE_AUTHOR_NAME": "author", "OAUTH_CLIENT_ID": "x"}
    monkeypatch.setattr("finsent.ui.tabs.owner.find_spec", lambda name: None)
    with pytest.raises(OwnerError, match=r"needs authlib and itsdangerous; install gradio\[oauth"):
        owner_from_environment(tmp_path, space)
    monkeypatch.setattr("finsent.ui.tabs.owner.find_spec", lambda name: "here")
    found = owner_from_environment(tmp_path, space)
    assert found is not None
    assert (found.token, found.username) == (None, "author")
    assert found.training.recipe.backbone == "phi-2"
    found = owner_from_environment(tmp_path, {"FINSENT_OWNER_TOKEN": OWNER_TOKEN})
    assert found is not None
    assert (found.token, found.username) == (OWNER_TOKEN, None)
    with pytest.raises(OwnerError, match="has 5 characters"):
        owner_from_environment(tmp_path, {"FINSENT_OWNER_TOKEN": "short"})
