"""Which runs a command makes, and what a run's process tells: failures, bugs, unseen folders."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finsent.config import DendriteConfig, LoraConfig, TrainConfig
from finsent.machine.workers import Workers, settings
from finsent.results import runs
from finsent.training import child_main, progress_lines, scheduling
from finsent.training import run as run_module
from finsent.training.child import Child, Job

BASE = TrainConfig(
    backbone="tiny-phi",
    dataset="sample",
    epochs=2,
    learning_rate=5e-3,
    lora=LoraConfig(r=2),
    autocast=False,
)


def plan_of(artifacts: Path, **changes: Any) -> scheduling.Plan:
    given: dict[str, Any] = {
        "base": BASE,
        "dendrites": DendriteConfig(grow_by=0),
        "arms": ("baseline",),
        "seeds": (0,),
        "artifacts": artifacts,
        "device": "cpu",
        "workers": Workers(),
        "overwrite": False,
        "command": "test",
        "git_commit": None,
        "data_dir": None,
        "backbone_dir": None,
    }
    return scheduling.Plan(**{**given, **changes})


@pytest.mark.slow
def test_a_process_that_is_killed_is_a_run_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its dendritic run takes the controls that copy from it along; the next seed is made."""
    asked: list[str] = []

    class Dying(Child):
        def make(self, job: Job) -> str | None:
            asked.append(f"{job.config.arm} {job.config.seed}")
            if asked[-1] == "dendritic 0":
                os.kill(self._process.pid, signal.SIGKILL)
                return super().make(job)
            return None

    monkeypatch.setattr(scheduling, "Child", Dying)
    plan = plan_of(tmp_path, arms=("baseline", "dendritic", "restart"), seeds=(0,))
    other = plan_of(tmp_path, seeds=(1,))
    failed = scheduling.execute_all([plan, other])
    assert failed == ["sample dendritic seed 0", "sample restart seed 0"]
    assert asked == ["baseline 0", "dendritic 0", "baseline 1"]
    said = capsys.readouterr().err
    assert "error: sample dendritic seed 0: its process was ended by SIGKILL" in said
    assert "error: sample restart seed 0: it copies from the dendritic run" in said


def test_folders_that_another_machine_does_not_see_are_named(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "artifacts", backbone_dir=tmp_path / "phi")
    work = scheduling.SeedWork(plan, 0, "none", settings(), tmp_path, lines=True)
    (failure,) = scheduling.make_seed(work)
    assert f"does not see {tmp_path / 'artifacts'}; put it where every machine" in failure.why
    mark = tmp_path / "artifacts" / runs.WORK_FOLDER / "none"
    mark.parent.mkdir(parents=True)
    mark.touch()
    (failure,) = scheduling.make_seed(work)
    assert f"does not see {tmp_path / 'phi'};" in failure.why


def test_jobs_survive_the_way_to_their_process(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(**{**BASE.__dict__, "treatment": DendriteConfig(grow_by=0)})
    job = Job(config, tmp_path, tmp_path / "s", "cpu", "a\nb", None, tmp_path, None, overwrite=True)
    assert "\n" not in job.to_json()
    assert Job.from_json(job.to_json()) == job


def test_a_bug_in_a_run_is_told_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(child_main, "run_job", broken)
    job = Job(BASE, tmp_path, tmp_path, "cpu", "test", None)
    error = child_main._error_of(job, run_module.Bases(), progress_lines.ProgressLines)
    assert error is not None
    assert "Traceback" in error
    assert "ZeroDivisionError: by zero" in error
    assert json.loads(json.dumps({"error": error}))["error"] == error


def test_nodes_that_share_a_disk_may_tidy_it_up_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / "finsent-token"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / name).touch()
    rmtree = scheduling.shutil.rmtree

    def overtaken(path: Path) -> None:
        """The other node was faster with a file that was listed here."""
        if not tried:
            tried.append(path)
            (path / "one").unlink()
            raise FileNotFoundError(path / "one")
        rmtree(path)

    tried: list[Path] = []
    monkeypatch.setattr(scheduling.shutil, "rmtree", overtaken)
    scheduling._clean([SimpleNamespace(token="finsent-token")])  # type: ignore[list-item]
    assert tried
    assert not folder.exists()
