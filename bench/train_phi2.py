"""Training Phi-2 at full geometry on one GPU: time of an epoch, memory, dendrites, stability.

    python bench/train_phi2.py [--out bench/results/train_phi2.json] [--scratch FOLDER]

The weights are random (2.65 B, made here and written to the scratch folder, 5.3 GB): neither time
nor memory depends on their values. Sentences are random tokens with the lengths of Financial
PhraseBank's. What is timed is `finsent.training.train` itself, with the kernels that make a run
reproducible, and beside it the loop of the original write-up (8-bit, one padded sentence at a time,
gradient checkpointing), of which a few steps are taken and the epoch is extrapolated.

Each figure is the median over epochs after the first two, in which steps are captured.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from finsent.backbones import Backbone, HiddenStates, entering_hidden_states, load_backbone
from finsent.config import DendriteConfig, TrainConfig
from finsent.dendrites import DendriteGrower
from finsent.jobs import git_commit
from finsent.training import TrainResult, train, use_deterministic_kernels
from finsent.weights import ensure_tiny_phi

GPU = torch.device("cuda")
CLASSES = 3
MAX_LENGTH = 128
REFERENCE_STEPS = 12
VALIDATION = 32
"""Few, so that an epoch's time is that of its steps."""


def make_phi2(folder: Path) -> None:
    """A Phi-2 with random bf16 weights and some tokenizer, as a model folder."""
    from transformers import PhiConfig, PhiModel

    config = PhiConfig(
        vocab_size=51200,
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=32,
        num_attention_heads=32,
        partial_rotary_factor=0.4,
        max_position_embeddings=2048,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with GPU:
        model = PhiModel(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    for path in ensure_tiny_phi().iterdir():
        if "token" in path.name or path.suffix in (".txt",):
            shutil.copyfile(path, folder / path.name)


class Sentences:
    """Random token ids of the lengths of real sentences, with random labels."""

    def __init__(self) -> None:
        path = ROOT / "bench" / "data" / "phrasebank_lengths.json"
        lengths = json.loads(path.read_text(encoding="utf-8"))
        cut = [min(n, MAX_LENGTH) for n in lengths["train"]]
        rng = random.Random(0)
        every = cut + cut[:VALIDATION]
        self.ids = [[rng.randrange(51200) for _ in range(n)] for n in every]
        self.labels = [rng.randrange(CLASSES) for _ in every]
        self.train = list(range(len(cut)))
        self.validation = list(range(len(cut), len(every)))
        self.tokens = sum(cut)


def run(
    config: TrainConfig, backbone: Backbone, states: HiddenStates, data: Sentences
) -> tuple[TrainResult, list[float]]:
    """Train, leave the base as it was, and return the seconds of every growth."""
    growths: list[float] = []
    epoch_end = DendriteGrower.epoch_end

    def timed(self: DendriteGrower, *args: Any, **options: Any) -> Any:
        torch.cuda.synchronize()
        started = time.perf_counter()
        event = epoch_end(self, *args, **options)
        torch.cuda.synchronize()
        if event is not None:
            growths.append(time.perf_counter() - started)
        return event

    DendriteGrower.epoch_end = timed  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as scratch:
            result = train(
                config,
                backbone,
                states,
                data.labels,
                data.train,
                data.validation,
                CLASSES,
                Path(scratch),
            )
    finally:
        DendriteGrower.epoch_end = epoch_end  # type: ignore[method-assign]
    result.model.detach()
    gc.collect()
    torch.cuda.empty_cache()
    return result, growths


def steady(result: TrainResult, skip: int) -> float:
    """Median seconds of the epochs after the first `skip`."""
    return statistics.median(record.seconds for record in result.history[skip:])


def reference_epoch(folder: Path, data: Sentences) -> float:
    """Seconds of an epoch of the original write-up's loop, extrapolated from a few steps."""
    import peft
    from transformers import AutoModel, BitsAndBytesConfig

    model = AutoModel.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        device_map={"": GPU},
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
    )
    model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=True)
    lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(model, lora)
    head = torch.nn.Linear(2560, CLASSES, bias=False, device=GPU)
    parameters = [*[p for p in model.parameters() if p.requires_grad], *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4)
    times = []
    for step in range(REFERENCE_STEPS):
        ids = (data.ids[step] + [0] * 128)[:128]
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            states = model(input_ids=torch.tensor([ids], device=GPU)).last_hidden_state
        logits = head(states[:, -1].float())
        label = torch.tensor([data.labels[step]], device=GPU)
        loss = torch.nn.functional.cross_entropy(logits, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:]) * len(data.train)


def measure(backbone: Backbone, states: HiddenStates, data: Sentences) -> dict[str, Any]:
    """Both arms at two batch sizes."""
    found: dict[str, Any] = {}
    for batch in (64, 16):
        config = replace(settings(backbone), batch_size=batch)
        plain, _ = run(config, backbone, states, data)
        reserved = torch.cuda.max_memory_reserved() / 1e9
        # Growth after the first epoch: the next two capture the dendritic steps.
        growing = replace(config, treatment=DendriteConfig(grow_by=0), epochs=5)
        dendritic, growths = run(growing, backbone, states, data)
        found[f"batch_{batch}"] = {
            "epoch_seconds": steady(plain, 2),
            "first_epoch_seconds": plain.history[0].seconds,
            "dendritic_epoch_seconds": steady(dendritic, 3),
            "dendritic_step_ratio": steady(dendritic, 3) / steady(plain, 2),
            "restructure_seconds": max(growths),
            "dendrites": dendritic.dendrites,
            "peak_memory_gb": plain.peak_memory_mb / 1e3,
            "peak_memory_gb_dendritic": dendritic.peak_memory_mb / 1e3,
            "peak_reserved_gb": reserved,
        }
        print(backbone.precision, batch, json.dumps(found[f"batch_{batch}"]), flush=True)
    return found


def settings(backbone: Backbone) -> TrainConfig:
    """The preset's settings, for few epochs."""
    return TrainConfig(backbone="phi-2", precision=backbone.precision, epochs=4, batch_size=64)


def summary(by_precision: dict[str, Any], reference: float, data: Sentences) -> dict[str, Any]:
    """What the file holds; figures that were not measured are None."""
    nf4, bf16 = by_precision.get("nf4"), by_precision.get("bf16")
    large = [found["batch_64"] for found in by_precision.values()]
    packages = ("torch", "transformers", "peft", "bitsandbytes", "perforatedai")
    return {
        "epoch_seconds_bf16": bf16 and bf16["batch_64"]["epoch_seconds"],
        "epoch_seconds_nf4": nf4 and nf4["batch_64"]["epoch_seconds"],
        "epoch_seconds_reference_loop": reference,
        "dendritic_step_ratio": max(found["dendritic_step_ratio"] for found in large),
        "restructure_seconds": max(found["restructure_seconds"] for found in large),
        "peak_memory_gb_nf4_b16": nf4 and nf4["batch_16"]["peak_memory_gb_dendritic"],
        "precisions": by_precision,
        "weights": "random, full geometry",
        "device": torch.cuda.get_device_name(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "command": "python bench/train_phi2.py",
        "commit": git_commit(ROOT),
        "n": {"sentences": len(data.train), "tokens": data.tokens, "epochs": 2},
    }


def main() -> int:
    """Measure, print, write the results; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/train_phi2.json")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "phi-2")
    parser.add_argument("--precisions", nargs="+", default=["bf16", "nf4"])
    parser.add_argument("--seconds", type=float, default=600, help="no seed starts after that")
    options = parser.parse_args()
    begun = time.perf_counter()
    use_deterministic_kernels(GPU)
    data = Sentences()
    if not (options.scratch / "config.json").exists():
        make_phi2(options.scratch)
    reference = reference_epoch(options.scratch, data)
    by_precision: dict[str, Any] = {}

    def write() -> dict[str, Any]:
        results = summary(by_precision, reference, data)
        text = json.dumps(results, indent=2, sort_keys=True) + "\n"
        options.out.write_text(text, encoding="utf-8")
        return results

    for precision in options.precisions:
        gc.collect()
        torch.cuda.empty_cache()
        started = time.perf_counter()
        backbone = load_backbone("phi-2", precision, GPU, folder=options.scratch)
        torch.cuda.synchronize()
        loading = time.perf_counter() - started
        states = entering_hidden_states(backbone, data.ids, 0)
        by_precision[precision] = measure(backbone, states, data)
        by_precision[precision]["load_seconds"] = loading
        write()
    losses: list[list[float]] = []
    by_precision[precision]["train_losses_of_seeds"] = losses
    for seed in range(3):
        if time.perf_counter() - begun > options.seconds:
            break
        # A NaN or an infinity would raise TrainingDiverged.
        result, _ = run(replace(settings(backbone), seed=seed, epochs=10), backbone, states, data)
        losses.append([round(record.train_loss, 4) for record in result.history])
        write()
    print(json.dumps({k: v for k, v in write().items() if k != "precisions"}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
