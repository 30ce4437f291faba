"""FOMC stance (Shah et al. 2023): sentences of minutes, speeches and press conferences.

The published files divide the same sentences by three seeds. One seed's two parts are read as one
set and divided anew. Long sentences were published in pieces: pieces of one sentence are kin.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from finsent.data.records import DataError, Record, Row, clean, merge
from finsent.data.sources import Published, read_workbook

LABELS = ("dovish", "neutral", "hawkish")
CODES = {0: "dovish", 1: "hawkish", 2: "neutral"}
"""As published: not the order of LABELS."""

_TRAIN, _TEST = (f"lab-manual-split-combine-{part}-5768.xlsx" for part in ("train", "test"))
_REPOSITORY = "training_data/test-and-training"

FILES = Published(
    page=f"https://github.com/gtfintechlab/fomc-hawkish-dovish/tree/main/{_REPOSITORY}",
    sha256={
        _TRAIN: "a4157414bf60cdcedec07d2ab9a7d253214b991ab9f9e03300c00056f5a2032c",
        _TEST: "d8a54d486bec780f0409b8d7f19c566a3b85ceb6560a15e5016feb3c565f615b",
    },
    folders=(
        ".",
        *(
            f"{folder}{below}"
            for folder in ("fomc_hawkish_dovish/", "fomc-hawkish-dovish/", "")
            for below in (
                "train",
                "test",
                f"{_REPOSITORY}/training_data",
                f"{_REPOSITORY}/test_data",
            )
        ),
    ),
)


def load_fomc(data_dir: Path | None = None) -> list[Record]:
    """Every sentence. Raises DataError as `Published.read` and `parse_fomc`."""
    return merge("fomc", FILES.rows(parse_fomc, data_dir))


def parse_fomc(content: bytes, source: str) -> Iterator[Row]:
    """The sentences of one file.

    Sentences of a year that share the number of their original are kin. Minutes, speeches and press
    conferences are numbered apart, so now and then strangers are kin too, which does no harm.
    Raises DataError naming the source, the row and the value.
    """
    columns = ("sentence", "label", "year", "orig_index")
    for place, (sentence, code, year, original) in read_workbook(content, columns, source):
        if code not in CODES or not isinstance(sentence, str) or not clean(sentence):
            raise DataError(
                f"{place}: {sentence!r} with label {code!r} is no sentence with a label out of "
                f"{tuple(CODES)}"
            )
        yield Row(clean(sentence), CODES[code], f"{year}-{original}")
