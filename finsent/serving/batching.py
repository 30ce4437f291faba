"""Requests of many users in batches, with a bounded queue.

One worker thread owns the model. It takes whatever is waiting, so a lone request is answered alone
and at once, and under load batches grow by themselves. Nobody waits for a batch to fill.
"""

from __future__ import annotations

import queue
import threading
import time
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


@dataclass
class _Waiting(Generic[Question, Answer]):
    question: Question
    future: Future[tuple[Answer, float]]
    since: float = field(default_factory=time.perf_counter)


class BatchQueue(Generic[Question, Answer]):
    """Answers questions in batches through `answer`, which gets 1 to `max_batch` of them.

    `answer` returns one answer for each question, in order; what it raises, every question of that
    batch raises.
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
        self._waiting: queue.Queue[_Waiting[Question, Answer] | None] = queue.Queue(capacity)
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def ask(self, question: Question) -> tuple[Answer, float]:
        """The answer, and the milliseconds that the question waited before work on it began.

        Raises BusyError at once when `capacity` questions are waiting.
        """
        self._start()
        item: _Waiting[Question, Answer] = _Waiting(question, Future())
        try:
            self._waiting.put_nowait(item)
        except queue.Full:
            raise BusyError(
                f"busy: {self._capacity} requests are waiting; try again in a moment"
            ) from None
        return item.future.result()

    def close(self) -> None:
        """Answer what is waiting and end the worker."""
        with self._starting:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._waiting.put(None)
            thread.join()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        ending = False
        while not ending:
            first = self._waiting.get()
            if first is None:
                return
            batch = [first]
            while len(batch) < self._max_batch:
                try:
                    item = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    ending = True
                    break
                batch.append(item)
            self._settle(batch)

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
