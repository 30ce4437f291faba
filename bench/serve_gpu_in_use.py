"""The app's engine on a GPU while it warms up: how long answers take, and if they are right."""

from __future__ import annotations

import json
import logging
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.gpu_models import (
    GPU,
    MAX_LENGTH,
    TOKENS,
    make_decoder,
    quantize_layers,
    without_adapters,
)
from finsent.config import Precision
from finsent.engines.graph_engine import GraphEngine
from finsent.engines.torch_engine import TorchEngine
from finsent.models.adapter_files import Adapter
from finsent.models.backbones import Backbone

log = logging.getLogger("bench")


class Asking:
    """Two threads that ask an engine without a pause, every answer compared with the expected one.

    expected: scores by arm and number of the text.
    """

    def __init__(
        self, engine: GraphEngine, texts: list[list[int]], expected: dict[tuple[str, int], Any]
    ) -> None:
        self._engine, self._texts, self._expected = engine, texts, expected
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._started = time.perf_counter()
        self._answers: dict[str, list[tuple[int, float, float]]] = {}
        self._first: dict[str, float] = {}
        self._errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._ask, args=(seed,), name=f"asking {seed}", daemon=True)
            for seed in (0, 1)
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, seed: int) -> None:
        turn = random.Random(seed)
        places = list(self._expected)
        try:
            while not self._done.is_set():
                arm, n = turn.choice(places)
                stage = self._engine.description.partition("CUDA graphs ")[2].strip("()")
                before = time.perf_counter()
                found, goal = self._engine.scores(arm, [self._texts[n]]), self._expected[arm, n]
                now = time.perf_counter()
                difference = float(abs(found - goal).max() / abs(goal).max())
                with self._lock:
                    self._first.setdefault(stage, now - self._started)
                    answer = (len(self._texts[n]), (now - before) * 1000, difference)
                    self._answers.setdefault(stage, []).append(answer)
        except Exception as error:
            log.exception("asking failed")
            with self._lock:
                self._errors.append(f"{type(error).__name__}: {error}"[:500])

    def end(self) -> None:
        """Tells the threads to stop; one that does not is an error of the report."""
        self._done.set()
        for thread in self._threads:
            thread.join(5)
            if thread.is_alive():
                self._errors.append(f"{thread.name} is stuck")

    def report(self) -> dict[str, Any]:
        """By the engine's own words on how warm it is: times with both threads asking."""
        with self._lock:
            answers = {stage: list(found) for stage, found in self._answers.items()}
            first, errors = dict(self._first), list(self._errors)
        return {
            "errors": errors,
            "stages": {
                stage: {
                    "first_answer_s": round(first[stage], 1),
                    "answers": len(found),
                    "p50_ms": _median([ms for _, ms, _ in found]),
                    "slowest_ms": round(max(ms for _, ms, _ in found), 1),
                    f"p50_ms_{TOKENS}_tokens": _median([ms for n, ms, _ in found if n == TOKENS]),
                    "worst_difference": max(difference for *_, difference in found),
                }
                for stage, found in answers.items()
            },
        }


def _median(times_ms: list[float]) -> float | None:
    return round(statistics.median(times_ms), 2) if times_ms else None


class Events(logging.Handler):
    """What was logged since this was made: seconds and message."""

    def __init__(self) -> None:
        super().__init__()
        self._started = time.perf_counter()
        self.found: list[tuple[float, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps one."""
        self.found.append((round(time.perf_counter() - self._started, 2), record.getMessage()))


def in_use(
    decoder: Any,
    adapters: Mapping[str, Adapter],
    precision: Precision,
    report: dict[str, Any],
    write_results: Callable[[], None],
    *,
    tiny: bool,
) -> None:
    """The engine of the app: questions from two threads while another warms it up, every answer
    compared with transformers' forward on the same weights. report: filled every second, after
    which `write_results` is called."""
    activation = "gelu_pytorch_tanh"  # as load_backbone sets it
    source, plain = make_decoder(tiny, activation), make_decoder(tiny, activation)
    for one in (source, plain):
        one.load_state_dict(without_adapters(decoder))
    if precision == "nf4":
        source, plain = quantize_layers(source), quantize_layers(plain)
    log.info("models made")
    reference = TorchEngine(Backbone("phi-2", plain, None, precision, GPU, ""), "last")
    engine = GraphEngine(Backbone("phi-2", source, None, precision, GPU, ""), "last", MAX_LENGTH)
    reference.set_arms(adapters)
    engine.set_arms(adapters)
    draw = random.Random(3)
    texts = [[draw.randrange(51200) for _ in range(n)] for n in (9, 16, 23, 32, 38, 47, 60, 90)]
    expected = {
        (arm, n): reference.scores(arm, [texts[n]]) for arm in adapters for n in range(len(texts))
    }
    log.info("expected answers computed")
    logging.getLogger("finsent").addHandler(events := Events())
    ended = threading.Event()

    def warm_up() -> None:
        try:
            engine.warm_up()
        finally:
            ended.set()

    asking = Asking(engine, texts, expected)
    before = time.perf_counter()

    def write() -> None:
        report.update(
            description=engine.description,
            warm_up_ended=ended.is_set(),
            events=list(events.found),
            **asking.report(),
        )
        write_results()

    try:
        threading.Thread(target=warm_up, name="warm-up", daemon=True).start()
        while not ended.wait(1):
            write()
        report["warm_up_seconds"] = round(time.perf_counter() - before, 1)
        time.sleep(2)
    finally:
        asking.end()
        write()
        engine.close()
        logging.getLogger("finsent").removeHandler(events)
    log.info("%s", json.dumps({**report, "events": len(events.found)}, indent=1))
