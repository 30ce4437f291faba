"""Which runs a command makes, in which order, side by side or one after another."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from finsent import runs
from finsent.config import (
    STUDY_ARMS,
    ConfigError,
    DendriteConfig,
    MatchedCapacity,
    Restarts,
    TrainConfig,
    Treatment,
    arm_config,
)
from finsent.data import load_dataset
from finsent.jobs import DONE, Job

COPYING = ("restart", "matched")
"""Arms that are made after the dendritic run of the same seed, from what it became."""


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
    gpus: tuple[str, ...]
    """GPUs to spread the runs over, as CUDA_VISIBLE_DEVICES names them; empty: no choice made."""
    workers: int
    """Runs at a time, on each GPU where there is a choice."""
    overwrite: bool
    command: str
    git_commit: str | None
    data_dir: Path | None
    backbone_dir: Path | None
    restart_matched: bool = False
    """Give the matched arm the restarts of the dendritic run, as studies do."""

    def folder(self, arm: str, seed: int) -> Path:
        """Where a run of the plan ends up."""
        return runs.run_folder(self.artifacts, self.base.backbone, self.base.dataset, arm, seed)


def execute(plan: Plan) -> list[str]:
    """Make every run of the plan that is not finished; returns the names of those that failed."""
    return execute_all([plan])


def execute_all(plans: Sequence[Plan]) -> list[str]:
    """Make the runs of several plans that share GPUs and workers (those of the first).

    Seeds and plans may go side by side. The arms of a seed follow one another in one process, on
    one base in memory; restart and matched arms copy from the dendritic run before them.
    Everything a typing error could spoil is checked before the first run starts.
    """
    for plan in plans:
        _require_possible(plan)
    first = plans[0]
    slots: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for slot in (first.gpus or (None,)) * first.workers:
        slots.put(slot)
    work = [(plan, seed) for plan in plans for seed in plan.seeds]
    with (
        tempfile.TemporaryDirectory(prefix="finsent-") as scratch,
        # Threads only wait: each seed is a process of its own.
        ThreadPoolExecutor(max_workers=slots.qsize()) as pool,
    ):
        failed = pool.map(lambda item: _run_seed(item[0], item[1], Path(scratch), slots), work)
        return [name for names in failed for name in names]


def _require_possible(plan: Plan) -> None:
    copying = [arm for arm in COPYING if arm in plan.arms]
    if copying and "dendritic" not in plan.arms:
        absent = [s for s in plan.seeds if not runs.is_finished(plan.folder("dendritic", s))]
        if absent:
            raise ConfigError(
                f"the {' and '.join(copying)} arm copies from the dendritic run, but seeds "
                f"{absent} have no dendritic run here; add 'dendritic' to --arms"
            )
    load_dataset(plan.base.dataset, plan.data_dir)
    arm_config(plan.base, "dendritic", plan.dendrites)
    for arm in STUDY_ARMS:
        for seed in plan.seeds:
            _require_same_settings(plan, plan.folder(arm, seed), seed)


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


def _run_seed(
    plan: Plan, seed: int, scratch: Path, slots: queue.SimpleQueue[str | None]
) -> list[str]:
    """The arms of one seed, on a GPU of which no more than `workers` seeds make use at a time;
    returns the names of those that failed."""
    gpu = slots.get()
    failed: list[str] = []
    try:
        with contextlib.ExitStack() as stack:
            child: Child | None = None
            for arm in (arm for arm in STUDY_ARMS if arm in plan.arms):
                folder = plan.folder(arm, seed)
                name = f"{plan.base.dataset} {arm} seed {seed}"
                if runs.is_finished(folder) and not plan.overwrite:
                    print(f"{name}: already trained in {folder} (--overwrite trains it again)")
                    continue
                if arm in COPYING and f"{plan.base.dataset} dendritic seed {seed}" in failed:
                    failed.append(name)  # it copies from a run that is not there
                    continue
                path = scratch / f"{uuid.uuid4()}.json"
                _job(plan, arm, seed, scratch).save(path)
                if child is None:
                    child = stack.enter_context(Child(gpu))
                if not child.make(path):
                    failed.append(name)
                    child = None
    finally:
        slots.put(gpu)
    return failed


def _job(plan: Plan, arm: str, seed: int, scratch: Path) -> Job:
    treatment: Treatment = None
    if arm == "dendritic":
        treatment = plan.dendrites
    elif arm in COPYING:
        model = runs.read_run(plan.folder("dendritic", seed))
        restarts = Restarts(
            tuple(line["epoch"] for line in model.history if line["event"] is not None),
            plan.dendrites.learning_rate_factor,
        )
        treatment = restarts
        if arm == "matched":
            treatment = MatchedCapacity(
                model.metrics["trainable_params"], restarts if plan.restart_matched else None
            )
    return Job(
        config=arm_config(replace(plan.base, seed=seed), arm, treatment),
        artifacts=plan.artifacts,
        shared=scratch / "hidden-states",
        device=plan.device,
        command=plan.command,
        git_commit=plan.git_commit,
        data_dir=plan.data_dir,
        backbone_dir=plan.backbone_dir,
        overwrite=plan.overwrite,
    )


class Child:
    """A process that makes runs one after another, without a terminal to ask questions on."""

    def __init__(self, gpu: str | None) -> None:
        root = str(Path(__file__).resolve().parent.parent)
        search = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        chosen = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "finsent.jobs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": search, "TOKENIZERS_PARALLELISM": "false", **chosen},
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        # Without further jobs it ends by itself; a caller that was interrupted does not wait.
        if any(error):
            self._process.terminate()
        self._process.communicate()

    def make(self, job: Path) -> bool:
        """Have a job made. False when it failed, after which the process is gone."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            print(job, file=stdin, flush=True)
        except BrokenPipeError:  # it died between two jobs
            return False
        return stdout.readline().strip() == DONE


def summary(plan: Plan) -> Iterator[str]:
    """A line for every finished run of the plan."""
    for arm in STUDY_ARMS:
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
