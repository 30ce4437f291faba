"""The studies' files and the runs that the report and the submission are written from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finsent.results.runs import Run, find_runs, read_json
from finsent.study.rows import StudyError
from finsent.study.summary import read_summaries
from finsent.study.views import Summary, study_names


@dataclass(frozen=True)
class Evidence:
    """Everything that the pages are made of."""

    artifacts: Path
    summaries: Mapping[str, Summary]
    board: Mapping[str, Any]
    runs: Sequence[Run]

    @classmethod
    def read(cls, artifacts: Path) -> Evidence:
        """Raises ArtifactError for a damaged file, StudyError without a finished study."""
        summaries = read_summaries(artifacts)
        if not study_names(summaries):
            raise StudyError(
                f"{artifacts / 'studies'} holds no finished study; make one with "
                "`python train_models.py study heads --select`, then without --select"
            )
        return cls(
            artifacts, summaries, read_json(artifacts / "leaderboard.json"), find_runs(artifacts)
        )

    def study(self, name: str) -> Path:
        """Folder of a study."""
        return self.artifacts / "studies" / name


def link_to(path: Path, page_folder: Path) -> str:
    """A relative link from a page in `page_folder`."""
    return Path(os.path.relpath(path.resolve(), page_folder.resolve())).as_posix()
