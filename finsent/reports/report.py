"""docs/report.md, its appendix and docs/submission.md, from the studies' files and the runs.

python -m finsent.reports.report [--artifacts DIR] [--out DIR]

The same files give the same bytes; a test holds the committed pages to the committed artifacts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

from finsent.data.folds import FOLDS
from finsent.growth.settings import LIBRARY_VERSION, growth_settings
from finsent.machine.files import ROOT, write_bytes_atomically
from finsent.plots.png_figures import ACCURACY_FIGURE, TRAINING_FIGURE, FigureError
from finsent.plots.png_style import STYLE, png
from finsent.reports import report_figures
from finsent.reports.evidence import Evidence, link_to
from finsent.reports.overview import compared, finding, overview
from finsent.reports.report_values import (
    board_values,
    context,
    forest_name,
    study_values,
    unfinished,
)
from finsent.results.metrics import SIGNIFICANCE
from finsent.results.schema import ArtifactError
from finsent.results.text import render
from finsent.study.comparisons import EQUAL_WITHIN, REFERENCES
from finsent.study.rows import StudyError
from finsent.study.selection import SELECTION
from finsent.study.views import ARM_RULES, RULES, comparisons_of, places, study_names

PAGES = ("report.md", "report_appendix.md", "submission.md")
"""Each from the template of its name."""
FIGURES = "report"
"""Folder of the figures beside the pages."""
SUMMARY = "summary.png"


def pages(evidence: Evidence, out: Path) -> dict[str, str]:
    """Content of every page by file name; `out` is the folder that they will stand in."""
    every_study = overview(evidence.summaries)
    values = {
        "artifacts": link_to(evidence.artifacts, out),
        "figures": FIGURES,
        "summary_figure": SUMMARY,
        "accuracy_figure": ACCURACY_FIGURE,
        "training_figure": TRAINING_FIGURE,
        "selection": SELECTION,
        "significance": SIGNIFICANCE,
        "equal_within": EQUAL_WITHIN,
        "folds": FOLDS,
        "references": REFERENCES,
        "settings": growth_settings(),
        "library_version": LIBRARY_VERSION,
        "rules": RULES,
        "arm_rules": ARM_RULES,
        "all": every_study,
        "finding": finding(every_study["counts"]),
        "board": board_values(evidence.board),
        "studies": [study_values(name, evidence) for name in study_names(evidence.summaries)],
        "unfinished": unfinished(evidence),
        **context(evidence.summaries),
    }
    return {page: render("finsent.reports", f"{page}.j2", **values) for page in PAGES}


def figures(evidence: Evidence) -> dict[str, bytes]:
    """Content of every figure by file name."""
    drawn = {}
    with mpl.rc_context(STYLE):
        if compared(evidence.summaries):
            drawn[SUMMARY] = report_figures.summary_figure(evidence.summaries)
        drawn["growth.png"] = report_figures.growth_figure(evidence.runs)
        for name in study_names(evidence.summaries):
            summary = evidence.summaries[name]
            drawn[f"{name}_frontier.png"] = report_figures.frontier_figure(name, evidence.summaries)
            if any(row["arm"] == "dendritic" for row in summary["rows"]):
                drawn[f"{name}_kept.png"] = report_figures.kept_figure(summary)
            for place in places(summary):
                found = comparisons_of(summary, place)
                if found:
                    drawn[forest_name(name, place)] = report_figures.forest_figure(found)
        return {name: png(figure) for name, figure in drawn.items()}


def write_report(artifacts: Path, out: Path) -> list[Path]:
    """Writes the pages and the figures, and removes figures that no page shows any more.

    Raises StudyError without a finished study, ArtifactError for a damaged file.
    """
    evidence = Evidence.read(artifacts)
    files = {f"{FIGURES}/{name}": content for name, content in figures(evidence).items()}
    files |= {name: text.encode() for name, text in pages(evidence, out).items()}
    for old in (out / FIGURES).glob("*.png"):
        if f"{FIGURES}/{old.name}" not in files:
            old.unlink()
    for name, content in files.items():
        write_bytes_atomically(out / name, content)
    return [out / name for name in files]


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the pages and says where."""
    parser = argparse.ArgumentParser(prog="python -m finsent.reports.report", description=__doc__)
    parser.add_argument("--artifacts", type=Path, default=ROOT / "artifacts", metavar="DIR")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", metavar="DIR")
    options = parser.parse_args(arguments)
    try:
        written = write_report(options.artifacts, options.out)
    except (StudyError, ArtifactError, FigureError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in written:
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
