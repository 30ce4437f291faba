"""Growth that leaves a run its optimizer, and dendrites that are dropped when they do not pay."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from finsent.config import ConfigError, DendriteConfig, Restarts, TrainConfig, arm_config
from finsent.results import runs
from finsent.study.lora.stack import LoraStack
from finsent.study.lora.stack_runs import RunResult, StackRun
from finsent.study.lora.training import train_stack
from finsent.training import loop, scheduling
from finsent.training.optimization import carry_over, new_optimizer
from finsent.training.progress import UNINTERRUPTED
from tests.test_lora_stack import CONFIG, CPU, Trainer, context_for, initial_of, row
from tests.test_study_lora import HereChild, plan_of
from tests.test_study_lora import here as here

pytestmark = pytest.mark.slow

STALLED = DendriteConfig(grow_by=0, patience=9, restart="stalled")
"""Growth after the first epoch, long before patience would have run out."""
WORSE = replace(STALLED, grow_by=1)
"""After the second, which validates worse than the first: still there is patience."""


@pytest.fixture
def silent_dendrites(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dendrites that never learn to say anything, in the trainer and in a stack: a run with them
    differs from the baseline only by what growth does to its optimizer."""

    def carried(
        former: torch.optim.Optimizer,
        before: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        after: Mapping[str, Tensor],
    ) -> None:
        carry_over(former, before, optimizer, after)
        for name, tensor in after.items():
            if name not in before:
                tensor.register_hook(torch.zeros_like)

    def grown(self: LoraStack, index: int, seed: int, init_scale: float) -> None:
        grow(self, index, seed, init_scale)
        dead = {
            name: torch.zeros_like(tensor)
            for name, tensor in self.tensors(index).items()
            if name.endswith((".dendrite", ".output_weights"))
        }
        assert dead
        self.put(self.owned, index, dead)

    grow = LoraStack.grow
    monkeypatch.setattr(LoraStack, "grow", grown)
    monkeypatch.setattr(loop, "carry_over", carried)


def test_an_optimizer_takes_over_what_the_one_before_knew_and_starts_afresh_with_the_rest() -> None:
    torch.manual_seed(0)
    config = TrainConfig(backbone="tiny-phi", dataset="sample")
    kept, grown = (torch.nn.Parameter(torch.randn(3)) for _ in range(2))
    wide = torch.nn.Parameter(torch.randn(1, 3))
    former = new_optimizer({1.0: [kept, wide]}, config, CPU)
    for _ in range(3):
        kept.grad, wide.grad = torch.randn(3), torch.randn(1, 3)
        former.step()
    same, fresh = (torch.nn.Parameter(p.detach().clone()) for p in (kept, grown))
    wider = torch.nn.Parameter(torch.cat([wide.detach(), torch.zeros(1, 3)]))
    optimizer = new_optimizer({1.0: [same, fresh, wider]}, config, CPU)
    carry_over(
        former,
        {"kept": kept, "wide": wide},
        optimizer,
        {"kept": same, "fresh": fresh, "wide": wider},
    )
    anew = torch.nn.Parameter(fresh.detach().clone())
    of_one = new_optimizer({1.0: [anew]}, config, CPU)
    gradient, row_gradient = torch.randn(3), torch.randn(1, 3)
    kept.grad, same.grad, fresh.grad, anew.grad = (gradient.clone() for _ in range(4))
    wide.grad = row_gradient
    wider.grad = torch.cat([row_gradient, torch.zeros(1, 3)])
    for each in (former, optimizer, of_one):
        each.step()
    torch.testing.assert_close(same, kept, atol=0, rtol=0)
    torch.testing.assert_close(wider[:1], wide, atol=0, rtol=0)
    torch.testing.assert_close(fresh, anew, atol=0, rtol=0)


def losses_of(
    folder: Path, dendrites: DendriteConfig | None, monkeypatch: pytest.MonkeyPatch
) -> loop.TrainResult:
    context = context_for(CONFIG)
    config = replace(CONFIG, seed=7, treatment=dendrites)
    return Trainer(config, 3, folder).run(initial_of(context, row(context, 3, 7)), monkeypatch)


def test_a_silent_dendrite_changes_nothing_where_growth_does_not_restart(
    tmp_path: Path,
    tiny_environment: None,
    monkeypatch: pytest.MonkeyPatch,
    silent_dendrites: None,
) -> None:
    baseline = losses_of(tmp_path / "a", None, monkeypatch)
    silent = losses_of(tmp_path / "b", WORSE, monkeypatch)
    restarted = losses_of(tmp_path / "c", replace(WORSE, restart="always"), monkeypatch)
    nlls = [[record.val_loss for record in r.history] for r in (baseline, silent, restarted)]
    assert nlls[0][1] > nlls[0][0], "growth does not find the run at its best"
    assert nlls[1] == pytest.approx(nlls[0], rel=1e-6)
    assert nlls[2][2:] != pytest.approx(nlls[0][2:], rel=1e-3)
    rates = [[record.learning_rate for record in r.history] for r in (baseline, silent)]
    assert rates[0] == rates[1]
    assert silent.history[1].event == f"grew dendrite 1{UNINTERRUPTED}"
    assert restarted.history[1].event == "grew dendrite 1"


def test_a_run_that_has_stalled_is_restarted_all_the_same(
    tmp_path: Path, tiny_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.learning_rate_at
    # The second epoch wrecks what the first one learned.
    monkeypatch.setattr(
        loop,
        "learning_rate_at",
        lambda step, total, c: original(step, total, c) * (100 if 13 <= step < 26 else 1),
    )
    found = losses_of(tmp_path / "grown", replace(STALLED, grow_by=1, patience=1), monkeypatch)
    nlls = [record.val_loss for record in found.history]
    assert nlls[0] < nlls[1]
    assert found.history[1].event == "grew dendrite 1"
    baseline = losses_of(tmp_path / "baseline", None, monkeypatch)
    assert found.history[2].learning_rate == baseline.history[2].learning_rate / 2


def grown(
    of: StackRun, baseline: RunResult, dendrites: DendriteConfig, **changes: object
) -> RunResult:
    forked = replace(of, fork=baseline.fork, **changes)  # type: ignore[arg-type]
    return train_stack(context_for(CONFIG, dendrites), [forked])[0]


def test_stacked_runs_go_on_as_the_trainers_do(
    tmp_path: Path, tiny_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = row(context_for(CONFIG), 3, 7)
    (baseline,) = train_stack(context_for(CONFIG, STALLED), [fresh])
    assert baseline.fork.snapshot is not None
    assert baseline.fork.validation.epoch == baseline.fork.epoch == 0
    same = grown(fresh, baseline, STALLED)
    assert same.validation_nlls == pytest.approx(baseline.validation_nlls[1:], rel=1e-6)
    always = replace(STALLED, restart="always")
    (restarting,) = train_stack(context_for(CONFIG, always), [fresh])
    assert restarting.fork.snapshot is None
    assert restarting.validation_nlls == baseline.validation_nlls
    restarted = grown(fresh, restarting, always)
    assert restarted.validation_nlls != pytest.approx(baseline.validation_nlls[1:], rel=1e-3)
    # One that does: what the first steps after growth do to it is AdamW's own first steps.
    one, other = (
        grown(fresh, baseline, replace(STALLED, init_scale=scale), candidates="random")
        for scale in (0.1, 0.5)
    )
    assert one.validation_nlls != other.validation_nlls
    expected = losses_of(tmp_path, STALLED, monkeypatch)
    found = [record.val_loss for record in expected.history[1:]]
    # The library draws other dendrites than the stack, which hardly matters for so short a run.
    assert one.validation_nlls == pytest.approx(found, rel=0.05)


def test_a_silent_dendrite_changes_nothing_in_a_stack_either(
    tiny_environment: None, silent_dendrites: None
) -> None:
    # Another seed and rank beside it, which is interrupted neither.
    fresh = [row(context_for(CONFIG), 3, 7), row(context_for(CONFIG), 4, 8, rank=3)]
    context = context_for(CONFIG, WORSE)
    baselines = train_stack(context, fresh)
    assert baselines[0].fork.validation.epoch == 0
    forked = [
        replace(one, fork=baseline.fork, candidates="random")
        for one, baseline in zip(fresh, baselines, strict=True)
    ]
    for found, baseline in zip(train_stack(context, forked), baselines, strict=True):
        assert found.validation_nlls == pytest.approx(baseline.validation_nlls[2:], rel=1e-5)
        assert found.dendrites == 1


def test_dendrites_that_do_not_pay_are_dropped_and_said_to_be(
    tmp_path: Path,
    tiny_environment: None,
    capsys: pytest.CaptureFixture[str],
    here: type[HereChild],
) -> None:
    # From the second epoch on the rate is far too high: nothing after it can be the best.
    dendrites = DendriteConfig(grow_by=0, patience=9, learning_rate_factor=400.0, prune=True)
    assert scheduling.execute(plan_of(tmp_path, dendrites=dendrites)) == []
    found = {run.arm: run for run in runs.find_runs(tmp_path)}
    dendritic, restart = found["dendritic"], found["restart"]
    assert dendritic.metrics["best_epoch"] == restart.metrics["best_epoch"] == 0
    assert dendritic.metrics["dendrites"] == 0
    assert dendritic.metrics["best_before_growth"]["epoch"] == 0
    assert dendritic.metrics["trainable_params"] == found["baseline"].metrics["trainable_params"]
    assert [line["dendrites"] for line in dendritic.history] == [0, 1, 1, 1]
    assert "kept none: no epoch with them validated better" in capsys.readouterr().err


def test_stacked_dendrites_that_do_not_pay_are_dropped(tiny_environment: None) -> None:
    fresh = row(context_for(CONFIG), 3, 7)
    harmful = DendriteConfig(grow_by=0, patience=9, learning_rate_factor=400.0)
    (baseline,) = train_stack(context_for(CONFIG, harmful), [fresh])
    kept = grown(fresh, baseline, harmful, candidates="random")
    assert kept.dendrites == 1
    assert kept.selected.nll > baseline.fork.validation.nll
    dropped = grown(fresh, baseline, replace(harmful, prune=True), candidates="random")
    assert (dropped.dendrites, dropped.selected) == (0, baseline.fork.validation)
    assert dropped.trainable_params == baseline.trainable_params < dropped.trained_params
    assert set(dropped.tensors) == set(baseline.fork.tensors)
    for name, tensor in baseline.fork.tensors.items():
        torch.testing.assert_close(dropped.tensors[name], tensor.half().float())


def test_controls_are_restarted_only_where_the_dendritic_run_was(
    tmp_path: Path,
    tiny_environment: None,
    here: type[HereChild],
) -> None:
    assert scheduling.execute(plan_of(tmp_path, dendrites=STALLED, restart_matched=True)) == []
    found = {run.arm: run for run in runs.find_runs(tmp_path)}
    assert found["dendritic"].history[0]["event"] == f"grew dendrite 1{UNINTERRUPTED}"
    assert found["restart"].config["config"]["treatment"]["epochs"] == []
    for arm in ("baseline", "restart", "matched"):
        assert [line["event"] for line in found[arm].history] == [None] * 4
    assert [line["val_loss"] for line in found["restart"].history] == [
        line["val_loss"] for line in found["baseline"].history
    ]
    # A later command with another rule copies what that run did, not what its own would do.
    later = plan_of(tmp_path, dendrites=replace(STALLED, restart="always"))
    assert scheduling._job(later, "restart", 0, tmp_path).config.treatment == Restarts(())


def test_the_rules_survive_json_and_nonsense_is_refused() -> None:
    base = TrainConfig(backbone="tiny-phi", dataset="sample")
    for arm, treatment in (
        ("dendritic", DendriteConfig(restart="stalled", prune=True)),
        ("restart", Restarts((), prune=True)),
    ):
        config = arm_config(base, arm, treatment)
        assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match="restart must be one of"):
        DendriteConfig(restart="never")
