"""Published results on Financial PhraseBank (references.json) and what to cite (references.bib).

The results stand on the leaderboard as context, each with the protocol it was measured under.
Numbers under different protocols (agreement level, split, averaging of F1) are not comparable with
each other or with this project's rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

_FOLDER = Path(__file__).resolve().parent
PUBLISHED_GAIN_PCT = 16
"""Up to so much is Perforated Backpropagation published with (arXiv:2506.00356): here, so many
percent fewer errors, what a comparison excludes or leaves possible."""


class PublishedDataError(ValueError):
    """references.json or references.bib does not hold what it should."""


@dataclass(frozen=True)
class Reference:
    """One published figure. None: the publication does not state it."""

    model: str
    dataset: str
    """Agreement level, by the data set name used here."""
    split: str
    """The protocol in a word or two, to choose by."""
    protocol: str
    """The protocol as far as it is published."""
    source: str
    accuracy: float | None = None
    macro_f1: float | None = None
    weighted_f1: float | None = None
    f1_average_not_stated: float | None = None
    """An F1 whose averaging over classes is not stated."""
    sd: float | None = None
    """Standard deviation or error of the first metric given, as published."""
    n: int | None = None
    """Test sentences."""
    url: str | None = None
    licence: str | None = None
    """Of the weights, as far as it is stated."""
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return asdict(self)


_SHARES = ("accuracy", "macro_f1", "weighted_f1", "f1_average_not_stated")


@cache
def references() -> tuple[Reference, ...]:
    """The published results, in the order of references.json."""
    return read_references(_FOLDER / "references.json")


def read_references(path: Path) -> tuple[Reference, ...]:
    """The results in a JSON list of objects whose keys are the fields of `Reference`.

    Raises PublishedDataError, which names the entry and the key, for an unknown or missing key, a
    value of the wrong type, a share outside 0..1 and an entry without any figure.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise PublishedDataError(f"{path}: not JSON ({error}); mend the file") from error
    if not isinstance(entries, list):
        raise PublishedDataError(f"{path}: expected a list of results, found {type(entries)}")
    return tuple(_reference(f"{path}, entry {i}", entry) for i, entry in enumerate(entries, 1))


def _reference(where: str, entry: Any) -> Reference:
    if not isinstance(entry, Mapping):
        raise PublishedDataError(f"{where}: expected an object, found {entry!r}")
    types = get_type_hints(Reference)
    unknown = sorted(set(entry) - set(types))
    if unknown:
        raise PublishedDataError(
            f"{where}: unknown key {unknown[0]!r}; use one of {', '.join(types)}"
        )
    missing = [f.name for f in fields(Reference) if f.default is MISSING and f.name not in entry]
    if missing:
        raise PublishedDataError(f"{where}: lacks {missing[0]!r}; add it")
    for name, value in entry.items():
        allowed = get_args(types[name]) or (types[name],)
        if not isinstance(value, allowed) or isinstance(value, bool):
            raise PublishedDataError(f"{where}: {name} is {value!r}; expected {types[name]}")
    shares = {name: entry[name] for name in _SHARES if entry.get(name) is not None}
    if not shares:
        raise PublishedDataError(f"{where}: no figure; give one of {', '.join(_SHARES)}")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise PublishedDataError(f"{where}: {name} is {share}; give a share between 0 and 1")
    return Reference(**entry)


@dataclass(frozen=True)
class Citation:
    """One entry of references.bib."""

    key: str
    why: str
    """What of it is used here: the comment above the entry."""


_ENTRY = re.compile(r"(?:% (?P<why>.+)\n)?@\w+\{(?P<key>[^,\s]+),\n(?:  \w+ += \{.*\},\n)+\}\n")


@cache
def bibtex() -> str:
    """Every entry of references.bib, each under a comment that says what it is cited for."""
    return (_FOLDER / "references.bib").read_text(encoding="utf-8")


def citations(text: str) -> list[Citation]:
    """Key and purpose of every entry of a BibTeX text, one field a line.

    Raises PublishedDataError for a text that holds anything else, an entry without a comment above
    it and a key that stands twice.
    """
    found = [Citation(match["key"], match["why"] or "") for match in _ENTRY.finditer(text)]
    rest = _ENTRY.sub("", text).strip()
    if rest:
        raise PublishedDataError(
            f"references.bib: {rest.splitlines()[0]!r} belongs to no entry that can be read; write "
            "`% purpose`, `@kind{key,`, one `  field = {value},` a line and `}`"
        )
    for citation in found:
        if not citation.why:
            raise PublishedDataError(
                f"references.bib: {citation.key} has no comment above it; say what it is cited for"
            )
    keys = [citation.key for citation in found]
    if len(keys) != len(set(keys)):
        raise PublishedDataError(f"references.bib: a key stands twice among {', '.join(keys)}")
    return found
