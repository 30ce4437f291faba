"""The four notices: another language, no company or market, cut text, two companies apart."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from finsent.serving.notices.words import (
    BUSINESS,
    DOWN,
    ENGLISH,
    OPENERS,
    OTHER_LANGUAGES,
    UP,
)

Kind = Literal["language", "content", "cut", "directions"]

OTHER_SCRIPT = 0.3
"""From this share of letters on that are not Latin a text is in another script."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+")
_MARKET_SIGN = re.compile(
    r"\$[A-Za-z]{1,6}\b|[$€£¥]\s?\d|\d\s?(?:%|bps|bp\b)|\b(?:EUR|USD|GBP|Fed)\b"
)
_BUSINESS = re.compile(r"\b(?:" + "|".join(sorted(BUSINESS)) + r")", re.IGNORECASE)
_CUT_END = re.compile(
    r"(?:\u2026|\.\.\.|[,;:(\u201c\u2013-]|\b(?:the|a|an|of|and|or|to|for|with|by|from|its|than|as))$",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"\s*(?:;|,|\bwhile\b|\bwhereas\b|\bbut\b|\band\b|\bas\b)\s*")
_AGAINST = re.compile(
    r"\b(?:outbids?|overtakes?|defeats?|sues|(?:takes|took|steals|poaches)\b.{1,60}?\bfrom"
    r"|(?:wins?|won)\b.{1,60}?\bagainst|(?:loses?|lost)\b.{1,60}?\bto)\s+\$?[A-Z]"
)


@dataclass(frozen=True)
class Notice:
    """One thing that the models were not made for."""

    kind: Kind
    message: str
    """A sentence for whoever reads the answer."""


def notices(text: str) -> list[Notice]:
    """What speaks against taking the label of this text at its word; empty for ordinary news.

    Of a text in another language nothing else is said: the other rules read English.
    """
    plain = " ".join(_ADDRESS.sub(" ", text).split())
    language = other_language(plain)
    if language is not None:
        said = f"The text seems to be {language}; the models were trained on English only."
        return [Notice("language", said)]
    found = []
    if not has_market_content(plain):
        said = "Nothing here is about a company or a market; the label means nothing then."
        found.append(Notice("content", said))
    if is_cut(plain):
        said = "The text seems to be cut; what is missing may change the label."
        found.append(Notice("cut", said))
    if has_two_directions(plain):
        said = (
            "The text is good for one company and bad for another; the label is of the text "
            "as a whole."
        )
        found.append(Notice("directions", said))
    return found


def other_language(text: str) -> str | None:
    """The language, or "in another script"; None for English and for what has too few words."""
    letters = [character for character in text if character.isalpha()]
    foreign = [c for c in letters if not unicodedata.name(c, "").startswith("LATIN")]
    if letters and len(foreign) / len(letters) > OTHER_SCRIPT:
        return "in another script"
    words = [
        part for word in _WORD.findall(text.lower()) for part in re.split(r"['’]", word) if part
    ]
    # Words of business look alike in several languages: half a sign of English each.
    english = sum(word in ENGLISH for word in words) + len(_BUSINESS.findall(text)) / 2
    hits = {name: sum(word in known for word in words) for name, known in OTHER_LANGUAGES.items()}
    best = max(hits, key=lambda name: hits[name])
    return best if hits[best] >= 2 and hits[best] > 1.5 * english else None


def has_market_content(text: str) -> bool:
    """Whether a word, a sign or a name is of companies or markets.

    A name is a capitalised word after the first, or a first word that is no little word and is
    followed by a verb in the third person. In a text all in one case there are no names to see.
    """
    if _MARKET_SIGN.search(text) or _BUSINESS.search(text):
        return True
    words = _WORD.findall(text)
    if len(words) < 2 or text.isupper():
        return text.isupper() and bool(words) and not set(text.lower().split()) & OPENERS
    if any(word[0].isupper() and word not in ("I", "I'm", "I'll") for word in words[1:]):
        return True
    return words[0][0].isupper() and words[0].lower() not in OPENERS and words[1].endswith("s")


def is_cut(text: str) -> bool:
    """Whether the text ends where no text ends."""
    return bool(_CUT_END.search(text.rstrip()))


def has_two_directions(text: str) -> bool:
    """Whether one named company goes up and another down, clause by clause, or one wins what
    another loses."""
    ways: dict[str, int] = {}
    for clause in _CLAUSE.split(text):
        words = _WORD.findall(clause)
        name = next((w for w in words if w[0].isupper() and w.lower() not in OPENERS), None)
        low = {word.lower() for word in words}
        way = bool(low & UP) - bool(low & DOWN)
        if name is not None and way:
            ways.setdefault(name, way)
    if {1, -1} <= set(ways.values()):
        return True
    against = _AGAINST.search(text)
    if against is None:
        return False
    before = _WORD.findall(text[: against.start()])
    return any(w[0].isupper() and w.lower() not in OPENERS for w in before)
