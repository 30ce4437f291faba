"""python -m finsent score: resuming, bad input, cells that a spreadsheet would run."""

from __future__ import annotations

import csv
import functools
import random
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finsent.commands.cli import main
from finsent.serving.scoring import PredictAll, ScoringError, score_csv
from finsent.serving.spreadsheet import neutralize

LABELS = ("negative", "neutral", "positive")


def predict_block(texts: list[str]) -> list[list[float]]:
    """From the text alone, so that blocks and restarts cannot matter."""
    rows = []
    for text in texts:
        draw = random.Random(text)
        values = [draw.random() for _ in LABELS]
        rows.append([v / sum(values) for v in values])
    return rows


predict = functools.partial(map, predict_block)


def ahead(blocks: Iterator[list[str]]) -> Iterator[list[list[float]]]:
    """Asks for blocks before it answers those it has, as several workers do."""
    waiting: deque[list[list[float]]] = deque()
    for texts in blocks:
        waiting.append(predict_block(texts))
        if len(waiting) == 4:
            yield waiting.popleft()
    yield from waiting


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
        return list(csv.reader(stream))


def test_columns_are_kept_and_added(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    done = score_csv(source, target, "headline", predict, LABELS, block_rows=7)
    assert (done.rows, done.resumed_from) == (50, 0)
    found, given = rows_of(target), rows_of(source)
    assert found[0] == ["id", "headline", "'=note", "label", *LABELS]
    for row, original in zip(found[1:], given[1:], strict=True):
        assert row[:3] == [neutralize(cell) for cell in original]
        (expected,) = predict_block([original[1]])
        assert [float(p) for p in row[4:]] == pytest.approx(expected, abs=1e-6)
        assert row[3] == LABELS[expected.index(max(expected))]


def test_killed_anywhere_and_resumed_the_file_is_the_same(source: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.csv"
    score_csv(source, whole, "headline", predict, LABELS)
    expected = whole.read_bytes()
    target = tmp_path / "cut.csv"
    for cut in sorted({0, 1, 30, 70, len(expected), *random.Random(0).sample(range(3000), 40)}):
        target.write_bytes(expected[:cut])
        score_csv(source, target, "headline", predict, LABELS, block_rows=9)
        assert target.read_bytes() == expected, cut


def test_an_interrupted_run_keeps_what_it_wrote(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    calls = 0

    def dying(texts: list[str]) -> list[list[float]]:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return predict_block(texts)

    with pytest.raises(KeyboardInterrupt):
        score_csv(source, target, "headline", functools.partial(map, dying), LABELS, block_rows=10)
    assert len(rows_of(target)) == 31
    asked: list[str] = []

    def counting(texts: list[str]) -> list[list[float]]:
        asked.extend(texts)
        return predict_block(texts)

    done = score_csv(
        source, target, "headline", functools.partial(map, counting), LABELS, block_rows=10
    )
    assert (done.rows, done.resumed_from, len(asked)) == (50, 30, 20)


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\r=1"])
def test_formulas_are_made_text(cell: str) -> None:
    assert neutralize(cell) == f"'{cell}"
    assert neutralize(f"a{cell}") == f"a{cell}"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (b"id,text\n1,x\n", r"has no column 'headline'; it has 'id', 'text'"),
        (b"headline,headline\na,b\n", "names a column twice"),
        (b"headline,label\na,b\n", "already has columns label"),
        (b"id,headline\n1,up\n2, \n", r"line 3: the cell in column 'headline' is empty"),
        (b"id,headline\n1,up\n2\n", "line 3: 1 cells, the header has 2"),
        (b"id,headline\n1,up\n2,f\xfcr\n", "line 3: byte 0xfc is not utf-8"),
        (b'id,headline\n1,"up\n', "line 2: unexpected end of data"),
    ],
)
def test_bad_files_are_explained(content: bytes, fault: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes(content)
    with pytest.raises(ScoringError, match=fault):
        score_csv(source, target, "headline", predict, LABELS)


@pytest.mark.parametrize("answering", [predict, ahead])
@pytest.mark.parametrize("bad", [b" ", b"f\xfcr"])
def test_rows_before_a_bad_one_are_kept_and_the_rest_follows_its_repair(
    tmp_path: Path, answering: PredictAll, bad: bytes
) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes(b"headline\nup\nupper\nuppest\n" + bad + b"\ndown\n")
    with pytest.raises(ScoringError, match=r"line 5.*3 rows before it are in"):
        score_csv(source, target, "headline", answering, LABELS, block_rows=2)
    assert [row[0] for row in rows_of(target)] == ["headline", "up", "upper", "uppest"]
    source.write_bytes(source.read_bytes().replace(bad, b"flat"))
    done = score_csv(source, target, "headline", answering, LABELS, block_rows=2)
    assert (done.rows, done.resumed_from) == (5, 3)
    assert [row[0] for row in rows_of(target)][3:] == ["uppest", "flat", "down"]


def test_answers_that_come_behind_reading_stay_with_their_rows(
    source: Path, tmp_path: Path
) -> None:
    shares: list[float] = []
    for name, answering in (("at-once", predict), ("ahead", ahead)):
        score_csv(
            source,
            tmp_path / name,
            "headline",
            answering,
            LABELS,
            block_rows=7,
            report=lambda rows, share: shares.append(share),
        )
    assert (tmp_path / "ahead").read_bytes() == (tmp_path / "at-once").read_bytes()
    assert shares[:8] == shares[8:] == sorted(shares[:8])


def test_an_output_of_another_input_is_left_alone(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    target.write_text("a,b\n1,2\n")
    with pytest.raises(ScoringError, match="other columns"):
        score_csv(source, target, "headline", predict, LABELS)
    assert target.read_text() == "a,b\n1,2\n"
    target.unlink()
    score_csv(source, target, "headline", predict, LABELS)
    before = target.read_bytes()
    source.write_text(source.read_text().replace("firm 3 ", "firm three "))
    with pytest.raises(ScoringError, match="does not continue this input"):
        score_csv(source, target, "headline", predict, LABELS)
    assert target.read_bytes() == before
    with pytest.raises(ScoringError, match="both input and output"):
        score_csv(source, source, "headline", predict, LABELS)


def test_other_encodings_and_byte_order_marks(tmp_path: Path) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes("headline\nfür\n".encode("utf-8-sig"))
    score_csv(source, target, "headline", predict, LABELS)
    assert rows_of(target)[1][0] == "für"
    target.unlink()
    source.write_bytes("headline\nfür\n".encode("latin-1"))
    score_csv(source, target, "headline", predict, LABELS, encoding="latin-1")
    assert rows_of(target)[1][0] == "für"


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def ones(blocks: Iterator[list[str]]) -> Iterator[list[list[float]]]:
        return ([[1.0, 0.0, 0.0]] * len(texts) for texts in blocks)

    def peak(rows: int) -> int:
        source, target = tmp_path / f"{rows}.csv", tmp_path / f"{rows}.out"
        source.write_text("headline\n" + "Profit rose by a fifth\n" * rows)
        tracemalloc.start()
        try:
            score_csv(source, target, "headline", ones, LABELS)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(30_000) < 1.5 * peak(3_000)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call: Callable[[list[str]], int] = main
    out = str(tmp_path / "out.csv")
    assert call(["score", str(tmp_path / "no.csv"), "--column", "x", "--out", out]) == 2
    assert "there is no file" in capsys.readouterr().err
    (tmp_path / "in.csv").write_text("x\nup\n")
    arguments = ["score", str(tmp_path / "in.csv"), "--column", "x", "--out", out]
    assert call([*arguments, "--runs", str(tmp_path / "none")]) == 2
    assert "error: " in capsys.readouterr().err
