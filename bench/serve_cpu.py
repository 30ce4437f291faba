"""Serving on a CPU: latency beside transformers' eager fp32, what 8 bits cost, start-up time.

    python bench/serve_cpu.py latency    # one sentence at a time, all variants in turns
    python bench/serve_cpu.py limit      # what the cores could do at most, beside what is done
    python bench/serve_cpu.py batches    # many sentences, by tokens of a batch
    python bench/serve_cpu.py margin     # errors of 8 bits on validation sentences: CLOSE_CALL
    python bench/serve_cpu.py accuracy   # every AllAgree test sentence of seed 0, all arms
    python bench/serve_cpu.py startup    # python app.py to page and to first prediction
    python bench/serve_cpu.py checks     # what is checked of a run before it is served

Each part writes its keys into bench/results/serve_cpu.json. Real sentences come from
FINSENT_DATA_DIR.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from bench.load import app_asks, texts
from finsent.config import ARMS, TrainConfig
from finsent.data.registry import load_dataset, make_split
from finsent.engines.openvino_engine import CLOSE_CALL, OpenVinoEngine
from finsent.engines.torch_engine import TorchEngine
from finsent.machine.timing import time_interleaved
from finsent.models.adapter_files import load_adapter
from finsent.models.backbones import load_backbone
from finsent.models.presets import preset
from finsent.models.tokenization import FileTokenizer, token_batches
from finsent.models.weights import default_cache_dir, folder_sha256
from finsent.results.calibration import softmax
from finsent.results.manifest import check_run, checksums_of
from finsent.results.provenance import git_commit
from finsent.results.runs import Run, find_runs, read_json, write_json

RESULTS = ROOT / "bench/results/serve_cpu.json"
SENTENCES = 40
ROUNDS = 2
WAITING = 64
BATCH_TOKENS = (256, 512, 1024, 4096)
LARGE = 2048
"""Rows and columns of a product large enough to run at full speed."""


class Models:
    """The same arms on transformers' eager fp32 and on OpenVINO."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.runs = [r for r in find_runs(ROOT / "artifacts") if _chosen(r, seeds)]
        config = TrainConfig.from_dict(self.runs[0].config["config"])
        folder = Path(preset("smollm2-135m").source(None))
        self.tokenize = FileTokenizer(folder, config.longest, config.prompt_suffix, config.copies)
        adapters = {
            f"{run.arm} {run.seed}": load_adapter(run.folder / "adapter.safetensors")
            for run in self.runs
        }
        cpu = torch.device("cpu")
        base = load_backbone("smollm2-135m", "fp32", cpu, depth=config.depth)
        self.eager = TorchEngine(base, config.pooling)
        make = partial(
            OpenVinoEngine,
            folder,
            folder_sha256(folder),
            pooling=config.pooling,
            depth=config.depth,
            cache=default_cache_dir() / "openvino",
            quick="int8",
        )
        self.openvino: OpenVinoEngine = make()
        for engine in (self.eager, self.openvino):
            engine.set_arms(adapters)
            engine.warm_up()

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return [ids for ids, _ in self.tokenize(texts)]


def _chosen(run: Run, seeds: Sequence[int]) -> bool:
    return (run.backbone, run.dataset) == ("smollm2-135m", "allagree") and run.seed in seeds


def latency() -> dict[str, Any]:
    """Median time of one sentence, eager and OpenVINO in turns, on AllAgree test sentences."""
    models = Models([0])
    data = load_dataset("allagree")
    test = make_split(data, 0).test[:SENTENCES]
    ids = models.ids([data.examples[i].text for i in test])
    calls: dict[str, Callable[[], object]] = {}

    def one_by_one(score: Callable[[list[list[int]]], object]) -> Callable[[], object]:
        turns = itertools.cycle(ids)
        return lambda: score([next(turns)])

    for arm in ("baseline", "dendritic"):
        name = f"{arm} 0"
        calls[f"eager fp32 {arm}"] = one_by_one(partial(models.eager.scores, name))
        calls[f"openvino int8 {arm}"] = one_by_one(partial(models.openvino.scores, name))
        exact = partial(models.openvino.scores_in, name, quick=False)
        calls[f"openvino fp32 {arm}"] = one_by_one(exact)
    stats = time_interleaved(calls, repeats=ROUNDS * len(ids), warmup=len(ids) // 4, seed=0)
    p50 = {name: s.p50_ms for name, s in stats.items()}
    return {
        "speedup_vs_eager_fp32": p50["eager fp32 baseline"] / p50["openvino fp32 baseline"],
        "speedup_vs_eager_fp32_int8": p50["eager fp32 baseline"] / p50["openvino int8 baseline"],
        "dendritic_p50_ratio": p50["openvino fp32 dendritic"] / p50["openvino fp32 baseline"],
        "p50_ms": p50,
        "p95_ms": {name: s.p95_ms for name, s in stats.items()},
        "tokens_median": float(np.median([len(i) for i in ids])),
        "n": ROUNDS * len(ids),
    }


def accuracy() -> dict[str, Any]:
    """Labels and probabilities against eager fp32."""
    models = Models([0])
    data = load_dataset("allagree")
    same = same_by_rule = checked = close = 0
    worst = {"rule": 0.0, "int8": 0.0, "fp32": 0.0}
    differences: list[float] = []
    right = {"eager": 0, "int8": 0, "rule": 0}
    flips = 0
    for run in models.runs:
        split = make_split(data, run.seed)
        name = f"{run.arm} {run.seed}"
        labels = np.array([data.examples[i].label for i in split.test])
        ids = models.ids([data.examples[i].text for i in split.test])
        eager = _scores(partial(models.eager.scores, name), ids)
        int8 = _scores(partial(models.openvino.scores_in, name, quick=True), ids)
        exact = _scores(partial(models.openvino.scores_in, name, quick=False), ids)
        before = models.openvino.close_calls
        rule = _scores(partial(models.openvino.scores, name), ids)
        close += models.openvino.close_calls - before
        checked += len(ids)
        same += int((exact.argmax(1) == eager.argmax(1)).sum())
        same_by_rule += int((rule.argmax(1) == eager.argmax(1)).sum())
        flips += int((int8.argmax(1) != eager.argmax(1)).sum())
        for key, found in (("rule", rule), ("int8", int8), ("fp32", exact)):
            difference = np.abs(softmax(found) - softmax(eager)).max(axis=1)
            worst[key] = max(worst[key], float(difference.max()))
            if key == "rule":
                differences += difference.tolist()
        for key, found in (("eager", eager), ("int8", int8), ("rule", rule)):
            right[key] += int((found.argmax(1) == labels).sum())
        print(name, checked, same, flips, worst, close, flush=True)
    return {
        "argmax_agreement": same / checked,
        "argmax_agreement_int8": same_by_rule / checked,
        "accuracy_n": checked,
        "largest_probability_difference": worst,
        "probability_difference_p50_p99": [float(np.quantile(differences, q)) for q in (0.5, 0.99)],
        "labels_changed_by_int8_alone": flips,
        "accuracy": {key: n / checked for key, n in right.items()},
        "close_calls_share": close / checked,
        "close_call_nats": CLOSE_CALL["int8"],
    }


def margin() -> dict[str, Any]:
    """How far 8 bits move the gap between the two best classes, on every third validation sentence
    of each AllAgree run: CLOSE_CALL is set from these, before `accuracy` reads a test sentence."""
    models = Models(range(5))
    data = load_dataset("allagree")
    errors: list[float] = []
    for run in models.runs:
        name = f"{run.arm} {run.seed}"
        validation = make_split(data, run.seed).validation[::3]
        ids = models.ids([data.examples[i].text for i in validation])
        exact, int8 = (
            _scores(partial(models.openvino.scores_in, name, quick=quick), ids)
            for quick in (False, True)
        )
        errors += _gap_errors(int8, exact).tolist()
        print(name, len(errors), max(errors), flush=True)
    return {
        "gap_errors_on_validation_n": len(errors),
        "largest_gap_error_on_validation_nats": max(errors),
        "gap_error_on_validation_p99_nats": float(np.quantile(errors, 0.99)),
    }


def limit() -> dict[str, Any]:
    """The most that batching could bring: the arithmetic of a sentence at the speed of the fastest
    large fp32 product here, beside what a sentence alone takes, both in turns."""
    models = Models([0])
    data = load_dataset("allagree")
    ids = models.ids([data.examples[i].text for i in make_split(data, 0).test[:SENTENCES]])
    weights = sum(
        p.numel()
        for name, p in models.eager.backbone.decoder.layers.named_parameters()
        if name.endswith("proj.weight")
    )
    multiplications = weights * float(np.mean([len(i) for i in ids]))
    square = torch.randn(LARGE, LARGE)
    turns = itertools.cycle(ids)
    stats = time_interleaved(
        {
            "product": lambda: torch.mm(square, square),
            "sentence": lambda: models.openvino.scores_in("baseline 0", [next(turns)], quick=False),
        },
        repeats=ROUNDS * len(ids),
        warmup=len(ids) // 4,
        seed=0,
    )
    at_most = multiplications / LARGE**3 * stats["product"].mean_ms
    return {
        "fp32_gflops_of_a_large_product": 2e-6 * LARGE**3 / stats["product"].mean_ms,
        "sentence_ms_mean": stats["sentence"].mean_ms,
        "sentence_ms_at_that_speed": at_most,
        "throughput_ratio_at_most": stats["sentence"].mean_ms / at_most,
    }


def batches() -> dict[str, Any]:
    """Milliseconds a sentence when many wait, by the most tokens that go into one batch."""
    models = Models([0])
    ids = models.ids(texts(WAITING))
    lengths = [len(i) for i in ids]

    def all_of_them(tokens: int) -> None:
        for batch in token_batches(lengths, tokens):
            models.openvino.scores_in("baseline 0", [ids[i] for i in batch], quick=False)

    calls = {str(tokens): partial(all_of_them, tokens) for tokens in (1, *BATCH_TOKENS)}
    stats = time_interleaved(calls, repeats=5, warmup=1, seed=0)
    return {
        "ms_per_sentence_by_batch_tokens": {
            "one by one" if name == "1" else name: s.p50_ms / WAITING for name, s in stats.items()
        }
    }


def _scores(score: Callable[[list[list[int]]], Any], ids: list[list[int]]) -> Any:
    result = np.empty((len(ids), 3), np.float32)
    for batch in token_batches([len(i) for i in ids], 1024):
        result[batch] = score([ids[i] for i in batch])
    return result


def _gap_errors(found: Any, expected: Any) -> Any:
    """Error of the difference between the two best classes, in nats, for every text."""
    rows = np.arange(len(found))
    order = np.argsort(found, axis=1)
    first, second = order[:, -1], order[:, -2]
    gap = found[rows, first] - found[rows, second]
    return np.abs(gap - (expected[rows, first] - expected[rows, second]))


def startup() -> dict[str, Any]:
    """Seconds from starting `python app.py` to its page, and to an answer asked for at once."""
    pages, answers = [], []
    for _ in range(3):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for(url)
            pages.append(time.perf_counter() - started)
            app_asks(url, 1)[0]("Operating profit rose by a fifth.")
            answers.append(time.perf_counter() - started)
        finally:
            process.terminate()
            process.wait()
        print(pages[-1], answers[-1], flush=True)
    return {
        "seconds_to_ui": float(np.median(pages)),
        "seconds_to_first_prediction": float(np.median(answers)),
        "startup_seconds_each": [
            [round(a, 2), round(b, 2)] for a, b in zip(pages, answers, strict=True)
        ],
    }


def checks() -> dict[str, Any]:
    """Milliseconds of the checks that every run passes before it is served, the median of nine."""
    sums = checksums_of(ROOT / "artifacts")
    found: dict[str, list[float]] = {}
    for run in find_runs(ROOT / "artifacts"):
        taken = []
        for _ in range(9):
            started = time.perf_counter()
            check_run(run, sums)
            taken.append(1e3 * (time.perf_counter() - started))
        found.setdefault(run.backbone, []).append(float(np.median(taken)))
    return {"checks_ms_slowest_run": {name: round(max(ms), 1) for name, ms in found.items()}}


def _wait_for(url: str) -> None:
    for _ in range(1200):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    raise SystemExit(f"nothing answers at {url}")


def main() -> None:
    """Runs one part and adds its keys to the results."""
    parts = {f.__name__: f for f in (latency, limit, batches, margin, accuracy, startup, checks)}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=parts)
    part = parser.parse_args().part
    about = {
        "device": f"{_cpu()}, {len(os.sched_getaffinity(0))} threads",
        "arms": list(ARMS),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("openvino", "torch", "transformers", "gradio")
        },
        "command": f"python bench/serve_cpu.py {{{','.join(parts)}}}",
        "commit": git_commit(ROOT),
    }
    result = read_json(RESULTS) if RESULTS.exists() else {}
    # Parts are measured at different times: what is said of the file holds for those not in `made`.
    made = {**result.get("made", {}), part: about}
    result = {**about, **result, **parts[part](), "made": made}
    write_json(RESULTS, result)
    print(json.dumps(result, indent=1))


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))


if __name__ == "__main__":
    main()
