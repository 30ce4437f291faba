"""What may be asked: one text of bounded length."""

from __future__ import annotations

from finsent.models.tokenization import half_character

MAX_CHARACTERS = 2000
"""Of a text among many."""
MAX_ARTICLE_CHARACTERS = 20_000
"""Of a text that is asked alone: it may be an article, which is read in passages."""


def text_problem(
    text: object,
    empty: str = "Nothing to compare yet: type a headline or pick an example.",
    most: int = MAX_CHARACTERS,
) -> str | None:
    """Why a text cannot be compared, or None when it can.

    empty: what to say of an empty one. most: characters that it may have.
    """
    if text is not None and not isinstance(text, str):
        return f"it is no string, but of type {type(text).__name__}"
    if text is None or not text.strip():
        return empty
    if len(text) > most:
        return (
            f"{len(text):,} characters are too many: at most {most:,}. "
            "One headline or sentence works best."
        )
    return half_character(text)
