"""Kernels for maps with one dendrite, interpreted on the CPU, against PyTorch; and compiled."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from finsent.kernels import adapter_maps
from finsent.kernels.adapter_maps import Part, add_maps_, map_gradients
from tests.test_fused_training import backbone_of, fuse, gradients, model_of, relative

pytest.importorskip("triton", reason="triton is not there for this kind of machine")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before torch is imported", allow_module_level=True)

from finsent.kernels import adapter_map_kernels


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let maps be computed by the kernels; how many maps each forward launch was of."""
    found: list[int] = []
    add_ = adapter_map_kernels.add_

    def counted(*arguments: Sequence) -> None:
        found.append(len(arguments[2]))
        add_(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(adapter_map_kernels, "add_", counted)
    monkeypatch.setattr(adapter_maps, "uses_kernels", lambda z: True)
    return found


class Product:
    """Random maps inside a random product, with columns between them that are nobody's."""

    def __init__(
        self, sizes: Sequence[tuple[int, int, int]], activation: str, rows: int, scale: float = 1.0
    ) -> None:
        """sizes: outputs, rank and dendrites of every map."""
        draw = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw)

        self.parts, self.maps = [], []
        rank_at = out_at = 3
        for out, rank, k in sizes:
            ranks, outputs = slice(rank_at, rank_at + rank), slice(out_at, out_at + out)
            rank_at, out_at = ranks.stop, outputs.stop + 5
            part = Part(ranks, outputs, k, activation)
            tensors = [random(out, rank)]
            if k:
                tensors += [random(k * out, rank) * scale, random(k, out)]
                tensors += [random(i, out) for i in range(1, k)]
            assert len(tensors) == part.tensors
            self.parts.append(part)
            self.maps.append(tensors)
        self.z, self.y, self.g = random(rows, rank_at), random(rows, out_at), random(rows, out_at)

    def results(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """The product with the maps added, and the gradients: of z in the maps' columns, and of
        every tensor."""
        y, z = self.y.to(dtype), self.z.to(dtype)
        maps = [[tensor.to(dtype) for tensor in tensors] for tensors in self.maps]
        add_maps_(y, z, self.parts, maps)
        g_z, of_maps = map_gradients(self.g.to(dtype), z, self.parts, maps)
        return [y, g_z[:, self.parts[0].ranks.start :], *of_maps]


def expected(product: Product) -> list[Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter_maps, "uses_kernels", lambda z: False)
        return product.results()


@pytest.mark.parametrize(
    ("sizes", "activation", "rows", "together"),
    [
        ([(70, 8, 1), (70, 8, 1)], "relu", 45, [2]),
        ([(40, 5, 1), (24, 5, 1), (40, 5, 1)], "sigmoid", 33, [2, 1]),
        ([(32, 20, 1), (40, 3, 0), (40, 3, 2)], "tanh", 32, [1]),
        ([(330, 16, 1)], "tanh", 70, [1]),
        ([(33, 65, 1)], "relu", 7, []),
    ],
)
def test_kernels_are_the_maps_in_pytorch(
    sizes: Sequence[tuple[int, int, int]],
    activation: str,
    rows: int,
    together: list[int],
    launches: list[int],
) -> None:
    product = Product(sizes, activation, rows)
    found = product.results()
    assert launches == together
    for one, other in zip(found, expected(product), strict=True):
        assert one.shape == other.shape
        assert relative(one, other) < 1e-6


def test_pieces_of_the_rows_are_added_up(
    launches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_map_kernels, "PROGRAMS", 6)
    product = Product([(40, 4, 1)], "sigmoid", 150)  # 3 pieces of 2, 2 and 1 tiles, 2 tiles wide
    found = product.results()
    for one, other in zip(found, expected(product), strict=True):
        assert relative(one, other) < 1e-6


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_half_precision(activation: str, launches: list[int]) -> None:
    """In fp16: the interpreter knows no products in bf16, which has the same tiles and casts."""
    product = Product([(70, 8, 1), (70, 8, 1)], activation, 70)
    found = product.results(torch.half)
    for one, other in zip(found, expected(product), strict=True):
        assert one.dtype == torch.half
        assert relative(one.float(), other) < 1e-3


# The exponential in a sigmoid does, and 1 / (1 + inf) is what it should be.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_no_drive_is_too_large(activation: str, launches: list[int]) -> None:
    product = Product([(32, 4, 1)], activation, 32, scale=1e4)
    y, *found = product.results()
    assert all(tensor.isfinite().all() for tensor in found)
    torch.testing.assert_close(y, expected(product)[0], rtol=1e-5, atol=1e-5)


def test_a_whole_decoder_has_the_gradients_of_its_modules(launches: list[int]) -> None:
    model = model_of(backbone_of("llama"), 1, "relu")
    _, plain = gradients(model)
    fuse(model)
    _, found = gradients(model)
    assert launches
    for name, gradient in plain.items():
        assert relative(found[name], gradient) < 1e-5, name


def test_other_layouts_are_refused() -> None:
    z, y = torch.zeros(6, 4), torch.zeros(6, 8)
    maps = [[torch.zeros(8, 4), torch.zeros(8, 4), torch.zeros(1, 8)]]
    with pytest.raises(ValueError, match="rows must be contiguous"):
        adapter_map_kernels.add_([torch.zeros(4, 6).T], [y], maps, "relu")
    with pytest.raises(ValueError, match="equally far apart"):
        adapter_map_kernels.add_([z, z], [y, torch.zeros(6, 9)[:, :8]], maps * 2, "relu")
    smaller = [[tensor[..., :4] for tensor in maps[0]]]
    with pytest.raises(ValueError, match="of one shape"):
        adapter_map_kernels.gradients([z, z], [z, z], [y, y], maps + smaller, "relu")


def test_they_compile_for_gpus_and_fit_in_their_registers(tmp_path: Path) -> None:
    if importlib.util.find_spec("triton.backends.nvidia") is None:
        pytest.skip("this Triton has no compiler for NVIDIA GPUs")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.compile_kernels"]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip("this Triton has no tools that look into what it compiled")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["capability"] for kernel in found} == {80, 90}
    for kernel in found:
        # At the largest rank a few registers may be, as the compiler's version has it.
        assert kernel["spilled"] <= (0 if kernel["rank"] == 8 else 512), kernel
        assert kernel["shared"] <= 227 * 1024 // 3, kernel
