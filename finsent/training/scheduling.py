"""Which runs a command makes, in which order, side by side or one after another."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
from finsent.data.registry import load_dataset
from finsent.machine.workers import Workers, WorkersError, connected, settings, with_settings
from finsent.results import runs, schema
from finsent.training.child import Child, Job

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
    workers: Workers
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

    def holds(self, folder: Path) -> bool:
        """Whether `folder` is that of a run with a seed of this plan, of any arm."""
        return any(folder == self.folder(arm, seed) for arm in STUDY_ARMS for seed in self.seeds)


@dataclass(frozen=True)
class Failure:
    """A run that was not made."""

    name: str
    why: str


@dataclass(frozen=True)
class SeedWork:
    """What makes the runs of one seed, on any machine that sees the same folders."""

    plan: Plan
    seed: int
    token: str
    """Tells this command's files apart from those of others."""
    settings: dict[str, str | None]
    folder: Path
    """Where relative paths start."""
    lines: bool
    """Whether progress is printed in lines: others print beside it."""

    def name(self, arm: str) -> str:
        """Of a run, for people."""
        return f"{self.plan.base.dataset} {arm} seed {self.seed}"

    @property
    def missing(self) -> list[str]:
        """Arms to make, in their order."""
        return [
            arm
            for arm in STUDY_ARMS
            if arm in self.plan.arms
            and (self.plan.overwrite or not runs.is_finished(self.plan.folder(arm, self.seed)))
        ]


def execute(plan: Plan) -> list[str]:
    """Make every run of the plan that is not finished; returns the names of those that failed."""
    return execute_all([plan])


def execute_all(plans: Sequence[Plan]) -> list[str]:
    """Make the runs of several plans that share workers (those of the first).

    Seeds and plans may go side by side. The arms of a seed follow one another in one process, on
    one base in memory; restart and matched arms copy from the dendritic run before them.
    Everything a typing error could spoil is checked before the first run starts.
    """
    for plan in plans:
        _require_possible(plan)
    workers = plans[0].workers
    token = f"finsent-{uuid.uuid4().hex}"
    work = [
        SeedWork(plan, seed, token, settings(), Path.cwd(), lines=not workers.alone)
        for plan in plans
        for seed in plan.seeds
    ]
    for item in work:
        for arm in (arm for arm in STUDY_ARMS if arm in item.plan.arms):
            if arm not in item.missing:
                folder = item.plan.folder(arm, item.seed)
                print(
                    f"{item.name(arm)}: already trained in {folder} (--overwrite trains it again)"
                )
    work = [item for item in work if item.missing]
    marks = {_mark(item) for item in work}
    for mark in marks:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    failed = []
    try:
        for failure in _made_here(work) if workers.alone else _made_by(workers, work):
            print(f"error: {failure.name}: {failure.why}", file=sys.stderr)
            failed.append(failure.name)
    finally:
        for mark in marks:
            mark.unlink()
    return failed


def _made_here(work: Sequence[SeedWork]) -> Iterator[Failure]:
    try:
        for item in work:
            yield from make_seed(item)
    finally:
        _clean(work)


def _made_by(workers: Workers, work: Sequence[SeedWork]) -> Iterator[Failure]:
    """The same, by workers. A seed that took its worker along failed in all arms it did not end."""
    if not work:
        return
    with connected(workers, on_gpu=work[0].plan.device == "cuda") as pool:
        names = [(f"seed {item.seed}", item) for item in work]
        try:
            with contextlib.closing(pool.run(make_seed, names)) as made:
                for item, found in made:
                    if isinstance(found, WorkersError):
                        found = [Failure(item.name(arm), str(found)) for arm in item.missing]
                    yield from found
        finally:
            try:
                pool.everywhere(_clean, work)
            except WorkersError as error:
                left = f"{work[0].token} may be left in a temporary folder"
                print(f"warning: {left}: {error}", file=sys.stderr)


def _clean(work: Sequence[SeedWork]) -> None:
    """Remove the hidden states on the machine that this is called on."""
    for folder in {_shared(item) for item in work}:
        while folder.exists():
            # Nodes that share a disk remove it at the same time, file by file.
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder)


def _shared(item: SeedWork) -> Path:
    """Hidden states of this command's runs, on a disk of the machine that makes them."""
    return Path(tempfile.gettempdir()) / item.token


def _mark(item: SeedWork) -> Path:
    """A file by which a worker knows that it sees the artifacts' folder and not one of its own."""
    return item.plan.artifacts / runs.WORK_FOLDER / item.token


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


def make_seed(work: SeedWork) -> list[Failure]:
    """The arms of one seed that are missing, one after another in one process; a run that fails
    takes it along, and the next one gets another. Returns what failed."""
    plan = work.plan
    unseen = _unseen(work)
    if unseen is not None:
        why = (
            f"{platform.node()} does not see {unseen}; put it where every machine of the cluster "
            "finds it under the same path"
        )
        return [Failure(work.name(arm), why) for arm in work.missing]
    environment = with_settings(os.environ, work.settings)
    failed: dict[str, Failure] = {}
    with contextlib.ExitStack() as stack:
        child: Child | None = None
        for arm in work.missing:
            name = work.name(arm)
            if arm in COPYING and "dendritic" in failed:
                failed[arm] = Failure(name, "it copies from the dendritic run, which failed")
                continue
            try:
                job = _job(plan, arm, work.seed, _shared(work))
            except (ConfigError, schema.ArtifactError) as impossible:
                failed[arm] = Failure(name, str(impossible))
                continue
            if child is None:
                child = stack.enter_context(Child(environment, work.folder, lines=work.lines))
            error = child.make(job)
            if error is not None:
                failed[arm] = Failure(name, error)
                child = None
    return list(failed.values())


def _unseen(work: SeedWork) -> Path | None:
    """A path of the plan that this machine does not have."""
    plan = work.plan
    needed = (_mark(work), work.folder, plan.data_dir, plan.backbone_dir)
    for path in needed:
        if path is not None and not (work.folder / path).exists():
            return plan.artifacts if path == needed[0] else path
    return None


def _job(plan: Plan, arm: str, seed: int, shared: Path) -> Job:
    treatment: Treatment = None
    if arm == "dendritic":
        treatment = plan.dendrites
    elif arm in COPYING:
        model = runs.read_run(plan.folder("dendritic", seed))
        # That run's own rule, which need not be the plan's where it was made before.
        rule = TrainConfig.from_dict(model.config["config"]).treatment
        if not isinstance(rule, DendriteConfig):
            raise ConfigError(f"{model.folder} is no dendritic run; train it anew with --overwrite")
        by_accuracy = model.config["config"].get("scored_by") == "accuracy"
        losses = [1 - e["val_accuracy"] if by_accuracy else e["val_loss"] for e in model.history]
        restarts = Restarts(
            tuple(
                line["epoch"]
                for line in model.history
                if line["event"] is not None and rule.restarts_run(losses[: line["epoch"] + 1])
            ),
            rule.learning_rate_factor,
            rule.prune,
        )
        treatment = restarts
        if arm == "matched":
            treatment = MatchedCapacity(
                model.metrics["trainable_params"], restarts if plan.restart_matched else None
            )
    return Job(
        config=arm_config(replace(plan.base, seed=seed), arm, treatment),
        artifacts=plan.artifacts,
        shared=shared,
        device=plan.device,
        command=plan.command,
        git_commit=plan.git_commit,
        data_dir=plan.data_dir,
        backbone_dir=plan.backbone_dir,
        overwrite=plan.overwrite,
    )


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
