"""FiQA-2018 task 1 (Maia et al. 2018): headlines and microblogs with a score for every company.

A sentence's label is the mean of its scores, cut at CUT. A sentence that is good for one company
and bad for another, past the cut on both sides, has no sentiment as a whole and is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path

from finsent.data.records import DataError, Record, Row, clean, merge
from finsent.data.sources import Published

CUT = Decimal("0.1")
"""Above it positive, below its negative negative, from one to the other neutral."""

FILES = Published(
    page="https://github.com/elinsky/fiqa/tree/main/data",
    sha256={
        "task1_headline_ABSA_train.json": (
            "f19c87f9b6aed5a167c44e08660dbe0ad4655b4476d5bfc4065ff194c4395120"
        ),
        "task1_headline_ABSA_test.json": (
            "461258bb5aec13e9ed811cbe38def957c42b9e36a6c0ad51c9d8559e14d8f0f5"
        ),
        "task1_post_ABSA_train.json": (
            "54525e07d8d26f9666c0ea83dc3aa1f892ac4f4ea107d83ce24845190083444a"
        ),
        "task1_post_ABSA_test.json": (
            "5d15e178608e5098772e375745c43328d12ee53c84870bce858f8f0eda62586c"
        ),
    },
    folders=(".", "fiqa2018", "fiqa/data", "data"),
    plain_text=True,
)


def load_fiqa(data_dir: Path | None = None) -> list[Record]:
    """All four published files as one set of sentences. Raises DataError as `Published.read`."""
    return merge("fiqa", FILES.rows(parse_fiqa, data_dir))


def parse_fiqa(content: bytes, source: str) -> Iterator[Row]:
    """The sentences of one file that have a sentiment as a whole.

    Raises DataError naming the source, the entry and the value.
    """
    try:
        entries = json.loads(content)
    except ValueError as error:
        raise DataError(f"{source} is not JSON: {error}") from error
    for key, entry in entries.items():
        try:
            scores = [Decimal(found["sentiment_score"]) for found in entry["info"]]
            label = sentence_label(scores)
        except (KeyError, TypeError, InvalidOperation, ValueError) as error:
            raise DataError(
                f"{source}, entry {key}: no sentence with scores that are numbers in [-1, 1] "
                f"({error!r})"
            ) from error
        if label is not None:
            yield Row(clean(entry["sentence"]), label)


def sentence_label(scores: Sequence[Decimal]) -> str | None:
    """The label of a sentence with these scores; None when they go both ways past the cut.

    Raises:
        ValueError: There is no score, or one outside -1 to 1.
    """
    if not scores or not all(abs(score) <= 1 for score in scores):
        raise ValueError(f"scores {[str(score) for score in scores]}")
    if min(scores) < -CUT and max(scores) > CUT:
        return None
    mean = sum(scores, Decimal(0)) / len(scores)
    return "positive" if mean > CUT else "negative" if mean < -CUT else "neutral"
