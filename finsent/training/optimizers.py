"""The optimizer of a run, and how its state outlives growth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from finsent.config import TrainConfig


def new_optimizer(
    groups: Mapping[float, Sequence[nn.Parameter]], config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW over the trainable tensors, by the factor that their learning rate has. On CUDA the
    rates are tensors there, so that a captured step reads those of the moment."""
    on_cuda = device.type == "cuda"
    rate = config.learning_rate
    return torch.optim.AdamW(
        [
            {
                "params": list(parameters),
                "factor": factor,
                "lr": torch.tensor(rate * factor, device=device) if on_cuda else rate * factor,
            }
            for factor, parameters in groups.items()
        ],
        weight_decay=config.weight_decay,
        fused=on_cuda,
        capturable=on_cuda,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Change the rate, of each group by its factor, without replacing a tensor that a captured step
    reads."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate * group["factor"])
        else:
            group["lr"] = rate * group["factor"]


def carry_over(
    former: torch.optim.Optimizer,
    before: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    after: Mapping[str, Tensor],
) -> None:
    """Give a new optimizer what the one before it knew of the tensors that were there already.

    before, after: the trainable tensors by name, as each optimizer has them. A tensor that gained
    rows (output weights of a further dendrite) starts them at zero; one without a former namesake
    starts afresh, with its own count of steps.
    """
    for name, tensor in after.items():
        known = former.state.get(before[name]) if name in before else None
        if not known:
            continue
        optimizer.state[tensor] = {
            key: _grown_to(value, tensor.shape) if value.dim() else value.clone()
            for key, value in known.items()
        }


def _grown_to(value: Tensor, shape: torch.Size) -> Tensor:
    grown = value.new_zeros(shape)
    grown[: len(value)] = value
    return grown
