"""Cutting a text that is too long for a model into parts that are not, at ends of sentences."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable
from itertools import pairwise

Fits = Callable[[str], bool]
"""Whether the model reads all of a text."""
Span = tuple[int, int]

# A full stop inside a sentence ("U.S. sales") ends one too early. That moves the place of a cut and
# loses nothing, so no list of abbreviations is kept.
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*\s+|[。！？]+[”」』）]*\s*|\n\s*\n")
_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"\S+")
_FIRST_TRY = 64
"""Characters."""


def sentence_spans(text: str) -> list[Span]:
    """Start and end of every sentence, without the white space around it."""
    ends = [*(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    spans = []
    for start, end in pairwise([0, *ends]):
        stripped = text[start:end].strip()
        if stripped:
            first = text.index(stripped[0], start)
            spans.append((first, first + len(stripped)))
    return spans


def window_spans(text: str, fits: Fits) -> list[Span]:
    """Start and end of the windows of a text, in order; the whole text where it fits.

    A window is as many whole sentences as fit. A sentence that does not fit alone is cut at the end
    of the last word that does, and its last part may share a window with what follows. Windows do
    not overlap, and only white space is between them.
    """
    if fits(text):
        return [(0, len(text))]
    windows: list[Span] = []
    window: Span | None = None
    for start, end in sentence_spans(text):
        if window is not None and fits(text[window[0] : end]):
            window = (window[0], end)
            continue
        if window is not None:
            windows.append(window)
        while (stop := _longest_prefix(text, start, end, fits)) < end:
            windows.append((start, stop))
            space = _SPACE.match(text, stop, end)
            start = stop if space is None else space.end()
        window = (start, end)
    return windows if window is None else [*windows, window]


def _longest_prefix(text: str, start: int, end: int, fits: Fits) -> int:
    """Where the longest part of text[start:end] that begins at its start and fits ends: at `end`,
    else after a word, else after a character, of which one is always taken."""
    size = _FIRST_TRY
    # Doubling: a megabyte without a full stop is never tokenised as a whole for one window.
    while start + size < end and fits(text[start : start + size]):
        size *= 2
    if start + size >= end and fits(text[start:end]):
        return end
    beyond = min(end, start + size)
    words = [match.end() for match in _WORD.finditer(text, start, beyond)]
    for stops in (words, range(start + 1, beyond)):
        fitting = bisect.bisect_left(stops, True, key=lambda stop: not fits(text[start:stop]))
        if fitting:
            return stops[fitting - 1]
    return start + 1
