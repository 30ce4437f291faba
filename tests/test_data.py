"""The registry, the sample that ships, and what the real files hold."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from finsent.data import splits
from finsent.data.records import LABELS, DataError, Record
from finsent.data.registry import (
    DATASETS,
    load_dataset,
    make_split,
    to_datasets,
)
from finsent.data.sets.phrasebank import (
    LEVELS,
    parse_phrasebank,
    read_level,
    repair_mojibake,
)
from tests.data_factory import (
    REAL,
    entry,
    needs_real_data,
    no_data_dir,
    real,
    twin_pairs,
)

__all__ = ["no_data_dir"]
"""The fixture is used by every test of this module."""

# --- registry -----------------------------------------------------------------------------------


def test_the_registry_describes_every_data_set() -> None:
    sentiment = ["allagree", "75agree", "66agree", "50agree", "fiqa", "twitter", "sample"]
    sentiment += ["news", *(name for name in DATASETS if name.startswith("news-without-"))]
    assert set(DATASETS) == {*sentiment, "fomc", "numclaim"}
    marks: dict[str, str] = {}
    for name, known in DATASETS.items():
        assert known.name == name
        assert (known.label_names == LABELS) == (name in sentiment)
        for text in ("title", "short_title", "licence", "citation", "files", "rules", "cue"):
            assert getattr(known, text), f"{name} has no {text}"
        assert known.ships or known.url.startswith("https://")
        assert len(set(known.label_marks)) == len(known.label_names)
        for label, mark in zip(known.label_names, known.label_marks, strict=True):
            assert marks.setdefault(label, mark) == mark, f"{label} has two marks"
    assert DATASETS["allagree"].licence == "CC BY-NC-SA 3.0"
    assert DATASETS["fomc"].label_names == ("dovish", "neutral", "hawkish")
    assert DATASETS["numclaim"].label_names == ("out-of-claim", "in-claim")


def test_a_new_data_set_is_one_entry() -> None:
    records = [Record("1", "Rates will rise", "hawkish"), Record("2", "Rates fall", "dovish")]
    registry = entry(records, label_names=("dovish", "hawkish"))
    dataset = load_dataset("mine", registry=registry)
    assert dataset.label_names == ("dovish", "hawkish")
    assert [e.label for e in dataset.examples] == [1, 0]
    lines = b"1\thawkish\n2\tdovish\n"
    assert dataset.fingerprint == hashlib.sha256(lines).hexdigest()


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"unknown data set 'phrasebank'; choose one of allagree"):
        load_dataset("phrasebank")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], r"'mine' is empty"),
        ([Record("1", "Up", "bullish")], r"'mine', 1: unknown label 'bullish'; expected one of"),
        ([Record("1", " ", "neutral")], r"'mine', 1: the text is empty"),
        ([Record("1", "Up", "positive"), Record("1", "Down", "negative")], r"'1' occurs twice"),
    ],
)
def test_unusable_records_are_refused(records: list[Record], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset("mine", registry=entry(records))


# --- the sample ---------------------------------------------------------------------------------


def test_the_sample_is_varied() -> None:
    dataset = load_dataset("sample")
    texts = [e.text for e in dataset.examples]
    counts = Counter(LABELS[e.label] for e in dataset.examples)
    assert len(texts) >= 260
    assert min(counts.values()) >= 80
    assert [e.id for e in dataset.examples] == [
        f"sample-{number:03d}" for number in range(1, len(texts) + 1)
    ]
    assert twin_pairs(texts) == set()
    words = [re.findall(r"[^\W_]+", text.lower()) for text in texts]
    assert all(5 <= len(sentence) <= 50 for sentence in words)
    openings = Counter(tuple(sentence[:4]) for sentence in words)
    assert max(openings.values()) == 1
    five_grams = Counter(
        gram
        for sentence in words
        for gram in {tuple(sentence[i : i + 5]) for i in range(len(sentence) - 4)}
    )
    assert max(five_grams.values()) == 1


def test_the_sample_needs_no_data_folder(tmp_path: Path) -> None:
    assert load_dataset("sample", tmp_path / "nowhere") == load_dataset("sample")


@needs_real_data
def test_the_sample_takes_no_sentence_from_phrasebank() -> None:
    def bag(text: str) -> set[str]:
        return set(re.findall(r"[^\W\d_]+", text.lower()))

    theirs = [bag(e.text) for e in real("50agree").examples]
    for example in load_dataset("sample").examples:
        own = bag(example.text)
        assert max(len(own & other) / len(own | other) for other in theirs) < 0.5


# --- the real files -----------------------------------------------------------------------------


@needs_real_data
@pytest.mark.parametrize(
    ("level", "negative", "neutral", "positive", "in_twin_groups"),
    [
        ("allagree", 303, 1386, 570, 177),
        ("75agree", 420, 2141, 887, 247),
        ("66agree", 514, 2529, 1168, 280),
        ("50agree", 604, 2871, 1363, 317),
    ],
)
def test_counts_after_merging(
    level: str, negative: int, neutral: int, positive: int, in_twin_groups: int
) -> None:
    dataset = real(level)
    counts = np.bincount([e.label for e in dataset.examples])
    assert counts.tolist() == [negative, neutral, positive]
    sizes = np.bincount([e.group for e in dataset.examples])
    assert sizes[sizes > 1].sum() == in_twin_groups


@needs_real_data
@pytest.mark.parametrize(
    ("level", "rows", "linked"), [("allagree", 2264, 187), ("50agree", 4846, 333)]
)
def test_linked_rows_before_merging(level: str, rows: int, linked: int) -> None:
    assert REAL is not None
    texts = [text for text, _ in parse_phrasebank(*read_level(level, Path(REAL)))]
    assert len(texts) == rows
    sizes = np.bincount(splits.twin_groups(texts))
    assert sizes[sizes > 1].sum() == linked


@needs_real_data
def test_levels_nest_with_the_same_ids_and_labels() -> None:
    outer: dict[str, int] = {}
    for level in reversed(LEVELS):
        inner = {e.id: e.label for e in real(level).examples}
        if outer:
            assert inner.items() <= outer.items()
        outer = inner


@needs_real_data
def test_only_the_known_remains_of_mojibake_are_left() -> None:
    assert REAL is not None
    rows = parse_phrasebank(*read_level("50agree", Path(REAL)))
    assert sum(repair_mojibake(text) != text for text, _ in rows) == 109
    left = [e for e in real("50agree").examples if re.search(r"[+-][^\x00-\x7f]|\+\+", e.text)]
    assert len(left) == 4


def test_the_split_goes_into_the_hugging_face_container_unchanged() -> None:
    dataset = load_dataset("sample")
    split = make_split(dataset, 0)
    tables = to_datasets(dataset, split)
    assert list(tables) == ["train", "validation", "test"]
    assert tables["test"]["id"][:] == [dataset.examples[i].id for i in split.test]
    assert tables["test"].features["label"].names == list(LABELS)
    assert sum(table.num_rows for table in tables.values()) == len(dataset.examples)
