"""Requests of many users in batches: who is answered, who is refused, and how it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from finsent.serving.batching import BatchQueue, BusyError, ClosedError


def test_everyone_gets_their_own_answer_and_batches_form() -> None:
    sizes: list[int] = []

    def answer(questions: Sequence[int]) -> list[int]:
        sizes.append(len(questions))
        time.sleep(0.005)
        return [q * q for q in questions]

    queue: BatchQueue[int, int] = BatchQueue(answer, max_batch=8)
    found: dict[int, int] = {}
    waits: list[float] = []

    def user(start: int) -> None:
        for q in range(start, start + 10):
            found[q], wait = queue.ask(q)
            waits.append(wait)

    threads = [threading.Thread(target=user, args=(10 * i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.close()
    assert found == {q: q * q for q in range(160)}
    assert max(sizes) <= 8
    assert len(sizes) < 80
    assert min(waits) >= 0
    assert max(waits) >= 4  # somebody waited for a batch to end


def test_a_full_queue_says_so_and_goes_on() -> None:
    entered, release = threading.Event(), threading.Event()

    def answer(questions: Sequence[int]) -> Sequence[int]:
        entered.set()
        release.wait(10)
        return questions

    queue: BatchQueue[int, int] = BatchQueue(answer, capacity=2)
    answers: list[int] = []
    threads = [threading.Thread(target=lambda n=n: answers.append(queue.ask(n)[0])) for n in (1,)]
    threads[0].start()
    entered.wait(10)
    for n in (2, 3):
        threads.append(threading.Thread(target=lambda n=n: answers.append(queue.ask(n)[0])))
        threads[-1].start()
    while len(queue._waiting) < 2:
        time.sleep(0.001)
    with pytest.raises(BusyError, match="busy: 2 requests are waiting"):
        queue.ask(4)
    release.set()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [1, 2, 3]
    assert queue.ask(5)[0] == 5


def test_a_failing_batch_is_told_to_all_of_it_and_to_nobody_else() -> None:
    def answer(questions: Sequence[int]) -> Sequence[int]:
        if 0 in questions:
            raise ZeroDivisionError("no zero")
        return questions if 9 not in questions else []

    queue: BatchQueue[int, int] = BatchQueue(answer)
    with pytest.raises(ZeroDivisionError, match="no zero"):
        queue.ask(0)
    with pytest.raises(ValueError, match="zip"):
        queue.ask(9)
    assert queue.ask(1)[0] == 1


def test_closing_while_others_ask_answers_or_refuses_every_one_of_them() -> None:
    def answer(questions: Sequence[int]) -> Sequence[int]:
        time.sleep(0.001)
        return questions

    for attempt in range(30):
        queue: BatchQueue[int, int] = BatchQueue(answer, capacity=4)
        ended: list[str] = []

        def ask_until_refused(
            queue: BatchQueue[int, int] = queue, ended: list[str] = ended
        ) -> None:
            for number in range(10_000):
                try:
                    assert queue.ask(number)[0] == number
                except ClosedError as error:
                    ended.append(str(error))
                    return

        askers = [threading.Thread(target=ask_until_refused, daemon=True) for _ in range(3)]
        closers = [threading.Thread(target=queue.close, daemon=True) for _ in range(2)]
        for thread in askers:
            thread.start()
        time.sleep(0.0005 * (attempt % 10))
        for thread in closers:
            thread.start()
        deadline = time.monotonic() + 10
        for thread in [*closers, *askers]:
            thread.join(max(0.0, deadline - time.monotonic()))
        assert [t.name for t in [*closers, *askers] if t.is_alive()] == []
        assert len(ended) == 3
        assert all("closed" in said for said in ended)


def test_what_waits_when_the_queue_is_closed_is_still_answered() -> None:
    entered, release = threading.Event(), threading.Event()

    def answer(questions: Sequence[int]) -> Sequence[int]:
        entered.set()
        release.wait(10)
        return questions

    queue: BatchQueue[int, int] = BatchQueue(answer, max_batch=1)
    answers: list[int] = []
    threads = [threading.Thread(target=lambda n=n: answers.append(queue.ask(n)[0])) for n in (1, 2)]
    threads[0].start()
    entered.wait(10)
    threads[1].start()
    while not queue._waiting:
        time.sleep(0.001)
    closing = threading.Thread(target=queue.close)
    closing.start()
    while not queue._closed:
        time.sleep(0.001)
    with pytest.raises(ClosedError, match="closed"):
        queue.ask(3)
    release.set()
    for thread in [*threads, closing]:
        thread.join()
    assert sorted(answers) == [1, 2]
    queue.close()  # a second time is harmless
