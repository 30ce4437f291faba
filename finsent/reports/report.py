"""docs/report.md and docs/submission.md, generated from the studies' files and the runs.

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
from finsent.plots.png_figures import FigureError
from finsent.plots.png_style import STYLE, png
from finsent.reports import report_figures
from finsent.reports.evidence import Evidence, link_to
from finsent.reports.report_values import board_values, forest_name, study_values, unfinished
from finsent.reports.submission import submission_markdown
from finsent.results.metrics import SIGNIFICANCE
from finsent.results.schema import ArtifactError
from finsent.results.text import render
from finsent.study.comparisons import REFERENCES
from finsent.study.rows import CLASSICAL, StudyError
from finsent.study.selection import SELECTION
from finsent.study.views import ARM_RULES, RULES, comparisons_of, places, study_names

REPORT = "report.md"
SUBMISSION = "submission.md"
FIGURES = "report"
"""Folder of the figures beside the page."""


def report_markdown(evidence: Evidence, out: Path) -> str:
    """The whole page; `out` is the folder that it will stand in."""
    return render(
        "finsent.reports",
        "report.md.j2",
        artifacts=link_to(evidence.artifacts, out),
        figures=FIGURES,
        selection=SELECTION,
        significance=SIGNIFICANCE,
        folds=FOLDS,
        references=REFERENCES,
        settings=growth_settings(),
        library_version=LIBRARY_VERSION,
        classical=CLASSICAL,
        rules=RULES,
        arm_rules=ARM_RULES,
        board=board_values(evidence.board),
        studies=[study_values(name, evidence) for name in study_names(evidence.summaries)],
        unfinished=unfinished(evidence),
    )


def figures(evidence: Evidence) -> dict[str, bytes]:
    """Content of every figure by file name."""
    drawn = {}
    with mpl.rc_context(STYLE):
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
    """Writes both pages and the figures, and removes figures that no page shows any more.

    Raises StudyError without a finished study, ArtifactError for a damaged file.
    """
    evidence = Evidence.read(artifacts)
    files = {f"{FIGURES}/{name}": content for name, content in figures(evidence).items()}
    files[REPORT] = report_markdown(evidence, out).encode()
    files[SUBMISSION] = submission_markdown(
        evidence.summaries, evidence.board, artifacts, out
    ).encode()
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
