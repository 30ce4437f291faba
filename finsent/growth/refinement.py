"""Refined candidates for a model's maps: what each map should have been moved by, and new dendrites
that follow it.

The error of a map inside the model is minus the gradient of the loss at its output; see
finsent.growth.candidate_pool for what is made of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finsent.growth.candidate_pool import Residuals, candidate_outputs, train_candidates
from finsent.models.dendritic_linear import DendriticLinear

FITTING_BATCHES = 8
"""Training batches that candidates are fitted on."""
CHOOSING_BATCHES = 4
"""Validation batches on which the best are chosen."""
MIN_RELATIVE_RMS = 1e-3
"""Share of a map's own size below which a dendrite is left as it is."""
TOKENS_PER_BATCH = 512
"""Tokens of a batch that are kept for a map, drawn at random where there are more."""


def refine_new_dendrites(
    maps: Mapping[str, DendriticLinear],
    loss_of: Callable[[Sequence[int]], Tensor],
    fit: Sequence[Sequence[int]],
    choose: Sequence[Sequence[int]],
    seed: int,
) -> None:
    """Train the weights of every map's newest dendrite; its output weight stays zero, so the model
    computes what it computed.

    Args:
        maps: Modules that have just grown, by name.
        loss_of: Mean loss of the examples with these indices, a scalar with a gradient.
        fit: Batches of indices that candidates are fitted on.
        choose: Batches of indices on which the best candidates are chosen.
        seed: Of the initial weights and of the tokens that are kept.
    """
    generator = torch.Generator().manual_seed(seed)
    fitted = _residuals(maps, loss_of, fit, generator)
    chosen = _residuals(maps, loss_of, choose, generator)
    for name, module in maps.items():
        if name not in fitted or name not in chosen:
            continue  # nothing flows through it for these sentences
        newest: Any = module.dendrites[module.n_dendrites - 1]
        inner = module.in_features

        def draw(
            count: int, inner: int = inner, device: torch.device = module.weight.device
        ) -> Tensor:
            first = torch.randn(1, count, inner, generator=generator) * inner**-0.5
            return first.to(device)

        weight, bias = train_candidates(
            draw, module.activation, fitted[name], chosen[name], bias=newest.bias is not None
        )
        with torch.no_grad():
            ratio = _relative_rms(module, fitted[name], weight, bias)
            # Only a rectifier keeps its shape under another scale; for the others, what was
            # refined stays as it is.
            factor = ratio if module.activation == "relu" else torch.ones_like(ratio)
            newest.weight.copy_((weight[0] * factor[:, None]).to(newest.weight.dtype))
            if newest.bias is not None:
                newest.bias.copy_((bias[0] * factor).to(newest.bias.dtype))


def _relative_rms(
    module: DendriticLinear, residuals: Residuals, weight: Tensor, bias: Tensor
) -> Tensor:
    """Factor (out,) that makes the dendrite's output as large as the map's own, by r.m.s."""
    outputs = candidate_outputs(module.activation, residuals.x, weight, bias)[0]
    own = residuals.x[0] @ module.weight.float().T
    return rms_ratio(own.square().mean(0).sqrt(), outputs.square().mean(0).sqrt())


def rms_ratio(own: Tensor, outputs: Tensor) -> Tensor:
    """What makes a dendrite's outputs as large as the map's own, given root mean squares of both.

    1 for a dendrite that is as good as silent wherever it was fitted: no factor would wake it.
    """
    return torch.where(outputs > MIN_RELATIVE_RMS * own, own / outputs.clamp_min(1e-12), 1.0)


def _residuals(
    maps: Mapping[str, DendriticLinear],
    loss_of: Callable[[Sequence[int]], Tensor],
    batches: Sequence[Sequence[int]],
    generator: torch.Generator,
) -> dict[str, Residuals]:
    """Name -> what enters a map and minus the gradient of what leaves it, over some batches."""
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in maps}
    for batch in batches:
        with _recording(maps) as seen:
            loss_of(batch).backward()
        for name, (x, gradient) in seen.items():
            # Tokens that the answer does not depend on, padding among them, have none.
            used = gradient.abs().sum(dim=1) > 0
            x, gradient = x[used], gradient[used]
            kept = torch.randperm(len(x), generator=generator)[:TOKENS_PER_BATCH].to(x.device)
            rows[name].append((x[kept], -gradient[kept]))
    found = {}
    for name, pieces in rows.items():
        x = torch.cat([piece for piece, _ in pieces])[None]
        errors = torch.cat([piece for _, piece in pieces])[None]
        if x.shape[1] > 1:
            found[name] = Residuals(x, errors, torch.ones(x.shape[:2], device=x.device))
    return found


@contextlib.contextmanager
def _recording(maps: Mapping[str, DendriticLinear]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Inside, every forward and backward pass leaves (input, output gradient) of each map, as
    (rows, in) and (rows, out) in fp32. Gradients of the parameters are cleared at the end."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].detach().float().flatten(0, -2)

            def remember(gradient: Tensor) -> None:
                seen[name] = (x, gradient.detach().float().flatten(0, -2))

            output.register_hook(remember)

        return hook

    for name, module in maps.items():
        handles.append(module.register_forward_hook(watch(name)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        for module in maps.values():
            module.zero_grad(set_to_none=True)
