"""Texts that can be read, their token ids, and batches of similar length. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from finsent.models.presets import BackboneError

_SURROGATE = re.compile(r"[\ud800-\udfff]")


class InputError(ValueError):
    """A text that cannot be classified."""


class FileTokenizer:
    """The tokenizer of a model folder without transformers, which takes seconds to import."""

    def __init__(self, folder: Path, max_length: int, suffix: str = "", copies: int = 1) -> None:
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise BackboneError(f"{folder} has no tokenizer.json")
        self._name = folder.name
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._copies = copies
        self._end = self._tokenizer.encode(suffix, add_special_tokens=False).ids
        self._tokenizer.enable_truncation(room_for(max_length, self._end, suffix))

    @property
    def suffix_length(self) -> int:
        """Tokens of the suffix."""
        return len(self._end)

    def __call__(self, texts: Sequence[str]) -> list[tuple[list[int], bool]]:
        """Token ids of each text, and whether it was cut. BackboneError on no tokens."""
        found = self._tokenizer.encode_batch([repeated(text, self._copies) for text in texts])
        for text, encoding in zip(texts, found, strict=True):
            if not encoding.ids:
                raise BackboneError(f"the tokenizer of {self._name} makes no token of {text!r}")
        return [([*encoding.ids, *self._end], bool(encoding.overflowing)) for encoding in found]


def repeated(text: str, copies: int) -> str:
    """What is read of a text (see TrainConfig.copies), without the suffix."""
    return "\n".join([text] * copies)


def room_for(max_length: int, end: Sequence[int], suffix: str) -> int:
    """Tokens left for the text when the suffix takes its own. BackboneError when none are."""
    room = max_length - len(end)
    if room < 1:
        raise BackboneError(
            f"the prompt suffix {suffix!r} is {len(end)} tokens long and leaves no room for a "
            f"text in {max_length}; shorten it or raise --max-length"
        )
    return room


def token_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Index batches in order of length whose padded size stays within `max_tokens`."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and lengths[index] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def half_character(text: str) -> str | None:
    """What is wrong with a text that no encoding can hold; None for any other.

    JSON and damaged files can bring one half of a pair of surrogates without the other.
    """
    found = _SURROGATE.search(text)
    if found is None:
        return None
    return (
        f"character {found.start() + 1} is one half of a pair (U+{ord(found[0]):04X}, a lone "
        "surrogate) and stands for nothing; remove it"
    )


def require_texts(texts: Sequence[str]) -> None:
    """Raises InputError for what is no list of texts, naming the position of a bad one."""
    if isinstance(texts, (str, bytes)):
        raise InputError("give a list of texts, not one string")
    if isinstance(texts, Mapping) or not hasattr(texts, "__len__"):
        raise InputError(f"texts must be a list of strings, got {type(texts).__name__}")
    for position, text in enumerate(texts):
        require_text(text, position)


def require_text(text: str, position: int | None = None) -> None:
    """Raises InputError for what is no string, is empty, or cannot be encoded."""
    where = "" if position is None else f" at position {position}"
    if not isinstance(text, str):
        raise InputError(f"a text must be a string, got {type(text).__name__}{where}")
    if not text.strip():
        raise InputError(f"the text{where} is empty; give a sentence or a headline")
    problem = half_character(text)
    if problem is not None:
        raise InputError(f"the text{where}: {problem}")
