"""The words of the training texts, as numbers: whether a text is made of others.

`python -m finsent.serving.notices.known` writes them again from the data sets. A word is kept as
its CRC-32, so that the file holds no text of a data set.
"""

from __future__ import annotations

import io
import sys
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finsent.data.registry import load_dataset, make_split
from finsent.serving.notices.words import words

FILE = "known_words.npy"
DATASET, SEED = "news", 0


def words_of(texts: Iterable[str]) -> NDArray[np.uint32]:
    """CRC-32 of every word (n,), ascending, each once."""
    found = {_number(word) for text in texts for word in words(text)}
    return np.array(sorted(found), dtype=np.uint32)


def known_share(given: Sequence[str]) -> float:
    """Share of these words, in lower case, that occur in training texts; 1 of no words."""
    if not given:
        return 1.0
    known = _known()
    return sum(_number(word) in known for word in given) / len(given)


@cache
def _known() -> frozenset[int]:
    with resources.files("finsent.serving.notices").joinpath(FILE).open("rb") as stream:
        return frozenset(np.load(stream).tolist())


def _number(word: str) -> int:
    return zlib.crc32(word.removesuffix("'s").removesuffix("’s").encode())


def training_words(data_dir: Path | None = None) -> NDArray[np.uint32]:
    """What the file holds: the words of the training part. Raises DataError as load_dataset."""
    dataset = load_dataset(DATASET, data_dir)
    return words_of(dataset.examples[i].text for i in make_split(dataset, SEED).train)


def as_file(numbers: NDArray[np.uint32]) -> bytes:
    """The bytes that the file has."""
    stream = io.BytesIO()
    np.save(stream, numbers)
    return stream.getvalue()


if __name__ == "__main__":
    Path(__file__).with_name(FILE).write_bytes(as_file(training_words()))
    sys.exit(0)
