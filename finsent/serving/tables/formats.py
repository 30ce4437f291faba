"""Files whose cells are not text alone: workbooks, Parquet, JSON Lines."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import zipfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from finsent.machine.strict_json import strict_json
from finsent.serving.tables.rows import Reading, Row, TableError
from finsent.serving.tables.text import TextSource

MESSAGE = 200
"""Characters that are repeated of what a library says of a damaged file."""
PARQUET_ROWS = 1024
"""Rows in memory at a time."""


class WorkbookSource:
    """One sheet of an .xlsx workbook, read row by row."""

    names: tuple[str, ...] | None = None

    def __init__(self, path: Path, reading: Reading) -> None:
        """Raises TableError for a damaged or too large workbook, or a sheet it has not."""
        self._path, self.share, self.warnings = path, 0.0, list[str]()
        try:
            with zipfile.ZipFile(path) as packed:
                unpacked = sum(part.file_size for part in packed.infolist())
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise TableError(f"the workbook is damaged: {_short(error)}") from error
        if reading.max_bytes is not None and unpacked > reading.max_bytes:
            raise TableError(
                f"{unpacked / 1e6:.0f} MB when it is unpacked: at most "
                f"{reading.max_bytes / 1e6:.0f} MB"
            )
        with self._opened(values=True) as book:
            sheets = [sheet.title for sheet in book.worksheets]
        if not sheets:
            raise TableError("the workbook has no sheet with cells")
        if reading.sheet is not None and reading.sheet not in sheets:
            raise TableError(
                f"no sheet {reading.sheet!r}; there are {', '.join(map(repr, sheets))}"
            )
        self._sheet = reading.sheet or sheets[0]
        others = f" of {len(sheets)}" if len(sheets) > 1 else ""
        self.found = f"workbook, sheet {self._sheet!r}{others}"
        if others and next(self.rows(), None) is None:
            raise TableError(
                f"the first sheet, {self._sheet!r}, is empty; there are "
                f"{', '.join(map(repr, sheets))}: put the table first",
                "--sheet names another",
            )

    @contextlib.contextmanager
    def _opened(self, *, values: bool) -> Iterator[Any]:
        import openpyxl

        # As a stream: openpyxl judges a path by its ending.
        with self._path.open("rb") as stream:
            try:
                book = openpyxl.load_workbook(stream, read_only=True, data_only=values)
            except Exception as error:  # openpyxl promises no kinds of errors for damaged files
                raise TableError(f"the workbook is damaged: {_short(error)}") from error
            yield book
            book.close()

    def rows(self) -> Iterator[Row]:
        """Rows as wide as their last cell that is not empty."""
        with self._opened(values=True) as values, self._opened(values=False) as formulas:
            pairs = zip(
                values[self._sheet].iter_rows(values_only=True),
                formulas[self._sheet].iter_rows(values_only=True),
                strict=True,
            )
            total = values[self._sheet].max_row or 0
            for number in itertools.count(1):
                try:
                    pair = next(pairs, None)
                except Exception as error:  # as above
                    raise TableError(
                        f"row {number}: the workbook is damaged: {_short(error)}"
                    ) from error
                if pair is None:
                    return
                self.share = number / max(total, number)
                yield Row(number, _sheet_cells(number, *pair))


def _sheet_cells(number: int, values: Any, formulas: Any) -> tuple[str, ...]:
    # A cell that only one of the two readings has cannot be compared.
    for place, (value, formula) in enumerate(zip(values, formulas, strict=False), start=1):
        if value is None and isinstance(formula, str) and formula.startswith("="):
            raise TableError(
                f"row {number}, cell {place}: the result of the formula is not stored in the "
                "file; open it in a spreadsheet program and save it"
            )
    cells = [as_text(value) for value in values]
    while cells and not cells[-1]:
        cells.pop()
    return tuple(cells)


class ParquetSource:
    """A Parquet file, read a few rows at a time."""

    def __init__(self, path: Path, reading: Reading) -> None:
        """Raises TableError for a damaged file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._path, self.share, self.warnings = path, 0.0, list[str]()
        self._broken = (pa.ArrowException, OSError, ValueError, OverflowError)
        self._file = pq.ParquetFile
        try:
            with self._file(path) as file:
                self.names: tuple[str, ...] | None = tuple(file.schema_arrow.names)
                self._total = file.metadata.num_rows
                groups = range(file.metadata.num_row_groups)
                unpacked = sum(file.metadata.row_group(i).total_byte_size for i in groups)
        except self._broken as error:
            raise TableError(f"the Parquet file is damaged: {_short(error)}") from error
        if reading.max_bytes is not None and unpacked > reading.max_bytes:
            raise TableError(
                f"{unpacked / 1e6:.0f} MB when it is unpacked: at most "
                f"{reading.max_bytes / 1e6:.0f} MB"
            )
        self.found = "Parquet"

    def rows(self) -> Iterator[Row]:
        """Rows counted from 1; there is no header among them."""
        number = 0
        try:
            with self._file(self._path) as file:
                for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                    # By position: two columns may have one name.
                    for cells in zip(*batch.columns, strict=True):
                        number += 1
                        texts = tuple(as_text(cell.as_py()) for cell in cells)
                        self.share = number / max(self._total, 1)
                        yield Row(number, texts)
        except self._broken as error:
            if isinstance(error, TableError):
                raise
            raise TableError(
                f"row {number + 1}: the Parquet file is damaged: {_short(error)}"
            ) from error


class JsonSource(TextSource):
    """A file with one JSON object a line; its fields are the columns."""

    def __init__(self, path: Path, reading: Reading) -> None:
        """Reads all of it once for the names. Raises TableError for what is no JSON."""
        super().__init__(
            path,
            Reading(
                encoding=reading.encoding,
                delimiter="none",
                quoting="none",
                max_bytes=reading.max_bytes,
            ),
        )
        names: dict[str, None] = {}
        for _, fields in self._objects():
            names.update(dict.fromkeys(fields))
        self.warnings.clear()
        self.names = tuple(names)
        self.found = f"{self.title}, one JSON object a line"

    def rows(self) -> Iterator[Row]:
        """A row for each object; a field that it lacks is an empty cell."""
        names: tuple[str, ...] = self.names or ()
        for number, fields in self._objects():
            yield Row(number, tuple(fields.get(name, "") for name in names))

    def _objects(self) -> Iterator[tuple[int, dict[str, str]]]:
        for row in super().rows():
            line = "".join(row.cells).strip()
            if line:
                yield row.number, _fields(line, row.number)


def _fields(line: str, number: int) -> dict[str, str]:
    """Field -> its value as text; numbers as they are written."""
    try:
        found = strict_json(line, number=_Written)
        nested = isinstance(found, dict) and any(
            isinstance(v, (list, dict)) for v in found.values()
        )
        plain = json.loads(line) if nested else {}
    except ValueError as error:
        raise TableError(f"line {number}: not a JSON object: {error}") from error
    if not isinstance(found, dict):
        raise TableError(
            f"line {number}: a JSON {type(found).__name__}; each line must hold one object, such "
            'as {"text": "Sales rose."}'
        )
    return {
        name: as_text(plain[name] if isinstance(value, (list, dict)) else value)
        for name, value in found.items()
    }


class _Written(str):
    """A number as it is written: as a float 0.10 and a long id would be others."""


def as_text(value: Any) -> str:
    """A value as a cell of text; nothing is an empty one."""
    if value is None:
        return ""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, (int, Decimal)):
        return str(value)
    if isinstance(value, datetime.datetime):
        day = value.time() == datetime.time() and value.tzinfo is None
        return value.date().isoformat() if day else value.isoformat(sep=" ")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="backslashreplace")
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, default=as_text)
    return str(value)


def _short(error: Exception) -> str:
    """What a library says, which may be many lines, as a part of one."""
    said = " ".join(str(error).split())
    return said if len(said) <= MESSAGE else f"{said[:MESSAGE]} …"
