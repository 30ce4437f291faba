"""docs/submission.md: the project in the sections that PerforatedAI's community expects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finsent.plots.png_figures import ACCURACY_FIGURE, TRAINING_FIGURE
from finsent.study.markdown import NONE, count, link_to, percent, signed, table
from finsent.study.views import (
    Entry,
    Summary,
    answer,
    comparisons_of,
    lora_verdicts,
    place_name,
    places,
    rows_of,
    study_names,
    study_title,
)

_INTRODUCTION = """\
Does a small language model read financial news better with dendrites? The task is Financial
PhraseBank: is a sentence negative, neutral or positive for an investor. One frozen SmolLM2-135M
carries adapters and a head; dendrites are grown on those, and everything else is held equal.

Two kinds of experiment are reported. *Adapters*: LoRA matrices and the score head, with dendrites
grown by the PerforatedAI library. *Heads*: score heads on frozen features, with this project's own
implementation of the same dendritic layer, small enough to repeat over many folds, seeds and
regimes. A result of one is no result of the other."""

_IMPACT = """\
Headlines come by the thousand and are read by small models, on CPUs, where every parameter and
every error has a price. Anyone who considers dendrites for such a model needs to know when they
pay. This page says where they did and where they did not: against a plain baseline, against one
that restarts its optimizer at the same moments, and against one of equal size. App and artifacts
are public, so each number can be computed again."""

_USAGE = """\
```
make app                                          # the demo: http://127.0.0.1:7860
make train                                        # one seed, three arms, on a CPU
python train_models.py train --seeds 0 1 2        # adapters: baseline, dendritic, matched
python train_models.py study heads --select       # heads: settings, on validation
python train_models.py study heads                # heads: every fold, seed and regime
make report                                       # this page
```

The library is called in one module, `finsent/growth/grower.py`; the training loop is
`finsent/training/loop.py`."""


def submission_markdown(
    summaries: Mapping[str, Summary], board: Mapping[str, Any], artifacts: Path, out: Path
) -> str:
    """The whole page; `out` is the folder that it will stand in."""
    figures = link_to(artifacts / "figures", out)
    parts = [
        "# Dendritic optimization on financial sentiment",
        "Made by `make report`; every number comes from a file in "
        f"[artifacts]({link_to(artifacts, out)}). The full report: [report.md](report.md).",
        "## Introduction",
        _INTRODUCTION,
        "## Project impact",
        _IMPACT,
        "## Usage instructions",
        _USAGE,
        "## Results",
        "### The leaderboard's runs: dendrites grown by PerforatedAI on adapters",
        _adapters(board),
        "Remaining error reduction is the share of the other arm's test errors that the dendritic "
        "arm does not make; negative: it makes more. Tied means that the paired test shows no "
        "difference, whatever the sign of the reduction.",
        "\n".join(f"- {line}" for line in lora_verdicts(board)),
    ]
    for name in study_names(summaries):
        parts += _study(name, summaries[name])
    parts += [
        "## Raw results graph",
        "Drawn by the library during one of the dendritic adapter runs:",
        f"![PerforatedAI's own graph of a dendritic run]({figures}/PAI.png)",
        "## Clean results graph",
        f"![Test accuracy by arm, with intervals]({figures}/{ACCURACY_FIGURE})",
        f"![Training with and without dendrites]({figures}/{TRAINING_FIGURE})",
        "## Where dendrites did not help",
        _ties(summaries, board),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _adapters(board: Mapping[str, Any]) -> str:
    """A row for every comparison of the dendritic arm."""
    arms = {(arm["backbone"], arm["dataset"], arm["arm"]): arm for arm in board["arms"]}
    rows = []
    for pair in board["comparisons"]:
        if pair["b"] != "dendritic":
            continue
        place = (pair["backbone"], pair["dataset"])
        other, dendritic = arms[*place, pair["a"]], arms[*place, "dendritic"]
        rows.append(
            [
                pair["dataset"],
                pair["a"],
                percent(other["mean"]["accuracy"]),
                percent(dendritic["mean"]["accuracy"]),
                count(other["mean"]["trainable_params"]),
                count(dendritic["mean"]["trainable_params"]),
                _percentage(pair["errors_removed_pct"]),
                pair["outcome"],
            ]
        )
    return table(
        [
            "data set", "against", "its accuracy, %", "dendritic accuracy, %", "its parameters",
            "dendritic parameters", "remaining error reduction", "paired test",
        ],
        rows,
        numeric_from=2,
    )  # fmt: skip


def _study(name: str, summary: Summary) -> list[str]:
    if not summary["comparisons"]:
        return []
    parts = [
        f"### {study_title(name)}: study `{name}`",
        "\n".join(f"- {line}" for line in answer(summary["comparisons"])),
        "Every regime and recipe that was tested, none left out; remaining error reduction in "
        "percent against each arm, bold where the difference in accuracy survives correction:",
    ]
    for place in places(summary):
        found = comparisons_of(summary, place)
        if found:
            parts += [f"#### {place_name(place)}", _reductions(found, rows_of(summary, place))]
    return parts


def _reductions(comparisons: Sequence[Entry], rows: Sequence[Entry]) -> str:
    by_row = {(row["regime"], row["recipe"], row["arm"]): row for row in rows}
    baselines = {row["regime"]: row for row in rows if row["arm"] == "baseline"}
    arms = list(dict.fromkeys(c["a"] for c in comparisons))
    cells = {(c["regime"], c["recipe"], c["a"]): c for c in comparisons}
    lines = []
    for regime, recipe in dict.fromkeys((c["regime"], c["recipe"]) for c in comparisons):
        dendritic, baseline = by_row[regime, recipe, "dendritic"], baselines.get(regime)
        lines.append(
            [
                regime,
                recipe,
                NONE if baseline is None else percent(baseline["accuracy"]),
                percent(dendritic["accuracy"]),
                NONE if baseline is None else count(baseline["trainable_params"]),
                count(dendritic["trainable_params"]),
                *(_reduction(cells.get((regime, recipe, arm))) for arm in arms),
            ]
        )
    return table(
        [
            "regime", "recipe", "baseline accuracy, %", "dendritic accuracy, %",
            "baseline parameters", "dendritic parameters", *(f"against {arm}" for arm in arms),
        ],
        lines,
        numeric_from=2,
    )  # fmt: skip


def _reduction(comparison: Entry | None) -> str:
    if comparison is None:
        return NONE
    text = _percentage(comparison["errors_removed_pct"])
    return text if comparison["outcome"] == "tied" else f"**{text}**"


def _percentage(value: float | None) -> str:
    return NONE if value is None else f"{signed(value)} %"


def _ties(summaries: Mapping[str, Summary], board: Mapping[str, Any]) -> str:
    pairs = [c for c in board["comparisons"] if c["b"] == "dendritic"]
    lines = [f"- The leaderboard's runs: {_counted(pairs)}."]
    for name in study_names(summaries):
        if summaries[name]["comparisons"]:
            lines.append(f"- {study_title(name)}: {_counted(summaries[name]['comparisons'])}.")
    lines.append(
        "- A tie is not proof of equality: a difference smaller than the intervals of "
        "[report.md](report.md) cannot be seen with these numbers of runs."
    )
    return "\n".join(lines)


def _counted(comparisons: Sequence[Entry]) -> str:
    tied, worse = (sum(c["outcome"] == o for c in comparisons) for o in ("tied", "worse"))
    return f"{tied} of {len(comparisons)} comparisons are ties and {worse} go against dendrites"
