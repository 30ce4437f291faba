"""The results table of README.md, generated from artifacts/leaderboard.json.

python -m finsent.reports.readme rewrites it; a test fails when README and artifacts differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from finsent.machine.files import ROOT
from finsent.results.runs import read_json
from finsent.results.text import render

BEGIN = "<!-- results: begin (made by `make readme`) -->"
END = "<!-- results: end -->"


def results_markdown(board: Mapping[str, Any]) -> str:
    """A table of arms with 95 % intervals and a sentence for each pair, by data set."""
    arms = [
        {
            **arm,
            "kept": sorted({arm["dendrites_min"], arm["dendrites_max"]}),
        }
        for arm in board["arms"]
    ]
    text = render("finsent.reports", "readme.md.j2", arms=arms, comparisons=board["comparisons"])
    return text.rstrip("\n")


def with_results(readme: str, board: Mapping[str, Any]) -> str:
    """The README with a fresh table between its markers. ValueError when it has none."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md needs the lines {BEGIN!r} and {END!r} around the results")
    return f"{head}{BEGIN}\n{results_markdown(board)}\n{END}{tail}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite README.md in place."""
    parser = argparse.ArgumentParser(prog="python -m finsent.reports.readme", description=__doc__)
    parser.parse_args(arguments)
    path = ROOT / "README.md"
    board = read_json(ROOT / "artifacts" / "leaderboard.json")
    path.write_text(with_results(path.read_text(encoding="utf-8"), board), encoding="utf-8")
    print("README.md is up to date with artifacts/leaderboard.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
