"""Engines against the reference, one base for all arms, batches, and the rule that chooses."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaModel, PhiConfig, PhiModel

from finsent.engines.cuda_graphs import GraphedForward
from finsent.engines.openvino_engine import OpenVinoEngine
from finsent.engines.openvino_graph import unsupported
from finsent.engines.rule import choose_engine
from finsent.engines.torch_engine import TorchEngine
from finsent.models.adapter_files import Adapter, AdapterError, DendriticMap
from finsent.models.adapters import AdapterBank
from finsent.models.backbones import Backbone, pool
from finsent.models.dendritic_linear import DendriticLinear
from finsent.models.fused_decoder import FusedDecoder
from finsent.models.products import FusionError, join
from finsent.models.tokenization import FileTokenizer

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


# ----------------------------------------------------------------------------------------- OpenVINO


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    decoder_of("llama").save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "profit": 1, "rose": 2}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def engine_of(folder: Path, pooling: str = "last", **options: object) -> OpenVinoEngine:
    return OpenVinoEngine(folder, "abc", pooling=pooling, max_length=64, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_openvino_computes_what_the_reference_computes(llama_folder: Path, pooling: str) -> None:
    decoder = decoder_of("llama")
    adapters = {
        f"k{k}": adapter_of(decoder, TARGETS["llama"][: 2 + k], k, rank=3 + k) for k in (0, 1, 2)
    }
    engine = engine_of(llama_folder, pooling)
    engine.set_arms(adapters)
    for name, adapter in adapters.items():
        expected = reference(decoder, adapter, pooling).numpy()
        exact = engine.scores_in(name, TEXTS, quick=False)
        np.testing.assert_allclose(exact, expected, atol=1e-4)
        quick = engine.scores_in(name, TEXTS, quick=True)
        assert 0 < np.abs(quick - expected).max() < 0.2
        # The rule: close calls are those of fp32, the rest is as it was.
        found = engine.scores(name, TEXTS)
        top = np.sort(quick, axis=1)
        close = top[:, -1] - top[:, -2] < engine.close_call
        np.testing.assert_allclose(found[close], exact[close], atol=1e-5)
        np.testing.assert_allclose(found[~close], quick[~close], atol=1e-5)


@pytest.mark.parametrize("quick", [False, True])
def test_openvino_fuses_rotation_and_attention(llama_folder: Path, quick: bool) -> None:
    engine = engine_of(llama_folder, quick=quick)
    engine.set_arms({"k1": adapter_of(decoder_of("llama"), TARGETS["llama"][:3], 1)})
    nodes = engine._compiled[quick].model.get_runtime_model().get_ops()
    kinds = Counter(node.get_rt_info()["layerType"].astype(str) for node in nodes)
    # Queries and keys, and scores to values, of every block: five times the nodes otherwise.
    assert kinds["RoPE"] == 2 * engine.geometry.blocks
    assert kinds["Subgraph"] == engine.geometry.blocks


def load_all(engine: OpenVinoEngine, adapters: dict[str, Adapter]) -> None:
    engine.set_arms(adapters)
    engine.warm_up()


def test_openvino_compiles_once_for_all_arms(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = decoder_of("llama")
    small, large = (adapter_of(decoder, TARGETS["llama"], 1, rank=r) for r in (2, 5))
    plain = adapter_of(decoder, TARGETS["llama"], 0)
    engine = engine_of(llama_folder, cache=tmp_path)
    engine.set_arms({"small": small})
    engine.warm_up()
    before = engine.scores("small", TEXTS)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4  # two graphs, each with its description

    def refuse(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(OpenVinoEngine, "_write_down", refuse)
    engine.set_arms({"large": large, "plain": plain, "small": small})
    assert engine.names == ("large", "plain", "small")
    np.testing.assert_array_equal(engine.scores("small", TEXTS), before)
    again = engine_of(llama_folder, cache=tmp_path)
    again.set_arms({"small": small})
    np.testing.assert_array_equal(again.scores("small", TEXTS), before)
    # A damaged file is noticed and made again.
    blob = next(path for path in files if path.suffix == ".blob")
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 0xFF]))
    damaged = engine_of(llama_folder, cache=tmp_path)
    with pytest.raises(AssertionError, match="compiled again"):
        load_all(damaged, {"small": small})


def test_openvino_refuses_what_does_not_fit(llama_folder: Path) -> None:
    decoder = decoder_of("llama")
    engine = engine_of(llama_folder)
    with pytest.raises(KeyError):
        engine.scores("none", TEXTS)
    strange = adapter_of(decoder, ("self_attn.q_proj",), 0)
    wide = {name: (a, map_of(dendritic(7, 4, 0, 0))) for name, (a, _) in strange.layers.items()}
    with pytest.raises(AdapterError, match="7 outputs"):
        engine.set_arms({"x": Adapter(2.0, "none", wide, strange.head)})
    about = {"model_type": "llama", "hidden_act": "silu", "hidden_size": 64}
    about |= {"intermediate_size": 128}
    assert unsupported(about) is None
    assert unsupported({**about, "model_type": "phi"}) == "model_type 'phi' is not one of llama"
    assert "rotary" in str(unsupported({**about, "rope_scaling": {"rope_type": "yarn"}}))
    assert "multiples" in str(unsupported({**about, "hidden_size": 100}))


def size_of(trained: DendriticMap) -> int:
    grown = [v for v, _ in trained.dendrites]
    return sum(t.size for t in (trained.weight, *grown, trained.output_weights, *trained.recurrent))


@pytest.mark.parametrize("kind", ["torch", "openvino"])
def test_an_arm_costs_its_adapter_and_no_second_base(kind: str, llama_folder: Path) -> None:
    decoder = decoder_of("llama")
    one = adapter_of(decoder, TARGETS["llama"], 1)
    engine: TorchEngine | OpenVinoEngine
    if kind == "torch":
        backbone = Backbone("llama", copy.deepcopy(decoder), None, "fp32", CPU, "abc")
        engine = TorchEngine(backbone, "last")
    else:
        engine = engine_of(llama_folder)
    engine.set_arms({"a": one})
    base, alone = engine.parameter_bytes()
    # W, V and t of every map, A, and the head; OpenVINO joins layers with the same input, whose
    # blocks in one matrix leave room for zeros beside them.
    exact = 4 * sum(a.size + size_of(b) for a, b in one.layers.values()) + 4 * size_of(one.head)
    assert exact <= alone["a"] <= (exact if kind == "torch" else 2 * exact)
    engine.set_arms({f"seed-{i}": copy.deepcopy(one) for i in range(9)})
    again, nine = engine.parameter_bytes()
    assert again == base
    assert set(nine.values()) == {alone["a"]}


def test_the_light_tokenizer_is_the_models(llama_folder: Path, tiny_cache: Path) -> None:
    from transformers import AutoTokenizer

    from finsent.data.registry import load_dataset

    texts = [e.text for e in load_dataset("sample").examples]
    folder = tiny_cache / "tiny-phi"
    expected = AutoTokenizer.from_pretrained(folder)(texts, truncation=True, max_length=32)
    found = FileTokenizer(folder, 32)(texts)
    assert [ids for ids, _ in found] == expected["input_ids"]
    whole = AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]
    assert [cut for _, cut in found] == [len(ids) > 32 for ids in whole]
    assert FileTokenizer(llama_folder, 8)(["profit rose"]) == [([1, 2], False)]


# -------------------------------------------------------------------------------------------- rule


LLAMA = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
}


@pytest.mark.parametrize(
    ("model", "precision", "device", "environment", "installed", "engine", "reason"),
    [
        (LLAMA, "fp32", "cpu", {}, True, "openvino-fp32", "a CPU and a llama decoder"),
        (LLAMA, "fp32", "cpu", {}, False, "torch", "openvino is not installed"),
        (LLAMA, "bf16", "cpu", {}, True, "torch", "bf16 weights on a CPU"),
        ({"model_type": "phi"}, "fp32", "cpu", {}, True, "torch", "'phi' is not one of"),
        ({"model_type": "phi"}, "bf16", "cuda", {}, True, "graphs", "a GPU of one's own"),
        (LLAMA, "nf4", "cuda", {}, True, "graphs", "a GPU of one's own"),
        ({**LLAMA, "hidden_size": 96}, "nf4", "cuda", {}, True, "torch", "lie across rows"),
        ({"model_type": "gemma"}, "bf16", "cuda", {}, True, "torch", "cannot be fused"),
        (LLAMA, "bf16", "cuda", {"SPACES_ZERO_GPU": "1"}, True, "torch", "ZeroGPU forbids"),
    ],
)
def test_the_rule(
    model: dict[str, object],
    precision: str,
    device: str,
    environment: dict[str, str],
    installed: bool,
    engine: str,
    reason: str,
) -> None:
    choice = choose_engine(model, precision, device, environment, openvino_installed=installed)
    assert choice.name == engine
    assert reason in choice.reason
