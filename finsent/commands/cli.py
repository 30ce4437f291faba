"""The command finsent and its commands, from app to replicate (COMMANDS).

`python -m finsent` is the same; `app.py` and `train_models.py` are short cuts from a checkout.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NoReturn

import finsent
from finsent.commands import app, artifacts, entrants, replicate, score, study, train
from finsent.machine.errors import WRONG_USE, end_with, one_line

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells give it."""

Adder = Callable[[argparse.ArgumentParser], None]
"""Gives a command its options and sets `run`, which takes them and returns the exit status."""

COMMANDS: Mapping[str, tuple[str, Adder]] = MappingProxyType(
    {
        "app": ("serve the page", app.add_options),
        "train": ("train arms and write their artifacts", train.add_options),
        "score": ("score a column of a CSV file", score.add_options),
        "evaluate": ("test a model from elsewhere and put it on the board", entrants.add_evaluate),
        "submit": ("put predictions on the board, as self-reported", entrants.add_submit),
        "verify": (
            "re-read every artifact and recompute its numbers",
            artifacts.add_verify,
        ),
        "latency": (
            "time all arms of every seed side by side, as the app serves them",
            artifacts.add_latency,
        ),
        "leaderboard": (
            "rebuild leaderboard.json and the checksums from the runs",
            artifacts.add_leaderboard,
        ),
        "figures": ("draw the figures from the runs", artifacts.add_figures),
        "calibrate": (
            "fit probabilities and sets for sources never seen, from runs that left one out",
            artifacts.add_calibrate,
        ),
        "study": ("many runs over folds, seeds and regimes", study.add_options),
        "replicate": (
            "the published comparison as it was made, beside fair arms",
            replicate.add_options,
        ),
    }
)


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the command line in one line, as every other error is said."""

    def error(self, message: str) -> NoReturn:
        """Ends the command with status 2."""
        said = one_line(f"error: {message}; the options are in: {self.prog} --help")
        self.exit(WRONG_USE, f"{said}\n")


def main(
    arguments: Sequence[str] | None = None,
    *,
    program: str = "finsent",
    commands: Iterable[str] = COMMANDS,
    description: str | None = "A fair benchmark of dendrites on financial sentiment.",
) -> int:
    """Runs one command.

    Args:
        arguments: The command and its options; None reads them from sys.argv.
        program: The name that help and errors give.
        commands: Which of COMMANDS there are.
        description: What the help begins with.

    Returns:
        The exit status: 0; 1 where work was done and something in it failed; 2 after an error that
        its user can mend; 130 after an interrupt.
    """
    parser = Parser(
        prog=program, description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"finsent {finsent.__version__}")
    names = list(commands)
    known = parser.add_subparsers(required=True, metavar="{" + ",".join(names) + "}")
    for name in names:
        what, add_options = COMMANDS[name]
        add_options(known.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}."))
    return execute(parser.parse_args(arguments))


def execute(options: argparse.Namespace) -> int:
    """Runs the command that was parsed; returns the exit status, as `main` does."""
    try:
        status: int = options.run(options)
        return status
    except KeyboardInterrupt:
        print(options.when_interrupted, file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return end_with(error)
