"""Many users at once on one model: throughput, wrong or mixed-up answers, memory.

    python bench/load.py [--users 1 8 64] [--seconds 20] [--memory-requests 10000]
    python bench/load.py --url http://127.0.0.1:7860   # through a running app instead

Every user asks for a comparison of both arms, waits for the answer, and asks the next one. Texts
are the project's own sample sentences, each with a number of its own so that no two are equal.
Every answer is held against the one that the model gave for that text alone. Loopback only.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import statistics
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import psutil

from finsent.batching import BusyError
from finsent.data import load_dataset
from finsent.jobs import git_commit
from finsent.runs import write_json

FOLDER = ROOT / "artifacts/smollm2-135m/allagree"
ARMS = ("baseline", "dendritic")
TOLERANCE = 0.02
"""Largest difference of a probability between an answer in a batch and the one given alone:
OpenVINO adds in another order for other shapes, and 8-bit rounding can amplify it."""

Ask = Callable[[str], dict[str, list[float]]]
"""From a text to the probabilities of each arm."""


def texts(n: int) -> list[str]:
    """n different sentences of ordinary length."""
    base = [e.text for e in load_dataset("sample").examples]
    return [f"{base[i % len(base)]} (item {i // len(base)})" for i in range(n)]


def closed_loop(
    ask: Ask, questions: Sequence[str], users: int, seconds: float, limit: int | None = None
) -> dict[str, Any]:
    """`users` threads asking one question after the other until the time or the limit is over."""
    order = itertools.count()
    answers: list[tuple[int, dict[str, list[float]]]] = []
    waits: list[float] = []
    busy: list[int] = []
    errors: list[str] = []
    started = time.perf_counter()

    def user() -> None:
        while time.perf_counter() - started < seconds:
            number = next(order)
            if limit is not None and number >= limit:
                return
            before = time.perf_counter()
            try:
                answers.append((number, ask(questions[number % len(questions)])))
                waits.append(time.perf_counter() - before)
            except BusyError:
                busy.append(number)
            except Exception as error:
                # Counted and reported: an error is what this script looks for.
                errors.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=user) for _ in range(users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started
    return {
        "users": users,
        "answers": answers,
        "busy": len(busy),
        "errors": errors,
        "per_second": len(answers) / elapsed,
        "p50_ms": 1e3 * statistics.median(waits),
        "p95_ms": 1e3 * sorted(waits)[int(0.95 * (len(waits) - 1))],
    }


def wrong(answers: Sequence[Any], expected: Sequence[Any], n: int) -> tuple[int, float]:
    """Answers that are not their text's, and the largest difference of a probability."""
    bad, largest = 0, 0.0
    for number, found in answers:
        right = expected[number % n]
        difference = max(
            abs(p - q) for arm in right for p, q in zip(right[arm], found[arm], strict=True)
        )
        largest = max(largest, difference)
        bad += difference > TOLERANCE
    return bad, largest


def model_ask() -> tuple[Ask, str]:
    """The model in this process, and where it computes."""
    from finsent.classifier import Comparer

    comparer = Comparer.from_artifacts(FOLDER, 0, ARMS)
    comparer.engine.warm_up()

    def ask(text: str) -> dict[str, list[float]]:
        return {p.arm: list(p.probabilities) for p in comparer.compare(text).predictions}

    return ask, comparer.device_name


def app_ask(url: str) -> Ask:
    """A running app's /compare endpoint."""
    host = urllib.parse.urlsplit(url).hostname
    if host not in ("127.0.0.1", "localhost", "::1"):
        raise SystemExit(f"{url} is not this machine; this script loads nothing else")

    def ask(text: str) -> dict[str, list[float]]:
        call = urllib.request.Request(
            f"{url}/gradio_api/call/compare",
            json.dumps({"data": [text]}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(call, timeout=120) as response:
            event = json.load(response)["event_id"]
        with urllib.request.urlopen(
            f"{url}/gradio_api/call/compare/{event}", timeout=120
        ) as response:
            lines = response.read().decode().splitlines()
        kind, data = lines[-3] if len(lines) > 2 else lines[0], lines[-2]
        if "complete" not in kind:
            if "full" in data.lower() or "busy" in data.lower():
                raise BusyError(data)
            raise RuntimeError(f"{kind} {data}")
        answer = json.loads(data.removeprefix("data: "))[0]
        return {
            arm: [float(p) for p in said["raw_probabilities"].values()]
            for arm, said in answer["predictions"].items()
        }

    return ask


def measure(ask: Ask, users: Sequence[int], seconds: float) -> dict[str, Any]:
    """Throughput by number of users, every answer checked."""
    questions = texts(512)
    expected = [ask(text) for text in questions]
    result: dict[str, Any] = {}
    for n in users:
        found = closed_loop(ask, questions, n, seconds)
        answers = found.pop("answers")
        found["answered"] = len(answers)
        found["wrong"], found["largest_difference"] = wrong(answers, expected, len(questions))
        found["errors"] = sorted(set(found["errors"]))
        result[str(n)] = {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}
        print(n, result[str(n)], flush=True)
    return result


def memory(ask: Ask, requests: int, users: int = 64) -> dict[str, Any]:
    """Resident memory after each tenth of many requests; the first tenth warms up.

    The first six words of each text: what could leak does not depend on length, the time does.
    """
    questions = [" ".join(text.split()[:6]) for text in texts(512)]
    process = psutil.Process()
    sizes = []
    for _ in range(10):
        closed_loop(ask, questions, users, 1e9, requests // 10)
        sizes.append(round(process.memory_info().rss / 2**20, 1))
        print(f"{len(sizes)}0 %: {sizes[-1]} MiB", flush=True)
    return {
        "requests": requests,
        "users": users,
        "rss_mib": sizes,
        "growth_mib": sizes[-1] - sizes[0],
    }


def main() -> None:
    """Runs what was asked for and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--memory-requests", type=int, default=0)
    parser.add_argument("--url", help="of a running app on this machine")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/load.json")
    options = parser.parse_args()
    result = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.url:
        found = measure(app_ask(options.url), options.users, options.seconds)
        result["through_the_app"] = found
    else:
        ask, device = model_ask()
        result["device"] = device
        if options.memory_requests:
            result["memory"] = memory(ask, options.memory_requests)
        else:
            result["in_process"] = found = measure(ask, options.users, options.seconds)
            if {"1", "64"} <= set(found):
                ratio = found["64"]["per_second"] / found["1"]["per_second"]
                result["throughput_ratio_64_users"] = round(ratio, 3)
    result["n"] = sum(v["answered"] for v in result.get("in_process", {}).values())
    result["versions"] = {n: importlib.metadata.version(n) for n in ("openvino", "torch", "gradio")}
    result["command"] = "python bench/load.py; python bench/load.py --memory-requests 10000"
    result["commit"] = git_commit(ROOT)
    write_json(options.out, result)


if __name__ == "__main__":
    main()
