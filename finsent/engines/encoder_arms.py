"""Encoders for the engine of a GPU: every arm a forward pass of its own over the base's tensors."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from finsent.models.adapter_files import Adapter
from finsent.models.adapters import AdapterBank
from finsent.models.backbones import pool
from finsent.models.encoders import final_states


class EncoderArm(nn.Module):
    """An encoder's modules with one arm's adapters in them, and its score head.

    The tensors of the base are the base's own. Modules of its own, because a recording and an
    answer by another arm may be under way at once, and a module can be switched to one arm only.
    """

    def __init__(self, encoder: Any, adapter: Adapter) -> None:
        """AdapterError when the adapter does not fit the encoder."""
        super().__init__()
        shared = {id(tensor): tensor for tensor in (*encoder.parameters(), *encoder.buffers())}
        self.encoder = copy.deepcopy(encoder, shared)
        bank = AdapterBank(self.encoder)
        bank.add("arm", adapter)
        self.head = bank.activate("arm")


class AdaptedEncoder(nn.Module):
    """Token ids to class scores for any number of arms on one encoder, as `FusedDecoder` is for
    decoders: without branches on values, so that a forward can be recorded as a CUDA graph."""

    def __init__(self, encoder: Any, pooling: str) -> None:
        super().__init__()
        self.encoder = encoder
        self._pooling = pooling

    def arm(self, adapter: Adapter) -> EncoderArm:
        """An adapter in place. AdapterError when it does not fit the encoder."""
        return EncoderArm(self.encoder, adapter)

    def forward(self, ids: Tensor, last: Tensor, arm: EncoderArm) -> Tensor:
        """Right-padded ids (B, L) and last positions (B,) -> class scores (B, classes)."""
        states = final_states(arm.encoder, ids, last)
        scores: Tensor = arm.head(pool(states, last, self._pooling))
        return scores
