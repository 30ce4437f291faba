"""Encoders: which families are known, and the way from token ids to final hidden states.

`final_states` is the one forward pass of a backbone without adapters of its own: training, timing
and the reference engine go through it, for decoders and encoders alike. BERT, RoBERTa and MPNet run
through `_encode`, which calls the model's own layers (so adapters in them are called too) but does
the masking and MPNet's relative positions itself: no tensor is made on the host and no value is
looked at, so a step can be captured as a CUDA graph and the forward can be traced.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finsent.models.encoder_families import FAMILIES, Family

DECODER_BLOCKS = "layers"
"""Path of the list of blocks in every decoder that is supported."""


def family_of(model: Any) -> Family | None:
    """The family of a transformers model that is an encoder; None for any other."""
    return FAMILIES.get(model.config.model_type)


def blocks_path(model: Any) -> str:
    """Path of the list of blocks below a model."""
    family = family_of(model)
    return DECODER_BLOCKS if family is None else family.blocks


def blocks_of(model: Any) -> nn.ModuleList:
    """The list of blocks. AttributeError where there is none."""
    found: Any = model.get_submodule(blocks_path(model))
    if not isinstance(found, nn.ModuleList):
        raise AttributeError(f"{blocks_path(model)} is no list of blocks")
    return found


def captures(model: Any) -> bool:
    """Whether a training step of the model can be captured as a CUDA graph."""
    family = family_of(model)
    return family is None or family.query_key_value_out is not None


def real_tokens(last: Tensor, length: int) -> Tensor:
    """Which positions of right-padded texts hold tokens: (B, length) of booleans, from the
    positions of their last tokens (B,)."""
    return torch.arange(length, device=last.device)[None, :] <= last[:, None]


def final_states(model: Any, input_ids: Tensor, last: Tensor) -> Tensor:
    """Right-padded token ids (B, L) of texts whose last tokens are at `last` (B,) -> final hidden
    states (B, L, H). What stands at padded positions means nothing.

    A decoder needs no mask: it looks to the left only, where every token of a text is real.
    """
    family = family_of(model)
    real = real_tokens(last, input_ids.shape[1])
    if family is not None and family.query_key_value_out is not None:
        return encode(model, input_ids, real)
    masks = {} if family is None else {"attention_mask": real.long()}
    states: Tensor = model(input_ids=input_ids, **masks).last_hidden_state
    return states


def encode(model: Any, input_ids: Tensor, real: Tensor) -> Tensor:
    """Token ids (B, L) and which of them are real (B, L) -> final hidden states (B, L, H) of a
    BERT, RoBERTa or MPNet model. Real tokens come first in every row."""
    family = family_of(model)
    if family is None or family.query_key_value_out is None:
        raise ValueError(f"encode() does not know {model.config.model_type!r} models")
    length = input_ids.shape[1]
    embeddings = model.embeddings
    # RoBERTa's and MPNet's positions start behind that of the padding token.
    first = 0 if model.config.model_type == "bert" else embeddings.padding_idx + 1
    positions = torch.arange(length, device=input_ids.device)[None, :] + first
    hidden = embeddings(input_ids=input_ids, position_ids=positions)
    bias = torch.where(real, 0.0, torch.finfo(hidden.dtype).min)[:, None, None, :]
    if model.config.model_type == "mpnet":
        bias = bias + _relative_positions(model.encoder, length, input_ids.device)
    for block in blocks_of(model):
        hidden = _block(block, family.query_key_value_out, model.config, hidden, bias)
    return hidden


def _relative_positions(encoder: Any, length: int, device: torch.device) -> Tensor:
    """MPNet's learnt bias by distance: (1, heads, L, L)."""
    place = torch.arange(length, device=device)
    buckets = encoder.relative_position_bucket(
        place[None, :] - place[:, None], num_buckets=encoder.config.relative_attention_num_buckets
    )
    bias: Tensor = encoder.relative_attention_bias(buckets)
    return bias.permute(2, 0, 1)[None]


def _block(
    block: Any, paths: tuple[str, str, str, str], config: Any, hidden: Tensor, bias: Tensor
) -> Tensor:
    """One block with layer norms after the residual sums. Dropout is left out: adapters are trained
    on the frozen base as it is evaluated."""
    query, key, value, out = (block.get_submodule(path) for path in paths)
    shape = (*hidden.shape[:2], config.num_attention_heads, -1)
    q, k, v = (maps(hidden).view(shape).transpose(1, 2) for maps in (query, key, value))
    mixed = _attend(q, k, v, bias).transpose(1, 2).flatten(2)
    attention = block.attention
    norm = attention.LayerNorm if config.model_type == "mpnet" else attention.output.LayerNorm
    hidden = norm(out(mixed) + hidden)
    inner = block.intermediate.intermediate_act_fn(block.intermediate.dense(hidden))
    found: Tensor = block.output.LayerNorm(block.output.dense(inner) + hidden)
    return found


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k' / sqrt(d) + bias) v for (B, heads, L, d)."""
    if q.requires_grad and q.is_cuda:
        # In plain products: their gradients are the same on every replay of a captured step.
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5 + bias.to(q.dtype)
        return scores.softmax(dim=-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
