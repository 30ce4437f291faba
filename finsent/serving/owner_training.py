"""Training that the owner of a running app starts: a child process, watched through its files.

Runs are made in a folder of their own and join the artifacts only when all of them are finished; a
cancelled or failed training leaves nothing behind but its message.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from finsent.config import ARMS
from finsent.machine.files import search_path
from finsent.results import manifest, runs

STAGING = "owner"
"""Below the artifacts' folder for unfinished work, which no reader of the artifacts looks into."""
LOG_LINES = 12
ACTIVE = ("running", "keeping", "cancelling")
"""Phases of a training that is not over."""
PATIENCE_SECONDS = 10.0
"""What a cancelled training gets to end by itself."""


class OwnerTrainingError(RuntimeError):
    """A training that cannot be started, kept or pushed."""


class Hub(Protocol):
    """What pushing needs of huggingface_hub.HfApi."""

    def create_repo(
        self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool
    ) -> object: ...
    def upload_folder(
        self,
        *,
        repo_id: str,
        repo_type: str,
        folder_path: str,
        path_in_repo: str,
        allow_patterns: list[str],
        commit_message: str,
    ) -> object: ...


@dataclass(frozen=True)
class Recipe:
    """What is trained when the owner says so."""

    backbone: str = "phi-2"
    dataset: str = "allagree"
    seeds: tuple[int, ...] = (0,)
    extra: tuple[str, ...] = ()
    """Further arguments of `finsent train`."""

    def arguments(self, artifacts: Path) -> list[str]:
        """The command line after the interpreter."""
        return [
            *("-m", "finsent", "train"),
            *("--backbone", self.backbone),
            *("--dataset", self.dataset),
            *("--seeds", *map(str, self.seeds)),
            *("--artifacts", str(artifacts)),
            *self.extra,
        ]


@dataclass(frozen=True)
class TrainingState:
    """Where the training stands."""

    phase: str
    """`idle`, `running`, `keeping`, `cancelling`, `finished`, `failed` or `cancelled`."""
    message: str
    log: tuple[str, ...]
    """The last lines that the trainer printed."""


class OwnerTraining:
    """At most one training at a time. Safe to use from many threads."""

    def __init__(self, artifacts: Path, recipe: Recipe) -> None:
        self.artifacts = artifacts.absolute()
        self.recipe = recipe
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: threading.Thread | None = None
        self._state = TrainingState("idle", "Nothing trained yet.", ())
        self._histories: dict[tuple[str, int], list[dict[str, Any]]] = {}

    @property
    def place(self) -> Path:
        """Where finished runs of the recipe stand, relative to an artifacts root."""
        return Path(runs.slug(self.recipe.backbone)) / self.recipe.dataset

    @property
    def staging(self) -> Path:
        """Root of the runs under way."""
        return self.artifacts / runs.WORK_FOLDER / STAGING

    @property
    def needed(self) -> bool:
        """Whether the artifacts lack runs of the recipe."""
        return not any(
            runs.is_finished(self.artifacts / self.place / arm / f"seed-{seed}")
            for arm in ARMS
            for seed in self.recipe.seeds
        )

    @property
    def state(self) -> TrainingState:
        """Phase, message and the log's end."""
        with self._lock:
            state = self._state
        if state.phase == "running":
            return TrainingState(state.phase, state.message, self._log_tail())
        return state

    def start(self) -> None:
        """Begins training in a process group of its own.

        Raises OwnerTrainingError when one is under way or the runs are here already.
        """
        with self._lock:
            if self._state.phase in ACTIVE:
                raise OwnerTrainingError("a training is under way; cancel it or wait for its end")
            if not self.needed:
                raise OwnerTrainingError(f"{self.place} is trained already in {self.artifacts}")
            shutil.rmtree(self.staging, ignore_errors=True)
            scratch = self.staging / runs.WORK_FOLDER / "tmp"
            scratch.mkdir(parents=True)
            self._histories = {}
            with self._log_path.open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-u", *self.recipe.arguments(self.staging)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    # Its temporary files go with the staging folder, however it ends.
                    env={
                        **os.environ,
                        "TMPDIR": str(scratch),
                        "PYTHONPATH": search_path(os.environ),
                    },
                )
            self._state = TrainingState("running", f"Training {self.place}.", ())
            self._watcher = threading.Thread(
                target=self._watch, args=(self._process,), name="owner-training", daemon=True
            )
            self._watcher.start()
        atexit.register(self.cancel)

    def cancel(self) -> None:
        """Ends the training and all of its processes and removes what it made. Idempotent; returns
        when nothing is left of it."""
        with self._lock:
            process = self._process if self._state.phase == "running" else None
            if process is not None:
                self._state = TrainingState("cancelling", "Ending the training.", ())
        if process is not None:
            _end_group(process)
        if self.state.phase == "cancelling":
            self.join()

    def join(self, timeout: float | None = None) -> None:
        """Waits until the training has ended and been tidied up."""
        if self._watcher is not None:
            self._watcher.join(timeout)

    def histories(self) -> dict[tuple[str, int], list[dict[str, Any]]]:
        """(arm, seed) -> epochs so far, of finished runs and of those under way."""
        if self.state.phase != "running":
            return dict(self._histories)
        return self._read_histories()

    def zip_runs(self, target: Path) -> Path:
        """Writes the finished runs as a zip that unpacks over an artifacts folder.

        Raises OwnerTrainingError when there are none.
        """
        folder = self.artifacts / self.place
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if not files:
            raise OwnerTrainingError(f"no finished run in {folder} to pack")
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in files:
                archive.write(path, path.relative_to(self.artifacts))
        return target

    def push(self, hub: Hub, repo_id: str, repo_type: str = "model") -> str:
        """Uploads the finished runs to a repository on the Hub; returns what was done.

        To a Space they go into its artifacts folder with the index, which makes it start anew with
        them. Raises OwnerTrainingError for a bad name, no runs, or what the Hub answers.
        """
        if repo_type not in ("model", "space"):
            raise OwnerTrainingError(f"repository type must be model or space, got {repo_type!r}")
        if repo_id.count("/") != 1 or not all(repo_id.split("/")):
            raise OwnerTrainingError(f"a repository is named user/name, not {repo_id!r}")
        if not (self.artifacts / self.place).is_dir():
            raise OwnerTrainingError("no finished run to push; train first")
        try:
            if repo_type == "model":
                hub.create_repo(repo_id, repo_type=repo_type, private=True, exist_ok=True)
            hub.upload_folder(
                repo_id=repo_id,
                repo_type=repo_type,
                folder_path=str(self.artifacts),
                path_in_repo="artifacts" if repo_type == "space" else ".",
                allow_patterns=[
                    f"{self.place.as_posix()}/**",
                    "leaderboard.json",
                    manifest.MANIFEST,
                ],
                commit_message=f"Runs of {self.place.as_posix()}",
            )
        except (OSError, ValueError) as error:
            # The Hub's own errors are OSErrors; their text says what was refused.
            raise OwnerTrainingError(f"the Hub refused: {error}") from error
        return f"Pushed {self.place.as_posix()} to {repo_id}."

    # ------------------------------------------------------------------------ inside

    @property
    def _log_path(self) -> Path:
        return self.staging / runs.WORK_FOLDER / "train.log"

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        if code != 0:
            # What is still running would write into the folder that is removed below.
            _end_group(process)
        log, histories = self._log_tail(), self._read_histories()
        with self._lock:
            cancelled = self._state.phase == "cancelling"
            if not cancelled:
                # From here on there is nothing to cancel.
                self._state = TrainingState("keeping", "Adding the runs to the artifacts.", log)
                self._histories = histories
        if cancelled:
            ended = TrainingState("cancelled", "Cancelled; nothing was kept.", ())
        else:
            try:
                ended = self._kept(code, log)
            except (OSError, ValueError) as error:
                # The thread's only way to tell the owner.
                ended = TrainingState("failed", f"Could not keep the runs: {error}", log)
        # Tidied up before it is said to be over, or a start right after would lose its folder.
        shutil.rmtree(self.staging, ignore_errors=True)
        with self._lock:
            self._state = ended

    def _kept(self, code: int, log: tuple[str, ...]) -> TrainingState:
        made = runs.find_runs(self.staging) if code == 0 else []
        if not made:
            return TrainingState("failed", f"The trainer ended with status {code}.", log)
        for run in made:
            target = self.artifacts / run.folder.relative_to(self.staging)
            if target.exists():  # left unfinished: finished ones are not trained again
                shutil.rmtree(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            run.folder.replace(target)
        # Here, because it imports scikit-learn, which the app otherwise does without.
        from finsent.results import leaderboard

        leaderboard.write(self.artifacts)
        manifest.write_manifest(self.artifacts)
        return TrainingState("finished", f"{len(made)} runs are in {self.place.as_posix()}.", log)

    def _log_tail(self) -> tuple[str, ...]:
        try:
            text = self._log_path.read_bytes()[-8000:].decode("utf-8", "replace")
        except FileNotFoundError:
            return ()
        # Progress bars rewrite their line: only its last state is of interest.
        lines = [line.rsplit("\r", 1)[-1].strip() for line in text.split("\n")]
        return tuple(line for line in lines if line)[-LOG_LINES:]

    def _read_histories(self) -> dict[tuple[str, int], list[dict[str, Any]]]:
        found: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for root in (self.staging / runs.WORK_FOLDER, self.staging):
            for arm in ARMS:
                for seed in self.recipe.seeds:
                    path = root / self.place / arm / f"seed-{seed}" / "history.jsonl"
                    lines = _whole_lines(path)
                    if lines:
                        found[arm, seed] = lines
        return found


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Epochs of a file that may be written to at this moment: its last line may be cut."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and its descendants, and returns when none of them runs any more."""
    # The second signal is for children that outlived the first: the leader's end says nothing.
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_SECONDS)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while running_in_group(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)


def running_in_group(group: int) -> list[int]:
    """Ids of a group's processes, without those that merely wait for somebody to note their end."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # gone meanwhile
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(path.parent.name))
    return found
