"""CUDA graphs of our own beside torch.compile(mode="reduce-overhead"), on one GPU, in one run.

    python bench/graphs.py [--models phi-2,smollm2-135m,mpnet-base,minilm-l6] [--out FILE]

Random weights in each model's geometry (timing does not depend on their values), one dendritic
adapter, no network. Every way answers the same texts of one arm, one at a time, from token ids on
the host to scores on the host, all in turns; `differences` compares each with the eager forward.
Ways: `eager` (transformers' forward, adapters beside it), `captured` (finsent.engines.cuda_graphs
over the fastest forward we have: the fused decoder, compiled block by block, or the eager forward
of an encoder), `reduce-overhead` (the same forward, as one compiled graph for every length). For
encoders also sentences a second of a corpus in length-sorted batches, eager and compiled. Weights
are bf16, or fp16 on cards below compute capability 8. A way that fails is recorded with its error.
"""

from __future__ import annotations

import argparse
import itertools
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
from torch import Tensor

from bench.gpu_models import CLASSES, MAX_LENGTH, RANK, corpus_lengths
from finsent.engines.cuda_graphs import CudaGraphs, GraphedForward, compiled, pad
from finsent.machine.timing import time_interleaved
from finsent.models.adapter_files import Adapter, DendriticMap
from finsent.models.adapters import AdapterBank
from finsent.models.backbones import pool
from finsent.models.fused_decoder import FusedDecoder
from finsent.models.tokenization import token_batches
from finsent.results.provenance import git_commit

GPU = torch.device("cuda")
LENGTHS = (24, 32, 48)
REPEATS = 150
BATCH_TOKENS = (8192, 32768)
Forward = Callable[[Tensor, Tensor], Tensor]


def make_model(name: str, dtype: torch.dtype, tiny: bool) -> Any:
    """A transformers model with random weights, made on the GPU."""
    import transformers as hf

    configs: dict[str, Callable[[], tuple[Any, Any]]] = {
        "phi-2": lambda: (hf.PhiModel, hf.PhiConfig(
            vocab_size=51200, hidden_size=2560, intermediate_size=10240, num_hidden_layers=32,
            num_attention_heads=32, partial_rotary_factor=0.4, hidden_act="gelu_pytorch_tanh",
        )),
        "smollm2-135m": lambda: (hf.LlamaModel, hf.LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3,
        )),
        "mpnet-base": lambda: (hf.MPNetModel, hf.MPNetConfig()),
        "minilm-l6": lambda: (hf.BertModel, hf.BertConfig(
            hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12,
        )),
    }  # fmt: skip
    kind, config = configs[name]()
    if tiny:
        config.num_hidden_layers = 2
    config.use_cache = False
    with torch.device(GPU):
        model = kind(config).to(dtype)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, 0, 0.02)
    if hasattr(model, "rotary_emb"):
        # Cast with the rest, its table of angles would be too coarse.
        model.rotary_emb = type(model.rotary_emb)(config=config).to(GPU)
    return model.eval().requires_grad_(False)


def make_adapter(model: Any) -> Adapter:
    """One dendrite on every LoRA map of queries and values, and on the head."""
    draw = torch.Generator().manual_seed(0)

    def linear(out: int, inner: int) -> DendriticMap:
        weight, dendrite = (torch.randn(out, inner, generator=draw) * 0.02 for _ in range(2))
        mixing = torch.randn(1, out, generator=draw) * 0.02
        return DendriticMap(weight, None, ((dendrite, None),), mixing)

    layers = {
        path: (
            torch.randn(RANK, layer.in_features, generator=draw) * 0.02,
            linear(layer.out_features, RANK),
        )
        for path, layer in model.named_modules()
        if path.endswith((".q_proj", ".v_proj", ".query", ".value", ".q", ".v"))
    }
    return Adapter(2.0, "relu", layers, linear(CLASSES, model.config.hidden_size))


def eager_forward(model: Any, adapter: Adapter, pooling: str) -> Forward:
    """transformers' own forward; a padded position is seen by no token of a text."""
    bank = AdapterBank(model)
    bank.add("x", adapter)
    head = bank.activate("x").to(GPU)
    causal = pooling == "last"

    def forward(ids: Tensor, last: Tensor) -> Tensor:
        masks: dict[str, Tensor] = {}
        if not causal:
            place = torch.arange(ids.shape[1], device=ids.device)[None, :]
            masks = {"attention_mask": (place <= last[:, None]).long()}
        states = model(input_ids=ids, **masks).last_hidden_state
        return head(pool(states, last, pooling))

    return forward


class Measured:
    """One model: its ways to answer, and what was found."""

    def __init__(self, name: str, dtype: torch.dtype, tiny: bool) -> None:
        self.result: dict[str, Any] = {"seconds_to_ready": {}, "differences": {}, "failures": {}}
        draw = random.Random(0)
        self._texts = [[draw.randrange(5, 30000) for _ in range(n)] for n in LENGTHS]
        decoder = name in ("phi-2", "smollm2-135m")
        self._pooling = "last" if decoder else "mean"
        model = make_model(name, dtype, tiny)
        adapter = make_adapter(model)
        self._eager = eager_forward(model, adapter, self._pooling)
        self._ways: dict[str, Callable[[list[int]], Tensor]] = {}
        self._expected = [self._plain(self._eager, text) for text in self._texts]
        self._try("eager", lambda: partial(self._plain, self._eager))
        best, whole = self._eager, self._eager
        if decoder:
            source = make_model(name, dtype, tiny)
            own = {k.replace(".base.", "."): v for k, v in model.state_dict().items()}
            source.load_state_dict(
                {k: v for k, v in own.items() if ".down." not in k and ".up." not in k}
            )
            fused = FusedDecoder(source, "last", MAX_LENGTH)
            arm = fused.arm(adapter)
            best, whole = partial(compiled(fused), arm=arm), partial(fused, arm=arm)
        self._try("captured", lambda: self._captured(best))
        self._try("reduce-overhead", lambda: self._reduced(whole))
        if not decoder:
            self._corpus()

    @torch.inference_mode()
    def _plain(self, forward: Forward, text: list[int]) -> Tensor:
        rows = pad([text], len(text)).to(GPU)
        return forward(rows[:, :-1], rows[:, -1]).float().cpu()

    def _captured(self, forward: Forward) -> Callable[[list[int]], Tensor]:
        model = GraphedForward(forward, GPU, lengths=LENGTHS, batches=(1,), record=CudaGraphs())
        for bucket in model.buckets:
            model.record(bucket)
        return lambda text: model([text]).float()

    def _reduced(self, forward: Forward) -> Callable[[list[int]], Tensor]:
        twin = torch.compile(forward, mode="reduce-overhead", dynamic=False, fullgraph=True)

        def call(text: list[int]) -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            return self._plain(twin, text)

        for text in self._texts * 3:  # compiled, then warmed up, then recorded
            call(text)
        return call

    def _try(self, name: str, make: Callable[[], Callable[[list[int]], Tensor]]) -> None:
        started = time.perf_counter()
        try:
            way = make()
            torch.cuda.synchronize()
            self.result["seconds_to_ready"][name] = round(time.perf_counter() - started, 2)
            found = [way(text) for text in self._texts]
            pairs = list(zip(found, self._expected, strict=True))
            self.result["differences"][name] = round(
                max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs), 5
            )
            self._ways[name] = way
        except Exception as error:
            # One way's failure is a result, not the end.
            traceback.print_exc()
            self.result["failures"][name] = f"{type(error).__name__}: {error}"[:500]

    def time_all(self) -> None:
        """p50 of every way by length, all in turns."""
        for length, text in zip(LENGTHS, self._texts, strict=True):
            calls = {name: partial(way, text) for name, way in self._ways.items()}
            stats = time_interleaved(
                calls, repeats=REPEATS, warmup=5, seed=0, synchronize=torch.cuda.synchronize
            )
            found = {name: round(s.p50_ms, 3) for name, s in stats.items()}
            self.result.setdefault("p50_ms", {})[f"{length} tokens"] = found

    def _corpus(self) -> None:
        """Sentences a second, the second of two passes: the first compiles."""
        draw = random.Random(1)
        texts = [[draw.randrange(5, 30000) for _ in range(n)] for n in corpus_lengths()]
        ways = {"eager": self._eager, "compiled": torch.compile(self._eager, dynamic=True)}
        speeds = self.result.setdefault("sentences_per_second", {})
        for (name, forward), tokens in itertools.product(ways.items(), BATCH_TOKENS):
            label = f"{name}, batches of {tokens} tokens"
            try:
                for _ in range(2):
                    speeds[label] = round(sentences_per_second(forward, texts, tokens), 1)
            except Exception as error:
                traceback.print_exc()
                self.result["failures"][label] = f"{type(error).__name__}: {error}"[:500]


@torch.inference_mode()
def sentences_per_second(forward: Forward, texts: Sequence[list[int]], max_tokens: int) -> float:
    """Token ids on the host to scores on the host; the next batch is prepared meanwhile."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    waiting = []
    for batch in token_batches([len(text) for text in texts], max_tokens):
        rows = pad([texts[i] for i in batch], max(len(texts[i]) for i in batch))
        inputs = rows.pin_memory().to(GPU, non_blocking=True)
        waiting.append(forward(inputs[:, :-1], inputs[:, -1]))
    found = torch.cat([scores.float().cpu() for scores in waiting])
    if not bool(found.isfinite().all()):
        raise RuntimeError("scores are not finite")
    return len(texts) / (time.perf_counter() - started)


def main() -> None:
    """Measures every model named and prints the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="smollm2-135m,minilm-l6,mpnet-base,phi-2")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    parser.add_argument("--tiny", action="store_true", help="two blocks each: tries the script")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench/graphs.py measures a GPU, and torch sees none here")
    capability = torch.cuda.get_device_capability()
    dtype = torch.bfloat16 if capability >= (8, 0) else torch.float16
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "capability": list(capability),
        "dtype": str(dtype),
        "torch": torch.__version__,
        "command": f"python bench/graphs.py --models {options.models}",
        "commit": git_commit(ROOT),
        "n": REPEATS,
        "models": {},
    }
    for name in options.models.split(","):
        measured = Measured(name, dtype, options.tiny)
        measured.time_all()
        result["models"][name] = measured.result
        if options.out is not None:
            options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        torch._dynamo.reset()
        del measured
        torch.cuda.empty_cache()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
