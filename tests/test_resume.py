"""A killed run goes on after its last epoch to the same result, and never twice at a time."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from finsent.config import DendriteConfig, LoraConfig, TrainConfig, arm_config
from finsent.results import runs
from finsent.training import checkpoints, child_main, loop, run
from finsent.training.checkpoints import CHECKPOINT, CheckpointError
from finsent.training.child import Job
from finsent.training.progress import UNINTERRUPTED
from finsent.training.run import Bases, JobError

pytestmark = pytest.mark.slow

BASE = TrainConfig(
    backbone="tiny-phi",
    dataset="sample",
    epochs=6,
    learning_rate=5e-3,
    lora=LoraConfig(r=2),
    autocast=False,
)
GROWING = arm_config(
    BASE, "dendritic", DendriteConfig(grow_by=1, max_dendrites=2, patience=1, init_scale=0.3)
)
GOING_ON = arm_config(
    BASE,
    "dendritic",
    DendriteConfig(
        grow_by=0, max_dendrites=2, patience=1, init_scale=0.3, restart="stalled", prune=True
    ),
)
ROOT = Path(__file__).resolve().parent.parent


class Killed(Exception):
    """Stands in for a kill: nothing after it runs."""


def job_for(config: TrainConfig, root: Path) -> Job:
    return Job(config, root / "artifacts", root / "shared", "cpu", "test", None)


def contents(folder: Path) -> dict[str, Any]:
    """What a run found, without times."""
    history = [
        {k: v for k, v in json.loads(line).items() if k != "seconds"}
        for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return {
        "history": history,
        "adapter": (folder / "adapter.safetensors").read_bytes(),
        "predictions": (folder / "predictions.csv").read_bytes(),
    }


def kill_after(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run dies when it has kept that epoch's checkpoint."""
    save = checkpoints.save_checkpoint

    def dying(path: Path, checkpoint: checkpoints.Checkpoint) -> None:
        save(path, checkpoint)
        if len(checkpoint.facts["history"]) == epoch + 1:
            raise Killed

    monkeypatch.setattr(loop, "save_checkpoint", dying)


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[TrainConfig], dict[str, Any]]:
    made: dict[TrainConfig, dict[str, Any]] = {}

    def get(config: TrainConfig) -> dict[str, Any]:
        if config not in made:
            root = tmp_path_factory.mktemp(config.arm)
            made[config] = contents(run.run_job(job_for(config, root)))
        return made[config]

    return get


@pytest.mark.parametrize(
    ("config", "epochs"),
    [
        (BASE, (2,)),
        (GROWING, (0,)),
        (GROWING, (1,)),
        (GROWING, (2, 4)),
        (GOING_ON, (0,)),
        (GOING_ON, (1, 3)),
    ],
)
def test_a_killed_run_ends_bitwise_as_if_it_had_not_been(
    config: TrainConfig,
    epochs: tuple[int, ...],
    uninterrupted: Callable[[TrainConfig], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_environment: None,
) -> None:
    expected = uninterrupted(config)
    if config is GROWING:
        grown = [line["epoch"] for line in expected["history"] if line["event"]]
        assert min(grown) <= 1  # the kills below lie before and after growth
    if config is GOING_ON:
        assert expected["history"][0]["event"] == f"grew dendrite 1{UNINTERRUPTED}"
    job = job_for(config, tmp_path)
    for epoch in epochs:
        with monkeypatch.context() as patch:
            kill_after(epoch, patch)
            with pytest.raises(Killed):
                run.run_job(job)
        assert (job.work_folder / CHECKPOINT).is_file()
        assert not job.folder.exists()
    found = contents(run.run_job(job))
    assert found == expected
    assert not (job.folder / CHECKPOINT).exists()


def test_a_checkpoint_of_other_settings_is_kept_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_environment: None
) -> None:
    job = job_for(BASE, tmp_path)
    with monkeypatch.context() as patch:
        kill_after(0, patch)
        with pytest.raises(Killed):
            run.run_job(job)
    kept = (job.work_folder / CHECKPOINT).read_bytes()
    other = replace(job, config=replace(BASE, learning_rate=1e-3))
    with pytest.raises(CheckpointError, match="other settings.*--overwrite"):
        run.run_job(other)
    assert (job.work_folder / CHECKPOINT).read_bytes() == kept
    (job.work_folder / CHECKPOINT).write_bytes(kept[: len(kept) // 2])
    with pytest.raises(CheckpointError, match="cannot read the checkpoint.*--overwrite"):
        run.run_job(job)
    run.run_job(replace(job, overwrite=True))
    assert runs.is_finished(job.folder)


def test_a_full_disk_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_environment: None
) -> None:
    job = job_for(BASE, tmp_path)
    write = checkpoints.write_bytes_atomically
    written: list[bytes] = []

    def full(path: Path, content: bytes) -> None:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(content)
        write(path, content)

    monkeypatch.setattr(checkpoints, "write_bytes_atomically", full)
    with pytest.raises(CheckpointError, match=r"No space left.*start the same command again"):
        run.run_job(job)
    assert (job.work_folder / CHECKPOINT).read_bytes() == written[-1]


def test_two_processes_never_make_the_same_run(tmp_path: Path, tiny_environment: None) -> None:
    job = job_for(BASE, tmp_path)
    job.work_folder.mkdir(parents=True)
    (job.work_folder / "kept").touch()
    with (
        FileLock(job.work_folder.with_name(f"{job.work_folder.name}.lock")),
        pytest.raises(JobError, match="another process is making this run"),
    ):
        run.run_job(job)
    assert (job.work_folder / "kept").exists()


def test_a_run_after_another_on_the_same_base_is_the_run_alone(
    uninterrupted: Callable[[TrainConfig], dict[str, Any]], tmp_path: Path, tiny_environment: None
) -> None:
    bases = Bases()
    for config in (BASE, GROWING):
        found = contents(run.run_job(job_for(config, tmp_path), bases))
        assert found == uninterrupted(config)


@pytest.mark.slow
def test_a_trainer_killed_in_the_middle_goes_on(
    tmp_path: Path, train_command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The real thing: SIGKILL to the trainer, whose child follows; then the same command again."""
    command = ["train", "--backbone", "tiny-phi"]
    command += ["--dataset", "sample", "--arms", "baseline", "--epochs", "25", "--lora-r", "2"]
    command += ["--no-autocast", "--artifacts", str(tmp_path)]
    work = tmp_path / ".work" / "tiny-phi" / "sample" / "baseline" / "seed-0" / CHECKPOINT
    process = subprocess.Popen(
        [sys.executable, "train_models.py", *command], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not work.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert work.exists()
    lock = FileLock(work.parent.with_name("seed-0.lock"))
    with lock.acquire(timeout=30):  # held until the child has noticed
        at = work.stat().st_mtime
    time.sleep(0.5)
    assert work.stat().st_mtime == at, "the child went on without its trainer"
    done = train_command(*command)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "tiny-phi" / "sample" / "baseline" / "seed-0"
    assert [line["epoch"] for line in runs.read_run(folder).history] == list(range(25))


def test_an_exhausted_gpu_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1_000_000_000, 16_000_000_000))

    def exhausted(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried ...")

    monkeypatch.setattr(child_main, "run_job", exhausted)
    said = child_main._error_of(None, None, None)  # type: ignore[arg-type]
    assert said is not None
    assert "1.0 of 16.0 GB are free" in said
    assert "--precision nf4" in said
    assert "\n" not in said
