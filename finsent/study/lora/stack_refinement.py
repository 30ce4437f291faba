"""Refined candidates for the maps of many runs at once (see finsent.growth.refinement)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from finsent.growth.candidate_pool import Residuals, candidate_outputs, train_candidates
from finsent.growth.refinement import TOKENS_PER_BATCH, rms_ratio
from finsent.study.lora.stack import LoraStack

RUNS_AT_ONCE = 8
"""Runs refined at a time: their candidates' outputs on every token take the memory."""
Loss = Callable[[Tensor, int], Tensor]
"""(texts (K, B), longest) -> the loss of each run (K,)."""
Batches = Sequence[tuple[Tensor, int]]


def refine_stack(
    stack: LoraStack, rows: Sequence[int], loss_of: Loss, fit: Batches, choose: Batches
) -> None:
    """Train the dendrites that some runs have just grown; output weights stay zero, so every run
    computes what it computed. fit, choose: batches of training and of validation texts."""
    fitted = _residuals(stack, loss_of, fit)
    chosen = _residuals(stack, loss_of, choose)
    for name, _ in stack.growing():
        for at in range(0, len(rows), RUNS_AT_ONCE):
            some = torch.tensor(rows[at : at + RUNS_AT_ONCE], device=stack.values.device)
            _refine(stack, name, some, fitted[name], chosen[name])


def _refine(stack: LoraStack, name: str, rows: Tensor, fit: Residuals, choose: Residuals) -> None:
    activation, own_weight = stack.activation, stack.raw(f"{name}.weight")[rows]
    inner = own_weight.shape[2]
    fit, choose = _select(fit, rows), _select(choose, rows)
    # The same first draws for every run: none may depend on who stands beside it.
    generators = [torch.Generator().manual_seed(inner) for _ in rows]

    def draw(count: int) -> Tensor:
        drawn = [torch.randn(count, inner, generator=generator) for generator in generators]
        return torch.stack(drawn).to(fit.x.device) * inner**-0.5

    weight, bias = train_candidates(draw, activation, fit, choose, bias=False)
    with torch.no_grad():
        if activation == "relu":
            # Only a rectifier keeps its shape under another scale.
            outputs = candidate_outputs(activation, fit.x, weight, bias)
            own = fit.x @ own_weight.transpose(1, 2)
            weight = weight * rms_ratio(_rms(own, fit), _rms(outputs, fit))[..., None]
        stack.raw(f"{name}.dendrite")[rows] = weight


def _rms(outputs: Tensor, residuals: Residuals) -> Tensor:
    """Root mean square over real tokens: (R, n, out) to (R, out)."""
    mask = residuals.mask[..., None]
    return ((outputs.square() * mask).sum(1) / mask.sum(1).clamp_min(1.0)).sqrt()


def _select(residuals: Residuals, rows: Tensor) -> Residuals:
    return Residuals(residuals.x[rows], residuals.errors[rows], residuals.mask[rows])


def _residuals(stack: LoraStack, loss_of: Loss, batches: Batches) -> dict[str, Residuals]:
    """For every growing map: what enters it and minus the gradient of what leaves it."""
    maps = dict(stack.growing())
    pieces: dict[str, list[Residuals]] = {name: [] for name in maps}
    for number, (where, longest) in enumerate(batches):
        recorded: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in maps}
        for name, grown in maps.items():
            grown.recorded = recorded[name]
        try:
            loss_of(where, longest).sum().backward()
        finally:
            for grown in maps.values():
                grown.recorded = None
        for name, ((x, gradient),) in recorded.items():
            pieces[name].append(_sampled(x.float(), -gradient.float(), number))
    return {
        name: Residuals(
            torch.cat([piece.x for piece in of_map], dim=1),
            torch.cat([piece.errors for piece in of_map], dim=1),
            torch.cat([piece.mask for piece in of_map], dim=1),
        )
        for name, of_map in pieces.items()
    }


def _sampled(x: Tensor, errors: Tensor, seed: int) -> Residuals:
    """Up to TOKENS_PER_BATCH tokens that a run's loss depends on: (K, n, in) and (K, n, out)."""
    used = (errors != 0).any(dim=2).float()
    chances = torch.rand(x.shape[1], generator=torch.Generator().manual_seed(seed)).to(x.device)
    kept = (used + chances).topk(min(TOKENS_PER_BATCH, x.shape[1]), dim=1).indices
    return Residuals(
        x.gather(1, kept[..., None].expand(-1, -1, x.shape[2])),
        errors.gather(1, kept[..., None].expand(-1, -1, errors.shape[2])),
        used.gather(1, kept),
    )
