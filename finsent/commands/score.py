"""finsent score in.csv --column headline --out out.csv: a label for each row of a file."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from finsent.machine.errors import one_line
from finsent.machine.options import seed
from finsent.machine.places import artifacts_to_read
from finsent.machine.workers import Workers, add_worker_options, connected, workers_from_options
from finsent.serving.output import ScoringError
from finsent.serving.scoring import ON_EMPTY, Model, PredictAll, Scored, Task, score_table
from finsent.serving.tables.reading import open_table
from finsent.serving.tables.rows import Reading, TableError
from finsent.serving.tables.text import DELIMITERS, QUOTING

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
    add(
        "source",
        type=Path,
        metavar="in.csv",
        help="CSV or TSV, JSON Lines, .xlsx or Parquet; text files may be packed by gzip",
    )
    add("--column", required=True, help="name of the column that holds the text")
    add("--out", type=Path, required=True, help="CSV file to write or to resume")
    _add_reading(parser)
    add(
        "--on-empty",
        choices=ON_EMPTY,
        default="keep",
        help="keep rows with an empty text, with an empty answer; skip them; or end with an error "
        "(default: keep)",
    )
    add(
        "--label-column",
        metavar="NAME",
        help="column with true labels, which answers are compared with (default: 'label', if there "
        "is one)",
    )
    _add_model(parser)
    add_worker_options(parser, "blocks of rows")


def _add_reading(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--encoding",
        help="of a text file, such as cp1252 (default: UTF-8, UTF-16 or UTF-32, as is found)",
    )
    add(
        "--delimiter",
        metavar="NAME",
        help=f"{', '.join(DELIMITERS)}, or a character; none: every line is a cell (default: as is "
        "found)",
    )
    add("--quoting", choices=tuple(QUOTING), help="of cells of a text file (default: as is found)")
    add(
        "--no-header",
        action="store_true",
        help="row 1 is a row like the others; columns are called 'column 1' and so on",
    )
    add("--sheet", metavar="NAME", help="of a workbook (default: the first)")


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
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
    add("--seed", type=seed, default=0, help="which seed (default: 0)")
    add(
        "--long",
        choices=("truncate", "windows"),
        default="truncate",
        help="of a text too long for the model, read the beginning, or all of it in windows of "
        "whole sentences, answering with their mean weighted by tokens (default: truncate)",
    )
    add("--engine", help="torch, graphs, openvino or openvino-fp32 (default: a rule)")


def run(options: argparse.Namespace) -> int:
    """Scores every row of the file.

    Raises:
        ScoringError: The input cannot be read to its end, or the output is not this command's.
            The rows before are kept.
    """
    # Here, because wrong options are told at once, not after what this takes to import.
    from finsent.machine.devices import gpu_count

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
    try:
        table = open_table(
            options.source,
            Reading(
                encoding=options.encoding,
                delimiter=options.delimiter,
                quoting=options.quoting,
                header=not options.no_header,
                sheet=options.sheet,
            ),
        )
        task = Task(
            table,
            options.column,
            model.run().label_names,
            model.about(),
            options.on_empty,
            options.label_column,
            model.engine,
            model.engine_here if workers.alone else None,  # workers may be other machines
        )
        done = _scored(task, model, workers, options)
    except TableError as error:
        raise ScoringError(f"{options.source}: {error.for_command}") from error
    for warning in table.warnings:
        _tell(f"warning: {options.source}, {warning}")
    for line in [f"{options.source}: {table.found}", *summary(done, options.out)]:
        print(one_line(line))
    return 0


def _scored(task: Task, model: Model, workers: Workers, options: argparse.Namespace) -> Scored:
    # Silent where nobody watches: a log needs no bar.
    bar = "{percentage:3.0f}% {bar} {postfix} [{elapsed}]"
    with tqdm(total=1.0, bar_format=bar, disable=None, delay=0.5) as shown:

        def report(rows: int, share: float) -> None:
            shown.n = share
            shown.set_postfix_str(f"{rows:,} rows")

        return score_table(
            task,
            options.source,
            options.out,
            functools.partial(_predicting, model, workers),
            report=report,
        )


def summary(done: Scored, target: Path) -> list[str]:
    """Lines that say what is in the output.

    Args:
        done: What a run did.
        target: The output.
    """
    tally = done.tally
    resumed = f", {done.resumed_from:,} of them by an earlier run" if done.resumed_from else ""
    lines = [f"{target}: {_count(done.rows, 'row')}{resumed}"]
    if tally.empty:
        lines.append(f"empty text, so an empty answer: {_count(tally.empty, 'row')}")
    if done.skipped:
        lines.append(f"empty text, so left out: {_count(done.skipped, 'row')}")
    if tally.truncated:
        lines.append(
            f"cut to what the model reads: {_count(tally.truncated, 'text')}, marked in the last "
            "column; --long windows reads texts whole"
        )
    if done.labelled:
        accuracy, macro_f1 = done.agreement()
        lines.append(
            f"accuracy {accuracy:.3f}, macro-F1 {macro_f1:.3f} on "
            f"{_count(done.labelled, 'row')} with a label"
        )
    if tally.unlabelled:
        lines.append(
            f"none of the model's labels to compare with: {_count(tally.unlabelled, 'row')}"
        )
    return lines


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def _tell(line: str) -> None:
    print(one_line(line), file=sys.stderr)


@contextlib.contextmanager
def _predicting(model: Model, workers: Workers) -> Iterator[PredictAll]:
    """The model in this process, or one in each worker."""
    from finsent.models.weights import terminal_bar

    if workers.alone:
        with terminal_bar() as bar:
            predict = model.load(bar if sys.stderr.isatty() else None)
        yield functools.partial(map, predict)
    else:
        with connected(workers) as pool:
            yield functools.partial(pool.map, model.load)
