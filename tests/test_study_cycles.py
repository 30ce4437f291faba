"""Studies of cycles on a tiny encoder: what starts where, what is equal, and what is made again."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import train_models
from finsent.config import ConfigError, DendriteConfig, TrainConfig
from finsent.data.registry import load_dataset, make_split
from finsent.growth.grower import GrowthError
from finsent.models import adapters
from finsent.models.adapter_files import load_adapter
from finsent.models.backbones import Backbone, entering_hidden_states, load_backbone
from finsent.study.cycles import committee
from finsent.study.cycles.cell import Cell, CellTrainer
from finsent.study.cycles.plans import (
    AUTHORS,
    CycleRegime,
    CycleStudy,
    Recipe,
    cut_down,
    replicate_study,
)
from finsent.study.cycles.runner import CYCLES, CycleResources, CycleStudyRunner
from finsent.study.cycles.stack import Asked, train_side_by_side
from finsent.study.plans import STUDIES
from finsent.study.rows import RESULTS, StudyError, read_runs
from finsent.study.summary import summarize
from finsent.training.loop import TrainingData, class_logits, train
from finsent.training.progress import Start
from tests.tiny_encoders import make_tiny

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
FAST: dict[str, Any] = {"epochs": 2, "batch_size": 32, "learning_rate": 5e-3, "lora_r": 2}
GROWN = DendriteConfig(placement=("layer",), activation="sigmoid", init_scale=0.3, prune=True)
STUDY = CycleStudy(
    name="small",
    datasets=("sample",),
    regimes=(
        CycleRegime("one", "minilm-l6", {"s-1": Recipe(GROWN)}, config=FAST),
        CycleRegime(
            "two",
            "minilm-l6",
            {"s-2": Recipe(GROWN, cycles=2), "s-1": Recipe(GROWN)},
            config=FAST | {"scored_by": "accuracy", "lora_dropout": 0.1},
        ),
    ),
    splits=("fold-0", "fold-1"),
    seeds=(0,),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny("bert", folder / "minilm-l6")
    make_tiny("mpnet", folder / "mpnet-base")
    return folder


@pytest.fixture
def base(models: Path) -> Backbone:
    return load_backbone("minilm-l6", "fp32", CPU, folder=models)


def data_for(base: Backbone) -> TrainingData:
    dataset = load_dataset("sample")
    split = make_split(dataset, 0)
    states = entering_hidden_states(base, base.tokenize([e.text for e in dataset.examples], 64), 0)
    labels = [e.label for e in dataset.examples]
    return TrainingData(states, labels, 3, split.train, split.validation)


def config_for(adapt: str, **changes: Any) -> TrainConfig:
    return TrainConfig(
        backbone="minilm-l6",
        dataset="sample",
        adapt=adapt,
        pooling="mean",
        autocast=False,
        **{
            "epochs": 1,
            "batch_size": 32,
            "learning_rate": 5e-3,
            "lora": adapters.LoraConfig(r=2, target_modules=("query", "key", "value", "dense")),
            **changes,
        },
    )


@pytest.mark.parametrize(("adapt", "placement"), [("lora", "layer"), ("full", "linear")])
def test_a_cycle_starts_at_the_state_it_is_given_with_a_dendrite_that_adds_nothing_yet(
    base: Backbone, tmp_path: Path, adapt: str, placement: str
) -> None:
    data = data_for(base)
    first = train(config_for(adapt), base, data, tmp_path)
    before = class_logits(first.model, data.states, data.validation, data.lengths)
    start = Start(first.model.snapshot(), 0)
    first.model.detach()
    for grown in (1, 2):
        treatment = DendriteConfig(placement=(placement,), init_scale=0.3, max_dendrites=grown)
        still = config_for(adapt, treatment=treatment, learning_rate=1e-12)
        result = train(still, base, data, tmp_path, start=start)
        assert result.dendrites == grown
        after = class_logits(result.model, data.states, data.validation, data.lengths)
        assert torch.allclose(before, after, atol=1e-5)
        start = Start(result.model.snapshot(), grown)
        result.model.detach()


def test_dendrites_on_whole_weights_are_trained_stored_and_served(
    base: Backbone, tmp_path: Path
) -> None:
    data = data_for(base)
    treatment = DendriteConfig(placement=("linear",), among="mlp", init_scale=0.3, grow_by=0)
    config = config_for("full", treatment=treatment, epochs=3)
    result = train(config, base, data, tmp_path)
    expected = class_logits(result.model, data.states, data.validation, data.lengths)
    result.model.save(tmp_path / "adapter.safetensors")
    result.model.detach()
    adapter = load_adapter(tmp_path / "adapter.safetensors")
    grown = {path for path, kept in adapter.differences.items() if kept.n_dendrites}
    assert grown == {path for path in adapter.differences if "attention" not in path}
    bank = adapters.AdapterBank(base.decoder)
    bank.add("it", adapter)
    head = bank.activate("it")
    from finsent.models.backbones import pool
    from finsent.models.encoders import final_states

    hidden, last = data.states.batch(torch.tensor(data.validation), max(data.lengths))
    served = head(pool(final_states(base.decoder, hidden, last), last, "mean"))
    assert torch.allclose(served, expected, atol=1e-4)


def test_dropout_is_for_training_steps_alone(base: Backbone, tmp_path: Path) -> None:
    data = data_for(base)
    lora = adapters.LoraConfig(r=2, target_modules=("query",), dropout=0.5)
    dropped = train(config_for("lora", lora=lora), base, data, tmp_path)
    twice = [class_logits(dropped.model, data.states, data.validation, data.lengths)] * 2
    again = class_logits(dropped.model, data.states, data.validation, data.lengths)
    assert torch.equal(twice[0], again)
    dropped.model.detach()
    plain = train(config_for("lora", lora=replace(lora, dropout=0.0)), base, data, tmp_path)
    assert plain.history[0].train_loss != dropped.history[0].train_loss
    plain.model.detach()


def test_a_run_ends_when_it_has_stalled_and_selects_by_its_score(
    base: Backbone, tmp_path: Path
) -> None:
    data = data_for(base)
    config = config_for("lora", epochs=9, learning_rate=0.05, scored_by="accuracy", stop_patience=1)
    result = train(config, base, data, tmp_path)
    result.model.detach()
    accuracies = [record.val_accuracy for record in result.history]
    assert len(accuracies) < 9
    assert accuracies[-1] <= max(accuracies[:-1])
    assert result.selected.epoch == accuracies.index(max(accuracies))


def test_arms_share_their_first_cycle_and_controls_have_as_many_as_the_dendritic_arm(
    models: Path, tmp_path: Path
) -> None:
    trainer = CellTrainer("cpu", None, models)
    cell = Cell(STUDY.regime("two"), "sample", "fold-0", 0)
    first, second = trainer.lines([cell])
    arms = {line.run.arm: line for line in first}
    assert set(arms) == {"baseline", "restart", "matched", "dendritic"}
    assert second[0].run.accuracy == first[0].run.accuracy
    assert [len(arms[arm].cycles) for arm in arms] == [1, 3, 3, 3]
    start = arms["baseline"].cycles[0]
    assert arms["restart"].cycles[0] is arms["dendritic"].cycles[0] is start
    grown = [cycle.trained_params for cycle in arms["dendritic"].cycles]
    assert grown[0] < grown[1] <= grown[2]
    matched = arms["matched"].run.trainable_params
    assert abs(matched - arms["dendritic"].run.trainable_params) < 0.05 * matched
    for line in first:
        losses = [cycle.loss for cycle in line.cycles]
        assert line.kept == losses.index(min(losses))


WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "layer": ({"class_weight_power": 0.5, "scored_by": "accuracy", "stop_patience": 1}, "layer"),
    "lora_B": ({"label_smoothing": 0.1}, "lora_B"),
    # Slowly: at the rate of the adapters rounding grows to other weights on some processors.
    "whole weights": ({"adapt": "full", "learning_rate": 1e-4}, "linear"),
}


@pytest.mark.parametrize("way", WAYS)
def test_runs_side_by_side_become_what_they_become_alone(models: Path, way: str) -> None:
    """Of different folds, seeds and rates; first cycle, a dendrite more, and larger ranks."""
    changes, placement = WAYS[way]
    grown = replace(GROWN, placement=(placement,))
    config = FAST | {"epochs": 3} | changes
    regime = CycleRegime("it", "minilm-l6", {"s-1": Recipe(grown)}, config=config, rates=(1.0, 0.3))
    cells = [Cell(regime, "sample", f"fold-{n}", seed) for n, seed in ((0, 0), (1, 1))]
    alone, stacked = (CellTrainer("cpu", None, models, stacked=n) for n in (1, 4))
    one = [line for cell in cells for line in next(alone.lines([cell]))]
    other = next(stacked.lines(cells))
    assert [line.run.key for line in one] == [line.run.key for line in other]
    for ours, theirs in zip(other, one, strict=True):
        for cycle, expected in zip(ours.cycles, theirs.cycles, strict=True):
            same = ("rate", "epochs", "steps", "trained_params")
            assert [getattr(cycle, n) for n in same] == [getattr(expected, n) for n in same]
            assert cycle.validation.epoch == expected.validation.epoch
            assert cycle.probabilities == pytest.approx(expected.probabilities, abs=3e-3)
            assert cycle.start.dendrites == expected.start.dendrites
            # All together: AdamW takes a whole step also where a gradient is rounding alone.
            known, found = (
                torch.cat([c.start.tensors[n].flatten() for n in expected.start.tensors])
                for c in (expected, cycle)
            )
            assert float((found - known).norm() / known.norm()) < 0.02
    assert {len(line.cycles) for line in other if line.run.arm != "baseline"} == {2}
    assert max(line.run.dendrites for line in other) <= 1


def test_runs_of_different_recipes_do_not_go_side_by_side(models: Path) -> None:
    trainer = CellTrainer("cpu", None, models)
    cell = Cell(STUDY.regime("one"), "sample", "fold-0", 0)
    config = trainer.config(cell)
    data = data_for(trainer.base(config))
    other = replace(config, batch_size=16)
    with pytest.raises(ConfigError, match="differ in seed, split and rate only"):
        train_side_by_side(
            [Asked(config, data, [0]), Asked(other, data, [0])],
            trainer.base(config),
            most=2,
            pad_multiple=8,
        )


def test_a_study_goes_on_where_it_was_cut_off_and_ends_the_same(
    models: Path, tmp_path: Path
) -> None:
    study = replace(STUDY, regimes=STUDY.regimes[:1])
    resources = CycleResources("cpu", 1, {"commit": "c"}, backbone_dir=models)
    whole = CycleStudyRunner(study, tmp_path / "whole", resources)
    assert whole.run() == []
    cut = CycleStudyRunner(study, tmp_path / "cut", replace(resources, stop_after=0.0))
    assert cut.run() == []
    kept = read_runs(cut.folder / RESULTS)
    assert {run.fold for run in kept} == {0}
    assert CycleStudyRunner(study, tmp_path / "cut", resources).run() == []

    def without_times(folder: Path) -> set[Any]:
        return {replace(run, train_seconds=0.0) for run in read_runs(folder / RESULTS)}

    assert without_times(cut.folder) == without_times(whole.folder)
    stacked = CycleStudyRunner(study, tmp_path / "stacked", replace(resources, stacked=2))
    assert stacked.run() == []
    rows = {run.key: run for run in read_runs(stacked.folder / RESULTS)}
    for run in read_runs(whole.folder / RESULTS):
        assert rows[run.key].nll == pytest.approx(run.nll, abs=1e-3)
    assert len(read_runs(whole.folder / RESULTS)) == 8
    with (whole.folder / CYCLES).open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 8
    assert {c["a"] for c in summarize(read_runs(whole.folder / RESULTS))["comparisons"]} == {
        "baseline",
        "restart",
        "matched",
    }


def test_a_cell_that_fails_is_named_and_does_not_spoil_the_next(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = replace(STUDY, regimes=STUDY.regimes[:1])
    lines = CellTrainer.lines

    def failing(self: CellTrainer, cells: Sequence[Cell]) -> Iterator[Any]:
        if cells[0].split == "fold-0":
            raise GrowthError("told to")
        yield from lines(self, cells)

    monkeypatch.setattr(CellTrainer, "lines", failing)
    resources = CycleResources("cpu", 1, {"commit": "c"}, backbone_dir=models)
    runner = CycleStudyRunner(study, tmp_path, resources)
    assert runner.run() == ["one sample fold-0 seed 0"]
    assert {run.fold for run in read_runs(runner.folder / RESULTS)} == {1}


def test_parts_of_a_study_are_named_or_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    part = cut_down(
        AUTHORS, datasets=("allagree",), regimes=("minilm-l6-example",), seeds=(1,), folds=(3,)
    )
    assert (part.datasets, part.seeds, part.splits) == (("allagree",), (1,), ("fold-3",))
    with pytest.raises(StudyError, match="has no fold 10"):
        cut_down(AUTHORS, datasets=None, regimes=None, seeds=None, folds=(10,))
    with pytest.raises(StudyError, match="has no data set 'fiqa'"):
        cut_down(AUTHORS, datasets=("fiqa",), regimes=None, seeds=None, folds=None)
    for study in STUDIES.values():
        if isinstance(study, CycleStudy):
            assert len({regime.name for regime in study.regimes}) == len(study.regimes)
    given = ["--artifacts", str(tmp_path)]
    assert train_models.main(["study", "heads", "--folds", "1", *given]) == 2
    assert "--folds: study 'heads' cannot be cut down" in capsys.readouterr().err
    assert train_models.main(["study", "authors", "--ray-address", "a:1", *given]) == 2
    assert "--ray-address a:1: studies of cycles use" in capsys.readouterr().err
    assert train_models.main(["study", "authors", "--stacked", "0", *given]) == 2
    assert "--stacked must be at least 1, got 0" in capsys.readouterr().err


def test_processes_take_gpus_in_turns(models: Path, tmp_path: Path) -> None:
    """Each sees one, named as CUDA_VISIBLE_DEVICES names it, and makes cells side by side."""
    study = replace(STUDY, regimes=(replace(STUDY.regimes[0], recipes={}),))
    resources = CycleResources(
        "cpu", 2, {"commit": "c"}, backbone_dir=models, gpus=("1", "3"), stacked=1
    )
    assert CycleStudyRunner(study, tmp_path, resources).run() == []
    assert {run.fold for run in read_runs(tmp_path / "studies" / "small" / RESULTS)} == {0, 1}


def test_a_student_learns_what_teachers_say_of_sentences_they_did_not_learn(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committee, "GROUPS", 2)
    regime = CycleRegime(
        "student", "minilm-l6", {}, config=FAST, teacher="mpnet-base", tested=("sample",)
    )
    trainer = CellTrainer("cpu", None, models)
    cell = Cell(regime, "sample", "fold-0", 0)
    seen: list[set[int]] = []
    trained = CellTrainer.trained

    def noted(self: CellTrainer, asked: Sequence[Asked]) -> Any:
        seen.extend(set(run.data.train) for run in asked)
        return trained(self, [replace(r, config=replace(r.config, epochs=1)) for r in asked])

    monkeypatch.setattr(CellTrainer, "trained", noted)
    (targets,), (teachers,) = committee._committees(trainer, [cell])
    split = trainer.split(trainer.config(cell))
    assert seen[0] | seen[1] == set(split.train)
    assert not seen[0] & seen[1]
    assert torch.allclose(targets.sum(dim=1), torch.ones(len(targets)))
    hard = targets.max(dim=1).values == 1
    assert set(hard.nonzero()[:, 0].tolist()) == set(range(len(targets))) - set(split.train)
    assert teachers.probabilities.shape == (len(split.test), 3)
    (lines,) = committee.taught(trainer, [cell])
    rows = {line.run.recipe: line.run for line in lines}
    assert rows["teacher"].backbone == "mpnet-base"
    assert rows["soft"].nll != rows["hard"].nll
    assert {line.run.key for line in lines} == set(committee.taught_keys(cell))


def test_a_decoder_runs_in_cycles_too_and_plain_regimes_have_one_row(
    tiny_environment: None, tmp_path: Path
) -> None:
    study = replicate_study("tiny-phi")
    fast = {"epochs": 1, "batch_size": 32}
    regimes = (study.regimes[0], study.regimes[-1])
    study = replace(
        study,
        datasets=("sample",),
        regimes=tuple(replace(r, config={**r.config, **fast}) for r in regimes),
        splits=("fold-0",),
    )
    runner = CycleStudyRunner(study, tmp_path, CycleResources("cpu", 1, {"commit": "c"}))
    assert runner.run() == []
    first, *rest = read_runs(runner.folder / RESULTS)
    assert (first.regime, first.recipe, first.arm) == ("published-plain", "plain", "baseline")
    assert [(r.regime, r.arm) for r in rest] == [
        ("fair", arm) for arm in ("baseline", "restart", "matched", "dendritic")
    ]
