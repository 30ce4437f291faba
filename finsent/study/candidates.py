"""Where a new dendrite starts: at random, or refined before it is inserted.

Refined candidates follow Cascade-Correlation (Fahlman & Lebiere 1990): a small pool per class is
trained to correlate with what the head still gets wrong, the best one is inserted with the output
weight of a Newton step, and only if validation agrees. Residual fitting overfits, so both the
moment to stop and the choice of the pool are made on validation sentences.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from finsent.dendritic_linear import activation_function
from finsent.study.heads import HeadStack

POOL = 8
STEPS = 60
CHECK_EVERY = 5
LEARNING_RATE = 0.03
RIDGE = 1e-3
"""Added to the curvature of the Newton step, per example."""
STEP_SIZES = (1.0, 0.5, 0.25, 0.0)
"""Shares of the Newton step that validation chooses from; 0 leaves the function as it is."""


@dataclass(frozen=True)
class Part:
    """Examples of R runs: features (R, n, d), classes (R, n), and which rows are real (R, n)."""

    x: Tensor
    y: Tensor
    real: Tensor


def residuals(logits: Tensor, part: Part) -> Tensor:
    """one-hot minus probability, (R, n, C); zero for rows that are padding."""
    onehot = F.one_hot(part.y, logits.shape[-1]).float()
    return (onehot - logits.softmax(-1)) * part.real[..., None]


def random_candidate(heads: HeadStack, scale: float) -> None:
    """Insert V ~ N(0, scale^2), c = 0, t = 0: the function stays, training goes on from there."""
    shape = (heads.runs, heads.classes)
    heads.add_dendrite(
        heads.normal((heads.classes, heads.features), scale), torch.zeros(shape), torch.zeros(shape)
    )


def refined_candidate(heads: HeadStack, train: Part, validation: Part) -> None:
    """Insert the best of POOL refined candidates for every class and run.

    Earlier dendrites do not feed the new one while it is refined; the weights that let them start
    at zero and train with everything else.
    """
    with torch.no_grad():
        wanted = residuals(heads.logits(train.x), train)
        wanted_later = residuals(heads.logits(validation.x), validation)
    weight, bias = _refine(heads, train, wanted, validation, wanted_later)
    activate = activation_function(heads.activation)
    with torch.no_grad():
        inner = train.x @ weight.transpose(1, 2) + bias[:, None, :]
        outputs = activate(inner) * train.real[..., None]
        if heads.activation == "relu":
            # t * act(a v x) = a t * act(v x): unit size for the optimizer, the same function.
            size = (outputs.square().sum(1) / train.real.sum(1)[:, None]).sqrt().clamp_min(1e-6)
            weight, bias, outputs = weight / size[..., None], bias / size, outputs / size[:, None]
        chances = heads.logits(train.x).softmax(-1)
        slope = (wanted * outputs).sum(1)
        curvature = (chances * (1 - chances) * outputs.square()).sum(1)
        step = slope / (curvature + RIDGE * train.real.sum(1)[:, None])
        output = _validated(heads, weight, bias, step, validation)
    heads.add_dendrite(weight, bias, output)


def _refine(
    heads: HeadStack, train: Part, wanted: Tensor, validation: Part, wanted_later: Tensor
) -> tuple[Tensor, Tensor]:
    """(R, C, d) and (R, C): of every class's pool, the state with the best validation score."""
    runs, classes, d = heads.runs, heads.classes, heads.features
    activate = activation_function(heads.activation)
    weight = heads.normal((POOL * classes, d), d**-0.5).requires_grad_()
    bias = torch.zeros(runs, POOL * classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], LEARNING_RATE)
    # Candidate p * C + c is about class c.
    targets, later = wanted.repeat(1, 1, POOL), wanted_later.repeat(1, 1, POOL)
    best = torch.full((runs, POOL * classes), -1.0)
    best_weight, best_bias = weight.detach().clone(), bias.detach().clone()
    for step in range(STEPS + 1):
        if step % CHECK_EVERY == 0:
            with torch.no_grad():
                inner = validation.x @ weight.transpose(1, 2) + bias[:, None, :]
                found = _correlation(activate(inner), later, validation.real)
                better = found > best
                best = torch.where(better, found, best)
                best_weight = torch.where(better[..., None], weight, best_weight)
                best_bias = torch.where(better, bias, best_bias)
        if step == STEPS:
            break
        inner = train.x @ weight.transpose(1, 2) + bias[:, None, :]
        loss = -_correlation(activate(inner), targets, train.real).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    winner = best.view(runs, POOL, classes).argmax(dim=1)
    rows = winner * classes + torch.arange(classes)
    return (
        best_weight.gather(1, rows[..., None].expand(-1, -1, d)),
        best_bias.gather(1, rows),
    )


def _correlation(outputs: Tensor, targets: Tensor, real: Tensor) -> Tensor:
    """|correlation| over a run's real examples, (R, units)."""
    weights = (real / real.sum(1, keepdim=True))[..., None]
    outputs = outputs - (outputs * weights).sum(1, keepdim=True)
    targets = targets - (targets * weights).sum(1, keepdim=True)
    covariance = (outputs * targets * weights).sum(1)
    spread = (outputs.square() * weights).sum(1) * (targets.square() * weights).sum(1)
    return covariance.abs() / (spread + 1e-12).sqrt()


def _validated(
    heads: HeadStack, weight: Tensor, bias: Tensor, step: Tensor, validation: Part
) -> Tensor:
    """The share of the Newton step (R, C) with the lowest validation NLL, the same for all classes
    of a run."""
    base = heads.logits(validation.x)
    activate = activation_function(heads.activation)
    outputs = activate(validation.x @ weight.transpose(1, 2) + bias[:, None, :])
    losses = torch.stack(
        [nll(base + share * step[:, None, :] * outputs, validation) for share in STEP_SIZES]
    )
    shares = torch.tensor(STEP_SIZES)[losses.argmin(dim=0)]
    return shares[:, None] * step


def nll(logits: Tensor, part: Part) -> Tensor:
    """Mean negative log likelihood of each run's real examples, (R,), nats."""
    losses = F.cross_entropy(logits.transpose(1, 2), part.y, reduction="none")
    return (losses * part.real).sum(1) / part.real.sum(1)
