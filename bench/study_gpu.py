"""LoRA runs of SmolLM2 side by side on one GPU: speed by number of runs, and 50 runs of a study.

    python bench/study_gpu.py [--random] [--out bench/results/study_gpu.json]

Steps of the study's own trainer (finsent.study.lora.training) on AllAgree, all blocks adapted, with
1, 10, 25 and 50 runs stacked; then 10 folds x 5 seeds for 12 epochs, and one of those runs alone
beside it. --random takes random weights and random states of real sentences' lengths instead of the
real ones: neither time nor memory depends on their values, but scores do.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from finsent.config import DendriteConfig, LoraConfig, TrainConfig, latest_growth
from finsent.data.folds import FOLDS
from finsent.data.registry import Split
from finsent.machine.devices import use_deterministic_kernels
from finsent.machine.workers import Workers
from finsent.models.adapters import linear_shapes, lora_ranks
from finsent.models.backbones import HiddenStates, computes_bf16, default_device
from finsent.results.provenance import git_commit
from finsent.study.lora.runner import Cell, CellTrainer, Resources, make_splits
from finsent.study.lora.stack_runs import StackContext, StackRun
from finsent.study.lora.training import train_stack
from finsent.study.plans import LoraRegime, LoraStudy
from finsent.training.fused_blocks import FusedBlocks

EPOCHS = 12
SEEDS = 5
CUE_TOKENS = 9
DTYPE = torch.bfloat16
"""Of random weights, as the study holds the base on a GPU."""
STUDY = LoraStudy("speed", ("allagree",), (LoraRegime("r8-all"),), epochs=EPOCHS)


def recipe(device: torch.device, batch_size: int) -> TrainConfig:
    """The study's recipe for 12 epochs."""
    return TrainConfig(
        epochs=EPOCHS, batch_size=batch_size, autocast=computes_bf16(device), lora=LoraConfig()
    )


def random_context(config: TrainConfig, device: torch.device) -> tuple[StackContext, list[Split]]:
    """SmolLM2's geometry with random weights, and sentences of PhraseBank's lengths."""
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    geometry = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    torch.set_default_dtype(DTYPE)
    with device:
        model: Any = LlamaModel(geometry).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    path = ROOT / "bench" / "data" / "phrasebank_lengths.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    lengths = [min(n + CUE_TOKENS, 128) for n in found["train"] + found["validation"]]
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(device)
    values = torch.randn(int(offsets[-1]), 576, device=device, dtype=DTYPE)
    texts = list(range(len(lengths)))
    tenth = len(texts) // 10
    parts = []
    for number in range(FOLDS * SEEDS):
        turned = texts[number * 7 :] + texts[: number * 7]
        test, validation, train = turned[:tenth], turned[tenth : 2 * tenth], turned[2 * tenth :]
        parts.append(Split(tuple(train), tuple(validation), tuple(test), ""))
    context = StackContext(
        blocks=FusedBlocks(model, {}, {}, 1.0),
        hidden_size=576,
        states=HiddenStates(values, offsets),
        labels=torch.randint(0, 3, (len(texts),), device=device),
        n_classes=3,
        adapted=linear_shapes(model, config.lora.target_modules),
        config=config,
        dendrites=DendriteConfig(grow_by=latest_growth(config.epochs)),
    )
    return context, parts


def real_context(
    config: TrainConfig, device: torch.device, data_dir: Path | None
) -> tuple[StackContext, list[Split]]:
    """The embedded backbone and AllAgree in repeated 10-fold cross-validation."""
    folds = [(f"fold-{number}", seed) for seed in range(SEEDS) for number in range(FOLDS)]
    found = make_splits([("allagree", 1.0, fold) for fold in folds], data_dir)
    parts = [found["allagree", 1.0, fold] for fold in folds]
    resources = Resources(config, device.type, Workers(), 50, data_dir, None)
    cell = Cell("allagree", STUDY.regimes[0], (), ())
    return CellTrainer(STUDY, resources).context(cell), parts


def rows_of(context: StackContext, parts: list[Split], count: int) -> list[StackRun]:
    """The first runs of the study, without treatment."""
    ranks = lora_ranks(context.adapted, context.config.lora.r, context.hidden_size * 3, None)
    return [
        StackRun(number // FOLDS, part.train, part.validation, part.test, ranks)
        for number, part in enumerate(parts[:count])
    ]


def timed(context: StackContext, rows: list[StackRun]) -> tuple[float, int, list[Any]]:
    """(seconds, run-steps, results) of training these rows."""
    steps = 0

    def count(taken: int) -> None:
        nonlocal steps
        steps += taken

    if context.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    results = train_stack(context, rows, step_done=count)
    return time.perf_counter() - started, steps, results


def main() -> int:
    """Measure, print, write the results; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/study_gpu.json")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 10, 25, 50])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--epochs", type=int, default=2, help="of the short runs")
    parser.add_argument("--whole", action="store_true", help="50 runs x 12 epochs too")
    options = parser.parse_args()
    device = default_device()
    use_deterministic_kernels(device)
    config = recipe(device, options.batch_size)
    begun = time.perf_counter()
    if options.random:
        context, parts = random_context(config, device)
    else:
        context, parts = real_context(config, device, options.data_dir)
    found: dict[str, Any] = {
        "weights": "random, full geometry" if options.random else "real",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "loading_seconds": time.perf_counter() - begun,
        "batch_size": options.batch_size,
        "by_runs": {},
        "versions": {
            "python": platform.python_version(),
            **{n: importlib.metadata.version(n) for n in ("torch", "transformers")},
        },
        "command": "python bench/study_gpu.py " + " ".join(sys.argv[1:]),
        "commit": git_commit(ROOT),
    }

    def write() -> None:
        text = json.dumps(found, indent=2, sort_keys=True) + "\n"
        options.out.write_text(text, encoding="utf-8")
        print(json.dumps({k: v for k, v in found.items() if k != "versions"}), flush=True)

    for count in options.counts:
        # Short runs: the first pays for kernels and graphs, the second shows the speed.
        grow_by = latest_growth(options.epochs)
        short = replace(
            context,
            config=replace(config, epochs=options.epochs),
            dendrites=replace(context.dendrites, grow_by=grow_by),
        )
        first, _, _ = timed(short, rows_of(short, parts, count))
        seconds, steps, _ = timed(short, rows_of(short, parts, count))
        found["by_runs"][str(count)] = {
            "run_steps_per_second": steps / seconds,
            "seconds": seconds,
            "first_seconds": first,
            "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9
            if device.type == "cuda"
            else None,
        }
        write()
    if options.whole:
        rows = rows_of(context, parts, FOLDS * SEEDS)
        seconds, steps, together = timed(context, rows)
        found["fifty_runs"] = {"seconds": seconds, "run_steps": steps, "epochs": EPOCHS}
        write()
        seconds, steps, alone = timed(context, rows[:1])
        nlls = zip(alone[0].validation_nlls, together[0].validation_nlls, strict=True)
        same = alone[0].logits.test.argmax(1) == together[0].logits.test.argmax(1)
        found["one_of_them_alone"] = {
            "seconds": seconds,
            "largest_difference_of_validation_nll": max(abs(a - b) for a, b in nlls),
            "same_test_labels": float(same.double().mean()),
            "validation_nlls": alone[0].validation_nlls,
            "validation_nlls_in_the_stack": together[0].validation_nlls,
        }
        write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
