"""finsent score: resuming, refusing what is not its own, bad input, what is counted."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import functools
import json
import os
import random
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finsent.commands import score as command
from finsent.serving.output import ScoringError
from finsent.serving.scoring import Answers, PredictAll, Scored, Task, score_table
from finsent.serving.tables.reading import open_table
from finsent.serving.tables.rows import Reading, TableError
from finsent.serving.tables.writing import neutralize
from tests.ugly_files import UGLY

LABELS = ("negative", "neutral", "positive")
ABOUT = {"model": "tiny", "arm": "dendritic", "seed": 0}


def predict_block(texts: list[str], engine: str = "torch") -> Answers:
    """From the text alone, so that blocks and restarts cannot matter."""
    rows = []
    for text in texts:
        draw = random.Random(text)
        values = [draw.random() for _ in LABELS]
        rows.append([v / sum(values) for v in values])
    return Answers(rows, [len(text) > 40 for text in texts], engine)


predict = functools.partial(map, predict_block)


def ahead(blocks: Iterator[list[str]]) -> Iterator[Answers]:
    """Asks for blocks before it answers those it has, as several workers do."""
    waiting: deque[Answers] = deque()
    for texts in blocks:
        waiting.append(predict_block(texts))
        if len(waiting) == 4:
            yield waiting.popleft()
    yield from waiting


def score(
    source: Path,
    target: Path,
    answering: PredictAll = predict,
    *,
    column: str = "headline",
    reading: Reading | None = None,
    about: dict[str, Any] | None = None,
    on_empty: str = "keep",
    label_column: str | None = None,
    engine: str | None = None,
    engine_here: Callable[[], str] | None = None,
    **options: Any,
) -> Scored:
    table = open_table(source, reading)
    task = Task(table, column, LABELS, about or ABOUT, on_empty, label_column, engine, engine_here)
    return score_table(task, source, target, lambda: contextlib.nullcontext(answering), **options)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "headline", "=note"])
        for i in range(50):
            note = ['say "yes",\nthen no', "=1+1", "", "ä"][i % 4]
            writer.writerow([i, f"Profit of firm {i} rose", note])
    return path


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream, strict=True))


def part_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def record_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.finsent.jsonl")


def dying(after: int) -> PredictAll:
    """Answers some blocks, then ends as Ctrl-C does."""

    def answer(blocks: Iterator[list[str]]) -> Iterator[Answers]:
        for number, texts in enumerate(blocks):
            if number == after:
                raise KeyboardInterrupt
            yield predict_block(texts)

    return answer


def interrupted(source: Path, target: Path, after: int = 3, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        score(source, target, dying(after), block_rows=10, **options)


def test_columns_are_kept_and_added(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    done = score(source, target, block_rows=7)
    assert (done.rows, done.resumed_from) == (50, 0)
    found, given = rows_of(target), rows_of(source)
    assert found[0] == ["id", "headline", "'=note", "label", *LABELS, "truncated"]
    for row, original in zip(found[1:], given[1:], strict=True):
        assert row[:3] == [neutralize(cell) for cell in original]
        (expected,) = predict_block([original[1]]).probabilities
        assert [float(p) for p in row[4:7]] == pytest.approx(expected, abs=1e-6)
        assert row[3] == LABELS[expected.index(max(expected))]
        assert row[7] == "no"
    assert not part_of(target).exists()


@pytest.mark.parametrize("name", UGLY)
def test_every_ugly_file_comes_out_cell_by_cell(name: str, tmp_path: Path) -> None:
    ugly = UGLY[name](tmp_path)
    reading = Reading(**ugly.options)  # type: ignore[arg-type]
    target = tmp_path / "out.csv"
    done = score(ugly.path, target, column=ugly.column, reading=reading)
    header, *found = rows_of(target)
    width = len(ugly.names)
    assert [row[:width] for row in found] == [[neutralize(c) for c in row] for row in ugly.rows]
    assert (
        len(header)
        == len(set(header) | {""}) - ("" not in header) + header.count("") - ("" in header)
        or header.count("x") == 2
    )
    place = open_table(ugly.path, reading).place(ugly.column)
    empty = sum(not row[place].strip() for row in ugly.rows)
    assert (done.rows, done.tally.empty) == (len(ugly.rows), empty)
    assert sum(not row[width] for row in found) == empty


def test_torn_anywhere_and_resumed_the_file_is_the_same(source: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.csv"
    score(source, whole, block_rows=9)
    expected, record = whole.read_bytes(), record_of(whole).read_bytes()
    lines = record.splitlines(keepends=True)
    target = tmp_path / "cut.csv"
    draw = random.Random(0)
    for cut in sorted({0, 1, 30, 70, len(expected), *draw.sample(range(len(expected)), 30)}):
        for torn in (target, part_of(target)):
            part_of(target).unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            torn.write_bytes(expected[:cut])
            record_of(target).write_bytes(record if torn == target else b"".join(lines[:-1]))
            score(source, target, block_rows=9)
            assert target.read_bytes() == expected, (cut, torn)
            assert not part_of(target).exists()
    for cut in draw.sample(range(len(lines[0]), len(record)), 20):
        target.unlink()
        part_of(target).write_bytes(expected)
        record_of(target).write_bytes(record[:cut])
        score(source, target, block_rows=9)
        assert target.read_bytes() == expected, cut


def test_an_interrupted_run_keeps_what_it_wrote(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    interrupted(source, target)
    assert len(rows_of(part_of(target))) == 31
    assert not target.exists()
    asked: list[str] = []

    def counting(texts: list[str]) -> Answers:
        asked.extend(texts)
        return predict_block(texts)

    done = score(source, target, functools.partial(map, counting), block_rows=10)
    assert (done.rows, done.resumed_from, len(asked)) == (50, 30, 20)
    assert score(source, target, dying(0)).resumed_from == 50, "nothing is asked when all is done"


def test_the_first_rows_are_on_the_disk_after_a_few(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    seen: list[int] = []
    score(
        source,
        target,
        report=lambda rows, share: seen.append(len(rows_of(part_of(target))) - 1),
    )
    assert seen == [16, 32, 50]


@pytest.mark.parametrize("cell", ["=1+1", "+x", "-x", "@SUM(A1)", "\tx", "\r=1"])
def test_formulas_are_made_text(cell: str) -> None:
    assert neutralize(cell) == f"'{cell}"
    assert neutralize(f"a{cell}") == f"a{cell}"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (b"id,text\n1,x\n", r"no column 'headline'; there are 'id', 'text'"),
        (b"headline,headline\na,b\n", "several columns are named 'headline'"),
        (b"id,headline\n", "a header and no row below it"),
        (b"id,headline\n1,up\n2\n", "row 3: 1 cells, the header has 2"),
        (b"id,headline\n1,up\n2,f\xfcr\n", "line 3: byte 0xfc is not UTF-8"),
        (b'id,headline\n1,"up\n', "row 2: a quotation mark is opened and not closed"),
    ],
)
def test_bad_files_are_explained(content: bytes, fault: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes(content)
    with pytest.raises((ScoringError, TableError), match=fault):
        score(source, target)
    assert not target.exists()
    if b"up" not in content:
        assert os.listdir(tmp_path) == ["in.csv"]


@pytest.mark.parametrize("answering", [predict, ahead])
@pytest.mark.parametrize("bad", [b" ", b"f\xfcr"])
def test_rows_before_a_bad_one_are_kept_and_the_rest_follows_its_repair(
    tmp_path: Path, answering: PredictAll, bad: bytes
) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes(b"headline\nup\nupper\nuppest\n" + bad + b"\ndown\n")
    options: dict[str, Any] = {"on_empty": "error", "block_rows": 2}
    with pytest.raises(ScoringError, match=r"(row|line) 5.*3 rows before it are in"):
        score(source, target, answering, **options)
    found = rows_of(part_of(target))
    assert [row[0] for row in found] == ["headline", "up", "upper", "uppest"]
    source.write_bytes(source.read_bytes().replace(bad, b"flat"))
    done = score(source, target, answering, **options)
    assert (done.rows, done.resumed_from) == (5, 3)
    assert [row[0] for row in rows_of(target)][3:] == ["uppest", "flat", "down"]


def test_answers_that_come_behind_reading_stay_with_their_rows(
    source: Path, tmp_path: Path
) -> None:
    shares: list[float] = []
    for name, answering in (("at-once", predict), ("ahead", ahead)):
        score(
            source,
            tmp_path / name,
            answering,
            block_rows=7,
            report=lambda rows, share: shares.append(share),
        )
    assert (tmp_path / "ahead").read_bytes() == (tmp_path / "at-once").read_bytes()
    assert shares[:8] == shares[8:] == sorted(shares[:8])


def test_rows_that_come_later_are_added(source: Path, tmp_path: Path) -> None:
    target, longer = tmp_path / "out.csv", tmp_path / "longer.csv"
    score(source, target, block_rows=9)
    with source.open("a") as stream:
        stream.write("50,Profit of firm 50 rose,x\r\n")
    done = score(source, target, block_rows=9)
    assert (done.rows, done.resumed_from) == (51, 50)
    score(source, longer, block_rows=9)
    assert target.read_bytes() == longer.read_bytes()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"about": {**ABOUT, "arm": "baseline"}}, "arm dendritic there, baseline now"),
        ({"about": {**ABOUT, "model": "large"}}, "model tiny there, large now"),
        ({"about": {**ABOUT, "seed": 1}}, "seed 0 there, 1 now"),
        ({"about": {**ABOUT, "long": "windows"}}, "long none there, windows now"),
        ({"column": "id"}, "column headline there, id now"),
        ({"on_empty": "skip"}, "on empty keep there, skip now"),
        ({"label_column": "id"}, "label column none there, id now"),
        ({"answering": functools.partial(map, functools.partial(predict_block, engine="graphs"))},
         "engine torch there, graphs now"),
        ({"engine": "graphs", "answering": None}, "engine torch there, graphs now"),
        ({"engine_here": lambda: "graphs", "answering": None}, "engine torch there, graphs now"),
    ],
    ids=("arm", "model", "seed", "long", "column", "on-empty", "label-column", "engine",
         "named-engine", "engine-before-loading"),
)  # fmt: skip
def test_what_was_begun_otherwise_is_refused_and_left_alone(
    changes: dict[str, Any], says: str, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.csv"
    interrupted(source, target)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ScoringError, match=f"out.csv.part was begun otherwise: {says}"):
        score(source, target, **changes)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    score(source, target, block_rows=10)
    if "engine" in changes or "answering" not in changes:
        with pytest.raises(ScoringError, match=f"out.csv was begun otherwise: {says}"):
            score(source, target, **changes)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("firm 3 ", "firm three ", "row 5 .*column 'headline', is .*three rose' and was .*3 rose'"),
        ("\r\n7,", "\r\n77,", "row 9 .*column 'id', is '77' and was '7'"),
        ("=note", "=notes", "columns .*=note. there"),
    ],
)
def test_another_input_is_refused_with_the_first_difference(
    before: str, after: str, says: str, finished: bool, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.csv"
    score(source, target) if finished else interrupted(source, target)
    there = target if finished else part_of(target)
    content = there.read_bytes()
    with source.open(newline="", encoding="utf-8") as stream:
        text = stream.read()
    assert before in text
    source.write_text(text.replace(before, after), encoding="utf-8", newline="")
    with pytest.raises(ScoringError, match=says):
        score(source, target, block_rows=10)
    assert there.read_bytes() == content


@pytest.mark.parametrize("finished", [True, False])
def test_a_forged_answer_is_refused_with_its_rows(
    finished: bool, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.csv"
    score(source, target, block_rows=10) if finished else interrupted(source, target)
    there = target if finished else part_of(target)
    content = there.read_text()
    start = content.index("Profit of firm 22 ")
    for name in LABELS:
        at = content.find(f'"{name}"', start)
        if at < content.index("\n", content.index("Profit of firm 22 ")):
            other = LABELS[LABELS.index(name) - 1]
            forged = content[:at] + content[at:].replace(name, other, 1)
    there.write_text(forged)
    with pytest.raises(ScoringError, match="changed after it was written .rows 21 to 30 below"):
        score(source, target, block_rows=10)
    assert there.read_text() == forged
    if finished:
        there.write_text(content + "mine\n")
        with pytest.raises(ScoringError, match="changed after it was written .row 51 on"):
            score(source, target, block_rows=10)


@pytest.mark.parametrize("suffix", ["", ".part", ".finsent.jsonl"])
@pytest.mark.parametrize(
    "content", [b"notes of mine, not a result", b"\0\1", b'{"a": 1}\n', b"[" * 100_000 + b"\n"]
)
def test_a_file_of_somebody_else_is_left_alone(
    content: bytes, suffix: str, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.csv"
    foreign = tmp_path / f"out.csv{suffix}"
    foreign.write_bytes(content)
    with pytest.raises(ScoringError, match="left alone"):
        score(source, target)
    assert foreign.read_bytes() == content
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["in.csv", foreign.name])
    foreign.write_bytes(b"")
    score(source, target)
    foreign = tmp_path / "out.csv"
    foreign.write_bytes(content)
    with pytest.raises(ScoringError, match="changed after it was written"):
        score(source, target)
    assert foreign.read_bytes() == content


def test_outputs_that_cannot_be_are_refused(source: Path, tmp_path: Path) -> None:
    for target, says in (
        (tmp_path, "is no file that could be replaced"),
        (Path("/dev/null"), "is no file that could be replaced"),
        (tmp_path / "no" / "out.csv", "there is no folder"),
        (source / "out.csv", "there is no folder"),
        (tmp_path / "out.xlsx", "the output is a CSV file"),
        (source, "both input and output"),
    ):
        with pytest.raises(ScoringError, match=says):
            score(source, target)
    link = tmp_path / "link.csv"
    os.link(source, link)
    with pytest.raises(ScoringError, match="both input and output"):
        score(source, link)
    with pytest.raises(OSError, match="too long"):
        score(source, tmp_path / ("x" * 300))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.csv", "link.csv"]


def test_only_one_writes_a_file_at_a_time(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    interrupted(source, target)
    with record_of(target).open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ScoringError, match="another command is writing"):
            score(source, target)
    score(source, target)


def test_empty_texts_are_kept_left_out_or_an_error(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("id,headline\n1,up\n2,\n3,\n4,down\n")
    kept = score(source, tmp_path / "kept.csv")
    assert (kept.rows, kept.tally.empty, kept.skipped) == (4, 2, 0)
    assert rows_of(tmp_path / "kept.csv")[2] == ["2", "", "", "", "", "", ""]
    skipped = score(source, tmp_path / "skipped.csv", on_empty="skip")
    assert (skipped.rows, skipped.tally.empty, skipped.skipped) == (2, 0, 2)
    assert [row[0] for row in rows_of(tmp_path / "skipped.csv")] == ["id", "1", "4"]
    assert score(source, tmp_path / "skipped.csv", dying(0), on_empty="skip").rows == 2
    with pytest.raises(ScoringError, match="row 3: the cell in column 'headline' is empty"):
        score(source, tmp_path / "error.csv", on_empty="error")
    source.write_text("id,headline\n1,\n2, \n")
    nothing = score(source, tmp_path / "nothing.csv", on_empty="skip")
    assert (nothing.rows, nothing.skipped) == (0, 2)
    assert score(source, tmp_path / "nothing.csv", on_empty="skip").rows == 0
    assert score(source, tmp_path / "all.csv").tally.empty == 2


def test_labels_are_kept_and_compared_with(tmp_path: Path) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    texts = [f"text {i}" for i in range(40)]
    probabilities = predict_block(texts).probabilities
    found = [LABELS[list(p).index(max(p))] for p in probabilities]
    true = [name if i % 4 else "Neutral " for i, name in enumerate(found)]
    true[5] = "mixed"
    lines = [f"{t},{name}" for t, name in zip(texts, true, strict=True)]
    source.write_text("\n".join(["headline,label", *lines, ",positive"]))
    interrupted(source, target, 2)
    done = score(source, target, block_rows=10)
    header, *rows = rows_of(target)
    assert header[:3] == ["headline", "label", "predicted_label"]
    assert [row[1] for row in rows][:-1] == true
    assert (done.labelled, done.tally.unlabelled, done.tally.empty) == (39, 1, 1)
    from sklearn.metrics import accuracy_score, f1_score

    known = [(t.strip().lower(), f) for t, f in zip(true, found, strict=True) if t != "mixed"]
    y, p = zip(*known, strict=True)
    assert done.agreement() == pytest.approx(
        (accuracy_score(y, p), f1_score(y, p, average="macro"))
    )
    told = command.summary(done, target)
    assert any("39 rows with a label" in line for line in told)
    assert any("an empty answer: 1 row" in line for line in told)
    other = score(source, tmp_path / "other.csv", label_column="headline")
    assert (other.labelled, other.tally.unlabelled) == (0, 40)


def test_a_cut_text_is_marked_and_counted(tmp_path: Path) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text(f"headline\nshort\n{'long ' * 20}\n")
    done = score(source, target)
    assert [row[-1] for row in rows_of(target)] == ["truncated", "no", "yes"]
    assert done.tally.truncated == 1
    assert any("cut to what the model reads: 1 text" in t for t in command.summary(done, target))


def test_the_record_says_what_made_the_rows(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    score(source, target)
    first, *steps = map(json.loads, record_of(target).read_text().splitlines())
    assert first["made_by"].items() >= {**ABOUT, "column": "headline", "on_empty": "keep"}.items()
    assert [step["rows"] for step in steps] == [16, 32, 50, 50]
    assert [step["finished"] for step in steps] == [False, False, False, True]
    assert steps[-1]["engine"] == "torch"


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def ones(blocks: Iterator[list[str]]) -> Iterator[Answers]:
        for texts in blocks:
            yield Answers([[1.0, 0.0, 0.0]] * len(texts), [False] * len(texts), "torch")

    def peak(rows: int) -> int:
        source, target = tmp_path / f"{rows}.csv", tmp_path / f"{rows}.out"
        source.write_text("headline\n" + "Profit rose by a fifth\n" * rows)
        tracemalloc.start()
        try:
            score(source, target, ones)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(20_000) < 1.5 * peak(4_000)
