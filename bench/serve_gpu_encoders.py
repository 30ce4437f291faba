"""Both sizes of encoder on one GPU: one headline's time, a corpus' sentences a second, labels.

    python bench/serve_gpu_encoders.py [--backbone-dir DIR] [--device cuda] [--texts 10000]

The committed runs on `news` of seed 0, real weights. `torch` is transformers' modules run as they
are, `graphs` what the app takes on a GPU. One headline at a time, from token ids on the host to
scores on the host, both models and both engines in turns; then the sentences of `news` in batches
by length, from token ids (`scores`) and from texts (`texts`, the tokenizer included). Labels of
`graphs` are compared with `torch` on the first 2,000 texts. Writes the key `encoders` of
bench/results/serve_gpu.json. `--device cpu` with few texts shows that it runs, unrecorded.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from finsent.config import TrainConfig
from finsent.data.registry import load_dataset
from finsent.engines.graph_engine import GraphEngine
from finsent.engines.torch_engine import TorchEngine
from finsent.machine.timing import time_interleaved
from finsent.models.adapter_files import load_adapter
from finsent.models.backbones import load_backbone
from finsent.models.tokenization import token_batches
from finsent.results.provenance import git_commit
from finsent.results.runs import read_json, read_run, write_json
from finsent.serving.comparer import Comparer

RESULTS = ROOT / "bench/results/serve_gpu.json"
SIZES = {"accurate": "mpnet-base", "fast": "minilm-l6"}
ARMS = ("baseline", "dendritic")
BATCHES = (4_096, 16_384, 65_536)
"""Tokens of a batch."""


def measure(name: str, device: torch.device, folder: Path | None, texts: list[str]) -> Any:
    """One encoder with both arms."""
    runs = [read_run(ROOT / f"artifacts/{name}/news/{arm}/seed-0") for arm in ARMS]
    config = TrainConfig.from_dict(runs[0].config["config"])
    comparer = Comparer.from_artifacts(
        ROOT / f"artifacts/{name}/news", 0, ARMS, device=device, backbone_dir=folder
    )
    arms = {run.arm: load_adapter(run.folder / "adapter.safetensors") for run in runs}
    loaded = [load_backbone(name, "fp32", device, folder=folder) for _ in range(2)]
    plain = TorchEngine(loaded[0], config.pooling)
    on_gpu = device.type == "cuda"
    graphs = GraphEngine(loaded[1], config.pooling, config.longest)
    for engine in (plain, graphs):
        engine.set_arms(arms)
    started = perf_counter()
    if on_gpu:
        graphs.warm_up()
    result: dict[str, Any] = {
        "warm_up_s": round(perf_counter() - started, 2),
        "engine": graphs.description,
        "engine_of_the_app": comparer.device_name,
    }
    ids = [tokens for tokens, _ in comparer._loaded.tokenize(texts)]
    calls = {
        f"{label} {arm}": partial(engine.scores, arm, [ids[0]])
        for label, engine in (("torch", plain), ("graphs", graphs))
        for arm in ARMS
    }
    p50 = {
        k: v.p50_ms
        for k, v in time_interleaved(calls, repeats=min(200, len(texts)), warmup=5, seed=0).items()
    }
    result["p50_ms"] = {key: round(ms, 3) for key, ms in p50.items()}
    result["dendritic_over_baseline"] = round(p50["graphs dendritic"] / p50["graphs baseline"], 3)
    result["torch_over_graphs"] = round(p50["torch baseline"] / p50["graphs baseline"], 2)
    few = ids[:2000]
    same = sum(
        int((graphs.scores(arm, [row]).argmax(1) == plain.scores(arm, [row]).argmax(1)).sum())
        for arm in ARMS
        for row in few
    )
    result["labels_equal"] = same / (len(few) * len(ARMS))
    result["sentences_per_second"] = {
        f"scores, batches of {most} tokens": round(per_second(graphs, ids, most), 0)
        for most in BATCHES
    }
    comparer.predict_proba(texts[:256], "dendritic")
    started = perf_counter()
    comparer.predict_proba(texts, "dendritic")
    result["sentences_per_second"]["texts"] = round(len(texts) / (perf_counter() - started), 0)
    comparer.close()
    return result | {"texts": len(texts), "tokens_mean": round(float(np.mean(list(map(len, ids)))))}


def per_second(engine: GraphEngine, ids: list[list[int]], most: int) -> float:
    """Sentences a second of a whole corpus by the dendritic arm."""
    batches = list(token_batches([len(row) for row in ids], most))
    engine.scores("dendritic", [ids[i] for i in batches[0]])
    started = perf_counter()
    for batch in batches:
        engine.scores("dendritic", [ids[i] for i in batch])
    return len(ids) / (perf_counter() - started)


def main() -> None:
    """Measures and adds the key to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone-dir", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = torch.device(options.device)
    texts = [example.text for example in load_dataset("news").examples][: options.texts]
    found = {
        size: measure(name, device, options.backbone_dir, texts) for size, name in SIZES.items()
    }
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    about = {
        "device": name,
        "command": f"python bench/serve_gpu_encoders.py --texts {options.texts}",
        "commit": git_commit(ROOT),
        "versions": {n: importlib.metadata.version(n) for n in ("torch", "transformers")},
    }
    result = read_json(options.out) if options.out.exists() else {}
    write_json(options.out, result | {"encoders": found | about})
    print(json.dumps(found | about, indent=1))


if __name__ == "__main__":
    main()
