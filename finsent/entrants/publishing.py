"""Runs of an entrant put on the board: all of them and the board with them, or nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from finsent.entrants.labels import EntrantError
from finsent.machine.files import write_bytes_atomically
from finsent.results import leaderboard, manifest
from finsent.results.external.runs import entrant_folder, find_external
from finsent.results.runs import LEADERBOARD, WORK_FOLDER, find_runs, slug

LONGEST_NAME = 80
STAGING = "entrant"
"""Below the artifacts' folder for unfinished work, which no reader of the artifacts looks into."""


@dataclass(frozen=True)
class Staged:
    """Where the runs of one entrant are made before they join the artifacts."""

    artifacts: Path
    root: Path
    """Laid out like the artifacts."""
    name: str

    def publish(self) -> int:
        """Moves the runs into the artifacts and makes the board again; returns how many.

        Whatever goes wrong, the artifacts are as they were before.
        """
        runs = find_external(self.root)
        if not runs:
            raise EntrantError(f"{self.name}: nothing was tested, so there is nothing to put up")
        new = [run.folder for run in runs] + sorted(self.root.glob("behaviour/*.json"))
        boards = self._boards(new)
        before = {path: path.read_bytes() if path.is_file() else None for path in boards}
        moved: list[tuple[Path, Path, Path]] = []
        aside = self.root / "replaced"
        try:
            for folder in new:
                target = self.artifacts / folder.relative_to(self.root)
                kept = aside / folder.relative_to(self.root)
                moved.append((folder, target, kept))
                if target.exists():
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    target.replace(kept)
                target.parent.mkdir(parents=True, exist_ok=True)
                folder.replace(target)
            for path, made in boards.items():
                made.replace(path)
        except BaseException:
            for folder, target, kept in reversed(moved):
                if not folder.exists():
                    if target.is_dir():
                        shutil.rmtree(target)
                    target.unlink(missing_ok=True)
                if kept.exists():
                    kept.replace(target)
                with contextlib.suppress(OSError):  # others' runs may be in there
                    target.parent.rmdir()
                    target.parent.parent.rmdir()
            for path, content in before.items():
                if content is None:
                    path.unlink(missing_ok=True)
                elif path.read_bytes() != content:
                    write_bytes_atomically(path, content)
            raise
        return len(runs)

    def _boards(self, new: Sequence[Path]) -> dict[Path, Path]:
        """Where the board and the checksums belong -> how they will be with new folders and files.

        They take a while, in which a process may be ended. So they are made in a copy of the
        artifacts, by links, and what is left to do is to move files.
        """
        whole = self.root / "whole"
        shutil.copytree(
            self.artifacts,
            whole,
            copy_function=_linked,
            ignore=shutil.ignore_patterns(WORK_FOLDER),
        )
        for path in new:
            target = whole / path.relative_to(self.root)
            if target.is_dir():
                shutil.rmtree(target)
            target.unlink(missing_ok=True)
            if path.is_dir():
                shutil.copytree(path, target, copy_function=_linked)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                _linked(path, target)
        leaderboard.write(whole)
        manifest.write_manifest(whole)
        names = (LEADERBOARD, manifest.MANIFEST)
        return {self.artifacts / name: whole / name for name in names}


def _linked(source: str | Path, target: str | Path) -> None:
    """The same file under another name; a copy where the disk has no such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextlib.contextmanager
def staged(artifacts: Path, name: str, source: str) -> Iterator[Staged]:
    """A place for the runs of an entrant; gone when the block ends. One at a time.

    Raises:
        EntrantError: The name is taken by another model, or another entrant is being put up.
    """
    check_name(artifacts, name, source)
    work = artifacts / WORK_FOLDER
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / f"{STAGING}.lock", timeout=0):
            folder = Path(tempfile.mkdtemp(prefix=f"{STAGING}-", dir=work))
            try:
                yield Staged(artifacts, folder, name)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except Timeout as error:
        raise EntrantError(
            f"another model is being put into {artifacts}; wait until that is done"
        ) from error


def check_name(artifacts: Path, name: str, source: str) -> None:
    """EntrantError for a name that cannot stand on the board, or is another model's there."""
    if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise EntrantError(
            f"name {name!r}: give one of 1 to {LONGEST_NAME} printable characters by --name"
        )
    if slug(name) in {slug(run.backbone) for run in find_runs(artifacts)}:
        raise EntrantError(f"{name} is a model of this project; give another --name")
    for run in find_external(artifacts) if entrant_folder(artifacts, name).is_dir() else ():
        if slug(run.backbone) == slug(name) and run.config["source"] != source:
            raise EntrantError(
                f"the name {name} stands for {run.config['source']} on the board, not for "
                f"{source}; give another --name"
            )
