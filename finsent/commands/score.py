"""finsent score in.csv --column headline --out out.csv: a label for each row of a file."""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from finsent.machine.places import artifacts_to_read
from finsent.machine.workers import Workers, add_worker_options, connected, workers_from_options
from finsent.serving.scoring import Model, PredictAll, ScoringError, score_csv

SIZES = {"fast": Path("minilm-l6", "news"), "accurate": Path("mpnet-base", "news")}
"""Below the folder of artifacts: the runs that score where none are named."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The file, its column, the model, and the workers."""
    parser.set_defaults(
        run=run, when_interrupted="interrupted; run the same command again to resume"
    )
    parser.description = (
        "Adds a label and its probabilities to every row. Run the same command again to resume "
        "after an interruption."
    )
    add = parser.add_argument
    add("source", type=Path, metavar="in.csv", help="CSV file with a header line")
    add("--column", required=True, help="name of the column that holds the text")
    add("--out", type=Path, required=True, help="CSV file to write or to resume")
    add("--encoding", default="utf-8-sig", help="of the input (default: UTF-8)")
    add(
        "--runs",
        type=Path,
        help="folder of trained runs, artifacts/<backbone>/<dataset> (default: those of --size in "
        "FINSENT_ARTIFACTS, ./artifacts or the checkout's)",
    )
    add(
        "--size",
        choices=tuple(SIZES),
        help="the model where no runs are named: MiniLM-L6, or MPNet, which is larger, slower and "
        "more often right (default: fast)",
    )
    add("--arm", default="dendritic", help="which arm (default: dendritic)")
    add("--seed", type=int, default=0, help="which seed (default: 0)")
    add(
        "--long",
        choices=("truncate", "windows"),
        default="truncate",
        help="of a text too long for the model, read the beginning, or all of it in windows of "
        "whole sentences, answering with their mean weighted by tokens (default: truncate)",
    )
    add("--engine", help="torch, graphs, openvino or openvino-fp32 (default: a rule)")
    add_worker_options(parser, "blocks of rows")


def run(options: argparse.Namespace) -> int:
    """Scores every row of the file."""
    # Here, because wrong options are told at once, not after what this takes to import.
    from finsent.machine.devices import gpu_count

    if not options.source.is_file():
        raise ScoringError(f"there is no file {options.source}")
    if options.runs is not None and options.size is not None:
        raise ScoringError("--runs names the model already; leave out --size")
    size = options.size or "fast"
    runs = artifacts_to_read(None) / SIZES[size] if options.runs is None else options.runs
    workers = workers_from_options(options, gpu_count())
    model = Model(
        runs.absolute(),
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
