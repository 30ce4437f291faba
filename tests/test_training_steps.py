"""What one optimizer step is made of: learning rate, class weights, batches, loss."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finsent.data.batches import epoch_batches
from finsent.training import optimization
from tests.training_factory import BASE


def test_the_learning_rate_warms_up_and_decays_to_zero() -> None:
    config = replace(BASE, learning_rate=1.0, warmup_fraction=0.1)
    rates = [optimization.learning_rate_at(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert optimization.learning_rate_at(100, 100, config) == 0.0


def test_class_weights_balance_and_survive_an_absent_class() -> None:
    weights = optimization.class_weights([0, 1, 1, 1, 2, 2], 3)
    assert weights.tolist() == pytest.approx([2.0, 2 / 3, 1.0])
    assert optimization.class_weights([0, 0], 2).tolist() == [0.5, 0.0]


def test_batches_cover_every_example_once_and_keep_lengths_together() -> None:
    lengths = np.random.default_rng(0).integers(5, 100, 500).tolist()
    batches = epoch_batches(range(100, 500), lengths, 16, seed=3, epoch=0)
    assert sorted(i for b in batches for i in b) == list(range(100, 500))
    assert len(batches) == math.ceil(400 / 16)
    padded = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    assert padded < 1.15 * sum(lengths[100:])
    again = epoch_batches(range(100, 500), lengths, 16, seed=3, epoch=0)
    later = epoch_batches(range(100, 500), lengths, 16, seed=3, epoch=1)
    assert batches == again != later


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_torchs_weighted_smoothed_cross_entropy(smoothing: float) -> None:
    logits = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([0, 1, 2, 2] * 3)
    weights = torch.tensor([0.5, 2.0, 1.3])
    ours = optimization.weighted_loss(logits, labels, weights, smoothing)
    theirs = F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_the_loss_aims_for_distributions_where_they_are_given() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 3, generator=generator)
    labels = torch.tensor([[0, 1, 2, 2, 1, 0], [1, 1, 0, 2, 0, 2]])
    weights = torch.tensor([[[0.5, 2.0, 1.3]], [[1.0, 1.0, 1.0]]])
    targets = torch.rand(2, 6, 3, generator=generator).softmax(dim=2)
    real = torch.ones(2, 6)
    ours = optimization.weighted_loss(logits, labels, weights, 0.1, real, targets)
    for run in range(2):
        # torch divides by the number of examples where targets are distributions.
        summed = F.cross_entropy(
            logits[run],
            targets[run],
            weight=weights[run, 0],
            label_smoothing=0.1,
            reduction="sum",
        )
        shares = weights[run, 0][labels[run]].sum()
        torch.testing.assert_close(ours[run], summed / shares)
    one_hot = F.one_hot(labels, 3).float()
    same = optimization.weighted_loss(logits, labels, weights, 0.1, real, one_hot)
    torch.testing.assert_close(same, optimization.weighted_loss(logits, labels, weights, 0.1, real))
