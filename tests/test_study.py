"""Folds, statistics, the study's file, and the runner that fills it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp

import train_models
from finsent.data.folds import FOLDS, FRACTIONS, grouped_folds, smaller
from finsent.data.records import DataError
from finsent.data.registry import Dataset, load_dataset
from finsent.results.manifest import write_manifest
from finsent.results.metrics import holm
from finsent.results.runs import read_json
from finsent.study.fold_tests import corrected_paired_test, errors_removed_pct
from finsent.study.head_recipe import HeadRecipe
from finsent.study.heads import classical
from finsent.study.heads import runner as head_runner
from finsent.study.heads.features import Features, frozen_features
from finsent.study.heads.runner import HeadStudyRunner
from finsent.study.plans import HEADS, STUDIES, HeadStudy, Regime
from finsent.study.rows import COLUMNS, RESULTS, StudyError, StudyRun, append_runs, read_runs
from finsent.study.selection import CHOSEN, SELECTION
from finsent.study.summary import read_summaries, summarize, write_summary
from finsent.verification import verify

SMALL = HeadStudy(
    name="small",
    datasets=("sample",),
    regimes=(Regime("full"), Regime("data-50", fraction=0.5, settings_of="full")),
    recipes=MappingProxyType({"random-1": HeadRecipe(candidates="random", epochs=4)}),
    variants=MappingProxyType({"random-1, tanh": HeadRecipe(activation="tanh", epochs=4)}),
    variant_regimes=("full",),
    features=("last-1", "mean-1"),
    learning_rates=(0.01,),
    weight_decays=(0.0, 0.1),
    backbone="tiny-phi",
    folds=4,
    seeds=(0, 1),
)


def run_of(**changes: object) -> StudyRun:
    values: dict[str, object] = {
        name: {"str": "x", "int": 0, "float": 0.5}[kind]
        for name, kind in StudyRun.__annotations__.items()
    }
    values |= {"dataset": "allagree", "test_dataset": "allagree", "regime": "full"}
    values |= {"n_train": 800, "n_test": 100, "trainable_params": 10}
    return StudyRun(**(values | changes))  # type: ignore[arg-type]


def runs_of(arm: str, recipe: str, accuracies: list[float]) -> list[StudyRun]:
    return [
        run_of(arm=arm, recipe=recipe, fold=i % 10, seed=i // 10, accuracy=accuracy)
        for i, accuracy in enumerate(accuracies)
    ]


# -------------------------------------------------------------------------------------------- folds


@pytest.fixture(scope="module")
def sample() -> Dataset:
    return load_dataset("sample")


def test_every_sentence_is_tested_once_and_twins_stay_together(sample: Dataset) -> None:
    folds = list(grouped_folds(sample, 3))
    tested = Counter(i for fold in folds for i in fold.test.tolist())
    assert tested == Counter(range(len(sample.examples)))
    groups = np.array([example.group for example in sample.examples])
    for fold in folds:
        sides = [set(groups[part].tolist()) for part in (fold.train, fold.validation, fold.test)]
        assert sum(map(len, sides)) == len(set.union(*sides))
        assert sum(map(len, (fold.train, fold.validation, fold.test))) == len(sample.examples)
    assert len(folds) == FOLDS
    again, other = (next(iter(grouped_folds(sample, seed))) for seed in (3, 4))
    assert again.test.tolist() == folds[0].test.tolist()
    assert other.test.tolist() != folds[0].test.tolist()


def test_smaller_training_parts_keep_class_shares(sample: Dataset) -> None:
    fold = next(iter(grouped_folds(sample, 0)))
    labels = np.array([example.label for example in sample.examples])
    whole = np.bincount(labels[fold.train]) / len(fold.train)
    for fraction in FRACTIONS:
        part = smaller(fold, sample, fraction)
        assert abs(len(part.train) - fraction * len(fold.train)) <= 6
        assert set(part.train) <= set(fold.train)
        assert (part.test == fold.test).all()
        shares = np.bincount(labels[part.train], minlength=3) / len(part.train)
        assert np.abs(shares - whole).max() < 0.15
    with pytest.raises(DataError, match=r"must be one of .* got 0.3"):
        smaller(fold, sample, 0.3)


# --------------------------------------------------------------------------------------- statistics


def test_the_corrected_test_is_the_t_test_with_a_wider_error() -> None:
    d = np.random.default_rng(0).normal(0.02, 0.05, 50)
    plain = corrected_paired_test(d, test_share_over_train_share=0.0)
    known = ttest_1samp(d, 0.0)
    assert plain.p_value == pytest.approx(known.pvalue)
    interval = known.confidence_interval()
    assert (plain.low, plain.high) == pytest.approx((interval.low, interval.high))
    wide = corrected_paired_test(d, test_share_over_train_share=1 / 8)
    # sqrt((1/50 + 1/8) / (1/50))
    assert (wide.high - wide.low) / (plain.high - plain.low) == pytest.approx(7.25**0.5)
    assert wide.p_value > plain.p_value
    assert corrected_paired_test([0.0, 0.0], test_share_over_train_share=0.1).p_value == 1.0
    for wrong in ([0.1], [0.1, np.nan], [[0.1, 0.2]]):
        with pytest.raises(ValueError, match="at least two finite numbers"):
            corrected_paired_test(wrong, test_share_over_train_share=0.1)


def test_holm_is_stepwise_and_monotone() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
    assert errors_removed_pct([0.8, 0.9], [0.9, 0.95]) == pytest.approx(50.0)
    assert errors_removed_pct([1.0], [0.9]) is None


# ------------------------------------------------------------------------------------------ results


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "study" / RESULTS
    assert read_runs(path) == []
    written = [run_of(fold=1, accuracy=0.87654321), run_of(fold=2, arm="matched, larger")]
    append_runs(path, written[:1])
    append_runs(path, written[1:])
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert read_runs(path) == [replace(written[0], accuracy=0.876543), written[1]]
    expected = (
        "backbone, dataset, regime, recipe, arm, fold, seed, accuracy, macro_f1, nll, ece, "
        "trainable_params, dendrites, optimizer_steps, train_seconds"
    )
    assert ", ".join(COLUMNS[:15]) == expected


def test_damaged_results_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / RESULTS
    append_runs(path, [run_of(fold=1)])
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[1] + "\n")
    with pytest.raises(StudyError, match="line 3: this run is there twice"):
        read_runs(path)
    path.write_text(whole[:-20])
    with pytest.raises(StudyError, match="line 2: .* remove the line"):
        read_runs(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(StudyError, match="of another version"):
        read_runs(path)


# ------------------------------------------------------------------------------------------ summary


def test_the_summary_says_what_survives_correction() -> None:
    noise = np.random.default_rng(1).normal(0, 0.01, 50)
    base = (0.80 + noise).tolist()
    runs = runs_of("baseline", "linear", base)
    for recipe, gain in (("good", 0.05), ("idle", 0.0), ("bad", -0.05)):
        other = np.random.default_rng(2).normal(gain, 0.01, 50)
        runs += runs_of("dendritic", recipe, (np.array(base) + other).tolist())
        runs += runs_of("matched", recipe, base)
    summary = summarize(runs)
    found = {(c["recipe"], c["a"]): c for c in summary["comparisons"]}
    assert {key: c["outcome"] for key, c in found.items()} == {
        (recipe, a): outcome
        for recipe, outcome in (("good", "better"), ("idle", "tied"), ("bad", "worse"))
        for a in ("baseline", "matched")
    }
    good = found["good", "baseline"]
    assert good["errors_removed_pct"] == pytest.approx(25, abs=3)
    test = good["metrics"]["accuracy"]
    assert test["low"] < test["mean"] < test["high"]
    assert test["p_holm"] >= test["p_value"]
    assert "25" in good["verdict"] or "24" in good["verdict"]
    assert "fewer errors; n = 50 runs)" in good["verdict"]
    assert "more errors" in found["bad", "baseline"]["verdict"]
    row = next(r for r in summary["rows"] if r["arm"] == "baseline")
    assert (row["n"], row["folds"], row["seeds"]) == (50, 10, 5)
    assert row["accuracy"] == pytest.approx(np.mean(base))


def test_a_half_finished_study_is_not_summarised() -> None:
    runs = runs_of("baseline", "linear", [0.8] * 20)
    runs += runs_of("dendritic", "good", [0.9] * 19)
    with pytest.raises(StudyError, match="baseline has 20 runs and dendritic 19"):
        summarize(runs)


def test_studies_are_verified_with_everything_else(tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "made-up"
    append_runs(folder / RESULTS, runs_of("baseline", "linear", [0.8, 0.9]))
    with pytest.raises(StudyError, match="holds no runs"):
        write_summary(tmp_path / "studies" / "none")
    write_summary(folder)
    assert list(read_summaries(tmp_path)) == ["made-up"]
    append_runs(folder / RESULTS, [run_of(arm="matched", accuracy=0.1)])
    write_manifest(tmp_path)
    assert any("summary.json: not what results.csv gives" in p for p in verify(tmp_path))
    folder.rename(folder.with_name("heads"))
    command = ["study", "heads", "--summarize", "--artifacts", str(tmp_path)]
    assert train_models.main(command) == 0
    assert not any("summary.json" in problem for problem in verify(tmp_path))
    assert train_models.main([*command, "--select"]) == 2


# ------------------------------------------------------------------------------------------- runner


def made_up_features(backbone: str, dataset: Dataset, **_: object) -> Features:
    """Features that give the label away, one kind of them more than the other."""
    generator = torch.Generator().manual_seed(len(dataset.examples))
    y = torch.tensor([example.label for example in dataset.examples])
    noise = torch.randn(len(y), 8, generator=generator)
    onehot = torch.nn.functional.one_hot(y, 8).float()
    return Features({"last-1": noise + 3 * onehot, "mean-1": noise + 0.1 * onehot})


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HeadStudyRunner:
    monkeypatch.setattr(head_runner, "frozen_features", made_up_features)
    monkeypatch.setattr(head_runner, "SELECTION_FOLDS", 2)
    return HeadStudyRunner(SMALL, tmp_path / "small")


def test_a_study_chooses_then_tests_and_goes_on_where_it_stopped(
    runner: HeadStudyRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StudyError, match="study small --select"):
        runner.run()
    runner.select()
    chosen = read_json(runner.folder / CHOSEN)
    assert {settings["features"] for settings in chosen.values()} == {"last-1"}
    assert not (runner.folder / RESULTS).exists(), "choosing must not test"
    selection = (runner.folder / SELECTION).read_text()
    assert "random-1, tanh" in selection
    results = read_runs(runner.run())
    arms = Counter((run.regime, run.recipe, run.arm) for run in results)
    assert len(arms) == 8
    assert set(arms.values()) == {SMALL.folds * len(SMALL.seeds)}
    whole = [run for run in results if run.regime == "full"]
    assert np.mean([run.accuracy for run in whole]) > 0.65
    assert {run.optimizer_steps for run in whole} == {40}
    assert all(run.dendrites == 0 for run in results if run.arm != "dendritic")
    write_summary(runner.folder)

    # What is there is not made again; what is missing is made, and nothing else.
    lines = (runner.folder / RESULTS).read_text().splitlines(keepends=True)
    (runner.folder / RESULTS).write_text("".join(lines[:-8]))
    calls = []
    train = head_runner.train_heads

    def counted(arm: str, *args: object) -> object:
        calls.append(arm)
        return train(arm, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(head_runner, "train_heads", counted)
    again = HeadStudyRunner(SMALL, runner.folder)
    again.select()
    assert calls == []
    again.run()
    assert calls == ["matched"]
    found = {run.key: run for run in read_runs(runner.folder / RESULTS)}
    for run in results:
        assert replace(found[run.key], train_seconds=0) == replace(run, train_seconds=0)


def test_heads_are_tested_on_other_data_sets_of_the_same_classes(
    runner: HeadStudyRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = replace(
        SMALL,
        name="crossing",
        regimes=(Regime("full", test_datasets=("elsewhere",)),),
        seeds=(0,),
        settings_from="small",
    )
    sample = load_dataset("sample")
    other = replace(sample, name="elsewhere", examples=sample.examples[:50])
    monkeypatch.setattr(
        head_runner, "load_dataset", lambda name, _: other if name == "elsewhere" else sample
    )
    crossing = HeadStudyRunner(study, runner.folder.with_name("crossing"))
    with pytest.raises(StudyError, match="uses the settings of 'small': choose those"):
        crossing.select()
    runner.select()
    results = read_runs(crossing.run())
    away = [run for run in results if run.test_dataset == "elsewhere"]
    assert len(away) == len(results) / 2
    assert {run.n_test for run in away} == {50}
    odd = replace(other, label_names=("a", "b", "c"))
    monkeypatch.setattr(
        head_runner, "load_dataset", lambda name, _: odd if name == "elsewhere" else sample
    )
    (crossing.folder / RESULTS).unlink()
    with pytest.raises(StudyError, match="cannot be tested on the other"):
        HeadStudyRunner(study, crossing.folder).run()


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert train_models.main(["study", "nothing", "--artifacts", str(tmp_path)]) == 2
    assert "unknown study 'nothing'; choose one of heads" in capsys.readouterr().err
    with pytest.raises(StudyError, match="has no regime 'tiny'; it has full"):
        HEADS.regime("tiny")
    with pytest.raises(StudyError, match="fraction must be one of"):
        Regime("odd", fraction=0.2)
    for regime in HEADS.regimes:
        assert HEADS.regime(regime.settings_of or regime.name).settings_of is None
    assert all(name == study.name for name, study in STUDIES.items())


# ------------------------------------------------------------------------ features and classical


def test_features_are_computed_once(tiny_environment: None, tmp_path: Path) -> None:
    sample = load_dataset("sample")
    few = replace(sample, examples=sample.examples[:6])
    first = frozen_features("tiny-phi", few, cache=tmp_path)
    assert {name: tuple(v.shape) for name, v in first.values.items()} == {
        "last-2": (6, 64),
        "mean-2": (6, 64),
    }
    from finsent.models.backbones import load_backbone

    backbone = load_backbone("tiny-phi", "fp32", torch.device("cpu"))
    ids = backbone.tokenize([few.examples[3].text], 128)
    with torch.no_grad():
        found = backbone.decoder(input_ids=torch.tensor(ids), output_hidden_states=True)
    expected = found.hidden_states[2][0]
    torch.testing.assert_close(first.values["last-2"][3], expected[-1], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(first.values["mean-2"][3], expected.mean(0), atol=2e-3, rtol=2e-3)
    # The cache answers without a model; other sentences are other features.
    missing = tmp_path / "no-model"
    again = frozen_features("tiny-phi", few, cache=tmp_path)
    assert all(torch.equal(again.values[name], first.values[name]) for name in first.values)
    with pytest.raises(RuntimeError, match="no model folder"):
        frozen_features("tiny-phi", sample, folder=missing, cache=tmp_path)


def test_classical_rows_are_measured_on_the_same_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regimes = (Regime("full"), Regime("pca-4", dimensions=4), Regime("data-50", fraction=0.5))
    plan = classical.ClassicalPlan("tiny-phi", regimes, ("sample",), (0,), folds=3)

    def features(*args: object, **options: object) -> Features:
        made = made_up_features(*args)  # type: ignore[arg-type]
        good, bad = made.values["last-1"], made.values["mean-1"]
        return replace(made, values=dict(zip(classical.FEATURES, (bad, good), strict=True)))

    monkeypatch.setattr(classical, "frozen_features", features)
    results = read_runs(classical.run_classical(tmp_path, plan))
    accuracy = {
        recipe: np.mean(
            [run.accuracy for run in results if (run.recipe, run.regime) == (recipe, "full")]
        )
        for recipe in plan.classifiers
    }
    counts = Counter(run.regime for run in results)
    assert counts == {"full": 12, "pca-4": 3, "data-50": 6}
    half = next(run for run in results if run.regime == "data-50")
    whole = next(run for run in results if run.regime == "full")
    assert half.n_train == pytest.approx(whole.n_train / 2, abs=3)
    assert accuracy["frozen-logistic"] > 0.9, "the better features are chosen"
    assert accuracy["majority"] < 0.5 < accuracy["frozen-logistic"]
    assert accuracy["majority"] < accuracy["tfidf-logistic"]
    assert 0.3 < accuracy["lexicon"] < 0.9
    before = (tmp_path / RESULTS).read_text()
    classical.run_classical(tmp_path, plan)
    assert (tmp_path / RESULTS).read_text() == before


def test_the_lexicon_follows_its_rule() -> None:
    texts = (
        "Losses and bankruptcy, again.",
        "They met on Tuesday.",
        "Great gains, an excellent year.",
    )
    assert classical._lexicon_labels(texts).tolist() == [0, 1, 2]


def test_members_of_a_fold_count_once_in_an_interval() -> None:
    runs = [
        run_of(arm="baseline", fold=fold, seed=member, accuracy=0.8 + 0.01 * fold + 0.02 * member)
        for fold in range(10)
        for member in (0, 1)
    ]
    together = [
        run_of(arm="ensemble", fold=fold, accuracy=0.81 + 0.01 * fold) for fold in range(10)
    ]
    rows = {row["arm"]: row for row in summarize([*runs, *together])["rows"]}
    assert rows["baseline"]["accuracy"] == pytest.approx(0.855)
    assert rows["baseline"]["n"] == 20
    assert rows["baseline"]["accuracy_ci"] == rows["ensemble"]["accuracy_ci"]
    # As runs of other deals of the folds they would say more.
    alone = summarize(runs)["rows"][0]["accuracy_ci"]
    assert alone[1] - alone[0] < np.ptp(rows["baseline"]["accuracy_ci"])
