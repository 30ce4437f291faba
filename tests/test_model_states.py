"""The shared model's life: which state follows which, and that nobody waits who need not."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from finsent.results.catalog import Catalog, Selection
from finsent.serving.lifecycle.states import (
    FOLLOWS,
    SETTLED,
    UNDECIDED,
    WORKING,
    Choice,
    Current,
    Phase,
    State,
    TransitionError,
)
from finsent.serving.lifecycle.turns import Turns
from finsent.serving.service import ModelService, ServiceError
from tests.app_fixtures import FakeComparer
from tests.artifact_factory import make_run

P = Phase
SMALL, LARGE = Choice("smollm2-135m", "why"), Choice("phi-2", "a GPU")
EVENTS: dict[str, Callable[[State], State]] = {
    "started, runs as before": lambda s: s.started(["smollm2-135m"], "none", fixed=False),
    "started, other runs": lambda s: s.started(["phi-2"], "none", fixed=False),
    "started, other runs, fixed": lambda s: s.started(["phi-2"], "none", fixed=True),
    "started, no run": lambda s: s.started([], "none", fixed=False),
    "loading": lambda s: s.loading(LARGE, "Loading Phi-2"),
    "progressed": lambda s: s.progressed("Half", 0.5),
    "loaded": lambda s: s.loaded("Phi-2 on CPU"),
    "kept": lambda s: s.kept(SMALL),
    "failed": lambda s: s.failed("Loading failed: no room"),
    "answered": lambda s: s.answered("SmolLM2 on CPU"),
}
AFTER = {
    "idle": "choosing choosing choosing empty ! = ! ! ! =",
    "empty": "choosing choosing choosing empty ! = ! ! ! =",
    "choosing": "= = = = loading = ! ! failed =",
    "loading": "= = = = ! loading ready ! failed =",
    "ready": "= rechoosing = empty ! = ! ! ! ready",
    "rechoosing": "= = = = switching = ! ready failed rechoosing",
    "switching": "= = = = switching switching ready ! failed =",
    "failed": "choosing choosing choosing empty ! = ! ! ! =",
}
"""Phase -> what each of EVENTS makes of it: a phase, the same state (=), a refusal (!)."""


def state_in(phase: Phase) -> State:
    return State(phase, "as before", None, SMALL, ("smollm2-135m",))


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(Phase, EVENTS)))
def test_every_event_in_every_phase(phase: Phase, event: str) -> None:
    before = state_in(phase)
    expected = AFTER[phase.value].split()[list(EVENTS).index(event)]
    if expected == "!":
        with pytest.raises(TransitionError, match=phase.value):
            EVENTS[event](before)
    elif expected == "=":
        assert EVENTS[event](before) is before
    else:
        assert EVENTS[event](before).phase.value == expected


def test_every_transition_that_is_allowed_is_made_by_an_event_and_no_other_is() -> None:
    made = {(a, Phase(w)) for a in Phase for w in AFTER[a.value].split() if w not in "=!"}
    assert made == {(a, b) for a in Phase for b in FOLLOWS[a]}


def test_what_a_phase_means_to_a_visitor() -> None:
    # Who waits, waits for something that a thread will end.
    assert set(Phase) - SETTLED - WORKING == {P.IDLE}
    assert {P.RECHOOSING} == SETTLED & WORKING
    assert {p for p in UNDECIDED if state_in(p).settled} == {P.RECHOOSING}
    shown = {p.value: state_in(p).status.phase for p in Phase}
    assert shown == {
        "idle": "starting",
        "choosing": "starting",
        "loading": "loading",
        "switching": "loading",
        "ready": "ready",
        "rechoosing": "ready",
        "failed": "failed",
        "empty": "empty",
    }


def test_events_carry_what_the_page_says() -> None:
    state = State().started(["phi-2", "smollm2-135m"], "none", fixed=False)
    assert (state.status.message, state.decided) == ("Starting", False)
    state = state.loading(LARGE, "Importing").progressed("Reading", 1.7)
    assert (state.choice, state.fraction, state.message) == (LARGE, 1.0, "Reading")
    state = state.loaded("Phi-2 on GPU")
    assert (state.fraction, state.message) == (None, "Phi-2 on GPU")
    state = state.started(["smollm2-135m"], "none", fixed=False)
    assert (state.message, state.decided, state.settled) == ("Phi-2 on GPU", False, True)
    state = state.answered("Phi-2 on GPU, once more").kept(SMALL)
    assert (state.choice, state.message) == (SMALL, "Phi-2 on GPU, once more")
    state = state.started([], "make train", fixed=False)
    assert (state.choice, state.message, state.settled) == (None, "make train", True)


def test_a_refused_event_leaves_the_state_and_waiting_ends_in_time() -> None:
    current = Current()
    with pytest.raises(TransitionError, match="nothing was being loaded while idle"):
        current.apply(lambda state: state.loaded("from nothing"))
    assert current.state == State()
    assert current.wait_for(lambda state: state.settled, 0.01).phase is P.IDLE
    found: list[State] = []
    waiting = threading.Thread(
        target=lambda: found.append(current.wait_for(lambda state: state.settled, 10))
    )
    waiting.start()
    current.apply(lambda state: state.started([], "none", fixed=False))
    waiting.join(10)
    assert found == [current.state]


# ------------------------------------------------------------------------------------------- turns

A, B = (Selection("smollm2-135m", "allagree", seed, ("baseline",)) for seed in (0, 1))


def test_the_lock_is_free_while_runs_are_loaded() -> None:
    turns, loading, loaded = Turns(), threading.Event(), threading.Event()
    switched: list[str] = []

    def slowly() -> None:
        switched.append("a")
        loading.set()
        loaded.wait(10)

    def ask(selection: Selection, switch: Callable[[], None]) -> None:
        with turns.take(selection, switch):
            pass

    first = threading.Thread(target=ask, args=(A, slowly))
    first.start()
    loading.wait(10)
    # A page that is opened tells of replaced runs: it must not wait for the model.
    opened = threading.Thread(target=turns.forget, daemon=True)
    opened.start()
    opened.join(5)
    assert not opened.is_alive()
    # Who asks meanwhile, for the same runs or for others, waits for the switch to end.
    others = [
        threading.Thread(target=ask, args=(s, lambda s=s: switched.append(f"then {s.seed}")))
        for s in (A, B)
    ]
    for thread in others:
        thread.start()
    time.sleep(0.05)
    assert switched == ["a"]
    loaded.set()
    for thread in (first, *others):
        thread.join(10)
    # What was replaced while it was read is read again.
    assert sorted(switched) == ["a", "then 0", "then 1"]


def test_a_switch_that_fails_is_not_taken_for_done_and_lets_others_go() -> None:
    turns = Turns()
    switched: list[str] = []
    with turns.take(A, lambda: switched.append("a")):
        pass

    def fails() -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"), turns.take(B, fails):
        pytest.fail("went on without its runs")
    # Others with the same runs come in at once.
    again, never = (lambda word=word: switched.append(word) for word in ("a again", "never"))
    with turns.take(A, again), turns.take(A, never):
        pass
    assert switched == ["a", "a again"]


# ----------------------------------------------------------------------------------------- service


class Slow(FakeComparer):
    """Loads Phi-2 only when it may."""

    entered, may = threading.Event(), threading.Event()

    def use(self, folder: Path, seed: int, arms: tuple[str, ...], /) -> None:
        if folder.parent.name == "phi-2":
            self.entered.set()
            assert self.may.wait(20)
        super().use(folder, seed, arms)


def test_opening_a_page_never_waits_for_a_model_that_is_loaded(
    app_artifacts: Path, tmp_path: Path
) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(app_artifacts, root)
    for arm in ("baseline", "dendritic"):
        make_run(root, "phi-2", "allagree", arm)
    service = ModelService(
        Catalog.read(root),
        lambda folder, seed, arms, progress: Slow(folder, seed, arms),  # type: ignore[arg-type, return-value]
        probe_cuda=lambda: False,
    )
    service.start()
    assert service.wait(10).phase == "ready"
    asked = service.catalog.select("phi-2")
    visitor = threading.Thread(target=service.compare, args=("profit rose", asked), daemon=True)
    visitor.start()
    assert Slow.entered.wait(10)
    # Who asks the default does not wait for it either.
    assert not service.holds(asked)
    assert service.second_status is not None
    assert service.second_status.phase == "loading"
    default = service.default_selection()
    assert service.compare("profit rose", default).selection.backbone == "smollm2-135m"

    def open_page() -> None:
        shutil.rmtree(root / "smollm2-135m" / "allagree" / "matched" / "seed-0")
        service.renew(Catalog.read(root))
        service.start()
        service.default_selection()

    opened = threading.Thread(target=open_page, daemon=True)
    opened.start()
    opened.join(10)
    assert not opened.is_alive()
    assert visitor.is_alive()
    Slow.may.set()
    visitor.join(10)
    assert not visitor.is_alive()
    assert service.holds(asked)
    assert service.second_status is None
    assert "SmolLM2" in service.status.message


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_neither_the_new_default_nor_the_old_one_can_be_loaded_it_says_so(
    app_artifacts: Path, tmp_path: Path
) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(app_artifacts, root)
    broken = threading.Event()

    class Breaks(FakeComparer):
        def use(self, folder: Path, seed: int, arms: tuple[str, ...], /) -> None:
            if broken.is_set():
                raise OSError("the disk went away")
            super().use(folder, seed, arms)

    service = ModelService(
        Catalog.read(root),
        lambda folder, seed, arms, progress: Breaks(folder, seed, arms),  # type: ignore[arg-type, return-value]
        probe_cuda=lambda: True,
    )
    service.start()
    assert service.wait(10).phase == "ready"
    broken.set()
    for arm in ("baseline", "dendritic"):
        make_run(root, "phi-2", "allagree", arm)
    service.renew(Catalog.read(root))
    service._current.wait_for(lambda state: state.phase is P.FAILED, 10)
    assert "the disk went away" in service.status.message
    with pytest.raises(ServiceError, match="the disk went away"):
        service.compare("profit rose", service.default_selection())
    broken.clear()
    service.start()
    assert service.wait(10).phase == "ready"
    assert service.compare("profit rose", service.default_selection()).selection.backbone == "phi-2"


def test_the_service_starts_without_torch() -> None:
    code = "import sys, finsent.serving.service\n"
    code += "print({'torch', 'transformers', 'openvino', 'gradio'} & set(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "set()"
