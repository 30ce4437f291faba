"""Generated and broken files through the reader of the page and the command line."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, given, seed, settings

from bench.trust.scenario import RUNS, Setting, Tally, finsent, is_told
from finsent.serving.many_texts import read_upload
from finsent.serving.tables.rows import Reading, TableError
from tests.ugly_files import BROKEN, UGLY, delimited, random_table, saved


def through_the_reader(setting: Setting) -> Tally:
    """Every file is read to its cells or refused with a reason; nothing is guessed."""
    tally, draw = Tally(), setting.random
    for name, make in UGLY.items():
        ugly = make(setting.folder)
        found = read_upload(ugly.path, Reading(**ugly.options))  # type: ignore[arg-type]
        tally.check(tuple(row.cells for row in found.rows) == ugly.rows, name)
    whole = [make(setting.folder).path.read_bytes() for make in UGLY.values()]
    for _ in range(setting.count(300)):
        content = bytearray(draw.choice(whole))
        for _ in range(draw.choice((1, 1, 4, 40))):
            content[draw.randrange(len(content))] = draw.randrange(256)
        del content[draw.choice((len(content), draw.randrange(len(content) + 1))) :]
        path = saved(
            setting.folder, draw.choice(("a.csv", "a.xlsx", "a.jsonl", "a.parquet")), bytes(content)
        )
        try:
            read_upload(path, Reading())
        except TableError as error:
            tally.check(bool(str(error)), "an empty reason")
        except Exception as error:
            tally.check(False, f"{path.name}: {type(error).__name__}: {error}"[:200])
        else:
            tally.check(True, "")

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


def through_the_command(setting: Setting) -> Tally:
    """Broken files end `finsent score` in a line, and leave no output behind."""
    tally = Tally()
    names = setting.random.sample(sorted(BROKEN), min(len(BROKEN), setting.count(len(BROKEN))))
    for name in names:
        broken = BROKEN[name](setting.folder)
        out = setting.folder / "out.csv"
        ended = finsent("score", broken.path, "--column", "headline", "--out", out, "--runs", RUNS)
        tally.check(is_told(ended) and not out.exists(), f"{name}: {ended.stderr[-200:]}")
        out.unlink(missing_ok=True)
    return tally
