"""ZeroGPU: nothing anywhere else; there, model in the main thread and every question wrapped."""

from __future__ import annotations

import pickle
import sys
import threading
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from finsent.machine import devices
from finsent.results import catalog as state
from finsent.serving import service as service_module
from tests.app_fixtures import FakeComparer


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """A stand-in for the package `spaces`: what goes in and out of a call is pickled."""
    calls: list[tuple[str, int]] = []

    def GPU(duration: Callable[..., int]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any) -> Any:
                calls.append((function.__name__, duration(*arguments)))
                return pickle.loads(pickle.dumps(function(*pickle.loads(pickle.dumps(arguments)))))

            return run

        return wrap

    module = types.ModuleType("spaces")
    module.GPU = GPU  # type: ignore[attr-defined]
    module.__spec__ = types.SimpleNamespace(name="spaces")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "spaces", module)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    return calls


def test_elsewhere_a_function_stays_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    assert devices.on_gpu(len, seconds=lambda texts: 3) is len
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setitem(sys.modules, "spaces", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not devices.zero_gpu()


def test_the_model_is_placed_by_the_importing_thread_and_questions_borrow(
    lent: list[tuple[str, int]], app_artifacts: Path
) -> None:
    threads: list[str] = []

    def load(folder: Path, seed: int, arms: Sequence[str], progress: object) -> FakeComparer:
        threads.append(threading.current_thread().name)
        return FakeComparer(folder, seed, arms)

    catalog = state.Catalog.read(app_artifacts)
    service = service_module.ModelService(catalog, load, probe_cuda=lambda: True)
    service.start()
    assert threads == [threading.current_thread().name]
    assert service.status.phase == "ready"
    chosen = service.default_selection()
    assert service.compare("profit rose", chosen).result.text == "profit rose"
    scores, _ = service.scores(["profit", "loss"], chosen)
    assert {values.shape for values in scores.values()} == {(2, 3)}
    times, _ = service.measure(service_module.Benchmark({"a": ["x"]}, 2, 0), chosen)
    assert {len(values) for values in times.values()} == {2}
    assert lent == [("_answer", 5), ("_answer", 10), ("_answer", 20)]
    # Other runs are loaded on the lent GPU, and a process that is lent again knows what it holds.
    other = catalog.select("smollm2-135m", "50agree", 1)
    answers = [service.compare("profit rose", s).result for s in (other, chosen, other, chosen)]
    assert lent[3] == ("_answer", 5 + service_module.GPU_SECONDS_TO_LOAD)
    assert answers[0] == answers[2] != answers[1] == answers[3]
