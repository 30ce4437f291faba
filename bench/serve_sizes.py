"""Both sizes of encoder on a CPU beside transformers' eager fp32 answer of one SmolLM2 arm.

    python bench/serve_sizes.py [--threads 2] [--sentences 40]

All variants in turns, one AllAgree test sentence at a time, from token ids to scores. LoRA of rank
16 on all maps, without and with one dendrite on each and on the head, random values: times do not
depend on them. Labels and scores are compared with the fp32 reference of the same adapter. Wall and
processor times are both told: on a machine that others use too, processor time over threads says
more. Writes the key `sizes` of bench/results/serve_cpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from finsent.config import TrainConfig
from finsent.data.registry import load_dataset, make_split
from finsent.engines.openvino_engine import OpenVinoEngine
from finsent.engines.torch_engine import TorchEngine
from finsent.models.adapter_files import Adapter, DendriticMap, load_adapter
from finsent.models.backbones import load_backbone
from finsent.models.encoder_families import FAMILIES
from finsent.models.presets import preset
from finsent.models.tokenization import FileTokenizer
from finsent.models.weights import default_cache_dir, folder_sha256
from finsent.results.provenance import git_commit
from finsent.results.runs import read_json, read_run, write_json

RESULTS = ROOT / "bench/results/serve_cpu.json"
DECODER = ROOT / "artifacts/smollm2-135m/allagree/baseline/seed-0"
SIZES = {"accurate": ("mpnet-base", "mpnet"), "fast": ("minilm-l6", "bert")}
RANK = 16
Score = Callable[[list[list[int]]], Any]


def random_adapter(model: Any, maps: tuple[str, ...], dendrites: int) -> Adapter:
    """LoRA on all maps of the encoder's blocks, with dendrites, and a head."""
    draw = np.random.default_rng(dendrites)

    def random_map(out: int, inner: int) -> DendriticMap:
        def values(*shape: int) -> Any:
            return (0.02 * draw.standard_normal(shape)).astype(np.float32)

        grown = tuple((values(out, inner), None) for _ in range(dendrites))
        mixing = values(dendrites, out) if dendrites else None
        return DendriticMap(values(out, inner), None, grown, mixing)

    layers = {}
    for path, layer in model.named_modules():
        if path.startswith("encoder.layer.") and path.rsplit(".", 1)[1] in maps:
            a = random_map(RANK, layer.in_features).weight
            layers[path] = (a, random_map(layer.out_features, RANK))
    kind = "relu" if dendrites else "none"
    return Adapter(2.0, kind, layers, random_map(3, model.config.hidden_size))


def variants(threads: int) -> dict[str, tuple[FileTokenizer, Score]]:
    """By name: a tokenizer and what scores its ids."""
    cpu = torch.device("cpu")
    found: dict[str, tuple[FileTokenizer, Score]] = {}
    config = TrainConfig.from_dict(read_run(DECODER).config["config"])
    folder = Path(preset(config.backbone).source(None))
    eager = TorchEngine(load_backbone(config.backbone, "fp32", cpu, depth=config.depth), "last")
    eager.set_arms({"baseline": load_adapter(DECODER / "adapter.safetensors")})
    tokenize = FileTokenizer(folder, config.longest, config.prompt_suffix, config.copies)
    found["smollm2-135m eager"] = tokenize, partial(eager.scores, "baseline")
    for size, (name, family) in SIZES.items():
        folder = Path(preset(name).source(None))
        base = load_backbone(name, "fp32", cpu)
        maps = FAMILIES[family].maps
        arms = {
            arm: random_adapter(base.decoder, maps, k)
            for arm, k in (("baseline", 0), ("dendritic", 1))
        }
        tokenize = FileTokenizer(folder, 128, "")
        reference = TorchEngine(base, "mean")
        served = OpenVinoEngine(
            folder,
            folder_sha256(folder),
            pooling="mean",
            cache=default_cache_dir() / "openvino",
            threads=threads,
            quick=False,
        )
        for label, engine in (("eager", reference), ("served", served)):
            engine.set_arms(arms)
            for arm in arms:
                found[f"{size} {arm} {label}"] = tokenize, partial(engine.scores, arm)
    return found


def measure(threads: int, sentences: int) -> dict[str, Any]:
    """Every variant on every sentence, each after an untimed call of its own."""
    calls = variants(threads)
    data = load_dataset("allagree")
    texts = [data.examples[i].text for i in make_split(data, 0).test[: sentences + 2]]
    wall: dict[str, list[float]] = {name: [] for name in calls}
    processor: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffler = list(calls), random.Random(0)
    pairs = [(n, n.replace("served", "eager")) for n in calls if n.endswith("served")]
    same, worst = 0, 0.0
    for number, text in enumerate(texts):
        shuffler.shuffle(order)
        scores = {}
        for name in order:
            tokenize, score = calls[name]
            ids = [tokenize([text])[0][0]]
            score(ids)
            before, before_processor = perf_counter(), process_time()
            scores[name] = score(ids)
            used, elapsed = process_time() - before_processor, perf_counter() - before
            if number >= 2:
                wall[name].append(1e3 * elapsed)
                processor[name].append(1e3 * used / threads)
        for name, reference in pairs:
            same += int(scores[name].argmax() == scores[reference].argmax())
            worst = max(worst, float(np.abs(scores[name] - scores[reference]).max()))
    result: dict[str, Any] = {
        "n": sentences,
        "threads": threads,
        "labels_equal_to_reference": same / (len(pairs) * len(texts)),
        "largest_score_difference": worst,
    }
    for kind, times in (("wall", wall), ("processor", processor)):
        p50 = {name: float(np.median(values)) for name, values in times.items()}
        result[f"{kind}_ms_p50"] = {name: round(ms, 2) for name, ms in p50.items()}
        for size in SIZES:
            base, grown = (p50[f"{size} {arm} served"] for arm in ("baseline", "dendritic"))
            about = {
                "both_arms_over_eager_smollm2": (base + grown) / p50["smollm2-135m eager"],
                "dendritic_over_baseline": grown / base,
            }
            result[f"{size}_{kind}"] = {key: round(value, 3) for key, value in about.items()}
    return result


def main() -> None:
    """Measures and adds the key to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--sentences", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options.threads, options.sentences)
    found |= {
        "command": f"python bench/serve_sizes.py --threads {options.threads} "
        f"--sentences {options.sentences}",
        "commit": git_commit(ROOT),
        "load_average": os.getloadavg()[0],
    }
    result = read_json(RESULTS)
    result.setdefault("sizes", {})[f"{options.threads} threads"] = found
    write_json(RESULTS, result)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
