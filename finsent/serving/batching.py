"""Requests of many users in batches, with a bounded queue.

One worker thread owns the model. It takes whatever is waiting, so a lone request is answered alone
and at once, and under load batches grow by themselves. Nobody waits for a batch to fill.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")

CAPACITY = 256
MAX_BATCH = 32


class BusyError(RuntimeError):
    """The queue is full; the request was not taken."""


class ClosedError(RuntimeError):
    """The queue is closed or being closed; the request was not taken."""


@dataclass
class _Waiting(Generic[Question, Answer]):
    question: Question
    future: Future[tuple[Answer, float]]
    since: float = field(default_factory=time.perf_counter)


class BatchQueue(Generic[Question, Answer]):
    """Answers questions in batches through `answer`, which gets 1 to `max_batch` of them.

    `answer` returns one answer for each question, in order; what it raises, every question of that
    batch raises. A question is taken or refused under one lock, so every question that was taken
    before `close` is answered, and no later one waits for a worker that has gone.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Question]], Sequence[Answer]],
        *,
        capacity: int = CAPACITY,
        max_batch: int = MAX_BATCH,
    ) -> None:
        self._answer = answer
        self._max_batch = max_batch
        self._capacity = capacity
        self._changed = threading.Condition()
        # The three below are read and written only while `_changed` is held.
        self._waiting: deque[_Waiting[Question, Answer]] = deque()
        self._closed = False
        self._worker: threading.Thread | None = None

    def ask(self, question: Question) -> tuple[Answer, float]:
        """The answer, and the milliseconds that the question waited before work on it began.

        Raises BusyError at once when `capacity` questions are waiting, and ClosedError once
        `close` has been called.
        """
        item: _Waiting[Question, Answer] = _Waiting(question, Future())
        with self._changed:
            if self._closed:
                raise ClosedError("this queue was closed; make a new one to ask again")
            if len(self._waiting) >= self._capacity:
                raise BusyError(
                    f"busy: {self._capacity} requests are waiting; try again in a moment"
                )
            self._waiting.append(item)
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="batches", daemon=True)
                self._worker.start()
            self._changed.notify()
        return item.future.result()

    def close(self) -> None:
        """Take no more questions, answer those that are waiting and end the worker."""
        with self._changed:
            self._closed = True
            worker = self._worker
            self._changed.notify_all()
        if worker is not None:
            worker.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            self._settle(batch)

    def _next_batch(self) -> list[_Waiting[Question, Answer]]:
        """Waits for questions; empty when the queue is closed and all have been taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            n = min(len(self._waiting), self._max_batch)
            return [self._waiting.popleft() for _ in range(n)]

    def _settle(self, batch: Sequence[_Waiting[Question, Answer]]) -> None:
        started = time.perf_counter()
        try:
            answers = self._answer([item.question for item in batch])
            pairs = list(zip(batch, answers, strict=True))
        except BaseException as error:
            # The worker must outlive a failing batch, and those who asked must hear of it.
            for item in batch:
                item.future.set_exception(error)
            return
        for item, answer in pairs:
            item.future.set_result((answer, (started - item.since) * 1e3))
