"""Many users at once: throughput, wrong or mixed-up answers, memory.

    python bench/load.py model              # the model alone, in this process: 1, 8 and 64 users
                                            # (--model smollm2-135m/allagree: another one)
    python bench/load.py app                # the running app, asked by gradio_client: 1 and 64
    python bench/load.py memory             # 10,000 requests through the app, with a tiny model
    python bench/load.py served             # the same of the model that is served, all lengths
    python bench/load.py shapes             # the model's memory by the number of shapes it has met

Every user asks for a comparison of both arms, waits for the answer, and asks the next one. Texts
are the project's own sample sentences, each with a number of its own so that no two are equal.
Every answer is held against the one that was given for that text alone. `memory` is about what the
page and its queue keep of each call, not about the model, hence the tiny one, trained for it in a
minute; `shapes` is about the model: what it keeps of every new pair of texts in a batch and tokens
of the longest. Loopback only.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import psutil
from gradio_client import Client

from bench.screenshots import own_app
from finsent.data.registry import load_dataset
from finsent.results.provenance import git_commit
from finsent.results.runs import read_json, write_json
from finsent.serving.batching import BusyError

FOLDER = ROOT / "artifacts/smollm2-135m/allagree"
ARMS = ("baseline", "dendritic")
TOLERANCE = 0.02
"""Largest difference of a probability between an answer in a batch and the one given alone:
OpenVINO adds in another order for other shapes, and 8-bit rounding can amplify it."""
SHAPES_DEPTH = 2

Ask = Callable[[str], dict[str, list[float]]]
"""From a text to the probabilities of each arm."""


def texts(n: int) -> list[str]:
    """n different sentences of ordinary length."""
    base = [e.text for e in load_dataset("sample").examples]
    return [f"{base[i % len(base)]} (item {i // len(base)})" for i in range(n)]


def closed_loop(
    asks: Sequence[Ask], questions: Sequence[str], seconds: float, limit: int | None = None
) -> dict[str, Any]:
    """A thread for each of `asks`, one question after the other until time or limit is over."""
    order = itertools.count()
    answers: list[tuple[int, dict[str, list[float]]]] = []
    waits: list[float] = []
    busy: list[int] = []
    errors: list[str] = []
    started = time.perf_counter()

    def user(ask: Ask) -> None:
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

    threads = [threading.Thread(target=user, args=(ask,)) for ask in asks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started
    return {
        "users": len(asks),
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


def model_ask(name: str) -> tuple[Ask, str]:
    """The model of that folder below artifacts/ in this process, and where it computes."""
    from finsent.serving.comparer import Comparer

    comparer = Comparer.from_artifacts(ROOT / "artifacts" / name, 0, ARMS)
    comparer.engine.warm_up()

    def ask(text: str) -> dict[str, list[float]]:
        return {p.arm: list(p.probabilities) for p in comparer.compare(text).predictions}

    return ask, comparer.device_name


def app_asks(url: str, users: int) -> list[Ask]:
    """A gradio_client for each user of a running app's /compare endpoint."""
    with ThreadPoolExecutor(8) as pool:
        clients = list(
            pool.map(
                lambda _: Client(url, verbose=False, httpx_kwargs={"timeout": 300}), range(users)
            )
        )

    def ask(client: Client, text: str) -> dict[str, list[float]]:
        try:
            answer = client.predict(text, api_name="/compare")
        except Exception as error:
            if "full" in str(error).lower() or "busy" in str(error).lower():
                raise BusyError(str(error)) from error
            raise
        return {
            arm: [float(p) for p in said["raw_probabilities"].values()]
            for arm, said in answer["predictions"].items()
        }

    return [lambda text, client=client: ask(client, text) for client in clients]  # type: ignore[misc]


def plain_ask(url: str) -> Ask:
    """The same endpoint over plain HTTP: gradio_client takes more of a small machine than the app
    does. Each call is a new session to the app, as from a program that comes once."""

    def ask(text: str) -> dict[str, list[float]]:
        call = urllib.request.Request(
            f"{url}/gradio_api/call/compare",
            json.dumps({"data": [text]}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(call, timeout=120) as response:
            event = json.load(response)["event_id"]
        with urllib.request.urlopen(f"{call.full_url}/{event}", timeout=120) as response:
            said = response.read().decode()
        if "event: complete" not in said:
            raise RuntimeError(said)
        return {}

    return ask


def measure(
    asks_of: Callable[[int], Sequence[Ask]], users: Sequence[int], seconds: float, n_texts: int
) -> dict[str, Any]:
    """Throughput by number of users, every answer checked."""
    questions = texts(n_texts)
    (alone,) = asks_of(1)
    expected = [alone(text) for text in questions]
    result: dict[str, Any] = {}
    for n in users:
        found = closed_loop(asks_of(n), questions, seconds)
        answers = found.pop("answers")
        found["answered"] = len(answers)
        found["wrong"], found["largest_difference"] = wrong(answers, expected, len(questions))
        found["errors"] = sorted(set(found["errors"]))
        result[f"users_{n}"] = {
            k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()
        }
        print(n, result[f"users_{n}"], flush=True)
    return result


def of_all_lengths(n: int) -> list[str]:
    """n texts of 1 to 90 words."""
    words = " ".join(texts(64)).split()
    draw = random.Random(0)
    return [
        " ".join(words[start : start + draw.randint(1, 90)])
        for start in (draw.randrange(len(words) - 90) for _ in range(n))
    ]


def memory(requests: int, users: int, *, tiny: bool) -> dict[str, Any]:
    """Resident memory of the app's process after each tenth of many requests, and the number of
    answers and of errors. tiny: of short texts and a tiny model, instead of the app as it is."""
    if not tiny:
        return grown(None, of_all_lengths(2048), requests, users)
    questions = [" ".join(text.split()[:6]) for text in texts(512)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train_models.py", "train", "--backbone", "tiny-phi"]
        command += ["--dataset", "sample", "--epochs", "2", "--arms", *ARMS]
        subprocess.run([*command, "--artifacts", folder], cwd=ROOT, check=True)
        return {**grown(Path(folder), questions, requests, users), "model": "tiny-phi"}


def grown(
    artifacts: Path | None, questions: Sequence[str], requests: int, users: int
) -> dict[str, Any]:
    """Resident memory of an app over these artifacts, which is asked so many times."""
    with own_app(artifacts) as url:
        (server,) = psutil.Process().children()
        sizes, answered, errors = [], 0, set()
        for tenth in range(1, 11):
            asks = [plain_ask(url)] * users
            found = closed_loop(asks, questions, 1e9, requests // 10)
            answered += len(found["answers"])
            errors |= set(found["errors"])
            sizes.append(round(server.memory_info().rss / 2**20, 1))
            print(f"{tenth * requests // 10}: {sizes[-1]} MiB", flush=True)
    return {
        "requests": requests,
        "answered": answered,
        "errors": sorted(errors),
        "users": users,
        "rss_mib": {f"after_{(i + 1) * requests // 10}": size for i, size in enumerate(sizes)},
        "growth_mib_last_half": round(sizes[-1] - sizes[4], 1),
    }


def shapes(kernels: int | None) -> dict[str, Any]:
    """Resident memory of this process after each tenth of many shapes in random order.

    Of the first two blocks of the model: their kernels are those of all others, in a tenth of the
    time. kernels: how many OpenVINO and oneDNN keep; None for what the engine sets.
    """
    from finsent.engines import openvino_engine
    from finsent.models.adapter_files import load_adapter
    from finsent.models.presets import preset

    if kernels is not None:
        openvino_engine.KERNELS_KEPT = kernels
    run = FOLDER / "dendritic/seed-0"
    adapter = load_adapter(run / "adapter.safetensors")
    first = {k: v for k, v in adapter.layers.items() if int(k.split(".")[1]) < SHAPES_DEPTH}
    engine = openvino_engine.OpenVinoEngine(
        Path(preset("smollm2-135m").source(None)),
        "not checked here",
        pooling=read_json(run / "config.json")["config"]["pooling"],
        depth=SHAPES_DEPTH,
    )
    engine.set_arms({"dendritic": replace(adapter, layers=first)})
    process = psutil.Process()

    def ask(shape: tuple[int, int]) -> None:
        n, length = shape
        engine.scores("dendritic", [[7] * length] * n)

    # Buffers grow to the largest batch at once; what comes on top is kept by shape.
    ask((12, 40))
    before = round(process.memory_info().rss / 2**20, 1)
    every = list(itertools.product(range(1, 13), range(4, 41)))
    random.Random(0).shuffle(every)
    tenth = len(every) // 10
    grown = []
    for number, shape in enumerate(every[: 10 * tenth], 1):
        ask(shape)
        if number % tenth == 0:
            grown.append(round(process.memory_info().rss / 2**20 - before, 1))
            print(f"{number} shapes: +{grown[-1]} MiB", flush=True)
    return {
        "shapes": 10 * tenth,
        "blocks": SHAPES_DEPTH,
        "rss_before_mib": before,
        "grown_mib": {f"after_{(i + 1) * tenth}": size for i, size in enumerate(grown)},
        "growth_mib_last_half": round(grown[-1] - grown[4], 1),
    }


def main() -> None:
    """Runs what was asked for and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("model", "app", "memory", "served", "shapes"))
    parser.add_argument("--model", default="mpnet-base/news", help="folder below artifacts/")
    parser.add_argument("--users", type=int, nargs="+")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--kernels", type=int, help="shapes: kernels kept; default: the engine's")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/load.json")
    options = parser.parse_args()
    result = json.loads(options.out.read_text()) if options.out.exists() else {}
    load = round(os.getloadavg()[0], 2)
    if options.what == "model":
        ask, device = model_ask(options.model)
        found = measure(lambda n: [ask] * n, options.users or [1, 8, 64], options.seconds, 512)
        found |= {"device": device, "load_before": load}
        if {"users_1", "users_64"} <= set(found):
            ratio = found["users_64"]["per_second"] / found["users_1"]["per_second"]
            found["throughput_ratio_64_users"] = round(ratio, 3)
        result.setdefault("in_process", {})[options.model] = found
    elif options.what == "app":
        with own_app(None) as url:
            found = measure(
                lambda n: app_asks(url, n), options.users or [1, 64], options.seconds, 128
            )
        result["through_the_app"] = found | {"load_before": load}
    elif options.what == "shapes":
        kept = "as_shipped" if options.kernels is None else f"{options.kernels}_kernels_kept"
        result.setdefault("memory_by_shape", {})[kept] = shapes(options.kernels)
    else:
        kind = "memory" if options.what == "memory" else "memory_of_the_served_model"
        users = (options.users or [8])[0]
        result[kind] = memory(options.requests, users, tiny=options.what == "memory")
    result["n"] = sum(
        of_users["answered"]
        for found in (*result.get("in_process", {}).values(), result.get("through_the_app", {}))
        for of_users in found.values()
        if isinstance(of_users, dict)
    )
    result["device"] = f"CPU, {len(os.sched_getaffinity(0))} threads"
    result["versions"] = {n: importlib.metadata.version(n) for n in ("openvino", "torch", "gradio")}
    result["command"] = "python bench/load.py {model,app,memory,served,shapes}"
    result["commit"] = git_commit(ROOT)
    write_json(options.out, result)


if __name__ == "__main__":
    main()
