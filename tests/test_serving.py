"""The fused decoder against the reference, recordings, and the queue that forms batches."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel, PhiConfig, PhiModel

from finsent.engines.cuda_graphs import GraphedForward
from finsent.models.adapter_files import Adapter, AdapterError, DendriticMap
from finsent.models.adapters import AdapterBank
from finsent.models.backbones import pool
from finsent.models.dendritic_linear import DendriticLinear
from finsent.models.fused_decoder import FusedDecoder
from finsent.models.products import FusionError, join

CPU = torch.device("cpu")
WIDTHS = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TEXTS = [list(range(5, 5 + n)) for n in (11, 4, 6, 1, 11, 9)]


def dendritic(out: int, inner: int, k: int, seed: int, activation: str = "relu") -> DendriticLinear:
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw) * 0.3

    tensors = {"weight": random(out, inner)}
    for i in range(k):
        tensors[f"dendrites.{i}.weight"] = random(out, inner)
        if i:
            tensors[f"recurrent.{i}"] = random(i, out)
    if k:
        tensors["output_weights"] = random(k, out)
    return DendriticLinear.of(DendriticMap.from_tensors(tensors), activation)


def decoder_of(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if family == "phi":
        model = PhiModel(PhiConfig(partial_rotary_factor=0.5, **WIDTHS))
    else:
        model = LlamaModel(LlamaConfig(**WIDTHS))
    model.config.use_cache = False
    return model.eval().requires_grad_(False)


def in_4_bit(model: torch.nn.Module, compress: bool) -> torch.nn.Module:
    """Its linear layers as bitsandbytes would load them, computing in fp32."""
    bnb = pytest.importorskip("bitsandbytes")
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, torch.nn.Linear):
            continue
        packed = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=torch.float32,
            compress_statistics=compress,
            quant_type="nf4",
        )
        packed.load_state_dict(layer.state_dict())
        packed.to(CPU)
        packed.train()  # in evaluation mode its weights are packed anew for a CPU kernel
        model.set_submodule(name, packed)
    return model


TARGETS = {
    "phi": ("self_attn.q_proj", "self_attn.v_proj", "self_attn.dense", "mlp.fc1", "mlp.fc2"),
    "llama": ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"),
}


def adapter_of(
    decoder: torch.nn.Module,
    targets: Sequence[str],
    k: int,
    rank: int = 4,
    activation: str = "relu",
) -> Adapter:
    """On the upper two of three blocks."""
    layers = {}
    for number, (index, name) in enumerate(itertools.product((1, 2), targets)):
        layer = decoder.get_submodule(f"layers.{index}.{name}")
        draw = torch.Generator().manual_seed(number)
        a = torch.randn(rank, layer.in_features, generator=draw) * 0.1
        up = dendritic(layer.out_features, rank, k, number, activation)
        layers[f"layers.{index}.{name}"] = (a.numpy(), map_of(up))
    head = map_of(dendritic(3, decoder.config.hidden_size, k, 99))
    return Adapter(2.0, activation if k else "none", layers, head)


def map_of(module: DendriticLinear) -> DendriticMap:
    tensors = {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}
    return DendriticMap.from_tensors(tensors)


def reference(decoder: torch.nn.Module, adapter: Adapter, pooling: str) -> Tensor:
    bank = AdapterBank(copy.deepcopy(decoder))
    bank.add("x", adapter)
    head = bank.activate("x")
    rows = []
    for ids in TEXTS:
        states = bank._decoder(input_ids=torch.tensor([ids])).last_hidden_state
        rows.append(head(pool(states, torch.tensor([len(ids) - 1]), pooling)))
    return torch.cat(rows)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_the_fused_layer_is_the_layer(k: int, activation: str) -> None:
    layer = dendritic(6, 4, k, 0, activation)
    x = torch.randn(5, 2, 4)
    torch.testing.assert_close(layer.fused()(x), layer(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(layer.fused(2.5)(x), 2.5 * layer(x), atol=1e-5, rtol=0)
    if k:
        plain = torch.nn.functional.linear(x, layer.weight)
        assert not torch.allclose(layer.fused()(x), plain, atol=1e-2)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("family", ["phi", "llama"])
def test_the_fused_decoder_is_the_decoder(family: str, k: int, pooling: str) -> None:
    decoder = decoder_of(family)
    adapter = adapter_of(decoder, TARGETS[family], k)
    expected = reference(decoder, adapter, pooling)
    fused = FusedDecoder(copy.deepcopy(decoder), pooling, 64)
    run = GraphedForward(lambda ids, last: fused(ids, last, fused.arm(adapter)), CPU)
    torch.testing.assert_close(run(TEXTS), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("family", ["phi", "llama"])
def test_fused_4_bit_layers_keep_their_codes(family: str, compress: bool) -> None:
    decoder = in_4_bit(decoder_of(family), compress)
    adapter = adapter_of(decoder, TARGETS[family], 1)
    expected = reference(decoder, adapter, "last")
    fused = FusedDecoder(decoder, "last", 64)
    run = GraphedForward(lambda ids, last: fused(ids, last, fused.arm(adapter)), CPU)
    # The same weights to the last bit; only the order of sums differs.
    torch.testing.assert_close(run(TEXTS), expected, atol=1e-4, rtol=0)


def test_4_bit_layers_that_cannot_be_joined_are_refused() -> None:
    decoder = in_4_bit(decoder_of("phi"), compress=False)
    decoder.layers[0].self_attn.q_proj = torch.nn.Linear(64, 64)
    with pytest.raises(FusionError, match="4-bit layers and others"):
        FusedDecoder(decoder, "last", 64)
    narrow = in_4_bit(torch.nn.Sequential(torch.nn.Linear(32, 4)), compress=False)
    with pytest.raises(FusionError, match="32 inputs has blocks of 64"):
        join([narrow[0]], 0, None)


def test_fusing_refuses_what_it_does_not_know() -> None:
    decoder = decoder_of("phi")
    adapter = adapter_of(decoder, TARGETS["phi"], 0)
    fused = FusedDecoder(copy.deepcopy(decoder), "last", 64)
    with pytest.raises(AdapterError, match="no layer layers.1.mlp.down_proj"):
        fused.arm(adapter_of(decoder_of("llama"), ("mlp.down_proj",), 0))
    name, (a, b) = next(iter(adapter.layers.items()))
    with pytest.raises(AdapterError, match="trained on another"):
        fused.arm(Adapter(2.0, "none", {name: (a[:, 1:], b)}, adapter.head))
    decoder.config.qk_layernorm = True
    with pytest.raises(FusionError, match="norms of queries and keys"):
        FusedDecoder(decoder, "last", 64)
    decoder.config.model_type = "gpt2"
    with pytest.raises(FusionError, match="not gpt2"):
        FusedDecoder(decoder, "last", 64)


def test_buckets_are_recorded_once_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    replays: list[int] = []

    def forward(ids: Tensor, last: Tensor) -> Tensor:
        calls.append(tuple(ids.shape))
        sums = torch.stack([row[: n + 1].sum() for row, n in zip(ids, last, strict=True)])
        return torch.stack([sums, last], dim=1).float()

    def record(compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        result = compute().clone()

        def replay() -> None:
            replays.append(1)
            result.copy_(compute())

        return replay, result

    run = GraphedForward(forward, CPU, lengths=(4, 8), batches=(1, 2), record=record)
    expected = [[6.0, 2.0], [9.0, 1.0]]
    assert run([[1, 2, 3], [4, 5]]).tolist() == expected
    assert (calls, replays) == ([(2, 3)], [])
    for bucket in [*run.buckets, (2, 4)]:
        run.record(bucket)
    assert len(run.recorded) == 4
    calls.clear()
    assert run([[1, 2, 3], [4, 5]]).tolist() == expected
    assert (calls, replays) == ([(2, 4)], [1])
    # What an earlier, longer text left in the buffer must not show.
    run([[7] * 8])
    assert run([[1] * 5]).tolist() == [[5.0, 4.0]]
    assert run([[1]] * 3).tolist() == [[1.0, 0.0]] * 3  # larger than any bucket
    assert len(replays) == 3
