"""Runs a study of cycles: cells spread over processes of this machine, kept as lines of results.

Where several runs may go side by side, cells of one regime and data set are made together. Rows are
appended whenever all arms of a recipe are there, so a study that is cut off has complete
comparisons only, and goes on with the cells that are missing. What a cell becomes does not depend
on the processes.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from finsent.config import STUDY_ARMS
from finsent.machine.errors import message_for_user
from finsent.study.cycles.cell import Cell, CellTrainer, Line
from finsent.study.cycles.committee import taught, taught_keys
from finsent.study.cycles.plans import PLAIN, CycleStudy
from finsent.study.rows import RESULTS, RunKey, append_runs, read_runs

CYCLES = "cycles.csv"
"""Beside the results: the cycles of every row."""
PROVENANCE = "provenance.json"
"""Beside the results: where they were made, one entry for every call that added some."""
STACKED = {"cuda": 20, "cpu": 1}
"""Runs side by side unless told otherwise: two deals of ten folds."""
_COLUMNS = (*RunKey._fields, "epochs", "rates", "params", "kept")


@dataclass(frozen=True)
class CycleResources:
    """What a study of cycles may use."""

    device: str
    processes: int
    """In all."""
    provenance: Mapping[str, Any]
    """Commit, versions and device, to be kept with the rows."""
    data_dir: Path | None = None
    backbone_dir: Path | None = None
    stop_after: float | None = None
    """Seconds; cells that are not finished then are given up."""
    gpus: tuple[str, ...] = ()
    """Which the processes take in turns, as CUDA_VISIBLE_DEVICES names them; none: the first."""
    stacked: int = 1
    """Runs side by side in a process; cells are made together until they are so many."""


@dataclass(frozen=True)
class _Failed:
    """Cells that were not made."""

    names: list[str]
    why: str


@dataclass(frozen=True)
class _Done:
    """The end of cells that were made together."""

    cells: int


Found = list[Line] | _Failed | _Done
Cells = tuple[Cell, ...]
"""Of one regime and data set, made together."""


class CycleStudyRunner:
    """One study in one folder; goes on where it was stopped."""

    def __init__(self, study: CycleStudy, artifacts: Path, resources: CycleResources) -> None:
        self._study, self._resources = study, resources
        self.folder = artifacts / "studies" / study.name

    def run(self) -> list[str]:
        """Make every run that is not in the results yet; returns the cells that failed."""
        path = self.folder / RESULTS
        done = {run.key for run in read_runs(path)}
        missing = [cell for cell in self._cells() if not done.issuperset(keys_of(cell))]
        cells = together(missing, self._resources.stacked)
        if not cells:
            print(f"all runs of study {self._study.name} are in {path}")
            return []
        failed: list[str] = []
        started = False
        with tqdm(total=len(missing), desc=self._study.name, unit="cell", smoothing=0.1) as bar:
            for found in _made(cells, self._resources):
                if isinstance(found, _Done):
                    bar.update(found.cells)
                elif isinstance(found, _Failed):
                    for name in found.names:
                        bar.write(f"error: {name}: {found.why}", file=sys.stderr)
                    failed += found.names
                else:
                    new = [line for line in found if line.run.key not in done]
                    append_runs(path, [line.run for line in new])
                    _append_cycles(self.folder / CYCLES, new)
                    if new and not started:
                        self._note()
                        started = True
        return failed

    def _cells(self) -> list[Cell]:
        """In the order of making: all regimes and data sets of a repetition before the next."""
        return [
            Cell(regime, dataset, split, seed)
            for seed in self._study.seeds
            for regime in self._study.regimes
            for dataset in self._study.datasets
            for split in self._study.splits
        ]

    def _note(self) -> None:
        path = self.folder / PROVENANCE
        entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        if dict(self._resources.provenance) not in entries:
            entries.append(dict(self._resources.provenance))
            path.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def together(cells: Sequence[Cell], stacked: int) -> list[Cells]:
    """Cells that may be made together: of one regime and data set, of one after another, as many
    as there may be runs side by side."""
    found: list[list[Cell]] = []
    for cell in cells:
        last = found[-1] if found else []
        alike = last and (last[0].regime, last[0].dataset) == (cell.regime, cell.dataset)
        if alike and len(last) < stacked:
            last.append(cell)
        else:
            found.append([cell])
    return [tuple(alike) for alike in found]


def keys_of(cell: Cell) -> list[RunKey]:
    """The rows that a cell becomes."""
    if cell.regime.teacher is not None:
        return taught_keys(cell)
    return [
        RunKey(
            cell.regime.backbone,
            cell.dataset,
            cell.regime.name,
            recipe,
            arm,
            cell.fold,
            cell.seed,
            cell.dataset,
        )
        for recipe in cell.regime.recipes or (PLAIN,)
        for arm in STUDY_ARMS
        if cell.regime.recipes or arm == "baseline"
    ]


def _append_cycles(path: Path, lines: Sequence[Line]) -> None:
    new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(_COLUMNS)
        for line in lines:
            cycles = line.cycles
            writer.writerow(
                [
                    *line.run.key,
                    ";".join(str(c.epochs) for c in cycles),
                    ";".join(f"{c.rate:g}" for c in cycles),
                    ";".join(str(c.trained_params) for c in cycles),
                    line.kept,
                ]
            )


def _made(cells: Sequence[Cells], resources: CycleResources) -> Iterator[Found]:
    """What becomes of every cell, as it is ready, until the time is up."""
    if resources.processes == 1 and not resources.gpus:
        yield from _made_here(cells, resources)
        return
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    left = list(reversed(cells))
    working: dict[Connection, tuple[Any, Cells]] = {}
    gpus = resources.gpus or (None,)
    for number in range(min(resources.processes, len(cells))):
        here, there = context.Pipe()
        gpu = gpus[number % len(gpus)]
        process = context.Process(target=_serve, args=(there, resources, gpu), daemon=True)
        process.start()
        there.close()
        working[here] = (process, ())
        _hand_out(here, left, working)
    try:
        while working:
            remaining = None
            if resources.stop_after is not None:
                remaining = resources.stop_after - (time.monotonic() - started)
                if remaining <= 0:
                    print(
                        f"stopped after {resources.stop_after:g} s: what is missing can be made "
                        "by the same command",
                        file=sys.stderr,
                    )
                    return
            for ready in wait(list(working), remaining):
                pipe = ready if isinstance(ready, Connection) else None
                if pipe is None:
                    continue
                process, under_way = working[pipe]
                try:
                    found = pipe.recv()
                except EOFError:
                    process.join()
                    del working[pipe]
                    why = f"its process ended with {process.exitcode}"
                    yield _Failed([cell.name for cell in under_way], why)
                    continue
                yield found
                if isinstance(found, (_Done, _Failed)):
                    _hand_out(pipe, left, working)
    finally:
        for process, _ in working.values():
            process.terminate()


def _hand_out(
    pipe: Connection, left: list[Cells], working: dict[Connection, tuple[Any, Cells]]
) -> None:
    """Give a process the next cells, or let it go."""
    process, _ = working[pipe]
    if left:
        cells = left.pop()
        working[pipe] = (process, cells)
        pipe.send(cells)
        return
    pipe.send(None)
    process.join()
    del working[pipe]


def _made_here(cells: Sequence[Cells], resources: CycleResources) -> Iterator[Found]:
    started = time.monotonic()
    trainer = _trainer(resources)
    for made_together in cells:
        for found in _of(made_together, trainer):
            yield found
            spent = time.monotonic() - started
            if resources.stop_after is not None and spent > resources.stop_after:
                return


def _serve(pipe: Connection, resources: CycleResources, gpu: str | None) -> None:
    """A process that makes cells until it is sent none."""
    import torch

    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # read when the first tensor goes there

    torch.set_num_threads(1)
    trainer = _trainer(resources)
    while (cells := pipe.recv()) is not None:
        for found in _of(cells, trainer):
            pipe.send(found)


def _trainer(resources: CycleResources) -> CellTrainer:
    import torch

    from finsent.machine.devices import use_deterministic_kernels

    use_deterministic_kernels(torch.device(resources.device))
    return CellTrainer(
        resources.device, resources.data_dir, resources.backbone_dir, resources.stacked
    )


def _of(cells: Cells, trainer: CellTrainer) -> Iterator[Found]:
    """The lines of cells, and their end."""
    try:
        makes = trainer.lines if cells[0].regime.teacher is None else partial(taught, trainer)
        for lines in makes(cells):
            yield [line.without_states() for line in lines]
    except Exception as error:
        trainer.forget()
        said = message_for_user(error)
        why = traceback.format_exc() if said is None else said
        yield _Failed([cell.name for cell in cells], why)
    else:
        yield _Done(len(cells))
