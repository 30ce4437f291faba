"""Tables and numbers in Markdown, as the generated pages spell them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

NONE = "–"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, numeric_from: int = 1) -> str:
    """A table whose columns from `numeric_from` on are aligned right."""
    marks = ["---" if i < numeric_from else "---:" for i in range(len(headers))]
    return "\n".join(_line(cells) for cells in (headers, marks, *rows))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def percent(share: float, digits: int = 2) -> str:
    """0.9714 as `97.14`: the heading says that it is in percent."""
    return f"{100 * share:.{digits}f}"


def signed(value: float, digits: int = 1) -> str:
    """With its sign; what rounds to zero is `0.0`."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def count(value: float) -> str:
    """A mean of counts as a whole number with thousands apart."""
    return f"{round(value):,}"


def seconds(value: float) -> str:
    """Two figures: a share of a stack's time is worth no more."""
    if value < 0.01:
        return "under 0.01"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def link_to(path: Path, page_folder: Path) -> str:
    """A relative link from a page in `page_folder`."""
    return Path(os.path.relpath(path.resolve(), page_folder.resolve())).as_posix()
