"""LoRA studies on tiny-phi, the restart control, and the protocols a run can name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest
import torch

import train_models
from finsent.config import (
    STUDY_ARMS,
    ConfigError,
    DendriteConfig,
    LoraConfig,
    MatchedCapacity,
    Restarts,
    TrainConfig,
    arm_config,
)
from finsent.data.folds import grouped_folds, part_examples
from finsent.data.records import DataError
from finsent.data.registry import load_dataset, make_split
from finsent.machine.workers import Workers
from finsent.results import leaderboard, runs
from finsent.serving.retiming import retime
from finsent.study.lora import runner, training
from finsent.study.lora.runner import Cell, CellOutcome, CellTrainer, LoraStudyRunner, Resources
from finsent.study.lora.stack_runs import RunResult, StackContext, StackRun
from finsent.study.plans import LORA, LoraRegime, LoraStudy
from finsent.study.rows import RESULTS, StudyError, read_runs
from finsent.training import scheduling
from finsent.training.child import Job
from finsent.training.progress import RESTARTED
from finsent.training.run import Bases, JobError, run_job

pytestmark = pytest.mark.slow

BASE = TrainConfig(
    backbone="tiny-phi", dataset="sample", epochs=4, lora=LoraConfig(r=2), autocast=False
)


class HereChild:
    """Makes the jobs in this process: what is tested is which jobs, not how they are started."""

    made: list[str] = []  # noqa: RUF012
    fail = ""

    def __init__(self, environment: Mapping[str, str], folder: Path, *, lines: bool) -> None:
        assert not lines
        self.bases = Bases()

    def __enter__(self) -> HereChild:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def make(self, job: Job) -> str | None:
        name = f"{job.config.split} {job.config.arm} {job.config.seed}"
        HereChild.made.append(name)
        if name == HereChild.fail:
            return "told to"
        run_job(job, self.bases)
        return None


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tiny_environment: None) -> type[HereChild]:
    monkeypatch.setattr(scheduling, "Child", HereChild)
    monkeypatch.setattr(HereChild, "made", [])
    monkeypatch.setattr(HereChild, "fail", "")
    return HereChild


def plan_of(artifacts: Path, **changes: object) -> scheduling.Plan:
    plan = scheduling.Plan(
        base=BASE,
        dendrites=DendriteConfig(grow_by=1, patience=9),
        arms=STUDY_ARMS,
        seeds=(0,),
        artifacts=artifacts,
        device="cpu",
        workers=Workers(),
        overwrite=False,
        command="test",
        git_commit=None,
        data_dir=None,
        backbone_dir=None,
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


def test_the_restart_control_does_what_growing_does_but_for_the_dendrites(
    tmp_path: Path, here: type[HereChild]
) -> None:
    assert scheduling.execute(plan_of(tmp_path, restart_matched=True)) == []
    found = {run.arm: run for run in runs.find_runs(tmp_path)}
    assert list(found) == sorted(STUDY_ARMS)
    events = {arm: [line["event"] for line in run.history] for arm, run in found.items()}
    assert events["baseline"] == [None] * 4
    assert events["dendritic"] == [None, "grew dendrite 1", None, None]
    assert events["restart"] == events["matched"] == [None, RESTARTED, None, None]
    rates = {arm: [line["learning_rate"] for line in run.history] for arm, run in found.items()}
    assert rates["restart"] == rates["dendritic"] == rates["matched"]
    assert rates["restart"][2:] == [rate / 2 for rate in rates["baseline"][2:]]
    # Until then they are one run, and without dendrites restart is no larger than the baseline.
    for arm in ("dendritic", "restart"):
        assert [line["val_loss"] for line in found[arm].history[:2]] == [
            line["val_loss"] for line in found["baseline"].history[:2]
        ]
    sizes = {arm: run.metrics["trainable_params"] for arm, run in found.items()}
    assert sizes["restart"] == sizes["baseline"] < sizes["dendritic"]
    assert sizes["matched"] == pytest.approx(sizes["dendritic"], rel=0.15)
    assert len({run.metrics["optimizer_steps"] for run in found.values()}) == 1
    # Selected among the epochs after the restart, as the dendritic run is.
    assert found["restart"].metrics["best_epoch"] >= 2
    # And it is timed and listed beside the others.
    assert len(retime(list(found.values()), torch.device("cpu"))) == len(STUDY_ARMS)
    listed = {row["arm"]: row for row in leaderboard.build(tmp_path)["rows"]}
    assert "4 arms interleaved" in listed["restart"]["latency_protocol"]


def test_controls_that_copy_need_what_they_copy(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, arms=("baseline", "restart", "matched"))
    with pytest.raises(ConfigError, match="restart and matched arm copies from the dendritic run"):
        scheduling.execute(plan)


STUDY = LoraStudy(
    name="tiny",
    datasets=("sample",),
    regimes=(
        LoraRegime(
            "r1-data-25", r=1, last_layers=1, fraction=0.25, recipes=("grown", "grown-refined")
        ),
    ),
    splits=("fold-0", "fold-7"),
    seeds=(0,),
    epochs=3,
    backbone="tiny-phi",
)
RESOURCES = Resources(
    base=BASE, device="cpu", workers=Workers(), stacked=1, data_dir=None, backbone_dir=None
)


def test_a_lora_study_is_lines_and_goes_on_where_it_stopped(
    tmp_path: Path, tiny_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "studies" / "tiny" / RESULTS
    made: list[tuple[tuple[str, int], ...]] = []
    train_cell = CellTrainer.train_cell

    def noted(self: CellTrainer, cell: Cell) -> CellOutcome:
        made.append(cell.folds)
        if stop and len(made) == 2:
            raise KeyboardInterrupt
        return train_cell(self, cell)

    monkeypatch.setattr(CellTrainer, "train_cell", noted)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        LoraStudyRunner(STUDY, tmp_path, RESOURCES).run()
    assert {run.fold for run in read_runs(path)} == {0}
    stop = False
    made.clear()
    LoraStudyRunner(STUDY, tmp_path, RESOURCES).run()
    assert made == [(("fold-7", 0),)]
    made.clear()
    LoraStudyRunner(STUDY, tmp_path, RESOURCES).run()
    assert made == []

    found = {(run.recipe, run.arm, run.fold): run for run in read_runs(path)}
    arms = [("grown", arm) for arm in STUDY_ARMS]
    arms += [("grown-refined", arm) for arm in STUDY_ARMS if arm != "baseline"]
    assert set(found) == {(*arm, fold) for arm in arms for fold in (0, 7)}
    fold = list(grouped_folds(load_dataset("sample"), 0))[7]
    one = found["grown", "baseline", 7]
    assert one.n_train == pytest.approx(len(fold.train) / 4, abs=6)
    assert one.n_test == len(fold.test)
    assert len({run.optimizer_steps for run in found.values() if run.fold == 7}) == 1
    for recipe in ("grown", "grown-refined"):
        dendritic, matched = (found[recipe, arm, 7] for arm in ("dendritic", "matched"))
        assert (dendritic.dendrites, matched.dendrites) == (1, 0)
        assert matched.trainable_params == pytest.approx(dendritic.trainable_params, rel=0.15)
        assert dendritic.best_epoch >= 1
    plain, refined = (found[recipe, "dendritic", 7] for recipe in ("grown", "grown-refined"))
    assert plain.validation_nll != refined.validation_nll


def test_a_run_that_ends_in_no_numbers_is_named_and_costs_no_other(
    tmp_path: Path,
    tiny_environment: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def spoilt(context: StackContext, rows: Sequence[StackRun], **options: Any) -> list[RunResult]:
        found = training.train_stack(context, rows, **options)
        for row, result in zip(rows, found, strict=True):
            if row.candidates == "refined":
                result.logits.test.fill_(float("nan"))
        return found

    monkeypatch.setattr(runner, "train_stack", spoilt)
    study = replace(STUDY, splits=("fold-0",))
    name = "sample r1-data-25 grown-refined dendritic fold-0 seed 0"
    assert LoraStudyRunner(study, tmp_path, RESOURCES).run() == [name]
    assert f"{name}: its probabilities are not finite" in capsys.readouterr().err
    path = tmp_path / "studies" / "tiny" / RESULTS
    assert len(read_runs(path)) == 6
    monkeypatch.undo()
    assert LoraStudyRunner(study, tmp_path, RESOURCES).run() == []
    assert len(read_runs(path)) == 7


def test_runs_side_by_side_end_as_runs_of_their_own(tmp_path: Path, tiny_environment: None) -> None:
    study = replace(STUDY, splits=tuple(f"fold-{n}" for n in range(4)))
    found = []
    for stacked in (1, 3):
        root = tmp_path / str(stacked)
        LoraStudyRunner(study, root, replace(RESOURCES, stacked=stacked)).run()
        found.append({run.key: run for run in read_runs(root / "studies" / "tiny" / RESULTS)})
    alone, together = found
    assert set(together) == set(alone)
    for key, run in together.items():
        assert run.nll == pytest.approx(alone[key].nll, rel=1e-3), key


def test_folds_and_published_splits_are_named_in_the_configuration() -> None:
    sample = load_dataset("sample")
    fold = list(grouped_folds(sample, 5))[3]
    split = part_examples(sample, "fold-3", 5)
    assert (split.train, split.test) == (tuple(fold.train.tolist()), tuple(fold.test.tolist()))
    assert split.fingerprint != part_examples(sample, "fold-4", 5).fingerprint
    assert part_examples(sample, "70/15/15", 5) == make_split(sample, 5)
    for wrong in ("fold-10", "10-fold", ""):
        with pytest.raises(DataError, match="split must be '70/15/15'"):
            part_examples(sample, wrong, 0)
    with pytest.raises(DataError, match="is for folds"):
        part_examples(sample, "70/15/15", 0, 0.5)
    with pytest.raises(DataError, match="is of data set '50agree', not of 'sample'"):
        part_examples(sample, "finbert", 0)


def test_the_finbert_split_is_the_published_one(real_data: Path) -> None:
    from finsent.data.sets.phrasebank import clean, parse_phrasebank, read_level, record_id

    dataset = load_dataset("50agree", real_data)
    split = part_examples(dataset, "finbert", 0, data_dir=real_data)
    published = real_data / "fpb_finbert_split" / "finbert_split_line_ids.json"
    if not published.is_file():
        pytest.skip("no copy of the published line numbers")
    lines = json.loads(published.read_text())
    rows = parse_phrasebank(*read_level("50agree", real_data))
    ids = [record_id(clean(text)) for text, _ in rows]
    found = {dataset.examples[i].id for i in split.test}
    assert found == {ids[line] for line in lines["test"]}
    validation = {ids[line] for line in lines["repo_val10"]["validation"]} - found
    assert {dataset.examples[i].id for i in split.validation} == validation
    assert len(split.train) + len(split.validation) + len(split.test) == len(dataset.examples)


def test_restarts_survive_json_and_nonsense_is_refused() -> None:
    restarts = Restarts((2, 5), 0.3)
    for treatment in (restarts, MatchedCapacity(1000, restarts), MatchedCapacity(1000)):
        config = replace(BASE, treatment=treatment)
        assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    config = replace(BASE, treatment=restarts)
    assert config.arm == "restart"
    assert config.restarts == replace(BASE, treatment=MatchedCapacity(9, restarts)).restarts
    assert BASE.restarts is None
    assert arm_config(BASE, "restart", restarts) == config
    with pytest.raises(ConfigError, match="epochs must be >= 0"):
        Restarts((-1,))
    with pytest.raises(ConfigError, match="factor must be > 0"):
        Restarts((1,), 0.0)
    with pytest.raises(ConfigError, match=r"train_fraction must be in \(0, 1\]"):
        replace(BASE, train_fraction=0.0)


def test_a_study_can_be_cut_down_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def noted(self: LoraStudyRunner) -> list[str]:
        asked.append((self.study, self.resources))
        raise JobError("stopped here")

    monkeypatch.setattr(runner.LoraStudyRunner, "run", noted)
    command = ["study", "lora", "--artifacts", str(tmp_path), "--device", "cpu", "--workers", "2"]
    command += ["--regimes", "r1-last1", "--datasets", "50agree", "--seeds", "3"]
    assert train_models.main(command) == 2
    study, resources = asked[0]
    assert study == replace(
        LORA, regimes=(LORA.regime("r1-last1"),), datasets=("50agree",), seeds=(3,)
    )
    assert (resources.workers, resources.base.backbone) == (Workers(2), "smollm2-135m")
    assert train_models.main([*command[:2], "--regimes", "r3"]) == 2
    assert "study 'lora' has no regime 'r3'; it has r8-all" in capsys.readouterr().err
    for name, option in (
        ("heads", "--seeds"),
        ("ensembles", "--seeds"),
        ("classical", "--stacked"),
    ):
        assert train_models.main(["study", name, option, "1"]) == 2
        assert f"{option}: study {name!r} cannot be cut down" in capsys.readouterr().err
    assert train_models.main(["study", "lora", "--select"]) == 2
    assert "has no settings to choose" in capsys.readouterr().err
    with pytest.raises(StudyError):
        LORA.regime("")
    assert np.unique([regime.name for regime in LORA.regimes]).size == len(LORA.regimes)
