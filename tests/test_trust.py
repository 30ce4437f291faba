"""The quick part of `make trust`: scenarios without weights or a server, a few tries each.

`python -m bench.trust` tries all of them, thousands of times, with the real model.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.trust.__main__ import page
from bench.trust.scenario import Setting
from bench.trust.scenarios import SCENARIOS

QUICK = (
    "parsers",
    "files-page",
    "artifacts-a-bit-flipped",
    "artifacts-cut-off",
    "artifacts-swapped-forged",
)


@pytest.mark.parametrize("name", QUICK)
def test_a_few_tries_hold(name: str, tmp_path: Path) -> None:
    scale = 0.02 if name.startswith("artifacts") else 0.05
    tally = SCENARIOS[name].run(Setting(tmp_path, seed=1, scale=scale))
    assert tally.tried >= 2
    assert tally.failures == []


def test_the_table_counts_what_held() -> None:
    row = {"scenario": "a", "held_if": "b", "tried": 1200, "held": 1199, "seconds": 60.0}
    rows = [{**row, "name": "one"}, {**row, "name": "users", "users_seconds": 90}]
    assert "took\n14 minutes in one go.\n" in page(rows, 840.0)
    text = page(rows, None)
    assert "2,398 of 2,400 tries held" in text
    assert "2 minutes if one adds them up" in text
    assert "The users ask for 1.5 minutes" in text
    assert "Not run at full size yet: generated texts, page functions; " in text
    assert text.count("| a | b | 1,200 | 1,199 | 60 |") == 2
