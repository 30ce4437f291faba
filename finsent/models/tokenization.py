"""Token ids of texts, and batches of texts of similar length. Free of torch and transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from finsent.models.presets import BackboneError


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
