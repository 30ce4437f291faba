"""The loss of a run, its learning rate, and its optimizer, whose state may outlive growth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finsent.config import TrainConfig


def learning_rate_at(step: int, total: int, config: TrainConfig) -> float:
    """Linear warm-up, then decay to zero at `total` steps, as TrainConfig.schedule says."""
    warmup = round(config.warmup_fraction * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "cosine":
        done = (step - warmup) / max(1, total - warmup)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate * (total - step) / max(1, total - warmup)


def class_weights(labels: Sequence[int], n_classes: int, power: float = 1.0) -> Tensor:
    """Inverse class frequencies, scaled so that a balanced set gets 1, to `power`: (n_classes,).

    A class that does not occur gets weight 0; its loss never occurs either.
    """
    counts = torch.bincount(torch.tensor(labels), minlength=n_classes).float()
    weights = (len(labels) / (n_classes * counts)) ** power
    return torch.where(counts > 0, weights, torch.zeros(()))


def weighted_loss(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    smoothing: float,
    mask: Tensor | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """`F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)`: scalar.

    Written out because torch's smoothing waits for the device, which a captured step must not.

    Args:
        logits: (n, classes), or (K, n, classes) for K runs side by side.
        labels: (n,) or (K, n).
        weights: One for each class: (classes,) or (K, 1, classes).
        smoothing: Share of the target that is spread evenly over the classes.
        mask: (K, n), 1.0 for examples that count and 0.0 for padding. With it, the loss is one for
            each run: (K,).
        targets: Distributions of the shape of the logits in place of the labels, which still
            decide what an example weighs.
    """
    n_classes = logits.shape[-1]
    true = F.one_hot(labels, n_classes)
    target = (true if targets is None else targets) * (1 - smoothing) + smoothing / n_classes
    losses = -(F.log_softmax(logits, dim=-1) * target * weights).sum(dim=-1)
    shares = (true * weights).sum(dim=-1)
    if mask is None:
        return losses.sum() / shares.sum()
    # A run without an example has no loss; it takes no step either.
    return (losses * mask).sum(dim=-1) / (shares * mask).sum(dim=-1).clamp(min=1e-9)


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

    A tensor that gained rows (output weights of a further dendrite) starts them at zero; one
    without a former namesake starts afresh, with its own count of steps.

    Args:
        former: Optimizer over `before`.
        before: Trainable tensors by name, before growth.
        optimizer: New optimizer over `after`; its state is filled in place.
        after: The same after growth, with those that are new.
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
