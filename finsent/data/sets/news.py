"""Financial news of several sources under one question: what does it mean for the share price?

The sources did not ask alike, and differ most in what they call neutral (docs/data.md). A further
source is one more entry of SOURCES: the rest (splits, twins across sources, scores per source,
leaving a source out) follows. Its data set has to have the labels of the others, in their order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from finsent.data.records import DataError, Record
from finsent.data.sets.fiqa import load_fiqa
from finsent.data.sets.phrasebank import load_phrasebank
from finsent.data.sets.tweets import load_tweets


@dataclass(frozen=True)
class Source:
    """One data set that is part of the news."""

    name: str
    """What it is called in records, scores and `news-without-<name>`."""
    dataset: str
    """Its name in the registry, where it is a data set of its own."""
    prefix: str
    """What its ids start with, before the hyphen: an id tells its source."""
    loader: Callable[[Path | None], Sequence[Record]]


SOURCES = (
    Source("phrasebank", "50agree", "fpb", partial(load_phrasebank, "50agree")),
    Source("twitter", "twitter", "tfn", load_tweets),
    Source("fiqa", "fiqa", "fiqa", load_fiqa),
)

_ADDRESS = re.compile(r"(?:https?://|www\.)\S+")
_CASHTAG = re.compile(r"\$[A-Za-z][\w.]*")


def load_news(data_dir: Path | None = None) -> list[Record]:
    """The sentences of every source, in the order of SOURCES. Raises DataError as their loaders."""
    return [
        record._replace(source=source.name)
        for source in SOURCES
        for record in source.loader(data_dir)
    ]


def source_of(record_id: str) -> str:
    """The source that an id is of. Raises DataError for an id of none."""
    for source in SOURCES:
        if record_id.startswith(f"{source.prefix}-"):
            return source.name
    raise DataError(
        f"{record_id!r} is of no source; ids start with "
        f"{', '.join(f'{source.prefix}-' for source in SOURCES)}"
    )


def compared(text: str) -> str:
    """What of a text counts when another is looked for that says the same: no web address and no
    cashtag, which one source prints before a headline and another does not."""
    return " ".join(_CASHTAG.sub(" ", _ADDRESS.sub(" ", text)).split())


def wording(text: str) -> str:
    """The words and numbers of a text in lower case; texts with the same wording are copies.

    A point or comma inside a number and a sign before it count: -8% is not 8%.
    """
    return " ".join(re.findall(r"[-+]?\d+(?:[.,]\d+)*|[^\W\d_]+", compared(text).lower()))
