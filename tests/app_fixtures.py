"""The app over made-up artifacts and a made-up model, as a server of its own.

python -m tests.app_fixtures --port 7860 [--artifacts FOLDER] [--load-seconds 1]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from finsent.data.registry import DATASETS
from finsent.serving.comparer import ArmPrediction, ComparisonResult, Window

ROOT = Path(__file__).resolve().parents[1]
LABEL_NAMES = ("negative", "neutral", "positive")
"""Of Financial PhraseBank."""
WITHOUT_DENDRITES = 2
"""Seed whose dendritic run kept no dendrite."""
WITHOUT_VALIDATION = 1
"""Seed whose runs kept no validation predictions."""
SLOW = WITHOUT_DENDRITES
"""Seed whose runs take 20 ms a text, so that there is time to cancel."""
SEEDS = (0, 1, 2)
OWNER_TOKEN = "a-secret-of-the-owner"
DEVICE = "CPU, 2 threads, fp32"
READY_SECONDS = 240
"""Importing gradio alone takes most of a minute on a machine that is busy elsewhere."""


class FakeComparer:
    """Answers from a hash of the text; `split` in a text makes the arms differ, `slow` takes time,
    `broken` fails."""

    device_name = DEVICE

    def __init__(self, folder: Path, seed: int, arms: Sequence[str]) -> None:
        self.use(folder, seed, arms)

    def use(self, folder: Path, seed: int, arms: Sequence[str], /) -> None:
        missing = [arm for arm in arms if not (folder / arm / f"seed-{seed}").is_dir()]
        assert not missing, f"no such runs in {folder}: {missing}"
        self.seed, self.arms = seed, tuple(arms)
        self.label_names = DATASETS[folder.name].label_names

    def compare(self, text: str, /) -> ComparisonResult:
        tokens = len(text.split())
        return ComparisonResult(
            text,
            min(tokens, 128),
            tokens > 128,
            tuple(self._predict(text, arm) for arm in self.arms),
            self.label_names,
        )

    def predict_proba(self, texts: Sequence[str], arm: str, /) -> np.ndarray:
        for text in texts:
            if "broken" in text:
                raise RuntimeError("the model broke")
            time.sleep(0.02 if "slow" in text or self.seed == SLOW else 0.0002)
        return np.array([self._predict(text, arm).probabilities for text in texts])

    def truncated(self, texts: Sequence[str], /) -> list[bool]:
        return [len(text.split()) > 128 for text in texts]

    def windows(self, text: str, /) -> tuple[Window, ...]:
        words = text.split()
        parts = [" ".join(words[i : i + 100]) for i in range(0, len(words), 100)]
        return tuple(Window(part, text.index(part), len(part.split())) for part in parts)

    def predict_document_proba(self, texts: Sequence[str], arm: str, /) -> np.ndarray:
        parts = [[window.text for window in self.windows(text)] for text in texts]
        return np.array([self.predict_proba(found, arm).mean(axis=0) for found in parts])

    def _predict(self, text: str, arm: str) -> ArmPrediction:
        digest = hashlib.sha256(f"{text}|{self.seed}".encode()).digest()
        k = len(self.label_names)
        top = digest[0] % k
        if text.startswith("profit"):
            top = k - 1
        if "split" in text and arm == "dendritic":
            top = (top + 1) % k
        high = 0.82 + 0.1 * digest[1] / 255 + {"dendritic": 0.011}.get(arm, 0.0)
        rest = 1 - high
        others = (0.7, 0.3) if k == 3 else (1.0,)
        values = [0.0] * k
        for step, share in enumerate((high, *(rest * part for part in others))):
            values[(top + step) % k] = share
        return ArmPrediction(arm, tuple(values), 40 + digest[2] / 50 + 3 * (arm == "dendritic"))


class FakeHub:
    """Takes what is pushed down in a file instead of sending it."""

    def __init__(self, record: Path) -> None:
        self.record = record

    def create_repo(self, repo_id: str, **options: object) -> None:
        self._note({"create_repo": repo_id, **options})

    def upload_folder(self, **options: object) -> None:
        if options["repo_id"] == "someone/else":
            raise OSError("403 Forbidden: you need write access")
        self._note(options)

    def _note(self, options: Mapping[str, object]) -> None:
        with self.record.open("a") as stream:
            stream.write(json.dumps(options) + "\n")


OWNER_EPOCHS = 500
"""More than anybody waits for: that training is only ever cancelled."""


def made_up_owner(artifacts: Path) -> object:
    """Trains the tiny model through the very code that trains the large one."""
    from finsent.serving.owner_training import OwnerTraining, Recipe
    from finsent.ui.tabs.owner import Owner

    recipe = Recipe("tiny-phi", "sample", (0,), ("--epochs", str(OWNER_EPOCHS), "--device", "cpu"))
    return Owner(
        OwnerTraining(artifacts, recipe),
        token=OWNER_TOKEN,
        obstacle=lambda: None,
        hub=lambda token: FakeHub(artifacts.parent / "hub.jsonl"),
    )


def serve(artifacts: Path, options: argparse.Namespace) -> None:
    """Runs the page in this process, with a model that takes a while to load."""
    from finsent.ui.build import build_demo, launch

    def factory(folder: Path, seed: int, arms: Sequence[str], progress: object) -> FakeComparer:
        if options.fail:
            raise OSError("the weights cannot be had here")
        for step in range(10):
            progress("downloading weights", step / 10)  # type: ignore[operator]
            time.sleep(options.load_seconds / 10)
        while options.loaded_by is not None and not options.loaded_by.exists():
            time.sleep(0.05)
        return FakeComparer(folder, seed, arms)

    page = build_demo(
        artifacts,
        comparer_factory=factory,
        probe_cuda=lambda: options.cuda,
        owner=made_up_owner(artifacts) if options.owner else None,
        open_to_visitors=True,
    )
    launch(page, host="127.0.0.1", port=options.port, mcp=options.mcp)


def fake_artifacts(root: Path) -> Path:
    from tests.artifact_factory import make_artifacts
    from tests.study_factory import make_classical, make_study

    make_study(root)
    make_classical(root)
    return make_artifacts(
        root,
        backbones=("smollm2-135m",),
        datasets=("allagree", "50agree"),
        seeds=SEEDS,
        n_test=340,
        without_dendrites=(WITHOUT_DENDRITES,),
        without_validation=(WITHOUT_VALIDATION,),
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_app(artifacts: Path, log: Path, *options: str) -> Iterator[str]:
    """The app over a made-up model as a subprocess; yields its URL once it answers."""
    command = ["-m", "tests.app_fixtures", "--artifacts", str(artifacts), *options]
    with serving(command, log) as url:
        yield url


@contextmanager
def serving(arguments: Sequence[str], log: Path) -> Iterator[str]:
    """`python <arguments> --port N` as a subprocess; yields its URL once it answers."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments, "--port", str(port)],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"},
        )
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the app did not come up:\n{log.read_text()}")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.fixture(scope="session")
def app_artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_artifacts(tmp_path_factory.mktemp("app") / "artifacts")


@pytest.fixture(scope="session")
def app_url(app_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_app(app_artifacts, tmp_path_factory.mktemp("log") / "app.log") as url:
        yield url


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--artifacts", type=Path)
    parser.add_argument("--load-seconds", type=float, default=0.3)
    parser.add_argument("--loaded-by", type=Path, help="file without which loading does not end")
    parser.add_argument("--owner", action="store_true", help="with the Owner tab")
    parser.add_argument("--fail", action="store_true", help="the model cannot be loaded")
    parser.add_argument("--cuda", action="store_true", help="say that there is a GPU")
    parser.add_argument("--mcp", action="store_true")
    options = parser.parse_args()
    if options.artifacts is None:
        with tempfile.TemporaryDirectory() as folder:
            serve(fake_artifacts(Path(folder) / "artifacts"), options)
    else:
        serve(options.artifacts, options)


if __name__ == "__main__":
    main()
