"""Which words an answer rests on: leave each one out and ask again (occlusion).

Works with anything that turns texts into probabilities, so it is the same for every backbone,
engine and precision. One batch of as many texts as there are words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_WORDS = 80
"""Each word costs a forward pass per arm."""


class AttributionError(ValueError):
    """A text whose words cannot be left out one by one."""


@dataclass(frozen=True)
class WordEffect:
    """One word, and what the answer loses without it."""

    word: str
    start: int
    """Position of its first character in the text."""
    without: float
    """Probability of the answer's label with this word left out."""
    effect: float
    """Probability with it minus without it: above 0 the word speaks for the label."""


@dataclass(frozen=True)
class Attribution:
    """One arm's answer to one text, word by word."""

    label: int
    """Position of the label that is explained: the most probable one."""
    probability: float
    words: tuple[WordEffect, ...]


def word_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of everything between spaces. Raises AttributionError for fewer than two words
    or more than MAX_WORDS."""
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    if len(spans) < 2:
        raise AttributionError("one word cannot be left out of itself; give a longer text")
    if len(spans) > MAX_WORDS:
        raise AttributionError(
            f"{len(spans)} words are too many to leave out one by one: at most {MAX_WORDS}"
        )
    return spans


def variants(text: str) -> list[str]:
    """The text itself, then the text without its first, second, ... word."""
    return [text, *(text[:start] + text[end:].lstrip() for start, end in word_spans(text))]


def attribute(
    text: str, predict_proba: Callable[[Sequence[str]], NDArray[np.float64]]
) -> Attribution:
    """Explains the most probable label. predict_proba: texts -> (n, classes).

    Raises AttributionError as `word_spans`.
    """
    probabilities = predict_proba(variants(text))
    label = int(probabilities[0].argmax())
    whole = float(probabilities[0, label])
    return Attribution(
        label,
        whole,
        tuple(
            WordEffect(text[start:end], start, float(without), whole - float(without))
            for (start, end), without in zip(
                word_spans(text), probabilities[1:, label], strict=True
            )
        ),
    )
