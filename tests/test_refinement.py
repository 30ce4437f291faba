"""Refined candidates: they follow the residual, leave the function, and help where lines do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from finsent.config import ConfigError, DendriteConfig, LoraConfig, TrainConfig
from finsent.data.registry import load_dataset, make_split
from finsent.growth import refinement
from finsent.growth.candidate_pool import (
    CorrelationTarget,
    Residuals,
    correlation,
    train_candidates,
)
from finsent.growth.refinement import refine_new_dendrites
from finsent.models.adapter_files import DendriticMap
from finsent.models.backbones import default_device, entering_hidden_states, load_backbone
from finsent.models.dendritic_linear import DendriticLinear
from finsent.training.loop import TrainingData, train

pytestmark = pytest.mark.slow


def grown(inner: int, out: int, activation: str = "relu", *, bias: bool = False) -> DendriticLinear:
    def parameter(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(shape) * 0.1)

    b = parameter(out) if bias else None
    module = DendriticLinear(parameter(out, inner), b, activation)
    c = parameter(out) if bias else None
    dendrites = ((parameter(out, inner), c),)
    output_weights = nn.Parameter(torch.zeros(1, out))
    module.adopt(DendriticMap(module.weight, module.bias, dendrites, output_weights))
    return module


def test_correlation_is_the_statisticians_and_ignores_padding() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 30, 4), torch.randn(2, 30, 4)
    real = torch.ones(2, 30)
    real[1, 20:] = 0
    b[:, :, 3] = 0.0  # nothing depends on it
    target = CorrelationTarget.of(Residuals(a, b * 1e-9, real))
    pool = torch.cat([a, 2 * b.flip(1) + 1], dim=2)
    found = correlation(pool, target)
    assert found.isfinite().all()
    for run, rows in ((0, 30), (1, 20)):
        for column in range(8):
            pair = torch.stack([pool[run, :rows, column], b[run, :rows, column % 4]])
            known = abs(float(torch.corrcoef(pair)[0, 1])) if column % 4 < 3 else 0.0
            assert float(found[run, column]) == pytest.approx(known, abs=1e-5)


def test_the_best_of_the_pool_follows_what_is_wanted() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 800, 5, generator=generator)
    directions = torch.randn(5, 3, generator=generator)
    wanted = (x @ directions).relu() * torch.tensor([1.0, -2.0, 0.5])
    half = torch.ones(1, 400)
    weight, bias = train_candidates(
        lambda count: torch.randn(1, count, 5, generator=generator),
        "relu",
        Residuals(x[:, :400], wanted[:, :400], half),
        Residuals(x[:, 400:], wanted[:, 400:], half),
        bias=True,
    )
    assert (weight.shape, bias.shape) == ((1, 3, 5), (1, 3))
    followed = correlation(
        (x @ weight.transpose(1, 2) + bias[:, None]).relu(),
        CorrelationTarget.of(Residuals(x, wanted, torch.ones(1, 800))),
    )
    assert float(followed.min()) > 0.95


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_refined_dendrite_points_where_the_loss_falls(activation: str, bias: bool) -> None:
    torch.manual_seed(1)
    module = grown(6, 4, activation, bias=bias)
    x = torch.randn(400, 6)
    target = x.abs() @ torch.randn(6, 4)

    def loss_of(batch: object) -> Tensor:
        rows = list(batch)  # type: ignore[call-overload]
        return (module(x[rows]) - target[rows]).square().mean()

    drawn = module.dendrites[0].weight.detach().clone()
    before = module(x).detach()
    batches = [list(range(start, start + 50)) for start in range(0, 400, 50)]
    first = slopes(module, loss_of, 400)
    refine_new_dendrites({"map": module}, loss_of, batches[:5], batches[5:], seed=0)
    torch.testing.assert_close(module(x).detach(), before)
    assert module.weight.grad is None
    # With t still zero, the loss falls faster along t than from where the library left V.
    assert not torch.equal(module.dendrites[0].weight, drawn)
    assert float(slopes(module, loss_of, 400).sum()) > float(first.sum())


def slopes(module: DendriticLinear, loss_of: object, rows: int) -> Tensor:
    loss_of(range(rows)).backward()  # type: ignore[operator]
    assert module.output_weights is not None
    assert module.output_weights.grad is not None
    found = module.output_weights.grad.abs().clone()
    module.zero_grad(set_to_none=True)
    return found


def test_a_run_may_grow_refined_dendrites(
    tmp_path: Path, tiny_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    refined = []
    plain = refinement.train_candidates

    def counted(*given: object, **options: object) -> tuple[Tensor, Tensor]:
        refined.append(given)
        return plain(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(refinement, "train_candidates", counted)
    config = TrainConfig(
        backbone="tiny-phi",
        dataset="sample",
        epochs=3,
        autocast=False,
        lora=LoraConfig(r=2, last_layers=1),
        treatment=DendriteConfig(grow_by=0, patience=9, candidates="refined"),
    )
    dataset = load_dataset("sample")
    split = make_split(dataset, 0)
    device = default_device()
    results = {}
    for candidates in ("refined", "random"):
        assert isinstance(config.treatment, DendriteConfig)
        variant = replace(config, treatment=replace(config.treatment, candidates=candidates))
        backbone = load_backbone("tiny-phi", "fp32", device)
        ids = backbone.tokenize([e.text for e in dataset.examples], 128)
        states = entering_hidden_states(backbone, ids, 1)
        labels = [e.label for e in dataset.examples]
        results[candidates] = train(
            variant,
            backbone,
            TrainingData(states, labels, 3, split.train, split.validation),
            tmp_path,
        )
    assert len(refined) == 3, "q, v and the head of one block, once each"
    histories = {name: result.history for name, result in results.items()}
    assert histories["refined"][0].val_loss == histories["random"][0].val_loss
    assert histories["refined"][1].val_loss != histories["random"][1].val_loss
    assert results["refined"].dendrites == 1


def test_refined_candidates_are_for_one_dendrite() -> None:
    with pytest.raises(ConfigError, match="refined candidates are for one dendrite a map, got 2"):
        DendriteConfig(candidates="refined", max_dendrites=2)
    with pytest.raises(ConfigError, match="candidates must be one of"):
        DendriteConfig(candidates="best")
