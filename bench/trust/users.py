"""Many users at once, some of whom read slowly or hang up: every answer is its question's own."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from urllib.parse import urlsplit

from bench.load import Ask, app_asks, closed_loop, texts, wrong
from bench.screenshots import own_app
from bench.trust.scenario import Setting, Tally

USERS = 64
READING_SECONDS = 3.0
"""Between an answer and the next question, on the mean."""


def rude(url: str, until: threading.Event, slow: bool) -> None:
    """Asks like anybody else, then hangs up, or takes the answer byte by byte."""
    parts = urlsplit(url)
    body = json.dumps({"data": ["Sales fell.", ""]})
    head = f"POST /gradio_api/call/compare HTTP/1.1\r\nHost: {parts.netloc}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    while not until.is_set():
        try:
            with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
                connection.sendall((head + body[: len(body) if slow else 5]).encode())
                for _ in range(50 if slow else 1):
                    if until.wait(0.1) or not slow or not connection.recv(1):
                        break
        except OSError:
            # Whoever is rude is hung up on at times; what counts is what the others get.
            continue


def reading(ask: Ask, number: int) -> Ask:
    """A user who reads an answer before asking again."""
    draw = random.Random(number)

    def asked(text: str) -> dict[str, list[float]]:
        time.sleep(draw.uniform(0, 2 * READING_SECONDS))
        return ask(text)

    return asked


def crowd(setting: Setting) -> Tally:
    """Users who wait for their answers and compare them, beside some who are rude."""
    tally = Tally()
    questions = texts(128)
    with own_app(None) as url:
        (alone,) = app_asks(url, 1)
        expected = [alone(text) for text in questions]
        users = [reading(ask, number) for number, ask in enumerate(app_asks(url, USERS))]
        over = threading.Event()
        others = [
            threading.Thread(target=rude, args=(url, over, number % 2 == 0)) for number in range(6)
        ]
        for other in others:
            other.start()
        try:
            found = closed_loop(users, questions, setting.users_seconds)
        finally:
            over.set()
        bad, _ = wrong(found["answers"], expected, len(questions))
        time.sleep(0.2)
        still = alone(questions[0]) == expected[0]
    tally.tried = len(found["answers"]) + len(found["errors"])
    tally.failures += ["an answer of another question"] * bad + found["errors"]
    tally.check(still, "answers otherwise afterwards")
    return tally
