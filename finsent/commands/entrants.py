"""finsent evaluate | submit: a model from elsewhere on the board, or what it predicted."""

from __future__ import annotations

import argparse
from pathlib import Path

from finsent.commands.options import add_artifacts, add_data, shown_command
from finsent.machine.options import Distinct, add_seeds
from finsent.machine.places import artifacts_to_read

UNCHANGED = "interrupted; the board is as it was, and answers so far are kept"


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--licence", help="of the model (default: what it states)")
    parser.add_argument(
        "--trained-on",
        metavar="SETS",
        help="data sets that the model was trained on, with commas, or `none` (default: unknown)",
    )
    add_artifacts(parser)


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """The model, how it is asked and on what."""
    parser.set_defaults(run=_evaluate, when_interrupted=UNCHANGED)
    parser.description = (
        "Tests a model on the test part of every data set whose labels it has, and on ten folds "
        "unless it was trained on the data, and puts it on the board."
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="folder or Hub id of a classifier (transformers, PEFT, ONNX), or the name of one that "
        "is trained in seconds: see docs/board.md",
    )
    add("--name", help="on the board (default: the model's own)")
    add("--revision", help="branch, tag or commit on the Hub (default: main)")
    add(
        "--labels",
        metavar="LABEL=NAME,…",
        help="which output means what, as in negative=LABEL_0,neutral=LABEL_1,positive=LABEL_2",
    )
    add("--base", help="folder or Hub id that a PEFT adapter belongs on (default: as it says)")
    add(
        "--zero-shot",
        action="store_true",
        help="ask a generative model by the log-probabilities of the labels",
    )
    add(
        "--datasets",
        nargs="+",
        action=Distinct,
        metavar="SET",
        help="default: those on the board whose labels the model has",
    )
    add_seeds(parser, "of the split (default: 0)", [0])
    add("--no-folds", action="store_true", help="test parts only")
    add(
        "--time",
        action="store_true",
        help="also time one sentence; for a machine that does nothing else",
    )
    add_data(parser)
    _add_shared(parser)


def _evaluate(options: argparse.Namespace) -> int:
    from finsent.entrants.evaluating import Request, evaluate
    from finsent.entrants.labels import parse_labels
    from finsent.models.weights import terminal_bar

    artifacts = artifacts_to_read(options.artifacts)
    request = Request(
        model=options.model,
        name=options.name,
        revision=options.revision,
        zero_shot=options.zero_shot,
        labels=parse_labels(options.labels) if options.labels else None,
        base=options.base,
        datasets=tuple(options.datasets) if options.datasets else None,
        seeds=tuple(options.seeds),
        trained_on=_names(options.trained_on),
        licence=options.licence,
        folds=not options.no_folds,
        timed=options.time,
        command=shown_command(),
    )
    with terminal_bar() as bar:
        count = evaluate(
            request,
            artifacts,
            data_dir=options.data_dir,
            backbone_dir=options.backbone_dir,
            report=bar,
        )
    print(f"{count} runs are on the board of {artifacts}")
    return 0


def add_submit(parser: argparse.ArgumentParser) -> None:
    """The files, and whose they are."""
    parser.set_defaults(run=_submit, when_interrupted=UNCHANGED)
    parser.description = (
        "Scores predictions for the test part of a data set, and puts them on the board as "
        "self-reported. Columns: id and the names of the labels."
    )
    parser.add_argument("files", nargs="+", action=Distinct, type=Path, metavar="predictions.csv")
    parser.add_argument("--name", required=True, help="on the board")
    parser.add_argument("--url", required=True, help="page that describes the model")
    _add_shared(parser)


def _submit(options: argparse.Namespace) -> int:
    from finsent.entrants.submitting import Submission, submit

    submission = Submission(
        options.name, options.url, _names(options.trained_on), options.licence, shown_command()
    )
    for line in submit(options.files, submission, artifacts_to_read(options.artifacts)):
        print(line)
    return 0


def _names(given: str | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    return tuple(name.strip() for name in given.split(",") if name.strip() not in ("", "none"))
