"""Runs that share a frozen base and go side by side: which texts each step takes of every run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from finsent.data.batches import batch_order, epoch_batches
from finsent.models.tokenization import token_batches

EVALUATION_TOKENS = 65536
"""Padded tokens of an evaluation batch, all runs together."""


def packed(
    batches: Sequence[Sequence[int]], width: int, lengths: Sequence[int]
) -> tuple[Tensor, int]:
    """(K, width) texts, -1 where a run has fewer, and the tokens of the longest."""
    texts = torch.tensor([[*batch, *[-1] * (width - len(batch))] for batch in batches])
    longest = max(lengths[i] for batch in batches for i in batch if i >= 0)
    return texts, longest


def steps_of_epoch(
    parts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    batch_size: int,
    lengths: Sequence[int],
    epoch: int,
) -> list[list[list[int]]]:
    """Every step's batch of each run, as the trainer would make them of its part alone; a run with
    fewer batches, or without a part, has empty ones."""
    counts = [math.ceil(len(part) / batch_size) for part in parts]
    plans = [
        dict(
            zip(
                batch_order(count, epoch),
                epoch_batches(part, lengths, batch_size, seed, epoch),
                strict=True,
            )
        )
        for part, seed, count in zip(parts, seeds, counts, strict=True)
    ]
    # The same place of the epoch at a time: there the texts of all runs are of similar length.
    order = batch_order(max(counts), epoch)
    return [[plan.get(place, []) for plan in plans] for place in order]


def logits_side_by_side(
    indices: Sequence[Sequence[int]],
    lengths: Sequence[int],
    logits_of: Callable[[Tensor, int], Tensor],
) -> list[Tensor]:
    """Logits (n, classes) of each run for texts of its own, on the CPU, in their order.

    Args:
        logits_of: From texts (K, n) and the tokens of the longest to logits (K, n, classes).
    """
    longest_list = max(map(len, indices))
    # By length within each run; shorter lists are padded at the front, with the short texts.
    order = [sorted(range(len(own)), key=lambda i: lengths[own[i]]) for own in indices]
    padded = [
        [*[-1] * (longest_list - len(own)), *(own[i] for i in by_length)]
        for own, by_length in zip(indices, order, strict=True)
    ]
    widths = [
        max(1, *(lengths[row[column]] for row in padded if row[column] >= 0))
        for column in range(longest_list)
    ]
    parts = []
    for columns in token_batches(widths, max(1, EVALUATION_TOKENS // len(indices))):
        texts, longest = packed([[row[c] for c in columns] for row in padded], 0, lengths)
        parts.append(logits_of(texts.clamp(min=0), longest).float().cpu())
    joined = torch.cat(parts, dim=1)
    found = []
    for row, by_length in enumerate(order):
        own = joined[row, longest_list - len(by_length) :]
        found.append(own[torch.tensor(by_length).argsort()])
    return found
