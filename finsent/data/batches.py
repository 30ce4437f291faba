"""An epoch's batches of examples of similar length, the same for every arm. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BUCKET = 32
"""Batches whose examples are sorted by length together; larger pads less and shuffles less."""


def epoch_batches(
    indices: Sequence[int], lengths: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """Shuffled batches of examples of similar length, as lists of values of `indices`.

    Depends on (seed, epoch) only, never on how far a global generator has moved: arms with other
    numbers of parameters see the same batches, and a resumed run the ones it would have seen. Which
    place of the epoch gets long sentences does not even depend on the seed, so that runs stacked
    side by side (finsent.study.lora.training) have batches of similar length at a time.

    Args:
        lengths: Tokens of every example of the data set, looked up by index.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(np.asarray(indices))
    span = batch_size * BUCKET
    batches: list[list[int]] = []
    for start in range(0, len(order), span):
        bucket = sorted(order[start : start + span].tolist(), key=lambda i: lengths[i])
        batches += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
    return [batches[i] for i in batch_order(len(batches), epoch)]


def batch_order(batches: int, epoch: int) -> list[int]:
    """Order of an epoch's batches. Leaving out the last ones leaves the order of the others."""
    order: list[int] = np.random.default_rng(epoch).random(batches).argsort().tolist()
    return order
