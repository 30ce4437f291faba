"""Training a dendrite's weights before it is inserted, as Cascade-Correlation does.

Fahlman and Lebiere (1990): a small pool of candidates for every output unit is trained to
correlate with what the map still gets wrong, and the best of each pool is kept. Fitting residuals
overfits, so both the moment to stop and the choice within the pool are made on sentences the
candidates are not fitted on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from finsent.dendritic_linear import activation_function

POOL = 8
STEPS = 60
CHECK_EVERY = 5
LEARNING_RATE = 0.03


@dataclass(frozen=True)
class Signal:
    """Inputs of R maps and what their outputs should have been moved by."""

    x: Tensor
    """(R, n, in)"""
    wanted: Tensor
    """(R, n, out): minus the gradient of the loss, up to a factor."""
    real: Tensor
    """(R, n), 1.0 for rows that count and 0.0 for padding."""


def refine(
    draw: Callable[[int], Tensor], activation: str, fit: Signal, choose: Signal, *, bias: bool
) -> tuple[Tensor, Tensor]:
    """Weights V (R, out, in) and biases c (R, out) of one dendrite for every output unit.

    draw: gives a pool's first weights (R, POOL * out, in), which it is told the second size of.
    Candidates are fitted on `fit`; the state and the member with the highest correlation on
    `choose` win. Without `bias`, c stays zero.
    """
    out = fit.wanted.shape[2]
    weight = draw(POOL * out).requires_grad_()
    device = weight.device
    c = torch.zeros(weight.shape[:2], device=device, requires_grad=bias)
    optimizer = torch.optim.Adam([weight, c] if bias else [weight], LEARNING_RATE)
    # Candidate p * out + c is about output unit c.
    targets, later = fit.wanted.repeat(1, 1, POOL), choose.wanted.repeat(1, 1, POOL)
    best = torch.full(weight.shape[:2], -1.0, device=device)
    best_weight, best_bias = weight.detach().clone(), c.detach().clone()
    for step in range(STEPS + 1):
        if step % CHECK_EVERY == 0:
            with torch.no_grad():
                found = correlation(
                    candidate_outputs(activation, choose.x, weight, c), later, choose.real
                )
                better = found > best
                best = torch.where(better, found, best)
                best_weight = torch.where(better[..., None], weight, best_weight)
                best_bias = torch.where(better, c, best_bias)
        if step == STEPS:
            break
        outputs = candidate_outputs(activation, fit.x, weight, c)
        loss = -correlation(outputs, targets, fit.real).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    winner = best.view(-1, POOL, out).argmax(dim=1)
    rows = winner * out + torch.arange(out, device=device)
    return (
        best_weight.gather(1, rows[..., None].expand(-1, -1, weight.shape[2])),
        best_bias.gather(1, rows),
    )


def candidate_outputs(activation: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """act(V x + c): (R, n, in), (R, units, in) and (R, units) to (R, n, units)."""
    return activation_function(activation)(x @ weight.transpose(1, 2) + bias[:, None, :])


def correlation(outputs: Tensor, targets: Tensor, real: Tensor) -> Tensor:
    """|correlation| over a map's real rows: (R, n, units) twice and (R, n) to (R, units)."""
    weights = (real / real.sum(1, keepdim=True))[..., None]
    outputs = outputs - (outputs * weights).sum(1, keepdim=True)
    targets = targets - (targets * weights).sum(1, keepdim=True)
    covariance = (outputs * targets * weights).sum(1)
    spread = (outputs.square() * weights).sum(1) * (targets.square() * weights).sum(1)
    return covariance.abs() / (spread + 1e-12).sqrt()
