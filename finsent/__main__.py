"""python -m finsent score in.csv --column headline --out out.csv"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from finsent.machine.files import ROOT
from finsent.machine.workers import (
    Workers,
    WorkersError,
    add_worker_options,
    connected,
    workers_from_options,
)
from finsent.serving.scoring import Model, PredictAll, ScoringError, score_csv

ARTIFACTS = ROOT / "artifacts"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and scores; 0 when every row was written."""
    parser = argparse.ArgumentParser(prog="python -m finsent", description="Financial sentiment.")
    commands = parser.add_subparsers(dest="command", required=True)
    score = commands.add_parser(
        "score",
        help="score a column of a CSV file",
        description="Adds a label and its probabilities to every row. Run the same command again "
        "to go on after an interruption.",
    )
    score.add_argument("source", type=Path, metavar="in.csv", help="CSV file with a header line")
    score.add_argument("--column", required=True, help="name of the column that holds the text")
    score.add_argument(
        "--out", type=Path, required=True, help="CSV file to write, or to go on with"
    )
    score.add_argument("--encoding", default="utf-8-sig", help="of the input (default: UTF-8)")
    score.add_argument(
        "--runs",
        type=Path,
        default=ARTIFACTS / "smollm2-135m" / "allagree",
        help="folder of trained runs, artifacts/<backbone>/<dataset>",
    )
    score.add_argument("--arm", default="dendritic", help="which arm (default: dendritic)")
    score.add_argument("--seed", type=int, default=0, help="which seed (default: 0)")
    score.add_argument(
        "--long",
        choices=("truncate", "windows"),
        default="truncate",
        help="of a text too long for the model, read the beginning, or all of it in windows of "
        "whole sentences, answering with their mean weighted by tokens (default: truncate)",
    )
    score.add_argument(
        "--engine", help="torch, graphs, openvino or openvino-fp32 (default: a rule)"
    )
    add_worker_options(score, "blocks of rows")
    options = parser.parse_args(arguments)
    # Here, because wrong options are told at once, not after what all of that takes to import.
    from finsent.engines.rule import EngineError
    from finsent.machine.devices import gpu_count
    from finsent.models.adapter_files import AdapterError
    from finsent.models.presets import BackboneError
    from finsent.models.weights import WeightsError
    from finsent.results.schema import ArtifactError

    try:
        if not options.source.is_file():
            raise ScoringError(f"there is no file {options.source}")
        workers = workers_from_options(options, gpu_count())
        model = Model(
            options.runs.absolute(),
            options.arm,
            options.seed,
            options.engine,
            whole=options.long == "windows",
        )
        label_names = model.label_names
        with (
            _predicting(model, workers) as predict,
            tqdm(total=1.0, bar_format="{percentage:3.0f}% {bar} {postfix} [{elapsed}]") as shown,
        ):

            def report(rows: int, share: float) -> None:
                shown.n = share
                shown.set_postfix_str(f"{rows:,} rows")

            done = score_csv(
                options.source,
                options.out,
                options.column,
                predict,
                label_names,
                encoding=options.encoding,
                report=report,
            )
    except (
        AdapterError,
        ArtifactError,
        BackboneError,
        EngineError,
        ScoringError,
        WeightsError,
        WorkersError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    resumed = f", {done.resumed_from:,} of them by an earlier run" if done.resumed_from else ""
    print(f"{options.out}: {done.rows:,} rows{resumed}")
    return 0


@contextlib.contextmanager
def _predicting(model: Model, workers: Workers) -> Iterator[PredictAll]:
    """The model in this process, or one in each worker."""
    from finsent.models.weights import terminal_bar

    if workers.alone:
        with terminal_bar() as bar:
            predict = model.load(bar)
        yield functools.partial(map, predict)
    else:
        with connected(workers) as pool:
            yield functools.partial(pool.map, model.load)


if __name__ == "__main__":
    sys.exit(main())
