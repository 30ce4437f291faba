"""Which runs a command makes, in which order, side by side or one after another."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from finsent import runs
from finsent.config import (
    ARMS,
    ConfigError,
    DendriteConfig,
    MatchedCapacity,
    TrainConfig,
    Treatment,
    arm_config,
)
from finsent.data import load_dataset
from finsent.jobs import Job


@dataclass(frozen=True)
class Plan:
    """Arms x seeds of one configuration."""

    base: TrainConfig
    """The baseline's configuration; seeds and treatments are filled in."""
    dendrites: DendriteConfig
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    artifacts: Path
    device: str
    workers: int
    overwrite: bool
    command: str
    git_commit: str | None
    data_dir: Path | None
    backbone_dir: Path | None

    def folder(self, arm: str, seed: int) -> Path:
        """Where a run of the plan ends up."""
        return runs.run_folder(self.artifacts, self.base.backbone, self.base.dataset, arm, seed)


def execute(plan: Plan) -> list[str]:
    """Make every run of the plan that is not finished; returns the names of those that failed.

    Runs may go side by side, but for the matched arm, which copies the number of parameters of its
    seed's dendritic run and waits for it. Everything a typing error could spoil is checked before
    the first run starts.
    """
    if "matched" in plan.arms and "dendritic" not in plan.arms:
        absent = [s for s in plan.seeds if not runs.is_finished(plan.folder("dendritic", s))]
        if absent:
            raise ConfigError(
                f"the matched arm copies the dendritic run's size, but seeds {absent} have no "
                "dendritic run here; add 'dendritic' to --arms"
            )
    load_dataset(plan.base.dataset, plan.data_dir)
    arm_config(plan.base, "dendritic", plan.dendrites)
    for arm in ARMS:
        for seed in plan.seeds:
            _require_same_settings(plan, plan.folder(arm, seed), seed)
    chains = [
        (seed, tuple(arm for arm in chain if arm in plan.arms))
        for seed in plan.seeds
        for chain in (("dendritic", "matched"), ("baseline",))
    ]
    with (
        tempfile.TemporaryDirectory(prefix="finsent-") as scratch,
        ThreadPoolExecutor(max_workers=plan.workers) as pool,
    ):
        results = pool.map(
            lambda chain: list(_run_chain(plan, chain[0], chain[1], Path(scratch))), chains
        )
        return [name for failures in results for name in failures]


def _require_same_settings(plan: Plan, folder: Path, seed: int) -> None:
    """Arms of a seed are only comparable if all were trained with the same settings."""
    if not runs.is_finished(folder) or plan.overwrite:
        return
    found = TrainConfig.from_dict(runs.read_run(folder).config["config"])
    ours, theirs = replace(plan.base, seed=seed).to_dict(), found.to_dict()
    other = [k for k in ours if k != "treatment" and ours[k] != theirs[k]]
    if other:
        differences = ", ".join(f"{k} {theirs[k]} there, {ours[k]} here" for k in other)
        raise ConfigError(
            f"{folder} was trained with other settings ({differences}); use the same settings, "
            "another --artifacts folder, or --overwrite with all arms"
        )


def _run_chain(plan: Plan, seed: int, arms: Sequence[str], scratch: Path) -> Iterator[str]:
    """Runs of one seed one after another; yields the name of the one that failed, and stops."""
    for arm in arms:
        folder = plan.folder(arm, seed)
        name = f"{plan.base.dataset} {arm} seed {seed}"
        if runs.is_finished(folder) and not plan.overwrite:
            print(f"{name}: already trained in {folder} (--overwrite trains it again)")
            continue
        treatment: Treatment = None
        if arm == "dendritic":
            treatment = plan.dendrites
        elif arm == "matched":
            model = runs.read_run(plan.folder("dendritic", seed))
            treatment = MatchedCapacity(model.metrics["trainable_params"])
        job = Job(
            config=arm_config(replace(plan.base, seed=seed), arm, treatment),
            artifacts=plan.artifacts,
            shared=scratch / "hidden-states",
            device=plan.device,
            command=plan.command,
            git_commit=plan.git_commit,
            data_dir=plan.data_dir,
            backbone_dir=plan.backbone_dir,
        )
        if _run_in_child(job, scratch / f"{arm}-{seed}.json") != 0:
            # What follows in the chain depends on this one.
            yield name
            return


def _run_in_child(job: Job, path: Path) -> int:
    """One process per run, without a terminal to ask questions on."""
    job.save(path)
    package_root = str(Path(__file__).resolve().parent.parent)
    search = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    child = subprocess.run(
        [sys.executable, "-m", "finsent.jobs", str(path)],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": search, "TOKENIZERS_PARALLELISM": "false"},
    )
    return child.returncode


def summary(plan: Plan) -> Iterator[str]:
    """A line for every finished run of the plan."""
    for arm in ARMS:
        for seed in plan.seeds:
            folder = plan.folder(arm, seed)
            if arm not in plan.arms or not runs.is_finished(folder):
                continue
            m = runs.read_run(folder).metrics
            dendrites = f", {m['dendrites']} dendrites" if m["dendrites_requested"] else ""
            warning = " (ASKED FOR, NONE KEPT)" if m["dendrites_requested"] > m["dendrites"] else ""
            yield (
                f"{plan.base.dataset} {arm} seed {seed}: test accuracy {m['accuracy']:.4f}, "
                f"macro-F1 {m['macro_f1']:.4f}, {m['trainable_params']:,} parameters"
                f"{dendrites}{warning}, {m['train_seconds']:.0f} s"
            )
