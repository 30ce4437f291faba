"""The training side on tiny-phi: equal budgets, equal beginnings, growth, artifacts, serving."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finsent.classifier import Classifier
from finsent.config import (
    ConfigError,
    DendriteConfig,
    LoraConfig,
    MatchedCapacity,
    TrainConfig,
    arm_config,
)
from finsent.data.registry import load_dataset, make_split
from finsent.engines.torch_engine import TorchEngine
from finsent.growth.grower import DendriteGrower
from finsent.models.adapter_files import AdapterError, load_adapter
from finsent.models.adapters import (
    AdapterBank,
    linear_shapes,
    lora_ranks,
    save_adapter,
    trainable_count,
)
from finsent.models.backbones import (
    Backbone,
    HiddenStates,
    check_decomposition,
    entering_hidden_states,
    load_backbone,
    pool,
    upper_blocks,
)
from finsent.models.presets import BackboneError
from finsent.models.tokenization import FileTokenizer, token_batches
from finsent.models.weights import ensure_tiny_phi
from finsent.results import runs
from finsent.serving.comparer import Comparer, InputError
from finsent.training import child_main, loop
from finsent.training import run as run_module
from finsent.training.adapted_model import (
    AdaptedModel,
    adopt_grown_modules,
    build_model,
    growable_maps,
)
from finsent.training.progress import Validation

CPU = torch.device("cpu")
BASE = TrainConfig(
    backbone="tiny-phi",
    dataset="sample",
    epochs=3,
    learning_rate=5e-3,
    lora=LoraConfig(r=2),
    autocast=False,
)
DENDRITES = DendriteConfig(grow_by=0, init_scale=0.3)
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def tiny(tiny_environment: None) -> Backbone:
    return load_backbone("tiny-phi", "fp32", CPU)


def make_run(config: TrainConfig, root: Path, **changes: Any) -> Path:
    job = child_main.Job(config, root, root.parent / "shared", "cpu", "test", None)
    return run_module.run_job(replace(job, **changes))


def run_arms(root: Path, base: TrainConfig, dendrites: DendriteConfig) -> dict[str, runs.Run]:
    folders = {
        "baseline": make_run(arm_config(base, "baseline"), root),
        "dendritic": make_run(arm_config(base, "dendritic", dendrites), root),
    }
    count = runs.read_run(folders["dendritic"]).metrics["trainable_params"]
    folders["matched"] = make_run(arm_config(base, "matched", MatchedCapacity(count)), root)
    return {arm: runs.read_run(folder) for arm, folder in folders.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_cache: Path) -> dict[str, runs.Run]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINSENT_CACHE_DIR", str(tiny_cache))
        return run_arms(tmp_path_factory.mktemp("artifacts"), BASE, DENDRITES)


# -------------------------------------------------------------------------------- the comparison


def test_the_arms_get_the_same_budget_and_the_control_the_same_size(
    trained: dict[str, runs.Run],
) -> None:
    metrics = {arm: run.metrics for arm, run in trained.items()}
    assert len({(m["optimizer_steps"], m["epochs"], m["n_test"]) for m in metrics.values()}) == 1
    assert metrics["baseline"]["dendrites"] == metrics["matched"]["dendrites"] == 0
    assert metrics["dendritic"]["dendrites"] == 1
    target = metrics["dendritic"]["trainable_params"]
    assert target > metrics["baseline"]["trainable_params"]
    # The cheapest step a rank can take: one more on a layer that maps 64 to 64.
    assert abs(metrics["matched"]["trainable_params"] - target) <= 64
    assert len({run.config["split_sha256"] for run in trained.values()}) == 1


def test_until_the_first_dendrite_both_runs_are_the_same_run(trained: dict[str, runs.Run]) -> None:
    baseline, dendritic = trained["baseline"].history, trained["dendritic"].history
    assert dendritic[0]["event"] == "grew dendrite 1"
    for key in ("train_loss", "val_loss", "val_accuracy", "learning_rate", "trainable_params"):
        assert baseline[0][key] == dendritic[0][key]
    assert baseline[1]["train_loss"] != dendritic[1]["train_loss"]
    # One rule for the schedule; growth multiplies it by what the configuration says.
    factors = [1.0, DENDRITES.learning_rate_factor, DENDRITES.learning_rate_factor]
    assert [e["learning_rate"] for e in dendritic] == [
        e["learning_rate"] * factor for e, factor in zip(baseline, factors, strict=True)
    ]


@pytest.mark.parametrize("wrecked", [1, 2])
def test_growth_starts_from_one_whole_epoch(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrecked: int
) -> None:
    """The library rolls back the maps it knows; LoRA A, which it does not, has to follow."""
    data = load_dataset("sample")
    split = make_split(data, 0)
    ids = tiny.tokenize([e.text for e in data.examples], 64)
    states = entering_hidden_states(tiny, ids, 0)
    # The epochs before are fine; this one wrecks the model, and growth follows it. What the library
    # goes back to is never the first epoch.
    original = loop.learning_rate_at
    monkeypatch.setattr(
        loop,
        "learning_rate_at",
        lambda step, total, c: (
            original(step, total, c) * (100 if 13 * wrecked <= step < 13 * wrecked + 13 else 1)
        ),
    )
    validations: list[Validation] = []
    kept: list[dict[str, torch.Tensor]] = []
    validate = loop.validate
    monkeypatch.setattr(
        loop,
        "validate",
        lambda *given: (validations.append(validate(*given)), validations[-1])[1],
    )
    go_back = AdaptedModel.go_back

    def spy(model: Any, best: Any) -> None:
        go_back(model, best)
        kept.append(model.snapshot())
        kept.append(best)

    monkeypatch.setattr(AdaptedModel, "go_back", spy)
    config = replace(BASE, epochs=5, treatment=DendriteConfig(patience=1, grow_by=wrecked))
    loop.train(
        config,
        tiny,
        loop.TrainingData(
            states, [e.label for e in data.examples], 3, split.train, split.validation
        ),
        tmp_path,
    )
    after, best = kept[:2]
    assert validations[-1].epoch == 4
    assert [v.epoch for v in validations[: wrecked + 1]] == list(range(wrecked + 1))
    losses = [v.nll for v in validations[: wrecked + 1]]
    assert losses.index(min(losses)) == wrecked - 1
    for name, tensor in best.items():
        torch.testing.assert_close(after[name], tensor, atol=0, rtol=0)
    assert any(".dendrites." in name for name in after)


def test_the_dendritic_model_is_a_state_trained_with_dendrites(
    trained: dict[str, runs.Run],
) -> None:
    run = trained["dendritic"]
    assert run.history[run.metrics["best_epoch"]]["dendrites"] == 1
    losses = [e["val_loss"] for e in run.history if e["dendrites"] > 0]
    assert run.metrics["validation"]["nll"] == min(losses)
    assert run.metrics["best_before_growth"]["nll"] == run.history[0]["val_loss"]
    assert 0 < run.metrics["dendrite_logit_share"] < 2
    assert (run.folder / "PAI.png").read_bytes().startswith(b"\x89PNG")
    expected = [*runs.RUN_FILES, runs.VALIDATION_FILE, "PAI.png"]
    assert sorted(p.name for p in run.folder.iterdir()) == sorted(expected)


@pytest.mark.parametrize("arm", ["baseline", "dendritic", "matched"])
def test_same_seed_same_numbers_bitwise(
    arm: str, trained: dict[str, runs.Run], tmp_path: Path, tiny_environment: None
) -> None:
    first = trained[arm]
    config = TrainConfig.from_dict(first.config["config"])
    second = make_run(config, tmp_path / "artifacts")
    for name in ("adapter.safetensors", "predictions.csv"):
        assert (first.folder / name).read_bytes() == (second / name).read_bytes()


def test_another_seed_gives_another_split_and_other_numbers(
    trained: dict[str, runs.Run], tmp_path: Path, tiny_environment: None
) -> None:
    other = runs.read_run(make_run(replace(BASE, seed=1), tmp_path / "artifacts"))
    assert other.config["split_sha256"] != trained["baseline"].config["split_sha256"]
    assert other.history[0]["train_loss"] != trained["baseline"].history[0]["train_loss"]


def test_asking_for_dendrites_and_getting_none_is_said(
    tmp_path: Path, tiny_environment: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = arm_config(BASE, "dendritic", DendriteConfig(patience=50))
    metrics = runs.read_run(make_run(config, tmp_path / "artifacts")).metrics
    assert metrics["dendrites"] == 0
    assert metrics["dendrites_requested"]
    assert metrics["dendrite_logit_share"] is None
    assert "asked for dendrites and kept none" in capsys.readouterr().err


def test_several_dendrites_on_the_head_alone(tmp_path: Path, tiny_environment: None) -> None:
    dendrites = DendriteConfig(
        placement=("score",), activation="tanh", max_dendrites=2, patience=1, grow_by=0
    )
    base = replace(BASE, epochs=8, learning_rate=0.05)
    run = runs.read_run(make_run(arm_config(base, "dendritic", dendrites), tmp_path / "artifacts"))
    assert next(e["event"] for e in run.history if e["event"]) == "grew dendrite 1"
    adapter = load_adapter(run.folder / "adapter.safetensors")
    assert adapter.activation == "tanh"
    assert adapter.head.n_dendrites == run.metrics["dendrites"] >= 1
    assert all(b.n_dendrites == 0 for _, b in adapter.layers.values())


def test_a_selected_state_with_fewer_dendrites_than_the_last_is_restored(
    tiny: Backbone, tmp_path: Path
) -> None:
    model = build_model(BASE, tiny, 3)
    maps = growable_maps(model, ("score",))
    with DendriteGrower(maps, DendriteConfig(patience=1), CPU, tmp_path) as grower:
        adopt_grown_modules(model, grower.modules)
        before = model.snapshot()
        expected = {n: t.clone() for n, t in model.tensors().items()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for score in (0.5, 0.6, 0.4):
            grower.epoch_end(score, optimizer)
        assert model.head.n_dendrites == 1
        with torch.no_grad():
            for tensor in model.tensors().values():
                tensor += 1.0
        model.restore(before)
    assert model.head.n_dendrites == 0
    assert {n: t.tolist() for n, t in model.tensors().items()} == {
        n: t.tolist() for n, t in expected.items()
    }


# ------------------------------------------------------------------------------------- divergence


def test_a_diverging_loss_stops_the_run_and_keeps_the_last_good_state(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_dataset("sample")
    split = make_split(data, 0)
    ids = tiny.tokenize([e.text for e in data.examples], 64)
    states = entering_hidden_states(tiny, ids, 0)
    original = loop.learning_rate_at
    monkeypatch.setattr(
        loop,
        "learning_rate_at",
        lambda step, total, c: original(step, total, c) * (1.0 if step < 20 else 1e30),
    )
    with pytest.raises(loop.TrainingDiverged, match=r"epoch 1 .*after epoch 0 is kept in"):
        loop.train(
            BASE,
            tiny,
            loop.TrainingData(
                states, [e.label for e in data.examples], 3, split.train, split.validation
            ),
            tmp_path,
        )
    kept = load_adapter(tmp_path / "last_good.safetensors")
    assert all(np.isfinite(a).all() for a, _ in kept.layers.values())


# ---------------------------------------------------------------------- pieces of the training loop


def test_the_learning_rate_warms_up_and_decays_to_zero() -> None:
    config = replace(BASE, learning_rate=1.0, warmup_fraction=0.1)
    rates = [loop.learning_rate_at(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert loop.learning_rate_at(100, 100, config) == 0.0


def test_class_weights_balance_and_survive_an_absent_class() -> None:
    weights = loop.class_weights([0, 1, 1, 1, 2, 2], 3)
    assert weights.tolist() == pytest.approx([2.0, 2 / 3, 1.0])
    assert loop.class_weights([0, 0], 2).tolist() == [0.5, 0.0]


def test_batches_cover_every_example_once_and_keep_lengths_together() -> None:
    lengths = np.random.default_rng(0).integers(5, 100, 500).tolist()
    batches = loop.epoch_batches(range(100, 500), lengths, 16, seed=3, epoch=0)
    assert sorted(i for b in batches for i in b) == list(range(100, 500))
    assert len(batches) == math.ceil(400 / 16)
    padded = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    assert padded < 1.15 * sum(lengths[100:])
    again = loop.epoch_batches(range(100, 500), lengths, 16, seed=3, epoch=0)
    later = loop.epoch_batches(range(100, 500), lengths, 16, seed=3, epoch=1)
    assert batches == again != later


def test_token_batches_respect_the_budget() -> None:
    lengths = [7, 100, 3, 50, 50, 8, 200]
    batches = list(token_batches(lengths, 120))
    assert sorted(i for b in batches for i in b) == list(range(7))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 120 for b in batches)


def test_pooling_never_sees_the_padding() -> None:
    states = torch.arange(24.0).reshape(2, 3, 4)
    last = torch.tensor([1, 2])
    expected = torch.stack([states[0, :2].mean(0), states[1].mean(0)])
    states[0, 2] = float("nan")
    torch.testing.assert_close(pool(states, last, "mean"), expected)
    torch.testing.assert_close(
        pool(states, last, "last"), torch.stack([states[0, 1], states[1, 2]])
    )
    with pytest.raises(ValueError, match="pooling"):
        pool(states, last, "max")


def test_matched_ranks_spend_the_target_to_within_half_a_rank() -> None:
    shapes = {"layers.0.q_proj": (64, 64), "layers.0.v_proj": (64, 32), "layers.1.q_proj": (64, 64)}
    costs = {name: sum(shape) for name, shape in shapes.items()}
    for target in range(10_000, 12_000, 37):
        ranks = lora_ranks(shapes, 8, 192, MatchedCapacity(target))
        spent = 192 + sum(ranks[n] * costs[n] for n in shapes)
        assert abs(spent - target) <= 64, target
        assert min(ranks.values()) >= 8
    with pytest.raises(ConfigError, match="rank 8 alone has"):
        lora_ranks(shapes, 8, 192, MatchedCapacity(1000))
    assert set(lora_ranks(shapes, 4, 192, None).values()) == {4}


# ----------------------------------------------------------------------------------- the backbone


def test_lower_and_upper_blocks_make_the_whole_model(tiny: Backbone) -> None:
    ids = tiny.tokenize(["Profit rose.", "The bank cut its dividend after a weak year."], 64)
    for block in (0, 1):
        states = entering_hidden_states(tiny, ids, block)
        upper = upper_blocks(tiny.decoder, block)
        hidden, last = states.batch(torch.tensor([0, 1]), max(map(len, ids)))
        with torch.no_grad():
            ours = pool(upper(inputs_embeds=hidden).last_hidden_state, last, "last")
            for row, tokens in enumerate(ids):
                whole = tiny.decoder(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1]
                torch.testing.assert_close(ours[row], whole, atol=1e-5, rtol=1e-5)
        check_decomposition(tiny, ids, block)


def test_a_model_that_does_not_decompose_is_refused(tiny: Backbone) -> None:
    ids = tiny.tokenize(["Profit rose.", "Sales fell in the third quarter."], 64)
    drift = torch.linspace(-1, 1, 64) ** 3
    handle = tiny.decoder.layers[1].register_forward_hook(
        lambda module, args, output: output + drift * args[0].shape[0]
    )
    with pytest.raises(BackboneError, match="does not split"):
        check_decomposition(tiny, ids, 1)
    handle.remove()


def test_depth_uses_the_first_blocks(tiny: Backbone, tiny_environment: None) -> None:
    shallow = load_backbone("tiny-phi", "fp32", CPU, depth=1)
    ids = torch.tensor(tiny.tokenize(["Profit rose again."], 64))
    with torch.no_grad():
        entering = entering_hidden_states(tiny, ids.tolist(), 1).values
        expected = tiny.decoder.final_layernorm(entering)
        torch.testing.assert_close(shallow.decoder(input_ids=ids).last_hidden_state[0], expected)
    with pytest.raises(BackboneError, match="has 2 blocks"):
        load_backbone("tiny-phi", "fp32", CPU, depth=3)


def test_backbones_that_cannot_be_had_are_one_line_errors(
    tmp_path: Path, tiny_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [
        (lambda: load_backbone("tiny-phi", "int3", CPU), "precision must be one of"),  # type: ignore[arg-type]
        (lambda: load_backbone("tiny-phi", "fp32", CPU, folder=tmp_path), "no config.json"),
        (lambda: load_backbone("no/such-model", "fp32", CPU), "could not load backbone"),
    ]
    if not torch.cuda.is_available():
        cuda = torch.device("cuda")
        cases.append((lambda: load_backbone("tiny-phi", "fp32", cuda), "use --device cpu"))
    for call, message in cases:
        with pytest.raises(BackboneError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(BackboneError, match="pip install bitsandbytes"):
        load_backbone("tiny-phi", "nf4", CPU)


def test_more_adapted_blocks_than_there_are(tiny: Backbone) -> None:
    assert tiny.first_adapted_block(None) == 0
    assert tiny.first_adapted_block(1) == 1
    with pytest.raises(BackboneError, match="has 2"):
        tiny.first_adapted_block(3)


def test_an_unknown_target_module_names_those_there_are(tiny: Backbone) -> None:
    with pytest.raises(ConfigError, match=r"called qq_proj; this backbone has .*q_proj"):
        linear_shapes(tiny.decoder, ("q_proj", "qq_proj"))


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


# ---------------------------------------------------------------------------------------- serving


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
    closed: list[TorchEngine] = []
    monkeypatch.setattr(TorchEngine, "close", lambda engine: closed.append(engine))
    comparer._base = replace(comparer._loaded, key=("another",))
    comparer.use(folder, 0, ("matched",))
    assert closed == [base]
    assert comparer.engine is not base


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


def test_hidden_states_are_shared_between_runs(tiny: Backbone, tmp_path: Path) -> None:
    ids = tiny.tokenize(["Profit rose.", "Sales fell sharply."], 64)
    path = tmp_path / "states.safetensors"

    def status(what: str, done: float) -> None: ...

    first = run_module._shared_states(path, tiny, ids, 1, status)
    path.rename(tmp_path / "moved")
    (tmp_path / "moved").rename(path)
    assert isinstance(first, HiddenStates)
    tiny.decoder = None  # a second computation would fail
    second = run_module._shared_states(path, tiny, ids, 1, status)
    torch.testing.assert_close(first.values, second.values, atol=0, rtol=0)


# ---------------------------------------------------------------------------- the command line


TrainCommand = Callable[..., subprocess.CompletedProcess[str]]


def command(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "train_models.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "FINSENT_CACHE_DIR": str(cache)},
    )


@pytest.mark.slow
def test_the_trainer_makes_verifiable_artifacts_from_the_command_line(
    tmp_path: Path, tiny_cache: Path, train_command: TrainCommand
) -> None:
    options = ["--backbone", "tiny-phi", "--dataset", "sample", "--epochs", "2", "--grow-by", "0"]
    root = tmp_path / "artifacts"
    made = command("train", *options, "--artifacts", str(root), cache=tiny_cache)
    assert made.returncode == 0, made.stderr
    found = runs.find_runs(root)
    assert [run.arm for run in found] == ["baseline", "dendritic", "matched"]
    assert made.stdout.count("test accuracy") == 3
    for run in found:
        assert run.config["command"] == "python train_models.py train " + " ".join(options)
        assert json.dumps(run.config).count(str(tmp_path)) == 0
    assert train_command("verify", "--artifacts", str(root)).returncode == 0
    drawn = train_command("figures", "--artifacts", str(root))
    assert drawn.returncode == 0, drawn.stderr
    names = {"Accuracy_Improvement.png", "Dendrite_vs_Baseline_Training.png", "PAI.png"}
    assert {p.name for p in (root / "figures").iterdir()} == names
    assert train_command("verify", "--artifacts", str(root)).returncode == 0
    manifest = (root / "SHA256SUMS").read_bytes()
    again = train_command("train", *options, "--artifacts", str(root))
    assert again.stdout.count("already trained") == 3
    assert (root / "SHA256SUMS").read_bytes() == manifest
    other = train_command("train", *options, "--lora-r", "4", "--artifacts", str(root))
    assert other.returncode == 1
    assert "was trained with other settings" in other.stderr
    # One byte of one file.
    target = found[0].folder / "adapter.safetensors"
    content = bytearray(target.read_bytes())
    content[-1] ^= 1
    target.write_bytes(content)
    spoilt = train_command("verify", "--artifacts", str(root))
    assert spoilt.returncode == 1
    assert "adapter.safetensors" in spoilt.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "matched"], "add 'dendritic' to --arms"),
        (["--dataset", "nope"], "nope"),
        (["--backbone", "no/such-model", "--arms", "baseline"], "could not load backbone"),
        (["--workers", "0"], "--workers"),
        (["--target-modules", "qq", "--arms", "baseline"], "no linear layer is called qq"),
        (["--grow-by", "11"], "leaves no epoch"),
    ],
)
def test_bad_input_is_a_one_line_error(
    arguments: list[str], message: str, tmp_path: Path, train_command: TrainCommand
) -> None:
    options = ["--backbone", "tiny-phi", "--dataset", "sample", "--artifacts", str(tmp_path)]
    failed = train_command(*options, *arguments)
    assert failed.returncode == 1
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error:")]
    assert any(message in line for line in errors), failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_torchs_weighted_smoothed_cross_entropy(smoothing: float) -> None:
    logits = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([0, 1, 2, 2] * 3)
    weights = torch.tensor([0.5, 2.0, 1.3])
    ours = loop.weighted_loss(logits, labels, weights, smoothing)
    theirs = F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_the_loss_aims_for_distributions_where_they_are_given() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 3, generator=generator)
    labels = torch.tensor([[0, 1, 2, 2, 1, 0], [1, 1, 0, 2, 0, 2]])
    weights = torch.tensor([[[0.5, 2.0, 1.3]], [[1.0, 1.0, 1.0]]])
    targets = torch.rand(2, 6, 3, generator=generator).softmax(dim=2)
    real = torch.ones(2, 6)
    ours = loop.weighted_loss(logits, labels, weights, 0.1, real, targets)
    for run in range(2):
        # torch divides by the number of examples where targets are distributions.
        summed = F.cross_entropy(
            logits[run],
            targets[run],
            weight=weights[run, 0],
            label_smoothing=0.1,
            reduction="sum",
        )
        shares = weights[run, 0][labels[run]].sum()
        torch.testing.assert_close(ours[run], summed / shares)
    one_hot = F.one_hot(labels, 3).float()
    same = loop.weighted_loss(logits, labels, weights, 0.1, real, one_hot)
    torch.testing.assert_close(same, loop.weighted_loss(logits, labels, weights, 0.1, real))


def test_copies_of_a_text_stand_in_lines_of_their_own(tiny: Backbone) -> None:
    texts = ["Profit rose.", "Sales fell in the third quarter. " * 40]
    thrice = tiny.tokenize(texts, 96, " This is", 3)
    read = ["\n".join([text] * 3) for text in texts]
    assert thrice == tiny.tokenize(read, 96, " This is")
    assert len(thrice[1]) == 96
    light = FileTokenizer(ensure_tiny_phi(), 96, " This is", 3)
    assert light(texts) == [(thrice[0], False), (thrice[1], True)]
    assert (replace(BASE, copies=3).longest, BASE.longest) == (3 * BASE.max_length, BASE.max_length)


def test_a_prompt_suffix_ends_every_text_also_a_cut_one(tiny: Backbone) -> None:
    texts = ["Profit rose.", "Sales fell in the third quarter. " * 40]
    plain = tiny.tokenize(texts, 32)
    ended = tiny.tokenize(texts, 32, " This is")
    end = tiny.tokenizer(" This is", add_special_tokens=False)["input_ids"]
    assert end
    assert all(ids[-len(end) :] == end for ids in ended)
    assert ended[0] == plain[0] + end
    assert len(ended[1]) == 32
    assert ended[1][: -len(end)] == plain[1][: -len(end)]
    with pytest.raises(BackboneError, match="leaves no room"):
        tiny.tokenize(texts, 8, " This is" * 20)
