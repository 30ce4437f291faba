"""The one reader of tables: of the command line and of the page alike.

Nothing is lost and nothing is guessed in silence: what is found is said, every row is as wide as
the header or an error, and an error names its row.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path

from finsent.models.tokenization import half_character
from finsent.serving.tables.formats import JsonSource, ParquetSource, WorkbookSource
from finsent.serving.tables.rows import Reading, Row, Source, TableError
from finsent.serving.tables.text import DAMAGED_GZIP, TextSource, opened

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".xlsx", ".parquet", ".gz")
"""Of files that can be read; what is in a file counts, not its name."""
TEXT_COLUMNS = ("text", "headline", "headlines", "sentence", "title")
"""Column names taken for the text's, best first, when nobody has picked one."""
LABEL_COLUMN = "label"
"""Name of the column whose labels answers are compared with."""
SAMPLE_ROWS = 50
"""From which it is told whether row 1 is a header."""

_OTHERS = (
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook (.xls); save it as .xlsx"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"BZh", "packed by bzip2; unpack it first, or pack it by gzip"),
    (b"\xfd7zXZ", "packed by xz; unpack it first, or pack it by gzip"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd; unpack it first, or pack it by gzip"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "packed twice; unpack it once"),
)
START_BYTES = 256
_JSON = re.compile(rb'(?:\xef\xbb\xbf)?\s*(?:\{\s*"|\[\s*\{)')
_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|\?xml)", re.IGNORECASE)
_HEADER_WORDS = frozenset(
    {*TEXT_COLUMNS, LABEL_COLUMN, "labels", "id", "index", "date", "time", "url", "source"}
    | {"sentiment", "ticker", "name", "note", "score", "author", "category", "news", "company"}
)
_LABELS = frozenset({"negative", "neutral", "positive", "bearish", "bullish"})
_FIGURE = re.compile(r"[\W_]*\d[\d\W_]*")
_OF_TEXTS = frozenset(" .,'\"()-–’‘“”%?!$€£&")
"""Signs of ordinary texts."""
_LONG = 5
"""Words: no column is named by so many."""


class Table:
    """Rows under named columns. Iterating anew reads anew."""

    def __init__(self, source: Source, reading: Reading) -> None:
        """Reads the header. Raises TableError where there is none."""
        self._source = source
        self._named_apart = source.names is not None
        first: Sequence[str]
        if source.names is not None:
            first, self.has_header = source.names, True
        else:
            needed = SAMPLE_ROWS if reading.header is None else 1
            start = list(islice(_without_blanks(source.rows()), needed))
            if not start:
                raise TableError("the file is empty; it needs a header and at least one row")
            first = start[0].cells
            self.has_header = (
                not looks_like_data(first, [row.cells for row in start[1:]])
                if reading.header is None
                else reading.header
            )
            source.warnings.clear()
        if not any(cell.strip() for cell in first):
            raise TableError("the first row is empty; it needs the names of the columns")
        self.header = tuple(first) if self.has_header else ("",) * len(first)
        """As in the file, with empty cells for columns that have no name."""
        self.names = _distinct(self.header)
        """Of the columns, each one different; those without a name are called after their place."""
        self.found = source.found
        """How the file is read, in words for people."""
        if not self._named_apart:
            self.found += ", row 1 names the columns" if self.has_header else ", no header"

    @property
    def warnings(self) -> list[str]:
        """What is odd in the rows read so far."""
        return self._source.warnings

    @property
    def separated(self) -> bool:
        """Whether it is text in which a separator stands between cells."""
        return type(self._source) is TextSource

    @property
    def share(self) -> float:
        """Of the file that has been read, in [0, 1]."""
        return self._source.share

    def place(self, column: str) -> int:
        """Position of a column. Raises TableError when there is none of that name, or several."""
        if column in self.header and column:
            if self.header.count(column) > 1:
                places = [n for n, h in zip(self.names, self.header, strict=True) if h == column]
                raise TableError(
                    f"several columns are named {column!r}; call one of them "
                    + " or ".join(map(repr, places))
                )
            return self.header.index(column)
        if column in self.names:
            return self.names.index(column)
        stripped = [name.strip() for name in self.header]
        if column and stripped.count(column) == 1:
            return stripped.index(column)
        if not self.has_header and column.isdecimal() and 0 < int(column) <= len(self.names):
            return int(column) - 1
        shown = ", ".join(repr(_short(name)) for name in self.names)
        option = ""
        if not self._named_apart and self.has_header:
            option = (
                "if row 1 is no header, --no-header reads it as a row, and columns are called "
                "'column 1' and so on"
            )
        raise TableError(f"there is no column {column!r}; there are {shown}", option)

    def rows(self) -> Iterator[Row]:
        """Rows below the header, each as wide as it. Raises TableError where one is not."""
        rows = _without_blanks(self._source.rows(), keep=len(self.names) == 1)
        if self.has_header and not self._named_apart:
            next(rows, None)
        padded = isinstance(self._source, WorkbookSource)
        width = len(self.names)
        for row in rows:
            cells = row.cells
            if padded or not cells:
                cells += ("",) * (width - len(cells))
            if len(cells) != width:
                raise self._misfit(row)
            for name, cell in zip(self.names, cells, strict=True):
                problem = "it holds a zero character" if "\0" in cell else half_character(cell)
                if problem is not None:
                    raise TableError(f"{row.where}, column {name!r}: {problem}")
            yield Row(row.number, cells, row.line)

    def _misfit(self, row: Row) -> TableError:
        """Why a row that is not as wide as the first cannot be read, and what helps."""
        width = len(self.names)
        what = "the header" if self.has_header else "the first row"
        said = f"{row.where}: {len(row.cells)} cells, {what} has {width}; "
        start = list(islice(_without_blanks(self._source.rows()), SAMPLE_ROWS))
        widest = max(start, key=lambda row: sum(map(bool, row.cells)))
        below = start[start.index(widest) :]
        titled = width == 1 and len(below) > 1 and all(len(row.cells) > 1 for row in below)
        if titled:
            said = (
                f"row {start[0].number} has one cell only, {_short(start[0].cells[0])!r}, and row "
                f"{widest.number} looks like the names of the columns; remove what stands above it"
            )
        if isinstance(self._source, WorkbookSource):
            return TableError(
                said if titled else f"{said}every column with cells needs a name in row 1"
            )
        said += ". Else " if titled else ""
        return TableError(
            f"{said}put quotation marks around text that holds the separator",
            "--delimiter and --quoting name others",
        )


def open_table(path: Path, reading: Reading | None = None) -> Table:
    """A table in a file: CSV in any of its kinds, JSON Lines, .xlsx or Parquet.

    Text may be packed by gzip, in UTF-8, UTF-16, UTF-32 or a named encoding. Raises TableError,
    with the row where there is one, for what is no table; OSError for a file that cannot be opened.
    """
    reading = reading or Reading()
    if not path.exists():
        raise TableError(f"there is no file {path}")
    if not path.is_file():
        raise TableError(f"{path} is no file")
    return Table(_source(path, reading), reading)


def text_column(table: Table, rows: Sequence[Row]) -> str:
    """The column most likely to hold the texts: by name, else the one with the longest cells."""
    by_name = {name.strip().lower(): name for name in reversed(table.names)}
    for name in TEXT_COLUMNS:
        if name in by_name:
            return by_name[name]
    lengths = [sum(len(row.cells[i]) for row in rows) for i in range(len(table.names))]
    return table.names[lengths.index(max(lengths))]


def may_hold_columns(table: Table, rows: Sequence[Row]) -> bool:
    """Whether the lines of a file that was read as one column all hold a sign equally often that
    texts seldom hold: a separator that nobody expects, as in `id^headline`. Or all but the first
    hold an ordinary separator equally often, as below a title."""
    if len(table.names) != 1 or not table.separated:
        return False
    cells = [*(table.header if table.has_header else ()), *(row.cells[0] for row in rows)]
    cells = [cell for cell in cells if cell.strip()][:SAMPLE_ROWS]
    signs = {sign for cell in cells[:1] for sign in cell if not sign.isalnum()} - _OF_TEXTS
    if len(cells) > 1 and _equally_often(signs, cells):
        return True
    below = cells[1:]
    return len(below) > 1 and _equally_often({s for s in ",;\t|" if s in below[0]}, below)


def _equally_often(signs: Collection[str], cells: Sequence[str]) -> bool:
    return any(len({cell.count(sign) for cell in cells}) == 1 for sign in signs)


def looks_like_data(first: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row of a file is more likely a row than the names of its columns."""
    cells = [cell.strip() for cell in first if cell.strip()]
    lowered = {cell.lower() for cell in cells}
    if lowered & _HEADER_WORDS:
        return False
    if lowered & _LABELS or len(lowered) < len(cells):
        return True
    if any(_FIGURE.fullmatch(cell) or len(cell.split()) >= _LONG for cell in cells):
        return True
    return any(
        cell and cell in {row[i] for row in rows if i < len(row)} for i, cell in enumerate(first)
    )


def _source(path: Path, reading: Reading) -> Source:
    with opened(path) as (raw, unpacked):
        try:
            start = unpacked.read(START_BYTES)
        except DAMAGED_GZIP as error:
            raise TableError(f"the gzip file is damaged: {error}") from error
        packed = unpacked is not raw
    if not packed and start.startswith(b"PAR1"):
        return ParquetSource(path, reading)
    if not packed and start.startswith(b"PK\x03\x04") and _is_workbook(path):
        return WorkbookSource(path, reading)
    for magic, what in _OTHERS:
        if start.startswith(magic):
            raise TableError(f"this is {what}")
    if start.startswith(b"PAR1"):
        raise TableError("this is a Parquet file packed by gzip; unpack it first")
    if reading.sheet is not None:
        raise TableError("only workbooks (.xlsx) have sheets")
    if _PAGE.match(start):
        raise TableError("this is a web page or XML; save the table as CSV or .xlsx")
    suffixes = {suffix.lower() for suffix in path.suffixes[-2:]}
    as_text = reading.delimiter is not None or reading.quoting is not None
    if suffixes & {".jsonl", ".ndjson"} or (_JSON.match(start) and not as_text):
        return JsonSource(path, reading)
    return TextSource(path, reading)


def _is_workbook(path: Path) -> bool:
    import zipfile

    try:
        with zipfile.ZipFile(path) as packed:
            return "xl/workbook.xml" in packed.namelist()
    except zipfile.BadZipFile:
        return path.suffix.lower() == ".xlsx"  # whose reader says that it is damaged


def _without_blanks(rows: Iterator[Row], *, keep: bool = False) -> Iterator[Row]:
    """Rows without empty lines: those before the header, between rows and at the end.

    keep: where there is one column an empty line between rows is a row with an empty cell.
    """
    blank: list[Row] = []
    begun = False
    for row in rows:
        if len(row.cells) <= 1 and not "".join(row.cells).strip():
            if begun and keep:
                blank.append(row)
            continue
        begun = True
        yield from blank
        blank.clear()
        yield row


def _distinct(header: Sequence[str]) -> tuple[str, ...]:
    counts = Counter(header)
    names: list[str] = []
    for place, name in enumerate(header, start=1):
        if not name.strip():
            name = f"column {place}"
        elif counts[name] > 1:
            name = f"{name} (column {place})"
        while name in names or (name in counts and name != header[place - 1]):
            name += "'"
        names.append(name)
    return tuple(names)


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:40]}…"
