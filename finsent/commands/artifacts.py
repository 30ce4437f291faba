"""finsent verify | latency | leaderboard | figures | calibrate: what is made from finished runs."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from finsent.commands.options import KEPT, add_artifacts, add_data, rebuild_index
from finsent.machine.options import Distinct
from finsent.machine.places import artifacts_to_read

Run = Callable[[argparse.Namespace], int]

ROWS = 16
"""Of every run that `verify --predictions` computes again where no number is given."""


def _adder(run: Run) -> Callable[[argparse.ArgumentParser], None]:
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.set_defaults(run=run, when_interrupted=KEPT)
        add_artifacts(parser)

    return add_options


def add_verify(parser: argparse.ArgumentParser) -> None:
    """The folder of runs, one entrant of it, and whether to compute predictions again."""
    _adder(_verify)(parser)
    parser.add_argument(
        "--entrant",
        metavar="NAME",
        help="check the runs of one model from elsewhere only, as for a pull request",
    )
    parser.add_argument(
        "--predictions",
        type=_rows,
        nargs="?",
        const=ROWS,
        metavar="N",
        help=f"also compute N rows of every run again from its weights, drawn anew each time "
        f"({ROWS}); takes seconds a run, the sentences and the weights of the backbones",
    )
    add_data(parser)


def _rows(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of rows of at least 1, not {text!r}")
    return int(text)


def _counted(problems: int) -> str:
    return "1 problem" if problems == 1 else f"{problems} problems"


def _verify(options: argparse.Namespace) -> int:
    artifacts = artifacts_to_read(options.artifacts)
    from finsent.results.external.runs import find_external
    from finsent.results.runs import find_runs
    from finsent.verification import verify, verify_entrant

    if options.entrant is not None:
        problems = verify_entrant(artifacts, options.entrant)
    else:
        problems = verify(artifacts)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print(f"{_counted(len(problems))} in {artifacts}", file=sys.stderr)
        return 1
    if options.entrant is not None:
        print(f"{options.entrant}: every run fits the test parts of {artifacts}")
        return 0
    count, others = len(find_runs(artifacts)), len(find_external(artifacts))
    more = f", {others} of models from elsewhere" if others else ""
    print(f"{count} runs{more} verified in {artifacts}")
    return 0 if options.predictions is None else _recompute(artifacts, options)


def _recompute(artifacts: Path, options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from finsent.verification.recompute import recompute

    with tqdm(bar_format="{elapsed} {desc}") as bar:
        found = recompute(
            artifacts,
            options.predictions,
            data_dir=options.data_dir,
            backbone_dir=options.backbone_dir,
            report=bar.set_description_str,
        )
    for line in found.skipped:
        print(f"not computed again: {line}")
    for problem in found.problems:
        print(problem, file=sys.stderr)
    if found.problems:
        print(f"{_counted(len(found.problems))} in {artifacts}", file=sys.stderr)
        return 1
    if not found.rows:
        print("error: no row could be computed again", file=sys.stderr)
        return 1
    print(
        f"{found.rows} rows of {found.runs} runs computed again from the weights: probabilities "
        f"differ by at most {found.largest:.1g}"
    )
    return 0


def _latency(options: argparse.Namespace) -> int:
    artifacts = artifacts_to_read(options.artifacts)
    from finsent.models.backbones import default_device
    from finsent.results.runs import find_runs
    from finsent.serving.retiming import retime

    for line in retime(find_runs(artifacts), default_device()):
        print(line)
    rebuild_index(artifacts)
    return 0


def _leaderboard(options: argparse.Namespace) -> int:
    artifacts = artifacts_to_read(options.artifacts)
    rebuild_index(artifacts)
    print(f"wrote {artifacts / 'leaderboard.json'}")
    return 0


def _figures(options: argparse.Namespace) -> int:
    artifacts = artifacts_to_read(options.artifacts)
    from finsent.plots.png_figures import make_figures
    from finsent.results import manifest

    folder = artifacts / "figures"
    for path in make_figures(artifacts):
        print(f"wrote {path}")
    charts = sorted(
        artifacts.glob("*/*/dendritic/seed-*/PAI.png"),
        key=lambda path: ("allagree" not in path.parts, path),
    )
    if charts:
        shutil.copyfile(charts[0], folder / "PAI.png")
        print(f"wrote {folder / 'PAI.png'} (drawn by PerforatedAI for {charts[0].parent})")
    else:
        print("no dendritic run has a PAI.png; train one first", file=sys.stderr)
    manifest.write_manifest(artifacts)
    return 0 if charts else 1


def add_calibrate(parser: argparse.ArgumentParser) -> None:
    """Options of `finsent calibrate`."""
    from finsent.config import ARMS

    _adder(_calibrate)(parser)
    parser.add_argument(
        "--left-out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of runs on <dataset>-without-<source>, seed 0, for every source",
    )
    parser.add_argument("--backbone", required=True, help="of the runs, such as minilm-l6")
    parser.add_argument("--dataset", default="news", help="made of several sources (%(default)s)")
    parser.add_argument(
        "--arms", nargs="+", action=Distinct, choices=ARMS, default=["baseline", "dendritic"]
    )


def _calibrate(options: argparse.Namespace) -> int:
    artifacts = artifacts_to_read(options.artifacts)
    from finsent.results import manifest
    from finsent.results.unseen.files import collect, write_transfers

    collected = collect(
        options.left_out, artifacts, options.backbone, options.dataset, options.arms
    )
    print(f"wrote {collected}\nwrote {write_transfers(collected.parent)}")
    manifest.write_manifest(artifacts)
    return 0


add_latency = _adder(_latency)
add_leaderboard = _adder(_leaderboard)
add_figures = _adder(_figures)
