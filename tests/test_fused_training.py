"""The fused training path against transformers' blocks with adapter modules: same values, same
gradients, the same base afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from finsent.config import DendriteConfig, LoraConfig, MatchedCapacity, TrainConfig
from finsent.kernels.attention import rotate_
from finsent.models.backbones import Backbone, HiddenStates
from finsent.models.products import FusionError, side_by_side
from finsent.training import adapted_model, loop
from finsent.training.adapted_model import AdaptedModel, build_model
from finsent.training.fused_blocks import FusedBlocks, can_fuse
from tests.test_serving import CPU, TARGETS, decoder_of, dendritic, in_4_bit

pytestmark = pytest.mark.slow

LAST = (7, 3, 5, 7)
CONFIG = TrainConfig(
    backbone="tiny", lora=LoraConfig(r=2, last_layers=2), autocast=False, learning_rate=5e-3
)


def backbone_of(family: str, precision: str = "fp32") -> Backbone:
    decoder = decoder_of(family)
    if precision == "nf4":
        decoder = in_4_bit(decoder, compress=True)
    return Backbone("tiny", decoder, None, precision, CPU, "0" * 64)  # type: ignore[arg-type]


def model_of(backbone: Backbone, k: int, activation: str, **changes: object) -> AdaptedModel:
    """Adapters with values that matter: B starts at zero otherwise. k < 0: plain linear maps."""
    family = backbone.decoder.config.model_type
    targets = tuple(name.rsplit(".", 1)[1] for name in TARGETS[family])
    config = replace(CONFIG, lora=replace(CONFIG.lora, target_modules=targets), **changes)
    model = build_model(config, backbone, 3)
    draw = torch.Generator().manual_seed(1)
    for number, (name, pair) in enumerate(model.pairs.items()):
        pair.b.weight.data.normal_(0, 0.1, generator=draw)
        if k >= 0:
            grown = dendritic(pair.b.out_features, pair.b.in_features, k, number, activation)
            for parameter in grown.parameters():
                parameter.requires_grad_(True)
            adapted_model.adopt_grown_modules(model, {f"{name}.lora_B": grown})
    return model


def fuse(model: AdaptedModel) -> None:
    model.fused = FusedBlocks(model.upper, model.pairs, model.b_maps, model.scaling)


def batch(seed: int = 3) -> tuple[Tensor, Tensor]:
    hidden = torch.randn(4, 8, 64, generator=torch.Generator().manual_seed(seed))
    return hidden, torch.tensor(LAST)


def gradients(
    model: AdaptedModel, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, dict[str, Tensor]]:
    hidden, last = batch()
    pooled = model.pooled(hidden.to(dtype), last)
    weights = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(5))
    tensors = {n: t for n, t in model.tensors().items() if not n.startswith("score")}
    found = torch.autograd.grad((pooled * weights).sum(), list(tensors.values()))
    return pooled.detach(), dict(zip(tensors, found, strict=True))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("family", ["phi", "llama"])
@pytest.mark.parametrize(
    ("k", "activation"), [(-1, "none"), (0, "relu"), (1, "relu"), (2, "sigmoid"), (3, "tanh")]
)
def test_values_and_gradients_are_those_of_the_modules(
    family: str, k: int, activation: str
) -> None:
    model = model_of(backbone_of(family), k, activation)
    plain, expected = gradients(model)
    fuse(model)
    fused, found = gradients(model)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 1e-6, name
        assert relative(found[name], gradient) < 1e-5, name


def test_a_bf16_base_loses_about_the_precision_that_the_modules_do() -> None:
    backbone = backbone_of("phi")
    backbone.decoder.bfloat16()
    model = model_of(backbone, 2, "relu")
    _, plain = gradients(model, torch.bfloat16)
    fuse(model)
    _, fused = gradients(model, torch.bfloat16)
    model.fused = None
    backbone.decoder.float()
    _, exact = gradients(model)
    errors = [[relative(found[name], exact[name]) for name in exact] for found in (plain, fused)]
    assert {gradient.dtype for gradient in fused.values()} == {torch.float32}
    assert sum(errors[1]) < 1.3 * sum(errors[0])


@pytest.mark.parametrize("family", ["phi", "llama"])
def test_the_mean_of_all_rows(family: str) -> None:
    model = model_of(backbone_of(family), 1, "tanh", pooling="mean")
    plain, expected = gradients(model)
    fuse(model)
    fused, found = gradients(model)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)
    for name, gradient in expected.items():
        assert relative(found[name], gradient) < 1e-5, name


def test_ranks_that_differ_between_layers() -> None:
    backbone = backbone_of("phi")
    small = model_of(backbone, -1, "none")
    count = sum(p.numel() for p in small.parameters())
    small.detach()
    model = model_of(backbone, -1, "none", treatment=MatchedCapacity(count + 300))
    assert len({pair.a.out_features for pair in model.pairs.values()}) > 1
    _, expected = gradients(model)
    fuse(model)
    _, found = gradients(model)
    for name, gradient in expected.items():
        assert relative(found[name], gradient) < 1e-5, name


@pytest.mark.parametrize("family", ["phi", "llama"])
def test_4_bit_weights_give_the_same_gradients_and_are_not_kept(family: str) -> None:
    model = model_of(backbone_of(family, "nf4"), 1, "relu")
    _, expected = gradients(model)
    fuse(model)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _, found = gradients(model)
    for name, gradient in expected.items():
        assert relative(found[name], gradient) < 1e-5, name
    base = {(64, 64), (128, 64), (64, 128), (192, 64), (128, 64), (256, 64)}
    assert not [t.shape for t in kept if tuple(t.shape) in base]


@pytest.mark.parametrize("k", [1, 3])
def test_what_dendrites_put_out_is_not_kept(k: int) -> None:
    kept: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    widths = []
    for dendrites in (0, k):
        model = model_of(backbone_of("phi"), dendrites, "tanh")
        fuse(model)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            gradients(model)
        wide = [s for s in kept if len(s) == 2 and s[0] == 4 * 8 and s[1] >= 32]
        widths.append(sum(shape[1] for shape in wide))
    assert widths[0] == widths[1] > 0


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
@pytest.mark.parametrize("family", ["phi", "llama"])
def test_the_base_goes_on_working_and_is_not_held_twice(family: str, precision: str) -> None:
    backbone = backbone_of(family, precision)
    ids = torch.arange(5, 14)[None]
    before = backbone.decoder(input_ids=ids).last_hidden_state
    storages = []
    for _ in range(2):  # the second arm finds the weights joined already
        model = model_of(backbone, -1, "none")
        fuse(model)
        model.detach()
        attention = backbone.decoder.layers[1].self_attn
        layers = [attention.q_proj, attention.k_proj, attention.v_proj]
        storages.append({layer.weight.untyped_storage().data_ptr() for layer in layers})
    assert storages[0] == storages[1]
    assert len(storages[0]) == 1
    after = backbone.decoder(input_ids=ids).last_hidden_state
    if precision == "fp32":
        assert torch.equal(after, before)
    else:
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_restored_and_silenced_maps_are_seen() -> None:
    model = model_of(backbone_of("phi"), 1, "relu")
    fuse(model)
    start = model.snapshot()
    hidden, last = batch()
    with_dendrites = model.pooled(hidden, last)
    with model.dendrites_silenced():
        silenced = model.pooled(hidden, last)
        with model.module_by_module():
            expected = model.pooled(hidden, last)
    torch.testing.assert_close(silenced, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(silenced, with_dendrites)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    model.restore(start)
    torch.testing.assert_close(model.pooled(hidden, last), with_dendrites)


@pytest.mark.parametrize("candidates", ["random", "refined"])
def test_a_whole_run_ends_where_the_plain_one_does(
    candidates: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With growth, restored states and, for refined candidates, hooks on the maps."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 9, (24,), generator=draw)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    states = HiddenStates(torch.randn(int(offsets[-1]), 64, generator=draw), offsets)
    labels = [i % 3 for i in range(24)]
    config = replace(
        CONFIG,
        epochs=4,
        batch_size=4,
        treatment=DendriteConfig(grow_by=1, candidates=candidates),
    )
    losses = []
    for fused in (False, True):
        monkeypatch.setattr(adapted_model, "can_fuse", lambda *_, fused=fused: fused)
        result = loop.train(
            config,
            backbone_of("phi"),
            loop.TrainingData(states, labels, 3, range(16), range(16, 24)),
            tmp_path / str(fused),
        )
        assert (result.model.fused is not None) == fused
        assert result.dendrites == 1
        losses.append([record.train_loss for record in result.history])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_what_is_fused() -> None:
    cuda = torch.device("cuda")
    sizes = {"hidden_size": 64, "intermediate_size": 128}

    def decoder(**model: object) -> SimpleNamespace:
        config = SimpleNamespace(model_type="phi", to_dict=lambda: {**sizes, **model})
        vars(config).update(model)
        return SimpleNamespace(config=config)

    bf16, nf4 = replace(CONFIG, precision="bf16"), replace(CONFIG, precision="nf4")
    assert can_fuse(bf16, decoder(), cuda)
    assert can_fuse(nf4, decoder(), cuda)
    assert can_fuse(CONFIG, decoder(), cuda)
    assert not can_fuse(bf16, decoder(), CPU)
    assert not can_fuse(replace(CONFIG, autocast=True), decoder(), cuda)
    assert not can_fuse(bf16, decoder(model_type="gpt_neox"), cuda)
    assert not can_fuse(bf16, decoder(qk_layernorm=True), cuda)
    assert not can_fuse(nf4, decoder(hidden_size=96), cuda)


def test_layers_of_different_kinds_share_no_weight() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    with pytest.raises(FusionError, match="4-bit layers and others"):
        side_by_side([nn.Linear(64, 64), bnb.nn.Linear4bit(64, 64)])


def test_a_rotation_turns_back() -> None:
    x = torch.randn(2, 5, 3, 8, dtype=torch.double)
    angles = torch.randn(5, 2, dtype=torch.double).repeat(1, 2)
    turned = x.clone()
    rotate_(turned, angles.cos(), angles.sin())
    assert torch.equal(turned[..., 4:], x[..., 4:])
    assert not torch.allclose(turned[..., :4], x[..., :4])
    rotate_(turned, angles.cos(), -angles.sin())
    torch.testing.assert_close(turned, x)
