"""left-out.json: whether its predictions give it, and whether runs beside it were trained alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from finsent.results.calibration import CalibrationError
from finsent.results.runs import Run, read_json
from finsent.results.schema import RESTORE, ArtifactError
from finsent.results.unseen.files import PREDICTIONS, TRANSFERS, settings, transfers_text

AGAIN = "run `finsent calibrate` again"


def left_out_problems(root: Path, runs: Sequence[Run]) -> Iterator[str]:
    """Problems below an artifacts root, each a sentence that names the file."""
    for folder in sorted({path.parent for path in root.glob("*/*/left-out.*")}):
        try:
            fresh = transfers_text(folder)
        except (ArtifactError, CalibrationError) as error:
            yield f"{folder / PREDICTIONS}: {error}; {RESTORE}"
            continue
        path = folder / TRANSFERS
        if not path.is_file():
            yield f"{path}: missing; {AGAIN}"
        elif path.read_bytes() != fresh.encode():
            yield f"{path}: not what {PREDICTIONS} gives; {AGAIN}"
        else:
            yield from _strangers(path, [run for run in runs if run.folder.parents[1] == folder])


def _strangers(path: Path, runs: Sequence[Run]) -> Iterator[str]:
    """Runs that were trained in another way than those that left a source out."""
    stored = read_json(path)
    for run in runs:
        own, other = settings(run.config["config"]), settings(stored["settings"])
        different = sorted(key for key in {*own, *other} if own.get(key) != other.get(key))
        if run.arm in stored["arms"] and different:
            yield (
                f"{path}: comes from runs with other {', '.join(different)} than {run.folder}; "
                "leave a source out of runs trained as this one was, and calibrate again"
            )
