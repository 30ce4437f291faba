"""Where the shared model stands: its states, which may follow which, and who changes them.

A `State` is a value. Its methods are the events of a model's life, and each gives the state that
follows; all of them go through `State._to`, which refuses what `FOLLOWS` does not list. `Current`
holds the state that counts and exchanges it in one piece.

    IDLE ──> CHOOSING ──> LOADING ──> READY <──> RECHOOSING ──> SWITCHING ──> READY
      └────> EMPTY          └─────────> FAILED <───────┴────────────┘

EMPTY and FAILED go back to CHOOSING when somebody asks again, READY to EMPTY when the runs go.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any


class Phase(enum.Enum):
    """Where the model stands."""

    IDLE = "idle"
    """Nobody has asked for a model yet."""
    EMPTY = "empty"
    """There is no run that could be loaded."""
    CHOOSING = "choosing"
    """It is being found out which backbone is the default; nothing can be asked yet."""
    LOADING = "loading"
    """The first model comes into memory; who asks waits."""
    READY = "ready"
    """Questions are answered."""
    RECHOOSING = "rechoosing"
    """Other runs have come: the default is chosen anew while the model in memory answers."""
    SWITCHING = "switching"
    """Another default replaces the model in memory; who asks waits."""
    FAILED = "failed"
    """The default could not be loaded; asking again tries again."""


FOLLOWS: Mapping[Phase, frozenset[Phase]] = {
    Phase.IDLE: frozenset({Phase.CHOOSING, Phase.EMPTY}),
    Phase.EMPTY: frozenset({Phase.CHOOSING, Phase.EMPTY}),
    Phase.CHOOSING: frozenset({Phase.LOADING, Phase.FAILED}),
    Phase.LOADING: frozenset({Phase.LOADING, Phase.READY, Phase.FAILED}),
    Phase.READY: frozenset({Phase.READY, Phase.RECHOOSING, Phase.EMPTY}),
    Phase.RECHOOSING: frozenset({Phase.RECHOOSING, Phase.READY, Phase.SWITCHING, Phase.FAILED}),
    Phase.SWITCHING: frozenset({Phase.SWITCHING, Phase.READY, Phase.FAILED}),
    Phase.FAILED: frozenset({Phase.CHOOSING, Phase.EMPTY}),
}
"""What may come after each phase. A phase that follows itself has news: progress, or a device."""

WORKING = frozenset({Phase.CHOOSING, Phase.LOADING, Phase.RECHOOSING, Phase.SWITCHING})
"""A thread is choosing or loading and will end the phase by itself."""

SETTLED = frozenset({Phase.EMPTY, Phase.READY, Phase.RECHOOSING, Phase.FAILED})
"""A question is answered or refused at once."""

UNDECIDED = frozenset({Phase.IDLE, Phase.CHOOSING, Phase.RECHOOSING})
"""It is not known which backbone is the default."""

_SHOWN = {
    Phase.IDLE: "starting",
    Phase.CHOOSING: "starting",
    Phase.SWITCHING: "loading",
    Phase.RECHOOSING: "ready",
}


class TransitionError(AssertionError):
    """An event that cannot happen in the phase that the model is in: a mistake in the program."""


@dataclass(frozen=True)
class Choice:
    """The backbone that the app starts with, and why."""

    backbone: str
    reason: str


@dataclass(frozen=True)
class Status:
    """Where the model stands, as the page says it."""

    phase: str
    """`starting`, `loading`, `ready`, `failed` or `empty`."""
    message: str
    fraction: float | None = None
    """Progress in [0, 1] of the step under way, where it is known."""


@dataclass(frozen=True)
class State:
    """One state of the model. Events return the state that follows, or raise TransitionError."""

    phase: Phase = Phase.IDLE
    message: str = "Starting"
    fraction: float | None = None
    """Progress in [0, 1] of the step under way, where it is known."""
    choice: Choice | None = None
    """The default: what was chosen last, even if loading it failed."""
    available: tuple[str, ...] = ()
    """Backbones that the default was chosen from."""

    @property
    def settled(self) -> bool:
        """Whether a question is answered or refused at once."""
        return self.phase in SETTLED

    @property
    def decided(self) -> bool:
        """Whether it is known which backbone is the default, or that there is none."""
        return self.phase not in UNDECIDED

    @property
    def status(self) -> Status:
        """What the page says of this state."""
        return Status(_SHOWN.get(self.phase, self.phase.value), self.message, self.fraction)

    def started(self, available: Sequence[str], if_empty: str, *, fixed: bool) -> State:
        """Somebody asks for a model: choose, unless that is being done or has been done.

        available: backbones with finished runs. if_empty: what to say when there are none. fixed:
        whether a model that is ready stays the default whatever runs come.
        """
        found = tuple(available)
        if self.phase in WORKING:
            return self
        if self.phase is Phase.READY and (fixed or found == self.available):
            return self
        if not found:
            return self._to(Phase.EMPTY, message=if_empty, choice=None, available=found)
        if self.phase is Phase.READY:
            return self._to(Phase.RECHOOSING, message=self.message, available=found)
        return self._to(Phase.CHOOSING, message="Starting", available=found)

    def loading(self, choice: Choice, message: str) -> State:
        """The default is chosen and is not in memory: from here on who asks waits for it."""
        first = self.phase is Phase.CHOOSING
        return self._to(Phase.LOADING if first else Phase.SWITCHING, message=message, choice=choice)

    def progressed(self, message: str, fraction: float) -> State:
        """News of the step under way. Of no account when a visitor's other runs are loaded."""
        if self.phase not in (Phase.LOADING, Phase.SWITCHING):
            return self
        return self._to(self.phase, message=message, fraction=min(max(fraction, 0.0), 1.0))

    def loaded(self, message: str) -> State:
        """The default is in memory."""
        if self.phase not in (Phase.LOADING, Phase.SWITCHING):
            raise TransitionError(f"nothing was being loaded while {self.phase.value}")
        return self._to(Phase.READY, message=message)

    def kept(self, choice: Choice) -> State:
        """Choosing anew gave the backbone that is in memory."""
        if self.phase is not Phase.RECHOOSING:
            raise TransitionError(f"nothing was in memory to be kept while {self.phase.value}")
        return self._to(Phase.READY, message=self.message, choice=choice)

    def failed(self, message: str) -> State:
        """Choosing or loading ended with an error."""
        return self._to(Phase.FAILED, message=message)

    def answered(self, message: str) -> State:
        """A question was answered, on the device that the message names. A phase in which nobody
        is being answered keeps its own message: the question was asked before it began."""
        if self.phase not in (Phase.READY, Phase.RECHOOSING):
            return self
        return self._to(self.phase, message=message)

    def _to(self, phase: Phase, *, message: str, **facts: Any) -> State:
        """The only way from one phase to another."""
        if phase not in FOLLOWS[self.phase]:
            raise TransitionError(
                f"a model that is {self.phase.value} cannot become {phase.value}; only "
                f"{', '.join(sorted(p.value for p in FOLLOWS[self.phase]))} may follow"
            )
        return replace(self, phase=phase, message=message, **{"fraction": None, **facts})


class Current:
    """The state that counts now. Safe to share between threads; events are short, so nobody waits
    long for its lock."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._state = State()

    @property
    def state(self) -> State:
        """The state as it is now."""
        return self._state

    def apply(self, event: Callable[[State], State]) -> tuple[State, State]:
        """The states before and after an event, which nothing comes between.

        Raises TransitionError, and then nothing has changed.
        """
        with self._changed:
            before = self._state
            self._state = event(before)
            self._changed.notify_all()
            return before, self._state

    def wait_for(self, wanted: Callable[[State], bool], timeout: float | None = None) -> State:
        """The first state seen that is wanted, or the one there is after `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: wanted(self._state), timeout)
            return self._state
