"""Tables in and out: strict, with row numbers; harmless in a spreadsheet."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from finsent.serving import spreadsheet
from finsent.serving.spreadsheet import TableError, neutralize, read_csv, write_csv


@pytest.mark.parametrize(
    ("content", "columns", "rows"),
    [
        (b"text\nProfit rose\n", ("text",), (("Profit rose",),)),
        (b"\xef\xbb\xbfid;text\r\n1;a, b\r\n\r\n", ("id", "text"), (("1", "a, b"),)),
        (b"id\ttext\n1\t\xc3\xa4\n", ("id", "text"), (("1", "ä"),)),
        (b'text,n\n"two\nlines, one cell",3\n', ("text", "n"), (("two\nlines, one cell", "3"),)),
        (b"text\na\n\nb\n", ("text",), (("a",), ("",), ("b",))),
    ],
)
def test_what_can_be_read(
    tmp_path: Path, content: bytes, columns: tuple[str, ...], rows: tuple[tuple[str, ...], ...]
) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    table = read_csv(path)
    assert (table.columns, table.rows) == (columns, rows)
    assert table.column(columns[-1]) == [row[-1] for row in rows]
    with pytest.raises(TableError, match="no column 'other'"):
        table.column("other")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "file is empty"),
        (b"\n\n", "file is empty"),
        (b"text\n", "row 1 is the only one"),
        (b"id,\n1,a\n", "row 1: column 2 has no name"),
        (b"a,a\n1,2\n", "row 1: two columns are named 'a'"),
        (b"id,text\n1,a\n2,b,c\n", "row 3: 3 cells, the header has 2"),
        (b'id,text\n1,"a\n', "row 2: .*quotation marks"),
        (b"id,text\n1,G\xe4vle\n", "line 2: byte 0xe4 is not UTF-8"),
        (b"PK\x03\x04\n\0\0", "line 2: a zero byte"),
        (b"text\n" + b"a\n" * (spreadsheet.MAX_ROWS + 1), "row 2002: at most 2,000 rows"),
        (b"x" * (spreadsheet.MAX_BYTES + 1), "2.0 MB are too many"),
    ],
)
def test_what_cannot_is_refused_with_row_and_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(TableError, match=reason):
        read_csv(path)


def test_as_many_rows_as_allowed(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"text\n" + b"a\n" * spreadsheet.MAX_ROWS)
    assert len(read_csv(path).rows) == spreadsheet.MAX_ROWS


@pytest.mark.parametrize(
    "cell", ["=1+1", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1", "\n=1"]
)
def test_formulas_are_defused(cell: str) -> None:
    assert neutralize(cell) == "'" + cell


@pytest.mark.parametrize("cell", ["", "Profit = loss", "4.7 %", "'quoted", "ä-b"])
def test_ordinary_text_is_left_alone(cell: str) -> None:
    assert neutralize(cell) == cell


def test_written_tables_come_back_and_numbers_stay_numbers() -> None:
    content = write_csv(["text", "p"], [["=cmd|' /C calc'!A0", -0.25], ['a "b", c', 1]])
    rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    assert rows == [["text", "p"], ["'=cmd|' /C calc'!A0", "-0.25"], ['a "b", c', "1"]]
    assert content.startswith(b"\xef\xbb\xbf")
