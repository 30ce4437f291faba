"""Other ways to write the same text: seeded, and without a change of what it says.

Company names and the numbers themselves stay as they are: a sentence that compares two numbers says
something else when one of them changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

_URL = re.compile(r"\s*https?://\S+")
_CASHTAG = re.compile(r"\$([A-Za-z]{1,5})\b")
_SPACED = re.compile(r"\s+([.,;:!?%)])")
_UNITS = (("percent", "%"), ("per cent", "%"), ("mn", "million"), ("bn", "billion"))
_FORMS = {a: b for pair in _UNITS for a, b in (pair, pair[::-1])} | {"%": "percent"}
_UNIT = re.compile(rf"(?<=\d)\s*({'|'.join(sorted(map(re.escape, _FORMS), key=len)[::-1])})(?!\w)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_SOURCES = ("Reuters", "Bloomberg", "CNBC", "MarketWatch")


def _title(text: str) -> str:
    return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))


_CAPITALS: Sequence[Callable[[str], str]] = (str.upper, str.lower, _title)

CHANGES: Sequence[Callable[[str, np.random.Generator], str]] = (
    lambda text, rng: _SPACED.sub(r"\1", text),
    lambda text, rng: text.rstrip(" ."),
    lambda text, rng: _URL.sub("", text) if _URL.search(text) else f"{text} https://t.co/x",
    lambda text, rng: _CASHTAG.sub(r"\1", text),
    lambda text, rng: _UNIT.sub(lambda found: f" {_FORMS[found[1]]}", text),
    lambda text, rng: _THOUSANDS.sub("", text),
    lambda text, rng: f"{text.rstrip(' .')} - {rng.choice(_SOURCES)}",
    lambda text, rng: text.replace('"', "").replace("``", "").replace("''", ""),
    lambda text, rng: _CAPITALS[int(rng.integers(len(_CAPITALS)))](text),
)
"""Spaces before punctuation, the full stop, a link, cashtags, units, thousands, the source at the
end, quotation marks, and capitals, which an uncased tokenizer does not see."""


def varied(text: str, seed: int, view: int) -> str:
    """`text` with about a third of the changes that it has a place for; the same for the same seed
    and view. Never empty."""
    rng = np.random.default_rng([seed, view, *text.encode()[:64]])
    made = text
    for change, chosen in zip(CHANGES, rng.random(len(CHANGES)) < 1 / 3, strict=True):
        if chosen:
            made = change(made, rng)
    return made if made.strip() else text
