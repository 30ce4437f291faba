"""Visitors share one model: those with the same runs at once, those with others in turn."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator

from finsent.results.catalog import Selection


class Turns:
    """Any number of calls at once for one selection; another selection waits for them to end.

    Newcomers queue behind a selection that is waiting, so that none waits for ever. The lock is
    never held while runs are loaded: who is first in the queue keeps that place until the switch
    has ended, and with it keeps all others out.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        # All below are read and written only while `_changed` is held.
        self._queue: deque[object] = deque()
        self._running = 0
        self._selection: Selection | None = None
        """What is in use; None while that changes, and when it must be loaded again."""
        self._forgotten = 0
        """How often `forget` was called."""

    @contextlib.contextmanager
    def take(self, selection: Selection, switch: Callable[[], None]) -> Iterator[None]:
        """Inside, `selection` is the one in use; `switch` makes it so where it is not, and what it
        raises is raised here."""
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._may_go(ticket, selection))
                switches = self._selection != selection
                before = self._forgotten
                if switches:
                    # A switch that fails half-way must not pass for the old selection.
                    self._selection = None
            if switches:
                switch()
            with self._changed:
                if switches and self._forgotten == before:
                    self._selection = selection
                self._running += 1
        finally:
            with self._changed:
                self._queue.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def forget(self) -> None:
        """The next call switches, whatever it is for: what was read has been replaced."""
        with self._changed:
            self._selection = None
            self._forgotten += 1
            self._changed.notify_all()

    def _may_go(self, ticket: object, selection: Selection) -> bool:
        first = self._queue[0] is ticket
        return first and (self._running == 0 or self._selection == selection)
