"""Refined candidates for the maps of many runs at once (see finsent.growth.lora_refinement)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from finsent.growth.lora_refinement import ROWS, size_factor
from finsent.growth.refinement import Signal, candidate_outputs, refine
from finsent.study.lora.stack import LoraStack

TOGETHER = 8
"""Runs refined at a time: their candidates' outputs on every token take the memory."""
Loss = Callable[[Tensor, int], Tensor]
"""(texts (K, B), longest) -> the loss of each run (K,)."""
Batches = Sequence[tuple[Tensor, int]]


def refine_stack(
    stack: LoraStack, rows: Sequence[int], loss_of: Loss, fit: Batches, choose: Batches
) -> None:
    """Train the dendrites that some runs have just grown; output weights stay zero, so every run
    computes what it computed. fit, choose: batches of training and of validation texts."""
    fitted = _signals(stack, loss_of, fit)
    chosen = _signals(stack, loss_of, choose)
    for name, _ in stack.growing():
        for at in range(0, len(rows), TOGETHER):
            some = torch.tensor(rows[at : at + TOGETHER], device=stack.values.device)
            _refine(stack, name, some, fitted[name], chosen[name])


def _refine(stack: LoraStack, name: str, rows: Tensor, fit: Signal, choose: Signal) -> None:
    activation, own_weight = stack.activation, stack.raw(f"{name}.weight")[rows]
    inner = own_weight.shape[2]
    fit, choose = _of(fit, rows), _of(choose, rows)
    # The same first draws for every run: none may depend on who stands beside it.
    generators = [torch.Generator().manual_seed(inner) for _ in rows]

    def draw(count: int) -> Tensor:
        drawn = [torch.randn(count, inner, generator=generator) for generator in generators]
        return torch.stack(drawn).to(fit.x.device) * inner**-0.5

    weight, bias = refine(draw, activation, fit, choose, bias=False)
    with torch.no_grad():
        if activation == "relu":
            # Only a rectifier keeps its shape under another scale.
            outputs = candidate_outputs(activation, fit.x, weight, bias)
            own = fit.x @ own_weight.transpose(1, 2)
            weight = weight * size_factor(_size(own, fit), _size(outputs, fit))[..., None]
        stack.raw(f"{name}.dendrite")[rows] = weight


def _size(outputs: Tensor, signal: Signal) -> Tensor:
    """Root mean square over real tokens: (R, n, out) to (R, out)."""
    real = signal.real[..., None]
    return ((outputs.square() * real).sum(1) / real.sum(1).clamp_min(1.0)).sqrt()


def _of(signal: Signal, rows: Tensor) -> Signal:
    return Signal(signal.x[rows], signal.wanted[rows], signal.real[rows])


def _signals(stack: LoraStack, loss_of: Loss, batches: Batches) -> dict[str, Signal]:
    """For every growing map: what enters it and minus the gradient of what leaves it."""
    maps = dict(stack.growing())
    pieces: dict[str, list[Signal]] = {name: [] for name in maps}
    for number, (where, longest) in enumerate(batches):
        for grown in maps.values():
            grown.watched = []
        try:
            loss_of(where, longest).sum().backward()
            for name, grown in maps.items():
                assert grown.watched is not None
                ((x, gradient),) = grown.watched
                pieces[name].append(_sampled(x.float(), -gradient.float(), number))
        finally:
            for grown in maps.values():
                grown.watched = None
    return {
        name: Signal(
            torch.cat([piece.x for piece in of_map], dim=1),
            torch.cat([piece.wanted for piece in of_map], dim=1),
            torch.cat([piece.real for piece in of_map], dim=1),
        )
        for name, of_map in pieces.items()
    }


def _sampled(x: Tensor, wanted: Tensor, seed: int) -> Signal:
    """Up to ROWS tokens of each run that its loss depends on: (K, n, in) and (K, n, out)."""
    used = (wanted != 0).any(dim=2).float()
    chances = torch.rand(x.shape[1], generator=torch.Generator().manual_seed(seed)).to(x.device)
    kept = (used + chances).topk(min(ROWS, x.shape[1]), dim=1).indices
    return Signal(
        x.gather(1, kept[..., None].expand(-1, -1, x.shape[2])),
        wanted.gather(1, kept[..., None].expand(-1, -1, wanted.shape[2])),
        used.gather(1, kept),
    )
