"""docs/report.md and docs/submission.md, generated from the studies' files and the runs.

python -m finsent.study.report [--artifacts DIR] [--out DIR]

The same files give the same bytes; a test holds the committed pages to the committed artifacts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

from finsent.figure_style import STYLE, png
from finsent.figures import FigureError
from finsent.files import write_bytes_atomically
from finsent.folds import FOLDS
from finsent.runs import ArtifactError, Run, find_runs, read_json
from finsent.study import report_figures
from finsent.study.markdown import NONE, count, link_to, percent, seconds, signed, table
from finsent.study.results import CLASSICAL, ENSEMBLE, StudyError
from finsent.study.selection import (
    CHOSEN,
    SELECTION,
    Tried,
    grid_sizes,
    read_selection,
    validates,
    variants,
)
from finsent.study.submission import submission_markdown
from finsent.study.summary import REFERENCES, SIGNIFICANCE, read_summaries
from finsent.study.views import (
    ARM_RULES,
    RULES,
    Entry,
    Summary,
    answer,
    chosen,
    classical_rows,
    comparisons_of,
    lora_verdicts,
    place_name,
    places,
    published,
    regime_key,
    rows_of,
    study_names,
    study_title,
)

ROOT = Path(__file__).resolve().parents[2]
REPORT = "report.md"
SUBMISSION = "submission.md"
FIGURES = "report"
"""Folder of the figures beside the page."""


@dataclass(frozen=True)
class Evidence:
    """Everything that the pages are made of."""

    artifacts: Path
    summaries: Mapping[str, Summary]
    board: Mapping[str, Any]
    runs: Sequence[Run]

    @classmethod
    def read(cls, artifacts: Path) -> Evidence:
        """Raises ArtifactError for a damaged file, StudyError without a finished study."""
        summaries = read_summaries(artifacts)
        if not study_names(summaries):
            raise StudyError(
                f"{artifacts / 'studies'} holds no finished study; make one with "
                "`python train_models.py study heads --select`, then without --select"
            )
        return cls(
            artifacts, summaries, read_json(artifacts / "leaderboard.json"), find_runs(artifacts)
        )

    def study(self, name: str) -> Path:
        """Folder of a study."""
        return self.artifacts / "studies" / name


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
        _growth(evidence.board),
        *_latencies(evidence.board),
        *(part for name in names for part in _variants(name, evidence, out)),
        *(part for name in names for part in _regimes(name, evidence, out)),
        *_protocol(evidence),
        *_commands(evidence),
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
            *_context(evidence, name, place),
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
            [row["regime"], row["recipe"], row["arm"], *_scores(row), _removed(row), *_costs(row)]
            for row in rows
        ],
        numeric_from=3,
    )  # fmt: skip


def _scores(row: Entry) -> list[str]:
    return [
        f"{percent(row['accuracy'])} ± {percent(row['accuracy_sd'])}",
        percent(row["macro_f1"]),
        f"{row['nll']:.4f}",
        percent(row["ece"]),
    ]


def _removed(row: Entry) -> str:
    return NONE if row["errors_removed_pct"] is None else signed(row["errors_removed_pct"])


def _costs(row: Entry) -> list[str]:
    kept = f"{row['dendrites']:.1f}" if row["arm"] == "dendritic" else NONE
    return [count(row["trainable_params"]), seconds(row["train_seconds"]), kept]


def _context(evidence: Evidence, name: str, place: tuple[str, str]) -> list[str]:
    """What was trained otherwise: on the same folds, and elsewhere."""
    parts = []
    rows = classical_rows(evidence.summaries, name, place)
    if rows:
        parts += [
            f"#### Classical classifiers on {place_name(place)}",
            f"No dendrites, no baseline of any. {rows[0]['folds']} folds x {rows[0]['seeds']} "
            "seeds, made by the same rule; regimes mean what they mean for heads.",
            table(
                [
                    "regime",
                    "classifier",
                    "accuracy",
                    "macro-F1",
                    "NLL",
                    "ECE",
                    "parameters",
                    "training, s",
                ],
                [[r["regime"], r["recipe"], *_scores(r), *_costs(r)[:2]] for r in rows],
            ),
        ]
    references = published(evidence.summaries[name], place)
    if references:
        parts += [
            f"#### Published elsewhere on {place_name(place)}",
            "Context, not competitors: the same kind of protocol, other training.",
            table(
                ["model", "protocol", "accuracy", "macro-F1", "source"],
                [
                    [
                        r.model,
                        r.protocol,
                        NONE
                        if r.accuracy is None
                        else percent(r.accuracy) + ("" if r.sd is None else f" ± {percent(r.sd)}"),
                        NONE if r.macro_f1 is None else percent(r.macro_f1),
                        r.source if r.url is None else f"[{r.source}]({r.url})",
                    ]
                    for r in references
                ],
                numeric_from=2,
            ),
        ]
    return parts


def _growth(board: Mapping[str, Any]) -> str:
    lines = [
        f"- {arm['dataset']}, {arm['backbone']}: {arm['dendrites_max']} dendrites kept at most; "
        f"validation NLL below the baseline's in {arm['growth_paid_on_validation']} of "
        f"{len(arm['seeds'])} seeds."
        for arm in board["arms"]
        if arm["arm"] == "dendritic" and arm["growth_paid_on_validation"] is not None
    ]
    return "\n".join(lines)


def _latencies(board: Mapping[str, Any]) -> list[str]:
    """What an answer of each arm takes, of the leaderboard's runs: those of studies are not
    served."""
    baselines = {
        (arm["backbone"], arm["dataset"]): arm["mean"]["latency_ms_p50"]
        for arm in board["arms"]
        if arm["arm"] == "baseline"
    }
    rows = []
    for arm in board["arms"]:
        mean = arm["mean"]
        baseline = baselines.get((arm["backbone"], arm["dataset"]))
        rows.append(
            [
                arm["dataset"],
                arm["backbone"],
                arm["arm"],
                f"{mean['latency_ms_p50']:.1f}",
                f"{mean['latency_ms_p95']:.1f}",
                NONE if baseline is None else f"{mean['latency_ms_p50'] / baseline:.2f}",
                count(mean["trainable_params"]),
            ]
        )
    if not rows:
        return []
    protocols = sorted({said for arm in board["arms"] for said in arm["latency_protocol"]})
    return [
        "## What an answer takes",
        "Milliseconds for one sentence, of the leaderboard's runs, whose arms answered in turn "
        f"({'; '.join(protocols)}). Ensembles were not timed; every member is a run that answers.",
        table(
            [
                "data set", "backbone", "arm", "median, ms", "95th percentile, ms",
                "median over the baseline's", "trained parameters",
            ],
            rows,
            numeric_from=3,
        ),
    ]  # fmt: skip


def _variants(name: str, evidence: Evidence, out: Path) -> list[str]:
    found = variants(evidence.study(name))
    if not found:
        return []
    rows = {(row.dataset, row.regime) for row in found}
    parts = [
        f"## Options of dendrites, on validation only: study `{name}`",
        "One recipe against another that differs in the setting named, under the same learning "
        "rate, weight decay and features, on validation parts alone "
        f"([{SELECTION}]({link_to(evidence.study(name) / SELECTION, out)})). There is no test "
        "behind this table; lower NLL is better. Numbers of dendrites and epochs go together "
        "where more growths need more room.",
    ]
    for dataset, regime in sorted(rows, key=lambda place: (place[0], regime_key(place[1]))):
        here = [row for row in found if (row.dataset, row.regime) == (dataset, regime)]
        bases = dict.fromkeys(row.base for row in here)
        parts += [
            f"### {dataset}, {regime}",
            table(
                ["recipe", "differs from", "NLL", "change", "accuracy", "change", "dendrites"],
                [_variant(row) for base in bases for row in here if row.base == base],
                numeric_from=2,
            ),
        ]
    return parts


def _regimes(name: str, evidence: Evidence, out: Path) -> list[str]:
    """What ensembles had to choose from, best first."""
    path = evidence.study(name) / SELECTION
    if (evidence.study(name) / CHOSEN).is_file() or not path.is_file():
        return []
    tried = sorted(read_selection(path).values(), key=validates)
    parts = [
        f"## Ways of fine-tuning, on validation only: study `{name}`",
        "One run of every fold of a repetition that is not tested, on validation parts alone "
        f"([{SELECTION}]({link_to(path, out)})); the first regime of a data set is the one that "
        "was tested.",
    ]
    for dataset in dict.fromkeys(row["dataset"] for row in tried):
        rows = [
            [
                row["regime"],
                f"`{row['recipe']}`",
                percent(float(row["validation_accuracy"])),
                f"{float(row['validation_nll']):.4f}",
                f"{float(row['learning_rate']):g}",
                row["runs"],
            ]
            for row in tried
            if row["dataset"] == dataset
        ]
        columns = ["regime", "state", "accuracy", "NLL", "learning rate", "runs"]
        parts += [f"### {dataset}", table(columns, rows, numeric_from=2)]
    return parts


def _variant(row: Tried) -> list[str]:
    is_base = row.recipe == row.base
    return [
        f"**{row.recipe}**" if is_base else row.recipe,
        NONE if is_base else row.base,
        f"{row.nll:.4f}",
        NONE if is_base else signed(row.nll_change, 4),
        percent(row.accuracy),
        NONE if is_base else signed(100 * row.accuracy_change, 2),
        f"{row.dendrites:.1f}",
    ]


def _protocol(evidence: Evidence) -> list[str]:
    names = study_names(evidence.summaries)
    lines = [
        f"- Folds: {FOLDS}-fold cross-validation, stratified and grouped so that sentences that "
        "differ only in their numbers stay on one side; a ninth of what is not tested is for "
        "validation. Every repetition (seed) deals the folds anew.",
        "- Test: differences are paired by fold and seed. Training parts of folds overlap, so the "
        "t-test is Nadeau and Bengio's corrected one (2003); p-values are corrected by Holm "
        f"(1979) over all comparisons of a metric in the study; better or worse means "
        f"p < {SIGNIFICANCE} on accuracy.",
        f"- Arms: dendritic against {', '.join(f'`{arm}`' for arm in REFERENCES)}. The last two "
        "restart whenever the dendritic arm grows.",
        "- Selection: the epoch of every run on its validation part; settings of heads on "
        "validation parts of one more repetition, whose test parts are never used. Its sentences "
        "are tested in the other repetitions, as all sentences are: no setting is chosen on data "
        "that no test part holds, whatever the arm.",
    ]
    for name in names:
        rows = evidence.summaries[name]["rows"]
        if {row["folds"] for row in rows} == {1}:
            lines.append(
                f"- `{name}`: a single test part for all seeds, with twins in training. Its "
                "intervals are over seeds and say nothing about other test sentences."
            )
        sizes = sorted({(row["folds"], row["seeds"], row["n"]) for row in rows})
        lines.append(
            f"- `{name}`: "
            + ", ".join(
                f"{folds} fold{'s' * (folds > 1)} x {seeds} seed{'s' * (seeds > 1)}"
                + (f", of which {n} runs were made" if n < folds * seeds else "")
                for folds, seeds, n in sizes
            )
            + f"; backbone {', '.join(sorted({row['backbone'] for row in rows}))}, frozen."
        )
        if any(row["arm"] == ENSEMBLE for row in rows):
            lines.append(
                f"- `{name}`: all runs are of one deal of the folds; seeds are the members of an "
                "ensemble, and intervals count a fold once. An ensemble takes the optimizer steps "
                "of all its members. Which row is quoted was fixed in LOG.md before the runs: "
                + (
                    "that of all members."
                    if any(row["validation_accuracy"] is None for row in rows)
                    else "the one that validates best."
                )
            )
        tried = grid_sizes(evidence.study(name))
        if tried:
            counts = ", ".join(f"{arm} {number}" for arm, number in tried.items())
            lines.append(
                f"- `{name}`: settings tried for each cell on validation: {counts}. The features "
                "are chosen for the baseline and then the same for all arms."
            )
        lines += _budgets(name, rows)
    return ["## Protocol", "\n".join(lines)]


def _budgets(name: str, rows: Sequence[Entry]) -> list[str]:
    """Which recipes take more optimizer steps than the baseline that they are compared with."""
    keys = ("dataset", "test_dataset", "regime")
    baselines = {tuple(r[k] for k in keys): r for r in rows if r["arm"] == "baseline"}
    shares: dict[str, set[int]] = {}
    for row in rows:
        baseline = baselines.get(tuple(row[k] for k in keys))
        if (
            row["arm"] not in ("baseline", ENSEMBLE)
            and baseline is not None
            and baseline["optimizer_steps"]
        ):
            extra = round(100 * (row["optimizer_steps"] / baseline["optimizer_steps"] - 1))
            shares.setdefault(row["recipe"], set()).add(extra)
    unequal = {recipe: found for recipe, found in shares.items() if found != {0}}
    if not unequal:
        return [f"- `{name}`: every arm of a regime takes the same number of optimizer steps."]
    return [
        f"- `{name}`: arms of a recipe take the same number of optimizer steps, but all arms of "
        f"`{recipe}` take {' to '.join(map(str, sorted({min(found), max(found)})))} % more than "
        "the baseline; `restart` and `matched` are its equals."
        for recipe, found in unequal.items()
    ]


def _commands(evidence: Evidence) -> list[str]:
    lines = []
    for name in study_names(evidence.summaries):
        if (evidence.study(name) / SELECTION).is_file():
            lines.append(
                f"python train_models.py study {name} --select   # settings, on validation"
            )
        lines.append(f"python train_models.py study {name}")
    lines += [
        f"python train_models.py study {CLASSICAL}",
        "python train_models.py verify   # recomputes the summaries from the single runs",
        "make report",
    ]
    return ["## Commands", "```\n" + "\n".join(lines) + "\n```"]


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
    parser = argparse.ArgumentParser(prog="python -m finsent.study.report", description=__doc__)
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
