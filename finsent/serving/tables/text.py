"""Text files: which encoding, which separator and which quotation marks, and their rows.

Rows are parsed by the csv module in its strict mode. pandas and pyarrow take a short row, or text
behind a closing quotation mark, for something else without a word; here nothing may be lost.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from finsent.serving.tables.rows import Reading, Row, TableError

SAMPLE_BYTES = 1 << 16
"""Of a file, from which separator and quotation marks are found."""
MAX_CELL = 1 << 20
"""Characters in one cell; the csv module's own limit is lower than some exported articles."""
MAX_LINE = 1 << 24
"""Characters; a longer line is no text, and would have to be held in memory."""
PREVIEW = 80
"""Characters of a line shown in another encoding."""
OFFERED = "cp1252"
"""What files that are not UTF-8 are most often: Windows-1252."""

DAMAGED_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)

DELIMITERS: Mapping[str, str] = MappingProxyType(
    {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "none": ""}
)
"""By name; `none`: every line is one cell."""
QUOTING: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "doubled": {"quotechar": '"', "doublequote": True},
        "backslash": {"quotechar": '"', "doublequote": True, "escapechar": "\\"},
        "single": {"quotechar": "'", "doublequote": True},
        "none": {"quoting": csv.QUOTE_NONE},
    }
)
"""How a cell holds the separator and quotation marks: between double quotation marks, doubled
inside or behind a backslash; between single ones; or not at all."""

_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark begins it
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_MARK = "finsent.marked"
_MARKED = re.compile(r"[\ud800-\udfff]")
_C1 = re.compile(r"[\x80-\x9f]")
_NAMED = re.compile(r"sep=(.)(?:\r\n|\n|\r)", re.IGNORECASE)
"""The first line of files that spreadsheet programs write: it names the separator."""


def _mark(error: UnicodeError) -> tuple[str, int]:
    """A byte that cannot be decoded becomes a lone surrogate, which no decoder gives otherwise, so
    that its line can be named after all lines before it have been read."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return chr(0xDC00 + error.object[error.start]), error.end


codecs.register_error(_MARK, _mark)


@dataclass(frozen=True)
class Dialect:
    """How lines become cells."""

    delimiter: str
    quoting: str
    newline: str
    """The character that ends a line."""


class TextSource:
    """A file of separated values, or of one text a line, which may be packed by gzip."""

    names: tuple[str, ...] | None = None

    def __init__(self, path: Path, reading: Reading) -> None:
        """Looks at the beginning. Raises TableError for an encoding that is not known, or none."""
        self._path, self._limit = path, reading.max_bytes
        self.warnings: list[str] = []
        self.share = 0.0
        sample, whole = _sample(path)
        self.encoding = _encoding(sample, reading.encoding)
        try:
            text = codecs.getincrementaldecoder(self.encoding)(errors=_MARK).decode(sample, whole)
        except UnicodeError as error:
            raise TableError(f"the file is not {self.title} ({error})") from error
        text = text.removeprefix("\ufeff")
        named = _NAMED.match(text) if reading.delimiter is None else None
        self._before = 0 if named is None else 1
        """Lines before row 1."""
        delimiter = reading.delimiter if named is None else named[1]
        text = text if named is None else text[named.end() :]
        self.dialect = find_dialect(text, whole, delimiter, reading.quoting)
        names = {sign: name for name, sign in DELIMITERS.items()}
        cells = names.get(self.dialect.delimiter, repr(self.dialect.delimiter))
        self.found = f"{self.title}, " + (
            "one cell a line"
            if cells == "none"
            else f"cells separated by {cells}, quotation marks {self.dialect.quoting}"
        )

    @property
    def title(self) -> str:
        """The encoding for people."""
        if self.encoding == OFFERED:
            return "Windows-1252"
        return self.encoding.upper() if self.encoding.startswith("utf") else self.encoding

    def rows(self) -> Iterator[Row]:
        """Every record, an empty line among them as a row without cells."""
        with opened(self._path) as (raw, unpacked):
            lines = itertools.islice(self._lines(raw, unpacked), self._before, None)
            if not self.dialect.delimiter:
                for number, text in enumerate(lines, start=1):
                    cell = text.rstrip("\r\n")
                    yield Row(number, (cell,) if cell else (), number)
                return
            csv.field_size_limit(MAX_CELL)
            reader = csv.reader(lines, **_arguments(self.dialect))
            for number in itertools.count(1):
                line = reader.line_num + 1 + self._before
                try:
                    cells = tuple(next(reader))
                except StopIteration:
                    return
                except csv.Error as error:
                    raise self._explained(Row(number, (), line), error) from error
                yield Row(number, cells, line)

    def _lines(self, raw: IO[bytes], unpacked: IO[bytes]) -> Iterator[str]:
        """Decoded lines with their ends; the first one that cannot be decoded is an error."""
        size = max(os.fstat(raw.fileno()).st_size, 1)
        text = io.TextIOWrapper(
            unpacked, encoding=self.encoding, errors=_MARK, newline=self.dialect.newline
        )
        taken = odd = 0
        for number in itertools.count(1):
            try:
                line = text.readline(MAX_LINE)
            except UnicodeError as error:
                raise TableError(f"line {number}: not {self.title} ({error})") from error
            except DAMAGED_GZIP as error:
                raise TableError(
                    f"line {number}: the gzip file is damaged from here on ({error})"
                ) from error
            if not line:
                break
            self.share = min(raw.tell() / size, 1.0)
            taken += len(line)
            if len(line) == MAX_LINE:
                raise TableError(f"line {number}: more than {MAX_LINE:,} characters without an end")
            if self._limit is not None and taken > self._limit:
                raise TableError(f"more than {self._limit / 1e6:.0f} MB when it is unpacked")
            if number == 1:
                line = line.removeprefix("\ufeff")
            self._check(number, line)
            if (control := _C1.search(line)) is not None:
                odd += 1
                if odd == 1:
                    self._warn(number, control[0])
            yield line
        if odd > 1:
            self.warnings[-1] += f" ({odd:,} lines hold such characters)"

    def _check(self, number: int, line: str) -> None:
        if "\0" in line:
            raise TableError(f"line {number}: a zero byte; this is not a text file")
        marked = _MARKED.search(line)
        if marked is None:
            return
        byte = ord(marked[0]) - 0xDC00
        if not 0 <= byte <= 0xFF:
            raise TableError(f"line {number}: half a character, which {self.title} cannot hold")
        said = f"line {number}: byte 0x{byte:02x} is not {self.title}"
        if self.encoding != "utf-8":
            raise TableError(f"{said}; the file is in another encoding")
        preview = self._preview(number)
        if preview is None:
            raise TableError(f"{said}, nor is the line Windows-1252; save the file as UTF-8")
        raise TableError(
            f"{said}. In Windows-1252 the line reads {preview!r}; if that is right, read the file "
            "as Windows-1252",
            f"--encoding {OFFERED}",
        )

    def _preview(self, number: int) -> str | None:
        """A line as Windows-1252 has it."""
        with opened(self._path) as (_, unpacked):
            text = io.TextIOWrapper(
                unpacked, encoding=OFFERED, errors=_MARK, newline=self.dialect.newline
            )
            line = next(itertools.islice(text, number - 1, None)).rstrip("\r\n")
        if _MARKED.search(line):
            return None
        return line if len(line) <= PREVIEW else f"{line[:PREVIEW]} …"

    def _warn(self, number: int, control: str) -> None:
        said = (
            f"line {number}: {self.title} gives the control character U+{ord(control):04X}, "
            "which texts do not hold"
        )
        try:
            right = bytes([ord(control)]).decode(OFFERED)
        except UnicodeDecodeError:
            right = ""
        if right and not self.encoding.startswith("utf"):
            said += f"; the file is probably Windows-1252 ({OFFERED}), where it is {right!r}"
        self.warnings.append(said)

    def _explained(self, row: Row, error: csv.Error) -> TableError:
        said = str(error)
        if "unexpected end of data" in said or "field larger" in said:
            return TableError(
                f"{row.where}: a quotation mark is opened and not closed in {MAX_CELL:,} "
                "characters or to the end of the file",
                "--quoting none reads quotation marks as text",
            )
        if "new-line character" in said:
            return TableError(
                f"{row.where}: a carriage return outside quotation marks; the other lines end "
                "otherwise"
            )
        return TableError(
            f"{row.where}: {said}; check its quotation marks",
            f"--quoting names another way to write them ({', '.join(QUOTING)})",
        )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The file, and what is in it, which is the same where it is not packed."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        yield raw, gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[misc]


def _sample(path: Path) -> tuple[bytes, bool]:
    """The beginning of what is in a file, and whether it is all of it."""
    parts: list[bytes] = []
    left = SAMPLE_BYTES
    with opened(path) as (_, unpacked):
        while left > 0:
            try:
                part = unpacked.read(min(left, 1 << 12))
            except DAMAGED_GZIP:
                return b"".join(parts), False  # told with its line when rows are read
            if not part:
                return b"".join(parts), True
            parts.append(part)
            left -= len(part)
    return b"".join(parts), False


def _encoding(sample: bytes, named: str | None) -> str:
    """The encoding: as named, as a byte order mark or zero bytes say, else UTF-8."""
    if named is not None:
        return known_encoding(named)
    for mark, name in _BOMS:
        if sample.startswith(mark):
            return name
    if b"\0" not in sample:
        return "utf-8"
    found: dict[str, float] = {}
    for name in _WIDE:
        try:
            text = codecs.getincrementaldecoder(name)().decode(sample)
        except UnicodeDecodeError:
            continue
        if "\0" not in text and ("\n" in text or "\r" in text):
            found[name] = sum(character.isascii() for character in text) / len(text)
    best = max(found, key=lambda name: found[name], default=None)
    if best is None:
        line = sample.count(b"\n", 0, sample.index(b"\0")) + 1
        raise TableError(f"line {line}: a zero byte; this is not a text file")
    return best


def known_encoding(name: str) -> str:
    """The name of a text encoding as Python has it. Raises TableError for any other."""
    try:
        # Not codecs.lookup alone: it also knows what is no text, such as rot13 and zip.
        "a".encode(name)
        found = codecs.lookup(name).name
    except (LookupError, ValueError) as error:
        raise TableError(
            f"there is no encoding {name!r}; name one such as utf-8, utf-16, cp1252 or latin-1"
        ) from error
    if found in ("idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined"):
        raise TableError(f"{name!r} is no encoding of files; name one such as utf-8 or cp1252")
    return {"utf-8-sig": "utf-8", "iso8859-1": "latin-1"}.get(found, found)


def find_dialect(text: str, whole: bool, delimiter: str | None, quoting: str | None) -> Dialect:
    """How the lines of a text become cells, as far as its beginning tells.

    It is the first style of quotation marks, and then the separator with the most columns, under
    which all rows have as many cells. Where there is none, header and rows do not fit together:
    the header decides, and reading names the row that does not fit.
    """
    newline = "\n" if "\n" in text or "\r" not in text else "\r"
    if delimiter is not None:
        delimiter = _delimiter(delimiter)
    if quoting is not None and quoting not in QUOTING:
        raise TableError(f"quoting must be one of {', '.join(QUOTING)}, got {quoting!r}")
    lines = text.split(newline)
    if not whole:
        lines.pop()
    lines = [f"{line}{newline}" for line in lines if line.strip()]
    signs = [s for s in DELIMITERS.values() if s] if delimiter is None else [delimiter]
    if delimiter == "":
        return Dialect("", quoting or "none", newline)
    styles = ("doubled", "backslash", "single", "none") if quoting is None else (quoting,)
    for style in styles:
        found = {sign: _width(lines, Dialect(sign, style, newline)) for sign in signs}
        best = max(found, key=lambda sign: found[sign])
        if found[best] > 1 or (found[best] == 1 and len(signs) == 1):
            chosen = Dialect(best, style, newline)
            if quoting is None and style == "none" and _any_quoted(lines, chosen):
                break  # some cells are quoted well, so one that is not is a mistake
            return chosen if quoting else _single_quoted(lines, chosen)
    first = lines[0] if lines else ""
    best = max(signs, key=first.count)
    if quoting is None and delimiter is None and not first.count(best):
        # One column. With separators in its texts it is one only if every line is a cell.
        plain = not any(line.startswith('"') for line in lines)
        if plain and any(line.count(sign) for line in lines for sign in signs):
            return Dialect("", "none", newline)
        return _single_quoted(lines, Dialect(best, "doubled", newline))
    return Dialect(best, quoting or "doubled", newline)


def _delimiter(named: str) -> str:
    if named in DELIMITERS:
        return DELIMITERS[named]
    if len(named) != 1 or named in "\r\n\"'\\\0" or _MARKED.match(named):
        raise TableError(
            f"the separator must be one of {', '.join(DELIMITERS)}, or one character that is no "
            f"quotation mark, got {named!r}"
        )
    return named


def _arguments(dialect: Dialect) -> dict[str, Any]:
    return {"delimiter": dialect.delimiter, "strict": True, **QUOTING[dialect.quoting]}


def _parsed(lines: Sequence[str], dialect: Dialect) -> list[list[str]] | None:
    """Rows of a sample; None where they cannot be parsed like that."""
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(iter(lines), **_arguments(dialect))
    rows: list[list[str]] = []
    try:
        rows.extend(reader)
    except csv.Error:
        if reader.line_num < len(lines):
            return None
        # The sample ends inside a cell, or a quotation mark is never closed: reading will tell.
    return [row for row in rows if row]


def _width(lines: Sequence[str], dialect: Dialect) -> int:
    """Cells of every row; 0 where rows differ, or cannot be parsed."""
    rows = _parsed(lines, dialect)
    widths = {len(row) for row in rows or ()}
    return widths.pop() if len(widths) == 1 else 0


def _any_quoted(lines: Sequence[str], dialect: Dialect) -> bool:
    rows = _parsed(lines, dialect) or ()
    return any(len(c) > 1 and c[0] == c[-1] == '"' for row in rows for c in row)


def _single_quoted(lines: Sequence[str], found: Dialect) -> Dialect:
    """The same with single quotation marks, where all cells of a column stand between such."""
    other = Dialect(found.delimiter, "single", found.newline)
    # Rows may differ in width here: columns that all of them have decide.
    columns = zip(*(_parsed(lines, found) or ()), strict=False)
    wrapped = any(
        len(column) > 1 and all(len(c) > 1 and c[0] == c[-1] == "'" for c in column)
        for column in columns
    )
    return other if wrapped and _width(lines, other) else found
