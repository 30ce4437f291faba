"""Both sizes of encoder on a CPU beside transformers' eager fp32 answer of one SmolLM2 arm.

    python bench/serve_sizes.py [--threads 2] [--sentences 40] [--labels 1200] [--rows 320]

All variants in turns, one AllAgree test sentence at a time, from token ids to scores, with the
committed runs on `news` of seed 0. `served` is what the app does: bf16 with fp32 for close calls
where the processor multiplies bf16, else fp32; `both` is one pass for both arms, as one headline is
answered. Labels are compared with transformers' fp32 on `--labels` validation sentences of `news`,
in batches. `file` scores `--rows` test sentences of `news` as `finsent score` and *Many headlines*
do, both arms, in blocks of 64 by both sizes and by SmolLM2 in turns, each with the engine that the
app takes on this machine. Wall and processor times are both told: on a machine that others use too,
processor time over threads says more. `--sentences 0` or `--rows 0` leaves a part out, and its
former figures as they are. Writes the key `sizes` of bench/results/serve_cpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from finsent.engines.openvino_engine import OpenVinoEngine, multiplies_bf16
from finsent.engines.torch_engine import TorchEngine
from finsent.models.adapter_files import load_adapter
from finsent.models.backbones import load_backbone
from finsent.models.presets import preset
from finsent.models.tokenization import FileTokenizer, token_batches
from finsent.models.weights import default_cache_dir, folder_sha256
from finsent.results.calibration import softmax
from finsent.results.provenance import git_commit
from finsent.results.runs import read_json, read_run, write_json
from finsent.serving.comparer import Comparer

RESULTS = ROOT / "bench/results/serve_cpu.json"
DECODER = ROOT / "artifacts/smollm2-135m/allagree/baseline/seed-0"
SIZES = {"accurate": "mpnet-base", "fast": "minilm-l6"}
ARMS = ("baseline", "dendritic")
FILE_MODELS = {name: f"{backbone}/news" for name, backbone in SIZES.items()} | {
    "smollm2-135m": "smollm2-135m/allagree"
}
BLOCK = 64
Score = Callable[[list[list[int]]], Any]


@dataclass(frozen=True)
class Size:
    """One encoder with both arms, twice."""

    tokenize: FileTokenizer
    reference: TorchEngine
    served: OpenVinoEngine

    @classmethod
    def load(cls, name: str, threads: int) -> Size:
        """The backbone of that name with the arms of its run on news, seed 0."""
        folder = Path(preset(name).source(None))
        runs = [read_run(ROOT / f"artifacts/{name}/news/{arm}/seed-0") for arm in ARMS]
        arms = {run.arm: load_adapter(run.folder / "adapter.safetensors") for run in runs}
        config = TrainConfig.from_dict(runs[0].config["config"])
        served = OpenVinoEngine(
            folder,
            folder_sha256(folder),
            pooling=config.pooling,
            cache=default_cache_dir() / "openvino",
            threads=threads,
            quick="bf16" if multiplies_bf16() else None,
        )
        reference = TorchEngine(load_backbone(name, "fp32", torch.device("cpu")), config.pooling)
        for engine in (reference, served):
            engine.set_arms(arms)
            engine.warm_up()
        return cls(FileTokenizer(folder, config.longest, ""), reference, served)

    def labels(self, texts: Sequence[str]) -> dict[str, float]:
        """How the served answers to many texts compare with the reference's, both arms."""
        ids = [found for found, _ in self.tokenize(texts)]
        same, worst, before = 0, 0.0, self.served.close_calls
        for batch in token_batches([len(row) for row in ids], self.served.batch_tokens):
            rows = [ids[i] for i in batch]
            for arm in ARMS:
                mine, theirs = (
                    engine.scores(arm, rows) for engine in (self.served, self.reference)
                )
                same += int((mine.argmax(axis=1) == theirs.argmax(axis=1)).sum())
                worst = max(worst, float(np.abs(softmax(mine) - softmax(theirs)).max()))
        answers = len(texts) * len(ARMS)
        return {
            "answers": answers,
            "labels_equal": same / answers,
            "largest_probability_difference": worst,
            "close_calls": (self.served.close_calls - before) / answers,
        }


def decoder() -> tuple[FileTokenizer, Score]:
    """Transformers' eager SmolLM2 with its baseline arm of AllAgree."""
    config = TrainConfig.from_dict(read_run(DECODER).config["config"])
    folder = Path(preset(config.backbone).source(None))
    base = load_backbone(config.backbone, "fp32", torch.device("cpu"), depth=config.depth)
    eager = TorchEngine(base, config.pooling)
    eager.set_arms({"baseline": load_adapter(DECODER / "adapter.safetensors")})
    tokenize = FileTokenizer(folder, config.longest, config.prompt_suffix, config.copies)
    return tokenize, partial(eager.scores, "baseline")


def variants(sizes: Mapping[str, Size]) -> dict[str, tuple[FileTokenizer, Score]]:
    """By name: a tokenizer and what scores its ids."""
    found = {"smollm2-135m eager": decoder()}
    for name, size in sizes.items():
        for arm in ARMS:
            for label, engine in (("eager", size.reference), ("served", size.served)):
                found[f"{name} {arm} {label}"] = size.tokenize, partial(engine.scores, arm)
        both = partial(lambda served, ids: served.scores_of_all(ids[0]), size.served)
        found[f"{name} both served"] = size.tokenize, both
    return found


def measure(threads: int, sentences: int, labels: int) -> dict[str, Any]:
    """Every variant on every sentence, each after an untimed call of its own."""
    sizes = {size: Size.load(name, threads) for size, name in SIZES.items()}
    calls = variants(sizes)
    data = load_dataset("allagree")
    texts = [data.examples[i].text for i in make_split(data, 0).test[: sentences + 2]]
    wall: dict[str, list[float]] = {name: [] for name in calls}
    processor: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffler = list(calls), random.Random(0)
    for number, text in enumerate(texts):
        shuffler.shuffle(order)
        for name in order:
            tokenize, score = calls[name]
            ids = [tokenize([text])[0][0]]
            score(ids)
            before, before_processor = perf_counter(), process_time()
            score(ids)
            used, elapsed = process_time() - before_processor, perf_counter() - before
            if number >= 2:
                wall[name].append(1e3 * elapsed)
                processor[name].append(1e3 * used / threads)
    result: dict[str, Any] = {"n": sentences, "threads": threads}
    for kind, times in (("wall", wall), ("processor", processor)):
        p50 = {name: float(np.median(values)) for name, values in times.items()}
        result[f"{kind}_ms_p50"] = {name: round(ms, 2) for name, ms in p50.items()}
        for size in SIZES:
            base, grown = (p50[f"{size} {arm} served"] for arm in ARMS)
            about = {
                "both_arms_over_eager_smollm2": p50[f"{size} both served"]
                / p50["smollm2-135m eager"],
                "one_after_the_other": (base + grown) / p50["smollm2-135m eager"],
                "dendritic_over_baseline": grown / base,
            }
            result[f"{size}_{kind}"] = {key: round(value, 3) for key, value in about.items()}
    news = load_dataset("news")
    kept = make_split(news, 0).validation
    many = [news.examples[i].text for i in kept[:: max(1, len(kept) // max(labels, 1))][:labels]]
    result["labels"] = {name: size.labels(many) for name, size in sizes.items()} if many else {}
    return result


def file_rows(rows: int) -> dict[str, Any]:
    """Rows a second of a file that both arms score, and how many times SmolLM2's."""
    data = load_dataset("news")
    texts = [data.examples[i].text for i in make_split(data, 0).test[:rows]]
    models = {
        name: Comparer.from_artifacts(ROOT / "artifacts" / folder, 0, ARMS)
        for name, folder in FILE_MODELS.items()
    }
    for model in models.values():
        model.engine.warm_up()
    seconds = dict.fromkeys(models, 0.0)
    order, shuffler = list(models), random.Random(0)
    for start in range(0, len(texts), BLOCK):
        block = texts[start : start + BLOCK]
        shuffler.shuffle(order)
        for name in order:
            for untimed in (True, False):
                before = perf_counter()
                for arm in ARMS:
                    models[name].predict_proba(block, arm)
                seconds[name] += 0.0 if untimed else perf_counter() - before
    return {
        "rows": len(texts),
        "engines": {name: model.device_name for name, model in models.items()},
        "rows_per_second": {name: round(len(texts) / s, 1) for name, s in seconds.items()},
        "times_smollm2": {
            name: round(seconds["smollm2-135m"] / seconds[name], 2) for name in SIZES
        },
    }


def main() -> None:
    """Measures and adds the key to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--sentences", type=int, default=40)
    parser.add_argument("--labels", type=int, default=1200)
    parser.add_argument("--rows", type=int, default=320)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    about = {
        "command": f"python bench/serve_sizes.py --threads {options.threads} "
        f"--sentences {options.sentences} --labels {options.labels} --rows {options.rows}",
        "commit": git_commit(ROOT),
    }
    found: dict[str, Any] = {}
    if options.sentences:
        found |= measure(options.threads, options.sentences, options.labels) | about
        found["load_average"] = os.getloadavg()[0]
    if options.rows:
        found["file"] = file_rows(options.rows) | about | {"load_average": os.getloadavg()[0]}
    result = read_json(RESULTS)
    result.setdefault("sizes", {}).setdefault(f"{options.threads} threads", {}).update(found)
    write_json(RESULTS, result)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
