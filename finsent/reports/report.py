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

from finsent.machine.files import ROOT, write_bytes_atomically
from finsent.plots.png_figures import FigureError
from finsent.plots.png_style import STYLE, png
from finsent.reports import report_figures
from finsent.reports.evidence import Evidence
from finsent.reports.report_tables import (
    commands_lines,
    context_lines,
    cost_cells,
    growth_lines,
    latencies_lines,
    protocol_lines,
    regimes_lines,
    score_cells,
    variants_lines,
)
from finsent.reports.submission import submission_markdown
from finsent.results.schema import ArtifactError
from finsent.study.markdown import NONE, count, link_to, signed, table
from finsent.study.rows import StudyError
from finsent.study.summary import SIGNIFICANCE
from finsent.study.views import (
    ARM_RULES,
    RULES,
    Entry,
    Summary,
    answer,
    chosen,
    comparisons_of,
    lora_verdicts,
    place_name,
    places,
    rows_of,
    study_names,
    study_title,
)

REPORT = "report.md"
SUBMISSION = "submission.md"
FIGURES = "report"
"""Folder of the figures beside the page."""


# ------------------------------------------------------------------------------------------- page


def report_markdown(evidence: Evidence, out: Path) -> str:
    """The whole page; `out` is the folder that it will stand in."""
    names = study_names(evidence.summaries)
    parts = [
        "# Do dendrites remove errors?",
        "Made by `make report` from [artifacts]"
        f"({link_to(evidence.artifacts, out)}); every number below comes from a file there. "
        "Accuracy and other shares are in percent, differences in points. `tied` means that no "
        "difference was shown, not that there is none.",
        "## Answer",
        *(_answer(name, evidence.summaries[name]) for name in names),
        _lora_answer(evidence),
    ]
    parts += [
        "## How to read the studies",
        *RULES,
        "Arms:",
        "\n".join(f"- `{arm}`: {rule}." for arm, rule in ARM_RULES.items()),
    ]
    for name in names:
        parts += _study(name, evidence, out)
    parts += [
        "## When dendrites grow",
        f"![Validation loss by epoch, growth marked]({FIGURES}/growth.png)",
        growth_lines(evidence.board),
        *latencies_lines(evidence.board),
        *(part for name in names for part in variants_lines(name, evidence, out)),
        *(part for name in names for part in regimes_lines(name, evidence, out)),
        *protocol_lines(evidence),
        *commands_lines(evidence),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _answer(name: str, summary: Summary) -> str:
    lines = answer(summary["comparisons"])
    if not lines:
        opening = f"{study_title(name)} (study `{name}`, no dendrites):"
        return "\n".join([opening, "", *(f"- {line}" for line in chosen(summary["rows"]))])
    opening = (
        f"{study_title(name)} (study `{name}`, {count(summary['runs'])} runs; accuracy on test, "
        f"p < {SIGNIFICANCE} after correction over the study):"
    )
    return "\n".join([opening, "", *(f"- {line}" for line in lines)])


def _lora_answer(evidence: Evidence) -> str:
    found = lora_verdicts(evidence.board)
    if not found:
        return ""
    return "\n".join(
        [
            "The leaderboard's runs (LoRA adapters, one split a seed; dendrites grown by "
            "PerforatedAI on LoRA and the score head):",
            "",
            *(f"- {line}" for line in found),
        ]
    )


def _study(name: str, evidence: Evidence, out: Path) -> list[str]:
    summary = evidence.summaries[name]
    parts = [
        f"## {study_title(name)}: study `{name}`",
        f"![Test accuracy against trained parameters]({FIGURES}/{name}_frontier.png)",
    ]
    for place in places(summary):
        comparisons, rows = comparisons_of(summary, place), rows_of(summary, place)
        parts.append(f"### {place_name(place)}")
        if comparisons:
            parts += [
                f"![Paired differences with intervals]({FIGURES}/{forest_name(name, place)})",
                "Accuracy of dendritic minus each other arm, points; bold where it survives "
                "correction:",
                _matrix(comparisons),
                _survivors(comparisons),
            ]
        parts += [
            f"All rows ([summary.json]({link_to(evidence.study(name) / 'summary.json', out)})). "
            "± is the standard deviation over folds and seeds; training time is a run's share of "
            "the stack it was trained in; dendrites are those kept per class or map, on average.",
            _rows(rows),
            *context_lines(evidence, name, place),
        ]
    if any(row["arm"] == "dendritic" for row in summary["rows"]):
        parts.append(f"![Share of runs by dendrites kept]({FIGURES}/{name}_kept.png)")
    return parts


def _matrix(comparisons: Sequence[Entry]) -> str:
    """A row for each regime, a column for each recipe and arm compared with."""
    columns = list(dict.fromkeys((c["recipe"], c["a"]) for c in comparisons))
    cells = {(c["regime"], c["recipe"], c["a"]): _difference(c) for c in comparisons}
    return table(
        ["regime", *(f"{recipe}, minus {arm}" for recipe, arm in columns)],
        [
            [regime, *(cells.get((regime, *column), NONE) for column in columns)]
            for regime in dict.fromkeys(c["regime"] for c in comparisons)
        ],
    )


def _difference(comparison: Entry) -> str:
    text = signed(100 * comparison["metrics"]["accuracy"]["mean"], 2)
    return text if comparison["outcome"] == "tied" else f"**{text}**"


def _survivors(comparisons: Sequence[Entry]) -> str:
    found = [c for c in comparisons if c["outcome"] != "tied"]
    if not found:
        return "No difference survives correction here."
    return "\n".join(f"- {c['regime']}, {c['recipe']}: {c['verdict']}." for c in found)


def _rows(rows: Sequence[Entry]) -> str:
    return table(
        [
            "regime", "recipe", "arm", "accuracy", "macro-F1", "NLL", "ECE",
            "errors removed against baseline", "trained parameters", "training, s", "dendrites",
        ],
        [
            [
                *(row[key] for key in ("regime", "recipe", "arm")),
                *score_cells(row),
                _removed(row),
                *cost_cells(row),
            ]
            for row in rows
        ],
        numeric_from=3,
    )  # fmt: skip


def _removed(row: Entry) -> str:
    return NONE if row["errors_removed_pct"] is None else signed(row["errors_removed_pct"])


# ------------------------------------------------------------------------------------------- files


def forest_name(study: str, place: tuple[str, str]) -> str:
    """File of a forest plot."""
    return f"{study}_forest_{'_on_'.join(dict.fromkeys(place))}.png"


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
