"""The model in memory: loaded in the background, shared by all visitors, asked one at a time or in
batches. Nothing here draws, and nothing imports torch before a model is loaded."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from finsent.machine.devices import cuda_available, on_gpu, zero_gpu
from finsent.machine.timing import LatencyStats, RollingWindow, interleaved_times
from finsent.results.catalog import (
    DEFAULT_BACKBONE,
    LARGE_BACKBONE,
    Catalog,
    Selection,
    ServiceError,
    backbone_title,
)
from finsent.serving.batching import BusyError

_log = logging.getLogger(__name__)


class ArmPrediction(Protocol):
    """What the page needs of finsent.serving.comparer.ArmPrediction, without importing torch."""

    @property
    def arm(self) -> str: ...
    @property
    def probabilities(self) -> tuple[float, ...]: ...
    @property
    def latency_ms(self) -> float: ...


class ComparisonResult(Protocol):
    """What the page needs of finsent.serving.comparer.ComparisonResult."""

    @property
    def text(self) -> str: ...
    @property
    def n_tokens(self) -> int: ...
    @property
    def truncated(self) -> bool: ...
    @property
    def predictions(self) -> Sequence[ArmPrediction]: ...
    @property
    def label_names(self) -> Sequence[str]: ...
    @property
    def queue_ms(self) -> float: ...
    @property
    def batch_size(self) -> int: ...


class Comparer(Protocol):
    """What the page needs of finsent.serving.comparer.Comparer."""

    @property
    def device_name(self) -> str: ...
    def compare(self, text: str, /) -> ComparisonResult: ...
    def predict_proba(self, texts: Sequence[str], arm: str, /) -> NDArray[np.float64]: ...
    def use(self, folder: Path, seed: int, arms: Sequence[str], /) -> None: ...


Progress = Callable[[str, float], None]


ComparerFactory = Callable[[Path, int, Sequence[str], Progress], Comparer]


@dataclass(frozen=True)
class Choice:
    """The backbone that the app starts with, and why."""

    backbone: str
    reason: str


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
    if DEFAULT_BACKBONE in available:
        return Choice(DEFAULT_BACKBONE, f"the embedded default: {why}")
    others = [name for name in available if name != LARGE_BACKBONE] or list(available)
    return Choice(others[0], f"the only kind of run found: {why}, and no {DEFAULT_BACKBONE} runs")


@dataclass(frozen=True)
class Status:
    """Where the model stands."""

    phase: str
    """`starting`, `loading`, `ready`, `failed` or `empty`."""
    message: str
    fraction: float | None = None
    """Progress in [0, 1] of the step under way, where it is known."""


@dataclass(frozen=True)
class Outcome:
    """One answered text, with the recent timing of each arm."""

    selection: Selection
    result: ComparisonResult
    rolling: Mapping[str, LatencyStats]
    device_name: str
    queue_ms: float
    """Time the text waited for its turn: for other visitors, other runs and the model's queue."""


@dataclass(frozen=True)
class Benchmark:
    """Texts to time together as one call, several such sets, every one on every arm."""

    batches: Mapping[str, Sequence[str]]
    rounds: int
    seed: int


def _ask_one(comparer: Comparer, arms: Sequence[str], text: str) -> ComparisonResult:
    return comparer.compare(text)


def _ask_many(
    comparer: Comparer, arms: Sequence[str], question: tuple[Sequence[str], str | None]
) -> dict[str, NDArray[np.float64]]:
    texts, only = question
    return {arm: comparer.predict_proba(texts, arm) for arm in arms if only in (None, arm)}


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


GPU_SECONDS = {_ask_one: 5, _ask_many: 10, _ask_times: 20}
"""What a question may take on a GPU that is lent for it: the less is asked for, the sooner it comes
and the longer a visitor's share of the day lasts."""


GPU_SECONDS_TO_LOAD = 15
"""What other runs than those in memory take beside."""


class _Turns:
    """Any number of calls at once for one selection; another selection waits for them to end.

    Newcomers queue behind a selection that is waiting, so that none waits for ever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        self._running = 0
        self._selection: Selection | None = None

    @contextlib.contextmanager
    def take(self, selection: Selection, switch: Callable[[], None]) -> Iterator[None]:
        """Inside, `selection` is the one in use; `switch` makes it so where it is not."""
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            self._changed.wait_for(
                lambda: (
                    self._queue[0] is ticket
                    and (self._running == 0 or self._selection == selection)
                )
            )
            try:
                if self._selection != selection:
                    # A switch that fails half-way must not pass for the old selection.
                    self._selection = None
                    switch()
                    self._selection = selection
                self._running += 1
            finally:
                self._queue.popleft()
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def forget(self) -> None:
        """The next call switches, whatever it is for."""
        with self._changed:
            self._selection = None
            self._changed.notify_all()


@dataclass
class ModelService:
    """The one model in memory. Thread-safe: calls for one selection are answered together, other
    selections take turns."""

    catalog: Catalog
    factory: ComparerFactory
    probe_cuda: Callable[[], bool] = cuda_available
    choice: Choice | None = None
    _chosen_from: Sequence[str] = ()
    _status: Status = field(default_factory=lambda: Status("starting", "Starting"))
    _comparer: Comparer | None = None
    _placed: Selection | None = None
    _chosen: threading.Event = field(default_factory=threading.Event)
    _settled: threading.Event = field(default_factory=threading.Event)
    _turns: _Turns = field(default_factory=_Turns)
    _times: threading.Lock = field(default_factory=threading.Lock)
    _starting: threading.Lock = field(default_factory=threading.Lock)
    _loading: bool = False
    _thread: threading.Thread | None = None
    _latencies: dict[tuple[str, str, int, str], RollingWindow] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._run_question = on_gpu(self._answer, seconds=self._gpu_seconds)

    @property
    def status(self) -> Status:
        return self._status

    @property
    def settled(self) -> bool:
        """True once loading has ended, well or badly."""
        return self._settled.is_set()

    @property
    def choosing(self) -> bool:
        """True while it is not known which backbone is the default."""
        return not self._chosen.is_set()

    def start(self) -> None:
        """Begins loading the default in the background; after a failure, tries again. Where it is
        loaded, does nothing unless other backbones have come since it was chosen."""
        with self._starting:
            available = self.catalog.backbones()
            if self._loading:
                return
            if self._comparer is not None and (available == self._chosen_from or zero_gpu()):
                # A lent GPU takes over what was placed on it while the app was being imported, so
                # there the default stays until the next start.
                return
            self._chosen_from = available
            if not available:
                self.choice = None
                self._status = Status(
                    "empty",
                    f"No finished run in {self.catalog.root}. `make train` trains one on this "
                    "machine; it appears here when it has finished.",
                )
                self._settled.set()
                self._chosen.set()
                return
            self._loading = True
            self._chosen.clear()
            if self._comparer is None:
                self._settled.clear()
                self._status = Status("starting", "Starting")
        if zero_gpu():
            self._load()  # by the thread that imports the app
            return
        self._thread = threading.Thread(target=self._load, name="load-model", daemon=True)
        self._thread.start()

    def renew(self, catalog: Catalog) -> None:
        """Goes on with runs found later: loads the first ones, reads those in use anew where they
        were replaced, and changes to another default where the rule says so now."""
        before, self.catalog = self.catalog, catalog
        if any(run not in catalog.runs for run in before.runs):
            self._turns.forget()
        if catalog.backbones() != before.backbones():
            self.start()

    def _load(self) -> None:
        """Chooses the default and puts it in memory. Where a new default cannot be loaded, the one
        before it stays, and says why."""
        before = self.choice if self._comparer is not None else None
        try:
            choice = self._choose()
            changes = before is None or choice.backbone != before.backbone
            if changes:
                # Before anybody learns of the choice: who sees it sees that it is being loaded.
                self._announce(choice)
            self.choice = choice
            self._chosen.set()
            if changes:
                self._place(choice)
        except Exception as error:
            if before is None or before.backbone not in self._chosen_from:
                # The thread's only way to tell the visitor; nothing is hidden, `start` tries again.
                self._status = Status("failed", f"Loading failed: {error}")
                raise
            _log.exception("the default stays %s", before.backbone)
            self.choice = Choice(before.backbone, str(error))
            self._announce(before)
            self._place(before)
        finally:
            with self._starting:
                self._loading = False
            self._chosen.set()
            self._settled.set()
        self.start()  # in case other backbones came meanwhile

    def _choose(self) -> Choice:
        # Importing torch only to learn that there is nothing to choose would delay the choice.
        cuda = LARGE_BACKBONE in self._chosen_from and self.probe_cuda()
        return choose_backbone(self._chosen_from, cuda)

    def _announce(self, choice: Choice) -> None:
        """From here on who asks waits until `_place` has ended, and is told so."""
        first = self._comparer is None
        title = backbone_title(choice.backbone)
        self._status = Status(
            "loading", "Importing the model library" if first else f"Loading {title}"
        )
        self._settled.clear()

    def _place(self, choice: Choice) -> None:
        """Puts the first runs of a backbone in memory."""
        selection = self.catalog.select(choice.backbone)
        if self._comparer is None:
            comparer = self.factory(
                self.catalog.folder(selection), selection.seed, selection.arms, self._report
            )
            with self._turns.take(selection, lambda: None):
                self._comparer, self._placed = comparer, selection
        else:
            with self._turns.take(selection, lambda: self._switch(selection, borrowed=False)):
                pass
        title = backbone_title(choice.backbone)
        self._status = Status("ready", f"{title} on {self._comparer.device_name}")

    def _report(self, stage: str, fraction: float) -> None:
        self._status = Status("loading", stage[:1].upper() + stage[1:], min(max(fraction, 0), 1))

    def default_selection(self, timeout: float = 60.0) -> Selection:
        """What the app starts with; waits until the backbone is chosen.

        Raises ServiceError when there is nothing to choose from.
        """
        if not self._chosen.wait(timeout):
            raise ServiceError("still looking for a device; try again in a moment")
        if self.choice is None:
            raise ServiceError(self._status.message)
        return self.catalog.select(self.choice.backbone)

    def wait(self, timeout: float) -> Status:
        """Waits until loading has ended or the time (seconds) is over."""
        self._settled.wait(timeout)
        return self._status

    def compare(self, text: str, selection: Selection) -> Outcome:
        """Both arms on one text. Waits for the model; switches adapters when asked for others.

        Raises ServiceError when there is no model, and what Comparer.compare raises.
        """
        result, device, waited_ms = self._ask(selection, _ask_one, text)
        rolling = {p.arm: self._remember(selection, p, result) for p in result.predictions}
        return Outcome(selection, result, rolling, device, waited_ms + result.queue_ms)

    def scores(
        self, texts: Sequence[str], selection: Selection, arm: str | None = None
    ) -> tuple[dict[str, NDArray[np.float64]], str]:
        """Probabilities (n, classes) of every arm, or only the one named, in the order of the
        texts, and the device.

        Give few texts at a time: other visitors wait meanwhile. Errors as `compare`.
        """
        found, device, _ = self._ask(selection, _ask_many, (texts, arm))
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
        self._settled.wait()
        if self._comparer is None:
            raise ServiceError(self._status.message)
        started = time.perf_counter_ns()
        try:
            with self._turns.take(selection, lambda: self._switch(selection, borrowed=False)):
                waited_ms = (time.perf_counter_ns() - started) / 1e6
                answer, device = self._run_question(selection, question, argument)
        except BusyError as error:
            raise ServiceError(str(error)) from error
        self._status = Status("ready", f"{backbone_title(selection.backbone)} on {device}")
        return answer, device, waited_ms

    def _switch(self, selection: Selection, *, borrowed: bool) -> None:
        """Loads the runs of a selection. Where a GPU is lent that happens on it, in a process that
        may end with the question, so the next one may switch again.

        Raises ServiceError when they cannot be loaded, as where the weights cannot be had.
        """
        if self._comparer is None or zero_gpu() is not borrowed:
            return
        try:
            self._comparer.use(self.catalog.folder(selection), selection.seed, selection.arms)
        except (OSError, RuntimeError, ValueError) as error:
            title = backbone_title(selection.backbone)
            _log.exception("loading %s", selection)
            raise ServiceError(f"{title} could not be loaded: {error}") from error

    def _answer(
        self, selection: Selection, question: Callable[..., Any], argument: Any
    ) -> tuple[Any, str]:
        if self._comparer is None:
            raise ServiceError(self._status.message)
        if selection != self._placed:
            # A process that failed half-way, or is used again, must know what it holds.
            self._placed = None
            self._switch(selection, borrowed=True)
            self._placed = selection
        return question(self._comparer, selection.arms, argument), self._comparer.device_name

    def _gpu_seconds(
        self, selection: Selection, question: Callable[..., Any], argument: Any
    ) -> int:
        # A process that is lent again may hold another backbone.
        ready = selection == self._placed and len(self.catalog.backbones()) == 1
        return GPU_SECONDS[question] + (0 if ready else GPU_SECONDS_TO_LOAD)

    def _remember(
        self, selection: Selection, prediction: ArmPrediction, result: ComparisonResult
    ) -> LatencyStats:
        key = (selection.backbone, selection.dataset, selection.seed, prediction.arm)
        with self._times:
            recent = self._latencies.setdefault(key, RollingWindow())
            stats = recent.stats()
            # The time of a batch is no sentence's latency; the first call has nothing else.
            if result.batch_size == 1 or stats is None:
                recent.add(prediction.latency_ms)
                stats = recent.stats()
        assert stats is not None
        return stats
