"""What every kind of file is read as: rows of text cells that know where they stand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


class TableError(ValueError):
    """A file that is not a table, or not one that can be read as asked; says where and why."""

    def __init__(self, message: str, option: str = "") -> None:
        """option: what to add to a command line to have it read otherwise."""
        super().__init__(message)
        self.option = option

    @property
    def encoding(self) -> str | None:
        """The encoding in which the file can be read, if another one helps."""
        name, _, value = self.option.partition(" ")
        return value if name == "--encoding" else None

    @property
    def for_command(self) -> str:
        """The message with the option that helps."""
        return f"{self}: {self.option}" if self.option else str(self)


@dataclass(frozen=True)
class Reading:
    """How a file is read. None: as is found."""

    encoding: str | None = None
    """A name that Python knows."""
    delimiter: str | None = None
    """Key of `finsent.serving.tables.text.DELIMITERS`, or one character."""
    quoting: str | None = None
    """Key of `finsent.serving.tables.text.QUOTING`."""
    header: bool | None = True
    """Whether row 1 names the columns of a text file or a sheet; None: decided by what is in it."""
    sheet: str | None = None
    """Of a workbook; None: the first."""
    max_bytes: int | None = None
    """Of what is in the file when it is unpacked; None: any number."""


@dataclass(frozen=True)
class Row:
    """Cells, and where they stand."""

    number: int
    """As a spreadsheet counts: the first row is 1, empty ones count."""
    cells: tuple[str, ...]
    line: int | None = None
    """At which the row begins in a text file, counted from 1."""

    @property
    def where(self) -> str:
        """For people, who look for it in a spreadsheet or an editor."""
        if self.line is None or self.line == self.number:
            return f"row {self.number}"
        return f"row {self.number} (line {self.line})"


class Source(Protocol):
    """One kind of file."""

    names: tuple[str, ...] | None
    """Of the columns, where the kind of file holds them apart from the rows; None: it does not."""
    found: str
    """How it is read, in words for people."""
    warnings: list[str]
    """What is odd in what has been read so far."""
    share: float
    """Of the file that has been read, in [0, 1]."""

    def rows(self) -> Iterator[Row]:
        """All rows from the first, every time. Raises TableError where one cannot be read."""
        ...
