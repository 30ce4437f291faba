"""Whether a text is in another language than English, and in which."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from finsent.serving.notices.known import known_share

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

OTHER_SCRIPT = 0.3
"""From this share of letters on that are not Latin a text is in another script."""
MOSTLY_KNOWN = 0.85
"""From this share of words on that occur in the training texts, which are English, a text is."""
ENGLISH_AT_MOST = (0.05, 0.25)
"""A text of another language is English by at most this probability: where one word of it is
unknown, and where several are."""
NAMED_FROM = 0.3
"""Probability from which a language is named; less is a guess among relatives."""

NAMES = MappingProxyType(
    {
        "cs": "Czech",
        "da": "Danish",
        "de": "German",
        "es": "Spanish",
        "fi": "Finnish",
        "fr": "French",
        "hu": "Hungarian",
        "id": "Indonesian",
        "it": "Italian",
        "nl": "Dutch",
        "no": "Norwegian",
        "pl": "Polish",
        "pt": "Portuguese",
        "ro": "Romanian",
        "sv": "Swedish",
        "tr": "Turkish",
        "vi": "Vietnamese",
    }
)
_ARTICLE = re.compile(
    r"(?:Der|Die|Das|Den|Dem|Eine?|Einen)\s+[A-Z\u00c4\u00d6\u00dc][a-z\u00e4\u00f6\u00fc\u00df]"
)


def other_language(text: str, words: Sequence[str]) -> str | None:
    """The language as a phrase, "German" or "in another script"; None for English.

    words: the text's words, names aside: headlines are full of names, and a name says nothing of
    the language around it. A text of names alone, or of words that English news uses, is English.
    """
    letters = [character for character in text if character.isalpha()]
    foreign = [c for c in letters if not unicodedata.name(c, "").startswith("LATIN")]
    if letters and len(foreign) / len(letters) > OTHER_SCRIPT:
        return "in another script"
    share = known_share(words)
    if len(words) > 1 and share >= MOSTLY_KNOWN:
        return None
    if _is_german(text):
        return NAMES["de"]
    if len(words) < 2:
        return None
    several = round((1 - share) * len(words)) > 1
    ranked = _identifier().rank(text)
    alone = _identifier().rank(" ".join(words))
    if max(dict(ranked)["en"], dict(alone)["en"]) > ENGLISH_AT_MOST[several]:
        return None
    code, probability = ranked[0]
    return NAMES.get(code, UNNAMED) if probability >= NAMED_FROM else UNNAMED


def _is_german(text: str) -> bool:
    """Whether a text begins with a German article and a noun, whose capital hides it among names,
    and is likelier German than English."""
    found = _ARTICLE.match(text)
    if found is None or len(text.split()) < 3:
        return False
    ranked = dict(_identifier().rank(text))
    return bool(ranked["de"] > ranked["en"])


UNNAMED = "in another language, or no words of any"


@cache
def _identifier() -> LanguageIdentifier:
    # Here: it takes a moment to load, and ordinary news never asks.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
