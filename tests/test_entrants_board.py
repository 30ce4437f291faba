"""Models from elsewhere on the board: tested, submitted, compared, verified; whole or not."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finsent.commands import cli
from finsent.data.folds import fold_tests, grouped_folds
from finsent.data.registry import load_dataset, make_split
from finsent.entrants.evaluating import Request, evaluate, knowledge, scores_of
from finsent.entrants.labels import EntrantError
from finsent.entrants.submitting import Submission, submit
from finsent.results import leaderboard, manifest
from finsent.results.external.runs import external_folder, read_external, read_folds
from finsent.results.runs import read_json, read_predictions, run_folder, write_json
from finsent.verification import verify, verify_entrant
from tests.artifact_factory import make_run

LABELS = ("negative", "neutral", "positive")
URL = "https://example.org/model"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board with a baseline that was tested on the test part of `sample`."""
    root = tmp_path_factory.mktemp("board") / "artifacts"
    folder = make_run(root, dataset="sample", n_test=42)
    dataset = load_dataset("sample")
    split = make_split(dataset, 0)
    run = read_json(folder / "config.json")
    answers = folder / "predictions.csv"
    rows = list(csv.reader(answers.read_text().splitlines()))
    examples = [dataset.examples[row] for row in split.test]
    # The invented answers, each given to a sentence of the real test part and shifted to its label.
    moved = []
    for example, row in zip(examples, rows[1:], strict=True):
        shift = example.label - LABELS.index(row[1])
        numbers = row[2:]
        moved.append(
            [example.id, LABELS[example.label], *(numbers[(i - shift) % 3] for i in range(3))]
        )
    with answers.open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([rows[0], *moved])
    (folder / "validation.csv").unlink()
    run |= {"dataset_sha256": dataset.fingerprint, "split_sha256": split.fingerprint}
    (folder / "config.json").write_text(json.dumps(run))
    found = read_predictions(answers, LABELS)
    write_json(
        folder / "metrics.json", read_json(folder / "metrics.json") | scores_of("sample", found)
    )
    leaderboard.write(root)
    manifest.write_manifest(root)
    assert verify(root) == []
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "artifacts")
    return tmp_path / "artifacts"


@pytest.fixture(autouse=True)
def _no_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """The behaviour suite is asked of a data set that is not here."""
    monkeypatch.setattr("finsent.entrants.evaluating.BEHAVIOUR_DATASETS", ("news", "sample"))


def state(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".work" not in path.parts
    }


@pytest.mark.slow
def test_a_tested_model_stands_on_the_board_like_any_other(root: Path) -> None:
    said: list[str] = []
    assert evaluate(Request("tfidf-logistic", command="x"), root, say=said.append) == 1
    assert verify(root) == []
    assert verify_entrant(root, "tfidf-logistic") == []
    run = read_external(external_folder(root, "tfidf-logistic", "sample", 0))
    board = read_json(root / "leaderboard.json")
    (row,) = (row for row in board["rows"] if row["backbone"] == "tfidf-logistic")
    (arm,) = (arm for arm in board["arms"] if arm["backbone"] == "tfidf-logistic")
    own = next(arm for arm in board["arms"] if arm["arm"] == "baseline")
    assert set(arm) == set(own)
    assert set(row) == set(board["rows"][0])
    assert arm["mean"]["accuracy"] == pytest.approx(run.metrics["accuracy"])
    assert (arm["tested"], arm["trained_on_data"], arm["may_have_seen_test"]) == (
        "here",
        "yes",
        False,
    )
    folds = read_folds(run.folder)
    assert sum(fold.n_test for fold in folds) == arm["folds"]["n_test"] == 278
    (against,) = board["against"]
    assert (against["entrant"], against["backbone"], against["n"]) == (
        "tfidf-logistic",
        "tiny-phi",
        42,
    )
    assert "tfidf-logistic is" in against["verdict"]
    suite = read_json(root / "behaviour" / "tfidf-logistic-sample.json")
    assert suite["runs"][0]["passed"] > 0
    # Once more gives the same numbers, and takes the place of the first.
    evaluate(Request("tfidf-logistic", folds=False), root, say=said.append)
    assert verify(root) == []


def test_a_timed_model_takes_turns_with_ours(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def ours(self: Any, dataset: str, seed: int) -> Any:
        assert (dataset, seed) == ("sample", 0)
        return "Tiny dendritic", lambda texts: asked.append(len(texts)), "CPU, 1 thread, made up"

    monkeypatch.setattr("finsent.entrants.timing.Ours.of", ours)
    evaluate(Request("lexicon-vader", folds=False, timed=True), root, say=lambda line: None)
    board = read_json(root / "leaderboard.json")
    (arm,) = (arm for arm in board["arms"] if arm["backbone"] == "lexicon-vader")
    assert arm["mean"]["latency_ms_p50"] > 0
    (protocol,) = arm["latency_protocol"]
    assert re.fullmatch(
        r"beside Tiny dendritic with [\d.]+ ms on CPU, 1 thread, made up, n = 90, "
        r"on CPU, \d+ threads?, Python",
        protocol,
    )
    assert asked == [1] * 93
    monkeypatch.setattr("finsent.entrants.timing.Ours.of", lambda *place: None)
    evaluate(Request("lexicon-vader", folds=False, timed=True), root, say=lambda line: None)
    run = read_external(external_folder(root, "lexicon-vader", "sample", 0))
    assert run.metrics["latency_protocol"].startswith("alone, n = 90")
    assert verify(root) == []


@pytest.mark.slow
def test_the_board_never_changes_half(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(Request("tfidf-logistic", folds=False), root, say=lambda line: None)
    before = state(root)

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("leaderboard.write", "manifest.write_manifest"):
        with monkeypatch.context() as patch:
            patch.setattr(f"finsent.entrants.publishing.{name}", fail)
            for request in (
                Request("tfidf-logistic", folds=False, command="again"),
                Request("tfidf-logistic", name="another", folds=False),
            ):
                with pytest.raises(OSError, match="No space"):
                    evaluate(request, root, say=lambda line: None)
                assert state(root) == before
    # Until the board is made nothing has moved: a process that is killed meanwhile leaves no half.
    made = leaderboard.write

    def look(folder: Path) -> Path:
        assert state(root) == before
        assert (folder / "external" / "another").is_dir()
        return made(folder)

    def full(path: Path, target: Path) -> Path:
        if path.name == "SHA256SUMS" and "whole" in path.parts:
            raise OSError(28, "No space left on device")
        return move(path, target)

    move = Path.replace
    with monkeypatch.context() as patch:
        patch.setattr("finsent.entrants.publishing.leaderboard.write", look)
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            evaluate(Request("lexicon-vader", name="another", folds=False), root, say=print)
    assert state(root) == before
    assert not (root / "external" / "another").exists()
    assert list((root / ".work").glob("entrant-*")) == []


def sent(root: Path, path: Path, **changes: Any) -> Path:
    """The baseline's own predictions as a file that somebody sends."""
    lines = (run_folder(root, "tiny-phi", "sample", "baseline", 0) / "predictions.csv").read_text()
    rows = [[row[0], *row[2:]] for row in csv.reader(lines.splitlines())]
    rows = changes.get("rows", lambda given: given)(rows)
    path.write_text("\n".join(",".join(row) for row in rows) + "\n", encoding="utf-8-sig")
    return path


def test_predictions_are_scored_as_ours_are(root: Path, tmp_path: Path) -> None:
    path = sent(root, tmp_path / "sent.csv", rows=lambda rows: [rows[0], *rows[:0:-1]])
    submit([path], Submission("theirs", URL, ("sample",)), root)
    assert verify(root) == []
    board = read_json(root / "leaderboard.json")
    theirs, own = (
        next(arm for arm in board["arms"] if arm["backbone"] == name)
        for name in ("theirs", "tiny-phi")
    )
    assert theirs["mean"]["accuracy"] == own["mean"]["accuracy"]
    assert theirs["mean"]["nll"] == pytest.approx(own["mean"]["nll"], abs=1e-3)
    assert (theirs["tested"], theirs["trained_on_data"]) == ("self-reported", "yes")
    assert board["against"][0]["outcome"] == "tied"
    with pytest.raises(EntrantError, match=f"stands for {URL}"):
        evaluate(Request("tfidf-logistic", name="theirs"), root, say=lambda line: None)


def cell(line: int, column: int, value: str) -> Any:
    def change(rows: list[list[str]]) -> list[list[str]]:
        rows[line][column] = value
        return rows

    return change


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (lambda rows: rows[:-1], "1 ids are missing"),
        (lambda rows: [*rows, ["sample-x", "1", "0", "0"]], "1 are not of it (sample-x)"),
        (lambda rows: [*rows, rows[1]], "stands on line 2 too"),
        (lambda rows: [rows[0], ["x-1", "1", "0", "0"]], "none of its ids"),
        (lambda rows: rows[:1], "no predictions below the header"),
        (cell(0, 0, "name"), "expected id and the names"),
        (cell(0, 3, "good"), "expected negative, neutral, positive"),
        (cell(3, 1, "nan"), "line 4"),
        (cell(3, 2, "inf"), "expected a probability in 0..1"),
        (cell(3, 2, "-0.1"), "expected a probability in 0..1"),
        (cell(3, 2, ""), "neutral is ''"),
        (lambda rows: cell(2, 1, "0.9")(cell(2, 2, "0.9")(rows)), "have the sum"),
        (lambda rows: [*rows[:3], rows[3][:-1], *rows[4:]], "line 4: 4 values expected"),
    ],
)
def test_predictions_that_are_refused(rows: Any, said: str, root: Path, tmp_path: Path) -> None:
    before = state(root)
    path = sent(root, tmp_path / "sent.csv", rows=rows)
    with pytest.raises(EntrantError) as error:
        submit([path], Submission("theirs", URL), root)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert state(root) == before


@pytest.mark.parametrize(
    ("name", "url", "said"),
    [
        ("tiny-phi", URL, "a model of this project"),
        ("", URL, "printable characters"),
        ("a\nb", URL, "printable characters"),
        ("theirs", "javascript:alert(1)", "--url"),
    ],
)
def test_who_sends_them_has_to_be_told(
    name: str, url: str, said: str, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(EntrantError, match=said):
        submit([sent(root, tmp_path / "sent.csv")], Submission(name, url), root)


def test_what_was_tampered_with_is_found(root: Path, tmp_path: Path) -> None:
    submit([sent(root, tmp_path / "sent.csv")], Submission("theirs", URL), root)
    folder = external_folder(root, "theirs", "sample", 0)
    path = folder / "predictions.csv.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()

    def put(content: list[str]) -> list[str]:
        path.write_bytes(gzip.compress("\n".join(content).encode() + b"\n"))
        return verify_entrant(root, "theirs")

    (problem,) = put([lines[0], *lines[2:], "sample-999,neutral,0.1,0.8,0.1"])[-1:]
    assert "not the ids and labels of the test part" in problem
    assert any("accuracy" in said for said in put([*lines[:-1], _turned(lines[-1])]))
    assert put(lines) == []
    path.write_bytes(b"no gzip")
    assert "cannot be read" in verify_entrant(root, "theirs")[0]
    assert any("bytes differ" in said for said in verify(root))
    path.unlink()
    assert "missing predictions.csv.gz" in verify_entrant(root, "theirs")[0]
    assert "no runs of an entrant" in verify_entrant(root, "nobody")[0]


def _turned(line: str) -> str:
    name, label, *numbers = line.split(",")
    return ",".join([name, label, *numbers[1:], numbers[0]])


def test_commands_say_what_is_wrong_in_a_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifacts = ["--artifacts", str(root)]
    path = sent(root, tmp_path / "sent.csv")
    assert cli.main(["submit", str(path), "--name", "theirs", "--url", URL, *artifacts]) == 0
    assert cli.main(["verify", "--entrant", "theirs", *artifacts]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", "--model", "nowhere", *artifacts]) != 0
    said = capsys.readouterr().err
    assert said.startswith("error: there is no folder nowhere")
    assert said.count("\n") == 1
    bad = ["evaluate", "--model", "tfidf-logistic", "--datasets", "moon", *artifacts]
    assert cli.main(bad) != 0
    assert "unknown data set 'moon'" in capsys.readouterr().err


def test_a_model_is_tested_on_the_folds_of_the_studies() -> None:
    sample = load_dataset("sample")
    tests = list(fold_tests(sample, 0))
    assert len(tests) == 10
    for fold, rows in zip(grouped_folds(sample, 0), tests, strict=True):
        assert fold.test.tolist() == rows.tolist()


def test_what_a_model_may_have_seen() -> None:
    assert knowledge("fiqa", None) == ("unknown", True)
    assert knowledge("fiqa", ()) == ("no", False)
    assert knowledge("fiqa", ("twitter",)) == ("no", False)
    assert knowledge("news", ("twitter",)) == ("yes", True)
    assert knowledge("50agree", ("allagree",)) == ("yes", True)
    assert knowledge("fomc", ("news",)) == ("no", False)


def test_only_the_owner_enters_predictions_from_the_page(root: Path, tmp_path: Path) -> None:
    import gradio as gr

    from finsent.entrants.guest import Guest
    from finsent.serving.owner_training import OwnerTraining, Recipe
    from finsent.ui.tabs.owner import Owner, _Actions

    request: Any = SimpleNamespace(client=SimpleNamespace(host="here"))
    actions = _Actions(Owner(OwnerTraining(root, Recipe()), token="a secret of the owner"), Guest())
    path = str(sent(root, tmp_path / "sent.csv"))
    before = state(root)
    with pytest.raises(gr.Error, match="for the owner of the page only"):
        actions.enter("a guess at the secret", "theirs", URL, path, None, request)
    bad = str(sent(root, tmp_path / "bad.csv", rows=lambda rows: rows[:-1]))
    with pytest.raises(gr.Error, match=r"^'?bad\.csv: closest is sample"):
        actions.enter("a secret of the owner", "theirs", URL, bad, None, request)
    assert state(root) == before
    assert "accuracy" in actions.enter("a secret of the owner", "theirs", URL, path, None, request)
    assert verify(root) == []


def test_the_owner_of_a_page_that_cannot_train_may_still_add_to_it(root: Path) -> None:
    import gradio as gr

    from finsent.entrants.guest import Guest
    from finsent.serving.owner_training import OwnerTraining, Recipe
    from finsent.ui.tabs.owner import Owner, add_owner_tab

    shown = {}
    for obstacle in (None, "no CUDA device here"):
        owner = Owner(
            OwnerTraining(root, Recipe()), "a secret of the owner", None, lambda said=obstacle: said
        )
        with gr.Blocks() as demo:
            add_owner_tab(owner, Guest())
        shown[obstacle] = {block.elem_id for block in demo.blocks.values() if block.elem_id}
    assert {"owner-token", "owner-enter", "guest-add"} <= shown["no CUDA device here"]
    assert "owner-start" in shown[None] - shown["no CUDA device here"]
