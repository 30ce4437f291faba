"""Training on tiny-phi: equal budgets, equal beginnings, growth, errors, the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finsent.config import (
    DendriteConfig,
    TrainConfig,
    arm_config,
)
from finsent.data.registry import load_dataset, make_split
from finsent.growth.grower import DendriteGrower
from finsent.models.adapter_files import load_adapter
from finsent.models.backbones import (
    Backbone,
    entering_hidden_states,
)
from finsent.results import runs
from finsent.training import loop
from finsent.training.adapted_model import (
    AdaptedModel,
    adopt_grown_modules,
    build_model,
    growable_maps,
)
from finsent.training.progress import Validation
from tests.training_factory import BASE, CPU, DENDRITES, make_run

ROOT = Path(__file__).resolve().parent.parent


def test_the_arms_get_the_same_budget_and_the_control_the_same_size(
    trained: dict[str, runs.Run],
) -> None:
    metrics = {arm: run.metrics for arm, run in trained.items()}
    assert len({(m["optimizer_steps"], m["epochs"], m["n_test"]) for m in metrics.values()}) == 1
    assert metrics["baseline"]["dendrites"] == metrics["matched"]["dendrites"] == 0
    assert metrics["dendritic"]["dendrites"] == 1
    target = metrics["dendritic"]["trainable_params"]
    assert target > metrics["baseline"]["trainable_params"]
    # The cheapest step a rank can take: one more on a layer that maps 64 to 64.
    assert abs(metrics["matched"]["trainable_params"] - target) <= 64
    assert len({run.config["split_sha256"] for run in trained.values()}) == 1


def test_until_the_first_dendrite_both_runs_are_the_same_run(trained: dict[str, runs.Run]) -> None:
    baseline, dendritic = trained["baseline"].history, trained["dendritic"].history
    assert dendritic[0]["event"] == "grew dendrite 1"
    for key in ("train_loss", "val_loss", "val_accuracy", "learning_rate", "trainable_params"):
        assert baseline[0][key] == dendritic[0][key]
    assert baseline[1]["train_loss"] != dendritic[1]["train_loss"]
    # One rule for the schedule; growth multiplies it by what the configuration says.
    factors = [1.0, DENDRITES.learning_rate_factor, DENDRITES.learning_rate_factor]
    assert [e["learning_rate"] for e in dendritic] == [
        e["learning_rate"] * factor for e, factor in zip(baseline, factors, strict=True)
    ]


@pytest.mark.parametrize("wrecked", [1, 2])
def test_growth_starts_from_one_whole_epoch(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrecked: int
) -> None:
    """The library rolls back the maps it knows; LoRA A, which it does not, has to follow."""
    data = load_dataset("sample")
    split = make_split(data, 0)
    ids = tiny.tokenize([e.text for e in data.examples], 64)
    states = entering_hidden_states(tiny, ids, 0)
    # The epochs before are fine; this one wrecks the model, and growth follows it. What the library
    # goes back to is never the first epoch.
    original = loop.learning_rate_at
    monkeypatch.setattr(
        loop,
        "learning_rate_at",
        lambda step, total, c: (
            original(step, total, c) * (100 if 13 * wrecked <= step < 13 * wrecked + 13 else 1)
        ),
    )
    validations: list[Validation] = []
    kept: list[dict[str, torch.Tensor]] = []
    validate = loop.validate
    monkeypatch.setattr(
        loop,
        "validate",
        lambda *given: (validations.append(validate(*given)), validations[-1])[1],
    )
    go_back = AdaptedModel.go_back

    def spy(model: Any, best: Any) -> None:
        go_back(model, best)
        kept.append(model.snapshot())
        kept.append(best)

    monkeypatch.setattr(AdaptedModel, "go_back", spy)
    config = replace(BASE, epochs=5, treatment=DendriteConfig(patience=1, grow_by=wrecked))
    loop.train(
        config,
        tiny,
        loop.TrainingData(
            states, [e.label for e in data.examples], 3, split.train, split.validation
        ),
        tmp_path,
    )
    after, best = kept[:2]
    assert validations[-1].epoch == 4
    assert [v.epoch for v in validations[: wrecked + 1]] == list(range(wrecked + 1))
    losses = [v.nll for v in validations[: wrecked + 1]]
    assert losses.index(min(losses)) == wrecked - 1
    for name, tensor in best.items():
        torch.testing.assert_close(after[name], tensor, atol=0, rtol=0)
    assert any(".dendrites." in name for name in after)


def test_the_dendritic_model_is_a_state_trained_with_dendrites(
    trained: dict[str, runs.Run],
) -> None:
    run = trained["dendritic"]
    assert run.history[run.metrics["best_epoch"]]["dendrites"] == 1
    losses = [e["val_loss"] for e in run.history if e["dendrites"] > 0]
    assert run.metrics["validation"]["nll"] == min(losses)
    assert run.metrics["best_before_growth"]["nll"] == run.history[0]["val_loss"]
    assert 0 < run.metrics["dendrite_logit_share"] < 2
    assert (run.folder / "PAI.png").read_bytes().startswith(b"\x89PNG")
    expected = [*runs.RUN_FILES, runs.VALIDATION_FILE, "PAI.png"]
    assert sorted(p.name for p in run.folder.iterdir()) == sorted(expected)


@pytest.mark.parametrize("arm", ["baseline", "dendritic", "matched"])
def test_same_seed_same_numbers_bitwise(
    arm: str, trained: dict[str, runs.Run], tmp_path: Path, tiny_environment: None
) -> None:
    first = trained[arm]
    config = TrainConfig.from_dict(first.config["config"])
    second = make_run(config, tmp_path / "artifacts")
    for name in ("adapter.safetensors", "predictions.csv"):
        assert (first.folder / name).read_bytes() == (second / name).read_bytes()


def test_another_seed_gives_another_split_and_other_numbers(
    trained: dict[str, runs.Run], tmp_path: Path, tiny_environment: None
) -> None:
    other = runs.read_run(make_run(replace(BASE, seed=1), tmp_path / "artifacts"))
    assert other.config["split_sha256"] != trained["baseline"].config["split_sha256"]
    assert other.history[0]["train_loss"] != trained["baseline"].history[0]["train_loss"]


def test_asking_for_dendrites_and_getting_none_is_said(
    tmp_path: Path, tiny_environment: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = arm_config(BASE, "dendritic", DendriteConfig(patience=50))
    metrics = runs.read_run(make_run(config, tmp_path / "artifacts")).metrics
    assert metrics["dendrites"] == 0
    assert metrics["dendrites_requested"]
    assert metrics["dendrite_logit_share"] is None
    assert "asked for dendrites and kept none" in capsys.readouterr().err


def test_several_dendrites_on_the_head_alone(tmp_path: Path, tiny_environment: None) -> None:
    dendrites = DendriteConfig(
        placement=("score",), activation="tanh", max_dendrites=2, patience=1, grow_by=0
    )
    base = replace(BASE, epochs=8, learning_rate=0.05)
    run = runs.read_run(make_run(arm_config(base, "dendritic", dendrites), tmp_path / "artifacts"))
    assert next(e["event"] for e in run.history if e["event"]) == "grew dendrite 1"
    adapter = load_adapter(run.folder / "adapter.safetensors")
    assert adapter.activation == "tanh"
    assert adapter.head.n_dendrites == run.metrics["dendrites"] >= 1
    assert all(b.n_dendrites == 0 for _, b in adapter.layers.values())


def test_a_selected_state_with_fewer_dendrites_than_the_last_is_restored(
    tiny: Backbone, tmp_path: Path
) -> None:
    model = build_model(BASE, tiny, 3)
    maps = growable_maps(model, ("score",))
    with DendriteGrower(maps, DendriteConfig(patience=1), CPU, tmp_path) as grower:
        adopt_grown_modules(model, grower.modules)
        before = model.snapshot()
        expected = {n: t.clone() for n, t in model.tensors().items()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for score in (0.5, 0.6, 0.4):
            grower.epoch_end(score, optimizer)
        assert model.head.n_dendrites == 1
        with torch.no_grad():
            for tensor in model.tensors().values():
                tensor += 1.0
        model.restore(before)
    assert model.head.n_dendrites == 0
    assert {n: t.tolist() for n, t in model.tensors().items()} == {
        n: t.tolist() for n, t in expected.items()
    }


def test_a_diverging_loss_stops_the_run_and_keeps_the_last_good_state(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_dataset("sample")
    split = make_split(data, 0)
    ids = tiny.tokenize([e.text for e in data.examples], 64)
    states = entering_hidden_states(tiny, ids, 0)
    original = loop.learning_rate_at
    monkeypatch.setattr(
        loop,
        "learning_rate_at",
        lambda step, total, c: original(step, total, c) * (1.0 if step < 20 else 1e30),
    )
    with pytest.raises(loop.TrainingDiverged, match=r"epoch 1 .*after epoch 0 is kept in"):
        loop.train(
            BASE,
            tiny,
            loop.TrainingData(
                states, [e.label for e in data.examples], 3, split.train, split.validation
            ),
            tmp_path,
        )
    kept = load_adapter(tmp_path / "last_good.safetensors")
    assert all(np.isfinite(a).all() for a, _ in kept.layers.values())


TrainCommand = Callable[..., subprocess.CompletedProcess[str]]


def command(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "train_models.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "FINSENT_CACHE_DIR": str(cache)},
    )


@pytest.mark.slow
def test_the_trainer_makes_verifiable_artifacts_from_the_command_line(
    tmp_path: Path, tiny_cache: Path, train_command: TrainCommand
) -> None:
    options = ["--backbone", "tiny-phi", "--dataset", "sample", "--epochs", "2", "--grow-by", "0"]
    root = tmp_path / "artifacts"
    made = command("train", *options, "--artifacts", str(root), cache=tiny_cache)
    assert made.returncode == 0, made.stderr
    found = runs.find_runs(root)
    assert [run.arm for run in found] == ["baseline", "dendritic", "matched"]
    assert made.stdout.count("test accuracy") == 3
    for run in found:
        assert run.config["command"] == "python train_models.py train " + " ".join(options)
        assert json.dumps(run.config).count(str(tmp_path)) == 0
    assert train_command("verify", "--artifacts", str(root)).returncode == 0
    drawn = train_command("figures", "--artifacts", str(root))
    assert drawn.returncode == 0, drawn.stderr
    names = {"Accuracy_Improvement.png", "Dendrite_vs_Baseline_Training.png", "PAI.png"}
    assert {p.name for p in (root / "figures").iterdir()} == names
    assert train_command("verify", "--artifacts", str(root)).returncode == 0
    manifest = (root / "SHA256SUMS").read_bytes()
    again = train_command("train", *options, "--artifacts", str(root))
    assert again.stdout.count("already trained") == 3
    assert (root / "SHA256SUMS").read_bytes() == manifest
    other = train_command("train", *options, "--lora-r", "4", "--artifacts", str(root))
    assert other.returncode == 2
    assert "was trained with other settings" in other.stderr
    # One byte of one file.
    target = found[0].folder / "adapter.safetensors"
    content = bytearray(target.read_bytes())
    content[-1] ^= 1
    target.write_bytes(content)
    spoilt = train_command("verify", "--artifacts", str(root))
    assert spoilt.returncode == 1
    assert "adapter.safetensors" in spoilt.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "matched"], "add 'dendritic' to --arms"),
        (["--dataset", "nope"], "nope"),
        (["--backbone", "no/such-model", "--arms", "baseline"], "could not load backbone"),
        (["--workers", "0"], "--workers"),
        (["--target-modules", "qq", "--arms", "baseline"], "no linear layer is called qq"),
        (["--grow-by", "11"], "leaves no epoch"),
    ],
)
def test_bad_input_is_a_one_line_error(
    arguments: list[str], message: str, tmp_path: Path, train_command: TrainCommand
) -> None:
    options = ["--backbone", "tiny-phi", "--dataset", "sample", "--artifacts", str(tmp_path)]
    failed = train_command(*options, *arguments)
    # A mistake that is seen before anything is made ends with 2, a run that failed with 1.
    assert failed.returncode == (1 if "runs failed" in failed.stderr else 2)
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error:")]
    assert any(message in line for line in errors), failed.stderr
    assert "Traceback" not in failed.stderr
