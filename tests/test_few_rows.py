"""Kernels for few rows, interpreted on the CPU, against the same decoder in PyTorch."""

from __future__ import annotations

import os
import re

import pytest
import torch
from torch import Tensor
from transformers import PhiConfig, PhiModel

from finsent.models.adapter_files import Adapter
from finsent.models.backbones import load_backbone
from finsent.models.fused_decoder import FusedDecoder
from finsent.models.products import FusionError
from tests.test_serving import TARGETS, adapter_of, decoder_of, in_4_bit

pytest.importorskip("triton", reason="triton is not there for this kind of machine")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before torch is imported", allow_module_level=True)

from finsent.engines.few_rows import FewRows, Launch, Tiles, require_phi
from finsent.kernels import few_rows_kernels

SMALL = Launch(Tiles(128, 64, 4, 1), Tiles(64, 64, 4, 1, pieces=3))
QV = ("self_attn.q_proj", "self_attn.v_proj")
QKV = (*QV, "self_attn.k_proj")


def phi(act: str = "gelu_new") -> torch.nn.Module:
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=300,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        partial_rotary_factor=0.5,
        hidden_act=act,
    )
    config.use_cache = False
    model = PhiModel(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.normal_(0.5, 0.2)  # a bias or norm that is left out would show
    return model.eval().requires_grad_(False)


def texts_of(*lengths: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(300, (len(lengths), max(lengths)), generator=draw)
    return ids, torch.tensor(lengths) - 1


def both(decoder: torch.nn.Module, adapter: Adapter, pooling: str, *lengths: int) -> list[Tensor]:
    fused = FusedDecoder(decoder, pooling, 64)
    arm = fused.arm(adapter)
    ids, last = texts_of(*lengths)
    with torch.inference_mode():
        return [FewRows(fused, arm, SMALL)(ids, last), fused(ids, last, arm)]


@pytest.mark.parametrize(
    ("targets", "k", "activation", "pooling", "lengths"),
    [
        (QV, 0, "relu", "last", (32,)),
        (QV, 1, "relu", "last", (11, 7, 3)),
        (QKV, 1, "tanh", "mean", (20, 24)),
        (QV[:1], 1, "sigmoid", "last", (5,)),
    ],
)
def test_few_rows_are_the_fused_decoder(
    targets: tuple[str, ...], k: int, activation: str, pooling: str, lengths: tuple[int, ...]
) -> None:
    decoder = phi()
    adapter = adapter_of(decoder, targets, k, activation=activation)
    found, expected = both(decoder, adapter, pooling, *lengths)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_few_rows_know_phi_as_it_is_loaded(tiny_environment: None) -> None:
    backbone = load_backbone("tiny-phi", "fp32", torch.device("cpu"))
    require_phi(FusedDecoder(backbone.decoder, "last", 64))
    decoder = phi(backbone.decoder.config.hidden_act)
    found, expected = both(decoder, adapter_of(decoder, QV, 1), "last", 9, 14)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_few_rows_read_bitsandbytes_codes() -> None:
    decoder = in_4_bit(phi(), compress=True)
    adapter = adapter_of(decoder, QV, 1)
    found, expected = both(decoder, adapter, "last", 9, 14)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_few_rows_refuse_what_they_do_not_know() -> None:
    for decoder, adapter, why in (
        (decoder_of("llama"), adapter_of(decoder_of("llama"), QV, 0), "not llama"),
        (phi("relu"), adapter_of(phi(), QV, 0), "gelu_new"),
        (phi(), adapter_of(phi(), QV, 2), "many dendrites"),
        (phi(), adapter_of(phi(), TARGETS["phi"], 0), "elsewhere"),
        (phi(), adapter_of(phi(), ("mlp.fc1",), 0), "on the MLP"),
    ):
        fused = FusedDecoder(decoder, "last", 64)
        with pytest.raises(FusionError, match=why):
            FewRows(fused, fused.arm(adapter))


def test_the_ptx_unpacks_every_byte() -> None:
    """The interpreter runs no PTX: its few instructions are carried out here."""
    bnb = pytest.importorskip("bitsandbytes.functional")
    code = bnb.get_4bit_type("nf4", device="cpu").to(torch.bfloat16).view(torch.int16)
    bits = [value & 0xFFFF for value in code.tolist()]
    for start in range(0, 256, 4):
        found = run_ptx(few_rows_kernels.UNPACK_PTX.value, start * 0x01010101 + 0x03020100)
        values = range(start, start + 4)
        assert found[:2] == words([bits[v >> 4] for v in values])
        assert found[2:] == words([bits[v & 15] for v in values])


def words(halves: list[int]) -> list[int]:
    return [halves[0] | halves[1] << 16, halves[2] | halves[3] << 16]


def run_ptx(text: str, source: int) -> list[int]:
    registers = {"$4": source}

    def value(name: str) -> int:
        return int(name, 16) if name.startswith("0x") else registers.get(name, 0)

    def number(name: str) -> int:
        return int(name) if name.isdecimal() else value(name)

    def permuted(a: int, b: int, selector: int) -> int:
        table = (a | b << 32).to_bytes(8, "little")
        result = 0
        for i in range(4):
            nibble = selector >> (4 * i) & 15
            byte = table[nibble & 7]
            if nibble & 8:
                byte = 0xFF if byte & 0x80 else 0
            result |= byte << (8 * i)
        return result

    for name, operands in re.findall(r"(\w+)\.b32 ([^;]+);", text):
        to, *given = [part.strip() for part in operands.split(",")]
        if name == "mov":
            registers[to] = value(given[0])
        elif name == "and":
            registers[to] = value(given[0]) & value(given[1])
        elif name == "shl":
            registers[to] = value(given[0]) << number(given[1]) & 0xFFFFFFFF
        elif name == "shr":
            registers[to] = value(given[0]) >> number(given[1])
        elif name == "prmt":
            registers[to] = permuted(*map(value, given))
        elif name == "lop3":
            a, b, c = map(value, given[:3])
            assert given[3] == "0xD8"  # c chooses b, else a
            registers[to] = a & ~c | b & c
    return [registers[f"${i}"] for i in range(4)]
