"""Numerical claims (Shah et al. 2024): does a sentence with a number claim something to come?

Sentences of analysts' reports and of earnings calls, published apart, are read as one set; of each,
the published files divide the same sentences by three seeds, so one seed's parts are all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from finsent.data.records import DataError, Record, Row, clean, merge
from finsent.data.sources import Published, read_workbook

LABELS = ("out-of-claim", "in-claim")
"""In the order of the published codes 0 and 1."""

FILES = Published(
    page="https://github.com/gtfintechlab/fin-num-claim/tree/main/data",
    sha256={
        "gold_arpts_numclaim-train-5768.xlsx": (
            "a1b5de7b9fd6d81d9aa4e338c6b2fa28b09e9ad9ce0f055b0ab6ee51eb377667"
        ),
        "gold_arpts_numclaim-test-5768.xlsx": (
            "7f8bb8c44548306cf9b57fe3b0f41b4fa626fc6c42f2b2fc2526d6b3e980bf16"
        ),
        "gold_ec_numclaim-train-5768.xlsx": (
            "b91c5d34d28f85d72a02db6e444d1df21a98e24508d396f621cbe52881d2ef09"
        ),
        "gold_ec_numclaim-test-5768.xlsx": (
            "39709e2b4076de6276f4dcd88562950deff1ee2672188ba7bba869f0a19b69b7"
        ),
    },
    folders=(
        ".",
        *(
            f"{folder}{below}"
            for folder in ("fin_num_claim/", "fin-num-claim/data/", "data/", "")
            for below in ("train", "test")
        ),
    ),
)


def load_numclaim(data_dir: Path | None = None) -> list[Record]:
    """Every sentence. Raises DataError as `Published.read` and `parse_numclaim`."""
    return merge("numclaim", FILES.rows(parse_numclaim, data_dir))


def parse_numclaim(content: bytes, source: str) -> Iterator[Row]:
    """The sentences of one file. Raises DataError naming the source, the row and the value."""
    for place, (text, code) in read_workbook(content, ("text", "label"), source):
        if code not in (0, 1) or not isinstance(text, str) or not clean(text):
            raise DataError(
                f"{place}: {text!r} with label {code!r} is no sentence with a label 0 or 1"
            )
        yield Row(clean(text), LABELS[code])
