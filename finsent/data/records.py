"""What every loader returns, and the cleaning and merging that several of them share."""

from __future__ import annotations

import hashlib
import html
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

LABELS = ("negative", "neutral", "positive")
"""Class order of every probability vector and confusion matrix of a sentiment data set."""


class DataError(ValueError):
    """Data that is missing, is not the published file, or cannot be used as asked."""


class Record(NamedTuple):
    """One labelled sentence as a loader returns it."""

    id: str
    text: str
    label: str
    kin: tuple[str, ...] = ()
    """Records that share a value stay on one side of every split, as template twins do."""
    source: str = ""
    """Of a data set made of several: the one that the sentence comes from."""


class Row(NamedTuple):
    """One row of a published file, its text clean."""

    text: str
    label: str
    kin: str = ""


def text_id(prefix: str, text: str) -> str:
    """The id of a clean text: the same text has the same id wherever it is met."""
    return f"{prefix}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def merge(prefix: str, rows: Iterable[Row]) -> list[Record]:
    """One record per distinct text, in order of first occurrence.

    Copies with different labels take the most frequent one; where that is a tie the text is left
    out, because nothing says which label is meant.
    """
    votes: dict[str, Counter[str]] = {}
    kin: dict[str, dict[str, None]] = {}
    for row in rows:
        votes.setdefault(row.text, Counter())[row.label] += 1
        kin.setdefault(row.text, {}).update({row.kin: None} if row.kin else {})
    merged = []
    for text, counts in votes.items():
        (label, most), *others = counts.most_common()
        if all(count < most for _, count in others):
            merged.append(Record(text_id(prefix, text), text, label, tuple(kin[text])))
    return merged


def clean(text: str) -> str:
    """Encoding repaired, HTML entities read, web addresses left out, white space single spaces."""
    text = re.sub(r"https?://\S+", " ", html.unescape(repair_encoding(text)))
    return " ".join(text.split())


def repair_encoding(text: str) -> str:
    """Undo UTF-8 that was read as Windows-1252: the two characters of a broken pound sign become
    the sign. A run of non-ASCII characters that is not such damage is no valid UTF-8 and stays.
    """
    # Own code where a heuristic library would do: ids are made of the repaired text, and a
    # library's next release could repair differently.
    while (repaired := re.sub(r"[^\x00-\x7f]+", _read_again, text)) != text:
        text = repaired
    return text


def _read_again(run: re.Match[str]) -> str:
    try:
        return b"".join(map(_cp1252, run[0])).decode("utf-8")
    except UnicodeError:
        return run[0]


def _cp1252(character: str) -> bytes:
    try:
        return character.encode("cp1252")
    except UnicodeEncodeError:
        return character.encode("latin-1")  # five bytes that Windows-1252 leaves undefined
