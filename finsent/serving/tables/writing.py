"""Tables for spreadsheets and programs: what is written is read back cell by cell."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import IO, Any

Cell = str | int | float | Decimal

_FORMULA = re.compile(r"'* *[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d+)*(?:[eE][+-]?\d+)? ?%?")


def neutralize(cell: str) -> str:
    """A text cell that no spreadsheet runs as a formula: an apostrophe before what starts one.

    A number, with a sign too, is no formula. A cell that already has such an apostrophe gets
    another, so that `restored` gives back every cell.
    """
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def restored(cell: str) -> str:
    """The cell that `neutralize` made this one of."""
    return cell[1:] if cell.startswith("'") and neutralize(cell[1:]) == cell else cell


def csv_writer(stream: IO[str], end: str = "\n") -> Any:
    """Writes rows in which every text is quoted and no number is.

    A carriage return outside quotation marks begins a row for some readers, and so does one that
    ends a line in another way; between quotation marks none of them does.
    """
    return csv.writer(stream, lineterminator=end, quoting=csv.QUOTE_NONNUMERIC)


def written(row: Iterable[Cell]) -> list[Cell]:
    """A row with its texts neutralized; numbers are not touched."""
    return [neutralize(cell) if isinstance(cell, str) else cell for cell in row]


def write_csv(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> bytes:
    """UTF-8 with a byte order mark, which Excel needs to read anything but ASCII."""
    buffer = io.StringIO()
    writer = csv_writer(buffer, "\r\n")
    for row in (columns, *rows):
        writer.writerow(written(row))
    return buffer.getvalue().encode("utf-8-sig")
