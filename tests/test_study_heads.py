"""Stacked heads: alone or together, against the reference module, and what growing may not do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finsent.config import ACTIVATIONS
from finsent.data.folds import Fold
from finsent.models.adapter_files import DendriticMap
from finsent.models.dendritic_linear import DendriticLinear
from finsent.study.head_recipe import HEAD_ARMS, HeadRecipe
from finsent.study.heads.candidates import (
    StackedExamples,
    held_out,
    nll,
    random_candidate,
    refined_candidate,
    residuals,
)
from finsent.study.heads.stack import HeadStack, matching_hidden_units
from finsent.study.heads.training import FeatureTransform, stacked_examples, train_heads
from finsent.study.rows import StudyError

CLASSES, WIDTH = 3, 6


def generators(runs: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(run) for run in range(runs)]


def grown(runs: int, dendrites: int, activation: str = "relu") -> HeadStack:
    heads = HeadStack(WIDTH, CLASSES, generators(runs), activation=activation)
    for _ in range(dendrites):
        random_candidate(heads, 0.5)
    for name, tensor in heads.tensors.items():
        if "output" in name or "recurrent" in name or "bias" in name:
            heads.tensors[name] = torch.randn_like(tensor).requires_grad_()
    return heads


def folds_of(count: int, rows: int = 90) -> list[Fold]:
    found = []
    for number in range(count):
        order = np.random.default_rng(number).permutation(rows)
        found.append(Fold(0, number, np.sort(order[:60]), np.sort(order[60:75]), order[75:]))
    return found


def data(rows: int = 90) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes that no line divides: the sign of a product, and a third by a sum."""
    x = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(7))
    y = (x[:, 0] * x[:, 1] > 0).long()
    y[x[:, 2] + x[:, 3] > 1.2] = 2
    return x, y


def stacked(folds: list[Fold], rows: int = 90) -> tuple[StackedExamples, StackedExamples]:
    x, y = data(rows)
    views = [FeatureTransform.fit(x[torch.as_tensor(fold.train)], None) for fold in folds]
    train, validation = (
        stacked_examples(views, x, y, [getattr(fold, part) for fold in folds])
        for part in ("train", "validation")
    )
    return train, validation


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dendrites", [0, 1, 3])
def test_a_stacked_head_is_the_dendritic_map(activation: str, dendrites: int) -> None:
    heads = grown(4, dendrites, activation)
    x = torch.randn(4, 5, WIDTH)
    found = heads.logits(x)
    for run in range(4):
        t = {
            name: torch.nn.Parameter(tensor[run].detach()) for name, tensor in heads.tensors.items()
        }
        map_ = DendriticLinear(t["weight"], t["bias"], activation)
        outputs = [t[f"dendrites.{i}.output"] for i in range(dendrites)]
        map_.adopt(
            DendriticMap(
                t["weight"],
                t["bias"],
                tuple(
                    (t[f"dendrites.{i}.weight"], t[f"dendrites.{i}.bias"]) for i in range(dendrites)
                ),
                torch.nn.Parameter(torch.stack(outputs)) if dendrites else None,
                tuple(t[f"dendrites.{i}.recurrent"] for i in range(1, dendrites)),
            )
        )
        torch.testing.assert_close(found[run], map_(x[run]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arm", HEAD_ARMS)
def test_a_run_in_a_stack_is_the_run_alone(arm: str) -> None:
    folds = folds_of(3)
    recipe = HeadRecipe(epochs=9, dendrites=2, batch_size=16)
    together = train_heads(arm, recipe, folds, *stacked(folds), CLASSES, 4)
    for number, fold in enumerate(folds):
        alone = train_heads(arm, recipe, [fold], *stacked([fold]), CLASSES, 4)
        assert alone.best_epoch == [together.best_epoch[number]]
        assert alone.dendrites == [together.dendrites[number]]
        for name, tensor in alone.heads.tensors.items():
            torch.testing.assert_close(
                tensor[0], together.heads.tensors[name][number], atol=1e-5, rtol=1e-4
            )


def test_arms_are_one_run_until_something_grows() -> None:
    folds = folds_of(2)
    recipe = HeadRecipe(epochs=8, dendrites=1, batch_size=16, learning_rate_factor=1e-9)
    # With nothing learned after the growth, all arms but the larger one end where they stood.
    ends = {
        arm: train_heads(arm, recipe, folds, *stacked(folds), CLASSES, 4)
        for arm in ("restart", "dendritic")
    }
    same = ends["restart"].heads.tensors
    for name in ("weight", "bias"):
        torch.testing.assert_close(same[name], ends["dendritic"].heads.tensors[name])
    assert ends["restart"].optimizer_steps == ends["dendritic"].optimizer_steps == 32


def test_a_new_dendrite_leaves_the_function_or_betters_it() -> None:
    folds = folds_of(3)
    train, validation = stacked(folds)
    heads = HeadStack(WIDTH, CLASSES, generators(3))
    before = heads.logits(validation.x).detach()
    random_candidate(heads, 0.1)
    torch.testing.assert_close(heads.logits(validation.x), before)
    refined_candidate(heads, train, validation)
    after = heads.logits(validation.x).detach()
    assert bool((nll(after, validation) <= nll(before, validation) + 1e-6).all())
    assert heads.n_dendrites == 2
    assert heads.trainable_params == 2 * CLASSES * (WIDTH + 2) + CLASSES + CLASSES * (WIDTH + 1)


def test_candidates_may_leave_validation_alone() -> None:
    folds = folds_of(3)
    train, validation = stacked(folds)
    heads = HeadStack(WIDTH, CLASSES, generators(3))
    fit, choose = held_out(heads, train)
    assert torch.equal(fit.real + choose.real, train.real)
    shares = choose.real.sum(1) / train.real.sum(1)
    assert bool(((shares > 0.15) & (shares < 0.5)).all())
    assert not torch.equal(choose.real[0], choose.real[1])
    # Training with labels of validation turned around: what grows does not notice.
    recipe = HeadRecipe(epochs=4, dendrites=1, batch_size=16, chosen_on="training", prune=False)
    recipe = recipe.with_(learning_rate=1e-9)  # every epoch is the first one: nothing to choose
    turned = StackedExamples(validation.x, (validation.y + 1) % CLASSES, validation.real)
    ends = [
        train_heads("dendritic", recipe, folds, train, part, CLASSES, 4).heads.tensors
        for part in (validation, turned)
    ]
    torch.testing.assert_close(
        ends[0]["dendrites.0.weight"], ends[1]["dendrites.0.weight"], atol=1e-5, rtol=1e-4
    )


def test_refined_dendrites_learn_what_a_linear_head_cannot() -> None:
    rows = 600
    order = np.arange(rows)
    folds = [Fold(0, n, order[n::2][:200], order[1 - n :: 2][:80], order[-100:]) for n in (0, 1)]
    recipe = HeadRecipe(epochs=24, dendrites=3, batch_size=32, learning_rate=0.02, weight_decay=0.0)
    accuracy = {
        arm: np.mean(
            train_heads(arm, recipe, folds, *stacked(folds, rows), CLASSES, 8).validation_accuracy
        )
        for arm in ("restart", "dendritic")
    }
    assert accuracy["restart"] < 0.65
    assert accuracy["dendritic"] > accuracy["restart"] + 0.1


def test_what_did_not_pay_is_dropped_and_said() -> None:
    folds = folds_of(3)
    train, validation = stacked(folds)
    recipe = HeadRecipe(epochs=8, dendrites=1, batch_size=16, learning_rate_factor=1e3)
    pruned = train_heads("dendritic", recipe, folds, train, validation, CLASSES, 4)
    kept = train_heads("dendritic", recipe.with_(prune=False), folds, train, validation, CLASSES, 4)
    assert all(n == 1 for n in kept.dendrites)
    assert pruned.dendrites == [int(epoch > 3) for epoch in pruned.best_epoch]
    assert 0 in pruned.dendrites
    assert np.mean(pruned.validation_nll) < np.mean(kept.validation_nll)


def test_padding_is_never_learned_from() -> None:
    folds = folds_of(2)
    short = Fold(0, 0, folds[0].train[:40], folds[0].validation[:9], folds[0].test)
    mixed = train_heads(
        "baseline", HeadRecipe(epochs=6), [short, folds[1]], *stacked([short, folds[1]]), CLASSES, 3
    )
    alone = train_heads("baseline", HeadRecipe(epochs=6), [short], *stacked([short]), CLASSES, 3)
    torch.testing.assert_close(mixed.heads.tensors["weight"][0], alone.heads.tensors["weight"][0])
    train, _ = stacked([short, folds[1]])
    logits = torch.randn(2, train.x.shape[1], CLASSES)
    assert residuals(logits, train)[0, 40:].abs().sum() == 0


def test_what_a_head_sees_is_fitted_on_training_sentences_only() -> None:
    x, y = data()
    fold = folds_of(1)[0]
    rows = torch.as_tensor(fold.train)
    for dimensions in (None, 2):
        view = FeatureTransform.fit(x[rows], dimensions)
        seen = view(x[rows])
        torch.testing.assert_close(seen.mean(0), torch.zeros(seen.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(seen.std(0), torch.ones(seen.shape[1]), atol=1e-3, rtol=0)
        other = x.clone()
        other[torch.as_tensor(fold.test)] += 100
        torch.testing.assert_close(FeatureTransform.fit(other[rows], dimensions)(x[rows]), seen)
    assert stacked_examples([view], x, y, [fold.test]).x.shape == (1, len(fold.test), 2)


@pytest.mark.parametrize("dendrites", [1, 3, 8])
def test_the_control_is_of_equal_size(dendrites: int) -> None:
    for features in (8, 576):
        heads = HeadStack(
            features, CLASSES, generators(1), hidden=matching_hidden_units(features, 3, dendrites)
        )
        other = HeadStack(features, CLASSES, generators(1))
        for _ in range(dendrites):
            random_candidate(other, 0.1)
        one_unit = features + 1 + CLASSES
        assert abs(heads.trainable_params - other.trainable_params) <= one_unit / 2 + 1


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"candidates": "best"}, "candidates must be one of"),
        ({"activation": "gelu"}, "activation must be one of"),
        ({"score": "f1"}, "score must be one of"),
        ({"chosen_on": "test"}, "chosen_on must be one of"),
        ({"dendrites": 0}, "at least one growth"),
        ({"dendrites": 9, "epochs": 12}, "9 growths in 12 epochs"),
    ],
)
def test_impossible_recipes_are_refused(changes: dict[str, object], fault: str) -> None:
    with pytest.raises(StudyError, match=fault):
        HeadRecipe().with_(**changes)


def test_a_stack_that_diverges_or_has_no_such_arm_says_so() -> None:
    folds = folds_of(1)
    with pytest.raises(StudyError, match="arm must be one of"):
        train_heads("mlp", HeadRecipe(), folds, *stacked(folds), CLASSES, 2)
    train, validation = stacked(folds)
    train.x[0, 0, 0] = float("inf")
    with pytest.raises(StudyError, match="not finite in epoch 0"):
        train_heads("baseline", HeadRecipe(epochs=4), folds, train, validation, CLASSES, 8)
    with pytest.raises(ValueError, match="the state holds"):
        grown(1, 1).restore(grown(1, 0).snapshot())
