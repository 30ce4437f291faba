"""What a head on frozen features costs to answer with, beside the backbone that feeds it.

    python bench/heads.py

One sentence at a time, all heads and the backbone in turns; every recipe of the study `heads`, with
as many dendrites as it may grow and with the hidden layer it is matched by. Latency depends on the
form of a head and not on its weights, so these are untrained.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor

from finsent.machine.timing import time_interleaved
from finsent.models.backbones import load_backbone, pool
from finsent.results.provenance import git_commit
from finsent.results.runs import write_json
from finsent.study.heads.stack import HeadStack, matching_hidden_units
from finsent.study.plans import HEADS

RESULTS = ROOT / "bench/results/heads.json"
CLASSES = 3
TOKENS = 40
"""About the median of AllAgree's test sentences with their cue."""
REPEATS = 60


def head(features: int, *, dendrites: int = 0, hidden: int = 0) -> HeadStack:
    """One untrained head of that form."""
    generator = torch.Generator().manual_seed(0)
    made = HeadStack(features, CLASSES, [generator], hidden=hidden)
    for _ in range(dendrites):
        made.add_dendrite(
            made.normal((CLASSES, features), 0.1),
            torch.zeros(1, CLASSES),
            made.normal((CLASSES,), 0.1),
        )
    return made


@torch.inference_mode()
def answer(made: HeadStack, x: Tensor) -> Tensor:
    """Scores of one sentence (1, 1, d) -> (1, 1, classes)."""
    return made.logits(x)


def main() -> None:
    """Times everything in turns and writes the results."""
    backbone = load_backbone(HEADS.backbone, "fp32", torch.device("cpu"))
    ids = torch.arange(100, 100 + TOKENS)[None]
    last = torch.tensor([TOKENS - 1])

    @torch.inference_mode()
    def features() -> Tensor:
        return pool(backbone.decoder(input_ids=ids).last_hidden_state, last, "last")

    heads = {"linear": head(backbone.hidden_size)}
    for name, recipe in HEADS.recipes.items():
        k = recipe.dendrites
        units = matching_hidden_units(backbone.hidden_size, CLASSES, k)
        heads[f"{name}, dendritic"] = head(backbone.hidden_size, dendrites=k)
        heads[f"{name}, matched"] = head(backbone.hidden_size, hidden=units)
    x = torch.randn(1, 1, backbone.hidden_size)
    calls: dict[str, Callable[[], object]] = {"backbone": features}
    calls |= {name: partial(answer, made, x) for name, made in heads.items()}
    stats = time_interleaved(calls, repeats=REPEATS, warmup=10, seed=0)
    p50 = {name: s.p50_ms for name, s in stats.items()}
    whole = p50["backbone"] + p50["linear"]
    measured = {
        name: {
            "p50_ms": p50[name],
            "p95_ms": stats[name].p95_ms,
            "trainable_params": made.trainable_params,
            "answer_times_that_of_linear": (p50["backbone"] + p50[name]) / whole,
        }
        for name, made in heads.items()
    }
    result = {
        "heads": measured,
        "backbone_p50_ms": p50["backbone"],
        "n": REPEATS,
        "tokens": TOKENS,
        "device": f"CPU, {len(os.sched_getaffinity(0))} threads",
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "command": "python bench/heads.py",
        "commit": git_commit(ROOT),
    }
    write_json(RESULTS, result)
    for name, found in measured.items():
        print(f"{name}: {found['p50_ms']:.3f} ms, {found['answer_times_that_of_linear']:.4f}")
    print(f"backbone: {p50['backbone']:.1f} ms")


if __name__ == "__main__":
    main()
