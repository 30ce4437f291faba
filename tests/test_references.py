"""Published results and citations are read strictly from their data files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finsent.data.registry import DATASETS
from finsent.results.references import (
    PublishedDataError,
    bibtex,
    citations,
    read_references,
    references,
)

ROW = {
    "model": "BERT",
    "dataset": "allagree",
    "split": "10-fold",
    "protocol": "10-fold, one seed",
    "source": "A paper",
    "accuracy": 0.9,
}


def test_published_results_are_of_known_data_sets_and_keep_the_write_ups_caveat() -> None:
    assert {row.dataset for row in references()} <= set(DATASETS)
    write_ups = [row for row in references() if "write-up" in row.model]
    assert [row.accuracy for row in write_ups] == [0.73, 0.77]
    for row in write_ups:
        assert row.url == "https://github.com/PerforatedAI/PerforatedAI/pull/73"
        assert "no dendrites are added" in (row.note or "")


def test_every_published_result_has_a_source_and_a_licence() -> None:
    for row in references():
        assert row.url is not None, row.model
        assert row.licence, row.model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"acuracy": 0.9}, r"entry 2: unknown key 'acuracy'; use one of model"),
        ({"source": None}, "entry 2: source is None; expected"),
        ({"accuracy": "0.9"}, "entry 2: accuracy is '0.9'; expected float"),
        ({"accuracy": 90.0}, "entry 2: accuracy is 90.0; give a share between 0 and 1"),
        ({"n": True}, "entry 2: n is True; expected int"),
        ({"accuracy": None}, "entry 2: no figure; give one of accuracy"),
    ],
)
def test_a_wrong_result_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "references.json"
    path.write_text(json.dumps([ROW, {**ROW, **change}]))
    with pytest.raises(PublishedDataError, match=message):
        read_references(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not JSON"),
        ("{}", "expected a list of results"),
        ("[3]", "entry 1: expected an object, found 3"),
        (json.dumps([{k: v for k, v in ROW.items() if k != "split"}]), "entry 1: lacks 'split'"),
    ],
)
def test_a_file_that_is_no_list_of_results_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "references.json"
    path.write_text(text)
    with pytest.raises(PublishedDataError, match=message):
        read_references(path)


def test_every_citation_says_what_it_is_for() -> None:
    text = bibtex()
    assert text.count("{") == text.count("}")
    found = {citation.key: citation.why for citation in citations(text)}
    assert len(found) == text.count("\n@") + text.startswith("@")
    assert found["malo2014good"] == "Financial PhraseBank, the sentences and their labels"


ENTRY = "% a reason\n@misc{one,\n  title = {One},\n}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ENTRY.split("\n", 1)[1], "one has no comment above it"),
        (f"{ENTRY}\n{ENTRY}", "a key stands twice"),
        (ENTRY.replace("{One},", "{One"), "'% a reason' belongs to no entry"),
    ],
)
def test_a_citation_that_cannot_be_read_is_refused(text: str, message: str) -> None:
    assert [citation.key for citation in citations(ENTRY)] == ["one"]
    with pytest.raises(PublishedDataError, match=message):
        citations(text)
