"""The behaviour suite: its cases, that none is in training data, and what is said of a model."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finsent.behaviour import __main__ as command
from finsent.behaviour.results import BehaviourError, by_kind, regressions, run_suite
from finsent.behaviour.suite import CASES_FILE, Case, Suite, load_suite
from finsent.data.records import LABELS
from finsent.data.registry import DATASETS
from finsent.results.runs import read_json

WORDS = 4
"""A wording of so many words is looked for inside sentences too; shorter ones only as a whole:
three words that news is full of are nobody's wording."""


def words(text: str) -> str:
    """Lower-case letters-only words, with a space around each."""
    found = re.findall(r"[^\W\d_]+", text.lower())
    return f" {' '.join(found)} "


def test_there_are_sixty_capabilities_of_five_cases_and_more() -> None:
    suite = load_suite()
    assert len(suite.capabilities) >= 60
    assert {name: len(c) for name, c in suite.capabilities.items() if len(c) < 5} == {}
    assert {case.kind for case in suite.cases} == {"label", "invariance", "direction"}
    for cases in suite.capabilities.values():
        assert len({case.kind for case in cases}) == 1
        assert len({case.texts for case in cases}) == len(cases)
    for case in suite.cases:
        assert (case.kind == "label") == bool(case.expect)
        assert set(case.expect) <= set(LABELS)
        assert len(case.texts) == (1 if case.kind == "label" else 2)
        assert all(text and "{" not in text for text in case.texts)


def test_no_text_has_two_right_labels() -> None:
    expected: dict[str, tuple[str, ...]] = {}
    for case in load_suite().cases:
        if case.kind == "label":
            assert expected.setdefault(case.texts[0], case.expect) == case.expect


def test_changes_change_the_spelling_and_nothing_that_is_said() -> None:
    cases = load_suite().capabilities
    for name in ("ALL CAPITALS", "lower case", "Title Case"):
        assert all(a.lower() == b.lower() for a, b in (case.texts for case in cases[name]))
    for name in ("a web address behind", "a cashtag in front", "the source behind"):
        assert all(a in b for a, b in (case.texts for case in cases[name]))
    for a, b in (case.texts for case in cases["other numbers"]):
        assert re.sub(r"\d+", "", a) == re.sub(r"\d+", "", b)
    for a, b in (case.texts for case in cases["another company"]):
        assert len(set(a.split()) ^ set(b.split())) == 2


def templates() -> list[str]:
    """Every text of the file as it is written there, slots and all."""
    content = resources.files("finsent.behaviour").joinpath(CASES_FILE).read_text(encoding="utf-8")
    data = tomllib.loads(content)
    texts = [text for entry in data["capability"] for text in entry["texts"]]
    return texts + [text for entry in data["direction"] for pair in entry["pairs"] for text in pair]


def test_no_wording_is_in_training_data(real_data: Path) -> None:
    names = ("50agree", "twitter", "fiqa", "fomc", "numclaim")
    rows = [words(r.text) for name in names for r in DATASETS[name].loader(real_data)]
    whole, together = set(rows), "|".join(rows)
    found = []
    for template in templates():
        said = words(re.sub(r"\{\w+\}", " ", template))
        # What stands between two slots is no wording of ours alone; the longest piece has to be.
        pieces = [words(piece) for piece in re.split(r"\{\w+\}", template)]
        longest = max(pieces, key=lambda piece: len(piece.split()))
        if said in whole or (len(longest.split()) >= WORDS and longest in together):
            found.append(template)
    assert found == []


def test_no_filled_case_is_the_sample_or_an_example_of_the_page() -> None:
    texts = {words(text) for case in load_suite().cases for text in case.texts}
    shipped = [record.text for record in DATASETS["sample"].loader(None)]
    shipped += [example.text for entry in DATASETS.values() for example in entry.examples]
    # The sample is what a first start trains on.
    assert [text for text in shipped if words(text) in texts] == []


# --- running ------------------------------------------------------------------------------------

SMALL = Suite(
    (
        Case("up", "label", ("profit rises",), ("positive",)),
        Case("up", "label", ("profit soars",), ("positive",)),
        Case("off", "label", ("la casa",), ("neutral",), notice_counts=True),
        Case("case", "invariance", ("profit rises", "PROFIT RISES")),
        Case("more", "direction", ("profit rises", "profit soars")),
    ),
    "0" * 64,
)


def reader(texts: Sequence[str]) -> np.ndarray:
    """Knows "rises" in lower case, is sure of "soars", and takes all else for bad news."""
    known = {"profit rises": (0.1, 0.3, 0.6), "profit soars": (0.0, 0.1, 0.9)}
    return np.array([known.get(text, (0.8, 0.1, 0.1)) for text in texts])


def test_pass_rates_are_by_capability_and_kind() -> None:
    found = run_suite(SMALL, reader, LABELS)
    passed = {name: (e["passed"], e["n"], e["failed"]) for name, e in found["capabilities"].items()}
    assert passed == {
        "up": (2, 2, []),
        "off": (0, 1, [0]),
        "case": (0, 1, [0]),
        "more": (1, 1, []),
    }
    assert (found["passed"], found["n"]) == (3, 5)
    assert by_kind(found) == {"label": (2, 3), "invariance": (0, 1), "direction": (1, 1)}


def test_labels_are_found_by_name_and_every_text_is_answered_once() -> None:
    asked: list[str] = []

    def backwards(texts: Sequence[str]) -> np.ndarray:
        asked.extend(texts)
        return reader(texts)[:, ::-1]

    assert run_suite(SMALL, backwards, LABELS[::-1]) == run_suite(SMALL, reader, LABELS)
    assert len(asked) == len(set(asked)) == 4


def test_a_notice_counts_where_the_case_says_so() -> None:
    found = run_suite(SMALL, reader, LABELS, notices=lambda text: ["another language"])
    assert found["capabilities"]["off"]["passed"] == 1
    assert found["capabilities"]["case"]["passed"] == 0


def test_a_model_of_other_labels_is_refused() -> None:
    with pytest.raises(BehaviourError, match=r"\['negative', 'neutral', 'positive'\]"):
        run_suite(SMALL, reader, ("dovish", "even", "hawkish"))
    with pytest.raises(BehaviourError, match=r"shape \(4, 2\) to 4 texts and 3 labels"):
        run_suite(SMALL, lambda texts: reader(texts)[:, :2], LABELS)


def test_a_regression_names_the_capability() -> None:
    before = run_suite(SMALL, reader, LABELS)
    after = run_suite(SMALL, lambda texts: np.full((len(texts), 3), (0.8, 0.1, 0.1)), LABELS)
    worse = regressions(before, after)
    assert worse == [
        "up: 0 of 2 cases pass, 2 did before",
        "more: 0 of 1 cases pass, 1 did before",
    ]
    assert regressions(before, after, allowed=1) == worse[:1]
    assert regressions(before, before) == []
    fewer = run_suite(Suite(SMALL.cases[:3], SMALL.sha256), reader, LABELS)
    with pytest.raises(BehaviourError, match="different cases"):
        regressions(before, fewer)


# --- the command --------------------------------------------------------------------------------


class FakeComparer:
    """Stands for loaded arms; the real one is tested where it is made."""

    label_names = LABELS
    good = True

    @classmethod
    def from_artifacts(cls, *arguments: Any, **options: Any) -> FakeComparer:
        return cls()

    def predict_proba(self, texts: Sequence[str], arm: str) -> np.ndarray:
        answers = np.full((len(texts), 3), (0.2, 0.5, 0.3))
        return answers if self.good else answers[:, ::-1] * (2, 0, 0) + (0.4, 0, 0)


@pytest.mark.parametrize("named", [("--seeds", "0", "0"), ("--arms", "baseline", "baseline")])
def test_nothing_is_tested_twice(
    named: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main([*named])
    assert "is named twice; name it once" in capsys.readouterr().err


def test_the_command_writes_results_and_checks_against_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "Comparer", FakeComparer)
    runs = tmp_path / "tiny" / "allagree"
    asked = ["--runs", str(runs), "--seeds", "0", "1", "--arms", "baseline", "dendritic"]
    assert command.main([*asked, "--check"]) == 2
    assert "tiny-allagree.json: missing" in capsys.readouterr().err
    assert command.main(asked) == 0
    stored = read_json(tmp_path / "behaviour" / "tiny-allagree.json")
    assert [(run["arm"], run["seed"]) for run in stored["runs"]] == [
        ("baseline", 0), ("dendritic", 0), ("baseline", 1), ("dendritic", 1),
    ]  # fmt: skip
    assert "baseline, seed 0: " in capsys.readouterr().out
    assert command.main([*asked, "--check"]) == 0
    monkeypatch.setattr(FakeComparer, "good", False)
    assert command.main([*asked, "--check"]) == 1
    assert "baseline, seed 0, dates and meetings: 0 of 5 cases pass" in capsys.readouterr().err
