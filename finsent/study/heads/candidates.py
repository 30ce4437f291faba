"""Where a head's new dendrite starts: at random, or refined before it is inserted.

A refined one (see finsent.growth.candidate_pool) gets its output weight by a Newton step on the
loss, as far as validation agrees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from finsent.growth.candidate_pool import Residuals, candidate_outputs, train_candidates
from finsent.study.heads.stack import HeadStack

RIDGE = 1e-3
"""Added to the curvature of the Newton step, per example."""
STEP_SIZES = (1.0, 0.5, 0.25, 0.0)
"""Shares of the Newton step that validation chooses from; 0 leaves the function as it is."""


@dataclass(frozen=True)
class StackedExamples:
    """Examples of R runs: features (R, n, d), classes (R, n), and which rows are real (R, n)."""

    x: Tensor
    y: Tensor
    real: Tensor


def residuals(logits: Tensor, part: StackedExamples) -> Tensor:
    """one-hot minus probability, (R, n, C); zero for rows that are padding."""
    onehot = F.one_hot(part.y, logits.shape[-1]).float()
    return (onehot - logits.softmax(-1)) * part.real[..., None]


def random_candidate(heads: HeadStack, scale: float) -> None:
    """Insert V ~ N(0, scale^2), c = 0, t = 0: the function stays, training goes on from there."""
    shape = (heads.runs, heads.classes)
    heads.add_dendrite(
        heads.normal((heads.classes, heads.features), scale), torch.zeros(shape), torch.zeros(shape)
    )


HELD_OUT = 1 / 3
"""Share of the training part that candidates are chosen on where validation is left alone."""


def held_out(heads: HeadStack, train: StackedExamples) -> tuple[StackedExamples, StackedExamples]:
    """The training part as two, for fitting and for choosing, drawn from each run's generator."""
    chances = torch.stack(
        [torch.rand(train.real.shape[1], generator=generator) for generator in heads.generators]
    )
    later = (chances < HELD_OUT).float()
    return (
        StackedExamples(train.x, train.y, train.real * (1 - later)),
        StackedExamples(train.x, train.y, train.real * later),
    )


def refined_candidate(
    heads: HeadStack, train: StackedExamples, validation: StackedExamples
) -> None:
    """Insert the best of a pool of refined candidates for every class and run.

    Candidates are fitted on `train`; when to stop, which to take and how large a step to make is
    read off `validation`.

    Earlier dendrites do not feed the new one while it is refined; the weights that let them start
    at zero and train with everything else.
    """
    with torch.no_grad():
        errors = residuals(heads.logits(train.x), train)
        later_errors = residuals(heads.logits(validation.x), validation)
    weight, bias = train_candidates(
        lambda count: heads.normal((count, heads.features), heads.features**-0.5),
        heads.activation,
        Residuals(train.x, errors, train.real),
        Residuals(validation.x, later_errors, validation.real),
        bias=True,
    )
    with torch.no_grad():
        outputs = candidate_outputs(heads.activation, train.x, weight, bias)
        outputs = outputs * train.real[..., None]
        if heads.activation == "relu":
            # t * act(a v x) = a t * act(v x): unit size for the optimizer, the same function.
            size = (outputs.square().sum(1) / train.real.sum(1)[:, None]).sqrt().clamp_min(1e-6)
            weight, bias, outputs = weight / size[..., None], bias / size, outputs / size[:, None]
        chances = heads.logits(train.x).softmax(-1)
        slope = (errors * outputs).sum(1)
        curvature = (chances * (1 - chances) * outputs.square()).sum(1)
        step = slope / (curvature + RIDGE * train.real.sum(1)[:, None])
        output = _validated(heads, weight, bias, step, validation)
    heads.add_dendrite(weight, bias, output)


def _validated(
    heads: HeadStack, weight: Tensor, bias: Tensor, step: Tensor, validation: StackedExamples
) -> Tensor:
    """The share of the Newton step (R, C) with the lowest validation NLL, the same for all classes
    of a run."""
    base = heads.logits(validation.x)
    outputs = candidate_outputs(heads.activation, validation.x, weight, bias)
    losses = torch.stack(
        [nll(base + share * step[:, None, :] * outputs, validation) for share in STEP_SIZES]
    )
    shares = torch.tensor(STEP_SIZES)[losses.argmin(dim=0)]
    return shares[:, None] * step


def nll(logits: Tensor, part: StackedExamples) -> Tensor:
    """Mean negative log likelihood of each run's real examples, (R,), nats."""
    losses = F.cross_entropy(logits.transpose(1, 2), part.y, reduction="none")
    return (losses * part.real).sum(1) / part.real.sum(1)
