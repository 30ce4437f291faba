"""The one reader, on files as people have them, and the one writer, read back by others."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import pandas as pd
import pyarrow.csv
import pytest
from hypothesis import given, settings

from finsent.serving import many_texts
from finsent.serving.tables.reading import (
    looks_like_data,
    may_hold_columns,
    open_table,
    text_column,
)
from finsent.serving.tables.rows import Reading, TableError
from finsent.serving.tables.text import known_encoding
from finsent.serving.tables.writing import csv_writer, neutralize, restored, write_csv, written
from tests.ugly_files import BROKEN, CSV, UGLY, mutated, random_table, saved


@pytest.mark.parametrize("name", UGLY)
def test_ugly_files_are_read(name: str, tmp_path: Path) -> None:
    ugly = UGLY[name](tmp_path)
    table = open_table(ugly.path, Reading(**ugly.options))  # type: ignore[arg-type]
    assert table.names == ugly.names
    assert tuple(row.cells for row in table.rows()) == ugly.rows
    assert tuple(row.cells for row in table.rows()) == ugly.rows, "a second reading is another"
    assert table.names[table.place(ugly.column)].strip().endswith(ugly.column)
    assert table.found


@pytest.mark.parametrize("name", UGLY)
def test_the_page_reads_what_the_command_reads(name: str, tmp_path: Path) -> None:
    ugly = UGLY[name](tmp_path)
    reading = Reading(**{"header": None, **ugly.options})  # type: ignore[arg-type]
    upload = many_texts.read_upload(ugly.path, reading)
    items = many_texts.uploaded(upload, ugly.column, lambda text: None)
    place = upload.table.place(ugly.column)
    assert [item.text for item in items] == [row[place] for row in ugly.rows]
    assert text_column(upload.table, upload.rows) in upload.table.names


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_with_place_and_reason(name: str, tmp_path: Path) -> None:
    broken = BROKEN[name](tmp_path)
    with pytest.raises(TableError, match=broken.says) as caught:
        many_texts.read_upload(broken.path, Reading())
    assert "\n" not in str(caught.value)


def test_a_separator_in_one_text_makes_no_title_of_the_header(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for text, titled in (("up\ndown, far\nup", False), ("id,headline\n1,up", True)):
        path.write_text(f"headlines\n{text}\n", encoding="utf-8")
        with pytest.raises(TableError, match="put quotation marks around") as caught:
            list(open_table(path, Reading(delimiter="comma")).rows())
        assert ("remove what stands above" in str(caught.value)) is titled


def test_damaged_files_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    draw = random.Random(0)
    for name, make in {**UGLY, **BROKEN}.items():
        path = make(tmp_path).path
        content = path.read_bytes()
        for _ in range(6):
            path.write_bytes(mutated(content, draw))
            reading = Reading(header=draw.choice([True, False, None]))
            said = ""
            try:
                upload = many_texts.read_upload(path, reading)
                width = len(upload.table.names)
                assert all(len(row.cells) == width for row in upload.rows), name
            except TableError as error:
                said = str(error)
            assert "\n" not in said, name
            assert len(said) < 600, name


def test_rows_before_a_bad_one_can_be_read(tmp_path: Path) -> None:
    path = saved(tmp_path, "x.csv", b"headline\n" + b"up\n" * 9000 + b"f\xfcr\n")
    rows = open_table(path).rows()
    assert sum(1 for _ in zip(range(9000), rows, strict=False)) == 9000
    with pytest.raises(TableError, match="line 9002: byte 0xfc is not UTF-8"):
        next(rows)


def test_rows_are_numbered_as_a_spreadsheet_has_them(tmp_path: Path) -> None:
    path = saved(tmp_path, "x.csv", 'id,headline\n\n1,"a\nb"\n2,c\n')
    assert [row.where for row in open_table(path).rows()] == ["row 3", "row 4 (line 5)"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"encoding": "klingon"}, "there is no encoding 'klingon'"),
        ({"encoding": "rot13"}, "there is no encoding 'rot13'"),
        ({"encoding": "punycode"}, "no encoding of files"),
        ({"encoding": "x" * 300}, "there is no encoding"),
        ({"encoding": "a\0b"}, "there is no encoding"),
        ({"encoding": "utf-16"}, "not UTF-16"),
        ({"encoding": "utf-32"}, "not UTF-32|byte 0x"),
        ({"encoding": "ascii"}, "line 2: byte 0xe2 is not ascii"),
        ({"delimiter": "ab"}, "the separator must be one of comma"),
        ({"delimiter": '"'}, "the separator must be one of comma"),
        ({"delimiter": ""}, "the separator must be one of comma"),
        ({"quoting": "other"}, "quoting must be one of doubled"),
        ({"sheet": "a"}, "only workbooks"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    options: dict[str, str], says: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, "x.csv", CSV)
    with pytest.raises(TableError, match=says):
        list(open_table(path, Reading(**options)).rows())  # type: ignore[arg-type]
    assert known_encoding("UTF8") == known_encoding("utf-8-sig") == "utf-8"


def test_a_sheet_is_found_by_name(tmp_path: Path) -> None:
    path = UGLY["workbook"](tmp_path).path
    assert open_table(path, Reading(sheet="other")).names == ("no", "table")
    with pytest.raises(TableError, match="no sheet 'x'; there are 'Sheet', 'other'"):
        open_table(path, Reading(sheet="x"))


def test_latin_1_warns_of_control_characters(tmp_path: Path) -> None:
    path = saved(tmp_path, "x.csv", b"headline\nNorthmill\x92s profit\nup\nIt\x92s flat\n")
    table = open_table(path, Reading(encoding="latin-1"))
    assert [row.cells[0][-4:] for row in table.rows()] == ["ofit", "up", "flat"]
    (warning,) = table.warnings
    assert "line 2: latin-1 gives the control character U+0092" in warning
    assert "cp1252" in warning
    assert "’" in warning
    assert "2 lines" in warning
    right = open_table(path, Reading(encoding="cp1252"))
    assert next(right.rows()).cells == ("Northmill’s profit",)
    assert right.warnings == []


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    table = open_table(saved(tmp_path, "x.csv", "a,x,x\nup,1,2\n"))
    with pytest.raises(TableError, match="no column 'b'; there are 'a', 'x .column 2.'") as caught:
        table.place("b")
    assert "--no-header" in caught.value.for_command
    with pytest.raises(TableError, match="several columns are named 'x'"):
        table.place("x")
    assert table.place("x (column 3)") == 2


@pytest.mark.parametrize(
    ("first", "rows", "expected"),
    [
        (["neutral", "Northmill has no plans"], [["negative", "Profit fell"]], True),
        (["1", "Profit rose"], [["2", "Sales fell"]], True),
        (["Northmill lifts its full year forecast"], [["Profit fell"]], True),
        (["B", "Up"], [["B", "Down"]], True),
        (["headline", "2020"], [["Up", "1"]], False),
        (["Überschrift", "Datum"], [["Up", "1"]], False),
        (["", "title", "date"], [["0", "Up", "1 Jan"]], False),
    ],
)
def test_a_row_of_texts_is_told_from_a_header(
    first: list[str], rows: list[list[str]], expected: bool
) -> None:
    assert looks_like_data(first, rows) is expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("id~headline\n1~Profit rose, sales fell\n2~No change\n", True),
        ("id::headline\n1::Profit rose\n", True),
        ("1^Profit rose\n2^Sales fell\n", True),
        ("headline\nProfit rose: up\nSales fell\n", False),
        ("Profit rose by 2 %.\nSales fell by 3 %.\n", False),
        ("id,headline\n1,Profit~rose\n2,Sales~fell\n", False),
        ("Our headlines\nid,headline\n1,Profit rose\n2,Sales fell\n", True),
        ("headline\nProfit rose, sales fell\nNo change\n", False),
    ],
)
def test_a_separator_that_was_not_found_is_suspected(
    content: str, expected: bool, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content, encoding="utf-8")
    table = open_table(path, Reading(header=None))
    assert may_hold_columns(table, list(table.rows())) is expected


def test_uploads_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_texts, "MAX_ROWS", 3)
    monkeypatch.setattr(many_texts, "MAX_UNPACKED_BYTES", 2000)
    good = saved(tmp_path, "x.csv", "text\n" + "a\n" * 3)
    assert len(many_texts.read_upload(good, Reading()).rows) == 3
    with pytest.raises(TableError, match="row 5: at most 3 rows"):
        many_texts.read_upload(saved(tmp_path, "y.csv", "text\n" + "a\n" * 4), Reading())
    for name in ("gzip", "workbook", "parquet"):
        path = UGLY[name](tmp_path).path
        monkeypatch.setattr(many_texts, "MAX_UNPACKED_BYTES", 20)
        with pytest.raises(TableError, match="MB when it is unpacked"):
            many_texts.read_upload(path, Reading())
    monkeypatch.setattr(many_texts, "MAX_BYTES", 5)
    with pytest.raises(TableError, match="too many"):
        many_texts.read_upload(good, Reading())


@pytest.mark.parametrize(
    "cell", ["=1+1", "+x", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1", "\n=1", "'=1", "''-x"]
)
def test_formulas_are_defused(cell: str) -> None:
    assert neutralize(cell) == "'" + cell
    assert restored(neutralize(cell)) == cell


@pytest.mark.parametrize(
    "cell", ["", "Profit = loss", "4.7 %", "'quoted", "ä-b", "-0.25", "+5%", "-1,000.5", "-1e-3"]
)
def test_ordinary_text_and_numbers_are_left_alone(cell: str) -> None:
    assert neutralize(cell) == cell
    assert restored(cell) == cell


@settings(max_examples=150, deadline=None)
@given(random_table())
def test_what_is_written_is_read_back_by_every_reader(table: list[list[str]]) -> None:
    header = [f"column-{i}" for i in range(len(table[0]))]
    buffer = io.StringIO()
    writer = csv_writer(buffer)
    for row in (header, *table):
        writer.writerow(written(row))
    text = buffer.getvalue()
    expected = [[neutralize(cell) for cell in row] for row in table]
    assert [[restored(cell) for cell in row] for row in expected] == table
    strict = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert strict == [header, *expected]
    frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    assert frame.to_numpy().tolist() == expected
    arrow = pyarrow.csv.read_csv(
        io.BytesIO(text.encode()),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(header, pyarrow.string()), strings_can_be_null=False
        ),
    )
    assert [list(row.values()) for row in arrow.to_pylist()] == expected


@settings(max_examples=60, deadline=None)
@given(random_table())
def test_the_reader_reads_what_the_writer_wrote(
    tmp_path_factory: pytest.TempPathFactory, table: list[list[str]]
) -> None:
    header = [f"column-{i}" for i in range(len(table[0]))]
    path = tmp_path_factory.mktemp("written") / "x.csv"
    path.write_bytes(write_csv(header, table))
    found = open_table(path, Reading(quoting="doubled", delimiter="comma"))
    # A line that is empty but for quotation marks is a row; a cell of white space is kept.
    kept = [[neutralize(cell) for cell in row] for row in table]
    if len(header) == 1:
        while kept and not kept[-1][0].strip():
            kept.pop()
        kept = [[cell if cell.strip() else ""] if cell else [""] for (cell,) in kept]
        rows = [[cell.strip() and cell] for row in found.rows() for cell in row.cells]
        assert rows == [[cell.strip() and cell] for (cell,) in kept]
    else:
        assert [list(row.cells) for row in found.rows()] == kept


def test_numbers_stay_numbers_and_excel_knows_the_encoding() -> None:
    content = write_csv(["text", "p"], [["=cmd|' /C calc'!A0", -0.25], ['a "b", c', 1]])
    rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    assert rows == [["text", "p"], ["'=cmd|' /C calc'!A0", "-0.25"], ['a "b", c', "1"]]
    assert content.startswith(b"\xef\xbb\xbf")


def test_every_file_has_a_kind(tmp_path: Path) -> None:
    assert len(UGLY) + len(BROKEN) >= 40
