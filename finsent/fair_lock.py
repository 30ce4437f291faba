"""A lock for those who come back at once: it goes to whoever has waited longest.

A lock of `threading` goes to whoever asks at the right moment. A thread that lets go and asks again
in a loop is mostly that one, and another may wait for hundreds of turns.
"""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class FairLock:
    """Mutual exclusion in the order of arrival. A context manager; not to be entered twice."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held = False
        self._gates: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._guard:
            if not self._held:
                self._held = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._gates.append(gate)
        try:
            gate.acquire()
        except BaseException:
            # A signal's handler raised while we waited: nobody may hand the lock to us any more.
            self._leave_queue(gate)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._guard:
            self._hand_over()

    def _leave_queue(self, gate: threading.Lock) -> None:
        with self._guard:
            if gate in self._gates:
                self._gates.remove(gate)
            else:
                self._hand_over()

    def _hand_over(self) -> None:
        """Never free in between, so that nobody can come first who has come later."""
        if self._gates:
            self._gates.popleft().release()
        else:
            self._held = False
