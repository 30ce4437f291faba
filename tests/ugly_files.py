"""Files as people have them: every function makes one kind, with the cells that reading must give.

`UGLY` lists those that can be read, `BROKEN` those that cannot; both map a name to a function that
takes a folder and returns what `Ugly` and `Broken` say. `random_table` is a hypothesis strategy for
cells of arbitrary text, and `mutated` damages the bytes of any file. Nothing here needs a model.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st

HEADER = ("id", "headline", "note")
ROWS = (
    ("1", "Northmill’s profit rose 20 %, sales fell", "a"),
    ("2", "Die Erträge der Nordmühle sanken", ""),
    ("3", "北方磨坊的利润上升了", 'say "yes"'),
)
PLAIN = (("1", "Profit rose", "a"), ("2", "Sales fell", "b"), ("3", "No change", "c"))


@dataclass(frozen=True)
class Ugly:
    """A file that can be read."""

    path: Path
    names: tuple[str, ...] = HEADER
    rows: tuple[tuple[str, ...], ...] = ROWS
    column: str = "headline"
    """That holds the texts."""
    options: dict[str, object] = field(default_factory=dict)
    """Fields of Reading that this file needs named."""


@dataclass(frozen=True)
class Broken:
    """A file that cannot be read."""

    path: Path
    says: str
    """A pattern of the error."""


def delimited(rows: object, delimiter: str = ",", **dialect: object) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\n", **dialect)  # type: ignore[arg-type]
    writer.writerows(rows)  # type: ignore[arg-type]
    return buffer.getvalue()


CSV = delimited((HEADER, *ROWS))


def saved(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _encoded(encoding: str, bom: bytes = b"") -> Callable[[Path], Ugly]:
    return lambda folder: Ugly(saved(folder, "encoded.csv", bom + CSV.encode(encoding)))


def _separated(delimiter: str, name: str = "separated.csv") -> Callable[[Path], Ugly]:
    return lambda folder: Ugly(saved(folder, name, delimited((HEADER, *ROWS), delimiter)))


def _plain(
    content: str,
    *,
    names: tuple[str, ...] = HEADER,
    rows: tuple[tuple[str, ...], ...] = PLAIN,
    column: str = "headline",
    **options: object,
) -> Callable[[Path], Ugly]:
    return lambda folder: Ugly(saved(folder, "plain.csv", content), names, rows, column, options)


def backslashes(folder: Path) -> Ugly:
    text = 'id,headline,note\n1,"He said \\"sell\\", then left",a\n2,"Sales fell",b\n'
    rows = (("1", 'He said "sell", then left', "a"), ("2", "Sales fell", "b"))
    return Ugly(saved(folder, "escaped.csv", text), rows=rows)


def single_quotes(folder: Path) -> Ugly:
    text = "'id','headline','note'\n'1','Profit, up','a'\n'2','It''s flat','b'\n"
    rows = (("1", "Profit, up", "a"), ("2", "It's flat", "b"))
    return Ugly(saved(folder, "single.csv", text), rows=rows)


def stray_quotes(folder: Path) -> Ugly:
    text = 'id\theadline\tnote\n1\t"Best" firm wins\ta\n2\tA 5" pipe maker\tb\n'
    rows = (("1", '"Best" firm wins', "a"), ("2", 'A 5" pipe maker', "b"))
    return Ugly(saved(folder, "stray.tsv", text), rows=rows)


def packed(folder: Path) -> Ugly:
    return Ugly(saved(folder, "packed.csv.gz", gzip.compress(CSV.encode())))


def packed_wide(folder: Path) -> Ugly:
    return Ugly(saved(folder, "packed.tsv.gz", gzip.compress(CSV.encode("utf-16"))))


def windows(folder: Path) -> Ugly:
    content = "id,headline\n1,Northmill’s profit – “up”\n".encode("cp1252")
    rows = (("1", "Northmill’s profit – “up”"),)
    return Ugly(
        saved(folder, "cp1252.csv", content), HEADER[:2], rows, options={"encoding": "cp1252"}
    )


def json_lines(folder: Path) -> Ugly:
    text = "\n".join(
        json.dumps(dict(zip(HEADER, row, strict=True)), ensure_ascii=False) for row in ROWS
    )
    return Ugly(saved(folder, "lines.jsonl", text))


def json_lines_of_all_types(folder: Path) -> Ugly:
    lines = (
        '{"headline": "Profit \\u00fcber plan", "n": 12345678901234567890.10}',
        "",
        '{"headline": null, "tags": ["a", {"b": 1}], "ok": true}',
    )
    rows = (
        ("Profit über plan", "12345678901234567890.10", "", ""),
        ("", "", '["a", {"b": 1}]', "TRUE"),
    )
    path = saved(folder, "types.ndjson", "\n".join(lines))
    return Ugly(path, ("headline", "n", "tags", "ok"), rows)


def workbook(folder: Path, name: str = "book.xlsx") -> Ugly:
    import openpyxl

    book = openpyxl.Workbook()
    for row in (HEADER, *ROWS):
        book.active.append(row)
    book.create_sheet("other").append(["no", "table"])
    book.save(folder / name)
    return Ugly(folder / name)


def workbook_of_all_types(folder: Path) -> Ugly:
    import datetime

    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append([])
    sheet.append(["when", "headline", "n"])
    sheet.append([datetime.datetime(2020, 1, 2), "Profit rose", 5.0])
    sheet.append([None, None, None])
    sheet.append([datetime.datetime(2020, 1, 2, 3, 4), "Line one\nline two", True])
    path = folder / "types.xlsx"
    book.save(path)
    rows = (
        ("2020-01-02", "Profit rose", "5"),
        ("2020-01-02 03:04:00", "Line one\nline two", "TRUE"),
    )
    return Ugly(path, ("when", "headline", "n"), rows)


def parquet(folder: Path) -> Ugly:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = zip(*ROWS, strict=True)
    table = pa.table({name: list(c) for name, c in zip(HEADER, columns, strict=True)})
    pq.write_table(table, folder / "table.parquet")
    return Ugly(folder / "table.parquet")


def parquet_with_gaps(folder: Path) -> Ugly:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"headline": ["Profit rose", None], "n": [0.25, None], "t": [["a"], []]})
    pq.write_table(table, folder / "gaps.parquet", compression="gzip")
    rows = (("Profit rose", "0.25", '["a"]'), ("", "", "[]"))
    return Ugly(folder / "gaps.parquet", ("headline", "n", "t"), rows)


def misnamed(folder: Path) -> Ugly:
    return Ugly(workbook(folder, "book.csv").path)


PLAIN_CSV = delimited((HEADER, *PLAIN))
UGLY: dict[str, Callable[[Path], Ugly]] = {
    "utf-8": _encoded("utf-8"),
    "utf-8 with mark": _encoded("utf-8-sig"),
    "utf-16": _encoded("utf-16"),
    "utf-16 big endian": _encoded("utf-16-be", b"\xfe\xff"),
    "utf-16 little endian without mark": _encoded("utf-16-le"),
    "utf-16 big endian without mark": _encoded("utf-16-be"),
    "utf-32": _encoded("utf-32"),
    "utf-32 little endian without mark": _encoded("utf-32-le"),
    "utf-32 big endian without mark": _encoded("utf-32-be"),
    "windows-1252, named": windows,
    "semicolons": _separated(";"),
    "tabs": _separated("\t", "separated.tsv"),
    "pipes": _separated("|"),
    "semicolons and decimal commas": _plain(
        "id;headline;note\n1;Up, 1,5 %;2,5\n2;Down;3,0\n",
        rows=(("1", "Up, 1,5 %", "2,5"), ("2", "Down", "3,0")),
    ),
    "another separator, named": _plain(PLAIN_CSV.replace(",", "~"), delimiter="~"),
    "backslashes": backslashes,
    "single quotes": single_quotes,
    "stray quotes": stray_quotes,
    "everything quoted": lambda folder: Ugly(
        saved(folder, "all.csv", delimited((HEADER, *ROWS), quoting=csv.QUOTE_ALL))
    ),
    "windows line ends": _plain(PLAIN_CSV.replace("\n", "\r\n")),
    "old mac line ends": _plain(PLAIN_CSV.replace("\n", "\r")),
    "no last line end": _plain(PLAIN_CSV.rstrip("\n")),
    "blank lines": _plain("\n\n" + PLAIN_CSV.replace("\n", "\n\n") + "\n \n"),
    "line ends in cells": _plain(
        'id,headline,note\n1,"a\rb","c\nd"\n2,"e\r\nf",g\n',
        rows=(("1", "a\rb", "c\nd"), ("2", "e\r\nf", "g")),
    ),
    "unnamed index": _plain(
        ",headline\n0,Profit rose\n1,Sales fell\n",
        names=("column 1", "headline"),
        rows=(("0", "Profit rose"), ("1", "Sales fell")),
    ),
    "two columns of one name": _plain(
        "headline,x,x\nProfit rose,1,2\n",
        names=("headline", "x (column 2)", "x (column 3)"),
        rows=(("Profit rose", "1", "2"),),
    ),
    "spaces around names": _plain(
        " id , headline \n1,Profit rose\n",
        names=(" id ", " headline "),
        rows=(("1", "Profit rose"),),
    ),
    "no header, said": _plain(
        "neutral,No plans to move\nnegative,Profit fell\n",
        names=("column 1", "column 2"),
        rows=(("neutral", "No plans to move"), ("negative", "Profit fell")),
        column="2",
        header=False,
    ),
    "no header, found": _plain(
        "neutral,Northmill has no plans to move\nnegative,Profit fell\n",
        names=("column 1", "column 2"),
        rows=(("neutral", "Northmill has no plans to move"), ("negative", "Profit fell")),
        column="column 2",
        header=None,
    ),
    "one text a line": _plain(
        "headline\nProfit, sales and debt rose\nSales fell\n",
        names=("headline",),
        rows=(("Profit, sales and debt rose",), ("Sales fell",)),
    ),
    "one text a line, some empty": _plain(
        "headline\nProfit rose\n\nSales fell\n\n",
        names=("headline",),
        rows=(("Profit rose",), ("",), ("Sales fell",)),
    ),
    "empty cells": _plain(
        "id,headline\n1,\n,\n3, \n",
        names=("id", "headline"),
        rows=(("1", ""), ("", ""), ("3", " ")),
    ),
    "formulas": _plain(
        "id,headline\n1,=1+1\n2,'=1\n-3,@x\n",
        names=("id", "headline"),
        rows=(("1", "=1+1"), ("2", "'=1"), ("-3", "@x")),
    ),
    "a long cell": _plain(
        f"headline\n{'profit ' * 20_000}\n", names=("headline",), rows=(("profit " * 20_000,),)
    ),
    "names of the answer's columns": _plain(
        "headline,label,negative,truncated\nProfit rose,positive,1,x\n",
        names=("headline", "label", "negative", "truncated"),
        rows=(("Profit rose", "positive", "1", "x"),),
    ),
    "invisible characters": _plain(
        "headline,x\nProfit\u200b rose\u2028today\x0b,\x85\x1c\n",
        names=("headline", "x"),
        rows=(("Profit\u200b rose\u2028today\x0b", "\x85\x1c"),),
    ),
    "separator named in the first line": _plain("sep=;\n" + PLAIN_CSV.replace(",", ";")),
    "json lines named csv": _plain(
        '{"id": 1, "headline": "Profit, up"}\n{"id": 2, "headline": "Sales"}\n',
        names=("id", "headline"),
        rows=(("1", "Profit, up"), ("2", "Sales")),
    ),
    "gzip": packed,
    "gzip of utf-16": packed_wide,
    "json lines": json_lines,
    "json lines of all types": json_lines_of_all_types,
    "workbook": workbook,
    "workbook of all types": workbook_of_all_types,
    "workbook named csv": misnamed,
    "parquet": parquet,
    "parquet with gaps": parquet_with_gaps,
}


def _broken(content: bytes | str, says: str, name: str = "broken.csv") -> Callable[[Path], Broken]:
    return lambda folder: Broken(saved(folder, name, content), says)


def formula_without_result(folder: Path) -> Broken:
    import openpyxl

    book = openpyxl.Workbook()
    for row in (["headline"], ["=A1"]):
        book.active.append(row)
    book.save(folder / "formula.xlsx")
    return Broken(folder / "formula.xlsx", "row 2, cell 1: the result of the formula is not stored")


def cut(made: Callable[[Path], Ugly], share: float, says: str) -> Callable[[Path], Broken]:
    def make(folder: Path) -> Broken:
        path = made(folder).path
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        return Broken(path, says)

    return make


def two_sheets_of_different_width(folder: Path) -> Broken:
    import openpyxl

    book = openpyxl.Workbook()
    for row in (["id", "headline"], ["1", "Profit rose", None, "stray"]):
        book.active.append(row)
    book.save(folder / "wide.xlsx")
    return Broken(folder / "wide.xlsx", "row 2: 4 cells, the header has 2")


def empty_first_sheet(folder: Path) -> Broken:
    import openpyxl

    book = openpyxl.Workbook()
    book.active.title = "Notes"
    book.create_sheet("Data").append(["headline"])
    book.save(folder / "notes.xlsx")
    return Broken(folder / "notes.xlsx", "first sheet, 'Notes', is empty; there are .*'Data'")


def title_above_the_header(folder: Path) -> Broken:
    import openpyxl

    book = openpyxl.Workbook()
    for row in (["Our headlines"], ["id", "headline", "day"], [1, "up", "Monday"]):
        book.active.append(row)
    book.save(folder / "titled.xlsx")
    return Broken(
        folder / "titled.xlsx",
        "^row 1 has one cell only, 'Our headlines', and row 2 looks like "
        "the names of the columns; remove what stands above it$",
    )


BROKEN: dict[str, Callable[[Path], Broken]] = {
    "nothing": _broken(b"", "the file is empty"),
    "line ends alone": _broken("\n\r\n\n", "the file is empty"),
    "a mark alone": _broken(b"\xef\xbb\xbf", "the file is empty"),
    "a header alone": _broken("id,headline\n", "header"),
    "a row too short": _broken("id,headline\n1,up\n2\n", r"row 3: 1 cells, the header has 2"),
    "a row too long": _broken("id,headline\n1,up\n2,a,b\n", r"row 3: 3 cells, the header has 2"),
    "a quotation mark left open": _broken('id,headline\n1,up\n2,"a\n3,b\n', "row 3: a quotation"),
    "text behind a quotation mark": _broken(
        'headline,n\n"up",1\n"a"b,2\n"c\nd",e\n', "row 3: .*quotation marks"
    ),
    "a stray carriage return": _broken("headline,n\nup\rdown,1\n", "row 2: a carriage return"),
    "windows-1252": _broken(
        b"headline\nNorthmill\x92s profit\n", "line 2: byte 0x92 .*Northmill’s"
    ),
    "a byte of no encoding": _broken(b"headline\nup \x81\n", "line 2: byte 0x81 .*save the file"),
    "utf-16 cut in a character": _broken(b"\xff\xfeh\0e\0a\0\n\0u\0\n\0p", "line 3: byte 0x70"),
    "a zero byte": _broken(b"headline\nup\0\n", "zero byte"),
    "a program": _broken(bytes(range(256)) * 20, "zero byte|byte 0x"),
    "an old workbook": _broken(b"\xd0\xcf\x11\xe0" + bytes(600), "old Excel workbook", "x.xls"),
    "a zip": _broken(b"PK\x03\x04" + bytes(60), "a zip archive", "x.csv"),
    "a broken zip": _broken(b"PK\x03\x04" + bytes(60), "the workbook is damaged", "x.xlsx"),
    "a pdf": _broken(b"%PDF-1.7\n", "a PDF document"),
    "bzip2": _broken(b"BZh91AY&SY", "packed by bzip2", "x.csv.bz2"),
    "gzip twice": _broken(gzip.compress(gzip.compress(CSV.encode())), "packed twice", "x.csv.gz"),
    "gzip cut off": cut(packed, 0.7, "gzip file is damaged"),
    "gzip of nothing": _broken(b"\x1f\x8b", "gzip file is damaged", "x.csv.gz"),
    "workbook cut off": cut(workbook, 0.6, "zip archive|workbook is damaged"),
    "parquet cut off": cut(parquet, 0.6, "Parquet file is damaged"),
    "a formula without a result": formula_without_result,
    "a title above the header": title_above_the_header,
    "cells beside the table": two_sheets_of_different_width,
    "json of a list": _broken("[1, 2]\n", "line 1: a JSON list", "x.jsonl"),
    "json of objects in a list": _broken('[\n  {"headline": "up"}\n]\n', "JSON", "x.json"),
    "a web page": _broken("\n<!DOCTYPE html>\n<table>", "a web page or XML", "x.csv"),
    "an empty first sheet": empty_first_sheet,
    "json cut off": _broken('{"headline": "up"}\n{"head', "line 2: not a JSON object", "x.jsonl"),
    "json with a field twice": _broken('{"a": 1, "a": 2}\n', "names 'a' twice", "x.jsonl"),
    "json of no number": _broken('{"a": NaN}\n', "holds NaN", "x.jsonl"),
    "json too deep": _broken('{"a": ' + "[" * 100_000 + "\n", "not a JSON object", "x.jsonl"),
    "json with half a character": _broken(
        '{"headline": "\\ud800"}\n', "row 1, column 'headline': character 1 is one half", "x.jsonl"
    ),
    "json with a zero": _broken('{"headline": "a\\u0000"}\n', "a zero character", "x.jsonl"),
    "json of 5,000 digits in a list": _broken(
        '{"a": [' + "9" * 5000 + "]}\n", "line 1: not a JSON object", "x.jsonl"
    ),
}

CELLS = st.text(
    alphabet=st.one_of(
        st.sampled_from(list("ab '\"\\,;|\t\r\n=+-@%1.\x0b\x0c\x85\u2028’é\ufeff")),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    ),
    max_size=12,
)


@st.composite
def random_table(draw: st.DrawFn) -> list[list[str]]:
    """1 to 5 rows of 1 to 4 cells of arbitrary text."""
    width = draw(st.integers(1, 4))
    return draw(st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1, max_size=5))


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Bytes with bits flipped, parts cut off or out, and signs of formats put in."""
    found = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 5, 20])):
        if not found:
            break
        at = draw.randrange(len(found))
        match draw.randrange(5):
            case 0:
                found[at] ^= 1 << draw.randrange(8)
            case 1:
                del found[at:]
            case 2:
                del found[at : at + draw.randrange(1, 50)]
            case 3:
                signs = (draw.choice(b"\",;\t\r\n\\'\0\xff=") for _ in range(draw.randrange(1, 5)))
                found[at:at] = bytes(signs)
            case _:
                found[at:at] = found[draw.randrange(len(found)) :][: draw.randrange(1, 200)]
    return bytes(found)
