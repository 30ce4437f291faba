"""Growing with PerforatedAI, and our module against the library's own forward."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from finsent.config import ACTIVATIONS, DendriteConfig
from finsent.growth.grower import DendriteGrower, GrowthError
from finsent.models.adapter_files import DendriticMap, load_adapter
from finsent.models.adapters import save_adapter
from finsent.models.dendritic_linear import DendriticLinear, LowRankMap

CPU = torch.device("cpu")


def fresh_maps(bias: bool) -> dict[str, nn.Linear]:
    torch.manual_seed(0)
    return {
        "layers.0.self_attn.q_proj.lora_B": nn.Linear(4, 6, bias=bias),
        "score": nn.Linear(6, 3, bias=bias),
    }


def forward(grower: DendriteGrower, x: torch.Tensor) -> torch.Tensor:
    hidden = grower.modules["layers.0.self_attn.q_proj.lora_B"](x)
    return grower.modules["score"](hidden).mean(dim=1)


def grow(grower: DendriteGrower, epochs: int) -> list[str]:
    """Train on noise with a validation score that plateaus every third epoch."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 5, 4, generator=generator)
    y = torch.randint(0, 3, (32,), generator=generator)
    optimizer = torch.optim.AdamW(grower.parameters(), lr=3e-2)
    score, events = 0.3, []
    for epoch in range(epochs):
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(forward(grower, x), y).backward()
            optimizer.step()
        score += 0.05 if epoch % 3 != 2 else -0.04
        event = grower.epoch_end(score, optimizer)
        if event is not None:
            events.append(event.description)
            optimizer = torch.optim.AdamW(grower.parameters(), lr=3e-2)
    return events


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("activation", "k"), list(itertools.product(ACTIVATIONS, (1, 2, 3))))
def test_our_forward_equals_the_librarys(
    activation: str, k: int, bias: bool, tmp_path: Path
) -> None:
    config = DendriteConfig(activation=activation, max_dendrites=k, patience=1, init_scale=0.3)
    with DendriteGrower(fresh_maps(bias), config, CPU, tmp_path) as grower:
        events = grow(grower, 12)
        assert events == [f"grew dendrite {i + 1}" for i in range(k)]
        for name, module in grower.modules.items():
            assert module.n_dendrites == k
            x = torch.randn(7, module.in_features)
            expected = grower.library_forward(name)(x)
            torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=0)
            # The dendrites have learnt something, or the comparison would say nothing.
            assert not torch.allclose(module(x), F.linear(x, module.weight, module.bias), atol=1e-4)
            tensors = {n: p.detach() for n, p in module.named_parameters()}
            served = DendriticLinear.of(DendriticMap.from_tensors(tensors), activation)
            torch.testing.assert_close(served(x), expected, atol=1e-5, rtol=0)
            # ... and the same on (batch, tokens, features), the shape it has inside a model.
            sequence = x[None].expand(2, -1, -1)
            torch.testing.assert_close(served(sequence)[1], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_dendrites_of_whole_layers_equal_the_librarys(k: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = LowRankMap(nn.Linear(4, 2, bias=False), nn.Linear(2, 6, bias=False))
    name = "layers.0.self_attn.q_proj.lora_B"
    maps = {name: first, "score": fresh_maps(bias=False)["score"]}
    config = DendriteConfig(
        placement=("layer", "score"), max_dendrites=k, patience=1, init_scale=0.3
    )
    with DendriteGrower(maps, config, CPU, tmp_path) as grower:
        assert grow(grower, 12) == [f"grew dendrite {i + 1}" for i in range(k)]
        module, x = grower.modules[name], torch.randn(7, 4)
        expected = grower.library_forward(name)(x)
        torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=0)
        assert not torch.allclose(module(x), first(x), atol=1e-3)
        # The file's compact form, widened as it is read, is the same function.
        path = tmp_path / "adapter.safetensors"
        tensors = {f"{name}.{n}": p for n, p in module.named_parameters()}
        a_name = name.replace("lora_B", "lora_A")
        tensors |= {f"{a_name}.weight": first.a.weight, "score.weight": torch.zeros(3, 6)}
        save_adapter(path, tensors, 1.0, config.activation)
        a, b = load_adapter(path).layers[name.removesuffix(".lora_B")]
        served = DendriticLinear.of(b, config.activation)(x @ torch.as_tensor(a).T)
        torch.testing.assert_close(served, expected, atol=2e-2, rtol=2e-3)  # fp16


def test_growth_starts_from_the_best_state_and_keeps_the_function(tmp_path: Path) -> None:
    maps = fresh_maps(bias=False)
    with DendriteGrower(maps, DendriteConfig(patience=1), CPU, tmp_path) as grower:
        x = torch.randn(3, 5, 4)
        optimizer = torch.optim.SGD(grower.parameters(), lr=0.1)
        assert grower.epoch_end(0.4, optimizer) is None
        with torch.no_grad():
            for parameter in grower.parameters():
                parameter += 0.5
        assert grower.epoch_end(0.5, optimizer) is None
        best = forward(grower, x).detach()
        with torch.no_grad():
            for parameter in grower.parameters():
                parameter += 1.0
        assert not torch.allclose(forward(grower, x), best)
        event = grower.epoch_end(0.4, optimizer)
        assert event is not None
        assert event.dendrites == 1
        torch.testing.assert_close(forward(grower, x), best)


def test_grow_by_forces_growth_while_scores_still_improve(tmp_path: Path) -> None:
    config = DendriteConfig(patience=5, grow_by=2)
    with DendriteGrower(fresh_maps(False), config, CPU, tmp_path) as grower:
        optimizer = torch.optim.SGD(grower.parameters(), lr=0.1)
        events = [grower.epoch_end(0.1 * (i + 1), optimizer) for i in range(4)]
    assert [e is not None for e in events] == [False, False, True, False]


def test_nothing_grows_after_the_last_epoch_or_beyond_the_limit(tmp_path: Path) -> None:
    with DendriteGrower(fresh_maps(False), DendriteConfig(patience=1), CPU, tmp_path) as grower:
        optimizer = torch.optim.SGD(grower.parameters(), lr=0.1)
        assert grower.epoch_end(0.9, optimizer) is None
        assert grower.epoch_end(0.1, optimizer, may_grow=False) is None
        assert grower.epoch_end(0.1, optimizer) is not None
        for _ in range(8):
            assert grower.epoch_end(0.05, optimizer) is None
        assert grower.n_dendrites == 1


def test_no_global_state_and_no_files_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from perforatedai import globals_perforatedai as library

    settings, tracker = dict(vars(library.pc)), library.pai_tracker
    stdin = sys.stdin
    # A folder of its own: beside it, other test processes may write theirs.
    folder, saves = tmp_path / "working-directory", tmp_path / "saves"
    folder.mkdir()
    saves.mkdir()
    monkeypatch.chdir(folder)
    with DendriteGrower(fresh_maps(False), DendriteConfig(patience=1), CPU, saves) as grower:
        grow(grower, 4)
        assert library.pai_tracker is not tracker
        chart = saves / "PAI.png"
        grower.draw(chart)
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert dict(vars(library.pc)) == settings
    assert library.pai_tracker is tracker
    assert (sys.stdin, Path.cwd()) == (stdin, folder)
    assert list(folder.iterdir()) == []
    assert [p.name for p in saves.iterdir()] == ["PAI.png"]
    assert capsys.readouterr().out == ""


def test_state_is_put_back_when_training_fails(tmp_path: Path) -> None:
    from perforatedai import globals_perforatedai as library

    settings = dict(vars(library.pc))
    with (
        pytest.raises(ZeroDivisionError),
        DendriteGrower(fresh_maps(False), DendriteConfig(), CPU, tmp_path),
    ):
        raise ZeroDivisionError
    assert dict(vars(library.pc)) == settings
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("score", [0.0, -0.3, 1.5, float("nan")])
def test_a_score_the_library_would_misread_is_refused(score: float, tmp_path: Path) -> None:
    with DendriteGrower(fresh_maps(False), DendriteConfig(), CPU, tmp_path) as grower:
        optimizer = torch.optim.SGD(grower.parameters(), lr=0.1)
        with pytest.raises(GrowthError, match="validation score"):
            grower.epoch_end(score, optimizer)


def test_maps_that_cannot_grow_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GrowthError, match="no linear map"):
        DendriteGrower({}, DendriteConfig(), CPU, tmp_path)
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(GrowthError, match="frozen"):
        DendriteGrower({"score": frozen}, DendriteConfig(), CPU, tmp_path)
    with pytest.raises(GrowthError, match="__"):
        DendriteGrower({"a__b": nn.Linear(2, 2)}, DendriteConfig(), CPU, tmp_path)


def test_a_lost_or_unknown_tensor_is_an_error() -> None:
    weight = torch.randn(3, 4)
    tensors = {
        "weight": weight,
        "output_weights": torch.randn(2, 3),
        "dendrites.0.weight": weight,
        "dendrites.1.weight": weight,
        "recurrent.1": torch.randn(1, 3),
    }
    assert DendriticMap.from_tensors(tensors).n_dendrites == 2
    for name in ("weight", "dendrites.0.weight", "recurrent.1"):
        rest = {n: t for n, t in tensors.items() if n != name}
        with pytest.raises(KeyError):
            DendriticMap.from_tensors(rest)
    with pytest.raises(ValueError, match="without a place"):
        DendriticMap.from_tensors({**tensors, "dendrites.2.weight": weight})
    with pytest.raises(ValueError, match="recurrent weights"):
        DendriticMap.from_tensors({**tensors, "recurrent.1": torch.randn(2, 3)})
    with pytest.raises(ValueError, match="dendrite weights"):
        DendriticMap.from_tensors({**tensors, "dendrites.1.weight": torch.ones(2, 4)})
    with pytest.raises(ValueError, match="activation"):
        DendriticLinear.of(DendriticMap.from_tensors(tensors), "gelu")
