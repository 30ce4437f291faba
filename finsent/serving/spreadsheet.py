"""Tables from and for spreadsheets: strict reading with row numbers, harmless writing."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_BYTES = 2_000_000
MAX_ROWS = 2_000

_DELIMITERS = (",", ";", "\t")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


class TableError(ValueError):
    """A file that is not a table; says which row and why."""


@dataclass(frozen=True)
class Table:
    """A header and rows of as many cells. Row numbers are a spreadsheet's: the header is row 1."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, name: str) -> list[str]:
        """Cells of one column, top to bottom. Raises TableError when there is none of that name."""
        if name not in self.columns:
            raise TableError(f"no column {name!r}; there are {', '.join(self.columns)}")
        position = self.columns.index(name)
        return [row[position] for row in self.rows]


def neutralize(cell: str) -> str:
    """A text cell that no spreadsheet runs as a formula: an apostrophe before what starts one.

    For text only; numbers, negative ones too, are written as they are.
    """
    return f"'{cell}" if cell.lstrip(" ").startswith(_FORMULA_STARTS) else cell


def write_csv(columns: Sequence[str], rows: Iterable[Sequence[str | float | int]]) -> bytes:
    """UTF-8 with a byte-order mark, which Excel needs to read anything but ASCII. Text cells are
    neutralized, numbers are not touched."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    for row in (columns, *rows):
        writer.writerow([neutralize(cell) if isinstance(cell, str) else cell for cell in row])
    return buffer.getvalue().encode("utf-8-sig")


def read_csv(path: Path) -> Table:
    """A comma-, semicolon- or tab-separated UTF-8 file with a header.

    Raises TableError, naming the row where there is one, for a file that is too large, is not
    UTF-8, has no header or rows, or has a row of another length.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise TableError(f"{size / 1e6:.1f} MB are too many: at most {MAX_BYTES / 1e6:.0f} MB")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise TableError(
            f"line {row}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error
    if "\0" in text:
        row = text.count("\n", 0, text.index("\0")) + 1
        raise TableError(f"line {row}: a zero byte; this is not a text file")
    return _parse(text)


def _parse(text: str) -> Table:
    first = text.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records: list[list[str]] = []
    try:
        for record in reader:
            records.append(record)
            if len(records) > MAX_ROWS + 1:
                raise TableError(f"row {len(records)}: at most {MAX_ROWS:,} rows and a header")
    except csv.Error as error:
        raise TableError(f"row {len(records) + 1}: {error}; check its quotation marks") from error
    while records and not any(records[-1]):
        records.pop()
    if not records:
        raise TableError("the file is empty; it needs a header and at least one row")
    header = tuple(name.strip() for name in records[0])
    _check_header(header)
    if len(records) == 1:
        raise TableError("row 1 is the only one; below the header must be at least one row")
    for number, record in enumerate(records[1:], start=2):
        # A line without any character is an empty cell where there is one column.
        if not record and len(header) == 1:
            record.append("")
        if len(record) != len(header):
            raise TableError(
                f"row {number}: {len(record)} cells, the header has {len(header)}; put quotation "
                "marks around text that holds the separator"
            )
    return Table(header, tuple(map(tuple, records[1:])))


def _check_header(header: Sequence[str]) -> None:
    if not all(header):
        raise TableError(f"row 1: column {header.index('') + 1} has no name")
    for name in header:
        if header.count(name) > 1:
            raise TableError(f"row 1: two columns are named {name!r}")
