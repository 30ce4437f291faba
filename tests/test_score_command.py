"""finsent score: what it prints, and that every mistake is one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from finsent.commands import score as command
from finsent.commands.cli import main
from tests.test_scoring import ABOUT, LABELS, predict_block
from tests.ugly_files import UGLY


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """finsent score with a model of its own."""

    class Made:
        label_names = LABELS

    monkeypatch.setattr(command.Model, "run", lambda self: Made())
    monkeypatch.setattr(command.Model, "about", lambda self: {**ABOUT, "arm": self.arm})
    monkeypatch.setattr(command.Model, "load", lambda self, progress=None: predict_block)

    def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
        try:
            status = main(["score", *map(str, arguments)])
        except SystemExit as end:
            status = int(str(end.code))
        said = capsys.readouterr()
        return status, said.err if status else said.out

    return run


def test_the_command_says_how_it_read_and_what_it_did(
    call: Callable[..., tuple[int, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = UGLY["semicolons"](tmp_path).path, tmp_path / "out.csv"
    status, said = call(source, "--column", "headline", "--out", target, capsys=capsys)
    assert status == 0
    assert "separated by semicolon" in said
    assert f"{target}: 3 rows" in said


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("no.csv --column x --out out.csv", "there is no file"),
        (". --column x --out out.csv", "is no file"),
        (f"{'x' * 300}.csv --column x --out out.csv", "File name too long"),
        ("locked.csv --column x --out out.csv", "Permission denied"),
        ("in.csv --column x --out out.csv --encoding klingon", "there is no encoding 'klingon'"),
        ("in.csv --column x --out out.csv --encoding hex", "there is no encoding 'hex'"),
        ("in.csv --column x --out out.csv --delimiter ab", "the separator must be one of"),
        ("in.csv --column x --out out.csv --quoting odd", "invalid choice: 'odd'"),
        ("in.csv --column x --out out.csv --on-empty drop", "invalid choice: 'drop'"),
        ("in.csv --column x --out out.csv --sheet a", "only workbooks"),
        ("in.csv --column y --out out.csv", "no column 'y'; there are 'x'"),
        ("in.csv --column x --label-column y --out out.csv", "no column 'y'; there are 'x'"),
        ("in.csv --column x --out .", "is no file that could be replaced"),
        ("in.csv --column x --out loop", "a link that leads to itself"),
        ("in.csv --column x --out no/out.csv", "there is no folder no to write into"),
        (f"in.csv --column x --out {'x' * 300}", "File name too long"),
        ("in.csv --column x --out in.csv", "both input and output"),
        ("in.csv --column x --out /dev/full", "is no file that could be replaced"),
        ("in.csv --column x --out closed/out.csv", "Permission denied"),
        ("in.csv --column x --out out.csv --seed -1", "a seed is a whole number"),
        ("in.csv --column x --out out.csv --workers 0", "--workers must be at least 1"),
        ("in.csv --column x --out out.csv --runs . --size fast", "leave out --size"),
        ("header.csv --column x --out out.csv", "a header and no row below it"),
        ("cp1252.csv --column x --out out.csv", "--encoding cp1252"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    typed: str,
    says: str,
    call: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in (("in", b"x\nup\n"), ("locked", b"x\n"), ("header", b"x\n")):
        Path(f"{name}.csv").write_bytes(content)
    Path("cp1252.csv").write_bytes(b"x\nNorthmill\x92s profit\n")
    Path("locked.csv").chmod(0)
    Path("loop").symlink_to("loop")
    Path("closed").mkdir(mode=0o500)
    if says == "Permission denied" and os.geteuid() == 0:
        pytest.skip("root may read and write everything")
    before = sorted(p.name for p in tmp_path.iterdir())
    status, said = call(*typed.split(), capsys=capsys)
    assert status == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert says in said
    left = sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("out.csv."))
    assert left == before


def test_runs_that_are_not_there_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.csv").write_text("x\nup\n")
    arguments = [str(tmp_path / "in.csv"), "--column", "x", "--out", str(tmp_path / "out.csv")]
    assert main(["score", *arguments, "--runs", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
