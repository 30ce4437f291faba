"""The model in memory: loaded in the background, shared by all visitors, asked one at a time or in
batches. Nothing here draws, and nothing imports torch before a model is loaded."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finsent.machine.devices import cuda_available, on_gpu, zero_gpu
from finsent.machine.timing import PairedTimes, PairedWindow, interleaved_times
from finsent.results.catalog import (
    EMBEDDED_BACKBONES,
    LARGE_BACKBONE,
    Catalog,
    Selection,
    backbone_title,
)
from finsent.serving.answers import Answer, answers
from finsent.serving.batching import BusyError, ClosedError
from finsent.serving.lifecycle.second import SecondModel
from finsent.serving.lifecycle.states import Choice, Current, Phase, Status
from finsent.serving.lifecycle.turns import Turns
from finsent.serving.notices import Notice, notices

if TYPE_CHECKING:
    from finsent.models.weights import ReportProgress
    from finsent.serving.comparer import Comparer, ComparisonResult

_log = logging.getLogger(__name__)


class ServiceError(RuntimeError):
    """The model cannot answer: nothing to load, loading failed, or too many ask."""


ComparerFactory = Callable[[Path, int, Sequence[str], "ReportProgress"], "Comparer"]
"""From a folder of runs, a seed, arms, and whom to tell how far loading is, to the model."""


def choose_backbone(available: Sequence[str], cuda: bool) -> Choice:
    """Phi-2 when a GPU and its artifacts are both here, else the embedded default.

    available: folder names of the backbones with finished runs. Raises ServiceError when empty.
    """
    if not available:
        raise ServiceError("no finished run in the artifacts folder; `make train` makes one")
    if LARGE_BACKBONE in available and cuda:
        return Choice(LARGE_BACKBONE, "a CUDA device and Phi-2 artifacts are both here")
    if LARGE_BACKBONE in available:
        why = "Phi-2 artifacts are here, but no CUDA device"
    elif cuda:
        why = "a CUDA device is here, but no Phi-2 artifacts"
    else:
        why = "no Phi-2 artifacts here"
    for name in EMBEDDED_BACKBONES:
        if name in available:
            return Choice(name, f"the embedded default: {why}")
    others = [name for name in available if name != LARGE_BACKBONE] or list(available)
    return Choice(others[0], f"the only kind of run found: {why}, and none of the embedded default")


@dataclass(frozen=True)
class Passage:
    """A part of a long text and what every arm says of it."""

    text: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Outcome:
    """One answered text: what every arm says of it, with the recent timing of each."""

    selection: Selection
    result: ComparisonResult
    answers: tuple[Answer, ...]
    """In the order of the result's predictions, calibrated where the runs can be."""
    times: PairedTimes | None
    """Recent times of these runs; None while they are too few to say anything."""
    device_name: str
    queue_ms: float
    """Time the text waited for its turn: for other visitors, other runs and the model's queue."""
    notices: tuple[Notice, ...] = ()
    """What the models were not made for in this text."""
    passages: tuple[Passage, ...] = ()
    """The parts of a text that is too long to be read in one piece, whose answers then are the
    mean of theirs; empty for any other."""


@dataclass(frozen=True)
class Benchmark:
    """Texts to time together as one call, several such sets, every one on every arm."""

    batches: Mapping[str, Sequence[str]]
    rounds: int
    seed: int


def _ask_one(comparer: Comparer, arms: Sequence[str], text: str) -> ComparisonResult:
    return comparer.compare(text)


def _ask_long(
    comparer: Comparer, arms: Sequence[str], text: str
) -> tuple[list[str], dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """The parts of a long text, and every arm's answers to the whole and to each part."""
    parts = [window.text for window in comparer.windows(text)]
    whole = {arm: comparer.predict_document_proba([text], arm)[0] for arm in arms}
    return parts, whole, {arm: comparer.predict_proba(parts, arm) for arm in arms}


def _ask_many(
    comparer: Comparer, arms: Sequence[str], question: tuple[Sequence[str], str | None]
) -> dict[str, NDArray[np.float64]]:
    texts, only = question
    return {arm: comparer.predict_proba(texts, arm) for arm in arms if only in (None, arm)}


def _ask_batch(
    comparer: Comparer, arms: Sequence[str], texts: Sequence[str]
) -> tuple[dict[str, NDArray[np.float64]], list[bool]]:
    return _ask_many(comparer, arms, (texts, None)), comparer.truncated(texts)


def _ask_times(
    comparer: Comparer, arms: Sequence[str], benchmark: Benchmark
) -> dict[tuple[str, str], list[float]]:
    def call(texts: Sequence[str], arm: str) -> Callable[[], object]:
        return lambda: comparer.predict_proba(texts, arm)

    return interleaved_times(
        {
            (arm, name): call(texts, arm)
            for name, texts in benchmark.batches.items()
            for arm in arms
        },
        repeats=benchmark.rounds,
        warmup=0,
        seed=benchmark.seed,
    )


GPU_SECONDS = {_ask_one: 5, _ask_long: 20, _ask_many: 10, _ask_batch: 10, _ask_times: 20}
"""What a question may take on a GPU that is lent for it: the less is asked for, the sooner it comes
and the longer a visitor's share of the day lasts."""


GPU_SECONDS_TO_LOAD = 15
"""What other runs than those in memory take beside."""


WARMUP = 2
"""First answers of a model whose time is not recorded: its memory is still being set up."""


class _RecentTimes:
    """The latest model times of the runs that were asked. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._windows: dict[Selection, PairedWindow] = {}

    def note(self, selection: Selection, result: ComparisonResult) -> PairedTimes | None:
        """Takes note of how long an answer took; what is known of its runs by now."""
        with self._lock:
            window = self._windows.setdefault(selection, PairedWindow(warmup=WARMUP))
        # The time of a batch is no sentence's time.
        if result.batch_size == 1:
            window.add({p.arm: p.latency_ms for p in result.predictions})
        return window.summary()


@dataclass
class ModelService:
    """The one model in memory. Thread-safe: calls for one selection are answered together, other
    selections take turns.

    Where the model stands is one value, see `finsent.serving.lifecycle.states`. Nothing is loaded
    while a lock is held: opening a page, drawing it and asking for the status never wait for that.
    """

    catalog: Catalog
    factory: ComparerFactory
    probe_cuda: Callable[[], bool] = cuda_available
    _current: Current = field(default_factory=Current)
    _turns: Turns = field(default_factory=Turns)
    _times: _RecentTimes = field(default_factory=_RecentTimes)
    _comparer: Comparer | None = None
    """Made by the thread that loads, before the model is first READY, and then kept."""
    _placed: Selection | None = None
    """Where a GPU is lent: the runs that this process holds."""

    def __post_init__(self) -> None:
        self._second = SecondModel(self._load_second)
        self._run_question = on_gpu(self._answer, seconds=self._gpu_seconds)

    @property
    def status(self) -> Status:
        """Where the model stands, as the page says it."""
        return self._current.state.status

    @property
    def choice(self) -> Choice | None:
        """The default backbone and why it is that; None until it is chosen."""
        return self._current.state.choice

    @property
    def settled(self) -> bool:
        """True once loading has ended, well or badly."""
        return self._current.state.settled

    @property
    def choosing(self) -> bool:
        """True while it is not known which backbone is the default."""
        return not self._current.state.decided

    def start(self) -> None:
        """Begins loading the default in the background; after a failure, tries again. Where it is
        loaded, does nothing unless other backbones have come since it was chosen."""
        available = self.catalog.backbones()
        if_empty = (
            f"No finished run in {self.catalog.root}. `make train` trains one on this "
            "machine; it appears here when it has finished."
        )
        # A lent GPU takes over what was placed on it while the app was being imported, so there
        # the default stays until the next start.
        before, after = self._current.apply(
            lambda state: state.started(available, if_empty, fixed=zero_gpu())
        )
        if after is before or after.phase is Phase.EMPTY:
            return
        kept = before.choice if after.phase is Phase.RECHOOSING else None
        if zero_gpu() and before.phase is Phase.IDLE:
            self._load(after.available, kept)  # by the thread that imports the app
            return
        threading.Thread(
            target=self._load, args=(after.available, kept), name="load-model", daemon=True
        ).start()

    def renew(self, catalog: Catalog) -> None:
        """Goes on with runs found later: loads the first ones, reads those in use anew where they
        were replaced, and changes to another default where the rule says so now."""
        before, self.catalog = self.catalog, catalog
        if any(run not in catalog.runs for run in before.runs):
            self._turns.forget()
            self._second.turns.forget()
        if catalog.backbones() != before.backbones():
            self.start()

    def _load(self, available: Sequence[str], kept: Choice | None) -> None:
        """Chooses the default and puts it in memory. Where a new default cannot be loaded, the one
        before it stays, and says why.

        kept: the default that is in memory, if there is one.
        """
        try:
            try:
                choice = self._choose(available)
                if kept is not None and choice.backbone == kept.backbone:
                    self._current.apply(lambda state: state.kept(choice))
                else:
                    self._place(choice)
            except Exception as error:
                if kept is None or kept.backbone not in available:
                    raise
                _log.exception("the default stays %s", kept.backbone)
                self._place(Choice(kept.backbone, str(error)))
        except Exception as error:
            # The thread's only way to tell the visitor; `start` tries again.
            said = f"Loading failed: {error}"
            self._current.apply(lambda state: state.failed(said))
            raise
        self.start()  # in case other backbones came meanwhile

    def _choose(self, available: Sequence[str]) -> Choice:
        # Importing torch only to learn that there is nothing to choose would delay the choice.
        cuda = LARGE_BACKBONE in available and self.probe_cuda()
        return choose_backbone(available, cuda)

    def _place(self, choice: Choice) -> None:
        """Puts the first runs of a backbone in memory; who asks meanwhile waits."""
        title = backbone_title(choice.backbone)
        first = self._comparer is None
        said = "Importing the model library" if first else f"Loading {title}"
        # Before anybody learns of the choice: who sees it sees that it is being loaded.
        self._current.apply(lambda state: state.loading(choice, said))
        selection = self.catalog.select(choice.backbone)
        if self._comparer is None:
            comparer = self.factory(
                self.catalog.folder(selection), selection.seed, selection.arms, self._report
            )
            with self._turns.take(selection, lambda: None):
                self._comparer, self._placed = comparer, selection
        else:
            comparer = self._comparer
            with self._turns.take(selection, lambda: self._switch(comparer, selection)):
                pass
        ready = f"{title} on {comparer.device_name}"
        self._current.apply(lambda state: state.loaded(ready))

    def _report(self, stage: str, fraction: float) -> None:
        said = stage[:1].upper() + stage[1:]
        self._current.apply(lambda state: state.progressed(said, fraction))

    def default_selection(self, timeout: float = 60.0) -> Selection:
        """What the app starts with; waits until the backbone is chosen, `timeout` seconds at most.

        Raises ServiceError when there is nothing to choose from.
        """
        state = self._current.wait_for(lambda state: state.decided, timeout)
        if not state.decided:
            raise ServiceError("still looking for a device; try again in a moment")
        if state.choice is None:
            raise ServiceError(state.message)
        return self.catalog.select(state.choice.backbone)

    def wait(self, timeout: float) -> Status:
        """Waits until loading has ended or the time (seconds) is over."""
        return self._current.wait_for(lambda state: state.settled, timeout).status

    def holds(self, selection: Selection) -> bool:
        """Whether the base model of a selection can be asked without being loaded first. The
        default always can, as far as anything can."""
        return self._is_default(selection) or self._second.holds(selection.backbone)

    def bring(self, selection: Selection) -> None:
        """Begins loading the base model of a selection beside the default, which goes on
        answering."""
        if not self._is_default(selection):
            self._second.bring(selection, self.catalog.folder(selection))

    @property
    def second_status(self) -> Status | None:
        """Where a base model beside the default stands, if there is anything to say."""
        return self._second.status()

    def second_problem(self, selection: Selection) -> str | None:
        """Why the base model of a selection could not be loaded beside the default, the last time
        that was tried."""
        return None if self._is_default(selection) else self._second.problem(selection.backbone)

    def _is_default(self, selection: Selection) -> bool:
        # A GPU that is lent holds one model at a time.
        choice = self.choice
        return zero_gpu() or choice is None or selection.backbone == choice.backbone

    def _load_second(self, selection: Selection, progress: ReportProgress) -> Comparer:
        folder = self.catalog.folder(selection)
        return self.factory(folder, selection.seed, selection.arms, progress)

    def compare(self, text: str, selection: Selection) -> Outcome:
        """Every arm on one text. Waits for the model; switches adapters when asked for others. A
        text that is too long to be read in one piece is answered by its passages too.

        Raises ServiceError when there is no model, ArtifactError when the runs have gone or cannot
        be calibrated for being damaged, and what Comparer.compare raises.
        """
        result, device, waited_ms = self._ask(selection, _ask_one, text)
        waited_ms += result.queue_ms
        calibrations = self.catalog.calibrations(selection)
        raw: dict[str, Sequence[float]] = {p.arm: p.probabilities for p in result.predictions}
        passages: tuple[Passage, ...] = ()
        if result.truncated:
            (parts, whole, each), _, _ = self._ask(selection, _ask_long, text)
            raw = {arm: values.tolist() for arm, values in whole.items()}
            passages = tuple(
                Passage(
                    part,
                    tuple(
                        answers(
                            {arm: values[place].tolist() for arm, values in each.items()},
                            result.label_names,
                            calibrations,
                        )
                    ),
                )
                for place, part in enumerate(parts)
            )
        given = tuple(answers(raw, result.label_names, calibrations))
        times = self._times.note(selection, result)
        said = tuple(notices(text))
        return Outcome(selection, result, given, times, device, waited_ms, said, passages)

    def scores(
        self, texts: Sequence[str], selection: Selection, arm: str | None = None
    ) -> tuple[dict[str, NDArray[np.float64]], str]:
        """Probabilities (n, classes) of every arm, or only the one named, in the order of the
        texts, and the device.

        Give few texts at a time: other visitors wait meanwhile. Errors as `compare`.
        """
        found, device, _ = self._ask(selection, _ask_many, (texts, arm))
        return found, device

    def batch(
        self, texts: Sequence[str], selection: Selection
    ) -> tuple[tuple[dict[str, NDArray[np.float64]], list[bool]], str]:
        """As `scores` of every arm, with whether each text was cut to what the model reads."""
        found, device, _ = self._ask(selection, _ask_batch, texts)
        return found, device

    def measure(
        self, benchmark: Benchmark, selection: Selection
    ) -> tuple[dict[tuple[str, str], list[float]], str]:
        """Milliseconds of every call by (arm, name of the batch), and the device.

        A call is what a program would make: from texts to probabilities. Errors as `compare`.
        """
        found, device, _ = self._ask(selection, _ask_times, benchmark)
        return found, device

    def _ask(
        self, selection: Selection, question: Callable[..., Any], argument: Any
    ) -> tuple[Any, str, float]:
        """The answer, the device that gave it and the milliseconds before the model was asked."""
        state = self._current.wait_for(lambda state: state.settled)
        if self._comparer is None:
            raise ServiceError(state.message)
        comparer, turns = self._comparer, self._turns
        title = backbone_title(selection.backbone)
        default = self._is_default(selection)
        if not default:
            problem = self._second.wait_for(selection, self.catalog.folder(selection))
            if problem is not None or self._second.comparer is None:
                raise ServiceError(f"{title} could not be loaded: {problem}")
            comparer, turns = self._second.comparer, self._second.turns

        def switch() -> None:
            # Where a GPU is lent, runs are loaded on it, by `_answer`.
            if not zero_gpu():
                self._switch(comparer, selection)

        started = time.perf_counter_ns()
        try:
            with turns.take(selection, switch):
                waited_ms = (time.perf_counter_ns() - started) / 1e6
                if default:
                    answer, device = self._run_question(selection, question, argument)
                else:
                    answer = question(comparer, selection.arms, argument)
                    device = comparer.device_name
        except (BusyError, ClosedError) as error:
            raise ServiceError(str(error)) from error
        if default:
            self._current.apply(lambda state: state.answered(f"{title} on {device}"))
        return answer, device, waited_ms

    def _switch(self, comparer: Comparer, selection: Selection) -> None:
        """Loads the runs of a selection.

        Raises ServiceError when they cannot be loaded, as where the weights cannot be had.
        """
        try:
            comparer.use(self.catalog.folder(selection), selection.seed, selection.arms)
        except (OSError, RuntimeError, ValueError) as error:
            title = backbone_title(selection.backbone)
            _log.exception("loading %s", selection)
            raise ServiceError(f"{title} could not be loaded: {error}") from error

    def _answer(
        self, selection: Selection, question: Callable[..., Any], argument: Any
    ) -> tuple[Any, str]:
        """The answer and the device. Where a GPU is lent this runs on it, in a process that may
        end with the question, so the next one may have to load the same runs again."""
        comparer = self._comparer
        if comparer is None:
            raise ServiceError(self.status.message)
        if zero_gpu() and selection != self._placed:
            # A process that failed half-way, or is used again, must know what it holds.
            self._placed = None
            self._switch(comparer, selection)
            self._placed = selection
        return question(comparer, selection.arms, argument), comparer.device_name

    def _gpu_seconds(
        self, selection: Selection, question: Callable[..., Any], argument: Any
    ) -> int:
        # A process that is lent again may hold another backbone.
        ready = selection == self._placed and len(self.catalog.backbones()) == 1
        return GPU_SECONDS[question] + (0 if ready else GPU_SECONDS_TO_LOAD)
