"""The families of encoders that are known. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Where an encoder of one kind keeps its blocks, and how its layers are called."""

    blocks: str
    """Path of the list of blocks below the model."""
    maps: tuple[str, ...]
    """Names of all linear maps of a block: what LoRA adapts there."""
    query_key_value_out: tuple[str, str, str, str] | None = None
    """Paths of the attention's maps below a block, where `_encode` knows the family."""


_BERT_MAPS = ("query", "key", "value", "dense")
_BERT_PATHS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
)
_BERT = Family("encoder.layer", _BERT_MAPS, _BERT_PATHS)
_MPNET_PATHS = (
    "attention.attn.q",
    "attention.attn.k",
    "attention.attn.v",
    "attention.attn.o",
)
FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "mpnet": Family("encoder.layer", ("q", "k", "v", "o", "dense"), _MPNET_PATHS),
    "distilbert": Family(
        "transformer.layer", ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2")
    ),
    "modernbert": Family("layers", ("Wqkv", "Wi", "Wo")),
    "deberta-v2": Family("encoder.layer", ("query_proj", "key_proj", "value_proj", "dense")),
}
"""By the `model_type` of a model's config.json."""
