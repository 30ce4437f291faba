"""Try training settings and record validation scores only; test is never read.

    python bench/search.py settings.json results.jsonl --workers 10

`settings.json` is a list of objects with a name and any fields of TrainConfig, e.g.
{"name": "all-5e-4", "seed": 1, "learning_rate": 5e-4, "lora": {"last_layers": null}}.
A line is written for every run as it ends, so an interrupted search keeps what it has.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def try_setting(setting: dict[str, Any]) -> dict[str, Any]:
    """Train one setting in this process; returns its line of results."""
    import torch

    from finsent.config import TrainConfig
    from finsent.data.registry import load_dataset, make_split
    from finsent.machine.devices import use_deterministic_kernels
    from finsent.models.backbones import default_device, entering_hidden_states, load_backbone
    from finsent.training.loop import TrainingData, train

    values = dict(setting)
    name = values.pop("name")
    config = TrainConfig.from_dict(values)
    torch.set_num_threads(1 if torch.cuda.is_available() else torch.get_num_threads())
    use_deterministic_kernels(default_device())
    data = load_dataset(config.dataset)
    split = make_split(data, config.seed)
    backbone = load_backbone(
        config.backbone, config.precision, default_device(), depth=config.depth
    )
    texts = [example.text for example in data.examples]
    ids = backbone.tokenize(texts, config.longest, config.prompt_suffix, config.copies)
    block = backbone.first_adapted_block(config.lora.last_layers)
    states = entering_hidden_states(backbone, ids, block)
    labels = [e.label for e in data.examples]
    with tempfile.TemporaryDirectory() as scratch:
        result = train(
            config,
            backbone,
            TrainingData(states, labels, len(data.label_names), split.train, split.validation),
            Path(scratch),
        )
    before = result.best_before_growth
    return {
        "name": name,
        "config": config.to_dict(),
        "accuracy": result.selected.accuracy,
        "macro_f1": result.selected.macro_f1,
        "nll": result.selected.nll,
        "best_epoch": result.selected.epoch,
        "nll_before_growth": None if before is None else before.nll,
        "dendrites": result.dendrites,
        "dendrite_logit_share": result.dendrite_logit_share,
        "trainable_params": result.trainable_params,
        "train_seconds": round(result.train_seconds, 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every setting; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args(arguments)
    settings = json.loads(options.settings.read_text(encoding="utf-8"))
    # A fresh process for every run: PerforatedAI keeps its state in globals.
    context = multiprocessing.get_context("spawn")
    with (
        context.Pool(options.workers, maxtasksperchild=1) as pool,
        options.results.open("a", encoding="utf-8") as results,
    ):
        for line in pool.imap_unordered(try_setting, settings):
            print(json.dumps(line, sort_keys=True), file=results, flush=True)
            print(f"{line['name']}: accuracy {line['accuracy']:.4f}, NLL {line['nll']:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
