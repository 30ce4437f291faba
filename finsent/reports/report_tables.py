"""The tables of docs/report.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finsent.data.folds import FOLDS
from finsent.reports.evidence import Evidence
from finsent.study.markdown import NONE, count, link_to, percent, seconds, signed, table
from finsent.study.rows import CLASSICAL, ENSEMBLE
from finsent.study.selection import (
    CHOSEN,
    SELECTION,
    Tried,
    grid_sizes,
    read_selection,
    validates,
    variants,
)
from finsent.study.summary import REFERENCES, SIGNIFICANCE
from finsent.study.views import (
    Entry,
    classical_rows,
    place_name,
    published,
    regime_key,
    study_names,
)


def score_cells(row: Entry) -> list[str]:
    return [
        f"{percent(row['accuracy'])} ± {percent(row['accuracy_sd'])}",
        percent(row["macro_f1"]),
        f"{row['nll']:.4f}",
        percent(row["ece"]),
    ]


def cost_cells(row: Entry) -> list[str]:
    kept = f"{row['dendrites']:.1f}" if row["arm"] == "dendritic" else NONE
    return [count(row["trainable_params"]), seconds(row["train_seconds"]), kept]


def context_lines(evidence: Evidence, name: str, place: tuple[str, str]) -> list[str]:
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
                [[r["regime"], r["recipe"], *score_cells(r), *cost_cells(r)[:2]] for r in rows],
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


def growth_lines(board: Mapping[str, Any]) -> str:
    lines = [
        f"- {arm['dataset']}, {arm['backbone']}: {arm['dendrites_max']} dendrites kept at most; "
        f"validation NLL below the baseline's in {arm['growth_paid_on_validation']} of "
        f"{len(arm['seeds'])} seeds."
        for arm in board["arms"]
        if arm["arm"] == "dendritic" and arm["growth_paid_on_validation"] is not None
    ]
    return "\n".join(lines)


def latencies_lines(board: Mapping[str, Any]) -> list[str]:
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


def variants_lines(name: str, evidence: Evidence, out: Path) -> list[str]:
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


def regimes_lines(name: str, evidence: Evidence, out: Path) -> list[str]:
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


def protocol_lines(evidence: Evidence) -> list[str]:
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


def commands_lines(evidence: Evidence) -> list[str]:
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
