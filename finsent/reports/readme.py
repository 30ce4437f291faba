"""The results table of README.md, generated from artifacts/leaderboard.json.

python -m finsent.reports.readme rewrites it; a test fails when README and artifacts differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from finsent.machine.files import ROOT
from finsent.results.runs import read_json

BEGIN = "<!-- results: begin (made by `make readme`) -->"
END = "<!-- results: end -->"
ARM_NOTES = {
    "baseline": "LoRA",
    "dendritic": "LoRA + dendrites",
    "matched": "LoRA of equal size",
    "restart": "LoRA, interrupted as the dendritic run was",
}


def results_markdown(board: dict[str, Any]) -> str:
    """A table of arms with 95 % intervals and a sentence for each pair, by data set."""
    lines = [
        "| data set | arm | accuracy (95 % CI) | macro-F1 (95 % CI) | trained parameters "
        "| dendrites | validation NLL below the baseline's |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in board["arms"]:
        lines.append("| " + " | ".join(_cells(arm)) + " |")
    lines.append("")
    for pair in board["comparisons"]:
        lines.append(f"- `{pair['dataset']}`: {pair['verdict']}.")
    return "\n".join(lines)


def _cells(arm: dict[str, Any]) -> list[str]:
    kept = sorted({arm["dendrites_min"], arm["dendrites_max"]})
    paid = arm["growth_paid_on_validation"]
    return [
        f"`{arm['dataset']}`",
        f"{arm['arm']} ({ARM_NOTES[arm['arm']]})",
        _score(arm, "accuracy"),
        _score(arm, "macro_f1"),
        f"{round(arm['mean']['trainable_params']):,}",
        "–".join(map(str, kept)),
        "" if paid is None else f"{paid} of {_seeds(len(arm['seeds']))}",
    ]


def _seeds(number: int) -> str:
    return f"{number} seed{'s' * (number > 1)}"


def _score(arm: dict[str, Any], metric: str) -> str:
    low, high = arm["ci"][metric]
    return f"{arm['mean'][metric]:.4f} ({low:.3f}–{high:.3f})"


def with_results(readme: str, board: dict[str, Any]) -> str:
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
