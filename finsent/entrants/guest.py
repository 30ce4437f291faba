"""A model from elsewhere that answers on the page beside ours: one at a time, and a small one."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finsent.entrants.labels import EntrantError, parse_labels
from finsent.entrants.models import Model, load_classifier
from finsent.entrants.sources import ADAPTER, Source, find_source
from finsent.machine.timing import Spread, spread, timed
from finsent.results.runs import EXTERNAL
from finsent.serving.answers import Answer

LARGEST_BYTES = 2_000_000_000
"""Of its weights in fp32: half a billion parameters answer a headline in a second or so."""
LONGEST_SECONDS = 300.0
"""Until it is loaded, a download included."""
REMEMBERED = 200
"""Times that are remembered."""


@dataclass(frozen=True)
class Beside:
    """What the other model says of one text."""

    name: str
    answer: Answer | None
    """None where there is none; `problem` says why."""
    problem: str = ""
    latency_ms: float = 0.0
    times: Spread | None = None
    """Of its latest answers; None while they are too few."""
    n: int = 0
    device: str = ""


@dataclass(frozen=True)
class _Held:
    name: str
    model: Model
    times: deque[float]


class Guest:
    """The one model from elsewhere that is in memory, if one is. Safe to use from many threads."""

    def __init__(self, largest: int = LARGEST_BYTES, seconds: float = LONGEST_SECONDS) -> None:
        self._largest, self._seconds = largest, seconds
        self._loading = threading.Lock()
        self._answering = threading.Lock()
        self._held: _Held | None = None

    @property
    def name(self) -> str | None:
        """Of the model in memory; None where there is none."""
        return None if self._held is None else self._held.name

    def add(self, model: str, labels: str = "") -> str:
        """Loads a model by its folder or Hub id; it takes the place of the one before. Returns what
        there is to say of it.

        labels: which output means what, as `--labels` has it; empty where its names say so.

        Raises:
            EntrantError: What is wrong with it, in a line. The model before stays.
        """
        if not model.strip():
            raise EntrantError("name a folder with a model, or a model on the Hub as owner/name")
        if not self._loading.acquire(blocking=False):
            raise EntrantError("another model is being loaded; try again when that is done")
        started = time.monotonic()
        work = _Work(lambda: self._load(model.strip(), labels.strip()), self._loading.release)
        held = work.result(self._seconds)
        if held is None:
            raise EntrantError(
                f"{model} was not loaded within {self._seconds:.0f} s and is given up; take a "
                "smaller model, or download it first and name its folder"
            )
        self._held = held
        size = held.model.parameters
        millions = "" if size is None else f", {size / 1e6:,.1f} million parameters"
        return (
            f"{held.name} answers beside ours now ({held.model.form}{millions}; loaded in "
            f"{time.monotonic() - started:.1f} s)."
        )

    def remove(self) -> None:
        """Forgets the model."""
        self._held = None

    def answer(self, text: str, label_names: Sequence[str]) -> Beside | None:
        """What it says of a text, if it has these labels; None where no model is in memory."""
        held = self._held
        if held is None:
            return None
        (own,) = held.model.label_sets
        if own != tuple(label_names):
            return Beside(
                held.name,
                None,
                f"It answers {', '.join(own)}, and the models above {', '.join(label_names)}.",
            )
        try:
            with self._answering:
                found, elapsed = timed(lambda: held.model.answer([text], own))
                held.times.append(elapsed)
                times = list(held.times)
        except EntrantError as error:
            return Beside(held.name, None, f"It gave no answer: {error}.")
        answer = Answer(EXTERNAL, own, tuple(found[0].tolist()), None)
        return Beside(held.name, answer, "", elapsed, spread(times), len(times), held.model.device)

    def _load(self, model: str, labels: str) -> _Held:
        given = parse_labels(labels) if labels else None
        source: Source = find_source(model, largest=self._largest)
        if source.form == ADAPTER:
            raise EntrantError(
                f"{source.name} is an adapter, whose base may be of any size; merge the two and "
                "name that folder, or test it by finsent evaluate"
            )
        return _Held(source.name, load_classifier(source, given), deque(maxlen=REMEMBERED))


class _Work:
    """Something that is done in a thread, which nobody waits for longer than a while."""

    def __init__(self, do: Callable[[], _Held], done: Callable[[], None]) -> None:
        """done: called when it has ended, however late."""
        self._do, self._done = do, done
        self._found: _Held | EntrantError | None = None
        self._thread = threading.Thread(target=self._run, name="load-guest", daemon=True)
        self._thread.start()

    def result(self, seconds: float) -> _Held | None:
        """What came of it; None when it takes longer. EntrantError as it was raised."""
        self._thread.join(seconds)
        if isinstance(self._found, EntrantError):
            raise self._found
        return self._found

    def _run(self) -> None:
        try:
            self._found = self._do()
        except EntrantError as error:
            self._found = error
        except Exception as error:  # the thread's only way to tell who waits
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._found = EntrantError(f"the model cannot be loaded: {reason}")
        finally:
            self._done()
