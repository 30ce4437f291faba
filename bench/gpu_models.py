"""Phi-2's geometry with random weights, made on the GPU: what the GPU benches measure."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor, nn

from finsent.engines.cuda_graphs import pad
from finsent.models.adapter_files import Adapter, DendriticMap
from finsent.models.adapters import AdapterBank
from finsent.models.backbones import pool

TOKENS = 32
MAX_LENGTH = 128
RANK = 8
CLASSES = 3
CORPUS = 8192
GPU = torch.device("cuda")


def make_decoder(tiny: bool, activation: str = "gelu_new") -> Any:
    """A Phi decoder in bf16 with random weights, made where it will be used."""
    from transformers import PhiConfig, PhiModel

    config = PhiConfig(
        vocab_size=51200,
        hidden_size=128 if tiny else 2560,
        intermediate_size=256 if tiny else 10240,
        num_hidden_layers=2 if tiny else 32,
        num_attention_heads=2 if tiny else 32,
        max_position_embeddings=2048,
        partial_rotary_factor=0.5 if tiny else 0.4,
        hidden_act=activation,
    )
    config.use_cache = False
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(GPU):
            decoder = PhiModel(config)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.02)
            elif name.endswith("bias"):
                parameter.zero_()
    # Made under a bf16 default, its table of angles would be too coarse.
    decoder.rotary_emb = type(decoder.rotary_emb)(config=config).to(GPU)
    return decoder.eval().requires_grad_(False)


def make_adapter(decoder: Any, dendrites: int) -> Adapter:
    """LoRA on q and v of every block, with `dendrites` per map, and a head."""
    generator = torch.Generator().manual_seed(dendrites)

    def linear(out: int, inner: int) -> DendriticMap:
        tensors = {"weight": torch.randn(out, inner, generator=generator) * 0.02}
        for i in range(dendrites):
            name = f"dendrites.{i}.weight"
            tensors[name] = torch.randn(out, inner, generator=generator) * 0.02
            if i:
                tensors[f"recurrent.{i}"] = torch.randn(i, out, generator=generator) * 0.02
        if dendrites:
            tensors["output_weights"] = torch.randn(dendrites, out, generator=generator) * 0.02
        return DendriticMap.from_tensors(tensors)

    width = decoder.config.hidden_size
    layers = {
        f"layers.{i}.self_attn.{name}": (
            torch.randn(RANK, width, generator=generator) * 0.02,
            linear(width, RANK),
        )
        for i in range(decoder.config.num_hidden_layers)
        for name in ("q_proj", "v_proj")
    }
    return Adapter(2.0, "relu", layers, linear(CLASSES, width))


def reference_call(decoder: Any, adapters: dict[str, Adapter]) -> Callable[[str, Any], Tensor]:
    """transformers' own forward with unmerged adapters, as the plain engine runs it."""
    bank = AdapterBank(decoder)
    for name, adapter in adapters.items():
        bank.add(name, adapter)

    @torch.inference_mode()
    def call(arm: str, token_ids: Sequence[Sequence[int]]) -> Tensor:
        head = bank.activate(arm)
        rows = pad(token_ids, max(map(len, token_ids))).to(GPU)
        states = decoder(input_ids=rows[:, :-1]).last_hidden_state
        return head(pool(states, rows[:, -1], "last")).cpu()

    return call


def quantize_layers(decoder: Any) -> Any:
    """The same decoder with bitsandbytes 4-bit layers, as `load_in_4bit` would make it."""
    import bitsandbytes as bnb

    for block in decoder.layers:
        for name, module in list(block.named_modules()):
            if not isinstance(module, nn.Linear):
                continue
            layer = bnb.nn.Linear4bit(
                module.in_features,
                module.out_features,
                bias=module.bias is not None,
                compute_dtype=torch.bfloat16,
                compress_statistics=True,
                quant_type="nf4",
                device="meta",
            )
            layer.weight = bnb.nn.Params4bit(
                module.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4"
            ).to(GPU)
            layer.bias = module.bias
            block.set_submodule(name, layer)
    return decoder


def without_adapters(decoder: Any) -> dict[str, Tensor]:
    """The decoder's own weights by their own names, whatever adapters stand in front of them."""
    return {
        name.replace(".base.", "."): tensor
        for name, tensor in decoder.state_dict().items()
        if ".down." not in name and ".up." not in name
    }


def corpus_lengths() -> list[int]:
    """Like Financial PhraseBank's: mean 31 tokens, at most 107, at least 5."""
    draw = random.Random(0)
    return [min(max(round(draw.lognormvariate(3.34, 0.43)), 5), 107) for _ in range(CORPUS)]
