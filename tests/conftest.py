"""Fixtures that many tests share: a tiny model on disk, made once, and a place for everything."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from finsent.models.backbones import Backbone
    from finsent.results.runs import Run

# Before anything imports triton: kernels for a GPU are tested without one.
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import train_models

# Here and nowhere else: pytest would start one app more for every file that imports its fixture.
from tests.app_fixtures import app_artifacts as app_artifacts
from tests.app_fixtures import app_url as app_url

SLOW = {"app_url", "chromium", "real_data", "train_command", "trained"}
"""Fixtures that start an app, a browser or a trainer, or read whole data sets."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs one of them is slow, whichever file it is in."""
    for item in items:
        if SLOW.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that holds tiny-phi; children of a test find it through the environment."""
    from finsent.models.weights import ensure_tiny_phi

    folder = tmp_path_factory.mktemp("cache")
    ensure_tiny_phi(folder)
    return folder


@pytest.fixture
def tiny_environment(tiny_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this test and its child processes use the shared tiny-phi."""
    monkeypatch.setenv("FINSENT_CACHE_DIR", str(tiny_cache))


@pytest.fixture
def tiny(tiny_environment: None) -> Backbone:
    """The backbone that every small run is made on."""
    import torch

    from finsent.models.backbones import load_backbone

    return load_backbone("tiny-phi", "fp32", torch.device("cpu"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_cache: Path) -> dict[str, Run]:
    """A run of each arm, made once: tests read it and leave it as it is."""
    from tests.training_factory import BASE, DENDRITES, run_arms

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINSENT_CACHE_DIR", str(tiny_cache))
        return run_arms(tmp_path_factory.mktemp("artifacts"), BASE, DENDRITES)


@pytest.fixture
def train_command(
    tiny_environment: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """train_models.py in this process, which has imported torch already; its own children are real.

    Not for what is about the process itself.
    """

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["train_models.py", *arguments])
        capfd.readouterr()
        status = train_models.main()
        said = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, status, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The real data sets, where FINSENT_DATA_DIR says they are."""
    folder = os.environ.get("FINSENT_DATA_DIR")
    if not folder:
        pytest.skip("FINSENT_DATA_DIR is not set: no real data here")
    return Path(folder)
