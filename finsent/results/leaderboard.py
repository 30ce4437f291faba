"""The leaderboard: everything the app and the figures show, computed from the runs' files alone.

`build` is a pure function of the tree, so that a committed leaderboard.json can be checked by
building it again. Numbers are rounded to nine significant digits: sums may differ in the last bit
between processors, and the file must not.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

from finsent.data.agreement import BANDS, agreement_levels
from finsent.results.comparison import Comparison, compare, paired_p_value
from finsent.results.external.rows import against_ours, honesty
from finsent.results.external.runs import find_external, fold_means, read_folds
from finsent.results.metrics import (
    RELIABILITY_BINS,
    SIGNIFICANCE,
    SOURCE_METRICS,
    EvaluationError,
    holm,
    pooled_intervals,
    reliability,
    score,
)
from finsent.results.references import references
from finsent.results.runs import (
    LEADERBOARD,
    Predictions,
    Run,
    find_runs,
    rounded,
    write_json,
)
from finsent.results.schema import PER_SOURCE

ARM_ORDER = ("baseline", "matched", "dendritic")
"""In a comparison the later arm is measured against the earlier one."""

ROW_METRICS = (
    "accuracy",
    "macro_f1",
    "weighted_f1",
    "nll",
    "ece",
    "n_test",
    "trainable_params",
    "dendrites",
    "optimizer_steps",
    "epochs",
    "train_seconds",
    "peak_memory_mb",
    "latency_ms_p50",
    "latency_ms_p95",
    "latency_protocol",
    "best_epoch",
    "dendrites_requested",
    "ci",
    "per_class",
    "confusion",
)
"""Keys of metrics.json that a row repeats."""

AGGREGATED = (
    "accuracy",
    "macro_f1",
    "weighted_f1",
    "nll",
    "ece",
    "trainable_params",
    "train_seconds",
    "latency_ms_p50",
    "latency_ms_p95",
    "peak_memory_mb",
)
"""Metrics of which an arm shows the mean and standard deviation over seeds; null where a
seed lacks it."""

PROTOCOL = "70/15/15, grouped"
"""How this project splits: stratified, template twins on one side, drawn anew for every seed."""

METHOD = {
    "ci": "95 % percentile bootstrap over test examples, 2000 resamples; an arm's interval pools "
    "its seeds and draws a sentence in all of them at once",
    "sd": "sample standard deviation over seeds (null with one seed)",
    "p_value": "exact two-sided sign-flip test of accuracy, paired by sentence and clustered over "
    "seeds; with one seed it is the exact McNemar test",
    "tie_group": "arms are ordered by mean accuracy; an arm shares the rank of its group's leader "
    f"unless the paired test tells them apart (p < {SIGNIFICANCE})",
    "standing": "the same over all models tested on a data set, whatever their backbone, on the "
    "seeds that two of them share",
    "p_holm": "p_value after Holm's correction over all comparisons of the same two arms",
    "errors_removed": "errors that the later arm has fewer, as a share of the earlier arm's "
    "errors; the interval comes from the same bootstrap draws",
    "reliability": f"top probability in {RELIABILITY_BINS} equal-width bins, seeds pooled",
    "by_agreement": "scores of the test sentences of one agreement band, mean over seeds; bands as "
    "in finsent/data/agreement.csv, each sentence in its strictest one",
    "against": "an entrant against the arm of each backbone that answers on the page, on the test "
    "sentences of the seeds that both have; the same tests as between arms",
    "folds": "mean over ten grouped folds of all sentences, for entrants that were tested so",
    "trained_on_data": "whether the model was trained on sentences of this data set: yes, no or "
    "unknown; may_have_seen_test: on those of the test part",
    "tested": "here: by this project's commands; self-reported: predictions that somebody sent",
    "references": "measured under the protocol stated; not comparable across protocols",
}

Predicted = dict[tuple[str, int], Predictions]
Model = tuple[str, str, str]
"""Backbone, data set and arm."""


def build(root: Path | str) -> dict[str, Any]:
    """The leaderboard of the runs below root.

    Returns rows (one a run), arms (aggregated over seeds, ranked within backbone and data set),
    comparisons (pairs of arms on their common seeds), against (models that were not trained here,
    each compared with ours), references and method. Such a model is a row and an arm like any
    other, with its name as the backbone.

    Raises ArtifactError for a damaged run, EvaluationError for arms that do not pair up.
    """
    root = Path(root)
    rows: list[dict[str, Any]] = []
    arms: list[dict[str, Any]] = []
    comparisons: list[dict[str, Any]] = []
    answers: dict[Model, dict[int, Predictions]] = {}
    found: list[list[Run]] = []
    for (backbone, dataset), members in groupby(
        [*find_runs(root), *find_external(root)], key=lambda run: (run.backbone, run.dataset)
    ):
        runs = sorted(members, key=lambda run: (_arm_position(run.arm), run.arm, run.seed))
        rows += [_row(run, root, baseline_of(run, runs)) for run in runs]
        predicted = {(run.arm, run.seed): run.read_predictions() for run in runs}
        for (arm, seed), predictions in predicted.items():
            answers.setdefault((backbone, dataset, arm), {})[seed] = predictions
        place = {"backbone": backbone, "dataset": dataset}
        pairs = _compare_all(runs, predicted)
        comparisons += [{**place, **pair.to_dict()} for pair in pairs]
        by_arm = [list(same) for _, same in groupby(runs, key=lambda run: run.arm)]
        found += by_arm
        arms += _ranked(
            [{**place, **_arm(same, runs, predicted)} for same in by_arm],
            partial(_told_apart, pairs),
            ("rank", "tie_group"),
        )
    board: dict[str, Any] = rounded(
        {
            "rows": rows,
            "arms": _standing(arms, answers),
            "comparisons": corrected(comparisons),
            "against": against_ours(found),
            "references": [reference.to_dict() for reference in references()],
            "method": METHOD,
        }
    )
    return board


def write(root: Path | str) -> Path:
    """Builds and writes root/leaderboard.json; refresh the manifest afterwards."""
    path = Path(root) / LEADERBOARD
    write_json(path, build(root))
    return path


def baseline_of(run: Run, runs: Iterable[Run]) -> Run | None:
    """The baseline of the same seed among runs of one backbone and data set."""
    return next((r for r in runs if r.arm == "baseline" and r.seed == run.seed), None)


def growth(run: Run, baseline: Run | None) -> dict[str, Any] | None:
    """What growing did in a dendritic run (None for the other arms).

    grown: a dendrite was kept. epoch: the zero-based epoch at whose end the first one was grown.
    val_nll_before: of the best state before growth; val_nll_after: of the selected state.
    improved_after_growth: after < before, which further epochs alone may bring about.
    paid_on_validation: after < the selected state of the same seed's baseline, which had the same
    budget (each None where a side is missing). logit_share: mean absolute share of the dendrites
    in the logits on validation.
    """
    metrics = run.metrics
    if not metrics["dendrites_requested"]:
        return None
    epochs = growth_epochs(run.history)
    grown = metrics["dendrites"] > 0
    before = metrics["best_before_growth"]
    nll_before = before["nll"] if before is not None else None
    nll_after = metrics["validation"]["nll"] if grown else None
    nll_baseline = None if baseline is None else baseline.metrics["validation"]["nll"]
    return {
        "grown": grown,
        "epoch": epochs[0] if epochs else None,
        "val_nll_before": nll_before,
        "val_nll_after": nll_after,
        "val_nll_baseline": nll_baseline,
        "improved_after_growth": _below(nll_after, nll_before),
        "paid_on_validation": _below(nll_after, nll_baseline),
        "logit_share": metrics["dendrite_logit_share"],
    }


def _below(left: float | None, right: float | None) -> bool | None:
    return None if left is None or right is None else bool(left < right)


def growth_epochs(history: Sequence[Mapping[str, Any]]) -> list[int]:
    """Zero-based epochs at whose end a dendrite was grown."""
    return [line["epoch"] for line in history if (line["event"] or "").startswith("grew")]


def _arm_position(arm: str) -> int:
    return ARM_ORDER.index(arm) if arm in ARM_ORDER else len(ARM_ORDER)


def _row(run: Run, root: Path, baseline: Run | None) -> dict[str, Any]:
    return {
        "backbone": run.backbone,
        "dataset": run.dataset,
        "arm": run.arm,
        "seed": run.seed,
        "protocol": PROTOCOL,
        "folder": run.folder.relative_to(root).as_posix(),
        **{name: run.metrics[name] for name in ROW_METRICS},
        **{name: run.metrics[name] for name in (PER_SOURCE,) if name in run.metrics},
        "precision": run.config.get("config", {}).get("precision"),
        "device": run.config["device"],
        "finished_at": run.config["finished_at"],
        "growth": growth(run, baseline),
        "folds": fold_means(read_folds(run.folder)),
        **honesty(run),
    }


def _arm(runs: Sequence[Run], beside: Sequence[Run], predicted: Predicted) -> dict[str, Any]:
    values = {name: _recorded(runs, name) for name in AGGREGATED}
    predictions = [predicted[run.arm, run.seed] for run in runs]
    dendrites = [run.metrics["dendrites"] for run in runs]
    grown = [f for run in runs if (f := growth(run, baseline_of(run, beside))) is not None]
    empty = [run.seed for run in runs if _promised_but_empty(run)]
    return {
        "arm": runs[0].arm,
        "protocol": PROTOCOL,
        "seeds": [run.seed for run in runs],
        "n_test": sum(run.metrics["n_test"] for run in runs),
        "mean": {name: statistics.fmean(v) if v else None for name, v in values.items()},
        "sd": {name: statistics.stdev(v) if len(v) > 1 else None for name, v in values.items()},
        "ci": pooled_intervals(predictions),
        "per_class": _per_class(runs),
        **_per_source(runs),
        "confusion": _summed([run.metrics["confusion"] for run in runs]),
        "reliability": _reliability(predictions),
        "by_agreement": _by_agreement(predictions),
        "latency_protocol": sorted({run.metrics["latency_protocol"] for run in runs}),
        "dendrites_min": min(dendrites),
        "dendrites_max": max(dendrites),
        "seeds_without_dendrites": empty,
        "growth_paid_on_validation": sum(facts["paid_on_validation"] is True for facts in grown)
        if grown
        else None,
        "folds": fold_means(read_folds(runs[0].folder)),
        **honesty(runs[-1]),
    }


def _recorded(runs: Sequence[Run], metric: str) -> list[float]:
    """One number a seed, or none at all: a mean over some of the seeds would mislead."""
    found = [run.metrics[metric] for run in runs]
    return [] if None in found else [float(value) for value in found]


def _per_class(runs: Sequence[Run]) -> dict[str, Any]:
    """Mean over seeds of each class's precision, recall and F1; support summed over seeds."""
    per_class: dict[str, Any] = {}
    for name in runs[0].label_names:
        entries = [run.metrics["per_class"][name] for run in runs]
        f1 = [entry["f1"] for entry in entries]
        per_class[name] = {
            **{
                key: statistics.fmean(entry[key] for entry in entries)
                for key in ("precision", "recall", "f1")
            },
            "f1_sd": statistics.stdev(f1) if len(f1) > 1 else None,
            "support": sum(entry["support"] for entry in entries),
        }
    return per_class


def _per_source(runs: Sequence[Run]) -> dict[str, Any]:
    """`per_source`, where the data set is made of several.

    It holds the mean over seeds of each source's scores, their standard deviation, and n summed
    over seeds. A seed without a source's scores is not averaged over: that source then has none.
    """
    tables = [run.metrics[PER_SOURCE] for run in runs if PER_SOURCE in run.metrics]
    if not tables or len(tables) < len(runs):
        return {}
    found = {}
    for source in tables[0]:
        entries = [table[source] for table in tables if source in table]
        if len(entries) == len(runs):
            values = {name: [e[name] for e in entries] for name in SOURCE_METRICS}
            found[source] = {
                "n": sum(e["n"] for e in entries),
                "mean": {name: statistics.fmean(v) for name, v in values.items()},
                "sd": {
                    name: statistics.stdev(v) if len(v) > 1 else None for name, v in values.items()
                },
            }
    return {PER_SOURCE: found}


def _summed(tables: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
    return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)]


def _reliability(predictions: Sequence[Predictions]) -> list[dict[str, float | int]]:
    labels = [label for run in predictions for label in run.label_indices]
    return reliability(labels, [row for run in predictions for row in run.probabilities])


def _by_agreement(predictions: Sequence[Predictions]) -> list[dict[str, Any]]:
    """Scores by agreement band, strictest first; empty for a data set without annotators."""
    levels = agreement_levels()
    found = []
    for band in BANDS:
        members = {i for run in predictions for i in run.ids if levels.get(i) == band}
        parts = [part for run in predictions if (part := run.only(members)) is not None]
        if parts:
            scores = [score(p.label_indices, p.probabilities, p.label_names) for p in parts]
            found.append(
                {
                    "level": band,
                    "n_test": sum(len(part) for part in parts),
                    "accuracy": statistics.fmean(entry["accuracy"] for entry in scores),
                    "macro_f1": statistics.fmean(entry["macro_f1"] for entry in scores),
                    "ci": pooled_intervals(parts),
                }
            )
    return found


def _promised_but_empty(run: Run) -> bool:
    return bool(run.metrics["dendrites_requested"]) and run.metrics["dendrites"] == 0


def _compare_all(runs: Sequence[Run], predicted: Predicted) -> list[Comparison]:
    seeds_of: dict[str, list[int]] = {}
    for run in runs:
        seeds_of.setdefault(run.arm, []).append(run.seed)
    empty = {(run.arm, run.seed) for run in runs if _promised_but_empty(run)}
    comparisons = []
    for a, b in combinations(seeds_of, 2):
        seeds = sorted(set(seeds_of[a]) & set(seeds_of[b]))
        if seeds:
            comparisons.append(
                compare(
                    [predicted[a, seed] for seed in seeds],
                    [predicted[b, seed] for seed in seeds],
                    names=(a, b),
                    seeds=seeds,
                    seeds_without_dendrites=[
                        seed for seed in seeds if (a, seed) in empty or (b, seed) in empty
                    ],
                )
            )
    return comparisons


def corrected(comparisons: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds p_holm: every two arms ask one question, on all data sets and backbones together."""
    families: dict[tuple[str, str], dict[int, float]] = {}
    for number, pair in enumerate(comparisons):
        families.setdefault((pair["a"], pair["b"]), {})[number] = pair["p_value"]
    adjusted = {number: p for family in families.values() for number, p in holm(family).items()}
    return [{**pair, "p_holm": adjusted[number]} for number, pair in enumerate(comparisons)]


def _standing(
    arms: Sequence[dict[str, Any]], answers: Mapping[Model, Mapping[int, Predictions]]
) -> list[dict[str, Any]]:
    """Adds standing and standing_group: rank and tie group among all models of a data set."""

    def apart(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
        left, right = (
            answers[entry["backbone"], entry["dataset"], entry["arm"]] for entry in (a, b)
        )
        seeds = sorted(set(left) & set(right))
        try:
            pairs = [[answered[seed] for seed in seeds] for answered in (left, right)]
            return bool(seeds) and paired_p_value(*pairs) < SIGNIFICANCE
        except EvaluationError:
            # Tested on other sentences: nothing tells them apart.
            return False

    found = {}
    for dataset in dict.fromkeys(arm["dataset"] for arm in arms):
        here = [arm for arm in arms if arm["dataset"] == dataset]
        for arm in _ranked(here, apart, ("standing", "standing_group")):
            found[arm["backbone"], dataset, arm["arm"]] = arm
    return [found[arm["backbone"], arm["dataset"], arm["arm"]] for arm in arms]


def _told_apart(pairs: Sequence[Comparison], a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return any({pair.a, pair.b} == {a["arm"], b["arm"]} for pair in pairs if pair.outcome != "tied")


def _ranked(
    arms: Sequence[dict[str, Any]],
    apart: Callable[[dict[str, Any], dict[str, Any]], bool],
    names: tuple[str, str],
) -> list[dict[str, Any]]:
    """Arms with their rank and tie group under these names, best first.

    An arm never tested against a leader is not shown to be worse: it stays in the leader's group.
    """
    waiting = sorted(arms, key=lambda arm: (-arm["mean"]["accuracy"], arm["mean"]["nll"]))
    ranked: list[dict[str, Any]] = []
    group = 0
    while waiting:
        leader, group, rank = waiting[0], group + 1, len(ranked) + 1
        tied = [arm for arm in waiting if arm is leader or not apart(leader, arm)]
        ranked += [{**arm, names[0]: rank, names[1]: group} for arm in tied]
        waiting = [arm for arm in waiting if not any(arm is other for other in tied)]
    return ranked


HONESTY = ("tested", "trained_on_data", "may_have_seen_test", "licence", "revision", "date")
_IDENTITY = (
    "backbone", "dataset", "protocol", "arm", "seeds", "rank", "tie_group", "standing",
    "standing_group", "n_test", *HONESTY,
)  # fmt: skip


def arms_csv(arms: Sequence[Mapping[str, Any]]) -> str:
    """One line an arm (an entry of leaderboard.json's `arms`), in the order given.

    Columns: what the arm is, then for each metric its mean, standard deviation over seeds
    (`_sd`) and, where there is one, 95 % interval (`_low`, `_high`). Shares are in 0..1, times in
    the unit of their name; a missing value is an empty cell.
    """
    metrics = list(dict.fromkeys(name for arm in arms for name in arm["mean"]))
    intervals = {name for arm in arms for name in arm["ci"]}
    header = [*_IDENTITY, "dendrites_min", "dendrites_max"]
    for name in metrics:
        header += [name, f"{name}_sd"]
        if name in intervals:
            header += [f"{name}_low", f"{name}_high"]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, header, lineterminator="\n", restval="")
    writer.writeheader()
    for arm in arms:
        line = {name: arm.get(name, "") for name in _IDENTITY}
        line["seeds"] = " ".join(map(str, arm["seeds"]))
        line["dendrites_min"], line["dendrites_max"] = arm["dendrites_min"], arm["dendrites_max"]
        for name in metrics:
            line[name], line[f"{name}_sd"] = arm["mean"].get(name), arm["sd"].get(name)
            if name in arm["ci"]:
                line[f"{name}_low"], line[f"{name}_high"] = arm["ci"][name]
        writer.writerow(line)
    return buffer.getvalue()
