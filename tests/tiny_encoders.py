"""Random two-block encoders with a tokenizer, written to disk: the real classes, no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    DistilBertConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from finsent.data.registry import load_dataset

SPECIAL = ("<s>", "<pad>", "</s>", "[UNK]")
"""Their ids are 0, 1, 2, 3; MPNet takes 1 for padding whatever it is told."""
SIZE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 130,
    "pad_token_id": 1,
}
CONFIGS: dict[str, Any] = {
    "bert": lambda: BertConfig(**SIZE),
    "roberta": lambda: RobertaConfig(**SIZE),
    "mpnet": lambda: MPNetConfig(**SIZE),
    "modernbert": lambda: ModernBertConfig(
        **SIZE, cls_token_id=0, sep_token_id=2, bos_token_id=0, eos_token_id=2
    ),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=512,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=130,
        pad_token_id=1,
    ),
}


def make_tiny(kind: str, folder: Path) -> Path:
    """Write an encoder of one of CONFIGS to `folder`, which must not exist yet; returns it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=512, special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator((e.text for e in load_dataset("sample").examples), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="<pad>"
    ).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModel.from_config(CONFIGS[kind]())
        # As trained models have them: biases, and norms that are not ones.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    model.pooler = None
    model.save_pretrained(folder)
    AutoConfig.from_pretrained(folder)
    return folder
