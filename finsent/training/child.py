"""What a run needs to know, and the process that makes it, seen from the trainer.

PerforatedAI keeps its state in globals and a crash may take the interpreter along, so runs are made
by `python -m finsent.training.child_main`, which is spoken to in lines of JSON.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finsent.config import TrainConfig
from finsent.machine.files import search_path
from finsent.results import runs


@dataclass(frozen=True)
class Job:
    """Everything a child process needs to make one run."""

    config: TrainConfig
    artifacts: Path
    """Artifacts root; the run goes to <root>/<backbone>/<dataset>/<arm>/seed-<n>."""
    shared: Path
    """Folder for hidden states, which all arms and seeds of a data set have in common."""
    device: str
    command: str
    git_commit: str | None
    data_dir: Path | None = None
    backbone_dir: Path | None = None
    overwrite: bool = False
    """Start anew, also where an unfinished run could go on."""

    def to_json(self) -> str:
        """One line."""
        return json.dumps({**asdict(self), "config": self.config.to_dict()}, default=str)

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Inverse of `to_json`."""
        data: dict[str, Any] = json.loads(text)
        for key in ("data_dir", "backbone_dir"):
            data[key] = None if data[key] is None else Path(data[key])
        for key in ("artifacts", "shared"):
            data[key] = Path(data[key])
        return cls(**{**data, "config": TrainConfig.from_dict(data["config"])})

    @property
    def folder(self) -> Path:
        """Where the finished run stands."""
        c = self.config
        return runs.run_folder(self.artifacts, c.backbone, c.dataset, c.arm, c.seed)

    @property
    def work_folder(self) -> Path:
        """Where it stands until it is finished; no reader of the artifacts looks there."""
        c = self.config
        return runs.run_folder(
            self.artifacts / runs.WORK_FOLDER, c.backbone, c.dataset, c.arm, c.seed
        )


class Child:
    """A process that makes runs one after another, without a terminal to ask questions on."""

    def __init__(self, environment: Mapping[str, str], folder: Path, *, lines: bool) -> None:
        """folder: where it works; lines: whether progress is printed in lines instead of a bar."""
        # Bars of libraries would come as lines as well.
        quiet = {"TQDM_DISABLE": "1"} if lines else {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "finsent.training.child_main", *(["--lines"] if lines else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={
                **environment,
                **quiet,
                "PYTHONPATH": search_path(environment),
                "TOKENIZERS_PARALLELISM": "false",
            },
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        # Without further jobs it ends by itself; a caller that was interrupted does not wait.
        if any(error):
            self._process.terminate()
        self._process.communicate()

    def make(self, job: Job) -> str | None:
        """Have a job made; returns why it failed, after which the process is gone, or None."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the process was started without pipes to send a job through")
        try:
            print(job.to_json(), file=stdin, flush=True)
        except BrokenPipeError:  # it died between two jobs
            return self._end()
        reply = stdout.readline()
        return json.loads(reply)["error"] if reply else self._end()

    def _end(self) -> str:
        status = self._process.wait()
        if status < 0:
            return f"its process was ended by {signal.Signals(-status).name}"
        return f"its process ended with status {status}"
