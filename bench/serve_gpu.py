"""Serving latency and throughput on one GPU, Phi-2 geometry, random weights made on the GPU.

    python bench/serve_gpu.py [--out bench/results/serve_gpu.json]

Timing does not depend on the values of the weights. Every variant is timed in the same run, one
sentence at a time, from token ids on the host to scores on the host; all variants take turns in
random order. A variant that fails is recorded with its error and the others go on.

Keys: p50_ms_eager_nf4_lora (transformers' model, bitsandbytes 4-bit layers, LoRA unmerged),
p50_ms_bf16 and p50_ms_nf4 (the fastest variant of finsent.fused at that precision, baseline arm),
dendritic_p50_ratio (dendritic / baseline p50 of the variant behind p50_ms_bf16), and
sentences_per_second (scoring a corpus, bf16, token ids in, scores out).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import random
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor, nn

from finsent.adapters import Adapter, AdapterBank
from finsent.backbones import pool, token_batches
from finsent.dendritic_linear import DendriticLinear
from finsent.fused import FusedDecoder
from finsent.graphs import GraphedForward, compiled, pad
from finsent.jobs import git_commit
from finsent.latency import LatencyStats, time_interleaved

TOKENS = 32
MAX_LENGTH = 128
RANK = 8
CLASSES = 3
REPEATS = 200
CORPUS = 8192
GPU = torch.device("cuda")
BUDGET_SECONDS = 120
"""Variants that would start later than this are left out and recorded as such."""


class Bench:
    """Runs variants one by one, keeping what fails from stopping the rest."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.failures: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def attempt(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of `make`, or None with the error recorded under `name`."""
        elapsed = time.perf_counter() - self.started
        if elapsed > BUDGET_SECONDS:
            self.failures[name] = f"left out: {elapsed:.0f} s had passed"
            return None
        before = time.perf_counter()
        try:
            result = make()
            torch.cuda.synchronize()
        except Exception as error:
            # The point of this bench: one variant's failure is a result, not the end.
            self.failures[name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
            return None
        finally:
            self.seconds[name] = round(time.perf_counter() - before, 1)
            print(f"{name}: {self.seconds[name]} s", flush=True)
        return result


def make_decoder(tiny: bool) -> Any:
    """A Phi decoder in bf16 with random weights, made where it will be used."""
    from transformers import PhiConfig, PhiModel

    config = PhiConfig(
        vocab_size=51200,
        hidden_size=320 if tiny else 2560,
        intermediate_size=1280 if tiny else 10240,
        num_hidden_layers=2 if tiny else 32,
        num_attention_heads=4 if tiny else 32,
        max_position_embeddings=2048,
        partial_rotary_factor=0.4,
    )
    config.use_cache = False
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(GPU):
            decoder = PhiModel(config)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.02)
            elif name.endswith("bias"):
                parameter.zero_()
    # Made under a bf16 default, its table of angles would be too coarse.
    decoder.rotary_emb = type(decoder.rotary_emb)(config=config).to(GPU)
    return decoder.eval().requires_grad_(False)


def make_adapter(decoder: Any, dendrites: int) -> Adapter:
    """LoRA on q and v of every block, with `dendrites` per map, and a head."""
    generator = torch.Generator().manual_seed(dendrites)

    def linear(out: int, inner: int) -> DendriticLinear:
        tensors = {"weight": torch.randn(out, inner, generator=generator) * 0.02}
        for i in range(dendrites):
            name = f"dendrites.{i}.weight"
            tensors[name] = torch.randn(out, inner, generator=generator) * 0.02
            if i:
                tensors[f"recurrent.{i}"] = torch.randn(i, out, generator=generator) * 0.02
        if dendrites:
            tensors["output_weights"] = torch.randn(dendrites, out, generator=generator) * 0.02
        return DendriticLinear.from_tensors(tensors, "relu")

    width = decoder.config.hidden_size
    layers = {
        f"layers.{i}.self_attn.{name}": (
            torch.randn(RANK, width, generator=generator) * 0.02,
            linear(width, RANK),
        )
        for i in range(decoder.config.num_hidden_layers)
        for name in ("q_proj", "v_proj")
    }
    return Adapter(2.0, "relu", layers, linear(CLASSES, width))


def reference_call(decoder: Any, adapters: dict[str, Adapter]) -> Callable[[str, Any], Tensor]:
    """transformers' own forward with unmerged adapters, as the plain engine runs it."""
    bank = AdapterBank(decoder)
    for name, adapter in adapters.items():
        bank.add(name, adapter)

    @torch.inference_mode()
    def call(arm: str, token_ids: Sequence[Sequence[int]]) -> Tensor:
        head = bank.activate(arm)
        rows = pad(token_ids, max(map(len, token_ids))).to(GPU)
        states = decoder(input_ids=rows[:, :-1]).last_hidden_state
        return head(pool(states, rows[:, -1], "last")).cpu()

    return call


def quantize_layers(decoder: Any) -> Any:
    """The same decoder with bitsandbytes 4-bit layers, as `load_in_4bit` would make it."""
    import bitsandbytes as bnb

    for block in decoder.layers:
        for name, module in list(block.named_modules()):
            if not isinstance(module, nn.Linear):
                continue
            layer = bnb.nn.Linear4bit(
                module.in_features,
                module.out_features,
                bias=module.bias is not None,
                compute_dtype=torch.bfloat16,
                compress_statistics=True,
                quant_type="nf4",
                device="meta",
            )
            layer.weight = bnb.nn.Params4bit(
                module.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4"
            ).to(GPU)
            layer.bias = module.bias
            block.set_submodule(name, layer)
    return decoder


def graphed(forward: Any, arm: Any) -> GraphedForward:
    """One bucket, the one that is timed."""
    model = GraphedForward(
        lambda ids, last: forward(ids, last, arm), GPU, lengths=(TOKENS,), batches=(1,)
    )
    model.record((1, TOKENS))
    return model


def corpus_lengths() -> list[int]:
    """Like Financial PhraseBank's: mean 31 tokens, at most 107, at least 5."""
    draw = random.Random(0)
    return [min(max(round(draw.lognormvariate(3.34, 0.43)), 5), 107) for _ in range(CORPUS)]


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


def variants(bench: Bench, tiny: bool) -> tuple[dict[str, Callable[[], Tensor]], dict[str, Any]]:
    """Every way of answering one sentence, ready to be timed, and what the corpus needs."""
    draw = random.Random(1)
    sentence = [[draw.randrange(51200) for _ in range(TOKENS)]]
    calls: dict[str, Callable[[], Tensor]] = {}
    kept: dict[str, Any] = {}
    decoder = make_decoder(tiny)
    adapters = {"baseline": make_adapter(decoder, 0), "dendritic": make_adapter(decoder, 1)}
    expected: dict[str, Tensor] = {}

    def add(name: str, call: Callable[[], Tensor] | None) -> None:
        if call is None:
            return
        found = bench.attempt(f"{name}: first call", call)
        if found is None:
            return
        arm = name.rsplit(" ", 1)[1]
        if arm in expected:
            difference = (found.float() - expected[arm]).norm() / expected[arm].norm()
            kept.setdefault("relative_difference_from_eager_bf16", {})[name] = float(difference)
        calls[name] = call

    def add_graphed(name: str, forward: Any, arms: dict[str, Any]) -> None:
        for arm, layout in arms.items():
            full = f"{name} {arm}"
            model = bench.attempt(f"{full}: record", partial(graphed, forward, layout))
            add(full, None if model is None else partial(model, sentence))

    eager = reference_call(decoder, adapters)
    for arm in adapters:
        expected[arm] = eager(arm, sentence).float()
    # Timed on a copy: fusing takes the weights out of the decoder.
    for name in ("bf16", "nf4"):
        fused = bench.attempt(f"fuse {name}", partial(fuse, name, decoder, tiny))
        if fused is None:
            continue
        arms = {arm: fused.arm(adapter) for arm, adapter in adapters.items()}
        kept[name] = (fused, arms)
        add_graphed(f"fused {name}, graph", fused, arms)
        if name == "bf16":
            kept["compiled"] = compiled(fused)
            add_graphed(f"fused {name}, compiled, graph", kept["compiled"], arms)
    for precision, call in unfused(bench, decoder, eager, adapters, tiny).items():
        for arm in adapters:
            add(f"eager {precision} {arm}", partial(call, arm, sentence))
    if "bf16" in kept:
        # Before the slowest variant, which may use up the time there is.
        kept["corpus"] = corpus_speed(bench, kept)
    for name, kind, mode in (
        ("nf4", "compiled", None),
        ("bf16", "autotuned", "max-autotune-no-cudagraphs"),
    ):
        if name in kept:
            fused, arms = kept[name]
            add_graphed(f"fused {name}, {kind}, graph", compiled(fused, mode), arms)
    return calls, kept


def fuse(precision: str, decoder: Any, tiny: bool) -> FusedDecoder:
    """A copy of the decoder at that precision, fused."""
    source = make_decoder(tiny)
    source.load_state_dict(_without_adapters(decoder))
    if precision == "nf4":
        source = quantize_layers(source)
    return FusedDecoder(source, "last", MAX_LENGTH)


def unfused(
    bench: Bench,
    decoder: Any,
    eager: Callable[..., Tensor],
    adapters: dict[str, Adapter],
    tiny: bool,
) -> dict[str, Callable[..., Tensor]]:
    """transformers' own forward by precision."""
    plain = {"bf16": eager}
    quantized = make_decoder(tiny)
    quantized.load_state_dict(_without_adapters(decoder))
    model = bench.attempt("quantize", partial(quantize_layers, quantized))
    if model is not None:
        plain["nf4"] = reference_call(model, adapters)
    return plain


def _without_adapters(decoder: Any) -> dict[str, Tensor]:
    """The decoder's own weights by their own names, whatever adapters stand in front of them."""
    return {
        name.replace(".base.", "."): tensor
        for name, tensor in decoder.state_dict().items()
        if ".down." not in name and ".up." not in name
    }


def corpus_speed(bench: Bench, kept: dict[str, Any]) -> dict[str, float]:
    """Sentences a second by variant; the first pass of each warms up and is not counted."""
    draw = random.Random(2)
    texts = [[draw.randrange(51200) for _ in range(n)] for n in corpus_lengths()]
    fused, arms = kept["bf16"]
    speeds = {}
    for label, forward in (("fused", fused), ("compiled", kept["compiled"])):
        for max_tokens in (8192, 16384, 32768):
            run = partial(score_corpus, forward, arms["baseline"], texts, max_tokens)
            name = f"corpus, {label}, batches of {max_tokens} tokens"
            if bench.attempt(f"{name}: warm-up", run) is None:
                continue
            speed = bench.attempt(name, run)
            if speed is not None:
                speeds[name] = round(speed, 1)
    return speeds


def summary(stats: dict[str, LatencyStats], speeds: dict[str, float]) -> dict[str, Any]:
    """The keys that the docs quote; None where every variant failed."""

    def fastest(precision: str) -> str | None:
        names = [n for n in stats if n.startswith(f"fused {precision}") and n.endswith("baseline")]
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


def main() -> None:
    """Runs everything and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/serve_gpu.json")
    parser.add_argument("--tiny", action="store_true", help="two small blocks: tries the script")
    options = parser.parse_args()
    torch.manual_seed(0)
    bench = Bench()
    calls, kept = variants(bench, options.tiny)
    stats: dict[str, LatencyStats] = {}
    if calls:
        stats = time_interleaved(
            calls, repeats=REPEATS, warmup=5, seed=0, synchronize=torch.cuda.synchronize
        )
    speeds = kept.get("corpus", {})
    result = {
        **summary(stats, speeds),
        "p50_ms": {name: round(s.p50_ms, 3) for name, s in stats.items()},
        "p95_ms": {name: round(s.p95_ms, 3) for name, s in stats.items()},
        "relative_difference_from_eager_bf16": kept.get("relative_difference_from_eager_bf16"),
        "corpus_sentences_per_second": speeds,
        "failures": bench.failures,
        "seconds": bench.seconds,
        "geometry": "tiny" if options.tiny else "Phi-2, random weights, LoRA r=8 on q and v",
        "tokens": TOKENS,
        "n": REPEATS,
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        "device": torch.cuda.get_device_name(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("torch", "transformers", "bitsandbytes")
        },
        "command": f"python bench/serve_gpu.py{' --tiny' if options.tiny else ''}",
        "commit": git_commit(ROOT),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
