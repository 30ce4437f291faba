"""The five notices: another language, no company or market, far from training, cut, two ways."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finsent.serving.notices.known import known_share
from finsent.serving.notices.language import UNNAMED, other_language
from finsent.serving.notices.words import (
    ADDRESS,
    BUSINESS,
    CALENDAR,
    DOWN,
    ENDS_NOTHING,
    EVERYDAY,
    OPENERS,
    PERSONAL,
    POLICY,
    SPORT,
    UP,
    WORD,
)

Kind = Literal["language", "content", "far", "cut", "directions"]

FAR = 0.5
"""Below this share of words that occur in training texts, a text is far from them."""
HEADLINE_WORDS = 40
"""Longer texts name companies in passing: which of them the news is about, no rule here tells."""
FEW_WORDS = 5
"""A text of no more words needs more than one that everyday talk has too."""
FEWEST_WORDS = 4
"""Words that are no names from which a share of them says something."""

_SPORT = re.compile(rf"\b(?:{'|'.join(sorted(SPORT))})\b", re.IGNORECASE)
_SCORE = re.compile(
    r"\b(?:beats?|beaten|defeats?|defeated|wins?|won|loses?|lost|draws?|drew|thrash\w*|edges?|edged)\b"
    r"(?=.{1,60}?\b\d{1,3}\s?[-\u2013]\s?\d{1,3}\b(?!\s?(?:%|pct|mn|bn|m\b|cents?|days?|year"
    # Votes and share splits are counted in the same way.
    r"|(?:\w+\s){0,2}(?:votes?|ruling|decision|verdict|majority|opinion|margin|split|offer|basis)\b)))",
    re.IGNORECASE,
)
_CASHTAG = re.compile(r"[$#]\w+")
_MARKET_SIGN = re.compile(
    r"\$[A-Za-z]{1,6}\b|[$€£¥]\s?\d|\d\s?(?:%|bps|bp\b)|\b(?:EUR|USD|GBP|Fed)\b"
)


def _starting_with(stems: frozenset[str]) -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(sorted(stems)) + r")", re.IGNORECASE)


_BUSINESS = _starting_with(BUSINESS)
_UNMISTAKABLE = _starting_with(BUSINESS - EVERYDAY)
_BUSINESS_WORD = re.compile(
    rf"(?:{'|'.join(sorted(BUSINESS))})(?:e|s|es|y|ies|ing|ings|er|ers|ors?|ions?|ments?|al)?",
    re.IGNORECASE,
)
_CUT_END = re.compile(
    r"(?:\u2026|\.\.\.\]?|[,;:(\[\u201c\u2013$€£-]|\b(?:EUR|USD|GBP|"
    + "|".join(sorted(ENDS_NOTHING))
    + r"))$",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"\s*(?:;|,|\bwhile\b|\bwhereas\b|\bbut\b|\band\b|\bas\b)\s*")
_NAME = r"\$?(?!(?:EUR|USD|GBP|SEK|CHF|US|Q[1-4])\b)[A-Z]"
_AGAINST = re.compile(
    r"\b(?:outbids?|outsells?|overtakes?|defeats?|sues|beats"
    r"|(?:takes|took|steals|stole|poaches|poached)\b.{1,60}?\bfrom"
    r"|(?:wins?|won)\b.{1,60}?\b(?:against|(?:fight|case|suit|lawsuit|battle|dispute)\s+with)"
    r"|(?:loses?|lost)\b.{1,60}?\bto"
    r"|(?:gains?|wins?)\b.{0,40}?\bat(?=\s+\S+\s+expense))\s+" + _NAME
)
_RULED = re.compile(
    rf"\b(?:(?:rules?|ruled|decides?|finds|found|sides?)\s+(?:for|with|in favou?r of)\s+{_NAME}"
    rf".{{1,40}}?\b(?:against|over)\s+{_NAME}|(?:orders?|ordered|tells?|told)\s+{_NAME}.{{1,40}}?"
    rf"\bto\s+pay\s+{_NAME})"
)


@dataclass(frozen=True)
class Notice:
    """One thing that the models were not made for."""

    kind: Kind
    message: str
    """A sentence for whoever reads the answer."""


def notices(text: str) -> list[Notice]:
    """What speaks against taking the label of this text at its word; empty for ordinary news.

    Of a text in another language nothing else is said: the other rules read English. Of one that
    has nothing to do with companies or markets it is not said that it is far from them.
    """
    plain = " ".join(ADDRESS.sub(" ", text).split())
    if not WORD.search(plain):
        return [Notice("content", "There are no words here; the label means nothing then.")]
    ordinary = _no_names(plain)
    language = other_language(plain, ordinary)
    if language is not None and not (language == UNNAMED and _MARKET_SIGN.search(plain)):
        said = f"The text seems to be {language}; the models were trained on English only."
        return [Notice("language", said)]
    found = []
    if not has_market_content(plain):
        said = (
            "One word alone says too little for a label."
            if len(WORD.findall(plain)) == 1
            else "Nothing here is about a company or a market; the label means nothing then."
        )
        found.append(Notice("content", said))
    elif len(ordinary) >= FEWEST_WORDS and known_share(ordinary) < FAR:
        said = (
            "Most of these words occur nowhere in the texts that the models were trained on; "
            "their probabilities may be wrong by more than usual."
        )
        found.append(Notice("far", said))
    if is_cut(plain):
        said = "The text seems to be cut; what is missing may change the label."
        found.append(Notice("cut", said))
    if len(WORD.findall(plain)) <= HEADLINE_WORDS and has_two_directions(plain):
        said = (
            "The text is good for one company and bad for another; the label is of the text "
            "as a whole."
        )
        found.append(Notice("directions", said))
    return found


def _no_names(text: str) -> list[str]:
    """The words of a text, in lower case, that are no names by their capitals.

    In a text all in capitals there are no names to see: those are all its words.
    """
    words = WORD.findall(_CASHTAG.sub(" ", text))
    if not text.isupper():
        words = [word for word in words if not word[0].isupper()]
    return [word.lower() for word in words]


def has_market_content(text: str) -> bool:
    """Whether a word, a sign or a name is of companies or markets.

    A word that everyday talk uses as well, such as "beat", does not count where a person speaks of
    himself or to another. A name is a capitalised word after the first, or a first word that is no
    little word and owns something or is followed by a verb in the third person. In a text all in
    one case there are no names to see.
    """
    if _MARKET_SIGN.search(text) or _UNMISTAKABLE.search(text):
        return True
    if is_sport(text):
        return False
    words = WORD.findall(text)
    low = {word.lower().split("'")[0].split("’")[0] for word in words}
    if not low & PERSONAL and _has_business(text, words):
        return True
    if len(words) < 2 or text.isupper():
        return text.isupper() and bool(words) and not low & OPENERS
    if any(word[0].isupper() and not _is_no_name(word) for word in words[1:]):
        return True
    verb = words[1].endswith("s") or words[0].lower().endswith(("'s", "’s"))
    opener = words[0].lower() in OPENERS or _is_no_name(words[0])
    return words[0][0].isupper() and not opener and verb


def _has_business(text: str, words: Sequence[str]) -> bool:
    """Whether words that everyday talk has too are of business here.

    One of them alone says little in a short sentence that begins with a little word, as "the":
    there it takes a figure, a name or a direction beside it.
    """
    found = set(_BUSINESS.findall(text.lower()))
    low = [word.lower() for word in words]
    if len(found) != 1 or len(words) > FEW_WORDS or low[0] not in OPENERS:
        return bool(found)
    directed = any(word in UP | DOWN and not word.startswith(tuple(found)) for word in low)
    named = text.isupper() or any(word[0].isupper() for word in words[1:])
    return directed or named or bool(re.search(r"\d", text))


def is_sport(text: str) -> bool:
    """Whether a text tells of a match: by a word of sports, or a score beside who won or lost."""
    return bool(_SPORT.search(text) or _SCORE.search(text))


def _is_no_name(word: str) -> bool:
    return word.lower().split("'")[0].split("’")[0] in PERSONAL | CALENDAR


def is_cut(text: str) -> bool:
    """Whether the text ends where no text ends."""
    return bool(_CUT_END.search(text.rstrip()))


def has_two_directions(text: str) -> bool:
    """Whether one named company goes up and another down, clause by clause, or one wins what
    another loses."""
    ways: dict[str, int] = {}
    for clause in _CLAUSE.split(text):
        words = WORD.findall(clause)
        name = next((word for word in words if _is_company(word)), None)
        low = {word.lower() for word in words}
        way = bool(low & UP) - bool(low & DOWN)
        if name is not None and way:
            ways.setdefault(name, way)
    if {1, -1} <= set(ways.values()) or _RULED.search(text):
        return True
    against = _AGAINST.search(text)
    if against is None:
        return False
    return any(_is_company(word) for word in WORD.findall(text[: against.start()]))


def _is_company(word: str) -> bool:
    """Whether a word may name a company: it has a capital, and is no word of business itself."""
    low = word.lower()
    return (
        word[0].isupper()
        and low not in OPENERS | UP | DOWN | POLICY
        and _BUSINESS_WORD.fullmatch(word) is None
    )
