"""Small runs on tiny-phi and the sample, made as the trainer makes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from finsent.config import (
    DendriteConfig,
    LoraConfig,
    MatchedCapacity,
    TrainConfig,
    arm_config,
)
from finsent.results import runs
from finsent.training import child_main
from finsent.training import run as run_module

CPU = torch.device("cpu")
BASE = TrainConfig(
    backbone="tiny-phi",
    dataset="sample",
    epochs=3,
    learning_rate=5e-3,
    lora=LoraConfig(r=2),
    autocast=False,
)
DENDRITES = DendriteConfig(grow_by=0, init_scale=0.3)


def make_run(config: TrainConfig, root: Path, **changes: Any) -> Path:
    job = child_main.Job(config, root, root.parent / "shared", "cpu", "test", None)
    return run_module.run_job(replace(job, **changes))


def run_arms(root: Path, base: TrainConfig, dendrites: DendriteConfig) -> dict[str, runs.Run]:
    folders = {
        "baseline": make_run(arm_config(base, "baseline"), root),
        "dendritic": make_run(arm_config(base, "dendritic", dendrites), root),
    }
    count = runs.read_run(folders["dendritic"]).metrics["trainable_params"]
    folders["matched"] = make_run(arm_config(base, "matched", MatchedCapacity(count)), root)
    return {arm: runs.read_run(folder) for arm, folder in folders.items()}
