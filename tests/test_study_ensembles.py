"""The study of ensembles on tiny-phi."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import train_models
from finsent.config import LoraConfig, TrainConfig
from finsent.data.folds import grouped_folds
from finsent.data.registry import Dataset, load_dataset
from finsent.machine.workers import Workers
from finsent.study.lora import ensembles
from finsent.study.lora import runner as lora_runner
from finsent.study.lora.ensembles import RECIPES, EnsembleRunner
from finsent.study.lora.runner import Resources
from finsent.study.lora.stack_runs import RunResult, StackContext, StackRun
from finsent.study.plans import (
    ENSEMBLES,
    SELECTION_SEED,
    EnsembleStudy,
    LoraRegime,
    LoraStudy,
    Source,
)
from finsent.study.rows import RESULTS, StudyError, StudyRun, read_runs
from finsent.study.selection import best_regime, read_selection
from finsent.study.summary import summarize
from finsent.study.views import chosen

BASE = TrainConfig(
    backbone="tiny-phi", dataset="sample", epochs=3, lora=LoraConfig(r=2), autocast=False
)
RESOURCES = Resources(
    base=BASE, device="cpu", workers=Workers(), stacked=4, data_dir=None, backbone_dir=None
)
STUDY = EnsembleStudy(
    "tiny",
    (Source("sample", ("sample", "half")),),
    (LoraRegime("r1", r=1),),
    2,
    backbone="tiny-phi",
)


def stands_in(monkeypatch: pytest.MonkeyPatch, dataset: Dataset) -> None:
    """Let a study find a data set that is not registered."""

    def load(name: str, data_dir: Path | None = None) -> Dataset:
        return dataset if name == dataset.name else load_dataset(name, data_dir)

    for module in (ensembles, lora_runner):
        monkeypatch.setattr(module, "load_dataset", load)


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch, tiny_environment: None) -> Dataset:
    """Every other sentence of the sample, as a data set of its own."""
    whole = load_dataset("sample")
    found = replace(whole, name="half", examples=whole.examples[::2])

    stands_in(monkeypatch, found)
    return found


@pytest.mark.slow
def test_members_answer_alone_and_together_on_every_data_set(
    tmp_path: Path, half: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[list[int]] = []
    kept: dict[tuple[int, int], RunResult] = {}
    train_stack = lora_runner.train_stack
    whole = load_dataset("sample")
    folds = list(grouped_folds(whole, 0))
    fold_of = {tuple(fold.test.tolist()): fold.number for fold in folds}

    def noted(context: object, rows: list[StackRun], **options: object) -> list[RunResult]:
        numbers = [fold_of[tuple(row.test)] for row in rows]
        if stop and 3 in numbers:
            raise KeyboardInterrupt
        trained.append(numbers)
        found = train_stack(context, rows, **options)  # type: ignore[arg-type]
        if rows[0].fork is None:
            for number, row, result in zip(numbers, rows, found, strict=True):
                kept[number, row.seed] = result
        return found

    monkeypatch.setattr(lora_runner, "train_stack", noted)
    path = tmp_path / "studies" / "tiny" / RESULTS
    stop = True
    with pytest.raises(KeyboardInterrupt):
        EnsembleRunner(STUDY, tmp_path, RESOURCES).run()
    assert {run.fold for run in read_runs(path)} == {0, 1}
    stop = False
    trained.clear()
    EnsembleRunner(STUDY, tmp_path, RESOURCES).run()
    # Two members of two folds at a time, then the same again from where they went back.
    assert (
        trained == [[2, 2, 3, 3]] * 2 + [[4, 4, 5, 5]] * 2 + [[6, 6, 7, 7]] * 2 + [[8, 8, 9, 9]] * 2
    )
    trained.clear()
    EnsembleRunner(STUDY, tmp_path, RESOURCES).run()
    assert not trained

    runs = read_runs(path)
    found = {(r.recipe, r.test_dataset, r.arm, r.fold, r.seed): r for r in runs}
    arms = [("baseline", 0), ("baseline", 1), ("ensemble", 0)]
    assert set(found) == {
        (recipe, tested, arm, fold, seed)
        for recipe in RECIPES
        for tested in ("sample", "half")
        for arm, seed in arms
        for fold in range(10)
    }
    together = [found["whole", "half", "ensemble", fold, 0] for fold in range(10)]
    assert sum(run.n_test for run in together) == len(half.examples)
    _check_fold(whole, half, folds[5].test.tolist(), kept, found)


def _check_fold(
    whole: Dataset,
    half: Dataset,
    test: list[int],
    kept: dict[tuple[int, int], RunResult],
    found: dict[tuple[str, str, str, int, int], StudyRun],
) -> None:
    """Fold 5, computed again from what its members said."""
    ids = {example.id for example in half.examples}
    for recipe in ("whole", "whole-last"):
        said = [
            one.last_logits if recipe == "whole-last" else one.logits
            for one in (kept[5, member] for member in (0, 1))
        ]
        logits = [one.test.double() for one in said if one is not None]
        labels = np.array([whole.examples[i].label for i in test])
        mean = sum(one.softmax(dim=1) for one in logits).numpy() / 2  # type: ignore[union-attr]
        there = np.array([whole.examples[i].id in ids for i in test])
        for tested, among in (("sample", np.ones(len(test), bool)), ("half", there)):
            right = (mean.argmax(axis=1) == labels)[among].mean()
            run = found[recipe, tested, "ensemble", 5, 0]
            assert run.accuracy == pytest.approx(right, rel=1e-5)
            assert run.n_test == among.sum()
            nll = -np.log(mean[np.arange(len(test)), labels])[among].mean()
            assert run.nll == pytest.approx(nll, rel=1e-4)
    alone = [found["whole", "sample", "baseline", 5, member] for member in (0, 1)]
    together = found["whole", "sample", "ensemble", 5, 0]
    assert together.trainable_params == sum(run.trainable_params for run in alone)
    assert together.optimizer_steps == sum(run.optimizer_steps for run in alone)
    assert alone[0].nll != alone[1].nll


@pytest.mark.slow
def test_runs_of_several_regimes_answer_together_once_they_learned_validation_too(
    tmp_path: Path, tiny_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = replace(
        STUDY,
        sources=(Source("sample", ("sample",)),),
        regimes=(LoraRegime("r1", r=1), LoraRegime("twice", r=1, copies=2)),
        together=True,
        refit=True,
    )
    train_stack = lora_runner.train_stack
    made: list[tuple[list[StackRun], list[RunResult]]] = []

    def noted(context: StackContext, rows: list[StackRun], **options: Any) -> list[RunResult]:
        made.append((rows, train_stack(context, rows, **options)))
        return made[-1][1]

    monkeypatch.setattr(lora_runner, "train_stack", noted)
    runner = EnsembleRunner(study, tmp_path, replace(RESOURCES, stacked=20))
    with pytest.raises(StudyError, match="nothing to choose from"):
        runner.select()
    runner.run()
    whole = load_dataset("sample")
    folds = list(grouped_folds(whole, 0))
    assert [len(rows) for rows, _ in made] == [20, 20]
    for rows, _ in made:
        for fold, row in zip([f for f in folds for _ in range(2)], rows, strict=True):
            assert sorted(row.train) == sorted([*fold.train, *fold.validation])
            assert not set(row.train) & set(row.test)
            assert list(row.test) == list(fold.test)

    runs = read_runs(tmp_path / "studies" / "tiny" / RESULTS)
    found = {(r.regime, r.arm, r.fold, r.seed): r for r in runs}
    assert set(found) == {
        *(
            (regime, "baseline", n, m)
            for regime in ("r1", "twice")
            for n in range(10)
            for m in (0, 1)
        ),
        *((regime, "ensemble", n, 0) for regime in ("r1", "twice", "together") for n in range(10)),
    }
    assert {run.recipe for run in runs} == {"refitted"}
    # Fold 3, computed again from what its members said after the last epoch.
    labels = np.array([whole.examples[i].label for i in folds[3].test])
    said = [one for _, results in made for one in results[6:8]]
    mean = np.mean([one.last_logits.test.double().softmax(1).numpy() for one in said], axis=0)  # type: ignore[union-attr]
    together = found["together", "ensemble", 3, 0]
    assert together.nll == pytest.approx(-np.log(mean[np.arange(len(labels)), labels]).mean(), 1e-4)
    assert together.trainable_params == sum(one.trainable_params for one in said)
    assert together.n_train == len(folds[3].train) + len(folds[3].validation)

    # Nothing is said of validation, and nothing stumbles over that.
    summary = summarize(runs)
    assert {row["validation_accuracy"] for row in summary["rows"]} == {None}
    (sentence,) = chosen(summary["rows"])
    assert "all members is `ensemble` with `refitted` in `together`" in sentence
    made.clear()
    runner.run()
    assert not made


def test_the_registered_study_tests_on_parts_of_what_it_trains_on() -> None:
    sources = {source.dataset: source for source in ENSEMBLES.sources}
    assert sources["50agree"].tested == ("50agree", "allagree")
    assert ENSEMBLES.source("allagree").epochs == 12
    with pytest.raises(StudyError, match="trains on 50agree, allagree, not on 'fiqa'"):
        ENSEMBLES.source("fiqa")


def test_one_source_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def noted(self: EnsembleRunner) -> None:
        asked.append(self._study.sources)
        raise StudyError("stopped here")

    monkeypatch.setattr(EnsembleRunner, "run", noted)
    command = ["study", "ensembles", "--artifacts", str(tmp_path), "--device", "cpu"]
    assert train_models.main([*command, "--datasets", "allagree"]) == 2
    assert asked == [(ENSEMBLES.source("allagree"),)]
    assert train_models.main([*command, "--datasets", "fomc"]) == 2
    assert "not on 'fomc'" in capsys.readouterr().err


CHOICE = replace(
    STUDY,
    name="choice",
    sources=(Source("sample", ("sample",)),),
    regimes=(
        LoraRegime("plain", r=1),
        LoraRegime("elsewhere-first", r=1, first_on="elsewhere"),
        LoraRegime("twice", r=1, copies=2),
    ),
)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tiny_environment: None) -> Dataset:
    """Another data set: ten sentences of the sample among sentences of its own."""
    whole = load_dataset("sample")
    own = [
        replace(example, id=f"own-{place}", text=f"{'ab'[place % 2] * (2 + place)} quokka")
        for place, example in enumerate(whole.examples[:60])
    ]
    found = replace(whole, name="elsewhere", examples=(*whole.examples[:10], *own))

    stands_in(monkeypatch, found)
    return found


@pytest.mark.slow
def test_the_way_to_fine_tune_is_chosen_where_nothing_is_tested(
    tmp_path: Path, elsewhere: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_stack = lora_runner.train_stack
    made: list[list[StackRun]] = []
    widths: list[int] = []

    def noted(context: StackContext, rows: list[StackRun], **options: Any) -> list[RunResult]:
        made.append(rows)
        widths.append(int(context.states.lengths.sum()))
        return train_stack(context, rows, **options)

    monkeypatch.setattr(lora_runner, "train_stack", noted)
    resources = replace(RESOURCES, stacked=10)
    runner = EnsembleRunner(CHOICE, tmp_path, resources)
    with pytest.raises(StudyError, match="nothing of plain on sample: try it on validation first"):
        runner.run()
    path = runner.select(["plain"])
    with pytest.raises(StudyError, match="nothing of elsewhere-first on sample"):
        runner.run()
    assert runner.select() == path
    whole = load_dataset("sample")
    tested = {tuple(fold.test.tolist()) for fold in grouped_folds(whole, SELECTION_SEED)}
    plain, first, after, twice = made
    for rows in (plain, after, twice):
        assert len(rows) == 10
        assert all(row.test == row.validation for row in rows)
        assert not {tuple(row.validation) for row in rows} & tested
    # Nothing of the sample is learned before its own training begins.
    assert len(first) == 1
    seen = [elsewhere.examples[i].id for i in (*first[0].train, *first[0].validation)]
    assert len(seen) == 60
    assert all(name.startswith("own-") for name in seen)
    assert all(row.initial is None for row in (*plain, *first, *twice))
    assert all(row.initial is after[0].initial is not None for row in after)
    assert widths[3] > 1.8 * widths[0]

    rows = list(read_selection(path).values())
    assert [(row["regime"], row["recipe"]) for row in rows] == [
        (regime.name, recipe) for regime in CHOICE.regimes for recipe in ("whole", "whole-last")
    ]
    best = min(
        rows, key=lambda row: (-float(row["validation_accuracy"]), float(row["validation_nll"]))
    )
    runner.run()
    assert {run.regime for run in read_runs(path.with_name(RESULTS))} == {best["regime"]}
    made.clear()
    runner.select()
    assert not made


def test_choosing_is_refused_where_it_means_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["study", "--artifacts", str(tmp_path), "--device", "cpu", "--select"]
    assert train_models.main([*command, "ensembles"]) == 2
    assert "study 'ensembles' has nothing to choose from" in capsys.readouterr().err
    assert train_models.main([*command, "strongest", "--regimes", "fourfold"]) == 2
    assert "study 'strongest' has no regime 'fourfold'; it has r8-all" in capsys.readouterr().err
    assert train_models.main([*command[:-1], "strongest", "--regimes", "thrice"]) == 2
    assert "--regimes: study 'strongest' cannot be cut down" in capsys.readouterr().err
    with pytest.raises(StudyError, match="only ensembles are trained on twitter first"):
        LoraStudy("lora", ("allagree",), (LoraRegime("after-twitter", first_on="twitter"),))
    with pytest.raises(StudyError, match=r"regime tenth: .* not a share of 0\.1"):
        replace(CHOICE, regimes=(LoraRegime("tenth", fraction=0.1),))
    for wrong in ({"targets": "guesses"}, {"copies": 0}):
        with pytest.raises(StudyError, match="regime odd: "):
            LoraRegime("odd", **wrong)  # type: ignore[arg-type]
    for dataset, expected in (("a", "second"), ("b", "first")):
        assert best_regime(TRIED, dataset) == expected
    with pytest.raises(StudyError, match="no regime was tried on c"):
        best_regime(TRIED, "c")


TRIED = [
    {"dataset": dataset, "regime": name, "validation_accuracy": right, "validation_nll": nll}
    for dataset, name, right, nll in (
        ("a", "first", "0.85", "0.3"),
        ("a", "second", "0.85", "0.2"),
        ("a", "third", "0.84", "0.1"),
        ("b", "first", "0.9", "0.5"),
        ("b", "second", "0.1", "0.1"),
    )
]
