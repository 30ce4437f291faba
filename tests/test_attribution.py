"""Occlusion: each word left out once, the effect on the answer's label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from finsent.serving.attribution import MAX_WORDS, AttributionError, attribute, variants


def counts_up(texts: Sequence[str]) -> NDArray[np.float64]:
    """positive with every `up`, negative with every `down`."""
    up = np.array([0.5 + 0.2 * t.count("up") - 0.1 * t.count("down") for t in texts])
    return np.stack([1 - up, up], axis=1)


def test_effects_are_what_the_answer_loses() -> None:
    found = attribute("Profit up,  margins down", counts_up)
    assert found.label == 1
    assert found.probability == pytest.approx(0.6)
    assert [w.word for w in found.words] == ["Profit", "up,", "margins", "down"]
    np.testing.assert_allclose([w.effect for w in found.words], [0, 0.2, 0, -0.1], atol=1e-12)
    assert [w.start for w in found.words] == [0, 7, 12, 20]


def test_variants_leave_out_one_word_each_and_nothing_else() -> None:
    assert variants(" a b\tc") == [" a b\tc", " b\tc", " a c", " a b\t"]


@pytest.mark.parametrize(
    ("text", "reason"), [("one", "one word"), ("x " * (MAX_WORDS + 1), "81 words are too many")]
)
def test_texts_that_cannot_be_taken_apart(text: str, reason: str) -> None:
    with pytest.raises(AttributionError, match=reason):
        attribute(text, counts_up)
