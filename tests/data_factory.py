"""Data sets made for tests, the real ones where they are, and twins found pair by pair."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import strategies as st

from finsent.data.records import LABELS, Record
from finsent.data.registry import (
    Dataset,
    DatasetEntry,
    load_dataset,
)

REAL = os.environ.get("FINSENT_DATA_DIR")


def needs_real_data(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that reads whole data sets: it is slow, and skipped where they are not."""
    why = "FINSENT_DATA_DIR does not name a folder with Financial PhraseBank"
    return pytest.mark.slow(pytest.mark.skipif(not REAL, reason=why)(test))


SEEDS = st.integers(min_value=0, max_value=2**32 - 1)


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINSENT_DATA_DIR", raising=False)


def real(level: str) -> Dataset:
    assert REAL is not None
    return load_dataset(level, Path(REAL))


def entry(records: list[Record], **changes: object) -> dict[str, DatasetEntry]:
    """A registry with one data set in it: all that adding a data set takes."""
    made = DatasetEntry("mine", "Mine", lambda data_dir: records, LABELS, "CC0", "me", "")
    return {"mine": replace(made, **changes)}  # type: ignore[arg-type]


def twin_laden(n_templates: int = 60, seed: int = 0) -> Dataset:
    """Random word salads, most of them in families that differ in figures and one word only.

    A family may carry several labels, as rose/fell twins do.
    """
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(400)]
    records: list[Record] = []
    for template in range(n_templates):
        base = rng.sample(words, 11)
        for _ in range(rng.choice([1, 1, 2, 3, 7])):
            text = " ".join([*base, str(rng.randrange(10**6)), rng.choice(words)])
            label = LABELS[template % 3] if rng.random() < 0.8 else rng.choice(LABELS)
            records.append(Record(f"id-{len(records)}", text, label))
    return load_dataset("mine", registry=entry(records))


def twin_pairs(texts: list[str]) -> set[tuple[int, int]]:
    """Twins by definition, pair by pair, sharing no code with the implementation."""
    bags = [
        {w for w in "".join(c if c.isalpha() else " " for c in text.lower()).split()}
        for text in texts
    ]
    order = sorted(range(len(bags)), key=lambda i: len(bags[i]))
    found = set()
    for position, i in enumerate(order):
        for j in order[position + 1 :]:
            if len(bags[i]) * 5 < len(bags[j]) * 4:  # no later set is small enough either
                break
            shared = len(bags[i] & bags[j])
            if shared >= 5 and 5 * shared >= 4 * (len(bags[i]) + len(bags[j]) - shared):
                found.add((min(i, j), max(i, j)))
    return found
