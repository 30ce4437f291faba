"""Serving latency and throughput on one GPU, Phi-2 geometry, random weights made on the GPU.

    python bench/serve_gpu.py [--out bench/results/serve_gpu.json] [--parts few,eager]

Timing does not depend on the values of the weights. Every variant is timed in the same run, one
sentence at a time, from token ids on the host to scores on the host; all variants take turns in
random order. A variant that fails is recorded with its error and the others go on. What is done,
and when, goes to stderr. A part that takes longer than its limit is ended, with the stacks of all
threads on stderr; if it cannot be, the process is. Results are written after every part, those of
the engine in use every second.

Keys: p50_ms_eager_nf4_lora (transformers' model, bitsandbytes 4-bit layers, LoRA unmerged),
p50_ms_bf16 and p50_ms_nf4 (the fastest variant of finsent.models.fused_decoder or
finsent.engines.few_rows at that precision, baseline arm),
dendritic_p50_ratio (dendritic / baseline p50 of the variant behind p50_ms_bf16), and
sentences_per_second (scoring a corpus, bf16, token ids in, scores out).
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.metadata
import json
import logging
import random
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor

from bench.gpu_models import (
    CLASSES,
    GPU,
    MAX_LENGTH,
    TOKENS,
    corpus_lengths,
    make_adapter,
    make_decoder,
    quantize_layers,
    reference_call,
    without_adapters,
)
from bench.serve_gpu_in_use import in_use
from finsent.config import Precision
from finsent.engines.cuda_graphs import GraphedForward, compiled, pad
from finsent.engines.few_rows import FewRows
from finsent.machine.timing import LatencyStats, time_interleaved
from finsent.models.fused_decoder import FusedArm, FusedDecoder
from finsent.models.tokenization import token_batches
from finsent.results.provenance import git_commit

REPEATS = 200
EAGER_REPEATS = 40
GRACE = 15
"""Seconds after a part's limit until the process is ended."""
log = logging.getLogger("bench")
Call = Callable[[], Tensor]


class Bench:
    """What the parts share, and what they found. One variant's failure does not stop the rest."""

    def __init__(self, tiny: bool, out: Path, command: str) -> None:
        self.tiny, self._out = tiny, out
        draw = random.Random(1)
        self.sentence = [[draw.randrange(51200) for _ in range(TOKENS)]]
        self.decoder = make_decoder(tiny)
        self.adapters = {
            "baseline": make_adapter(self.decoder, 0),
            "dendritic": make_adapter(self.decoder, 1),
        }
        self._eager = reference_call(self.decoder, self.adapters)
        self._expected = {arm: self._eager(arm, self.sentence).float() for arm in self.adapters}
        self._fused: dict[str, tuple[FusedDecoder, dict[str, FusedArm]]] = {}
        self.calls: dict[str, Call] = {}
        self.eager_calls: dict[str, Call] = {}
        self.stats: dict[str, LatencyStats] = {}
        self.result: dict[str, Any] = {
            "failures": {},
            "seconds": {},
            "relative_difference_from_eager_bf16": {},
        }
        self._about = {
            "geometry": "tiny" if tiny else "Phi-2, random weights, LoRA r=8 on q and v",
            "tokens": TOKENS,
            "n": REPEATS,
            "n_eager": EAGER_REPEATS,
            "device": torch.cuda.get_device_name(),
            "versions": {
                n: _version(n) for n in ("torch", "transformers", "bitsandbytes", "triton")
            },
            "command": command,
            "commit": git_commit(ROOT),
        }

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Errors inside are recorded under `name`, as is the time it took. A part that is too
        long ends as a whole."""
        before = time.perf_counter()
        log.info("%s ...", name)
        try:
            yield
            torch.cuda.synchronize()
        except Exception as error:
            # The point of this bench: one variant's failure is a result, not the end.
            self.result["failures"][name] = f"{type(error).__name__}: {error}"[:500]
            traceback.print_exc()
            if isinstance(error, TimeoutError) and not name.startswith("part "):
                raise
        finally:
            self.result["seconds"][name] = round(time.perf_counter() - before, 1)
            log.info("%s: %s s", name, self.result["seconds"][name])

    def fused(self, precision: str) -> tuple[FusedDecoder, dict[str, FusedArm]]:
        """The decoder fused at a precision, with its arms; made on the first call."""
        if precision not in self._fused:
            # Fusing takes the weights out of the decoder: a copy.
            source = make_decoder(self.tiny)
            source.load_state_dict(without_adapters(self.decoder))
            if precision == "nf4":
                source = quantize_layers(source)
            fused = FusedDecoder(source, "last", MAX_LENGTH)
            arms = {arm: fused.arm(adapter) for arm, adapter in self.adapters.items()}
            self._fused[precision] = fused, arms
        return self._fused[precision]

    def add(self, name: str, call: Call, *, eager: bool = False) -> None:
        """A variant to be timed, its first answer compared with eager bf16."""
        with self.attempt(name):
            expected = self._expected[name.rsplit(" ", 1)[1]]
            found = call().float()
            if not torch.isfinite(found).all():
                raise RuntimeError("scores are not finite")
            difference = float((found - expected).norm() / expected.norm())
            differences = self.result.setdefault("relative_difference_from_eager_bf16", {})
            differences[name] = round(difference, 5)
            (self.eager_calls if eager else self.calls)[name] = call

    def add_graphed(self, name: str, precision: str, forward: Callable[..., Any]) -> None:
        """Both arms of a variant. forward: from a decoder and an arm to ids, last -> scores."""
        with self.attempt(f"{name}: record"):
            decoder, arms = self.fused(precision)
            for arm, layout in arms.items():
                model = GraphedForward(
                    forward(decoder, layout), GPU, lengths=(TOKENS,), batches=(1,)
                )
                model.record((1, TOKENS))
                self._compare(f"{name} {arm}", model, partial(decoder, arm=layout))
                self.add(f"{name} {arm}", partial(model, self.sentence))

    @torch.inference_mode()
    def _compare(self, name: str, model: GraphedForward, plain: Callable[..., Tensor]) -> None:
        """With PyTorch's own kernels on the same weights, for texts of several lengths."""
        differences = []
        for length in (TOKENS, TOKENS - 1, 7):
            texts = [self.sentence[0][:length]]
            rows = pad(texts, length).to(GPU)
            expected = plain(rows[:, :-1], rows[:, -1]).float().cpu()
            differences.append(float((model(texts) - expected).norm() / expected.norm()))
        found = self.result.setdefault("relative_difference_from_fused", {})
        found[name] = round(max(differences), 5)

    def add_eager(self, precision: str) -> None:
        """transformers' own forward."""
        call = self._eager
        if precision == "nf4":
            quantized = make_decoder(self.tiny)
            quantized.load_state_dict(without_adapters(self.decoder))
            call = reference_call(quantize_layers(quantized), self.adapters)
        for arm in self.adapters:
            self.add(f"eager {precision} {arm}", partial(call, arm, self.sentence), eager=True)

    def time_all(self) -> None:
        """Every variant that is there, in turns; transformers' forward once, among itself."""
        for calls, repeats in ((self.calls, REPEATS), (self.eager_calls, EAGER_REPEATS)):
            if calls:
                self.stats |= time_interleaved(
                    calls, repeats=repeats, warmup=5, seed=0, synchronize=torch.cuda.synchronize
                )
        self.eager_calls = {}

    def write(self) -> None:
        """Everything found so far."""
        speeds = self.result.get("corpus_sentences_per_second", {})
        everything = {
            **summary(self.stats, speeds),
            "p50_ms": {name: round(s.p50_ms, 3) for name, s in self.stats.items()},
            "p95_ms": {name: round(s.p95_ms, 3) for name, s in self.stats.items()},
            **self.result,
            "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
            **self._about,
        }
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._out.write_text(json.dumps(everything, indent=2) + "\n", encoding="utf-8")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@torch.inference_mode()
def score_corpus(forward: Any, arm: Any, texts: list[list[int]], max_tokens: int) -> float:
    """Sentences a second, batches by length, each padded to its longest; results end on the host.

    The next batch is prepared while the GPU works on this one.
    """
    batches = [list(b) for b in token_batches([len(t) for t in texts], max_tokens)]
    result = torch.empty(len(texts), CLASSES)
    torch.cuda.synchronize()
    started = time.perf_counter()
    waiting = []
    for batch in batches:
        rows = pad([texts[i] for i in batch], max(len(texts[i]) for i in batch))
        inputs = rows.pin_memory().to(GPU, non_blocking=True)
        waiting.append((batch, forward(inputs[:, :-1], inputs[:, -1], arm)))
    for batch, scores in waiting:
        result[batch] = scores.float().cpu()
    torch.cuda.synchronize()
    elapsed = time.perf_counter() - started
    if not torch.isfinite(result).all():
        raise RuntimeError("scores are not finite")
    return len(texts) / elapsed


def summary(stats: dict[str, LatencyStats], speeds: dict[str, float]) -> dict[str, Any]:
    """The keys that the docs quote; None where every variant failed."""

    def fastest(precision: str) -> str | None:
        names = [
            n
            for n in stats
            if n.startswith((f"fused {precision}", f"few rows {precision}"))
            and n.endswith("baseline")
        ]
        return min(names, key=lambda n: stats[n].p50_ms, default=None)

    bf16, nf4 = fastest("bf16"), fastest("nf4")
    eager = stats.get("eager nf4 baseline")
    dendritic = None if bf16 is None else stats.get(bf16.replace("baseline", "dendritic"))
    ratio = None
    if bf16 is not None and dendritic is not None:
        ratio = round(dendritic.p50_ms / stats[bf16].p50_ms, 4)
    return {
        "p50_ms_eager_nf4_lora": None if eager is None else round(eager.p50_ms, 3),
        "p50_ms_bf16": None if bf16 is None else round(stats[bf16].p50_ms, 3),
        "p50_ms_bf16_variant": bf16,
        "p50_ms_nf4": None if nf4 is None else round(stats[nf4].p50_ms, 3),
        "p50_ms_nf4_variant": nf4,
        "dendritic_p50_ratio": ratio,
        "sentences_per_second": max(speeds.values(), default=None),
    }


def few_rows(bench: Bench, precision: str) -> None:
    """The kernels for few rows, as served."""
    bench.add_graphed(f"few rows {precision}", precision, FewRows)


def with_torch_compile(bench: Bench, precision: str) -> None:
    """Fused products with compiled element-wise kernels."""
    decoder, _ = bench.fused(precision)
    twin = compiled(decoder)
    bench.add_graphed(
        f"fused {precision}, compiled, graph", precision, lambda _, arm: partial(twin, arm=arm)
    )


def eager(bench: Bench) -> None:
    """transformers' own forward at both precisions."""
    for precision in ("bf16", "nf4"):
        bench.add_eager(precision)


def graph_time(model: Callable[[Tensor, Tensor], Any], ids: Tensor, last: Tensor) -> float:
    """Microseconds of one replay on the device, median of 15."""
    with torch.inference_mode():
        model(ids, last)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(ids, last)
        times = []
        for _ in range(18):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1000)
    return statistics.median(times[3:])


def rows_limit(bench: Bench) -> None:
    """Device time by number of rows: where the kernels for few rows stop paying."""
    decoder, arms = bench.fused("bf16")
    arm = arms["baseline"]
    forwards: dict[str, Callable[[Tensor, Tensor], Any]] = {
        "few rows": FewRows(decoder, arm),
        "compiled": partial(compiled(decoder), arm=arm),
    }
    found: dict[str, float] = {}
    for texts, length in ((1, 16), (1, 32), (1, 64), (2, 32), (1, 128), (4, 32)):
        ids = torch.randint(51200, (texts, length), device=GPU)
        last = torch.full((texts,), length - 1, device=GPU)
        for name, forward in forwards.items():
            label = f"{texts} x {length}, {name}"
            with bench.attempt(f"rows: {label}"):
                found[label] = round(graph_time(forward, ids, last), 1)
    bench.result["device_us_by_rows"] = found


def profile(bench: Bench) -> None:
    """Kernels of one answer of the fastest variant at each precision, both arms."""
    names = [name for name in bench.calls if name in bench.stats and "eager" not in name]
    for precision in ("bf16", "nf4"):
        of_it = [name for name in names if precision in name and name.endswith("baseline")]
        if not of_it:
            continue
        fastest = min(of_it, key=lambda n: bench.stats[n].p50_ms)
        for arm in bench.adapters:
            kernels_of(bench, fastest.replace("baseline", arm))


def kernels_of(bench: Bench, name: str) -> None:
    """Microseconds, calls and name of every kernel of one answer, the longest first."""
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        bench.calls[name]()
        torch.cuda.synchronize()
    rows = sorted(
        (
            (round(event.self_device_time_total, 1), event.count, event.key[:100])
            for event in profiler.key_averages()
            if event.self_device_time_total > 0
        ),
        reverse=True,
    )[:20]
    print(f"-- {name}: microseconds, calls, kernel")
    for row in rows:
        print(*row)
    bench.result.setdefault("kernels_us", {})[name] = rows


def corpus(bench: Bench) -> None:
    """Sentences a second by variant; the first pass of each warms up and is not counted."""
    draw = random.Random(2)
    texts = [[draw.randrange(51200) for _ in range(n)] for n in corpus_lengths()]
    fused, arms = bench.fused("bf16")
    speeds = bench.result.setdefault("corpus_sentences_per_second", {})
    forward = compiled(fused)
    for max_tokens in (4096, 8192, 16384):
        name = f"corpus, compiled, batches of {max_tokens} tokens"
        with bench.attempt(name):
            for _ in range(2):
                speeds[name] = round(score_corpus(forward, arms["baseline"], texts, max_tokens), 1)


def _in_use(bench: Bench, precision: Precision) -> None:
    report = bench.result.setdefault("in_use", {}).setdefault(precision, {})
    in_use(bench.decoder, bench.adapters, precision, report, bench.write, tiny=bench.tiny)


PARTS: dict[str, tuple[int, Callable[[Bench], None]]] = {
    "few": (40, partial(few_rows, precision="bf16")),
    "few-nf4": (40, partial(few_rows, precision="nf4")),
    "compiled": (45, partial(with_torch_compile, precision="bf16")),
    "eager": (30, eager),
    "in-use-nf4": (240, partial(_in_use, precision="nf4")),
    "in-use": (240, partial(_in_use, precision="bf16")),
    "corpus": (50, corpus),
    "profile": (20, profile),
    "rows": (40, rows_limit),
    "compiled-nf4": (30, partial(with_torch_compile, precision="nf4")),
}
"""Seconds, and what to do; the first in this order matter most."""
TIMED = {"few", "few-nf4", "compiled", "compiled-nf4", "eager"}
"""Parts that add variants, after which all are timed anew."""


def _too_long(*_: object) -> None:
    faulthandler.dump_traceback(all_threads=True)
    raise TimeoutError("longer than this part may take")


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """TimeoutError after that; the end of the process when nobody heeds it, a call of the driver
    for example. Both say where every thread was."""
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()


def main() -> None:
    """Runs the parts and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/serve_gpu.json")
    parser.add_argument("--tiny", action="store_true", help="two small blocks: tries the script")
    parser.add_argument("--parts", default=",".join(PARTS), help="of them, in this order")
    parser.add_argument("--seconds", type=float, default=140, help="no part starts after that")
    parser.add_argument("--limit", type=int, help="seconds for each part, in place of its own")
    options = parser.parse_args()
    logging.basicConfig(format="%(relativeCreated)8d ms  %(message)s", level=logging.INFO)
    logging.getLogger("finsent").setLevel(logging.DEBUG)
    started = time.perf_counter()
    torch.manual_seed(0)
    signal.signal(signal.SIGALRM, _too_long)
    command = f"python bench/serve_gpu.py --parts {options.parts}{' --tiny' * options.tiny}"
    bench = Bench(options.tiny, options.out, command)
    for name in options.parts.split(","):
        limit, part = PARTS[name]
        if time.perf_counter() - started > options.seconds:
            bench.result["failures"][name] = f"left out: {options.seconds:.0f} s had passed"
            continue
        bench.result["failures"][name] = "the process was ended while this part ran"
        bench.write()
        with bench.attempt(f"part {name}"), limited(options.limit or limit):
            part(bench)
        del bench.result["failures"][name]
        if name in TIMED:
            with bench.attempt(f"timing after {name}"):
                bench.time_all()
        bench.write()
    print(options.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
