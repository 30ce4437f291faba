"""Twitter Financial News Sentiment: the published train and validation parts as one set."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from finsent.data.records import DataError, Record, Row, clean, merge
from finsent.data.sources import Published

HUB_REPO = "zeroshot/twitter-financial-news-sentiment"
CODES = {"0": "negative", "1": "positive", "2": "neutral"}
"""Published as 0 bearish, 1 bullish, 2 neutral: not the order of the label names."""

FILES = Published(
    page=f"https://huggingface.co/datasets/{HUB_REPO}",
    sha256={
        "sent_train.csv": "71aa99d0d37feced03c999ec23b5b25302c92f39d69b6acb0a37aa076c5420e8",
        "sent_valid.csv": "31ea8274c98b52212daa68f2fb962811bf1913c1efe51b99765c8e2311806de6",
    },
    folders=(".", "twitter_fin_news", "twitter-financial-news-sentiment"),
    hub_repo=HUB_REPO,
    plain_text=True,
    aliases=((".csv", ".crlf.csv"),),
)


def load_tweets(data_dir: Path | None = None) -> list[Record]:
    """Both parts without web addresses. Raises DataError as `Published.read` and `parse_tweets`."""
    return merge("tfn", FILES.rows(parse_tweets, data_dir))


def parse_tweets(content: bytes, source: str) -> Iterator[Row]:
    """The tweets of one file. One that was nothing but a web address is left out.

    Raises DataError naming the source, the line and the value.
    """
    reader = csv.reader(io.StringIO(content.decode("utf-8"), newline=""), strict=True)
    header = next(reader, [])
    if header != ["text", "label"]:
        raise DataError(f"{source}: the columns are {header}, expected text and label")
    for row in reader:
        if len(row) != 2 or row[1] not in CODES:
            raise DataError(
                f"{source}, line {reader.line_num}: {row!r} is no text with a label out of "
                f"{', '.join(CODES)}"
            )
        text = clean(row[0])
        if text:
            yield Row(text, CODES[row[1]])
