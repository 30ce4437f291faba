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

from finsent.models.dendritic_linear import activation_function

POOL = 8
STEPS = 60
CHECK_EVERY = 5
LEARNING_RATE = 0.03


@dataclass(frozen=True)
class Residuals:
    """Inputs of R maps and the errors at their outputs, which candidates correlate with."""

    x: Tensor
    """(R, n, in)"""
    errors: Tensor
    """(R, n, out): minus the gradient of the loss, up to a factor."""
    mask: Tensor
    """(R, n), 1.0 for rows that count and 0.0 for padding."""


def train_candidates(
    draw: Callable[[int], Tensor], activation: str, fit: Residuals, choose: Residuals, *, bias: bool
) -> tuple[Tensor, Tensor]:
    """Weights V (R, out, in) and biases c (R, out) of one dendrite for every output unit.

    Args:
        draw: Gives a pool's initial weights (R, count, in) for a count, POOL * out.
        activation: Of the dendrites.
        fit: What candidates are fitted on.
        choose: What the state and the member of the pool with the highest correlation are chosen
            on.
        bias: Whether c is trained; otherwise it stays zero.
    """
    out = fit.errors.shape[2]
    weight = draw(POOL * out).requires_grad_()
    device = weight.device
    c = torch.zeros(weight.shape[:2], device=device, requires_grad=bias)
    optimizer = torch.optim.Adam([weight, c] if bias else [weight], LEARNING_RATE)
    now, later = CorrelationTarget.of(fit), CorrelationTarget.of(choose)
    best = torch.full(weight.shape[:2], -1.0, device=device)
    best_weight, best_bias = weight.detach().clone(), c.detach().clone()
    for step in range(STEPS + 1):
        if step % CHECK_EVERY == 0:
            with torch.no_grad():
                found = correlation(candidate_outputs(activation, choose.x, weight, c), later)
                better = found > best
                best = torch.where(better, found, best)
                best_weight = torch.where(better[..., None], weight, best_weight)
                best_bias = torch.where(better, c, best_bias)
        if step == STEPS:
            break
        outputs = candidate_outputs(activation, fit.x, weight, c)
        loss = -correlation(outputs, now).sum()
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


@dataclass(frozen=True)
class CorrelationTarget:
    """What candidates correlate with: the part of residuals that does not change with them."""

    weights: Tensor
    """(R, 1, n): a row's share of its map's real rows."""
    errors: Tensor
    """(R, n, out): errors with mean 0 and variance 1, times their row's share."""

    @classmethod
    def of(cls, residuals: Residuals) -> CorrelationTarget:
        """Target of these residuals; every map needs a real row."""
        weights = (residuals.mask / residuals.mask.sum(1, keepdim=True))[:, None, :]
        centred = residuals.errors - weights @ residuals.errors
        spread = (weights @ centred.square()).sqrt()
        # A unit that nothing depends on wants nothing: zeros, not zero by zero.
        return cls(weights, centred / spread.clamp_min(1e-30) * weights.transpose(1, 2))


def correlation(outputs: Tensor, target: CorrelationTarget) -> Tensor:
    """|correlation| over a map's real rows: (R, n, pool * out) to (R, pool * out). Column
    p * out + c is held against output unit c."""
    of_pool = outputs.unflatten(2, (-1, target.errors.shape[2]))
    # The target is centred, so the outputs need not be.
    covariance = (of_pool * target.errors[:, :, None, :]).sum(1).flatten(1)
    mean = target.weights @ outputs
    variance = target.weights @ outputs.square() - mean.square()
    return covariance.abs() / (variance.squeeze(1).clamp_min(0.0) + 1e-12).sqrt()
