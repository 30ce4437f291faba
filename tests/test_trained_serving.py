"""What was trained is what is served, for every arm."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from finsent.classifier import Classifier
from finsent.config import (
    LoraConfig,
    arm_config,
)
from finsent.data.registry import load_dataset
from finsent.engines.rule import Engine
from finsent.engines.torch_engine import TorchEngine
from finsent.models.adapter_files import AdapterError, load_adapter
from finsent.models.adapters import (
    AdapterBank,
    save_adapter,
    trainable_count,
)
from finsent.models.backbones import (
    Backbone,
    BackboneError,
)
from finsent.models.tokenization import InputError
from finsent.results import runs
from finsent.serving.comparer import Comparer
from tests.training_factory import BASE, CPU, DENDRITES, make_run


@pytest.mark.parametrize("arm", ["baseline", "dendritic", "matched"])
def test_the_served_model_is_the_trained_one(
    arm: str, trained: dict[str, runs.Run], tiny_environment: None
) -> None:
    run = trained[arm]
    served = Classifier.from_artifacts(run.folder.parent.parent, arm, 0, device=CPU)
    texts = {e.id: e.text for e in load_dataset("sample").examples}
    predictions = run.read_predictions()
    found = served.predict_proba([texts[i] for i in predictions.ids])
    assert served.label_names == ("negative", "neutral", "positive")
    np.testing.assert_allclose(found, np.array(predictions.probabilities), atol=2e-5)


def test_a_model_that_reads_texts_twice_is_served_as_it_was_trained(
    tmp_path: Path, tiny_environment: None
) -> None:
    config = replace(BASE, epochs=1, copies=2, max_length=24, prompt_suffix=" This is")
    folder = make_run(arm_config(config, "baseline"), tmp_path / "artifacts")
    run = runs.read_run(folder)
    assert run.config["config"]["copies"] == 2
    served = Comparer.from_artifacts(folder.parent.parent, 0, ["baseline"])
    texts = {e.id: e.text for e in load_dataset("sample").examples}
    predictions = run.read_predictions()
    found = served.predict_proba([texts[i] for i in predictions.ids], "baseline")
    np.testing.assert_allclose(found, np.array(predictions.probabilities), atol=1e-4)
    # A copy has room of its own: together they and the suffix are longer than one may be.
    text = "Profit rose. " * 2
    assert 24 < served.compare(text).n_tokens <= 48
    assert not served.compare(text).truncated
    assert served.compare(text * 3).truncated


def test_one_base_serves_all_arms_and_switches(
    trained: dict[str, runs.Run], tiny_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained["baseline"].folder.parent.parent
    text = "The miner warned that profit would halve."
    comparer = Comparer.from_artifacts(folder, 0, tuple(trained), device=CPU)
    base = comparer.engine
    together = comparer.compare(text)
    assert [p.arm for p in together.predictions] == list(trained)
    assert len({p.probabilities for p in together.predictions}) == 3
    assert all(p.latency_ms > 0 for p in together.predictions)
    assert not together.truncated
    comparer.use(folder, 0, ("matched",))
    assert comparer.engine is base
    alone = comparer.compare(text).predictions
    assert alone[0].probabilities == together.predictions[2].probabilities
    # Another base: the first is told to end what it does in the background.
    closed: list[Engine] = []
    monkeypatch.setattr(type(base), "close", lambda engine: closed.append(engine))
    comparer._base = replace(comparer._loaded, key=("another",))
    comparer.use(folder, 0, ("matched",))
    assert closed == [base]
    assert comparer.engine is not base


def test_a_run_of_other_weights_is_refused_beside_and_after_one_of_these(
    trained: dict[str, runs.Run], tiny_environment: None, tmp_path: Path
) -> None:
    folder = trained["baseline"].folder.parent.parent
    comparer = Comparer.from_artifacts(folder, 0, ("baseline",), device=CPU)
    before = comparer.compare("Profit rose.").predictions[0].probabilities
    other = Path(shutil.copytree(folder, tmp_path / "artifacts" / "tiny-phi" / "sample"))
    path = other / "baseline" / "seed-0" / "config.json"
    config = runs.read_json(path)
    runs.write_json(path, {**config, "backbone_sha256": "0" * 64})
    with pytest.raises(AdapterError, match="trained on different weights"):
        comparer.use(other, 0, ("baseline", "dendritic"))
    with pytest.raises(BackboneError, match="do not fit"):
        comparer.use(other, 0, ("baseline",))
    assert comparer.compare("Profit rose.").predictions[0].probabilities == before


def test_bad_texts_are_refused_and_long_ones_cut(
    trained: dict[str, runs.Run], tiny_environment: None
) -> None:
    folder = trained["baseline"].folder.parent.parent
    comparer = Comparer.from_artifacts(folder, 0, ("baseline",), device=CPU)
    for text in ("", " \n\t"):
        with pytest.raises(InputError, match="empty"):
            comparer.compare(text)
    with pytest.raises(InputError, match="position 1"):
        comparer.predict_proba(["fine", " "], "baseline")
    for wrong in ({"a": "b"}, 5, None, iter(["up"])):
        with pytest.raises(InputError, match="must be a list of strings"):
            comparer.predict_proba(wrong, "baseline")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"position 1: character 3 is one half .*U\+D83D"):
        comparer.predict_proba(["up", "up\ud83d"], "baseline")
    with pytest.raises(InputError, match="not one string"):
        comparer.predict_proba("a headline", "baseline")
    with pytest.raises(InputError, match="must be a string"):
        comparer.compare(3)  # type: ignore[arg-type]
    assert comparer.predict_proba([], "baseline").shape == (0, 3)
    assert comparer.compare("profit " * 2000).truncated
    for text in ("📈🚀", "<b>up</b>", "利益が増加した", "\x00\u202e"):
        result = comparer.compare(text)
        assert sum(result.predictions[0].probabilities) == pytest.approx(1.0)


def test_an_adapter_of_another_backbone_is_refused(
    trained: dict[str, runs.Run], tiny: Backbone, tmp_path: Path
) -> None:
    source = trained["baseline"].folder / "adapter.safetensors"
    adapter = load_adapter(source)
    name, (a, b) = next(iter(adapter.layers.items()))
    bank = AdapterBank(tiny.decoder)
    with pytest.raises(AdapterError, match="trained on another one"):
        bank.add("x", replace(adapter, layers={name: (a[:, :-1], b)}))
    with pytest.raises(AdapterError, match="has no layer"):
        bank.add("x", replace(adapter, layers={"layers.9.self_attn.q_proj": (a, b)}))
    with pytest.raises(AdapterError, match="there is no adapter"):
        load_adapter(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(source.read_bytes()[:100])
    with pytest.raises(AdapterError, match="not a readable"):
        load_adapter(tmp_path / "bad.safetensors")
    tensors = {"score.weight": torch.ones(3, 4), "layers.0.q.lora_A.weight": torch.ones(2, 4)}
    save_adapter(tmp_path / "half.safetensors", tensors, 2.0, "none")
    with pytest.raises(AdapterError, match="needs lora_A.weight and lora_B.weight"):
        load_adapter(tmp_path / "half.safetensors")
    save_adapter(tmp_path / "odd.safetensors", {"surprise": torch.ones(1)}, 2.0, "none")
    with pytest.raises(AdapterError, match="no module takes a tensor called surprise"):
        load_adapter(tmp_path / "odd.safetensors")


def test_the_parameter_count_is_what_the_file_holds(trained: dict[str, runs.Run]) -> None:
    from safetensors.torch import load_file

    for run in trained.values():
        tensors = load_file(run.folder / "adapter.safetensors")
        assert trainable_count(tensors) == run.metrics["trainable_params"]


def test_nf4_trains_and_serves(tmp_path: Path, tiny_environment: None) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed here")
    config = replace(BASE, precision="nf4", epochs=2, lora=LoraConfig(r=2, last_layers=1))
    folder = make_run(arm_config(config, "dendritic", DENDRITES), tmp_path / "artifacts")
    run = runs.read_run(folder)
    assert run.metrics["dendrites"] == 1
    served = Classifier.from_artifacts(folder.parent.parent, "dendritic", 0, device=CPU)
    engine = served._comparer.engine
    assert isinstance(engine, TorchEngine)
    linear = engine.backbone.decoder.layers[0].self_attn.q_proj
    assert type(linear).__name__ == "Linear4bit"
    texts = {e.id: e.text for e in load_dataset("sample").examples}
    predictions = run.read_predictions()
    found = served.predict_proba([texts[i] for i in predictions.ids])
    # bf16 arithmetic, other batches than in training: close, not equal.
    assert np.abs(found - np.array(predictions.probabilities)).max() < 0.05
