"""Models converted for OpenVINO against the reference, one base for all arms, and the rule that
chooses an engine."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    MPNetConfig,
    MPNetModel,
    PhiConfig,
    PhiModel,
    RobertaConfig,
    RobertaModel,
)

from finsent.engines import openvino_model
from finsent.engines.openvino_engine import OpenVinoEngine, multiplies_bf16
from finsent.engines.rule import CONVERTED_FAMILIES, EngineError, choose_engine
from finsent.engines.torch_engine import TorchEngine
from finsent.models.adapter_files import Adapter, AdapterError, DendriticMap
from finsent.models.adapters import AdapterBank
from finsent.models.backbones import Backbone, pool
from finsent.models.tokenization import FileTokenizer

pytestmark = pytest.mark.slow  # compiles a graph for every model, precision and depth
CPU = torch.device("cpu")
TEXTS = [list(range(5, 5 + n)) for n in (11, 4, 6, 1, 11, 9)]
SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
ENCODER = {"max_position_embeddings": 80}
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaModel(LlamaConfig(num_key_value_heads=2, **SIZES)),
    "phi": lambda: PhiModel(PhiConfig(partial_rotary_factor=0.5, num_key_value_heads=2, **SIZES)),
    "bert": lambda: BertModel(BertConfig(**SIZES, **ENCODER), add_pooling_layer=False),
    "roberta": lambda: RobertaModel(RobertaConfig(**SIZES, **ENCODER), add_pooling_layer=False),
    "mpnet": lambda: MPNetModel(MPNetConfig(**SIZES, **ENCODER), add_pooling_layer=False),
}
BLOCK = {"llama": "layers", "phi": "layers"}
ENCODER_TARGETS = ("intermediate.dense", "output.dense")
TARGETS = {
    "phi": ("self_attn.q_proj", "self_attn.v_proj", "self_attn.dense", "mlp.fc1", "mlp.fc2"),
    "llama": ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"),
    "bert": ("attention.self.query", "attention.self.value", *ENCODER_TARGETS),
    "roberta": ("attention.self.query", "attention.self.value", *ENCODER_TARGETS),
    "mpnet": ("attention.attn.q", "attention.attn.v", "attention.attn.o", *ENCODER_TARGETS),
}


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[family]()
    model.config.use_cache = False
    return model.eval().requires_grad_(False)


def map_of(out: int, inner: int, k: int, seed: int) -> DendriticMap:
    draw = np.random.default_rng(seed)

    def random(*shape: int) -> Any:
        return (0.3 * draw.standard_normal(shape)).astype(np.float32)

    return DendriticMap(
        random(out, inner),
        None,
        tuple((random(out, inner), None) for _ in range(k)),
        random(k, out) if k else None,
        tuple(random(i, out) for i in range(1, k)),
    )


def adapter_of(
    family: str, k: int, *, rank: int = 4, activation: str = "relu", targets: int | None = None
) -> Adapter:
    """On the upper two of three blocks."""
    model = model_of(family)
    layers = {}
    for index in (1, 2):
        for name in TARGETS[family][:targets]:
            path = f"{BLOCK.get(family, 'encoder.layer')}.{index}.{name}"
            layer = model.get_submodule(path)
            seed = len(layers)
            a = np.random.default_rng(seed).standard_normal((rank, layer.in_features)) * 0.1
            layers[path] = (a.astype(np.float32), map_of(layer.out_features, rank, k, seed))
    head = map_of(3, model.config.hidden_size, k, 99)
    return Adapter(2.0, activation if k else "none", layers, head)


def reference(family: str, adapter: Adapter, pooling: str) -> Any:
    """Scores of every text alone, unpadded, by transformers' own forward."""
    model = model_of(family)
    bank = AdapterBank(model)
    bank.add("x", adapter)
    head = bank.activate("x")
    rows = []
    for ids in TEXTS:
        states = model(input_ids=torch.tensor([ids])).last_hidden_state
        rows.append(head(pool(states, torch.tensor([len(ids) - 1]), pooling)))
    return torch.cat(rows).numpy()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "profit": 1, "rose": 2}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    for family in MODELS:
        made[family] = tmp_path_factory.mktemp(family)
        model_of(family).save_pretrained(made[family])
        tokenizer.save(str(made[family] / "tokenizer.json"))
    return made


def engine_of(folder: Path, pooling: str = "mean", **options: Any) -> OpenVinoEngine:
    return OpenVinoEngine(folder, "abc", pooling=pooling, **options)


def test_every_family_that_is_served_is_tested() -> None:
    assert set(MODELS) == set(CONVERTED_FAMILIES)


@pytest.mark.parametrize(
    ("family", "pooling", "activation"),
    [
        ("llama", "last", "relu"),
        ("llama", "mean", "tanh"),
        ("phi", "last", "relu"),
        ("bert", "mean", "relu"),
        ("roberta", "mean", "sigmoid"),
        ("mpnet", "mean", "relu"),
        ("mpnet", "last", "tanh"),
    ],
)
def test_openvino_computes_what_the_reference_computes(
    folders: dict[str, Path], family: str, pooling: str, activation: str
) -> None:
    """Arms of other ranks, layers and numbers of dendrites on one compiled base, padded texts."""
    adapters = {
        f"k{k}": adapter_of(family, k, rank=3 + k, activation=activation, targets=2 + k)
        for k in (0, 1, 2)
    }
    engine = engine_of(folders[family], pooling)
    engine.set_arms(adapters)
    for name, adapter in adapters.items():
        expected = reference(family, adapter, pooling)
        np.testing.assert_allclose(engine.scores(name, TEXTS), expected, atol=1e-4)


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_quick_answers_unless_the_call_is_close(folders: dict[str, Path], precision: str) -> None:
    adapter = adapter_of("llama", 1)
    engine = engine_of(folders["llama"], "last", quick=precision)
    engine.set_arms({"x": adapter})
    exact = engine.scores_in("x", TEXTS, quick=False)
    np.testing.assert_allclose(exact, reference("llama", adapter, "last"), atol=1e-4)
    quick = engine.scores_in("x", TEXTS, quick=True)
    assert np.abs(quick - exact).max() < 0.2
    if precision == "int8" or multiplies_bf16():
        assert np.abs(quick - exact).max() > 0
    top = np.sort(quick, axis=1)
    gap = top[:, -1] - top[:, -2]
    engine.close_call = float(np.median(gap))
    close = gap < engine.close_call
    found = engine.scores("x", TEXTS)
    np.testing.assert_allclose(found[close], exact[close], atol=1e-5)
    np.testing.assert_allclose(found[~close], quick[~close], atol=1e-5)
    assert engine.close_calls == close.sum() > 0


@pytest.mark.parametrize("family", ["mpnet", "llama"])
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_all_arms_in_one_pass_say_what_each_says_alone(
    folders: dict[str, Path], family: str, precision: str | None
) -> None:
    """Arms of other ranks and numbers of dendrites are rows of one batch."""
    engine = engine_of(folders[family], quick=precision)
    arms = {f"k{k}": adapter_of(family, k, rank=3 + k, targets=2 + k) for k in (0, 1, 2)}
    engine.set_arms(arms)
    for close_call in (0.0, 100.0):
        engine.close_call = close_call
        before = engine.close_calls
        together = engine.scores_of_all(TEXTS[0])
        assert engine.close_calls - before == (3 if precision and close_call else 0)
        for name, row in zip(engine.names, together, strict=True):
            np.testing.assert_allclose(row, engine.scores(name, TEXTS[:1])[0], atol=1e-5)


def kinds_of(engine: OpenVinoEngine, quick: bool) -> Counter[str]:
    nodes = engine._compiled[quick].model.get_runtime_model().get_ops()
    return Counter(node.get_rt_info()["layerType"].astype(str) for node in nodes)


@pytest.mark.parametrize("quick", [False, True])
def test_rotation_attention_and_maps_of_one_input_are_joined(
    folders: dict[str, Path], quick: bool
) -> None:
    engine = engine_of(folders["llama"], "last", quick="int8" if quick else None)
    engine.set_arms({"k0": adapter_of("llama", 0)})
    kinds = kinds_of(engine, quick)
    # Queries and keys, and scores to values, of every block: five times the nodes otherwise.
    assert kinds["RoPE"] == 2 * 3
    assert kinds["Subgraph"] == 3
    # Two blocks with four adapted layers, of which two share both maps; and the head.
    assert kinds["MatMul"] == 2 * (3 + 3) + 1


def test_openvino_compiles_once_for_all_arms(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = (adapter_of("mpnet", 1, rank=r) for r in (2, 5))
    plain = adapter_of("mpnet", 0)
    engine = engine_of(folders["mpnet"], cache=tmp_path)
    engine.set_arms({"small": small})
    before = engine.scores("small", TEXTS)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2  # a graph and its description

    def refuse(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(OpenVinoEngine, "_convert", refuse)
    engine.set_arms({"large": large, "plain": plain, "small": small})
    assert engine.names == ("large", "plain", "small")
    np.testing.assert_array_equal(engine.scores("small", TEXTS), before)
    again = engine_of(folders["mpnet"], cache=tmp_path)
    again.set_arms({"small": small})
    np.testing.assert_array_equal(again.scores("small", TEXTS), before)
    # Another model, or a damaged file, is noticed.
    other = OpenVinoEngine(folders["mpnet"], "other", pooling="mean", cache=tmp_path)
    with pytest.raises(AssertionError, match="converted again"):
        other.set_arms({"small": small})
    blob = next(path for path in files if path.suffix == ".blob")
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 0xFF]))
    with pytest.raises(AssertionError, match="converted again"):
        engine_of(folders["mpnet"], cache=tmp_path).set_arms({"small": small})


def test_a_depth_leaves_the_upper_blocks_out(folders: dict[str, Path]) -> None:
    head = map_of(3, 64, 0, 99)
    whole, cut = (engine_of(folders["bert"], depth=depth) for depth in (None, 2))
    for engine in (whole, cut):
        engine.set_arms({"x": Adapter(1.0, "none", {}, head)})
    model = model_of("bert")
    del model.encoder.layer[2:]
    states = model(input_ids=torch.tensor(TEXTS[:1])).last_hidden_state
    expected = states.mean(dim=1).numpy() @ head.weight.T
    np.testing.assert_allclose(cut.scores("x", TEXTS[:1]), expected, atol=1e-4)
    assert np.abs(whole.scores("x", TEXTS[:1]) - expected).max() > 1e-2


def test_openvino_refuses_what_does_not_fit(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(folders["llama"])
    with pytest.raises(KeyError):
        engine.scores("none", TEXTS)
    strange = adapter_of("llama", 0, targets=1)
    wide = {name: (a, map_of(7, 4, 0, 0)) for name, (a, _) in strange.layers.items()}
    with pytest.raises(AdapterError, match=r"64 -> 7 at layers.1.*trained on another"):
        engine.set_arms({"x": Adapter(2.0, "none", wide, strange.head)})
    with pytest.raises(AdapterError, match="no layer encoder.layer.1"):
        engine.set_arms({"x": adapter_of("bert", 0)})
    full = Adapter(
        1.0, "none", {}, map_of(3, 64, 0, 99), {"layers.1.mlp.down_proj": map_of(3, 64, 0, 98)}
    )
    with pytest.raises(AdapterError, match="trained in full.*choose --engine torch"):
        engine.set_arms({"x": full})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(EngineError, match="this is a gpt2 model; choose --engine torch"):
        engine_of(tmp_path)
    # What OpenVINO makes of a model is compared with torch before anybody is answered.
    original = openvino_model.convert

    def wrong(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        found.expected[:] += 1
        return found

    monkeypatch.setattr(openvino_model, "convert", wrong)
    with pytest.raises(EngineError, match="differ from PyTorch's by"):
        engine_of(folders["bert"]).set_arms({"x": adapter_of("bert", 0)})


def size_of(trained: DendriticMap) -> int:
    grown = [v for v, _ in trained.dendrites]
    return sum(t.size for t in (trained.weight, *grown, trained.output_weights, *trained.recurrent))


@pytest.mark.parametrize("kind", ["torch", "openvino"])
def test_an_arm_costs_its_adapter_and_no_second_base(kind: str, folders: dict[str, Path]) -> None:
    one = adapter_of("llama", 1)
    engine: TorchEngine | OpenVinoEngine
    if kind == "torch":
        backbone = Backbone("llama", model_of("llama"), None, "fp32", CPU, "abc")
        engine = TorchEngine(backbone, "last")
    else:
        engine = engine_of(folders["llama"])
    engine.set_arms({"a": one})
    base, alone = engine.parameter_bytes()
    # W, V and t of every map, A, and the head; OpenVINO joins the maps of layers with the same
    # input, where second maps leave room for zeros.
    exact = 4 * sum(a.size + size_of(b) for a, b in one.layers.values()) + 4 * size_of(one.head)
    assert exact <= alone["a"] <= (exact if kind == "torch" else 2 * exact)
    engine.set_arms({f"seed-{i}": copy.deepcopy(one) for i in range(9)})
    again, nine = engine.parameter_bytes()
    assert again == base
    assert set(nine.values()) == {alone["a"]}


def test_the_light_tokenizer_is_the_models(folders: dict[str, Path], tiny_cache: Path) -> None:
    from transformers import AutoTokenizer

    from finsent.data.registry import load_dataset

    texts = [e.text for e in load_dataset("sample").examples]
    folder = tiny_cache / "tiny-phi"
    expected = AutoTokenizer.from_pretrained(folder)(texts, truncation=True, max_length=32)
    found = FileTokenizer(folder, 32)(texts)
    assert [ids for ids, _ in found] == expected["input_ids"]
    whole = AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]
    assert [cut for _, cut in found] == [len(ids) > 32 for ids in whole]
    assert FileTokenizer(folders["llama"], 8)(["profit rose"]) == [([1, 2], False)]


# -------------------------------------------------------------------------------------------- rule


LLAMA = {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536}
PHI = {"model_type": "phi"}


@pytest.mark.parametrize(
    ("model", "precision", "device", "environment", "installed", "engine"),
    [
        (LLAMA, "fp32", "cpu", {}, True, "openvino-fp32"),
        ({"model_type": "mpnet"}, "fp32", "cpu", {}, True, "openvino"),
        ({"model_type": "bert"}, "fp32", "cpu", {}, True, "openvino"),
        (LLAMA, "fp32", "cpu", {}, False, "torch"),
        (LLAMA, "bf16", "cpu", {}, True, "torch"),
        ({"model_type": "gemma"}, "fp32", "cpu", {}, True, "torch"),
        (PHI, "bf16", "cuda", {}, True, "graphs"),
        ({"model_type": "mpnet"}, "fp32", "cuda", {}, True, "graphs"),
        ({"model_type": "bert"}, "nf4", "cuda", {}, True, "torch"),
        (LLAMA, "nf4", "cuda", {}, True, "graphs"),
        # Blocks that share a scale lie across rows, and cannot be joined.
        ({**LLAMA, "hidden_size": 96}, "nf4", "cuda", {}, True, "torch"),
        ({"model_type": "gemma"}, "bf16", "cuda", {}, True, "torch"),
        (LLAMA, "bf16", "cuda", {"SPACES_ZERO_GPU": "1"}, True, "torch"),
    ],
)
def test_the_rule(
    model: dict[str, object],
    precision: str,
    device: str,
    environment: dict[str, str],
    installed: bool,
    engine: str,
) -> None:
    found = choose_engine(
        model, precision, device, environment, openvino_installed=installed, bf16=True
    )
    assert found == engine
    without = choose_engine(
        model, precision, device, environment, openvino_installed=installed, bf16=False
    )
    assert without == engine.replace("openvino", "openvino-fp32").replace("-fp32-fp32", "-fp32")
