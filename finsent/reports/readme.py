"""The results tables of README.md and docs, from leaderboard.json and left-out.json of artifacts.

python -m finsent.reports.readme rewrites them; a test fails when a page and the artifacts differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from finsent.machine.places import checkout
from finsent.results.external.rows import without_entrants
from finsent.results.metrics import SIGNIFICANCE
from finsent.results.runs import EXTERNAL, read_json
from finsent.results.text import render
from finsent.results.unseen.files import TRANSFERS

BEGIN = "<!-- results: begin (made by `make readme`) -->"
END = "<!-- results: end -->"


SHOWN = ("allagree", "50agree", "news")
"""Data sets in README.md, in this order; docs/results.md has all of them."""
PAGES: Mapping[str, str] = MappingProxyType(
    {
        "README.md": "readme.md.j2",
        "docs/results.md": "results.md.j2",
        "docs/method.md": "unseen.md.j2",
        "docs/board.md": "board.md.j2",
    }
)
"""Page, relative to the checkout -> the template of what stands between its markers."""


def read_values(artifacts: Path) -> dict[str, Any]:
    """Content of leaderboard.json, and under `unseen` that of every left-out.json."""
    left_out = [read_json(path) for path in sorted(artifacts.glob(f"*/*/{TRANSFERS}"))]
    return {**read_json(artifacts / "leaderboard.json"), "unseen": left_out}


def results_markdown(board: Mapping[str, Any], template: str) -> str:
    """A table of arms with 95 % intervals, by data set and backbone.

    Args:
        board: What `read_values` returns.
        template: Name of a template in PAGES.
    """
    arms = [
        {
            **arm,
            "kept": sorted({arm["dendrites_min"], arm["dendrites_max"]}),
        }
        for arm in without_entrants(board)["arms"]
    ]
    growth = [row["growth"] for row in board["rows"] if row["arm"] == "dendritic"]
    values = {
        "arms": arms,
        "comparisons": board["comparisons"],
        "growth": growth,
        "mixed": [arm for arm in arms if arm.get("per_source")],
        "shown": SHOWN,
        "significance": SIGNIFICANCE,
        "unseen": board["unseen"],
        "entrants": [arm for arm in board["arms"] if arm["arm"] == EXTERNAL],
    }
    return render("finsent.reports", template, **values).rstrip("\n")


def with_results(page: str, board: Mapping[str, Any], template: str) -> str:
    """The page with a fresh table between its markers.

    Raises:
        ValueError: The page has no markers.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the lines {BEGIN!r} and {END!r} around the results")
    return f"{head}{BEGIN}\n{results_markdown(board, template)}\n{END}{tail}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrites the pages of this checkout in place; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m finsent.reports.readme", description=__doc__)
    parser.parse_args(arguments)
    root = checkout()
    if root is None:
        parser.error("the pages are part of a checkout, and finsent is installed without one")
    board = read_values(root / "artifacts")
    for name, template in PAGES.items():
        path = root / name
        path.write_text(
            with_results(path.read_text(encoding="utf-8"), board, template), encoding="utf-8"
        )
        print(f"{name} is up to date with the artifacts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
