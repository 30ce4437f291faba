"""Where a command finds what is not part of the package: trained runs and the checkout."""

from __future__ import annotations

import os
from pathlib import Path

from finsent.machine.files import ROOT

VARIABLE = "FINSENT_ARTIFACTS"
FOLDER = "artifacts"


class PlaceError(RuntimeError):
    """A folder that a command reads is not there."""


def checkout() -> Path | None:
    """The checkout that this package runs from; None where it was installed without one."""
    return ROOT if (ROOT / "pyproject.toml").is_file() else None


def artifacts_to_write(given: Path | None) -> Path:
    """The folder that a command puts runs into; it may not exist yet.

    Args:
        given: The folder that the command line names; None if it names none.

    Returns:
        `given`, else what FINSENT_ARTIFACTS names, else ./artifacts if there is one, else the
        checkout's, else ./artifacts.
    """
    if given is not None:
        return given
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    here, root = Path(FOLDER), checkout()
    return here if here.is_dir() or root is None else root / FOLDER


def artifacts_to_read(given: Path | None) -> Path:
    """The folder that a command reads runs from, found as `artifacts_to_write` finds it.

    Raises:
        PlaceError: There is no such folder. The message says where it was looked for and how to
            get one.
    """
    folder = artifacts_to_write(given)
    if folder.is_dir():
        return folder
    if given is not None:
        raise PlaceError(f"there is no folder {given}; name one with finished runs")
    named = os.environ.get(VARIABLE)
    if named:
        raise PlaceError(f"there is no folder {named}, which {VARIABLE} names")
    raise PlaceError(
        f"no trained runs: {VARIABLE} is not set, there is no ./{FOLDER}, and "
        f"{checkout() or 'no checkout'} holds none. Take the folder {FOLDER}/ of finsent's "
        f"repository and name it by {VARIABLE}, or make one: finsent train --artifacts {FOLDER}"
    )
