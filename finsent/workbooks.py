"""Tables out of .xlsx files."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

from finsent.records import DataError


def read_workbook(
    content: bytes, columns: Sequence[str], source: str
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """(place, cells of `columns`) of every row below the header of the first sheet.

    The place, "file, row 3", is for messages. Raises DataError when the file is no workbook or
    lacks a column.
    """
    # Only two data sets need it, and the app reads data-set names without it.
    from openpyxl import load_workbook

    try:
        book = load_workbook(io.BytesIO(content), read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{source} is not a readable .xlsx file ({error})") from error
    rows = book.worksheets[0].iter_rows(values_only=True)
    header = next(rows, ())
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(f"{source} has no column {', '.join(missing)}; its header is {header}")
    places = [header.index(column) for column in columns]
    for number, row in enumerate(rows, start=2):
        yield f"{source}, row {number}", tuple(row[place] for place in places)
