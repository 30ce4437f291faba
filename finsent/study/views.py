"""Order, names and sentences of a study's rows and comparisons, as the report and the app use them.

Input are the rows and comparisons of summary.json; nothing is computed anew but counts.
"""

from __future__ import annotations

import re
import statistics
import tomllib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finsent.data.folds import FOLDS
from finsent.results.metrics import SIGNIFICANCE, errors_bound
from finsent.results.references import Reference, references
from finsent.results.text import percent
from finsent.study.comparisons import REFERENCES, is_unequal
from finsent.study.rows import CLASSICAL, ENSEMBLE
from finsent.study.selection import recipe_key, validates

Entry = Mapping[str, Any]
Summary = Mapping[str, Any]

ARM_ORDER = ("baseline", "restart", "matched", "dendritic", ENSEMBLE, CLASSICAL)
OUTCOMES = ("better", "worse", "tied")
_WORDS = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
TITLES: Mapping[str, str] = _WORDS["studies"]
QUESTIONS: Mapping[str, str] = _WORDS["questions"]
ARM_RULES: Mapping[str, str] = _WORDS["arms"]
RULES: tuple[str, ...] = tuple(_WORDS["rules"].values())
"""What regimes and recipes are, a paragraph each."""
ONE_SPLIT = "its authors'"
"""Protocol of published results that a study with a single test part repeats."""

_REGIME = re.compile(r"(?:full|pca-(?P<components>\d+))?-?(?:data-(?P<percent>\d+))?")


def regime_key(name: str) -> tuple[Any, ...]:
    """Sort key: everything first, then fewer features, then less data, then both, then others by
    the numbers in their names."""
    match = _REGIME.fullmatch(name)
    if match is None:
        parts = re.findall(r"(\D*)(\d*)", name)
        return (4, 0, 0, tuple((text, int(number or 0)) for text, number in parts))
    components, percent = match["components"], match["percent"]
    kind = 2 * (percent is not None) + (components is not None)
    return (kind, -int(components or 0), -int(percent or 0))


def row_key(row: Entry) -> tuple[Any, ...]:
    """Sort key of rows of one place: regime, baseline first, recipe, arm."""
    arm = row["arm"]
    order = ARM_ORDER.index(arm) if arm in ARM_ORDER else len(ARM_ORDER)
    return (regime_key(row["regime"]), arm != "baseline", recipe_key(row["recipe"]), order)


def comparison_key(comparison: Entry) -> tuple[Any, ...]:
    """Sort key of comparisons of one place: regime, recipe, arm compared with."""
    order = REFERENCES.index(comparison["a"])
    return (regime_key(comparison["regime"]), recipe_key(comparison["recipe"]), order)


def places(summary: Summary) -> list[tuple[str, str]]:
    """(data set trained on, data set tested on) of every trained row, in the file's order."""
    return list(
        dict.fromkeys(
            (row["dataset"], row["test_dataset"])
            for row in summary["rows"]
            if row["arm"] != CLASSICAL
        )
    )


def rows_of(summary: Summary, place: tuple[str, str]) -> list[Entry]:
    """Rows trained and tested there, in order, without classical ones."""
    return sorted(
        (row for row in summary["rows"] if _at(row, place) and row["arm"] != CLASSICAL),
        key=row_key,
    )


def comparisons_of(summary: Summary, place: tuple[str, str]) -> list[Entry]:
    """Comparisons of arms trained and tested there, in order."""
    return sorted((c for c in summary["comparisons"] if _at(c, place)), key=comparison_key)


def classical_rows(
    summaries: Mapping[str, Summary],
    study: str,
    place: tuple[str, str],
    regimes: Container[str] | None = None,
) -> list[Entry]:
    """Rows of classical classifiers on as many folds as the study's, by regime, the most accurate
    first. regimes: only these (None: all)."""
    folds = _folds(summaries[study], place)
    found = [
        row
        for summary in summaries.values()
        for row in summary["rows"]
        if row["arm"] == CLASSICAL and _at(row, place) and row["folds"] in folds
        if regimes is None or row["regime"] in regimes
    ]
    return sorted(found, key=lambda row: (regime_key(row["regime"]), -row["accuracy"]))


def published(summary: Summary, place: tuple[str, str]) -> list[Reference]:
    """Published results on the data set under the study's protocol: as many folds, or the split
    that FinBERT's authors made."""
    dataset, tested = place
    folds = _folds(summary, place)
    split = ONE_SPLIT if folds == {1} else f"{FOLDS}-fold" if FOLDS in folds else None
    return [
        reference
        for reference in references()
        if dataset == tested == reference.dataset and reference.split == split
    ]


def _folds(summary: Summary, place: tuple[str, str]) -> set[int]:
    return {row["folds"] for row in rows_of(summary, place)}


def study_names(summaries: Mapping[str, Summary]) -> list[str]:
    """Names of the studies that trained arms, in their order."""
    return sorted((name for name, summary in summaries.items() if places(summary)), key=study_key)


def study_key(name: str) -> tuple[int, str]:
    """Sort key: the order of words.toml, then the studies that it does not name."""
    order = list(TITLES)
    return (order.index(name) if name in order else len(order), name)


def study_title(name: str) -> str:
    """What a study is about."""
    return TITLES.get(name, f"Study {name}")


def question(name: str) -> str:
    """What a study asks, in a sentence; its title where it was given none."""
    return QUESTIONS.get(name, study_title(name))


def whole_data(rows: Sequence[Entry]) -> list[Entry]:
    """Rows whose regime used as many training examples as any."""
    most = max((row["n_train"] for row in rows), default=0)
    # Training parts differ by a few sentences with how twin groups fall.
    return [row for row in rows if row["n_train"] > 0.95 * most]


def front(rows: Sequence[Entry]) -> list[Entry]:
    """Rows that no other beats in parameters or accuracy while equal in the other, smallest
    first."""
    best, found = -1.0, []
    for row in sorted(rows, key=lambda row: (row["trainable_params"], -row["accuracy"])):
        if row["accuracy"] > best:
            best = row["accuracy"]
            found.append(row)
    return found


def place_name(place: tuple[str, str]) -> str:
    """`allagree`, or `trained on 50agree, tested on allagree`."""
    dataset, tested = place
    return dataset if dataset == tested else f"trained on {dataset}, tested on {tested}"


# ------------------------------------------------------------------------------------------- words


def answer(comparisons: Sequence[Entry]) -> list[str]:
    """What was found, in sentences: against every reference arm, and against all of them at once.

    Empty without comparisons.
    """
    found = [
        _against(reference, [c for c in comparisons if c["a"] == reference])
        for reference in REFERENCES
        if any(c["a"] == reference for c in comparisons)
    ]
    against_all = _against_all(comparisons)
    return [against_all, *found] if against_all else found


def chosen(rows: Sequence[Entry]) -> list[str]:
    """Of a study's rows, for each data set tested on: which one validation chooses, and what it
    scored, in a sentence.

    The highest mean validation accuracy counts, then the lowest validation NLL. Where runs were
    trained on the validation part as well, it is that of all members.
    """
    found = []
    for best, here in _best(rows):
        if best["validation_accuracy"] is not None:
            share = percent(best["validation_accuracy"])
            why = f"validation accuracy is highest ({share} %) for"
        else:
            why = (
                "no setting was chosen, because runs were trained on validation too; the ensemble "
                "of all members is"
            )
        found.append(
            f"{place_name((best['dataset'], best['test_dataset']))}: {why} `{best['arm']}` with "
            f"`{best['recipe']}` in `{best['regime']}`; it has {percent(best['accuracy'])} % "
            f"accuracy and {percent(best['macro_f1'])} % macro-F1 on test ({best['folds']} folds)"
            f"{_alone(best, here)}."
        )
    return found


def _best(rows: Sequence[Entry]) -> list[tuple[Entry, list[Entry]]]:
    """For each data set tested on, the row that validation chooses and all rows beside it."""
    found = []
    for tested in dict.fromkeys(row["test_dataset"] for row in rows):
        here = [row for row in rows if row["test_dataset"] == tested]
        validated = [row for row in here if row["validation_accuracy"] is not None]
        best = (
            min(validated, key=validates)
            if validated
            else max(here, key=lambda row: row["trainable_params"])
        )
        found.append((best, here))
    return found


def short_answer(summary: Summary, titles: Callable[[str], str]) -> str:
    """A study's answer in one sentence. titles: names a data set for people."""
    comparisons = summary["comparisons"]
    if not comparisons:
        rows = [row for place in places(summary) for row in rows_of(summary, place)]
        scores = []
        for best, _ in _best(rows):
            trained, tested = titles(best["dataset"]), titles(best["test_dataset"])
            where = tested if trained == tested else f"{tested} (trained on {trained})"
            scores.append(f"{percent(best['accuracy'], 1)} % on {where}")
        return f"Accuracy {', '.join(scores)}."
    settings = settings_of(comparisons)
    total = f"{len(settings)} setting{'s' * (len(settings) > 1)}"
    won = sum(all(c["outcome"] == "better" for c in found) for found in settings)
    some = sum(any(c["outcome"] == "better" for c in found) for found in settings)
    lost = sum(any(c["outcome"] == "worse" for c in found) for found in settings)
    worse = f", and are worse than a control in {lost}" if lost else ""
    if won:
        return f"In part: dendrites beat every control in {won} of {total}{worse}."
    if some:
        return (
            f"No: dendrites beat some control in {some} of {total}, every control in none{worse}."
        )
    if lost:
        return f"No: dendrites beat no control in {total}{worse}."
    bounds = [
        c["errors_removed_ci_pct"][1] for c in comparisons if c["errors_removed_ci_pct"] is not None
    ]
    if not bounds:
        return f"No difference found in {total}."
    which = "in half of them" if len(settings) > 1 else "there"
    return (
        f"No difference found in {total}; {which}, by the 95 % interval, dendrites make "
        f"{errors_bound(statistics.median(bounds))} errors."
    )


def _alone(row: Entry, beside: Sequence[Entry]) -> str:
    """What a single run of an ensemble scores: what single runs published elsewhere compare with.
    Of an ensemble over several regimes, the lowest and the highest of their means."""
    if row["arm"] != ENSEMBLE:
        return ""
    wanted = ("baseline", row["dataset"], row["recipe"])
    singles = [r for r in beside if (r["arm"], r["dataset"], r["recipe"]) == wanted]
    same = [r for r in singles if r["regime"] == row["regime"]] or singles
    if not same:
        return ""
    accuracy, macro_f1 = (
        " to ".join(dict.fromkeys(percent(pick(r[name] for r in same)) for pick in (min, max)))
        for name in ("accuracy", "macro_f1")
    )
    return f"; a single run of them: {accuracy} % accuracy, {macro_f1} % macro-F1"


def lora_verdicts(board: Mapping[str, Any]) -> list[str]:
    """Sentences of leaderboard.json on the dendritic arm, one for each of its controls."""
    return [
        f"{pair['dataset']}, {pair['backbone']}: {pair['verdict']}."
        for pair in board["comparisons"]
        if "dendritic" in (pair["a"], pair["b"])
    ]


def _against(reference: str, comparisons: Sequence[Entry]) -> str:
    better, worse, tied = (
        [c for c in comparisons if c["outcome"] == outcome] for outcome in OUTCOMES
    )
    total = len(comparisons)
    parts = [f"dendrites removed errors in {_of(len(better), total)}{_listed(better)}"]
    if worse:
        parts.append(f"added errors in {len(worse)}{_listed(worse)}")
    if tied:
        parts.append(f"showed no difference in {len(tied)}")
    won = {_regime(c) for c in better}
    never = [c for c in comparisons if _regime(c) not in won]
    nowhere = (
        f" No recipe removed errors in{_listed(never, recipes=False)}." if won and never else ""
    )
    lower, higher = by_nll(comparisons)
    return (
        f"Against `{reference}`: {_joined(parts)}.{_excluded(tied)}{nowhere}{_sizes(comparisons)} "
        f"Test loss was significantly lower in {lower} and significantly higher in {higher}."
    )


def _excluded(tied: Sequence[Entry]) -> str:
    """What ties leave possible: the median bound and the widest."""
    bounds = sorted(
        c["errors_removed_ci_pct"][1] for c in tied if c["errors_removed_ci_pct"] is not None
    )
    if not bounds:
        return ""
    if len(bounds) == 1:
        return f" 95 % bound of this tie: {errors_bound(bounds[0])} errors."
    return (
        f" 95 % bounds of these ties: {errors_bound(statistics.median(bounds))} errors in the "
        f"median one, {errors_bound(bounds[-1])} in the widest."
    )


def _sizes(comparisons: Sequence[Entry]) -> str:
    """In how many settings the control of equal size is not of equal size."""
    unequal = [c for c in comparisons if is_unequal(c)]
    if not unequal:
        return ""
    ratios = [100 * (c["params_ratio"] - 1) for c in unequal]
    span = " to ".join(dict.fromkeys(f"{pick(ratios):+.0f}" for pick in (min, max)))
    return (
        f" `matched` is not equal in size in {len(unequal)} of {len(comparisons)} settings: it has "
        f"{span} % parameters there, over 10 % off in {sum(abs(ratio) > 10 for ratio in ratios)}."
    )


def _regime(comparison: Entry) -> tuple[str, str, str]:
    return (comparison["dataset"], comparison["test_dataset"], comparison["regime"])


def by_nll(comparisons: Sequence[Entry]) -> tuple[int, int]:
    """In how many comparisons test loss is significantly lower, and in how many higher."""
    tests = [c["metrics"]["nll"] for c in comparisons]
    sure = [test["mean"] for test in tests if test["p_holm"] < SIGNIFICANCE]
    return sum(mean < 0 for mean in sure), sum(mean > 0 for mean in sure)


def _against_all(comparisons: Sequence[Entry]) -> str:
    """Removing the baseline's errors is not enough: a restart or any added layer might as well."""
    complete = [f for f in settings_of(comparisons) if {c["a"] for c in f} == set(REFERENCES)]
    if not complete:
        return ""
    won = [found[0] for found in complete if all(c["outcome"] == "better" for c in found)]
    return (
        "Dendrites beat all three controls "
        f"({_joined([f'`{name}`' for name in REFERENCES])}) in {_of(len(won), len(complete))}"
        f"{_listed(won)}."
    )


def settings_of(comparisons: Sequence[Entry]) -> list[list[Entry]]:
    """Comparisons of the same dendritic runs, with each of their controls."""
    found: dict[tuple[Any, ...], list[Entry]] = {}
    for c in comparisons:
        key = (c["dataset"], c["test_dataset"], c["regime"], c["recipe"])
        found.setdefault(key, []).append(c)
    return list(found.values())


def _of(number: int, total: int) -> str:
    return f"{number} of {total} setting{'s' * (total > 1)}"


def _listed(comparisons: Iterable[Entry], *, recipes: bool = True) -> str:
    """` (allagree: pca-32 with refined-3, refined-8; data-10 with refined-3)`, or nothing."""
    grouped: dict[str, dict[str, list[str]]] = {}
    for c in comparisons:
        place = place_name((c["dataset"], c["test_dataset"]))
        grouped.setdefault(place, {}).setdefault(c["regime"], []).append(c["recipe"])
    texts = []
    for place, regimes in grouped.items():
        names = sorted(regimes, key=regime_key)
        if recipes:
            named = [f"{n} with {', '.join(sorted(regimes[n], key=recipe_key))}" for n in names]
            texts.append(f"{place}: {'; '.join(named)}")
        else:
            texts.append(f"{place}: {', '.join(names)}")
    if not texts:
        return ""
    listed = " | ".join(texts)
    return f" ({listed})" if recipes else f" {listed}"


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _at(entry: Entry, place: tuple[str, str]) -> bool:
    return (entry["dataset"], entry["test_dataset"]) == place
