"""Generated and broken files through the reader, the page's function and the command line."""

from __future__ import annotations

import contextlib
import csv
import io
import random
from pathlib import Path
from unittest import mock

from hypothesis import HealthCheck, Phase, given, seed, settings

from bench.trust.scenario import RUNS, Setting, Tally, finsent, is_told
from bench.trust.texts import text
from finsent.commands import cli
from finsent.serving.many_texts import read_upload
from finsent.serving.scoring import Model
from finsent.serving.tables.reading import open_table, text_column
from finsent.serving.tables.rows import Reading, TableError
from finsent.serving.tables.writing import neutralize
from finsent.ui.parts.source import FILE, file_updates, items_of
from tests.ugly_files import BROKEN, UGLY, delimited, random_table, saved

NAMES = ("a.csv", "a.tsv", "a.txt", "a.xlsx", "a.jsonl", "a.parquet", "a.gz")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "latin-1")


def generated(draw: random.Random, folder: Path, whole: list[bytes]) -> Path:
    """Half of them a file of texts in some dialect and encoding, half a whole file with damage."""
    name = draw.choice(NAMES)
    if draw.random() < 0.5:
        rows = [
            [text(draw) if draw.random() < 0.9 else "" for _ in range(3)]
            for _ in range(draw.randrange(1, 20))
        ]
        sign = draw.choice(",;\t|~")
        content = delimited([["id", "headline", "note"], *rows], sign)
        encoding = draw.choice(ENCODINGS)
        return saved(folder, draw.choice(NAMES[:3]), content.encode(encoding, "replace"))
    damaged = bytearray(draw.choice(whole))
    for _ in range(draw.choice((1, 1, 4, 40))):
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
    del damaged[draw.choice((len(damaged), draw.randrange(len(damaged) + 1))) :]
    return saved(folder, name, bytes(damaged))


def _whole(folder: Path) -> list[bytes]:
    return [make(folder).path.read_bytes() for make in UGLY.values()]


def through_the_reader(setting: Setting) -> Tally:
    """Every file is read to its cells or refused with a reason; nothing is guessed."""
    tally = Tally()
    for name, make in UGLY.items():
        ugly = make(setting.folder)
        found = read_upload(ugly.path, Reading(**ugly.options))  # type: ignore[arg-type]
        tally.check(tuple(row.cells for row in found.rows) == ugly.rows, name)

    @seed(setting.seed)
    @settings(
        max_examples=setting.count(300),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(random_table())
    def any_cells(rows: list[list[str]]) -> None:
        names = [f"c{i}" for i in range(len(rows[0]))]
        path = saved(setting.folder, "t.csv", delimited([names, *rows]))
        try:
            read_upload(path, Reading(delimiter=","))
        except TableError as error:
            tally.check(bool(str(error)), "an empty reason")
        else:
            tally.check(True, "")

    any_cells()
    return tally


def through_the_page(setting: Setting) -> Tally:
    """What is shown of a file that was brought, and the texts that *Score* takes from it: both read
    it, or both say why not."""
    tally, draw = Tally(), setting.random
    whole = _whole(setting.folder)
    for number in range(setting.count(300)):
        path = generated(draw, setting.folder, whole)
        try:
            shown = file_updates(str(path), "", "", "")
            try:
                items, _ = items_of("", str(path), FILE, None, None, "", "", "")
            except TableError as error:
                tally.check("cannot be read" in shown[-1], f"{number}: {error}")
            else:
                read = bool(items) and "cannot be read" not in shown[-1]
                tally.check(read, f"{number}: {shown[-1]}")
        except Exception as error:
            tally.check(False, f"{path.name} {number}: {type(error).__name__}: {error}"[:200])
    return tally


def through_the_command(setting: Setting) -> Tally:
    """Broken files end `finsent score` in a line; generated ones come out cell by cell, or do."""
    tally, draw = Tally(), setting.random
    for name in draw.sample(sorted(BROKEN), min(len(BROKEN), setting.count(len(BROKEN)))):
        broken = BROKEN[name](setting.folder)
        out = setting.folder / "out.csv"
        ended = finsent("score", broken.path, "--column", "headline", "--out", out, "--runs", RUNS)
        tally.check(is_told(ended) and not out.exists(), f"{name}: {ended.stderr[-200:]}")
    whole = _whole(setting.folder)
    # Loaded once; a command of its own for each would be all that is measured.
    predict = Model(RUNS, "dendritic", 0).load()
    with mock.patch.object(Model, "load", return_value=predict):
        for number in range(setting.count(300)):
            path = generated(draw, setting.folder, whole)
            try:
                _scored(tally, path, setting.folder / f"out-{number}.csv")
            except Exception as error:
                tally.check(False, f"{path.name} {number}: {type(error).__name__}: {error}"[:200])
    return tally


def _scored(tally: Tally, path: Path, out: Path) -> None:
    """One file through the command in this process."""
    expected, column = None, "headline"
    with contextlib.suppress(TableError):
        table = open_table(path, Reading())
        rows = list(table.rows())
        if rows:
            column, expected = text_column(table, rows), rows
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = cli.main(
            ["score", str(path), f"--column={column}", "--out", str(out), "--runs", str(RUNS)]
        )
    errors = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
    if expected is None or status != 0:
        told = status == 2 and len(errors) == 1 and not out.exists()
        tally.check(told and expected is None, f"{path.name}: {status} {said.getvalue()[-200:]}")
        return
    with out.open(newline="", encoding="utf-8-sig") as stream:
        found = list(csv.reader(stream, strict=True))[1:]
    given = [[neutralize(cell) for cell in row.cells] for row in expected]
    tally.check([row[: len(row) - 5] for row in found] == given, f"{path.name}: other cells")
