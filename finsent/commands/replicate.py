"""finsent replicate: the write-up that this project starts from, as published and in fair arms.

One command makes the runs that are missing and writes a page with figures: how much of the
published difference is the extra epoch, and what dendrites do under equal budgets.
"""

from __future__ import annotations

import argparse
import sys

from finsent.commands.options import (
    KEPT,
    add_artifacts,
    add_data,
    add_resources,
    cycle_resources,
)
from finsent.machine.options import Distinct, add_seeds
from finsent.machine.places import artifacts_to_write


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which backbone, and how much of it."""
    parser.set_defaults(run=run, when_interrupted=KEPT)
    add = parser.add_argument
    add("--backbone", default="smollm2-135m", help="phi-2 as published, or another (%(default)s)")
    add_artifacts(parser, "--out")
    add_data(parser)
    add_resources(parser)
    add_seeds(parser, "deals of folds (0)")
    add("--folds", nargs="+", action=Distinct, type=int, metavar="N", help="only these folds")
    add(
        "--stop-after",
        type=float,
        metavar="SECONDS",
        help="give up what is not finished then; the same command goes on",
    )
    add("--stacked", type=int, default=1, metavar="N", help="runs side by side (%(default)s)")
    add("--page-only", action="store_true", help="write the page from the runs that are there")


def run(options: argparse.Namespace) -> int:
    """Makes the runs and writes the page.

    Returns:
        0 when every run is there, 1 when some failed.

    Raises:
        StudyError: There are too few runs for a page.
    """
    from finsent.reports.replication import write_page
    from finsent.results import manifest
    from finsent.study.cycles.plans import cut_down, replicate_study
    from finsent.study.cycles.runner import CycleStudyRunner
    from finsent.study.summary import write_summary

    artifacts = artifacts_to_write(options.artifacts).absolute()
    study = cut_down(
        replicate_study(options.backbone),
        datasets=None,
        regimes=None,
        seeds=options.seeds,
        folds=options.folds,
    )
    runner = CycleStudyRunner(study, artifacts, cycle_resources(options))
    failed = [] if options.page_only else runner.run()
    write_summary(runner.folder)
    page, said = write_page(runner.folder, options.backbone)
    manifest.write_manifest(artifacts)
    print(f"{said}\nwrote {page}")
    if failed:
        print(f"error: {len(failed)} runs failed; run the command again", file=sys.stderr)
    return 1 if failed else 0
