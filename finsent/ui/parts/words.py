"""Which words an answer rests on, drawn so that neither colour nor a picture is needed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from finsent.plots.style import ARM_STYLES
from finsent.results.catalog import Catalog, Selection
from finsent.serving.attribution import Attribution, WordEffect, attribute, variants
from finsent.serving.service import ModelService
from finsent.ui.parts.markup import percent, signed, swatch, table

NUMBERED = 5
"""So many of the strongest words carry their number in the text itself."""
_THICKEST_PX = 6
_NOTICEABLE = 0.0005


def explain_words(
    text: str, selection: Selection, catalog: Catalog, service: ModelService
) -> tuple[dict[str, Attribution], tuple[str, ...]]:
    """Arm -> attribution on the probabilities that the page shows, and the label names.

    Raises AttributionError for a text of one word or too many, else what the service raises.
    """
    calibrations = catalog.calibrations(selection)
    raw, _ = service.scores(variants(text), selection)
    found = {}
    for arm, values in raw.items():
        calibration = calibrations[arm]
        shown = values if calibration is None else calibration.calibrate(values)

        def look_up(texts: Sequence[str], p: NDArray[np.float64] = shown) -> NDArray[np.float64]:
            return p

        found[arm] = attribute(text, look_up)
    return found, catalog.label_names(selection)


def words_html(found: dict[str, Attribution], label_names: Sequence[str]) -> str:
    """A section per arm: the text with its words underlined by effect, and the same as a table."""
    sections = "".join(
        _section(arm, attribution, label_names[attribution.label])
        for arm, attribution in found.items()
    )
    return (
        '<section class="fs-words"><h2>Which words mattered</h2><p class="fs-quiet">Each word is '
        "left out once and the models are asked again. The thicker the underline, the more the "
        "answer changes: a solid underline supports it, a dashed one speaks against it. Numbers "
        "are points of probability. Words that only work together do not show.</p>"
        f"{sections}</section>"
    )


def _section(arm: str, attribution: Attribution, label: str) -> str:
    strongest = max(abs(word.effect) for word in attribution.words)
    numbered = sorted(attribution.words, key=lambda word: -abs(word.effect))[:NUMBERED]
    text = " ".join(_word(word, strongest, label, word in numbered) for word in attribution.words)
    ordered = sorted(attribution.words, key=lambda word: -abs(word.effect))
    rows = [
        [escape(word.word), signed(100 * word.effect), percent(word.without)] for word in ordered
    ]
    return (
        f'<div class="fs-words-arm" style="--arm:{ARM_STYLES[arm].colour}">'
        f"<h3>{swatch(arm)}{escape(ARM_STYLES[arm].title)}: {escape(label)}, "
        f"{percent(attribution.probability)}</h3>"
        f'<p dir="auto">{text}</p><details><summary>Show as table</summary>'
        + table(
            ["Word left out", "Effect, points", f"{escape(label)} without it"],
            rows,
            caption=f"{ARM_STYLES[arm].title}: effect of each word",
            numeric=(1, 2),
            css_class="fs-narrow",
        )
        + "</details></div>"
    )


def _word(word: WordEffect, strongest: float, label: str, numbered: bool) -> str:
    share = abs(word.effect) / strongest if strongest > 0 else 0.0
    if abs(word.effect) < _NOTICEABLE or share < 0.02:
        return f"<span>{escape(word.word)}</span>"
    side = "for" if word.effect > 0 else "against"
    number = f"<sup>{signed(100 * word.effect)}</sup>" if numbered else ""
    return (
        f'<span class="fs-word" data-side="{side}" '
        f'style="--thick:{max(1.0, _THICKEST_PX * share):.1f}px" '
        f'title="{signed(100 * word.effect)} points {side} {escape(label)}">'
        f"{escape(word.word)}{number}</span>"
    )
