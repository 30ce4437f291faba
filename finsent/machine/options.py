"""Kinds of values on a command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

SEED_DIGITS = 9
"""Generators of random numbers take seeds below 2 ** 32."""


class Distinct(argparse.Action):
    """Takes several values, each of them once: whoever names one twice meant another."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Keeps the values. Argparse ends the command where one comes twice."""
        for value in values:
            if values.count(value) > 1:
                raise argparse.ArgumentError(self, f"{value} is named twice; name it once")
        setattr(namespace, self.dest, values)


def seed(text: str) -> int:
    """A seed as typed. Raises ArgumentTypeError for anything but a whole number from 0."""
    if not text.isdecimal() or len(text) > SEED_DIGITS:
        raise argparse.ArgumentTypeError(f"a seed is a whole number from 0, not {text!r}")
    return int(text)


def add_seeds(
    parser: argparse.ArgumentParser, about: str, default: Sequence[int] | None = None
) -> None:
    """The option --seeds: whole numbers from 0, each named once.

    Args:
        parser: Gets the option.
        about: What the seeds are of, for the help.
        default: Where none is named.
    """
    parser.add_argument(
        "--seeds", nargs="+", action=Distinct, type=seed, default=default, metavar="N", help=about
    )
