"""Runs stacked side by side are the trainer's runs, one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from finsent.config import (
    DendriteConfig,
    LoraConfig,
    MatchedCapacity,
    Restarts,
    TrainConfig,
    arm_config,
)
from finsent.data.folds import part_examples
from finsent.data.registry import Split, load_dataset
from finsent.growth import candidate_pool
from finsent.growth.grower import DendriteGrower
from finsent.models.adapters import linear_shapes, lora_ranks
from finsent.models.backbones import Backbone, entering_hidden_states, load_backbone, upper_blocks
from finsent.study.lora.stack import HEAD, LoraStack
from finsent.study.lora.stack_runs import GrowthRule, RunResult, StackContext, StackRun
from finsent.study.lora.training import train_stack
from finsent.study.rows import StudyError
from finsent.training import loop
from finsent.training.adapted_model import AdaptedModel, build_model
from finsent.training.fused_blocks import FusedBlocks

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
CONFIG = TrainConfig(
    backbone="tiny-phi",
    dataset="sample",
    epochs=4,
    learning_rate=5e-3,
    lora=LoraConfig(r=2, alpha=4.0),
    autocast=False,
    batch_size=16,
    label_smoothing=0.05,
)
DENDRITES = DendriteConfig(grow_by=1, patience=9)


@pytest.fixture
def context(tiny_environment: None) -> StackContext:
    return context_for(CONFIG)


def context_for(config: TrainConfig, dendrites: DendriteConfig = DENDRITES) -> StackContext:
    backbone = load_backbone("tiny-phi", "fp32", CPU)
    dataset = load_dataset("sample")
    token_ids = backbone.tokenize([e.text for e in dataset.examples], config.max_length)
    first = backbone.first_adapted_block(config.lora.last_layers)
    states = entering_hidden_states(backbone, token_ids, first)
    upper = upper_blocks(backbone.decoder, first)
    adapted = linear_shapes(upper, config.lora.target_modules)
    return StackContext(
        blocks=FusedBlocks(upper, {}, {}, 1.0),
        hidden_size=backbone.hidden_size,
        states=states,
        labels=torch.tensor([e.label for e in dataset.examples]),
        n_classes=3,
        adapted=adapted,
        config=config,
        dendrites=dendrites,
    )


def part(fold: int, seed: int, fraction: float = 1.0) -> Split:
    return part_examples(load_dataset("sample"), f"fold-{fold}", seed, fraction)


def row(
    context: StackContext, fold: int, seed: int, fraction: float = 1.0, rank: int = 2
) -> StackRun:
    split = part(fold, seed, fraction)
    ranks = dict.fromkeys(context.adapted, rank)
    return StackRun(seed, split.train, split.validation, split.test, ranks)


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A stack's names -> an adapter file's."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(".dendrite"):
            found[name.replace(".dendrite", ".dendrites.0.weight")] = tensor
        else:
            found[name] = tensor[None] if name.endswith(".output_weights") else tensor
    return found


class Trainer:
    """The trainer's own run of a configuration, started from a given state."""

    def __init__(self, config: TrainConfig, fold: int, folder: Path) -> None:
        self.backbone: Backbone = load_backbone("tiny-phi", "fp32", CPU)
        dataset = load_dataset("sample")
        texts = [e.text for e in dataset.examples]
        token_ids = self.backbone.tokenize(texts, config.max_length)
        first = self.backbone.first_adapted_block(config.lora.last_layers)
        self.states = entering_hidden_states(self.backbone, token_ids, first)
        self.labels = [e.label for e in dataset.examples]
        self.split = part(fold, config.seed)
        self.config, self.folder = config, folder

    def run(
        self, initial: Mapping[str, Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> loop.TrainResult:
        def started(config: TrainConfig, backbone: Backbone, n_classes: int) -> AdaptedModel:
            model = build_model(config, backbone, n_classes)
            model.copy_in(initial)
            return model

        monkeypatch.setattr(loop, "build_model", started)
        return loop.train(
            self.config,
            self.backbone,
            loop.TrainingData(self.states, self.labels, 3, self.split.train, self.split.validation),
            self.folder,
        )


def initial_of(context: StackContext, of: StackRun) -> dict[str, Tensor]:
    return renamed(stack_of(context, [of]).tensors(0))


def stack_of(
    context: StackContext, rows: Sequence[StackRun], *, dendrites: bool = False
) -> LoraStack:
    return LoraStack(
        context.blocks,
        context.adapted,
        [of.ranks for of in rows],
        [of.seed for of in rows],
        hidden_size=context.hidden_size,
        n_classes=3,
        scaling=2.0,
        dtype=torch.float32,
        device=CPU,
        dendrites=dendrites,
    )


def same_history(found: RunResult, expected: loop.TrainResult, since: int = 0) -> None:
    losses = [record.val_loss for record in expected.history[since:]]
    assert found.validation_nlls == pytest.approx(losses, rel=2e-5)
    assert found.selected.epoch == expected.selected.epoch
    assert found.selected.accuracy == expected.selected.accuracy
    assert found.optimizer_steps == expected.optimizer_steps
    assert found.trainable_params == expected.trainable_params


def test_a_stacked_run_is_the_trainers_and_knows_nothing_of_its_neighbours(
    context: StackContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other seeds, folds, sizes of the training part and ranks beside it.
    rows = [row(context, 3, 7), row(context, 0, 8, fraction=0.25), row(context, 5, 9, rank=5)]
    together = train_stack(context, rows)
    for index, one in enumerate(rows):
        (alone,) = train_stack(context, [one])
        assert together[index].validation_nlls == pytest.approx(alone.validation_nlls, rel=1e-5)
        assert torch.allclose(together[index].logits.test, alone.logits.test, atol=2e-3)
    trainer = Trainer(replace(CONFIG, seed=7), 3, tmp_path)
    expected = trainer.run(initial_of(context, rows[0]), monkeypatch)
    same_history(together[0], expected)
    assert len({r.optimizer_steps for r in together}) == 2, "a quarter of the data, fewer steps"
    trained = renamed(together[0].tensors)
    for name, tensor in expected.model.tensors().items():
        assert torch.allclose(trained[name], tensor, atol=2e-3), name
    logits = loop.class_logits(
        expected.model, trainer.states, trainer.split.test, trainer.states.lengths.tolist()
    )
    assert torch.allclose(together[0].logits.test, logits, atol=2e-2)


def test_restart_and_matched_runs_are_the_trainers(
    context: StackContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = row(context, 3, 7)
    (baseline,) = train_stack(context, [fresh])
    assert baseline.fork.epoch == 1
    (restarted,) = train_stack(context, [replace(fresh, fork=baseline.fork)])
    restarts = Restarts((1,), DENDRITES.learning_rate_factor)
    config = arm_config(replace(CONFIG, seed=7), "restart", restarts)
    expected = Trainer(config, 3, tmp_path).run(initial_of(context, fresh), monkeypatch)
    same_history(restarted, expected, since=2)

    treatment = MatchedCapacity(3000, restarts)
    ranks = lora_ranks(context.adapted, 2, context.hidden_size * 3, treatment)
    assert len(set(ranks.values())) == 2, "uneven ranks are the case worth testing"
    larger = replace(fresh, ranks=ranks, restart_after=1)
    matched = train_stack(context, [fresh, larger])[1]
    config = arm_config(replace(CONFIG, seed=7), "matched", treatment)
    expected = Trainer(config, 3, tmp_path).run(initial_of(context, larger), monkeypatch)
    same_history(matched, expected)


def test_a_dendritic_run_is_what_perforatedai_makes_of_it(
    context: StackContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = row(context, 3, 7)
    (baseline,) = train_stack(context, [fresh])
    config = arm_config(replace(CONFIG, seed=7), "dendritic", DENDRITES)
    drawn: dict[str, Tensor] = {}
    epoch_end = DendriteGrower.epoch_end

    def noted(self: DendriteGrower, *args: object, **options: object) -> object:
        event = epoch_end(self, *args, **options)  # type: ignore[arg-type]
        if event is not None:
            for name, module in self.modules.items():
                drawn[name] = module.dendrites[0].weight.detach().clone()  # type: ignore[union-attr]
        return event

    monkeypatch.setattr(DendriteGrower, "epoch_end", noted)
    expected = Trainer(config, 3, tmp_path).run(initial_of(context, fresh), monkeypatch)
    assert [r.event for r in expected.history] == [None, "grew dendrite 1", None, None]
    spread = torch.cat([tensor.flatten() for tensor in drawn.values()])
    assert float(spread.std()) == pytest.approx(DENDRITES.init_scale, rel=0.1)

    def grown_like_that(self: LoraStack, index: int, seed: int, init_scale: float) -> None:
        grow(self, index, seed, init_scale)
        own = self.tensors(index)
        for name, tensor in drawn.items():
            assert own[f"{name}.dendrite"].std() == pytest.approx(init_scale, rel=0.5)
            own[f"{name}.dendrite"] = tensor
        self.load(index, own)

    grow = LoraStack.grow
    monkeypatch.setattr(LoraStack, "grow", grown_like_that)
    rows = [
        replace(fresh, fork=baseline.fork),
        replace(fresh, fork=baseline.fork, candidates="random"),
    ]
    restarted, dendritic = train_stack(context, rows)
    same_history(dendritic, expected, since=2)
    assert (restarted.dendrites, dendritic.dendrites) == (0, 1)
    assert restarted.validation_nlls != dendritic.validation_nlls


@pytest.mark.parametrize("seed", range(6))
def test_growth_is_decided_as_perforatedai_decides_it(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    config = DendriteConfig(patience=1 + seed % 3, grow_by=4)
    epochs = 8
    rule = GrowthRule(config, epochs)
    linear = torch.nn.Linear(3, 2, bias=False)
    with DendriteGrower({"score": linear}, config, CPU, tmp_path) as grower:
        for epoch in range(epochs):
            nll = float(generator.uniform(0.2, 1.0))
            optimizer = torch.optim.SGD(grower.parameters(), lr=0.1)
            event = grower.epoch_end(math.exp(-nll), optimizer, may_grow=epoch < epochs - 1)
            assert rule.observe(epoch, nll) == (event is not None), f"epoch {epoch}"
    assert rule.grown


def test_refined_dendrites_are_not_drawn_ones_and_know_no_neighbours(
    context: StackContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What refining is worth is tested elsewhere.
    monkeypatch.setattr(candidate_pool, "STEPS", 10)
    monkeypatch.setattr(candidate_pool, "POOL", 2)
    fresh = [row(context, 3, 7), row(context, 4, 8)]
    baselines = train_stack(context, fresh)
    starts = [replace(r, fork=b.fork) for r, b in zip(fresh, baselines, strict=True)]
    grown_only = train_stack(context, [replace(r, candidates="random") for r in starts])
    refined = train_stack(context, [replace(r, candidates="refined") for r in starts])
    for plain, better in zip(grown_only, refined, strict=True):
        assert plain.validation_nlls != better.validation_nlls
    alone = train_stack(context, [replace(starts[1], candidates="refined")])[0]
    assert refined[1].validation_nlls == pytest.approx(alone.validation_nlls, rel=1e-3)


def test_a_stack_keeps_padding_at_zero_and_gives_tensors_back(context: StackContext) -> None:
    rows = [row(context, 0, 1, rank=2), row(context, 0, 2, rank=4)]
    stack = stack_of(context, rows, dendrites=True)
    plain = stack.tensors(0)
    assert not any("dendrite" in name for name in plain)
    assert {len(t) for n, t in plain.items() if n.endswith("lora_A.weight")} == {2}
    stack.grow(0, 5, 0.1)
    assert (stack.dendrites_of(0), stack.dendrites_of(1)) == (1, 0)
    grown = stack.tensors(0)
    assert grown[f"{HEAD}.dendrite"].shape == grown[f"{HEAD}.weight"].shape
    count = sum(t.numel() for t in grown.values())
    assert stack.parameters_of(0) == count
    other = stack_of(context, [rows[1], rows[0]], dendrites=True)
    other.load(1, grown)
    assert {n: t.tolist() for n, t in other.tensors(1).items()} == {
        n: t.tolist() for n, t in grown.items()
    }
    with pytest.raises(ValueError, match="without room"):
        stack_of(context, rows).grow(0, 1, 0.1)


def test_a_loss_that_is_not_finite_is_reported(context: StackContext) -> None:
    wild = replace(context, config=replace(context.config, learning_rate=1e30))
    with pytest.raises(StudyError, match="seed 7 became NaN or infinite in epoch 0"):
        train_stack(wild, [row(wild, 3, 7)])


def test_a_run_may_begin_with_what_another_ended_with(context: StackContext) -> None:
    first = train_stack(context, [row(context, 0, 3)])[0]
    # At next to no learning rate a run stays where it began.
    still = replace(context, config=replace(context.config, learning_rate=1e-9))
    fresh = row(still, 0, 5)
    (begun,) = train_stack(still, [replace(fresh, initial=first.tensors)])
    assert begun.tensors.keys() == first.tensors.keys()
    for name, tensor in first.tensors.items():
        torch.testing.assert_close(begun.tensors[name], tensor, atol=1e-5, rtol=0)
    (drawn,) = train_stack(still, [fresh])
    assert not torch.allclose(drawn.tensors[f"{HEAD}.weight"], first.tensors[f"{HEAD}.weight"])


def test_targets_in_place_of_labels_are_what_a_run_learns(context: StackContext) -> None:
    fresh = row(context, 0, 3)
    # Every sentence is said to be neutral, whatever its label.
    neutral = torch.zeros(len(context.labels), 3)
    neutral[:, 1] = 1
    (misled,) = train_stack(replace(context, targets=neutral), [fresh], last_state=True)
    assert misled.last_logits is not None
    assert bool((misled.last_logits.validation.argmax(dim=1) == 1).all())
    one_hot = torch.nn.functional.one_hot(context.labels, 3).float()
    (same,), (plain,) = (
        train_stack(replace(context, targets=targets), [fresh]) for targets in (one_hot, None)
    )
    torch.testing.assert_close(same.logits.test, plain.logits.test)
