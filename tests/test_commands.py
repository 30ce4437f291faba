"""The command line: where it finds runs, and what it says when something is wrong."""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import app
import finsent
import train_models
from finsent.commands import cli, options
from finsent.data.records import DataError
from finsent.machine import places
from finsent.machine.errors import message_for_user
from finsent.machine.places import PlaceError, artifacts_to_read, artifacts_to_write

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder outside the checkout, as if the package were installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(places.VARIABLE, raising=False)
    monkeypatch.setattr(places, "checkout", lambda: None)
    return tmp_path


def test_runs_are_looked_for_in_one_order(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert artifacts_to_write(None) == Path("artifacts")
    with pytest.raises(PlaceError, match=r"FINSENT_ARTIFACTS is not set, .*finsent train"):
        artifacts_to_read(None)
    here = elsewhere / "checkout"
    (here / "artifacts").mkdir(parents=True)
    monkeypatch.setattr(places, "checkout", lambda: here)
    assert artifacts_to_read(None) == artifacts_to_write(None) == here / "artifacts"
    (elsewhere / "artifacts").mkdir()
    assert artifacts_to_read(None) == Path("artifacts")
    monkeypatch.setenv(places.VARIABLE, str(elsewhere / "mine"))
    assert artifacts_to_write(None) == elsewhere / "mine"
    with pytest.raises(PlaceError, match=r"mine, which FINSENT_ARTIFACTS names"):
        artifacts_to_read(None)
    assert artifacts_to_read(here) == here
    with pytest.raises(PlaceError, match="no folder .*nothing"):
        artifacts_to_read(elsewhere / "nothing")


def test_the_checkout_is_where_pyproject_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert places.checkout() == ROOT
    monkeypatch.setattr(places, "ROOT", tmp_path)
    assert places.checkout() is None


@pytest.mark.parametrize("command", ["verify", "leaderboard", "figures", "latency", "app"])
def test_commands_that_read_runs_say_in_one_line_that_there_are_none(
    command: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: no trained runs")
    assert said.count("\n") == 1


def test_the_scripts_of_a_checkout_are_the_same_commands(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["--artifacts", "nothing"]) == 2
    assert train_models.main(["verify"]) == 2
    with pytest.raises(SystemExit):
        train_models.main(["score", "in.csv"])
    assert "invalid choice: 'score'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train_models.main(["--seeds", "none"])
    assert "train_models.py train --help" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"finsent {finsent.__version__}\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DataError("no such set"), True),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.csv"), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (ConnectionResetError("a peer has gone"), False),
        (ValueError("a mistake in the program"), False),
        (RuntimeError("another"), False),
    ],
)
def test_only_what_a_user_can_mend_is_told_in_one_line(
    error: Exception, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(options: argparse.Namespace) -> int:
        raise error

    given = argparse.Namespace(run=run)
    if told:
        assert cli.execute(given) == 2
        assert capsys.readouterr().err == f"error: {message_for_user(error)}\n"
    else:
        with pytest.raises(type(error)):
            cli.execute(given)


def test_an_interrupt_says_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    def run(options: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    assert cli.execute(argparse.Namespace(run=run, when_interrupted=options.KEPT)) == 130
    assert capsys.readouterr().err == "interrupted; finished runs are kept\n"


@pytest.mark.parametrize(
    ("program", "begins"),
    [
        ("train_models.py", "python train_models.py"),
        ("/usr/bin/finsent", "finsent"),
        ("/x/finsent/__main__.py", "finsent"),
    ],
)
def test_the_recorded_command_names_no_folder(
    program: str, begins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ["train", "--data-dir", "/secret", "--out=/secret", "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "argv", [program, *typed])
    assert options.shown_command() == f"{begins} train --seeds 0 1"


def test_the_package_runs_without_the_checkout(tmp_path: Path) -> None:
    """A copy of the package alone, started from another folder, as pip would have put it there."""
    shutil.copytree(
        ROOT / "finsent", tmp_path / "site/finsent", ignore=shutil.ignore_patterns("__pycache__")
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    environment.pop(places.VARIABLE, None)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    nothing = run("-m", "finsent", "verify")
    assert nothing.returncode == 2
    assert nothing.stderr.startswith("error: no trained runs")
    code = """
from finsent.data.agreement import agreement_levels
from finsent.data.registry import load_dataset
from finsent.machine.files import ROOT
from finsent.machine.places import checkout
print(ROOT.name, checkout(), len(load_dataset("sample").examples), len(agreement_levels()) > 4000)
"""
    read = run("-c", code)
    assert read.returncode == 0, read.stderr
    assert read.stdout.split() == ["site", "None", "278", "True"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "required"),
        ("scor", "invalid choice: 'scor'"),
        ("app --port 99999999", "a port is a whole number up to 65535, not '99999999'"),
        ("app --port=-5", "a port is a whole number"),
        ("app --host 192.0.2.1", "cannot serve at 192.0.2.1: "),
        ("train --seeds 0 1 0", "--seeds: 0 is named twice"),
        ("train --seeds -1", "a seed is a whole number from 0, not '-1'"),
        ("train --arms baseline baseline", "--arms: baseline is named twice"),
        ("train --epochs two", "invalid int value: 'two'"),
        ("train --backbone tiny-phi --dataset sample --epochs 1", "choose at least 2 epochs"),
        ("train --backbone tiny-phi --dataset sample --learning-rate inf", "finite, got inf"),
        ("train --backbone tiny-phi --dataset sample --lora-alpha nan", "alpha must be positive"),
        ("study lora --seeds 1 1", "--seeds: 1 is named twice"),
        ("evaluate x --seeds 0 0", "--seeds: 0 is named twice"),
        ("evaluate x --datasets fiqa fiqa", "--datasets: fiqa is named twice"),
        ("study lora --regimes a a", "--regimes: a is named twice"),
        ("study nothing\x1b[31m\nhere", r"unknown study 'nothing\x1b[31m\nhere'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_status_2(
    typed: str, said: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "artifacts").mkdir()
    try:
        status = cli.main(typed.split(" ") if typed else [])
    except SystemExit as end:
        status = end.code  # type: ignore[assignment]
    printed = capsys.readouterr().err
    assert status == 2
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert said in printed


def test_a_port_in_the_environment_is_checked_too(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "artifacts").mkdir()
    monkeypatch.setenv("GRADIO_SERVER_PORT", "http")
    assert cli.main(["app"]) == 2
    assert "GRADIO_SERVER_PORT: a port is a whole number" in capsys.readouterr().err
